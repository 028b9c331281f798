"""leanlm telescope, and leanlm show --cache."""

import json
import xml.etree.ElementTree as ET

import pytest

from leanlm.cli.main import main
from leanlm.slots import NAMED, runs


def said(capsys, *argv: str) -> tuple[int, str, str]:
    code = main(list(argv))
    return code, *capsys.readouterr()


def test_a_cache_is_drawn_for_every_number_of_tokens(capsys, tmp_path):
    for read in (1, 2, 16, 100, 640, 641, 5000):
        code, out, _ = said(capsys, "show", "avengers-tele64", "--cache", "--at", str(read))
        held = [run for run in runs(NAMED["64"], read - 1) if run]
        assert code == 0 and f"{len(held)} of 64 slots cover the tokens {held[-1][0]} to {read - 1}" in out
        told = out.partition("from slot 0 on")[2].replace("level", " ").split()
        assert [part for part in told if not part.endswith(":")] == [f"{a}-{b}" if b > a else str(a) for a, b in held]
        rulers = [line.rpartition("|")[0].partition("|")[2] for line in out.splitlines() if line.endswith("|")]
        assert {len(ruler) for ruler in rulers} == {50} and all("#" in ruler for ruler in rulers)
        assert rulers[0].endswith("#") and (held[-1][0] == 0) == rulers[-1].startswith("#")


def test_a_cache_as_json_and_svg(capsys, tmp_path):
    target = tmp_path / "cache.svg"
    code, out, _ = said(capsys, "show", "avengers-tele128", "--cache", "--at", "30", "--json", "--svg", str(target))
    found = json.loads(out)
    assert code == 0 and found["tokens"] == 30
    assert [run and tuple(run) for run in found["slots"]["128"]] == runs(NAMED["128"], 29)
    boxes = ET.parse(target).getroot().findall("{*}rect")
    last = [box[0].text for box in boxes if len(box) and box[0].text.startswith("after 30 tokens")]
    assert len(last) == 28 and last[0] == "after 30 tokens: 29" and last[-1] == "after 30 tokens: 0 to 1"


@pytest.mark.parametrize(
    ("argv", "says"),
    [
        (["show", "rene", "--cache"], "no telescoping layer"),
        (["show", "avengers-tele64", "--cache", "--at", "0"], "after at least 1 token"),
        (["show", "avengers-tele64", "--svg", "x.svg"], "give --cache too"),
        (["show", "avengers-tele64", "--at", "5"], "give --cache too"),
        (["telescope", "builtin", "OUT", "--cache", "65"], "choose from 32, 64"),
        (["telescope", "builtin", "OUT", "--cache", "20", "--merges", "5", "5"], "do not rise"),
        (["telescope", "builtin", "OUT", "--full", "0"], "layer 0 has no attention"),
    ],
)
def test_what_cannot_be_is_one_line(capsys, tmp_path, monkeypatch, argv, says):
    monkeypatch.chdir(tmp_path)
    code, _, err = said(capsys, *argv)
    assert code == 2 and says in err and err.count("\n") == 1
    assert not (tmp_path / "OUT").exists()


def test_a_model_is_converted_measured_and_generates(capsys, tmp_path):
    held = tmp_path / "held.txt"
    held.write_text("def f(x):\n    return x + 1\n" * 40)
    out = tmp_path / "tele"
    code, told, err = said(capsys, "telescope", "builtin", str(out), "--cache", "32", "--held-out", str(held))
    assert code == 0 and "bits per byte" in told and f"written to {out}" in told, err
    code, shown, _ = said(capsys, "show", str(out))
    assert code == 0 and "telescoping c=32" in shown and "odd" not in shown
    assert said(capsys, "generate", "def ", "--model", str(out), "--genlen", "5")[0] == 0
    code, _, err = said(capsys, "telescope", "builtin", str(out))
    assert code == 2 and "is there already" in err
