"""Ids and folders of Hugging Face models, checked before anything is loaded from them."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from sparsefx.errors import ArtifactError, CaptureError, first_line
from sparsefx.storage.places import is_program

__all__ = ["check_place", "check_weight_files", "read_config", "unreadable"]

logger = logging.getLogger(__name__)

_PLACES = (
    "name a folder with config.json, or a model of the Hugging Face hub, e.g. "
    "google/bert_uncased_L-4_H-256_A-4, while there is a network"
)
_PATIENCE = 10  # seconds to wait for the hub's answer


def read_config(place: str) -> Any:
    """Return the configuration of an encoder.

    Raises:
        ArtifactError: There is no model at this place, or its configuration cannot be read.
        CaptureError: It is not an encoder.
    """
    import transformers

    check_place(place)
    folder = Path(place)
    if is_program(folder):
        raise ArtifactError(
            "it holds a saved Program; a Hugging Face model is needed here",
            who="load",
            where=place,
            hint="in Python a Session starts from Program.load(folder) too",
        )
    if folder.is_dir() and not (folder / "config.json").exists():
        inside = folder / "huggingface"  # of a run
        hint = f"name {inside}" if (inside / "config.json").exists() else _PLACES
        raise ArtifactError("the folder has no config.json", who="load", where=place, hint=hint)
    try:
        config = transformers.AutoConfig.from_pretrained(place)
    except (OSError, ValueError) as error:
        if folder.exists():
            raise unreadable(place, first_line(error)) from error
        why = f"the hub gives no model of this name: {first_line(error)}"
        raise _no_such_place(place, also=why) from error
    names: Sequence[str] = config.architectures or []
    decodes = any("CausalLM" in name or "LMHead" in name for name in names)
    decodes = decodes or _only_decodes(config.model_type)
    if decodes or config.is_encoder_decoder or getattr(config, "is_decoder", False):
        raise CaptureError(
            f"{', '.join(names) or config.model_type} is not an encoder",
            who="load",
            where=place,
            hint="sparsefx takes BERT-class encoders",
        )
    return config


def _only_decodes(model_type: str) -> bool:
    """Return whether this kind of model predicts next words, and never masked ones."""
    from transformers.models.auto import modeling_auto

    causal = modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
    masked = modeling_auto.MODEL_FOR_MASKED_LM_MAPPING_NAMES
    return model_type in causal and model_type not in masked


def check_place(place: str, asked: str = "config.json", hint: str = _PLACES) -> None:
    """Refuse what is neither a folder nor the id of a model; say so when the hub will be asked.

    Args:
        place: What the user named.
        asked: The file that is looked for first.
        hint: What can be named.

    Raises:
        ArtifactError: It is a file; or a path that does not exist and cannot be an id; or an id
            that is not in the cache while the hub cannot be reached.
    """
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    folder = Path(place)
    if folder.is_dir():
        return
    if folder.exists():
        raise ArtifactError("a file; a folder is needed", who="load", where=place, hint=hint)
    try:
        cached = try_to_load_from_cache(place, asked)
    except HFValidationError as error:
        raise _no_such_place(place, hint) from error
    if isinstance(cached, str):
        return
    logger.warning("%s: no such folder; asking the Hugging Face hub for it", place)
    if (trouble := _trouble_with_hub()) is not None:
        raise _no_such_place(place, hint, f"the Hugging Face hub cannot be reached: {trouble}")


def _trouble_with_hub() -> str | None:
    """Return why the hub does not answer, None if it does; a model's own request tries for 24 s."""
    from huggingface_hub import constants, get_session

    if constants.HF_HUB_OFFLINE:
        return "HF_HUB_OFFLINE is set"
    try:
        get_session().head(constants.ENDPOINT, timeout=_PATIENCE)
    except Exception as error:  # of the HTTP library that this version of huggingface_hub uses
        return first_line(error)
    return None


def _no_such_place(place: str, hint: str = _PLACES, also: str = "") -> ArtifactError:
    also = f", and {also}" if also else ""
    return ArtifactError(
        f"there is no such file or folder{also}", who="load", where=place, hint=hint
    )


def check_weight_files(place: str) -> None:
    """Read the headers of local weight files, so that a cut file is named.

    Raises:
        ArtifactError: A file is cut or altered.
    """
    for path in sorted(Path(place).glob("*.safetensors")) if Path(place).is_dir() else ():
        try:
            with safe_open(path, framework="pt") as file:
                list(file.keys())
        except (SafetensorError, OSError) as error:
            raise unreadable(str(path), f"the file is cut or altered: {error}") from error


def unreadable(place: str, why: str) -> ArtifactError:
    """Return the error for files that are there and cannot be used."""
    hint = "the folder may be cut or altered: copy or download it again"
    return ArtifactError(why, who="load", where=place, hint=hint)
