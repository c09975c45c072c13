"""An ONNX file, whoever exported it, as something that predicts."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sparsefx.backends.onnxruntime.target import OnnxRuntime, open_session, run_session
from sparsefx.errors import ArtifactError, ProgramError, first_line
from sparsefx.extras import need
from sparsefx.inputs.signature import SENTENCE_OUTPUT

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["OnnxFile"]


class OnnxFile:
    """A model that was saved as ONNX.

    Args:
        path: The file; larger models have a second one beside it, which its own names.

    Attributes:
        inputs: Names of what it takes.
        classes: Size of the last dimension of its predictions; None when it is not fixed.
        batch: Size of the batches that it takes; None for any.
        predicts_tokens: Whether it predicts for each token, not for each text.

    Raises:
        ArtifactError: There is no file, it is no ONNX, or it returns no predictions.
    """

    def __init__(self, path: str | Path) -> None:
        place = Path(path)
        self._path = str(path)
        if not place.is_file():
            raise ArtifactError("there is no such file", who="open", where=str(path))
        need("onnx", who="open")
        import onnx

        try:
            self._session: Any = open_session(onnx.load(str(place)), OnnxRuntime())
        except Exception as error:  # of protobuf, onnx or ONNX Runtime, which have no common base
            raise ArtifactError(
                f"ONNX Runtime cannot load it: {error}", who="open", where=str(path)
            ) from error
        taken = {value.name: value.shape for value in self._session.get_inputs()}
        self.inputs = tuple(taken)
        sizes = {shape[0] for shape in taken.values() if shape and isinstance(shape[0], int)}
        self.batch: int | None = max(sizes, default=None)
        outputs = {value.name: value.shape for value in self._session.get_outputs()}
        self._output = "logits" if "logits" in outputs else next(iter(outputs))
        if "logits" not in outputs and (len(outputs) > 1 or SENTENCE_OUTPUT in outputs):
            raise ArtifactError(
                f"none of its outputs {', '.join(outputs)} is called 'logits'",
                who="open",
                where=str(path),
            )
        shape = outputs[self._output]
        self.predicts_tokens = len(shape or ()) > 2
        last = 1 if len(shape or ()) == 1 else (shape or [None])[-1]  # [batch]: a value each
        self.classes = last if isinstance(last, int) else None

    def predict(self, batch: Mapping[str, Tensor]) -> Tensor:
        """Return the predictions of a batch, float [rows, classes], or of tokens."""
        try:
            return run_session(self._session, batch)[self._output]
        except ProgramError as error:
            tokens = max((each.shape[1] for each in batch.values() if each.dim() > 1), default=0)
            raise ProgramError(
                f"it cannot compute texts of {tokens} tokens: {first_line(error)}",
                who=OnnxRuntime.name,
                where=self._path,
                hint="an ONNX file does not say how long a text it takes, nor how large its "
                "vocabulary is: try a smaller --max-length, and its own --tokenizer",
            ) from error
