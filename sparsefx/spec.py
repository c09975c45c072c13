"""The text form of passes and targets: ``magnitude-prune{sparsity=0.9,scope='global'}``.

An object with a text form is a frozen dataclass with a class variable ``name``; its fields are its
options. ``format_spec`` prints the options that differ from their defaults, ``parse_specs`` reads a
comma-separated list back. Values are Python literals (numbers, strings, tuples, lists, dicts, True,
False, None); a bare word stands for a string, in a list too: ``roles=(encoder,other)``.
"""

from __future__ import annotations

import ast
import dataclasses
import re
from collections.abc import Mapping
from typing import Any, ClassVar, NamedTuple, Protocol

from sparsefx.errors import SparsefxError, SpecError, did_you_mean
from sparsefx.option_types import wrong_types

__all__ = [
    "Described",
    "Spec",
    "build",
    "format_spec",
    "format_value",
    "is_name",
    "options_of",
    "parse_specs",
]

_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_.-]*")
_KEY = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_WORDS = {"true": True, "false": False, "none": None}
_CLOSING = {"(": ")", "[": "]", "{": "}"}


class Described(Protocol):
    """What has a text form: a frozen dataclass with a name."""

    name: ClassVar[str]
    __dataclass_fields__: ClassVar[dict[str, dataclasses.Field[Any]]]


class Spec(NamedTuple):
    """One parsed item: its name, its options, and where in the text each began."""

    name: str
    options: dict[str, Any]
    text: str
    position: int
    option_positions: dict[str, int]


def is_name(text: object) -> bool:
    """Whether ``parse_specs`` reads ``text`` as the name of a pass or target.

    >>> is_name("fold-masks"), is_name("fold masks"), is_name(None)
    (True, False, False)
    """
    return isinstance(text, str) and _NAME.fullmatch(text) is not None


def format_value(value: object) -> str:
    """Return ``value`` as text that ``parse_specs`` reads back to an equal value."""
    if isinstance(value, frozenset):
        value = tuple(sorted(value))
    if isinstance(value, (tuple, list)):
        return f"({''.join(format_value(item) + ',' for item in value)})"
    return repr(value)


def format_spec(item: Described) -> str:
    """Return the text form of ``item``: its name and the options that are not at their default."""
    shown = []
    for field in dataclasses.fields(item):
        value = getattr(item, field.name)
        default = field.default
        if field.default_factory is not dataclasses.MISSING:
            default = field.default_factory()
        if default is dataclasses.MISSING or value != default:
            shown.append(f"{field.name}={format_value(value)}")
    return f"{item.name}{{{','.join(shown)}}}" if shown else item.name


def parse_specs(text: str) -> list[Spec]:
    """Read a comma-separated list of ``name`` or ``name{key=value,...}``.

    Raises:
        SpecError: With a caret under the first character that cannot be read.
    """
    if not isinstance(text, str):
        raise SpecError(
            f"expected text, got a {type(text).__name__}",
            text=repr(text),
            position=0,
            hint="several are one text: 'simplify,fold-masks'; Pipeline((a, b)) takes passes",
        )
    specs: list[Spec] = []
    position = _skip_space(text, 0)
    if position == len(text):
        return specs
    while True:
        spec, position = _parse_one(text, position)
        specs.append(spec)
        position = _skip_space(text, position)
        if position == len(text):
            return specs
        if text[position] != ",":
            raise SpecError("expected ',' between passes", text=text, position=position)
        position = _skip_space(text, position + 1)


def build(cls: type[Any], spec: Spec) -> Any:
    """Create ``cls`` from a parsed ``spec``.

    Raises:
        SpecError: When an option is unknown, its value is not of the type of the field, or the
            class refuses it.
    """
    known = {field.name for field in dataclasses.fields(cls)}
    for key in spec.options:
        if key not in known:
            raise SpecError(
                f"{spec.name!r} has no option {key!r}",
                text=spec.text,
                position=spec.option_positions[key],
                hint=did_you_mean(key, known),
            )
    for wrong in wrong_types(cls, spec.options):
        raise SpecError(
            f"{spec.name}: {wrong.option}={wrong.value!r}: expected {wrong.expected}",
            text=spec.text,
            position=spec.option_positions[wrong.option],
            hint=wrong.hint,
        )
    try:
        return cls(**spec.options)
    except TypeError as error:
        raise SpecError(f"{spec.name}: {error}", text=spec.text, position=spec.position) from error
    except SparsefxError as error:
        raise SpecError(
            f"{spec.name}: {error.why}",
            text=spec.text,
            position=_blame(spec, error),
            hint=error.hint,
        ) from error


def _blame(spec: Spec, error: SparsefxError) -> int:
    """Return the position of the option that the error speaks of, else of the name."""
    return spec.option_positions.get(error.where, spec.position)


