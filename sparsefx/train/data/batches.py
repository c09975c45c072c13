"""Token sequences and length-bucketed batches, in an order that can be resumed anywhere.

The order of an epoch is a pure function of (seed, epoch, lengths, batch size). So a position is
three integers, :class:`Position`, and a run that was killed draws, once its position is restored,
exactly the batches that it would have drawn.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from sparsefx.errors import DataError
from sparsefx.inputs.lengths import check_length
from sparsefx.train.data.cut import refuse_lost, tell_cut
from sparsefx.train.data.examples import Examples, Label
from sparsefx.train.data.words import UNLABELLED, Ints, check_offsets, labels_of_tokens, stacked

__all__ = [
    "UNLABELLED",
    "Batches",
    "Encoded",
    "Position",
    "Tell",
    "TokenValues",
    "check_tokens",
    "encode",
    "evaluation_batches",
    "known_labels",
]

Batch = dict[str, torch.Tensor]
Tell = Callable[[int, int], None]
"""Is told how many of how many texts a model has run over."""
_POOL = 50  # batches that are sorted by length together


@dataclass(frozen=True)
class TokenValues:
    """Values of every token of every example, without padding.

    Attributes:
        values: Of shape (tokens of all examples, width), example after example.
        starts: Where each example begins, and the end of the last, of shape (examples + 1,).
    """

    values: NDArray[np.float16]
    starts: Ints

    def collate(self, rows: Sequence[int] | Ints, longest: int) -> torch.Tensor:
        """Return the rows padded by zeros, float32 of shape (rows, longest, width)."""
        found = torch.zeros(len(rows), longest, self.values.shape[1])
        for place, row in enumerate(rows):
            part = self.values[self.starts[row] : self.starts[row + 1]]
            found[place, : len(part)] = torch.from_numpy(part.astype(np.float32))
        return found


@dataclass(frozen=True)
class Encoded:
    """Token sequences without padding.

    Attributes:
        tokens: Token ids of every example, each of shape (length,), int64.
        types: Token type ids of every example, likewise; None when the model takes none.
        labels: Of shape (examples,), int64 classes (``UNLABELLED`` where there is none) or
            float32 values (NaN where there is none); of shape (examples, classes), float32, 0 or 1
            for each class (NaN likewise); or of every token, as ``tokens``, the class of the word
            that begins there, elsewhere ``UNLABELLED``. None when no example has a label.
        pad: Id of the padding token.
        more: Further inputs by name, such as outputs of a teacher: of shape (examples, ...), or
            values of tokens.
    """

    tokens: tuple[Ints, ...]
    types: tuple[Ints, ...] | None
    labels: torch.Tensor | tuple[Ints, ...] | None
    pad: int
    more: Mapping[str, torch.Tensor | TokenValues] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.tokens)

    @property
    def lengths(self) -> Ints:
        """Tokens of every example, of shape (examples,)."""
        return np.array([len(each) for each in self.tokens], dtype=np.int64)

    def collate(self, rows: Sequence[int] | Ints) -> Batch:
        """Return the rows padded to the longest of them: what a model is called with.

        Args:
            rows: Indices of the examples.

        Returns:
            ``input_ids``, ``attention_mask`` and, where the model takes them, ``token_type_ids``,
            each int64 of shape (rows, longest); ``labels`` if there are any, of shape (rows,),
            (rows, classes) or (rows, longest); and what there is ``more``.
        """
        lengths = torch.tensor([len(self.tokens[row]) for row in rows])
        longest = int(lengths.max())
        batch = {
            "input_ids": _padded(self.tokens, rows, longest, self.pad),
            "attention_mask": (torch.arange(longest) < lengths[:, None]).long(),
        }
        if self.types is not None:
            batch["token_type_ids"] = _padded(self.types, rows, longest, 0)
        chosen = torch.as_tensor(np.asarray(rows))
        if isinstance(self.labels, tuple):
            batch["labels"] = _padded(self.labels, rows, longest, UNLABELLED)
        elif self.labels is not None:
            batch["labels"] = self.labels[chosen]
        for name, values in self.more.items():
            if isinstance(values, TokenValues):
                batch[name] = values.collate(rows, longest)
            else:
                batch[name] = values[chosen]
        return batch

    def first(self, count: int) -> Encoded:
        """Return the first examples alone, without labels and what there is more."""
        return Encoded(self.tokens[:count], self.types and self.types[:count], None, self.pad)

    def scored_labels(self) -> NDArray[np.float64] | None:
        """Return the labels that predictions are held against; None when there are none.

        Of shape (examples,) or (examples, classes); or of words, (examples, most words), filled up
        with ``UNLABELLED`` at the end of each example.
        """
        if self.labels is None:
            return None
        if isinstance(self.labels, tuple):
            words = [each[each != UNLABELLED] for each in self.labels]
            return stacked(words, UNLABELLED).astype(np.float64)
        return self.labels.numpy().astype(np.float64)

    def joined(self, other: Encoded) -> Encoded:
        """Return both sets as one; examples without a label get ``UNLABELLED``, or NaN."""
        types = None
        if self.types is not None and other.types is not None:
            types = self.types + other.types
        return Encoded(self.tokens + other.tokens, types, _joined_labels(self, other), self.pad)


def encode(tokenizer: Any, examples: Examples, max_length: int) -> Encoded:
    """Tokenize examples, truncated to ``max_length`` tokens and not padded; tell how many are cut.

    Padding, truncation and length are always passed on: a tokenizer file may have its own built
    in, which would pad every sentence to 128 tokens.

    Args:
        tokenizer: A transformers tokenizer.
        examples: Sentences or pairs.
        max_length: Longest sequence, special tokens included.

    Raises:
        DataError: There are no examples, or one without a token; the tokenizer is none that can be
            used; or ``max_length`` leaves no token, or no word that has a label.
    """
    if not len(examples):
        raise DataError("there are no examples", who="encode", where=examples.origin)
    _check_tokenizer(tokenizer)
    added = tokenizer.num_special_tokens_to_add(pair=examples.pairs is not None)
    least = added + (1 if examples.pairs is None else 2)
    if max_length < least:
        raise DataError(
            f"max_length {max_length} leaves nothing of a text: {added} special tokens are added",
            who="encode",
            where=examples.origin,
            hint=f"set max_length to {least} or more, in the data of the recipe or by "
            "--max-length; 128 is usual",
        )
    per_word = examples.per_word
    if per_word:
        check_offsets(tokenizer, examples)
    coded = tokenizer(
        list(examples.texts),
        None if examples.pairs is None else list(examples.pairs),
        padding=False,
        truncation=True,
        max_length=max_length,
        return_offsets_mapping=per_word,
    )
    refuse_lost(examples, coded["input_ids"])
    tell_cut(tokenizer, examples, coded["input_ids"], max_length)
    types = coded.get("token_type_ids")
    offsets = coded.get("offset_mapping")
    return Encoded(
        tokens=_arrays(coded["input_ids"]),
        types=None if types is None else _arrays(types),
        labels=labels_of_tokens(examples, offsets) if per_word else _label_tensor(examples.labels),
        pad=int(tokenizer.pad_token_id),
    )


def _check_tokenizer(tokenizer: Any) -> None:
    wanted = ("__call__", "pad_token_id", "num_special_tokens_to_add", "save_pretrained")
    lacking = [name for name in wanted if not hasattr(tokenizer, name)]
    if lacking:
        raise DataError(
            f"{type(tokenizer).__name__} is no tokenizer of transformers: it has no {lacking[0]}",
            who="encode",
            where="tokenizer",
            hint="PreTrainedTokenizerFast(tokenizer_object=...) makes one of any table of words, "
            "as docs/recipes.md does; ids of your own train in your own loop",
        )
    if tokenizer.pad_token_id is None:
        known = tokenizer.get_vocab()
        usual = ("[PAD]", "<pad>", tokenizer.eos_token, tokenizer.unk_token)
        token = next((each for each in usual if each in known), next(iter(known), "[PAD]"))
        raise DataError(
            "the tokenizer has no padding token, which fills up the shorter texts of a batch",
            who="encode",
            where=getattr(tokenizer, "name_or_path", "") or "tokenizer",
            hint=f'write "pad_token": "{token}", or another token that it knows, into its '
            f"tokenizer_config.json; in Python tokenizer.pad_token = {token!r}",
        )


def check_tokens(data: Encoded, config: Mapping[str, Any]) -> None:
    """Refuse token sequences that the model has no table rows for.

    Args:
        data: Any token sequences.
        config: Hugging Face configuration of the model; an empty one allows everything.

    Raises:
        DataError: A sequence is longer than the positions, or an id outside the vocabulary.
    """
    check_length(config, int(data.lengths.max()))
    rows = config.get("vocab_size")
    highest = max(int(ids.max()) for ids in data.tokens)
    if isinstance(rows, int) and highest >= rows:
        raise DataError(
            f"the tokenizer gives the id {highest}; the model's vocabulary has {rows} entries",
            who="tokens",
            hint="take the tokenizer that the model was trained with",
        )


@dataclass(frozen=True)
class Position:
    """Where a run stands in its data: ``index`` batches of ``epoch`` have been drawn."""

    seed: int
    epoch: int = 0
    index: int = 0


class Batches:
    """An endless, deterministic stream of training batches of about equal length.

    Args:
        data: The examples.
        batch_size: Examples of a batch; the last one of an epoch may be smaller.
        seed: Seed of the order.

    >>> data = Encoded(tuple(np.arange(1, n) for n in (4, 9, 3, 8)), None, None, pad=0)
    >>> stream = Batches(data, batch_size=2, seed=0)
    >>> sorted(tuple(next(stream)["input_ids"].shape) for _ in range(len(stream)))
    [(2, 3), (2, 8)]
    >>> stream.position
    Position(seed=0, epoch=1, index=0)
    """

    def __init__(self, data: Encoded, batch_size: int, seed: int) -> None:
        if batch_size < 1 or not len(data):
            raise DataError(
                f"no batches of {batch_size} can be drawn from {len(data)} examples", who="batches"
            )
        self.examples = data
        self.batch_size = batch_size
        self._lengths = data.lengths
        self.restore(Position(seed))

    def __len__(self) -> int:
        """Return the batches of an epoch."""
        return -(-len(self.examples) // self.batch_size)

    def __iter__(self) -> Iterator[Batch]:
        return self

    def __next__(self) -> Batch:
        rows = self._order[self.position.index]
        self._advance()
        return self.examples.collate(rows)

    @property
    def upcoming(self) -> Ints:
        """The examples of the next batch."""
        return self._order[self.position.index]

    def restore(self, position: Position) -> None:
        """Go on from a position: the next batch drawn is its batch ``index``.

        Raises:
            DataError: An epoch has no such batch: the data or the batch size are others.
        """
        if not 0 <= position.index < len(self):
            raise DataError(
                f"batch {position.index} is not one of the {len(self)} of an epoch",
                who="batches",
                hint="the data or the batch size differ from those of the saved run",
            )
        self.position = position
        self._order = self._epoch(position.epoch)

    def state_dict(self) -> dict[str, int]:
        """Return the position as plain integers, for a checkpoint."""
        return asdict(self.position)

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Restore what :meth:`state_dict` returned."""
        self.restore(Position(**state))

    def _advance(self) -> None:
        self.position = replace(self.position, index=self.position.index + 1)
        if self.position.index == len(self):
            self.restore(Position(self.position.seed, self.position.epoch + 1))

    def _epoch(self, epoch: int) -> list[Ints]:
        """Shuffle, sort by length inside pools of batches, then shuffle the batches."""
        generator = np.random.default_rng([self.position.seed, epoch])
        rows = generator.permutation(len(self.examples))
        size = self.batch_size
        order: list[Ints] = []
        for start in range(0, len(rows), size * _POOL):
            pool = rows[start : start + size * _POOL]
            pool = pool[np.argsort(self._lengths[pool], kind="stable")]
            order += [pool[at : at + size] for at in range(0, len(pool), size)]
        return [order[place] for place in generator.permutation(len(order))]


