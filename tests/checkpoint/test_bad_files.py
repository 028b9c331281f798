"""Checkpoints that cannot be understood: each one line that says what is wrong, where, and what to do."""

import json
import os
import struct

import pytest
import torch
from safetensors.torch import load_file, save_file

from leanlm.checkpoint.load import load_module
from leanlm.errors import CheckpointError, NotFound

WEIGHTS = "model.safetensors"


def config(folder, **changes):
    raw = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**raw, **changes}))


def rewrite(folder, change):
    tensors = load_file(folder / WEIGHTS)
    change(tensors)
    (folder / WEIGHTS).unlink()
    save_file(tensors, folder / WEIGHTS)


def rename(tensors, old, new):
    tensors[new] = tensors.pop(old)


def to_pickle(folder, data, **options):
    (folder / WEIGHTS).unlink()
    torch.save(data, folder / "pytorch_model.bin", **options)


def cut(path, size):
    os.truncate(path, size)


class Hostile:
    def __reduce__(self):
        return os.system, ("touch /tmp/leanlm-was-here",)


EMBED, NORM = "model.embed_tokens.weight", "model.norm.weight"
DOWN = "model.layers.1.mlp.down_proj.weight"
LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a2146\n"

DAMAGE = {
    "no config": (lambda f: (f / "config.json").unlink(), r"no config\.json"),
    "empty folder": (lambda f: [p.unlink() for p in f.iterdir()], "the folder is empty"),
    "config not JSON": (lambda f: (f / "config.json").write_text('{"a": 1,\n"b"}'), r"config\.json: not valid JSON \(line 2"),
    "config not text": (lambda f: (f / "config.json").write_bytes(b"\xff\xfe\x00"), r"config\.json: cannot be read"),
    "config nested too deep": (lambda f: (f / "config.json").write_text("[" * 100_000), r"config\.json: cannot be read"),
    "config a list": (lambda f: (f / "config.json").write_text("[1]"), "expected a JSON object, found list"),
    "unknown family": (lambda f: config(f, model_type="gpt2", architectures=[]), r"model_type 'gpt2' is of no family"),
    "setting missing": (lambda f: config(f, hidden_size=None), "'hidden_size' is missing"),
    "setting of the wrong type": (lambda f: config(f, hidden_size="wide"), r"config\.json"),
    "setting zero": (lambda f: config(f, num_attention_heads=0), r"config\.json"),
    "setting unsupported": (lambda f: config(f, hidden_act="relu"), "hidden_act = 'relu' is not supported"),
    "no weights": (lambda f: (f / WEIGHTS).unlink(), r"no weights; expected model\.safetensors"),
    "truncated": (lambda f: cut(f / WEIGHTS, 100_000), r"model\.safetensors: damaged or cut short .*download it again"),
    "truncated header": (lambda f: cut(f / WEIGHTS, 5), "damaged or cut short"),
    "empty weights": (lambda f: cut(f / WEIGHTS, 0), "damaged or cut short"),
    "not safetensors": (lambda f: (f / WEIGHTS).write_text("<html>404 Not Found</html>"), "damaged or cut short"),
    "git lfs pointer": (lambda f: (f / WEIGHTS).write_bytes(LFS), "Git LFS pointer"),
    "tensor missing": (lambda f: rewrite(f, lambda t: t.pop(DOWN)), f"tensor '{DOWN}' missing"),
    "tensor unknown": (lambda f: rewrite(f, lambda t: t.update(odd=torch.ones(2))), "tensor 'odd' unknown"),
    "tensor misnamed": (lambda f: rewrite(f, lambda t: rename(t, NORM, "model.norm.weigth")), f"meant to be '{NORM}'"),
    "many missing": (lambda f: config(f, num_hidden_layers=5), r"tensors .* and 15 more missing"),
    "wrong shape": (lambda f: config(f, vocab_size=151), rf"'{EMBED}' is \[150, 48\] and should be \[151, 48\]"),
    "many wrong shapes": (lambda f: config(f, intermediate_size=96), r"shapes do not fit config\.json: .*\(and 7 more\)"),
    "NaN": (lambda f: rewrite(f, lambda t: t[NORM].fill_(float("nan"))), f"'{NORM}' holds NaN"),
    "infinity": (lambda f: rewrite(f, lambda t: t[DOWN].fill_(float("inf"))), f"'{DOWN}' holds NaN or infinite"),
    "integers": (lambda f: rewrite(f, lambda t: t.update({NORM: torch.ones(48, dtype=torch.int8)})), f"'{NORM}' is int8"),
    "float64": (lambda f: rewrite(f, lambda t: t.update({NORM: torch.ones(48, dtype=torch.float64)})), "is float64"),
    "which file": (lambda f: [(f / WEIGHTS).rename(f / "a.safetensors"), (f / "b.safetensors").touch()], "cannot tell which"),
    "hostile pickle": (lambda f: to_pickle(f, {EMBED: Hostile()}), r"refused, because this pickle asks for \w+\.system"),
    "truncated pickle": (
        lambda f: [to_pickle(f, load_file(f / WEIGHTS)), cut(f / "pytorch_model.bin", 50_000)],
        r"pytorch_model\.bin: damaged or cut short",
    ),
    "empty pickle": (lambda f: [to_pickle(f, {}), cut(f / "pytorch_model.bin", 0)], "damaged or cut short"),
    "pickle of a list": (lambda f: to_pickle(f, [torch.ones(2)]), "expected a table of tensors by name, found list"),
    "pickle of numbers": (lambda f: to_pickle(f, {EMBED: 3}), r"tensors? .*missing"),
    "pickled number for a tensor": (lambda f: to_pickle(f, {**load_file(f / WEIGHTS), NORM: 3}), "is a int, not a tensor"),
    "index empty": (
        lambda f: (f / WEIGHTS).rename(f / f"{WEIGHTS}.index.json").write_text("{}"),
        r"index\.json: no weight_map",
    ),
    "shard missing": (
        lambda f: (f / WEIGHTS).rename(f / f"{WEIGHTS}.index.json").write_text('{"weight_map": {"a": "x.safetensors"}}'),
        r"shard x\.safetensors is missing; download it again",
    ),
    "shard elsewhere": (
        lambda f: (f / WEIGHTS).rename(f / f"{WEIGHTS}.index.json").write_text('{"weight_map": {"a": "../x.safetensors"}}'),
        "is not a file beside the index",
    ),
}


