"""The calling convention of a Program: what goes in, what comes out."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

import torch

from sparsefx.arithmetic import names_in
from sparsefx.errors import ProgramError, misnamed_inputs
from sparsefx.inputs.conditions import broken, check_condition

__all__ = [
    "LOSS",
    "SENTENCE_MODULES",
    "SENTENCE_OUTPUT",
    "TAUGHT",
    "Dim",
    "InputSpec",
    "Signature",
    "format_dtype",
    "format_type",
]

Dim = int | str
LOSS: Final = "loss"
"""The output that training minimises; an output ``loss.NAME`` is a term of it."""
TAUGHT: Final = "teacher_"
"""What the names of inputs begin with that hold what a teacher computed of the batch before."""
SENTENCE_OUTPUT: Final = "sentence_embedding"
"""The output of a Program that has one vector for each sentence."""
SENTENCE_MODULES: Final = "sentence_modules"
"""The key of a configuration under which is kept what sentence-transformers computes behind the
model: ``pooling`` ("mean" or "cls"), ``normalise``, ``lacks`` (what is neither) and ``files``.
"""


@dataclass(frozen=True)
class InputSpec:
    """One input tensor; a dimension is a size, or the name of a dynamic dimension."""

    name: str
    dtype: torch.dtype
    dims: tuple[Dim, ...]

    def __str__(self) -> str:
        return f"{self.name}: {format_type(self.dtype, self.dims)}"


@dataclass(frozen=True)
class Signature:
    """The inputs and outputs of a Program, in order.

    Attributes:
        inputs: The inputs.
        outputs: The names of the outputs.
        conditions: What must be so of the sizes of dynamic dimensions, such as ``sequence <= 512``;
            see :mod:`sparsefx.inputs.conditions`.
    """

    inputs: tuple[InputSpec, ...]
    outputs: tuple[str, ...]
    conditions: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for condition in self.conditions:
            check_condition(condition)

    @property
    def input_names(self) -> tuple[str, ...]:
        """The names of the inputs."""
        return tuple(spec.name for spec in self.inputs)

    @property
    def losses(self) -> tuple[str, ...]:
        """The outputs ``loss`` and ``loss.NAME``; every other one is a prediction or a state.

        >>> Signature((), ("logits", "loss", "loss.hidden", "loss_mask")).losses
        ('loss', 'loss.hidden')
        """
        return tuple(n for n in self.outputs if n == LOSS or n.startswith(f"{LOSS}."))

    @property
    def tokens(self) -> InputSpec | None:
        """The integers [batch, sequence], which numbers of each text are not; None without any."""
        pairs = (spec for spec in self.inputs if len(spec.dims) == 2)
        whole = (spec for spec in pairs if not spec.dtype.is_floating_point)
        return min(whole, key=lambda spec: sum(isinstance(d, int) for d in spec.dims), default=None)

    def taken(self, batch: int, tokens: int) -> tuple[int, int]:
        """So many sequences of so many tokens, or its own sizes where they are fixed."""
        rows, length = self.tokens.dims if self.tokens else ("batch", "sequence")
        batch = rows if isinstance(rows, int) else batch
        return batch, length if isinstance(length, int) else tokens

    def sizes(self, batch: int, tokens: int) -> dict[str, int]:
        """The size of each dynamic dimension for so many sequences of so many tokens; others 1."""
        dims = self.tokens.dims if self.tokens else ("batch", "sequence")
        found = {dim: 1 for spec in self.inputs for dim in spec.dims}
        found |= dict(zip(dims, (batch, tokens), strict=True))
        return {dim: size for dim, size in found.items() if isinstance(dim, str)}

    def check_taken(self, batch: int, tokens: int) -> None:
        """Raise ProgramError if it does not take so many sequences of so many tokens."""
        taken = self.taken(batch, tokens)
        if taken != (batch, tokens):
            raise ProgramError(
                f"it takes {taken[0]} x {taken[1]} tokens alone, not {batch} x {tokens}",
                who="program",
                where="inputs",
                hint="ask for that size, or capture the model with dynamic sizes",
            )
        if self.tokens is not None:
            self._check_conditions(self.sizes(batch, tokens))

    def check(self, batch: Mapping[str, Any]) -> None:
        """Raise ProgramError unless ``batch`` has exactly the inputs, each of dtype and shape.

        Every size of one named dynamic dimension must be the same in all inputs, and the sizes
        must satisfy the conditions.
        """
        misnamed = misnamed_inputs(self.input_names, batch, who="program")
        if misnamed is not None:
            raise misnamed
        sizes: dict[str, tuple[int, str]] = {}
        for spec in self.inputs:
            _check_input(spec, batch[spec.name], sizes)
        self._check_conditions({dim: size for dim, (size, _) in sizes.items()})

    def admits(self, sizes: Mapping[str, int]) -> bool:
        """Whether the conditions on these dimensions hold for their sizes."""
        return broken(self.conditions, sizes) is None

    def small(self) -> tuple[int, int] | None:
        """A few sequences of a few tokens that meet the conditions; None where none tried does."""
        tried = ((2, tokens) for tokens in (8, 16, 12, 7, 64))
        return next((each for each in tried if self.admits(self.sizes(*each))), None)

    def _check_conditions(self, sizes: Mapping[str, int]) -> None:
        condition = broken(self.conditions, sizes)  # an input that had a dimension may be gone
        if condition is None:
            return
        names = names_in(condition)
        places = [
            (spec.name, place, dim)
            for spec in self.inputs
            for place, dim in enumerate(spec.dims)
            if dim in names
        ]
        told = {dim: f"dimension {place} of {name} ({dim})" for name, place, dim in places[::-1]}
        given = " and ".join(f"{told[dim]} is {sizes[dim]}" for dim in sorted(told))
        raise ProgramError(
            f"{given}, and the graph holds for {condition} alone",
            who="program",
            where=places[0][0],
            hint="shorten or pad the inputs, or capture the model with examples of this size: "
            "there it may take another way through its code",
        )

    def example(self, sizes: Mapping[str, int]) -> dict[str, torch.Tensor]:
        """Return inputs to time with: masks all 1, everything else 0.

        Args:
            sizes: The size of each dynamic dimension; one that is not named gets size 1.
        """
        return {
            spec.name: torch.full(
                [sizes.get(dim, 1) if isinstance(dim, str) else dim for dim in spec.dims],
                1 if "mask" in spec.name else 0,
                dtype=spec.dtype,
            )
            for spec in self.inputs
        }


def _check_input(spec: InputSpec, value: object, sizes: dict[str, tuple[int, str]]) -> None:
    if not isinstance(value, torch.Tensor):
        raise ProgramError(
            f"expected a tensor, got {type(value).__name__}",
            who="program",
            where=spec.name,
            hint=_remedy(spec, value),
        )
    if value.dtype != spec.dtype:
        raise ProgramError(
            f"expected {spec}, got {format_dtype(value.dtype)}",
            who="program",
            where=spec.name,
            hint=f"{spec.name}.to({spec.dtype})",
        )
    if value.dim() != len(spec.dims):
        raise ProgramError(
            f"expected {len(spec.dims)} dimensions ({spec}), got shape {tuple(value.shape)}",
            who="program",
            where=spec.name,
        )
    for size, dim in zip(value.shape, spec.dims, strict=True):
        expected, origin = (dim, "") if isinstance(dim, int) else sizes.get(dim, (size, ""))
        if size != expected:
            also = f" ({dim} is {expected} in {origin})" if origin else ""
            raise ProgramError(
                f"expected {spec}, got shape {tuple(value.shape)}{also}",
                who="program",
                where=spec.name,
            )
        if size == 0:
            raise ProgramError(
                f"dimension {dim!r} is empty (shape {tuple(value.shape)})",
                who="program",
                where=spec.name,
                hint="give at least one sequence of at least one token",
            )
        if isinstance(dim, str):
            sizes.setdefault(dim, (size, spec.name))


def _remedy(spec: InputSpec, value: object) -> str:
    """What to do about an input that is no tensor."""
    if value is None:
        return "pass every input that the model was captured with"
    convert = "torch.from_numpy" if hasattr(value, "__array_interface__") else "torch.tensor"
    return f"{convert}({spec.name})"


def format_dtype(dtype: torch.dtype) -> str:
    """Return ``float32`` for ``torch.float32``."""
    return str(dtype).removeprefix("torch.")


def format_type(dtype: torch.dtype, dims: tuple[Any, ...]) -> str:
    """Return ``float32[batch, sequence, 384]``."""
    return f"{format_dtype(dtype)}[{', '.join(str(dim) for dim in dims)}]"
