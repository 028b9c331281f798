"""A distilled student as published: named as the golden Llambas, computed from its file by the formulas of the original."""

import json
import re

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file

import leanlm
from golden_cases import golden_cases
from leanlm.distill import sequence
from tiny_distillations import student


@pytest.fixture(scope="module")
def folder(teacher, tmp_path_factory):
    made = tmp_path_factory.mktemp("published")
    sequence.distil(student(made, teacher), made / "run")
    return made / "run" / "model"


def names(tensors) -> set[str]:
    return {re.sub(r"layers\.\d+\.", "layers.N.", name) for name in tensors}


def test_it_has_the_tensors_and_settings_of_a_published_one(folder):
    raw, tensors = json.loads((folder / "config.json").read_text()), load_file(folder / "model.safetensors")
    alike = 0
    for case in golden_cases("llamba"):
        theirs = json.loads((case.folder / "config.json").read_text())
        assert theirs["ssm_cfg"].keys() <= raw["ssm_cfg"].keys() and theirs["mlp_cfg"].keys() <= raw["mlp_cfg"].keys()
        assert {"model_type", "d_model", "n_layer", "vocab_size", "tie_embeddings"} <= raw.keys() & theirs.keys()
        if not theirs["ssm_cfg"].get("bias", False):
            assert names(load_file(case.folder / "model.safetensors")) - {"lm_head.weight"} == names(tensors)
            alike += 1
    assert alike


def norm(x, weight, eps=1e-5):
    return x / (x.square().mean(-1, keepdim=True) + eps).sqrt() * weight


def mixer(x, part, ssm):
    """Llamba's recurrence, token by token: S = sigmoid(-a) S + x B^T, y = S C + D x, gated by silu(z + z_bias)."""
    L, width, H, G, N = len(x), x.shape[1], ssm["n_v_heads"], ssm["n_qk_heads"], ssm["d_state"]
    xBC, z, a = (x @ part("in_proj.weight").T).split([width + 2 * G * N, width, H], -1)
    taps = part("conv1d.weight")[:, 0]
    padded = torch.cat([torch.zeros(taps.shape[1] - 1, xBC.shape[1]), xBC])
    xBC = torch.stack([(padded[t : t + taps.shape[1]].T * taps).sum(1) for t in range(L)]) + part("conv1d.bias")
    values, B, C = xBC.split([width, G * N, G * N], -1)
    S, outputs = torch.zeros(H, width // H, N), []
    for t in range(L):
        v, b, c = (
            values[t].view(H, -1),
            B[t].view(G, N).repeat_interleave(H // G, 0),
            C[t].view(G, N).repeat_interleave(H // G, 0),
        )
        S = torch.sigmoid(-a[t])[:, None, None] * S + v[:, :, None] * b[:, None]
        outputs.append(((S * c[:, None]).sum(-1) + part("D")[:, None] * v).flatten())
    return torch.stack(outputs) * F.silu(z + part("z_bias")) @ part("out_proj.weight").T


def test_its_file_computes_by_the_originals_formulas_what_it_computes(folder):
    raw, tensors = json.loads((folder / "config.json").read_text()), load_file(folder / "model.safetensors")
    tokens = torch.randint(300, (40,), generator=torch.Generator().manual_seed(1))
    x = tensors["backbone.embedding.weight"][tokens]
    for i in range(raw["n_layer"]):
        layer = {name.split(f"layers.{i}.")[1]: t for name, t in tensors.items() if f"layers.{i}." in name}
        x = x + mixer(norm(x, layer["input_layernorm.weight"]), lambda name, held=layer: held[f"mixer.{name}"], raw["ssm_cfg"])
        y = norm(x, layer["post_attention_layernorm.weight"])
        gate, up, down = (layer[f"mlp.{name}_proj.weight"] for name in ("gate", "up", "down"))
        x = x + (F.silu(y @ gate.T) * (y @ up.T)) @ down.T
    logits = norm(x, tensors["backbone.final_layernorm.weight"], raw["norm_epsilon"]) @ tensors["backbone.embedding.weight"].T
    with torch.no_grad():
        torch.testing.assert_close(leanlm.load(folder)(tokens[None])[0], logits, rtol=0, atol=1e-4)


def test_it_is_read_the_same_at_every_cut(folder):
    model = leanlm.load(folder)
    tokens = torch.randint(300, (2, 40), generator=torch.Generator().manual_seed(1))
    state = model.new_state(2)
    with torch.no_grad():
        parts = torch.cat([model(part, state) for part in tokens.split(7, 1)], 1)
        torch.testing.assert_close(parts, model(tokens), rtol=0, atol=1e-4)
