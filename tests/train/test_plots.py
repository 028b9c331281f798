"""Charts of a run come from its log, whatever happened to it."""

import json

from leanlm.train import plots


def write(folder, *records, tail=""):
    text = "".join(json.dumps(record) + "\n" for record in records)
    (folder / "log.jsonl").write_text(text + tail)


def test_steps_done_again_count_once_and_half_lines_not_at_all(tmp_path):
    first = {"step": 1, "steps": 3, "loss": 5.0, "lr": 1e-3}
    write(tmp_path, first, {**first, "step": 2, "loss": 9.0}, {**first, "step": 2, "loss": 4.0}, tail='{"step": 3, "lo')
    assert [(r["step"], r["loss"]) for r in plots.records(tmp_path)] == [(1, 5.0), (2, 4.0)]


def test_both_charts_are_drawn(tmp_path):
    write(tmp_path, *({"step": i, "loss": 5 / i, "lr": 1e-3 / i, "validation": 3.0} for i in range(1, 9)))
    plots.draw(tmp_path)
    assert "held-out" in (tmp_path / "loss.svg").read_text() and "polyline" in (tmp_path / "schedule.svg").read_text()


def test_a_run_without_steps_has_charts_too(tmp_path):
    plots.draw(tmp_path)
    assert "nothing to show" in (tmp_path / "loss.svg").read_text()


def test_the_running_mean_begins_with_the_first_value():
    assert plots.smoothed([2.0, 2.0]) == [2.0, 2.0]
    means = plots.smoothed([4.0] + [1.0] * 200)
    assert means[0] == 4.0 and 1.0 < means[100] < 1.1 and means == sorted(means, reverse=True)
