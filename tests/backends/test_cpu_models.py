from __future__ import annotations

import os
import threading
from typing import Any

import pytest
import torch
from numpy.typing import NDArray
from torch import nn

import sparsefx
from sparsefx import Pipeline, Program
from sparsefx.backends.cpu.compiled import CpuCompiled
from sparsefx.backends.cpu.lowering import linears
from sparsefx.backends.cpu.machine.isa import IsaName, obstacle
from sparsefx.backends.cpu.plan import catalog
from sparsefx.backends.cpu.plan.plan import Buffer, Step, pack_arena
from sparsefx.backends.cpu.plan.weights import Packed, pack
from sparsefx.backends.cpu.target import CpuTarget
from sparsefx.errors import ProgramError, TargetError
from sparsefx.passes.quantize.calibrate import calibrate
from sparsefx.registry import parse_target
from tests.backends.cpu_cases import ARM_MODELS, RUNNABLE, padded_batch, quantized, sparse_
from tests.int8 import int8
from tests.programs import SPELLINGS, captured
from tests.tiny_models import example_batch, small_bert

BATCH = example_batch()
SHAPES = [(2, 8), (1, 1), (3, 37), (5, 100), (17, 24)]
SHORT = pytest.param(
    "precision=bf16",
    marks=pytest.mark.skipif(bool(obstacle("avx512_bf16")), reason="no AVX512_BF16 here"),
)


def difference(program: Program, compiled: CpuCompiled, batch: dict[str, torch.Tensor]) -> float:
    """Largest difference of all outputs, at real tokens."""
    with torch.no_grad():
        expected = program(**batch)
    actual = compiled(**batch)
    largest = 0.0
    for name, value in expected.items():
        gap = (value - actual[name]).abs()
        mask = batch["attention_mask"]
        if gap.shape[:2] == mask.shape:
            gap = gap.flatten(2) * mask[:, :, None] if gap.dim() > 2 else gap * mask
        largest = max(largest, float(gap.max()))
    return largest


@pytest.mark.parametrize(("architecture", "attention"), SPELLINGS)
def test_every_architecture_agrees_with_the_program(architecture: str, attention: str) -> None:
    program = captured(architecture, attention)
    target = CpuTarget()
    batch = padded_batch(program, 3, 21)
    assert difference(program, target.lower(program), batch) < 1e-4
    assert target.unsupported(program) == ()


@pytest.mark.parametrize("isa", RUNNABLE)
def test_rows_of_bytes_of_any_number_leave_vectors_aligned(isa: IsaName) -> None:
    # 66 bytes a token before buffers of fp32: the process ended where vectors are stored aligned.
    program = quantized(sparsefx.capture(small_bert(intermediate_size=66), BATCH), BATCH)
    compiled = CpuTarget(isa=isa, threads=1, rates="built-in").compile(program)
    for shape in ((1, 8), (1, 40)):
        assert difference(program, compiled, padded_batch(program, *shape)) < 1e-5


def test_buffers_begin_at_words() -> None:
    step = Step(
        catalog.other("quantize"), {"input": Buffer("a", 7, 1), "output": Buffer("b", 3, 2)}, ""
    )
    arena = pack_arena([step, Step(step.kernel, {**step.words, "input": Buffer("c", 1, 4)}, "")])
    assert sorted(arena.offsets.values()) == [0, 0, 8]
    assert arena.token_bytes == (16, 0)


@pytest.mark.parametrize("isa", RUNNABLE)
def test_shapes_are_dynamic(isa: IsaName) -> None:
    program = sparse_(captured("bert-cls"), 0.3)
    compiled = CpuTarget(isa=isa).lower(program)
    for number, (rows, length) in enumerate(SHAPES):
        assert difference(program, compiled, padded_batch(program, rows, length, number)) < 1e-5


