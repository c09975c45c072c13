"""Fused against decomposed attention in training, on one CPU thread.

Run: ``python benchmarks/attention_backward.py``. The figures of docs/adr/0009 come from here. CPU
time is measured, not wall-clock, so that other work on the machine hardly counts.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

Attention = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]
_HEADS, _WIDTH, _RUNS = 12, 32, 12
_SHAPES = ((32, 32), (32, 64), (8, 128))  # sentences, tokens


def fused(query: Tensor, key: Tensor, value: Tensor, mask: Tensor) -> Tensor:
    return F.scaled_dot_product_attention(query, key, value, attn_mask=mask)


def decomposed(query: Tensor, key: Tensor, value: Tensor, mask: Tensor) -> Tensor:
    scores = (query @ key.transpose(-1, -2)) * _WIDTH**-0.5
    probabilities = scores.masked_fill(~mask, -1e4).softmax(-1)
    return torch.matmul(probabilities, value)


def measure(attention: Attention, shape: tuple[int, int], dtype: torch.dtype) -> tuple[float, ...]:
    """Return the median CPU time of forward and backward, in milliseconds."""
    sentences, tokens = shape
    mask = torch.ones(sentences, 1, 1, tokens, dtype=torch.bool)
    heads = [
        torch.randn(sentences, tokens, _HEADS, _WIDTH, dtype=dtype).transpose(1, 2).requires_grad_()
        for _ in range(3)
    ]
    times: list[tuple[float, float]] = []
    for _ in range(_RUNS):
        start = time.process_time()
        result = attention(heads[0], heads[1], heads[2], mask)
        middle = time.process_time()
        torch.autograd.backward(result, torch.ones_like(result))
        times.append((middle - start, time.process_time() - middle))
    return tuple(1e3 * statistics.median(column) for column in zip(*times, strict=True))


def main() -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    print(f"torch {torch.__version__}, {torch.backends.cpu.get_cpu_capability()}, ms of CPU time")
    for shape in _SHAPES:
        for dtype in (torch.bfloat16, torch.float32):
            for attention in (fused, decomposed):
                forward, backward = measure(attention, shape, dtype)
                print(
                    f"{shape[0]}x{shape[1]} {str(dtype).removeprefix('torch.'):8} "
                    f"{attention.__name__:10} forward {forward:6.2f} backward {backward:6.2f}"
                )


if __name__ == "__main__":
    main()
