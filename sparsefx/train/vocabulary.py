"""Whether token ids mean the same to a recipe, to the tokenizer of a run and to other models."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable, Iterator, Mapping
from itertools import chain, islice
from pathlib import Path
from typing import Any

from sparsefx.errors import ArtifactError, RecipeError, TrainingError, first_line
from sparsefx.huggingface import load_tokenizer
from sparsefx.passbase import Pass
from sparsefx.program import Program
from sparsefx.storage.files import read_json
from sparsefx.storage.places import is_tokenizer
from sparsefx.train.differences import differences

__all__ = ["check_hidden_tokens", "check_kept_tokenizer", "check_same_tokens", "warn_of_segments"]

_FILE, _CONFIG = "tokenizer.json", "tokenizer_config.json"
_SIDES = ("truncation_side", "padding_side")
_TOLD = 3  # differences that a message names
_SPECIAL = ("pad", "unk", "cls", "sep")

logger = logging.getLogger(__name__)


def check_hidden_tokens(passes: Iterable[Pass], tokenizer: Any) -> None:
    """Refuse ``masked-lm`` with the ids of another vocabulary: it would train, and learn nothing.

    Of a tokenizer without a mask token any id may serve as one.

    Raises:
        RecipeError: Its mask token is another, or a special token could be hidden.
    """
    from sparsefx.passes.pretrain.masked_lm import MaskedLm

    mask = getattr(tokenizer, "mask_token_id", None)
    ids = (getattr(tokenizer, f"{name}_token_id", None) for name in _SPECIAL)
    special: set[int] = {each for each in ids if each is not None}
    for item in passes:
        if not isinstance(item, MaskedLm):
            continue
        wrong = []
        if mask is not None and item.mask_token != mask:
            wrong.append(f"mask_token={item.mask_token} is not its mask token, which is {mask}")
        if missing := sorted(special - set(item.special)):
            named = ", ".join(f"{each} ({_word(tokenizer, each)})" for each in missing)
            wrong.append(f"special={item.special} lacks {named}")
        if wrong:
            known = ",".join(str(each) for each in sorted(special))
            masking = f"mask_token={mask}," if mask is not None else ""
            raise RecipeError(
                f"these are not the ids of the tokenizer: {'; '.join(wrong)}",
                who=item.name,
                hint=f"write {item.name}{{{masking}special=({known},)}}, and its other options",
            )


def check_same_tokens(folder: str, tokenizer: Any) -> None:
    """Refuse a model's folder beside which lies a tokenizer that gives a token another id.

    Vocabularies of one size are not the same vocabulary. Tokens that only one of the two knows may
    be names that were given to unused ids, and are no reason.

    Raises:
        TrainingError: With the first such token.
    """
    place = _tokenizer_beside(Path(folder).expanduser())
    if place is None:
        return
    try:
        theirs = load_tokenizer(str(place)).get_vocab()
    except ArtifactError as error:
        logger.warning("%s: its tokens are not compared with those of the run: %s", folder, error)
        return
    ours = tokenizer.get_vocab()
    moved = [token for token, number in theirs.items() if ours.get(token, number) != number]
    if moved:
        first = min(moved, key=lambda token: int(ours[token]))
        raise TrainingError(
            f"its tokenizer gives {len(moved)} tokens other ids than that of the run: {first!r} is "
            f"{theirs[first]} there, {ours[first]} here",
            where=folder,
            hint="both read the same token ids: take a model with the same tokenizer",
        )


def check_kept_tokenizer(place: Path, tokenizer: Any) -> None:
    """Refuse a run that goes on with another tokenizer than the one that it keeps.

    Of one that is written in Python alone the words, their ids and the sides are compared; of
    others all but lengths of padding and truncation, which each call sets.

    Raises:
        TrainingError: Says what differs.
        ArtifactError: The tokenizer that is kept cannot be read.
    """
    file, core = place / _FILE, getattr(tokenizer, "backend_tokenizer", None)
    changed = _other_sides(place / _CONFIG, tokenizer)
    if core is not None and file.is_file():
        kept = _read_core(file, type(core))
        old, new = kept.get_vocab(), core.get_vocab()
        changed = chain(changed, differences(_settings(kept), _settings(core), "tokenizer"))
    else:
        old, new = load_tokenizer(str(place)).get_vocab(), tokenizer.get_vocab()
    words = [word for word in {**old, **new} if old.get(word) != new.get(word)]
    words.sort(key=lambda word: int(old.get(word, new.get(word))))
    told = [*islice(changed, _TOLD)]
    if words:
        listed = [f"{word!r} was {_id(old, word)}, is {_id(new, word)}" for word in words[:_TOLD]]
        told = [f"{len(words)} of {len(old)} words have other ids: {', '.join(listed)}"]
    if told:
        raise TrainingError(
            "the tokenizer is not the one that this run began with:\n  " + "\n  ".join(told),
            who="resume",
            where=str(place),
            hint="go on with the same tokenizer, or choose another folder",
        )


def _other_sides(file: Path, tokenizer: Any) -> Iterator[str]:
    """Yield on which other side texts are cut or filled up; no call sets that."""
    kept = read_json(file, "") if file.is_file() else {}
    for name in _SIDES:
        old, new = kept.get(name, "right"), getattr(tokenizer, name, "right")
        if old != new:
            yield f"{name}: was {old}, is {new}"


def _read_core(file: Path, kind: Any) -> Any:
    try:
        return kind.from_file(str(file))
    except Exception as error:  # tokenizers raises bare Exceptions for files that it cannot read
        raise ArtifactError(
            f"the tokenizer of the run cannot be read: {first_line(error)}",
            who="resume",
            where=str(file),
            hint=f"remove {file.parent}: the tokenizer that the run is given is saved again",
        ) from error


def _settings(core: Any) -> dict[str, Any]:
    """Return what a tokenizer does beside giving words their ids."""
    found: dict[str, Any] = json.loads(core.to_str())
    for name in ("padding", "truncation"):
        found.pop(name, None)
    if isinstance(found["model"].get("vocab"), dict):
        del found["model"]["vocab"]
    return found


def _id(vocabulary: Mapping[str, int], word: str) -> str:
    return str(vocabulary.get(word, "not there"))


def warn_of_segments(folder: str, teacher: Program) -> None:
    """Say that a teacher knows token types, and the tokenizer of the run gives none."""
    types = teacher.config.get("type_vocab_size") or 0
    if types > 1 and "token_type_ids" not in teacher.signature.input_names:
        logger.warning("%s: the tokenizer gives no token types; to this teacher all are 0", folder)


def _word(tokenizer: Any, number: int) -> str:
    found: Any = tokenizer.convert_ids_to_tokens(number)
    return str(found)


def _tokenizer_beside(place: Path) -> Path | None:
    """Return the tokenizer in the folder of a model, or in that of the run of a Program."""
    folders = [place, place / "tokenizer"]
    if (real := place.resolve()).match("stages/*/program"):
        folders.append(real.parents[2] / "tokenizer")
    for each in folders:
        if is_tokenizer(each):
            return each
    return None
