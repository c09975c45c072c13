"""The hash by which tensors are told apart."""

from __future__ import annotations

import torch
import xxhash
from torch import Tensor

__all__ = ["tensor_digest"]


def tensor_digest(tensor: Tensor) -> str:
    """Return a 128-bit hash (XXH3) of a tensor's dtype, shape and bytes.

    It tells tensors apart and guards against nothing: files have SHA-256, which is slower by ten.

    >>> tensor_digest(torch.zeros(2)) == tensor_digest(torch.zeros(2).clone())
    True
    >>> tensor_digest(torch.zeros(2)) == tensor_digest(torch.zeros(1, 2))
    False
    """
    plain = tensor.detach().cpu().contiguous()
    digest = xxhash.xxh3_128(f"{plain.dtype}{tuple(plain.shape)}".encode())
    digest.update(plain.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
