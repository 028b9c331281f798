"""What became of a distillation: losses by stage and layer, teacher against student on held-out text, tokens, memory."""

import json
from pathlib import Path
from statistics import fmean

import torch

from leanlm.checkpoint import locate
from leanlm.checkpoint.aside import replacing
from leanlm.checkpoint.folder import read_json
from leanlm.checkpoint.load import load_module
from leanlm.data.shards import Shards
from leanlm.distill import student
from leanlm.distill.stages import Stage
from leanlm.errors import NotFound
from leanlm.evaluate import loss
from leanlm.model import cost
from leanlm.model.config import ModelConfig
from leanlm.train import plots
from leanlm.train.recipe import Data

REPORT = "report.json"
LAST = 0.1  # share of a stage's steps that its last loss is the mean of


def read(folder: Path) -> dict:
    return read_json(folder / REPORT)


def write(planned: list[Stage], folder: Path, data: Data, device: torch.device) -> dict:
    """Measure on the held-out text of `data`, write report.json and return it. Of a teacher that is not there any more what was
    measured before is kept."""
    first = planned[0].recipe
    name = first.distill.teacher
    found = read(folder) if (folder / REPORT).is_file() else {"teacher": None, "layers": None, "memory": None}
    found["name"] = first.name.removesuffix(f"-{planned[0].name}")
    found["tokens"] = sum(stage.tokens for stage in planned)
    found["student"], config = _measured(folder / "model", data, device)
    try:
        teacher, theirs = _measured(locate.resolve(name), data, device)
        found["teacher"] = {"name": name, **teacher}
        found |= {"layers": student.replaced(theirs, config), "memory": memory(theirs, config, data.length)}
    except NotFound:
        pass
    if found["teacher"] and "loss" in found["student"]:
        found["kept"] = found["teacher"]["loss"] / found["student"]["loss"]
    found["stages"] = [told(stage, folder / stage.folder) for stage in planned]
    with replacing(folder) as aside:
        aside(REPORT).write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
    return found


def _measured(checkpoint: Path, data: Data, device: torch.device) -> tuple[dict, ModelConfig]:
    """Parameters, and the loss on held-out text in windows of the trained length; and the config."""
    module = load_module(checkpoint, device=device).module
    found = {"parameters": cost.parameters(module.config)}
    if data.held:
        held = loss.in_windows(module, Shards(data.held), data.length)
        found |= {"loss": held.per_token, "bits_per_byte": held.bits_per_byte}
    return found, module.config


def memory(teacher: ModelConfig, made: ModelConfig, length: int) -> dict:
    """Bytes of one text's past in 16-bit models: at `length` tokens, and of every further token."""
    sides = {}
    for name, config in (("teacher", teacher), ("student", made)):
        at, twice = (cost.state_bytes(config, capacity=n) for n in (length, 2 * length))
        sides[name] = {"bytes": at, "a_token": (twice - at) / length}
    return {"length": length, **sides}


def told(stage: Stage, folder: Path) -> dict:
    """A stage; and, where its log is still there, its loss in the first step and the mean of its last ones, in all and by
    layer."""
    found = {
        "name": stage.name,
        "compare": stage.recipe.distill.compare,
        "teacher": stage.recipe.distill.teacher,
        "tokens": stage.tokens,
        "steps": stage.recipe.steps,
    }
    if not (ordered := plots.records(folder)):
        return found
    end = ordered[-max(1, round(LAST * len(ordered))) :]
    found["loss"] = [ordered[0]["loss"], fmean([record["loss"] for record in end])]
    found["memory"] = max(record.get("memory") or 0 for record in ordered)
    if "parts" in ordered[0]:
        last = [fmean(column) for column in zip(*(record["parts"] for record in end))]
        found["layers"] = [list(pair) for pair in zip(ordered[0]["parts"], last)]
    validated = [record["bits_per_byte"] for record in ordered if record.get("bits_per_byte") is not None]
    return found | ({"bits_per_byte": validated[-1]} if validated else {})
