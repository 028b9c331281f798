"""What a recipe will take, before anything is launched: bytes per process, arithmetic, speed and days; and what will not fit.

Speed is an assumption, said in the plan: a share of the device's peak (the utilisation, of all arithmetic, that of recomputed
blocks too), the same for every process. What processes tell each other is not modelled; published runs show what it leaves (see
UTILISATION).
"""

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass

from leanlm import families
from leanlm.checkpoint import locate
from leanlm.checkpoint.folder import read_config
from leanlm.families import catalog
from leanlm.model import flops
from leanlm.model.config import ModelConfig
from leanlm.train import footprint
from leanlm.train.footprint import Footprint
from leanlm.train.hardware import Device
from leanlm.train.parallel import recomputed
from leanlm.train.recipe import Recipe

# Published, of 16-bit peak: Llama 7B on 96 H100 46 % and on 128 A100 68 % (fms-fsdp), Bamba-9B on A100 38 %, Mamba-7B on H100
# 22 % (both from days and GPUs).
UTILISATION = 0.35
ROOM = 0.92  # of a device's memory that a plan may fill; the rest goes to the libraries and to gaps between blocks


@dataclass(frozen=True)
class Cluster:
    """`processes` on devices of one kind, `per_node` of them in a machine."""

    device: Device
    processes: int = 1
    per_node: int = 1


@dataclass(frozen=True)
class Plan:
    """Of one recipe on one cluster. `windows` are those of a forward pass of a process, `passes` how many make a step.

    `flops` are those of a token, forward and backward, `recomputed` what checkpointing adds to them, `teaching` those of the
    teacher of a distillation. `warnings` say what will not fit or divide, each with the setting to change.
    """

    recipe: Recipe
    config: ModelConfig
    cluster: Cluster
    strategy: str
    windows: int
    passes: int
    footprint: Footprint
    flops: float
    recomputed: float
    utilisation: float
    teacher: ModelConfig | None = None
    teaching: float = 0.0
    warnings: tuple[str, ...] = ()

    @property
    def tokens(self) -> int:
        return self.recipe.steps * self.recipe.schedule.batch * self.recipe.data.length

    @property
    def spent(self) -> float:
        """FLOPs of a token, all of them."""
        return self.flops + self.recomputed + self.teaching

    @property
    def tokens_per_second(self) -> float:
        """Of all processes together."""
        peak = self.cluster.device.peak(self.recipe.compute.dtype) * self.cluster.processes
        return self.utilisation * peak / self.spent

    @property
    def useful(self) -> float:
        """The share of the peak without what is computed again, or by a teacher: the utilisation (MFU) that a run tells."""
        return self.utilisation * self.flops / self.spent

    @property
    def seconds(self) -> float:
        return self.tokens / self.tokens_per_second

    @property
    def fits(self) -> bool:
        return self.footprint.total <= ROOM * self.cluster.device.memory


def make(recipe: Recipe, cluster: Cluster, utilisation: float = UTILISATION, teacher: ModelConfig | None = None) -> Plan:
    """The plan, with its warnings; of a stage of a distillation with the teacher it learns from. Raises UsageError where the
    recipe's model cannot be; nothing is built."""
    plan = _sized(recipe, cluster, utilisation, teacher)
    return dataclasses.replace(plan, warnings=tuple(_warnings(plan)))


