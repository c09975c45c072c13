"""The target: lowering, bit-exact execution from streams, costs, listing, reports."""

from __future__ import annotations

import re
from dataclasses import replace

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime as runtime
import pytest
import torch
from torch import fx

import sparsefx
from sparsefx import Pipeline, Program
from sparsefx.backends.accelerator.hardware.archfile import load_architecture
from sparsefx.backends.accelerator.hardware.machine import Machine
from sparsefx.backends.accelerator.hardware.quantity import Quantity
from sparsefx.backends.accelerator.report.listing import layer_summary, listing
from sparsefx.backends.accelerator.report.reasons import reasons
from sparsefx.backends.accelerator.report.tables import as_tree
from sparsefx.backends.accelerator.simulation.executor import accumulate, multiply
from sparsefx.backends.accelerator.simulation.tile_level import simulate
from sparsefx.backends.accelerator.target import Accelerator, CompiledForAccelerator
from sparsefx.backends.accelerator.workload.legalise import UNIT, AcceleratorTag
from sparsefx.backends.accelerator.workload.lowering import weight_digest
from sparsefx.backends.accelerator.workload.operations import HostOp, VectorOp
from sparsefx.backends.accelerator.workload.programs import workload_of
from sparsefx.backends.accelerator.workload.units import op_name
from sparsefx.backends.reference.target import Reference
from sparsefx.errors import TargetError
from sparsefx.passes.analyses.quantized import QuantizedProducts
from sparsefx.testing import small_program
from tests.accelerated import compiled, quantized
from tests.int8 import int8
from tests.programs import captured, shared
from tests.tiny_models import example_batch

Array = npt.NDArray[np.generic]


class Recorder(fx.Interpreter):
    """Keeps every value, as the Program itself computes it."""

    def __init__(self, program: Program) -> None:
        super().__init__(program.module, garbage_collect_values=False)


@pytest.mark.parametrize("arch", ["anton", "eie-64", "sigma-128", "tensor-core-2-4"])
def test_integers_from_the_stream_equal_plain_integer_products(arch: str) -> None:
    target = Accelerator(arch=arch, batch=2, sequence=16)
    machine = target.lower(target.pipeline().run(quantized()))
    batch = example_batch(2, 16, seed=3)
    machine(**batch)
    program = machine.program
    recorder = Recorder(program)
    with torch.no_grad():
        recorder.run(*(batch[spec.name] for spec in program.signature.inputs))
    executor = machine.executor
    compared = 0
    for node in program.graph.nodes:
        if op_name(node) != "aten.linear" or node.name not in executor.products:
            continue
        weight_name = str(node.args[1].args[0].target)
        weight = program.tensor(weight_name).numpy()
        decoded = executor.form if executor.form.compresses(weight != 0) else None
        if decoded is not None:
            assert np.array_equal(decoded.decode(executor.streams[weight_name]), weight)
        product = executor.products[node.name]
        assert product.digest == weight_digest(weight)
        compared += 1
    assert compared == len(executor.products) > 10


def test_accumulators_and_outputs_equal_the_reference_integers() -> None:
    # Every linear gets the reference's own input integers; its accumulators must be the exact
    # integer product and its re-quantized output the reference's, element for element.
    machine = compiled()
    program = machine.program
    batch = example_batch(2, 16, seed=3)
    recorder = Recorder(program)
    with torch.no_grad():
        recorder.run(*(batch[spec.name] for spec in program.signature.inputs))
    checked = 0
    for node in program.graph.nodes:
        if op_name(node) != "aten.linear":
            continue
        q, scale, zero = (recorder.env[arg] for arg in node.args[0].args[:3])
        weight, weight_scale = (recorder.env[arg] for arg in node.args[1].args[:2])
        rows = q.reshape(-1, q.shape[-1])
        exact = (rows.long() - int(zero)) @ weight.long().T
        accumulators = accumulate(rows, int(zero), weight.numpy())
        assert np.array_equal(accumulators, exact.numpy())
        users = [user for user in node.users if op_name(user) == "sparsefx.quantize"]
        if not users:
            continue
        bias = recorder.env[node.args[2]]
        y = exact.float() * (scale * weight_scale) + bias
        arguments = [recorder.env[a] if isinstance(a, fx.Node) else a for a in users[0].args[1:]]
        ours = torch.ops.sparsefx.quantize(y, *arguments)
        theirs = recorder.env[users[0]].reshape(ours.shape)
        assert torch.equal(ours, theirs)
        checked += 1
    assert checked >= 3


