"""Large and sparse, or small and dense? MobileNetV1 variants of equal non-zeros on real images.

    OMP_NUM_THREADS=1 python benchmarks/width_vs_sparse.py --seeds 0,1,2

The question and the method are those of Zhu and Gupta, "To prune, or not to prune" (2017), at a
size that one CPU core trains in minutes: the 1,797 handwritten digits of 8x8 pixels that
scikit-learn ships (UCI, Optical Recognition of Handwritten Digits). For each width below the full
one, a dense model of that width stands beside the model of full width that is pruned, while it
trains, until as many weights are left. The first and the depthwise convolutions and the classifier
stay dense (all their weights count), all other layers get the same sparsity, and all variants train
for the same number of steps.

Each variant and seed leaves one JSON file; what is there is not trained again. At the end the table
is printed and written beside the files, with a plot.
"""

from __future__ import annotations

import json
import statistics
import time
from collections import defaultdict
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
import typer
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import MobileNetV1Config, MobileNetV1ForImageClassification

from sparsefx import Pipeline, Program, capture
from sparsefx.instruments.timing import machine
from sparsefx.passes.prune.magnitude import MagnitudePrune
from sparsefx.report.svg import COLOURS, Axis, Canvas
from sparsefx.storage.files import write_json, write_text

RESULTS = Path(__file__).resolve().parent / "results" / "width_vs_sparse"
STAYS_DENSE = (r"conv_stem", r"layer\.\d*[02468]\.")  # the even layers are depthwise
BATCH, SIZE = 64, 8
WIDTHS = "0.1875,0.125,0.09375,0.078125"
Images = tuple[Tensor, Tensor]
Kind = Literal["dense", "sparse"]


@dataclass(frozen=True)
class Settings:
    """What all variants of a table share."""

    full: float
    epochs: int
    train: int
    rate: float


@dataclass(frozen=True)
class Variant:
    """A dense model of ``width``, or the full model pruned to as many weights."""

    kind: Kind
    width: float
    seed: int

    @property
    def name(self) -> str:
        """Of its file."""
        return f"{self.width:g}-{self.kind}-{self.seed}"


def digits(train: int, seed: int) -> tuple[Images, Images]:
    """Return ``train`` images to train on and all others, float32 [n, 1, 8, 8] and classes."""
    found = load_digits()
    parts = train_test_split(
        found.images / 8.0 - 1.0,
        found.target,
        train_size=train,
        random_state=seed,
        stratify=found.target,
    )
    images = [torch.tensor(part, dtype=torch.float32)[:, None] for part in parts[:2]]
    classes = [torch.tensor(part) for part in parts[2:]]
    return (images[0], classes[0]), (images[1], classes[1])


def model(width: float) -> Program:
    """Return a MobileNetV1 with new weights, for images of 8x8.

    What makes 28 layers without a bypass train in a few hundred steps: the stem and the first
    depthwise layer with a stride keep the size, so that maps are 8, 4, 2 and 1 wide, and only the
    last are single pixels; pointwise layers begin orthogonal and depthwise ones near the identity.
    The configuration's dropout of 0.999 and the running averages of its norms, of which nothing but
    the last batch stays (momentum 0.9997), are for the released TensorFlow weights.
    """
    settings: dict[str, Any] = {"num_channels": 1, "image_size": SIZE, "num_labels": 10}
    config = MobileNetV1Config(
        depth_multiplier=width, min_depth=1, tf_padding=False, classifier_dropout_prob=0.0,
        **settings,
    )  # fmt: skip
    network: nn.Module = MobileNetV1ForImageClassification(config)
    layers = [module for module in network.modules() if isinstance(module, nn.Conv2d)]
    for layer in layers:
        _begin(layer)
    for layer in [each for each in layers if each.stride == (2, 2)][:2]:
        layer.stride = (1, 1)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = 0.1
    return capture(network.eval(), {"pixel_values": torch.zeros(2, 1, SIZE, SIZE)})


@torch.no_grad()
def _begin(layer: nn.Conv2d) -> None:
    """Give a layer its first weights."""
    if layer.groups == 1:
        nn.init.orthogonal_(layer.weight)
        return
    nn.init.normal_(layer.weight, std=0.1)
    layer.weight[:, :, 1, 1] += 1.0


