"""Who may import whom, read off the syntax trees (docs/adr/0002)."""

import ast
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from importlib.metadata import packages_distributions
from pathlib import Path
from typing import NamedTuple

import networkx as nx
import pytest

# Optional packages and the one part of the tree that may import each.
HOMES = {
    "onnx": "backends/onnxruntime/",
    "onnxscript": "backends/onnxruntime/",
    "onnxruntime": "backends/onnxruntime/",
    "llvmlite": "backends/cpu/",
    "matplotlib": "sparsefx/report/",
    "tensorboard": "sparsefx/train/",
    "torch.utils.tensorboard": "sparsefx/train/",
}
# Packages whose import takes long: `import sparsefx` and the command line start without them.
SLOW = ("onnx", "onnxscript", "onnxruntime", "llvmlite", "matplotlib", "tensorboard")
SLOW_CORE = ("datasets", "accelerate", "sklearn", "scipy.stats", "pandas")
SHARED_BACKEND = "formats"
# The folders of a backend that has some, each of which imports those before it alone. Files at the
# top of a backend may import every folder, and no folder imports them.
BACKEND_FOLDERS = {
    "cpu": ["machine", "codegen", "kernels", "plan", "runtime", "measure", "analyses", "lowering"],
    "accelerator": ["engines", "workload", "hardware", "tiling", "simulation", "studies", "report"],
}

# The folders of sparsefx, each of which imports those before it alone; CORE is files at the top.
CORE = ""
SPARSEFX_FOLDERS = (
    "inputs",
    "graph",
    CORE,
    "storage",
    "frontend",
    "instruments",
    "recipe",
    "huggingface",
    "train",
    "importers",
    "report",
    "cli",
)
# Files at the top that need nothing, and those that open several folders to the user.
GROUND = ("arithmetic", "errors", "names", "problem")
DOORS = ("__main__", "compiler", "dynamo", "testing")
# What each folder of sparsefx/train imports of it, besides itself.
TRAIN_FOLDERS = {
    "data": ("metrics",),
    "step": ("data", "evaluation", "metrics", "randomness"),
}
# Files of the framework that import each other, counting what only types and calls of functions
# need: a pass takes a Program, which keeps the passes that are active in it. It may get shorter.
CIRCLE = (
    "analysis",
    "hooks",
    "inputs.failures",
    "masks",
    "passbase",
    "pipeline",
    "program",
    "registry",
    "rewrite",
    "storage.programs",
    "target",
    "verify",
)


class Import(NamedTuple):
    """One imported module: where, its full name, and whether importing the file imports it."""

    path: str
    line: int
    name: str
    at_module_level: bool

    def __str__(self) -> str:
        return f"{self.path}:{self.line}: {self.name}"

    def is_within(self, *packages: str) -> bool:
        """Whether the imported module is one of `packages` or lies below one."""
        return any((self.name + ".").startswith(package + ".") for package in packages)


def module_name(path: str) -> str:
    """The import name of a file of the tree, e.g. `sparsefx.passes.prune.magnitude`."""
    parts = Path(path).with_suffix("").parts
    inside = parts if parts[0] == "sparsefx" else ("sparsefx", *parts)
    return ".".join(inside)


def imported_names(node: ast.Import | ast.ImportFrom, path: str) -> list[str]:
    """Absolute names that a statement may import; `from a import b` may mean the module a.b."""
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    base = node.module or ""
    if node.level:
        package = module_name(path).split(".")[: -node.level]
        base = ".".join([*package, base] if base else package)
    return [f"{base}.{alias.name}" for alias in node.names]


def imports_of(path: str, source: str) -> Iterator[Import]:
    """Every import of a file, in functions and in `if` blocks too."""

    def walk(node: ast.AST, at_module_level: bool) -> Iterator[Import]:
        if isinstance(node, ast.Import | ast.ImportFrom):
            for name in imported_names(node, path):
                yield Import(path, node.lineno, name, at_module_level)
        later = isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
        never = isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
        for child in ast.iter_child_nodes(node):
            yield from walk(child, at_module_level and not later and not never)

    yield from walk(ast.parse(source, filename=path), True)


