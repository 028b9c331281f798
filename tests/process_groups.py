"""Command lines of leanlm in many processes, as torchrun starts them, forked from one that has loaded torch already."""

import multiprocessing
import os
import socket
import sys
import tempfile
from pathlib import Path
from types import SimpleNamespace

SECONDS = 300  # until those that still run are killed
FORKING = multiprocessing.get_context("forkserver")
FORKING.set_forkserver_preload(["leanlm.cli.main", "leanlm.cli.train", "leanlm.train.loop", "leanlm.distill.sequence"])


def run(processes: int, *argv: object) -> SimpleNamespace:
    """Run a command line in so many processes; `codes` of all of them, and what they said on stderr as one text, `err`."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with tempfile.TemporaryDirectory() as folder:
        said = [Path(folder) / str(rank) for rank in range(processes)]
        places = [place(rank, processes, port) for rank in range(processes)]
        started = [FORKING.Process(target=work, args=given) for given in zip(places, said, [tuple(map(str, argv))] * processes)]
        try:
            for process in started:
                process.start()
            for process in started:
                process.join(SECONDS)
        finally:
            for process in started:
                process.kill()
        return SimpleNamespace(codes=[process.exitcode for process in started], err="".join(p.read_text() for p in said))


def place(rank: int, processes: int, port: int) -> dict[str, str]:
    """What torchrun tells one of its processes."""
    numbers = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": processes, "LOCAL_WORLD_SIZE": processes, "MASTER_PORT": port}
    return {"MASTER_ADDR": "127.0.0.1", **{name: str(value) for name, value in numbers.items()}}


def work(variables: dict[str, str], said: Path, argv: tuple[str, ...]) -> None:
    """One of the processes."""
    import torch

    from leanlm.cli.main import main

    os.environ.update(variables)
    torch.set_num_threads(1)
    sys.stderr = said.open("w")
    os.dup2(sys.stderr.fileno(), 2)
    sys.exit(main(list(argv)))
