"""The data of a session as tokens, and the scoring of Programs on it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sparsefx.errors import DataError, TrainingError
from sparsefx.graph.subgraph import subgraph
from sparsefx.inputs.signature import LOSS, TAUGHT
from sparsefx.program import Program
from sparsefx.recipe import Training
from sparsefx.train.data.batches import UNLABELLED, Encoded, Tell, encode, evaluation_batches
from sparsefx.train.data.examples import Examples
from sparsefx.train.data.tasks import Task
from sparsefx.train.data.words import stacked
from sparsefx.train.metrics import LEAST_BATCHES, Score, evaluate, mean_loss
from sparsefx.train.sizes import check_sizes, fixed_batch, scored_sizes

__all__ = [
    "SessionData",
    "TokenData",
    "head_outputs",
    "inputs_for",
    "logits_name",
    "losses",
    "predict",
    "predict_by",
    "predicts_tokens",
    "scored",
]

Predictor = Callable[[Mapping[str, Tensor]], Tensor]


@dataclass(frozen=True)
class SessionData:
    """What a session trains on.

    Attributes:
        task: Has the splits 'train' and 'test'; without labels it is a ``tasks.text_task``, and
            ``Task.taught_on`` gives one that is scored on labels and trained without.
        tokenizer: A transformers tokenizer.
        unlabelled: Texts that distilling stages may train on besides.
    """

    task: Task
    tokenizer: Any
    unlabelled: Examples | None = None


class TokenData:
    """The texts of a session as tokens, made when they are first needed.

    Args:
        source: Texts and tokenizer.
        max_length: Longest sequence in tokens.
    """

    def __init__(self, source: SessionData, max_length: int) -> None:
        self.task = source.task
        self._source = source
        self._max_length = max_length

    @cached_property
    def labelled(self) -> Encoded:
        """The training split, which may have no labels."""
        return self._encode(self.task.split("train"))

    @cached_property
    def test(self) -> Encoded:
        """The split that is scored."""
        return self._encode(self.task.split("test"))

    @property
    def test_labels(self) -> NDArray[np.float64]:
        """Labels of the test split, as :meth:`Encoded.scored_labels` gives them.

        Raises:
            TrainingError: It has none.
        """
        labels = self.test.scored_labels()
        if labels is None:
            raise TrainingError("the test split has no labels", who="session", where=self.task.name)
        return labels

    def of(self, training: Training) -> Encoded:
        """Return what a stage trains on.

        Raises:
            TrainingError: It wants unlabelled texts alone, and there are none.
        """
        if training.data == "labelled":
            return self.labelled
        if training.data == "labelled+unlabelled":
            return self.everything
        if self.unlabelled is None and self.labelled.labels is None:
            return self.labelled
        if self.unlabelled is None:
            raise TrainingError(
                "a stage trains on unlabelled texts, and there are none",
                who="session",
                where=self.task.name,
                hint="give SessionData(unlabelled=...), or --unlabelled FILE",
            )
        return self.unlabelled

    @cached_property
    def unlabelled(self) -> Encoded | None:
        """The texts without labels, if there are any."""
        found = self._source.unlabelled
        return None if found is None else self._encode(replace(found, labels=None))

    @cached_property
    def everything(self) -> Encoded:
        """The training split and the unlabelled texts, if there are any."""
        return self.labelled if self.unlabelled is None else self.labelled.joined(self.unlabelled)

    def _encode(self, examples: Examples) -> Encoded:
        found = encode(self._source.tokenizer, examples, self._max_length)
        if self.task.kind == "classification" and isinstance(found.labels, Tensor):
            return replace(found, labels=found.labels.long())
        return found

    def example(self) -> dict[str, Tensor]:
        """Return a batch of two test examples, to capture a model with."""
        batch = self.test.collate([0, min(1, len(self.test) - 1)])
        batch.pop("labels", None)
        return batch


def inputs_for(program: Program, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return what ``program`` takes of a batch; token types that a tokenizer omits are 0.

    Raises:
        TrainingError: The Program takes an input that a tokenizer does not give.
    """
    return _chosen(program.signature.input_names, batch)


