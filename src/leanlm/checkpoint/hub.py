"""Where a model is: a folder, the built-in one, a catalogue name, or a repository of the Hugging Face hub."""

import re
from pathlib import Path

import huggingface_hub
from huggingface_hub import errors as hub_errors

from leanlm import env
from leanlm.checkpoint import tokenizer
from leanlm.errors import NotFound, UsageError
from leanlm.families import catalog

BUILTIN = {"builtin": "float", "builtin-float": "float"}
CONFIG_FILES = ("*.json", "*.jinja")
WEIGHT_FILES = (("*.safetensors",), ("pytorch_model*.bin",), ("*.pt",))


def locate(path_or_name: str | Path, revision: str | None = None, offline: bool = False) -> Path:
    """The folder of a checkpoint, downloaded into the hub's cache where it must be.

    Takes a folder, "builtin", a name of the catalogue, or a hub id. `offline` (or HF_HUB_OFFLINE=1) uses only what is
    already on disk. Raises NotFound in one line saying what is absent, gated or out of reach, and what to do.
    """
    name = str(path_or_name)
    if name in BUILTIN:
        return Path(__file__).parent.parent / "builtin" / BUILTIN[name]
    if Path(path_or_name).exists():
        return Path(path_or_name)
    entry = catalog.resolve(name)
    if entry is not None and entry.repo is None:
        raise NotFound(f"{entry.name}: {entry.note}")
    repo = entry.repo if entry else name
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", repo):
        near = catalog.nearest(name)
        hint = f"; did you mean {near!r}?" if near else ""
        raise NotFound(
            f"{name}: neither a folder, nor a name of the catalogue (leanlm list), nor a hub id like owner/name{hint}"
        )
    return fetch(repo, revision or (entry.revision if entry else None), offline)


def fetch(repo: str, revision: str | None = None, offline: bool = False, tokenizer_only: bool = False) -> Path:
    """A repository's config, tokenizer and (unless `tokenizer_only`) weights, safetensors preferred, in the hub's cache."""
    offline = offline or env.HF_HUB_OFFLINE.is_set()
    try:
        patterns = list(CONFIG_FILES)
        if not tokenizer_only and not offline:
            patterns += _weights(huggingface_hub.HfApi().list_repo_files(repo, revision=revision))
        patterns = None if offline else patterns
        return Path(
            huggingface_hub.snapshot_download(repo, revision=revision, allow_patterns=patterns, local_files_only=offline)
        )
    except Exception as error:
        raise _explained(error, repo, revision, offline) from None


def _weights(files: list[str]) -> list[str]:
    """The patterns of the first weight format that a repository holds."""
    for patterns in WEIGHT_FILES:
        if any(Path(file).match(pattern) for file in files for pattern in patterns):
            return list(patterns)
    return []


def _explained(error: Exception, repo: str, revision: str | None, offline: bool) -> Exception:
    """The one-line NotFound for an error of the hub's library; errors it does not know come back as they are."""
    if isinstance(error, hub_errors.HFValidationError):
        return UsageError(f"{repo}: not a valid hub id")
    if isinstance(error, hub_errors.GatedRepoError):
        return NotFound(f"{repo}: gated; accept its terms on its hub page, then log in with `hf auth login` or set HF_TOKEN")
    if isinstance(error, hub_errors.RevisionNotFoundError):
        return NotFound(f"{repo}: has no revision {revision!r}")
    if isinstance(error, hub_errors.RepositoryNotFoundError):
        return NotFound(f"{repo}: no such repository on the hub, or it is private (then log in or set HF_TOKEN)")
    if isinstance(error, hub_errors.LocalEntryNotFoundError | hub_errors.OfflineModeIsEnabled):
        if offline:
            return NotFound(f"{repo}: not in the cache, and offline; run `leanlm pull {repo}` while online")
        return NotFound(f"{repo}: not in the cache, and the hub cannot be reached; check the network")
    if isinstance(error, OSError) or type(error).__module__.split(".")[0] in ("httpx", "httpx2", "requests", "urllib3"):
        return NotFound(f"{repo}: the hub cannot be reached or answered badly ({str(error).splitlines()[0]})")
    return error


def find_tokenizer(folder: Path, path_or_name: str | Path, offline: bool = False) -> tokenizer.Tokenizer | None:
    """The tokenizer of a model: from its folder, else from the repository the catalogue names for it, else None."""
    if found := tokenizer.from_folder(folder):
        return found
    entry = catalog.resolve(str(path_or_name))
    if entry is None or entry.tokenizer_repo is None:
        return None
    try:
        return tokenizer.from_folder(fetch(entry.tokenizer_repo, offline=offline, tokenizer_only=True))
    except NotFound:
        return None
