"""OpenLM training checkpoints of Mamba: mamba_ssm's names inside a wrapper, and a config of three numbers."""

from leanlm.families import mamba_ssm
from leanlm.families.family import Family
from leanlm.model.config import ModelConfig


def matches(raw: dict) -> bool:
    """OpenLM's model json: d_model, n_layer, vocab_size and a seq_len that mamba_ssm does not have."""
    return "model_type" not in raw and "seq_len" in raw and {"d_model", "n_layer", "vocab_size"} <= raw.keys()


def read(raw: dict, names: Collection[str]) -> ModelConfig:
    """Settings the json leaves out are those of the published weights (RMS norm, float32 stream), not of the old class."""
    known = {"tie_embeddings": not any(n.endswith("lm_head.weight") for n in names)} if names else {}
    return mamba_ssm.to_config({**known, **raw, "max_position_embeddings": raw.get("seq_len")}, names)


def write(config: ModelConfig) -> dict:
    return {**mamba_ssm.from_config(config), "seq_len": config.context_length or 2048}


FAMILY = Family("openlm", matches, read, write, mamba_ssm.rules, prefixes=("module.", "model."))
