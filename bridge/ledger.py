"""How the time of a take went: what played in each span and why, and how much time there was to spare at each step.

A span goes through five *hops* on its way from the player's ear to the loudspeaker, and each has the frame that was
wanted beside the one that came true. The difference is its *margin*: how much later it might have been. Read from
the lines of a take alone, whole or cut short.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from itertools import pairwise
from typing import Any

from bridge.recorder import JoinLine, OutLine, RetimeLine, SpanLine, TakeReader

RUNGS = {
    0: "rest",
    1: "final clip",
    2: "speculative clip",
    3: "corpus continuation",
    4: "last good bar again",
    5: "fade to silence",
}
"""The ladder: what plays in a span, best first; 0 is a rest, which is no fault."""
HOPS = {
    "heard": "how old the newest sound was that the agent had heard, beyond what was planned",
    "request": "how long before its time the final question went out (0 is on time)",
    "ready": "how long before the span the final answer was there",
    "mixed": "how long before it was heard the span was mixed",
    "out": "what lay in the device's buffer before it",
}
"""The steps of a span, in order, and what their margins say."""
CAUSES = {
    "late": "the answer was not there in time",
    "lost": "its worker was lost while it was at it",
    "loading": "its worker was still loading",
    "quarantined": "it is in quarantine: its worker failed again and again",
    "not asked": "there was no time to ask it",
    "superseded": "it was given up for a later question",
    "no free clip slot": "it had too many answers under way",
    "request queue full": "it did not take its questions",
    "": "no reason was written down",
}
"""Why a span was not played by its final answer, for people; other words are those of the fault itself."""
LATE = "late"

Key = tuple[str, int, Fraction]
Hole = tuple[int | None, int | None]


def cause_words(cause: str) -> str:
    """Say why in words that need no manual."""
    return CAUSES.get(cause, f"its answer was faulty: {cause}")


@dataclass(frozen=True, slots=True)
class Step:
    """One span at one hop: its margin in frames, negative where it was late, ``None`` where it never came."""

    span: SpanLine
    margin_frames: int | None

    @property
    def late(self) -> bool:
        """Whether it came too late or not at all."""
        return self.margin_frames is None or self.margin_frames < 0


@dataclass(frozen=True, slots=True)
class Margins:
    """The margins of one hop over a take, in milliseconds.

    Attributes
    ----------
    median_ms, p1_ms, worst_ms
        Of those that came: half are better than the first, 99 in 100 than the second, all others than the third.
        ``None`` where none came.
    late
        How many came late or never.
    """

    count: int
    median_ms: float | None
    p1_ms: float | None
    worst_ms: float | None
    late: int

    @classmethod
    def of(cls, steps: Sequence[Step], samplerate: int) -> Margins:
        """Return the margins of some steps."""
        came = sorted(step.margin_frames for step in steps if step.margin_frames is not None)
        at = (len(came) // 2, len(came) // 100, 0)
        median, p1, worst = (1000 * came[k] / samplerate if came else None for k in at)
        return cls(len(steps), median, p1, worst, sum(step.late for step in steps))


@dataclass(frozen=True, slots=True)
class Event:
    """Something that happened to an agent at a frame: ``"new worker"``, ``"lost worker"`` or ``"quarantine"``.

    A new worker took over ``frames`` after the one before was found to be lost, where that is known; ``cause`` is
    why that one was.
    """

    frame: int
    what: str
    frames: int | None = None
    cause: str = ""


@dataclass(frozen=True, slots=True)
class Account:
    """Whether every span of an agent is there exactly once, from its first on to the take's end.

    Attributes
    ----------
    spans
        How many there are.
    missing
        Bars (from 0) between which something is missing; ``None`` stands for the beginning or the end.
    double
        Bars with a span that was decided more than once, or before the one before it was over.
    """

    spans: int
    missing: tuple[Hole, ...] = ()
    double: tuple[int, ...] = ()

    @property
    def whole(self) -> bool:
        """Whether nothing is missing and nothing double."""
        return not self.missing and not self.double


@dataclass(frozen=True, slots=True)
class Course:
    """How the time of one agent went.

    Attributes
    ----------
    spans
        As they sounded: with the length that a change inside them gave them.
    rungs, causes
        Spans by rung; those that were not played by their final answer by cause. Of rests, only those that were not
        the agent's own wish have one.
    hops
        For each hop that was written down, its steps; none in virtual time, where nothing can be late.
    finals, late_finals
        Final questions asked, and those whose answer was not there at the deadline.
    strays
        Answers that came when nobody waited for them any more.
    budgets
        Frame from which on the agent was given so many frames for an answer, and that number.
    """

    agent: str
    samplerate: int
    spans: list[SpanLine]
    rungs: Counter[int]
    causes: Counter[str]
    hops: dict[str, list[Step]]
    finals: int
    late_finals: int
    strays: int
    budgets: list[tuple[int, int]]
    events: list[Event]
    account: Account

    @property
    def bars(self) -> int:
        """Bars in which the agent was asked for something."""
        return len({span.bar for span in self.spans})

    @property
    def fallen(self) -> list[SpanLine]:
        """Spans that were not played by their final answer, rests left out."""
        return [span for span in self.spans if span.rung > 1]

    @property
    def late_per_1000_bars(self) -> float:
        """Late finals for each thousand bars."""
        return 1000 * self.late_finals / max(1, self.bars)

    @property
    def respawns(self) -> int:
        """Workers that took over from one that was lost."""
        return sum(event.what == "new worker" for event in self.events)

    @property
    def deserted(self) -> int:
        """Workers that were lost and none came in their place, not even later: those after the last that came."""
        came = max((at for at, event in enumerate(self.events) if event.what == "new worker"), default=-1)
        return sum(event.what == "lost worker" for event in self.events[came + 1 :])

    @property
    def away_ms(self) -> list[float]:
        """How long each time there was no worker on duty, from when that was found, in milliseconds."""
        return [1000 * event.frames / self.samplerate for event in self.events if event.frames is not None]

    @property
    def quarantined(self) -> int | None:
        """Frame at which the agent was put in quarantine, ``None`` if it was not."""
        return next((event.frame for event in self.events if event.what == "quarantine"), None)

    @property
    def well(self) -> bool:
        """Whether all went as it should: final answers alone, every one in time, one worker, a whole account.

        That it rested at first because it was loading is no fault; that it never played is.
        """
        late = any(step.late for hop in ("mixed", "out") for step in self.hops.get(hop, ()))
        silent = bool(self.spans) and all(span.rung == 0 and span.cause for span in self.spans)
        return not (self.fallen or self.late_finals or self.events or late or silent) and self.account.whole

    def margins(self, hop: str) -> Margins:
        """Return the margins of one hop."""
        return Margins.of(self.hops.get(hop, ()), self.samplerate)


def courses(take: TakeReader) -> list[Course]:
    """Return how each agent's time went, in the order of the take's stems."""
    lines = _Lines(take)
    return [_course(take, agent, lines) for agent in take.stems]


class _Lines:
    """The lines of a take by agent, so that each is looked at once."""

    def __init__(self, take: TakeReader) -> None:
        self.spans: dict[str, list[SpanLine]] = {agent: [] for agent in take.stems}
        for span in take.spans:
            if span.agent in self.spans:
                self.spans[span.agent].append(span)
        self.retimes: dict[Key, RetimeLine] = {line.key: line for line in take.retimes}
        self.joins: dict[Key, JoinLine] = {line.key: line for line in take.joins}
        self.outs: dict[Key, OutLine] = {line.key: line for line in take.outs}
        self.finals = {(line.agent, line.bar, line.beat) for line in take.requests if line.attempt == 1}
        self.strays = Counter(str(line.get("agent")) for line in take.lines if line.get("type") == "stray")
        self.first_bar = _first_bar(take.header)
        self.virtual = is_virtual(take)


def is_virtual(take: TakeReader) -> bool:
    """Whether a take was made in virtual time: rendered or replayed, so that no margin says anything.

    Only sound that is waited for has a time at which it was mixed. Takes of before know neither.
    """
    return any(span.hops for span in take.spans) and not is_live(take)


def is_live(take: TakeReader) -> bool:
    """Whether a take is known to have been played against the clock."""
    return bool(take.outs) or any("mixed" in span.hops for span in take.spans)


def _first_bar(header: Mapping[str, Any]) -> int | None:
    """Return the bar from which the band plays; ``None`` where the take does not say."""
    engine = header.get("engine")
    bar = engine.get("first_bar", 0) if isinstance(engine, Mapping) else None
    return bar if type(bar) is int else None


def _course(take: TakeReader, agent: str, lines: _Lines) -> Course:
    logged = lines.spans[agent]
    decided = spans_of(logged, lines.retimes)
    spans = [span for span in decided if span.start < take.frames]  # the next one is decided before the end
    asked = [span for span in decided if span.key in lines.finals]
    return Course(
        agent=agent,
        samplerate=take.samplerate,
        spans=spans,
        rungs=Counter(span.rung for span in spans),
        causes=Counter(span.cause for span in spans if span.rung > 1 or (span.rung == 0 and span.cause)),
        hops={hop: steps for hop in HOPS if not lines.virtual and (steps := list(_steps(hop, spans, lines.outs)))},
        finals=len(asked),
        late_finals=sum(span.cause == LATE for span in asked),
        strays=lines.strays[agent],
        budgets=_budgets(take, agent),
        events=sorted(_events(take, agent, spans), key=lambda event: event.frame),
        account=_account(take.frames, logged, decided, lines.first_bar),
    )


def spans_of(lines: Iterable[SpanLine], retimes: Mapping[Key, RetimeLine]) -> list[SpanLine]:
    """Return one agent's spans as they sounded, in order; of a span that was logged twice the later line counts."""
    last = {span.key: span for span in lines}
    sounded = (
        replace(span, start=retimes[key].start, frames=retimes[key].frames) if key in retimes else span
        for key, span in last.items()
    )
    return sorted(sounded, key=lambda span: (span.start, span.bar, span.beat))


