"""leanlm study spectra: the comparisons that take hours, resumable."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import tyro


@dataclass(frozen=True)
class Command:
    """FloatLM and TriLM twins at three sizes: the loss gap against size, and TriLM's schedule taken apart. The same command
    goes on where it was interrupted."""

    name: tyro.conf.Positional[Literal["spectra"]]
    """Which study."""
    budget: Literal["smoke", "night", "gpu"] = "night"
    """smoke: minutes, to see that it runs; night: a night of two cores; gpu: twins of 99M to 390M, on --data."""
    out: Path = Path("runs/spectra")
    """The study's folder: a run's folder each, results.json, gap.svg, ablation.svg."""
    data: Path | None = None
    """Shards to learn from; by default the Python standard library (needed for gpu)."""
    held: Path | None = None
    """Shards to measure on."""
    json: bool = False
    """Print JSON."""


def run(command: Command) -> None:
    from leanlm.cli.progress import Line
    from leanlm.study import spectra

    found = spectra.study(spectra.BUDGETS[command.budget], command.out, command.data, command.held, Line())
    if command.json:
        print(json.dumps(found, indent=2))
        return
    for row in found["sizes"]:
        print(f"{row['size']:>6}  float {shown(row['float'])}  ternary {shown(row['ternary'])}  gap {shown(row['gap'])}")
    for row in found["schedules"]:
        print(f"{row['schedule']:>25}  {shown(row)}")
    print(f"charts: {command.out / 'gap.svg'}, {command.out / 'ablation.svg'}")


def shown(mean: dict) -> str:
    """ "3.412 +- 0.021"."""
    return f"{mean['mean']:.3f}" + ("" if mean["error"] is None else f" +- {mean['error']:.3f}")
