"""The published tables: real tasks of the harness, values as in their sources (transcribed here a second time), agreement."""

import hashlib
import math
from functools import cache
from pathlib import Path

import pytest

from leanlm.errors import UsageError
from leanlm.evaluate import suites
from leanlm.families import catalog

RENE = """
| Model                                          | Params (B) | Train Tokens | COPA | HellaSwag | MMLU (5-shot) | PIQA | ARC-e | ARC-c | WinoGrande | OpenBookQA | Average |
| allenai/OLMo-1B-hf                             | 1.2        | 3.0          | 82.0 | 62.9      | 26.2          | 75.1 | 57.4  | 31.1  | 60.0       | 36.2       | 53.9    |
| apple/OpenELM-1_1B                             | 1.1        | 1.5          | 81.0 | 64.8      | 27.1          | 75.6 | 55.4  | 32.3  | 61.9       | 36.2       | 54.3    |
| state-spaces/mamba2-1.3b                       | 1.3        | 0.3          | 82.0 | 60.0      | 25.8          | 73.7 | 64.2  | 33.3  | 61.0       | 37.8       | 54.7    |
| microsoft/phi-1_5                              | 1.4        | 0.15         | 79.0 | 62.6      | 42.5          | 75.5 | 73.2  | 48.0  | 72.8       | 48.0       | 62.7    |
| Qwen/Qwen2-1.5B                                | 1.5        | 7.0          | 80.0 | 65.4      | 56.0          | 75.5 | 60.4  | 35.0  | 65.8       | 36.4       | 59.3    |
| RWKV/rwkv-6-world-1b6                          | 1.6        | 1.1          | 84.0 | 58.3      | 25.9          | 73.5 | 56.7  | 34.1  | 60.0       | 37.4       | 53.7    |
| stabilityai/stablelm-2-1_6b                    | 1.6        | 4.0          | 86.0 | 69.0      | 38.1          | 76.7 | 68.1  | 38.9  | 63.6       | 38.8       | 59.9    |
| HuggingFaceTB/SmolLM-1.7B                      | 1.7        | 1.0          | 76.0 | 65.8      | 29.9          | 76.1 | 73.5  | 46.4  | 60.9       | 42.0       | 58.8    |
| h2oai/h2o-danube2-1.8b-base                    | 1.8        | 3.0          | 82.0 | 72.4      | 39.9          | 77.3 | 69.0  | 39.9  | 63.9       | 41.4       | 60.7    |
| google/recurrentgemma-2b                       | 2.7        | 2.0          | 62.0 | 61.8      | 32.3          | 68.8 | 46.4  | 29.9  | 57.1       | 29.0       | 48.4    |
| cognitivecomputations/TinyDolphin-2.8.1-1.1b   | 1.1        |              | 71.0 | 59.9      | 25.7          | 73.1 | 55.8  | 33.0  | 59.7       | 36.6       | 51.9    |
| cartesia-ai/Rene-v0.1-1.3b-pytorch (OUR MODEL) | 1.3        | 1.5          | 82.0 | 69.4      | 32.6          | 77.5 | 61.7  | 34.4  | 62.9       | 39.2       | 57.5    |
"""  # noqa: E501 (as the card prints it)

MAMBA = """
| Model         | HellaSwag | PIQA | Winogrande | ARC-E | ARC-C | MMLU (5-shot) |
| Mamba-1.4B    | 59.0      | 73.9 | 61.4       | 65.5  | 32.9  | 25.2          |
| Mamba-2.8B    | 71.0      | 78.1 | 65.9       | 68.2  | 41.7  | 26.2          |
| RWKV5-1.7T-7B | 73.0      | 78.6 | 72.9       | 75.8  | 45.6  | 34.9          |
| Llama2-7B     | 76.0      | 79.1 | 69.1       | 76.3  | 46.3  | 45.9          |
| Gemma-7B      | 80.7      | 81.9 | 73.7       | 81.1  | 53.2  | 62.9          |
| Mistral-7B    | 81.0      | 82.1 | 74.0       | 80.9  | 53.8  | 62.4          |
| Mamba-7B      | 77.9      | 81.0 | 71.8       | 77.5  | 46.7  | 33.3          |
"""

