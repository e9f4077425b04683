"""Who accounts for faults: every decision in a take, held against what really happened."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from fractions import Fraction
from typing import Any

from faultport import FaultPort, Told

from realtime.scheduler import CONTINUATION, FINAL, SPECULATIVE
from realtime.voice import NEVER

FULL = ("no free clip slot", "request queue full")
GONE = ("lost", "loading", "not asked")
CAUSES: Mapping[str, tuple[str, ...]] = {
    "raises": ("ArithmeticError",),
    "agent nan": ("NaN",),
    "agent length": ("clip of",),
    "agent channels": ("clip of",),
    "agent type": ("str where a Clip",),
    "nan": ("NaN",),
    "length": ("clip of",),
    "lead-in": ("a lead-in of", "clip of"),
    "torn": ("checksum",),
    "span": ("another question", "late"),
    "stale": ("another question", "late"),
    "slot": ("another question", "late"),
    "garbage": ("late",),
    "late": ("late",),
    "stall": ("late",),
    "hang": ("late", *GONE),
    "kill": ("late", *GONE),
    "the agent's own": ("",),
}
"""What the take may give as the cause where a final question was struck; ``late`` also for whatever came too late."""


class Account:
    """Holds every decision in the take against what really happened behind the :class:`FaultPort` of an agent.

    The rung must be the best answer that was in by then, on the design's ladder, found here from what the workers
    sent and not from what the engine believes. Where that is not the final answer, its question must have been
    struck, or nobody was there to ask; and the cause in the take must be the one.

    Attributes
    ----------
    spans
        How many were judged, by rung.
    causes
        How many for each fault that struck.
    unexplained
        What does not agree: a sentence each, at most 100.
    """

    def __init__(self, ports: Mapping[str, FaultPort]) -> None:
        self._ports = ports
        self._good: set[str] = set()
        self.spans: Counter[int] = Counter()
        self.causes: Counter[str] = Counter()
        self.joins = self.wrong = 0
        self.unexplained: list[str] = []

    def __call__(self, line: Mapping[str, Any]) -> None:
        """Take a line of the take."""
        if line.get("agent") not in self._ports:
            return
        if line["type"] == "span":
            self._judge(line, self._ports[line["agent"]])
        elif line["type"] == "join":
            self.joins += 1
            self._good.add(line["agent"])
            asked = self._ports[line["agent"]].told.get((line["bar"], Fraction(line["beat"])), [])
            if not any(told.attempt == line["attempt"] and told.due <= line["arrived"] for told in asked):
                self._wonder(line, "an answer was joined late that was not in")

    def _wonder(self, line: Mapping[str, Any], why: str) -> None:
        self.wrong += 1
        if len(self.unexplained) < 100:
            place = f"{line['agent']} bar {line['bar']} beat {line['beat']}"
            self.unexplained.append(f"{place}: {why}; the take says {dict(line)}")

    def _judge(self, line: Mapping[str, Any], port: FaultPort) -> None:
        agent, rung, cause, decided = line["agent"], line["rung"], line["cause"], line["decided"]
        self.spans[rung] += 1
        asked = port.told.get((line["bar"], Fraction(line["beat"])), [])
        good = {told.attempt: told for told in asked if told.due <= decided}
        finals = [told for told in asked if told.attempt == FINAL]
        expected = self._expected(good, agent in self._good, bool(finals))
        if rung != expected:
            self._wonder(line, f"rung {expected} was due ({[_words(told) for told in asked]})")
        elif FINAL in good:
            if cause:
                self._wonder(line, "a cause, though the final answer was in")
        else:
            self._explain(line, port, finals, cause)
        if rung in (1, 2, 3):
            self._good.add(agent)
        for place in [place for place in port.told if place[0] < line["bar"] - 12]:
            del port.told[place]

    @staticmethod
    def _expected(good: Mapping[int, Told], played: bool, asked: bool) -> int:
        for attempt, rung in ((FINAL, 1), (SPECULATIVE, 2)):
            if attempt in good:
                return 0 if good[attempt].rests else rung
        if CONTINUATION in good and not good[CONTINUATION].rests:
            return 3
        if played:
            return 4
        return 5 if asked else 0

    def _explain(self, line: Mapping[str, Any], port: FaultPort, finals: list[Told], cause: str) -> None:
        since = line["start"] - 3 * line["frames"]
        away = any(begin <= line["decided"] and end >= since for begin, end in port.down)
        struck = finals[-1].fault if finals else ""
        late = finals and finals[-1].sent > line["decided"] and cause == "late"
        if struck and (late or any(words in cause for words in CAUSES.get(struck, ()))):
            self.causes[struck] += 1
        elif away and cause in ("late", *GONE, *FULL):
            self.causes["kill"] += 1
        elif cause in FULL and port.behind(line["hops"]["request"][1]):
            self.causes["stall"] += 1
        else:
            self._wonder(line, f"no fault explains it ({[_words(told) for told in finals]})")


def _words(told: Told) -> str:
    due = "never" if told.due == NEVER else told.due
    return f"attempt {told.attempt} posted {told.posted} in {due} {told.fault}".strip()