def _sized(recipe: Recipe, cluster: Cluster, utilisation: float, teacher: ModelConfig | None) -> Plan:
    config = config_of(recipe)
    strategy, shared = sharing(recipe, cluster)
    share = max(1, recipe.schedule.batch // cluster.processes)
    windows = min(recipe.schedule.micro or share, share)
    length, layers = recipe.data.length, len(config.layers)
    scales = recipe.model.shards if recipe.model.weights == "ternary" else 0
    again = sum(recomputed(layers, recipe.compute.checkpoint_blocks)) / layers
    head = 2 * config.padded_vocab_size * config.d_model
    held = footprint.of_step(config, windows, length, recipe.compute, shared, scales)
    if teacher is not None:
        held = _with_teacher(held, recipe, config, teacher, windows, shared)
    return Plan(
        recipe=recipe,
        config=config,
        cluster=cluster,
        strategy=strategy,
        windows=windows,
        passes=-(-share // windows),
        footprint=held,
        flops=flops.training(config, length),
        recomputed=again * (flops.forward(config, length) - head),
        utilisation=utilisation,
        teacher=teacher,
        teaching=flops.forward(teacher, length) if teacher else 0.0,
    )


def _with_teacher(
    held: Footprint, recipe: Recipe, config: ModelConfig, teacher: ModelConfig, windows: int, shared: int
) -> Footprint:
    passing = held.passing
    if recipe.distill.compare == "matrices":
        new = (ours[0] for ours, theirs in zip(config.layers, teacher.layers) if ours[0] != theirs[0])
        passing = max(passing, footprint.of_matrices(new, config, windows, recipe.data.length, recipe.compute.dtype))
    kept = recipe.distill.compare == "logits" and recipe.distill.top_k  # before the first step
    taught = 0 if kept else footprint.of_teacher(teacher, recipe.compute, shared)
    return dataclasses.replace(held, passing=passing, teacher=taught)


def config_of(recipe: Recipe) -> ModelConfig:
    """The model that the recipe trains, fresh or from a checkpoint, of which only the config is read."""
    if not recipe.model.from_:
        return families.get(recipe.model.family).to_fresh_config(recipe.model.config, "model.config")
    if known := catalog.resolve(recipe.model.from_):
        return known.model
    raw = read_config(locate.resolve(recipe.model.from_))
    return families.find(raw).to_config(raw)


def sharing(recipe: Recipe, cluster: Cluster) -> tuple[str, int]:
    """The strategy, and how many processes share one copy of weights and moments."""
    strategy = recipe.compute.strategy
    if strategy == "auto":
        strategy = "fsdp" if cluster.device.gpu else "ddp"
    if cluster.processes == 1:
        return "alone", 1
    shared = {"ddp": 1, "fsdp": cluster.processes, "hsdp": recipe.compute.shard or cluster.per_node}[strategy]
    return strategy, min(shared, cluster.processes)


def _warnings(plan: Plan) -> Iterator[str]:
    recipe, processes = plan.recipe, plan.cluster.processes
    if recipe.schedule.batch % processes:
        near = max(1, round(recipe.schedule.batch / processes)) * processes
        yield f"{recipe.schedule.batch} windows cannot be divided among {processes} processes: --set schedule.batch={near}"
    if not plan.fits:
        needed, room = plan.footprint.total / 1e9, ROOM * plan.cluster.device.memory / 1e9
        yield f"{needed:.1f} GB a process will not fit the {room:.1f} GB to be had: {remedy(plan, room * 1e9)}"
    if recipe.compute.dtype == "float16":
        yield "float16 needs loss scaling, which skips some steps; bfloat16 does not, where the device has it"


def remedy(plan: Plan, room: float) -> str:
    """The first setting, or settings, with which a process fits `room` bytes; what to do where none does."""
    for changes in _candidates(plan):
        changed = _sized(with_changes(plan.recipe, changes), plan.cluster, plan.utilisation, plan.teacher)
        if changed.footprint.total <= room:
            words = " ".join(f"--set {key}={value}" for key, value in changes.items())
            return f"{words} takes {changed.footprint.total / 1e9:.1f} GB"
    return (
        "no setting makes it fit; take more processes with compute.strategy=fsdp, a smaller model, or devices with more memory"
    )


def _candidates(plan: Plan) -> Iterator[dict]:
    compute, micro = plan.recipe.compute, plan.windows
    smaller = []
    while micro > 1:
        micro = -(-micro // 2)
        smaller.append({"schedule.micro": micro})
    recomputed = [{"compute.checkpoint_blocks": share} for share in (0.5, 1.0) if share > compute.checkpoint_blocks]
    split = [{"compute.strategy": "fsdp"}] if plan.strategy != "fsdp" and plan.cluster.processes > 1 else []
    narrow = [{"compute.dtype": "bfloat16"}] if compute.dtype == "float32" else []
    singles = [*smaller, *recomputed, *split, *narrow]
    yield from singles
    least = {}
    for changes in (smaller[-1:], recomputed[-1:], split, narrow):
        least |= changes[0] if changes else {}
        if len(least) > 1:
            yield dict(least)


def with_changes(recipe: Recipe, changes: dict) -> Recipe:
    """The recipe with some `section.key`s changed."""
    for key, value in changes.items():
        section, _, name = key.partition(".")
        recipe = dataclasses.replace(recipe, **{section: dataclasses.replace(getattr(recipe, section), **{name: value})})
    return recipe