def matmul_integer(left: Array, right: Array, left_zero: int, right_zero: int) -> Array:
    """ONNX Runtime's MatMulInteger: int32."""
    helper, kinds = onnx.helper, onnx.TensorProto
    node = helper.make_node("MatMulInteger", ["a", "b", "za", "zb"], ["y"])
    kind = {"uint8": kinds.UINT8, "int8": kinds.INT8}
    feed = {
        "a": left,
        "b": np.ascontiguousarray(right),
        "za": np.array(left_zero, left.dtype),
        "zb": np.array(right_zero, right.dtype),
    }
    inputs = [
        helper.make_tensor_value_info(name, kind[value.dtype.name], list(value.shape))
        for name, value in feed.items()
    ]
    outputs = [helper.make_tensor_value_info("y", kinds.INT32, None)]
    graph = helper.make_graph([node], "integer", inputs, outputs)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    result: Array = runtime.InferenceSession(model.SerializeToString()).run(None, feed)[0]
    return result


@pytest.mark.parametrize("inputs", [96, 1])
def test_accumulators_equal_onnx_runtime_integer_products(inputs: int) -> None:
    generator = np.random.default_rng(0)
    q = generator.integers(0, 256, (16, inputs)).astype(np.uint8)
    weight = generator.integers(-127, 128, (40, inputs)).astype(np.int8)
    theirs = matmul_integer(q, weight.T, 131, 0)
    assert np.array_equal(accumulate(torch.from_numpy(q), 131, weight), theirs)


@pytest.mark.parametrize("arch", ["anton", "eie-64"])
def test_outputs_equal_the_reference_target_in_integer_arithmetic(arch: str) -> None:
    machine = compiled(arch)
    batch = example_batch(2, 16, seed=3)
    reference = Reference(arithmetic="integer").lower(machine.program)
    assert torch.equal(machine(**batch)["logits"], reference(**batch)["logits"])


def attention_machine() -> CompiledForAccelerator:
    target = Accelerator(arch="lock-step-32", batch=2, sequence=16)
    return target.lower(target.pipeline().run(int8("bert-cls", "{requantize='all'}")))


def test_attention_products_are_exact_integers() -> None:
    # Scores and contexts, on the Program's own integers: equal to the exact product and to ONNX
    # Runtime's MatMulInteger, element for element; logits equal to the reference's.
    machine = attention_machine()
    program, batch = machine.program, example_batch(2, 16, seed=3)
    reference = Reference(arithmetic="integer").lower(program)
    assert torch.equal(machine(**batch)["logits"], reference(**batch)["logits"])
    sites = program.facts(QuantizedProducts)
    assert [site.node.name for site in sites] == list(machine.executor.attention)
    assert len(sites) == 4
    recorder = Recorder(program)
    with torch.no_grad():
        recorder.run(*(batch[spec.name] for spec in program.signature.inputs))
    for site in sites:
        left, right = (operand.moved(recorder.env) for operand in (site.left, site.right))
        zeros = (
            int(program.tensor(site.left.zero_point)),
            int(program.tensor(site.right.zero_point)),
        )
        found = multiply(left, right, zeros).numpy()
        exact = (left.long() - zeros[0]) @ (right.long() - zeros[1])
        assert np.array_equal(found, exact.numpy())
        assert np.array_equal(found, matmul_integer(left.numpy(), right.numpy(), *zeros))


def test_a_long_product_is_exact_too() -> None:
    left = torch.full((1, 2, 700), 255, dtype=torch.uint8)
    right = torch.full((1, 700, 3), 254, dtype=torch.uint8)
    assert bool((multiply(left, right, (0, 1)) == 255 * 253 * 700).all())


def test_float_products_run_on_the_vector_unit_and_are_listed() -> None:
    machine = compiled("anton")
    run = machine.simulation
    floats = [op for op in run.ops if op.kind == "product"]
    assert len(floats) == 2
    assert all(op.macs is None and op.busy > 0 for op in floats)
    assert any("2 products have a float operand" in note for note in run.notes)
    listed = Accelerator(arch="anton").unsupported(machine.program)
    assert [item.where for item in listed] == [f"%{op.name}" for op in floats]
    assert all("vector unit" in item.instead for item in listed)
    machine(**example_batch(2, 16, seed=3))
    assert list(machine.executor.attention) == [
        op.name for op in run.ops if op.name.startswith("matmul") and op.kind == "matmul"
    ]


