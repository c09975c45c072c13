"""Smoke test of an installed wheel: run in a folder that does not hold the checkout."""

import importlib
import pkgutil
from pathlib import Path

import torch

import sparsefx


@sparsefx.function_pass("count-linears")
def count_linears(program: sparsefx.Program, ctx: object) -> int:
    """Count the linear layers."""
    linears = program.graph.find_nodes(op="call_function", target=torch.ops.aten.linear.default)
    return len(linears)


class Classifier(torch.nn.Module):
    """Two linear layers."""

    def __init__(self) -> None:
        super().__init__()
        self.dense = torch.nn.Linear(8, 16)
        self.dropout = torch.nn.Dropout(0.5)
        self.head = torch.nn.Linear(16, 2)

    def forward(self, features: torch.Tensor) -> dict[str, torch.Tensor]:
        """Map features [batch, 8] to logits [batch, 2]."""
        return {"logits": self.head(self.dropout(torch.relu(self.dense(features))))}


def import_everything() -> int:
    """Import every module of the installed package and return how many there are."""
    installed = Path(sparsefx.__file__).resolve()
    if "site-packages" not in installed.parts:
        raise SystemExit(
            f"sparsefx was imported from {installed.parent}: that is no installed wheel"
        )
    found = list(pkgutil.walk_packages(sparsefx.__path__, prefix="sparsefx."))
    for module in found:
        importlib.import_module(module.name)
    return len(found)


def round_trip() -> None:
    """Capture, run a pass, save and load; the outputs stay those of the model."""
    model, batch = Classifier().eval(), {"features": torch.randn(3, 8)}
    program = sparsefx.Pipeline((count_linears(),)).run(sparsefx.capture(model, batch))
    loaded = sparsefx.Program.load(program.save("saved"))
    if not torch.equal(loaded(**batch)["logits"], model(**batch)["logits"]):
        raise SystemExit("a saved and loaded Program computes something else")


def main() -> None:
    """Run the checks."""
    print(f"{import_everything()} modules import")
    round_trip()
    print("capture, pass, save and load work")


if __name__ == "__main__":
    main()
