"""What cannot leave its process."""

from __future__ import annotations

from typing import NoReturn

from sparsefx.errors import TargetError

__all__ = ["InProcess"]


class InProcess:
    """A compiled model, which cannot be pickled or copied: code and memory are its process's."""

    def __reduce__(self) -> NoReturn:
        """Refuse, with what to do instead.

        Raises:
            TargetError: Always.
        """
        raise TargetError(
            "a compiled model cannot be pickled or copied",
            who="cpu",
            hint="give the name of the folder that save(folder) wrote, and where the model is "
            "needed, such as in another process, sparsefx.backends.cpu.artifact.load(folder)",
        )
