"""ParameterTies: tensors that have several names, or that the graph reads in several places."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from torch import fx

from sparsefx.analysis import Analysis
from sparsefx.masks import find_masks
from sparsefx.passes.analyses.dataflow import carried

if TYPE_CHECKING:
    from sparsefx.program import Program

__all__ = ["ParameterTies", "SharedTensor", "Ties", "names_of"]


@dataclass(frozen=True)
class SharedTensor:
    """A tensor that is pruned, quantized and counted once, although it appears more often.

    Attributes:
        name: The name under which the graph holds it.
        names: All its names in the original state_dict; more than one when it is tied.
        uses: Names of the nodes that compute with it, in graph order, looking through masks, fake
            quantization and changes of layout; more than one when layers share it.
    """

    name: str
    names: tuple[str, ...]
    uses: tuple[str, ...]


@dataclass(frozen=True)
class Ties:
    """All shared tensors of a Program, in graph order."""

    shared: tuple[SharedTensor, ...]

    def of(self, name: str) -> SharedTensor | None:
        """Return the shared tensor that has this name, tied or not; None when it is not shared."""
        return next((item for item in self.shared if name in (item.name, *item.names)), None)


class ParameterTies(Analysis[Ties]):
    """Finds the shared tensors: a tied decoder (BERT's masked language model), layers (ALBERT).

    >>> import torch
    >>> from sparsefx.testing import small_program
    >>> class Tied(torch.nn.Module):
    ...     def __init__(self):
    ...         super().__init__()
    ...         self.up = self.down = torch.nn.Linear(4, 4, bias=False)
    ...     def forward(self, x):
    ...         return self.down(torch.relu(self.up(x)))
    >>> program = small_program(Tied(), x=torch.ones(1, 4))
    >>> program.facts(ParameterTies).of("down.weight")
    SharedTensor(name='up.weight', names=('up.weight', 'down.weight'), uses=('linear', 'linear_1'))
    """

    @classmethod
    def compute(cls, program: Program) -> Ties:
        """Return the shared tensors."""
        masks = {site.product: site.weight for site in find_masks(program)}
        shared = []
        for node in program.graph.find_nodes(op="get_attr"):
            name = str(node.target)
            names = names_of(program, name)
            uses = tuple(user.name for user in sorted(_computing_users(node, masks)))
            if len(names) > 1 or len(uses) > 1:
                shared.append(SharedTensor(name, names, uses))
        return Ties(tuple(shared))


def names_of(program: Program, name: str) -> tuple[str, ...]:
    """Return all names of a tensor in the original state_dict, of which ``name`` is one."""
    return next((group for group in program.ties if name in group), (name,))


def _computing_users(node: fx.Node, masks: Mapping[fx.Node, str]) -> set[fx.Node]:
    """Return who computes with a tensor; ``masks`` has the weight of each product with a mask."""
    found: set[fx.Node] = set()
    for user in node.users:
        if carried(user) is node or masks.get(user) == node.target:
            found |= _computing_users(user, masks) or {user}
        else:
            found.add(user)
    return found
