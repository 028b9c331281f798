"""Results of the harness in a model card: the hub's `model-index`, in the YAML at the head of a README.md."""

from collections.abc import Iterator, Mapping
from pathlib import Path

from huggingface_hub import EvalResult, RepoCard
from huggingface_hub.repocard import REGEX_YAML_BLOCK
from huggingface_hub.repocard_data import eval_results_to_model_index, model_index_to_eval_results
from huggingface_hub.utils import yaml_dump

from leanlm.checkpoint import aside
from leanlm.errors import CheckpointError, NotFound, UsageError, first_line
from leanlm.evaluate import suites

INDEX = "model-index"
HARNESS = {"source_name": "lm-evaluation-harness", "source_url": "https://github.com/EleutherAI/lm-evaluation-harness"}


def write(results: Mapping, model_name: str, path: Path) -> None:
    """Put the harness's `results` into the card `path`, which is made, with the model's name, where there is none.

    Values are the harness's own (an accuracy of 0.5 is half), each with its standard error beside it, and replace those of
    the same task, number of examples, limit and metric. All else stays as it is written, the name in the card's index too. Of a
    group with results of its own, those of its tasks are left out. Raises UsageError where there are no results, and
    CheckpointError, with the card untouched, where its head cannot be understood.
    """
    measured = [block for task in _shown(results) for block in _blocks(results, task)]
    if not measured:
        raise UsageError("there are no results to write into a model card")
    text = _read(path) if path.exists() else f"# {model_name}\n"
    index = _index(text, path) or [{"name": model_name, "results": []}]
    entry = next((entry for entry in index if entry["name"] == model_name), index[0])
    for block in measured:
        _put(entry["results"], block)
    text = _with_index(text, index, path)
    with aside.replacing(path.parent) as partial, partial(path.name).open("w", encoding="utf-8", newline="") as file:
        file.write(text)


def _read(path: Path) -> str:
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            return file.read()
    except OSError as error:
        raise NotFound(f"{path}: cannot read this model card ({error.strerror})") from None
    except UnicodeDecodeError:
        raise CheckpointError(f"{path}: this model card is no UTF-8 text") from None


def _index(text: str, path: Path) -> list[dict]:
    """The card's index, [] where it has none."""
    if not REGEX_YAML_BLOCK.search(text):
        if text.lstrip().startswith("---"):
            raise CheckpointError(f"{path}: its head (YAML) begins with --- and has no end; close it with a line of ---")
        return []
    try:
        index = RepoCard(text).data.get(INDEX) or []
        if index:
            model_index_to_eval_results(index)
    except Exception as error:  # yaml's own errors, and whatever comes of looking for entries in what is none
        raise CheckpointError(f"{path}: its head (YAML) cannot be understood ({first_line(error)}); mend it first") from None
    return index


def _shown(results: Mapping) -> Iterator[str]:
    """Names of tasks and groups, without the tasks of groups that have results."""
    groups = results.get("group_subtasks", {})
    inside = {
        name for group, names in groups.items() if suites.metrics(results, group) for name in names if not groups.get(name)
    }
    yield from (name for name in results.get("results", {}) if name not in inside)


def _blocks(results: Mapping, task: str) -> list[dict]:
    """A task's results as the index has them: one block, or none."""
    config = results.get("configs", {}).get(task, {})
    given = {"num_few_shot": suites.shots(results, task), "limit": results.get("config", {}).get("limit")}
    found = []
    for (metric, filter), value in suites.metrics(results, task).items():
        found.append(
            EvalResult(
                task_type="text-generation",
                dataset_type=config.get("dataset_path") or task,
                dataset_name=task,
                dataset_config=config.get("dataset_name"),
                dataset_split=config.get("test_split") or config.get("validation_split"),
                dataset_args={name: value for name, value in given.items() if value is not None} or None,
                metric_type=metric,
                metric_name=metric if filter == "none" else f"{metric}, {filter}",
                metric_value=value,
                **HARNESS,
            )
        )
    return eval_results_to_model_index(task, found)[0]["results"]


def _put(blocks: list[dict], new: dict) -> None:
    """Into the block of the same task and data, in place of the same metrics; otherwise behind the others."""
    for block in blocks:
        if (block["task"]["type"], block["dataset"]) == (new["task"]["type"], new["dataset"]):
            replaced = {_measure(metric) for metric in new["metrics"]}
            kept = [metric for metric in block["metrics"] if _measure(metric) not in replaced]
            block.update(new, task=block["task"], metrics=[*kept, *new["metrics"]])
            return
    blocks.append(new)


def _measure(metric: dict) -> tuple[str, str]:
    return metric["type"], metric.get("name", metric["type"])


def _with_index(text: str, index: list[dict], path: Path) -> str:
    """The card with this index; the lines of its old one are all that changes."""
    end = "\r\n" if "\r\n" in text else "\n"
    dumped = yaml_dump({INDEX: index}, sort_keys=False, line_break=end)
    head = REGEX_YAML_BLOCK.search(text)
    if not head:
        return f"---{end}{dumped}---{end}{text}"
    before, behind = _around_index(head[2])
    if before and not before.endswith(("\n", "\r")):
        before += end
    new = f"{head[1]}{before}{dumped if behind else dumped.rstrip()}{behind}{head[3]}{text[head.end() :]}"
    others = {key: value for key, value in _head(text).items() if key != INDEX}
    if _head(f"---\n{before}{behind}\n---\n") != others or _head(new) != {**others, INDEX: index}:
        raise CheckpointError(f"{path}: its head (YAML) is not written line by line; begin a line with each of its keys")
    return new


def _head(text: str) -> dict | None:
    """What a card's head says, None where it cannot be understood."""
    try:
        return RepoCard(text).data.to_dict()
    except Exception:  # yaml's own errors
        return None


def _around_index(yaml: str) -> tuple[str, str]:
    """The lines before a top-level index and those behind it, all and none where there is no index."""
    lines = yaml.splitlines(keepends=True)
    begin = next((n for n, line in enumerate(lines) if line.startswith(f"{INDEX}:")), len(lines))
    behind = (n for n in range(begin + 1, len(lines)) if not lines[n].startswith((" ", "\t", "-", "\r", "\n")))
    end = next(behind, len(lines))
    while end > begin and not lines[end - 1].strip():
        end -= 1
    return "".join(lines[:begin]), "".join(lines[end:])