def _steps(hop: str, spans: Iterable[SpanLine], outs: Mapping[Key, OutLine]) -> Iterator[Step]:
    """Yield the spans that came to a hop, or should have."""
    for span in spans:
        if hop == "out":
            if (out := outs.get(span.key)) is not None:
                yield Step(span, out.margin_frames if out.actual is not None else None)
            continue
        wanted, actual = (*span.hops.get(hop, ()), None, None)[:2]
        if wanted is not None:
            margin = None if actual is None else wanted - actual
            yield Step(span, -margin if hop == "heard" and margin is not None else margin)
        elif hop == "ready" and not span.hops and span.margin_frames is not None:  # a take of before
            yield Step(span, span.margin_frames)


def _budgets(take: TakeReader, agent: str) -> list[tuple[int, int]]:
    found = [(line.frame, line.budget_frames) for line in take.armed if line.agent == agent]
    found += [(line.frame, line.budget_frames) for line in take.budgets if line.agent == agent]
    return sorted(found, key=lambda told: told[0])


def _events(take: TakeReader, agent: str, spans: Sequence[SpanLine]) -> Iterator[Event]:
    """Yield what happened to an agent's workers; each generation but the first took over from a lost one.

    One that was lost before it came on duty leaves the agent without a worker since the one before it was.
    """
    lost = {line.generation: line for line in take.workers if line.agent == agent and line.event == "lost"}
    came = {line.generation: line.frame for line in take.armed if line.agent == agent and line.generation > 0}
    since: int | None = None
    for generation in sorted({*lost, *came}):
        line = lost.get(generation)
        cause = line.cause if line is not None else ""
        if line is not None and since is None:
            since = line.frame
        if generation in came:
            yield Event(came[generation], "new worker", None if since is None else came[generation] - since, cause)
            since = None
        elif line is not None:
            yield Event(line.frame, "lost worker", None, cause)
    told = [
        line["frame"]
        for line in take.lines
        if line.get("type") == "command"
        and _quarantines(line.get("command"), agent)
        and type(line.get("frame")) is int
    ]
    silent = [span.start for span in spans if span.cause == "quarantined"]
    if told or silent:
        yield Event(min([*told, *silent]), "quarantine")


