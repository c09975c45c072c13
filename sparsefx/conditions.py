"""Conditions on the sizes of inputs: where a graph holds that was captured at one choice of sizes.

A model may ask for a size in Python (``if ids.shape[1] > 512``). Export goes one way there, and
notes the condition. A condition is a text over the names of dynamic dimensions, which is evaluated
without running it as code, since it may come from a file.

>>> holds("sequence % 4 == 0", {"sequence": 8}), holds("min(12, n) == n", {"n": 20})
(True, False)
"""

from __future__ import annotations

import ast
import operator
from collections.abc import Callable, Iterator, Mapping
from functools import cache
from typing import TYPE_CHECKING, Any, Final

from torch.export import ExportedProgram
from torch.fx.experimental.symbolic_shapes import ShapeGuardPythonPrinter

if TYPE_CHECKING:
    from sparsefx.signature import Dim, InputSpec

__all__ = ["check_condition", "exported_conditions", "holds", "names_in"]

_OPERATORS: Final[Mapping[type, Callable[..., Any]]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.FloorDiv: operator.floordiv,
    ast.Mod: operator.mod,
    ast.Eq: operator.eq,
    ast.NotEq: operator.ne,
    ast.Lt: operator.lt,
    ast.LtE: operator.le,
    ast.Gt: operator.gt,
    ast.GtE: operator.ge,
    ast.USub: operator.neg,
    ast.Not: operator.not_,
    ast.And: lambda *values: all(values),
    ast.Or: lambda *values: any(values),
}
_FUNCTIONS: Final[Mapping[str, Callable[..., Any]]] = {"min": min, "max": max}
# Where torch works out strides, broadcasts and ends of slices: the operator that is in the graph
# does so anew in each call, so that what was found for the examples says nothing of other sizes.
_WORKED_OUT_ANEW: Final = {
    "_compute_slice_index",
    "_reshape_view_helper",
    "_reshape_view_helper_core_alg",
    "check_contiguous_sizes_strides",
    "infer_size",
    "is_contiguous",
}
# Export takes 0 and 1 apart from all other sizes: a least size of 2 says nothing of the model.
_LEAST_OF_EXPORT = 2


def holds(condition: str, sizes: Mapping[str, int]) -> bool:
    """Whether a condition holds for the sizes of all dimensions that it names."""
    try:
        return bool(_value(_parsed(condition), sizes))
    except ZeroDivisionError:
        return False


@cache
def names_in(condition: str) -> frozenset[str]:
    """Return the dimensions that a condition names."""
    names = {node.id for node in ast.walk(_parsed(condition)) if isinstance(node, ast.Name)}
    return frozenset(names - _FUNCTIONS.keys())


def check_condition(condition: str) -> None:
    """Refuse a text that :func:`holds` cannot evaluate.

    Raises:
        ValueError: It is no expression of names, numbers, arithmetic, comparisons, min and max.
    """
    try:
        _value(_parsed(condition), dict.fromkeys(names_in(condition), 1))
    except ZeroDivisionError:
        return
    except SyntaxError as error:
        raise ValueError(f"{condition!r} is no condition on sizes") from error


@cache
def _parsed(condition: str) -> ast.expr:
    return ast.parse(condition, mode="eval").body


def _value(node: ast.expr, sizes: Mapping[str, int]) -> Any:
    function, parts = _taken_apart(node)
    if function is None:
        return sizes[node.id] if isinstance(node, ast.Name) else node.value  # type: ignore[attr-defined]  # a constant
    return function(*(_value(part, sizes) for part in parts))


def _taken_apart(node: ast.expr) -> tuple[Callable[..., Any] | None, list[ast.expr]]:
    """Return what a node calculates, None of a name or a number, and of which parts."""
    kind: type[ast.AST]
    match node:
        case ast.Name() | ast.Constant(value=int() | float()):
            return None, []
        case ast.BinOp(left, op, right) | ast.Compare(left, [op], [right]):
            kind, parts = type(op), [left, right]
        case ast.UnaryOp(sign, operand):
            kind, parts = type(sign), [operand]
        case ast.BoolOp(junction, parts):
            kind = type(junction)
        case ast.Call(ast.Name(name), args, []) if name in _FUNCTIONS:
            return _FUNCTIONS[name], args
        case _:
            raise ValueError(f"{ast.unparse(node)!r} is no part of a condition on sizes")
    if kind not in _OPERATORS:
        raise ValueError(f"{ast.unparse(node)!r} is no part of a condition on sizes")
    return _OPERATORS[kind], parts


# -- what export notes -----------------------------------------------------------------------------


