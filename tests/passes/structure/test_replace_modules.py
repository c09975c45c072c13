"""replace-modules and take-successors: what is drawn, what trains, what is left."""

from __future__ import annotations

from functools import cache
from typing import Any

import pytest
import torch
from torch import nn
from transformers import AlbertConfig, AlbertModel, BertConfig, BertForSequenceClassification

import sparsefx
from sparsefx import Pipeline, Program
from sparsefx.errors import PassError, SpecError
from sparsefx.passes.structure.replace_modules import DRAW, RATE, ReplaceModules
from sparsefx.testing import assert_equal_outputs, assert_pass, small_program
from tests.tiny_models import example_batch, small_bert


@cache
def bert() -> Any:
    return small_bert(num_hidden_layers=4)


@cache
def program() -> Program:
    return sparsefx.capture(bert(), example_batch(), dynamic=False)


def run(text: str, given: Program | None = None) -> Program:
    return Pipeline.parse(text).run(given or program())


def first_layers(count: int) -> Any:
    """The same model with its first layers alone."""
    config = BertConfig.from_dict({**bert().config.to_dict(), "num_hidden_layers": count})
    made: Any = BertForSequenceClassification(config)
    made.load_state_dict(bert().state_dict(), strict=False)
    return made.eval()


def test_evaluation_runs_the_successors_which_begin_as_the_first_layers() -> None:
    batch = example_batch()
    trained = run("replace-modules{rate=0.0}").eval()
    with torch.no_grad():
        expected = first_layers(2)(**batch).logits
    torch.testing.assert_close(trained(**batch)["logits"], expected)
    left = run("take-successors", trained)
    assert_equal_outputs(trained, left.eval(), batch)
    assert set(left.named_tensors()) == set(run("drop-layers").named_tensors())
    assert left.config["num_hidden_layers"] == 2
    assert left.active == ()


def test_training_runs_what_is_drawn() -> None:
    batch = example_batch()
    quiet = run("set-dropout")
    kept = run("replace-modules{rate=0.0}", quiet).train()
    torch.testing.assert_close(kept(**batch)["logits"], quiet.train()(**batch)["logits"])
    torch.autograd.backward(kept(**batch)["logits"].sum())
    names = dict(kept.module.named_parameters())
    assert not any(
        bool(p.grad.any())
        for n, p in names.items()
        if n.startswith("successor.") and p.grad is not None
    )
    mixed = run("replace-modules{rate=0.5}", quiet).train()
    seen = set()
    for seed in range(16):
        torch.manual_seed(seed)
        seen.add(round(float(mixed(**batch)["logits"].detach().sum()), 5))
    assert len(seen) == 4  # each of two modules, or its successor


def test_the_rate_rises_to_one_and_is_saved(tmp_path: Any) -> None:
    trained = run("replace-modules{rate=0.2,end=4}")
    rates = []
    for _ in range(3):
        trained.step()
        rates.append(float(trained.tensor(RATE)))
    again = Program.load(trained.save(tmp_path / "saved"))
    for _ in range(2):
        again.step()
        rates.append(float(again.tensor(RATE)))
    assert rates == pytest.approx([0.4, 0.6, 0.8, 1.0, 1.0])


def test_no_encoder_is_skipped() -> None:
    assert_pass(
        ReplaceModules(),
        small_program(nn.ReLU(), input=torch.ones(3)),
        "%relu = aten.relu(%input_1)\nreturn {output: %relu}",
        applied=0,
    )


def test_uneven_modules_are_skipped() -> None:
    entry = run("replace-modules{fraction=0.7}").history[-1]
    assert [str(skip) for skip in entry.skipped] == [
        "layers: 4 layers cannot be cut into 3 modules of equal size"
    ]


@pytest.mark.parametrize("text", ["fraction=1.0", "rate=1.5", "end=-1"])
def test_mistakes_are_named(text: str) -> None:
    with pytest.raises((PassError, SpecError), match=text.replace(".", r"\.")):
        run(f"replace-modules{{{text}}}")


def test_every_module_is_drawn_by_itself_after_simplify_too() -> None:
    found = run("replace-modules,simplify")
    assert len(found.graph.find_nodes(op="call_function", target=DRAW)) == 2


def test_layers_that_share_tensors_have_successors_that_do() -> None:
    torch.manual_seed(0)
    sizes: Any = {"hidden_size": 32, "embedding_size": 16, "num_attention_heads": 2}
    config = AlbertConfig(**sizes, num_hidden_layers=4, intermediate_size=32, vocab_size=100)
    model: Any = AlbertModel(config)
    shared = sparsefx.capture(model.eval(), example_batch())
    trained = run("replace-modules", shared).eval()
    left = run("take-successors", trained)
    assert_equal_outputs(trained, left, example_batch())
    assert_equal_outputs(left, run("drop-layers", shared), example_batch(), tolerance=1e-6)
    assert set(left.named_tensors()) == set(shared.named_tensors())


def test_what_is_drawn_is_not_for_inference() -> None:
    with pytest.raises(PassError, match=r"draw belongs to training(.|\n)*run take-successors"):
        run("replace-modules,simplify{inference=True}")
