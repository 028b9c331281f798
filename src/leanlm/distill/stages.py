"""A recipe with a teacher as the runs that it is made of: each stage a recipe of its own, for the one loop."""

import dataclasses
from dataclasses import dataclass
from pathlib import Path

from leanlm import families
from leanlm.distill import student
from leanlm.distill.teacher import config_of
from leanlm.errors import UsageError
from leanlm.model.config import ModelConfig
from leanlm.train import checkpoints
from leanlm.train import recipe as recipes
from leanlm.train.recipe import Recipe

COMPARED = ("matrices", "states", "logits")
SECTIONS = ("data", "optimiser", "schedule", "compute", "keep", "distill")  # the student is one model in all of them
CORPUS = ("held_out", "suffix", "vocab_size")  # how the text that all stages read is cut, once
ORDERS = 1000  # stages of one seed read the text in different orders, and none in that of a near seed's


@dataclass(frozen=True)
class Stage:
    """Number `number` of a distillation, from 1 on, by its name in the recipe. `recipe.distill.compare` is set."""

    number: int
    name: str
    recipe: Recipe

    @property
    def folder(self) -> str:
        """Of its run, in the distillation's."""
        return f"{self.number}-{self.name}"

    @property
    def tokens(self) -> int:
        return self.recipe.steps * self.recipe.schedule.batch * self.recipe.data.length


def of(recipe: Recipe, only: tuple[str, ...] = ()) -> list[Stage]:
    """The recipe's stages in their order. Raises UsageError naming what is wrong with one, or unknown in `only`."""
    if recipe.distill is None:
        raise UsageError(f"{recipe.name}: has no [distill], so there is no teacher; leanlm train trains it")
    if not recipe.distill.stages:
        raise UsageError(f"{recipe.name}: [distill.stages] is empty; name stages ({', '.join(COMPARED)})")
    if recipe.model.from_:
        raise UsageError(f"{recipe.name}: the student is made of the teacher; give [model] family and config instead of from")
    if unknown := [name for name in only if name not in recipe.distill.stages]:
        raise UsageError(f"{recipe.name}: no stage {unknown[0]!r}; it has {', '.join(recipe.distill.stages)}")
    return [_stage(recipe, number, name) for number, name in enumerate(recipe.distill.stages, 1)]


def _stage(recipe: Recipe, number: int, name: str) -> Stage:
    where = f"{recipe.name}: distill.stages.{name}"
    table = recipe.distill.stages[name]
    if not recipes.NAME.fullmatch(name) or not isinstance(table, dict):
        raise UsageError(f"{where}: a stage is a table of settings, with a name fit for a folder")
    settings = dict(table)
    compare = settings.pop("compare", name)
    if compare not in COMPARED:
        raise UsageError(f"{where}: compare = {compare!r} is none of {', '.join(COMPARED)}")
    raw = dataclasses.asdict(recipe)
    raw["distill"] |= {"stages": {}, "compare": compare}
    for section, values in settings.items():
        if section not in SECTIONS or not isinstance(values, dict):
            raise UsageError(f"{where}.{section}: not a section of settings ({', '.join(SECTIONS)}, or compare)")
        raw[section] |= values
    if misplaced := settings.get("distill", {}).keys() & {"compare", "stages"}:
        raise UsageError(f"{where}.distill.{min(misplaced)}: belongs beside distill, not into it")
    length = settings.get("schedule", {}).keys() & {"steps", "tokens"}
    if len(length) == 1:  # takes the place of the recipe's own, however that is given
        raw["schedule"][({"steps", "tokens"} - length).pop()] = 0
    raw |= {"name": f"{recipe.name}-{name}", "seed": ORDERS * recipe.seed + number}
    made = recipes.of(raw, where)
    _check(made, recipe, where)
    return Stage(number, name, made)


def _check(stage: Recipe, recipe: Recipe, where: str) -> None:
    """Raises UsageError for settings that would do nothing."""
    if stage.optimiser.z_loss:
        raise UsageError(f"{where}: optimiser.z_loss belongs to training on text; the stages' losses have none")
    if stage.data.source and stage.data.source == recipe.data.source:
        for name in CORPUS:
            if getattr(stage.data, name) != getattr(recipe.data, name):
                raise UsageError(f"{where}: data.{name} is cut once for all stages; set it in the recipe's own [data]")


def check(stage: Stage, teacher: ModelConfig) -> None:
    """Raises UsageError where the student cannot begin with this teacher, or the stage not compare the two."""
    recipe, name = stage.recipe, stage.recipe.distill.teacher
    ours = families.get(recipe.model.family).to_fresh_config(recipe.model.config, "model.config")
    compare, top_k = recipe.distill.compare, recipe.distill.top_k
    if stage.number == 1 or compare != "logits":
        changed = student.replaced(teacher, ours)
        if compare == "matrices":
            student.check_matrices(ours, changed)
        if stage.number == 1 and recipe.distill.init == "attention":
            student.check_projections(teacher, ours, changed)
    if compare == "logits" and teacher.vocab_size != ours.vocab_size:
        raise UsageError(
            f"{name}: has {teacher.vocab_size} tokens, the student {ours.vocab_size}; logits are compared token by token"
        )
    if compare == "logits" and top_k >= teacher.vocab_size:
        raise UsageError(f"distill.top_k: {top_k} of the teacher's {teacher.vocab_size} tokens; keep fewer")


def finished(stage: Stage, folder: Path) -> bool:
    """Whether the stage's run in `folder` is at its end."""
    done = checkpoints.complete(folder)
    return bool(done) and done[-1].name == f"step-{stage.recipe.steps:08}" and (folder / "model" / "config.json").is_file()


def taught_by(recipe: Recipe, teacher: str, folder: Path | None = None) -> Recipe:
    """The recipe with this teacher in every stage, and a student of its shape: the same one where it fits, else derived.
    `folder` is the distillation's, which knows a teacher that is gone."""
    if recipe.distill is None:
        raise UsageError(f"{recipe.name}: has no [distill], so there is no teacher to replace")
    tables = {name: _without_teacher(table) for name, table in recipe.distill.stages.items()}
    recipe = dataclasses.replace(recipe, distill=dataclasses.replace(recipe.distill, teacher=teacher, stages=tables))
    config, family = config_of(teacher, folder), families.get(recipe.model.family)
    ours = family.to_fresh_config(recipe.model.config, "model.config")
    try:
        student.replaced(config, ours)
        return recipe
    except UsageError:
        raw = family.from_config(student.derived(config, ours))
    model, data = recipe.model, recipe.data
    data = dataclasses.replace(data, vocab_size=config.vocab_size) if data.source else data
    return dataclasses.replace(recipe, model=dataclasses.replace(model, config=raw), data=data)


def _without_teacher(table):
    if not isinstance(table, dict) or not isinstance(table.get("distill"), dict):
        return table
    return table | {"distill": {key: value for key, value in table["distill"].items() if key != "teacher"}}
