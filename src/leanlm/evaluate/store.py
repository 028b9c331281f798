"""Results of an evaluation on disk, one JSON line each: an evaluation that was interrupted goes on behind them."""

import hashlib
import json
from pathlib import Path

from leanlm.api import Model
from leanlm.checkpoint import state_file
from leanlm.checkpoint.aside import replacing
from leanlm.errors import CheckFailed, LeanLMError


class Store:
    """`results` are what the file `path` holds of the evaluation `meant`, `total` at most (without a path: only memory).

    They are kept in whole blocks of `block`, so that what is read together does not depend on where a run was cut; what a
    killed process left of one is cut off. Raises CheckFailed where the file is damaged, or of another evaluation.
    """

    def __init__(self, path: Path | None, meant: str, total: int, block: int = 1):
        self.path, self.results, self.size = path, [], 0
        if path is None:
            return
        head = {"fingerprint": meant}
        if path.exists() and path.stat().st_size:
            found, *results = self._whole_lines(path)
            if found != head:
                raise CheckFailed(f"{path}: holds results of other texts or another model; remove it, or name another place")
            if len(results) > total:
                raise CheckFailed(f"{path}: is damaged; remove it to begin again")
            self.results = results if len(results) == total else results[: len(results) // block * block]
        with replacing(path.parent) as aside:
            aside(path.name).write_text(_lines([head, *self.results]), encoding="utf-8")
        self.size = path.stat().st_size

    def add(self, results: list) -> None:
        """Results behind those there are, in memory and on disk. Raises CheckFailed where another process writes there too,
        LeanLMError where the disk refuses them."""
        if self.path:
            try:
                if self.path.stat().st_size != self.size:
                    raise CheckFailed(
                        f"{self.path}: another evaluation writes here too; let one of them end, or name another place"
                    )
                with self.path.open("a", encoding="utf-8") as file:
                    file.write(_lines(results))
                self.size = self.path.stat().st_size
            except OSError as error:
                raise LeanLMError(f"{self.path}: cannot write ({error.strerror}); the same command goes on later") from None
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


def _lines(results: list) -> str:
    return "".join(json.dumps(result) + "\n" for result in results)


def fingerprint(model: Model, *asked: str) -> str:
    """Of the model, how it holds numbers and states, its tokenizer, and what is asked of it."""
    module = model.module
    told = state_file.fingerprint(module), str(model.dtype), str(module.state_dtype), str(module.cache_dtype), *asked
    digest = hashlib.sha256("\0".join(told).encode())
    for name, content in sorted(model.tokenizer.files.items() if model.tokenizer else ()):
        digest.update(name.encode() + content)
    return digest.hexdigest()
