"""Image features on their way to the text model's width: projected, placed, and looking at each other."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from adapters.places import FourierPlaces
from adapters.recall import Recall


class Projector(nn.Module):
    """Features to media rows that the cross-attention reads.

    A linear map (as in the paper's release), or two layers; recall of names on the features of whole tiles; a code for
    where a feature lies; a narrow Transformer over each picture's features (for what no single place shows: how many,
    left of what); a norm. All but the linear map are options.
    """

    def __init__(
        self,
        features: int,
        width: int,
        *,
        hidden: int = 0,
        norm: bool = False,
        recall: int = 0,
        places: bool = False,
        mixer: int = 0,
        noise: float = 0.0,
    ) -> None:
        super().__init__()
        self.noise = noise
        self.norm = nn.LayerNorm(features) if norm else None
        self.hidden = nn.Linear(features, hidden) if hidden else None
        self.out = nn.Linear(hidden or features, width)
        self.recall = Recall(features, width, recall) if recall else None
        self.places = FourierPlaces(width) if places else None
        self.mixer = Mixer(width, mixer) if mixer else None
        self.out_norm = nn.RMSNorm(width) if mixer else None

    def forward(
        self, features: Float[Tensor, "N E"], places: Float[Tensor, "N 3"] | None, pictures: Int[Tensor, "N"] | None
    ) -> Float[Tensor, "N D"]:
        """`places` and `pictures` (which picture a feature is of) are needed where there is a code or a mixer."""
        media = self.project(features, places)
        if self.training and self.noise:
            media = media + self.noise * torch.randn_like(media)
        if self.places is not None:
            media = media + self.places(_given(places, "places"))
        if self.mixer is not None and self.out_norm is not None:
            media = self.out_norm(media + self.mixer(media, _given(pictures, "pictures")))
        return media

    def project(self, features: Float[Tensor, "N E"], places: Float[Tensor, "N 3"] | None) -> Float[Tensor, "N D"]:
        """The features' own share of the rows, before places, noise and mixing."""
        x = features.to(self.out.weight.dtype)
        plain = x if self.norm is None else self.norm(x)
        if self.hidden is not None:
            plain = F.gelu(self.hidden(plain))
        media = self.out(plain)
        if self.recall is not None:
            whole = (_given(places, "places")[:, 2] == 1).nonzero()[:, 0]
            media = media.index_add(0, whole, self.recall(x[whole]).to(media.dtype))
        return media


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
