"""leanlm show MODEL --cache: which tokens every slot of a telescoping cache covers, as text and as a drawing."""

import textwrap
from itertools import groupby

from leanlm.errors import UsageError
from leanlm.model.config import ModelConfig, Telescoping
from leanlm.slots import NAMED, Table, entries

WIDTH, RULER = 120, 50  # characters of a line, and of the line that stands for all tokens
COLOURS = ("#0072b2", "#56b4e9", "#009e73", "#e69f00", "#d55e00", "#cc79a7", "#7f7f7f")  # of levels, in turn
ROWS, ROW, MARGIN, SIDE = 24, 16, 30, 1000  # of the drawing: moments, and pixels


def tables(config: ModelConfig) -> dict[str, Table]:
    """The different tables of a model, each under its published name or "N slots". Raises UsageError where there is none."""
    found = dict.fromkeys(mixer.table for mixer in config.sublayers if isinstance(mixer, Telescoping))
    if not found:
        raise UsageError("--cache: this model has no telescoping layer; try leanlm show avengers-tele64 --cache")
    names = {table: name for name, table in NAMED.items()}
    return {names.get(table, f"{table.size} slots, merges {list(table.merges)}"): table for table in found}


def text(name: str, table: Table, read: int) -> str:
    """What every slot covers after `read` tokens, level by level, the newest first."""
    found = entries(table, read - 1, read)
    held = list(zip(found.first.tolist(), found.last.tolist()))
    oldest, empty = held[-1][0], table.size - len(held)
    forgotten = f"; tokens 0 to {oldest - 1} are forgotten" if oldest else ""
    lines = [
        f"cache {name}: {len(held)} of {table.size} slots cover the tokens {oldest} to {read - 1}{forgotten}",
        f"{'':36}0{read - 1:>{RULER}}",
    ]
    slot, said = 0, []
    for level, group in groupby(zip(found.level.tolist(), held), key=lambda pair: pair[0]):
        covered = [run for _, run in group]
        slots = f"{slot}-{slot + len(covered) - 1}" if len(covered) > 1 else str(slot)
        lines.append(f"level {level}: {_tokens(2 ** (level - 1)) + ' each':18}{slots:>9} |{_ruler(covered, read)}|")
        runs_told = " ".join(f"{first}-{last}" if last > first else str(first) for first, last in covered)
        said += textwrap.wrap(runs_told, WIDTH, initial_indent=f"level {level}: ", subsequent_indent=" " * 9)
        slot += len(covered)
    if empty:
        lines.append(f"{empty} slots are empty")
    return "\n".join([*lines, "", "the tokens of every slot, from slot 0 on", *said])


def _tokens(number: int) -> str:
    return "1 token" if number == 1 else f"{number} tokens"


def _ruler(covered: list[tuple[int, int]], read: int) -> str:
    """Where these runs lie among all tokens."""
    first, end = covered[-1][0] * RULER // read, -(-(covered[0][1] + 1) * RULER // read)
    return " " * first + "#" * (end - first) + " " * (RULER - end)


def svg(name: str, table: Table, read: int) -> str:
    """A drawing: every row is a moment, the last that after `read` tokens; every box the tokens of a slot."""
    moments = sorted({max(1, read * (i + 1) // ROWS) for i in range(ROWS)})
    height = MARGIN + ROW * len(moments) + MARGIN
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {SIDE + 2 * MARGIN} {height}" '
        'font-family="sans-serif" font-size="11">',
        '<rect width="100%" height="100%" fill="white"/>',
        f'<text x="{MARGIN}" y="{MARGIN - 12}">telescoping cache {name}: what its {table.size} slots cover, as tokens 0 to '
        f"{read - 1} are read from top to bottom; a colour for each length of runs</text>",
    ]
    for row, moment in enumerate(moments):
        held = entries(table, moment - 1, moment)
        for level, first, last in zip(held.level.tolist(), held.first.tolist(), held.last.tolist()):
            x, width = MARGIN + SIDE * first / read, SIDE * (last - first + 1) / read
            box = f'<rect x="{x:.2f}" y="{MARGIN + ROW * row}" width="{width:.2f}" height="{ROW - 3}"'
            covered = f"{first} to {last}" if last > first else str(first)
            parts.append(
                f'{box} fill="{COLOURS[(level - 1) % len(COLOURS)]}" stroke="white" stroke-width="{min(0.5, width / 8):.3f}">'
                f"<title>after {moment} tokens: {covered}</title></rect>"
            )
    parts.append(f'<text x="{MARGIN}" y="{height - 8}">token 0</text>')
    parts.append(f'<text x="{MARGIN + SIDE}" y="{height - 8}" text-anchor="end">token {read - 1}</text>')
    return "\n".join([*parts, "</svg>"]) + "\n"
