"""The training loop: one visible function. Data in, loss, step, report; checkpoints and validation at their times."""

import dataclasses
import json
import shutil
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

import tokenizers
import torch
import torch.nn.functional as F
from torch import Tensor

from leanlm import families
from leanlm.checkpoint.save import save_module
from leanlm.checkpoint.tokenizer import Tokenizer
from leanlm.data import sources
from leanlm.data.batches import Batch, Windows
from leanlm.data.shards import Shards
from leanlm.data.vocabulary import END_OF_TEXT, fingerprint, train_bpe
from leanlm.data.writer import write_shards
from leanlm.errors import CheckFailed, UsageError
from leanlm.evaluate import loss as held_out_loss
from leanlm.model.language_model import LanguageModel
from leanlm.train import optimiser as optimisers
from leanlm.train import recipe as recipes
from leanlm.train import run
from leanlm.train.recipe import Recipe
from leanlm.train.run import Progress


@dataclass(frozen=True)
class Report:
    """What the loop tells its caller: a finished step, a validation, or one line of plain text about the run."""

    step: int
    steps: int
    loss: float | None = None  # nats per token
    lr: float | None = None
    tokens: int | None = None  # in the step
    grad_norm: float | None = None
    tokens_per_second: float | None = None
    bits_per_byte: float | None = None  # held-out
    note: str = ""


def train(recipe: Recipe, folder: Path, report: Callable[[Report], None] = lambda _: None) -> Path:
    """Train `recipe` in `folder`, going on from its newest checkpoint; returns the folder of the finished model.

    A stop by Ctrl-C or SIGTERM is honoured at the next step boundary: a checkpoint is written, then KeyboardInterrupt is
    raised. A non-finite loss stops the run before the weights are touched (CheckFailed naming the batch).
    """
    if recipe.threads:
        torch.set_num_threads(recipe.threads)
    folder.mkdir(parents=True, exist_ok=True)
    _check_same_run(recipe, folder)
    module = build(recipe)
    optimiser = optimisers.build(module, recipe.optimiser)
    windows, held, tokenizer = prepare(recipe, folder, report)
    recipes.write(recipe, folder / "recipe.toml")
    progress = Progress()
    if past := run.checkpoints(folder):
        progress = run.restore(past[-1], module, optimiser)
        report(Report(progress.step, recipe.schedule.steps, note=f"going on from {past[-1].name}"))
    keep, schedule = recipe.keep, recipe.schedule
    with _stop_signals() as stopped:
        while progress.step < schedule.steps:
            began = time.perf_counter()
            batch = windows.batch(progress.position, schedule.batch)
            lr = optimisers.learning_rate(progress.step, recipe.optimiser.lr, schedule)
            loss, norm = step(module, optimiser, batch, lr, recipe.optimiser.clip, progress)
            spent = time.perf_counter() - began
            progress = Progress(progress.step + 1, progress.position + schedule.batch, progress.seconds + spent)
            rate = batch.tokens.numel() / spent
            bpb = None
            if progress.step % keep.validate == 0 and held is not None:
                bpb = validate(module, held, keep.validate_bytes).bits_per_byte
            record = Report(progress.step, schedule.steps, loss, lr, batch.tokens.numel(), norm, rate, bpb)
            run.log(folder, {k: v for k, v in asdict(record).items() if v not in (None, "")})
            report(record)
            if progress.step % keep.checkpoint == 0 or progress.step == schedule.steps or stopped.is_set():
                run.save(folder, module, optimiser, progress, keep.last)
            if stopped.is_set():
                raise KeyboardInterrupt
    return finish(recipe, folder, module, tokenizer, held, progress, report)


def step(
    module: LanguageModel, optimiser: torch.optim.Optimizer, batch: Batch, lr: float, clip: float, at: Progress
) -> tuple[float, float]:
    """One optimiser step; mutates the weights and returns (loss in nats per token, norm of the gradient)."""
    loss = next_token_loss(module, batch)
    if not torch.isfinite(loss):
        raise CheckFailed(
            f"step {at.step}: the loss of windows {at.position} .. {at.position + len(batch.tokens) - 1} is {loss.item()}; "
            "the weights were left as they are: lower optimiser.lr, or look at this text"
        )
    loss.backward()
    norm = torch.nn.utils.clip_grad_norm_(module.parameters(), clip or float("inf"))
    for group in optimiser.param_groups:
        group["lr"] = lr
    optimiser.step()
    optimiser.zero_grad(set_to_none=True)
    return loss.item(), norm.item()


def next_token_loss(module: LanguageModel, batch: Batch) -> Tensor:
    """Mean cross-entropy in nats of every next token."""
    logits = module(batch.tokens, segments=batch.segments)
    return F.cross_entropy(logits.flatten(0, 1).float(), batch.targets.flatten())