def test_probabilities_are_quantized_only_before_integers() -> None:
    quiet = Pipeline.parse("decompose-attention,quantize-probabilities{on_no_match='ignore'}")
    floats = quiet.run(quantized()).history[-1]
    assert floats.applied == 0
    assert "requantize='all'" in floats.skipped[0].reason
    assert quiet.run(int8("bert-cls", "{requantize='all'}")).history[-1].applied == 2


def test_timing_and_function_are_of_one_program() -> None:
    machine = compiled()
    machine(**example_batch(2, 16, seed=3))
    timed = {
        op.name: weight_digest(op.weight)
        for op in machine.workload.matmuls
        if op.weight is not None
    }
    computed = {name: product.digest for name, product in machine.executor.products.items()}
    assert timed == computed
    assert machine.workload.fingerprint == machine.program.fingerprint()


def test_observed_zeros_make_a_two_sided_engine_faster() -> None:
    target = Accelerator(arch="eie-64", batch=2, sequence=16)
    machine = target.lower(target.pipeline().run(quantized()))
    before = machine.simulation
    machine.observe(**example_batch(2, 16, seed=3))
    after = machine.simulation
    assert after.cycles <= before.cycles
    active = [op.activation for op in machine.workload.matmuls if op.activation is not None]
    assert active
    assert all(mask.ndim == 2 for mask in active)


def test_cost_rows_are_graph_nodes() -> None:
    machine = compiled()
    report = machine.cost()
    assert report.origin == "simulated"
    names = {f"%{node.name}" for node in machine.program.graph.nodes}
    assert {row.where for row in report.rows} <= names
    assert report.total("executed MACs") == sum(
        op.gemm.macs(machine.machine.engine.skips) * op.copies for op in machine.workload.matmuls
    )
    assert any("assumed" in note for note in report.notes)


def test_listing_is_deterministic_and_names_tiles() -> None:
    text = compiled().listing()
    assert text == compiled().listing()
    assert "%linear: matmul [32, 64] by [64, 64]" in text
    assert "; tile " in text
    assert "x compute" in text


def test_a_float_program_is_refused_on_an_integer_machine() -> None:
    target = Accelerator(arch="anton", sequence=16)
    with pytest.raises(TargetError, match=r"14 linears have float weights, int8 is needed") as e:
        target.lower(captured("bert-cls"))
    assert "quantize-convert" in str(e.value)
    with pytest.raises(TargetError, match=r"(?s)14 places cannot be lowered.*quantize-convert"):
        target.compile(captured("bert-cls"))


@pytest.mark.filterwarnings("ignore:Initializing zero-element")
def test_an_empty_layer_is_refused() -> None:
    program = small_program(torch.nn.Linear(8, 0), input=torch.ones(2, 8))
    with pytest.raises(
        TargetError, match=r"%linear: the product of \[2, 8\] into \[2, 0\] is empty"
    ):
        workload_of(program, integers=False, batch=2, tokens=1)


def test_a_program_of_fixed_sizes_is_timed_for_those() -> None:
    tokens = {"input": torch.ones(4, 6).long()}
    program = sparsefx.capture(torch.nn.Embedding(10, 8), tokens, dynamic=False)
    found = Accelerator(arch="a100-fp16", batch=1, sequence=128).lower(program)
    assert (found.workload.batch, found.workload.tokens) == (4, 6)
    assert found.simulation.throughput == pytest.approx(4 / found.simulation.seconds)


def test_a_linear_that_stays_float_is_listed_with_the_reason() -> None:
    # The decoder of masked-language modelling shares the embedding's table.
    target, program = Accelerator(arch="anton", sequence=16), int8("bert-mlm")
    (found,) = [item for item in target.unsupported(program) if not item.instead]
    assert re.search(r"%embedding reads it too, .* untie them", found.reason)
    for lowers in (target.lower, target.compile):
        with pytest.raises(TargetError, match=re.escape(f"{found.where}: its weight is float")):
            lowers(program)
    assert not [i for i in Accelerator(arch="a100-fp16").unsupported(program) if not i.instead]


