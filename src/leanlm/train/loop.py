"""The training loop: one visible function. Data in, loss, step, report; checkpoints and validation at their times."""

import math
import time
from collections.abc import Callable, Generator
from contextlib import AbstractContextManager, closing, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from leanlm.data.batches import Batch
from leanlm.data.feed import feed
from leanlm.errors import CheckFailed, CheckpointError, LeanLMError, UsageError
from leanlm.evaluate.loss import Loss
from leanlm.model.language_model import LanguageModel
from leanlm.train import checkpoints, log, parallel, run, schedule, watch
from leanlm.train import optimiser as optimisers
from leanlm.train.checkpoints import Progress, Saver
from leanlm.train.finish import finish
from leanlm.train.loss import Objective
from leanlm.train.origin import Origin
from leanlm.train.precision import LossScale, autocast
from leanlm.train.processes import Processes, joined
from leanlm.train.recipe import Recipe
from leanlm.train.report import Report
from leanlm.train.schedule import Rates
from leanlm.train.start import Material
from leanlm.train.stop import Stop, listening
from leanlm.train.task import LANGUAGE, Task
from leanlm.train.validate import validate


def train(
    recipe: Recipe,
    folder: Path,
    report: Callable[[Report], None] = lambda _: None,
    task: Task = LANGUAGE,
    processes: Processes | None = None,
) -> Path | None:
    """Train `recipe` in `folder`, going on from its newest checkpoint; returns the folder of the finished model, or None where
    the run stopped because its time was up. `task` says what is learned.

    Every process that torchrun or srun started calls this, with `processes` where it has joined the others already; the first
    reports. A stop by Ctrl-C or SIGTERM is honoured at the next step boundary: a checkpoint is written, then KeyboardInterrupt
    is raised; a second Ctrl-C does not wait. A non-finite loss stops the run before the weights are touched (CheckFailed naming
    the batch).
    """
    if recipe.threads:
        torch.set_num_threads(recipe.threads)
    batch_size, keep, stop = recipe.schedule.batch, recipe.keep, Stop(recipe.keep.hours)
    with nullcontext(processes) if processes else joined() as processes, run.Hold(folder) as hold:
        report = report if processes.leader else lambda _: None

        def note(text: str) -> None:
            report(Report(0, recipe.steps, note=text))

        for text in processes.together(lambda: run.enter(recipe, folder, hold) if processes.leader else []):
            note(text)
        origin = processes.first(lambda: task.origin(recipe, folder))
        module = origin.module
        for text in origin.notes:
            note(text)
        parallel.check(recipe, processes)
        material = processes.first(lambda: prepare(task, recipe, folder, origin, processes, note))
        aim = task.objective(origin, material, recipe, processes)
        objective = parallel.spread(aim, origin.parts(recipe), recipe.compute, processes)
        sharded = objective if parallel.strategy(recipe.compute, processes) in parallel.SHARDED else None
        optimiser = optimisers.build(module, recipe.optimiser)
        progress = Progress(data=material.rows.fingerprint, scale=LossScale.first(recipe.compute))
        if past := checkpoints.complete(folder):
            progress = resume(past[-1], module, optimiser, progress, processes)
            note(f"going on from {past[-1].name}")
            if progress.step > recipe.steps:
                raise UsageError(f"{folder}: is at step {progress.step} already, beyond the {recipe.steps} of this recipe")
        elif origin.memory is not None:
            checkpoints.restore(origin.memory, module, optimiser, processes)
        processes.together(lambda: log.forget_after(folder, progress.step) if processes.leader else None)
        batches = feed(material.rows, progress.position, batch_size, processes.rank, processes.size)
        watching = watch.watching(recipe, folder, origin, processes, report, aim.teacher and aim.teacher.config)
        with listening(stop), Saver(folder, processes, keep) as saver, closing(batches), watching as tell:
            while progress.step < recipe.steps:
                began = time.perf_counter()
                batch, targets = fetch(batches, aim, processes)
                waited = time.perf_counter() - began
                rates = schedule.rates(progress.step, recipe)
                done = step(objective, optimiser, batch, targets, rates, recipe, progress, processes)
                spent = time.perf_counter() - began
                progress = replace(
                    progress,
                    step=progress.step + 1,
                    position=progress.position + batch_size,
                    seconds=progress.seconds + spent,
                    scale=done.scale,
                )
                saved = progress.step % keep.checkpoint == 0 or progress.step == recipe.steps
                if saved:
                    saver.save(module, optimiser, progress)
                held = None
                if progress.step % keep.validate == 0 and material.held is not None:
                    with autocast(recipe.compute, processes.device):
                        held = validate(module, material.held, keep.validate_bytes, processes, sharded, stop.wanted)
                tell(told(recipe, progress.step, rates, done, held, spent, waited))
                if held is not None and sharded is None:
                    tell.samples(material.tokenizer)
                asked, late, failed = processes.sums(stop.asked, stop.late, saver.failed)
                if (asked or late) and not saved:
                    saver.save(module, optimiser, progress)
                if asked or late or failed:
                    saver.finish()
                if asked:
                    raise KeyboardInterrupt
                if late and progress.step < recipe.steps:
                    note(f"{keep.hours:g} hours are over: stopped after step {progress.step}; the same command goes on")
                    return None
            saver.finish()
        return finish(recipe, folder, origin, sharded, material, processes, progress, report)


