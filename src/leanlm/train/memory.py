"""What to do when memory runs out in the middle of a step: the knob to turn, not the allocator's report."""

import torch

from leanlm.errors import LeanLMError
from leanlm.train import hardware, plan
from leanlm.train.processes import Processes
from leanlm.train.recipe import Recipe

SAYINGS = ("not enough memory", "can't allocate memory", "out of memory")  # of torch's allocators, which raise RuntimeError
LESS = 0.75  # of what the plan had counted on; where it did not fit, the plan was wrong by some of it


def ran_out(error: BaseException) -> bool:
    """Whether this is a lack of memory."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    return isinstance(error, RuntimeError) and any(saying in str(error).lower() for saying in SAYINGS)


def advice(recipe: Recipe, processes: Processes) -> LeanLMError:
    """The error to raise instead: what was tried, and the first setting that takes clearly less."""
    cluster = plan.Cluster(hardware.here(), processes.size, processes.per_machine)
    tried = plan.make(recipe, cluster)
    room = min(plan.ROOM * cluster.device.memory, LESS * tried.footprint.total)
    return LeanLMError(
        f"out of memory with {tried.windows} windows of {recipe.data.length} tokens a pass; checkpoints are as they were: "
        f"{plan.remedy(tried, room)}"
    )
