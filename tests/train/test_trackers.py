"""Trackers: told the numbers, one run per folder, and named where they are missing."""

import importlib
import sys
import types

import pytest

from leanlm.errors import UsageError
from leanlm.train import trackers


class Service(types.ModuleType):
    """Stands in for wandb or trackio, which have the same interface."""

    def __init__(self):
        super().__init__("service")
        self.said = []

    def init(self, **settings):
        self.said.append(settings)

    def log(self, values, step):
        self.said.append((step, values))

    def finish(self):
        self.said.append("finished")


@pytest.mark.parametrize("name", ["wandb", "trackio"])
def test_services_are_told_and_a_resumed_run_is_the_same(name, tmp_path, monkeypatch):
    service = Service()
    monkeypatch.setitem(sys.modules, name, service)
    for _ in range(2):
        (tracker,) = trackers.start((name,), "run", tmp_path, {"seed": 1})
        tracker.log(3, {"loss": 2.0})
        tracker.close()
    first, told, end, again, *_ = service.said
    assert told == (3, {"loss": 2.0}) and end == "finished"
    assert first == again and first["resume"] == "allow" and first["config"] == {"seed": 1}


@pytest.mark.parametrize("name", trackers.NAMES)
def test_a_missing_package_names_the_extra(name, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, {"tensorboard": "torch.utils.tensorboard"}.get(name, name), None)
    with pytest.raises(UsageError, match=r"leanlm\[track\]"):
        trackers.start((name,), "run", tmp_path, {})


def test_unknown_trackers_are_refused(tmp_path):
    with pytest.raises(UsageError, match="none of tensorboard"):
        trackers.start(("wanbd",), "run", tmp_path, {})


def test_tensorboard_files_hold_the_numbers(tmp_path):
    pytest.importorskip("tensorboard", reason="tensorboard is not installed")
    (tracker,) = trackers.start(("tensorboard",), "run", tmp_path, {})
    tracker.log(1, {"loss": 2.5})
    tracker.close()
    events = importlib.import_module("tensorboard.backend.event_processing.event_accumulator")
    read = events.EventAccumulator(str(tmp_path / "tensorboard"))
    read.Reload()
    assert [(e.step, e.value) for e in read.Scalars("loss")] == [(1, 2.5)]
