"""Whether a band fits this machine, judged before it plays; and who gives way where it does not.

Two things have to hold. Each agent's answer, with those of the agents who follow it, must be made within one of its
spans: ``budget = 1.5 x longest + hand-over``, summed down the chain. And all the work of a bar, the final answers,
the speculative ones and the continuations of every agent, must fit into 80 % of a bar on all cores but one, which is
for the engine and the device. A machine of one core gives the band 80 % of half a bar.

What does not fit is degraded, as little and as few as possible:

1. a *coarser grid*: spans twice as long, or four times, up to a bar; agents that follow each other on one grid change
   it together, as a plan is for a span;
2. the next *lighter* way to play that the session lists (fewer steps, a smaller model of the same family);
3. it is *refused*, and rests.

Nobody is refused where the others could make room, and nobody is degraded where that does not lead to a band that
fits. Of several steps of one kind the smallest that is enough is taken, else the largest; of equal ones that of the
later agent in the session. What a coarser grid or a lighter way really costs is not known before it is measured:
until then a coarser grid is held to cost per span what the finer one did, and a lighter way nothing. Whoever was
changed is timed and judged again, beside those who play by then and are left alone. So the verdict depends on the
figures and on the order of the session, on nothing else.

Everything here is a pure function; any thread.
"""

from __future__ import annotations

import enum
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from functools import partial

from realtime.clock import TempoMap
from realtime.seat import BUDGET_MARGIN, HAND_OVER_SECONDS

SHARE_OF_A_BAR = 0.8
"""The rest is for the machine's own moods."""
SHARE_OF_ONE_CORE = 0.5
"""What the engine and the device leave of a core that they have to share."""
WHOLE_BAR = Fraction(0)


@dataclass(frozen=True, slots=True)
class Cost:
    """What one span costs an agent on this machine.

    Attributes
    ----------
    final_seconds, speculative_seconds, continuation_seconds
        The longest it took for each kind of request.
    usual_seconds
        What all three take as a rule; 0 where only the longest are known.
    """

    final_seconds: float
    speculative_seconds: float = 0.0
    continuation_seconds: float = 0.0
    usual_seconds: float = 0.0

    @property
    def work_seconds(self) -> float:
        """All that is computed for one span."""
        return self.usual_seconds or self.final_seconds + self.speculative_seconds + self.continuation_seconds

    @property
    def budget_seconds(self) -> float:
        """How long before its deadline the final request has to go out."""
        return BUDGET_MARGIN * max(self.final_seconds, self.speculative_seconds) + HAND_OVER_SECONDS


@dataclass(frozen=True, slots=True)
class Candidate:
    """One agent that wants to play.

    Attributes
    ----------
    name
        The agent.
    cost
        As measured; ``None`` while it is unknown: then it counts for nothing and is not judged.
    grid_beats
        Length of a span, 0 for a bar.
    follows
        Agents that are asked before it.
    budget_seconds
        Said by the session; 0 takes it from the cost.
    lighter
        The lighter ways to play that are left, in words, the next one first.
    settled
        Whether it plays already: it is counted and never touched.
    """

    name: str
    cost: Cost | None
    grid_beats: Fraction = WHOLE_BAR
    follows: tuple[str, ...] = ()
    budget_seconds: float = 0.0
    lighter: tuple[str, ...] = ()
    settled: bool = False


@dataclass(frozen=True, slots=True)
class Bar:
    """One kind of bar of a session: its length in quarter notes, and in seconds where it is fastest."""

    beats: Fraction
    seconds: float

    def span_beats(self, grid_beats: Fraction) -> Fraction:
        """Length of a span in this bar, the last of which may be shorter."""
        return min(grid_beats, self.beats) if grid_beats else self.beats

    def span_seconds(self, grid_beats: Fraction) -> float:
        """Duration of a span."""
        return float(self.span_beats(grid_beats) / self.beats) * self.seconds

    def spans(self, grid_beats: Fraction) -> int:
        """Spans in this bar."""
        return math.ceil(self.beats / self.span_beats(grid_beats))


