"""The command that runs a recipe on many processes: torchrun by hand, or a Slurm batch script around it. Loads no torch."""

import re
import shlex
from dataclasses import dataclass

from leanlm.errors import UsageError

SAVING = 300  # seconds between the warning and the end, in which a run writes its checkpoint
PORT = 29500
TIME = re.compile(r"\d+(:\d\d(:\d\d)?)?|\d+-\d+(:\d\d(:\d\d)?)?")  # sbatch's forms


@dataclass(frozen=True)
class Job:
    """`words` are those after `leanlm`."""

    name: str
    words: tuple[str, ...]
    nodes: int = 1
    gpus: int = 8
    time: str = "24:00:00"
    partition: str = ""

    def __post_init__(self):
        for field, value in (("--nodes", self.nodes), ("--gpus", self.gpus)):
            if value < 1:
                raise UsageError(f"{field} {value}: it must be at least 1")
        if not TIME.fullmatch(self.time):
            raise UsageError(f"--time {self.time}: give minutes, hours:minutes:seconds or days-hours:minutes:seconds")


def torchrun(job: Job, host: str = "HOST", restarts: int = 0) -> str:
    """One line, to be given on every node with more than one; HOST stands for the first one's name."""
    words = ["torchrun", f"--nproc-per-node={job.gpus}"]
    if job.nodes == 1:
        words.append("--standalone")
    else:
        words += [f"--nnodes={job.nodes}", "--rdzv-backend=c10d", f"--rdzv-endpoint={host}:{PORT}", f"--rdzv-id={job.name}"]
    if restarts:
        words.append(f"--max-restarts={restarts}")
    return " ".join([*words, "-m", "leanlm", *map(shlex.quote, job.words)])


def sbatch(job: Job) -> str:
    """A batch script. Slurm warns it before its time is over, and it the run (srun itself would answer SIGTERM by killing its
    tasks); the run saves and ends, and the job queues again."""
    partition = f"#SBATCH --partition={job.partition}\n" if job.partition else ""
    return f"""#!/bin/bash
#SBATCH --job-name={job.name}
#SBATCH --nodes={job.nodes}
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node={job.gpus}
#SBATCH --time={job.time}
{partition}#SBATCH --signal=B:TERM@{SAVING}
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output={job.name}-%j.log

export TORCH_ELASTIC_SHUTDOWN_TIMEOUT={SAVING}
HOST=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
srun {torchrun(job, "$HOST")} &
RUN=$!
trap 'WARNED=1; scancel --signal=TERM "$SLURM_JOB_ID"' TERM
wait $RUN
CODE=$?
if [ -n "$WARNED" ]; then
    wait $RUN
    scontrol requeue "$SLURM_JOB_ID"
fi
exit $CODE
"""
