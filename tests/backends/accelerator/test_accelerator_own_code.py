"""Which files of a user's engine a result hangs on."""

from __future__ import annotations

from pathlib import Path

import pytest

from sparsefx.backends.accelerator.hardware.archfile import load_architecture
from sparsefx.backends.accelerator.hardware.own_code import own_sources

ENGINE = """
from typing import TYPE_CHECKING, ClassVar
import os.path, json.decoder
from dataclasses import dataclass
{imports}
from sparsefx.backends.accelerator.engines.base import Engine

@dataclass(frozen=True)
class Mine(Engine):
    kind: ClassVar[str] = "mine"
    skips: ClassVar[frozenset[str]] = frozenset()
    peak: ClassVar[int] = 1
    row_step: ClassVar[int] = 1

    def run(self, gemm):
        {late}
"""


def written(folder: Path, engine: str, imports: str, late: str) -> list[str]:
    """The own sources of a machine with such an engine, below a folder."""
    module = folder.joinpath(*engine.split(".")).with_suffix(".py")
    module.parent.mkdir(parents=True, exist_ok=True)
    module.write_text(ENGINE.format(imports=imports, late=late))
    machine = folder / "mine.yaml"
    machine.write_text(
        f"base: lock-step-32\nname: mine\nengine: {{kind: '{engine}:Mine', numbers: {{}}}}"
    )
    found = own_sources(load_architecture(str(machine)))
    return [str(file.relative_to(folder)) for file in found]


def test_modules_beside_an_engine_count_though_they_are_imported_late(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    for name, text in {"late": "import deep", "deep": "", "other": "broken ("}.items():
        (tmp_path / f"{name}.py").write_text(text)
    found = written(tmp_path, "own_late", "", "import late")
    assert found == ["deep.py", "late.py", "own_late.py"]


@pytest.mark.parametrize("imports", ["    from .x import Y", "    from ..x import Y"])
def test_what_python_could_not_resolve_either_is_passed_over(
    imports: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    name = f"own_guarded_{len(imports)}"
    (tmp_path / "x.py").write_text("")
    assert written(tmp_path, name, f"if TYPE_CHECKING:\n{imports}", "pass") == [f"{name}.py"]


def test_a_package_is_followed_within_itself(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    package = tmp_path / "own_package"
    (package / "parts").mkdir(parents=True)
    for name, text in {
        "__init__": "",
        "parts/__init__": "from . import units",
        "parts/units": "from ..costs import FACTOR",
        "costs": "FACTOR = 1",
        "unread": "",
    }.items():
        (package / f"{name}.py").write_text(text)
    (tmp_path / "beside.py").write_text("")
    found = written(
        tmp_path, "own_package.engines.mine", "import beside", "from ..parts.units import FACTOR"
    )
    assert found == [
        f"own_package/{name}.py"
        for name in ("__init__", "costs", "engines/mine", "parts/__init__", "parts/units")
    ]
