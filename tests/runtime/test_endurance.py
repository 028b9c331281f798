"""What must hold for long: memory, threads that call at once, and stopping at once."""

import os
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch

from hybrid_models import LONGEST, ONE_OF_EACH, alone, build, text
from leanlm import load
from leanlm.model.config import Attention, GatedMLP, Mamba1, Mamba2, ModelConfig, Rope
from packed_models import FORMATS, pack

pytest.importorskip("leanlm.runtime.native", reason="the native library was not built")
from leanlm.runtime.native import NativeRuntime

LITTLE = 4 << 20  # bytes that may be taken and not given back: what the allocator keeps
MIXED = ModelConfig(
    32,
    50,
    ((Mamba2(32, 8, 8), GatedMLP(64)), (Attention(4, 2, 8, window=20, rope=Rope(8)), GatedMLP(64)), (Mamba1(32, 4, 4, 4),)),
)
LONG_GENERATION = ["-m", "leanlm", "generate", "def ", "--genlen", "1000000", "--seed", "1", "--temperature", "1"]


def resident() -> int:
    """Bytes of this process in memory."""
    status = Path("/proc/self/status")
    if not status.exists():
        pytest.skip("no /proc on this system")
    return 1024 * int(status.read_text().split("VmRSS:")[1].split()[0])


def growth(work, times: int) -> int:
    """By how much memory grows while `work(number)` is done so many times, after a tenth as many to settle."""
    for number in range(times // 10):
        work(number)
    before = resident()
    for number in range(times):
        work(number)
    return resident() - before


def test_ten_thousand_tokens_take_no_memory():
    module = build(MIXED)
    pack(module, FORMATS["int4-g32"])
    runtime, state, token = NativeRuntime(module), module.new_state(1), text(MIXED, 1, 1)
    assert growth(lambda _: runtime(token, state), 10_000) < LITTLE
    assert state.position.tolist() == [11_000] and runtime(token, state).isfinite().all()


def test_programs_that_are_not_needed_any_more_are_freed():
    module = build(MIXED)
    runtime, token = NativeRuntime(module), text(MIXED, 1, 1)

    @torch.no_grad()
    def change(_):
        before = runtime.program
        module.norm.weight.mul_(1.0)
        runtime(token, module.new_state(1))
        assert runtime.program is not before

    assert growth(change, 200) < LITTLE


def test_runtimes_go_with_their_modules():
    def once(number):
        module = build(MIXED, seed=number)
        NativeRuntime(module)(text(MIXED, 1, 3), module.new_state(1))

    assert growth(once, 150) < LITTLE


def test_batches_of_many_sizes():
    module = build(MIXED)
    runtime = NativeRuntime(module)

    def run(number):
        batch = 1 + 37 * number % 200
        runtime(text(MIXED, batch, 1 + number % 3), module.new_state(batch))

    assert growth(run, 200) < 2 * LITTLE


def test_threads_that_call_at_once_do_not_disturb_each_other(threads):
    """The library lets other Python threads run while it computes."""
    threads(2)
    modules = [build(alone(ONE_OF_EACH["mamba2"])), build(MIXED)]
    runtimes = [NativeRuntime(module) for module in modules]

    def decode(number: int) -> torch.Tensor:
        runtime = runtimes[number % 2]
        state = runtime.module.new_state(1)
        tokens = text(runtime.module.config, 1, 120, seed=number)
        return torch.cat([runtime(token, state) for token in tokens.split(1, 1)], 1)

    apart = [decode(number) for number in range(6)]
    with ThreadPoolExecutor(6) as pool:
        for _ in range(3):
            assert all(map(torch.equal, pool.map(decode, range(6)), apart))


@pytest.mark.skipif(sys.platform == "win32", reason="needs POSIX signals")
def test_ctrl_c_stops_within_a_token():
    """Long before the end of a long text, and of the call of C that was running: a token, or a piece of a prompt."""
    model, began, said = load("builtin"), time.monotonic(), []
    timer = threading.Timer(0.3, lambda: (said.append(time.monotonic()), os.kill(os.getpid(), signal.SIGINT)))
    timer.start()
    with pytest.raises(KeyboardInterrupt):
        model.generate("def ", 100_000, eos_ids=(), stream=lambda piece: None)
    assert time.monotonic() - said[0] < 1, "much more than the time of a token"
    assert said[0] - began < 5


@pytest.mark.parametrize("call", [1, 2, 3])
def test_ctrl_c_right_after_a_call_of_the_library_leaves_a_whole_state(call):
    """Python raises it as the call returns: what was read is in the memories, and the position has to count it."""
    module = build(MIXED)
    tokens, runtime, state = text(module.config, 2, LONGEST), NativeRuntime(module), module.new_state(2)
    wanted, run, calls = runtime(tokens, module.new_state(2)), runtime.run, []

    def interrupted(*arguments):
        calls.append(run(*arguments))
        if len(calls) == call:
            raise KeyboardInterrupt

    runtime.run = interrupted
    with pytest.raises(KeyboardInterrupt):
        runtime(tokens, state)
    runtime.run = run
    read = state.position[0].item()
    assert 0 < read <= LONGEST
    assert all(torch.equal(held["position"], state.position) for held in filter(None, state.memories) if "position" in held)
    rest = runtime(tokens[:, read:], state)
    assert torch.allclose(rest, wanted[:, read:], rtol=0, atol=1e-5) and state.position.tolist() == [LONGEST] * 2


@pytest.mark.skipif(sys.platform == "win32", reason="needs POSIX signals")
def test_ctrl_c_at_the_command_line(monkeypatch):
    monkeypatch.delenv("LEANLM_IMPL", raising=False)
    process = subprocess.Popen([sys.executable, *LONG_GENERATION], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    process.stdout.read(30)
    sent = time.monotonic()
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130 and err.decode().strip().endswith("interrupted")
    assert time.monotonic() - sent < 5, "more than a token and the end of an interpreter"
