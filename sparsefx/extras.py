"""Optional packages: which extra of sparsefx brings them, and what to say where one is missing."""

from __future__ import annotations

from importlib.util import find_spec
from typing import Final

from sparsefx.errors import DependencyError

__all__ = ["EXTRAS", "need"]

EXTRAS: Final = {
    "cpu": ("llvmlite",),
    "onnx": ("onnx", "onnxscript", "onnxruntime"),
    "ray": ("ray",),
    "report": ("matplotlib",),
    "tensorboard": ("tensorboard",),
}
"""Extra -> the modules that sparsefx imports from its packages."""


def need(extra: str, *, who: str, otherwise: str = "") -> None:
    """Check that the packages of an extra are installed, before they are imported.

    Args:
        extra: Its name.
        who: What needs them.
        otherwise: What else the user can do.

    Raises:
        DependencyError: A package is missing; names the command that installs it.

    >>> need("report", who="compress")
    """
    missing = [name for name in EXTRAS[extra] if find_spec(name) is None]
    if missing:
        hint = f"pip install 'sparsefx[{extra}]'"
        raise DependencyError(
            f"{', '.join(missing)} {'is' if len(missing) == 1 else 'are'} not installed",
            who=who,
            hint=f"{hint}, or {otherwise}" if otherwise else hint,
        )
