"""What sentence-transformers needs beside a Hugging Face folder: which modules follow the encoder.

Nothing of sentence-transformers is imported; the files are its own plain JSON.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sparsefx.huggingface.model_folder import unreadable
from sparsefx.inputs.signature import SENTENCE_MODULES, SENTENCE_OUTPUT

if TYPE_CHECKING:
    from torch import Tensor

    from sparsefx.program import Program

__all__ = ["read_sentence_modules", "sentence_vectors", "write_sentence_modules"]

_LIST = "modules.json"
_LENGTH = "sentence_bert_config.json"
_PROMPTS = "config_sentence_transformers.json"
_MODULES = ("Transformer", "Pooling", "Normalize")
_IDLE = ("Dropout",)  # computes nothing outside of training
_POOLINGS = {"mean": "mean", "mean_tokens": "mean", "cls": "cls", "cls_token": "cls"}


def read_sentence_modules(place: str) -> dict[str, Any]:
    """Return what follows an encoder in a folder of sentence-transformers.

    Args:
        place: Hugging Face id or folder.

    Returns:
        Nothing for another folder; else what a configuration has under ``SENTENCE_MODULES``.

    Raises:
        ArtifactError: The files are not those of sentence-transformers.
    """
    modules = _read(place, _LIST)
    if modules is None:
        return {}
    try:
        kinds = [each["type"].rpartition(".")[2] for each in modules]
        paths = [each["path"] for each in modules if each["type"].endswith(".Pooling")]
        settings = (_read(place, f"{paths[0]}/config.json") if paths else None) or {}
        modes = _modes(settings)
        prompts = _read(place, _PROMPTS) or {}
        lacks = [kind for kind in kinds if kind not in (*_MODULES, *_IDLE)]
        if len(modes) != 1 or modes[0] not in _POOLINGS:
            lacks.append(f"pooling by {' and '.join(modes) or 'nothing'}")
        if settings.get("include_prompt") is False and any(prompts.get("prompts", {}).values()):
            lacks.append("pooling without the prompt")
    except (AttributeError, KeyError, TypeError) as error:
        raise unreadable(place, f"{_LIST} or the settings of a module: {error!r}") from error
    files = {name: _read(place, name) for name in (_LENGTH, _PROMPTS)}
    return {
        "pooling": _POOLINGS.get(modes[0]) if modes else None,
        "normalise": "Normalize" in kinds,
        "lacks": lacks,
        "files": {name: held for name, held in files.items() if held is not None},
    }


def write_sentence_modules(program: Program, folder: Path) -> bool:
    """Write ``modules.json`` and the settings of its modules, if the Program embeds sentences.

    Args:
        program: One on which ``pool-sentences`` ran.
        folder: A Hugging Face folder, to which the files are added.

    Returns:
        Whether it does.
    """
    said = _said(program)
    if said is None:
        return False
    mean = said["pooling"] == "mean"
    width = program.config.get("hidden_size") or program.config.get("dim")
    pooling = {
        "word_embedding_dimension": width,
        "pooling_mode_cls_token": not mean,
        "pooling_mode_mean_tokens": mean,
    }
    kinds = _MODULES if said["normalise"] else _MODULES[:-1]
    paths = ["", *(f"{index}_{kind}" for index, kind in enumerate(kinds) if index)]
    modules = [
        {"idx": i, "name": str(i), "path": path, "type": f"sentence_transformers.models.{kind}"}
        for i, (kind, path) in enumerate(zip(kinds, paths, strict=True))
    ]
    for path in paths[1:]:
        (folder / path).mkdir(exist_ok=True)
    length = program.config.get("max_position_embeddings", 512)
    files = {_LENGTH: {"max_seq_length": length, "do_lower_case": False}, **said.get("files", {})}
    files |= {_LIST: modules, "1_Pooling/config.json": pooling}
    for name, held in files.items():
        (folder / name).write_text(json.dumps(held, indent=2) + "\n", encoding="utf-8")
    return True


def sentence_vectors(program: Program, outputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return what these modules make of the last hidden states of a batch without padding.

    Args:
        program: Any; one on which ``pool-sentences`` did not run has none.
        outputs: Of the model of transformers.
    """
    said = _said(program)
    states = outputs.get("last_hidden_state")
    if said is None or states is None:
        return {}
    pooled = states.mean(dim=1) if said["pooling"] == "mean" else states[:, 0]
    if said["normalise"]:
        pooled = pooled / pooled.norm(dim=-1, keepdim=True)
    return {SENTENCE_OUTPUT: pooled}


def _said(program: Program) -> Mapping[str, Any] | None:
    """What ``pool-sentences`` did; None where it did not run."""
    return program.config.get(SENTENCE_MODULES) if SENTENCE_OUTPUT in program.outputs() else None


def _modes(settings: Mapping[str, Any]) -> list[str]:
    """The ways of pooling, as version 6 or those before it write them."""
    if "pooling_mode" in settings:
        mode = settings["pooling_mode"]
        return [mode] if isinstance(mode, str) else list(mode)
    begin = "pooling_mode_"
    return [key.removeprefix(begin) for key, on in settings.items() if on and key.startswith(begin)]


def _read(place: str, name: str) -> Any:
    """The JSON of a file, None where it is not there."""
    from transformers.utils.hub import cached_file

    try:
        path = cached_file(place, name)
    except OSError:
        path = None
    if path is None:
        return None
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise unreadable(place, f"{name} is no JSON: {error}") from error
