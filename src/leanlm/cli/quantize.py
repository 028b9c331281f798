"""leanlm quantize MODEL OUT: the same model with weights of a few bits."""

import json
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Literal

import tyro

from leanlm.errors import UsageError

BUILTIN = "builtin"  # the corpus and held-out files of the built-in model's recipe
REPORT = "quantization-report.json"


@dataclass(frozen=True)
class Command:
    """Write MODEL into the folder OUT with weights of a few bits.

    --scheme ternary packs a ternary model without loss, or refuses. --preset quantlm-3 to quantlm-8 are the Spectra suite's
    recipes: GPTQ on 512 samples of 2,048 tokens, groups of 128 weights at 3 and 4 bits, one scale per output at 6 and 8."""

    model: tyro.conf.Positional[str]
    """A folder, a name from `leanlm list`, or a hub id."""
    out: tyro.conf.Positional[Path]
    """The folder to write; it must not hold anything yet."""
    preset: Literal["quantlm-3", "quantlm-4", "quantlm-6", "quantlm-8"] | None = None
    """A recipe of the Spectra suite."""
    scheme: str | None = None
    """Format of the matrices inside the layers: ternary, or int2, int3, int4, int6, int8, with -g32, -g64, -g128 or -channel
    for groups of inputs and -asym for a zero point of their own. int4 is int4-g128, int8 is int8-channel."""
    embedding: str | None = None
    """Format of the embedding, and of a head tied to it, for example int8; left as it is by default."""
    head: str | None = None
    """Format of an untied head; left as it is by default."""
    override: Annotated[tyro.conf.UseAppendAction[tuple[str, ...]], tyro.conf.arg(metavar="PATTERN=FORMAT")] = ()
    """Another format for the matrices whose name fits, for example 'layers.0.*=int8' or '*.out_proj=float'; may be repeated."""
    method: Literal["gptq", "rtn"] = "gptq"
    """How integers are chosen: to give the outputs of the original on the calibration text (gptq), or the nearest (rtn)."""
    calibration: str = BUILTIN
    """Text to calibrate on: a file, a folder of *.txt files, or builtin (the Python library without the held-out files)."""
    samples: int = 512
    """Calibration samples."""
    length: int | None = None
    """Tokens of a calibration sample; 2048, or the model's context where that is less."""
    act_order: bool = False
    """Quantise the inputs that matter most first."""
    damping: float = 0.01
    """Share of the mean that GPTQ adds to the diagonal; raised by itself where it is not enough."""
    held_out: str | None = None
    """Text to measure bits per byte on before and after: a file, a folder, builtin (the default), or none."""
    container: Literal["compressed-tensors", "gptq", "leanlm"] | None = None
    """How packed weights are stored; the first of compressed-tensors, gptq and leanlm that holds them exactly. leanlm stores
    five ternary weights in a byte, the others four."""
    plan: bool = False
    """Only print which matrix would get which format."""
    tokenizer: str | None = None
    """Folder, file or hub id of a tokenizer, where the model's own is missing."""
    seed: int = 0
    """Of the choice of calibration samples."""
    revision: str | None = None
    """Branch, tag or commit of the repository."""
    offline: bool = False
    """Use only what is already on disk."""
    json: bool = False
    """Print the report as JSON."""


def run(command: Command) -> None:
    check(command)
    from leanlm.api import load
    from leanlm.quantize import job

    model = load(command.model, tokenizer=command.tokenizer, revision=command.revision, offline=command.offline)
    scheme = command.preset or command.scheme
    plan = job.plan(model, scheme, command.embedding, command.head, command.override, command.container)
    if command.plan:
        show_plan(plan, command.json)
        return
    settings = job.Settings(
        method=command.method,
        calibration=command.calibration,
        samples=command.samples,
        length=command.length,
        act_order=command.act_order,
        damping=command.damping,
        held_out=held_out(command, model),
        seed=command.seed,
        container=command.container,
    )
    try:
        report = job.run(model, plan, scheme, settings, progress)
    finally:
        progress("")
    report = save(command, model, report)
    if command.json:
        print(json.dumps(report.to_dict(), indent=2))
    else:
        show(report, command.out)


def held_out(command, model) -> str | None:
    """The held-out text to read; says so where there is none because nothing can read it."""
    if command.held_out == "none":
        return None
    if model.tokenizer is None:
        if command.held_out:
            raise UsageError("--held-out: this model has no tokenizer to read text with: give --tokenizer")
        print("note: without a tokenizer no held-out text is measured", file=sys.stderr)
        return None
    return command.held_out or BUILTIN


def save(command: Command, model, report):
    """Write the model and the report; returns the report with what the file says.

    Raises UsageError where the wanted container cannot hold what was made, after writing it in another: nothing is lost.
    """
    from leanlm.checkpoint.aside import replacing
    from leanlm.checkpoint.folder import SINGLE, read_config

    refused = None
    try:
        model.save(command.out, container=command.container)
    except UsageError as error:
        refused = error
        model.save(command.out)
    container = read_config(command.out).get("quantization_config", {}).get("quant_method", "none")
    report = replace(report, container=container, file_bytes=(command.out / SINGLE).stat().st_size)
    with replacing(command.out) as aside:
        aside(REPORT).write_text(json.dumps(report.to_dict(), indent=2) + "\n", encoding="utf-8")
    if refused:
        raise UsageError(f"{refused}; so that nothing is lost, {command.out} holds it as {container}")
    return report


def check(command: Command) -> None:
    """Raises UsageError for flags that cannot be meant, before anything is loaded."""
    if (command.preset is None) == (command.scheme is None):
        raise UsageError("give either --preset (quantlm-3, quantlm-4, quantlm-6, quantlm-8) or --scheme (ternary, int4 ...)")
    check_new(command.out)
    for name in ("samples", "length"):
        if (value := getattr(command, name)) is not None and value < 1:
            raise UsageError(f"--{name} {value}: must be at least 1")
    if not 0 <= command.damping < 1:
        raise UsageError(f"--damping {command.damping:g}: must be at least 0 and less than 1")


def check_new(out: Path) -> None:
    """Raises UsageError unless a folder can be written there."""
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UsageError(f"{out}: is there already; give a new folder, nothing is overwritten")


def progress(text: str) -> None:
    """What is being done, redrawn in place on a terminal."""
    if sys.stderr.isatty():
        print(f"\r\033[K{text}", end="" if text else "\r", file=sys.stderr, flush=True)
    elif text:
        print(text, file=sys.stderr, flush=True)


def show_plan(plan: dict, as_json: bool) -> None:
    chosen = {name: str(format) for name, format in plan.items()}
    if as_json:
        print(json.dumps(chosen, indent=2))
        return
    width = max(map(len, chosen), default=0) + 2
    print(*(f"{name:{width}}{format}" for name, format in chosen.items()), sep="\n")


def show(report, out: Path) -> None:
    from leanlm.cli import tables

    heading, *rows = report.lines()
    table = tables.figures(*heading)
    for row in rows:
        table.add_row(*row)
    tables.console().print(table)
    print(*report.summary(), f"written to {out}, with {REPORT}", sep="\n")
