"""Checkpoints in and out: every golden case bit for bit, every form of weights, memory, safety of what is mapped."""

import json
import os
import resource
import shutil
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from golden_cases import OWN, checkpoint_cases
from leanlm import families
from leanlm.checkpoint.load import load_module
from leanlm.checkpoint.save import save_module
from leanlm.checkpoint.weights import Weights
from leanlm.errors import CheckpointError, LeanLMError, UsageError
from leanlm.model.language_model import LanguageModel

CASES = checkpoint_cases()


def bits(tensor: torch.Tensor) -> bytes:
    return tensor.detach().contiguous().flatten().view(torch.uint8).numpy().tobytes()


def same(a: torch.nn.Module, b: torch.nn.Module) -> bool:
    a, b = dict(a.named_parameters()), dict(b.named_parameters())
    return a.keys() == b.keys() and all(a[n].dtype == b[n].dtype and bits(a[n]) == bits(b[n]) for n in a)


@pytest.mark.parametrize("form", ["safetensors", "pytorch"])
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_load_save_load_is_bit_equal(case, form, tmp_path):
    first = load_module(case.folder)
    save_module(tmp_path / "out", first.module, first.family, first.raw, weights=form)
    second = load_module(tmp_path / "out")
    assert second.config == first.config and same(first.module, second.module)
    original, written = Weights(case.folder), Weights(tmp_path / "out")
    assert written.keys() <= original.keys() | {"lm_head.weight"}
    assert original.keys() - written.keys() <= {"lm_head.weight"}
    for name in written.keys() & original.keys():
        assert bits(written[name]) == bits(original[name])


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_a_config_written_from_ours_means_the_same(case, tmp_path):
    first = load_module(case.folder)
    save_module(tmp_path / "out", first.module, first.family)
    second = load_module(tmp_path / "out")
    assert second.config == first.config and same(first.module, second.module)


@pytest.fixture
def llama(checkpoint):
    return checkpoint("llama/bf16")


def shard(folder, suffix):
    """Split a folder's weights over two shards with an index."""
    tensors = dict(load_file(folder / "model.safetensors"))
    (folder / "model.safetensors").unlink()
    stem, ending = ("model", "safetensors") if suffix == "safetensors" else ("pytorch_model", "bin")
    names = sorted(tensors)
    parts = {f"{stem}-0000{i + 1}-of-00002.{ending}": names[i::2] for i in range(2)}
    for file, part in parts.items():
        write = save_file if ending == "safetensors" else torch.save
        write({name: tensors[name].clone() for name in part}, folder / file)
    index = {"metadata": {}, "weight_map": {name: file for file, part in parts.items() for name in part}}
    (folder / f"{stem}.{ending}.index.json").write_text(json.dumps(index))


@pytest.mark.parametrize("suffix", ["safetensors", "bin"])
def test_shards(llama, suffix):
    expected = load_module(llama).module
    shard(llama, suffix)
    loaded = load_module(llama)
    assert same(expected, loaded.module)
    save_module(llama, loaded.module, loaded.family, loaded.raw)
    assert sorted(p.name for p in llama.iterdir()) == ["config.json", "model.safetensors"]
    assert same(expected, load_module(llama).module)


@pytest.mark.parametrize("legacy", [False, True], ids=["zip", "before-1.6"])
def test_wrapped_pickles(checkpoint, legacy):
    """An OpenLM checkpoint: progress beside a state dict whose names carry wrappers; the newest epoch counts."""
    folder = checkpoint("mamba1/ss_base")
    expected = load_module(folder).module
    raw = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**raw, "seq_len": 2048}))
    state = torch.load(folder / "pytorch_model.bin", weights_only=True)
    (folder / "pytorch_model.bin").unlink()
    state.pop("lm_head.weight", None)
    wrapped = {f"module.model.{name}": tensor for name, tensor in state.items()}
    options = {"_use_new_zipfile_serialization": False} if legacy else {}
    torch.save({"epoch": 10, "name": "x", "state_dict": wrapped}, folder / "epoch_10.pt", **options)
    torch.save({"epoch": 9, "state_dict": {}}, folder / "epoch_9.pt")
    torch.save({}, folder / "optimizer_10.pt")
    loaded = load_module(folder)
    assert loaded.family.name == "openlm" and same(expected, loaded.module)


