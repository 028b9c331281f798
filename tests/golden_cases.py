"""Where the golden cases lie: the project's own, and those of the folder that LEANLM_GOLDEN names."""

from pathlib import Path
from typing import NamedTuple

from leanlm import env

OWN = Path(__file__).parent / "golden"


class Case(NamedTuple):
    """One case: a checkpoint folder (sampling cases hold no checkpoint) with expected.safetensors and meta.json."""

    family: str
    case: str
    folder: Path

    @property
    def name(self) -> str:
        return f"{self.family}/{self.case}"


def golden_cases(*families: str) -> list[Case]:
    """All cases with a meta.json (of these families, if any are given), each once; LEANLM_GOLDEN's before the subset here."""
    found: dict[str, Case] = {}
    for root in filter(None, (env.GOLDEN.get(), OWN)):
        for meta in sorted(Path(root).glob("*/*/meta.json")):
            case = Case(meta.parent.parent.name, meta.parent.name, meta.parent)
            found.setdefault(case.name, case)
    return [case for case in found.values() if not families or case.family in families]


def checkpoint_cases() -> list[Case]:
    """The cases that hold a checkpoint."""
    return [case for case in golden_cases() if (case.folder / "config.json").exists()]
