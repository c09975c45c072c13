"""drop-layers: the rest computes what a smaller model with these weights computes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import (
    DistilBertConfig,
    DistilBertModel,
    ModernBertConfig,
    ModernBertModel,
)

from sparsefx import Pipeline, capture
from sparsefx.errors import PassError, SpecError, UnrepresentableError
from sparsefx.huggingface import capture_tokens, load_pretrained, save_pretrained
from sparsefx.passes.analyses.encoder import EncoderStructure
from sparsefx.passes.structure.drop_layers import DropLayers, chosen_layers
from sparsefx.program import Program
from sparsefx.testing import assert_pass, small_encoder, small_program
from tests.tiny_models import HandwrittenEncoder, example_batch, small_bert


def bert(layers: int) -> Any:
    return small_bert(num_hidden_layers=layers)


def dropped(program: Program, text: str) -> Program:
    return Pipeline.parse(text).run(program).eval()


@pytest.mark.parametrize(("count", "choice", "kept"), [
    (12, "first", (0, 1, 2, 3, 4, 5)),
    (12, "last", (6, 7, 8, 9, 10, 11)),
    (12, "spread", (0, 2, 4, 7, 9, 11)),
    (6, "spread", (0, 2, 5)),
    (2, "spread", (0,)),
])  # fmt: skip
def test_choices(count: int, choice: Any, kept: tuple[int, ...]) -> None:
    assert chosen_layers(count, 0.5, choice) == kept


def test_equals_the_smaller_model_and_saves_as_one(tmp_path: Path) -> None:
    model = bert(4)
    program = dropped(capture_tokens(model), "drop-layers{keep=(1,3)}")
    model.bert.encoder.layer = nn.ModuleList(model.bert.encoder.layer[i] for i in (1, 3))
    batch = example_batch(3, 9)
    with torch.no_grad():
        expected = model(**batch).logits
    torch.testing.assert_close(program(**batch)["logits"], expected)
    assert [layer.q.weight for layer in program.facts(EncoderStructure).layers] == [
        f"bert.encoder.layer.{i}.attention.self.query.weight" for i in (0, 1)
    ]
    folder = save_pretrained(program, tmp_path)
    again = load_pretrained(str(folder))
    with torch.no_grad():
        torch.testing.assert_close(again(**batch).logits, expected)


def test_other_architectures() -> None:
    made: Any = DistilBertModel(
        DistilBertConfig(dim=16, n_layers=2, n_heads=2, hidden_dim=24, vocab_size=100)
    )
    distil = dropped(capture_tokens(made.eval()), "drop-layers")
    assert distil.config["n_layers"] == 1
    assert distil.history[-1].applied == 1
    torch.manual_seed(0)
    encoder = HandwrittenEncoder(hidden=16, layers=3).eval()
    program = dropped(capture(encoder, example_batch()), "drop-layers{keep=2}")
    encoder.blocks = nn.ModuleList([encoder.blocks[2]])
    with torch.no_grad():
        expected = encoder(**example_batch())
    torch.testing.assert_close(program(**example_batch())["output"], expected)


def test_no_encoder_is_skipped() -> None:
    assert_pass(
        DropLayers(),
        small_program(lambda x: torch.relu(x), x=torch.ones(3)),
        "%relu = aten.relu(%x)\nreturn {output: %relu}",
        applied=0,
    )


def test_a_layer_that_a_loss_reads_is_refused() -> None:
    program = small_encoder()
    with pytest.raises(PassError, match=r"%abs_\w* reads a tensor of layer 1, which is d") as told:
        dropped(program, "reweighted-l1,drop-layers")
    assert str(told.value.where).startswith("encoder.layer.1.")
    assert "run drop-layers before" in told.value.hint
    assert told.value.hint.endswith("or keep-outputs{outputs=...} without loss.l1")
    left = dropped(program, "reweighted-l1,keep-outputs{outputs=last_hidden_state},drop-layers")
    assert not [name for name in left.named_tensors() if name.startswith("encoder.layer.1.")]


class SharedBias(HandwrittenEncoder):
    """Every layer reads what the first one holds, as the biases by distance of T5."""

    def __init__(self) -> None:
        super().__init__(hidden=16, layers=2)
        self.holder = self.blocks[0]
        self.holder.shared = nn.Parameter(torch.randn(1, 4, 1, 1))

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        hidden = self.norm(self.words(input_ids))
        bias = (1.0 - attention_mask[:, None, None, :].to(hidden.dtype)) * -10000.0
        steps = torch.arange(input_ids.shape[1], device=input_ids.device)
        shared: Any = self.holder.shared
        bias = bias + shared * (steps[None, :] - steps[:, None])
        for block in self.blocks:
            hidden = block(hidden, bias)
        scores: Tensor = self.score(hidden[:, 0])
        return scores


def test_what_layers_share_stays_with_those_that_stay() -> None:
    encoder = SharedBias().eval()
    program = dropped(capture(encoder, example_batch()), "drop-layers{keep=1}")
    assert "blocks.0.shared" in program.named_tensors()
    encoder.blocks = nn.ModuleList([encoder.blocks[1]])
    with torch.no_grad():
        expected = encoder(**example_batch())
    torch.testing.assert_close(program(**example_batch())["output"], expected)


@pytest.mark.parametrize("before", ["magnitude-prune", "quantize-prepare", "score-heads"])
def test_what_passes_keep_for_a_layer_goes_with_it(before: str) -> None:
    small = dropped(small_encoder(), f"{before},drop-layers")
    assert not [name for name in small.named_tensors() if name.startswith("encoder.layer.1.")]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("drop-layers{keep=(0,7)}", "the encoder has 2 layers"),
        ("drop-layers{keep=(1,0)}", "ascending"),
        ("drop-layers{fraction=1.0}", "between 0 and 1"),
        ("drop-layers{choice=middle}", "expected 'first', 'last' or 'spread'"),
    ],
)
def test_mistakes_are_named(text: str, message: str) -> None:
    encoder = HandwrittenEncoder(hidden=16, layers=2).eval()
    with pytest.raises(Exception, match=message) as caught:
        dropped(capture(encoder, example_batch()), text)
    assert isinstance(caught.value.__cause__ or caught.value, (PassError, SpecError))


def modernbert() -> Any:
    torch.manual_seed(0)
    sizes: dict[str, Any] = {"hidden_size": 32, "num_attention_heads": 2, "intermediate_size": 32}
    tokens: dict[str, Any] = {f"{name}_token_id": 1 for name in ("pad", "bos", "eos", "cls", "sep")}
    config = ModernBertConfig(
        **sizes, **tokens, num_hidden_layers=4, local_attention=4, vocab_size=100
    )
    model: Any = ModernBertModel(config)
    return model.eval()


@pytest.mark.parametrize("text", ["drop-layers{keep=(0,3)}", "replace-modules,take-successors"])
def test_layers_of_different_kinds_keep_theirs(text: str, tmp_path: Path) -> None:
    program = dropped(capture(modernbert(), example_batch()), text)
    assert len(program.config["layer_types"]) == program.config["num_hidden_layers"] == 2
    save_pretrained(program, tmp_path)
    loaded: Any = ModernBertModel.from_pretrained(tmp_path)
    batch = example_batch(3, 9)
    found, expected = program(**batch)["last_hidden_state"], loaded(**batch).last_hidden_state
    torch.testing.assert_close(found, expected)


def test_a_norm_that_the_first_layer_has_not_is_told_and_not_lost(tmp_path: Path) -> None:
    model = modernbert()
    program = dropped(capture(model, example_batch()), "drop-layers{keep=(1,3)}")
    kept, note = program.history[-1].notes
    assert kept == "kept the layers 1, 3 of 4"
    assert note.startswith("layer 1 has attn_norm.weight, and layer 0, whose place it takes, has n")
    with pytest.raises(UnrepresentableError, match="would compute without it") as caught:
        save_pretrained(program, tmp_path)
    assert caught.value.where == "layers.0.attn_norm.weight"
    assert "layer 0 of ModernBERT" in caught.value.hint
    model.layers = nn.ModuleList(model.layers[i] for i in (1, 3))
    model.config.layer_types = [model.config.layer_types[i] for i in (1, 3)]
    batch = example_batch(3, 9)
    with torch.no_grad():
        expected = model(**batch).last_hidden_state
    torch.testing.assert_close(program(**batch)["last_hidden_state"], expected)
