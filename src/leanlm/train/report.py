"""What the loop tells its caller."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Report:
    """A finished step, a validation, or one line of plain text about the run."""

    step: int
    steps: int
    loss: float | None = None  # nats per target
    parts: tuple[float, ...] | None = None  # of the loss, where the objective tells any
    lr: float | None = None
    weight_decay: float | None = None
    tokens: int | None = None  # in the step, over all processes
    grad_norm: float | None = None  # before clipping
    tokens_per_second: float | None = None
    waited: float | None = None  # seconds of the step in which data was waited for
    skipped: int | None = None  # steps so far whose gradients overflowed float16
    validation: float | None = None  # nats per held-out token
    bits_per_byte: float | None = None  # held-out
    utilisation: float | None = None  # useful arithmetic over the device's peak (`model.flops`)
    memory: int | None = None  # bytes that the leading process held at most so far
    note: str = ""
