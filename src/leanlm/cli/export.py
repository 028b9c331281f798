"""leanlm export MODEL OUT: the model in another program's format, read back and checked."""

import json
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import tyro

from leanlm.errors import UsageError


@dataclass(frozen=True)
class Command:
    """Write MODEL for another program and prove it: the file is read back, every weight compared, and where the program is
    installed (llama-cpp-python, transformers) its logits too. The result is printed and stored as OUT.check.json.

    Weights are never rounded unless asked: where a format cannot hold them exactly, that is said and nothing is written."""

    model: tyro.conf.Positional[str]
    """A folder, a name from `leanlm list`, or a hub id."""
    out: tyro.conf.Positional[Path]
    """The file (gguf) or folder to write; nothing may be there yet."""
    to: Literal["gguf", "hf", "gptq", "compressed-tensors"]
    """gguf: one file for llama.cpp. hf: a float folder for transformers. gptq, compressed-tensors: a folder with packed
    weights, for vLLM among others."""
    type: Literal["auto", "F32", "F16", "BF16", "Q8_0", "Q6_K", "Q4_0", "TQ1_0", "TQ2_0", "Q2_0"] = "auto"
    """GGUF type of the matrices inside the layers (floats: of embedding and head too). auto: for every packed matrix the
    smallest of TQ2_0, Q4_0, Q6_K and Q8_0 that holds it exactly, for floats their own."""
    lossy: bool = False
    """GGUF: round to the nearest where the type cannot hold the weights."""
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """Of the floats of a folder; auto: as they are, wide enough for the values of packed weights."""
    unchecked: bool = False
    """Do not read back and compare."""
    tokenizer: str | None = None
    """Folder, file or hub id of a tokenizer, where the model's own is missing."""
    revision: str | None = None
    """Branch, tag or commit of the repository."""
    offline: bool = False
    """Use only what is already on disk."""
    json: bool = False
    """Print the report of the check as JSON."""


def run(command: Command) -> None:
    check(command)
    from leanlm.api import load
    from leanlm.export import check as checks

    model = load(command.model, tokenizer=command.tokenizer, revision=command.revision, offline=command.offline)
    if command.to == "gguf":
        make, tell, prove = gguf_file, gguf_lines, checks.gguf_file
    else:
        make, tell, prove = folder, folder_lines, checks.hf_folder
    written = make(command, model)
    if not command.json:
        print(*tell(written), sep="\n", flush=True)
    if command.unchecked:
        return
    report = prove(written, model.module, model.tokenizer)
    print(json.dumps(report, indent=2, ensure_ascii=False) if command.json else "\n".join(report_lines(report)))
    checks.store(report)


def check(command: Command) -> None:
    """Raises UsageError for flags that cannot be meant, before anything is loaded."""
    for path in (command.out, command.out.with_name(f"{command.out.name}.check.json")):
        if path.exists():
            raise UsageError(f"{path}: is there already; nothing is overwritten, give a new name")
    if command.to != "gguf" and (command.type != "auto" or command.lossy):
        raise UsageError(f"--type and --lossy are for --to gguf; --to {command.to} keeps the weights as they are")
    if command.json and command.unchecked:
        raise UsageError("--json prints the report of the check, and --unchecked makes none")
    if command.to == "gguf" and command.dtype != "auto":
        raise UsageError("--dtype is for folders; --to gguf takes --type F32, F16 or BF16")


def gguf_file(command: Command, model):
    from leanlm.export import gguf

    return gguf.export(command.out, model.module, model.tokenizer, command.type, command.lossy)


def folder(command: Command, model):
    from leanlm import families
    from leanlm.api import as_dtype
    from leanlm.export import hf

    container, own = (None, None) if command.to == "hf" else (command.to, families.get(model.family))
    return hf.export(command.out, model.module, model.tokenizer, model.raw, as_dtype(command.dtype), container, own)


def gguf_lines(written) -> list[str]:
    """What a GGUF file holds."""
    counts = ", ".join(f"{n} {type}" for type, n in Counter(written.types.values()).most_common())
    rounded = f"; {len(written.rounded)} of them rounded to the nearest" if written.rounded else ""
    said = f"{written.path}: {written.architecture}, tensors: {counts}{rounded}"
    return [said, *(f"note: {note}" for note in written.notes)]


def folder_lines(written) -> list[str]:
    held = f", packed weights in {written.container}" if written.container else ""
    return [f"{written.path}: {written.family} in {str(written.dtype).removeprefix('torch.')}{held}"]


def report_lines(report: dict) -> list[str]:
    """What the check found, as people read it."""
    tensors = report["tensors"]
    same = "all as in the model" if not tensors["largest_difference"] else f"up to {tensors['largest_difference']:.2e} apart"
    programs = [(program, report[program]) for program in ("llama.cpp", "transformers") if program in report]
    return [f"read back: {tensors['count']} tensors, {same}", *(f"{program}: {judged(found)}" for program, found in programs)]


def judged(found: dict) -> str:
    if "skipped" in found:
        return f"not asked ({found['skipped']})"
    if "argmax_agreement" not in found:
        return f"{found['version']} failed"
    alike = found.get("with_inputs_rounded_as_it_does", found)
    rounded = f" ({alike['argmax_agreement']:.1%} with our inputs rounded as it rounds them)" if alike is not found else ""
    return (
        f"{found['version']}, {found['tokens']} tokens: logits up to {found['largest_logit_difference']:.2e} apart, "
        f"the likeliest token the same for {found['argmax_agreement']:.1%}{rounded}"
    )
