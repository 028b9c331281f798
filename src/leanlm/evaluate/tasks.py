"""Tasks of the lm-evaluation-harness, asked of a model of leanlm."""

import difflib
import logging
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from leanlm.api import Model
from leanlm.errors import UsageError, first_line
from leanlm.evaluate.harness import HarnessModel
from leanlm.evaluate.store import fingerprint

Task = tuple[str, int | None]  # a task's or a group's name, its examples before the question (None: as the task has them)


@dataclass(frozen=True)
class Settings:
    """How tasks are asked. `batch_size` is a number of texts, "auto" or "auto:N"; `limit` so many questions of each task, or
    below 1 that part of them; `cache_requests` "true", "refresh" or "delete"; `store` a folder in which every answer is kept as
    it comes, so that the same evaluation goes on behind an interrupt."""

    batch_size: int | str = "auto"
    limit: float | None = None
    cache_requests: str | None = None
    store: Path | None = None


def evaluate(model: Model, tasks: Sequence[Task], settings: Settings, manager) -> dict:
    """The harness's own results: "results" by task, "n-shot", "versions", "n-samples", "configs". `manager` is `find`'s.

    Raises UsageError for a task that cannot be built, or is asked twice.
    """
    from lm_eval import evaluator

    if twice := next((name for name, times in Counter(name for name, _ in tasks).items() if times > 1), None):
        raise UsageError(f"task {twice!r} is asked with several numbers of examples; evaluate them one by one")
    asked = HarnessModel(model, batch_size=settings.batch_size)
    caching = {"cache_requests": settings.cache_requests in ("true", "refresh")}
    caching |= {"rewrite_requests_cache": settings.cache_requests == "refresh"}
    caching |= {"delete_requests_cache": settings.cache_requests == "delete"}
    if settings.store:
        caching["use_cache"] = str(settings.store / f"answers-{fingerprint(model)[:12]}")
    found: dict = {}
    for shots in dict.fromkeys(shots for _, shots in tasks):
        chosen = [one for name, others in tasks if others == shots for one in built(manager, name)]
        limit = settings.limit if settings.limit is None or settings.limit < 1 else int(settings.limit)
        given = {"num_fewshot": shots, "limit": limit, "task_manager": manager, "log_samples": False, **caching}
        with _without_git(evaluator):
            part = evaluator.simple_evaluate(asked, tasks=chosen, batch_size=settings.batch_size, **given)
        for key, value in part.items():
            found[key] = found.get(key, {}) | value if isinstance(value, dict) else value
    return found


@contextmanager
def _without_git(evaluator) -> Iterator[None]:
    """The harness asks git for the commit it stands in, which complains outside of a repository; its own reader of .git does
    not."""
    from lm_eval.loggers.utils import get_commit_from_path

    asking = evaluator.get_git_commit_hash
    evaluator.get_git_commit_hash = lambda: get_commit_from_path(Path.cwd())
    try:
        yield
    finally:
        evaluator.get_git_commit_hash = asking


def built(manager, name: str) -> list:
    """The task, the group, or the tasks of a tag, with their data. Raises UsageError where that fails, offline for example."""
    try:
        loaded = manager.load(name)
    except Exception as error:
        raise UsageError(f"task {name!r} cannot be built: {first_line(error)}") from error
    return [loaded["groups"][name]] if name in loaded["groups"] else list(loaded["tasks"].values())


@cache
def index(include_path: Path | None):
    """The harness's `TaskManager`, which reads thousands of files."""
    from lm_eval.tasks import TaskManager

    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    return TaskManager(include_path=str(include_path) if include_path else None)


def find(names: Sequence[str], include_path: Path | None = None):
    """The harness's `TaskManager` with these tasks. Raises UsageError for one that it does not know, and for none."""
    if not names:
        raise UsageError("--tasks names no task")
    if include_path:
        check_files(include_path)
    manager = index(include_path)
    for name in names:
        if name not in manager.task_index:
            near = difflib.get_close_matches(name, manager.all_tasks, 1)
            hint = f"did you mean {near[0]}?" if near else "leanlm lm-eval ls tasks lists them"
            raise UsageError(f"task {name!r} is unknown to the harness; {hint}")
    return manager


def check_files(folder: Path) -> None:
    """Raises UsageError naming a task file that is no YAML: the harness would pass it over."""
    import yaml

    if not folder.is_dir():
        raise UsageError(f"{folder}: no such folder of tasks")
    for path in sorted(folder.rglob("*.yaml")):
        try:
            yaml.compose(path.read_text(encoding="utf-8"))
        except (yaml.YAMLError, UnicodeDecodeError) as error:
            raise UsageError(f"{path}: is no task file ({first_line(error)})") from None