def prepare(
    task: Task, recipe: Recipe, folder: Path, origin: Origin, processes: Processes, note: Callable[[str], None]
) -> Material:
    """What the run reads; the leader makes it and then stores the recipe, by which the others know that it is there."""
    found = task.material(recipe, folder, origin, note)
    found.check_fits(recipe, origin.module)
    if processes.leader:
        run.accept(recipe, folder, origin)
    return found


def resume(
    checkpoint: Path, module: LanguageModel, optimiser: torch.optim.Optimizer, fresh: Progress, processes: Processes
) -> Progress:
    """Load a checkpoint into the run; `fresh` is where it would stand without. Raises CheckpointError where it is damaged, or
    read other data."""
    progress = checkpoints.restore(checkpoint, module, optimiser, processes)
    if progress.data != fresh.data:
        raise CheckpointError(
            f"{checkpoint}: this run read other token shards, or in another order; bring them back, or name another folder"
        )
    if progress.scale.dynamic != fresh.scale.dynamic:  # compute.dtype was changed
        return replace(progress, scale=replace(fresh.scale, skipped=progress.scale.skipped))
    return progress


def fetch(batches: Generator[Batch], aim: Objective, processes: Processes) -> tuple[Batch, int]:
    """This process's rows of the next step, and what the sums over all processes' rows are divided by."""
    batch, error = None, None
    try:
        batch = next(batches)
    except LeanLMError as met:
        error = met
    counted = 0 if batch is None else aim.count(batch)
    targets, failed = processes.sums(counted, error is not None)
    if failed:
        processes.together(lambda: raised(error))
    return batch, int(targets)


def raised(error: LeanLMError | None) -> None:
    if error is not None:
        raise error


@dataclass(frozen=True)
class Done:
    """What a step came to: its loss (nats per target), the norm of the gradient before clipping, the next step's loss scale,
    and the parts of the loss where the objective tells any."""

    loss: float
    norm: float
    scale: LossScale
    parts: tuple[float, ...] = ()


def step(
    objective: nn.Module,
    optimiser: torch.optim.AdamW,
    batch: Batch,
    targets: int,
    rates: Rates,
    recipe: Recipe,
    progress: Progress,
    processes: Processes,
) -> Done:
    """One optimiser step on all processes' rows; mutates the weights.

    The gradient is that of the sum over all targets divided by their number `targets`, however the rows are dealt out to
    processes and forward passes and however many targets are masked. The engines average gradients, which the factor `size`
    undoes.
    """
    scale, passes = progress.scale.value, list(pieces(batch, recipe.schedule.micro, processes.device))
    sums: Tensor | float = 0.0
    for number, piece in enumerate(passes, 1):
        with accumulating(objective, last=number == len(passes)):
            with autocast(recipe.compute, processes.device):
                part = objective(piece.tokens, piece.targets, piece.segments, *piece.extra)
            (part[0] * (scale * processes.size / max(targets, 1))).backward()
        sums = sums + part.detach().float()
    total, nats, *parts = processes.sums(*sums.tolist())
    if not math.isfinite(total):
        raise not_finite("loss", total, recipe, progress)
    norm = optimisers.apply(optimiser, rates, recipe.optimiser.clip, scale)
    fitted = math.isfinite(norm)
    if not fitted and not progress.scale.dynamic:
        raise not_finite("gradient", norm, recipe, progress)
    nats, *parts = (value / max(targets, 1) for value in (nats, *parts))
    return Done(nats, norm, progress.scale.after(fitted), tuple(parts))


def told(recipe: Recipe, number: int, rates: Rates, done: Done, held: Loss | None, spent: float, waited: float) -> Report:
    """What there is to say after step `number`, which took `spent` seconds, `waited` of them for data."""
    tokens = recipe.schedule.batch * recipe.data.length
    return Report(
        number,
        recipe.steps,
        loss=done.loss,
        parts=done.parts or None,
        lr=rates.lr,
        weight_decay=rates.weight_decay,
        tokens=tokens,
        grad_norm=done.norm,
        tokens_per_second=tokens / spent,
        waited=waited,
        skipped=done.scale.skipped if done.scale.dynamic else None,
        validation=held and held.per_token,
        bits_per_byte=held and held.bits_per_byte,
    )


def not_finite(what: str, value: float, recipe: Recipe, at: Progress) -> CheckFailed:
    return CheckFailed(
        f"step {at.step}: the {what} of windows {at.position} .. {at.position + recipe.schedule.batch - 1} is {value}; "
        "the weights were left as they are: lower optimiser.lr, or look at this text"
    )


def pieces(batch: Batch, micro: int, device: torch.device) -> Generator[Batch]:
    """The rows of a batch for one forward pass after another, on their device."""
    rows = len(batch.tokens)
    for first in range(0, rows, micro or rows):
        parts = (batch.tokens, batch.targets, batch.segments, *batch.extra)
        cut = (None if part is None else part[first : first + (micro or rows)] for part in parts)
        tokens, targets, segments, *extra = (None if part is None else part.to(device, non_blocking=True) for part in cut)
        yield Batch(tokens, targets, segments, tuple(extra))


def accumulating(objective: nn.Module, last: bool) -> AbstractContextManager:
    """Copies of a model exchange gradients in the last pass of a step alone; shards of one, in every pass, to save memory."""
    return objective.no_sync() if isinstance(objective, DistributedDataParallel) and not last else nullcontext()