@pytest.mark.parametrize("isa", [*RUNNABLE, *ARM_MODELS])
@pytest.mark.parametrize("density", [0.1, 1.0])
def test_int8_follows_the_program(isa: IsaName, density: float) -> None:
    program = sparse_(captured("bert-cls"), density)
    program = quantized(program, padded_batch(program, 4, 32))
    compiled = CpuTarget(isa=isa).lower(program)
    for number, (rows, length) in enumerate(SHAPES):
        batch = padded_batch(program, rows, length, number)
        # A value at the border of two integers may round the other way: one step of one input.
        assert difference(program, compiled, batch) < 2e-3
    assert CpuTarget(isa=isa).unsupported(program) == ()


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_threads_do_not_change_the_result(threads: int) -> None:
    program = captured("bert-cls")
    compiled = CpuTarget(threads=threads).lower(program)
    for rows, length in ((1, 40), (9, 70)):
        assert difference(program, compiled, padded_batch(program, rows, length)) < 1e-5


def test_padding_does_not_change_the_result() -> None:
    program = captured("bert-cls")
    compiled = CpuTarget().lower(program)
    batch = padded_batch(program, 1, 20)
    longer = {k: torch.cat([v, torch.zeros(1, 30, dtype=v.dtype)], 1) for k, v in batch.items()}
    torch.testing.assert_close(
        compiled(**batch)["logits"], compiled(**longer)["logits"], rtol=0, atol=0
    )


def test_several_callers_at_once() -> None:
    program = captured("bert-cls")
    compiled = CpuTarget().lower(program)
    batches = [padded_batch(program, 2, 10 + n, n) for n in range(4)]
    expected = [compiled(**b)["logits"] for b in batches]
    wrong: list[int] = []

    def call(number: int) -> None:
        for _ in range(20):
            if not torch.equal(compiled(**batches[number])["logits"], expected[number]):
                wrong.append(number)

    callers = [threading.Thread(target=call, args=(n,)) for n in range(4)]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join()
    assert wrong == []


def test_a_forked_process_has_its_own_threads() -> None:
    program = captured("bert-cls")
    compiled = CpuTarget(threads=2).lower(program)
    batch = padded_batch(program, 1, 30)
    expected = compiled(**batch)["logits"]
    child = os.fork()
    if child == 0:
        same = torch.equal(compiled(**batch)["logits"], expected)
        os._exit(0 if same else 1)
    assert os.waitpid(child, 0)[1] == 0


def test_compile_packs_every_weight_once(monkeypatch: pytest.MonkeyPatch) -> None:
    packed: list[tuple[int, ...]] = []

    def counted(matrix: NDArray[Any], *rest: Any, **options: Any) -> Packed:
        packed.append(matrix.shape)
        return pack(matrix, *rest, **options)

    monkeypatch.setattr(linears, "pack", counted)
    program = captured("bert-cls")
    before = program.fingerprint()
    assert CpuTarget().unsupported(program) == ()
    assert packed == []
    CpuTarget().compile(program)
    # Per layer: query, key and value together, output, up, down; and the pooler and the classifier.
    assert len(packed) == 2 * 4 + 2
    assert program.fingerprint() == before


def test_errors_say_what_to_do() -> None:
    with pytest.raises(TargetError, match="unknown instruction set 'sse9'"):
        CpuTarget(isa="sse9").lower(captured("bert-cls"))
    with pytest.raises(TargetError, match="lacks"):
        CpuTarget(isa="neon").lower(captured("bert-cls"))
    program = captured("bert-cls")
    empty = {n: torch.zeros(0, 5, dtype=torch.long) for n in program.signature.input_names}
    with pytest.raises(ProgramError, match="empty"):
        CpuTarget().lower(program)(**empty)


