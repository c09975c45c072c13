"""Cost: multiply-accumulates and bytes of every node, dense and with the zeros left out."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor, fx

from sparsefx.analysis import Analysis
from sparsefx.graph.shapes import Shapes
from sparsefx.masks import find_masks
from sparsefx.passes.analyses.dataflow import is_linear, weight_of
from sparsefx.passes.analyses.operators import CONVOLUTIONS
from sparsefx.target import CostReport, CostRow

if TYPE_CHECKING:
    from sparsefx.program import Program

__all__ = ["Cost", "CostModel"]

aten = torch.ops.aten
_PRODUCTS = {aten.matmul.default, aten.bmm.default, aten.mm.default}
_SDPA = aten.scaled_dot_product_attention.default


@dataclass(frozen=True)
class _Site:
    """One node that multiplies: the sizes that its costs follow from, dynamic ones as symbols.

    ``macs`` is a sum of products of sizes. ``density`` is the share of weights that are not zero.
    """

    where: str
    op: str
    macs: tuple[tuple[Any, ...], ...]
    moved: tuple[tuple[int, tuple[Any, ...]], ...]
    weights: int
    weight_bytes: int
    density: float


@dataclass(frozen=True)
class CostModel:
    """The costs of a Program as functions of its dynamic sizes; :meth:`at` gives numbers."""

    sites: tuple[_Site, ...]
    shapes: Shapes

    def at(self, **sizes: int) -> CostReport:
        """Return the costs for one choice of dynamic sizes, e.g. ``at(batch=1, sequence=128)``.

        Each row has ``MACs`` and ``effective MACs`` (those of zero weights left out), ``weight
        bytes`` and ``effective weight bytes`` (the smaller of dense and non-zeros with a bitmap),
        and ``activation bytes`` (read and written, in the dtypes of the graph). A tied weight's
        bytes are in the row of its first use.

        Raises:
            ProgramError: When a dynamic size is missing or unknown.
        """
        rows = tuple(
            CostRow(site.where, site.op, self._figures(site, sizes)) for site in self.sites
        )
        return CostReport(
            "modelled",
            rows,
            (
                f"sizes: {', '.join(f'{name}={size}' for name, size in sorted(sizes.items()))}",
                "products, convolutions and embeddings only; elementwise operators count no MACs",
            ),
        )

    def _figures(self, site: _Site, sizes: Mapping[str, int]) -> dict[str, float]:
        def product(dims: tuple[Any, ...]) -> int:
            return math.prod(self.shapes.size(dim, sizes) for dim in dims)

        macs = sum(product(term) for term in site.macs)
        kept = site.weight_bytes * site.density
        return {
            "MACs": macs,
            "effective MACs": macs * site.density,
            "weight bytes": site.weight_bytes,
            "effective weight bytes": min(site.weight_bytes, kept + math.ceil(site.weights / 8)),
            "activation bytes": sum(width * product(dims) for width, dims in site.moved),
        }


class Cost(Analysis[CostModel]):
    """Finds what a Program costs.

    >>> import torch
    >>> from sparsefx import Pipeline, capture
    >>> model = torch.nn.Linear(16, 8)
    >>> program = capture(model, {"input": torch.ones(2, 16)})
    >>> pruned = Pipeline.parse("magnitude-prune{sparsity=0.75,roles=other}").run(program)
    >>> report = pruned.facts(Cost).at(batch=10)
    >>> report.total("MACs"), report.total("effective MACs")
    (1280, 320.0)
    """

    reads_values: ClassVar[bool] = True

    @classmethod
    def compute(cls, program: Program) -> CostModel:
        """Return the model of costs."""
        shapes = program.shapes
        masks = {site.weight: site.mask for site in find_masks(program)}
        found = []
        counted: set[str | None] = set()
        constant: set[fx.Node] = set()
        for node in program.graph.nodes:
            if _is_constant(node, constant):
                constant.add(node)
            terms = _terms(node)
            if terms is None:
                continue
            name = _weight_name(node)
            weights, width, density = _weight_facts(program, name, masks)
            if name in counted:
                weights = 0
            counted.add(name)
            op = str(node.target).removesuffix(".default")
            moved = tuple(_moved(node, constant))
            size = weights * width
            found.append(_Site(f"%{node.name}", op, terms, moved, weights, size, density))
        return CostModel(tuple(found), shapes)


def _terms(node: fx.Node) -> tuple[tuple[Any, ...], ...] | None:
    """Return the MACs of a node as a sum of products of sizes; None when it has no product."""
    if node.op != "call_function":
        return None
    if is_linear(node):
        return ((*_dims(node), _dims(node.args[1])[1]),)
    if node.target in CONVOLUTIONS:
        return ((*_dims(node), *_dims(node.args[1])[1:]),)
    if node.target in _PRODUCTS:
        return ((*_dims(node), _dims(node.args[0])[-1]),)
    if node.target in (aten.addmm.default, aten.baddbmm.default):
        return ((*_dims(node), _dims(node.args[1])[-1]),)
    if node.target is _SDPA:
        query, key = _dims(node.args[0]), _dims(node.args[1])
        return ((*query, key[-2]), (*_dims(node), key[-2]))
    if node.target is aten.embedding.default:
        return ((0,),)
    return None


def _dims(value: Any) -> tuple[Any, ...]:
    return tuple(value.meta["val"].shape)


def _moved(node: fx.Node, constant: set[fx.Node]) -> list[tuple[int, tuple[Any, ...]]]:
    """Return item size and dimensions of each activation that a node reads or writes."""
    sources = [arg for arg in node.all_input_nodes if arg not in constant]
    values = [source.meta.get("val") for source in (*sources, node)]
    return [(v.element_size(), tuple(v.shape)) for v in values if isinstance(v, Tensor)]


def _is_constant(node: fx.Node, constant: set[fx.Node]) -> bool:
    """Whether a node's value follows from tensors of the graph alone; `constant`: those before."""
    sources = node.all_input_nodes
    return node.op == "get_attr" or (
        node.op == "call_function" and bool(sources) and constant.issuperset(sources)
    )


def _weight_name(node: fx.Node) -> str | None:
    reads = is_linear(node) or node.target in CONVOLUTIONS or node.target is aten.embedding.default
    return weight_of(node) if reads else None


def _weight_facts(
    program: Program, name: str | None, masks: Mapping[str, str]
) -> tuple[int, int, float]:
    """Return count, item size and density of a stored weight; (0, 0, 1) when there is none."""
    if name is None:
        return 0, 0, 1.0
    weight = program.tensor(name).detach()
    kept = weight * program.tensor(masks[name]) if name in masks else weight
    density = int(torch.count_nonzero(kept)) / max(1, weight.numel())
    return weight.numel(), weight.element_size(), density
