"""Training checkpoints of torch.distributed.checkpoint, as fms-fsdp writes them, into model folders."""

import dataclasses
import enum
import json
import pickle
import re
import warnings
from collections.abc import Mapping
from pathlib import Path, PurePath

import torch
from safetensors.torch import save_file
from torch import Tensor
from torch.distributed import checkpoint as dcp
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.metadata import Metadata, TensorStorageMetadata

from leanlm import families
from leanlm.checkpoint.aside import replacing
from leanlm.checkpoint.folder import CONFIG, SINGLE
from leanlm.checkpoint.load import check_tensors
from leanlm.checkpoint.tokenizer import Tokenizer
from leanlm.checkpoint.weights import WRAPPERS
from leanlm.errors import CheckpointError, LeanLMError, NotFound, UsageError, first_line
from leanlm.model.language_model import LanguageModel

METADATA = ".metadata"
WRAPPED = re.compile(r"(?<![^.])(_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)\.")  # torch.compile, FSDP
STEP = re.compile(r"step_(\d+)_ckp")


def find(folder: Path) -> Path:
    """The folder itself where it is a sharded checkpoint; of a run's folder (or its checkpoints/) the complete checkpoint of
    the highest step. Raises NotFound."""
    if (folder / METADATA).is_file():
        return folder
    inside = folder / "checkpoints" if (folder / "checkpoints").is_dir() else folder
    steps = {int(m[1]): path for path in inside.glob("step_*_ckp") if (m := STEP.fullmatch(path.name))}
    complete = [step for step, path in steps.items() if (path / METADATA).is_file()]
    if not complete:
        what = f"none of its {len(steps)} checkpoints is complete" if steps else "no sharded checkpoint"
        raise NotFound(f"{folder}: {what} (a folder with {METADATA} and *.distcp files)")
    return steps[max(complete)]


def tensors(folder: Path) -> dict[str, Tensor]:
    """The model's tensors by plain name, whole, whatever number of processes wrote them; the optimiser's are left unread.

    Nothing but tensors and the tables that tell where they lie is unpickled. Raises CheckpointError.
    """
    reader = Reader(folder)
    stored = reader.read_metadata().state_dict_metadata
    found = {name: entry for name, entry in stored.items() if isinstance(entry, TensorStorageMetadata)}
    wrapper = next((w for w in WRAPPERS if any(name.startswith(f"{w}.") for name in found)), None)
    of_model = [name for name in found if wrapper is None or name.startswith(f"{wrapper}.")]
    whole = {name: torch.empty(found[name].size, dtype=found[name].properties.dtype) for name in of_model}
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # it says that there is one process
            dcp.load(whole, storage_reader=reader, no_dist=True)
    except CheckpointException as error:  # no Exception, and what went wrong inside
        cause = next(iter(error.failures.values()))[0]
        raise CheckpointError(f"{folder}: a shard is missing or damaged ({first_line(cause)})") from None
    plain: dict[str, Tensor] = {}
    for name, tensor in whole.items():
        bare = WRAPPED.sub("", name.removeprefix(f"{wrapper}."))
        if bare in plain:
            raise CheckpointError(f"{folder}: {bare!r} is stored twice")
        plain[bare] = tensor
    return plain


def convert(checkpoint: Path, raw: dict, out: Path, tokenizer: Tokenizer | None = None) -> Path:
    """Write the model of a sharded checkpoint into the new folder `out`, which `leanlm.load` reads; returns what was read.

    `raw` is the config.json that such checkpoints lack. Raises CheckpointError where it does not describe the tensors.
    """
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UsageError(f"{out}: exists already; name a new folder")
    found = find(checkpoint)
    weights = tensors(found)
    family = families.find(raw)
    with torch.device("meta"):
        module = LanguageModel(family.to_config(raw, frozenset(weights)))
    check_tensors(found, family.rules(module.config), weights, module)
    with replacing(out) as aside:
        save_file(weights, aside(SINGLE), metadata={"format": "pt"})
        aside(CONFIG).write_text(json.dumps(raw, indent=2) + "\n", encoding="utf-8")
        for name, content in (tokenizer.files if tokenizer else {}).items():
            aside(name).write_bytes(content)
    return found


class Reader(dcp.FileSystemReader):
    """Reads the metadata by an unpickler that knows tables alone."""

    def __init__(self, folder: Path):
        super().__init__(folder)
        self.folder = folder

    def read_metadata(self, *args, **options) -> Metadata:
        path = self.folder / METADATA
        try:
            with path.open("rb") as file:
                metadata = Tables(file).load()
        except LeanLMError as error:
            raise CheckpointError(f"{path}: {error}") from None
        except OSError as error:
            raise NotFound(f"{path}: cannot be read ({error.strerror})") from None
        except Exception as error:  # a damaged pickle raises nearly anything
            raise CheckpointError(f"{path}: damaged ({first_line(error)})") from None
        if not isinstance(metadata, Metadata):
            raise CheckpointError(f"{path}: holds a {type(metadata).__name__}, not a checkpoint's metadata")
        return metadata


class Tables(pickle.Unpickler):
    """Makes torch.distributed.checkpoint's dataclasses and enumerations, dtypes and sizes, and nothing else."""

    ROOMS = ("torch.distributed.checkpoint.", "torch.distributed._shard.")
    PLAIN: Mapping = {
        ("torch", "Size"): torch.Size,
        ("torch", "device"): torch.device,
        ("torch.serialization", "_get_layout"): torch.serialization._get_layout,
    }

    def find_class(self, module: str, name: str):
        if (module, name) in self.PLAIN:
            return self.PLAIN[module, name]
        if module.partition(".")[0] == "pathlib" and name in ("PosixPath", "WindowsPath"):  # where it was written
            return PurePath
        if module == "torch" and isinstance(found := getattr(torch, name, None), torch.dtype):
            return found
        if module.startswith(self.ROOMS) and "." not in name:
            found = super().find_class(module, name)
            if isinstance(found, type) and (dataclasses.is_dataclass(found) or issubclass(found, enum.Enum)):
                return found
        raise CheckpointError(f"refused, because this pickle asks for {module}.{name}, which could run code")
