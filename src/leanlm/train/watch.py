"""What a run tells, and to whom: its caller, its log, trackers, charts; how busy the machine is; texts that it writes."""

import dataclasses
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import torch

from leanlm.api import Model
from leanlm.checkpoint.tokenizer import Tokenizer
from leanlm.errors import LeanLMError, first_line
from leanlm.model import flops, ternary
from leanlm.model.config import ModelConfig
from leanlm.runtime import device_memory
from leanlm.train import hardware, log, memory, plots, trackers
from leanlm.train.origin import Origin
from leanlm.train.processes import Processes
from leanlm.train.recipe import Recipe
from leanlm.train.report import Report
from leanlm.train.spikes import Spikes

SAMPLE_TOKENS = 40
TRACKED = (
    "loss",
    "lr",
    "weight_decay",
    "grad_norm",
    "tokens_per_second",
    "utilisation",
    "memory",
    "validation",
    "bits_per_byte",
)


@contextmanager
def watching(
    recipe: Recipe,
    folder: Path,
    origin: Origin,
    processes: Processes,
    report: Callable[[Report], None],
    teacher: ModelConfig | None = None,
) -> Iterator["Watch"]:
    """A `Watch` while the block runs; at its end trackers are closed and charts drawn. A lack of memory, which a `teacher` has
    its part in, becomes advice: the error itself in a run of one process, a note before it in others, who cannot wait for each
    other any more."""
    watch = Watch(recipe, folder, origin, processes, report)
    try:
        yield watch
    except Exception as error:
        if not device_memory.ran_out(error):
            raise
        advice = memory.advice(recipe, processes, teacher)
        if processes.size == 1:
            raise advice from error
        watch.note(str(advice))
        raise
    finally:
        watch.close()


class Watch:
    """Called with every report of the run; only the leading process has anything to tell."""

    def __init__(self, recipe: Recipe, folder: Path, origin: Origin, processes: Processes, report: Callable[[Report], None]):
        self.recipe, self.folder, self.origin, self.processes, self.report = recipe, folder, origin, processes, report
        self.spikes, self.trackers = Spikes(), []
        if processes.leader:
            self.flops = flops.training(origin.module.config, recipe.data.length)
            self.peak = hardware.here().peak(recipe.compute.dtype) * processes.size
            self.trackers = trackers.start(recipe.keep.trackers, recipe.name, folder, dataclasses.asdict(recipe))

    def close(self) -> None:
        for tracker in self.trackers:
            tracker.close()
        self.draw()

    def draw(self) -> None:
        """The charts; a disk that refuses them stops nothing."""
        if self.processes.leader:
            with suppress(LeanLMError):
                plots.draw(self.folder)

    def __call__(self, told: Report) -> None:
        if not self.processes.leader:
            return
        if told.tokens_per_second is not None:
            busy = told.tokens_per_second * self.flops / self.peak
            told = dataclasses.replace(told, utilisation=busy, memory=used(self.processes.device))
        log.add(self.folder, told)
        values = {name: getattr(told, name) for name in TRACKED if getattr(told, name) is not None}
        for tracker in self.trackers:
            tracker.log(told.step, values)
        self.report(told)
        if told.loss is not None and (leap := self.spikes(told.step, told.loss)):
            self.note(leap)
        if told.validation is not None:
            self.draw()

    def note(self, text: str) -> None:
        """One line for the person, kept in no log."""
        self.report(Report(0, self.recipe.steps, note=text))

    def samples(self, tokenizer: Tokenizer | None) -> None:
        """Have the model go on from the recipe's prompts, greedily, and tell the texts. What fails stops nothing."""
        module, prompts = self.origin.module, list(self.recipe.keep.samples)
        if not prompts or tokenizer is None or not self.processes.leader:
            return
        try:
            held = ternary.packed(module) if ternary.latent(module) else module
            texts = Model(held, self.origin.family.name, tokenizer).generate(prompts, max_new_tokens=SAMPLE_TOKENS)
            for prompt, text in zip(prompts, texts):
                self.note(f"sample: {prompt + text!r}")
        except LeanLMError as error:
            self.note(f"no samples: {first_line(error)}")
        finally:
            module.train()


def used(device: torch.device) -> int | None:
    """The most bytes this process has held on its GPU; on a CPU, its resident memory at most; None where not told."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    try:
        import resource
    except ImportError:  # Windows
        return None
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
