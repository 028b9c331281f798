"""What a run learns: what it begins with, what it reads, and what its steps minimise."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from leanlm.train import origin as origins
from leanlm.train import start
from leanlm.train.loss import Objective
from leanlm.train.origin import Origin
from leanlm.train.processes import Processes
from leanlm.train.recipe import Recipe
from leanlm.train.start import Material, Note


def next_token(origin: Origin, material: Material, recipe: Recipe, processes: Processes) -> Objective:
    """Cross-entropy and z-loss."""
    return Objective(origin.module, recipe.optimiser.z_loss)


@dataclass(frozen=True)
class Task:
    """The parts of a run that are no machinery. `origin` and `material` are called in the run's folder, by the leading process
    first; `objective` in all processes together, and before the weights of a fresh model are there."""

    origin: Callable[[Recipe, Path], Origin] = origins.of
    material: Callable[[Recipe, Path, Origin, Note], Material] = start.material
    objective: Callable[[Origin, Material, Recipe, Processes], Objective] = next_token


LANGUAGE = Task()
