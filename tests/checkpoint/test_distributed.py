"""Training checkpoints of fms-fsdp: sharded, wrapped names, no config."""

import json
import pickle
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch.distributed import checkpoint as dcp

from golden_cases import OWN
from leanlm.checkpoint import distributed
from leanlm.checkpoint.load import load_module
from leanlm.checkpoint.save import published, save_module
from leanlm.checkpoint.weights import Weights
from leanlm.errors import CheckpointError, NotFound, UsageError
from leanlm.families import get
from leanlm.model.config import ModelConfig
from leanlm.model.language_model import LanguageModel

LLAMA = {"src_vocab_size": 64, "emb_dim": 16, "nheads": 2, "kvheads": 1, "nlayers": 2, "multiple_of": 8}


def write(folder, tensors, wrap="_orig_mod."):
    """The layout of fms-fsdp's checkpointer: model_state and optimizer_state flattened, metadata.pth beside them."""
    state = {
        "model_state": {wrap + name: tensor for name, tensor in tensors.items()},
        "optimizer_state": {"state": {wrap + name: {"exp_avg": torch.ones(2)} for name in tensors}},
    }
    dcp.save(state, storage_writer=dcp.FileSystemWriter(folder, single_file_per_rank=True), no_dist=True)
    torch.save({"step": 3, "tokens_seen": 9}, folder / "metadata.pth")
    return folder


@pytest.fixture
def llama():
    """A small Llama of IBM's format and its published tensors."""
    family = get("fms_llama")
    module = LanguageModel(family.to_config(LLAMA))
    module.reset(0.02)
    return module, published(module, family)


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("wrap", ["_orig_mod.", "", "_orig_mod._fsdp_wrapped_module."])
def test_it_becomes_a_model(llama, tmp_path, wrap):
    module, tensors = llama
    write(tmp_path / "step_3_ckp", tensors, wrap)
    assert distributed.convert(tmp_path / "step_3_ckp", LLAMA, tmp_path / "out") == tmp_path / "step_3_ckp"
    loaded = load_module(tmp_path / "out").module
    tokens = torch.arange(10)[None]
    assert torch.equal(loaded(tokens), module.eval()(tokens))


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_the_command(llama, tmp_path, leanlm, tokenizer_folder):
    write(tmp_path / "run" / "checkpoints" / "step_3_ckp", llama[1])
    (tmp_path / "llama.json").write_text(json.dumps(LLAMA))
    argv = ["import", tmp_path / "run", tmp_path / "out", "--tokenizer", tokenizer_folder]
    assert leanlm(*argv, "--config", tmp_path / "llama.json").code == 0
    assert load_module(tmp_path / "out").config.d_model == 16 and (tmp_path / "out" / "tokenizer.json").exists()
    ran = leanlm(*argv[:2], tmp_path / "other", "--config", "avengers-llama3-1.8b")
    assert ran.code == 4 and "does config.json belong to these weights?" in ran.err
    assert leanlm(*argv, "--config", "nonsense").code == 2


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_a_mamba_hybrid_with_a_tied_head(tmp_path):
    case = OWN / "mamba2" / "ss_hybrid_dconv"
    raw = json.loads((case / "config.json").read_text())
    weights = Weights(case)
    wrapped = {n.replace("mixer.", "_checkpoint_wrapped_module.mixer."): w for n, w in weights.items()}
    write(tmp_path / "checkpoint", wrapped)
    distributed.convert(tmp_path / "checkpoint", raw, tmp_path / "out")
    ours, theirs = load_module(tmp_path / "out").module, load_module(case).module
    assert all(torch.equal(a, b) for a, b in zip(ours.parameters(), theirs.parameters(), strict=True))


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_the_newest_complete_checkpoint_of_a_run(llama, tmp_path):
    for step in (9, 10):
        write(tmp_path / "checkpoints" / f"step_{step}_ckp", llama[1])
    (tmp_path / "checkpoints" / "step_11_ckp").mkdir()  # killed while it was written
    assert distributed.find(tmp_path).name == "step_10_ckp"
    with pytest.raises(NotFound, match="none of its 1 checkpoints is complete"):
        for step in (9, 10):
            shutil.rmtree(tmp_path / "checkpoints" / f"step_{step}_ckp")
        distributed.find(tmp_path)
    with pytest.raises(NotFound, match="no sharded checkpoint"):
        distributed.find(tmp_path / "checkpoints" / "step_11_ckp")


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_damage_and_other_models(llama, tmp_path):
    folder = write(tmp_path / "checkpoint", llama[1])
    with pytest.raises(CheckpointError, match="shapes do not fit"):
        distributed.convert(folder, {**LLAMA, "emb_dim": 32}, tmp_path / "out")
    with pytest.raises(CheckpointError, match="unknown"):
        distributed.convert(folder, {**LLAMA, "nlayers": 1}, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "x").touch()
    with pytest.raises(UsageError, match="exists"):
        distributed.convert(folder, LLAMA, tmp_path / "out")
    shard = next(folder.glob("*.distcp"))
    shard.write_bytes(shard.read_bytes()[:100])
    with pytest.raises(CheckpointError, match="missing or damaged"):
        distributed.tensors(folder)
    (folder / ".metadata").write_bytes((folder / ".metadata").read_bytes()[:50])
    with pytest.raises(CheckpointError, match=r"\.metadata: damaged"):
        distributed.tensors(folder)


