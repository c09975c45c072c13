"""Rules that hold after every pass (design section 6)."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, fx
from torch.utils.weak import WeakIdRef

from sparsefx.errors import ProgramError, VerifyError, first_line
from sparsefx.graph.memory import overlaps
from sparsefx.graph.shapes import is_wired_as, wiring
from sparsefx.inputs.signature import LOSS, Signature
from sparsefx.masks import find_masks, student_masks
from sparsefx.properties import Property

if TYPE_CHECKING:
    from sparsefx.program import Program

__all__ = ["DEFAULT_RULES", "Baseline", "Rule", "unread_parameters", "verify"]

Rule = Callable[["Program"], Iterable[str]]
aten = torch.ops.aten
_FAKE_QUANTIZE = "sparsefx.fake_quantize.default"


@dataclass(frozen=True)
class Baseline:
    """What a Program was before a pass.

    Attributes:
        signature: Its signature.
        outputs: The value of each output, as inferred.
        wired: For each node what its value was inferred from.
        properties: What it was said to be.
        unread: Names of the parameters that no node took.
    """

    signature: Signature
    outputs: Mapping[str, Any]
    wired: Mapping[fx.Node, tuple[object, ...]]
    properties: frozenset[Property]
    unread: frozenset[str]

    @classmethod
    def of(cls, program: Program) -> Baseline:
        """Return the baseline of ``program`` as it is now."""
        program.infer_shapes()
        wired = {node: wiring(node) for node in program.graph.nodes}
        outputs = _output_values(program)
        unread = unread_parameters(program)
        return cls(program.signature, outputs, wired, program.properties, unread)


def verify(
    program: Program,
    rules: Sequence[Rule] | None = None,
    *,
    signature: Signature | None = None,
    before: Baseline | None = None,
    who: str = "verify",
) -> None:
    """Hold ``program`` to all rules, and its recorded shapes to what its operators give.

    Args:
        program: What to check.
        rules: Functions that yield one sentence for each violation; default DEFAULT_RULES.
        signature: What the signature, and the types of the outputs of ``before``, have to be, when
            they must not have changed.
        before: What was verified already: shapes are looked at again only where it was changed.
        who: Whom the error names.

    Raises:
        VerifyError: One error with all violations.
    """
    violations = [text for rule in rules or DEFAULT_RULES for text in rule(program)]
    if signature is not None and program.signature != signature:
        violations.append(
            f"the signature changed from {signature.input_names} -> {signature.outputs} to "
            f"{program.signature.input_names} -> {program.signature.outputs}, which this pass "
            "does not declare (changes_signature)"
        )
    elif signature is not None and before is not None:
        violations += _changed_outputs(program, before)
    violations += _untrue_types(program, before)
    if before is not None:
        violations += _denied(program, before.properties)
    if violations:
        raise VerifyError(violations, who=who)


def _output_values(program: Program) -> dict[str, Any]:
    returned: Any = program.graph.output_node().args[0]
    outputs = returned if isinstance(returned, dict) else {}
    return {name: node.meta.get("val") for name, node in outputs.items()}


def _changed_outputs(program: Program, before: Baseline) -> Iterable[str]:
    shapes = program.shapes
    for name, value in _output_values(program).items():
        old = before.outputs.get(name)
        if not shapes.agree(old, value):
            yield (
                f"the output {name} changed from {shapes.describe(old)} to "
                f"{shapes.describe(value)}, which this pass does not declare (changes_signature)"
            )


def _denied(program: Program, claimed: frozenset[Property]) -> Iterable[str]:
    """Compare what is claimed no more with the graph; a teacher may show what is not claimed."""
    gone = claimed - program.properties
    if Property.MASKED in gone and (masks := find_masks(program)):
        yield (
            f"the property masked was taken away, but the graph has {masks[0].mask} (masks in all: "
            f"{len(masks)}): fold-masks takes masks out"
        )
    if Property.QUANT_PREPARED in gone and _calls(program, _FAKE_QUANTIZE):
        yield "the property quant-prepared was taken away, but the graph has fake quantization"


def _calls(program: Program, name: str) -> bool:
    return any(n.op == "call_function" and str(n.target) == name for n in program.graph.nodes)


def unread_parameters(program: Program) -> frozenset[str]:
    """Return the names of the parameters that the graph holds and that nothing takes."""
    nodes = program.graph.find_nodes(op="get_attr")
    unread = {str(node.target) for node in nodes if not node.users}
    return frozenset(unread & {name for name, _ in program._module.named_parameters()})


def _untrue_types(program: Program, before: Baseline | None) -> Iterable[str]:
    """Compare each recorded value with what the operator gives, where the wiring is new."""
    shapes = program.shapes
    for node in program.graph.nodes:
        if node.op != "call_function" or "val" not in node.meta:
            continue
        if before is not None and is_wired_as(node, before.wired.get(node)):
            continue
        if not all("val" in source.meta for source in node.all_input_nodes):
            continue  # `shapes_known` tells of them
        try:
            found = shapes.call(node)
        except ProgramError as error:
            yield f"%{node.name}: {error.why}"
            continue
        if not shapes.agree(node.meta["val"], found):
            yield (
                f"%{node.name} ({node.target}) is recorded as {shapes.describe(node.meta['val'])}, "
                f"but gives {shapes.describe(found)}: its inputs were changed behind the Rewriter"
            )


def lint(program: Program) -> Iterable[str]:
    """FX's own consistency: definitions before uses, unique names, known attributes."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            program.graph.lint()
    except Exception as error:
        yield f"FX lint: {first_line(error)}"  # the rest is the whole graph


