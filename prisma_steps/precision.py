"""What matrices may be multiplied in, and what the processor has instructions for."""

from __future__ import annotations

from functools import cache
from typing import Literal

ComputeDtype = Literal["float32", "bfloat16"]


@cache
def has_bfloat16() -> bool:
    """Whether oneDNN has bfloat16 kernels for this processor; if not, PyTorch's are slower than float32."""
    import torch

    return torch.ops.mkldnn._is_mkldnn_bf16_supported()
