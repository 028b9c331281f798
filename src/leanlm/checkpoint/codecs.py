"""The containers of packed weights: one module each, found by the name that config.json gives it."""

from collections.abc import Collection, Mapping
from typing import Protocol

from torch import Tensor

from leanlm.checkpoint import compressed_tensors, gptq, manifest
from leanlm.errors import CheckpointError, UsageError
from leanlm.model.packed import Packed


class Codec(Protocol):
    """What every container's module offers. Names are those of the published tensors."""

    METHOD: str  # quantization_config.quant_method

    def parts(self, settings: dict, names: Collection[str]) -> dict[str, tuple[str, ...]]:
        """Of every packed weight ("x.weight") the names of the stored tensors that hold it, among `names`.

        Raises CheckpointError for settings that cannot be understood.
        """

    def read(self, settings: dict, name: str, tensors: Mapping[str, Tensor]) -> Packed:
        """The weight, from its stored tensors; raises CheckpointError naming the tensor that is missing or wrong."""

    def refusal(self, name: str, weight: Packed) -> str | None:
        """Why the container cannot hold the weight exactly; None where it can."""

    def write(self, name: str, weight: Packed) -> dict[str, Tensor]:
        """The tensors to store. `read` gives an equal weight from them and from `settings`."""

    def settings(self, packed: Mapping[str, Packed], plain: Collection[str]) -> dict:
        """quantization_config of a model with these packed weights; `plain` names its matrices that are left float."""


CODECS: dict[str, Codec] = {codec.METHOD: codec for codec in (compressed_tensors, gptq, manifest)}
UNASKED = (compressed_tensors, gptq, manifest)  # tried in this order where no container is wanted


def of(raw: dict) -> Codec | None:
    """The container that a config.json speaks of; None where its weights are not packed. Raises CheckpointError."""
    settings = raw.get("quantization_config")
    if settings is None:
        return None
    method = settings.get("quant_method") if isinstance(settings, dict) else None
    if not isinstance(method, str) or method not in CODECS:
        known = ", ".join(sorted(CODECS))
        raise CheckpointError(f"quantization_config: weights packed by quant_method {method!r} are not read; known: {known}")
    return CODECS[method]


def choose(weights: Mapping[str, Packed], wanted: str | None = None) -> Codec:
    """The first container that holds every weight exactly, or the wanted one; raises UsageError where it does not."""
    if wanted is not None and wanted not in CODECS:
        raise UsageError(f"{wanted!r} is no container of packed weights; choose {', '.join(sorted(CODECS))}")
    refused = None
    for codec in (CODECS[wanted],) if wanted else UNASKED:
        refused = next(((name, r) for name, weight in weights.items() if (r := codec.refusal(name, weight))), None)
        if refused is None:
            return codec
    name, reason = refused
    raise UsageError(f"{codec.METHOD} cannot hold {name!r} exactly: {reason}")
