"""Text to token ids and back: the `tokenizers` library, with what the files beside tokenizer.json say about special tokens."""

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import tokenizers

from leanlm.checkpoint.folder import read_json
from leanlm.errors import CheckpointError, NotFound

FILE = "tokenizer.json"
BESIDE = ("tokenizer_config.json", "special_tokens_map.json", "generation_config.json")
TEMPLATE = "chat_template.jinja"


class Tokenizer:
    """A tokenizer with its special ids and chat template.

    `vocab_size` counts the ids that exist (a model's vocabulary may be padded beyond it). `eos_ids` end a text.
    """

    def __init__(
        self,
        backend: tokenizers.Tokenizer,
        eos_ids: Iterable[int] = (),
        bos_id: int | None = None,
        pad_id: int | None = None,
        chat_template: str | None = None,
        special: dict[str, str] | None = None,
        source: Path | None = None,
    ):
        self.backend = backend
        self.eos_ids, self.bos_id, self.pad_id = tuple(eos_ids), bos_id, pad_id
        self.chat_template = chat_template
        self.special = special or {}  # bos_token, eos_token ... as text, for chat templates
        self.source = source

    @property
    def vocab_size(self) -> int:
        return max(self.backend.get_vocab(with_added_tokens=True).values()) + 1

    def encode(self, text: str) -> list[int]:
        """Token ids; a start token only where tokenizer.json itself adds one."""
        return self.backend.encode(text).ids

    def decode(self, ids: Sequence[int], skip_special: bool = True) -> str:
        """Text of the ids; bytes that are no complete character become U+FFFD."""
        return self.backend.decode(list(ids), skip_special_tokens=skip_special)

    def files(self) -> dict[str, Callable[[Path], object]]:
        """Writers of the tokenizer's files by name: its own, or copies of those it was read from."""
        if self.source is None:
            return {FILE: lambda path: self.backend.save(str(path))}
        names = [name for name in (FILE, *BESIDE, TEMPLATE) if (self.source / name).is_file()]
        content = {name: (self.source / name).read_bytes() for name in names}
        return {name: (lambda path, data=data: path.write_bytes(data)) for name, data in content.items()}


def from_file(path: Path) -> Tokenizer:
    """A tokenizer from one tokenizer.json, and the files beside it where there are any."""
    if not path.is_file():
        raise NotFound(f"{path}: no such tokenizer file")
    try:
        backend = tokenizers.Tokenizer.from_file(str(path))
    except Exception as error:  # the library raises bare Exception
        raise CheckpointError(f"{path}: not a tokenizer.json ({error})") from None
    folder = path.parent
    settings, special_map, generation = (read_json(folder / name) if (folder / name).is_file() else {} for name in BESIDE)
    special = {key: _text(value) for key, value in {**special_map, **settings}.items() if key.endswith("_token") and value}
    ids = {key: backend.token_to_id(text) for key, text in special.items() if isinstance(text, str)}
    eos = generation.get("eos_token_id", ids.get("eos_token"))
    eos_ids = () if eos is None else tuple(eos) if isinstance(eos, list) else (eos,)
    if ids.get("eos_token") is not None and ids["eos_token"] not in eos_ids:
        eos_ids = (*eos_ids, ids["eos_token"])
    return Tokenizer(backend, eos_ids, ids.get("bos_token"), ids.get("pad_token"), _template(folder, settings), special, folder)


def from_folder(folder: Path) -> Tokenizer | None:
    """The tokenizer in a folder, None where it holds none."""
    return from_file(folder / FILE) if (folder / FILE).is_file() else None


def _text(token: str | dict) -> str | None:
    return token.get("content") if isinstance(token, dict) else token


def _template(folder: Path, settings: dict) -> str | None:
    """chat_template.jinja, or the template of tokenizer_config.json (the one named "default" where there are several)."""
    if (folder / TEMPLATE).is_file():
        return (folder / TEMPLATE).read_text(encoding="utf-8")
    template = settings.get("chat_template")
    if isinstance(template, list):
        named = {item.get("name"): item.get("template") for item in template}
        return named.get("default") or next(iter(named.values()), None)
    return template
