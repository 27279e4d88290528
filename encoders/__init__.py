"""Frozen encoders that turn media into features; knows pictures, sound and their models, nothing of text or
adapters.
"""

from encoders.best_rq import BestRQ as BestRQ
from encoders.best_rq import BestRQConfig as BestRQConfig
from encoders.conformer import Conformer as Conformer
from encoders.conformer import ConformerConfig as ConformerConfig
from encoders.image import ImageEncoder as ImageEncoder
from encoders.image import ImageEncoderConfig as ImageEncoderConfig
from encoders.pixels import Preprocess as Preprocess
from encoders.pixels import Tiles as Tiles
from encoders.pixels import read_image as read_image
from encoders.pixels import to_tiles as to_tiles
from encoders.sound import read_sound as read_sound
from encoders.speech import SpeechEncoder as SpeechEncoder
from encoders.speech import SpeechEncoderConfig as SpeechEncoderConfig
