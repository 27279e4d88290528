"""Image features on their way to the text model's width: projected, placed, and looking at each other."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from adapters.places import FourierPlaces
from adapters.summary import Summary


@dataclass(frozen=True)
class Media:
    """Rows for the cross-attention to read, packed."""

    rows: Float[Tensor, "N1 D"]
    features: Int[Tensor, "N1"] | None = None
    """Which feature each row was made of, rising; None where every feature made one row."""


class Projector(nn.Module):
    """Features to media rows that the cross-attention reads.

    A linear map (as in the paper's release), or two layers; a summary of the features of whole tiles, with recall of
    names; a code for where a feature lies; a narrow Transformer over each picture's features (for what no single place
    shows: how many, left of what); a norm. All but the linear map are options.
    """

    def __init__(
        self,
        features: int,
        width: int,
        *,
        hidden: int = 0,
        norm: bool = False,
        summary: Summary | None = None,
        places: bool = False,
        mixer: int = 0,
        noise: float = 0.0,
    ) -> None:
        super().__init__()
        self.noise = noise
        self.norm = nn.LayerNorm(features) if norm else None
        self.hidden = nn.Linear(features, hidden) if hidden else None
        self.out = nn.Linear(hidden or features, width)
        self.summary = summary
        self.places = FourierPlaces(width) if places else None
        self.mixer = Mixer(width, mixer) if mixer else None
        self.out_norm = nn.RMSNorm(width) if mixer else None

    def forward(
        self, features: Float[Tensor, "N E"], places: Float[Tensor, "N 3"] | None, pictures: Int[Tensor, "N"] | None
    ) -> Media:
        """`places` and `pictures` (which picture a feature is of) are needed where there is a code, a summary or a
        mixer.
        """
        media = self.project(features, places)
        rows = media.rows
        if self.training and self.noise:
            rows = rows + self.noise * torch.randn_like(rows)
        if self.places is not None:
            rows = rows + self.places(_of(media, _given(places, "places")))
        if self.mixer is not None and self.out_norm is not None:
            rows = self.out_norm(rows + self.mixer(rows, _of(media, _given(pictures, "pictures"))))
        return Media(rows, media.features)

    def project(self, features: Float[Tensor, "N E"], places: Float[Tensor, "N 3"] | None) -> Media:
        """The features' own share of the rows, before places, noise and mixing."""
        x = features.to(self.out.weight.dtype)
        if self.summary is None:
            return Media(self._patches(x))
        whole = _given(places, "places")[:, 2] == 1
        return _with_summaries(self._patches(x[~whole]), self.summary, x[whole], whole)

    def _patches(self, x: Float[Tensor, "N E"]) -> Float[Tensor, "N D"]:
        x = x if self.norm is None else self.norm(x)
        return self.out(x if self.hidden is None else F.gelu(self.hidden(x)))


def _with_summaries(
    patches: Float[Tensor, "n D"], summary: Summary, x: Float[Tensor, "w E"], whole: Bool[Tensor, "N"]
) -> Media:
    """Every tile's summary in place of its whole features, which stand ahead of its patches."""
    together = summary.linear.in_features // x.shape[1]
    made = summary(x.unflatten(0, (-1, together)))  # tiles J1 D
    counts = (~whole).long()
    counts[whole.nonzero()[::together, 0]] = made.shape[1]
    features = torch.arange(len(whole), device=x.device).repeat_interleave(counts)
    summarises = whole[features]
    order = torch.empty_like(features)
    order[~summarises] = torch.arange(len(patches), device=x.device)
    order[summarises] = torch.arange(len(patches), len(features), device=x.device)
    return Media(torch.cat([patches, made.flatten(0, 1)])[order], features)


def _of(media: Media, about: Tensor) -> Tensor:
    """What is known of each feature, for each row."""
    return about if media.features is None else about[media.features]


class Mixer(nn.Module):
    """A Transformer layer, narrower than the text model, in which the features of one picture look at each other."""

    def __init__(self, width: int, inner: int, *, heads: int = 4) -> None:
        super().__init__()
        self.down = nn.Linear(width, inner)
        self.layer = nn.TransformerEncoderLayer(
            inner, heads, 2 * inner, dropout=0.0, activation="gelu", batch_first=True, norm_first=True
        )
        self.norm = nn.RMSNorm(inner)
        self.up = nn.Linear(inner, width)

    def forward(self, media: Float[Tensor, "N D"], pictures: Int[Tensor, "N"]) -> Float[Tensor, "N D"]:
        """`pictures` numbers the picture that each row is of, in rising order."""
        if not len(media):
            return media
        sizes = torch.unique_consecutive(pictures, return_counts=True)[1].tolist()
        inner = nn.utils.rnn.pad_sequence(list(self.down(media).split(sizes)), batch_first=True)  # P m d
        real = torch.arange(inner.shape[1], device=media.device) < torch.tensor(sizes, device=media.device)[:, None]
        mixed = self.layer(inner, src_key_padding_mask=None if bool(real.all()) else ~real)
        return self.up(self.norm(mixed[real]))


def _given(tensor: Tensor | None, name: str) -> Tensor:
    if tensor is None:
        raise ValueError(f"the adapter's projector needs the features' {name}, but none were given")
    return tensor
