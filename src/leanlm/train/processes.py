"""The processes of a run, as torchrun or srun started them: who this one is, and what all of them agree on."""

import re
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import timedelta
from typing import TypeVar

import torch
import torch.distributed as dist

from leanlm import env
from leanlm.errors import LeanLMError, UsageError

T = TypeVar("T")
PATIENCE = timedelta(hours=4)  # one process may tokenise the data, or write the finished model, while the others wait


@dataclass(frozen=True)
class Processes:
    """Process `rank` of `size`, `local` of `per_machine` on its machine. `writers` is a group for the thread that writes
    checkpoints, so that it never waits for what the training says."""

    rank: int = 0
    size: int = 1
    local: int = 0
    per_machine: int = 1
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    writers: dist.ProcessGroup | None = None

    @property
    def leader(self) -> bool:
        """Whether this is the process that writes and reports."""
        return self.rank == 0

    def sums(self, *numbers: float) -> list[float]:
        """Every number summed over all processes, which all get the same sums."""
        if self.size == 1:
            return [float(number) for number in numbers]
        total = torch.tensor(numbers, dtype=torch.float64)
        dist.all_reduce(total)
        return total.tolist()

    def any(self, flag: bool) -> bool:
        """Whether it is set in any process."""
        return self.sums(bool(flag))[0] > 0

    def together(self, act: Callable[[], T], group: dist.ProcessGroup | None = None) -> T:
        """`act` done by every process; an error for people that one of them met is raised by all. `group`: where to agree."""
        if self.size == 1:
            return act()
        result, error = None, None
        try:
            result = act()
        except LeanLMError as met:
            error = met
        for met in self.gather(error, group):
            if met is not None:
                raise met
        return result

    def gather(self, value: T, group: dist.ProcessGroup | None = None) -> list[T]:
        """The value of every process, in their order."""
        if self.size == 1:
            return [value]
        values: list = [None] * self.size
        dist.all_gather_object(values, value, group)
        return values

    def first(self, act: Callable[[], T]) -> T:
        """`act` done by the leader, then by the others, who find on disk what it made there."""
        if self.size == 1:
            return act()
        result = self.together(lambda: act() if self.leader else None)
        return self.together(lambda: result if self.leader else act())

    def wait(self) -> None:
        """Until every process has come here."""
        if self.size > 1:
            dist.barrier()


ALONE = Processes()


@contextmanager
def joined() -> Iterator[Processes]:
    """This process among those of its run, on its own GPU where there are any; alone where nobody started several."""
    place = find()
    if torch.cuda.is_available():
        if place.local >= torch.cuda.device_count():
            raise UsageError(f"{place.per_machine} processes and {torch.cuda.device_count()} GPUs on this machine; start fewer")
        place = replace(place, device=torch.device("cuda", place.local))
        torch.cuda.set_device(place.device)
    if place.size == 1:
        yield place
        return
    backend = "cpu:gloo,cuda:nccl" if place.device.type == "cuda" else "gloo"
    dist.init_process_group(backend, rank=place.rank, world_size=place.size, timeout=PATIENCE)
    writers = dist.new_group(backend="gloo", timeout=PATIENCE)
    try:
        yield replace(place, writers=writers)
    except (LeanLMError, KeyboardInterrupt):
        _leave(writers, patience=20)  # they agree on nearly every error; where not, torchrun ends those who stay
        raise
    _leave(writers)


def _leave(group: dist.ProcessGroup, patience: float | None = None) -> None:
    """End the talk when all have come here, which they do within `patience` seconds or not at all: to leave while others still
    talk aborts them."""
    last = threading.Thread(target=dist.barrier, args=(group,), daemon=True)
    last.start()
    last.join(patience)
    if not last.is_alive():
        dist.destroy_process_group()


def find() -> Processes:
    """Who this process is, from the variables that torchrun or srun set."""
    if env.WORLD_SIZE.get():
        return Processes(*(_number(v) for v in (env.RANK, env.WORLD_SIZE, env.LOCAL_RANK, env.LOCAL_WORLD_SIZE)))
    if env.SLURM_STEP_NUM_TASKS.get() and env.SLURM_PROCID.get():
        if not env.MASTER_ADDR.get():
            env.MASTER_ADDR.put(env.SLURM_LAUNCH_NODE_IPADDR.get() or "127.0.0.1")
        if not env.MASTER_PORT.get():
            env.MASTER_PORT.put(str(20000 + _number(env.SLURM_JOB_ID) % 20000))
        here = re.match(r"\d*", env.SLURM_STEP_TASKS_PER_NODE.get())[0]  # "8(x2)": eight on each of two
        places = (env.SLURM_PROCID, env.SLURM_STEP_NUM_TASKS, env.SLURM_LOCALID)
        return Processes(*(_number(variable) for variable in places), int(here or 1))
    return Processes()


def _number(variable: env.Variable) -> int:
    text = variable.get() or "0"
    if not text.isdigit():
        raise UsageError(f"{variable.name}={text}: not a number; start the processes by torchrun or srun")
    return int(text)
