"""benchmarks/width_vs_sparse.py in a form of seconds: equal non-zeros, resumed, table and plot."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from benchmarks import width_vs_sparse


def test_it_trains_resumes_and_reports(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    options: dict[str, Any] = {"full": 0.125, "seeds": "0", "epochs": 1, "train": 128, "rate": 4e-3}
    width_vs_sparse.main(widths="0.0625", results=tmp_path, **options)
    runs = {path.stem: json.loads(path.read_text()) for path in tmp_path.glob("*.json")}
    assert set(runs) == {"0.125-dense-0", "0.0625-dense-0", "0.0625-sparse-0"}
    sparse, dense = runs["0.0625-sparse-0"], runs["0.0625-dense-0"]
    assert sparse["nonzeros"] == pytest.approx(dense["nonzeros"], abs=50)
    assert 0.7 < sparse["sparsity"] < 0.99
    assert sparse["images"] == 1797 - 128
    shown = capsys.readouterr().out
    assert f"| 0.0625 | {dense['nonzeros']:,} |" in shown
    assert (tmp_path / "plot.svg").read_text().startswith("<svg")

    (tmp_path / "0.0625-sparse-0.json").unlink()
    trained = []

    def note(variant: width_vs_sparse.Variant, _: object) -> dict[str, Any]:
        trained.append(variant.name)
        found: dict[str, Any] = sparse
        return found

    monkeypatch.setattr(width_vs_sparse, "run", note)
    width_vs_sparse.main(widths="0.0625", results=tmp_path, **options)
    assert trained == ["0.0625-sparse-0"]
    assert "| 0.0625 |" in (tmp_path / "table.md").read_text()


def test_the_committed_table_is_that_of_the_committed_runs() -> None:
    settings = width_vs_sparse.Settings(0.25, 20, 1297, 6e-3)
    found = width_vs_sparse.load(width_vs_sparse.RESULTS, settings)
    assert {len(runs) for runs in found.values()} == {6}
    text = width_vs_sparse.table(found) + "\n"
    assert (width_vs_sparse.RESULTS / "table.md").read_text(encoding="utf-8") == text
    document = Path(__file__).parents[2] / "docs" / "methods.md"
    assert text in document.read_text(encoding="utf-8")
