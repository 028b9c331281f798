"""Launch commands: torchrun understands them, and the batch script does what Slurm's warning asks."""

import os
import shlex
import signal
import subprocess
import time

import pytest
from torch.distributed.run import get_args_parser

from leanlm.errors import UsageError
from leanlm.train.launch import Job, sbatch, torchrun

WORDS = ("train", "trilm", "--size", "1.1b", "--set", 'data.sources={"a b" = 1}')


def parsed(line: str):
    program, *words = shlex.split(line)
    assert program == "torchrun"
    return get_args_parser().parse_args(words)


@pytest.mark.parametrize("nodes", [1, 16])
def test_torchrun_reads_what_was_meant(nodes):
    read = parsed(torchrun(Job("trilm-1.1b", WORDS, nodes, 8), "node7"))
    assert (read.nnodes, read.nproc_per_node) == (str(nodes) if nodes > 1 else "1:1", "8")
    assert read.module and read.training_script == "leanlm" and tuple(read.training_script_args) == WORDS
    assert read.standalone if nodes == 1 else read.rdzv_endpoint == "node7:29500"


def test_impossible_jobs():
    with pytest.raises(UsageError, match="--gpus 0"):
        Job("x", (), 1, 0)
    for limit in ("90", "24:00:00", "2-12", "1-00:30:00"):
        Job("x", (), time=limit)
    with pytest.raises(UsageError, match="--time tomorrow"):
        Job("x", (), time="tomorrow")


@pytest.fixture
def slurm(tmp_path):
    """A folder with an srun that runs its arguments and kills them when it gets SIGTERM, a torchrun that ends a second after
    SIGTERM, an scancel that sends it to torchrun, and a log of all calls."""
    log = tmp_path / "log"
    programs = {
        "srun": f'trap "kill -KILL \\$TASK" TERM\n"$@" &\nTASK=$!\necho $TASK > {tmp_path / "task"}\nwait $TASK',
        "scancel": f'[ "$*" = "--signal=TERM 42" ] && kill -TERM $(cat {tmp_path / "task"})',
        "scontrol": f'echo "scontrol $*" >> {log}; [ "$1" = show ] && echo node7',
        "torchrun": f"trap 'sleep 1; echo saved >> {log}; exit 1' TERM\necho \"torchrun $*\" >> {log}\n"
        'for i in $(seq "$SECONDS_OF_WORK"); do sleep 0.1; done',
    }
    for name, body in programs.items():
        (tmp_path / name).write_text(f"#!/bin/bash\n{body}\n")
        (tmp_path / name).chmod(0o755)
    (tmp_path / "job.sh").write_text(sbatch(Job("trilm-1.1b", WORDS, 2, 4, partition="gpu")))
    return tmp_path


def started(slurm, tenths: int):
    path = {"PATH": f"{slurm}:{os.environ['PATH']}", "SLURM_JOB_NODELIST": "n[7-8]", "SLURM_JOB_ID": "42"}
    return subprocess.Popen(
        ["bash", str(slurm / "job.sh")], env=os.environ | path | {"SECONDS_OF_WORK": str(tenths)}, cwd=slurm
    )


def test_a_job_that_ends_is_not_queued_again(slurm):
    assert started(slurm, 1).wait(20) == 0
    log = (slurm / "log").read_text()
    assert "requeue" not in log and "--rdzv-endpoint=node7:29500" in log


def test_a_warned_job_saves_before_it_queues_again(slurm):
    job = started(slurm, 300)
    said = slurm / "log", slurm / "task"
    while not (all(file.is_file() for file in said) and "torchrun" in said[0].read_text() and said[1].read_text().strip()):
        time.sleep(0.05)
    job.send_signal(signal.SIGTERM)
    job.wait(20)
    assert (slurm / "log").read_text().splitlines()[-2:] == ["saved", "scontrol requeue 42"]


def test_slurm_settings():
    text = sbatch(Job("x", WORDS, 2, 4, "01:00:00", "gpu"))
    for line in ("--nodes=2", "--gpus-per-node=4", "--time=01:00:00", "--partition=gpu", "--signal=B:TERM@300"):
        assert f"#SBATCH {line}\n" in text
