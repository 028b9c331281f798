"""The published tensors of a folder by name, memory-mapped: nothing is read before it is used.

The mappings are private (copy-on-write): changing a tensor in place never reaches the file, and a file that is replaced
under its name (as saving does) leaves the tensors as they were.
"""

import pickle
import re
import zipfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from leanlm.checkpoint.folder import find_weights, read_json
from leanlm.errors import CheckpointError, first_line

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
WRAPPERS = ("state_dict", "model_state", "model_state_dict", "model")  # where training programs put the tensors

Reader = tuple[Iterable[str], Callable[[str], Tensor]]


class Weights(Mapping[str, Tensor]):
    """name -> tensor (float32, bfloat16 or float16), over a safetensors file, a torch pickle, or an index of shards."""

    def __init__(self, folder: Path):
        self.main = find_weights(folder)
        self._readers: dict[Path, Reader] = {}
        self._file_of: dict[str, Path] = {}
        index = _read_index(self.main) if self.main.suffix == ".json" else {}
        for file in dict.fromkeys(index.values()) or [self.main]:
            self._file_of |= dict.fromkeys(self._reader(file)[0], file)
        for name, file in index.items():
            if self._file_of.get(name) != file:
                raise CheckpointError(
                    f"{file}: tensor {name!r} is not in it, though {self.main.name} says so; download it again"
                )

    def __getitem__(self, name: str) -> Tensor:
        tensor = self.stored(name)
        if tensor.dtype not in DTYPES:
            kind = str(tensor.dtype).removeprefix("torch.")
            raise CheckpointError(
                f"{self._file_of[name]}: tensor {name!r} is {kind}; float32, bfloat16 and float16 weights are read"
            )
        return tensor

    def stored(self, name: str) -> Tensor:
        """The tensor of any dtype, as the parts of packed weights are."""
        file = self._file_of[name]
        try:
            tensor = self._reader(file)[1](name)
        except (SafetensorError, RuntimeError, OSError) as error:
            raise CheckpointError(f"{file}: tensor {name!r} cannot be read ({first_line(error)})") from None
        if not isinstance(tensor, Tensor):
            raise CheckpointError(f"{file}: entry {name!r} is a {type(tensor).__name__}, not a tensor")
        if tensor.layout != torch.strided:
            raise CheckpointError(f"{file}: tensor {name!r} is sparse; only dense weights are read")
        tensor = tensor.detach().contiguous()
        # A header of odd length leaves numbers across their natural boundaries, which vector code may not bear.
        return tensor.clone() if tensor.data_ptr() % tensor.element_size() else tensor

    def __contains__(self, name: object) -> bool:
        return name in self._file_of

    def __iter__(self) -> Iterator[str]:
        return iter(self._file_of)

    def __len__(self) -> int:
        return len(self._file_of)

    @property
    def nbytes(self) -> int:
        """Of all files together."""
        return sum(file.stat().st_size for file in set(self._file_of.values()))

    def release(self) -> None:
        """Forget the mappings, so that pages whose tensors are gone stop counting; they come back when next needed."""
        self._readers.clear()

    def _reader(self, file: Path) -> Reader:
        if file not in self._readers:
            self._readers[file] = _open_safetensors(file) if file.suffix == ".safetensors" else _open_pickle(file)
        return self._readers[file]


def _read_index(path: Path) -> dict[str, Path]:
    """tensor name -> shard; raises CheckpointError for a shard that is missing or outside the folder."""
    shards = read_json(path).get("weight_map")
    if not isinstance(shards, dict) or not shards:
        raise CheckpointError(f"{path}: no weight_map, the table of which file holds which tensor")
    for shard in dict.fromkeys(map(str, shards.values())):
        if Path(shard).name != shard:
            raise CheckpointError(f"{path}: {shard!r} is not a file beside the index")
        if not (path.parent / shard).exists():
            raise CheckpointError(f"{path.parent}: shard {shard} is missing; download it again")
    return {name: path.parent / shard for name, shard in shards.items()}


def _open_safetensors(path: Path) -> Reader:
    try:
        handle = safe_open(path, framework="pt")
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{path}: {_damage(path, error)}") from None
    return handle.keys(), handle.get_tensor


def _open_pickle(path: Path) -> Reader:
    """Tensors alone: torch refuses all else in the pickle, code above all. Files from before torch 1.6 cannot be mapped."""
    try:
        data = torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except pickle.UnpicklingError as error:
        unsafe = re.search(r"GLOBAL (\S+)", str(error))
        if unsafe is None:
            raise CheckpointError(f"{path}: {_damage(path, error)}") from None
        raise CheckpointError(
            f"{path}: refused, because this pickle asks for {unsafe[1]}, which could run code; only tensors are read"
        ) from None
    except (RuntimeError, OSError, EOFError, ValueError, KeyError, IndexError, AttributeError, TypeError) as error:
        raise CheckpointError(f"{path}: {_damage(path, error)}") from None
    while isinstance(data, Mapping) and (inner := next((w for w in WRAPPERS if isinstance(data.get(w), Mapping)), None)):
        data = data[inner]
    if not isinstance(data, Mapping) or not data or not all(isinstance(name, str) for name in data):
        raise CheckpointError(f"{path}: expected a table of tensors by name, found {type(data).__name__}")
    return data.keys(), data.__getitem__


def _damage(path: Path, error: Exception) -> str:
    if path.is_file():
        with path.open("rb") as file:
            if file.read(20).startswith(b"version https://git-"):
                return "is a Git LFS pointer, not the weights; run git lfs pull there"
    return f"damaged or cut short ({first_line(error)}); download it again"
