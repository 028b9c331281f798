"""leanlm eval: what it prints and writes, that it goes on where it was, and what it refuses."""

import json

import pytest

LINES = [
    {"context": "import o", "choices": ["s\n", "xyz"], "answer": 0},
    {"context": "def f(x):\n    return", "continuation": " x"},
    {"context": "for i in", "answer": "range", "until": ["("]},
]


@pytest.fixture
def folder(tmp_path, monkeypatch):
    (tmp_path / "quiz.jsonl").write_text("".join(json.dumps(line) + "\n" for line in LINES))
    (tmp_path / "prose.txt").write_text("import os\n\n\ndef f(x):\n    return x\n" * 8)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_local_files(leanlm, folder):
    ran = leanlm("eval", "builtin", "--items", "quiz.jsonl", "--text", "prose.txt", "--output_path", "out")
    assert ran.code == 0, ran.err
    assert "multiple choice" in ran.out and "bits per byte" in ran.out
    found = json.loads((folder / "out" / "results.json").read_text())
    assert found["items"]["quiz.jsonl"]["exact match"]["exact_match"]["value"] == 1
    assert found["text"]["prose.txt"]["bytes"] == (folder / "prose.txt").stat().st_size
    assert found["command"]["items"] == ["quiz.jsonl"]
    again = leanlm("eval", "builtin", "--items", "quiz.jsonl", "--text", "prose.txt", "--output_path", "out", "--json")
    assert json.loads(again.out)["items"] == found["items"] and json.loads(again.out)["text"] == found["text"]


def test_limits(leanlm, folder):
    for limit, count in (("1", 1), ("0.67", 2)):
        found = json.loads(leanlm("eval", "builtin", "--items", "quiz.jsonl", "--limit", limit, "--json").out)
        assert sum(kind["items"] for kind in found["items"]["quiz.jsonl"].values()) == count


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ((), "nothing to evaluate on"),
        (("--items", "none.jsonl"), "none.jsonl: cannot be read"),
        (("--items", "broken.jsonl"), "broken.jsonl, line 2"),
        (("--items", "empty.jsonl"), "'choices' needs texts that are not empty"),
        (("--text", "none.txt"), "none.txt: no such file or folder"),
        (("--items", "quiz.jsonl", "--limit", "0"), "--limit 0: must be more than 0"),
        (("--text", "prose.txt", "--limit", "1"), "--limit says nothing about what is evaluated here"),
        (("--suite", "rene-card", "--num_fewshot", "3"), "--num_fewshot says nothing"),
        (("--tasks", ","), "--tasks names no task"),
        (("--text", "prose.txt", "--batch_size", "many"), "--batch_size many: give a number, auto, or auto:4"),
        (("--text", "prose.txt", "--output_path", "prose.txt"), "is a file; give a folder"),
        (("--text", "prose.txt", "--card", "README.md"), "--card holds results of --tasks or --suite"),
        (("--text", "prose.txt", "--beside", "x"), "--beside and --published are of a --suite"),
        (("--suite", "rene-cart"), "did you mean rene-card?"),
        (("--suite", "rene-card", "--beside", "x"), "no row of rene-card"),
        (("--items", "quiz.jsonl", "--items", "more/quiz.jsonl"), "two of one name"),
    ],
)
def test_what_is_refused(leanlm, folder, words, says):
    (folder / "broken.jsonl").write_text(json.dumps(LINES[0]) + "\n{\n")
    (folder / "empty.jsonl").write_text('{"context": "a", "choices": [], "answer": 0}\n')
    ran = leanlm("eval", "builtin", *words)
    assert ran.code in (2, 3) and says in ran.err and ran.err.count("\n") == 1
    assert not ran.out and not (folder / "out").exists()


def test_suites_are_listed_and_printed_as_published(leanlm):
    listed = leanlm("eval", "--suite", "list").out
    assert all(name in listed for name in ("rene-card", "mamba-7b-card", "llamba-card", "spectra-0shot", "avengers"))
    table = leanlm("eval", "--suite", "rene-card", "--published").out
    ours = next(line for line in table.splitlines() if "Rene-v0.1-1.3b" in line)
    assert ours.split()[-10:] == ["1.5", "82.0", "69.4", "32.6", "77.5", "61.7", "34.4", "62.9", "39.2", "57.5"]
    assert "as printed" in table


@pytest.fixture
def harness(folder, monkeypatch):
    pytest.importorskip("lm_eval", reason='the harness is not installed: pip install -c constraints.txt ".[eval]"')
    import fake_datasets

    fake_datasets.patch(monkeypatch)
    return folder


def test_a_task_that_is_not_there(leanlm, harness):
    ran = leanlm("eval", "builtin", "--tasks", "hellaswog")
    assert ran.code == 2 and "did you mean hellaswag?" in ran.err
    (harness / "tasks").mkdir()
    (harness / "tasks" / "bad.yaml").write_text("task: [\n")
    ran = leanlm("eval", "builtin", "--tasks", "piqa", "--include_path", "tasks")
    assert ran.code == 2 and "bad.yaml: is no task file" in ran.err and ran.err.count("\n") == 1
    ran = leanlm("eval", "builtin", "--tasks", "qasper_bool")
    assert ran.code == 2 and "'qasper_bool' cannot be built" in ran.err


@pytest.mark.slow
def test_a_suite_beside_its_row_and_in_a_card(leanlm, harness, monkeypatch):
    monkeypatch.setattr("lm_eval.loggers.utils.subprocess", None)  # git, which complains on stderr outside of a repository
    words = ("eval", "builtin", "--suite", "avengers", "--beside", "Llama3 1.8B", "--card", "README.md", "--output_path", "out")
    ran = leanlm(*words)
    assert ran.code == 0, ran.err
    line = next(line.split() for line in ran.out.splitlines() if line.startswith("hellaswag"))
    assert "59.4" in line
    assert "read off a chart" in ran.out
    card = (harness / "README.md").read_text()
    assert "model-index:" in card and "hellaswag" in card
    answers = {path: path.read_bytes() for path in (harness / "out").glob("answers-*")}
    assert answers
    again = json.loads(leanlm(*words, "--json").out)
    assert again["suite"] == json.loads((harness / "out" / "results.json").read_text())["suite"]
