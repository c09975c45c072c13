"""The processes that train together: who leads, and what they tell one another.

``torchrun`` and ``accelerate launch`` start one program several times, on one machine or on many.
In each of them a session trains on its share of every batch; gradients are added up, so all of them
hold the same weights. Process 0 leads: it alone runs passes, evaluates, writes and reports.

Numbers of the training go over the backend that accelerate chose for the device (NCCL, gloo); what
steers it, and the checks, go over gloo, which waits on no accelerator and notices at once when
another process is gone.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from sparsefx.errors import TrainingError, first_line

__all__ = ["Processes"]

_FINISHED = -1
_DRIFTED = (
    "run the same code and libraries on machines of one kind, and change the Program by training "
    "alone; the last checkpoint is kept"
)


class Processes:
    """This process and those it trains with; alone, every method is for nothing.

    Args:
        device: ``cpu`` to stay on the CPU; by default what accelerate finds.
        patience: Seconds to wait for another process before giving up.

    Attributes:
        device: Of this process.
        rank: Number of this process, from 0.
        count: How many there are.

    Raises:
        TrainingError: The others are not found.
    """

    def __init__(self, device: str | None, patience: float) -> None:
        from accelerate import Accelerator
        from accelerate.utils import InitProcessGroupKwargs

        timeout = timedelta(seconds=patience)
        handlers = [InitProcessGroupKwargs(timeout=timeout)]
        # As the launcher says: for messages until accelerate has found the others.
        self.rank = int(os.environ.get("RANK", "0"))
        self.count = int(os.environ.get("WORLD_SIZE", "1"))
        # Where there is no accelerator, it forms a group only if it is told to use the CPU.
        cpu = device == "cpu" or not torch.accelerator.is_available()
        with self._answering():
            accelerator = Accelerator(cpu=cpu, kwargs_handlers=handlers)
        self.device = accelerator.device
        self.rank, self.count = accelerator.process_index, accelerator.num_processes
        if self.count > 1:
            with self._answering():
                self._control: Any = dist.new_group(backend="gloo", timeout=timeout)

    @property
    def leads(self) -> bool:
        """Whether this process does what only one may do."""
        return self.rank == 0

    @contextmanager
    def _answering(self) -> Iterator[None]:
        """Say what it means when a collective operation fails."""
        if self.count == 1:
            yield
            return
        try:
            yield
        except RuntimeError as error:
            raise TrainingError(
                f"another of the {self.count} processes ended, or does not answer: "
                + first_line(error),
                who=f"process {self.rank}",
                hint="look for what it said; start all of them again to go on from the last "
                "checkpoint",
            ) from error

    # -- numbers of the training -----------------------------------------------------------------

    def add_up(self, values: Tensor) -> None:
        """Replace ``values`` by their sum over all processes; the same bits in each of them."""
        if self.count > 1:
            with self._answering():
                dist.all_reduce(values)

    def lowest(self, values: Tensor) -> None:
        """Replace ``values`` by the smallest of all processes."""
        if self.count > 1:
            with self._answering():
                dist.all_reduce(values, dist.ReduceOp.MIN)

    # -- what steers it --------------------------------------------------------------------------

    def any(self, flags: Sequence[bool]) -> list[bool]:
        """Return for each flag whether it is set in any process."""
        if self.count == 1:
            return list(flags)
        values = torch.tensor(flags, dtype=torch.int64)
        with self._answering():
            dist.all_reduce(values, dist.ReduceOp.MAX, group=self._control)
        return [bool(value) for value in values.tolist()]

    def wait(self) -> None:
        """Wait until every process has come here."""
        if self.count > 1:
            with self._answering():
                dist.barrier(self._control)

    def announce(self, stage: int | None) -> None:
        """Tell the others which stage is trained next; None: the run is finished."""
        if self.count > 1:
            self._passed_on(_FINISHED if stage is None else stage)

    def announced(self) -> int | None:
        """Wait until process 0 announces a stage, and return it; None: the run is finished."""
        stage = self._passed_on(_FINISHED)
        return None if stage == _FINISHED else stage

    def _passed_on(self, number: int) -> int:
        value = torch.tensor(number)
        with self._answering():
            dist.broadcast(value, 0, group=self._control)
        return int(value)

    # -- checks ----------------------------------------------------------------------------------

    def check_same(
        self, digests: Mapping[str, str], *, who: str, where: str, hint: str = _DRIFTED
    ) -> None:
        """Hold tensors, or settings, to be the same in every process; to be called in all of them.

        Args:
            digests: A hash of each tensor, or the text of each setting, by its name.
            who: The stage, for the message.
            where: The step, for the message.
            hint: What to do about a difference.

        Raises:
            TrainingError: Naming the process and what differs from process 0.
        """
        if self.count == 1:
            return
        text = "".join(f"{name}:{digest}\n" for name, digest in sorted(digests.items()))
        short = int.from_bytes(hashlib.sha256(text.encode()).digest()[:7])
        found = [torch.zeros((), dtype=torch.int64) for _ in range(self.count)]
        with self._answering():
            dist.all_gather(found, torch.tensor(short), group=self._control)
        if len({int(value) for value in found}) == 1:
            return
        everyone: list[Any] = [None] * self.count
        with self._answering():
            dist.all_gather_object(everyone, dict(digests), group=self._control)
        raise _mismatch(everyone, who, where, hint)


def _mismatch(
    everyone: Sequence[Mapping[str, str]], who: str, where: str, hint: str
) -> TrainingError:
    first, *others = everyone
    wrong = {
        rank: [n for n in sorted({*first, *other}) if first.get(n) != other.get(n)]
        for rank, other in enumerate(others, start=1)
    }
    rank, names = next((rank, names) for rank, names in wrong.items() if names)
    more = f" and {len(names) - 1} more" if len(names) > 1 else ""
    return TrainingError(
        f"process {rank} of {len(everyone)} has another {names[0]}{more} than process 0",
        who=who,
        where=where,
        hint=hint,
    )
