"""Patterns over the graph, whose failed matches say why.

>>> import torch
>>> from sparsefx.pattern import bind, op
>>> aten = torch.ops.aten
>>> bias_gelu = op(aten.gelu.default, op(aten.linear.default, bind("x"), bind("w"), bind("b")), ...)

``bias_gelu.match(node)`` is a :class:`Match` with the nodes bound to ``x``, ``w`` and ``b``, or a
:class:`NoMatch` with a reason and the node at which the match failed.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import permutations
from types import EllipsisType
from typing import TYPE_CHECKING, Any

from torch import fx

from sparsefx.errors import ProgramError
from sparsefx.graph.callables import callable_name

if TYPE_CHECKING:
    from sparsefx.program import Program

__all__ = ["Match", "NoMatch", "Pattern", "bind", "either", "op", "tensor", "value"]


@dataclass(frozen=True)
class Match:
    """A successful match: the root node, what was bound, and all matched calls, root last."""

    node: fx.Node
    bindings: Mapping[str, Any]
    calls: tuple[fx.Node, ...]

    def __getitem__(self, name: str) -> Any:
        return self.bindings[name]


@dataclass(frozen=True)
class NoMatch:
    """Why a match failed, and at which node; ``depth`` counts the calls that did match."""

    reason: str
    nearest: fx.Node | None
    depth: int

    def __str__(self) -> str:
        place = f" at %{self.nearest.name}" if self.nearest is not None else ""
        return f"{self.reason}{place}"


@dataclass
class _State:
    bindings: dict[str, Any] = field(default_factory=dict)
    calls: list[fx.Node] = field(default_factory=list)

    def copy(self) -> _State:
        return _State(dict(self.bindings), list(self.calls))


class Pattern(ABC):
    """A shape that a value of the graph may have."""

    def match(self, node: fx.Node, *, closed: bool = True) -> Match | NoMatch:
        """Match the value of ``node``.

        Args:
            node: The root, the last node of the pattern in graph order.
            closed: Whether all calls but the root must be used inside the match alone, so that
                the match can be replaced as a whole.
        """
        state = _State()
        failure = self.accept(node, state, node)
        if failure is not None:
            return failure
        if closed and (leak := _leak(node, state.calls)):
            return leak
        return Match(node, state.bindings, tuple(state.calls))

    def find(self, program: Program, *, closed: bool = True) -> Iterator[Match]:
        """Yield the matches in graph order; a node that vanishes meanwhile is passed over."""
        for node in list(program.graph.nodes):
            if node.op == "call_function" and not node._erased:
                result = self.match(node, closed=closed)
                if isinstance(result, Match):
                    yield result

    @abstractmethod
    def accept(self, found: Any, state: _State, user: fx.Node) -> NoMatch | None:
        """Match ``found`` (a node or a constant), adding to ``state``; None when it fits."""


def _leak(root: fx.Node, calls: list[fx.Node]) -> NoMatch | None:
    inside = set(calls)
    for call in calls:
        outside = [user for user in call.users if user not in inside]
        if call is not root and outside:
            reason = f"%{call.name} is also used by %{outside[0].name}, outside the pattern"
            return NoMatch(reason, call, len(calls))
    return None


def _show(found: object) -> str:
    if not isinstance(found, fx.Node):
        return repr(found)
    return callable_name(found.target) if found.op == "call_function" else found.op


@dataclass(frozen=True)
class _Bind(Pattern):
    name: str
    inner: Pattern | None

    def accept(self, found: Any, state: _State, user: fx.Node) -> NoMatch | None:
        if self.inner is not None and (failure := self.inner.accept(found, state, user)):
            return failure
        if self.name in state.bindings and state.bindings[self.name] is not found:
            reason = f"{self.name!r} stands for two values: {state.bindings[self.name]} and {found}"
            return NoMatch(reason, user, len(state.calls))
        state.bindings[self.name] = found
        return None


@dataclass(frozen=True)
class _Value(Pattern):
    test: Callable[[Any], bool]
    wanted: str

    def accept(self, found: Any, state: _State, user: fx.Node) -> NoMatch | None:
        if isinstance(found, fx.Node) or not self.test(found):
            return NoMatch(f"expected {self.wanted}, found {_show(found)}", user, len(state.calls))
        return None


@dataclass(frozen=True)
class _Tensor(Pattern):
    def accept(self, found: Any, state: _State, user: fx.Node) -> NoMatch | None:
        if isinstance(found, fx.Node) and found.op == "get_attr":
            return None
        return NoMatch(
            f"expected a tensor of the model, found {_show(found)}", user, len(state.calls)
        )


@dataclass(frozen=True)
class _Either(Pattern):
    options: tuple[Pattern, ...]

    def accept(self, found: Any, state: _State, user: fx.Node) -> NoMatch | None:
        failures = []
        for option in self.options:
            trial = state.copy()
            failure = option.accept(found, trial, user)
            if failure is None:
                state.bindings, state.calls = trial.bindings, trial.calls
                return None
            failures.append(failure)
        return max(failures, key=lambda failure: failure.depth)


@dataclass(frozen=True)
class _Op(Pattern):
    targets: tuple[Callable[..., Any], ...]
    args: tuple[Pattern | EllipsisType, ...]
    kwargs: tuple[tuple[str, Pattern], ...]
    commutes: bool

    def accept(self, found: Any, state: _State, user: fx.Node) -> NoMatch | None:
        names = " or ".join(callable_name(target) for target in self.targets)
        if not isinstance(found, fx.Node) or found.target not in self.targets:
            return NoMatch(f"expected {names}, found {_show(found)}", user, len(state.calls))
        failures = []
        for args in permutations(self.args) if self.commutes else [self.args]:
            trial = state.copy()
            failure = self._accept_args(found, args, trial)
            if failure is None:
                state.bindings, state.calls = trial.bindings, [*trial.calls, found]
                return None
            failures.append(failure)
        return max(failures, key=lambda failure: failure.depth)

    def _accept_args(self, found: fx.Node, args: tuple[Any, ...], state: _State) -> NoMatch | None:
        is_open = bool(args) and args[-1] is ...
        wanted = args[:-1] if is_open else args
        too_many = len(found.args) > len(wanted) and not is_open
        if len(found.args) < len(wanted) or too_many:
            reason = f"expected {len(wanted)} arguments, found {len(found.args)}"
            return NoMatch(reason, found, len(state.calls))
        pairs: list[tuple[Pattern, Any]] = list(zip(wanted, found.args, strict=False))
        pairs += [(pattern, found.kwargs.get(key)) for key, pattern in self.kwargs]
        for pattern, arg in pairs:
            if failure := pattern.accept(arg, state, found):
                return failure
        return None


def bind(name: str, inner: Pattern | None = None) -> Pattern:
    """Match anything (or ``inner``) and keep it under ``name``; twice the name, twice the same."""
    return _Bind(name, inner)


def op(
    target: Callable[..., Any] | tuple[Callable[..., Any], ...],
    *args: Pattern | EllipsisType | object,
    commutes: bool = False,
    **kwargs: Pattern,
) -> Pattern:
    """Match a call of ``target`` (or of one of several) with these arguments.

    Args:
        target: The operator, e.g. ``torch.ops.aten.add.Tensor``.
        *args: A pattern for each positional argument; a plain value matches itself; ``...`` at
            the end lets further arguments be anything.
        commutes: Try the arguments in every order.
        **kwargs: Patterns for keyword arguments.

    Raises:
        ArtifactError: ``target`` is nothing that a graph calls, such as ``torch.ops.aten.add``.
        ProgramError: ``...`` is not the last argument.
    """
    targets = target if isinstance(target, tuple) else (target,)
    names = [callable_name(each, who="pattern") for each in targets]
    if any(arg is ... for arg in args[:-1]):
        raise ProgramError(
            f"{' or '.join(names)}: '...' stands before other arguments",
            who="pattern",
            hint="it may stand at the end alone; bind('any') matches one argument",
        )
    patterns = tuple(arg if isinstance(arg, Pattern) or arg is ... else value(arg) for arg in args)
    return _Op(targets, patterns, tuple(kwargs.items()), commutes)


def either(*options: Pattern) -> Pattern:
    """Match the first of ``options`` that fits; a failure is that of the one that got furthest."""
    return _Either(options)


def tensor() -> Pattern:
    """Match a parameter or buffer."""
    return _Tensor()


def value(wanted: object | Callable[[Any], bool], *, says: str = "") -> Pattern:
    """Match a constant that equals ``wanted``, or for which the function ``wanted`` is true."""
    if callable(wanted):
        return _Value(wanted, says or getattr(wanted, "__name__", "a constant"))
    return _Value(lambda found: bool(found == wanted), says or repr(wanted))
