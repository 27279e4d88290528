"""Adapters that let media into a text model's residual stream; knows tensors, nothing of encoders or of the text
model.
"""

from adapters.image import ImageAdapter as ImageAdapter
from adapters.image import ImageAdapterConfig as ImageAdapterConfig
from adapters.memory import Memory as Memory
