"""How fast a model is: prefill, decode and the bytes they move, beside a plain read of memory and other programs, in turn.

Every turn runs leanlm, then the read, then each peer, for one measurement; medians over the turns are compared, because
shared machines are noisy. Loads no torch: the sides are processes of their own (`worker`).
"""

import statistics
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field

from leanlm.bench import peers
from leanlm.bench.worker import Worker
from leanlm.errors import OutOfMemory, UsageError

PAUSE = 0.05  # seconds between two sides, in which the threads of the last one fall asleep

Progress = Callable[[str], None]


@dataclass(frozen=True)
class Subject:
    """Which model, and how it is held (`bench.subject`); `rounded` makes ternary by rounding what is not."""

    model: str
    random: bool = False
    dtype: str | None = None
    format: str | None = None
    embedding: str | None = None
    head: str | None = None
    revision: str | None = None
    offline: bool = False
    rounded: bool = False


@dataclass(frozen=True)
class Settings:
    """What is measured: `prompt` tokens of prefill and `new` steps of decode after each of `contexts` tokens, for each of
    `batches` texts, `repeats` times after a warm-up."""

    contexts: tuple[int, ...] = (0,)
    batches: tuple[int, ...] = (1,)
    prompt: int = 512
    new: int = 32
    repeats: int = 5
    threads: int | None = None
    device: str = "cpu"
    state_dtype: str | None = None
    cache_dtype: str | None = None
    profile: bool = False
    peers: tuple[str, ...] = ()
    peer_type: str = "auto"
    peer_options: dict[str, str] = field(default_factory=dict)


def measure(subject: Subject, settings: Settings, progress: Progress = lambda text: None) -> dict:
    """All measurements as plain data: `sides` by name, `prefill` and `decode` rows, `peak_resident_bytes`, on a CUDA device
    `peak_device_bytes`, `profile`. A row tells of a side that ran out of memory why, in `failed`, and goes on with the others;
    in `fallbacks` what leanlm ran without its kernels or graphs.

    Raises UsageError for a peer that is not installed or has no such model, before anything is measured. Exported models
    lie in a temporary folder, which is gone afterwards, as are the processes, also where it is interrupted.
    """
    peers.check(settings.peers, settings.device)
    with ExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="leanlm-bench-"))
        prepared = _prepare(folder, subject, settings, progress)
        bench = Bench(settings, progress, stack)
        found = {"model": subject.model, "random": subject.random, **bench.load(prepared)}
        found["prefill"] = [bench.prefill(batch) for batch in settings.batches]
        found["decode"] = [bench.decode(batch, context) for context in settings.contexts for batch in settings.batches]
        found["peak_resident_bytes"] = {name: side.call("peak_resident") for name, side in bench.sides.items()}
        if settings.device != "cpu":
            found["peak_device_bytes"] = {name: side.call("peak_device") for name, side in bench.sides.items()}
        if settings.profile:
            given = {"batch": settings.batches[0], "context": settings.contexts[0], "prompt": settings.prompt}
            found["profile"] = bench.sides["leanlm"].call("profile", **given)
        return found


def _prepare(folder: str, subject: Subject, settings: Settings, progress: Progress) -> dict:
    progress("preparing the model")
    with Worker("prepare") as worker:
        return worker.call(
            "prepare",
            folder=folder,
            model=subject.model,
            random=subject.random,
            dtype=subject.dtype,
            formats={"layers": subject.format, "embedding": subject.embedding, "head": subject.head},
            peers=list(settings.peers),
            peer_type=settings.peer_type,
            offline=subject.offline,
            revision=subject.revision,
            rounded=subject.rounded,
        )


