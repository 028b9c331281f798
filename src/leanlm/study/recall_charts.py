"""Figures of how far models remember: recall by distance, and by how much there is to remember."""

from collections.abc import Iterator, Sequence

from leanlm.study.figure import Figure
from leanlm.train.chart import Series

WHAT = {
    "copy": "A sequence of random tokens comes a second time: how many of its tokens the model foretells.",
    "needle": "A sentence with a value stands so far back: whether its value is told from others.",
    "pairs": "Keys and values were listed so far back: whether a key's value is told from the others.",
}


def recall_figures(rows: Sequence[dict]) -> Iterator[Figure]:
    """For every kind of probe: accuracy by distance with the smallest load, and by load at the smallest distance."""
    points = [(row["name"], point) for row in rows for point in row.get("recall", ())]
    for kind in dict.fromkeys(point["kind"] for _, point in points):
        chosen = [(name, point) for name, point in points if point["kind"] == kind]
        for along, fixed in (("distance", "load"), ("load", "distance")):
            least = min(point[fixed] for _, point in chosen)
            shown = [(name, point) for name, point in chosen if point[fixed] == least]
            if len({point[along] for _, point in shown}) > 1:
                label = "tokens in between" if along == "distance" else "things to remember"
                about = f"{WHAT.get(kind, '')} {fixed} {least}; dashed: chance."
                yield Figure(f"Recall, {kind}, by {along}", about, label, "accuracy", list(curves(shown, along)))


def curves(points: Sequence[tuple[str, dict]], along: str) -> Iterator[Series]:
    for name in dict.fromkeys(name for name, _ in points):
        line = sorted((point for other, point in points if other == name), key=lambda point: point[along])
        x, errors = [point[along] for point in line], [point["stderr"] or 0.0 for point in line]
        yield Series(name, x, [point["accuracy"] for point in line], errors, style="both")
    chance = {point[along]: point["chance"] for _, point in points}
    yield Series("chance", sorted(chance), [chance[x] for x in sorted(chance)], style="dashed")
