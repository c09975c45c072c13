"""Token ids of a recipe, of a teacher's folder and of the tokenizer of the run are the same ids."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer, models, normalizers
from transformers import PreTrainedTokenizerFast

from sparsefx.errors import ArtifactError, RecipeError, SparsefxError, TrainingError
from sparsefx.pipeline import Pipeline
from sparsefx.recipe import Recipe
from sparsefx.train.evaluation import SessionData
from sparsefx.train.session import Session
from sparsefx.train.vocabulary import check_hidden_tokens, check_kept_tokenizer, check_same_tokens
from tests.train import tiny_run

TEXT = """
name: text
data: {max_length: 16, batch_size: 8}
stages:
- name: one
  pipeline: "mlm-head,masked-lm{special=(0,100),mask_token=4}"
  training: {steps: 2, precision: fp32, data: unlabelled, label_weight: 0}
  evaluate: false
"""
TAUGHT = """
name: taught
data: {max_length: 16, batch_size: 8}
stages:
- {name: one, teacher: FOLDER, pipeline: distill, training: {steps: 1, precision: fp32}}
"""


def tokenizer(words: str, **names: str) -> Any:
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    core = Tokenizer(models.WordLevel({w: i for i, w in enumerate([*special, *words])}, "[UNK]"))
    named = {f"{each[1:-1].lower()}_token": each for each in special}
    fast: Any = PreTrainedTokenizerFast
    return fast(tokenizer_object=core, **(named | names))


def passes(text: str) -> tuple[Any, ...]:
    return Pipeline.parse(text).passes


def test_ids_of_the_tokenizer_are_taken() -> None:
    check_hidden_tokens(passes("masked-lm{mask_token=4,special=(0,1,2,3)}"), tokenizer("abc"))
    # Who has no mask token may show any other.
    check_hidden_tokens(passes("masked-lm{mask_token=1,special=(0,1,2,3)}"), tiny_run.tokenizer())


@pytest.mark.parametrize(
    ("options", "why"),
    [
        ("", "mask_token=103 is not its mask token, which is 4; special=(0, 100, 101, 102) lacks"),
        ("{mask_token=4}", "lacks 1 ([UNK]), 2 ([CLS]), 3 ([SEP])"),
        ("{mask_token=5,special=(0,1,2,3)}", "mask_token=5 is not its mask token, which is 4"),
    ],
)
def test_other_ids_are_refused_with_the_right_ones(options: str, why: str) -> None:
    with pytest.raises(RecipeError) as caught:
        check_hidden_tokens(passes(f"masked-lm{options}"), tokenizer("abc"))
    assert why in caught.value.why
    hint = "write masked-lm{mask_token=4,special=(0,1,2,3,)}, and its other options"
    assert caught.value.hint == hint
    check_hidden_tokens(passes(hint.split()[1].rstrip(",")), tokenizer("abc"))


def session(recipe: str, folder: Path, data: SessionData | None = None) -> Session:
    given = data or tiny_run.data(16, unlabelled=16)
    return Session(Recipe.parse(recipe), tiny_run.model(), given, folder, device="cpu")


def test_a_run_with_ids_of_another_vocabulary_does_not_begin(tmp_path: Path) -> None:
    with pytest.raises(SparsefxError, match=r"special=\(0, 100\) lacks 1 \(\[UNK\]\)") as caught:
        session(TEXT, tmp_path / "run").run()
    assert caught.value.who == "stage one, pipeline: masked-lm"
    assert not (tmp_path / "run").exists()


def test_a_vocabulary_of_one_size_in_another_order_is_refused(tmp_path: Path) -> None:
    tiny_run.model().save_pretrained(tmp_path / "other")  # type: ignore[operator]  # of a Module
    tokenizer("hgfedcb").save_pretrained(tmp_path / "other")
    with pytest.raises(
        TrainingError, match="gives 6 tokens other ids than that of the run"
    ) as found:
        session(TAUGHT.replace("FOLDER", str(tmp_path / "other")), tmp_path / "run").run()
    assert found.value.who == "stage one, teacher"
    assert "'b' is 11 there, 5 here" in found.value.why


def test_names_that_one_of_the_two_gave_are_no_difference(tmp_path: Path) -> None:
    tokenizer("abc").save_pretrained(tmp_path)
    check_same_tokens(str(tmp_path), tokenizer("abcd"))
    check_same_tokens(str(tmp_path), tokenizer("abC"))
    check_same_tokens(str(tmp_path / "nothing"), tokenizer("bca"))


def test_tokens_of_a_run_stand_beside_its_programs(tmp_path: Path) -> None:
    tokenizer("abc").save_pretrained(tmp_path / "tokenizer")
    program = tmp_path / "stages" / "1-one" / "program"
    program.mkdir(parents=True)
    with pytest.raises(TrainingError, match="'b' is 6 there, 5 here"):
        check_same_tokens(str(program), tokenizer("bac"))


def test_a_folder_called_program_need_not_be_of_a_run(tmp_path: Path) -> None:
    check_same_tokens("/program", tokenizer("abc"))  # no folder lies three above it
    tokenizer("abc").save_pretrained(tmp_path / "tokenizer")
    program = tmp_path / "models" / "one" / "program"
    program.mkdir(parents=True)
    check_same_tokens(str(program), tokenizer("bac"))


def test_a_tokenizer_that_cannot_be_read_is_told(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "tokenizer.json").write_text("{")
    check_same_tokens(str(tmp_path), tokenizer("abc"))
    assert "its tokens are not compared with those of the run" in caplog.text


def test_a_teacher_reads_what_the_tokenizer_gives(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    data = tiny_run.data(16)
    data.tokenizer.model_input_names = ["input_ids", "attention_mask"]
    tiny_run.model().save_pretrained(tmp_path / "teacher")  # type: ignore[operator]  # of a Module
    recipe = TAUGHT.replace("FOLDER", str(tmp_path / "teacher"))
    with caplog.at_level(logging.WARNING):
        result = session(recipe, tmp_path / "run", data).run()
    assert result.program.signature.input_names == ("input_ids", "attention_mask")
    assert "the tokenizer gives no token types; to this teacher all are 0" in caplog.text


def swapped(tokenizer: Any) -> None:
    core = json.loads(tokenizer.backend_tokenizer.to_str())
    ids = core["model"]["vocab"]
    ids["a"], ids["b"] = ids["b"], ids["a"]
    tokenizer._tokenizer = Tokenizer.from_str(json.dumps(core))


def lower_case(tokenizer: Any) -> None:
    tokenizer.backend_tokenizer.normalizer = normalizers.Lowercase()


def cut_in_front(tokenizer: Any) -> None:
    tokenizer.truncation_side = "left"


@pytest.mark.parametrize(
    ("change", "what"),
    [
        (swapped, "2 of 12 words have other ids: 'a' was 4, is 5, 'b' was 5, is 4"),
        (lower_case, 'tokenizer.normalizer: was null, is {"type": "Lowercase"}'),
        (
            lambda tokenizer: tokenizer.add_tokens(["z"]),
            "1 of 12 words have other ids: 'z' was not there, is 12",
        ),
        (cut_in_front, "truncation_side: was right, is left"),
    ],
)
def test_a_run_goes_on_with_its_own_tokenizer_alone(
    change: Callable[[Any], None], what: str, tmp_path: Path
) -> None:
    recipe = TEXT.replace("(0,100),mask_token=4", "(0,1,2,3),mask_token=1")
    data = tiny_run.data(16, unlabelled=16)
    session(recipe, tmp_path / "run", data).run()
    session(recipe, tmp_path / "run", tiny_run.data(16, unlabelled=16)).run()
    change(data.tokenizer)
    with pytest.raises(TrainingError, match="not the one that this run began with") as caught:
        session(recipe, tmp_path / "run", data).run()
    assert what in caught.value.why


def test_a_cut_tokenizer_of_a_run_is_named(tmp_path: Path) -> None:
    tiny_run.tokenizer().save_pretrained(tmp_path)
    check_kept_tokenizer(tmp_path, tiny_run.tokenizer())
    (tmp_path / "tokenizer.json").write_text("{", encoding="utf-8")
    with pytest.raises(ArtifactError, match=r"cannot be read.*\n.*hint: remove"):
        check_kept_tokenizer(tmp_path, tiny_run.tokenizer())
