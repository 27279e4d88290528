import pytest
import torch
from torch import Tensor

from adapters import ImageAdapter, ImageAdapterConfig, Memory

INDEX = torch.tensor([[0, 1, 2, 3, 4], [5, 6, 7, -1, -1], [-1, -1, -1, -1, -1]])


def _adapter(**options) -> ImageAdapter:
    tiny = {"width": 32, "features": 24, "at": (1, 3), "heads": 4, "kv_heads": 2, "head_width": 8, "feed_forward": 48}
    return ImageAdapter(ImageAdapterConfig(**{**tiny, "gate": 0.5, "positions": "fourier", **options}))


def _media() -> tuple[Tensor, Tensor]:
    return torch.randn(8, 24), torch.rand(8, 3)


def _sees() -> Tensor:
    """Row 0 sees its five features from its second token on, row 1 its three at once, row 2 nothing."""
    sees = torch.zeros(3, 4, 5, dtype=torch.bool)
    sees[0, 1:] = True
    sees[1, :, :3] = True
    return sees


def _run(adapter: ImageAdapter, memory: Memory, sees: Tensor, x: Tensor) -> Tensor:
    for functions in adapter.before(memory, sees).values():
        for enter in functions:
            x = enter(x)
    return x


def test_an_adapter_with_closed_gates_changes_nothing():
    adapter, x = _adapter(gate=0.0), torch.randn(3, 4, 32)
    assert torch.equal(_run(adapter, adapter.remember(*_media()).take(INDEX), _sees(), x), x)


def test_an_opened_gate_lets_the_image_in():
    adapter, x, (features, places) = _adapter(), torch.randn(3, 4, 32), _media()
    one = _run(adapter, adapter.remember(features, places).take(INDEX), _sees(), x)
    other = _run(adapter, adapter.remember(features.flip(0), places).take(INDEX), _sees(), x)
    moved = (one != other).any(-1)
    assert moved.tolist() == [[False, True, True, True], [True] * 4, [False] * 4]


def test_rows_and_tokens_that_see_nothing_stay_bit_for_bit():
    adapter, x = _adapter(), torch.randn(3, 4, 32)
    y = _run(adapter, adapter.remember(*_media()).take(INDEX), _sees(), x)
    assert torch.equal(y[2], x[2])
    assert torch.equal(y[0, 0], x[0, 0])


def test_nothing_is_computed_where_nobody_sees_anything():
    adapter = _adapter()
    memory = adapter.remember(*_media()).take(INDEX)
    assert adapter.before(memory, torch.zeros(3, 4, 5, dtype=torch.bool)) == {}
    empty = adapter.remember(torch.zeros(0, 24), torch.zeros(0, 3)).take(torch.full((2, 3), -1))
    assert adapter.before(empty, torch.zeros(2, 4, 3, dtype=torch.bool)) == {}
    assert adapter.before(empty, torch.zeros(2, 4, 0, dtype=torch.bool)) == {}


def test_what_stands_where_nothing_is_cannot_be_seen():
    adapter, x, (features, places) = _adapter(), torch.randn(3, 4, 32), _media()
    plain = adapter.remember(features, places)
    loud = Memory(tuple(key.clone() for key in plain.keys), tuple(value.clone() for value in plain.values))
    taken = loud.take(INDEX)
    for one in (*taken.keys, *taken.values):
        one[INDEX[:, None, :].expand(one.shape[:3]) < 0] = 1e4
    assert torch.equal(_run(adapter, taken, _sees(), x), _run(adapter, plain.take(INDEX), _sees(), x))


def test_a_permutation_of_the_batch_permutes_the_output():
    adapter, x, order = _adapter(), torch.randn(3, 4, 32), torch.tensor([2, 0, 1])
    memory = adapter.remember(*_media())
    y = _run(adapter, memory.take(INDEX), _sees(), x)
    permuted = _run(adapter, memory.take(INDEX[order]), _sees()[order], x[order])
    torch.testing.assert_close(permuted, y[order])


def test_places_are_read_where_the_config_says_so():
    features, places = _media()
    adapter = _adapter()
    assert not torch.equal(adapter.remember(features, places).keys[0], adapter.remember(features, 1 - places).keys[0])
    with pytest.raises(ValueError, match="needs the features' places"):
        adapter.remember(features, None)
    blind = _adapter(positions="none")
    assert torch.equal(blind.remember(features, places).keys[0], blind.remember(features, None).keys[0])


@pytest.mark.parametrize("recompute", [False, True])
def test_every_weight_learns_once_the_gates_are_open(recompute: bool):
    adapter = _adapter(projector_norm=True, projector_hidden=40)
    adapter.recompute = recompute
    x = torch.randn(3, 4, 32, requires_grad=True)
    y = _run(adapter, adapter.remember(*_media()).take(INDEX), _sees(), x)
    (y * torch.randn_like(y)).sum().backward()
    still = {name for name, weight in adapter.named_parameters() if weight.grad is None or not weight.grad.any()}
    assert still == {"placeholder"}
    assert all(weight.grad is None or weight.grad.isfinite().all() for weight in adapter.parameters())


def test_with_closed_gates_only_the_gates_have_a_gradient():
    adapter = _adapter(gate=0.0)
    y = _run(adapter, adapter.remember(*_media()).take(INDEX), _sees(), torch.randn(3, 4, 32))
    (y * torch.randn_like(y)).sum().backward()
    moving = {name for name, weight in adapter.named_parameters() if weight.grad is not None and weight.grad.any()}
    assert moving == {f"blocks.{i}.{branch}_gate" for i in range(2) for branch in ("attention", "feed_forward")}


def test_noise_is_for_training_only():
    adapter, media = _adapter(noise=0.3, projector_norm=True), _media()
    assert not torch.equal(adapter.remember(*media).keys[0], adapter.remember(*media).keys[0])
    adapter.eval()
    assert torch.equal(adapter.remember(*media).keys[0], adapter.remember(*media).keys[0])


def test_bfloat16_works_for_the_text_alone_and_for_both():
    media, x = _media(), torch.randn(3, 4, 32).bfloat16()
    for adapter in (_adapter(), _adapter().bfloat16()):
        y = _run(adapter, adapter.remember(*media).take(INDEX), _sees(), x)
        assert y.dtype == torch.bfloat16
        assert y.isfinite().all()
        assert torch.equal(y[2], x[2])


@pytest.mark.parametrize(
    ("layers", "width", "heads", "hidden", "billions"), [(32, 4096, 32, 14336, 1.745), (80, 8192, 64, 28672, 17.113)]
)
def test_the_papers_adapters_have_the_papers_size(layers: int, width: int, heads: int, hidden: int, billions: float):
    shape = {"heads": heads, "kv_heads": 8, "head_width": 128, "feed_forward": hidden, "gate": 0.0, "positions": "none"}
    with torch.device("meta"):
        adapter = _adapter(width=width, features=7680, at=tuple(range(3, layers, 4)), **shape)
    assert round(sum(weight.numel() for weight in adapter.blocks.parameters()) / 1e9, 3) == billions
    if width == 4096:
        assert round(sum(weight.numel() for weight in adapter.projector.parameters()) / 1e6) == 31


def test_a_config_that_contradicts_itself_is_refused():
    with pytest.raises(ValueError, match="rising order"):
        _adapter(at=(3, 1))
    with pytest.raises(ValueError, match=r"heads \(4\) must be a multiple of kv_heads \(3\)"):
        _adapter(kv_heads=3)
