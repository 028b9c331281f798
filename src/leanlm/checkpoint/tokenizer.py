"""Text to token ids and back, from the tokenizer files of a checkpoint folder, over the `tokenizers` library."""

import json
import warnings
from collections.abc import Iterable, Sequence
from functools import cached_property
from itertools import accumulate
from pathlib import Path
from typing import TYPE_CHECKING

import tokenizers

from leanlm.checkpoint.aside import replacing
from leanlm.checkpoint.folder import check_folder, read_json
from leanlm.errors import CheckpointError, LeanLMError, NotFound, UsageError, first_line
from leanlm.families.catalog import Entry

if TYPE_CHECKING:
    from leanlm.checkpoint.chat import Template

MAIN = "tokenizer.json"
SETTINGS, SPECIAL, GENERATION, TEMPLATE = (
    "tokenizer_config.json",
    "special_tokens_map.json",
    "generation_config.json",
    "chat_template.jinja",
)
FILES = (MAIN, SETTINGS, SPECIAL, GENERATION, TEMPLATE)
ROLES = ("bos_token", "eos_token", "pad_token", "unk_token")


class Tokenizer:
    """Encodes as the tokenizer.json says: a beginning-of-text token is added only where its own post-processor adds one.

    `files` are the tokenizer files by name, byte for byte, as `save` writes them.
    """

    def __init__(self, core: tokenizers.Tokenizer, files: dict[str, bytes] | None = None):
        """`core` alone makes a tokenizer without special roles; `files` may bring the other files of its folder."""
        self.files = {MAIN: core.to_str(pretty=True).encode(), **(files or {})}
        self.core = core
        core.no_truncation()
        core.no_padding()
        # Tokens with a role are special wherever they are written down, as transformers has it.
        known = {token.content for token in core.get_added_tokens_decoder().values()}
        extra = [token for token in self._roles.values() if token not in known and core.token_to_id(token) is not None]
        if extra:
            core.add_special_tokens(extra)

    @classmethod
    def from_folder(cls, folder: str | Path) -> "Tokenizer":
        """From the files in `folder`; raises NotFound without a tokenizer.json, CheckpointError where one is damaged."""
        folder = Path(folder)
        check_folder(folder)
        if not (folder / MAIN).exists():
            raise NotFound(f"{folder}: no {MAIN}; give a tokenizer by --tokenizer (tokenizer=)")
        files = {name: (folder / name).read_bytes() for name in FILES if (folder / name).exists()}
        for name in files:
            if name.endswith(".json"):
                read_json(folder / name)
        try:
            core = tokenizers.Tokenizer.from_buffer(files[MAIN])
        except Exception as error:  # the library raises plain Exception
            raise CheckpointError(f"{folder / MAIN}: not a tokenizer ({first_line(error)})") from None
        return cls(core, files)

    @classmethod
    def from_file(cls, path: str | Path) -> "Tokenizer":
        """From a tokenizer.json, or from the folder that holds it; the files beside it are read too."""
        path = Path(path)
        if path.is_dir() or path.name == MAIN:
            return cls.from_folder(path if path.is_dir() else path.parent)
        if not path.exists():
            raise NotFound(f"{path}: no such tokenizer file")
        try:
            return cls(tokenizers.Tokenizer.from_file(str(path)), {MAIN: path.read_bytes()})
        except Exception as error:
            raise CheckpointError(f"{path}: not a tokenizer ({first_line(error)})") from None

    def encode(self, text: str, add_special: bool = True) -> list[int]:
        """Token ids; without `add_special` the post-processor adds nothing (chat templates write such tokens themselves)."""
        return self._encoded(text, add_special).ids

    def measured(self, text: str) -> tuple[list[int], list[int]]:
        """Token ids without added ones, and how many bytes of the text (UTF-8) each is the first to hold; they add up to it."""
        found = self._encoded(text, add_special=False)
        upto = list(accumulate((len(character.encode()) for character in text), initial=0))
        ends = list(accumulate((upto[end] for _, end in found.offsets), max))
        ends[-1:] = [upto[-1]] * bool(ends)  # what no token holds, as blanks at the end may be
        return found.ids, [end - begin for begin, end in zip([0, *ends], ends)]

    def _encoded(self, text: str, add_special: bool) -> tokenizers.Encoding:
        try:
            return self.core.encode(text, add_special_tokens=add_special)
        except (TypeError, UnicodeEncodeError):
            raise UsageError("the text holds bytes that are no Unicode characters; give it as UTF-8") from None

    def decode(self, ids: Iterable[int], skip_special: bool = True) -> str:
        """Text of token ids; ids that do not exist give nothing."""
        return self.core.decode(list(ids), skip_special_tokens=skip_special)

    @cached_property
    def vocab_size(self) -> int:
        """One more than the largest id that exists."""
        return max(self.core.get_vocab(with_added_tokens=True).values(), default=-1) + 1

    @cached_property
    def eos_ids(self) -> tuple[int, ...]:
        """Tokens that end a text: generation_config.json's, then the tokenizer's own."""
        named = self._json(GENERATION).get("eos_token_id")
        ids = [id for id in (named if isinstance(named, list) else [named]) if isinstance(id, int)]
        return tuple(dict.fromkeys(id for id in (*ids, self._id("eos_token")) if id is not None))

    @property
    def bos_id(self) -> int | None:
        return self._id("bos_token")

    @property
    def eos_id(self) -> int | None:
        """The tokenizer's own, whatever generation_config.json adds."""
        return self._id("eos_token")

    @property
    def pad_id(self) -> int | None:
        return self._id("pad_token")

    @cached_property
    def chat_template(self) -> "Template | None":
        """The folder's chat template, None without one; chat_template.jinja comes before tokenizer_config.json's."""
        source = self.files[TEMPLATE].decode() if TEMPLATE in self.files else self._json(SETTINGS).get("chat_template")
        if not source:
            return None
        from leanlm.checkpoint.chat import Template  # brings jinja2, which only conversations need

        return Template.parse(source)

    def apply_chat(self, messages: Sequence[dict], add_generation_prompt: bool = True, **variables) -> str:
        """The text of a conversation ({"role": ..., "content": ...} each), to be encoded with `add_special=False`."""
        if self.chat_template is None:
            raise UsageError("this tokenizer has no chat template; generate from a plain prompt instead")
        return self.chat_template.render(
            messages=messages, add_generation_prompt=add_generation_prompt, **self._roles, **variables
        )

    def save(self, folder: str | Path) -> None:
        """Write the tokenizer's files as they were read."""
        with replacing(Path(folder)) as aside:
            for name, content in self.files.items():
                aside(name).write_bytes(content)

    def _json(self, name: str) -> dict:
        return json.loads(self.files.get(name, b"{}"))

    @cached_property
    def _roles(self) -> dict[str, str]:
        """bos_token, eos_token ... -> the token's text; a token is a string or a table with its "content"."""
        roles = {}
        for name in ROLES:
            token = self._json(SETTINGS).get(name) or self._json(SPECIAL).get(name)
            content = token.get("content") if isinstance(token, dict) else token
            if isinstance(content, str):
                roles[name] = content
        return roles

    def _id(self, role: str) -> int | None:
        return self.core.token_to_id(self._roles[role]) if role in self._roles else None


def find(folder: str | Path, entry: Entry | None = None, offline: bool = False) -> Tokenizer | None:
    """The tokenizer in `folder`, else that of the catalog entry's repository, else None (with a warning if it has one)."""
    if (Path(folder) / MAIN).exists():
        return Tokenizer.from_folder(folder)
    if entry is None or not entry.tokenizer_repo:
        return None
    from leanlm.checkpoint import hub  # loaded only where something may be downloaded

    try:
        return Tokenizer.from_folder(hub.download(entry.tokenizer_repo, needs=MAIN, offline=offline))
    except LeanLMError as error:
        warnings.warn(f"no tokenizer, token ids only: {error}", stacklevel=2)
        return None