def bars_of(tempo_map: TempoMap) -> tuple[Bar, ...]:
    """Return every length of bar in a map, each at its fastest, in order of first appearance."""
    fastest: dict[Fraction, Fraction] = {}
    for timeline in tempo_map.timelines:
        beats = timeline.meter.beats
        fastest[beats] = max(timeline.tempo, fastest.get(beats, timeline.tempo))
    return tuple(Bar(beats, float(60 * beats / tempo)) for beats, tempo in fastest.items())


class Decision(enum.Enum):
    """What becomes of a candidate."""

    WAITS = "waits"
    """Its cost is not known."""
    ADMITTED = "admitted"
    COARSER = "coarser"
    """To be timed on a coarser grid."""
    LIGHTER = "lighter"
    """To be timed the next lighter way, on the grid that is given."""
    REFUSED = "refused"


@dataclass(frozen=True, slots=True)
class Verdict:
    """What becomes of one agent, with the grid it has now and one sentence that gives the figures."""

    name: str
    decision: Decision
    grid_beats: Fraction
    sentence: str


def room_seconds(bar: Bar, cores: int) -> float:
    """Return how much work all agents together may have in one bar."""
    return SHARE_OF_A_BAR * bar.seconds * (cores - 1 if cores > 1 else SHARE_OF_ONE_CORE)


def admit(band: Sequence[Candidate], bars: Sequence[Bar], cores: int) -> tuple[Verdict, ...]:
    """Judge a band.

    Parameters
    ----------
    band
        The agents in the order of the session.
    bars
        The kinds of bar it will meet.
    cores
        Processors that this session may use.

    Returns
    -------
    tuple of Verdict
        One for each agent, in their order.

    Raises
    ------
    ValueError
        If there is no bar, or no core.
    """
    if not bars or cores < 1:
        raise ValueError(f"admission over {len(bars)} kinds of bar on {cores} cores; at least one of each is needed")
    judge = _Judge(band, bars, cores)
    judge.fit_each()
    judge.fit_together()
    return judge.verdicts()


@dataclass(frozen=True, slots=True)
class _Step:
    """Something that makes the band lighter: by how many seconds of work a bar, and how to do it."""

    relief: float
    take: Callable[[], None]


