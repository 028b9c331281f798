"""The Spectra study's charts, beside what was published (arXiv 2407.12327, section 4.3: losses after 300B tokens)."""

from leanlm.train.chart import Series, svg

PUBLISHED = {"float": (159.0, 1.67), "ternary": (185.0, 1.76)}  # loss = a N^-0.26 + b, nats per token of SlimPajama
POWER = -0.26
MEASURED = (99e6, 3.99e9)  # parameters between which the fit was made


def published_loss(kind: str, parameters: float) -> float:
    a, b = PUBLISHED[kind]
    return a * parameters**POWER + b


def published_gap(parameters: float) -> float:
    return published_loss("ternary", parameters) - published_loss("float", parameters)


def gap_chart(summary: dict) -> str:
    """Gap of the ternary twin against parameters, and the published fit: solid where it was made, dashed beyond."""
    sizes = summary["sizes"]
    at = [size["parameters"] for size in sizes]
    low = min([*at, MEASURED[0]])
    series = [
        Series("this study", at, [s["gap"]["mean"] for s in sizes], [s["gap"]["error"] or 0.0 for s in sizes], style="points"),
        _fit("published fit", *MEASURED),
    ]
    if low < MEASURED[0]:
        series.append(_fit("published fit, extended", low, MEASURED[0], style="dashed"))
    return svg("TriLM over FloatLM: loss gap against size", series, "parameters", "nats per token", log_x=True)


def _fit(name: str, low: float, high: float, style: str = "line") -> Series:
    at = [low * (high / low) ** (i / 50) for i in range(51)]
    return Series(name, at, [published_gap(n) for n in at], style=style)


def ablation_chart(summary: dict) -> str:
    """Loss of TriLM's middle size by schedule, a point each."""
    series = [
        Series(row["schedule"], [place], [row["mean"]], [row["error"] or 0.0], style="points")
        for place, row in enumerate(summary["schedules"], 1)
    ]
    return svg("TriLM's schedule: which of its two changes helps", series, "schedule", "nats per token")
