"""Pairs of sentences for sparse pre-training."""

from __future__ import annotations

import lzma
from pathlib import Path

from benchmarks.pretraining_pairs import wikipedia_pairs

PARAGRAPHS = (
    "The first sentence has six words. The second one follows it here. Too short.",
    "This one is left alone.",
    "",
    "Another paragraph begins with this one. It ends with this other one!",
)


def wikipedia(folder: Path) -> Path:
    path = folder / "text.xz"
    path.write_bytes(lzma.compress("\n".join(PARAGRAPHS).encode()))
    return path


def test_sentences_of_one_paragraph_make_pairs(tmp_path: Path) -> None:
    assert list(wikipedia_pairs(wikipedia(tmp_path))) == [
        ("The first sentence has six words.", "The second one follows it here."),
        ("Another paragraph begins with this one.", "It ends with this other one!"),
    ]
