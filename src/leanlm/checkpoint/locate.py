"""Names to folders: a local folder, the built-in model, a short name of the catalog, or a Hugging Face hub id."""

import difflib
import re
from pathlib import Path

from leanlm.checkpoint.folder import CONFIG, check_folder
from leanlm.errors import NotFound
from leanlm.families import catalog

BUILTIN = {"builtin": "ternary", "builtin-float": "float", "builtin-ternary": "ternary"}  # their folders
HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")


def resolve(path_or_name: str | Path, revision: str | None = None, offline: bool = False) -> Path:
    """The local folder of a model, downloaded if need be (config, weights and tokenizer files only).

    `offline`, like HF_HUB_OFFLINE, uses only what is on disk. Raises NotFound, saying what to do, where there is none.
    """
    text, path = str(path_or_name), Path(path_or_name).expanduser()
    entry = catalog.resolve(text)
    known = entry is not None or text in BUILTIN
    if path.is_dir() and ((path / CONFIG).exists() or not known):
        return path
    if text in BUILTIN:
        return _builtin(text)
    if entry is not None:
        if not entry.repo:
            raise NotFound(f"{entry.name}: {entry.note}")
        return _download(entry.repo, revision or entry.revision, offline)
    if not path.exists() and HUB_ID.fullmatch(text) and not text.startswith("."):
        return _download(text, revision, offline)
    if path.exists() or "/" in text:
        check_folder(path)
    near = difflib.get_close_matches(text.lower(), [*(entry.name for entry in catalog.CATALOG), *BUILTIN], 1)
    hint = f"did you mean {near[0]}?" if near else "leanlm list shows the names"
    raise NotFound(f"{text}: no such folder and no model of that name; {hint}")


def _download(repo: str, revision: str | None, offline: bool) -> Path:
    from leanlm.checkpoint import hub  # the hub's library takes longer to load than the built-in model

    return hub.download(repo, revision, offline=offline)


def _builtin(name: str) -> Path:
    folder = Path(__file__).parent.parent / "builtin" / BUILTIN[name]
    if not (folder / CONFIG).exists():
        recipe = "builtin-ternary" if BUILTIN[name] == "ternary" else "builtin"
        raise NotFound(f"{name}: this installation does not have it; leanlm train {recipe} makes one")
    return folder
