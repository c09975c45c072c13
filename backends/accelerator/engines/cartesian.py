"""Cartesian product: vectors of non-zero activations times vectors of non-zero weights."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from sparsefx.backends.accelerator.engines.base import BOTH, Engine, Gemm, Skips, Timing, group_sum
from sparsefx.backends.accelerator.engines.channel_product import interleaved_counts

__all__ = ["Cartesian"]


@dataclass(frozen=True)
class Cartesian(Engine):
    """SCNN (Parashar et al. 2017, section 4): PT-IS-CP-sparse dataflow.

    Activations are dealt to `elements` PEs; weights are broadcast in groups of `group` output
    features, with a barrier after each group. A PE multiplies `inputs x weights` a cycle:

        cycles = sum over groups of max over PEs of
                 sum over k of ceil(nnz_act(pe, k) / inputs) ceil(nnz_weight(group, k) / weights)

    Conflicts in the accumulator banks are not modelled; the paper provides twice as many banks as
    products so that they are rare.
    """

    kind: ClassVar[str] = "cartesian"
    skips: ClassVar[frozenset[Skips]] = BOTH
    elements: int = 64
    inputs: int = 4
    weights: int = 4
    group: int = 8

    @property
    def peak(self) -> int:
        """PEs times the product's size."""
        return self.elements * self.inputs * self.weights

    @property
    def row_step(self) -> int:
        """Output features between two barriers."""
        return self.group

    def run(self, gemm: Gemm) -> Timing:
        """Time the GEMM with its barriers."""
        active = interleaved_counts(gemm.activation, gemm.m, gemm.k, self.elements)
        mask = np.ones((gemm.n, gemm.k), bool) if gemm.weight is None else gemm.weight
        weight = group_sum(mask.astype(np.int64), self.group)
        load = (-(-active // self.inputs)) @ (-(-weight // self.weights)).T
        cycles = int(load.max(axis=0).sum())
        return Timing(cycles, gemm.macs(self.skips), load=load)
