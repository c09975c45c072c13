"""Hugging Face models: from a name or folder to a Program, and back to a plain folder."""

from __future__ import annotations

import inspect
import json
import logging
import shutil
from collections.abc import Collection, Mapping
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor, nn

from sparsefx.errors import ArtifactError, CaptureError, UnrepresentableError, first_line
from sparsefx.frontend.capture import capture
from sparsefx.graph.ops import dequantize
from sparsefx.huggingface.agreement import check_agreement
from sparsefx.huggingface.model_folder import (
    check_place,
    check_weight_files,
    read_config,
    unreadable,
)
from sparsefx.huggingface.sentence_folder import read_sentence_modules, write_sentence_modules
from sparsefx.inputs.signature import SENTENCE_MODULES
from sparsefx.masks import find_masks
from sparsefx.names import listed, natural
from sparsefx.problem import MULTI_LABEL, PROBLEM_TYPES, Kind
from sparsefx.program import Program
from sparsefx.storage.files import saving

__all__ = [
    "capture_pretrained",
    "capture_tokens",
    "from_transformers",
    "load_pretrained",
    "load_tokenizer",
    "plain_weights",
    "save_pretrained",
]

logger = logging.getLogger(__name__)

_NO_CONFIGURATION = (
    "no configuration of transformers describes this model, as after prune-heads, after a "
    "shrink-width that leaves as many features as an embedding of its own width has, or without "
    "layer 0 of ModernBERT; program.save writes any Program"
)
_SENTENCES = (
    "; the folder is that of a sentence encoder: the pass pool-sentences gives its embeddings, and "
    "takes these weights out (sparsefx opt FOLDER -p pool-sentences)"
)
_KEEPS_ONE = "; labels that are numbers, and no names of classes, keep a head of one output"


def load_pretrained(
    place: str, *, labels: int | None = None, kind: Kind | None = None
) -> nn.Module:
    """Load an encoder by Hugging Face id or from a folder.

    Args:
        place: Id or folder.
        labels: Load it with a fresh head of this size, if its own head differs; None keeps the
            architecture that the configuration names.
        kind: What such a head is for, which the configuration then names too; by default
            regression for one output, else classification.

    Returns:
        The model in eval mode, with the fastest attention that export can see.

    Raises:
        ArtifactError: When files are missing, cut or altered, or the id cannot be reached.
        CaptureError: When it is not an encoder.
    """
    import transformers

    if labels is not None and labels < 1:
        raise CaptureError(
            f"a head of {labels} outputs: at least 1 is needed", who="load", where="labels"
        )
    config = read_config(place)
    check_weight_files(place)
    _check_vocabulary(config, (config.architectures or [type(config).__name__])[0])
    if labels is not None:
        kind = kind or ("regression" if labels == 1 else "classification")
        _set_head(config, place, labels, kind)
        of_words = kind == "token-classification"
        cls: Any = getattr(
            transformers, f"AutoModelFor{'Token' if of_words else 'Sequence'}Classification"
        )
    else:
        names = config.architectures or []
        cls = getattr(transformers, names[0], None) if names else None
        cls = cls or transformers.AutoModel
    model, missing = _load_weights(cls, place, config, resize=labels is not None)
    body = f"{model.base_model_prefix}." if labels is not None else ""
    drawn = [name for name in missing if name.startswith(body)]
    modules = read_sentence_modules(place) if labels is None else {}
    if drawn:
        logger.warning(
            "%s: %d weights are not in the files and begin with random values: %s%s",
            *(place, len(drawn), listed(drawn, 5), _SENTENCES if modules else ""),
        )
    if modules:
        setattr(model.config, SENTENCE_MODULES, modules)
    found: nn.Module = model.eval()
    return found


def _set_head(config: Any, place: str, labels: int, kind: Kind) -> None:
    """Write the head into the configuration, and tell what it was before."""
    if len(config.id2label or ()) not in (0, 2, labels):  # 2 is what every configuration has
        one = len(config.id2label) == 1
        logger.warning(
            "%s: its head of %d outputs is replaced by a new one of %d%s",
            *(place, len(config.id2label), labels, _KEEPS_ONE if one else ""),
        )
    if config.problem_type == MULTI_LABEL and kind != "multi-label":
        logger.warning(
            "%s: its head gave a text any number of labels; from here on it gives one of %d",
            *(place, labels),
        )
    config.num_labels = labels
    config.problem_type = PROBLEM_TYPES.get(kind)


