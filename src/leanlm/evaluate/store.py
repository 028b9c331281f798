"""Results of an evaluation on disk, one JSON line each: an evaluation that was interrupted goes on behind them."""

import hashlib
import json
from pathlib import Path

from leanlm.api import Model
from leanlm.checkpoint import state_file
from leanlm.errors import CheckFailed


class Store:
    """`results` are what the file `path` holds of the evaluation `meant` (None: only memory).

    They are kept in whole blocks of `block`, so that what is read together does not depend on where a run was cut; what a
    killed process left of one is cut off. Raises CheckFailed where the file is damaged, or of another evaluation.
    """

    def __init__(self, path: Path | None, meant: str, block: int = 1):
        self.path, self.results = path, []
        if path is None:
            return
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(json.dumps({"fingerprint": meant}) + "\n", encoding="utf-8")
            return
        head, *results = self._whole_lines(path)
        if head != {"fingerprint": meant}:
            raise CheckFailed(f"{path}: holds results of other texts or another model; remove it, or name another place")
        self.results = results[: len(results) // block * block]
        path.write_text("".join(json.dumps(line) + "\n" for line in (head, *self.results)), encoding="utf-8")

    def add(self, results: list) -> None:
        """Results behind those there are, in memory and on disk."""
        if self.path:
            with self.path.open("a", encoding="utf-8") as file:
                file.write("".join(json.dumps(result) + "\n" for result in results))
        self.results += results

    @staticmethod
    def _whole_lines(path: Path) -> list:
        try:
            lines = [json.loads(line) for line in path.read_text(encoding="utf-8").rpartition("\n")[0].splitlines()]
            if lines[0].keys() != {"fingerprint"}:
                raise ValueError
        except (ValueError, AttributeError, IndexError):
            raise CheckFailed(f"{path}: is damaged; remove it to begin again") from None
        return lines


def fingerprint(model: Model, *asked: str) -> str:
    """Of the model, how it holds numbers and states, and what is asked of it."""
    module = model.module
    told = state_file.fingerprint(module), str(model.dtype), str(module.state_dtype), str(module.cache_dtype), *asked
    return hashlib.sha256("\0".join(told).encode()).hexdigest()
