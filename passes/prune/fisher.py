"""The inverse of a block-diagonal Fisher matrix, and what it says of single weights.

A weight is read row by row as a vector that is cut into blocks of B, the last one padded with
zeros. Between blocks nothing is known. ``inverse`` is float32 of shape (blocks, B, B), ``parts`` of
shape (blocks, B). Kurtic et al., The Optimal BERT Surgeon (2022), sections 3.1 to 3.3.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

__all__ = ["compensation", "cut", "is_sound", "joined", "learn", "prior", "saliency"]


def prior(count: int, size: int, damp: float, like: Tensor) -> Tensor:
    """Return the inverse before any gradient, ``I / damp``, for ``count`` weights.

    >>> prior(3, 2, 0.5, torch.ones(1)).shape
    torch.Size([2, 2, 2])
    """
    blocks = -(-count // size)
    one = torch.eye(size, dtype=torch.float32, device=like.device) / damp
    return one.expand(blocks, size, size).clone()


def cut(tensor: Tensor, size: int) -> Tensor:
    """Return the parts of a tensor.

    >>> cut(torch.ones(1, 3), 2)
    tensor([[1., 1.],
            [1., 0.]])
    """
    flat = tensor.float().reshape(-1)
    return F.pad(flat, (0, -flat.numel() % size)).reshape(-1, size)


def joined(parts: Tensor, like: Tensor) -> Tensor:
    """Return what :func:`cut` made parts of, in the shape of ``like``."""
    return parts.reshape(-1)[: like.numel()].reshape(like.shape)


def learn(inverse: Tensor, gradient: Tensor, count: int) -> None:
    """Take one of ``count`` gradients in, in place, by the identity of Woodbury.

        F^-1 <- F^-1 - (F^-1 g)(F^-1 g)^T / (m + g^T F^-1 g)         F = damp I + 1/m sum g g^T

    Args:
        inverse: (blocks, B, B).
        gradient: Parts of the gradient g.
        count: m.
    """
    column = gradient.unsqueeze(-1)
    product = inverse @ column
    scale = count + column.mT @ product
    inverse.baddbmm_(product, product.mT / scale, alpha=-1)


def is_sound(inverse: Tensor) -> bool:
    """Whether float32 has sufficed: all the diagonal is finite and above 0, as it is by definition.

    The prior is 1 / damp, and what gradients leave of it is as small as m / g^2: with elements of
    1 and damp 1e-7 the difference is below the rounding error.

    >>> is_sound(torch.eye(2)[None])
    True
    """
    diagonal = inverse.diagonal(dim1=1, dim2=2)
    return bool(((diagonal > 0) & diagonal.isfinite()).all())


def saliency(inverse: Tensor, weight: Tensor, columns: int = 1) -> Tensor:
    """Return by how much the loss rises when a unit of neighbours becomes zero.

        rho_Q = 1/2 w_Q^T ([F^-1]_QQ)^-1 w_Q

    Args:
        inverse: (blocks, B, B).
        weight: Parts of the weight w.
        columns: Weights in a unit Q, a divisor of B.

    Returns:
        Parts, >= 0; every weight of a unit holds its mean.
    """
    shares = 0.5 * weight * _solved(inverse, weight, columns)
    units = shares.reshape(-1, columns).mean(1, keepdim=True).clamp(min=0.0)
    return units.expand(-1, columns).reshape(weight.shape)


def compensation(
    inverse: Tensor, weight: Tensor, gone: Tensor, columns: int = 1, *, together: bool = False
) -> Tensor:
    """Return what to subtract from all weights so that the loss stays low without some of them.

        sum_Q F^-1 E_Q ([F^-1]_QQ)^-1 w_Q

    Args:
        inverse: (blocks, B, B).
        weight: Parts of the weight w.
        gone: Parts, 1 where a weight becomes zero, whole units at a time; else 0.
        columns: Weights in a unit Q, a divisor of B.
        together: Take all that go in one block as one unit Q. The sum over units, as in the
            released code, leaves out that they answer for each other.
    """
    leaving = weight * gone
    if not together:
        return (inverse @ _solved(inverse, leaving, columns).unsqueeze(-1)).squeeze(-1)
    among = inverse * gone.unsqueeze(-1) * gone.unsqueeze(-2) + torch.diag_embed(1.0 - gone)
    solved: Tensor = torch.linalg.solve(among, leaving)
    return (inverse @ solved.unsqueeze(-1)).squeeze(-1)


def _solved(inverse: Tensor, weight: Tensor, columns: int) -> Tensor:
    """Return ``([F^-1]_QQ)^-1 w_Q`` for all units."""
    if columns == 1:
        return weight / inverse.diagonal(dim1=1, dim2=2)
    blocks, size = weight.shape
    units = inverse.reshape(blocks, size // columns, columns, size // columns, columns)
    units = units.diagonal(dim1=1, dim2=3).permute(0, 3, 1, 2)
    found: Tensor = torch.linalg.solve(units, weight.reshape(blocks, -1, columns))
    return found.reshape(weight.shape)
