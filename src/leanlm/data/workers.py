"""Processes that take up the parts of a job. Loads no torch."""

import multiprocessing
import os
import signal
from collections.abc import Callable, Iterable, Iterator
from multiprocessing.connection import Connection, wait
from pathlib import Path

from leanlm import env
from leanlm.data import job as jobs
from leanlm.data import manifest as manifests
from leanlm.data.job import Done, Job
from leanlm.data.manifest import MANIFEST, Manifest
from leanlm.errors import LeanLMError, NotFound, UsageError

Report = Callable[[Done, int], None]


def run(
    job: Job,
    folder: Path,
    tokenizer_files: dict[str, bytes],
    producer: Callable,
    processes: int = 0,
    share: tuple[int, int] = (0, 1),
    report: Report = lambda done, parts: None,
) -> Manifest | None:
    """Do what is left of a job in `folder`, and make the manifest when all is done.

    `share` (i, n) does only the parts numbered i, i + n, i + 2 n ...: n calls, on as many machines as one likes, do all of
    them, and the one that ends last makes the manifest; the others return None. `processes` 0: one per processor. `report`
    hears what is done so far and of how many parts. The first error ends the work; finished parts stay.
    """
    which, of = share
    if not 0 <= which < of:
        raise UsageError(f"share {which}/{of}: the first is 0/{of}, the last {of - 1}/{of}")
    if jobs.begin(job, folder, tokenizer_files):
        return manifests.read(folder)
    left = [number for number in jobs.todo(job, folder) if number % of == which]
    done = sum((Done(**raw["done"]) for n in range(len(job.parts)) if (raw := jobs.record(folder, n))), Done())
    report(done, len(job.parts))
    count = min(processes or os.cpu_count() or 1, len(left))
    alone = (jobs.work(job, folder, number, producer) for number in left)
    for finished in spread(job, folder, producer, left, count) if count > 1 else alone:
        done += finished
        report(done, len(job.parts))
    return _finished(job, folder)


def _finished(job: Job, folder: Path) -> Manifest | None:
    """The manifest, made here or by whoever else ended last; None where parts of other shares are missing."""
    try:
        if not jobs.todo(job, folder):
            return jobs.finish(job, folder)
    except (NotFound, OSError):
        if not (folder / MANIFEST).exists():
            raise
    return manifests.read(folder) if (folder / MANIFEST).exists() else None


def spread(job: Job, folder: Path, producer: Callable, numbers: Iterable[int], count: int) -> Iterator[Done]:
    """The parts, done by `count` processes, as they end. Raises the first error there is, with the processes ended."""
    context = multiprocessing.get_context("spawn")
    left = iter(numbers)
    crew: dict[Connection, multiprocessing.Process] = {}
    try:
        for _ in range(count):
            ours, theirs = context.Pipe()
            crew[ours] = context.Process(target=serve, args=(theirs, job, folder, producer), daemon=True)
            crew[ours].start()
            theirs.close()
            ours.send(next(left, None))
        while crew:
            for connection in wait(list(crew)):
                answer = _answer(connection, crew[connection])
                if answer is None:
                    crew.pop(connection).join()
                    continue
                connection.send(next(left, None))
                yield answer
    finally:
        for process in crew.values():
            process.terminate()
            process.join()
            for half in folder.rglob(f".*.{process.pid}.partial"):
                half.unlink(missing_ok=True)


def _answer(connection: Connection, process: multiprocessing.Process) -> Done | None:
    """What a process says; raises the error it met, or says that it died."""
    try:
        answer = connection.recv()
    except (EOFError, ConnectionResetError):
        process.join()
        raise LeanLMError(
            f"a process ended with code {process.exitcode} (out of memory?); finished parts are kept: give the same command "
            "again, with fewer processes"
        ) from None
    if isinstance(answer, BaseException):
        raise answer
    return answer


def serve(connection: Connection, job: Job, folder: Path, producer: Callable) -> None:
    """A process's life: part after part until it is told None, or whoever asks is gone."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # who asks hears it too, and ends us
    env.TOKENIZERS_PARALLELISM.put("false")  # the processes are the parallelism
    try:
        while (number := connection.recv()) is not None:
            try:
                answer = jobs.work(job, folder, number, producer)
            except Exception as error:
                answer = error if isinstance(error, LeanLMError) else LeanLMError(f"part {number}: {error!r}")
            connection.send(answer)
        connection.send(None)
    except (EOFError, OSError):
        pass
