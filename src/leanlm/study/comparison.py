"""What a bit buys: models in formats and with states of several precisions, each measured the same way, a row each."""

import dataclasses
import hashlib
import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from leanlm.api import Model, load
from leanlm.bench import speed
from leanlm.checkpoint import locate
from leanlm.checkpoint.aside import replacing
from leanlm.errors import CheckFailed, UsageError
from leanlm.evaluate import items, recall, suites, text
from leanlm.evaluate.items import Item
from leanlm.model import format
from leanlm.quantize import convert, ternary

TEXTS = (256, 1024, 4096, 16384, 65536)  # tokens after which the state's bytes are told
ROW = "row.json"
CONTEXT, PROMPT, NEW = 256, 256, 32  # tokens: before decoding, of prefill, decoded in a turn

Tell = Callable[[str], None]


@dataclass(frozen=True)
class Subject:
    """A model, the format its matrices are held in (None: as stored), and that of its recurrent states (None: float32)."""

    model: str
    format: str | None = None
    state: str | None = None

    @property
    def name(self) -> str:
        held = f"{self.model}@{self.format}" if self.format else self.model
        return f"{held}, state {self.state}" if self.state else held


@dataclass(frozen=True)
class Measures:
    """What is measured. `documents` are texts for bits per byte, `items` local tasks by name, `tasks` the harness's by name
    and shots; `recall` are kinds of probes over `distances` and `loads`; `turns` of speed, 0 for none."""

    documents: Sequence[str] = ()
    items: Mapping[str, Sequence[Item]] = dataclasses.field(default_factory=dict)
    tasks: tuple[tuple[str, int | None], ...] = ()
    limit: float | None = None
    recall: tuple[str, ...] = ()
    distances: tuple[int, ...] = (16, 64, 256, 1024)
    loads: tuple[int, ...] = (1, 4, 16)
    probes: int = 32
    turns: int = 3
    threads: int | None = None


def parse(spec: str) -> tuple[str, str | None]:
    """ "builtin@int4" -> ("builtin", "int4"); without a format, or with a path that has an @ in it, the format is None."""
    model, at, held = spec.rpartition("@")
    if at and model and not Path(spec).exists():
        format.parse(held)
        return model, held
    return spec, None


def compare(subjects: Sequence[Subject], measures: Measures, folder: Path, tell: Tell = lambda _: None) -> list[dict]:
    """A row for every subject. Rows lie in `folder` when done; a second call with the same measures reads them, and goes on
    with the others. `tell` is told what is being done. Raises UsageError for two subjects of one name."""
    if len({subject.name for subject in subjects}) < len(subjects):
        raise UsageError("the same model in the same format is named twice")
    identities, rows = [identity(subject, measures) for subject in subjects], []  # before hours are spent on the first
    for number, (subject, meant) in enumerate(zip(subjects, identities), 1):
        where = folder / place(subject)
        kept = where / ROW
        found = json.loads(kept.read_text(encoding="utf-8")) if kept.is_file() else {}
        if found.get("measures") != meant:
            prefix = f"{number} of {len(subjects)}, {subject.name}: "
            found = row(subject, measures, where, lambda doing, prefix=prefix: tell(prefix + doing)) | {"measures": meant}
            with replacing(where) as aside:
                aside(ROW).write_text(json.dumps(found, indent=2), encoding="utf-8")
        rows.append({key: value for key, value in found.items() if key != "measures"})
    return rows


def place(subject: Subject) -> str:
    """A folder's name for the subject's row, its own."""
    readable = re.sub(r"[^\w@-]+", "-", subject.name).strip("-")[-60:]
    return f"{readable}-{hashlib.sha256(subject.name.encode()).hexdigest()[:8]}"


def identity(subject: Subject, measures: Measures) -> str:
    """Of what is measured, and of the model's files by their sizes and times."""
    found = ((path.name, path.stat()) for path in locate.resolve(subject.model).iterdir())
    files = sorted((name, status.st_size, status.st_mtime_ns) for name, status in found)
    return hashlib.sha256(repr((measures, files)).encode()).hexdigest()


def row(subject: Subject, measures: Measures, folder: Path, tell: Tell) -> dict:
    """One subject, measured; what takes long is kept in `folder` as it comes."""
    tell("loading")
    model, rounded = held(subject)
    found = {
        **dataclasses.asdict(subject),
        "name": subject.name,
        "rounded": rounded,
        "parameters": model.n_parameters,
        "weight_bytes": sum(weight.nbytes for weight in model.module.weights().values()),
        "matrix_bits": matrix_bits(model),
        "state_bytes": state_bytes(model),
        "recurrent": recurrent(model),
        **quality(model, measures, folder, tell),
    }
    if measures.turns:
        tell("speed")
        del model  # the other process has its own
        found["speed"] = speeds(subject, rounded, measures)
    return found