def evaluation_batches(
    data: Encoded, batch_size: int, *, filled: bool = False, tell: Tell | None = None
) -> Iterator[tuple[Ints, Batch]]:
    """Yield (rows, batch) over all examples once, from short to long.

    ``filled``: the last batch is as large as the others; behind its rows some come again.
    ``tell``: called after each batch.
    """
    order = np.argsort(data.lengths, kind="stable")
    for start in range(0, len(order), batch_size):
        rows = order[start : start + batch_size]
        yield rows, data.collate(np.resize(rows, batch_size) if filled else rows)
        if tell is not None:
            tell(start + len(rows), len(order))


def _arrays(sequences: Sequence[Sequence[int]]) -> tuple[Ints, ...]:
    return tuple(np.asarray(each, dtype=np.int64) for each in sequences)


def _padded(
    sequences: Sequence[Ints], rows: Sequence[int] | Ints, longest: int, fill: int
) -> torch.Tensor:
    found = torch.full((len(rows), longest), fill, dtype=torch.int64)
    for place, row in enumerate(rows):
        found[place, : len(sequences[row])] = torch.from_numpy(sequences[row])
    return found


def _label_tensor(labels: tuple[Label, ...] | None) -> torch.Tensor | None:
    if labels is None:
        return None
    kind = torch.int64 if all(isinstance(value, int) for value in labels) else torch.float32
    return torch.tensor(labels, dtype=kind)


def known_labels(labels: torch.Tensor) -> torch.Tensor:
    """Return where there is a label: bool, shaped as ``labels``."""
    return ~labels.isnan() if labels.is_floating_point() else labels != UNLABELLED


def _joined_labels(first: Encoded, second: Encoded) -> torch.Tensor | tuple[Ints, ...] | None:
    known = next((each.labels for each in (first, second) if each.labels is not None), None)
    if known is None:
        return None
    if isinstance(known, tuple):
        parts = (each.labels or _unlabelled(each.tokens) for each in (first, second))
        return tuple(row for part in parts for row in part)
    none = float("nan") if known.is_floating_point() else UNLABELLED
    blank = known.new_full((), none)
    return torch.cat(
        [
            each.labels
            if isinstance(each.labels, torch.Tensor)
            else blank.expand(len(each), *known.shape[1:])
            for each in (first, second)
        ]
    )


def _unlabelled(tokens: Sequence[Ints]) -> tuple[Ints, ...]:
    return tuple(np.full(len(each), UNLABELLED, dtype=np.int64) for each in tokens)
