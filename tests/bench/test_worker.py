"""A side in a process of its own: what it answers, how it fails, and that it is gone afterwards."""

import pytest
import torch

from leanlm.bench import worker
from leanlm.bench.worker import Worker
from leanlm.errors import LeanLMError, NotFound


def test_a_process_answers_fails_and_goes():
    with Worker("leanlm") as worker:
        with pytest.raises(NotFound, match="no such folder"):
            worker.call("load", path="/nowhere", dtype=None, threads=1, state_dtype=None, cache_dtype=None)
        with pytest.raises(LeanLMError, match=r"leanlm failed \(sing\): AttributeError"):
            worker.call("sing")
        assert 50e6 < worker.call("peak_resident") < 4e9
        assert worker.process.poll() is None
    assert worker.process.poll() is not None


def test_a_process_that_dies_is_told():
    with Worker("nobody") as worker:
        with pytest.raises(LeanLMError, match="KeyError"):
            worker.call("load")
        worker.process.kill()
        with pytest.raises(LeanLMError, match="the process of nobody ended during load"):
            worker.call("load")


class Full:
    """A side that runs out of memory, and says whether it was cleared."""

    cleared = False

    def work(self):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB")

    def clear(self):
        self.cleared = True

    def state(self):
        return self.cleared


def test_a_side_without_memory_is_told_apart_and_gives_up_its_texts(monkeypatch):
    monkeypatch.setitem(worker.KINDS, "full", (__name__, "Full"))
    requests = iter([b'{"call": "work", "given": {}}', b'{"call": "state", "given": {}}'])
    failed, then = worker.answers("full", requests)
    assert failed["kind"] == "OutOfMemory" and failed["error"].startswith("full failed (work): OutOfMemoryError: CUDA out")
    assert then == {"result": True}