AVENGERS = {  # the first of a row of its chart to the last
    "Llama2 1.4B": "28.2 40.5 62.2 65.0 48.0 35.6 69.3 47.3 52.8 40.6 32.9",
    "Tele@64": "30.0 40.6 62.2 71.0 50.7 36.8 70.2 48.5 54.9 39.7 33.6",
    "Llama3 1.8B": "40.2 73.0 67.6 75.0 59.4 37.8 73.1 86.0 57.7 33.6 33.1",
    "Tele@128": "41.4 68.6 60.3 80.0 59.7 39.4 74.2 85.8 61.0 37.1 32.6",
}

THREE = ("ARC-C", "ARC-E", "PIQA", "WG", "HS", "OBQA", "Average")
LLAMBA = {  # what is quoted
    "Llama-3.1-8B-Instruct": {"ARC-C": "55.1", "WG": "73.9", "HS": "79.3", "MMLU": "68.0", "Average": "69.4"},
    "Llamba-8B": {"ARC-C": "54.6", "WG": "73.3", "HS": "77.6", "MMLU": "61.0", "Average": "68.8"},
    "Llama-3.2-3B-Instruct": dict(zip(THREE, ("45.6", "74.3", "75.8", "67.6", "70.4", "35.8", "61.9"))),
    "Llamba-3B": dict(zip(THREE, ("48.5", "79.0", "78.6", "70.4", "73.8", "42.8", "63.9"))),
    "Llama-3.2-1B-Instruct": {"Average": "55.3"},
    "Llamba-1B": {"Average": "53.2"},
}

# From the first column to the last, and the checksum of all 57 rows' values.
SPECTRA = """
FloatLM 99M: 23.8 19.9 39.1 45.1 58.2 31.6 29.1 62.8 63.2 50.2 44.3 85.0 26.5 62.9
    73.6 27.6 21.2 0.6 372.4 55.4 30.8 24.4 22.8 24.0 27.0 28.0 25.3
QuantLM 4-bit 190M: 25.2 19.9 26.5 26.8 40.9 26.0 25.7 49.3 51.7 51.0 36.5 72479077.3 0.00 25.6
    22.9 23.3 20.7 0.0 961.9 43.8 35.0 24.2 22.9 22.9 24.5 23.4 23.4
Binary 1.1B: 24.8 22.3 46.1 52.7 56.3 43.4 35.1 66.9 68.3 55.3 47.1 33.4 37.6 71.1
    81.2 28.4 23.2 2.2 351.6 58.3 26.4 23.2 21.0 24.2 21.7 24.4 23.0
QuantLM 3-bit 2.4B: 29.7 28.4 54.2 58.4 55.7 58.6 43.5 72.7 70.8 57.2 54.7 15.6 45.0 79.9
    86.7 28.6 21.4 10.9 360.2 59.9 25.8 21.5 25.5 27.1 32.3 36.4 29.9
TriLM 3.9B: 35.3 31.9 60.8 66.0 66.5 64.7 48.3 74.6 74.4 62.1 60.7 6.3 61.6 87.4
    90.8 27.6 22.7 21.3 362.4 65.4 25.9 24.1 28.3 29.5 35.4 39.6 32.8
"""
SPECTRA_SHA256 = "83eea26b7721d09ab1e4dfc5219b054191d674decc28c55a3cf11d7ecbca3063"


def table(text: str) -> list[dict[str, str]]:
    head, *rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in text.strip().splitlines()]
    return [dict(zip(head, row, strict=True)) for row in rows]


@pytest.mark.parametrize("name, printed", [("rene-card", RENE), ("mamba-7b-card", MAMBA)])
def test_the_cards_are_as_printed(name, printed):
    wanted = table(printed)
    rows = suites.suite(name).rows
    assert [{"Model": row.model, **row.details, **row.values} for row in rows] == wanted
    assert all(list(row.values) == [label for label in wanted[0] if label in row.values] for row in rows)


def test_values_read_off_the_avengers_charts():
    suite = suites.suite("avengers")
    assert {row.model: " ".join(row.values.values()) for row in suite.rows} == AVENGERS
    assert suite.provenance.kind == "read off a chart" and suite.provenance.reading == 0.1


def test_what_is_quoted_of_llamba():
    suite = suites.suite("llamba-card")
    assert {row.model: row.values for row in suite.rows} == LLAMBA
    assert suite.provenance.kind == "second-hand" and "UNVERIFIED" in suite.provenance.note


