"""Every fenced block of the documents is run; CONTRIBUTING.md, "Documents", has the rules."""

import doctest
import json
import os
import re
import shlex
import subprocess
import sys
import tomllib
import types
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest
import typer
from markdown_it import MarkdownIt

from sparsefx.cli.app import app
from sparsefx.recipe import Recipe

CHECKOUT = Path(__file__).resolve().parent.parent
DOCUMENTS = [
    "README.md",
    "CONTRIBUTING.md",
    "CHANGELOG.md",
    *sorted(path.relative_to(CHECKOUT).as_posix() for path in (CHECKOUT / "docs").rglob("*.md")),
]
LINK = re.compile(r"\]\((?P<target>[^)\s]+)\)")
PLACEHOLDER = "path/to/"
OPTIONS = doctest.NORMALIZE_WHITESPACE | doctest.ELLIPSIS


class Block(NamedTuple):
    """One fenced block: its language, text, and the line of the document where the text begins."""

    language: str
    code: str
    line: int


class Page(NamedTuple):
    """What the blocks of one document share: their folder, namespace and environment."""

    name: str
    folder: Path
    module: types.ModuleType
    environment: dict[str, str]


def blocks_of(text: str) -> list[Block]:
    """The code blocks of a document, in order; an indented one has the language ''."""
    return [
        Block(token.info.strip(), token.content, token.map[0] + (2 if token.type == "fence" else 1))
        for token in MarkdownIt().parse(text)
        if token.type in ("fence", "code_block") and token.map is not None
    ]


def run_python(page: Page, block: Block) -> None:
    """Execute a block in the document's namespace; tracebacks show the document's lines.

    A block whose first line is `# name.py` is that file too, for the commands that follow.
    """
    namespace = vars(page.module)
    first = block.code.partition("\n")[0]
    if re.fullmatch(r"# \w+\.py", first):
        (page.folder / first.removeprefix("# ")).write_text(block.code, encoding="utf-8")
    if ">>> " not in block.code:
        padded = "\n" * (block.line - 1) + block.code
        exec(compile(padded, page.name, "exec"), namespace)
        return
    parser = doctest.DocTestParser()
    examples = parser.get_doctest(block.code, namespace, page.name, page.name, block.line - 1)
    failures: list[str] = []
    runner = doctest.DocTestRunner(optionflags=OPTIONS, verbose=False)
    runner.run(examples, out=failures.append, clear_globs=False)
    namespace.update(examples.globs)
    if failures:
        pytest.fail("".join(failures), pytrace=False)


def run_shell(page: Page, block: Block) -> None:
    """Run a block's commands in one shell, less those that another phase of CI runs."""
    ran = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", "\n".join(commands_to_run(block.code))],
        cwd=page.folder,
        env=page.environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    assert ran.returncode == 0, f"{page.name}:{block.line}\n{block.code}{ran.stdout}{ran.stderr}"


def run_console(page: Page, block: Block) -> None:
    """Run what stands after the prompts of a shown session."""
    typed = [line.removeprefix("$ ") for line in block.code.splitlines() if line.startswith("$ ")]
    run_shell(page, block._replace(code="\n".join(typed)))


def write_yaml(page: Page, block: Block) -> None:
    """Put a recipe, or an accelerator, where the commands that follow it look for it."""
    first, where = block.code.partition("\n")[0], f"{page.name}:{block.line}"
    assert re.fullmatch(r"# [\w.-]+\.ya?ml", first), f"{where}: the first line is '# name.yaml'"
    if "\nengine:" not in block.code:  # a command reads that, with the engine on its path
        Recipe.parse(block.code, who=where).check()
    (page.folder / first.removeprefix("# ")).write_text(block.code, encoding="utf-8")


def parse_toml(page: Page, block: Block) -> None:
    """Check that a block is TOML."""
    assert tomllib.loads(block.code), page.name


def parse_json(page: Page, block: Block) -> None:
    """Check that a block is JSON."""
    assert json.loads(block.code), page.name


def show(page: Page, block: Block) -> None:
    """Leave output alone."""


RUNNERS: dict[str, Callable[[Page, Block], None]] = {
    "python": run_python,
    "sh": run_shell,
    "console": run_console,
    "yaml": write_yaml,
    "toml": parse_toml,
    "json": parse_json,
    "text": show,
    "diff": show,
}


def commands_to_run(script: str) -> list[str]:
    """The commands of a script, less those whose effect CI sees elsewhere (which must exist)."""
    lines = script.replace("\\\n", " ").splitlines()
    return [line for line in lines if not runs_elsewhere(line)]


