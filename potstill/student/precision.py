"""The number format in which a student trains, is evaluated and is served: one decision for all three."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


def compute_dtype() -> "torch.dtype":
    """bfloat16 where the hardware multiplies it, else float32.

    A CPU without bfloat16 instructions emulates them: 130 times slower than float32 (measured on an AVX2 EPYC).
    """
    import torch

    if torch.cuda.is_available():
        return torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float32
    return torch.bfloat16 if torch.ops.mkldnn._is_mkldnn_bf16_supported() else torch.float32
