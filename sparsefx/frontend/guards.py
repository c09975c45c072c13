"""What torch.export notes of the sizes at which its graph holds, as conditions."""

from __future__ import annotations

import ast
from collections.abc import Iterator, Mapping
from typing import Any, Final

from torch.export import ExportedProgram
from torch.fx.experimental.symbolic_shapes import ShapeGuardPythonPrinter

from sparsefx.arithmetic import names_in
from sparsefx.inputs.conditions import check_condition, is_same
from sparsefx.inputs.signature import Dim, InputSpec

__all__ = ["exported_conditions"]

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
        if names_in(text) and not is_same(text):  # sizes that are fixed satisfy it
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