class Bench:
    """The sides of one measurement, loaded; `reader` is None where there is no native library to read with."""

    def __init__(self, settings: Settings, progress: Progress, stack: ExitStack):
        self.settings, self.progress, self.stack = settings, progress, stack
        self.sides = {name: stack.enter_context(Worker(name)) for name in ("leanlm", *settings.peers)}
        self.reader: Worker | None = None

    def load(self, prepared: dict) -> dict:
        """Every side with its model and as many threads; what each of them is."""
        self.progress("loading")
        path, dtype, settings = prepared["path"], prepared["dtype"], self.settings
        ours = self.sides["leanlm"].call(
            "load",
            path=path,
            dtype=dtype,
            threads=settings.threads,
            state_dtype=settings.state_dtype,
            cache_dtype=settings.cache_dtype,
            device=settings.device,
        )
        if settings.profile and not ours["native"]:
            raise UsageError("--profile times the native runtime, which does not run here; leanlm doctor says why")
        told = {"leanlm": ours}
        for name, made in prepared["peers"].items():
            options = peers.options(name, settings.peer_options)
            if settings.device != "cpu":
                options |= {"device": settings.device}
            about = self.sides[name].call("load", path=made["path"], threads=ours["threads"], **options)
            told[name] = {"weights": made["types"], "file_bytes": made["bytes"], **about}
        if ours["native"] or settings.device != "cpu":
            self.reader = self.stack.enter_context(Worker("read"))
            self.reader.call("load", threads=ours["threads"], device=settings.device)
        return {"threads": ours["threads"], "repeats": settings.repeats, "sides": told}

    def prefill(self, batch: int) -> dict:
        """A prompt for each of so many texts."""
        length = self.settings.prompt
        filled, failed = self._fill(batch, 0, length)
        ask = {name: lambda name=name: self.sides[name].call("prefill", length=length) for name in filled}
        seconds = self._turns(f"prefill of {length} tokens, batch {batch}", ask, failed)
        row = {"batch": batch, "tokens": length, **self._told(seconds, batch * length, failed)}
        if "leanlm" in seconds:
            row["seconds_to_first_token"] = statistics.median(seconds["leanlm"])
        return row

    def decode(self, batch: int, context: int) -> dict:
        """New tokens of so many texts after a context."""
        count, name = self.settings.new, f"decode at {context}, batch {batch}"
        self.progress(f"{name}: reading the context")
        # A memory that cannot be rewound goes on in every turn.
        filled, failed = self._fill(batch, context, count * (self.settings.repeats + 2))
        ask = {side: lambda side=side: self.sides[side].call("decode", count=count) for side in filled}
        moved = self.sides["leanlm"].call("traffic", count=count) if "leanlm" in filled else {}
        if self.reader and moved:
            ask["read"] = lambda: count * self.reader.call("read", nbytes=sum(moved.values()), times=count)
        seconds = self._turns(name, ask, failed)
        read = seconds.pop("read", None)
        row = {"context": context, "batch": batch, "tokens": count, **self._told(seconds, batch * count, failed)}
        if "leanlm" in seconds:
            row |= {"state": filled["leanlm"], **shares(moved, batch, count, seconds["leanlm"], read)}
        return row

    def _fill(self, batch: int, context: int, room: int) -> tuple[dict[str, dict], dict[str, str]]:
        """What every side says of so many texts, and of those that have no memory for them why."""
        filled, failed = {}, {}
        for name, side in self.sides.items():
            try:
                filled[name] = side.call("fill", batch=batch, context=context, room=room)
            except OutOfMemory as error:
                failed[name] = str(error)
        return filled, failed

    def _turns(self, name: str, ask: dict[str, Callable[[], float]], failed: dict[str, str]) -> dict[str, list[float]]:
        """Seconds of each, in turn; the first turn is a warm-up, which does not count. Who runs out of memory has `failed`."""
        order = sorted(ask, key=lambda side: (side != "leanlm", side != "read"))
        seconds: dict[str, list[float]] = {side: [] for side in order}
        for turn in range(self.settings.repeats + 1):
            self.progress(f"{name}: " + (f"{turn} of {self.settings.repeats}" if turn else "warming up"))
            for side in [side for side in order if side not in failed]:
                time.sleep(PAUSE)
                try:
                    taken = ask[side]()
                except OutOfMemory as error:
                    failed[side] = str(error)
                else:
                    seconds[side] += [taken] if turn else []
        return {side: taken for side, taken in seconds.items() if side not in failed}

    def _told(self, seconds: dict[str, list[float]], tokens: int, failed: dict[str, str]) -> dict:
        """What a row tells of its sides."""
        told: dict = {"sides": {side: rates(taken, tokens) for side, taken in seconds.items()}, "ratios": ratios(seconds)}
        if failed:
            told["failed"] = failed
        if self.settings.device != "cpu" and (slower := self.sides["leanlm"].call("fallbacks")):
            told["fallbacks"] = slower
        return told


def rates(seconds: list[float], tokens: int) -> dict[str, float]:
    """Tokens per second of the median turn, and the slowest turn over the fastest."""
    middle = statistics.median(seconds)
    return {"tokens_per_second": tokens / middle, "seconds": middle, "spread": max(seconds) / min(seconds)}


def ratios(seconds: dict[str, list[float]]) -> dict[str, dict[str, float]]:
    """By peer, how many times as fast leanlm is: of the medians, and the lowest and highest of any turn."""
    ours = seconds.get("leanlm")
    return {name: compared(taken, ours) for name, taken in seconds.items() if ours and name != "leanlm"}


def compared(theirs: list[float], ours: list[float]) -> dict[str, float]:
    """Their seconds over ours: of the medians, and the lowest and highest of any turn."""
    each = [their / our for their, our in zip(theirs, ours, strict=True)]
    return {"median": statistics.median(theirs) / statistics.median(ours), "lowest": min(each), "highest": max(each)}


def shares(moved: dict[str, int], batch: int, count: int, ours: list[float], read: list[float] | None) -> dict:
    """The bytes of a step and of a token, the rate of a plain read of as many, and which share of it decoding reaches: with
    all bytes that it moves, and with those of the weights alone. `ours` and `read` are seconds of `count` steps."""
    total = sum(moved.values())
    found: dict = {"bytes_per_step": {**moved, "total": total}, "bytes_per_token": total // batch}
    if read:
        found["read_bytes_per_second"] = total * count / statistics.median(read)
        found["share"] = compared(read, ours)
        found["weights_share"] = found["share"]["median"] * moved["weights"] / total
    return found
