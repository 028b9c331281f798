"""Repositories of the Hugging Face hub, downloaded into its cache; what the hub refuses becomes one line."""

import re
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NoReturn

import huggingface_hub
from huggingface_hub import HfApi, constants
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.utils import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars

from leanlm import env
from leanlm.checkpoint.folder import CONFIG, GPTQ_CONFIG, weight_files
from leanlm.errors import LeanLMError, NotFound, first_line

SIDE_FILES = (
    CONFIG,
    GPTQ_CONFIG,
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "generation_config.json",
    "chat_template.jinja",
)
TIMEOUT = 10  # seconds until the hub counts as out of reach


def download(repo: str, revision: str | None = None, needs: str = CONFIG, offline: bool = False) -> Path:
    """The snapshot folder of a hub repository, from the cache where it is complete and the hub cannot be asked.

    `needs` is the file without which it is of no use. Safetensors are preferred to pickles where a repository has both.
    """
    if offline or env.HF_HUB_OFFLINE.is_set():
        return _cached(repo, revision, needs) or _absent(repo, revision)
    try:
        info = HfApi().model_info(repo, revision=revision, timeout=TIMEOUT)
        listing = [file.rfilename for file in info.siblings or ()]
        wanted = [name for name in SIDE_FILES if name in listing]
        if needs == CONFIG:
            wanted += weight_files([name for name in listing if "/" not in name])
        if needs not in wanted:
            raise NotFound(f"{repo}: the repository has no {needs}; it holds no model leanlm can read")
        with _bars_on_terminals_only():
            return Path(huggingface_hub.snapshot_download(repo, revision=revision, allow_patterns=wanted))
    except (RepositoryNotFoundError, RevisionNotFoundError, HFValidationError) as error:
        raise NotFound(_refusal(error, repo, revision)) from None
    except LeanLMError:
        raise
    except Exception as error:  # the hub library lets through whatever its network library raises, and full disks
        return _fall_back(error, repo, revision, needs)


@contextmanager
def _bars_on_terminals_only() -> Iterator[None]:
    """huggingface_hub draws its progress bars into files and pipes too, unless they are switched off for all of it."""
    quiet = not sys.stderr.isatty() and not are_progress_bars_disabled()
    if quiet:
        disable_progress_bars()
    try:
        yield
    finally:
        if quiet:
            enable_progress_bars()


def _fall_back(error: Exception, repo: str, revision: str | None, needs: str) -> Path:
    folder = _cached(repo, revision, needs)
    reason = _refusal(error, repo, revision)
    if folder is None:
        raise NotFound(reason) from error
    warnings.warn(f"{reason}; using the copy on disk", stacklevel=4)
    return folder


def _refusal(error: Exception, repo: str, revision: str | None) -> str:
    """One line about what the hub said, and the way out."""
    if isinstance(error, GatedRepoError):
        page = f"{constants.ENDPOINT}/{repo}"
        return f"{repo}: gated; accept its terms at {page}, then log in (hf auth login) or set HF_TOKEN"
    if isinstance(error, RevisionNotFoundError):
        return f"{repo}: no revision {revision!r}; leave it out, or take one of {constants.ENDPOINT}/{repo}/commits"
    if isinstance(error, RepositoryNotFoundError):
        return f"{repo}: no such repository on the hub; check the spelling, or log in (hf auth login) if it is private"
    if isinstance(error, HFValidationError):
        return f"{repo}: not a name the hub allows"
    if isinstance(error, OfflineModeIsEnabled):
        return f"{repo}: is not on disk, and offline the hub is not asked"
    if isinstance(error, HfHubHTTPError) and error.response is not None:
        status = error.response.status_code
        way = "log in (hf auth login) or set HF_TOKEN" if status in (401, 403) else "try again later"
        return f"{repo}: the hub answered {status}; {way}"
    reason = first_line(error)
    return f"{repo}: cannot download from {constants.ENDPOINT} ({reason}); check the network, or give a local folder"


def _cached(repo: str, revision: str | None, needs: str) -> Path | None:
    """The snapshot on disk if it has the file that is needed and, for a model, all its weights."""
    try:
        found = huggingface_hub.try_to_load_from_cache(repo, needs, revision=revision)
    except HFValidationError as error:
        raise NotFound(_refusal(error, repo, revision)) from None
    if not isinstance(found, str):
        return None
    folder = Path(found).parent
    complete = needs != CONFIG or _has_weights(folder)
    return folder if complete else None


def _has_weights(folder: Path) -> bool:
    """Whether main file and all shards are there: shards are named ...-of-N and a finished download has N of them."""
    files = weight_files([path.name for path in folder.iterdir() if path.exists()])
    counts = [int(match[1]) for name in files if (match := re.search(r"-of-(\d+)\.", name))]
    if files and files[0].endswith(".index.json"):
        return bool(counts) and len(counts) == counts[0]
    return bool(files)


def _absent(repo: str, revision: str | None) -> NoReturn:
    at = f" at revision {revision}" if revision else ""
    raise NotFound(f"{repo}{at}: is not on disk, and offline the hub is not asked; fetch it once with leanlm pull {repo}")
