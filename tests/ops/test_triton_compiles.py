"""Every GPU kernel compiles for the cards that it is meant for, also where there is none."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton", reason="Triton is not installed")
FOLDER = Path(__file__).parent
SHARED = {"80": 163, "89": 99, "90": 227}  # KiB that a program may have


@pytest.mark.slow
@pytest.mark.parametrize("capability", SHARED)
def test_every_kernel_compiles(capability):
    done = subprocess.run(
        [sys.executable, FOLDER / "no_card.py", capability],
        capture_output=True,
        text=True,
        env={**os.environ, "TRITON_INTERPRET": "0", "CUDA_VISIBLE_DEVICES": ""},
    )
    assert done.returncode == 0, done.stderr[-2000:]
    found = re.findall(r"^(\w+) (\d+) \d+$", done.stdout, re.MULTILINE)
    sources = "".join(path.read_text() for path in (Path(FOLDER.parents[1]) / "src/leanlm/ops").glob("triton_*.py"))
    assert {name for name, _ in found} == set(re.findall(r"def (_\w+_kernel|_carry)\(", sources))
    assert max(int(least) for _, least in found) <= SHARED[capability] << 10  # tuning leaves out the launch that takes more
