"""list, show, verify and doctor: the verbs that report without generating."""

import json
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file, save_file

from leanlm.cli.main import main
from leanlm.cli.sizes import count, folded, size
from leanlm.runtime import card
from tiny_models import GOLDEN, add_tokenizer, copy_case, edit_config


def printed(capsys, *argv: str) -> str:
    assert main(list(argv)) == 0
    return capsys.readouterr().out


def test_sizes_keep_three_digits():
    assert [count(n) for n in (999, 1000, 27_190, 1_340_000_000)] == ["999", "1.00k", "27.2k", "1.34B"]
    assert [size(n) for n in (12, 1500, 2_866_500_096)] == ["12 B", "1.50 kB", "2.87 GB"]


@pytest.mark.parametrize(
    ("runs", "text"),
    [
        ([("a", 64)], "64 a"),
        ([("a", 5), ("b", 2), ("c", 1)] * 4, "4 x (5 a, 2 b, c)"),
        ([("a", 1), ("b", 1)] * 3 + [("c", 1)] + [("a", 1), ("b", 1)] * 2, "3 x (a, b), c, 2 x (a, b)"),
        (([("a", 1), ("b", 1)] * 2 + [("c", 1)]) * 2, "2 x (2 x (a, b), c)"),
        ([("a", 1), ("b", 3)], "a, 3 b"),
    ],
)
def test_layers_are_folded(runs, text):
    assert folded(runs) == text


def test_list_as_table_and_json(capsys):
    rows = json.loads(printed(capsys, "list", "--json"))
    table = printed(capsys, "list")
    assert all(row["repo"] in table for row in rows)
    trilm = next(row for row in rows if row["name"] == "trilm-99m")
    assert trilm["parameters"] == pytest.approx(99.74e6, rel=0.01)


def test_list_all_adds_what_was_never_released(capsys):
    names = {row["name"] for row in json.loads(printed(capsys, "list", "--json"))}
    everything = {row["name"]: row for row in json.loads(printed(capsys, "list", "--all", "--json"))}
    quantlm = {name for name in everything if name.startswith("quantlm")}
    assert len(quantlm) == 36
    assert not quantlm & names
    assert "leanlm quantize" in everything["quantlm-99m-4bit"]["note"]


@pytest.mark.parametrize("case", ["rene/gqa_groups", "mamba1/ss_base", "trilm/trilm_mp3", "mamba2/ss_hybrid_dconv"])
def test_show_counts_what_is_in_the_file(capsys, case):
    found = json.loads(printed(capsys, "show", str(GOLDEN / case), "--json"))
    file = GOLDEN / case / "model.safetensors"
    tensors = load_file(file) if file.exists() else torch.load(file.with_name("pytorch_model.bin"), weights_only=True)
    assert found["weight_bytes"] == sum(t.nbytes for t in tensors.values())
    assert found["odd"] == ["no tokenizer: text needs --tokenizer FILE, or give token ids"]


def test_show_loads_no_torch():
    folder = str(GOLDEN / "bamba/base")
    code = f"import sys; from leanlm.cli.main import main; print(main(['show', {folder!r}]), 'torch' in sys.modules)"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert out.splitlines()[-1] == "0 False"
    assert "bamba" in out


def test_show_names_missing_and_unread_tensors(capsys, tmp_path):
    folder = copy_case("llama/bf16", tmp_path / "m")
    tensors = load_file(folder / "model.safetensors")
    tensors["model.norm.wieght"] = tensors.pop("model.norm.weight")
    save_file(tensors, folder / "model.safetensors")
    odd = json.loads(printed(capsys, "show", str(folder), "--json"))["odd"]
    assert odd == ["1 tensors missing: model.norm.weight", "1 tensors unread: model.norm.wieght"]


def test_show_names_sizes_that_do_not_fit(capsys, tmp_path):
    folder = edit_config(copy_case("llama/bf16", tmp_path / "m"), intermediate_size=7)
    assert any("the weights hold" in line for line in json.loads(printed(capsys, "show", str(folder), "--json"))["odd"])


