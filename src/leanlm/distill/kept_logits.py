"""A teacher's most probable tokens for every row of a run, kept on disk, so that it runs once and may be gone afterwards.

kept.json                  the teacher, a checksum of its weights, K, and the fingerprint of the rows
rows-00000000.safetensors  of the first ROWS rows of the run: `ids` int32 and `log_p` float16 [rows, L, K]
"""

import json
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from leanlm.checkpoint.aside import replacing
from leanlm.checkpoint.folder import read_json
from leanlm.data.batches import Batch, Mixture
from leanlm.data.chat import Chats
from leanlm.distill.teacher import Teacher, digest
from leanlm.errors import CheckpointError, UsageError, first_line
from leanlm.model.language_model import LanguageModel
from leanlm.train.processes import Processes
from leanlm.train.start import Note

ABOUT = "kept.json"
ROWS = 64  # of a file
PASS = 4  # rows that the teacher reads at a time


@dataclass(frozen=True)
class Kept:
    """Rows of a run, with what `folder` holds of the teacher in `Batch.extra`: ids and log-probabilities [B, L, K]."""

    rows: Mixture | Chats
    folder: Path

    def batch(self, position: int, size: int) -> Batch:
        """Rows number position .. position + size. Raises CheckpointError where what is kept of them is damaged."""
        parts = []
        for block in range(position // ROWS, (position + size - 1) // ROWS + 1):
            first = block * ROWS
            parts.append(_read(self.folder / name(block), max(position - first, 0), min(position + size - first, ROWS)))
        ids, log_p = (torch.cat(part) for part in zip(*parts))
        return replace(self.rows.batch(position, size), extra=(ids, log_p))

    @property
    def vocab_size(self) -> int:
        return self.rows.vocab_size

    @property
    def fingerprint(self) -> str:
        return self.rows.fingerprint

    def claim(self, teacher: str, top_k: int) -> None:
        """Write down what the folder is for. Raises UsageError where it was made for something else: by a teacher of another
        name, or whose weights are others now."""
        about = {"teacher": teacher, "weights": digest(teacher), "top_k": top_k, "rows": self.fingerprint}
        if (self.folder / ABOUT).is_file():
            found = read_json(self.folder / ABOUT)
            if wrong := [key for key in about if found.get(key) != about[key] and (key != "weights" or about[key])]:
                raise UsageError(
                    f"{self.folder}: holds logits of other {wrong[0]} ({found.get(wrong[0])}, not {about[wrong[0]]}); "
                    "name another distill.cache, or remove the folder"
                )
            return
        with replacing(self.folder) as aside:
            aside(ABOUT).write_text(json.dumps(about, indent=1) + "\n", encoding="utf-8")

    def missing(self, count: int) -> list[int]:
        """The files that are not there yet of those that the first `count` rows need."""
        return [block for block in range(-(-count // ROWS)) if not (self.folder / name(block)).is_file()]

    def fill(self, teacher: Teacher, count: int, top_k: int, processes: Processes, note: Note) -> None:
        """Have the teacher read the rows up to `count` that are not kept yet, the processes in turn a file each; a file is
        whole or not there."""
        absent = processes.gather(self.missing(count))[0]
        if not absent:
            return
        model = teacher.module
        for done in range(0, len(absent), processes.size):
            mine = done + processes.rank < len(absent)
            block = absent[done + processes.rank] if mine else absent[-1]  # all read: a sharded teacher needs everyone
            batches = processes.together(lambda at=block * ROWS: [self.rows.batch(at + i, PASS) for i in range(0, ROWS, PASS)])
            parts = [_best(model, batch, top_k) for batch in batches]
            processes.together(lambda block=block, mine=mine, parts=parts: self._write(block, parts) if mine else None)
            if done % (10 * processes.size) == 0:
                note(f"teacher's logits: {len(absent) - done} of {len(absent)} files to be made")

    def _write(self, block: int, parts: list[tuple[Tensor, Tensor]]) -> None:
        ids, log_p = (torch.cat(part) for part in zip(*parts))
        with replacing(self.folder) as aside:
            save_file({"ids": ids, "log_p": log_p}, aside(name(block)))


def name(block: int) -> str:
    return f"rows-{block:08}.safetensors"


@torch.no_grad()
def _best(model: LanguageModel, batch: Batch, top_k: int) -> tuple[Tensor, Tensor]:
    segments = None if batch.segments is None else batch.segments.to(model.device)
    logits = model(batch.tokens.to(model.device), segments=segments)[..., : model.config.vocab_size].float()
    best = logits.log_softmax(-1).topk(top_k)
    return best.indices.to("cpu", torch.int32), best.values.to("cpu", torch.float16)


def _read(path: Path, first: int, last: int) -> tuple[Tensor, Tensor]:
    try:
        with safe_open(path, "pt") as file:
            return file.get_slice("ids")[first:last], file.get_slice("log_p")[first:last]
    except Exception as error:  # safetensors has an error of its own, which is none of OSError
        raise CheckpointError(
            f"{path}: kept logits cannot be read ({first_line(error)}); remove the file to make it anew"
        ) from None