def _load_weights(cls: Any, place: str, config: Any, *, resize: bool) -> tuple[Any, list[str]]:
    """Return the model, and the names of the weights that the files do not hold."""
    try:
        model, report = cls.from_pretrained(
            place,
            config=config,
            dtype=torch.float32,
            ignore_mismatched_sizes=True,  # they are refused below, by name
            output_loading_info=True,
        )
    except (OSError, ValueError, RuntimeError, EOFError, SafetensorError, UnpicklingError) as error:
        pickles = ", ".join(map(str, Path(place).glob("*.bin")))
        why = f"the weights cannot be loaded: {first_line(error)}"
        raise unreadable(pickles or place, why) from error
    _refuse_other_weights(model, report, place, f"{model.base_model_prefix}." if resize else "")
    return model, sorted(report["missing_keys"], key=natural)


def _refuse_other_weights(model: Any, report: Any, place: str, body: str) -> None:
    """Refuse files of another model: it would begin, in part or whole, with random values."""
    for name, there, here in sorted(report["mismatched_keys"]):
        if name.startswith(body):
            why = f"{name} is {tuple(there)} in the files, and {tuple(here)} by config.json"
            raise unreadable(place, why)
    names = {name for name, _ in model.named_parameters()}
    if not names <= set(report["missing_keys"]):
        return
    held = "".join(f", which hold {name}" for name in sorted(report["unexpected_keys"])[:1])
    raise ArtifactError(
        f"the files have none of its {len(names)} weights{held}",
        who="load",
        where=place,
        hint="names are those of transformers; take off a prefix that training added: 'module.'",
    )


def capture_pretrained(place: str, *, labels: int | None = None) -> Program:
    """Load an encoder as :func:`load_pretrained` does and capture it, batch and sequence dynamic.

    The inputs are those of ``input_ids``, ``attention_mask`` and ``token_type_ids`` that the model
    makes use of.
    """
    return capture_tokens(load_pretrained(place, labels=labels))


def capture_tokens(model: nn.Module, names: Collection[str] | None = None) -> Program:
    """Capture a model that takes tokens, with every token input that it makes use of.

    Args:
        model: Of transformers.
        names: If given, only inputs that are among these.

    Raises:
        CaptureError: When it takes no tokens, or cannot be captured.
    """
    config: Any = model.config
    vocabulary = _check_vocabulary(config, type(model).__name__)
    ids = torch.full((2, 8), min(5, vocabulary - 1))
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    if (getattr(config, "type_vocab_size", 0) or 0) > 1:
        inputs["token_type_ids"] = torch.zeros_like(ids)
    wanted = inputs.keys() if names is None else set(names)
    taken = wanted & inspect.signature(model.forward).parameters.keys()
    return capture(model, {n: t for n, t in inputs.items() if n in taken})


def _check_vocabulary(config: Any, name: str) -> int:
    """Return the size of a model's vocabulary; refuse a model that has none."""
    size: int | None = getattr(config, "vocab_size", None)
    if size is None:
        raise CaptureError(
            f"{name} has no vocabulary: it is not an encoder of text",
            who="capture",
            hint="capture other models in Python: sparsefx.capture(model, example_inputs)",
        )
    return size


def load_tokenizer(place: str) -> Any:
    """Load a tokenizer by Hugging Face id or from a folder.

    Raises:
        ArtifactError: When there is none, or its files are cut or altered.
    """
    import transformers

    hint = "give a folder with tokenizer.json or vocab.txt, or a model of the Hugging Face hub"
    check_place(place, "tokenizer_config.json", hint)
    try:
        found: Any = transformers.AutoTokenizer.from_pretrained(place)
    except Exception as error:  # tokenizers raises bare Exceptions for files that it cannot read
        raise ArtifactError(
            f"no tokenizer can be loaded: {first_line(error)}", who="load", where=place, hint=hint
        ) from error
    if set(found.get_vocab()) <= set(found.all_special_tokens):
        # From a folder without vocabulary transformers makes one that takes every word for unknown.
        raise ArtifactError(
            "no tokenizer can be loaded: it knows no words", who="load", where=place, hint=hint
        )
    return found


def plain_weights(program: Program) -> dict[str, Tensor]:
    """Return all tensors as plain values: masks multiplied in, integers times their scale."""
    found = {name: tensor.detach() for name, tensor in program.named_tensors().items()}
    for site in find_masks(program):
        found[site.weight] = found[site.weight] * found.pop(site.mask)
    for node in program.graph.find_nodes(
        op="call_function", target=torch.ops.sparsefx.dequantize.default
    ):
        weight, scale, zero_point, *axis = node.args
        if isinstance(weight, torch.fx.Node) and weight.op == "get_attr":
            parts = [found[str(part.target)] for part in (weight, scale, zero_point)]
            found[str(weight.target)] = dequantize(*parts, *axis)
    return found


