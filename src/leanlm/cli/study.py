"""leanlm study spectra|avengers|distillation: the comparisons that take hours, resumable."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import tyro

from leanlm.cli import sizes
from leanlm.errors import UsageError


@dataclass(frozen=True)
class Command:
    """Train twins and compare them; the same command goes on where it was interrupted.

    spectra: FloatLM and TriLM at three sizes, the loss gap against size, and TriLM's schedule taken apart. avengers: Llama-3,
    a Mamba-2 hybrid and telescoping Llamas with 64 and 128 slots. distillation: a Llamba made of a Llama in three stages, in
    the last one alone, and trained from scratch."""

    name: tyro.conf.Positional[Literal["spectra", "avengers", "distillation"]]
    """Which study."""
    budget: Literal["smoke", "evening", "night", "gpu"] = "night"
    """smoke: minutes, to see that it runs; evening, night: hours of two cores; gpu (spectra): 99M to 390M,
    on --data."""
    out: Path | None = None
    """The study's folder, by default runs/NAME: a run's folder each, results.json, and for spectra gap.svg, ablation.svg."""
    data: Path | None = None
    """Shards to learn from; by default the Python standard library (needed for gpu)."""
    held: Path | None = None
    """Shards to measure on."""
    json: bool = False
    """Print JSON."""


def run(command: Command) -> None:
    import importlib

    from leanlm.cli.progress import Line

    study = importlib.import_module(f"leanlm.study.{command.name}")
    if command.budget not in study.BUDGETS:
        raise UsageError(f"--budget {command.budget}: {command.name} has {', '.join(study.BUDGETS)}")
    out = command.out or Path("runs") / command.name
    found = study.study(study.BUDGETS[command.budget], out, command.data, command.held, Line())
    if command.json:
        print(json.dumps(found, indent=2))
    elif command.name == "spectra":
        show_spectra(found, out)
    elif command.name == "avengers":
        show_avengers(found)
    else:
        show_distillation(found)


def show_spectra(found: dict, out: Path) -> None:
    for row in found["sizes"]:
        print(f"{row['size']:>6}  float {shown(row['float'])}  ternary {shown(row['ternary'])}  gap {shown(row['gap'])}")
    for row in found["schedules"]:
        print(f"{row['schedule']:>25}  {shown(row)}")
    print(f"charts: {out / 'gap.svg'}, {out / 'ablation.svg'}")


def show_avengers(rows: list[dict]) -> None:
    for row in rows:
        about = f"{sizes.count(row['parameters']):>6} parameters, state {sizes.size(row['state_bytes'])}"
        print(f"{row['model']:>8}  {shown(row['bits_per_byte'])} bits/byte  {about}")


def show_distillation(found: dict) -> None:
    print(f"{'teacher':>12}  {found['teacher']:.3f} bits/byte")
    for row in found["arms"]:
        kept = f"{shown(row['kept'])} of the teacher's quality, {sizes.count(row['tokens'])} tokens"
        print(f"{row['arm']:>12}  {shown(row['bits_per_byte'])} bits/byte, {kept}")


def shown(mean: dict) -> str:
    """ "3.412 +- 0.021"."""
    return f"{mean['mean']:.3f}" + ("" if mean["error"] is None else f" +- {mean['error']:.3f}")
