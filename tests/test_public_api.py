"""The public names, and that importing the package loads no torch."""

from __future__ import annotations

import subprocess
import sys

import sparsefx


def test_every_public_name_resolves() -> None:
    for name in sparsefx.__all__:
        assert getattr(sparsefx, name) is not None
    assert callable(sparsefx.capture)
    assert callable(sparsefx.compile)


def test_import_loads_no_torch() -> None:
    code = "import sys, sparsefx; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_submodules_do_not_shadow_functions() -> None:
    code = (
        "import sparsefx, sparsefx.testing, sparsefx.compiler, sparsefx.frontend.capture;"
        "assert callable(sparsefx.capture) and callable(sparsefx.compile)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
