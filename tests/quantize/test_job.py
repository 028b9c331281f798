"""The text that a quantisation is judged on."""

from leanlm.quantize import job


def test_held_out_texts_are_the_first_bytes_of_a_source(tmp_path):
    for name, text in (("a", "four"), ("b", "ä" * 3), ("c", "never read")):
        (tmp_path / f"{name}.txt").write_text(text, encoding="utf-8")
    assert job.held_out_texts(str(tmp_path), 7) == ["four", "ä"]  # the half of a character is left out
    assert job.held_out_texts(str(tmp_path), 10) == ["four", "äää"]
    assert job.held_out_texts(str(tmp_path), 11) == ["four", "äää", "n"]
