"""Published tensors to our parameters and back, by a family's rules."""

from collections.abc import Callable, Iterable, Mapping

import torch
from torch import Tensor

from leanlm.errors import CheckpointError, UsageError
from leanlm.families.family import Rule
from leanlm.model.packed import Packed, stack


def to_ours(rules: Iterable[Rule], theirs: Mapping[str, Tensor | Packed]) -> dict[str, Tensor | Packed]:
    """Our weights by name, as views of the published tensors where no rows move. Tensors that are absent are left out.

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
            part = turned(part, width, to_halves) if width else part
            ours[name] = across(part, rule.columns, to_halves) if rule.columns else part
    return ours


def to_theirs(rules: Iterable[Rule], ours: Mapping[str, Tensor | Packed]) -> dict[str, Tensor | Packed]:
    """Published weights by name; optional ones are not written. Raises UsageError where one published matrix would have to
    hold parts in different formats."""
    theirs = {}
    for rule in rules:
        if rule.optional:
            continue
        widths = rule.interleaved or (0,) * len(rule.ours)
        pairs = zip(rule.ours, widths, strict=True)
        parts = [turned(ours[name], width, to_pairs) if width else ours[name] for name, width in pairs]
        parts = [across(part, rule.columns, to_pairs) for part in parts] if rule.columns else parts
        try:
            theirs[rule.theirs] = parts[0] if len(parts) == 1 else stack(parts)
        except UsageError as error:
            raise UsageError(f"{', '.join(rule.ours)} are stored as one matrix, {rule.theirs!r}: {error}") from None
    return theirs


def turned(rows: Tensor | Packed, width: int, order: Callable[[Tensor, int], Tensor]) -> Tensor | Packed:
    """Rows in the order that `order` gives tensors."""
    return rows.take(order(torch.arange(len(rows)), width)) if isinstance(rows, Packed) else order(rows, width)


def across(matrix: Tensor | Packed, width: int, order: Callable[[Tensor, int], Tensor]) -> Tensor:
    """Columns in the order that `order` gives rows. Raises UsageError where they are packed."""
    if isinstance(matrix, Packed):
        raise UsageError("its columns are stored in another order than they are run in, and packed ones cannot be moved")
    return order(matrix.T, width).T.contiguous()


def to_halves(rows: Tensor, width: int) -> Tensor:
    """Rows of heads of `width` whose rotary channels stand in pairs (0, 1), (2, 3) ... -> first halves, then second."""
    return rows.unflatten(0, (-1, width // 2, 2)).transpose(1, 2).flatten(0, 2)


def to_pairs(rows: Tensor, width: int) -> Tensor:
    """The inverse of `to_halves`."""
    return rows.unflatten(0, (-1, 2, width // 2)).transpose(1, 2).flatten(0, 2)
