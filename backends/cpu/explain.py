"""Why every linear got its format: candidates with their costs, and from which sparsity zeros pay.

Costs are modelled (see `costs`), not measured.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from sparsefx.backends.cpu.layers import Layer
from sparsefx.backends.cpu.plan import SEQUENCES
from sparsefx.backends.cpu.weights import Format

__all__ = ["Explanation", "LayerCosts", "explain_layers"]

_PANEL = 64


@dataclass(frozen=True)
class LayerCosts:
    """What one linear costs on a batch.

    Attributes:
        layer: What was decided.
        cycles: Modelled cycles on the whole batch, one core, for each format it could have.
    """

    layer: Layer
    cycles: dict[Format, float]

    @property
    def chosen(self) -> float:
        """Cycles in the format it got."""
        return self.cycles[self.layer.format]

    @property
    def dense(self) -> float:
        """Cycles when every weight is visited."""
        return next(c for name, c in self.cycles.items() if name.startswith("dense"))

    @property
    def why(self) -> str:
        """Why it got its format, in one sentence."""
        choice = self.layer.choice
        if self.layer.format == choice.format:
            return choice.reason
        return f"asked for; {choice.format} would be {self.chosen / min(self.cycles.values()):.1f}x"

    def __str__(self) -> str:
        layer, choice = self.layer, self.layer.choice
        kind = "int8" if layer.integer else "fp32"
        costs = ", ".join(f"{name} {cycles:,.0f}" for name, cycles in self.cycles.items())
        needed = f"{max(0.0, 1 - choice.break_even):.1%}"
        return (
            f"{'+'.join(layer.nodes)}: {kind} [{layer.rows}, {layer.columns}], "
            f"sparsity {1 - choice.density:.1%} -> {layer.format}\n"
            f"    cycles: {costs}; break-even sparsity {needed}\n"
            f"    {self.why}; {layer.packed_bytes:,} bytes\n"
        )


@dataclass(frozen=True)
class Explanation:
    """All linears of a Program on one batch; its text is deterministic.

    Attributes:
        shape: Sequences of the batch and tokens of each, without padding.
        isa: Instruction set.
        layers: One entry for each linear kernel, in order.
    """

    shape: tuple[int, int]
    isa: str
    layers: tuple[LayerCosts, ...]

    @property
    def gain(self) -> float:
        """Cycles of all linears when every weight is visited, over those of the chosen formats."""
        chosen = sum(layer.chosen for layer in self.layers)
        return sum(layer.dense for layer in self.layers) / chosen if chosen else 1.0

    def __str__(self) -> str:
        batch, tokens = self.shape
        dense = [layer for layer in self.layers if layer.layer.format.startswith("dense")]
        chosen = sum(layer.chosen for layer in self.layers)
        return (
            f"{batch}x{tokens} tokens, {self.isa}; modelled cycles of one core\n"
            + "".join(str(layer) for layer in self.layers)
            + f"{len(self.layers)} linears: {chosen:,.0f} cycles, {self.gain:.2f}x fewer than "
            f"with every weight visited; zeros do not pay in {len(dense)}\n"
        )


def explain_layers(layers: Sequence[Layer], isa: str, batch: int, tokens: int) -> Explanation:
    """The costs of all linears on a batch of that many sequences and tokens, without padding."""
    panels = -(-batch * tokens // _PANEL), -(-batch // _PANEL)
    costs = (
        LayerCosts(
            layer,
            {
                name: cycles * panels[1 if layer.space == SEQUENCES else 0]
                for name, cycles in layer.choice.cycles.items()
            },
        )
        for layer in layers
    )
    return Explanation((batch, tokens), isa, tuple(costs))
