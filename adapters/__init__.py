"""Adapters that let media into a text model's residual stream or among its embeddings; knows tensors, nothing of
encoders or of the text model.
"""

from adapters.image import ImageAdapter as ImageAdapter
from adapters.image import ImageAdapterConfig as ImageAdapterConfig
from adapters.memory import Memory as Memory
from adapters.speech import SpeechAdapter as SpeechAdapter
from adapters.speech import SpeechAdapterConfig as SpeechAdapterConfig
