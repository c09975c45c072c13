"""torch.compile with the backend sparsefx, and a compiled Program in place of its model."""

from __future__ import annotations

import logging
import pickle
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from torch import nn
from torch._dynamo.exc import BackendCompilerFailed
from transformers import PreTrainedTokenizerFast, pipeline

import sparsefx
from sparsefx.backends.cpu.target import CpuTarget
from sparsefx.dynamo import backend
from sparsefx.errors import TargetError
from tests.programs import captured
from tests.tiny_models import example_batch, small_bert, tiny


@pytest.fixture(autouse=True)
def fresh() -> Iterator[None]:
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def compiled(model: nn.Module, **options: Any) -> Any:
    return torch.compile(model, backend=backend, options=options)


@pytest.mark.parametrize("name", ["bert-cls", "distilbert", "handwritten"])
def test_a_compiled_model_keeps_its_class_and_values(
    name: str, caplog: pytest.LogCaptureFixture
) -> None:
    model = tiny(name)
    fast = torch.compile(model, backend=backend)
    with caplog.at_level(logging.INFO, "sparsefx"), torch.no_grad():
        for batch, length in ((2, 8), (3, 9), (5, 20)):
            inputs = example_batch(batch, length)
            found, expected = fast(**inputs), model(**inputs)
            assert type(found) is type(expected)
            first = (found, expected) if name == "handwritten" else (found[0], expected[0])
            torch.testing.assert_close(*first, rtol=0, atol=1e-5)
    # Nothing ran in PyTorch, neither with fixed nor with dynamic sizes.
    assert not [message for message in caplog.messages if "runs in PyTorch" in message]


def test_parts_of_a_batch_are_taken() -> None:
    model = tiny("bert-cls")
    fast = torch.compile(model, backend=backend)
    whole = example_batch(2, 9)
    part = {name: value[:1, :5] for name, value in whole.items()}
    with torch.no_grad():
        for inputs in (whole, part):
            torch.testing.assert_close(fast(**inputs)[0], model(**inputs)[0], rtol=0, atol=1e-5)


