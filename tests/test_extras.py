"""Optional packages that are missing are named with the extra that brings them."""

from __future__ import annotations

import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from sparsefx.errors import DependencyError
from sparsefx.extras import EXTRAS, need

CHECKOUT = Path(__file__).parent.parent


def test_every_extra_is_one_of_the_project_and_brings_its_packages() -> None:
    text = (CHECKOUT / "pyproject.toml").read_text(encoding="utf-8")
    known = tomllib.loads(text)["project"]["optional-dependencies"]
    for extra, modules in EXTRAS.items():
        assert {one.partition(">")[0] for one in known[extra]} == set(modules)


def test_several_missing_packages_and_another_way_are_named(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name in ("onnx", "onnxscript"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(DependencyError) as error:
        need("onnx", who="export", otherwise="use another target")
    assert str(error.value) == (
        "export: onnx, onnxscript are not installed\n"
        "  hint: pip install 'sparsefx[onnx]', or use another target"
    )


COMPILE = """
from sparsefx import registry
from tests.programs import captured
registry.parse_target("cpu").compile(captured("bert-cls"))
"""
TRAIN = """
from sparsefx.cli.runs import train_and_report
train_and_report(None, None, None, None, title="", target="onnxruntime")
"""
DRAW = """
from sparsefx.report.plots import bar_plot
bar_plot(["dense"], {"ms": [1.0]}, label="ms")
"""


@pytest.mark.parametrize(
    ("hidden", "code", "message"),
    [
        ("llvmlite", COMPILE, "cpu: llvmlite is not installed"),
        ("onnxruntime", TRAIN, "onnxruntime: onnxruntime is not installed"),
        ("matplotlib", DRAW, "report: matplotlib is not installed"),
    ],
)
def test_what_needs_a_package_says_so_before_it_begins(
    hidden: str, code: str, message: str
) -> None:
    # In a process of its own: modules that were imported before would stay.
    script = f"import sys\nsys.modules[{hidden!r}] = None\n{code}"
    command = [sys.executable, "-c", script]
    ended = subprocess.run(command, capture_output=True, text=True, cwd=CHECKOUT, check=False)
    assert f"DependencyError: {message}" in ended.stderr
    assert "pip install 'sparsefx[" in ended.stderr
