"""Products of 2:4 operands on a GPU's sparse tensor cores, through aten. Written without a GPU at hand: never run.

In Triton's interpreter, which has no tensor cores, the product is the reference's.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from kernels.sparse_relu2 import reference

ROWS, COLUMNS = 32, 64
"""What aten's sparse products want the compressed operand in multiples of, for 16-bit dtypes."""


def matmul(values: Tensor, metadata: Tensor, dense: Tensor) -> Tensor:
    """[M, K], metadata in rows, times [K, N]."""
    if values.device.type != "cuda" or values.dtype == torch.float32:
        # Sparse tensor cores take float32 only 1:2; the product is then a dense one, in full precision.
        return reference.matmul(values, metadata, dense)
    (M, half), N = values.shape, dense.shape[1]
    if M % ROWS or 2 * half % COLUMNS:
        raise ValueError(f"a compressed operand [{M}, {2 * half}] must be in multiples of {ROWS} x {COLUMNS}; pad it")
    # 16 bytes of a row of the dense operand are loaded at once.
    dense = F.pad(dense, (0, -N % 8)).contiguous()
    if torch.cuda.get_device_capability(values.device)[0] == 8:
        arranged = reference.arrange(metadata, "sm80").contiguous()
        out = torch.ops.aten._sparse_semi_structured_mm(values.contiguous(), arranged, dense)
    else:
        # cuSPARSELt's own layout is not documented: it compresses what we pruned once more.
        packed = torch.ops.aten._cslt_compress(reference.decompress(values, metadata))
        out = torch.ops.aten._cslt_sparse_mm(packed, dense)
    return out[:, :N]