@pytest.mark.parametrize("second", [(3, 9, 12), (3, 9, 9)])
def test_two_texts_have_lengths_of_their_own(second: tuple[int, int, int]) -> None:
    table = nn.Embedding(9, 4)

    def score(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        return torch.relu(table(a).sum(1) * table(b).sum(1))

    fast = torch.compile(score, backend=backend)
    with torch.no_grad():
        for batch, *lengths in ((2, 8, 10), second, (2, 5, 6), (4, 7, 7)):
            texts = [torch.ones(batch, length, dtype=torch.long) for length in lengths]
            torch.testing.assert_close(fast(*texts), score(*texts))


def test_another_target() -> None:
    model = tiny("handwritten")
    with torch.no_grad():
        found = compiled(model, target="reference")(**example_batch())
        torch.testing.assert_close(found, model(**example_batch()))


def test_gradients_do_not_flow() -> None:
    assert not torch.compile(tiny("handwritten"), backend=backend)(**example_batch()).requires_grad


def test_weights_are_those_of_the_call(caplog: pytest.LogCaptureFixture) -> None:
    model = tiny("handwritten")
    fast = torch.compile(model, backend=backend)
    inputs = example_batch()
    said = "torch.compile: the weights or sizes are others, lowering anew"

    def check(times: int) -> None:
        for _ in range(2):
            torch.testing.assert_close(fast(**inputs), model(**inputs), rtol=1e-4, atol=1e-4)
        assert [m for m in caplog.messages if m == said] == [said] * times

    with caplog.at_level(logging.INFO, "sparsefx.dynamo"), torch.no_grad():
        check(0)
        model.load_state_dict({k: v + 0.1 for k, v in model.state_dict().items()})
        check(1)
        model.get_parameter("score.bias").add_(3)
        check(2)
        model.get_parameter("score.weight").data = torch.ones(2, 64)
        check(3)
    with torch.inference_mode():
        model.get_parameter("score.bias").add_(3)
        assert torch.allclose(fast(**inputs), model(**inputs), rtol=1e-4, atol=1e-4)


def test_models_of_one_class_are_called_in_turn(caplog: pytest.LogCaptureFixture) -> None:
    models = [tiny("handwritten") for _ in range(2)]
    for number, model in enumerate(models):
        torch.nn.init.constant_(model.get_parameter("score.bias"), number)
    both = [torch.compile(model, backend=backend) for model in models]
    inputs = example_batch()
    with caplog.at_level(logging.INFO, "sparsefx.dynamo"), torch.no_grad():
        for _ in range(3):
            for fast, model in zip(both, models, strict=True):
                torch.testing.assert_close(fast(**inputs), model(**inputs), rtol=1e-4, atol=1e-4)
    assert sum("lowering anew" in message for message in caplog.messages) <= 1


@pytest.mark.parametrize("kind", [torch.optim.SGD, torch.optim.Adagrad, torch.optim.AdamW])
def test_a_fused_step_is_a_write(kind: type[torch.optim.Optimizer]) -> None:
    model, other = tiny("handwritten"), tiny("handwritten")
    inputs = example_batch()
    fast = torch.compile(model, backend=backend)
    with torch.no_grad():
        fast(**inputs)
    untouched = [each._version for each in other.parameters()]
    options: dict[str, Any] = {"lr": 0.5, "fused": True}
    optimizer = kind(model.parameters(), **options)
    model(**inputs).square().sum().backward()
    optimizer.step()
    optimizer.zero_grad()  # Dynamo itself looks at a parameter again that has got a gradient
    with torch.no_grad():
        torch.testing.assert_close(fast(**inputs), model(**inputs), rtol=1e-4, atol=1e-4)
    # So no model is lowered anew whose weights the optimizer does not have.
    assert [each._version for each in other.parameters()] == untouched


def test_a_compiled_step_is_a_write() -> None:
    weight = nn.Parameter(torch.ones(3))
    sparsefx.capture(nn.Linear(2, 2), {"input": torch.ones(2, 2)})
    optimizer = torch.optim.SGD([weight], lr=1.0)
    weight.grad = torch.ones(3)
    before = weight._version
    torch.compile(optimizer.step, backend="aot_eager")()
    assert weight.tolist() == [0.0] * 3
    assert weight._version > before


def test_training_mode_is_refused() -> None:
    fast = torch.compile(tiny("bert-cls").train(), backend=backend)
    with pytest.raises(BackendCompilerFailed, match="the model is in training mode") as refused:
        fast(**example_batch())
    assert "call model.eval() first" in str(refused.value)


def test_unknown_options_are_named() -> None:
    with pytest.raises(BackendCompilerFailed, match="there is no option 'threads'"):
        compiled(tiny("handwritten"), threads="1")(**example_batch())


def test_torch_finds_the_backend(checkout: Path) -> None:
    project = tomllib.loads((checkout / "pyproject.toml").read_text())["project"]
    points = project["entry-points"]["torch_dynamo_backends"]
    assert points == {"sparsefx": f"{backend.__module__}:{backend.__name__}"}


@pytest.mark.parametrize("name", ["bert-cls", "bert-qa", "bert-mlm", "modernbert"])
def test_a_drop_in_is_called_like_the_model(name: str) -> None:
    model: Any = tiny(name)
    fast = CpuTarget().compile(captured(name)).as_model(model)
    inputs = example_batch()
    with torch.no_grad():
        expected = model(**inputs)
        alone = model(inputs["input_ids"])
    found = fast(**inputs, labels=None)
    assert type(found) is type(expected)
    assert list(found) == list(expected)
    mask = inputs["attention_mask"].bool()
    real = mask if found[0].shape[:2] == mask.shape else ...
    torch.testing.assert_close(found[0][real], expected[0][real], rtol=0, atol=1e-4)
    torch.testing.assert_close(fast(inputs["input_ids"])[0], alone[0], rtol=0, atol=1e-4)
    assert isinstance(fast(**inputs, return_dict=False), tuple)


def test_a_drop_in_takes_what_says_nothing_new() -> None:
    given = example_batch()
    ids = {"input_ids": given["input_ids"]}
    bare = sparsefx.capture(tiny("bert-cls"), ids).eval()
    fast = CpuTarget().compile(bare).as_model(tiny("bert-cls")).to("cpu").train(False).eval()
    zeros, ones = (torch.full_like(ids["input_ids"], value) for value in (0, 1))
    found = fast.forward(**ids, token_type_ids=zeros, attention_mask=ones, output_attentions=False)
    assert torch.equal(found.logits, fast(**ids).logits)
    for odd in ({"token_type_ids": ones}, {"attention_mask": zeros}, {"output_attentions": True}):
        with pytest.raises(sparsefx.errors.ProgramError, match=f"no input '{next(iter(odd))}'"):
            fast(**ids, **odd)


def test_a_drop_in_serves_a_pipeline() -> None:
    model: Any = tiny("bert-cls")
    words = {"[PAD]": 0, "[UNK]": 1, "good": 2, "film": 3}
    core = Tokenizer(WordLevel(words, unk_token="[UNK]"))
    core.pre_tokenizer = Whitespace()
    names = {"pad_token": "[PAD]", "unk_token": "[UNK]"}
    make: Any = PreTrainedTokenizerFast
    reader = make(tokenizer_object=core, **names)
    fast = CpuTarget().compile(captured("bert-cls")).as_model(model)
    serve: Any = pipeline
    found, wanted = (
        serve("text-classification", model=each, tokenizer=reader)(["good film", "film"])
        for each in (fast, model)
    )
    assert [item["label"] for item in found] == [item["label"] for item in wanted]


def test_a_drop_in_says_what_it_cannot_do() -> None:
    program = CpuTarget().compile(captured("bert-cls"))
    fast = program.as_model(tiny("bert-cls"))
    with pytest.raises(TargetError, match="cannot be trained"):
        fast.train()
    with pytest.raises(TargetError, match="it runs on cpu alone"):
        fast.to("meta")
    for change in (fast.half, fast.bfloat16, lambda: fast.to(torch.float16)):
        with pytest.raises(TargetError, match="the types of numbers that it was compiled with"):
            change()
    assert fast.float().to(torch.float32) is fast
    with pytest.raises(TargetError, match="cannot be pickled or copied"):
        pickle.dumps(program)
    with pytest.raises(TargetError, match="computes no loss"):
        fast(**example_batch(), labels=torch.tensor([0, 1]))
    with pytest.raises(TargetError, match=r"input_ids: expected a tensor, got ndarray"):
        fast(input_ids=example_batch()["input_ids"].numpy())
    with pytest.raises(sparsefx.errors.ProgramError, match="there is no input 'input_idz'"):
        fast(input_idz=example_batch()["input_ids"], **example_batch())
    with pytest.raises(TargetError, match="returns no class with logits"):
        program.as_model(tiny("handwritten"))
    with pytest.raises(TargetError, match=r"has 5 classes, and .* 2\n.*\(num_labels=2\)"):
        program.as_model(small_bert(num_labels=5))


class Weights(nn.Module):
    """Takes no tensor."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(4))

    def forward(self, number: int) -> torch.Tensor:
        return self.weight * number


@pytest.mark.parametrize(
    ("model", "given"), [(nn.Linear(4, 4), torch.randn(2, 3, 4)), (Weights(), 3)]
)
def test_a_graph_from_the_middle_of_a_model_says_so(model: nn.Module, given: object) -> None:
    with pytest.raises(BackendCompilerFailed) as caught:
        torch.compile(model.eval(), backend=backend)(given)
    assert "TORCH_LOGS=graph_breaks says where" in str(caught.value)