def _chosen(names: Sequence[str], batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
    found = {}
    for name in names:
        if name in batch:
            found[name] = batch[name]
        elif name == "token_type_ids":
            found[name] = torch.zeros_like(batch["input_ids"])
        else:
            capture = f"capture it with {', '.join(batch)} alone"
            strip = "a teacher computes it: strip-distillation in 'after' takes the input out"
            raise TrainingError(
                f"the model takes {name!r}, which the data do not have",
                who="session",
                where=name,
                hint=strip if name.startswith(TAUGHT) else capture,
            )
    return found


def logits_name(program: Program) -> str:
    """Return the output that holds the predictions: ``logits``, or the only one beside losses.

    Raises:
        TrainingError: There is no such output.
    """
    signature = program.signature
    outputs = [name for name in signature.outputs if name not in signature.losses]
    if "logits" in outputs or len(outputs) == 1:
        return "logits" if "logits" in outputs else outputs[0]
    raise TrainingError(
        f"none of the outputs {', '.join(outputs)} is called 'logits'",
        who="session",
        hint="train a model with a classification or regression head",
    )


def head_outputs(program: Program, *, per_word: bool | None = None) -> int | None:
    """Return how many values are predicted for a text, or for a token; None when not known.

    Args:
        program: The model.
        per_word: Whether labels are those of words, if anybody knows.

    Raises:
        TrainingError: There is no output of predictions.
        DataError: It predicts for tokens and the labels are those of texts, or the reverse.
    """
    name, dims = _head_shape(program)
    if dims and per_word is not None and per_word != (len(dims) > 2):
        raise _other_head(name, ", ".join(map(str, dims)), per_word=per_word)
    if len(dims) == 1:
        return 1  # [batch], a value for each text
    return dims[-1] if dims and isinstance(dims[-1], int) else None


def predicts_tokens(program: Program) -> bool:
    """Whether something is predicted for each token, not for each text."""
    return len(_head_shape(program)[1]) > 2


def _head_shape(program: Program) -> tuple[str, tuple[Any, ...]]:
    """Return the output of predictions and its shape; () when that is not known."""
    name = logits_name(program)
    fact = program.shape_of(program.outputs()[name])
    return name, fact.dims if fact is not None else ()


def _other_head(name: str, shape: str, *, per_word: bool) -> DataError:
    labels, found = ("words", "a text") if per_word else ("texts", "each token")
    hint = (
        "give a model with a classification or regression head, which says one thing of a text; "
        "this one learns from labels of words, or on text alone (docs/recipes.md)"
    )
    if per_word:
        hint = "give a model that AutoModelForTokenClassification loads"
    return DataError(
        f"labels of {labels} cannot be compared with what is predicted for {found}, the output "
        f"{name!r} of shape [{shape}]",
        who="model",
        where=name,
        hint=hint,
    )


def predictor(program: Program) -> tuple[Predictor, tuple[str, ...]]:
    """Return a function that computes the logits alone, and the names of the inputs it reads.

    A teacher in the graph is not run, and what a loss reads, such as the outputs of a teacher or
    labels, is no input. The function reads the tensors of ``program``, and its mode.
    """
    logits = logits_name(program)
    compute, inputs = subgraph(program.module, {logits: program.outputs()[logits]})

    def run(batch: Mapping[str, Tensor]) -> Tensor:
        return compute(batch)[logits]

    return run, inputs


def losses(
    program: Program, data: Encoded, batch_size: int, seed: int = 0, tell: Tell | None = None
) -> Score:
    """Return the mean of what ``program`` minimises, ``loss`` and its terms, in evaluation mode.

    What is drawn in the graph, such as which tokens are masked, is drawn from ``seed``: two
    Programs, or two evaluations of one, meet the same. So are the examples of each batch, since
    the interval is drawn over batches: a loss in the graph is one number for all of a batch. Where
    that leaves fewer than twice ``LEAST_BATCHES``, batches are smaller, but not below
    four examples, of which a masked-language loss may see no token. A Program that was captured
    with a fixed batch gets batches of that size, and not the examples that fill none. ``tell`` is
    called after each batch.

    Raises:
        TrainingError: It has no output ``loss``, or takes larger batches than there are examples.
    """
    names = program.signature.losses
    if LOSS not in names:
        raise TrainingError("the model returns no loss to score it by", who="session")
    device = program.device
    sizes: list[int] = []
    found: list[dict[str, float]] = []
    with program.evaluating(), torch.random.fork_rng():
        torch.manual_seed(seed)
        batches = _drawn_batches(program, len(data), batch_size, seed)
        total = sum(map(len, batches))
        for rows in batches:
            inputs = inputs_for(program, data.collate(rows))
            outputs = program(**{name: value.to(device) for name, value in inputs.items()})
            found.append({name: float(outputs[name]) for name in names})
            sizes.append(len(rows))
            if tell is not None:
                tell(sum(sizes), total)
    return mean_loss(
        [{n.removeprefix(f"{LOSS}."): v for n, v in each.items()} for each in found], sizes
    )


def _drawn_batches(
    program: Program, count: int, batch_size: int, seed: int
) -> list[NDArray[np.int64]]:
    order = np.random.default_rng(seed).permutation(count)
    fixed = fixed_batch(program)
    size = fixed or min(batch_size, max(4, count // (2 * LEAST_BATCHES)))
    found = [order[start : start + size] for start in range(0, count, size)]
    whole = [rows for rows in found if fixed is None or len(rows) == fixed]
    if not whole:
        raise TrainingError(
            f"the model takes batches of {fixed} examples alone, and there are {count}",
            who="session",
            hint="capture it with a dynamic batch, or give more texts",
        )
    return whole


def scored(
    program: Program, data: TokenData, test: Encoded, batch_size: int, tell: Tell | None = None
) -> tuple[Score, NDArray[np.float32] | None]:
    """Return the score by the metric of a task, and the logits where it is not the loss.

    ``test`` is the test split, for the loss with what a teacher gave for it.
    """
    task = data.task
    if task.metric == "loss":
        return losses(program, test, batch_size, tell=tell), None
    logits = predict(program, data.test, batch_size, tell=tell)
    labels = data.test_labels
    return evaluate(task.metric, logits.astype(np.float64), labels, classes=task.classes), logits


def predict(
    program: Program,
    data: Encoded,
    batch_size: int,
    compiled: Callable[..., Mapping[str, Tensor]] | None = None,
    *,
    bf16: bool = False,
    tell: Tell | None = None,
) -> NDArray[np.float32]:
    """Return the logits for all examples, in fp32 and evaluation mode.

    A Program that was captured with a fixed batch gets batches of that size, the last one filled
    with texts that come again and are not looked at.

    Args:
        program: The model.
        data: The examples.
        batch_size: Examples in a batch.
        compiled: The same model lowered to a target, to be run instead.
        bf16: Compute under autocast, as a stage with ``precision: bf16`` does.
        tell: Called after each batch.

    Returns:
        Of shape (examples, outputs), in the order of ``data``; where words have labels, of shape
        (examples, most words, outputs), those of an example first.

    Raises:
        TrainingError: The Program does not take batches of such sizes.
    """
    fixed = fixed_batch(program)
    check_sizes(program, data, scored_sizes(program, len(data), batch_size), where="prediction")
    run, inputs = predictor(program)
    if compiled is not None:
        output, inputs = logits_name(program), program.signature.input_names

        def run(batch: Mapping[str, Tensor]) -> Tensor:
            return compiled(**batch)[output]

    device = program.device

    def moved(batch: Mapping[str, Tensor]) -> Tensor:
        return run({name: value.to(device) for name, value in batch.items()})

    cast = torch.autocast(device.type, torch.bfloat16, enabled=bf16)
    with program.evaluating(), cast:
        return predict_by(
            moved, inputs, data, fixed or batch_size, filled=fixed is not None, tell=tell
        )


def predict_by(
    run: Predictor,
    inputs: Sequence[str],
    data: Encoded,
    batch_size: int,
    *,
    filled: bool = False,
    tell: Tell | None = None,
) -> NDArray[np.float32]:
    """Return what ``run`` gives for all examples, as :func:`predict` does.

    Args:
        run: From a batch to logits, of shape (rows, outputs), or (rows, tokens, outputs).
        inputs: Names of what it takes.
        data: The examples.
        batch_size: Examples in a batch.
        filled: Whether it takes batches of that size alone.
        tell: Called after each batch.
    """
    results: list[NDArray[np.float32]] = [np.empty(0, dtype=np.float32)] * len(data)
    words = data.labels if isinstance(data.labels, tuple) else None
    known = [each != UNLABELLED for each in words or ()]
    for rows, batch in evaluation_batches(data, batch_size, filled=filled, tell=tell):
        found = run(_chosen(inputs, batch)).float().cpu().numpy()
        for row, logits in zip(rows, found, strict=False):  # behind them, some come again
            results[row] = logits if words is None else logits[: len(known[row])][known[row]]
    return np.stack(results) if words is None else stacked(results, 0.0)
