"""constraints.txt pins what pyproject.toml asks for, within its ranges."""

import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

from sparsefx.train.data import assets


@pytest.fixture(scope="module")
def pins(checkout: Path) -> dict[str, Version]:
    """Pinned versions by canonical name."""
    found = {}
    for line in (checkout / "constraints.txt").read_text(encoding="utf-8").splitlines():
        if not line.startswith("#"):
            name, _, pinned = line.partition("==")
            found[str(canonicalize_name(name))] = Version(pinned)
    return found


def test_every_declared_dependency_is_pinned_within_its_range(
    checkout: Path, pins: dict[str, Version]
) -> None:
    project = tomllib.loads((checkout / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = [line for extra in project["optional-dependencies"].values() for line in extra]
    wrong = []
    for requirement in map(Requirement, [*project["dependencies"], *extras]):
        pin = pins.get(str(canonicalize_name(requirement.name)))
        if requirement.name != "sparsefx" and (pin is None or pin not in requirement.specifier):
            wrong.append(f"{requirement}: pinned to {pin}")
    assert wrong == []


def test_pins_have_no_local_version(pins: dict[str, Version]) -> None:
    assert [name for name, pin in pins.items() if pin.local] == []
    assert pins["torch"] == Version("2.13.0")


def test_the_demos_weights_are_pinned_to_what_their_hash_belongs_to(
    pins: dict[str, Version],
) -> None:
    weights = Requirement(assets.MINILM_PACKAGE)
    assert pins[str(canonicalize_name(weights.name))] in weights.specifier
