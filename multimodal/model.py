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
            x = self.text.embed(batch.tokens, self.embeds(batch.tokens, self.listen(batch)))
            stream = self.text.run(x, last=first)
        x = self.text.run(stream, first=first, before=before)
        return self.text.head(x if every_position else x[batch.targets != NO_TARGET], words)

    @property
    def first_block(self) -> int:
        """The lowest text block that an image adapter stands before: the stream below it no picture changes."""
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

    def listen(self, batch: Batch) -> Float[Tensor, "K D"] | None:
        """The rows that recordings take in the text, delimiters with them, one recording behind the other."""
        if batch.sizes is None:
            return None
        if "speech" not in self.adapters:
            raise ValueError(
                f"the prompt holds a recording, but the model's adapters are {sorted(self.adapters)}, not 'speech'"
            )
        features, sizes = batch.speech, batch.sizes
        if features is None:
            assert batch.heard is not None
            features, sizes = self.encoders["speech"](batch.heard, sizes)
        return self.adapters["speech"](features, sizes)

    def embeds(self, tokens: Int[Tensor, "B T"], speech: Float[Tensor, "K D"] | None = None) -> Embeds | None:
        """The rows that stand in place of placeholder tokens; `speech` (see `listen`) where recordings do."""
        pictures = tokens == self.text.config.vocabulary + PLACEHOLDERS["image"]
        if speech is None:
            count = int(pictures.sum())
            return (pictures, self._placeholder().expand(count, -1)) if count else None
        recordings = tokens == self.text.config.vocabulary + PLACEHOLDERS["speech"]
        if int(recordings.sum()) != len(speech):
            raise ValueError(
                f"the tokens have {int(recordings.sum())} places for speech, but it has {len(speech)} rows"
            )
        at = pictures | recordings
        if not bool(pictures.any()):
            return at, speech
        rows = self._placeholder().to(speech.dtype).expand(int(at.sum()), -1)
        return at, rows.masked_scatter(recordings[at][:, None], speech)

    def _placeholder(self) -> Float[Tensor, "D"]:
        return self._adapter().placeholder.to(self.text.model.embed_tokens.weight.dtype)

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