def test_a_pickle_may_share_a_tied_tensor(checkpoint):
    folder = checkpoint("mamba1/ss_base")
    state = torch.load(folder / "pytorch_model.bin", weights_only=True)
    state["lm_head.weight"] = state["backbone.embedding.weight"]
    torch.save(state, folder / "pytorch_model.bin")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert load_module(folder).module.head is None


def test_config_wins_over_an_untied_head_with_a_warning(llama):
    tensors = load_file(llama / "model.safetensors")
    save_file({**tensors, "lm_head.weight": tensors["model.embed_tokens.weight"] + 1}, llama / "model.safetensors")
    with pytest.warns(UserWarning, match=r"lm_head\.weight.*ignored"):
        assert load_module(llama).module.head is None


def test_a_cast_keeps_the_precision_of_sensitive_parameters(checkpoint):
    folder = checkpoint("mamba2/ss_hybrid_dconv")
    stored, narrow = load_module(folder).module, load_module(folder, torch.bfloat16).module
    for name, parameter in narrow.named_parameters():
        kept = name.rpartition(".")[2] in ("A_log", "D", "dt_bias")
        assert parameter.dtype == (torch.float32 if kept else torch.bfloat16), name
        assert torch.equal(parameter, stored.get_parameter(name).to(parameter.dtype))
    wide = load_module(OWN / "llama/bf16", torch.float32).module
    assert {p.dtype for p in wide.parameters()} == {torch.float32}


def test_values_beyond_a_dtype_are_refused(checkpoint):
    folder = checkpoint("llama/bf16")
    tensors = load_file(folder / "model.safetensors")
    tensors["model.norm.weight"][0] = 1e6
    save_file(tensors, folder / "model.safetensors")
    with pytest.raises(UsageError, match=r"model\.norm\.weight.*beyond the range of torch\.float16"):
        load_module(folder, torch.float16)
    with pytest.raises(UsageError, match="not a floating-point type"):
        load_module(folder, torch.int8)


@pytest.mark.parametrize("case", ["llama/bf16", "mamba1/ss_base"], ids=["safetensors", "pickle"])
def test_mapped_weights_may_be_changed_and_saved_over_themselves(checkpoint, case):
    folder = checkpoint(case)
    file = next(p for p in folder.iterdir() if p.name != "config.json")
    before = file.read_bytes()
    loaded = load_module(folder)
    with torch.no_grad():
        for parameter in loaded.module.parameters():
            parameter.add_(1)
    assert file.read_bytes() == before
    changed = {name: p.detach().clone() for name, p in loaded.module.named_parameters()}
    save_module(folder, loaded.module, loaded.family, loaded.raw)
    assert all(torch.equal(p, changed[name]) for name, p in loaded.module.named_parameters())
    again = load_module(folder).module
    assert all(torch.equal(p, changed[name]) for name, p in again.named_parameters())
    assert {p.name for p in folder.iterdir()} == {"config.json", file.name}  # each family in its original's own form


def test_loaded_weights_train(llama):
    module = load_module(llama, torch.float32).module
    tokens = torch.arange(8)[None]
    losses = []
    for _ in range(3):
        loss = torch.nn.functional.cross_entropy(module(tokens[:, :-1])[0], tokens[0, 1:])
        loss.backward()
        with torch.no_grad():
            for parameter in module.parameters():
                parameter -= 0.1 * parameter.grad
                parameter.grad = None
        losses.append(loss.item())
    assert losses[-1] < losses[0]


def test_a_header_of_odd_length(llama):
    expected = load_module(llama).module
    data = (llama / "model.safetensors").read_bytes()
    length = int.from_bytes(data[:8], "little")
    moved = (length + 1).to_bytes(8, "little") + data[8 : 8 + length] + b" " + data[8 + length :]
    (llama / "model.safetensors").unlink()  # what is mapped must not change under it
    (llama / "model.safetensors").write_bytes(moved)
    assert same(expected, load_module(llama).module)


def test_saved_config_says_the_dtype_and_follows_changes(llama, tmp_path):
    loaded = load_module(llama, torch.float32)
    save_module(tmp_path / "wide", loaded.module, loaded.family, loaded.raw)
    raw = json.loads((tmp_path / "wide/config.json").read_text())
    assert raw == {**loaded.raw, "torch_dtype": "float32"}
    other = {**loaded.raw, "rms_norm_eps": 1e-3}
    save_module(tmp_path / "other", loaded.module, loaded.family, other)
    assert load_module(tmp_path / "other").config == loaded.config
    with safe_open(tmp_path / "wide/model.safetensors", "pt") as file:
        assert file.metadata()["format"] == "pt"


