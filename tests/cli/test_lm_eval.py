"""The harness's own command line with leanlm's models, on a task in local files."""

import json

import pytest

pytest.importorskip("lm_eval", reason='the harness is not installed: pip install -c constraints.txt ".[eval]"')

import fake_datasets
from leanlm.cli.main import main

TASK = """
task: mini
dataset_path: json
dataset_kwargs:
  data_files: {file}
test_split: train
output_type: multiple_choice
doc_to_text: "{{{{q}}}}"
doc_to_target: "{{{{a}}}}"
doc_to_choice: "{{{{c}}}}"
metric_list:
  - metric: acc
    aggregation: mean
    higher_is_better: true
"""


@pytest.fixture
def task(tmp_path, monkeypatch):
    fake_datasets.remember_tasks(monkeypatch)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "tasks").mkdir()
    lines = ({"q": f"import {name}", "a": 0, "c": ["\n", "xyz", " 77"]} for name in ("os", "sys", "json", "re"))
    (tmp_path / "mini.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (tmp_path / "tasks" / "mini.yaml").write_text(TASK.format(file=tmp_path / "mini.jsonl"))
    return tmp_path


@pytest.mark.parametrize("name", ["leanlm", "rene_ssm", "hf"])
def test_the_printed_command_with_the_programs_name_changed(task, name, rene):
    model = "builtin" if name != "hf" else str(rene)
    words = f"--model {name} --model_args pretrained={model},trust_remote_code=True --trust_remote_code --tasks mini"
    words += " --include_path tasks --cache_requests true --batch_size auto:4 --output_path out/ --device auto"
    assert main(["lm-eval", *words.split()]) == 0
    (file,) = (task / "out").rglob("results_*.json")
    found = json.loads(file.read_text())["results"]["mini"]
    assert 0 <= found["acc,none"] <= 1 and (name == "hf" or found["acc,none"] == 1)