def runs_elsewhere(command: str) -> bool:
    """Whether another phase of CI runs this command; asserts that what it names exists."""
    words = shlex.split(command, comments=True)
    match words:
        case ["make", *arguments]:
            targets = [word for word in arguments if "=" not in word]
            makefile = (CHECKOUT / "Makefile").read_text(encoding="utf-8")
            missing = [one for one in targets if not re.search(rf"^{one}:", makefile, re.M)]
        case ["bash", ".ci/run"]:
            missing = []
        case ["sparsefx", name, *arguments] if name == "demo" or PLACEHOLDER in command:
            commands = typer.main.get_command(app)
            assert isinstance(commands, typer.core.TyperGroup)
            commands.commands[name].make_context(name, arguments)  # raises if it does not parse
            missing = []
        case ["git", "clone", *_] | ["cd", "sparsefx"]:
            missing = []
        case ["python", "-m", "pip", "install", *arguments] | ["pip", "install", *arguments]:
            missing = missing_paths(arguments)
        case ["python", "-m", "pytest", *arguments]:
            missing = missing_paths(arguments)
        case ["python", "-m", module, *_] if module.startswith("benchmarks."):
            missing = missing_paths([module.replace(".", "/") + ".py"])
        case ["python", script, *_] if script.startswith("benchmarks/"):
            missing = missing_paths([script])
        case [".venv/bin/pre-commit", *_]:
            missing = missing_paths([".pre-commit-config.yaml"])
        case _:
            return False
    assert missing == [], f"{command!r} names what does not exist"
    return True


def missing_paths(arguments: list[str]) -> list[str]:
    """Those arguments that look like a path of the checkout, and are none."""
    paths = [word.partition("::")[0].partition("[")[0] for word in arguments if "/" in word]
    return [path for path in paths if not (CHECKOUT / path).exists()]


@pytest.fixture
def environment(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Environment in which `python` and `sparsefx` are those of the tests."""
    commands = tmp_path_factory.mktemp("bin")
    python = shlex.quote(sys.executable)
    for name, start in (("python", python), ("sparsefx", f"{python} -P -m sparsefx")):
        (commands / name).write_text(f'#!/bin/sh\nexec {start} "$@"\n', encoding="utf-8")
        (commands / name).chmod(0o755)
    path = os.pathsep.join([str(commands), os.environ.get("PATH", os.defpath)])
    return {**os.environ, "PATH": path, "PYTHONPATH": str(CHECKOUT), "OMP_NUM_THREADS": "1"}


@pytest.mark.parametrize("document", DOCUMENTS)
def test_blocks_run(
    document: str,
    tmp_path: Path,
    environment: dict[str, str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    module = types.ModuleType(re.sub(r"\W", "_", document))
    monkeypatch.setitem(sys.modules, module.__name__, module)
    monkeypatch.chdir(tmp_path)
    page = Page(document, tmp_path, module, environment)
    for block in blocks_of((CHECKOUT / document).read_text(encoding="utf-8")):
        known = f"{document}:{block.line}: the language {block.language!r}, not one of {[*RUNNERS]}"
        assert block.language in RUNNERS, known
        RUNNERS[block.language](page, block)


@pytest.mark.parametrize("document", DOCUMENTS)
def test_links_lead_somewhere(document: str) -> None:
    text = (CHECKOUT / document).read_text(encoding="utf-8")
    inline = [token.content for token in MarkdownIt().parse(text) if token.type == "inline"]
    found = LINK.finditer("\n".join(inline))
    targets = [link["target"].partition("#")[0] for link in found]
    local = [target for target in targets if target and "://" not in target]
    folder = (CHECKOUT / document).parent
    assert [target for target in local if not (folder / target).exists()] == []


def test_decisions_have_numbers_of_their_own() -> None:
    names = sorted(path.name for path in (CHECKOUT / "docs/adr").glob("[0-9]*.md"))
    assert names.pop(0) == "0000-template.md"
    assert len({name[:4] for name in names}) == len(names)
    for name in names:
        assert (CHECKOUT / "docs/adr" / name).read_text().startswith(f"# {name[:4]}. ")


def test_blocks_are_found_with_their_lines() -> None:
    text = "a\n\n```python\nx = 1\n```\n\n- b\n\n  ```sh\n  true\n  ```\n\n```\nno language\n```\n"
    text += "\n    indented\n"
    assert blocks_of(text) == [
        Block("python", "x = 1\n", 4),
        Block("sh", "true\n", 10),
        Block("", "no language\n", 14),
        Block("", "indented\n", 17),
    ]


def test_commands_of_other_phases_are_left_out() -> None:
    script = "make test  # all of it\npython -m pytest tests -q\necho \\\n  one\nsparsefx passes\n"
    assert commands_to_run(script) == ["echo    one", "sparsefx passes"]


def test_commands_that_name_nothing_are_refused() -> None:
    with pytest.raises(AssertionError, match="names what does not exist"):
        commands_to_run("make tset\n")
    with pytest.raises(AssertionError, match="names what does not exist"):
        commands_to_run("python benchmarks/no_such_claim.py\n")
    with pytest.raises(Exception, match="No such option: --qick"):
        commands_to_run("sparsefx demo --qick\n")


def test_a_failing_block_fails(tmp_path: Path, environment: dict[str, str]) -> None:
    page = Page("page.md", tmp_path, types.ModuleType("page"), environment)
    with pytest.raises(AssertionError, match=r"page\.md:7"):
        run_shell(page, Block("sh", "false\ntrue\n", 7))
    with pytest.raises(pytest.fail.Exception, match="Expected:\n    3"):
        run_python(page, Block("python", ">>> 1 + 1\n3\n", 1))
    with pytest.raises(ZeroDivisionError):
        run_python(page, Block("python", "1 / 0\n", 1))
