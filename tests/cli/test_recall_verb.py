"""leanlm recall: a table, JSON, and what it refuses."""

import json

from leanlm.cli.main import main
from leanlm.evaluate import recall
from tiny_models import copy_case

QUICK = ("--distances", "70", "--loads", "1", "2", "--items", "2")


def test_points_of_every_model_as_json(rene, capsys):
    flags = [*QUICK, "--kind", "pairs", "needle", "--state-dtype", "int8", "--json"]
    assert main(["recall", str(rene), str(rene), *flags]) == 0
    found = json.loads(capsys.readouterr().out)
    assert [one["model"] for one in found] == [str(rene)] * 2 and found[0]["state_dtype"] == "int8"
    assert found[0]["points"] == found[1]["points"]
    points = [recall.Point(**point) for point in found[0]["points"]]
    assert [(p.kind, p.distance, p.load) for p in points] == [(k, 70, n) for k in ("pairs", "needle") for n in (1, 2)]


def test_the_table(rene, capsys):
    assert (
        main(["recall", str(rene), "--distances", "12", "--loads", "1", "2", "--items", "1", "--kind", "copy", "--stepwise"])
        == 0
    )
    title, headings, *rows = capsys.readouterr().out.splitlines()
    assert title.strip() == str(rene) and headings.split() == ["kind", "distance", "load", "accuracy", "chance", "nats"]
    assert [row.split()[:3] for row in rows] == [["copy", "12", "1"], ["copy", "12", "2"]]


def test_a_format_behind_the_name(rene, capsys):
    """Is that of --format, for this model alone."""
    flags = ("--distances", "12", "--loads", "1", "--items", "2", "--kind", "copy", "--json")
    assert main(["recall", str(rene), f"{rene}@int3-channel", *flags]) == 0
    plain, behind = json.loads(capsys.readouterr().out)
    assert main(["recall", str(rene), "--format", "int3-channel", *flags]) == 0
    (flagged,) = json.loads(capsys.readouterr().out)
    assert behind["model"] == f"{rene}@int3-channel"
    assert plain["points"] != behind["points"] == flagged["points"]


def test_refusals(rene, tmp_path, capsys):
    bare = copy_case("rene/gqa_groups", tmp_path / "bare", text=False)
    for model, flags, message in (
        (rene, ("--distances", "5", "--kind", "copy"), "distance 5: what is told and asked for takes 9 tokens"),
        (rene, ("--kind", "copies"), "invalid choice 'copies'"),
        (f"{rene}@int5", (), "5 bits"),
        (bare, (), "a needle is text, and this model has no tokenizer: give --tokenizer, or measure copy and pairs alone"),
    ):
        assert main(["recall", str(model), *flags]) == 2
        said = capsys.readouterr()
        assert not said.out and message in said.err and said.err.count("\n") == 1