MEMORY = """
import sys, torch
from pathlib import Path
from leanlm.checkpoint import load
def status(key):
    return int(next(l for l in open("/proc/self/status") if l.startswith(key)).split()[1]) * 1024
torch.zeros(64, dtype=torch.bfloat16).float().sum()
load.MAPPED_BYTES = 16 << 20
for folder in sys.argv[1:]:
    for dtype in (None, torch.bfloat16):
        before = status("VmRSS")
        Path("/proc/self/clear_refs").write_text("5")  # the peak counts from here
        module = load.load_module(folder, dtype).module
        print(sum(p.nbytes for p in module.parameters()), status("VmHWM") - before)
        del module
"""


@pytest.mark.slow  # a process of its own, to measure it
@pytest.mark.skipif(sys.platform != "linux", reason="reads the peak from /proc")
def test_peak_memory_is_the_weights(tmp_path):
    """230 MB in float32: mapped they count once, cast to 115 MB they count with a window of the source and not all of it."""
    raw = {"model_type": "llama", "hidden_size": 512, "num_attention_heads": 8, "intermediate_size": 2048}
    raw |= {"vocab_size": 16000, "num_hidden_layers": 12, "tie_word_embeddings": True}
    family = families.find(raw)
    module = LanguageModel(family.to_config(raw))
    for parameter in module.parameters():
        parameter.data.zero_()
    folders = [str(tmp_path / form) for form in ("safetensors", "pytorch")]
    for folder in folders:
        save_module(folder, module, family, raw, weights=Path(folder).name)
    ran = subprocess.run([sys.executable, "-c", MEMORY, *folders], capture_output=True, text=True, check=True)
    for line in ran.stdout.splitlines():
        weights, peak = map(int, line.split())
        assert weights > 110e6 and peak < weights + 60e6, ran.stdout


@pytest.mark.parametrize("form", ["safetensors", "pytorch"])
def test_a_full_disk_leaves_the_old_checkpoint(llama, form):
    """A limit on the size of files stands in for a full disk: the write fails halfway."""
    loaded = load_module(llama)
    before = {p.name: p.read_bytes() for p in llama.iterdir()}
    with torch.no_grad():
        loaded.module.norm.weight.add_(1)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))
    try:
        with pytest.raises(LeanLMError, match="cannot write") as caught:
            save_module(llama, loaded.module, loaded.family, loaded.raw, weights=form)
        with pytest.raises(LeanLMError, match="cannot write"):
            save_module(llama / "new/deep", loaded.module, loaded.family, loaded.raw, weights=form)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert "\n" not in str(caught.value)
    assert {p.name: p.read_bytes() for p in llama.iterdir()} == before


def test_a_folder_that_cannot_be_written(llama, tmp_path):
    loaded = load_module(llama)
    (tmp_path / "file").write_text("x")
    with pytest.raises(UsageError, match="is a file"):
        save_module(tmp_path / "file", loaded.module, loaded.family)
    with pytest.raises(LeanLMError, match="cannot make this folder"):
        save_module(tmp_path / "file/below", loaded.module, loaded.family)


def test_an_interrupt_while_saving(llama, monkeypatch):
    loaded = load_module(llama)
    before = {p.name: p.read_bytes() for p in llama.iterdir()}

    def interrupted(*args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "fsync", interrupted)
    with pytest.raises(KeyboardInterrupt):
        save_module(llama, loaded.module, loaded.family, loaded.raw)
    assert {p.name: p.read_bytes() for p in llama.iterdir()} == before


def test_the_folder_may_vanish_after_loading(llama):
    module = load_module(llama).module
    shutil.rmtree(llama)
    assert module(torch.arange(4)[None]).isfinite().all()


def test_a_bad_index_is_refused(llama):
    shard(llama, "safetensors")
    index = llama / "model.safetensors.index.json"
    raw = json.loads(index.read_text())
    index.write_text(json.dumps({"weight_map": {**raw["weight_map"], "ghost.weight": "model-00001-of-00002.safetensors"}}))
    with pytest.raises(CheckpointError, match=r"'ghost\.weight' is not in it"):
        load_module(llama)
