"""Makes all-MiniLM-L6-v2 its own sparse int8 self, and scores it on STS-B.

    python benchmarks/sentence_encoder.py --steps 2000 --json sentence_encoder.json

No label is used: the text is STS-B's training sentences and sentences of Wikipedia, from
``../shared/data`` (or ``--glue`` and ``--wikipedia``; without files STS-B is loaded by its name).
The score is Spearman's correlation between the cosine of two embeddings and the human score, over
STS-B's 1,500 development pairs, of which no sentence is trained on. A run that was interrupted goes
on when the same command is given again.
"""

from __future__ import annotations

import json
import lzma
import random
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer
from numpy.typing import NDArray
from scipy.stats import spearmanr

from sparsefx import registry
from sparsefx.cli import one_message
from sparsefx.cli.progress import SessionProgress
from sparsefx.errors import DataError
from sparsefx.huggingface import load_pretrained, load_tokenizer, save_pretrained
from sparsefx.inputs.signature import SENTENCE_OUTPUT
from sparsefx.instruments.timing import machine
from sparsefx.program import Program
from sparsefx.recipe import Recipe
from sparsefx.storage.files import write_json
from sparsefx.train.data.assets import minilm_folder, split_sentences
from sparsefx.train.data.batches import encode, evaluation_batches
from sparsefx.train.data.examples import Examples
from sparsefx.train.data.glue import load_glue
from sparsefx.train.data.splits import text_key
from sparsefx.train.data.tasks import text_task
from sparsefx.train.evaluation import SessionData, inputs_for
from sparsefx.train.results import RunResult
from sparsefx.train.session import Session

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from benchmarks.glue import glue_folder  # noqa: E402  # its folder is on the path only now

WIKIPEDIA = ROOT.parent / "shared" / "data" / "enwiki2014_40MB.txt.xz"
Embed = Callable[[tuple[str, ...]], NDArray[np.float32]]


@dataclass(frozen=True)
class Pairs:
    """STS-B's development pairs with their human scores."""

    first: tuple[str, ...]
    second: tuple[str, ...]
    scores: tuple[float, ...]

    def spearman(self, embed: Embed) -> float:
        """Return Spearman's correlation, in points, of cosines with the human scores."""
        left, right = embed(self.first), embed(self.second)
        norms = np.linalg.norm(left, axis=1) * np.linalg.norm(right, axis=1)
        cosines = (left * right).sum(1) / norms
        return 100 * float(spearmanr(cosines, self.scores).statistic)


def read_stsb(glue: Path | None) -> tuple[tuple[str, ...], Pairs]:
    """Return the distinct training sentences, none of which is in a scored pair, and the pairs."""
    task = load_glue("STS-B", glue_folder(glue))
    train, test = task.split("train"), task.split("test")
    if test.pairs is None or train.pairs is None or test.labels is None:
        raise DataError("STS-B has no pairs", who="sentence_encoder", where=str(glue))
    seen = {text_key(text) for text in (*test.texts, *test.pairs)}
    found = dict.fromkeys(t for t in (*train.texts, *train.pairs) if text_key(t) not in seen)
    scores = tuple(float(score) for score in test.labels)  # type: ignore[arg-type]  # values
    return tuple(found), Pairs(test.texts, test.pairs, scores)


def wikipedia_sentences(path: Path, count: int) -> list[str]:
    """Return ``count`` distinct sentences of 6 to 24 words, drawn from the whole file."""
    with lzma.open(path, "rt", encoding="utf-8") as file:
        found = {
            sentence
            for line in file
            for sentence in split_sentences(line)
            if 6 <= len(sentence.split()) <= 24
        }
    return random.Random(0).sample(sorted(found), count)


def embedder(program: Program, tokenizer: Any, target: str | None = None) -> Embed:
    """Return what turns texts into vectors [texts, hidden]; on a target, if one is named."""
    run: Callable[..., Any] = program.eval()
    if target is not None:
        run = registry.parse_target(target).compile(program)

    def embed(texts: tuple[str, ...]) -> NDArray[np.float32]:
        data = encode(tokenizer, Examples("STS-B", texts), 128)
        vectors: dict[int, NDArray[np.float32]] = {}
        with torch.no_grad():
            for rows, batch in evaluation_batches(data, 32):
                found = run(**inputs_for(program, batch))[SENTENCE_OUTPUT].float().numpy()
                vectors.update(zip(rows.tolist(), found, strict=True))
        return np.stack([vectors[row] for row in range(len(data))])

    return embed


def with_steps(recipe: Recipe, steps: int, quantized: int) -> Recipe:
    """Return the recipe with other numbers of steps for its two training stages."""
    changed = {"sparse": steps, "int8": quantized}
    stages = []
    for stage in recipe.stages:
        training = stage.training
        if training is not None:
            training = training.model_copy(update={"steps": changed[stage.name]})
        stages.append(stage.model_copy(update={"training": training}))
    return recipe.model_copy(update={"stages": tuple(stages)})


def as_json(result: RunResult, pairs: Pairs, tokenizer: Any, recipe: Recipe) -> dict[str, Any]:
    """Score every stage, and the last one in both engines."""
    scores = {
        stage.name: pairs.spearman(embedder(stage.program(), tokenizer)) for stage in result.stages
    }
    for target in ("onnxruntime", "cpu"):
        embed = embedder(result.program, tokenizer, target)
        scores[f"int8 on {target}"] = pairs.spearman(embed)
    return {
        "recipe": recipe.settings(),
        "task": "STS-B dev, Spearman x 100",
        "pairs": len(pairs.scores),
        "scores": {name: round(score, 2) for name, score in scores.items()},
        "sparsity": result.stage("sparse").sparsity,
        "seconds": {stage.name: stage.seconds for stage in result.stages},
        "machine": machine(),
    }


def main(
    steps: Annotated[int, typer.Option(help="Of the sparse stage.")] = 2000,
    quantized_steps: Annotated[int, typer.Option(help="Of the int8 stage.")] = 40,
    sentences: Annotated[int, typer.Option(help="Sentences of Wikipedia.")] = 10_000,
    glue: Annotated[Path | None, typer.Option(help="Folder with the task STS-B.")] = None,
    wikipedia: Annotated[Path, typer.Option()] = WIKIPEDIA,
    folder: Annotated[Path, typer.Option()] = Path("runs/sentence-encoder"),
    out: Annotated[Path | None, typer.Option("--json", help="Where the result goes.")] = None,
    threads: Annotated[int, typer.Option(help="Of PyTorch; 0 for its own choice.")] = 0,
) -> None:
    """Train, score and save."""
    if threads:
        torch.set_num_threads(threads)
    ours, pairs = read_stsb(glue)
    texts = (*ours, *wikipedia_sentences(wikipedia, sentences))
    place = str(minilm_folder())
    tokenizer = load_tokenizer(place)
    recipe = with_steps(Recipe.shipped("sparse-sentence-encoder"), steps, quantized_steps)
    with SessionProgress() as progress:
        session = Session(
            recipe,
            load_pretrained(place),
            SessionData(text_task(Examples("STS-B and Wikipedia", texts)), tokenizer),
            folder,
            listeners=[progress],
            checkpoint_seconds=300.0,
        )
        result = session.run()
    save_pretrained(result.program, folder / "huggingface")
    tokenizer.save_pretrained(folder / "huggingface")
    found = as_json(result, pairs, tokenizer, recipe)
    typer.echo(json.dumps(found["scores"], indent=2))
    if out is not None:
        write_json(out, found)


if __name__ == "__main__":
    with one_message():
        typer.run(main)
