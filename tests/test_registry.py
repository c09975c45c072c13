"""The registry: what happens when two packages give the same name."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest
import torch

from sparsefx import Pipeline, registry
from sparsefx.cli import main
from sparsefx.errors import RegistryError, SparsefxError, SpecError, TargetError
from sparsefx.program import Program
from sparsefx.target import Compiled, Target, Unsupported
from sparsefx.testing import small_program


def install(site: Path, package: str, *entries: str, group: str = "sparsefx.passes") -> None:
    """Write the metadata of a package with these entry points into a folder of the path."""
    folder = site / f"{package}-1.0.dist-info"
    folder.mkdir(parents=True)
    (folder / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: 1.0\n")
    (folder / "entry_points.txt").write_text("\n".join([f"[{group}]", *entries, ""]))


def test_two_packages_that_give_one_pass_are_both_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    install(tmp_path, "first-package", "twice = first:Twice", "once = first:Once")
    install(tmp_path, "second-package", "twice = second:Twice")
    monkeypatch.syspath_prepend(str(tmp_path))
    assert {"once", "twice"} <= set(registry.names("passes"))
    with pytest.raises(RegistryError) as caught:
        registry.pass_class("twice")
    assert "2 plug-ins give a pass 'twice': " in str(caught.value)
    assert "first:Twice of first-package" in str(caught.value)
    assert "second:Twice of second-package" in str(caught.value)
    assert "hint: uninstall all but one" in str(caught.value)
    with pytest.raises(SpecError, match="2 plug-ins give a pass 'twice'"):
        Pipeline.parse("twice")
    with pytest.raises(RegistryError, match="'first:Once' cannot be imported"):
        registry.pass_class("once")


def test_a_package_that_stands_twice_on_the_path_counts_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for site in ("one", "two"):
        install(tmp_path / site, "package", "again = package:Again", group="sparsefx.targets")
        monkeypatch.syspath_prepend(str(tmp_path / site))
    with pytest.raises(RegistryError, match="'package:Again' cannot be imported"):
        registry.target_class("again")


def test_a_plug_in_cannot_take_a_built_in_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    install(tmp_path, "package", "simplify = package:Other")
    monkeypatch.syspath_prepend(str(tmp_path))
    assert registry.names("passes").count("simplify") == 1
    assert registry.names("passes")
    told = "package:Other of package takes the built-in name 'simplify', and is left out"
    assert caplog.text.count(told) == 1
    assert registry.pass_class("simplify").__module__.startswith("sparsefx.")


PLUG_INS = '''
from sparsefx import Pass, PassReport, Target

class Plain:
    name = "plain"

class Bare(Pass):
    """Has an option, and is no dataclass."""
    name = "bare"
    threshold: float = 0.5
    def run(self, program, ctx):
        return PassReport(0)

class Silent(Pass):
    """Returns nothing."""
    name = "silent"
    def run(self, program, ctx):
        pass

class Empty(Target):
    """Lowers to nothing."""
    name = "empty"
    def lower(self, program):
        return None
'''


def test_a_plug_in_of_another_kind_breaks_itself_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    names = ("plain", "bare", "silent")
    install(tmp_path, "odd", *(f"{name} = odd_plug_ins:{name.title()}" for name in names))
    install(tmp_path, "empty", "empty = odd_plug_ins:Empty", group="sparsefx.targets")
    (tmp_path / "odd_plug_ins.py").write_text(PLUG_INS)
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(RegistryError, match="not a class derived from Pass"):
        registry.pass_class("plain")
    with pytest.raises(RegistryError, match="options threshold would be lost"):
        registry.pass_class("bare")
    with pytest.raises(SpecError, match="not a class derived from Pass"):
        Pipeline.parse("plain")
    with pytest.raises(SystemExit) as ended:
        main(["passes"])
    assert ended.value.code == 0
    told = capsys.readouterr()
    assert "magnitude-prune" in told.out
    assert "not a class derived from Pass" in told.err
    program = small_program(torch.nn.ReLU(), input=torch.randn(2))
    with pytest.raises(SparsefxError, match=r"run\(\) returned None, not a PassReport"):
        Pipeline.parse("silent").run(program)
    with pytest.raises(TargetError, match=r"lower\(\) returned None, which cannot be called"):
        registry.parse_target("empty").compile(program)


FAILING = """
from sparsefx import Target

class Failing(Target):
    name = "failing"
    def {step}(self, program=None):
        raise ValueError("no kernel for 3 bits")
    {rest}
"""
LOWERS = "def lower(self, program): return program"


@pytest.mark.parametrize(
    ("step", "rest"), [("lower", ""), ("unsupported", LOWERS), ("pipeline", LOWERS)]
)
def test_a_target_whose_code_fails_is_named_with_the_step(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    step: str,
    rest: str,
) -> None:
    module = f"failing_in_{step}"
    install(tmp_path, "failing", f"failing = {module}:Failing", group="sparsefx.targets")
    (tmp_path / f"{module}.py").write_text(FAILING.format(step=step, rest=rest))
    monkeypatch.syspath_prepend(str(tmp_path))
    program = small_program(torch.nn.ReLU(), input=torch.randn(2))
    with pytest.raises(TargetError) as caught:
        registry.parse_target("failing").compile(program)
    assert isinstance(caught.value.__cause__, ValueError)
    assert (caught.value.who, caught.value.where) == ("failing", f"{step}()")
    expected = f"failing at {step}(): ValueError: no kernel for 3 bits"
    assert str(caught.value).startswith(expected)
    assert caught.value.hint.endswith(f"{module}.py:7")
    saved = program.save(tmp_path / "program")
    with pytest.raises(SystemExit) as ended:
        main(["bench", str(saved), "-t", "failing"])
    assert ended.value.code == 2
    assert f"left out failing: {expected}" in capsys.readouterr().err


def test_a_target_that_does_not_say_what_it_lacks_is_named() -> None:
    class Silent(Target):
        name = "silent"

        def unsupported(self, program: Program) -> tuple[Unsupported, ...]:
            return None  # type: ignore[return-value]  # the fault

        def lower(self, program: Program) -> Compiled:
            raise AssertionError

    with pytest.raises(TargetError, match=r"silent: unsupported\(\) returned None") as caught:
        Silent().compile(small_program(torch.nn.ReLU(), input=torch.randn(2)))
    assert "Silent.unsupported: ()" in caught.value.hint


def test_a_full_disk_is_not_called_a_fault_of_the_target() -> None:
    class Full(Target):
        name = "full"

        def lower(self, program: Program) -> Compiled:
            raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(OSError, match="No space left"):
        Full().compile(small_program(torch.nn.ReLU(), input=torch.randn(2)))