def quality(model: Model, measures: Measures, folder: Path, tell: Tell) -> dict:
    """ "text", "items", "tasks" and "recall", those that are asked for."""

    def counting(what: str, total: int) -> Callable[[int], None]:
        return lambda done: tell(f"{what}, {done} of {total}")

    for kind in measures.recall:
        recall.check(model, kind, measures.distances, measures.loads, measures.probes)
    found: dict = {}
    if documents := measures.documents:
        stored = _store(folder, "text", measures)
        found["text"] = text.evaluate(model, documents, store=stored, progress=counting("documents", len(documents)))
    for name, asked in measures.items.items():
        stored = _store(folder, f"items-{name}", measures)
        found.setdefault("items", {})[name] = items.evaluate(model, asked, stored, counting(name, len(asked)))
    if measures.tasks:
        tell("tasks of the harness")
        found["tasks"] = harness_tasks(model, measures, folder)
    for kind in measures.recall:
        total = len(measures.distances) * len(measures.loads) * measures.probes
        asked = measures.distances, measures.loads, measures.probes
        points = recall.curve(model, kind, *asked, progress=counting(f"recall, {kind}", total))
        found.setdefault("recall", []).extend(dataclasses.asdict(point) for point in points)
    return found


def held(subject: Subject) -> tuple[Model, bool]:
    """The model in its format, and whether it was made ternary by rounding, because it was not."""
    model, rounded = load(subject.model), False
    if subject.format:
        try:
            convert.to_format(model.module, subject.format)
        except CheckFailed:
            ternary.round_matrices(model.module)
            rounded = True
    return model.keep_states(subject.state), rounded


def matrix_bits(model: Model) -> float:
    """Bits per weight of the matrices inside the layers, scales included."""
    inside = [matrix.weight for name, matrix in model.module.matrices().items() if name.startswith("layers")]
    return 8 * sum(weight.nbytes for weight in inside) / sum(weight.numel() for weight in inside)


def state_bytes(model: Model) -> dict[str, int]:
    """By tokens of text: what a state of exactly that room takes."""
    limits = [n for n in TEXTS if model.config.bounded or n <= (model.config.context_length or n)]
    return {str(n): model.module.new_state(1, n).nbytes for n in limits}


def recurrent(model: Model) -> bool:
    """Whether the precision of recurrent states is that of anything: attention alone has keys and values instead."""
    sizes = {model.module.new_state(1, 1, dtype, torch.float32, "meta").nbytes for dtype in (torch.float32, torch.int8)}
    return len(sizes) > 1


def harness_tasks(model: Model, measures: Measures, folder: Path) -> dict:
    """{task: {metric: {"value": v, "stderr": e}}} of the harness."""
    from leanlm.evaluate import tasks

    settings = tasks.Settings(limit=measures.limit, store=folder)
    found = tasks.evaluate(model, measures.tasks, settings, tasks.find([name for name, _ in measures.tasks]))
    return {name: metrics(suites.metrics(found, name)) for name in found["results"]}


def metrics(scores: Mapping[tuple[str, str], float]) -> dict[str, dict]:
    """Of {("acc", "none"): v, ("acc_stderr", "none"): e}: {"acc": {"value": v, "stderr": e}}."""
    return {
        metric if filter == "none" else f"{metric} ({filter})": {
            "value": value,
            "stderr": scores.get((f"{metric}_stderr", filter)),
        }
        for (metric, filter), value in scores.items()
        if not metric.endswith("_stderr")
    }


def speeds(subject: Subject, rounded: bool, measures: Measures) -> dict:
    """Median tokens per second of prefill and decode at batch 1, and decode's share of a plain read of memory in turn."""
    asked = speed.Subject(subject.model, format=subject.format, rounded=rounded)
    settings = speed.Settings(
        contexts=(CONTEXT,),
        prompt=PROMPT,
        new=NEW,
        repeats=measures.turns,
        threads=measures.threads,
        state_dtype=subject.state,
    )
    found = speed.measure(asked, settings)
    decode, prefill = found["decode"][0], found["prefill"][0]
    share = decode.get("share")
    return {
        "decode": decode["sides"]["leanlm"],
        "prefill": prefill["sides"]["leanlm"],
        "share_of_read": share and share["median"],
        "threads": found["threads"],
        "native": found["sides"]["leanlm"]["native"],
    }


def _store(folder: Path, name: str, measures: Measures) -> Path:
    """Named by what is asked too, so that other measures begin anew."""
    asked = hashlib.sha256(repr((measures.documents, measures.items)).encode()).hexdigest()
    return folder / f"{Path(name).name}-{asked[:8]}.jsonl"
