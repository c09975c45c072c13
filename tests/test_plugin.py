"""A package from outside adds a pass and a target; nothing of it is known to sparsefx."""

import os
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

SETUP = """
import torch
import sparsefx
from sparsefx import registry

class Model(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.dense = torch.nn.Linear(4, 2)
    def forward(self, features):
        return {"logits": self.dense(features)}

model = Model().eval()
batch = {"features": torch.randn(3, 4)}
program = sparsefx.capture(model, batch)
"""


@pytest.fixture(scope="module")
def installed(checkout: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder into which the package was installed by pip."""
    source = tmp_path_factory.mktemp("source") / "plugin_fixture"
    shutil.copytree(checkout / "tests" / "plugin_fixture", source)
    target = tmp_path_factory.mktemp("site")
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "install", "-qq"]
    options = ["--no-deps", "--no-index", "--no-build-isolation", "--target", str(target)]
    subprocess.run([*pip, *options, str(source)], check=True, stdin=subprocess.DEVNULL)
    return target


def run_with(checkout: Path, site: Path | None, program: str) -> str:
    """Run a program in a process that sees the checkout and, if given, the installed package."""
    path = os.pathsep.join(str(folder) for folder in (checkout, site) if folder is not None)
    ran = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program)],
        env={**os.environ, "PYTHONPATH": path},
        cwd=checkout,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr
    return ran.stdout


def test_names_are_there_only_when_it_is_installed(checkout: Path, installed: Path) -> None:
    program = """
        from sparsefx import registry
        print("round-weights" in registry.names("passes"))
        print("interpreter" in registry.names("targets"))
    """
    assert run_with(checkout, None, program).split() == ["False", "False"]
    assert run_with(checkout, installed, program).split() == ["True", "True"]


def test_pass_runs_from_its_text_form(checkout: Path, installed: Path) -> None:
    program = """
        pipeline = sparsefx.Pipeline.parse("round-weights{decimals=1}")
        rounded = pipeline.run(program)
        expected = model.dense.weight.detach().round(decimals=1)
        assert torch.equal(rounded.tensor("dense.weight"), expected)
        assert not torch.equal(program.tensor("dense.weight"), expected)
        assert str(pipeline) == "round-weights{decimals=1}"
        again = pipeline.run(rounded)
        assert again.fingerprint() == rounded.fingerprint()
        print(rounded.history[-1].applied, *again.history[-1].skipped, sep="; ")
    """
    printed = run_with(checkout, installed, SETUP + textwrap.dedent(program))
    assert printed == "1; dense.weight: it is round already\n"


def test_a_wrong_option_is_refused_like_one_of_ours(checkout: Path, installed: Path) -> None:
    program = """
        from sparsefx.errors import SpecError
        for text in ("round-weights{decimal=1}", "round-weights{decimals=-1}"):
            try:
                sparsefx.Pipeline.parse(text)
            except SpecError as error:
                print(str(error))
    """
    printed = run_with(checkout, installed, SETUP + textwrap.dedent(program))
    assert "did you mean 'decimals'?" in printed
    assert "decimals=-1: expected 0 or more" in printed


def test_target_lowers(checkout: Path, installed: Path) -> None:
    program = """
        compiled = registry.parse_target("interpreter").compile(program)
        assert torch.equal(compiled(**batch)["logits"], model(**batch)["logits"])
        print(compiled.cost().total("runs") == len(program.graph.nodes))
        print("aten.linear" in compiled.listing())
    """
    printed = run_with(checkout, installed, SETUP + textwrap.dedent(program))
    assert printed.split() == ["True", "True"]


def test_a_broken_package_breaks_itself_alone(
    checkout: Path, installed: Path, tmp_path: Path
) -> None:
    site = tmp_path / "site"
    shutil.copytree(installed, site)
    (site / "sparsefx_plugin_fixture" / "round_weights.py").write_text("import no_such_module\n")
    program = """
        from sparsefx import registry
        from sparsefx.errors import RegistryError
        print(registry.target_class("interpreter").name)
        try:
            registry.pass_class("round-weights")
        except RegistryError as error:
            print(error)
    """
    printed = run_with(checkout, site, program)
    assert printed.startswith("interpreter\n")
    assert "cannot be imported: No module named 'no_such_module'" in printed
