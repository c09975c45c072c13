"""The launchers as docs/recipes.md calls them start as many processes as they are told."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = """
import sys
from sparsefx.train.step.processes import Processes

found = Processes("cpu", patience=120.0)
with open(f"{sys.argv[1]}/{found.rank}", "w") as file:
    file.write(str(found.count))
"""


@pytest.mark.parametrize(
    "launcher",
    [
        "torch.distributed.run --standalone --nproc-per-node 2",
        "accelerate.commands.launch --multi_gpu --num_processes 2 --main_process_port 0",
    ],
    ids=["torchrun", "accelerate"],
)
def test_two_processes_are_started(launcher: str, tmp_path: Path) -> None:
    script, out = tmp_path / "count.py", tmp_path / "out"
    script.write_text(SCRIPT)
    out.mkdir()
    command = [sys.executable, "-m", *launcher.split(), str(script), str(out)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    assert {path.name: path.read_text() for path in out.iterdir()} == {"0": "2", "1": "2"}
