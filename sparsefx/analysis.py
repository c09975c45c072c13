"""Typed, cached facts about a Program."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, ClassVar, Generic, TypeVar

if TYPE_CHECKING:
    from sparsefx.program import Program

__all__ = ["Analysis"]

T = TypeVar("T")


class Analysis(ABC, Generic[T]):
    """A pure function from a Program to a frozen result; ask with ``program.facts(MyAnalysis)``.

    The result is kept until the graph changes. An analysis that looks at tensor values sets
    ``reads_values = True``; its result is also dropped when a tensor is written to.
    """

    reads_values: ClassVar[bool] = False

    @classmethod
    @abstractmethod
    def compute(cls, program: Program) -> T:
        """Return the facts; must not change the Program."""
