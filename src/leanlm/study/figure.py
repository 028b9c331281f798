"""A chart and the words around it."""

from collections.abc import Sequence
from dataclasses import dataclass

from leanlm.train.chart import Series


@dataclass(frozen=True)
class Figure:
    """A chart and what it shows, in a sentence."""

    title: str
    about: str
    x_label: str
    y_label: str
    series: Sequence[Series]
    log_x: bool = True
    log_y: bool = False