def exported_conditions(
    exported: ExportedProgram,
    inputs: tuple[InputSpec, ...],
    values: Mapping[str, Any],
    *,
    bounds: bool,
) -> tuple[list[str], list[str]]:
    """Return the conditions under which an exported graph holds, and those that have no such form.

    Args:
        exported: What torch.export returned.
        inputs: The inputs, with names for the dynamic dimensions.
        values: The fake tensor of each input.
        bounds: Whether sizes were declared with bounds, which count too.
    """
    dims = {(s.name, place): dim for s in inputs for place, dim in enumerate(s.dims)}
    known = set(_bounds(exported, dims, values)) if bounds else set()
    passing = _passing_guards(values)
    unknown = []
    for guard in exported._guards_code:
        if guard in passing:
            continue
        try:
            text = _in_names(guard, dims)
            check_condition(text)
        except ValueError:
            unknown.append(guard)
            continue
        if names_in(text) and not _is_same(text):  # sizes that are fixed satisfy it
            known.add(text)
    return sorted(known, key=lambda text: (len(text), text)), unknown


def _passing_guards(values: Mapping[str, Any]) -> set[str]:
    """Return the guards that the operators of the graph do not need; none of a loaded export."""
    env = next((v.fake_mode.shape_env for v in values.values() if v.fake_mode.shape_env), None)
    if env is None:
        return set()
    printer = ShapeGuardPythonPrinter(env.var_to_sources, lambda s: s.name, env.var_to_sources)
    needed: set[str] = set()
    passing: set[str] = set()
    for guard in env.guards:
        place = getattr(guard.sloc.framework_loc, "name", "")
        if guard.expr.free_symbols <= env.var_to_sources.keys():
            (passing if place in _WORKED_OUT_ANEW else needed).add(printer.doprint(guard.expr))
    return passing - needed


def _is_same(condition: str) -> bool:
    """Whether two sizes of one name are compared, which every call does anyway."""
    match _parsed(condition):
        case ast.Compare(left, [ast.Eq()], [right]):
            return ast.dump(left) == ast.dump(right)
    return False


def _bounds(
    exported: ExportedProgram, dims: Mapping[tuple[str, int], Dim], values: Mapping[str, Any]
) -> Iterator[str]:
    """Return the least and the largest size of each dynamic dimension, where they are bounded."""
    ranges = {str(symbol): found for symbol, found in exported.range_constraints.items()}
    for (name, place), dim in dims.items():
        found = ranges.get(str(values[name].shape[place]))
        if found is None or isinstance(dim, int):
            continue
        if found.lower.is_Integer and found.lower > _LEAST_OF_EXPORT:
            yield f"{dim} >= {found.lower}"
        if found.upper.is_Integer:  # infinity is none
            yield f"{dim} <= {found.upper}"


def _in_names(guard: str, dims: Mapping[tuple[str, int], Dim]) -> str:
    """Return a guard of export with the names of dimensions for ``L['ids'].size()[1]``.

    Raises:
        ValueError: It speaks of something else than sizes of inputs.
    """
    tree = _NamedSizes(dims).visit(ast.parse(guard, mode="eval").body)
    match tree:
        case ast.Compare(left, [ast.Lt()], [ast.Constant(int(most))]):
            tree = ast.Compare(left, [ast.LtE()], [ast.Constant(most - 1)])
        case ast.Compare(left, [ast.Gt()], [ast.Constant(int(least))]):
            tree = ast.Compare(left, [ast.GtE()], [ast.Constant(least + 1)])
    return ast.unparse(tree)


class _NamedSizes(ast.NodeTransformer):
    def __init__(self, dims: Mapping[tuple[str, int], Dim]) -> None:
        self._dims = dims

    def visit_Subscript(self, node: ast.Subscript) -> ast.expr:
        match node:
            case ast.Subscript(
                ast.Call(ast.Attribute(source, "size"), []), ast.Constant(int(place))
            ):
                key = ("_".join(_path(source)), place)
            case _:
                raise ValueError(f"{ast.unparse(node)!r} is no size")
        if key not in self._dims:
            raise ValueError(f"there is no input {key[0]!r} with a dimension {key[1]!r}")
        dim = self._dims[key]
        return ast.Name(dim) if isinstance(dim, str) else ast.Constant(dim)


def _path(source: ast.expr) -> list[str]:
    """Return ``["xs", "0"]`` of ``L['xs'][0]``, whose name as an input is ``xs_0``."""
    if isinstance(source, ast.Subscript) and isinstance(source.slice, ast.Constant):
        return [*_path(source.value), str(source.slice.value)]
    return []