def kept_weights(program: Program) -> int:
    """Return the non-zeros of all convolutions and the classifier; biases and norms aside."""
    tensors = program.named_tensors()
    weights = {n: t for n, t in tensors.items() if t.dim() > 1 and not n.endswith("_mask")}
    masks = {name: tensors.get(f"{name}_mask", torch.ones(())) for name in weights}
    return sum(int(torch.count_nonzero(t * masks[name])) for name, t in weights.items())


def sparsity_for(program: Program, weights: int) -> float:
    """Return the share of zeros in the pruned layers at which ``weights`` are left in all."""
    trial = MagnitudePrune(0.0, roles=("convolution",), exclude=STAYS_DENSE)
    pruned = Pipeline((trial,)).run(program).named_tensors()
    prunable = sum(tensor.numel() for name, tensor in pruned.items() if name.endswith("_mask"))
    return (kept_weights(program) - weights) / prunable


def train(program: Program, data: Images, settings: Settings, seed: int) -> None:
    """Train with AdamW and one cycle of the learning rate; masks move in ``program.step()``."""
    images, classes = data
    generator = torch.Generator().manual_seed(seed)
    steps = settings.epochs * (len(images) // BATCH)
    module: nn.Module = program.module
    # With the channels last, backward takes half the time.
    module.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # a stub of torch
    optimizer = torch.optim.AdamW(
        program.parameters(), lr=settings.rate, weight_decay=0.01, fused=True
    )
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, settings.rate, total_steps=steps)
    program.train()
    for _ in range(settings.epochs):
        order = torch.randperm(len(images), generator=generator)
        for start in range(0, len(order) // BATCH * BATCH, BATCH):
            rows = order[start : start + BATCH]
            loss = F.cross_entropy(program(pixel_values=images[rows])["logits"], classes[rows])
            torch.autograd.backward(loss)
            optimizer.step()
            schedule.step()
            program.step()
            optimizer.zero_grad()
    program.eval()


@torch.no_grad()
def accuracy(program: Program, data: Images) -> float:
    """Return the share of images whose class is right."""
    images, classes = data
    found = [program(pixel_values=part)["logits"].argmax(1) for part in torch.split(images, 256)]
    return float((torch.cat(found) == classes).float().mean())


def run(variant: Variant, settings: Settings) -> dict[str, object]:
    """Train and score one variant."""
    began = time.perf_counter()
    seen, unseen = digits(settings.train, variant.seed)
    torch.manual_seed(variant.seed)
    sparsity = 0.0
    if variant.kind == "dense":
        program = model(variant.width)
    else:
        target = kept_weights(model(variant.width))
        torch.manual_seed(variant.seed)
        program = model(settings.full)
        sparsity = sparsity_for(program, target)
        steps = settings.epochs * (settings.train // BATCH)
        item = MagnitudePrune(
            sparsity, end=round(0.65 * steps), frequency=max(1, steps // 100), mask="soft",
            roles=("convolution",), exclude=STAYS_DENSE,
        )  # fmt: skip
        program = Pipeline((item,)).run(program)
    train(program, seen, settings, variant.seed)
    if variant.kind == "sparse":
        program = Pipeline.parse("pattern-lock,fold-masks").run(program)
    return {
        **asdict(variant),
        "settings": asdict(settings),
        "sparsity": sparsity,
        "nonzeros": kept_weights(program),
        "accuracy": accuracy(program, unseen),
        "images": len(unseen[0]),
        "seconds": round(time.perf_counter() - began, 1),
        "machine": machine(),
    }


def load(folder: Path, settings: Settings) -> dict[tuple[Kind, float], list[dict[str, float]]]:
    """Return the runs of these settings, by kind and width."""
    found: dict[tuple[Kind, float], list[dict[str, float]]] = defaultdict(list)
    for path in sorted(folder.glob("*.json")):
        one = json.loads(path.read_text(encoding="utf-8"))
        if one["settings"] == asdict(settings):
            found[one["kind"], one["width"]].append(one)
    return dict(found)


def spread(rows: list[dict[str, float]]) -> str:
    """Return mean and standard deviation of the accuracy in percent."""
    values = [100 * row["accuracy"] for row in rows]
    text = f"{statistics.mean(values):.2f}"
    return text + (f" ±{statistics.stdev(values):.2f}" if len(values) > 1 else "")


def table(found: dict[tuple[Kind, float], list[dict[str, float]]]) -> str:
    """Return the table as Markdown; the difference is paired by seed."""
    lines = [
        "| width | non-zeros | dense | full width, pruned | zeros in pruned layers | difference |",
        "|---|---|---|---|---|---|",
    ]
    for kind, width in sorted(found, key=lambda key: -key[1]):
        if kind == "sparse":
            continue
        dense, sparse = found[kind, width], found.get(("sparse", width), [])
        cells = [f"{width:g}", f"{dense[0]['nonzeros']:,}", spread(dense), "", "", ""]
        if sparse:
            theirs = {row["seed"]: row["accuracy"] for row in dense}
            both = [row for row in sparse if row["seed"] in theirs]
            gain = [{"accuracy": row["accuracy"] - theirs[row["seed"]]} for row in both]
            cells[3:5] = [spread(sparse), f"{100 * sparse[0]['sparsity']:.1f} %"]
            cells[5] = f"{spread(gain)}" if gain else ""
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def plot(found: dict[tuple[Kind, float], list[dict[str, float]]]) -> str:
    """Return accuracy over non-zeros as SVG: both kinds as lines, every run as a dot."""
    runs = [row for rows in found.values() for row in rows]
    sizes, scores = [r["nonzeros"] for r in runs], [100 * r["accuracy"] for r in runs]
    canvas = Canvas(560, 340, "accuracy over non-zero weights")
    x = Axis(min(sizes) / 1.2, max(sizes) * 1.2, 70, 540, log=True)
    y = Axis(min(scores) - 0.5, max(scores) + 0.5, 290, 20)
    canvas.axes(x, y, "non-zero weights", "accuracy, %")
    for place, kind in enumerate(("dense", "sparse")):
        points = []
        for (one, _), rows in sorted(found.items(), key=lambda item: item[0][1]):
            if one != kind:
                continue
            mean = 100 * statistics.mean(row["accuracy"] for row in rows)
            points.append((x(rows[0]["nonzeros"]), y(mean)))
            for row in rows:
                canvas.dot(x(row["nonzeros"]), y(100 * row["accuracy"]), COLOURS[place], radius=2.5)
        canvas.line(points, COLOURS[place])
        label = "small and dense" if kind == "dense" else "large and sparse"
        canvas.rect(400, 240 + 18 * place, 12, 4, COLOURS[place])
        canvas.text(418, 246 + 18 * place, label)
    return canvas.render()


def main(
    widths: Annotated[str, typer.Option(help="Widths below the full one.")] = WIDTHS,
    full: Annotated[float, typer.Option(help="The full width.")] = 0.25,
    seeds: Annotated[str, typer.Option()] = "0,1,2",
    epochs: Annotated[int, typer.Option()] = 20,
    train: Annotated[int, typer.Option(help="Training images; all others are scored.")] = 1297,
    rate: Annotated[float, typer.Option(help="Peak learning rate.")] = 6e-3,
    results: Annotated[Path, typer.Option(help="Folder of the files.")] = RESULTS,
) -> None:
    """Train what is missing, and print the table."""
    settings = Settings(full, epochs, train, rate)
    for seed in map(int, seeds.split(",")):
        wanted = [Variant("dense", full, seed)]
        for width in map(float, widths.split(",")):
            wanted += [Variant("dense", width, seed), Variant("sparse", width, seed)]
        for variant in wanted:
            path = results / f"{variant.name}.json"
            if path.exists() and json.loads(path.read_text())["settings"] == asdict(settings):
                continue
            found = run(variant, settings)
            write_json(path, found)
            print(f"{variant.name}: {found['nonzeros']:,} non-zeros, {found['accuracy']:.2%}, "
                  f"{found['seconds']} s", flush=True)  # fmt: skip
    done = load(results, settings)
    print(table(done))
    write_text(results / "table.md", table(done) + "\n")
    write_text(results / "plot.svg", plot(done) + "\n")


if __name__ == "__main__":
    typer.run(main)
