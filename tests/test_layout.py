"""The symlinked layout (docs/adr/0001): every way to reach a module gives it one name."""

import ast
import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

LINKED = ("passes", "backends")
MAX_LINES = 400
MAX_FUNCTION_LINES = 60


def tracked_files(checkout: Path) -> list[Path]:
    """Paths, relative to the checkout, of what git tracks or would track."""
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=checkout,
        check=True,
        capture_output=True,
        text=True,
    ).stdout
    paths = {Path(name) for name in listed.split("\0") if name}
    return sorted(path for path in paths if os.path.lexists(checkout / path))


def run_python(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    """Run this interpreter in a fresh process."""
    return subprocess.run(
        [sys.executable, *arguments],
        cwd=cwd,
        capture_output=True,
        text=True,
        stdin=subprocess.DEVNULL,
        check=False,
    )


def module_files(checkout: Path) -> set[str]:
    """Every file of the package as a wheel names it, e.g. `sparsefx/passes/prune/magnitude.py`."""
    wanted = set()
    for path in tracked_files(checkout):
        if path.suffix != ".py" or path.parts[0] not in ("sparsefx", *LINKED):
            continue
        inside = path if path.parts[0] == "sparsefx" else Path("sparsefx") / path
        wanted.add(inside.as_posix())
    return wanted


@pytest.mark.parametrize("name", LINKED)
def test_link_is_committed_and_relative(checkout: Path, name: str) -> None:
    link = checkout / "sparsefx" / name
    assert link.is_symlink()
    assert os.readlink(link) == f"../{name}"
    staged = subprocess.run(
        ["git", "ls-files", "--stage", f"sparsefx/{name}"],
        cwd=checkout,
        check=True,
        capture_output=True,
        text=True,
    ).stdout
    assert staged.startswith("120000 "), f"git does not hold sparsefx/{name} as a symlink"


@pytest.mark.parametrize("name", LINKED)
def test_guard_is_the_first_statement(checkout: Path, name: str) -> None:
    source = (checkout / name / "__init__.py").read_text(encoding="utf-8")
    after_docstring = source.split('"""')[2].lstrip()
    assert after_docstring.startswith(f'if __name__ != "sparsefx.{name}":\n    raise ImportError(')


@pytest.mark.parametrize("name", LINKED)
def test_guard_raises_on_the_second_name(checkout: Path, name: str) -> None:
    second = run_python("-c", f"import {name}", cwd=checkout)
    assert second.returncode == 1
    assert f"ImportError: this folder was imported as '{name}'" in second.stderr
    assert f"import it as 'sparsefx.{name}'" in second.stderr
    one = run_python("-c", f"import sparsefx.{name}; print(sparsefx.{name}.__name__)", cwd=checkout)
    assert one.stdout == f"sparsefx.{name}\n", one.stderr


@pytest.mark.parametrize("name", LINKED)
def test_guard_holds_below_the_top(checkout: Path, name: str) -> None:
    folder = next(path for path in sorted((checkout / name).iterdir()) if path.is_dir())
    below = run_python("-c", f"import {name}.{folder.name}", cwd=checkout)
    assert below.returncode == 1
    assert "ImportError" in below.stderr


def test_doctests_are_collected_once_through_the_link(checkout: Path) -> None:
    collected = run_python("-m", "pytest", "--collect-only", "-q", "sparsefx", cwd=checkout)
    assert collected.returncode in (0, 5), collected.stdout + collected.stderr
    items = [line.partition("::") for line in collected.stdout.splitlines() if "::" in line]
    names = [name for _, _, name in items]
    assert len(names) == len(set(names)), "a doctest is collected twice"
    assert all(name.startswith("sparsefx.") for name in names)
    written = {
        path
        for path in module_files(checkout)
        if ">>> " in (checkout / path).read_text(encoding="utf-8")
    }
    assert {path for path, _, _ in items} == written


def test_wheel_through_the_sdist_holds_every_module(checkout: Path, tmp_path: Path) -> None:
    copy = tmp_path / "checkout"
    for path in tracked_files(checkout):
        target = copy / path
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(checkout / path, target, follow_symlinks=False)
    built = run_python(
        "-m", "build", "--no-isolation", "--outdir", str(tmp_path / "dist"), ".", cwd=copy
    )
    assert built.returncode == 0, built.stdout + built.stderr
    wanted = module_files(checkout) | {"sparsefx/py.typed"}
    with tarfile.open(next((tmp_path / "dist").glob("*.tar.gz"))) as archive:
        sdist = {name.partition("/")[2] for name in archive.getnames()}
    with zipfile.ZipFile(next((tmp_path / "dist").glob("*.whl"))) as archive_zip:
        wheel = set(archive_zip.namelist())
    assert wanted - sdist == set()
    assert wanted - wheel == set()
    modules = {name for name in wheel if name.endswith(".py")}
    assert modules <= wanted, "the wheel holds modules from outside the package"


def test_no_file_is_too_long(checkout: Path) -> None:
    lengths = {
        path.as_posix(): (checkout / path).read_text(encoding="utf-8").count("\n")
        for path in tracked_files(checkout)
        if path.suffix == ".py"
    }
    assert {path: lines for path, lines in lengths.items() if lines > MAX_LINES} == {}


def test_no_function_is_too_long(checkout: Path) -> None:
    lengths = {}
    for path in tracked_files(checkout):
        if path.suffix != ".py" or path.parts[0] == "tests":
            continue
        for node in ast.walk(ast.parse((checkout / path).read_text(encoding="utf-8"))):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                docstring = (ast.get_docstring(node, clean=False) or "").count("\n") + 1
                lengths[f"{path}:{node.lineno}"] = (node.end_lineno or 0) - node.lineno - docstring
    assert {where: lines for where, lines in lengths.items() if lines > MAX_FUNCTION_LINES} == {}


def test_no_machine_paths(checkout: Path) -> None:
    roots = [f"/{name}/" for name in ("work", "farm", "tmp", "root", "home", "opt")]
    found = []
    for path in tracked_files(checkout):
        if path.name == Path(__file__).name or not (checkout / path).is_file():
            continue
        text = (checkout / path).read_bytes().decode("utf-8", errors="ignore")
        lines = text.splitlines()
        found += [
            f"{path}:{number}: {line.strip()[:80]}"
            for number, line in enumerate(lines, start=1)
            if any(root in line for root in roots)
        ]
    assert found == []
