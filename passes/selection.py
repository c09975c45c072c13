"""Which weights of a Program a pass works on: by role, then by name."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import torch
from torch import fx, nn

from sparsefx.errors import PassError, did_you_mean
from sparsefx.joined import DISTILL_PREFIX, TEACHER_PREFIX
from sparsefx.masks import find_masks
from sparsefx.passbase import Skip
from sparsefx.passes.analyses.encoder import EncoderStructure
from sparsefx.passes.analyses.operators import CONVOLUTIONS
from sparsefx.passes.analyses.roles import Role
from sparsefx.passes.analyses.ties import names_of

if TYPE_CHECKING:
    from sparsefx.program import Program

__all__ = ["Selection", "check_selection", "select_weights", "unmatched", "why_left_out"]

aten = torch.ops.aten
_WEIGHT_ARGUMENT: dict[object, int] = {
    aten.linear.default: 1,
    aten.embedding.default: 0,
    **dict.fromkeys(CONVOLUTIONS, 1),
}


@dataclass(frozen=True)
class Selection:
    """The names of the chosen weights in graph order, and what was left alone and why.

    ``masked`` are those that would have been chosen, had they no mask already.
    """

    chosen: tuple[str, ...]
    masked: tuple[str, ...]
    skipped: tuple[Skip, ...]

    @property
    def left_alone(self) -> tuple[Skip, ...]:
        """What a pass leaves alone that can do nothing with a weight that has a mask."""
        return (*(Skip(name, "it has a mask already") for name in self.masked), *self.skipped)


class SelectingPass(Protocol):
    """A pass with the three options that choose weights."""

    @property
    def roles(self) -> tuple[str, ...]:
        """The roles to take."""

    @property
    def include(self) -> tuple[str, ...]:
        """Regular expressions of which one must be found in a name."""

    @property
    def exclude(self) -> tuple[str, ...]:
        """Regular expressions of which none may be found in a name."""

    def refuse(self, option: str, why: str, *, hint: str = "") -> PassError:
        """Return the error for a wrong option."""


def check_selection(item: SelectingPass) -> None:
    """Check the options ``roles``, ``include`` and ``exclude`` of a pass, in its ``__post_init__``.

    One text, or a list, becomes a tuple: ``roles=encoder`` is ``roles=('encoder',)``.

    Raises:
        PassError: When a role is unknown or a regular expression cannot be read.
    """
    for option in ("roles", "include", "exclude"):
        value = getattr(item, option)
        names = (value,) if isinstance(value, str) else tuple(value)
        object.__setattr__(item, option, names)
    known = [role.value for role in Role]
    for role in item.roles:
        if role not in known:
            raise item.refuse("roles", f"{role!r} is no role", hint=did_you_mean(role, known))
    if not item.roles:
        raise item.refuse("roles", "at least one role is needed", hint=f"known: {', '.join(known)}")
    for option in ("include", "exclude"):
        for pattern in getattr(item, option):
            try:
                re.compile(pattern)
            except re.error as error:
                raise item.refuse(option, f"not a regular expression: {error}") from error


def select_weights(
    program: Program, roles: Sequence[str], include: Sequence[str], exclude: Sequence[str]
) -> Selection:
    """Choose among the trainable matrices of the graph; a tied weight is one of them.

    Args:
        program: Where to look; a teacher that was joined to it is left out.
        roles: The roles to take, e.g. ``encoder``.
        include: Regular expressions of which one must be found in one of the weight's names; none
            means all.
        exclude: Regular expressions of which none may be found.
    """
    masked = {site.weight for site in find_masks(program)}
    role_of = program.facts(EncoderStructure).roles
    found: dict[bool, list[str]] = {False: [], True: []}
    skipped = []
    seen: list[str] = []
    held: Counter[Role] = Counter()
    for node in program.graph.find_nodes(op="get_attr"):
        name = str(node.target)
        tensor = program.tensor(name)
        if not isinstance(tensor, nn.Parameter) or tensor.dim() < 2:
            continue
        if name.startswith((TEACHER_PREFIX, DISTILL_PREFIX)):
            continue
        names = names_of(program, name)
        seen.extend(names)
        role = role_of.get(name, Role.OTHER)
        reason = why_left_out(names, role, roles, include, exclude)
        if not reason and name not in masked:
            reason = _unfit_use(node)
        if reason:
            skipped.append(Skip(name, reason))
        else:
            found[name in masked].append(name)
        held[role] += 1
    if held and not any(role in roles for role in held):
        there = ", ".join(f"roles={role} takes {count}" for role, count in held.most_common())
        skipped.insert(0, Skip(f"roles={','.join(roles)}", f"no weight has such a role: {there}"))
    skipped += unmatched(include, exclude, seen)
    return Selection(tuple(found[False]), tuple(found[True]), tuple(skipped))


def why_left_out(
    names: Sequence[str],
    role: Role,
    roles: Sequence[str],
    include: Sequence[str],
    exclude: Sequence[str],
) -> str:
    """Return which option leaves a weight out; empty when none does.

    Args:
        names: All its names; an expression is searched in each of them.
        role: Its role.
        roles: The roles to take.
        include: As for :func:`select_weights`.
        exclude: As for :func:`select_weights`.
    """
    if role.value not in roles:
        return f"its role {role.value} is not among roles={','.join(roles)}"
    if include and not any(_found(pattern, names) for pattern in include):
        return "no include expression is found in its name"
    barred = next((pattern for pattern in exclude if _found(pattern, names)), None)
    return "" if barred is None else f"excluded by {barred!r}"


def unmatched(include: Sequence[str], exclude: Sequence[str], names: Sequence[str]) -> list[Skip]:
    """Return a skip for each expression that is found in none of ``names``: it has no effect."""
    return [
        Skip(f"{option}={pattern!r}", "it is found in no name")
        for option, patterns in (("include", include), ("exclude", exclude))
        for pattern in patterns
        if not _found(pattern, names)
    ]


def _found(pattern: str, names: Sequence[str]) -> bool:
    return any(re.search(pattern, name) for name in names)


def _unfit_use(node: fx.Node) -> str:
    """Return why the pattern of this weight has no meaning; empty when it has one."""
    for user in node.users:
        place = _WEIGHT_ARGUMENT.get(user.target)
        if place is None or user.args[place] is not node:
            what = "a linear, a convolution or an embedding"
            return f"%{user.name} does not use it as the weight of {what}"
    return ""
