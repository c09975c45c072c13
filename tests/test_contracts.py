"""What every registered pass and target keeps; a new one is covered when it is registered."""

import ast
import hashlib
import importlib
import inspect
import pickle
import subprocess
import sys
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import pytest
import torch

import sparsefx
from sparsefx import Pipeline, Program, registry
from sparsefx.errors import PipelineError, SpecError
from sparsefx.passbase import Pass
from sparsefx.passes.quantize.calibrate import calibrate
from sparsefx.properties import Property
from tests.tiny_models import example_batch, tiny

PASSES = registry.names("passes")
TARGETS = registry.names("targets")


@dataclass(frozen=True)
class Case:
    """How to run a pass here: its text form, and what to run before it."""

    spec: str
    before: str = ""


# A pass that runs with its defaults on a plain BERT needs no line here.
CASES: dict[str, Case] = {
    "keep-outputs": Case("keep-outputs{outputs=mlm_logits}", before="mlm-head"),
    "masked-lm": Case("masked-lm{mask_token=4}", before="mlm-head"),
    "strip-masked-lm": Case("strip-masked-lm", before="mlm-head,masked-lm{mask_token=4}"),
    "fixpoint": Case("fixpoint{passes=simplify}"),
    "fold-masks": Case("fold-masks", before="magnitude-prune"),
    "magnitude-prune": Case("magnitude-prune{sparsity=0.5,begin=2,end=9,pattern='1x4'}"),
    "movement-prune": Case("movement-prune{sparsity=0.5,begin=2,end=9}"),
    "obert-prune": Case("obert-prune{block=4}"),
    "pattern-lock": Case("pattern-lock", before="magnitude-prune"),
    "prune-heads": Case("prune-heads{ratio=0.25}"),
    "prune-neurons": Case("prune-neurons{ratio=1.0}"),
    "quantize-convert": Case("quantize-convert", before="quantize-prepare"),
    "reweighted-l1": Case("reweighted-l1{shrink=1e-6}"),
    "shrink-width": Case("shrink-width{ratio=0.05}"),
    "take-successors": Case("take-successors", before="replace-modules"),
    "strip-distillation": Case("strip-distillation", before="distill"),
}


def case_of(name: str) -> Case:
    """The case of a pass; its bare name when there is no line in the table."""
    return CASES.get(name, Case(name))


def build(name: str) -> Pass:
    """The pass of a case."""
    (item,) = Pipeline.parse(case_of(name).spec).passes
    return item


@cache
def captured() -> Program:
    """A tiny BERT classifier with two layers."""
    return sparsefx.capture(tiny("bert-cls"), example_batch())


@cache
def programs() -> dict[str, Program]:
    """Programs that passes ask for by name."""
    return {"teacher": sparsefx.capture(tiny("bert-cls", seed=1), example_batch())}


def run(text: str, program: Program) -> Program:
    """Run a pipeline text."""
    return Pipeline.parse(text).run(program, programs=programs())


@cache
def prepared(name: str) -> Program:
    """A Program that the pass of this name can run on."""
    program = run(case_of(name).before, captured())
    if Property.QUANT_PREPARED in program.properties:
        calibrate(program, [example_batch()])
    return program


@pytest.mark.parametrize("name", PASSES)
def test_text_form_round_trips(name: str) -> None:
    item = build(name)
    (again,) = Pipeline.parse(str(item)).passes
    assert again == item
    assert hash(again) == hash(item)
    assert str(again) == str(item)


@pytest.mark.parametrize("name", PASSES)
def test_pass_pickles_under_its_public_name(name: str) -> None:
    item = build(name)
    assert pickle.loads(pickle.dumps(item)) == item
    assert type(item).__module__.startswith("sparsefx.")
    assert type(item).name == name


@pytest.mark.parametrize("name", PASSES)
def test_pass_is_documented_with_an_example(name: str) -> None:
    cls = type(build(name))
    module = importlib.import_module(cls.__module__)
    assert inspect.getdoc(cls), f"{name} has no docstring"
    first = (inspect.getdoc(cls) or "").split("\n\n")[0]
    assert first.endswith("."), f"the docstring of {name} does not begin with a sentence: {first!r}"
    documented = (inspect.getdoc(cls) or "") + (inspect.getdoc(module) or "")
    assert ">>> " in documented, f"{name} has no example that runs"


