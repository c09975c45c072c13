"""The registry: what happens when two packages give the same name."""

from __future__ import annotations

from pathlib import Path

import pytest

from sparsefx import Pipeline, registry
from sparsefx.errors import RegistryError, SpecError


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
    assert "package:Other of package takes the built-in name 'simplify'" in caplog.text
    assert registry.pass_class("simplify").__module__.startswith("sparsefx.")
