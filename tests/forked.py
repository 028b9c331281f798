"""Command lines of leanlm in processes of their own, several as torchrun starts them, forked from one that has loaded torch."""

import multiprocessing
import os
import resource
import socket
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace

SECONDS = 300  # until those that still run are killed
FORKING = multiprocessing.get_context("forkserver")
FORKING.set_forkserver_preload(["leanlm.cli.main", "leanlm.cli.train", "leanlm.distill.sequence", "torch._dynamo"])


def run(processes: int, *argv: object, file_bytes: int | None = None) -> SimpleNamespace:
    """Run a command line in so many processes; `codes` of all of them, and what they said on stderr as one text, `err`. No file
    may grow beyond `file_bytes`."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with tempfile.TemporaryDirectory() as folder:
        said = [Path(folder) / str(rank) for rank in range(processes)]
        places = [place(rank, processes, port) if processes > 1 else {} for rank in range(processes)]
        started = [start(*argv, said=file, variables=given, file_bytes=file_bytes) for file, given in zip(said, places)]
        try:
            for process in started:
                process.join(SECONDS)
        finally:
            for process in started:
                process.kill()
        return SimpleNamespace(codes=[process.exitcode for process in started], err="".join(p.read_text() for p in said))


def start(*argv: object, said: Path = Path(os.devnull), variables: Mapping[str, str] = {}, file_bytes: int | None = None):
    """A process that runs a command line, with stderr in the file `said`."""
    process = FORKING.Process(target=work, args=(tuple(map(str, argv)), said, dict(variables), file_bytes))
    process.start()
    return process


def place(rank: int, processes: int, port: int) -> dict[str, str]:
    """What torchrun tells one of its processes."""
    numbers = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": processes, "LOCAL_WORLD_SIZE": processes, "MASTER_PORT": port}
    return {"MASTER_ADDR": "127.0.0.1", **{name: str(value) for name, value in numbers.items()}}


def work(argv: tuple[str, ...], said: Path, variables: dict[str, str], file_bytes: int | None) -> None:
    """What such a process does."""
    import torch

    from leanlm.cli.main import main

    os.environ.update(variables)
    torch.set_num_threads(1)
    if file_bytes is not None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (file_bytes, file_bytes))
    sys.stderr = said.open("w")
    os.dup2(sys.stderr.fileno(), 2)
    sys.exit(main(list(argv)))