def test_show_of_the_catalogue_without_the_model(capsys, monkeypatch, tmp_path):
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    out = printed(capsys, "show", "cartesia-ai/Rene-v0.1-1.3b-pytorch")
    assert "leanlm pull rene" in out
    assert "attention w=2048" in out


def test_show_finds_the_tokenizer_in_the_folder(capsys, tmp_path):
    folder = add_tokenizer(copy_case("llama/bf16", tmp_path / "m"))
    assert json.loads(printed(capsys, "show", str(folder), "--json"))["tokenizer"] == "tokenizer.json"


def test_verify_accepts_ternary_and_refuses_float(capsys, tmp_path):
    ternary = str(GOLDEN / "trilm/trilm_mp3")
    assert json.loads(printed(capsys, "verify", ternary, "--json"))["ternary"]
    assert main(["verify", ternary, "--shards", "2"]) == 5
    assert "--shards" in capsys.readouterr().err
    assert main(["verify", str(GOLDEN / "llama/bf16"), "--ternary"]) == 5
    assert "ternary: no; 0 of them" in printed(capsys, "verify", str(GOLDEN / "llama/bf16"))


def test_doctor_names_every_operation_and_variable(capsys):
    from leanlm import env
    from leanlm.cli import doctor
    from leanlm.ops.dispatch import OPERATIONS

    found = json.loads(printed(capsys, "doctor", "--json"))
    assert {f"{op} (cpu)" for op in OPERATIONS} <= found["operations"].keys()
    assert {variable.name for variable in env.VARIABLES} == found["environment"].keys()
    assert "transformers" in found["optional packages"]
    if "native library" in found["runtime"]["cpu"]:
        rates = [value for name, value in found["speed"].items() if name.startswith("GB/s")]
        assert rates and len(found["speed"]) == len(rates) + len(doctor.EXPECTED) and min(found["speed"].values()) > 0
    assert "model cache" in printed(capsys, "doctor")


@pytest.fixture
def two_cards(monkeypatch):
    """What torch tells of a machine with an old card and a new one."""
    kinds = [("Tesla T4", (7, 5), 16e9), ("NVIDIA H100", (9, 0), 85e9)]

    def properties(number):
        name, (major, minor), memory = kinds[number]
        return SimpleNamespace(name=name, major=major, minor=minor, total_memory=memory, multi_processor_count=40)

    told = {"is_available": lambda: True, "device_count": lambda: 2, "get_device_properties": properties}
    told |= {"get_device_capability": lambda number: kinds[number][1], "get_device_name": lambda number: kinds[number][0]}
    for name, stand_in in told.items():
        monkeypatch.setattr(torch.cuda, name, stand_in)
    monkeypatch.setattr(card, "copy_rate", lambda: 2.6e12)
    monkeypatch.setattr(card, "matrix_rate", lambda dtype: {torch.bfloat16: 7e14, torch.float32: 5e13}[dtype])


def test_doctor_tells_of_every_card_and_its_rates(two_cards, monkeypatch):
    pytest.importorskip("triton", reason="Triton is not installed")
    from leanlm.cli import doctor
    from leanlm.ops import triton_launch

    monkeypatch.setattr(triton_launch, "interpreted", lambda: False)
    found = doctor.gpu()
    assert found["cuda:0"] == "Tesla T4, compute capability 7.5, 16 GB, 40 multiprocessors"
    assert found["cuda:1"] == "NVIDIA H100, compute capability 9.0, 85 GB, 40 multiprocessors"
    assert found["kernels"].startswith("Triton ")
    assert "cuda:0" in found["kernels"] and "7.5" in found["kernels"] and "8.0" in found["kernels"]
    assert found["GB/s, read and written by a copy"] == 2600
    assert [found[f"TFLOP/s, a large product in {name}"] for name in ("bfloat16", "float32")] == [700.0, 50.0]


def test_doctor_keeps_the_token_to_itself(capsys, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    assert "hf_secret" not in printed(capsys, "doctor")
