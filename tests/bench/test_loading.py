"""What loading takes: one measurement of a small model, in a process of its own."""

import pytest

from golden_cases import checkpoint_cases
from leanlm import runtime
from leanlm.bench import loading


@pytest.mark.skipif(bool(runtime.unavailable()), reason="the native library was not built")
def test_one_process_tells_seconds_and_bytes():
    folder = next(case.folder for case in checkpoint_cases() if case.name == "mamba2/ss_groups_untied")
    found = loading.once(folder)
    assert 0 < found["seconds"] < 60 and 0 < found["weights"] < found["peak"] and found["state"] > 0
