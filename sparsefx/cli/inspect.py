"""``sparsefx inspect``: what is known of a Program."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from sparsefx.cli.console import filled, format_bytes, format_count, stdout
from sparsefx.cli.programs import open_program

if TYPE_CHECKING:
    from sparsefx.passes.analyses.sparsity import Sparsity
    from sparsefx.program import Program

__all__ = ["command"]


def command(
    program: Annotated[str, typer.Argument(help="Folder of a saved Program, or a model.")],
    graph: Annotated[bool, typer.Option("--graph", help="Print the graph too.")] = False,
    facts: Annotated[bool, typer.Option(help="With the graph: shapes, zeros, origins.")] = False,
) -> None:
    """Show inputs, layers, sparsity, size and history of a Program."""
    model = open_program(program)
    if graph or facts:
        stdout.print(model.dump(facts=facts))
    for spec in model.signature.inputs:
        stdout.print(f"input   {spec}")
    stdout.print(f"outputs {', '.join(model.signature.outputs)}")
    properties = ", ".join(sorted(str(p) for p in model.properties)) or "none"
    stdout.print(f"properties {properties}; steps {model.steps}")
    for group in model.ties:
        stdout.print(f"tied    {' = '.join(group)}")
    _show_layers(model)
    _show_weights(model)
    _show_history(model)


def _show_layers(program: Program) -> None:
    from sparsefx.passes.analyses.encoder import EncoderStructure

    encoder = program.facts(EncoderStructure)
    if not encoder.layers:
        stdout.print(f"no encoder layers: {encoder.reason}")
        return
    core = encoder.layers[0].core
    stdout.print(
        f"encoder {len(encoder.layers)} layers, {core.heads} heads, norm {encoder.layers[0].norm}"
    )


def _show_weights(program: Program) -> None:
    from sparsefx.passes.analyses.sparsity import SparsityStats

    found = program.facts(SparsityStats)
    rows = []
    for item in found.tensors:
        if len(item.shape) < 2:
            continue
        shape = "x".join(str(size) for size in item.shape)
        stored = format_bytes(item.share.stored_bytes)
        rows.append((item.name, str(item.role), shape, f"{item.share.sparsity:.1%}", stored))
    stdout.print(filled(("weight", "role", "shape", "zeros", "stored"), rows))
    stdout.print(_summary(found))


def _summary(found: Sparsity) -> str:
    from sparsefx.graph.printing import format_ratio

    encoder, whole = found.encoder, found.whole
    if not whole.values:
        return "it has no trained values"
    zeros, paper = f"{whole.sparsity:.1%} of the model", ""
    if encoder.values:
        zeros = f"{encoder.sparsity:.1%} of the encoder's linears, {zeros}"
        paper = f"; paper ratio of the encoder {format_ratio(encoder.paper_ratio)}"
    return (
        f"{format_count(whole.values)} values; zeros: {zeros}\n"
        f"stored {format_bytes(whole.stored_bytes)} with index "
        f"({format_ratio(whole.stored_ratio)} smaller than dense fp32){paper}"
    )


def _show_history(program: Program) -> None:
    for entry in program.history:
        changed = "" if entry.changed else ", no change"
        stdout.print(f"pass    {entry.spec}: applied {entry.applied}{changed}")
        for skip in entry.skipped:
            stdout.print(f"          skipped {skip}")
