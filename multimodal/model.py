"""The whole composition: a frozen text model, encoders that turn media into features, adapters that let the text see
them.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from adapters import ImageAdapter, Memory
from multimodal.batch import NO_TARGET, Batch
from multimodal.modality import PLACEHOLDERS
from text_backbone import TextBackbone
from text_backbone.model import Before, Embeds


class MultimodalModel(nn.Module):
    """`text`, `encoders.<modality>` and `adapters.<modality>`: the parts know nothing of each other, only tensors
    cross.
    """

    def __init__(
        self, text: TextBackbone, encoders: Mapping[str, nn.Module], adapters: Mapping[str, nn.Module]
    ) -> None:
        super().__init__()
        self.text = text
        self.encoders = nn.ModuleDict(encoders)
        self.adapters = nn.ModuleDict(adapters)

    def forward(
        self,
        batch: Batch,
        *,
        every_position: bool = False,
        stream: Tensor | None = None,
        words: Int[Tensor, "W"] | None = None,
    ) -> Tensor:
        """Logits where the batch has targets, [S, V] in row-major order; with `every_position` at all tokens, [B, T,
        V].

        `stream` is the text's residual stream ahead of the first adapter block, where the caller knows it already
        (multimodal.frozen_stream). `words`: the tokens whose logits are wanted, [S, W]; none: all.
        """
        before = self.before(self.remember(batch), batch.sees)
        first = self.first_block
        if stream is None:
            x = self.text.embed(batch.tokens, self.embeds(batch.tokens))
            stream = self.text.run(x, last=first)
        x = self.text.run(stream, first=first, before=before)
        return self.text.head(x if every_position else x[batch.targets != NO_TARGET], words)

    @property
    def first_block(self) -> int:
        """The lowest text block that an adapter stands before: the stream below it is the text model's alone."""
        starts = [adapter.config.at[0] for adapter in self.adapters.values() if isinstance(adapter, ImageAdapter)]
        return min(starts, default=self.text.config.layers)

    def remember(self, batch: Batch) -> Memory | None:
        """What the adapter keeps of the batch's pictures (keys and values), once per picture; None where there are
        none.
        """
        if not batch.has_media:
            return None
        adapter = self._adapter()
        return adapter.remember(self.features(batch), batch.places, batch.owners).take(batch.index)

    def features(self, batch: Batch) -> Float[Tensor, "P E"]:
        """The pictures' features, from the batch where it brings them, else from the encoder."""
        if batch.features is not None:
            return batch.features
        assert batch.tiles is not None
        assert batch.pictures is not None
        return self.encoders["image"](batch.tiles, batch.pictures, batch.places).flatten(0, 1)

    def before(self, memory: Memory | None, sees: Bool[Tensor, "B T M"]) -> Before:
        """The functions that run ahead of text blocks; none for a batch without media: the text model as it was."""
        return {} if memory is None else self._adapter().before(memory, sees)

    def embeds(self, tokens: Int[Tensor, "B T"]) -> Embeds | None:
        """The rows that stand in place of placeholder tokens."""
        at = tokens == self.text.config.vocabulary + PLACEHOLDERS["image"]
        count = int(at.sum())
        if not count:
            return None
        row = self._adapter().placeholder.to(self.text.model.embed_tokens.weight.dtype)
        return at, row.expand(count, -1)

    def _adapter(self) -> ImageAdapter:
        if "image" not in self.adapters:
            raise ValueError(
                f"the prompt holds a picture, but the model's adapters are {sorted(self.adapters)}, not 'image'"
            )
        adapter = self.adapters["image"]
        assert isinstance(adapter, ImageAdapter)
        return adapter


def device_of(model: MultimodalModel) -> torch.device:
    """Where the text model lies; media and tokens go there."""
    return model.text.model.embed_tokens.weight.device