def inputs_match(program: Program) -> Iterable[str]:
    """The graph takes the inputs that the signature names, in its order."""
    taken = tuple(str(node.target) for node in program.graph.find_nodes(op="placeholder"))
    if taken != program.signature.input_names:
        yield (
            f"the graph takes {taken}, the signature says {program.signature.input_names}: "
            "ctx.rewriter.remove_input and add_input change both"
        )


def outputs_match(program: Program) -> Iterable[str]:
    """The output node returns the outputs that the signature names."""
    returned = program.graph.output_node().args[0]
    names = tuple(returned) if isinstance(returned, dict) else returned
    if names != program.signature.outputs:
        yield f"the graph returns {names}, the signature says {program.signature.outputs}"


def no_orphans(program: Program) -> Iterable[str]:
    """Every tensor is read by the graph, and every get_attr finds its tensor."""
    read = {str(node.target) for node in program.graph.find_nodes(op="get_attr")}
    held = set(program.named_tensors())
    for name in sorted(held - read):
        yield f"the tensor {name} is not used by the graph"
    for name in sorted(read - held):
        yield f"the graph reads {name}, which does not exist, or is tied to another name"


def own_storage(program: Program) -> Iterable[str]:
    """No two tensors lie on one piece of memory: a tie is one tensor, with one name in the graph.

    Else a write to one would change the other, and a saved copy would not know.
    """
    for first, second in overlaps(program.named_tensors()):
        yield (
            f"{first} and {second} share memory without being tied: give one a copy (clone), or "
            "let the graph read one tensor in both places"
        )


def shapes_known(program: Program) -> Iterable[str]:
    """Every call has an inferred value."""
    for node in program.graph.nodes:
        if node.op == "call_function" and "val" not in node.meta:
            yield (
                f"%{node.name} has no inferred shape: it was not made through the Rewriter; "
                "ctx.rewriter.call(...) makes nodes"
            )


def locked_zeros(program: Program) -> Iterable[str]:
    """Masks are 0 or 1 and fit their weights; once locked, what they drop is zero.

    A teacher is none of those that are locked.
    """
    locked = set(student_masks(program)) if Property.LOCKED in program.properties else set()
    for site in find_masks(program):
        weight, mask = program.tensor(site.weight), program.tensor(site.mask)
        if weight.shape != mask.shape:
            shapes = f"{tuple(mask.shape)} and {tuple(weight.shape)}"
            yield f"{site.mask} and {site.weight} differ in shape: {shapes}"
        elif not _zero_or_one(program, site.mask):
            yield f"{site.mask} holds values other than 0 and 1"
        elif site in locked and (count := _revived(weight, mask)):
            yield f"{count} locked weights of {site.weight} are not zero"


