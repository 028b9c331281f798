"""Every environment variable leanlm reads: name, type, default, meaning. Nothing else in the package reads os.environ."""

import os
from dataclasses import dataclass


@dataclass(frozen=True)
class Variable:
    """One environment variable; `get()` reads it at the time of the call, so tests may set and unset it."""

    name: str
    default: str
    meaning: str

    def get(self) -> str:
        return os.environ.get(self.name, self.default)

    def put(self, value: str) -> None:
        """Set it for this process, where another library reads it."""
        os.environ[self.name] = value

    def is_set(self) -> bool:
        """Whether the value switches something on: anything but empty, 0, false, no and off."""
        return self.get().strip().lower() not in ("", "0", "false", "no", "off")


IMPL = Variable("LEANLM_IMPL", "", "run every operation by this implementation (triton, flash, eager, reference), not natively")
TRITON_INTERPRET = Variable("TRITON_INTERPRET", "", "1: Triton runs GPU kernels on the CPU, slowly, for tests (read by triton)")
ISA = Variable("LEANLM_ISA", "", "instruction set of the native library, where the CPU has it: portable, avx2 or avx512")
THREADS = Variable("LEANLM_THREADS", "", "threads of the native library; as many as there are physical cores by default")
DEBUG = Variable("LEANLM_DEBUG", "", "1: show tracebacks instead of one-line errors, as --debug does")
HF_HUB_OFFLINE = Variable("HF_HUB_OFFLINE", "", "1: use only what is already on disk, as --offline does")
HF_DATASETS_OFFLINE = Variable("HF_DATASETS_OFFLINE", "", "1: the same for data sets (read by datasets)")
TQDM_DISABLE = Variable("TQDM_DISABLE", "", "1: no progress bars of the harness (read by tqdm)")
HF_TOKEN = Variable("HF_TOKEN", "", "access token for gated repositories (read by huggingface_hub)")
TOKENIZERS_PARALLELISM = Variable("TOKENIZERS_PARALLELISM", "", "false: one thread per tokenizer (read by tokenizers)")
GOLDEN = Variable("LEANLM_GOLDEN", "", "folder of golden cases that the tests run besides their own")
RANK = Variable("RANK", "", "number of this process in a training run, set by torchrun")
WORLD_SIZE = Variable("WORLD_SIZE", "", "processes of a training run, set by torchrun")
LOCAL_RANK = Variable("LOCAL_RANK", "", "number of this process on its machine, set by torchrun")
LOCAL_WORLD_SIZE = Variable("LOCAL_WORLD_SIZE", "", "processes of a training run on this machine, set by torchrun")
MASTER_ADDR = Variable("MASTER_ADDR", "", "machine where the processes of a training run meet, set by torchrun")
MASTER_PORT = Variable("MASTER_PORT", "", "port where the processes of a training run meet, set by torchrun")
SLURM_PROCID = Variable("SLURM_PROCID", "", "number of this process, set by srun")
SLURM_STEP_NUM_TASKS = Variable("SLURM_STEP_NUM_TASKS", "", "processes, set by srun")
SLURM_LOCALID = Variable("SLURM_LOCALID", "", "number of this process on its machine, set by srun")
SLURM_STEP_TASKS_PER_NODE = Variable("SLURM_STEP_TASKS_PER_NODE", "", "processes on each machine, set by srun")
SLURM_LAUNCH_NODE_IPADDR = Variable("SLURM_LAUNCH_NODE_IPADDR", "", "machine where processes meet, set by srun")
SLURM_JOB_ID = Variable("SLURM_JOB_ID", "", "number of the job, from which the port follows where processes meet, set by Slurm")

MOST_THREADS = 256  # that the native library starts

TORCHRUN = (RANK, WORLD_SIZE, LOCAL_RANK, LOCAL_WORLD_SIZE, MASTER_ADDR, MASTER_PORT)
SRUN = (
    SLURM_PROCID,
    SLURM_STEP_NUM_TASKS,
    SLURM_LOCALID,
    SLURM_STEP_TASKS_PER_NODE,
    SLURM_LAUNCH_NODE_IPADDR,
    SLURM_JOB_ID,
)
READ_BY_OTHERS = (
    TRITON_INTERPRET,
    HF_HUB_OFFLINE,
    HF_DATASETS_OFFLINE,
    HF_TOKEN,
    TOKENIZERS_PARALLELISM,
    TQDM_DISABLE,
)
VARIABLES = (IMPL, ISA, THREADS, DEBUG, GOLDEN, *READ_BY_OTHERS, *TORCHRUN, *SRUN)
