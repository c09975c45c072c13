"""What looks at runs: watchers of a pipeline, comparison node by node, timing in turns."""

from sparsefx.instruments.watchers import DumpDir, Numerics, Reproducer, Timing

__all__ = ["DumpDir", "Numerics", "Reproducer", "Timing"]