@pytest.mark.parametrize("name", DAMAGE)
def test_damage_is_one_clear_line(checkpoint, name):
    folder = checkpoint("llama/bf16")
    damage, message = DAMAGE[name]
    damage(folder)
    with pytest.raises(CheckpointError, match=message) as caught:
        load_module(folder)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 500
    assert str(folder) in str(caught.value)
    assert not os.path.exists("/tmp/leanlm-was-here")  # noqa: PTH110


def test_header_that_promises_more_than_there_is(checkpoint):
    folder = checkpoint("llama/bf16")
    header = json.dumps({EMBED: {"dtype": "F32", "shape": [2**40], "data_offsets": [0, 2**42]}}).encode()
    (folder / WEIGHTS).write_bytes(struct.pack("<Q", len(header)) + header)
    with pytest.raises(CheckpointError, match="damaged or cut short"):
        load_module(folder)


def test_no_folder(tmp_path):
    with pytest.raises(NotFound, match="no such folder"):
        load_module(tmp_path / "nowhere")


def test_a_file_is_no_folder(checkpoint):
    folder = checkpoint("llama/bf16")
    with pytest.raises(CheckpointError, match="is a file; give the folder"):
        load_module(folder / WEIGHTS)


def test_wrapped_twice(checkpoint):
    """Two names that become one without their wrapping are an error, not a silent choice."""
    folder = checkpoint("mamba1/ss_base")
    raw = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**raw, "seq_len": 64}))
    state = torch.load(folder / "pytorch_model.bin", weights_only=True)
    torch.save({**state, **{f"module.{k}": v for k, v in state.items()}}, folder / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match="the same tensor twice"):
        load_module(folder)
