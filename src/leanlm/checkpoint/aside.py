"""Files written aside and put in place when complete, so that a full disk or an interrupt costs nothing that was there."""

import errno
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from safetensors import SafetensorError

from leanlm.errors import LeanLMError, first_line


@contextmanager
def replacing(folder: Path) -> Iterator[Callable[[str], Path]]:
    """Gives `aside(name)`, the temporary path to write the new file `name` of `folder` to.

    When the block ends well all of them take their names; when it fails they are removed, with the folders made for them,
    and what stood there before is untouched. A failure to write raises LeanLMError naming the folder and the reason.
    """
    made = _make(folder)
    partial: dict[str, Path] = {}

    def aside(name: str) -> Path:
        return partial.setdefault(name, folder / f".{name}.{os.getpid()}.partial")

    try:
        yield aside
        for path in partial.values():
            _flush(path)
        for name in partial:
            if (folder / name).is_dir():
                raise IsADirectoryError(errno.EISDIR, f"{name} is a folder")
        for name, path in partial.items():
            path.replace(folder / name)
    except BaseException as error:
        for path in partial.values():
            path.unlink(missing_ok=True)
        for path in made:
            with suppress(OSError):
                path.rmdir()
        # torch reports a failed write as a RuntimeError, safetensors as its own.
        if isinstance(error, OSError | SafetensorError | RuntimeError):
            reason = getattr(error, "strerror", None) or first_line(error)
            raise LeanLMError(f"{folder}: cannot write ({reason}); nothing there was changed") from error
        raise


def _make(folder: Path) -> list[Path]:
    """Make the folder; returns what had to be made, innermost first."""
    missing = [path for path in (folder, *folder.parents) if not path.exists()]
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise LeanLMError(f"{folder}: cannot make this folder ({error.strerror})") from error
    return missing


def _flush(path: Path) -> None:
    """Down to the disk, and readable by whom new files are readable (safetensors makes its own for the owner alone)."""
    with path.open("rb+") as file:
        os.fsync(file.fileno())
    mask = os.umask(0)
    os.umask(mask)
    path.chmod(0o666 & ~mask)