def test_spectras_tables():
    suite = suites.suite("spectra-0shot")
    rows = {row.model: " ".join(row.values.values()) for row in suite.rows}
    for line in SPECTRA.replace("\n    ", " ").strip().splitlines():
        model, _, values = line.partition(": ")
        assert rows[model] == values
    sizes = ["99M", "190M", "390M", "560M", "830M", "1.1B", "1.5B", "2.4B", "3.9B"]
    kinds = ["FloatLM", "QuantLM 8-bit", "QuantLM 6-bit", "QuantLM 4-bit", "QuantLM 3-bit", "TriLM"]
    assert {f"{kind} {size}" for kind in kinds for size in sizes} == {model for model in rows if "Binary" not in model}
    assert hashlib.sha256("\n".join(rows.values()).encode()).hexdigest() == SPECTRA_SHA256


def test_printed_averages_are_means_of_their_columns():
    """All of Rene's card and of Spectra's float, quantised and ternary models, within the rounding of both."""
    for name in ("rene-card", "spectra-0shot"):
        suite = suites.suite(name)
        for row in suite.rows:
            mean = math.fsum(float(row.values[label]) for label in suite.average.of) / len(suite.average.of)
            close = abs(mean - float(row.values[suite.average.label])) <= 0.1
            assert close == ("Binary" not in row.model), row.model


@pytest.mark.parametrize("name", suites.names())
def test_columns_rows_and_sources_fit(name):
    suite = suites.suite(name)
    columns = [task.label for task in suite.tasks] + ([suite.average.label] if suite.average else [])
    assert (
        len(columns) == len(set(columns))
        and sorted(columns) == sorted(suite.columns)
        and set(suite.average.of if suite.average else ()) <= set(columns)
    )
    shots: dict[str, int] = {}
    assert all(shots.setdefault(task.name, task.shots) == task.shots for task in suite.tasks), "results would overwrite others"
    for row in suite.rows:
        assert row.values.keys() <= set(columns) and all(suites.half_digit(value) < 0.1 for value in row.values.values())
        assert row.provenance.url.startswith("https://") and row.provenance.source
        assert not row.name or catalog.resolve(row.name).name == row.name
        assert suite.row(row.model) is row and (not row.name or suite.row(row.name) is row)


def test_the_five_suites():
    assert set(suites.names()) == {"rene-card", "mamba-7b-card", "llamba-card", "spectra-0shot", "avengers"}
    assert suites.suite("rene-card").row("cartesia-ai/Rene-v0.1-1.3b-pytorch").name == "rene"
    assert suites.suite("spectra-0shot").row("QuantLM-4bit-560M").values["TriviaQA"] == "2.1"
    assert suites.suite("rene-card").row("mamba-7b") is None
    with pytest.raises(UsageError, match=r"no suite 'spectra'; did you mean spectra-0shot\?"):
        suites.suite("spectra")
    with pytest.raises(UsageError, match="known: avengers, llamba-card"):
        suites.suite("q")


# Of the harness, where the tasks are: to index all of its thousands of files takes half a minute.
FOLDERS = """
    arc bigbench/multiple_choice crows_pairs hellaswag lambada logiqa mmlu/continuation mmlu/default openbookqa piqa sciq siqa
    super_glue triviaqa truthfulqa winogrande
"""


@cache
def harness():
    """The index of the harness's own tasks in FOLDERS."""
    tasks = pytest.importorskip("lm_eval.tasks", reason='the harness is not installed: pip install "leanlm[eval]"')
    own = Path(tasks.__file__).parent
    return tasks.TaskManager(include_path=[own / folder for folder in FOLDERS.split()], include_defaults=False)


@pytest.mark.parametrize("name", suites.names())
def test_the_harness_has_the_tasks_and_their_metrics(name):
    known = set(harness().all_tasks)
    for task in suites.suite(name).tasks:
        assert task.name in known
        metrics, filters = measured(task)
        assert task.metric in metrics and task.filter in filters, f"{task.label}: {metrics}, {filters}"


def measured(task) -> tuple[set[str], set[str]]:
    """The metrics and filters that the harness's own file of a task or group names."""
    from lm_eval.tasks._yaml_loader import load_yaml

    config = load_yaml(harness().task_index[task.name].yaml_path, resolve_func=False)
    if task.part:
        (config,) = (part for part in config["task"] if isinstance(part, dict) and part.get("group") == task.part)
    if "group" in config:
        return {one["metric"] for one in config["aggregate_metric_list"]}, {"none"}
    filters = {one["name"] for one in config.get("filter_list", ())} or {"none"}
    return {one["metric"] for one in config["metric_list"]}, filters


