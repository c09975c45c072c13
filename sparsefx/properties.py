"""What can be true of a Program: the vocabulary in which passes state their contracts."""

from __future__ import annotations

from enum import Enum

__all__ = ["BOUND_TO_SHAPES", "FIXES_ZEROS", "Property"]


class Property(Enum):
    """A fact that passes require, establish or destroy; the value is its name in files."""

    MASKED = "masked"
    """Weights are multiplied by mask buffers in the graph."""
    LOCKED = "locked"
    """The masks are frozen: what is zero stays zero."""
    DISTILLING = "distilling"
    """A teacher and the terms of a distillation loss are in the graph."""
    QUANT_PREPARED = "quant-prepared"
    """Fake quantization with observers is in the graph."""
    QUANTIZED = "quantized"
    """Integer weights with explicit quantize and dequantize nodes."""
    INFERENCE = "inference"
    """No training machinery is left: no dropout, masks, teacher or observers."""
    EXPLICIT_ATTENTION = "explicit-attention"
    """Attention is spelled as matmul, softmax, matmul."""
    FUSED = "fused"
    """Nodes were merged into fused operators that only one target understands."""

    def __str__(self) -> str:
        return self.value


BOUND_TO_SHAPES = frozenset(
    {
        Property.MASKED,
        Property.DISTILLING,
        Property.QUANT_PREPARED,
        Property.QUANTIZED,
        Property.FUSED,
    }
)
"""What holds tensors shaped as the weights, or derived from them; passes that reshape weights
forbid all of it."""

FIXES_ZEROS = frozenset(
    {Property.LOCKED, Property.QUANT_PREPARED, Property.QUANTIZED, Property.FUSED}
)
"""Where it is settled which weights are zero; passes that choose them forbid all of it."""
