"""What `leanlm bench` found, as tables."""

from collections.abc import Iterator

from rich.table import Table

from leanlm.cli import sizes, tables


def show(found: dict) -> None:
    console = tables.console()
    for line in sides(found):
        console.print(line, markup=False)
    for title, rows in (("prefill", found["prefill"]), ("decode", found["decode"])):
        console.print("", speeds(title, rows, list(found["sides"])), sep="\n")
        for line in remarks(rows):
            console.print(line, markup=False)
    console.print("In parentheses the slowest turn over the fastest; ratios are of medians, and those of single turns.")
    if shared := [row for row in found["decode"] if "share" in row]:
        console.print("", traffic(shared), sep="\n")
        console.print("Bytes that a decoding step moves, and a plain read of as many, in turn with the model.")
    held = ", ".join(f"{name} {sizes.size(peak)}" for name, peak in found["peak_resident_bytes"].items())
    console.print("", f"peak resident memory: {held}", sep="\n")
    if "peak_device_bytes" in found:
        held = ", ".join(f"{name} {sizes.size(peak)}" for name, peak in found["peak_device_bytes"].items())
        console.print(f"peak memory of the device: {held}")
    for name, call in found.get("profile", {}).items():
        console.print("", profile(name, call), sep="\n")


def sides(found: dict) -> Iterator[str]:
    """What ran, line by line."""
    ours = found["sides"]["leanlm"]
    held = ", ".join(ours["formats"])
    weights = "random weights" if found["random"] else "weights"
    yield f"{found['model']}: {sizes.count(ours['parameters'])} {weights} in {held}, {sizes.size(ours['weight_bytes'])}"
    threads = "1 thread" if found["threads"] == 1 else f"{found['threads']} threads"
    yield f"{ours['processor'] or 'this processor'}, {threads}, {found['repeats']} turns after a warm-up"
    states = next((row["state"]["dtypes"] for row in found["decode"] if "state" in row), {})
    state = ", ".join(f"{name} {dtype}" for name, dtype in states.items())
    how = f"{ours['runtime']}, {ours['instruction_set']}"
    yield f"leanlm: {how}; state: {state or 'none'}; loaded in {ours['load_seconds']:.1f} s"
    for name, side in found["sides"].items():
        if name != "leanlm":
            options = " ".join(f"{option}={value}" for option, value in side["options"].items())
            yield f"{name}: {side['version']}, {'/'.join(side['weights'])}, {sizes.size(side['file_bytes'])}; {options}"


def speeds(title: str, rows: list[dict], sides: list[str]) -> Table:
    """Tokens per second of every side, ratios, the slowest turn over the fastest, and what leanlm ran slower than it should."""
    peers, prefill = [name for name in sides if name != "leanlm"], title == "prefill"
    slower = any("fallbacks" in row for row in rows)
    headings = [title, "batch", *(f"{name}, tokens/s" for name in sides), *(f"over {name}" for name in peers)]
    table = tables.figures(*headings, *["first token"] * prefill, *["slower here"] * slower)
    for row in rows:
        cells = [_rate(row["sides"].get(name)) for name in sides]
        cells += [_ratio(row["ratios"].get(name)) for name in peers]
        if prefill:
            cells.append(f"{row['seconds_to_first_token']:.3g} s" if "seconds_to_first_token" in row else "")
        if slower:
            cells.append(", ".join(row.get("fallbacks", ())))
        table.add_row(f"{row['tokens' if prefill else 'context']}", f"{row['batch']}", *cells)
    return table


def _rate(side: dict | None) -> str:
    return "{tokens_per_second:.1f} ({spread:.2f})".format(**side) if side else "out of memory"


def _ratio(found: dict | None) -> str:
    return "{median:.2f}x ({lowest:.2f} to {highest:.2f})".format(**found) if found else ""


def remarks(rows: list[dict]) -> list[str]:
    """Why sides had no memory, and why something was slower, each once."""
    lines = [f"{name}: {why}" for row in rows for name, why in row.get("failed", {}).items()]
    lines += [f"slower here, {what}: {why}" for row in rows for what, why in row.get("fallbacks", {}).items()]
    return list(dict.fromkeys(lines))


def traffic(rows: list[dict]) -> Table:
    """The bytes of a step beside the rate of a plain read."""
    names = ("context", "batch", "weights", "state", "keys/values", "bytes/token", "plain read", "share of it", "weights alone")
    table = tables.figures(*names)
    for row in rows:
        moved = row["bytes_per_step"]
        table.add_row(
            f"{row['context']}",
            f"{row['batch']}",
            *(sizes.size(moved[name]) for name in ("weights", "state", "keys_values")),
            sizes.size(row["bytes_per_token"]),
            f"{row['read_bytes_per_second'] / 1e9:.1f} GB/s",
            "{median:.0%} ({lowest:.0%} to {highest:.0%})".format(**row["share"]),
            f"{row['weights_share']:.0%}",
        )
    return table


def profile(name: str, call: dict) -> Table:
    """Kinds of steps, the slowest first."""
    table = tables.figures(f"{name}: {call['batch']} x {call['tokens']} at {call['context']}", "steps", "ms", "share")
    for row in call["steps"]:
        table.add_row(row["step"], f"{row['count']}", f"{1000 * row['seconds']:.3f}", f"{row['share']:.1%}")
    return table
