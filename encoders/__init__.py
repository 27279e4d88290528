"""Frozen encoders that turn media into features; knows pictures and vision models, nothing of text or adapters."""

from encoders.image import ImageEncoder as ImageEncoder
from encoders.image import ImageEncoderConfig as ImageEncoderConfig
from encoders.pixels import Preprocess as Preprocess
from encoders.pixels import Tiles as Tiles
from encoders.pixels import read_image as read_image
from encoders.pixels import to_tiles as to_tiles
