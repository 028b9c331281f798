"""Charts of a run, drawn from its log: loss.svg and schedule.svg in the run's folder."""

from pathlib import Path

from leanlm.checkpoint.aside import replacing
from leanlm.train import log
from leanlm.train.chart import Series, svg

SMOOTH = 0.95  # of the running mean of the loss


def draw(folder: Path) -> None:
    """Write both charts of the run in `folder`, each in place of an older one."""
    steps = records(folder)
    with replacing(folder) as aside:
        aside("loss.svg").write_text(loss(steps), encoding="utf-8")
        aside("schedule.svg").write_text(schedule(steps), encoding="utf-8")


def records(folder: Path) -> list[dict]:
    """What the log says of each step, in order; of a step done again after a resume, what was said last."""
    last = {record["step"]: record for record in log.records(folder) if "loss" in record}
    return [last[step] for step in sorted(last)]


def loss(steps: list[dict]) -> str:
    """Training loss, its running mean, and the held-out loss."""
    told = [(r["step"], r["loss"]) for r in steps]
    held = [(r["step"], r["validation"]) for r in steps if r.get("validation") is not None]
    series = [
        Series("a step", [s for s, _ in told], [v for _, v in told], style="dashed"),
        Series("running mean", [s for s, _ in told], smoothed([v for _, v in told])),
        Series("held-out", [s for s, _ in held], [v for _, v in held], style="points"),
    ]
    unit = "loss" if any("parts" in r for r in steps) else "nats per token"
    return svg("Loss", [s for s in series if s.x], "step", unit)


def schedule(steps: list[dict]) -> str:
    """The learning rate of every step."""
    return svg("Learning rate", [Series("lr", [r["step"] for r in steps], [r["lr"] for r in steps])], "step", "learning rate")


def smoothed(values: list[float]) -> list[float]:
    """The running mean, the first values weighted as many as there are."""
    means, total, weight = [], 0.0, 0.0
    for value in values:
        total, weight = SMOOTH * total + value, SMOOTH * weight + 1
        means.append(total / weight)
    return means