@pytest.fixture(scope="module")
def imports(sources: dict[str, str]) -> list[Import]:
    """Every import of the package."""
    return [found for path, text in sources.items() for found in imports_of(path, text)]


def listed(imports: list[Import]) -> list[str]:
    """The offenders as text, so that a failing test shows file and line."""
    return sorted({str(found) for found in imports})


def test_imports_are_read_off_every_spelling() -> None:
    source = (
        "import sparsefx.passes.prune\n"
        "from sparsefx import backends\n"
        "from ..backends import cpu\n"
        "def f():\n    from . import simplify\n"
        "if TYPE_CHECKING:\n    import sparsefx.program\n"
    )
    found = list(imports_of("passes/fuse/gelu.py", source))
    assert [(one.name, one.at_module_level) for one in found] == [
        ("sparsefx.passes.prune", True),
        ("sparsefx.backends", True),
        ("sparsefx.passes.backends.cpu", True),
        ("sparsefx.passes.fuse.simplify", False),
        ("sparsefx.program", False),
    ]


def test_framework_knows_no_pass_and_no_backend(imports: list[Import]) -> None:
    concrete = ("sparsefx.passes", "sparsefx.backends")
    offenders = [
        found
        for found in imports
        if found.path.startswith("sparsefx/")
        and found.at_module_level
        and found.is_within(*concrete)
    ]
    assert listed(offenders) == []


@pytest.mark.parametrize("backend", BACKEND_FOLDERS)
def test_the_folders_of_a_backend_import_downwards(
    backend: str, checkout: Path, imports: list[Import]
) -> None:
    root, folders = f"sparsefx.backends.{backend}", BACKEND_FOLDERS[backend]
    offenders = []
    for position, folder in enumerate(folders):
        known = tuple(f"{root}.{name}" for name in folders[: position + 1])
        own = [found for found in imports if found.path.startswith(f"backends/{backend}/{folder}/")]
        assert own, folder
        offenders += [
            found
            for found in own
            if found.at_module_level and found.is_within(root) and not found.is_within(*known)
        ]
    assert listed(offenders) == []
    assert folders_of(checkout / "backends" / backend) == set(folders)


def test_every_backend_with_folders_has_an_order(checkout: Path) -> None:
    backends = checkout / "backends"
    assert {name for name in folders_of(backends) if folders_of(backends / name)} == set(
        BACKEND_FOLDERS
    )


def folders_of(folder: Path) -> set[str]:
    """Names of the folders of modules in a folder (links are not followed)."""
    return {path.parent.name for path in folder.glob("*/*.py") if not path.parent.is_symlink()}


def floor(module: str) -> int:
    """The place of a module of sparsefx among SPARSEFX_FOLDERS; files of no folder are the core."""
    name = module.split(".")[1] if "." in module else CORE
    if name in GROUND:
        return -1
    if name in DOORS:
        return len(SPARSEFX_FOLDERS)
    return SPARSEFX_FOLDERS.index(name if name in SPARSEFX_FOLDERS else CORE)


def test_the_folders_of_sparsefx_import_downwards(checkout: Path, imports: list[Import]) -> None:
    offenders = [
        found
        for found in imports
        if found.path.startswith("sparsefx/")
        and found.at_module_level
        and found.is_within("sparsefx")
        and floor(found.name) > floor(module_name(found.path))
    ]
    assert listed(offenders) == []
    assert folders_of(checkout / "sparsefx") == {*SPARSEFX_FOLDERS} - {CORE}


def test_the_folders_of_train_import_downwards(checkout: Path, imports: list[Import]) -> None:
    root = "sparsefx.train"
    offenders = []
    for folder, others in TRAIN_FOLDERS.items():
        known = [f"{root}.{name}" for name in (folder, *others)]
        own = [found for found in imports if found.path.startswith(f"sparsefx/train/{folder}/")]
        assert own, folder
        offenders += [
            found for found in own if found.is_within(root) and not found.is_within(*known)
        ]
    assert listed(offenders) == []
    assert folders_of(checkout / "sparsefx/train") == {*TRAIN_FOLDERS}


