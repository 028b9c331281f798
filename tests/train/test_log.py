"""The log of a run that was killed and goes on."""

from leanlm.train import log
from leanlm.train.report import Report


def test_steps_that_are_done_again_are_told_once(tmp_path):
    for step in (1, 2, 3, 4):
        log.add(tmp_path, Report(step, 9, loss=1 / step))
    with (tmp_path / log.LOG).open("a") as file:
        file.write('{"step": 5, "lo')  # killed
    log.forget_after(tmp_path, 2)
    log.add(tmp_path, Report(3, 9, loss=0.25))
    assert [(told["step"], told["loss"]) for told in log.records(tmp_path)] == [(1, 1.0), (2, 0.5), (3, 0.25)]
    assert (tmp_path / log.LOG).read_text().count("\n") == 3


def test_nothing_is_written_where_nothing_is_forgotten(tmp_path):
    log.forget_after(tmp_path, 0)
    assert not list(tmp_path.iterdir())
    log.add(tmp_path, Report(1, 9, loss=2.5))
    before = (tmp_path / log.LOG).stat()
    log.forget_after(tmp_path, 1)
    after = (tmp_path / log.LOG).stat()
    assert (after.st_ino, after.st_mtime_ns) == (before.st_ino, before.st_mtime_ns)
