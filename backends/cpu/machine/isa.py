"""Instruction sets the code generator writes for, and what the host offers.

An instruction set is chosen from CPU *features*, never from the CPU name: hypervisors mask names
(a machine with AMX was seen to call itself `rocketlake`).
"""

from __future__ import annotations

import ctypes
import platform
from dataclasses import dataclass, replace
from functools import cache
from typing import Literal, get_args

from sparsefx.errors import TargetError
from sparsefx.extras import need

IsaName = Literal[
    "avx2",
    "avx512",
    "avx512_vnni",
    "avx512_bf16",
    "avx512_fp16",
    "avx512_fp16_emulated",
    "amx",
    "amx_emulated",
    "amx_bf16",
    "amx_bf16_emulated",
    "neon",
    "neon_dotprod",
    "neon_i8mm",
    "neon_dotprod_emulated",
    "neon_i8mm_emulated",
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
    "short_isa",
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
        dots: The instruction for int32 += products of four bytes: `vpdpbusd` and `usdot` multiply
            uint8 with int8, `sdot` int8 with int8. With a triple of x86 the Arm ones are a model of
            them in ordinary code.
        short: Floats of 16 bits that it multiplies: `vdpbf16ps`, or `vfmadd` of `ph`.
        tiles: Tile registers: none, those of AMX, or a model of them in ordinary code, which is
            slow and for tests.
    """

    name: IsaName
    triple: str
    cpu: str
    features: tuple[str, ...]
    vector_bytes: int
    dots: Literal["", "vpdpbusd", "sdot", "usdot"] = ""
    tiles: Literal["", "hardware", "model"] = ""
    short: Literal["", "bf16", "fp16"] = ""

    @property
    def lanes(self) -> int:
        """fp32 or int32 lanes of one vector register."""
        return self.vector_bytes // 4

    @property
    def is_x86(self) -> bool:
        """Whether kernels use instructions of x86-64; a model of Arm's uses none of either."""
        return self.triple == _X86 and self.dots in ("", "vpdpbusd")

    @property
    def is_model(self) -> bool:
        """Whether this stands in for another instruction set, slowly and for tests."""
        return self.name.endswith("_emulated")

    @property
    def has_dot(self) -> bool:
        """Whether there is an int32 += dot product of four bytes."""
        return self.dots != ""

    @property
    def has_pack_order(self) -> bool:
        """Whether bytes lie in pack order (see `panel`)."""
        return self.dots == "vpdpbusd"

    @property
    def signed_codes(self) -> bool:
        """Whether codes 0 to 255 are stored as int8, less 128: `sdot` knows no uint8."""
        return self.dots == "sdot"

    @property
    def without_dots(self) -> Isa:
        """What fp32 models are lowered for; its panels suit fp32."""
        if not self.has_dot or (self.is_model and not self.is_x86):
            return self
        return ISAS["avx512" if self.is_x86 else "neon"]

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
_BF16, _FP16 = (*_VNNI, "avx512bf16"), (*_VNNI, "avx512fp16")
_VBMI_BF16 = (*_VBMI, "avx512bf16")
_AMX = (*_VBMI, "amx-tile", "amx-int8")
_AMX_BF16 = (*_AMX, "avx512bf16", "amx-bf16")
_X86 = "x86_64-unknown-linux-gnu"
_ARM = "aarch64-unknown-linux-gnu"
_V3, _V4 = "x86-64-v3", "x86-64-v4"
_DOTPROD = ("neon", "dotprod")

ISAS: dict[IsaName, Isa] = {
    "avx2": Isa("avx2", _X86, _V3, _AVX2, 32),
    "avx512": Isa("avx512", _X86, _V4, _AVX512, 64),
    "avx512_vnni": Isa("avx512_vnni", _X86, _V4, _VNNI, 64, "vpdpbusd"),
    "avx512_fp16": Isa("avx512_fp16", _X86, _V4, _FP16, 64, "vpdpbusd", short="fp16"),
    "avx512_fp16_emulated": Isa(
        "avx512_fp16_emulated", _X86, _V4, _VNNI, 64, "vpdpbusd", short="fp16"
    ),
    "amx": Isa("amx", _X86, _V4, _AMX, 64, "vpdpbusd", "hardware"),
    "amx_emulated": Isa("amx_emulated", _X86, _V4, _VBMI, 64, "vpdpbusd", "model"),
    "amx_bf16": Isa("amx_bf16", _X86, _V4, _AMX_BF16, 64, "vpdpbusd", "hardware", "bf16"),
    "amx_bf16_emulated": Isa(
        "amx_bf16_emulated", _X86, _V4, _VBMI_BF16, 64, "vpdpbusd", "model", "bf16"
    ),
    "avx512_bf16": Isa("avx512_bf16", _X86, _V4, _BF16, 64, "vpdpbusd", short="bf16"),
    "neon": Isa("neon", _ARM, "generic", ("neon",), 16),
    "neon_dotprod": Isa("neon_dotprod", _ARM, "generic", _DOTPROD, 16, "sdot"),
    "neon_i8mm": Isa("neon_i8mm", _ARM, "generic", (*_DOTPROD, "i8mm"), 16, "usdot"),
    "neon_dotprod_emulated": Isa("neon_dotprod_emulated", _X86, _V3, _AVX2, 16, "sdot"),
    "neon_i8mm_emulated": Isa("neon_i8mm_emulated", _X86, _V3, _AVX2, 16, "usdot"),
}

NATIVE: tuple[IsaName, ...] = (
    *("amx", "avx512_vnni", "avx512", "avx2"),
    *("neon_i8mm", "neon_dotprod", "neon"),
)
"""What `"native"` chooses from, the best first."""

_HWCAP, _HWCAP2 = 16, 26
_ARM_FEATURES = {"neon": (_HWCAP, 1), "dotprod": (_HWCAP, 20), "i8mm": (_HWCAP2, 13)}
"""Where Linux says that an Arm CPU has a feature: the word of the auxiliary vector, and the bit."""


@cache
def host_features() -> frozenset[str]:
    """LLVM names of the features that this machine has.

    Raises:
        DependencyError: llvmlite is not installed.
    """
    need("cpu", who="cpu")
    import llvmlite.binding as llvm

    if platform.machine() == "aarch64" and platform.system() == "Linux":
        return _arm_features()
    return frozenset(name for name, on in llvm.get_host_cpu_features().items() if on)


def _arm_features() -> frozenset[str]:
    """Features by the auxiliary vector: `/proc/cpuinfo`, which LLVM reads, may be hidden."""
    value = ctypes.CDLL(None).getauxval
    value.argtypes, value.restype = [ctypes.c_ulong], ctypes.c_ulong
    return frozenset(name for name, (word, bit) in _ARM_FEATURES.items() if value(word) >> bit & 1)


def missing_features(name: IsaName) -> tuple[str, ...]:
    """Features of `name` that this machine lacks; empty if its kernels can run here."""
    return tuple(f for f in ISAS[name].features if f not in host_features())


def obstacle(name: IsaName) -> str:
    """Why this process cannot run the kernels of `name` ("it lacks ..."); "" if it can.

    AMX needs more than features: see `amx_host`.
    """
    lacking = missing_features(name)
    if ISAS[name].tiles == "hardware" and not lacking:
        from sparsefx.backends.cpu.machine.amx_host import refusal

        return refusal(name)
    if platform.system() != "Linux":
        return "its threads wait by a system call of Linux"
    return f"it lacks {', '.join(lacking)}" if lacking else ""


def with_extras(chosen: Isa) -> Isa:
    """An instruction set with the optional features that this machine has on top of it."""
    if chosen.name not in ("avx512_vnni", "avx512_bf16", "avx512_fp16"):
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
            who=f"cpu{{isa={name!r}}}",
            hint=f"choose one of native, {', '.join(ISAS)}",
        )
    chosen = next(found for found in ISAS.values() if found.name == name)
    why = obstacle(chosen.name)
    if why:
        raise TargetError(
            f"this machine cannot run {name!r}: {why}",
            who=f"cpu{{isa={name!r}}}",
            hint="isa='native' takes the best that the machine has",
        )
    return with_extras(chosen)


def short_isa(name: str, short: Literal["bf16", "fp16"]) -> Isa:
    """The instruction set that multiplies floats of 16 bits: `name`, or `"native"` for any.

    Raises:
        TargetError: if `name` has no such products, or the machine has not.
    """
    having = [found for found in ISAS.values() if found.short == short]
    wanted = [
        found for found in having if found.name == name or (name == "native" and not found.is_model)
    ]
    if not wanted:
        names = " or ".join(found.name for found in having if not found.is_model)
        raise TargetError(
            f"{name!r} has no products of {short}",
            who=f"cpu{{precision={short!r}}}",
            hint=f"precision={short!r} goes with isa='native' or {names}",
        )
    chosen = next((found for found in wanted if not obstacle(found.name)), wanted[-1])
    why = obstacle(chosen.name)
    if why:
        raise TargetError(
            f"this machine multiplies no {short}: {why}",
            who=f"cpu{{precision={short!r}}}",
            hint="precision='fp32', the default, runs here",
        )
    return with_extras(chosen)