def from_transformers(program: Program) -> bool:
    """Whether a Program has the configuration of a model; a run writes its problem into any."""
    return bool(program.config.keys() - {"problem_type", SENTENCE_MODULES})


def save_pretrained(program: Program, folder: str | Path) -> Path:
    """Write a folder that transformers loads with ``from_pretrained``, without sparsefx.

    Zeros stay zeros; integer weights are written as the floats they stand for. Activation
    quantization has no place in such a folder and is left out. What the folder computes is
    compared with the Program on random tokens. Weights that the captured graph does
    not use, such as a pooler that nothing reads, are left out with a warning. Of a Program that
    returns sentence embeddings (``pool-sentences``), sentence-transformers loads the folder too.
    The tokenizer is no part of a Program: ``tokenizer.save_pretrained(folder)`` puts it beside.

    Args:
        program: Captured from a Hugging Face model.
        folder: Where to write.

    Raises:
        ArtifactError: When the Program did not come from a model of transformers.
        UnrepresentableError: Its tensors have other shapes than a model of its configuration, or
            that model computes something else, as after a pass that replaces an activation.
    """
    if not from_transformers(program):
        raise ArtifactError(
            "the Program was not captured from a Hugging Face model", who="save_pretrained"
        )
    weights = plain_weights(program)
    for group in program.ties:
        weights.update({name: weights[group[0]] for name in group if group[0] in weights})
    expected = _expected_shapes(program.config)
    _refuse_other_shapes(weights, expected)
    _refuse_other_modules(weights, expected)
    check_agreement(program, lambda: _of_configuration(program.config), weights)
    missing = sorted(expected.keys() - weights.keys(), key=natural)
    if missing:
        logger.warning(
            "save_pretrained: %d weights that the captured graph does not use are left out: %s",
            len(missing),
            listed(missing, 5),
        )
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    kept = {name: weights[name].contiguous() for name in sorted(expected.keys() & weights.keys())}
    weights_file, config_file = folder / "model.safetensors", folder / "config.json"
    config = {key: held for key, held in program.config.items() if key != SENTENCE_MODULES}
    config_file.write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    with saving(weights_file):
        save_file(_without_ties(kept, program), weights_file, {"format": "pt"})
    shutil.copymode(config_file, weights_file)  # safetensors lets the owner alone read
    write_sentence_modules(program, folder)
    return folder


def _without_ties(weights: dict[str, Tensor], program: Program) -> dict[str, Tensor]:
    extra = {name for group in program.ties for name in group[1:]}
    return {name: tensor for name, tensor in weights.items() if name not in extra}


def _refuse_other_shapes(weights: Mapping[str, Tensor], expected: Mapping[str, torch.Size]) -> None:
    for name, shape in expected.items():
        if name in weights and weights[name].shape != shape:
            raise UnrepresentableError(
                f"it is {tuple(weights[name].shape)}, and a model of this configuration has "
                f"{tuple(shape)}",
                who="save_pretrained",
                where=name,
                hint=_NO_CONFIGURATION,
            )


def _refuse_other_modules(
    weights: Mapping[str, Tensor], expected: Mapping[str, torch.Size]
) -> None:
    """Refuse a weight that the class builds elsewhere only; loading would leave it out.

    ELECTRA and DeBERTa have no linear between embeddings and hidden states of one width, and
    ModernBERT no norm before the attention of layer 0.
    """
    for name in sorted(weights.keys() - expected.keys()):
        owner, _, leaf = name.rpartition(".")
        outer = owner.rpartition(".")[0]
        inside = not outer or any(each.startswith(f"{outer}.") for each in expected)
        if inside and leaf == "weight":
            raise UnrepresentableError(
                "a model of this configuration has no such weight, and would compute without it",
                who="save_pretrained",
                where=name,
                hint=_NO_CONFIGURATION,
            )


def _expected_shapes(config: dict[str, Any]) -> dict[str, torch.Size]:
    with torch.device("meta"):
        model = _of_configuration(config)
    return {name: tensor.shape for name, tensor in model.state_dict().items()}


def _of_configuration(config: dict[str, Any]) -> nn.Module:
    import transformers

    name = (config.get("architectures") or ["(none)"])[0]
    cls: Any = getattr(transformers, name, None)
    if getattr(cls, "config_class", None) is None:
        raise ArtifactError(
            f"transformers has no model class {name!r}", who="save_pretrained", where="config"
        )
    found: nn.Module = cls(cls.config_class.from_dict(config))
    return found
