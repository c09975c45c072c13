"""What a long measurement has found before it is done, in a file beside its results."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sparsefx.errors import ArtifactError
from sparsefx.storage.files import read_json, write_json
from sparsefx.train.differences import differences

__all__ = ["Unfinished"]

_FORMAT = 1


class Unfinished:
    """Numbers by name that are kept when the command ends before its time.

    Args:
        path: The file, which need not be there.
        asked: What decides the numbers, as plain data.
        who: The command.
        overwrite: Whether the user lets what is there be replaced, if it is of something else.

    Raises:
        ArtifactError: There are numbers of something else, or what is there is no such file.
    """

    def __init__(self, path: Path, asked: Mapping[str, Any], *, who: str, overwrite: bool) -> None:
        self.numbers: dict[str, float] = {}
        self._path = path
        self._asked = {"format": _FORMAT, **asked}
        if path.exists():
            self._take(who, overwrite=overwrite)
        self._kept = len(self.numbers)

    def _take(self, who: str, *, overwrite: bool) -> None:
        try:
            found = read_json(self._path, "")
        except ArtifactError as error:
            why = [error.why]
        else:
            lines = differences(found.get("asked"), self._asked, "asked")
            why = [line.removeprefix("asked.") for line in lines]
            self.numbers = {} if why else dict(found["numbers"])
        if why and not overwrite:
            raise ArtifactError(
                "what is kept there is of something else:\n  " + "\n  ".join(why),
                who=who,
                where=str(self._path),
                hint="go on with what it was begun with, choose another --out, or give --overwrite "
                "to begin anew",
            )

    def keep(self) -> bool:
        """Write the numbers if there are new ones, and return whether there were."""
        if len(self.numbers) == self._kept:
            return False
        write_json(self._path, {"asked": self._asked, "numbers": self.numbers})
        self._kept = len(self.numbers)
        return True

    def finish(self) -> None:
        """Remove the file, when the results are written."""
        self._path.unlink(missing_ok=True)
