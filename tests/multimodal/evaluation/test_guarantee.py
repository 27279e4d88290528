from dataclasses import dataclass

import pytest
import torch
from torch import Tensor, nn

from multimodal.evaluation.guarantee import text_unchanged
from text_backbone import LlamaConfig, TextBackbone

CONFIG = LlamaConfig(
    vocabulary=40,
    width=16,
    layers=2,
    heads=2,
    kv_heads=1,
    head_width=8,
    feed_forward=24,
    context=64,
    begin=0,
    stops=(1,),
)


@dataclass(frozen=True)
class _Batch:
    tokens: Tensor
    lengths: Tensor
    targets: Tensor
    places: Tensor
    owners: Tensor
    index: Tensor
    sees: Tensor
    tiles: Tensor | None = None
    pictures: Tensor | None = None
    features: Tensor | None = None
    heard: Tensor | None = None
    speech: Tensor | None = None
    sizes: Tensor | None = None


class _Composed(nn.Module):
    """A model whose adapter adds a constant where a token sees something, and `leak` where it sees nothing."""

    def __init__(self, leak: float = 0.0) -> None:
        super().__init__()
        self.text, self.leak = TextBackbone(CONFIG), leak

    def forward(self, batch: _Batch, *, every_position: bool = False) -> Tensor:
        assert every_position
        x = self.text.embed(batch.tokens, self.embeds(batch.tokens))
        return self.text.head(self.text.run(x, before=self.before(self.remember(batch), batch.sees)))

    def remember(self, batch: _Batch) -> Tensor | None:
        return batch.features

    def before(self, memory: Tensor | None, sees: Tensor) -> dict:
        if memory is None:
            return {}
        return {1: (lambda x: torch.where(sees.any(-1, keepdim=True), x + 3, x + self.leak),)}

    def listen(self, batch: object) -> None:
        return None

    def embeds(self, tokens: Tensor, speech: Tensor | None = None) -> tuple[Tensor, Tensor] | None:
        at = tokens == CONFIG.vocabulary
        return (at, torch.ones(int(at.sum()), CONFIG.width)) if at.any() else None


def _batch() -> _Batch:
    tokens = torch.randint(2, 40, (3, 7))
    tokens[0, 2] = 40
    sees = torch.zeros(3, 7, 2, dtype=torch.bool)
    sees[0, 2:] = True
    index = torch.tensor([[0, 1], [-1, -1], [-1, -1]])
    return _Batch(
        tokens,
        torch.tensor([7, 7, 4]),
        tokens,
        torch.zeros(2, 3),
        torch.zeros(2),
        index,
        sees,
        features=torch.ones(2, 5),
    )


def test_an_adapter_that_leaves_text_alone_differs_nowhere():
    found = text_unchanged(_Composed(), _batch())
    assert found == dict.fromkeys(
        ("alone", "beside_pictures", "before_first_picture", "cached_prefill", "cached_decode", "cached_decode_alone"),
        0.0,
    )


def test_an_adapter_that_leaks_into_text_is_seen_in_every_mixed_case():
    found = text_unchanged(_Composed(leak=1e-3), _batch())
    mixed = ("beside_pictures", "before_first_picture", "cached_prefill", "cached_decode")
    assert all(found[case] > 0 for case in mixed)


def test_a_nan_is_an_infinite_difference():
    assert text_unchanged(_Composed(leak=float("nan")), _batch())["beside_pictures"] == float("inf")


def test_dropout_is_off_while_it_is_measured_and_the_mode_comes_back():
    model = _Composed().train()
    text_unchanged(model, _batch())
    assert model.training


def test_a_batch_without_text_rows_or_without_pictures_is_an_error():
    batch = _batch()
    with pytest.raises(ValueError, match="it must mix rows"):
        text_unchanged(_Composed(), _Batch(**{**vars(batch), "index": torch.zeros(3, 2, dtype=torch.long)}))
    # No picture, and no place for one among the tokens.
    none = {"index": torch.full((3, 2), -1), "tokens": batch.tokens.clamp(max=CONFIG.vocabulary - 1)}
    with pytest.raises(ValueError, match="it must mix rows"):
        text_unchanged(_Composed(), _Batch(**{**vars(batch), **none}))
