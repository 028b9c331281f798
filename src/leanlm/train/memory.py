"""What to do when memory runs out in the middle of a step: the knob to turn, not the allocator's report."""

from leanlm.errors import LeanLMError
from leanlm.model.config import ModelConfig
from leanlm.train import hardware, plan
from leanlm.train.processes import Processes
from leanlm.train.recipe import Recipe

LESS = 0.75  # of what the plan had counted on; where it did not fit, the plan was wrong by some of it


def advice(recipe: Recipe, processes: Processes, teacher: ModelConfig | None = None) -> LeanLMError:
    """The error to raise instead: what was tried, with a teacher or without, and the first setting that takes clearly less."""
    cluster = plan.Cluster(hardware.here(), processes.size, processes.per_machine)
    tried = plan.make(recipe, cluster, teacher=teacher)
    room = min(plan.ROOM * cluster.device.memory, LESS * tried.footprint.total)
    return LeanLMError(
        f"out of memory with {tried.windows} windows of {recipe.data.length} tokens a pass; checkpoints are as they were: "
        f"{plan.remedy(tried, room)}"
    )