def _skip_space(text: str, position: int) -> int:
    while position < len(text) and text[position].isspace():
        position += 1
    return position


def _parse_one(text: str, position: int) -> tuple[Spec, int]:
    match = _NAME.match(text, position)
    if match is None:
        raise SpecError("expected the name of a pass or target", text=text, position=position)
    name, end = match.group(), match.end()
    if end == len(text) or text[end] != "{":
        return Spec(name, {}, text, position, {}), end
    options: dict[str, Any] = {}
    places: dict[str, int] = {}
    cursor = _skip_space(text, end + 1)
    while cursor < len(text) and text[cursor] != "}":
        key, value, place, cursor = _parse_option(text, cursor)
        if key in options:
            raise SpecError(f"option {key!r} is given twice", text=text, position=place)
        options[key], places[key] = value, place
        cursor = _skip_space(text, cursor)
        if cursor < len(text) and text[cursor] == ",":
            cursor = _skip_space(text, cursor + 1)
    if cursor >= len(text):
        raise SpecError("'{' is not closed", text=text, position=end, hint="add '}'")
    return Spec(name, options, text, position, places), cursor + 1


def _parse_option(text: str, position: int) -> tuple[str, Any, int, int]:
    match = _KEY.match(text, position)
    if match is None:
        raise SpecError("expected an option name", text=text, position=position)
    equals = _skip_space(text, match.end())
    if equals >= len(text) or text[equals] != "=":
        raise SpecError(
            f"option {match.group()!r} has no value", text=text, position=position, hint="key=value"
        )
    start = _skip_space(text, equals + 1)
    end = _value_end(text, start)
    return match.group(), _parse_value(text, start, end), position, end


def _frozen(value: Any) -> Any:
    """Turn lists into tuples, because options have to be hashable."""
    return tuple(_frozen(item) for item in value) if isinstance(value, (list, tuple)) else value


def _value_end(text: str, start: int, stops: str = ",}") -> int:
    """Return the index of the first of ``stops`` after the value which begins at ``start``."""
    stack: list[str] = []
    quote = ""
    escaped = False
    for index in range(start, len(text)):
        char = text[index]
        if quote:
            quote = "" if char == quote and not escaped else quote
            escaped = char == "\\" and not escaped
        elif char in "'\"":
            quote = char
        elif char in _CLOSING:
            stack.append(_CLOSING[char])
        elif stack and char == stack[-1]:
            stack.pop()
        elif not stack and char in stops:
            return index
    ended = " or ".join(repr(stop) for stop in stops)
    why = "the quote is not closed" if quote else f"the value is not ended by {ended}"
    raise SpecError(why, text=text, position=start)


def _parse_value(text: str, start: int, end: int) -> Any:
    raw = text[start:end].strip()
    try:
        return _frozen(ast.literal_eval(raw))
    except (ValueError, SyntaxError):
        pass
    if raw.lower() in _WORDS:
        return _WORDS[raw.lower()]
    if _NAME.fullmatch(raw):
        return raw
    if raw.startswith(("(", "[")):
        return _parse_list(text, start, start + len(raw))
    raise SpecError(
        f"{raw!r} is not a value",
        text=text,
        position=start,
        hint=_value_hint(raw),
    )


def _parse_list(text: str, start: int, end: int) -> Any:
    """Read a list in which bare words stand; as in Python, ``(a)`` is ``a`` and ``(a,)`` a list."""
    closing = _CLOSING[text[start]]
    items: list[Any] = []
    comma = text[start] == "["
    cursor = _skip_space(text, start + 1)
    while text[cursor] != closing:
        stop = _value_end(text, cursor, "," + closing)
        items.append(_parse_value(text, cursor, stop))
        comma |= text[stop] == ","
        cursor = _skip_space(text, stop + 1) if text[stop] == "," else stop
    if cursor != end - 1:
        raise SpecError(
            f"{text[start:end]!r} is not a value",
            text=text,
            position=cursor + 1,
            hint=_value_hint(text[start:end]),
        )
    return tuple(items) if comma or not items else items[0]


def _value_hint(raw: str) -> str:
    if re.fullmatch(r"[\d.]+%", raw):
        return "shares of a stage's steps are known in recipes alone; here give the step"
    if re.fullmatch(r"\d+[x:]\d+", raw):
        return f"write it as text: '{raw}'"
    listed = "a list of these: (encoder,other) or (1,2)"
    return f"a number, True, False, None, a word, 'text' or {listed}"


def options_of(item: Described) -> Mapping[str, Any]:
    """Return the options of ``item`` by name."""
    return {field.name: getattr(item, field.name) for field in dataclasses.fields(item)}