def _revived(weight: Tensor, mask: Tensor) -> int:
    """Return how many weights that the mask drops are not zero; NaN elsewhere is no concern."""
    return int(torch.count_nonzero(weight.masked_fill(mask != 0, 0)))


def _zero_or_one(program: Program, name: str) -> bool:
    """Whether a mask is one; remembered by its version, which no optimizer leaves as it was."""
    mask = program.tensor(name)
    state = (WeakIdRef(mask), mask._version)
    if mask.dtype != torch.bool and program._sound.get(name) != state:
        if not torch.equal(mask * mask, mask):
            return False
        program._sound[name] = state
    return True


def weight_zeros_stay(program: Program) -> Iterable[str]:
    """A quantized weight has zero point 0, so that a zero weight is the integer 0."""
    for node in program.graph.find_nodes(
        op="call_function", target=torch.ops.sparsefx.dequantize.default
    ):
        tensor, scale, zero_point = node.args[:3]
        if tensor.op != "get_attr":
            continue
        if zero_point.op != "get_attr" or scale.op != "get_attr":
            yield f"%{node.name}: scale and zero point of a weight must be tensors of the graph"
            continue
        if bool(program.tensor(str(zero_point.target)).any()):
            yield f"%{node.name}: the zero point of weight {tensor.target} is not 0"
        scales = program.tensor(str(scale.target))
        if not bool((torch.isfinite(scales) & (scales > 0)).all()):
            yield f"%{node.name}: the scale of weight {tensor.target} is not positive and finite"


def quantizers_complete(program: Program) -> Iterable[str]:
    """A quantize node has a sound scale and zero point, and what undoes it has the same two."""
    ops = torch.ops.sparsefx
    for node in program.graph.find_nodes(op="call_function", target=ops.quantize.default):
        scale, zero_point, low, high = node.args[1:5]
        if scale.op != "get_attr" or zero_point.op != "get_attr":
            yield f"%{node.name}: scale and zero point must be tensors of the graph"
            continue
        steps = program.tensor(str(scale.target))
        if not bool((torch.isfinite(steps) & (steps > 0)).all()):
            yield f"%{node.name}: the scale {scale.target} is not positive and finite"
        zeros = program.tensor(str(zero_point.target))
        if not bool(((zeros >= low) & (zeros <= high)).all()):
            yield f"%{node.name}: the zero point {zero_point.target} is outside {low}..{high}"
        for user in node.users:
            undoes = user.target is ops.dequantize.default
            if undoes and user.args[1:3] != (scale, zero_point):
                yield f"%{user.name} undoes %{node.name} with another scale or zero point"


def properties_true(program: Program) -> Iterable[str]:
    """What the Program claims to be can be seen in its graph."""
    targets = {str(n.target) for n in program.graph.nodes if n.op == "call_function"}
    training = ("aten.dropout", "sparsefx.observe", "sparsefx.fake_quantize")
    masks = bool(find_masks(program))
    evidence: dict[Property, bool] = {
        Property.MASKED: masks,
        Property.LOCKED: masks,
        Property.DISTILLING: LOSS in program.signature.outputs,
        Property.QUANT_PREPARED: _FAKE_QUANTIZE in targets,
        Property.QUANTIZED: "sparsefx.dequantize.default" in targets,
        Property.INFERENCE: not masks and not any(name.startswith(training) for name in targets),
    }
    for prop in sorted(program.properties, key=str):
        if not evidence.get(prop, True):
            yield f"the property {prop} is claimed, but the graph shows no sign of it"


DEFAULT_RULES: tuple[Rule, ...] = (
    lint,
    inputs_match,
    outputs_match,
    no_orphans,
    own_storage,
    shapes_known,
    locked_zeros,
    weight_zeros_stay,
    quantizers_complete,
    properties_true,
)
"""The rules that every pipeline checks after every pass."""
