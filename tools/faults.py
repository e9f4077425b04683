"""What goes wrong with an agent's answers, and when: by a script, so that each run is like the last.

What each fault does is played by :mod:`faultport`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from random import Random

from realtime.protocols import SpanRequest
from realtime.scheduler import CONTINUATION, FINAL, SPECULATIVE
from realtime.voice import NEVER

ATTEMPTS = (SPECULATIVE, FINAL, CONTINUATION)
RUBBISH = {
    "raises": "the agent raises",
    "agent nan": "the agent's clip has a NaN",
    "agent length": "the agent's clip is one frame short",
    "agent channels": "the agent's clip has a channel too many",
    "agent type": "the agent returns no clip",
    "nan": "the process sends a NaN",
    "length": "the process sends one frame too few",
    "lead-in": "the process claims a lead-in longer than a join",
    "torn": "the process says that a clip is there which it has not written: its checksum is stale",
    "span": "the process answers for the span after",
    "stale": "the process sends its answer to an earlier span again, and none to this one",
    "slot": "the process answers from a slot it was not given",
    "garbage": "the process sends a record that is no message",
}
HARMLESS = {"twice": "the answer comes twice", "early": "it comes at once", "rest": "the agent rests"}
LOSSES = {
    "late": "the answer comes later than it might",
    "stall": "the process stops for a while; then it answers all that it was asked",
    "hang": "the process stops and is ended after a while; a successor takes over",
    "kill": "the process dies; a successor takes over",
}
KINDS = (*RUBBISH, *HARMLESS, *LOSSES)


@dataclass(frozen=True, slots=True)
class Fault:
    """What goes wrong with a span, and with which of its questions.

    Attributes
    ----------
    kind
        One of :data:`KINDS`.
    attempts
        The questions it strikes.
    frames
        How much later than asked an answer comes; how long a stall lasts; how long after the question the process
        dies.
    down
        Frames from a death to a successor on duty.
    """

    kind: str
    attempts: tuple[int, ...]
    frames: int = 0
    down: int = 0


FaultScript = Callable[[SpanRequest], "Fault | None"]


def no_faults(request: SpanRequest) -> Fault | None:
    """Let everything go well."""
    return None


def stalled_from(bar: int) -> FaultScript:
    """Return the script of an agent that answers nothing any more from ``bar`` on."""

    def script(request: SpanRequest) -> Fault | None:
        return Fault("stall", ATTEMPTS, NEVER) if request.span.bar >= bar else None

    return script


class RandomFaults:
    """Strikes a share of all spans, each in a way drawn from the seed, the agent and the span.

    Parameters
    ----------
    seed
        Draws everything.
    share
        Of spans that are struck.
    kinds
        What may happen, each as likely as the other.
    samplerate
        Of the session: deaths take 20 ms to 1.5 s, whatever the tempo.
    """

    def __init__(self, seed: int, share: float, samplerate: int, kinds: Sequence[str] = KINDS) -> None:
        self._seed, self._share, self._samplerate, self._kinds = seed, share, samplerate, tuple(kinds)

    def __call__(self, request: SpanRequest) -> Fault | None:
        """Return what befalls the span of a question, ``None`` if nothing does."""
        chance = Random(f"{self._seed}/{request.agent}/{request.span.bar}/{request.span.beat}")
        if chance.random() >= self._share:
            return None
        kind = chance.choice(self._kinds)
        attempts = chance.choice([(FINAL,), (SPECULATIVE, FINAL), ATTEMPTS])
        span = request.frames
        if kind in ("stall", "hang"):
            frames = int(span * chance.choice([0.3, 1, 2.5, 6]))
        elif kind == "kill":
            frames = int(span * chance.uniform(0, 0.5))
        else:
            frames = int(span * chance.choice([0.05, 0.5, 1.1, 2.5]) * chance.uniform(0.5, 1.5))
        down = int(self._samplerate * chance.choice([0.02, 0.3, 1.5]))
        return Fault(kind, attempts, frames, down)
