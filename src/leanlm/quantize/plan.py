"""Which matrix gets which format: a scheme for the layers, embedding and head by choice, overrides by pattern.

Loads no torch."""

import fnmatch
from collections.abc import Iterable, Mapping, Sequence
from typing import Literal

from leanlm.errors import UsageError
from leanlm.families import Rule
from leanlm.model.format import NEVER, Grouped, parse

Choice = Grouped | Literal["ternary", "float"]
Plan = dict[str, Choice]  # our weight name -> its format; matrices that are not named stay as they are

# The Spectra suite's QuantLMs (arXiv 2407.12327, section 4.2 and table 4): symmetric; groups of 128 up to 4 bits, else one
# scale per output.
PRESETS = {f"quantlm-{bits}": f"int{bits}" for bits in (3, 4, 6, 8)}
TABLES = ("embedding.weight", "head.weight")


def make(
    shapes: Mapping[str, tuple[int, int]],
    scheme: str,
    embedding: str | None = None,
    head: str | None = None,
    overrides: Sequence[str] = (),
) -> Plan:
    """The plan for matrices of these shapes [R, n] by name.

    `scheme` (a format or a preset) goes to every matrix inside the layers but `NEVER`; `embedding` and `head` to
    those two, which otherwise stay as they are. `overrides` are PATTERN=FORMAT, the last that fits a name counts; a pattern
    is a name with * and ?, ".weight" may be left out. Raises UsageError for what cannot be meant or does not fit a matrix.
    """
    inside = [name for name in shapes if name not in TABLES and not name.endswith(NEVER)]
    plan: Plan = dict.fromkeys(inside, parse(PRESETS.get(scheme, scheme)))
    for name, wanted in zip(TABLES, (embedding, head), strict=True):
        if wanted and name not in shapes:
            raise UsageError(f"this model has no {name}: its head is tied to the embedding, so --embedding decides for both")
        if wanted:
            plan[name] = parse(wanted)
    for override in overrides:
        pattern, equals, wanted = override.rpartition("=")
        if not equals or not pattern:
            raise UsageError(f"--override {override}: write it as PATTERN=FORMAT, for example 'layers.0.*=float'")
        plan |= dict.fromkeys(matching(pattern, shapes), parse(wanted))
    for name, chosen in plan.items():
        check(name, shapes[name], chosen)
    return plan


def matching(pattern: str, names: Iterable[str]) -> list[str]:
    """The names that a pattern fits; raises UsageError where there is none, or only such as are never quantised."""
    found = [name for name in names if fnmatch.fnmatchcase(name, pattern) or fnmatch.fnmatchcase(name, f"{pattern}.weight")]
    if not found:
        raise UsageError(f"--override {pattern}: fits no matrix of this model; --plan lists their names")
    allowed = [name for name in found if not name.endswith(NEVER)]
    if not allowed:
        raise UsageError(f"--override {pattern}: {found[0]} is never quantised, because step sizes enter exponentially")
    return allowed


def check(name: str, shape: tuple[int, int], chosen: Choice) -> None:
    """Raises UsageError where a format does not fit a matrix."""
    if chosen == "ternary" and name in TABLES:
        raise UsageError(f"{name}: embedding and head are never ternary; give int8 or int4")
    if isinstance(chosen, Grouped):
        try:
            chosen.groups(shape[1])
        except UsageError as error:
            raise UsageError(f"{name}: {error} (--override '{name}=...')") from None


def check_stacked(plan: Plan, rules: Iterable[Rule]) -> None:
    """Raises UsageError where matrices that a published format stores as one would get different formats."""
    for rule in rules:
        chosen = {name: str(plan.get(name, "float")) for name in rule.ours}
        if len(set(chosen.values())) > 1:
            said = ", ".join(f"{name} {format}" for name, format in chosen.items())
            raise UsageError(f"{rule.theirs} is stored as one matrix and cannot have several formats: {said}")