class Joined(nn.Module):
    """One linear for query, key and value, cut in three."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.how = how
        self.words, self.qkv = nn.Embedding(50, 32), nn.Linear(32, 96)
        self.out, self.norm, self.head = nn.Linear(32, 32), nn.LayerNorm(32), nn.Linear(32, 2)

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        x = self.words(input_ids)
        joined = self.qkv(x)
        cut = joined.chunk(3, -1) if self.how == "chunk" else joined.split([32, 32, 32], dim=2)
        q, k, v = (part.view(*part.shape[:2], 4, 8).transpose(1, 2) for part in cut)
        mask = (1.0 - attention_mask[:, None, None, :].float()) * -10000.0
        mixed = ((q @ k.transpose(-1, -2)) / 8**0.5 + mask).softmax(-1) @ v
        x = self.norm(x + self.out(mixed.transpose(1, 2).reshape(x.shape)))
        scores: torch.Tensor = self.head(x[:, 0])
        return scores


@pytest.mark.parametrize("how", ["chunk", "split"])
def test_a_fused_query_key_and_value_linear_is_taken_whole(how: str) -> None:
    torch.manual_seed(0)
    ids = torch.randint(0, 50, (2, 8))
    given = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    program = sparsefx.capture(Joined(how).eval(), given)
    batch = padded_batch(program, 3, 21)
    batch["input_ids"] %= 50
    prepared = Pipeline.parse("quantize-prepare").run(program)
    calibrate(prepared, [batch])
    integers = Pipeline.parse("quantize-convert").run(prepared)
    for item, tolerance in ((program, 1e-5), (integers, 1e-2)):
        assert CpuTarget().unsupported(item) == ()
        assert difference(item, CpuTarget().lower(item), batch) < tolerance


@pytest.mark.parametrize("architecture", ["bert-mlm", "deberta", "mpnet", "modernbert"])
def test_int8_agrees_for_other_architectures(architecture: str) -> None:
    program = int8(architecture)
    compiled = CpuTarget(attention="fp32").lower(program)
    batch = padded_batch(program, 3, 21)
    largest = max(float(value.detach().abs().max()) for value in program(**batch).values())
    assert difference(program, compiled, batch) < 0.02 * largest


@pytest.mark.parametrize("options", ["threads=2", "format=dense_f32", "isa=avx2", SHORT])
@pytest.mark.parametrize("kept", ["query", "key", "value"])
def test_linears_on_one_input_may_be_of_two_types(kept: str, options: str) -> None:
    """Query, key and value are computed as one where they are alike; here one is float."""
    program = int8(options=f"{{exclude='{kept}'}}")
    compiled = parse_target(f"cpu{{attention=fp32,{options}}}").lower(program)
    assert isinstance(compiled, CpuCompiled)
    batch = padded_batch(program, 3, 21)
    expected = program(**batch)["logits"].detach()
    found = compiled(**batch)["logits"]
    assert float((found - expected).abs().max()) < 0.02 * float(expected.abs().max())
    kinds = [costs.layer.integer for costs in compiled.explain(1, 8).layers]
    assert kinds.count(False) == 2


@pytest.mark.parametrize("isa", RUNNABLE)
def test_what_the_quantize_passes_make_is_taken_whole(isa: IsaName) -> None:
    program = sparse_(captured("bert-cls"), 0.2)
    program = Pipeline.parse("quantize-prepare").run(program)
    batch = padded_batch(program, 4, 32)
    program.train()
    for _ in range(2):
        program(**batch)
        program.step()
    program = Pipeline.parse("quantize-convert").run(program.eval())
    target = CpuTarget(isa=isa)
    assert target.unsupported(program) == ()
    exact = CpuTarget(isa=isa, attention="fp32").lower(program)
    assert difference(program, exact, padded_batch(program, 3, 21)) < 2e-3
    assert difference(program, target.lower(program), padded_batch(program, 3, 21)) < 1e-2


@pytest.mark.skipif("avx512_vnni" not in RUNNABLE, reason="this machine has no vpdpbusd")
def test_int8_attention_starts_and_ends_anywhere_in_a_panel() -> None:
    program = int8("bert-cls", zeros=0.8)
    codes = CpuTarget(isa="avx512_vnni").lower(program)
    floats = CpuTarget(isa="avx512_vnni", attention="fp32").lower(program)
    assert "attention_i8" in codes.listing()
    assert "attention_i8" not in floats.listing()
    for number, (rows, length) in enumerate((*SHAPES, (6, 63), (1, 128), (2, 127))):
        batch = padded_batch(program, rows, length, number)
        # One code of one later activation may differ: scores differ in the seventh digit.
        torch.testing.assert_close(
            codes(**batch)["logits"], floats(**batch)["logits"], rtol=0, atol=5e-3
        )