def found(name: str, model: str, error: float = 0.01, **changes: float) -> dict:
    """Results, as the harness gives them, of a model that is exactly as printed but for `changes` (by label, in the harness's
    own scale)."""
    suite = suites.suite(name)
    printed, results, shots = suite.row(model).values, {}, {}
    for task in suite.tasks:
        value = float(printed[task.label]) / task.scale + changes.get(task.label, 0.0)
        of = results.setdefault(task.result, {"alias": task.name})
        of |= {f"{task.metric},{task.filter}": value, f"{task.metric}_stderr,{task.filter}": error}
        shots[task.result] = task.shots
    return {"results": results, "n-shot": shots}


def cells(name: str, model: str, results: dict) -> dict[str, suites.Cell]:
    suite = suites.suite(name)
    return {cell.label: cell for cell in suites.compared(suite, suite.row(model), results)}


MODELS = {"rene-card": "rene", "mamba-7b-card": "mamba-7b", "spectra-0shot": "trilm-3.9b", "avengers": "Tele@64"}


@pytest.mark.parametrize("name, model", MODELS.items())
def test_what_is_exactly_as_printed_agrees(name, model):
    suite = suites.suite(name)
    compared = cells(name, model, found(name, model, error=1e-6))
    assert tuple(compared) == suite.columns
    for cell in compared.values():
        assert cell.agrees is True and cell.theirs == suite.row(model).values[cell.label], cell
        assert cell.ours == pytest.approx(float(cell.theirs), abs=0.1)


@pytest.mark.parametrize("off, agrees", [(0.0104, True), (-0.0104, True), (0.0106, False), (-0.0106, False)])
def test_two_standard_errors_and_half_a_digit(off, agrees):
    """Printed in percent with one digit: half of the last is 0.0005 of the harness's scale."""
    cell = cells("rene-card", "rene", found("rene-card", "rene", error=0.005, PIQA=off))["PIQA"]
    assert cell.agrees is agrees and cell.error == pytest.approx(0.5) and cell.ours == pytest.approx(77.5 + 100 * off)


@pytest.mark.parametrize("off, agrees", [(0.0009, True), (0.0011, False)])
def test_a_chart_is_read_less_well_than_a_digit(off, agrees):
    assert cells("avengers", "Tele@128", found("avengers", "Tele@128", error=0.0, copa=off))["copa"].agrees is agrees


def test_last_digits():
    assert [suites.half_digit(text) for text in ("59.2", "0.331", "33", "0.00")] == pytest.approx([0.05, 0.0005, 0.5, 0.005])


def test_an_average_is_measured_with_the_error_of_a_mean():
    average = cells("rene-card", "rene", found("rene-card", "rene", error=0.02))["Average"]
    assert average.ours == pytest.approx((82.0 + 69.4 + 32.6 + 77.5 + 61.7 + 34.4 + 62.9 + 39.2) / 8)
    assert average.error == pytest.approx(2 / math.sqrt(8)) and average.theirs == "57.5"


def test_what_cannot_be_compared_says_why():
    results = found("rene-card", "rene")
    del results["n-shot"]["mmlu"]  # which the harness does not give for groups of groups
    results["group_subtasks"] = {"mmlu": ["mmlu_stem"], "mmlu_stem": ["mmlu_anatomy"]}
    results["n-shot"]["mmlu_anatomy"] = 0
    compared = cells("rene-card", "rene", results)
    assert compared["MMLU (5-shot)"].agrees is None and compared["MMLU (5-shot)"].note == "0-shot instead of 5-shot"
    assert compared["Average"].agrees is None and "0-shot" in compared["Average"].note
    assert compared["PIQA"].agrees is True
    average = cells("spectra-0shot", "Binary 99M", found("spectra-0shot", "Binary 99M"))["Average of six"]
    assert average.agrees is None and average.note == "not the mean of the columns printed beside it"


def test_what_was_not_measured_is_empty():
    results = found("mamba-7b-card", "mamba-7b")
    del results["results"]["piqa"]
    results["results"]["mmlu"]["acc_stderr,none"] = "N/A"
    compared = cells("mamba-7b-card", "mamba-7b", results)
    assert compared["PIQA"] == suites.Cell("PIQA", None, None, "81.0", None)
    assert compared["MMLU (5-shot)"].error is None and compared["MMLU (5-shot)"].agrees is None
    beside_nothing = suites.compared(suites.suite("mamba-7b-card"), None, found("mamba-7b-card", "mamba-7b"))
    assert all(cell.ours and not cell.theirs and cell.agrees is None for cell in beside_nothing)