def _quarantines(command: object, agent: str) -> bool:
    return isinstance(command, Mapping) and command.get("do") == "quarantine" and command.get("target") == agent


# --- the account ---


def _account(frames: int, logged: Sequence[SpanLine], decided: Sequence[SpanLine], first_bar: int | None) -> Account:
    """See that each span begins where the one before ends, in frames and in bars, and that none is there twice."""
    if not decided:
        return Account(0, ((None, None),) if frames else ())
    counts = Counter(span.key for span in logged)
    double = [key[1] for key, count in counts.items() if count > 1]
    missing: list[Hole] = []
    first, last = decided[0], decided[-1]
    if first_bar is not None and (first.bar, first.beat) > (first_bar, 0):
        missing.append((None, first.bar))
    for one, following in pairwise(decided):
        if following.start > one.start + one.frames or not _adjoin(one, following):
            missing.append((one.bar, following.bar))
        elif following.start < one.start + one.frames:
            double.append(following.bar)
    # Spans are decided a little before they begin: by how much, the last one tells.
    ahead = last.start - last.deadline if last.deadline else 0
    if last.start + last.frames - max(0, ahead) < frames:
        missing.append((last.bar, None))
    return Account(len(decided), tuple(missing), tuple(sorted(set(double))))


def _adjoin(one: SpanLine, following: SpanLine) -> bool:
    """Whether two spans follow each other in musical time: within a bar, or from its end to the next downbeat."""
    if one.bar == following.bar:
        return one.beat + one.beats == following.beat
    return following.bar == one.bar + 1 and following.beat == 0