class Evil:
    def __reduce__(self):
        return print, ("code was run",)


@pytest.mark.parametrize("payload", [Evil(), Path.unlink, subprocess.Popen, dcp.save, ModelConfig])
def test_code_in_the_metadata_is_refused(tmp_path, capsys, payload):
    (tmp_path / ".metadata").write_bytes(pickle.dumps(payload))
    with pytest.raises(CheckpointError, match="could run code"):
        distributed.tensors(tmp_path)
    assert not capsys.readouterr().out
    (tmp_path / ".metadata").write_bytes(pickle.dumps({"a": 1}))
    with pytest.raises(CheckpointError, match="holds a dict"):
        distributed.tensors(tmp_path)


FSDP = """
import sys, torch, torch.distributed as dist
from torch.distributed import checkpoint as dcp
from torch.distributed.fsdp import FullyShardedDataParallel as FSDP, StateDictType
from torch.distributed.fsdp.wrap import ModuleWrapPolicy
from leanlm.checkpoint.weights import Weights
from pathlib import Path

def build(tensors):
    root = torch.nn.Module()
    for name, tensor in tensors.items():
        *path, last = name.split(".")
        module = root
        for part in path:
            if part not in module._modules:
                module.add_module(part, Block() if part.isdigit() else torch.nn.Module())
            module = module._modules[part]
        module.register_parameter(last, torch.nn.Parameter(tensor.clone()))
    return root

class Block(torch.nn.Module):
    pass

folder, out, rank = sys.argv[1], sys.argv[2], int(sys.argv[3])
dist.init_process_group("gloo", init_method=f"file://{out}.store", rank=rank, world_size=2)
module = build(Weights(Path(folder)))
wrapped = FSDP(module, auto_wrap_policy=ModuleWrapPolicy({Block}), use_orig_params=True, device_id=torch.device("cpu"))
wrapped = torch.compile(wrapped)
with FSDP.state_dict_type(wrapped, StateDictType.SHARDED_STATE_DICT):
    state = {"model_state": wrapped.state_dict()}
dcp.save(state, storage_writer=dcp.FileSystemWriter(out, single_file_per_rank=True))
dist.barrier()
dist.destroy_process_group()
"""


@pytest.mark.slow
def test_what_fsdp_on_two_processes_writes(llama, tmp_path):
    """torch's own FSDP 1 under torch.compile, as fms-fsdp has it."""
    module, _ = llama
    save_module(tmp_path / "saved", module, get("fms_llama"))
    (tmp_path / "fsdp.py").write_text(FSDP)
    argv = [sys.executable, str(tmp_path / "fsdp.py"), str(tmp_path / "saved"), str(tmp_path / "sharded")]
    runs = [subprocess.Popen([*argv, str(rank)], stderr=subprocess.PIPE, text=True) for rank in range(2)]
    for run in runs:
        _, said = run.communicate(timeout=120)
        assert run.returncode == 0, said[-2000:]
    assert len(list((tmp_path / "sharded").glob("*.distcp"))) == 2
    distributed.convert(tmp_path / "sharded", LLAMA, tmp_path / "out")
    loaded = load_module(tmp_path / "out").module
    assert all(torch.equal(a, b) for a, b in zip(loaded.parameters(), module.parameters(), strict=True))
