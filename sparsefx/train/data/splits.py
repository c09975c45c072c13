"""Which examples a model trains on and which it is scored on, and which texts count as the same."""

from __future__ import annotations

import random
import re
from collections.abc import Mapping

from sparsefx.errors import DataError
from sparsefx.train.data.examples import Examples

__all__ = ["hold_back", "text_key", "with_test"]

_WHO = "task"


def with_test(
    splits: Mapping[str, Examples], share: float, seed: int, *, where: str
) -> dict[str, Examples]:
    """Return the splits with one named 'test': 'validation', 'dev', or a part of the only one.

    Args:
        splits: Split name -> examples.
        share: Of the only split, or of 'train', that is held back.
        seed: Seed of the hold-back.
        where: The task, for messages.

    Raises:
        DataError: There are several splits and none is known; or nothing can be held back.
    """
    if "test" in splits:
        return dict(splits)
    for other in ("validation", "dev", "validation_matched"):
        if other in splits:
            return {**splits, "test": splits[other]}
    if "train" not in splits and len(splits) > 1:
        raise DataError(
            f"none of the splits {', '.join(map(repr, splits))} is 'train' or 'test'",
            who=_WHO,
            where=where,
            hint="name the one to train on 'train', and the one to score on 'test'",
        )
    train = splits.get("train") or next(iter(splits.values()))
    rest, held = hold_back(
        train,
        round(share * len(train)),
        seed,
        hint="give more examples, or files for both: --data train=FILE --data test=FILE; in Python "
        "load_task({'train': ..., 'test': ...}), or another test_share",
    )
    others = {name: split for name, split in splits.items() if split is not train}
    return {**others, "train": rest, "test": held}


def hold_back(
    examples: Examples, count: int, seed: int = 0, *, hint: str = "give more of them"
) -> tuple[Examples, Examples]:
    """Split examples into (rest, held back), fixed by ``seed``.

    It is stratified by class, or by the whole numbers next to values, where a text has one.

    Texts are compared by :func:`text_key`; of several alike only the first is used, so that no
    held-back text is also in the rest. ``hint`` is what the error says to do.

    Raises:
        DataError: ``count`` leaves no example on one of the two sides.
    """
    seen: set[str] = set()
    groups: dict[float, list[int]] = {}
    for row in range(len(examples)):
        key = _example_key(examples, row)
        if key not in seen:
            seen.add(key)
            groups.setdefault(_stratum(examples, row), []).append(row)
    if not 0 < count < len(seen):
        raise DataError(
            f"{count} of {len(seen)} different examples cannot be held back",
            who=_WHO,
            where=examples.origin,
            hint=hint,
        )
    held: list[int] = []
    rest: list[int] = []
    generator = random.Random(seed)
    left, wanted = len(seen), count
    for stratum in sorted(groups):
        rows = groups[stratum]
        generator.shuffle(rows)
        take = round(wanted * len(rows) / left)
        left, wanted = left - len(rows), wanted - take
        held += rows[:take]
        rest += rows[take:]
    return examples.select(sorted(rest)), examples.select(sorted(held))


def text_key(text: str) -> str:
    """Return what two texts must share to count as the same: letters and digits, in lower case.

    >>> text_key("A  gorgeous , witty film .")
    'a gorgeous witty film'
    """
    return " ".join(re.findall(r"\w+", text.lower()))


def _example_key(examples: Examples, row: int) -> str:
    second = "" if examples.pairs is None else examples.pairs[row]
    return f"{text_key(examples.texts[row])}\t{text_key(second)}"


def _stratum(examples: Examples, row: int) -> float:
    label = 0.0 if examples.labels is None else examples.labels[row]
    return 0.0 if isinstance(label, tuple) else float(round(label))