@pytest.mark.parametrize(
    ("model", "module", "told"),
    [
        ("bert-cls", "bert.encoder.layer.0.attention.self.query", ""),
        ("albert", "albert.encoder.albert_layer_groups.0.albert_layers.0.ffn", " (%linear_5)"),
    ],
)
def test_products_are_named_by_their_modules(model: str, module: str, told: str) -> None:
    workload = workload_of(shared(model), integers=False, batch=1, tokens=16)
    assert len({*workload.titles.values()}) == len(workload.ops)
    run = simulate(workload, load_architecture("a100-fp16"))
    title = module + told
    node = next(name for name, each in workload.titles.items() if each == title)
    assert layer_summary(run, title) == layer_summary(run, f"%{node}")
    assert layer_summary(run, title).startswith(f"{title}: [16, 64] by [")
    assert f"\n%{node}: matmul [16, 64]" in listing(run)
    assert f"\n  ; {module}\n" in listing(run)
    assert title in [row["operation"] for row in as_tree(run)["operations"]]


@pytest.mark.parametrize("model", ["mpnet", "modernbert"])
def test_position_encodings_need_no_host(model: str) -> None:
    arch = load_architecture("a100-fp16")
    workload = workload_of(shared(model), integers=False, batch=1, tokens=16)
    assert [op.name for op in workload.ops if isinstance(op, HostOp)] == []
    assert simulate(workload, arch).waterfall["launch and host"] > 0


def test_a_float_program_runs_on_an_fp16_machine() -> None:
    target = Accelerator(arch="a100-fp16", sequence=16)
    machine = target.compile(captured("bert-cls"))
    assert machine.cost().total("cycles") > 0


def test_unknown_operators_are_listed_with_their_cost() -> None:
    class Odd(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            values: torch.Tensor = torch.sort(x)[0]
            return values * 2

    program = sparsefx.capture(Odd(), {"x": torch.randn(2, 8)})
    found = Accelerator(arch="anton").unsupported(program)
    assert any("aten.sort" in str(item) for item in found)
    assert all("runs on the host" in item.instead for item in found)


def test_views_are_free_and_what_the_host_runs_is_named() -> None:
    class Views(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first = torch.nn.Linear(8, 8)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            y = self.first(x).unflatten(-1, (2, 4)).movedim(-1, -2).swapaxes(-1, -2)
            y = y.flatten(-2).unsqueeze(0).expand(3, -1, -1).narrow(0, 0, 2).squeeze(0)
            left, right = y.chunk(2, -1)
            above, below = torch.split(torch.stack([left, right]), [1, 1])
            values: torch.Tensor = torch.sort(above + below.unbind(0)[0])[0]
            return values

    program = sparsefx.capture(Views(), {"x": torch.randn(2, 8)})
    workload = workload_of(program, integers=False, batch=1, tokens=2)
    assert [op.kind for op in workload.ops if isinstance(op, HostOp)] == ["aten.sort"]
    told = reasons(simulate(workload, load_architecture("a100-fp16")))
    assert any("1 operations that the machine does not have: aten.sort (1)" in t for t in told)


def test_functions_that_a_table_gives_are_named_and_cost_what_tanh_does() -> None:
    gated = small_program(torch.nn.SiLU(), input=torch.randn(2, 8))
    machine = Accelerator(arch="anton").lower(gated)
    assert [row.op for row in machine.cost().rows] == ["silu"]
    (silu,) = (op for op in machine.workload.ops if isinstance(op, VectorOp))
    assert machine.machine.vector_operations(silu) == 16 * 8
    costs = {**machine.architecture.vector.costs, "silu": Quantity.parse("3 | assumed")}
    vector = replace(machine.architecture.vector, costs=costs)
    own = Machine(replace(machine.architecture, vector=vector))
    assert own.vector_operations(silu) == 16 * 3


def test_tag_writes_units_and_lists_host_nodes() -> None:
    program = Pipeline((AcceleratorTag(),)).run(quantized())
    units = {node.meta.get(UNIT) for node in program.graph.nodes if node.op == "call_function"}
    assert units >= {"matrix", "vector", "free"}


def test_options_are_checked() -> None:
    with pytest.raises(TargetError, match="batch=0: expected at least 1"):
        Accelerator(batch=0)
    with pytest.raises(TargetError, match="did you mean 'anton'"):
        Accelerator(arch="antom").lower(quantized())


def test_embedding_rows_are_fetched_and_sizes_are_no_data() -> None:
    machine = compiled("lock-step-32")
    tables = [op for op in machine.workload.ops if isinstance(op, VectorOp) and op.fetched]
    assert len(tables) == 3
    moved = {op.name: op.traffic.activations_in for op in machine.simulation.ops}
    assert all(moved[op.name] == op.fetched for op in tables)
    for op in machine.workload.matmuls:
        assert "" not in op.inputs
        assert moved[op.name] == 0