def test_names_that_a_folder_hands_on_are_taken_from_it(imports: list[Import]) -> None:
    handed = {
        Path(found.path).parent.as_posix() + "/": found.name.rpartition(".")[0]
        for found in imports
        if re.fullmatch(r"sparsefx/\w+/__init__\.py", found.path) and found.at_module_level
        if found.is_within(module_name(Path(found.path).parent.as_posix()))
    }
    assert "sparsefx/recipe/" in handed
    offenders = [
        found
        for found in imports
        for folder, inner in handed.items()
        if found.is_within(inner) and not found.path.startswith(folder)
    ]
    assert listed(offenders) == []


def offered(source: str) -> set[str]:
    """What a module lists in `__all__`."""
    for node in ast.parse(source).body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__":
            return set(ast.literal_eval(node.value))
    return set()


def test_names_are_taken_from_modules_that_offer_them(
    imports: list[Import], sources: dict[str, str]
) -> None:
    offers = {
        module_name(path.removesuffix("/__init__.py")): offered(text)
        for path, text in sources.items()
    }
    offenders = []
    for found in imports:
        module, _, name = found.name.rpartition(".")
        if found.name not in offers and name not in offers.get(module, {name}):
            offenders.append(found)
    assert listed(offenders) == []


def test_no_more_files_of_the_framework_import_each_other(
    imports: list[Import], sources: dict[str, str]
) -> None:
    framework = (path for path in sources if path.startswith("sparsefx/"))
    modules = {module_name(path) for path in framework if not path.endswith("__init__.py")}
    arrows: nx.DiGraph[str] = nx.DiGraph()
    for found in imports:
        name = found.name if found.name in modules else found.name.rpartition(".")[0]
        if {module_name(found.path), name} <= modules:
            arrows.add_edge(module_name(found.path), name)
    circles = [sorted(each) for each in nx.strongly_connected_components(arrows) if len(each) > 1]
    assert circles == [[f"sparsefx.{name}" for name in CIRCLE]]


def test_passes_import_no_backend(imports: list[Import]) -> None:
    offenders = [
        found
        for found in imports
        if found.path.startswith("passes/") and found.is_within("sparsefx.backends")
    ]
    assert listed(offenders) == []


def test_no_backend_imports_another(imports: list[Import]) -> None:
    offenders = []
    for found in imports:
        if not found.path.startswith("backends/") or not found.is_within("sparsefx.backends"):
            continue
        own = found.path.split("/")[1]
        allowed = (f"sparsefx.backends.{own}", f"sparsefx.backends.{SHARED_BACKEND}")
        if not found.is_within(*allowed):
            offenders.append(found)
    assert listed(offenders) == []


def test_optional_packages_stay_in_their_home(imports: list[Import]) -> None:
    offenders = [
        found
        for found in imports
        for package, home in HOMES.items()
        if found.is_within(package) and not found.path.startswith(home)
    ]
    assert listed(offenders) == []


def test_every_import_is_declared(imports: list[Import], checkout: Path) -> None:
    project = tomllib.loads((checkout / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = [line for extra in project["optional-dependencies"].values() for line in extra]
    declared = {
        re.split(r"[\[<>=~!; ]", line)[0].lower().replace("_", "-")
        for line in [*project["dependencies"], *extras]
    }
    providers = packages_distributions()
    offenders = []
    for found in imports:
        top = found.name.split(".")[0]
        if top in sys.stdlib_module_names or top == "sparsefx":
            continue
        names = {name.lower().replace("_", "-") for name in providers.get(top, [top])}
        if not names & declared:
            offenders.append(found)
    assert listed(offenders) == []


@pytest.mark.parametrize("module", ["sparsefx", "sparsefx.cli.app"])
def test_import_stays_light(module: str, checkout: Path) -> None:
    program = f"import sys, {module}; print(*sorted(sys.modules))"
    ran = subprocess.run(
        [sys.executable, "-c", program], cwd=checkout, capture_output=True, text=True, check=False
    )
    assert ran.returncode == 0, ran.stderr
    slow = {"torch", "transformers", *SLOW, *SLOW_CORE}
    assert sorted(slow & set(ran.stdout.split())) == []
