"""The Programs that a run and its stages start from: its model, former stages, teachers."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from sparsefx.errors import ArtifactError, TrainingError
from sparsefx.frontend.capture import capture
from sparsefx.graph.finite import describe_weights, not_finite
from sparsefx.huggingface import capture_tokens, load_pretrained
from sparsefx.pipeline import Pipeline
from sparsefx.problem import PROBLEM_TYPES, Kind
from sparsefx.program import Program
from sparsefx.recipe import MODEL, Recipe, Stage
from sparsefx.recipe.amounts import parse_pipeline
from sparsefx.recipe.passes import TEACHER, asks_teacher
from sparsefx.storage.files import read_json, write_json
from sparsefx.storage.places import is_program
from sparsefx.storage.programs import unnamed
from sparsefx.train.data.batches import check_tokens
from sparsefx.train.evaluation import TokenData, predicts_tokens
from sparsefx.train.precheck import within
from sparsefx.train.results import ASKED_TEACHER, CAPTURED, StageResult
from sparsefx.train.runfolder import RunFolder, check_new_run

__all__ = ["Programs", "begin_folder", "open_folder", "starting_model"]


class Programs:
    """The Programs that lie in the folder of a run, and those that its recipe names.

    Args:
        recipe: Of the run.
        folder: Of the run.
        inputs: What the data give; None for all that a teacher takes.
    """

    def __init__(
        self, recipe: Recipe, folder: RunFolder, inputs: Collection[str] | None = None
    ) -> None:
        self._recipe = recipe
        self._folder = folder
        self._inputs = inputs

    def of(self, name: str, finished: Mapping[str, StageResult]) -> Program:
        """Return the model, the result of a finished stage, or the Program in another folder.

        Raises:
            TrainingError: The folder holds another Program than when the stage began.
        """
        if name == MODEL:
            return self._folder.load_model()
        if name in finished:
            return finished[name].program()
        program = open_folder(name, self._inputs)
        if (kept := self._teacher_file(len(finished))).exists():
            _check_same_teacher(program, kept, name)
        return program

    def teachers(
        self, stage: Stage, pipeline: Pipeline, finished: Mapping[str, StageResult]
    ) -> dict[str, Program]:
        """Return the teacher of a stage if a pass asks for it."""
        if stage.teacher is None or not asks_teacher(pipeline.passes):
            return {}
        return {TEACHER: self.of(stage.teacher, finished).eval()}

    def begin(self, index: int, finished: Mapping[str, StageResult], steps: int | None) -> Program:
        """Return what training begins with; saved, so that a resumed stage begins with the same."""
        stage = self._recipe.stages[index]
        saved = self._start_folder(index)
        if stage.training is not None and saved.exists():
            return _load_start(saved)
        start = self._recipe.start_of(index)
        if start == MODEL or start in finished:
            program = self.of(start, finished)
        else:
            with within(stage.name, "start"):
                program = begin_folder(start, self._folder.load_model())
        self._teacher_file(index).unlink(missing_ok=True)  # of a stage that got to no start
        pipeline = parse_pipeline(stage.pipeline, steps)
        teachers = self.teachers(stage, pipeline, finished)
        with within(stage.name, "pipeline"):
            program = pipeline.run(program, programs=teachers, in_place=True)
        if stage.training is None:
            return program
        if teachers and stage.teacher is not None and stage.teacher not in (MODEL, *finished):
            write_json(self._teacher_file(index), teachers[TEACHER].digests())
        program.save(saved)
        return Program.load(saved)

    def begun(self, index: int, rank: int) -> Program:
        """Return what training begins with, which process 0 has saved.

        Raises:
            TrainingError: Process ``rank`` does not see it.
        """
        saved = self._start_folder(index)
        if not saved.exists():
            raise TrainingError(
                "process 0 has saved the start of the stage, and it is not there",
                who=f"process {rank}",
                where=str(saved),
                hint="the folder of the run has to be on storage that all of them see",
            )
        return Program.load(saved)

    def _start_folder(self, index: int) -> Path:
        return self._folder.stage(index) / "start"

    def _teacher_file(self, index: int) -> Path:
        """Return the file that knows the teacher which a stage found in another folder."""
        return self._folder.stage(index) / ASKED_TEACHER


def _load_start(saved: Path) -> Program:
    try:
        return Program.load(saved)
    except ArtifactError as error:
        error.hint = f"remove {saved.parent} to train the stage anew"
        raise


def _check_same_teacher(teacher: Program, kept: Path, folder: str) -> None:
    """Refuse a folder in which another teacher lies than when the stage began."""
    try:
        old, new = read_json(kept, "it knows the teacher of the stage"), teacher.digests()
    except ArtifactError as error:
        error.hint = f"remove {kept.parent} to begin the stage anew"
        raise
    if differ := [name for name in {**old, **new} if old.get(name) != new.get(name)]:
        raise TrainingError(
            "the teacher is not the one that this stage began with: "
            f"{len(differ)} of {len(new)} tensors differ, {differ[0]} first",
            who="resume",
            where=folder,
            hint=f"put the teacher back; or remove {kept.parent} to begin the stage anew",
        )


def starting_model(model: nn.Module | Program, folder: Path, data: TokenData) -> Program:
    """Return what a run starts from: the model captured, or what a former session saved of it.

    Raises:
        TrainingError: The run in ``folder`` began with another model, it holds no run but what
            one would replace, a weight is NaN, or an active pass is of no package.
        DataError: A text has more tokens than the model has positions, or unknown ones.
    """
    check_new_run(folder)
    saved = folder / CAPTURED
    if is_program(saved):
        found = Program.load(saved)
        _check_same_model(model, found, folder)
        return found
    if isinstance(model, Program):
        _check_named(model)
    config = model.config if isinstance(model, Program) else _config_of(model)
    for split in (data.everything, data.test):
        check_tokens(split, config)
    if isinstance(model, Program):
        return _checked(_of_problem(model, data.task.kind))
    taken = set(_parameters_of(model))
    found = capture(model, {n: t for n, t in data.example().items() if n in taken})
    return _checked(_of_problem(found, data.task.kind))


def _check_named(program: Program) -> None:
    """Refuse active passes that no package names: a run loads what it has saved by their names."""
    for item, _ in unnamed(program):
        raise TrainingError(
            f"the active pass '{item}' of the model is no installed one, and the folder of a run "
            "is loaded by the names of passes",
            who="session",
            where="model",
            hint=f"name {type(item).__name__} by an entry point (docs/writing-a-pass.md); or set "
            "program.active = () for a model that shall train without it",
        )


def _of_problem(program: Program, kind: Kind) -> Program:
    """Return the Program with the problem that it is trained for.

    One that names none is left so, as transformers does, but for any number of labels: ``distill``
    and the exported model have nothing else to tell it from one label by.
    """
    named = program.config.get("problem_type")
    wanted = PROBLEM_TYPES.get(kind, named) if named or kind == "multi-label" else None
    if named == wanted:
        return program
    found = program.copy()
    found.config["problem_type"] = wanted
    return found


def _checked(program: Program) -> Program:
    if names := not_finite(program):
        raise TrainingError(
            f"the model holds {describe_weights(names)}",
            who="session",
            where=names[0],
            hint="nothing can be learnt from them: take another checkpoint of the model",
        )
    return program


def open_folder(folder: str, inputs: Collection[str] | None = None) -> Program:
    """Return the Program in a teacher's folder.

    Args:
        folder: Of a Program, or of a Hugging Face model.
        inputs: If given, those that a model of Hugging Face is captured with, where it takes them.
    """
    place = Path(folder).expanduser()
    if is_program(place):
        return Program.load(place)
    return capture_tokens(load_pretrained(str(place)), inputs)


def begin_folder(folder: str, model: Program) -> Program:
    """Return the Program in the folder that a stage starts from.

    Of a Hugging Face model the encoder is taken, with a new head as large as that of ``model`` if
    its own differs; classes have the names that ``model`` gives them. A Program stays as it is, but
    is trained for the problem that ``model`` names. Nothing is kept between the check of a run and
    its stage: a new head is drawn from the seed of the stage.

    Raises:
        TrainingError: It has another vocabulary than ``model``.
    """
    place = Path(folder).expanduser()
    classes = model.config.get("id2label") if "logits" in model.signature.outputs else None
    if classes is None or is_program(place):
        program = open_folder(folder)
    else:
        network = load_pretrained(str(place), labels=len(classes), kind=_kind_of(model))
        program = capture_tokens(network, model.signature.input_names)
        names = ("id2label", "label2id")
        program.config.update({key: model.config[key] for key in names if key in model.config})
    if problem := model.config.get("problem_type"):
        program.config["problem_type"] = problem
    sizes = [each.config.get("vocab_size") for each in (program, model)]
    if None not in sizes and sizes[0] != sizes[1]:
        raise TrainingError(
            f"it has a vocabulary of {sizes[0]} tokens, the model of the run one of {sizes[1]}",
            where=folder,
            hint="start from a model with the same tokenizer",
        )
    return program


def _kind_of(model: Program) -> Kind | None:
    """What the head of a model is of, where it tells; else the number of its outputs does."""
    if predicts_tokens(model):
        return "token-classification"
    return "multi-label" if model.multi_label else None


def _config_of(model: nn.Module) -> dict[str, Any]:
    config: Any = getattr(model, "config", None)
    return config.to_dict() if hasattr(config, "to_dict") else {}


def _check_same_model(given: nn.Module | Program, saved: Program, folder: Path) -> None:
    """Refuse another model; a new head may have other random values."""
    from sparsefx.passes.analyses.roles import Role
    from sparsefx.passes.analyses.sparsity import SparsityStats

    config = given.config if isinstance(given, Program) else _config_of(given)
    changed = [
        f"{key} was {old}, is {new}"
        for key, old in saved.config.items()
        if type(old) is int and type(new := config.get(key)) is int and old != new
    ]
    tensors = given.named_tensors() if isinstance(given, Program) else given.state_dict()
    held = saved.named_tensors()
    differ = [name for name, tensor in held.items() if not _equal(tensors.get(name), tensor)]
    roles = {item.name: item.role for item in saved.facts(SparsityStats).tensors}
    of_encoder = any(roles.get(name) in (Role.ENCODER, Role.EMBEDDING) for name in differ)
    if of_encoder or 2 * len(differ) > len(held):
        changed.append(f"{len(differ)} of {len(held)} tensors differ, {differ[0]} first")
    if changed:
        raise TrainingError(
            f"the model is not the one that this run began with: {', '.join(changed)}",
            who="resume",
            where=str(folder),
            hint="go on with the same model, or choose another folder",
        )


def _equal(given: Tensor | None, saved: Tensor) -> bool:
    return given is not None and given.shape == saved.shape and torch.equal(given.cpu(), saved)


def _parameters_of(model: nn.Module) -> list[str]:
    forward: Callable[..., Any] = model.forward
    return list(inspect.signature(forward).parameters)
