"""The model that is measured, made ready in a folder: the same weights for leanlm and, exported, for its peers."""

from pathlib import Path

import torch

from leanlm import families
from leanlm.api import as_dtype, cast
from leanlm.checkpoint import locate
from leanlm.checkpoint.folder import CONFIG, read_config, read_json, translating
from leanlm.checkpoint.load import load_module
from leanlm.checkpoint.save import save_module
from leanlm.errors import UsageError
from leanlm.export import gguf, gguf_architecture, hf
from leanlm.export.gguf_types import FLOATS
from leanlm.families import Family, catalog
from leanlm.model.config import ModelConfig
from leanlm.model.language_model import LanguageModel
from leanlm.quantize import plan, ternary
from leanlm.quantize.convert import convert

RANDOM_DTYPE = "bfloat16"  # of random weights where none is asked for


class Preparation:
    """What a process does before the measurements, and is then gone with the memory it took."""

    def prepare(
        self,
        folder: str,
        model: str,
        random: bool,
        dtype: str | None,
        formats: dict[str, str | None],
        peers: list[str],
        peer_type: str,
        offline: bool,
        revision: str | None,
        rounded: bool = False,
    ) -> dict:
        """Writes into `folder` what has to be written; returns the `path` to load, the `dtype` to load it in, and by peer the
        `path`, `bytes` and types of its export. `formats`: "layers", "embedding", "head" (`quantize.plan.make`); `rounded`
        makes ternary what is not."""
        if random:
            family, raw = shape(model)
            check(peers, family.to_config(raw), raw)
            module, path = random_model(family.to_config(raw), dtype or RANDOM_DTYPE), None
        else:
            path = locate.resolve(model, revision, offline)
            if not peers and not any(formats.values()):
                return {"path": str(path), "dtype": dtype, "peers": {}}
            loaded = load_module(path, as_dtype(dtype))
            module, family, raw = loaded.module, loaded.family, loaded.raw
            check(peers, loaded.config, raw)
        if any(formats.values()):
            hold(module, formats, random or rounded)
        made = {name: export(name, Path(folder), module, raw, peer_type) for name in peers}
        if random or any(formats.values()):
            path, dtype = Path(folder) / "leanlm", None
            save_module(path, module, family, raw, weights="safetensors")
        return {"path": str(path), "dtype": dtype, "peers": made}


def check(peers: list[str], config: ModelConfig, raw: dict) -> None:
    """Raises UsageError where a peer has no such model."""
    for name in peers:
        try:
            gguf_architecture.name_of(config) if name == "llama.cpp" else hf.equivalent(config, raw)
        except UsageError as error:
            raise UsageError(f"--peer {name} cannot run this model: {error}") from None


def random_model(config: ModelConfig, dtype: str) -> LanguageModel:
    """Random weights in the shape of a config."""
    torch.manual_seed(0)
    module = LanguageModel(config)
    module.reset()
    cast(module, as_dtype(dtype))
    return module.eval()


def shape(name: str) -> tuple[Family, dict]:
    """The family of a published config, and the config."""
    path, entry = Path(name), catalog.resolve(name)
    if not path.exists() and entry is not None:
        return families.get(entry.family), entry.config
    raw = read_json(path) if path.is_file() else read_config(locate.resolve(name, offline=True))
    raw.pop("quantization_config", None)
    with translating(path.parent if path.is_file() else path):
        return families.find(raw), raw


def hold(module: LanguageModel, formats: dict[str, str | None], rounds: bool) -> None:
    """In place: the formats asked for; what is to be ternary must be, or is made so with `rounds`."""
    shapes = {name: tuple(matrix.weight.shape) for name, matrix in module.matrices().items()}
    layers = formats["layers"]
    chosen = plan.make(shapes, layers or "float", formats["embedding"], formats["head"])
    if layers == "ternary" and rounds:
        ternary.round_matrices(module)
    if layers is None or (layers == "ternary" and rounds):
        chosen = {name: format for name, format in chosen.items() if name in plan.TABLES}
    convert(module, chosen)


def export(name: str, folder: Path, module: LanguageModel, raw: dict, type: str) -> dict:
    """The model written for a peer; floats and integers as they are, or rounded to the GGUF `type` where one is asked for.
    Raises UsageError where no type holds them exactly."""
    if name == "llama.cpp":
        path = folder / "model.gguf"
        try:
            written = gguf.export(path, module, type=type, lossy=type != gguf.AUTO)
        except UsageError as error:
            raise UsageError(f"--peer llama.cpp: {error}; here --peer-type chooses, and rounds") from None
        return {"path": str(path), "bytes": path.stat().st_size, "types": sorted(set(written.types.values()))}
    floats = {type.name: type.dtype for type in FLOATS}
    written = hf.export(folder / "transformers", module, None, raw, floats.get(type, module.dtype))
    size = sum(file.stat().st_size for file in written.path.iterdir() if file.name != CONFIG)
    return {"path": str(written.path), "bytes": size, "types": [str(written.dtype).removeprefix("torch.")]}
