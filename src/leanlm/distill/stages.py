"""A recipe with a teacher as the runs that it is made of: each stage a recipe of its own, for the one loop."""

import dataclasses
from dataclasses import dataclass
from pathlib import Path

from leanlm import families
from leanlm.checkpoint import locate
from leanlm.checkpoint.folder import read_config
from leanlm.distill import student
from leanlm.errors import UsageError
from leanlm.model.config import ModelConfig
from leanlm.train import checkpoints
from leanlm.train import recipe as recipes
from leanlm.train.recipe import Recipe

COMPARED = ("matrices", "states", "logits")
SECTIONS = ("model", "data", "optimiser", "schedule", "compute", "keep", "distill")
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


def of(recipe: Recipe) -> list[Stage]:
    """The recipe's stages in their order. Raises UsageError naming what is wrong with one."""
    if recipe.distill is None:
        raise UsageError(f"{recipe.name}: has no [distill], so there is no teacher; leanlm train trains it")
    if not recipe.distill.stages:
        raise UsageError(f"{recipe.name}: [distill.stages] is empty; name stages ({', '.join(COMPARED)})")
    return [_stage(recipe, number, name) for number, name in enumerate(recipe.distill.stages, 1)]


def chosen(recipe: Recipe, names: tuple[str, ...]) -> Recipe:
    """The recipe with these stages alone, in its order; all where none are named. Raises UsageError for unknown ones."""
    if not names or recipe.distill is None:
        return recipe
    known = recipe.distill.stages
    if unknown := [name for name in names if name not in known]:
        raise UsageError(f"{recipe.name}: no stage {unknown[0]!r}; it has {', '.join(known)}")
    kept = {name: table for name, table in known.items() if name in names}
    return dataclasses.replace(recipe, distill=dataclasses.replace(recipe.distill, stages=kept))


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
    length = settings.get("schedule", {}).keys() & {"steps", "tokens"}
    if len(length) == 1:  # takes the place of the recipe's own, however that is given
        raw["schedule"][({"steps", "tokens"} - length).pop()] = 0
    raw |= {"name": f"{recipe.name}-{name}", "seed": ORDERS * recipe.seed + number}
    return Stage(number, name, recipes.of(raw, where))


def finished(stage: Stage, folder: Path) -> bool:
    """Whether the stage's run in `folder` is at its end."""
    done = checkpoints.complete(folder)
    return bool(done) and done[-1].name == f"step-{stage.recipe.steps:08}" and (folder / "model" / "config.json").is_file()


def taught_by(recipe: Recipe, teacher: str) -> Recipe:
    """The recipe with this teacher in every stage, and a student of its shape: the same one where it fits, else derived."""
    if recipe.distill is None:
        raise UsageError(f"{recipe.name}: has no [distill], so there is no teacher to replace")
    tables = {name: _without_teacher(table) for name, table in recipe.distill.stages.items()}
    recipe = dataclasses.replace(recipe, distill=dataclasses.replace(recipe.distill, teacher=teacher, stages=tables))
    config, family = config_of(teacher), families.get(recipe.model.family)
    ours = family.to_fresh_config(recipe.model.config, "model.config")
    try:
        student.replaced(config, ours)
        return recipe
    except UsageError:
        raw = family.from_config(student.derived(config, ours))
    model, data = recipe.model, recipe.data
    data = dataclasses.replace(data, vocab_size=config.vocab_size) if data.source else data
    return dataclasses.replace(recipe, model=dataclasses.replace(model, config=raw), data=data)


def config_of(teacher: str) -> ModelConfig:
    """A teacher's config, of which nothing else is read."""
    raw = read_config(locate.resolve(teacher))
    return families.find(raw).to_config(raw)


def _without_teacher(table):
    if not isinstance(table, dict) or not isinstance(table.get("distill"), dict):
        return table
    return table | {"distill": {key: value for key, value in table["distill"].items() if key != "teacher"}}
