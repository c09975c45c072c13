"""Which tensors lie on the same memory, when they are freed, and when garbage is looked for."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from itertools import pairwise
from typing import Any

from torch import Tensor, fx

__all__ = ["freed_with_last_use", "memory_span", "no_collection", "overlaps"]


def freed_with_last_use(module: fx.GraphModule) -> fx.GraphModule:
    """Return ``module``, which is freed as soon as nobody holds it, its tensors too.

    FX has the graph hold its module, which holds the graph: the tensors of a module that is not
    needed any more would stay until Python looks for cycles, and it goes by the number of objects,
    not by bytes. What the stages of a run had left, gigabytes each, added up. A graph that outlives
    its module is one of no module.
    """
    known = weakref.ref(module.graph)

    def forget(gone: Any) -> None:
        graph = known()
        if graph is not None and graph.owning_module is gone:
            graph.owning_module = None

    proxy: Any = weakref.proxy(module, forget)  # for a type checker it is another class
    module.graph.owning_module = proxy
    return module


@contextmanager
def no_collection() -> Iterator[None]:
    """Within this context Python looks for no cycles of garbage.

    Making a graph makes hundreds of thousands of objects that stay, and each look for garbage goes
    through all of them, those of torch and transformers too: a tenth of the time of a capture.
    """
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


def memory_span(tensor: Tensor) -> tuple[str, int, int] | None:
    """Return device, address of the first element and address behind the last; None without any."""
    if not tensor.numel() or tensor.device.type == "meta":
        return None
    last = sum((size - 1) * step for size, step in zip(tensor.shape, tensor.stride(), strict=True))
    start = tensor.data_ptr()
    return str(tensor.device), start, start + (last + 1) * tensor.element_size()


def overlaps(tensors: Mapping[str, Tensor]) -> Iterator[tuple[str, str]]:
    """Yield neighbours in memory that overlap: at least one pair, sorted, where any two do.

    >>> import torch
    >>> whole = torch.zeros(4)
    >>> list(overlaps({"whole": whole, "half": whole[2:], "other": torch.zeros(4)}))
    [('half', 'whole')]
    """
    spans = sorted(
        (*span, name)
        for name, tensor in tensors.items()
        if (span := memory_span(tensor)) is not None
    )
    for (device, _, end, first), (other, start, _, second) in pairwise(spans):
        if device == other and start < end:
            yield min(first, second), max(first, second)
