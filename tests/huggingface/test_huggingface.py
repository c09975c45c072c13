"""From a Hugging Face folder to a Program and back."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from sparsefx import errors
from sparsefx.huggingface import (
    capture_pretrained,
    capture_tokens,
    load_pretrained,
    load_tokenizer,
    save_pretrained,
)
from tests.programs import captured
from tests.tiny_models import example_batch, small_bert, tiny

HUGGING_FACE = ("bert-cls", "bert-mlm", "distilbert", "roberta", "mpnet", "modernbert")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    tiny("bert-cls").save_pretrained(tmp_path / "model")  # type: ignore[operator]  # a Hugging Face model
    return tmp_path / "model"


@pytest.mark.parametrize("name", HUGGING_FACE)
def test_round_trip_gives_equal_outputs(name: str, tmp_path: Path) -> None:
    model = tiny(name, "eager" if name == "mpnet" else "sdpa")
    model.save_pretrained(tmp_path / "in")  # type: ignore[operator]  # a Hugging Face model
    program = capture_pretrained(str(tmp_path / "in"))
    save_pretrained(program, tmp_path / "out")
    again = load_pretrained(str(tmp_path / "out"))
    batch = example_batch(3, 9)
    with torch.no_grad():
        assert torch.equal(again(**batch)[0], model(**batch)[0])


@pytest.mark.parametrize("name", ["Unknown", "AutoModel", "BertConfig"])
def test_a_class_that_is_no_model_is_named(name: str, tmp_path: Path) -> None:
    program = captured("bert-cls")
    program.config = {**program.config, "architectures": [name]}
    with pytest.raises(errors.ArtifactError, match=f"no model class '{name}'"):
        save_pretrained(program, tmp_path)


def test_masks_are_multiplied_in(folder: Path) -> None:
    from sparsefx.rewrite import Rewriter

    program = capture_pretrained(str(folder))
    name = "bert.encoder.layer.0.output.dense.weight"
    rewriter = Rewriter(program, "test")
    weight = rewriter.get(name)
    mask = rewriter.add_buffer(f"{name}_mask", (torch.rand(64, 128) > 0.5).float())
    with rewriter.before(next(iter(weight.users))):
        product = rewriter.call(torch.ops.aten.mul.Tensor, weight, mask)
    rewriter.replace(weight, product, erase=False)
    rewriter.replace_input(product, product, weight)
    rewriter.finish()
    save_pretrained(program, folder.parent / "out")
    saved = load_pretrained(str(folder.parent / "out")).get_parameter(name)
    assert 0.4 < (saved == 0).float().mean() < 0.6


def test_new_head(folder: Path) -> None:
    program = capture_pretrained(str(folder), labels=5)
    batch = example_batch()
    batch["token_type_ids"] = torch.zeros_like(batch["input_ids"])
    assert program(**batch)["logits"].shape == (2, 5)


def test_cut_weights_are_named(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(errors.ArtifactError, match=r"model\.safetensors: the file is cut"):
        load_pretrained(str(folder))


def test_a_folder_without_config(tmp_path: Path) -> None:
    with pytest.raises(errors.ArtifactError, match=r"the folder has no config\.json"):
        load_pretrained(str(tmp_path))


def test_a_model_without_a_mask(tmp_path: Path) -> None:
    config = transformers.FNetConfig(
        vocab_size=50, hidden_size=16, intermediate_size=24, num_hidden_layers=1
    )
    transformers.FNetModel(config).save_pretrained(tmp_path)
    program = capture_pretrained(str(tmp_path))
    assert program.signature.input_names == ("input_ids", "token_type_ids")


@pytest.mark.parametrize("place", ["./none", "../no/model", "nö", "/no/such/place"])
def test_a_path_that_is_not_there_is_not_asked_of_the_hub(place: str) -> None:
    for load in (load_pretrained, load_tokenizer):
        with pytest.raises(errors.ArtifactError, match="there is no such file or folder") as caught:
            load(place)
        assert "model of the Hugging Face hub" in caught.value.hint


def test_a_file_in_place_of_a_folder(folder: Path) -> None:
    with pytest.raises(errors.ArtifactError, match="a file; a folder is needed"):
        load_pretrained(str(folder / "config.json"))


def test_a_saved_program_in_place_of_a_model(tmp_path: Path) -> None:
    captured("bert-cls").save(tmp_path / "program")
    with pytest.raises(errors.ArtifactError, match="it holds a saved Program"):
        load_pretrained(str(tmp_path / "program"))


def test_a_cut_pickle_is_named(folder: Path) -> None:
    path = folder / "pytorch_model.bin"
    torch.save(load_pretrained(str(folder)).state_dict(), path)
    path.write_bytes(path.read_bytes()[:-100])
    (folder / "model.safetensors").unlink()
    with pytest.raises(errors.ArtifactError, match=r"pytorch_model\.bin: the weights cannot"):
        load_pretrained(str(folder))


def test_weights_that_the_files_lack_are_named(
    folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    tensors = load_file(folder / "model.safetensors")
    for name in ("bert.pooler.dense.bias", "classifier.bias"):
        del tensors[name]
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    load_pretrained(str(folder))
    assert "2 weights are not in the files and begin with random values" in caplog.text
    caplog.clear()
    load_pretrained(str(folder), labels=5)
    assert "random values: bert.pooler.dense.bias" in caplog.text


def test_a_sentence_encoder_with_a_drawn_head_is_told_of_its_pooling(
    folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    config = json.loads((folder / "config.json").read_text())
    config["architectures"] = ["BertForMaskedLM"]
    (folder / "config.json").write_text(json.dumps(config))
    load_pretrained(str(folder))
    assert " and 1 more\n" in caplog.text
    assert "pool-sentences" not in caplog.text
    caplog.clear()
    pooling = {"type": "sentence_transformers.models.Pooling", "path": "1_Pooling"}
    (folder / "modules.json").write_text(json.dumps([pooling]))
    (folder / "1_Pooling").mkdir()
    (folder / "1_Pooling" / "config.json").write_text('{"pooling_mode_mean_tokens": true}')
    load_pretrained(str(folder))
    assert " and 1 more; the folder is that of a sentence encoder" in caplog.text
    assert "pool-sentences" in caplog.text


def test_a_decoder_is_refused(tmp_path: Path) -> None:
    config = transformers.GPT2Config(n_embd=32, n_layer=1, n_head=2, vocab_size=50)
    for cls in (transformers.GPT2LMHeadModel, transformers.GPT2Model):
        cls(config).save_pretrained(tmp_path / cls.__name__)
        with pytest.raises(errors.CaptureError, match=f"{cls.__name__} is not an encoder"):
            load_pretrained(str(tmp_path / cls.__name__))


def test_a_model_of_images_is_refused() -> None:
    config = transformers.ResNetConfig(embedding_size=8, hidden_sizes=[8], depths=[1])
    with pytest.raises(errors.CaptureError, match="ResNetModel has no vocabulary"):
        capture_tokens(transformers.ResNetModel(config))


def test_a_folder_of_a_model_of_images_is_refused(tmp_path: Path) -> None:
    config = transformers.ResNetConfig(embedding_size=8, hidden_sizes=[8], depths=[1])
    transformers.ResNetModel(config).save_pretrained(tmp_path)
    with pytest.raises(errors.CaptureError, match="ResNetModel has no vocabulary"):
        load_pretrained(str(tmp_path), labels=2)


def test_a_head_that_is_replaced_is_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    config = transformers.BertConfig(
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=16,
        vocab_size=50,
    )
    config.num_labels = 5
    transformers.BertForSequenceClassification(config).save_pretrained(tmp_path)
    load_pretrained(str(tmp_path), labels=3)
    assert "its head of 5 outputs is replaced by a new one of 3" in caplog.text


@pytest.mark.parametrize(
    ("labels", "problem"), [(1, "regression"), (3, "single_label_classification")]
)
def test_the_problem_follows_the_head(
    labels: int, problem: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    small_bert(num_labels=3, problem_type="multi_label_classification").save_pretrained(tmp_path)
    program = capture_pretrained(str(tmp_path), labels=labels)
    assert f"any number of labels; from here on it gives one of {labels}" in caplog.text
    saved = save_pretrained(program, tmp_path / "saved")
    assert json.loads((saved / "config.json").read_text())["problem_type"] == problem
    assert capture_pretrained(str(tmp_path)).config["problem_type"].startswith("multi_label")


@pytest.mark.parametrize(
    ("offline", "trouble"), [(True, "HF_HUB_OFFLINE is set"), (False, "no route to the hub")]
)
def test_a_name_is_refused_at_once_while_the_hub_is_out_of_reach(
    monkeypatch: pytest.MonkeyPatch, offline: bool, trouble: str
) -> None:
    class Session:
        def head(self, url: str, timeout: float) -> None:
            raise OSError("no route to the hub")

    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", offline)
    monkeypatch.setattr("huggingface_hub.get_session", Session)
    for load in (load_pretrained, load_tokenizer):
        with pytest.raises(errors.ArtifactError, match=f"cannot be reached: {trouble}"):
            load("nosuch")
