"""One pruner of Intel Neural Compressor 2.x or 1.14, as a pass."""

from __future__ import annotations

import re
from typing import Any

from sparsefx.errors import RecipeError
from sparsefx.importers.neural_compressor_ramps import nearest_exponent
from sparsefx.importers.neural_compressor_stage import Found, not_here, weights_of
from sparsefx.importers.result import Notes, names_of, number_of, pass_text

__all__ = ["Pruner", "steps_of"]

_OF_RAMPS = (
    "target_sparsity",
    "pattern",
    "start_step",
    "end_step",
    "pruning_scope",
    "pruning_frequency",
    "sparsity_decay_type",
    "max_sparsity_ratio_per_op",
    "pruning_op_types",
)
_CHANNELS = (
    "whole channels are no mask here; prune-neurons and prune-heads take whole rows and columns "
    "out, with the weights that read them"
)
_SAME = 1e-9
_END = re.compile(r"\\.|\[\^?\]?(?:\\.|[^\]\\])*\]|\$", re.DOTALL)
"""An escape, a set of characters, or the sign for the end outside of both."""


class Pruner:
    """One pruner, its settings merged with the shared ones."""

    def __init__(
        self,
        settings: dict[str, Any],
        roles: tuple[str, ...],
        where: str,
        notes: Notes,
    ) -> None:
        self._rest = settings
        self._roles = roles
        self._where = where
        self._notes = notes

    def found(self) -> list[Found]:
        """Return its pass, or nothing when the criterion is not here."""
        kind = self._rest.pop("pruning_type")
        include, exclude = self._names("op_names"), self._names("excluded_op_names")
        weights: tuple[frozenset[str], ...] = ()
        if kind == "pattern_lock":
            text = pass_text("pattern-lock", include=include, exclude=exclude)
            for key in _OF_RAMPS:
                self._rest.pop(key, None)
        elif kind in ("magnitude", "magnitude_progressive"):
            if "channel" in str(self._rest["pattern"]):
                self._leave("pattern", f"{self._rest['pattern']!r}: {_CHANNELS}")
                return []
            text = self._magnitude(include, exclude)
            weights = weights_of(self._roles, include, exclude)
        else:
            self._leave("pruning_type", not_here(kind))
            return []
        if kind == "magnitude_progressive":
            self._leave("pruning_type", "progressive masks; plain ones at each choice are used")
        self._notes.leave_rest(self._where, self._rest)
        return [Found(f"{self._where} ({kind})", text, weights)]

    def _magnitude(self, include: tuple[str, ...], exclude: tuple[str, ...]) -> str:
        rest = self._rest
        wanted = str(rest.pop("pattern")).rpartition("_")[2]  # tile_pattern_4x1 in 1.14
        target, scope = self._number("target_sparsity"), rest.pop("pruning_scope")
        scope, pattern, sparsity = self._pattern(wanted, target, scope)
        if ":" in pattern:
            rest.pop("max_sparsity_ratio_per_op")  # the pattern is the bound
        else:
            sparsity = self._bounded(sparsity, scope)
        begin, end, every = self._steps()
        kinds = rest.pop("pruning_op_types")
        for kind in sorted(set(names_of(kinds, f"{self._where}.pruning_op_types"))):
            if kind == "Linear":
                continue
            self._leave("pruning_op_types", f"{kind}: only linears are pruned by this recipe")
        decay = str(rest.pop("sparsity_decay_type"))
        if ":" in pattern and end > begin:
            self._leave("end_step", "all groups lose weights together, not one group after another")
        return pass_text(
            "magnitude-prune",
            sparsity=sparsity,
            begin=begin or None,
            end=end or None,
            exponent=self._exponent(decay, sparsity) if end > begin else None,
            frequency=every if end > begin else None,
            scope=scope if scope != "tensor" else None,
            pattern=pattern if pattern != "unstructured" else None,
            ties="drop" if ":" not in pattern else None,
            roles=self._roles,
            include=include,
            exclude=exclude,
        )

    def _steps(self) -> tuple[int, int, int]:
        """Return when masks move: from, to, every; the last time is a whole number of rounds on."""
        keys = ("start_step", "end_step", "pruning_frequency")
        begin, end, every = (steps_of(self._rest, key, self._where) for key in keys)
        for key in keys:
            del self._rest[key]
        if every < 1:
            raise RecipeError(
                f"expected at least 1 step, found {every}",
                where=f"{self._where}.pruning_frequency",
            )
        begin = max(begin, 0)
        return begin, begin + max(end - begin, 0) // every * every, every

    def _exponent(self, decay: str, sparsity: float) -> float | None:
        """Return the exponent of the ramp that is nearest to one of this tool."""
        try:
            exponent, off = nearest_exponent(decay, sparsity)
        except KeyError:
            self._leave("sparsity_decay_type", f"there is no {decay!r} ramp; the cubic one is used")
            return None
        if off > _SAME:
            why = f"there is no {decay!r} ramp; with exponent={exponent:g} the sparsity is at most "
            self._leave("sparsity_decay_type", f"{why}{off:.3f} off on the way to {sparsity:g}")
        return exponent

    def _bounded(self, sparsity: float, scope: str) -> float:
        """Return the sparsity that the bound for each weight leaves."""
        bound = self._number("max_sparsity_ratio_per_op")
        if bound < sparsity:
            self._leave("target_sparsity", f"{sparsity:g}: max_sparsity_ratio_per_op={bound:g}")
        if scope == "global":
            reason = f"{bound:g}: one threshold for all weights has no bound for each"
            self._leave("max_sparsity_ratio_per_op", reason)
        return min(bound, sparsity)

    def _pattern(self, text: str, sparsity: float, scope: Any) -> tuple[str, str, float]:
        scope = "global" if scope == "global" else "tensor"
        found = re.fullmatch(r"(\d+):(\d+)", text)
        pruned, group = (int(found[1]), int(found[2])) if found else (0, 0)
        if 0 < pruned < group:
            if abs(sparsity - pruned / group) > _SAME:
                self._leave("target_sparsity", f"{sparsity}: {text} means {pruned / group:g}")
            if scope == "global":
                self._leave("pruning_scope", f"{text} decides in each group by itself")
            return "tensor", f"{group - pruned}:{group}", pruned / group
        if re.fullmatch(r"\d+x\d+", text):
            return scope, "unstructured" if text == "1x1" else text, sparsity
        raise RecipeError(
            f"the pattern {text!r} cannot be carried over",
            where=f"{self._where}.pattern",
            hint="blocks such as 4x1 and groups such as 2:4 can; whole channels cannot",
        )

    def _names(self, key: str) -> tuple[str, ...]:
        """Return expressions over names of modules as such over names of weights."""
        names = names_of(self._rest.pop(key, None), f"{self._where}.{key}")
        return tuple(_END.sub(_of_weight, name) for name in names)

    def _number(self, key: str) -> float:
        return number_of(self._rest.pop(key), f"{self._where}.{key}")

    def _leave(self, key: str, reason: str) -> None:
        self._notes.leave(f"{self._where}.{key}", reason)


def _of_weight(part: re.Match[str]) -> str:
    """Return a part of an expression; where a name of a module ends, ``.weight`` follows."""
    return r"\.weight$" if part[0] in ("$", r"\Z") else part[0]


def steps_of(settings: dict[str, Any], key: str, where: str) -> int:
    """Return a number of steps.

    Raises:
        RecipeError: The file has something else there.
    """
    try:
        return int(settings[key])
    except (OverflowError, TypeError, ValueError) as error:
        why = f"expected a number of steps, found {settings[key]!r}"
        raise RecipeError(why, where=f"{where}.{key}") from error
