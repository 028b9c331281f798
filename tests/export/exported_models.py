"""Tiny random models of the kinds that are exported, with float or few-bit matrices."""

import torch

from leanlm.model.config import Attention, GatedMLP, Llama3Scaling, Mamba1, Mamba2, ModelConfig, Norm, Rope
from leanlm.model.format import Grouped
from leanlm.model.language_model import LanguageModel
from leanlm.model.packed import GroupedWeight, Packed, TernaryWeight
from leanlm.ops.packing import Trits

V = 320
MLP = GatedMLP(512)
STRETCHED = Rope(64, 5e5, Llama3Scaling(8.0, 1.0, 4.0, 64))
CONFIGS = {
    "llama": ModelConfig(256, V, ((Attention(4, 2, 64, rope=Rope(64)), MLP),) * 2, norm=Norm(eps=1e-6)),
    "llama-3": ModelConfig(
        256, V, ((Attention(4, 2, 64, rope=STRETCHED, qkv_bias=True, out_bias=True), GatedMLP(512, True)),), tied=False
    ),
    "mamba": ModelConfig(256, V, ((Mamba1(512, 16, 4, 16),),) * 2),
    "mamba2": ModelConfig(256, V, ((Mamba2(512, 64, 64, n_groups=1, conv_bias=False),),) * 2),
    "mamba2-groups": ModelConfig(256, V, ((Mamba2(512, 64, 64, n_groups=4),),) * 2, tied=False),
    "hybrid": ModelConfig(256, V, ((Mamba2(512, 64, 64), MLP), (Attention(4, 2, 64, rope=Rope(32)), MLP)), tied=False),
}


def model(
    config: ModelConfig | str, dtype: torch.dtype = torch.float32, scheme: str | None = None, spread: float = 10
) -> LanguageModel:
    """Random weights, the embedding's `spread` times larger than the rest; matrices inside the layers, but Mamba-1's dt_proj,
    in `scheme` (of SCHEMES)."""
    torch.manual_seed(0)
    module = LanguageModel(CONFIGS[config] if isinstance(config, str) else config)
    module.reset(0.1)
    with torch.no_grad():
        module.embedding.weight.mul_(spread)
        for parameter in module.parameters():
            if parameter.ndim == 1:
                parameter.add_(torch.randn_like(parameter) * 0.1)
    module.to(dtype)
    for name, matrix in module.matrices().items():
        if scheme and name.startswith("layers") and "dt_proj" not in name:
            weight = SCHEMES[scheme](matrix.weight.detach().float())
            weight.dtype = dtype
            matrix.hold(weight)
    return module.eval()


def rounded(weight: torch.Tensor, bits: int, group: int = 0) -> Packed:
    """To the nearest of a symmetric grid."""
    format, top = Grouped(bits, group), 2 ** (bits - 1)
    blocks = weight.view(len(weight), format.groups(weight.shape[1]), -1)
    scales = (blocks.abs().amax(-1) / (top - 1)).half()
    levels = (blocks / scales.float()[..., None]).round().clamp(-top, top - 1)
    return GroupedWeight.of(format, (levels + top).to(torch.uint8).view(weight.shape), scales)


def ternarised(weight: torch.Tensor) -> Packed:
    scale = weight.abs().mean().half()
    trits = (weight / scale).round().clamp(-1, 1).to(torch.int8)
    return TernaryWeight.of(Trits(trits, scale[None], torch.zeros(1, dtype=torch.int32), True))


SCHEMES = {
    "int8": lambda weight: rounded(weight, 8),
    "int6": lambda weight: rounded(weight, 6),
    "int4": lambda weight: rounded(weight, 4, 128),
    "int3": lambda weight: rounded(weight, 3, 128),
    "ternary": ternarised,
}
