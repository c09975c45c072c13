"""Types of options: what a field of a pass or target takes, checked and told in words."""

from __future__ import annotations

import dataclasses
import functools
import inspect
import sys
import types
import typing
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from sparsefx.errors import SparsefxError

if TYPE_CHECKING:
    from pydantic import TypeAdapter

__all__ = [
    "AS_DATACLASS",
    "WrongType",
    "check_dataclass",
    "choices",
    "lost_options",
    "option_words",
    "wrong_types",
]

AS_DATACLASS = "decorate that class with @dataclass(frozen=True)"
"""What to do about lost options."""

_WORDS: dict[Any, str] = {
    int: "a whole number",
    float: "a number",
    str: "a text",
    bool: "True or False",
    None: "None",
    type(None): "None",
}
_PLURALS: dict[Any, str] = {int: "whole numbers", float: "numbers", str: "texts"}


class WrongType(NamedTuple):
    """An option whose value is not of the type of its field."""

    option: str
    value: object
    expected: str

    @property
    def hint(self) -> str:
        """What to write instead, where that is plain."""
        value = self.value
        if isinstance(value, float) and value.is_integer() and "whole" in self.expected:
            return f"write {int(value)}"
        if value is None and "a text" in self.expected:
            return "none stands for no value; as a text it is written 'none'"
        return ""


def lost_options(cls: type[Any]) -> str:
    """Say which fields a class, or a base of it, annotates and does not have: it is no dataclass.

    Empty where there are none. A dataclass takes over the fields of its bases that are dataclasses.
    """
    known: set[str] = set()
    for each in cls.__mro__:
        kinds = vars(each).get("__annotations__", {})
        own = [name for name, kind in kinds.items() if "ClassVar" not in str(kind)]
        lost = [name for name in own if name not in known]
        holds = "__dataclass_fields__" in vars(each) or getattr(each, "_is_protocol", False)
        if lost and not holds:
            who = "it" if each is cls else f"its base {each.__name__}"
            return f"{who} is no dataclass: its options {', '.join(lost)} would be lost"
        known.update(own)
    return ""


def check_dataclass(cls: type[Any], error: type[SparsefxError]) -> None:
    """Refuse a class that would lose options, by an ``error``."""
    if lost := lost_options(cls):
        raise error(lost, who=cls.__name__, hint=AS_DATACLASS)


def wrong_types(cls: type[Any], options: Mapping[str, object]) -> Iterator[WrongType]:
    """Yield the options whose values do not fit the annotations of the dataclass ``cls``.

    A whole number fits a number; a list, or one item alone, fits a tuple of such items, which the
    class makes of it. A field whose annotation cannot be evaluated is not checked.

    >>> from sparsefx.passbase import Pass
    >>> list(wrong_types(Pass, {"on_no_match": 3}))
    [WrongType(option='on_no_match', value=3, expected="'error', 'warn' or 'ignore'")]
    """
    annotations = _annotations(cls)  # type: ignore[arg-type]  # a class is hashable
    for option, annotation in annotations.items():
        if option in options and not _fits(annotation, options[option]):
            yield WrongType(option, options[option], describe(annotation))


def choices(cls: type[Any]) -> Iterator[tuple[str, Any]]:
    """Yield option and value for all values of the options of ``cls`` that have few of them.

    >>> from sparsefx.passbase import Pass
    >>> list(choices(Pass))
    [('on_no_match', 'error'), ('on_no_match', 'warn'), ('on_no_match', 'ignore')]
    """
    annotations = _annotations(cls)  # type: ignore[arg-type]  # a class is hashable
    for option, annotation in annotations.items():
        values = typing.get_args(annotation) if typing.get_origin(annotation) is Literal else ()
        for value in (False, True) if annotation is bool else values:
            yield option, value


def option_words(cls: type[Any]) -> dict[str, str]:
    """Return what each option of ``cls`` takes, in words; those of unknown types are missing.

    >>> from sparsefx.passbase import Pass
    >>> option_words(Pass)
    {'on_no_match': "'error', 'warn' or 'ignore'"}
    """
    annotations = _annotations(cls)  # type: ignore[arg-type]  # a class is hashable
    return {option: describe(annotation) for option, annotation in annotations.items()}


def describe(annotation: Any) -> str:
    """Return a type in words.

    >>> describe(int | None), describe(tuple[str, ...]), describe(Literal["a", "b"])
    ('a whole number or None', 'a text or a list of texts', "'a' or 'b'")
    >>> describe(Literal["all"] | tuple[tuple[int, int], ...])
    "'all' or a list of (a whole number, a whole number)"
    """
    words = _alternatives(annotation)
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} or {words[-1]}"


def _alternatives(annotation: Any) -> list[str]:
    if annotation in _WORDS:
        return [_WORDS[annotation]]
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is Literal:
        return [repr(argument) for argument in arguments]
    if origin in (types.UnionType, typing.Union):
        return [word for argument in arguments for word in _alternatives(argument)]
    if origin is tuple and arguments[1:] == (...,):
        inner = _PLURALS.get(arguments[0]) or describe(arguments[0])
        alone = [] if typing.get_origin(arguments[0]) is tuple else [describe(arguments[0])]
        return [*alone, f"a list of {inner}"]
    if origin is tuple:
        return [f"({', '.join(describe(argument) for argument in arguments)})"]
    return [str(getattr(annotation, "__name__", annotation))]


@functools.cache
def _annotations(cls: type[Any]) -> dict[str, Any]:
    """Return the evaluated annotation of each field; those that cannot be evaluated are missing."""
    found = {}
    for field in dataclasses.fields(cls):
        owner = next(c for c in cls.__mro__ if field.name in inspect.get_annotations(c))
        scope = vars(sys.modules[owner.__module__]) if owner.__module__ in sys.modules else {}
        holder = types.SimpleNamespace(__annotations__={field.name: field.type})
        try:
            found.update(typing.get_type_hints(holder, globalns=dict(scope)))
        except (NameError, TypeError, AttributeError, SyntaxError):
            continue
    return found


def _fits(annotation: Any, value: object) -> bool:
    from pydantic import ValidationError

    adapter = _adapter(annotation)
    if adapter is None:
        return True
    if typing.get_origin(annotation) is tuple and isinstance(value, list):
        value = tuple(value)
    arguments = typing.get_args(annotation)
    if arguments[1:] == (...,) and not isinstance(value, tuple):
        value = (value,)
    try:
        adapter.validate_python(value)
    except ValidationError:
        return False
    return True


@functools.cache
def _adapter(annotation: Any) -> TypeAdapter[Any] | None:
    from pydantic import ConfigDict, TypeAdapter
    from pydantic.errors import PydanticUserError

    try:
        return TypeAdapter(annotation, config=ConfigDict(arbitrary_types_allowed=True, strict=True))
    except PydanticUserError:
        return None
