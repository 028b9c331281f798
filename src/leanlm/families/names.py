"""Published tensors to our parameters and back, by a family's rules."""

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor

from leanlm.errors import CheckpointError
from leanlm.families.family import Rule


def to_ours(rules: Iterable[Rule], theirs: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Our parameters by name, as views of the published tensors where no rows move. Tensors that are absent are left out.

    Raises CheckpointError for a tensor that has not the rows to be split.
    """
    ours = {}
    for rule in rules:
        if rule.theirs not in theirs or (rule.optional and rule.ours[0] in ours):
            continue
        tensor = theirs[rule.theirs]
        if rule.rows and len(tensor) != sum(rule.rows):
            raise CheckpointError(f"tensor {rule.theirs!r} has {len(tensor)} rows and should have {sum(rule.rows)}")
        parts = tensor.split(list(rule.rows)) if rule.rows else (tensor,)
        for i, (name, part) in enumerate(zip(rule.ours, parts, strict=True)):
            width = rule.interleaved[i] if rule.interleaved else 0
            ours[name] = to_halves(part, width) if width else part
    return ours


def to_theirs(rules: Iterable[Rule], ours: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Published tensors by name; optional ones are not written."""
    theirs = {}
    for rule in rules:
        if rule.optional:
            continue
        widths = rule.interleaved or (0,) * len(rule.ours)
        parts = [to_pairs(ours[name], width) if width else ours[name] for name, width in zip(rule.ours, widths, strict=True)]
        theirs[rule.theirs] = parts[0] if len(parts) == 1 else torch.cat(parts)
    return theirs


def to_halves(rows: Tensor, width: int) -> Tensor:
    """Rows of heads of `width` whose rotary channels stand in pairs (0, 1), (2, 3) ... -> first halves, then second."""
    return rows.unflatten(0, (-1, width // 2, 2)).transpose(1, 2).flatten(0, 2)


def to_pairs(rows: Tensor, width: int) -> Tensor:
    """The inverse of `to_halves`."""
    return rows.unflatten(0, (-1, 2, width // 2)).transpose(1, 2).flatten(0, 2)
