"""What sentence-transformers needs beside a Hugging Face folder: which modules follow the encoder.

Nothing of sentence-transformers is imported; the files are its own plain JSON.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sparsefx.inputs.signature import SENTENCE_OUTPUT
from sparsefx.spec import parse_specs

if TYPE_CHECKING:
    from torch import Tensor

    from sparsefx.program import Program

__all__ = ["sentence_vectors", "write_sentence_modules"]

_PASS = "pool-sentences"
_MODULES = ("Transformer", "Pooling", "Normalize")


def write_sentence_modules(program: Program, folder: Path) -> bool:
    """Write ``modules.json`` and the settings of its modules, if the Program embeds sentences.

    Args:
        program: One on which ``pool-sentences`` ran.
        folder: A Hugging Face folder, to which the files are added.

    Returns:
        Whether it does.
    """
    options = _options(program)
    if options is None:
        return False
    mean = options.get("pooling", "mean") == "mean"
    width = program.config.get("hidden_size") or program.config.get("dim")
    pooling = {
        "word_embedding_dimension": width,
        "pooling_mode_cls_token": not mean,
        "pooling_mode_mean_tokens": mean,
    }
    kinds = _MODULES if options.get("normalise", True) else _MODULES[:-1]
    paths = ["", *(f"{index}_{kind}" for index, kind in enumerate(kinds) if index)]
    modules = [
        {"idx": i, "name": str(i), "path": path, "type": f"sentence_transformers.models.{kind}"}
        for i, (kind, path) in enumerate(zip(kinds, paths, strict=True))
    ]
    for path in paths[1:]:
        (folder / path).mkdir(exist_ok=True)
    _write(folder / "modules.json", modules)
    _write(folder / "1_Pooling" / "config.json", pooling)
    length = program.config.get("max_position_embeddings", 512)
    _write(folder / "sentence_bert_config.json", {"max_seq_length": length, "do_lower_case": False})
    return True


def sentence_vectors(program: Program, outputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return what these modules make of the last hidden states of a batch without padding.

    Args:
        program: Any; one on which ``pool-sentences`` did not run has none.
        outputs: Of the model of transformers.
    """
    options = _options(program)
    states = outputs.get("last_hidden_state")
    if options is None or states is None:
        return {}
    mean = options.get("pooling", "mean") == "mean"
    pooled = states.mean(dim=1) if mean else states[:, 0]
    if options.get("normalise", True):
        pooled = pooled / pooled.norm(dim=-1, keepdim=True)
    return {SENTENCE_OUTPUT: pooled}


def _options(program: Program) -> Mapping[str, Any] | None:
    specs = [entry.spec for entry in program.history if entry.spec.startswith(_PASS)]
    return parse_specs(specs[-1])[0].options if specs else None


def _write(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")
