"""From the names in an architecture file to engine and format objects."""

from __future__ import annotations

import importlib
from collections.abc import Collection
from dataclasses import fields, is_dataclass
from typing import Any, Final, get_type_hints

from pydantic import TypeAdapter, ValidationError

from sparsefx.backends.accelerator.engines.base import Engine
from sparsefx.backends.accelerator.hardware.architecture import EngineSpec, FormatSpec
from sparsefx.backends.formats.encoding import SparseFormat
from sparsefx.errors import TargetError, did_you_mean

__all__ = ["build_engine", "build_format", "check_engine_kind"]

_ENGINES: Final[dict[str, str]] = {
    "systolic": "systolic:Systolic",
    "systolic-n-of-m": "systolic_nm:SystolicNM",
    "tensor-core": "tensor_core:TensorCore",
    "bank-balanced": "bank_balanced:BankBalanced",
    "lock-step": "lock_step:LockStep",
    "csc-fifo": "csc_fifo:CscFifo",
    "channel-product": "channel_product:ChannelProduct",
    "outer-product": "outer_product:OuterProduct",
    "cartesian": "cartesian:Cartesian",
    "sigma": "sigma:Sigma",
}

_FORMATS: Final[dict[str, str]] = {
    "dense": "dense:Dense",
    "bitmap": "bitmap:Bitmap",
    "run-length": "run_length:RunLength",
    "relative-index": "relative_index:RelativeIndex",
    "n-of-m": "n_of_m:NOfM",
    "bank-balanced": "bank_balanced:BankBalanced",
    "block": "block:Block",
}


_IMPORT_HINT: Final = (
    "the folder of the module must be on PYTHONPATH, for example "
    "PYTHONPATH=. sparsefx simulate bert-base --arch mine.yaml"
)


def check_engine_kind(engine: object, where: str) -> None:
    """Refuse an unchecked engine whose kind is neither a known name nor a place of a class.

    Raises:
        TargetError: With the nearest known name.
    """
    kind = engine.get("kind") if isinstance(engine, dict) else None
    if isinstance(kind, str):
        _check_kind(kind, _ENGINES, "engine", where)


def _check_kind(kind: str, table: dict[str, str], what: str, where: str) -> None:
    if kind not in table and ":" not in kind:
        raise TargetError(
            f"there is no {what} {kind!r}",
            who="accelerator",
            where=f"{where}: {what}.kind",
            hint=did_you_mean(kind, table) + f"; or 'package.module:Class' for your own {what}",
        )


def _find(kind: str, table: dict[str, str], package: str, what: str, where: str) -> type[Any]:
    """Find a class by its short name, or by `package.module:Class` for a user's own."""
    _check_kind(kind, table, what, where)
    place = table.get(kind)
    module, _, attribute = (f"{package}.{place}" if place else kind).partition(":")
    try:
        found: type[Any] = getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError) as error:
        raise TargetError(
            f"cannot import {kind!r}: {error}",
            who="accelerator",
            where=f"{where}: {what}.kind",
            hint=_IMPORT_HINT if isinstance(error, ModuleNotFoundError) else "",
        ) from error
    return found


def _build(
    cls: type[Any], values: dict[str, Any], what: str, where: str, options: Collection[str] = ()
) -> Any:
    if not is_dataclass(cls):
        raise TargetError(
            f"{cls.__module__ + ':' + cls.__name__!r} is no dataclass",
            who="accelerator",
            where=f"{where}: {what}.kind",
        )
    known = {field.name for field in fields(cls)}
    paths = {n: f"{what}.{'options' if n in options else 'numbers'}.{n}" for n in values}
    if unknown := sorted(set(values) - known):
        raise TargetError(
            f"{cls.__name__} has no parameter {unknown[0]!r}",
            who="accelerator",
            where=f"{where}: {paths[unknown[0]]}",
            hint=did_you_mean(unknown[0], known),
        )
    kinds = get_type_hints(cls)
    for name, value in values.items():
        try:
            TypeAdapter(kinds[name]).validate_python(value, strict=True)
        except ValidationError as error:
            why = f"{value!r}: {error.errors()[0]['msg']}"
            place = f"{where}: {paths[name]}"
            raise TargetError(why, who="accelerator", where=place) from error
    try:
        return cls(**values)
    except (TypeError, ValueError) as error:
        place = f"{where}: {what}" if options else f"{where}: {what}.numbers"
        raise TargetError(str(error), who="accelerator", where=place) from error


def build_engine(spec: EngineSpec, where: str = "architecture") -> Engine:
    """Make the engine that an architecture names.

    Raises:
        TargetError: When there is no such engine or parameter.
    """
    cls = _find(spec.kind, _ENGINES, "sparsefx.backends.accelerator.engines", "engine", where)
    values: dict[str, Any] = {
        name: tuple(round(v.value) for v in value)
        if isinstance(value, list)
        else round(value.value)
        for name, value in spec.numbers.items()
    }
    engine = _build(cls, {**values, **(spec.options or {})}, "engine", where, spec.options or ())
    if not isinstance(engine, Engine):
        raise TargetError(
            f"{spec.kind!r} is not an Engine", who="accelerator", where=f"{where}: engine.kind"
        )
    return engine


def build_format(spec: FormatSpec, where: str = "architecture") -> SparseFormat:
    """Make the weight format that an architecture names; errors as in `build_engine`."""
    cls = _find(spec.kind, _FORMATS, "sparsefx.backends.formats", "weights", where)
    values = {name: round(value.value) for name, value in (spec.numbers or {}).items()}
    form = _build(cls, values, "weights", where)
    if not isinstance(form, SparseFormat):
        raise TargetError(
            f"{spec.kind!r} is not a SparseFormat", who="accelerator", where=f"{where}: weights"
        )
    return form