# --- in words ---


def account_words(found: Sequence[Course]) -> list[str]:
    """Say whether every span is accounted for, one sentence for the band or one for each agent that lacks some."""
    total = sum(course.account.spans for course in found)
    lacking = [course for course in found if not course.account.whole]
    if not total:
        return ["No agent has played a span."]
    if not lacking:
        return [f"Every span of every agent is accounted for: {_sum_words(found)}; each decided once, none missing."]
    return [f"{course.agent}: {_lacks(course.account)}" for course in lacking]


def counted(number: int, what: str) -> str:
    """Return a number with its noun, in the plural where it is not one."""
    return f"{number:,} {what}" + ("s" if number != 1 else "")


def _sum_words(found: Sequence[Course]) -> str:
    """Say how many spans there are, so that every other sum of them can be told from it."""
    sounded = sum(len(course.spans) for course in found)
    rests = sum(course.rungs[0] for course in found)
    beyond = sum(course.account.spans for course in found) - sounded
    words = counted(sounded, "span") + (f", of them {counted(rests, 'rest')}" if rests else "")
    return words + (f", and {beyond:,} that were to begin after the end" if beyond else "")


def _hole_words(hole: Hole) -> str:
    one, other = hole
    if one is None or other is None:
        return f"before bar {other + 1}" if other is not None else f"after bar {(one or 0) + 1}"
    return f"in bar {one + 1}" if one == other else f"between bars {one + 1} and {other + 1}"


def _lacks(account: Account) -> str:
    if not account.spans:
        return "none of its spans is there."
    missing = ", ".join(_hole_words(hole) for hole in account.missing[:_NAMED])
    double = ", ".join(str(bar + 1) for bar in account.double[:_NAMED])
    parts = []
    if missing:
        more = len(account.missing) - _NAMED
        parts.append(f"spans are missing {missing}" + (f" and at {counted(more, 'more place')}" if more > 0 else ""))
    if double:
        more = len(account.double) - _NAMED
        parts.append(
            f"a span is there twice in bar {double}" + (f" and in {counted(more, 'more bar')}" if more > 0 else "")
        )
    return f"{counted(account.spans, 'span')}, but " + "; ".join(parts) + "."


_NAMED = 8