def build(recipe: Recipe) -> LanguageModel:
    """The recipe's model with fresh float32 weights; the same seed gives the same weights."""
    torch.manual_seed(recipe.seed)
    config = families.get(recipe.model.family).to_config(recipe.model.config)
    if config.vocab_size != recipe.data.vocab_size:
        raise UsageError(
            f"{recipe.name}: the model has {config.vocab_size} tokens and data.vocab_size is {recipe.data.vocab_size}; "
            "make them equal"
        )
    module = LanguageModel(config)
    module.reset(recipe.model.init_std)
    return module


def prepare(recipe: Recipe, folder: Path, report: Callable[[Report], None]) -> tuple[Windows, Shards | None, Tokenizer]:
    """Tokenizer and shards of the run, made once and kept in its folder."""
    path, data, held = folder / "tokenizer.json", folder / "data", folder / "held"
    accepted = (folder / "recipe.toml").is_file()  # else what lies there is of a recipe that could not run
    if not (accepted and path.is_file() and (data / "manifest.json").is_file()):
        documents = list(sources.read(recipe.data.source, recipe.data.suffix))
        learned, kept = sources.split(documents, recipe.data.held_out)
        shutil.rmtree(held, ignore_errors=True)
        if absent := set(recipe.data.held_out) - {d.name for d in kept}:
            if not kept:
                raise UsageError(f"data.held_out: {recipe.data.source} has no document named {min(absent)!r}")
            report(
                Report(0, recipe.schedule.steps, note=f"{len(absent)} held-out names are not in this source: {min(absent)} ...")
            )
        size = sum(len(d.text.encode()) for d in learned)
        report(Report(0, recipe.schedule.steps, note=f"reading {len(learned)} documents, {size / 1e6:.1f} MB"))
        bpe = train_bpe((d.text for d in learned), recipe.data.vocab_size)
        bpe.save(str(path.with_suffix(".partial")))
        path.with_suffix(".partial").replace(path)
        encode = lambda text: bpe.encode(text).ids  # noqa: E731
        end = bpe.token_to_id(END_OF_TEXT)
        for target, texts in ((held, kept), (data, learned)):
            if texts:
                write_shards(target, (d.text for d in texts), encode, end, bpe.get_vocab_size(), fingerprint(bpe))
    roles = json.dumps({"eos_token": END_OF_TEXT, "bos_token": END_OF_TEXT}).encode()
    tokenizer = Tokenizer(tokenizers.Tokenizer.from_file(str(path)), {"tokenizer_config.json": roles})
    shards = Shards(data)
    shards.check_tokenizer(fingerprint(tokenizer.core), tokenizer.vocab_size)
    held_shards = Shards(held) if held.is_dir() else None
    return Windows(shards, recipe.data.length, recipe.seed), held_shards, tokenizer


def validate(module: LanguageModel, held: Shards, most_bytes: int | None = None) -> held_out_loss.Loss:
    """Loss on held-out documents, the first ones up to `most_bytes` of text (None: all)."""
    module.eval()
    end = int(held.document(0)[-1])
    documents, size = [], 0
    for number, n_bytes in enumerate(held.bytes):
        if most_bytes is not None and size >= most_bytes:
            break
        documents.append((held.document(number)[:-1].tolist(), int(n_bytes)))
        size += int(n_bytes)
    loss = held_out_loss.measure(module, documents, start_id=end)
    module.train()
    return loss


def finish(recipe, folder, module, tokenizer, held, progress, report) -> Path:
    """Write the finished model as its family publishes it, and report its loss, as written, on all held-out text."""
    module.to(getattr(torch, recipe.keep.dtype))
    save_module(folder / "model", module, families.get(recipe.model.family), tokenizer=tokenizer)
    bpb = validate(module, held).bits_per_byte if held is not None else None
    record = Report(progress.step, recipe.schedule.steps, bits_per_byte=bpb, note=f"finished: {folder / 'model'}")
    run.log(folder, {k: v for k, v in {**asdict(record), "seconds": round(progress.seconds)}.items() if v not in (None, "")})
    report(record)
    return folder / "model"


def _check_same_run(recipe: Recipe, folder: Path) -> None:
    """Refuse a folder whose run differs in anything but its name, its number of steps, what it keeps, and threads."""
    path = folder / "recipe.toml"
    if not path.is_file():
        return
    past = recipes.read(path)
    past = dataclasses.replace(past, schedule=dataclasses.replace(past.schedule, steps=recipe.schedule.steps))
    for field in ("model", "data", "optimiser", "schedule", "seed"):
        if getattr(past, field) != getattr(recipe, field):
            raise UsageError(f"{folder}: holds a run with another [{field}]; name another folder, or the same recipe")


@contextmanager
def _stop_signals() -> Iterator[threading.Event]:
    """An event set by Ctrl-C or SIGTERM while the block runs; outside the main thread signals are left alone."""
    stopped = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield stopped
        return
    past = {s: signal.signal(s, lambda *_: stopped.set()) for s in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stopped
    finally:
        for number, handler in past.items():
            signal.signal(number, handler)
