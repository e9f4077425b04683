"""What a benchmark suite takes and gives."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Row:
    """One figure.

    Attributes
    ----------
    suite, name, value, unit
        What was measured; ``value`` is None where nothing could be.
    goal
        In words, for instance ``"<= 0.3"``.
    ok
        Whether the goal is met, None where that cannot be said here.
    reason
        Why ``ok`` is None, or what is worth knowing beside the figure.
    """

    suite: str
    name: str
    value: float | None
    unit: str
    goal: str
    ok: bool | None
    reason: str = ""


@dataclass(frozen=True, slots=True)
class Options:
    """How to measure: in under 40 seconds a suite, and on which real recordings."""

    quick: bool
    material: Path | None
