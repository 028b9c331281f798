"""The programs that leanlm is measured beside: what they need and what may be asked of them. Loads none of them."""

import importlib.util
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from leanlm.errors import UsageError


@dataclass(frozen=True)
class Peer:
    """`packages` it is imported from, the extras that bring them, its options with their values, the default first, and the
    devices that it is measured on."""

    packages: tuple[str, ...]
    extras: str
    options: Mapping[str, tuple[str, ...]]
    devices: tuple[str, ...] = ("cpu",)


PEERS = {
    "llama.cpp": Peer(
        ("llama_cpp", "gguf"), "judges,gguf", {"flash_attn": ("auto", "on", "off"), "kv": ("f16", "f32", "bf16", "q8_0")}
    ),
    "transformers": Peer(("transformers",), "test", {"attn": ("auto", "sdpa", "eager")}, ("cpu", "cuda")),
}


def check(names: Sequence[str], device: str = "cpu") -> None:
    """Raises UsageError naming the extra of a peer that is not installed, and for one that does not run on the device."""
    for name in names:
        if device not in PEERS[name].devices:
            raise UsageError(f"--peer {name} is measured on {', '.join(PEERS[name].devices)} only, not with --device {device}")
        for package in PEERS[name].packages:
            if importlib.util.find_spec(package) is None:
                raise UsageError(f"--peer {name} needs {package}: pip install 'leanlm[{PEERS[name].extras}]'")


def options(name: str, asked: Mapping[str, str]) -> dict[str, str]:
    """A peer's options: what is asked of it, else its defaults."""
    return {option: asked.get(option, values[0]) for option, values in PEERS[name].options.items()}


def parse_options(names: Sequence[str], given: Sequence[str]) -> dict[str, str]:
    """OPTION=VALUE words; raises UsageError for what none of these peers knows."""
    known = {option: values for name in names for option, values in PEERS[name].options.items()}
    asked = dict(word.partition("=")[::2] for word in given)
    for option, value in asked.items():
        if value not in known.get(option, ()):
            choices = "; ".join(f"{option}={'|'.join(values)}" for option, values in known.items()) or "none without --peer"
            raise UsageError(f"--peer-option {option}={value}: these peers know {choices}")
    return asked
