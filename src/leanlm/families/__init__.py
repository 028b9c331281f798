"""The published formats leanlm reads and writes: each a translation of a config and a two-way table of tensor names."""

from leanlm.errors import CheckpointError, UsageError
from leanlm.families import fms_llama, hf_bamba, hf_llama, hf_mamba, hf_mamba2, llamba, mamba_ssm, openlm, rene, telescoping
from leanlm.families.family import Family, Rule

__all__ = ["FAMILIES", "Family", "Rule", "find", "get"]

# openlm stands before mamba_ssm, whose keys are a subset of its own.
FAMILIES: dict[str, Family] = {
    module.FAMILY.name: module.FAMILY
    for module in (rene, llamba, hf_mamba, hf_mamba2, hf_bamba, hf_llama, telescoping, fms_llama, openlm, mamba_ssm)
}


def get(name: str) -> Family:
    """The family of this name; raises UsageError naming those there are."""
    if name not in FAMILIES:
        raise UsageError(f"{name!r} is no model family; choose from {', '.join(FAMILIES)}")
    return FAMILIES[name]


def find(raw: dict) -> Family:
    """The family a published config.json belongs to; raises CheckpointError where none knows it."""
    for family in FAMILIES.values():
        if family.matches(raw):
            return family
    kind = raw.get("model_type")
    what = f"model_type {kind!r}" if kind else "a config without model_type or known keys"
    raise CheckpointError(f"config.json: {what} is of no family leanlm reads ({', '.join(FAMILIES)})")
