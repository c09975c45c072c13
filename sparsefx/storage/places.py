"""What lies at a path that somebody took for something else, and what loads it."""

from __future__ import annotations

from pathlib import Path

from sparsefx.names import natural

__all__ = ["MANIFEST", "is_program", "is_tokenizer", "told_place"]

MANIFEST = "manifest.json"
_PROGRAM = (MANIFEST, "graph.json", "tensors.safetensors")
_VOCABULARIES = ("tokenizer.json", "vocab.txt")


def is_program(folder: Path) -> bool:
    """Whether a Program was saved to a folder; loading it finds out whether its files are whole."""
    return (folder / MANIFEST).is_file()


def is_tokenizer(folder: Path) -> bool:
    """Whether transformers finds the words of a tokenizer in a folder."""
    return any((folder / name).exists() for name in _VOCABULARIES)


def told_place(path: Path) -> tuple[str, str]:
    """Say what is at a path, and how it is loaded; the second is "" where nobody knows.

    >>> told_place(Path("no/such/place"))
    ('there is no such file or folder', '')
    """
    if not path.exists():
        return "there is no such file or folder", ""
    if path.suffix == ".onnx":
        return "it is an ONNX file", "onnxruntime.InferenceSession(path) loads it"
    if not path.is_dir():
        return "it is a file", ""
    return _folder(path) or ("the folder holds something else", "")


def _folder(path: Path) -> tuple[str, str] | None:
    if (path / "run.json").exists():
        return "it is the folder of a run", _programs(path)
    if all((path / name).exists() for name in _PROGRAM):
        return "it is a saved Program", "Program.load(folder) loads it"
    if is_program(path / "program"):
        inside = str(path / "program")
        return "it is a stage of a run", f"Program.load({inside!r}) loads its Program"
    if (path / "config.json").exists():
        loads = "sparsefx.huggingface.capture_pretrained(folder) loads it"
        return "it is a Hugging Face model", loads
    if is_tokenizer(path):
        return "it is a tokenizer", "transformers.AutoTokenizer.from_pretrained(folder) loads it"
    return None


def _programs(run: Path) -> str:
    stages = sorted(run.glob("stages/*/program"), key=lambda path: natural(str(path)))
    if not stages:
        return "no stage of it is finished yet"
    return f"Program.load({str(stages[-1])!r}) loads the Program of its last finished stage"
