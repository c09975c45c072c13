"""A compiled Program behind the forward of the Hugging Face model that it came from."""

from __future__ import annotations

import inspect
import typing
from typing import TYPE_CHECKING, Any

import torch

from sparsefx.errors import TargetError
from sparsefx.problem import head_classes

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor, nn

    from sparsefx.inputs.signature import Signature
    from sparsefx.program import Program
    from sparsefx.target import Compiled

__all__ = ["DropIn"]

_FILLED = {"attention_mask": 1, "token_type_ids": 0}


class DropIn:
    """Call it like the model: by position or name; it returns the model's output class.

    Args:
        compiled: What runs.
        program: What was lowered.
        model: A Hugging Face model of the class that the Program was captured from; only its
            ``config`` and the signature of its ``forward`` are used.

    Raises:
        TargetError: When ``forward`` of the model promises no output class with these outputs, or
            its head has another number of classes.
    """

    def __init__(self, compiled: Compiled, program: Program, model: nn.Module) -> None:
        self.config: Any = getattr(model, "config", None)
        self._compiled = compiled
        self._signature = program.signature
        self._positions = _parameter_names(model)
        self._output = _output_class(model, program.signature)
        if self.config is not None and "logits" in program.signature.outputs:
            _check_classes(self.config, program)

    def __call__(self, *values: Tensor, **inputs: Any) -> Any:
        """Run a batch; inputs that are None count as not given, masks and types have defaults.

        ``return_dict=False`` gives a tuple, as it does on the model. What the Program does not take
        may be given where it says nothing new: token types of 0, a mask of 1, options of False.

        Raises:
            TargetError: An input is no tensor, or is one that asks for what the Program lacks.
        """
        given = {**dict(zip(self._positions, values, strict=False)), **inputs}
        as_class = given.pop("return_dict", None)
        batch = {name: value for name, value in given.items() if self._counts(name, value)}
        if "labels" in batch and "labels" not in self._signature.input_names:
            raise TargetError("the compiled model computes no loss", who="model", where="labels")
        self._check_tensors(batch)
        for name, filling in _FILLED.items():
            if name in self._signature.input_names and name not in batch and "input_ids" in batch:
                batch[name] = torch.full_like(batch["input_ids"], filling)
        result = self._output(**self._compiled(**batch))
        return result.to_tuple() if as_class is False else result

    @property
    def forward(self) -> Callable[..., Any]:
        """The call, by the name that a module has for it."""
        return self.__call__

    @property
    def device(self) -> torch.device:
        """Where it runs."""
        return torch.device("cpu")

    def to(self, device: torch.device | torch.dtype | str) -> DropIn:
        """Stay where it is.

        Raises:
            TargetError: For any other device, and for types of numbers but float32.
        """
        if isinstance(device, torch.dtype):
            return self._as(device)
        if torch.device(device) != self.device:
            raise TargetError(f"it runs on {self.device} alone", who="model", where=str(device))
        return self

    def float(self) -> DropIn:
        """Do nothing: what goes in and out is float32 already."""
        return self

    def half(self) -> DropIn:
        """Refuse, as all types but float32.

        Raises:
            TargetError: Always.
        """
        return self._as(torch.float16)

    def bfloat16(self) -> DropIn:
        """Refuse, as all types but float32.

        Raises:
            TargetError: Always.
        """
        return self._as(torch.bfloat16)

    def _as(self, dtype: torch.dtype) -> DropIn:
        if dtype != torch.float32:
            raise TargetError(
                "a compiled model has the types of numbers that it was compiled with",
                who="model",
                where=str(dtype),
                hint="it takes and gives float32, whatever it computes with; the options of the "
                "target say with what, e.g. format= of cpu, and quantize-convert makes int8",
            )
        return self

    def eval(self) -> DropIn:
        """Do nothing: it computes what the model computes in eval mode."""
        return self

    def train(self, mode: bool = True) -> DropIn:
        """Do nothing for ``train(False)``.

        Raises:
            TargetError: It cannot be trained.
        """
        if mode:
            hint = "train its Program, then compile that"
            raise TargetError("a compiled model cannot be trained", who="model", hint=hint)
        return self

    def can_generate(self) -> bool:
        """Whether it writes text; transformers' pipelines ask."""
        return False

    def _check_tensors(self, batch: dict[str, Any]) -> None:
        for name in self._signature.input_names:
            if not isinstance(value := batch.get(name), torch.Tensor | None):
                raise TargetError(
                    f"expected a tensor, got {type(value).__name__}",
                    who="model",
                    where=name,
                    hint="tokenizer(..., return_tensors='pt'), or torch.as_tensor",
                )

    def _counts(self, name: str, value: Any) -> bool:
        """Whether an input has to be passed on, and so refused if the Program lacks it."""
        if value is None or name in self._signature.input_names:
            return value is not None
        if name in _FILLED and isinstance(value, torch.Tensor):
            return bool((value != _FILLED[name]).any())
        return value is not False


def _parameter_names(model: nn.Module) -> tuple[str, ...]:
    return tuple(inspect.signature(model.forward).parameters)


def _output_class(model: nn.Module, signature: Signature) -> Any:
    """The output class in the return annotation of ``forward`` that has all outputs as fields."""
    from transformers.utils.generic import ModelOutput

    promised = typing.get_type_hints(model.forward).get("return")
    for candidate in typing.get_args(promised) or (promised,):
        fields = getattr(candidate, "__dataclass_fields__", {})
        known = isinstance(candidate, type) and issubclass(candidate, ModelOutput)
        if known and all(name in fields for name in signature.outputs):
            return candidate
    raise TargetError(
        f"forward of {type(model).__name__} returns no class with {', '.join(signature.outputs)}",
        who="model",
        hint="call the compiled Program itself; it returns a dict",
    )


def _check_classes(config: Any, program: Program) -> None:
    """Refuse a configuration that would name the outputs of another head."""
    names = [head_classes(each) for each in (config.to_dict(), program.config)]
    theirs, ours = map(len, names)
    if theirs and ours and theirs != ours:
        raise TargetError(
            f"its configuration has {theirs} classes, and the compiled model {ours}",
            who="model",
            where="id2label",
            hint="give the model that the Program was captured from, or another of its "
            f"configuration (num_labels={ours}): the weights are not used",
        )
