"""The Programs that a run starts from: its model, and teachers in folders."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from sparsefx.errors import TrainingError
from sparsefx.finite import not_finite, told
from sparsefx.frontend import capture
from sparsefx.huggingface import capture_pretrained
from sparsefx.program import Program
from sparsefx.train.batches import check_tokens
from sparsefx.train.evaluation import TokenData

__all__ = ["open_folder", "starting_model"]


def starting_model(model: nn.Module | Program, folder: Path, data: TokenData) -> Program:
    """Return what a run starts from: the model captured, or what a former session saved of it.

    Raises:
        TrainingError: The run in ``folder`` began with another model, or a weight is NaN.
        DataError: A text has more tokens than the model has positions, or unknown ones.
    """
    saved = folder / "model"
    if (saved / "manifest.json").exists():
        found = Program.load(saved)
        _check_same_model(model, found, folder)
        return found
    config = model.config if isinstance(model, Program) else _config_of(model)
    for split in (data.everything, data.test):
        check_tokens(split, config)
    if isinstance(model, Program):
        return _checked(model)
    taken = set(_parameters_of(model))
    return _checked(capture(model, {n: t for n, t in data.example().items() if n in taken}))


def _checked(program: Program) -> Program:
    if names := not_finite(program):
        raise TrainingError(
            f"the model holds {told(names)}",
            who="session",
            where=names[0],
            hint="nothing can be learnt from them: take another checkpoint of the model",
        )
    return program


def open_folder(folder: str) -> Program:
    """Return the Program in a teacher's folder."""
    place = Path(folder).expanduser()
    is_program = (place / "manifest.json").exists()
    return Program.load(place) if is_program else capture_pretrained(str(place))


def _config_of(model: nn.Module) -> dict[str, Any]:
    config: Any = getattr(model, "config", None)
    return config.to_dict() if hasattr(config, "to_dict") else {}


def _check_same_model(given: nn.Module | Program, saved: Program, folder: Path) -> None:
    """Refuse a model of which most tensors differ; a new head may have other random values."""
    if isinstance(given, Program):
        tensors: Mapping[str, Tensor] = given.named_tensors()
    else:
        tensors = dict(given.state_dict())
    held = saved.named_tensors()
    same = sum(
        name in tensors
        and tensors[name].shape == tensor.shape
        and bool(torch.equal(tensors[name].cpu(), tensor))
        for name, tensor in held.items()
    )
    if 2 * same < len(held):
        raise TrainingError(
            f"the model is not the one that this run began with: {len(held) - same} of "
            f"{len(held)} tensors differ",
            who="resume",
            where=str(folder),
            hint="go on with the same model, or choose another folder",
        )


def _parameters_of(model: nn.Module) -> list[str]:
    forward: Callable[..., Any] = model.forward
    return list(inspect.signature(forward).parameters)
