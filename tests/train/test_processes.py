"""Who a process is, by what torchrun or srun tell it."""

import pytest

from leanlm import env
from leanlm.errors import UsageError
from leanlm.train.processes import ALONE, Processes, find


@pytest.fixture(autouse=True)
def nothing_set(monkeypatch):
    for variable in (*env.TORCHRUN, *env.SRUN):
        monkeypatch.delenv(variable.name, raising=False)


def test_alone():
    assert find() == Processes()
    assert ALONE.sums(1, 2.5) == [1, 2.5] and ALONE.any(True) and not ALONE.any(False)
    assert ALONE.gather("x") == ["x"] and ALONE.first(lambda: 3) == ALONE.together(lambda: 3) == 3


def test_torchrun(monkeypatch):
    for variable, value in zip(env.TORCHRUN, ("5", "8", "1", "4", "host", "29500")):
        monkeypatch.setenv(variable.name, value)
    assert find() == Processes(rank=5, size=8, local=1, per_machine=4)
    monkeypatch.setenv("RANK", "five")
    with pytest.raises(UsageError, match="RANK=five"):
        find()


def test_srun(monkeypatch):
    for variable, value in zip(env.SRUN, ("9", "16", "1", "8(x2)", "10.0.0.7", "123456")):
        monkeypatch.setenv(variable.name, value)
    monkeypatch.setenv("MASTER_ADDR", "")  # so that what is put here is taken back
    monkeypatch.setenv("MASTER_PORT", "")
    assert find() == Processes(rank=9, size=16, local=1, per_machine=8)
    assert (env.MASTER_ADDR.get(), env.MASTER_PORT.get()) == ("10.0.0.7", "23456")


def test_a_batch_script_of_slurm_is_one_process(monkeypatch):
    """sbatch sets the number of tasks for what srun will start, and runs the script itself once."""
    monkeypatch.setenv("SLURM_PROCID", "0")
    monkeypatch.setenv("SLURM_NTASKS", "16")
    assert find() == Processes()
