"""OpenLM training checkpoints of Mamba: mamba_ssm's names inside a wrapper, and a config of four numbers."""

from collections.abc import Collection

from leanlm.families import mamba_ssm
from leanlm.families.family import Family
from leanlm.model.config import ModelConfig


def matches(raw: dict) -> bool:
    """OpenLM's model json has a seq_len, which mamba_ssm's has not, and d_model, which OpenLM's transformers do not have."""
    return "model_type" not in raw and {"seq_len", "d_model"} <= raw.keys()


def read(raw: dict, names: Collection[str]) -> ModelConfig:
    """Settings that the json leaves out are those of the published weights: RMS norm, float32 stream, tied head."""
    layers = raw.get("n_layer", raw.get("n_layers"))
    return mamba_ssm.read({**raw, "n_layer": layers, "max_position_embeddings": raw["seq_len"]}, names)


def write(config: ModelConfig) -> dict:
    raw = mamba_ssm.write(config)
    length = raw.pop("max_position_embeddings", None)
    return {**raw, "seq_len": length}


FAMILY = Family("openlm", matches, read, write, mamba_ssm.rules, prefixes=("module.", "_orig_mod.", "model."), pickled=True)
