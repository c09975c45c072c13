"""Whether token ids mean the same to a recipe, to the tokenizer of a run and to other models."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from sparsefx.errors import ArtifactError, RecipeError, TrainingError
from sparsefx.huggingface import load_tokenizer
from sparsefx.passbase import Pass
from sparsefx.program import Program
from sparsefx.storage.places import is_tokenizer

__all__ = ["check_hidden_tokens", "check_same_tokens", "warn_of_segments"]

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
