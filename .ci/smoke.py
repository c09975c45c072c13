"""Smoke test of an installed wheel: run in a folder that does not hold the checkout."""

import importlib
import pkgutil
from pathlib import Path

import sparsefx

HERE = Path.cwd()


def main() -> None:
    """Import every module of the installed package."""
    installed = Path(sparsefx.__file__).resolve().parent
    if installed.is_relative_to(HERE / "sparsefx") or "site-packages" not in installed.parts:
        raise SystemExit(f"sparsefx was imported from {installed}, which is not an installed wheel")
    names = sorted(
        module.name for module in pkgutil.walk_packages(sparsefx.__path__, prefix="sparsefx.")
    )
    for name in names:
        importlib.import_module(name)
    print(f"{len(names)} modules import from {installed.name} {sparsefx.__name__}")


if __name__ == "__main__":
    main()
