"""Which line of a model's code runs."""

from __future__ import annotations

import sysconfig
from collections.abc import Iterable
from pathlib import Path
from types import FrameType
from typing import Final

import torch
from torch import nn

__all__ = ["place"]

_LAYERS: Final = str(Path(nn.modules.__file__).parent)
_TORCH: Final = Path(torch.__file__).parent
_MACHINERY: Final = (  # torch computes with sizes in sympy, which is installed beside it
    *(str(_TORCH), str(_TORCH.parent / "sympy")),
    *(str(Path(__file__).parent), "<"),
)
_LIBRARY: Final = sysconfig.get_path("stdlib")


def place(frames: Iterable[tuple[FrameType, int]]) -> str:
    """Return the first line that is a model's, as ``Model.forward (file.py:9)``; else nothing.

    Args:
        frames: Frames with their lines, innermost first.
    """
    for frame, line in frames:
        path = frame.f_code.co_filename
        if _is_layer(path) or not _is_machinery(path):
            return f"{frame.f_code.co_qualname} ({Path(path).name}:{line})"
    return ""


def _is_layer(path: str) -> bool:
    """Whether it is the code of a layer of torch, but not that which calls every layer."""
    return path.startswith(_LAYERS) and path != nn.modules.module.__file__


def _is_machinery(path: str) -> bool:
    is_installed = "-packages" in path  # site-packages may lie below Python's own library
    return path.startswith(_MACHINERY) or (path.startswith(_LIBRARY) and not is_installed)
