"""One model over many processes: copied (DDP), sharded layer by layer (FSDP2), or sharded in groups that are copies (HSDP)."""

import functools
from collections.abc import Iterable
from typing import Literal

from torch import nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import fully_shard, register_fsdp_forward_method
from torch.nn.parallel import DistributedDataParallel

from leanlm.errors import UsageError
from leanlm.model.language_model import LanguageModel
from leanlm.train.loss import Objective
from leanlm.train.processes import Processes
from leanlm.train.recipe import Compute, Recipe

Strategy = Literal["alone", "ddp", "fsdp", "hsdp"]
SHARDED = ("fsdp", "hsdp")


def strategy(compute: Compute, processes: Processes) -> Strategy:
    """How this run is spread. Raises UsageError where groups of `compute.shard` do not divide the processes."""
    if processes.size == 1:
        return "alone"
    if compute.strategy == "auto":
        return "fsdp" if processes.device.type == "cuda" else "ddp"
    if compute.strategy == "hsdp" and processes.size % group(compute, processes):
        raise UsageError(
            f"compute.shard: {processes.size} processes do not divide into groups of {group(compute, processes)}; "
            "choose a divisor"
        )
    return compute.strategy


def check(recipe: Recipe, processes: Processes) -> None:
    """Raises UsageError where this run cannot be dealt out to these processes."""
    strategy(recipe.compute, processes)
    if recipe.schedule.batch % processes.size:
        raise UsageError(
            f"schedule.batch: {recipe.schedule.batch} windows cannot be divided among {processes.size} processes; "
            f"choose a multiple of {processes.size}"
        )


def group(compute: Compute, processes: Processes) -> int:
    """How many processes share one copy of the model under hsdp."""
    return compute.shard or processes.per_machine


def spread(objective: Objective, parts: Iterable[nn.Module], compute: Compute, processes: Processes) -> nn.Module:
    """Bring the objective's model to its devices; returns the module to call, with the objective's forward.

    `parts` gives the parts of the model, each when its weights are there, so that no process ever holds more than one layer
    whole where the model is sharded. The model itself stays what names and weights are asked of.
    """
    how = strategy(compute, processes)
    prepare_layers(objective.model, compute)
    shard = functools.partial(fully_shard, mesh=mesh(how, compute, processes)) if how in SHARDED else None
    for part in parts:
        if shard is None:
            part.to(processes.device)
        elif isinstance(part, nn.ModuleList):
            shard(list(part))
            for sublayer in part:
                register_fsdp_forward_method(sublayer, "matrix")
    if shard is not None:
        shard(objective)
    if how == "ddp":
        return DistributedDataParallel(objective, gradient_as_bucket_view=True)
    return objective


def mesh(how: Strategy, compute: Compute, processes: Processes) -> DeviceMesh:
    """The processes as a row (fsdp), or as a table whose rows share a copy of the model (hsdp)."""
    kind = processes.device.type
    if how == "fsdp":
        return init_device_mesh(kind, (processes.size,))
    shard = group(compute, processes)
    return init_device_mesh(kind, (processes.size // shard, shard), mesh_dim_names=("copies", "shards"))


def prepare_layers(module: LanguageModel, compute: Compute) -> None:
    """Choose the layers whose activations are computed again, and have every sublayer compiled when it is first called."""
    for layer, again in zip(module.layers, recomputed(len(module.layers), compute.checkpoint_blocks)):
        for sublayer in layer:
            sublayer.recompute = again
            if compute.compile:
                sublayer.compile()


def recomputed(layers: int, fraction: float) -> list[bool]:
    """Which of so many layers make up the fraction, evenly spread (fms-fsdp's selective checkpointing has the same pattern)."""
    return [int(k * fraction + 0.5) > int((k - 1) * fraction + 0.5) for k in range(1, layers + 1)]
