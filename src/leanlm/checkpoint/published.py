"""The published weights of a folder under their plain names, whatever wraps the names and however the weights are packed."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

from torch import Tensor

from leanlm.checkpoint import codecs
from leanlm.checkpoint.folder import CONFIG
from leanlm.checkpoint.weights import Weights
from leanlm.errors import CheckpointError
from leanlm.model.packed import Packed
from leanlm.ops.pages import Arena

MAPPED_BYTES = 64 << 20  # how much of what is only read to be converted may stay mapped


class Published(Mapping[str, Tensor | Packed]):
    """name -> float tensor or packed matrix; several stored tensors that hold one matrix count as that matrix's weight.

    `raw` is config.json; where it names a quantisation, that format's codec reads it.
    """

    def __init__(self, weights: Weights, prefixes: Sequence[str], raw: Mapping):
        self.weights, self.file = weights, weights.main
        self._stored = plain_names(weights, prefixes, self.file)
        try:
            self._codec, self._settings = codecs.of(raw), raw.get("quantization_config")
            self._parts = self._codec.parts(self._settings, self._stored.keys()) if self._codec else {}
        except CheckpointError as error:
            raise CheckpointError(f"{self.file.parent / CONFIG}: {error}") from None
        inside = {part for parts in self._parts.values() for part in parts}
        if twice := next((name for name in self._parts if name in self._stored and name not in inside), None):
            raise CheckpointError(f"{self.file}: {twice!r} is stored twice, as floats and packed ({self._parts[twice][0]!r})")
        self._names = dict.fromkeys([*(name for name in self._stored if name not in inside), *self._parts])
        self._packed: dict[str, Packed] = {}
        self.arena = Arena(weights.nbytes)  # for what cannot stay in the mapped files
        # Mappings of their own, which can be given up as soon as what was read through them is converted.
        self._sources, self._mapped = Weights(weights.main.parent) if self._parts else weights, 0

    def __getitem__(self, name: str) -> Tensor | Packed:
        if name not in self._parts:
            return self.weights[self._stored[name]]
        if name not in self._packed:
            self._packed[name] = self._unpack(name)
        return self._packed[name]

    def forget(self, name: str) -> None:
        """Let go of a packed matrix, which is made again when it is asked for."""
        self._packed.pop(name, None)

    def _unpack(self, name: str) -> Packed:
        tensors = {part: self._sources.stored(self._stored[part]) for part in self._parts[name]}
        try:
            weight = self._codec.read(self._settings, name, tensors)
        except CheckpointError as error:
            of_config = str(error).startswith("quantization_config")
            raise CheckpointError(f"{self.file.parent / CONFIG if of_config else self.file}: {error}") from None
        if converted(weight, tensors.values()):
            weight._apply(self.arena.copy)  # the scales too, so that no mapping of the file stays for them
            self._mapped += sum(tensor.nbytes for tensor in tensors.values())
        if self._mapped > MAPPED_BYTES:
            self._sources.release()
            self._mapped = 0
        return weight

    def parts(self, name: str) -> tuple[str, ...]:
        """The stored tensors, by plain name, that hold a packed matrix; none for a tensor that is stored as it is."""
        return self._parts.get(name, ())

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)

    def __contains__(self, name: object) -> bool:
        return name in self._names


def converted(weight: Packed, sources: Iterable[Tensor]) -> bool:
    """Whether the codes are not the stored ones."""
    return weight.codes.untyped_storage().data_ptr() not in {tensor.untyped_storage().data_ptr() for tensor in sources}


def plain_names(stored: Iterable[str], prefixes: Sequence[str], file: Path) -> dict[str, str]:
    """Names without the family's wrapping prefixes -> names in the file."""
    plain: dict[str, str] = {}
    for name in stored:
        bare = name
        for prefix in prefixes:
            bare = bare.removeprefix(prefix)
        if bare in plain:
            raise CheckpointError(f"{file}: {plain[bare]!r} and {name!r} are the same tensor twice")
        plain[bare] = name
    return plain
