"""distill: joins a teacher to the student's graph and makes the loss that compares them."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

import torch
from torch import fx

from sparsefx.errors import PassError
from sparsefx.inputs.signature import LOSS, TAUGHT, InputSpec
from sparsefx.passbase import Pass, PassContext, PassReport
from sparsefx.passes.analyses.encoder import EncoderStructure
from sparsefx.passes.analyses.padding import marks_tokens
from sparsefx.passes.distill.fit import (
    NEEDS_ATTENTION,
    NEEDS_LAYERS,
    check_fit,
    paired_layers,
)
from sparsefx.passes.distill.heads import (
    classes,
    label_inputs,
    left_out,
    logits_outputs,
    match_heads,
    over_positions,
)
from sparsefx.passes.distill.layer_map import LayerMap, check_layer_map
from sparsefx.passes.distill.scope import Pair, Scope
from sparsefx.passes.distill.states import Given, taught_outputs
from sparsefx.passes.distill.teacher import Joined, check_inputs
from sparsefx.passes.distill.terms import TERMS
from sparsefx.passes.structure.decompose_attention import DecomposeAttention
from sparsefx.pipeline import Pipeline
from sparsefx.properties import Property

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from sparsefx.program import Program

__all__ = ["Distill"]

_NEEDS_SCORES = frozenset({"scores", "probabilities"})


@dataclass(frozen=True)
class Distill(Pass):
    """Add a frozen teacher and a loss that makes the student resemble it.

        loss = sum over terms of weight * term

    A term is on when its weight is above 0. With p = softmax(z / T), H a layer's output, S its
    attention scores before softmax, P after, V its values; s student, t teacher:

        logits          T^2 mean_rows KL(p_t || p_s)          Hinton et al. 2015, Prune OFA (T = 2)
        labels          cross-entropy with hard labels, or MSE where there is one class
        hidden          sum_layers mean (H_s - H_t)^2         SparseBERT, TinyBERT
        embedding       mean (E_s - E_t)^2, E enters layer 0  SparseBERT, TinyBERT
        scores          sum_layers mean (S_s - S_t)^2         SparseBERT, TinyBERT
        probabilities   sum_layers mean_rows KL(P_t || P_s)   MiniLM
        value_relation  the same of softmax(V V^T / sqrt(d))  MiniLM
        cls             mean_layers mean (h_s - h_t)^2        BERT-PKD, first token, |h| = 1
        cosine          mean (1 - cos(H_s, H_t)), last layer  DistilBERT

    The functions in :mod:`sparsefx.passes.distill.terms` give each formula in full. SparseBERT's
    objective is ``distill{logits=1,hidden=1,embedding=1,scores=1,temperature=1.0,
    logits_loss='soft-ce',logits_mean='batch-and-classes',mask_padding=False,teacher_mode='train'}``
    (the released code never calls ``eval()`` on the teacher).

    The Program returns ``loss``, ``loss.<term>`` before its weight, and what the student returned.
    The labels term adds an input ``labels`` (``start_positions`` and ``end_positions`` for
    answers). The teacher's tensors are buffers below ``teacher.``; only the part of it that a term
    needs is joined, and autograd sees none of it. Where widths differ, hidden and embedding train
    a projection. ``strip-distillation`` takes all of this out again.

    Establishes ``distilling``, destroys ``inference``. The attention terms need explicit attention
    in the student (``decompose-attention``); the teacher's is spelled out here.

    >>> import torch
    >>> from sparsefx import Pipeline
    >>> from sparsefx.testing import graph_text, small_program
    >>> student, teacher = (
    ...     small_program(torch.nn.Linear(4, 2, bias=False), input=torch.zeros(3, 4)) for _ in "st"
    ... )
    >>> out = Pipeline.parse("distill{temperature=1.0}").run(student, programs={"teacher": teacher})
    >>> print(graph_text(out))
    %linear = aten.linear(%input_1, %weight)
    %linear_1 = aten.linear(%input_1, %teacher_weight)
    %log_softmax = aten.log_softmax.int(%linear, -1, float32)
    %log_softmax_1 = aten.log_softmax.int(%linear_1, -1, float32)
    %kl_div = aten.kl_div(%log_softmax, %log_softmax_1, 0, log_target=True)
    %sum_1 = aten.sum.dim_IntList(%kl_div, [-1])
    %mean = aten.mean(%sum_1)
    return {output: %linear, loss: %mean, loss.logits: %mean}
    <BLANKLINE>

    Attributes:
        teacher: Name under which the pipeline was given the teacher Program.
        layers: Which teacher layer each student layer learns from: ``identity``, ``skip`` (every
            k-th), ``skip-inner`` (the same without the last pair), ``last`` (the topmost),
            ``final`` (last with last alone), or pairs.
        temperature: T of the logits term.
        logits_loss: ``kl``, ``soft-ce`` (same gradient), ``bce`` (each class by itself), ``mse``,
            or ``cosine`` (for embeddings); ``auto`` is ``kl``, but ``bce`` where the configuration
            says that a text has any number of classes, and ``mse`` for a single value, which has no
            soft targets.
        logits_mean: ``batch``: sum over classes; ``batch-and-classes``: mean (SparseBERT).
        probabilities_loss: ``kl`` or ``mse``.
        normalise_cls: Scale the vectors of the cls term to length 1.
        mask_padding: Leave padded tokens out of every mean over tokens, and of the positions of an
            answer.
        teacher_mode: ``eval``, or ``train`` for a teacher whose dropout follows the student's mode.
        teacher_inputs: Inputs that the teacher alone reads; they are added to the signature.
        outputs: What logits and labels compare; none stands for all outputs that classify.
        cached: Take what the teacher computes from the batch (inputs ``teacher_<output>`` and
            ``teacher_hidden_<layers below>``) in place of a joined teacher; not for terms of
            attention. A session computes it once for a stage: see :mod:`sparsefx.train.taught`.
        seed: Of the projection's initial values.
    """

    name: ClassVar[str] = "distill"
    establishes: ClassVar[frozenset[Property]] = frozenset({Property.DISTILLING})
    destroys: ClassVar[frozenset[Property]] = frozenset({Property.INFERENCE})
    forbids: ClassVar[frozenset[Property]] = frozenset({Property.DISTILLING, Property.QUANTIZED})
    changes_signature: ClassVar[bool] = True

    teacher: str = "teacher"
    logits: float = 1.0
    labels: float = 0.0
    hidden: float = 0.0
    embedding: float = 0.0
    scores: float = 0.0
    probabilities: float = 0.0
    value_relation: float = 0.0
    cls: float = 0.0
    cosine: float = 0.0
    layers: LayerMap = "identity"
    temperature: float = 2.0
    logits_loss: Literal["auto", "kl", "soft-ce", "bce", "mse", "cosine"] = "auto"
    logits_mean: Literal["batch", "batch-and-classes"] = "batch"
    probabilities_loss: Literal["kl", "mse"] = "kl"
    normalise_cls: bool = True
    mask_padding: bool = True
    teacher_mode: Literal["eval", "train"] = "eval"
    teacher_inputs: tuple[str, ...] = ()
    outputs: tuple[str, ...] = ()
    cached: bool = False
    seed: int = 0

    @property
    def needs(self) -> tuple[str, ...]:
        """The teacher: joined, or run beforehand by a session."""
        return (self.teacher,)

    @property
    def takes_labels(self) -> bool:
        """Where the labels are a term."""
        return self.labels > 0

    def __post_init__(self) -> None:
        super().__post_init__()
        for term in TERMS:
            weight = getattr(self, term)
            if not 0 <= weight < math.inf:
                raise self.refuse(term, "expected a weight of 0 or more")
        if not self.terms:
            raise self.refuse("logits", "no term has a weight above 0")
        if not 0 < self.temperature < math.inf:
            raise self.refuse("temperature", "expected a number above 0")
        if why := check_layer_map(self.layers):
            raise self.refuse("layers", why)
        for option in ("outputs", "teacher_inputs"):
            if isinstance(name := getattr(self, option), str):
                object.__setattr__(self, option, (name,))
        if self.cached and set(self.terms) & NEEDS_ATTENTION:
            raise self.refuse("cached", "terms of attention cannot be cached")
        if self.cached and self.teacher_mode == "train":
            raise self.refuse("cached", "a teacher with dropout gives other values in each step")

    @property
    def terms(self) -> tuple[str, ...]:
        """The terms that are on."""
        return tuple(term for term in TERMS if getattr(self, term) > 0)

    @property
    def idle(self) -> tuple[str, ...]:
        """Options that were given, though no term that is on reads them."""
        heats = self.logits_loss not in ("mse", "cosine")
        read_by = {
            "temperature": {"logits"} if heats else set(),
            "logits_loss": {"logits"},
            "logits_mean": {"logits"},
            "probabilities_loss": {"probabilities"},
            "normalise_cls": {"cls"},
            "layers": NEEDS_LAYERS,
        }
        given = {f.name for f in dataclasses.fields(self) if getattr(self, f.name) != f.default}
        return tuple(n for n, terms in read_by.items() if n in given and not terms & {*self.terms})

    def taught(self, student: Program, teacher: Program) -> dict[str, fx.Node]:
        """Return the node of the teacher for each input that ``cached`` added to the student."""
        return taught_outputs(student, teacher, self.outputs) if self.cached else {}

    def check_programs(self, program: Program, programs: Mapping[str, Program]) -> None:
        """Check heads, inputs, vocabularies and layers of student and teacher."""
        compares = bool((NEEDS_LAYERS | {"logits"}) & set(self.terms))
        check_fit(self, program, programs.get(self.teacher) if compares else None)

    def run(self, program: Program, ctx: PassContext) -> PassReport:
        """Join the teacher and build the loss."""
        builder = _Builder(self, program, ctx)
        rw = ctx.rewriter
        with rw.before(program.graph.output_node()):
            scope = builder.scope()
            values = {term: TERMS[term](scope) for term in self.terms}
            weighted = [
                value if getattr(self, term) == 1 else _scaled(ctx, value, getattr(self, term))
                for term, value in values.items()
            ]
            loss = scope.total(weighted)
        rw.set_output(LOSS, loss)
        for term, value in values.items():
            rw.set_output(f"{LOSS}.{term}", value)
        program.active = (*program.active, self)
        return PassReport(len(values), notes=tuple(builder.notes))


def _scaled(ctx: PassContext, value: fx.Node, weight: float) -> fx.Node:
    return ctx.rewriter.call(torch.ops.aten.mul.Tensor, value, weight)


class _Builder:
    """Brings together what the terms need, checking that it fits."""

    def __init__(self, item: Distill, program: Program, ctx: PassContext) -> None:
        self.item, self.program, self.ctx = item, program, ctx
        self.notes = [f"{option}: no term that is on reads it" for option in item.idle]
        self.needs_layers = bool(NEEDS_LAYERS & set(item.terms))
        self.joins = (self.needs_layers or item.logits > 0) and not item.cached
        self.teacher = self._given_teacher() if self.joins else None
        self.student_encoder = program.facts(EncoderStructure)
        self.known = self.teacher
        if item.cached:
            self.known = ctx.programs.get(item.teacher)
        if item.cached and self.needs_layers:
            self.known = ctx.program(item.teacher, who=item.name)
        check_fit(item, program, self.known)
        self.specs: list[InputSpec] = []
        if self.teacher is not None:
            self.specs = check_inputs(program, self.teacher, item.teacher_inputs)

    def _given_teacher(self) -> Program:
        teacher = self.ctx.program(self.item.teacher, who=self.item.name)
        needs = bool(_NEEDS_SCORES & set(self.item.terms))
        if needs and Property.EXPLICIT_ATTENTION not in teacher.properties:
            explicit = Pipeline((DecomposeAttention(on_no_match="ignore"),))
            # It writes to no tensor, and what is joined is copied.
            teacher = explicit.run(teacher.copy(share_tensors=True), in_place=True)
        return teacher

    def scope(self) -> Scope:
        """Return what the terms see; adds inputs and the teacher's logits."""
        item, rw = self.item, self.ctx.rewriter
        ours = self.program.outputs()
        logits = {name: ours[name] for name in logits_outputs(self.program, item.outputs)}
        specs = label_inputs(self.program, item.outputs)
        for spec in self.specs:
            rw.add_input(spec)
        if (item.logits or item.labels) and not item.outputs:
            self._tell_left_out()
        if item.logits and item.logits_loss == "auto":
            self._tell_auto()
        joined: Joined | None = None
        taught: Callable[[fx.Node], fx.Node] = _no_teacher
        if self.teacher is not None:
            taught = joined = Joined(rw, self.teacher, trains=item.teacher_mode == "train")
        elif self.needs_layers and self.known is not None:
            taught = Given(rw, self.known)
        pairs, ends = self._pairs()
        return Scope(
            rw=rw,
            options=item,
            multi_label=self.program.multi_label,
            logits=logits,
            targets=self._targets(logits, joined) if item.logits else {},
            labels=self._labels(specs) if item.labels else {},
            pairs=pairs,
            ends=ends,
            taught=taught,
            tokens=self._tokens(logits),
        )

    def _tell_left_out(self) -> None:
        if names := left_out(self.program):
            self.notes.append(f"{', '.join(names)}: not compared; outputs=... chooses what is")

    def _tell_auto(self) -> None:
        names = logits_outputs(self.program, self.item.outputs)
        values = [name for name in names if classes(self.program, name) == 1]
        if self.program.multi_label and len(values) < len(names):
            self.notes.append("a text has any number of classes, so logits_loss is 'bce'")
        if values:
            self.notes.append(
                f"{', '.join(values)}: one value and no classes, so logits_loss is 'mse'"
            )

    def _pairs(self) -> tuple[tuple[Pair, ...], tuple[Pair, ...]]:
        if not self.needs_layers or self.known is None:
            return (), ()
        return paired_layers(self.item, self.student_encoder, self.known.facts(EncoderStructure))

    def _targets(self, logits: dict[str, fx.Node], joined: Joined | None) -> dict[str, fx.Node]:
        if joined is None or self.teacher is None:
            return {name: self._cached_input(name, node) for name, node in logits.items()}
        theirs = self.teacher.outputs()
        names = match_heads(self.program, self.teacher, self.item.outputs)
        return {
            name: self._shaped(joined(theirs[other]), theirs[other], logits[name])
            for name, other in names.items()
        }

    def _shaped(self, copy: fx.Node, theirs: fx.Node, ours: fx.Node) -> fx.Node:
        """Return the teacher's values as [batch] or [batch, 1], as the student's are."""
        rank, wanted = theirs.meta["val"].dim(), ours.meta["val"].dim()
        if rank == wanted:
            return copy
        aten = torch.ops.aten
        shape = aten.squeeze.dim if rank > wanted else aten.unsqueeze.default
        return self.ctx.rewriter.call(shape, copy, -1)

    def _cached_input(self, name: str, node: fx.Node) -> fx.Node:
        fact = self.program.shape_of(node)
        if fact is None:
            raise PassError(f"the output {name!r} is no tensor", who="distill", where=name)
        spec = InputSpec(f"{TAUGHT}{name}", fact.dtype, fact.dims)
        return self.ctx.rewriter.add_input(spec)

    def _labels(self, specs: dict[str, InputSpec]) -> dict[str, fx.Node]:
        return {name: self.ctx.rewriter.add_input(spec) for name, spec in specs.items()}

    def _tokens(self, logits: dict[str, fx.Node]) -> fx.Node | None:
        per_token = any(
            node.meta["val"].dim() == 3 or over_positions(name, node)
            for name, node in logits.items()
        )
        if not self.item.mask_padding or not (self.needs_layers or per_token):
            return None
        name = self.student_encoder.attention_mask
        found = list(self.program.graph.find_nodes(op="placeholder", target=name or ""))
        if not found or found[0].meta["val"].dim() != 2:
            self.notes.append("no attention mask input: padding, if any, counts in every term")
            return None
        if not marks_tokens(self.program, str(found[0].target)):
            self.notes.append(
                f"{found[0].target} is not 1 for tokens and 0 for padding: padding, if any, counts "
                "in every term"
            )
            return None
        return self.ctx.rewriter.call(torch.ops.aten.to.dtype, found[0], torch.float32)


def _no_teacher(node: fx.Node) -> fx.Node:
    raise PassError(f"there is no teacher to take %{node.name} from", who="distill")
