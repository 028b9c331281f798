"""What the formats' own packages make of packed matrices that are written here."""

import importlib.util
import json
import re
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from leanlm.checkpoint import compressed_tensors, gptq
from leanlm.model.packed import TernaryWeight
from packed_matrices import MODULE, NAME, grouped, stored, ternary


@pytest.mark.parametrize("bits", gptq.BITS)
def test_gptq_as_autogptq_packs_and_computes(bits):
    layer = autogptq_layer()
    weight = grouped(32, 96, bits, 32, symmetric=False, low=1, seed=bits)
    R, n = weight.shape
    tensors = gptq.write(NAME, weight)
    linear = torch.nn.Linear(n, R, bias=False)
    linear.weight.data = weight.dequantize(torch.float32)
    theirs = layer(bits, 32, n, R, False, weight_dtype=torch.float32)
    theirs.pack(linear, weight.scales.float(), weight.zeros.float(), None)
    for part in ("qweight", "qzeros", "scales", "g_idx"):
        held = tensors[f"{MODULE}.{part}"]
        assert torch.equal(getattr(theirs, part), held.float() if part == "scales" else held), part
    assert torch.equal(theirs(torch.eye(n)).T, weight.dequantize(torch.float32))


def autogptq_layer():
    """AutoGPTQ's layer that needs no CUDA, from its file: importing the package would import all it can do."""
    package = importlib.util.find_spec("auto_gptq")
    if package is None:
        pytest.skip("auto-gptq is not installed")
    pytest.importorskip("transformers")
    path = Path(package.submodule_search_locations[0]) / "nn_modules/qlinear/qlinear_cuda_old.py"
    spec = importlib.util.spec_from_file_location("autogptq_layer", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.QuantLinear


MATRICES = {
    "int2 groups": grouped(6, 96, 2, 32),
    "int3 per output": grouped(5, 37, 3),
    "int3 asymmetric": grouped(37, 96, 3, 32, symmetric=False),
    "int4 groups": grouped(6, 96, 4, 24),
    "int4 asymmetric": grouped(37, 96, 4, 32, symmetric=False),
    "int6 per output": grouped(5, 37, 6),
    "int6 asymmetric": grouped(9, 37, 6, symmetric=False),
    "int8 per output": grouped(5, 37, 8),
    "int8 asymmetric": grouped(9, 64, 8, 32, symmetric=False),
    "ternary along rows": ternary(12, 37, (0, 5)),
    "ternary along columns": ternary(12, 384, (0, 128), along_rows=False),
}


@pytest.mark.parametrize("kind", MATRICES)
def test_compressed_tensors_own_package_agrees(kind):
    pytest.importorskip("compressed_tensors")
    from compressed_tensors.compressors.pack_quantized import PackedQuantizationCompressor, pack_to_int32, unpack_from_int32
    from compressed_tensors.quantization import QuantizationConfig

    weight = MATRICES[kind]
    config, tensors = stored(compressed_tensors, weight)
    local = {name.removeprefix(f"{MODULE}."): tensor for name, tensor in tensors.items()}
    parsed = QuantizationConfig.model_validate(config)
    scheme = parsed.config_groups["group_0"]
    bits, middle = scheme.weights.num_bits, 1 << (scheme.weights.num_bits - 1)
    codes = weight.unpacked() if isinstance(weight, TernaryWeight) else (weight.unpacked().int() - middle).to(torch.int8)
    assert set(local) == set(PackedQuantizationCompressor.compression_param_names(scheme))
    assert torch.equal(local["weight_packed"], pack_to_int32(codes, bits))
    assert torch.equal(unpack_from_int32(local["weight_packed"], bits, weight.shape), codes)
    if not scheme.weights.symmetric:
        signed = (weight.zeros.int() - middle).to(torch.int8)
        assert torch.equal(local["weight_zero_point"], pack_to_int32(signed, bits, packed_dim=0))
    theirs = PackedQuantizationCompressor.decompress(local, scheme)["weight"]
    assert theirs.dtype == torch.float16 and torch.equal(theirs, weight.dequantize())


@pytest.mark.parametrize("tied", [True, False])
def test_transformers_reads_what_is_written(tmp_path, tied):
    """Symmetric formats alone: transformers 5.23 expects unpacked zero points and so refuses its own asymmetric folders."""
    pytest.importorskip("compressed_tensors")
    transformers = pytest.importorskip("transformers")
    config = transformers.LlamaConfig(
        vocab_size=64,
        hidden_size=128,
        intermediate_size=256,
        num_hidden_layers=2,
        num_attention_heads=4,
        tie_word_embeddings=tied,
    )
    torch.manual_seed(0)
    model = transformers.LlamaForCausalLM(config)
    packed, plain = {}, {}
    for name, tensor in model.state_dict().items():
        if re.search(r"[qkv]_proj", name):
            packed[name] = ternary(*tensor.shape, (0, 40))
        elif "down_proj" in name:
            packed[name] = ternary(*tensor.shape, (0, 128), along_rows=False)
        elif "_proj" in name:
            packed[name] = grouped(*tensor.shape, 4, 32)
            packed[name].scales.mul_(0.02)
        elif name == "lm_head.weight" and not tied:
            packed[name] = grouped(*tensor.shape, 8)
            packed[name].scales.mul_(0.001)
        elif not (tied and name == "lm_head.weight"):
            plain[name] = tensor
    tensors = dict(plain)
    for name, weight in packed.items():
        tensors |= compressed_tensors.write(name, weight)
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    floats = [name for name, tensor in plain.items() if tensor.ndim == 2]
    raw = {**config.to_dict(), "quantization_config": compressed_tensors.settings(packed, floats)}
    (tmp_path / "config.json").write_text(json.dumps({**raw, "architectures": ["LlamaForCausalLM"]}))
    model.load_state_dict(plain | {name: weight.dequantize(torch.float32) for name, weight in packed.items()}, strict=False)
    ids = torch.randint(64, (2, 9))
    with torch.no_grad():
        read = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32)
        assert torch.equal(read(ids).logits, model(ids).logits)