class _Judge:
    """The band as it stands while steps are taken."""

    def __init__(self, band: Sequence[Candidate], bars: Sequence[Bar], cores: int) -> None:
        self._before = {agent.name: agent for agent in band}
        self._now = dict(self._before)
        self._decisions = {agent.name: Decision.WAITS if agent.cost is None else Decision.ADMITTED for agent in band}
        self._why: dict[str, str] = {}
        self._bars, self._cores = bars, cores
        self._together = self._band_words()

    # What is needed and what is there

    def _cost(self, name: str) -> Cost:
        if self._decisions[name] in (Decision.REFUSED, Decision.LIGHTER):
            return Cost(0.0)
        return self._now[name].cost or Cost(0.0)

    def _budget(self, name: str) -> float:
        if not self._cost(name).work_seconds:
            return 0.0
        return self._now[name].budget_seconds or self._cost(name).budget_seconds

    def _chain(self, name: str) -> tuple[str, ...]:
        """Return an agent and the slowest row of those who wait for it."""
        rows = [self._chain(other.name) for other in self._now.values() if name in other.follows]
        return (name, *max(rows, key=self._chain_seconds, default=()))

    def _chain_seconds(self, chain: tuple[str, ...]) -> float:
        return sum(self._budget(name) for name in chain)

    def _span_seconds(self, grid: Fraction) -> float:
        return min(bar.span_seconds(grid) for bar in self._bars)

    def _work(self, name: str, bar: Bar) -> float:
        return self._cost(name).work_seconds * bar.spans(self._now[name].grid_beats)

    def _least_work(self, name: str, bar: Bar) -> float:
        """Return the work of an agent that gives way as far as it can."""
        if not self._touchable(name):
            return self._work(name, bar)
        return 0.0 if self._now[name].lighter else self._cost(name).work_seconds

    def _worst(self, work: Callable[[str, Bar], float]) -> tuple[Bar, float]:
        """Return the bar with most to do for its length, and by how much that is too much."""
        load = {bar: math.fsum(work(name, bar) for name in self._now) for bar in self._bars}
        bar = max(self._bars, key=lambda bar: load[bar] / bar.seconds)
        return bar, load[bar] - room_seconds(bar, self._cores)

    # Steps

    def _touchable(self, name: str) -> bool:
        return not self._now[name].settled and self._decisions[name] in (Decision.ADMITTED, Decision.COARSER)

    def _family(self, name: str) -> tuple[str, ...]:
        """Return the agents on the same grid that follow each other, and so change it together."""
        found, todo = {name}, [name]
        while todo:
            one = self._now[todo.pop()]
            for other in self._now.values():
                linked = other.name in one.follows or one.name in other.follows
                same = other.grid_beats == one.grid_beats and self._touchable(other.name)
                if linked and same and other.name not in found:
                    found.add(other.name)
                    todo.append(other.name)
        return tuple(agent for agent in self._now if agent in found)

    def _coarser_grids(self, grid: Fraction) -> list[Fraction]:
        """Return the grids from twice as coarse to the bar."""
        longest, found = max(bar.beats for bar in self._bars), []
        while grid and grid < longest:
            grid *= 2
            found.append(grid if grid < longest else WHOLE_BAR)
        return found

    def _coarsen(self, names: tuple[str, ...], grid: Fraction, why: str) -> None:
        for name in names:
            self._now[name] = replace(self._now[name], grid_beats=grid)
            self._settle(name, Decision.COARSER, why)

    def _settle(self, name: str, decision: Decision, why: str) -> None:
        self._decisions[name] = decision
        self._why[name] = why

    def _coarser_steps(self, bar: Bar) -> list[_Step]:
        steps = []
        families = dict.fromkeys(self._family(name) for name in self._now if self._touchable(name))
        for names in families:
            before = self._now[names[0]].grid_beats
            for grid in self._coarser_grids(before):
                fewer = bar.spans(before) - bar.spans(grid)
                relief = fewer * sum(self._cost(name).work_seconds for name in names)
                steps.append(_Step(relief, partial(self._coarsen, names, grid, self._together)))
        return steps

    def _steps_for_one(self, decision: Decision, relief: Callable[[str], float]) -> list[_Step]:
        names = [name for name in self._now if self._touchable(name)]
        if decision is Decision.LIGHTER:
            names = [name for name in names if self._now[name].lighter]
        return [_Step(relief(name), partial(self._settle, name, decision, self._together)) for name in names]

    # The two rules

    def fit_each(self) -> None:
        """See to it that every chain of answers is made within the span of the agent that starts it."""
        for name in self._now:
            while self._chain_seconds(self._chain(name)) > self._span_seconds(self._now[name].grid_beats):
                if not self._shorten(name):
                    break

    def _shorten(self, name: str) -> bool:
        """Take one step for an agent whose chain takes longer than its span; return whether there was one."""
        chain = self._chain(name)
        why = self._chain_words(chain)
        coarser = self._coarser_grids(self._now[name].grid_beats) if self._touchable(name) else []
        enough = [grid for grid in coarser if self._span_seconds(grid) >= self._chain_seconds(chain)]
        if enough:
            self._coarsen(self._family(name), enough[0], why)
            return True
        slowest_first = sorted(reversed(chain), key=self._budget, reverse=True)
        movable = [other for other in slowest_first if self._touchable(other) and self._budget(other)]
        for other in movable:
            if self._now[other].lighter:
                self._settle(other, Decision.LIGHTER, why)
                return True
        if movable:
            self._settle(movable[0], Decision.REFUSED, why)
        return bool(movable)

    def fit_together(self) -> None:
        """See to it that all work fits into the bar that has most of it."""
        while (worst := self._worst(self._least_work))[1] > 0:  # who rests is settled first
            bar, excess = worst
            if not _take_one(self._steps_for_one(Decision.REFUSED, partial(self._least_work, bar=bar)), excess):
                return  # those who are left play already
        while (worst := self._worst(self._work))[1] > 0:
            bar, excess = worst
            lighter = self._steps_for_one(Decision.LIGHTER, partial(self._work, bar=bar))
            by_grids_alone = sum(
                self._work(name, bar) - self._cost(name).work_seconds for name in self._now if self._touchable(name)
            )
            if by_grids_alone >= excess or not any(step.relief for step in lighter):
                _take_one(self._coarser_steps(bar), excess)
            else:
                _take_one(lighter, excess)

    # In words

    def _chain_words(self, chain: tuple[str, ...]) -> str:
        name, *followers = chain
        words = f"agent {name!r} needs {_ms(self._budget(name))} to answer"
        if any(self._budget(other) for other in followers):
            after = " and ".join(repr(other) for other in followers if self._budget(other))
            words += f", and {after} after it {_ms(self._chain_seconds(tuple(followers)))} more,"
        grid = self._now[name].grid_beats
        return f"{words} for {_span_words(grid)} of {_ms(self._span_seconds(grid))}"

    def _band_words(self) -> str:
        bar, excess = self._worst(self._work)
        room = room_seconds(bar, self._cores)
        cores = "one core leaves" if self._cores == 1 else f"{self._cores} cores leave"
        return (
            f"the band together takes {room + excess:.2f} s for a bar of {bar.seconds:.2f} s, "
            f"where {cores} it {room:.2f} s"
        )

    def verdicts(self) -> tuple[Verdict, ...]:
        """Return what has become of everybody."""
        return tuple(
            Verdict(name, self._decisions[name], agent.grid_beats, self._sentence(name))
            for name, agent in self._now.items()
        )

    def _sentence(self, name: str) -> str:
        before, now, decision = self._before[name], self._now[name], self._decisions[name]
        if before.cost is None:
            return f"agent {name!r} has not been timed yet"
        span = self._span_seconds(before.grid_beats)
        longest = max(before.cost.final_seconds, before.cost.speculative_seconds)
        figures = f"agent {name!r} takes {_ms(longest)} for {_span_words(before.grid_beats)} of {_ms(span)}"
        if decision is Decision.ADMITTED:
            return figures
        ends = {
            Decision.COARSER: f"it is tried {_grid_words(now.grid_beats)}",
            Decision.LIGHTER: f"it is tried with {before.lighter[0] if before.lighter else 'less'}",
            Decision.REFUSED: "it rests; a smaller model, fewer agents or a slower tempo would make room",
        }
        return f"{figures}; {self._why[name]}: {ends[decision]}"


def _take_one(steps: Sequence[_Step], excess: float) -> bool:
    """Take the smallest step that is enough, else the largest, of equals the last; return whether there was one."""
    some = [step for step in reversed(steps) if step.relief > 0]
    enough = [step for step in some if step.relief >= excess]
    if some:
        least = min(enough, key=lambda step: step.relief) if enough else max(some, key=lambda step: step.relief)
        least.take()
    return bool(some)


def _ms(seconds: float) -> str:
    return f"{1000 * seconds:.0f} ms" if seconds < 10 else f"{seconds:.1f} s"


def _span_words(grid: Fraction) -> str:
    if not grid:
        return "a bar"
    return "a beat" if grid == 1 else f"{grid} beats" if grid > 1 else f"{grid} of a beat"


def _grid_words(grid: Fraction) -> str:
    if not grid:
        return "by the bar"
    return "by the beat" if grid == 1 else f"by {grid} beats"
