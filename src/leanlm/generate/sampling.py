"""How the next token is chosen, as frozen data. Loads no torch: the command line makes its flags from these fields.

What the fields do to a distribution is in `leanlm.generate.filters`.
"""

import math
from dataclasses import dataclass, field, fields
from typing import Literal

from leanlm.errors import UsageError

MAMBA_SSM = "mamba_ssm"


@dataclass(frozen=True)
class Sampling:
    """Repetition penalty, temperature, top-k, top-p and min-p, applied in this order to the logits of a step.

    Greedy (the most likely token) where temperature is 0, top_k is 1 or do_sample is False; also where do_sample is None
    and temperature, top_k, top_p and min_p are all left alone. `Sampling.of` counts a value given as not left alone, even
    when it is the default. The repetition penalty works on greedy choices too. Raises UsageError for a value without meaning.
    """

    temperature: float = field(default=1.0, metadata={"help": "divides the logits; 0 is greedy"})
    top_k: int = field(default=0, metadata={"help": "keep the k most likely tokens; 0 is off, 1 is greedy"})
    top_p: float = field(default=1.0, metadata={"help": "keep the likeliest tokens that hold this probability; 0 or 1 is off"})
    min_p: float = field(default=0.0, metadata={"help": "keep tokens at least this likely relative to the likeliest; 0 is off"})
    repetition_penalty: float = field(default=1.0, metadata={"help": "makes tokens seen before less likely; 1 is off"})
    do_sample: bool | None = field(
        default=None, metadata={"help": "draw at random, or greedily; left out: as the others imply"}
    )
    compat: Literal["", "mamba_ssm"] = field(
        default="", metadata={"help": "mamba_ssm: the original's filters (its min_p too) and a batch that stops together"}
    )

    def __post_init__(self):
        for name in ("temperature", "top_k", "top_p", "min_p", "repetition_penalty"):
            self._check(name, isinstance(getattr(self, name), int | float), "a number")
        self._check("temperature", 0 <= self.temperature < math.inf, "0 (greedy) or a positive number")
        self._check("top_k", isinstance(self.top_k, int) and self.top_k >= 0, "0 (off) or a whole number of tokens")
        self._check("top_p", 0 <= self.top_p <= 1, "between 0 and 1 (both off)")
        self._check("min_p", 0 <= self.min_p <= 1, "between 0 (off) and 1")
        self._check("repetition_penalty", 0 < self.repetition_penalty < math.inf, "a positive number (1 is off)")
        self._check("compat", self.compat in ("", MAMBA_SSM), f"empty or {MAMBA_SSM!r}")

    def _check(self, name: str, holds: bool, meant: str) -> None:
        if not holds:
            raise UsageError(f"{name}={getattr(self, name)!r}: must be {meant}")

    @classmethod
    def of(cls, **given) -> "Sampling":
        """From keyword arguments in which None means not given; to give any filter, whatever its value, means to sample."""
        known = {f.name for f in fields(cls)}
        for name in given.keys() - known:
            raise UsageError(f"{name}: no such sampling parameter; there are {', '.join(sorted(known))}")
        given = {name: value for name, value in given.items() if value is not None}
        if given.keys() & {"temperature", "top_k", "top_p", "min_p"}:
            given.setdefault("do_sample", True)
        return cls(**given)

    @classmethod
    def given(cls, sampling: "Sampling | None", filters: dict) -> "Sampling":
        """Whichever a caller gave: a Sampling, or keyword arguments for `of`. Raises UsageError for both."""
        named = {name: value for name, value in filters.items() if value is not None}
        if sampling is None:
            return cls.of(**named)
        if named:
            raise UsageError(f"give sampling= or {', '.join(named)}, not both")
        return sampling

    @property
    def greedy(self) -> bool:
        if self.temperature == 0 or self.top_k == 1 or self.do_sample is not None:
            return self.temperature == 0 or self.top_k == 1 or not self.do_sample
        return (self.temperature, self.top_k, self.min_p) == (1.0, 0, 0.0) and self.top_p in (0.0, 1.0)

    @property
    def stop_together(self) -> bool:
        """Whether a batch goes on until every row's newest token is an end token (and none is padded)."""
        return self.compat == MAMBA_SSM