@pytest.mark.parametrize("name", PASSES)
def test_unknown_option_is_refused(name: str) -> None:
    with pytest.raises(SpecError, match="has no option 'no_such_option'"):
        Pipeline.parse(f"{name}{{no_such_option=1}}")


@pytest.mark.parametrize("name", PASSES)
def test_contract_is_made_of_properties(name: str) -> None:
    cls = type(build(name))
    for declared in (cls.requires, cls.establishes, cls.destroys, cls.forbids):
        assert isinstance(declared, frozenset)
        assert all(isinstance(one, Property) for one in declared)
    assert not cls.establishes & cls.destroys


@pytest.mark.parametrize("name", PASSES)
def test_run_leaves_the_callers_program_alone(name: str) -> None:
    program = prepared(name)
    before = program.fingerprint(), program.properties, program.history
    result = run(case_of(name).spec, program)
    assert (program.fingerprint(), program.properties, program.history) == before
    shared = {t.data_ptr() for t in program.named_tensors().values() if t.numel()}
    assert not shared & {t.data_ptr() for t in result.named_tensors().values() if t.numel()}


def is_refused(text: str, program: Program) -> bool:
    """Whether the Program has what the pass forbids; a pass that crashes is another matter."""
    try:
        Pipeline.parse(text).check(program.properties)
    except PipelineError:
        return True
    return False


@pytest.mark.parametrize("name", PASSES)
def test_second_run_changes_nothing(name: str) -> None:
    once = run(case_of(name).spec, prepared(name))
    if is_refused(case_of(name).spec, once):
        return
    twice = run(case_of(name).spec, once)
    assert twice.history[-1].changed is False
    assert twice.fingerprint() == once.fingerprint()


@pytest.mark.parametrize("name", PASSES)
def test_result_saves_and_loads(name: str, tmp_path: Path) -> None:
    result = run(case_of(name).spec, prepared(name)).eval()
    loaded = Program.load(result.save(tmp_path / "program")).eval()
    assert loaded.fingerprint() == result.fingerprint()
    batch = {**example_batch(), "labels": torch.tensor([0, 1])}
    inputs = {key: batch[key] for key in result.signature.input_names}
    torch.manual_seed(0)  # for passes that draw
    expected = result(**inputs)
    torch.manual_seed(0)
    found = loaded(**inputs)
    assert all(torch.equal(found[key], expected[key]) for key in expected)


def digests() -> dict[str, str]:
    """A hash of the dump after each pass."""
    return {
        name: hashlib.sha256(run(case_of(name).spec, prepared(name)).dump().encode()).hexdigest()
        for name in PASSES
    }


def test_dumps_are_equal_in_two_processes(checkout: Path) -> None:
    program = "from tests.test_contracts import digests; print(repr(digests()))"
    ran = subprocess.run(
        [sys.executable, "-c", program],
        cwd=checkout,
        capture_output=True,
        text=True,
        stdin=subprocess.DEVNULL,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr
    assert ast.literal_eval(ran.stdout.splitlines()[-1]) == digests()


@pytest.mark.parametrize("name", TARGETS)
def test_target_round_trips(name: str) -> None:
    target = registry.parse_target(name)
    assert registry.parse_target(str(target)) == target
    assert pickle.loads(pickle.dumps(target)) == target
    assert target.pipeline().check() is not None
    assert inspect.getdoc(type(target))


@pytest.mark.parametrize("name", TARGETS)
def test_target_compiles_what_every_target_takes(name: str, tmp_path: Path) -> None:
    calibrated = run("quantize-prepare", captured()).train()
    calibrated(**example_batch())
    final = run("quantize-convert,simplify", calibrated.eval())
    before = final.fingerprint()
    compiled = registry.parse_target(name).compile(final)
    assert final.fingerprint() == before
    outputs, expected = compiled(**example_batch()), final(**example_batch())
    assert outputs.keys() == expected.keys()
    assert all(outputs[key].shape == expected[key].shape for key in expected)
    assert all(torch.isfinite(value).all() for value in outputs.values())
    assert compiled.cost().rows
    assert compiled.listing() == registry.parse_target(name).compile(final).listing()
    assert compiled.save(tmp_path / "compiled").exists()
