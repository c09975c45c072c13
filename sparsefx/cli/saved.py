"""A saved model in any of its forms, ready to be scored, and what lies beside it."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sparsefx.cli.programs import open_program
from sparsefx.errors import ArtifactError, DataError
from sparsefx.problem import Kind, named_classes
from sparsefx.storage.places import is_tokenizer

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from torch import Tensor

    from sparsefx.train.data.batches import Encoded, Tell

__all__ = [
    "Made",
    "Saved",
    "made_by",
    "open_saved",
    "tokenizer_of",
]

_CPU = "cpu"


@dataclass(frozen=True)
class Made:
    """What the run that made a model knows of its task.

    Attributes:
        kind: Of its labels.
        classes: Their names in the order of the head.
        metric: By which the run scored.
        max_length: Longest sequence in tokens.
    """

    kind: Kind
    classes: tuple[str, ...]
    metric: str
    max_length: int


@dataclass(frozen=True)
class Saved:
    """A saved model.

    Attributes:
        predict: From data and batch size to outputs [examples, classes], or of words; the third, if
            there is one, is told how far it has come.
        outputs: Outputs of the head; None when the form does not tell.
        per_word: Whether they are for each token.
        classes: Their names, if the model knows them.
        config: Hugging Face configuration, if the form holds it or it lies beside.
        runs_on: The target that it runs on.
    """

    predict: Callable[[Encoded, int, Tell | None], NDArray[np.float32]]
    outputs: int | None
    per_word: bool
    classes: tuple[str, ...] | None
    config: Mapping[str, Any]
    runs_on: str

    def outputs_on(self, data: Encoded, batch_size: int) -> int:
        """Return the outputs of the head; where the form does not tell, a first batch does."""
        if self.outputs is not None:
            return self.outputs
        logits = self.predict(data.first(batch_size), batch_size, None)
        return 1 if logits.ndim == 1 else logits.shape[-1]


def open_saved(model: str, target: str | None = None) -> Saved:
    """Open a Program, a run, a Hugging Face model, an ONNX file, or what was compiled for ``cpu``.

    Args:
        model: Its place.
        target: Where it runs; None for ``onnxruntime`` of an ONNX file, ``cpu`` of what was
            compiled for it, and else ``reference``.

    Raises:
        ArtifactError: There is no model, it predicts nothing, or it cannot run on ``target``.
    """
    if Path(model).suffix == ".onnx":
        return _onnx(model, target)
    from sparsefx import registry
    from sparsefx.inputs.signature import SENTENCE_OUTPUT
    from sparsefx.train.evaluation import head_outputs, predict, predicts_tokens

    program = open_program(model).eval()
    if SENTENCE_OUTPUT in program.signature.outputs:
        raise ArtifactError(
            "it returns sentence embeddings, which are no predictions",
            who="open",
            where=model,
            hint="give a model with a classification or regression head",
        )
    compiled: Callable[..., Mapping[str, Tensor]] | None = None
    is_compiled = (Path(model) / _CPU / "manifest.json").exists()
    target = target or (_CPU if is_compiled else "reference")
    # With options of its own the target compiles the Program that lies beside what was compiled.
    if target == _CPU and is_compiled:
        compiled = _from_artifact(model)
    elif target != "reference":
        compiled = registry.parse_target(target).compile(program)
    return Saved(
        lambda data, size, tell: predict(program, data, size, compiled, tell=tell),
        head_outputs(program),
        predicts_tokens(program),
        named_classes(program.config),
        program.config,
        target,
    )


def _onnx(model: str, target: str | None) -> Saved:
    from sparsefx.backends.onnxruntime.saved import OnnxFile
    from sparsefx.train.evaluation import predict_by

    if target not in (None, "onnxruntime"):
        raise ArtifactError(
            f"an ONNX file runs on onnxruntime, not on {target}", who="open", where=model
        )
    file = OnnxFile(model)
    fixed = file.batch is not None
    return Saved(
        lambda data, size, tell: predict_by(
            file.predict, file.inputs, data, file.batch or size, filled=fixed, tell=tell
        ),
        file.classes,
        file.predicts_tokens,
        None,
        _config_beside(Path(model)),
        "onnxruntime",
    )


def _config_beside(file: Path) -> Mapping[str, Any]:
    """Return the configuration that ``compress`` leaves beside the ONNX file; {} without one."""
    for place in (file.parent, file.parent / "huggingface"):
        try:
            found = json.loads((place / "config.json").read_text(encoding="utf-8"))
        except (OSError, ValueError):
            continue
        if isinstance(found, dict):
            return found
    return {}


def _from_artifact(folder: str) -> Callable[..., Mapping[str, Tensor]]:
    import torch

    from sparsefx.backends.cpu.artifact import load

    loaded = load(folder)

    def run(**batch: Tensor) -> dict[str, Tensor]:
        return {name: torch.from_numpy(found) for name, found in loaded(**batch).items()}

    return run


def made_by(model: str) -> Made | None:
    """Return what the run says in whose folder a model lies; None outside of one."""
    folder = _run_folder(model)
    if folder is None:
        return None
    try:
        found = json.loads((folder / "run.json").read_text(encoding="utf-8"))
        data = found["data"]
        length = int(found["recipe"]["data"]["max_length"])
        return Made(data["kind"], tuple(data["classes"]), data["metric"], length)
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _run_folder(model: str) -> Path | None:
    """Return the run of ``RUN``, ``RUN/model.onnx`` or ``RUN/stages/2-sparse/program``."""
    place = Path(model).absolute()
    if not place.exists():
        return None
    near = (place, *place.parents[:3])
    return next((each for each in near if (each / "run.json").exists()), None)


def tokenizer_of(model: str) -> str:
    """Return where the tokenizer of a model is: beside it, in the folder of its run, or its id.

    Raises:
        DataError: There is none beside a model that is here.
    """
    place = Path(model)
    run = _run_folder(model)
    folders = [place, place.parent] if place.is_file() else [place]
    if run is not None:
        folders.append(run)
    for folder in folders:
        for each in (folder, folder / "huggingface", folder / "tokenizer"):
            if is_tokenizer(each):
                return str(each)
    if place.exists():
        raise DataError("there is no tokenizer here", where=model, hint="give --tokenizer")
    return model
