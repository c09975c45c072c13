"""Instruction sets the code generator writes for, and what the host offers.

An instruction set is chosen from CPU *features*, never from the CPU name: hypervisors mask names
(a machine with AMX was seen to call itself `rocketlake`).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cache
from typing import Literal, get_args

from sparsefx.errors import TargetError

IsaName = Literal[
    "avx2",
    "avx512",
    "avx512_vnni",
    "avx512_fp16",
    "amx",
    "amx_emulated",
    "neon",
    "neon_dotprod",
]

__all__ = [
    "ISAS",
    "NATIVE",
    "Isa",
    "IsaName",
    "best_isa",
    "host_features",
    "isa",
    "missing_features",
    "obstacle",
    "with_extras",
]


@dataclass(frozen=True)
class Isa:
    """One instruction set.

    Attributes:
        name: The name the `cpu{isa=...}` option takes.
        triple: LLVM target triple.
        cpu: LLVM cpu that gives the base level; everything above it comes from `features`.
        features: LLVM feature names that the kernels use and the host must have.
        vector_bytes: Width of one vector register that the kernels use.
        tiles: Tile registers: none, those of AMX, or a model of them in ordinary code, which is
            slow and for tests.
    """

    name: IsaName
    triple: str
    cpu: str
    features: tuple[str, ...]
    vector_bytes: int
    tiles: Literal["", "hardware", "model"] = ""

    @property
    def lanes(self) -> int:
        """fp32 or int32 lanes of one vector register."""
        return self.vector_bytes // 4

    @property
    def is_x86(self) -> bool:
        """Whether this is an x86-64 instruction set."""
        return self.triple.startswith("x86_64")

    @property
    def has_dot(self) -> bool:
        """Whether there is an int32 += u8 x s8 dot product of four (`vpdpbusd`)."""
        return "avx512vnni" in self.features

    @property
    def has_tiles(self) -> bool:
        """Whether there are products of tiles (AMX)."""
        return self.tiles != ""

    @property
    def has_byte_table(self) -> bool:
        """Whether bytes can be looked up in a table of 128 entries (`vpermi2b`)."""
        return "avx512vbmi" in self.features

    @property
    def flags(self) -> str:
        """The feature string handed to LLVM."""
        return ",".join(f"+{name}" for name in self.features)


_AVX2 = ("avx2", "fma", "f16c", "bmi2", "popcnt")
_AVX512 = (*_AVX2, "avx512f", "avx512bw", "avx512dq", "avx512vl", "avx512cd")
_VNNI = (*_AVX512, "avx512vnni")
_VBMI = (*_VNNI, "avx512vbmi", "avx512vbmi2")
_AMX = (*_VBMI, "amx-tile", "amx-int8")
_X86 = "x86_64-unknown-linux-gnu"
_ARM = "aarch64-unknown-linux-gnu"

ISAS: dict[IsaName, Isa] = {
    "avx2": Isa("avx2", _X86, "x86-64-v3", _AVX2, 32),
    "avx512": Isa("avx512", _X86, "x86-64-v4", _AVX512, 64),
    "avx512_vnni": Isa("avx512_vnni", _X86, "x86-64-v4", _VNNI, 64),
    "avx512_fp16": Isa("avx512_fp16", _X86, "x86-64-v4", (*_VNNI, "avx512fp16"), 64),
    "amx": Isa("amx", _X86, "x86-64-v4", _AMX, 64, "hardware"),
    "amx_emulated": Isa("amx_emulated", _X86, "x86-64-v4", _VBMI, 64, "model"),
    "neon": Isa("neon", _ARM, "generic", ("neon",), 16),
    "neon_dotprod": Isa("neon_dotprod", _ARM, "generic", ("neon", "dotprod"), 16),
}

NATIVE: tuple[IsaName, ...] = ("amx", "avx512_vnni", "avx512", "avx2")
"""What `"native"` chooses from, the best first."""


@cache
def host_features() -> frozenset[str]:
    """LLVM names of the features that this machine has."""
    import llvmlite.binding as llvm

    return frozenset(name for name, on in llvm.get_host_cpu_features().items() if on)


def missing_features(name: IsaName) -> tuple[str, ...]:
    """Features of `name` that this machine lacks; empty if its kernels can run here."""
    return tuple(f for f in ISAS[name].features if f not in host_features())


def obstacle(name: IsaName) -> str:
    """Why this process cannot run the kernels of `name` ("it lacks ..."); "" if it can.

    AMX needs more than features: see `amx_host`.
    """
    if ISAS[name].tiles == "hardware":
        from sparsefx.backends.cpu.amx_host import refusal

        return refusal()
    lacking = missing_features(name)
    return f"it lacks {', '.join(lacking)}" if lacking else ""


def with_extras(chosen: Isa) -> Isa:
    """An instruction set with the optional features that this machine has on top of it."""
    if chosen.name != "avx512_vnni":
        return chosen
    extra = tuple(f for f in ("avx512vbmi",) if f in host_features())
    return replace(chosen, features=(*chosen.features, *extra))


def best_isa(*, integers: bool = True) -> Isa:
    """The widest instruction set of this machine for which whole models are lowered.

    Args:
        integers: Whether products of integers are wanted; without them nothing is asked of AMX.
    """
    for name in NATIVE:
        if (integers or not ISAS[name].has_dot) and not obstacle(name):
            return with_extras(ISAS[name])
    raise TargetError(
        f"this machine has none of {', '.join(NATIVE)}",
        hint="use the target 'reference' or 'onnxruntime' here",
    )


def isa(name: str) -> Isa:
    """The instruction set called `name`; `"native"` is the best of this machine.

    Raises:
        TargetError: if there is no such instruction set, or the machine cannot run it.
    """
    if name == "native":
        return best_isa()
    if name not in get_args(IsaName):
        raise TargetError(
            f"unknown instruction set {name!r}",
            hint=f"choose one of native, {', '.join(ISAS)}",
        )
    chosen = next(found for found in ISAS.values() if found.name == name)
    why = obstacle(chosen.name)
    if why:
        raise TargetError(
            f"this machine cannot run {name!r}: {why}",
            hint="isa='native' takes the best that the machine has",
        )
    return with_extras(chosen)
