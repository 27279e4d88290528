import pytest
import torch

from multimodal.batch import Batch, collate
from multimodal.frozen_stream import FrozenStream
from multimodal.model import MultimodalModel
from multimodal.training.learns import learning, open_parameters
from multimodal.training.loss import token_loss
from tests.multimodal.tiny import TEXT, item, mixed

LEARNS = ((r"adapters\.image\.placeholder", 0.0), (r"adapters\..*", 1.0))


@pytest.fixture
def trained(model: MultimodalModel) -> MultimodalModel:
    open_parameters(model, LEARNS)
    return model


def gradients(model: MultimodalModel, batch: Batch, stream: torch.Tensor | None) -> tuple[float, list[torch.Tensor]]:
    loss, _ = token_loss(model, batch, stream=stream)
    return loss.item(), list(torch.autograd.grad(loss, list(learning(model).values())))


def test_the_loss_and_its_gradients_are_those_without_it(trained: MultimodalModel) -> None:
    batch = mixed(trained)
    stream = FrozenStream(trained)
    plain, expected = gradients(trained, batch, None)
    for _ in range(2):
        loss, found = gradients(trained, batch, stream(batch))
        assert loss == pytest.approx(plain, rel=1e-5)
        torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-4)


def test_a_row_has_the_same_bits_whatever_batch_it_first_came_in(trained: MultimodalModel) -> None:
    row = item(trained, "look ", 1, " what", answer="cat")
    others = [item(trained, "a much longer row than the other is", 2), item(trained, 3, "z")]
    crowded, alone = FrozenStream(trained), FrozenStream(trained)
    T = len(row.row.tokens)
    met = crowded(collate([others[0], row, others[1]], pad=TEXT.pad))[1, :T]
    assert torch.equal(met, alone(collate([row], pad=TEXT.pad))[0])
    again = crowded(collate([row, others[1]], pad=TEXT.pad))[0, :T]
    assert torch.equal(again, met)


def test_a_row_that_comes_again_is_not_computed_again(trained: MultimodalModel, monkeypatch) -> None:
    batch = mixed(trained)
    stream = FrozenStream(trained)
    first = stream(batch)
    monkeypatch.setattr(trained.text, "run", None)
    assert torch.equal(stream(batch), first)


def test_the_oldest_rows_go_when_the_capacity_is_full(trained: MultimodalModel, monkeypatch) -> None:
    rows = [collate([item(trained, text)], pad=TEXT.pad) for text in ("aaaa", "bbbb", "cccc")]
    stream = FrozenStream(trained, capacity=2 * 5 * TEXT.width * 4)
    for batch in (rows[0], rows[1], rows[0], rows[2]):
        stream(batch)
    # Two fit; the one that was used longest ago is gone.
    computed = []
    run = trained.text.run
    monkeypatch.setattr(trained.text, "run", lambda *args, **more: computed.append(1) or run(*args, **more))
    stream(rows[0])
    stream(rows[2])
    assert not computed
    stream(rows[1])
    assert len(computed) == 1


def test_a_stream_that_is_not_frozen_is_refused(model: MultimodalModel) -> None:
    open_parameters(model, ((r"adapters\..*", 1.0),))
    with pytest.raises(ValueError, match=r"adapters\.image\.placeholder.*turn the stream's cache off"):
        FrozenStream(model)
    open_parameters(model, (*LEARNS, (r"text\.model\.layers\.0\..*", 0.1)))
    with pytest.raises(ValueError, match=r"text\.model\.layers\.0"):
        FrozenStream(model)
