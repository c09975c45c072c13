"""What holds of every module, read off its syntax tree: docstrings, and how it writes tensors."""

from __future__ import annotations

import ast
from collections.abc import Iterator


def assigned(node: ast.AST) -> list[ast.expr]:
    """What a statement assigns to."""
    if isinstance(node, ast.Assign):
        return node.targets
    return [node.target] if isinstance(node, ast.AugAssign | ast.AnnAssign) else []


def test_tensors_are_not_written_through_data(sources: dict[str, str]) -> None:
    offenders = []
    for path, source in sources.items():
        offenders += [f"{path}:{line}" for line in data_writes(ast.parse(source, filename=path))]
    assert offenders == []


def data_writes(tree: ast.AST) -> Iterator[int]:
    """Lines that assign to `x.data`, to a part of it, or call a method in place on it.

    Such a write does not raise the tensor's `_version`, so neither autograd nor the fingerprint
    of a Program sees it.
    """
    for node in ast.walk(tree):
        for target in assigned(node):
            inner = target.value if isinstance(target, ast.Subscript) else target
            if isinstance(inner, ast.Attribute) and inner.attr == "data":
                yield target.lineno
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
            method, owner = node.func.attr, node.func.value
            in_place = method.endswith("_") and not method.endswith("__")
            if in_place and isinstance(owner, ast.Attribute) and owner.attr == "data":
                yield node.lineno


def test_writes_through_data_are_found() -> None:
    source = "a.data = b\na.data[0] = 1\na.data += 1\na.data.mul_(2)\nb = a.data.sum()\n"
    assert list(data_writes(ast.parse(source))) == [1, 2, 3, 4]


def test_public_names_have_docstrings(sources: dict[str, str]) -> None:
    missing = []
    for path, source in sources.items():
        tree = ast.parse(source, filename=path)
        if not ast.get_docstring(tree):
            missing.append(path)
        missing += [
            f"{path}:{node.lineno}: {node.name}"
            for node in tree.body
            if isinstance(node, ast.FunctionDef | ast.ClassDef)
            and not node.name.startswith("_")
            and not ast.get_docstring(node)
        ]
    assert missing == []
