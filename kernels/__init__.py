"""Fast ops that PyTorch does not have; torch and Triton only, knows nothing of models."""

from kernels.simplicial_attention import simplicial_attention

__all__ = ["simplicial_attention"]
