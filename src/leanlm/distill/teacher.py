"""The models a student learns from: found and fitted before anything runs, read when first asked for, never trained."""

import functools
import hashlib
import json
from collections.abc import Iterable
from functools import cached_property
from pathlib import Path

import torch
from torch import nn
from torch.distributed.fsdp import fully_shard, register_fsdp_forward_method

from leanlm import families
from leanlm.checkpoint import locate
from leanlm.checkpoint.aside import replacing
from leanlm.checkpoint.folder import CONFIG, read_config, read_json, weight_files
from leanlm.checkpoint.load import load_module
from leanlm.data.manifest import sha256
from leanlm.model.config import ModelConfig
from leanlm.model.language_model import LanguageModel
from leanlm.train import parallel
from leanlm.train.processes import Processes
from leanlm.train.recipe import Compute

KNOWN = "teachers.json"


class Teacher:
    """A model by folder, name or hub id, in the numbers of `compute`, dealt out to the processes as the student is."""

    def __init__(self, name: str, compute: Compute, processes: Processes):
        self.name, self.compute, self.processes = name, compute, processes

    def read(self) -> LanguageModel:
        """All of it on the CPU, in the numbers of its file. Raises NotFound and CheckpointError as loading does."""
        return load_module(locate.resolve(self.name)).module

    @cached_property
    def module(self) -> LanguageModel:
        """Without gradients, on this process's device, or its share; all processes ask for it together. Raises as `read`."""
        how, dtype = parallel.strategy(self.compute, self.processes), getattr(torch, self.compute.dtype)
        if how not in parallel.SHARDED:
            return load_module(locate.resolve(self.name), dtype, self.processes.device).module.requires_grad_(False)
        module = load_module(locate.resolve(self.name), dtype).module.requires_grad_(False)
        shard = functools.partial(
            fully_shard, mesh=parallel.mesh(how, self.compute, self.processes), reshard_after_forward=True
        )
        for part in module.parts():
            for sublayer in part if isinstance(part, nn.ModuleList) else ():
                shard(sublayer)
                register_fsdp_forward_method(sublayer, "matrix")
        return module.to(self.processes.device)

    def release(self) -> None:
        """Let its memory go; it is read again when it is asked for again."""
        self.__dict__.pop("module", None)


def config_of(name: str, folder: Path | None = None, offline: bool = False) -> ModelConfig:
    """A teacher's config, of which nothing else is read: as a distillation's `folder` knows it, or its own."""
    raw = known(folder).get(name) if folder else None
    raw = raw or read_config(locate.resolve(name, offline=offline))
    return families.find(raw).to_config(raw)


def known(folder: Path) -> dict[str, dict]:
    """The config.json of the teachers that a distillation has found before, by their names; they may be gone since."""
    return read_json(folder / KNOWN) if (folder / KNOWN).is_file() else {}


def remember(names: Iterable[str], folder: Path) -> None:
    """Write down the config.json of those that are not known yet."""
    held = known(folder)
    told = held | {name: read_config(locate.resolve(name)) for name in names if name not in held}
    if told == held:
        return
    with replacing(folder) as aside:
        aside(KNOWN).write_text(json.dumps(told, indent=1) + "\n", encoding="utf-8")


def digest(name: str) -> str | None:
    """A checksum of a teacher in a folder, whose weights may change under its name; None of others, and where it is gone."""
    folder = Path(name).expanduser()
    if not folder.is_dir():
        return None
    files = weight_files([path.name for path in folder.iterdir()])
    return hashlib.sha256("".join(sha256(folder / file) for file in (CONFIG, *files)).encode()).hexdigest()
