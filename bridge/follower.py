"""Following: whom to believe, and which grid that means.

The :class:`Follower` takes what sources observe and says, as commands to the engine, which grid is wanted whenever
that changes. It knows nothing of sockets, threads or the engine's map, and lives in whatever time its caller gives
it. What holds, whatever the sources do:

* *Nothing wrong is numbered.* A place is believed when several observations agree on it, and an anchor is sent only
  from what is believed. Until then the band stays in the grid it has.
* *Nothing is nudged.* An anchor is sent when the grid that is wanted differs from the one that was sent by more than
  the source can tell: 0 frames where it is exact, some of its scatter where it is not, and not more often than once a
  bar unless it is badly off.
* *A source that is lost leaves the band playing* in the last tempo; when it is back and agrees with itself, the next
  anchor leads there.
* *One leads.* The first in the session's order that rolls. A better one takes over once it has held for two bars; a
  worse one only if the leader is lost, or starts after the leader has stopped.
* *A loop costs two bars.* A place that is jumped to is known a little after the bar line, so that bar is played as
  the one it would have been. What has gone round twice from bar line to bar line is expected to go on so.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction

from bridge.heard import Bar, Heard, Log
from bridge.sync import Observation, SessionClock
from realtime.clock import (
    FASTEST_BPM,
    MAX_BARS,
    MAX_FRAME,
    SLOWEST_BPM,
    Anchor,
    Meter,
    TempoMap,
    Timeline,
    round_frame,
)
from realtime.engine import Command
from realtime.hostclock import SECOND_NS

INTERNAL = "internal"
"""The session's own clock; as a source it comes last, and means that the band plays while nobody else does."""
COUNT_IN_BARS = 16
"""A source may be so far before the song's beginning."""
MAX_BEATS, LONGEST_BAR = 4 * MAX_BARS, 128
STALE_NS, AHEAD_NS = 10 * SECOND_NS, SECOND_NS
"""An observation older or further ahead than this is none."""
HOLD_BARS = 2
"""A better source takes over when it has rolled for so long."""
SURE, LEAST_SECONDS, MOST_SECONDS = 3.0, 0.0002, 0.004
"""What a grid must be off by to be corrected, where the source is not exact: so many times what its line may be off
by, in these bounds.
"""
BADLY_SECONDS, BADLY_TEMPO = 0.020, Fraction(1, 200)
"""A grid off by more is corrected every beat, else every bar."""
EXACT_FRAMES = Fraction(1, 50)
NOTICE_SECONDS = 0.1
"""How far ahead a bar line lies that the engine still reaches, if the caller does not say."""
SEARCHED_BARS = 512


@dataclass(frozen=True, slots=True)
class SyncStatus:
    """How following stands, for people.

    Attributes
    ----------
    leader
        Source that is followed, ``"internal"`` for none.
    playing, lost
        Whether it rolls, and whether it has fallen silent while it did.
    tempo
        Its tempo, quarter notes per minute, ``None`` if it has none yet.
    spread_seconds
        How far its observations scatter.
    anchors
        Commands sent that moved the grid.
    troubles
        What was ignored or settled, by kind, and how often.
    """

    leader: str
    playing: bool
    lost: bool
    tempo: Fraction | None
    spread_seconds: float
    anchors: int
    troubles: Mapping[str, int]


class Follower:
    """Whom to believe, and which grid that means. Pure: virtual time, no sockets, no threads, one caller.

    Give it every observation (:meth:`take`) and ask it a few dozen times a second what the engine is to be told
    (:meth:`step`). Nothing raises once it is built: what makes no sense is counted, said in one sentence and ignored.

    Parameters
    ----------
    clock
        The session's, fed by the caller.
    song
        The session's plan: its meters say where bar lines are for sources that count beats alone, its tempo is the
        first guess.
    order
        Names of the sources, the best first; ``"internal"`` may come last.
    notice_frames
        How far ahead a bar line must lie for the engine to reach it (lead and two blocks), with some air.
    offset_frames
        By how much the grid of a source is moved later, by name: what was calibrated or set by hand.
    tell
        Takes sentences for the log.

    Raises
    ------
    ValueError
        If the order names nobody, somebody twice, or ``"internal"`` before the last.
    """

    def __init__(
        self,
        clock: SessionClock,
        song: TempoMap,
        order: Sequence[str],
        *,
        notice_frames: int | None = None,
        offset_frames: Mapping[str, int] | None = None,
        tell: Callable[[str], None] = lambda text: None,
    ) -> None:
        if not order or len(set(order)) < len(order) or INTERNAL in order[:-1]:
            raise ValueError(
                f"sources={list(order)}: name each source once, the best first; "
                f'"{INTERNAL}" comes last, and stands for the session\'s own clock'
            )
        self._clock, self._rate = clock, clock.samplerate
        self._log = Log(tell)
        self._internal = order[-1] == INTERNAL
        names = [name for name in order if name != INTERNAL]
        self._heard = {name: Heard(name, rank, self._rate, song, self._log) for rank, name in enumerate(names)}
        self._notice = notice_frames if notice_frames is not None else round(NOTICE_SECONDS * self._rate)
        self._offsets = dict(offset_frames or {})
        self._leader: Heard | None = None
        self._sent: Timeline | None = None
        self._sent_at: int | None = None
        self._anchors = 0
        self._resting = False
        self._events = 0
        self._leaps = 0
        self._looked_at: tuple[Timeline | None, int] = None, 0  # a line that was found to be the grid at a bar

    # -- in -----------------------------------------------------------------------------------------------------

    def take(self, observation: Observation) -> None:
        """Take in what a source observed."""
        heard = self._heard.get(observation.source)
        if heard is None or not self._clock.known or not self._timely(observation):
            return
        said = self._checked(observation)
        if not heard.speaks(said):
            return
        frame = said.frame if said.frame is not None else self._clock.frame_at(said.time_ns)
        rolled, was_lost = heard.rolling, heard.lost
        heard.take(said, frame + self._offsets.get(said.source, 0))
        if heard.rolling != rolled:
            self._events += 1
            if heard.rolling:
                heard.started = self._events
            else:
                heard.stopped, heard.steady_since = self._events, None
        if was_lost and not heard.lost:
            self._log(f"{heard.name}: back", f"{heard.name}: it is heard again")

    def _timely(self, said: Observation) -> bool:
        now = self._clock.latest_ns
        if type(said.time_ns) is int and (now is None or now - STALE_NS <= said.time_ns <= now + AHEAD_NS):
            return True
        self._log("time", f"{said.source}: an observation is not of now (time {said.time_ns}); it is ignored")
        return False

    def _checked(self, said: Observation) -> Observation:
        """Return an observation without what cannot be."""
        name, bar, frame = said.source, said.bar, said.frame
        beat = self._number(name, "a position", "quarter notes", said.beat, -4 * COUNT_IN_BARS, MAX_BEATS)
        offset = self._number(name, "a place in the bar", "quarter notes", said.bar_beat, 0, LONGEST_BAR)
        tempo = self._number(name, "a tempo", "quarter notes per minute", said.tempo, SLOWEST_BPM, FASTEST_BPM)
        grain = self._number(name, "a grain", "quarter notes", said.grain, 0, 1)
        if bar is not None and not (type(bar) is int and -COUNT_IN_BARS <= bar <= MAX_BARS):
            self._refuse(name, "a bar", "counted from 0", bar, -COUNT_IN_BARS, MAX_BARS)
            bar = None
        if said.bar_beat is not None and offset is None:
            bar = None
        if frame is not None and not (type(frame) is int and abs(frame) <= MAX_FRAME):
            self._refuse(name, "a frame", "frames", frame, -MAX_FRAME, MAX_FRAME)
            frame = bar = beat = None
        return replace(
            said,
            beat=beat,
            bar=bar,
            bar_beat=offset,
            tempo=tempo,
            meter=said.meter if isinstance(said.meter, Meter) else None,
            playing=said.playing if isinstance(said.playing, bool) else None,
            frame=frame,
            grain=grain or Fraction(0),
            sender=str(said.sender),
        )

    def _number(self, source: str, what: str, unit: str, value: object, least: int, most: int) -> Fraction | None:
        """Return a number as a fraction, ``None`` if it is none or outside its bounds."""
        if value is None:
            return None
        try:
            number = Fraction(value)  # type: ignore[call-overload]
        except (TypeError, ValueError, OverflowError):
            number = None
        if not isinstance(number, Fraction) or isinstance(value, (str, bool)) or not least <= number <= most:
            self._refuse(source, what, unit, value, least, most)
            return None
        return number

    def _refuse(self, source: str, what: str, unit: str, value: object, least: int, most: int) -> None:
        shown = repr(float(value))[:24] if isinstance(value, Fraction) else repr(value)[:40]
        self._log(
            f"{source}: {what}", f"{source}: {what} of {shown} is ignored; it takes {least:,} to {most:,} {unit}"
        )

    # -- out ----------------------------------------------------------------------------------------------------

    def step(self, now_ns: int) -> list[Command]:
        """Return what the engine is to be told at a host time; in order, mostly nothing."""
        if not self._clock.known:
            return []
        now = self._clock.frame_at(now_ns)
        if self._clock.leaps != self._leaps:
            self._leaps = self._clock.leaps
            for heard in self._heard.values():
                if not heard.finder.exact:
                    heard.finder.restart()
        for heard in self._heard.values():
            heard.look(now_ns)
            if not heard.known:
                heard.steady_since = None
            elif heard.steady_since is None:
                heard.steady_since = now
        self._choose(now)
        leader = self._leader
        if leader is None or not leader.known:
            return [*self._rest(leader, True)]
        return [*self._grid(leader, now), *self._rest(leader, self._before_song(leader, now))]

    def status(self) -> SyncStatus:
        """Return how following stands."""
        leader = self._leader
        if leader is None:
            return SyncStatus(INTERNAL, self._internal, False, None, 0.0, self._anchors, dict(self._log.counts))
        line = leader.finder.line
        return SyncStatus(
            leader.name, leader.rolling, leader.lost, line.tempo if line is not None else None,
            leader.finder.spread_frames / self._rate, self._anchors, dict(self._log.counts),
        )  # fmt: skip

    def _choose(self, now: int) -> None:
        """Choose who leads."""
        leader, known = self._leader, [heard for heard in self._heard.values() if heard.known]
        if leader is None:
            self._lead(known[0] if known else None)
        elif leader.lost:
            if known:
                self._lead(known[0])
        elif leader.stopped_now:
            later = [heard for heard in known if heard.started > leader.stopped]
            if later:
                self._lead(later[0])
        else:
            better = next((heard for heard in known if heard.rank < leader.rank), None)
            if better is not None and better.steady_since is not None and better.finder.line is not None:
                line = better.finder.line
                bars = HOLD_BARS * better.bars.at(line.beat_at(now)).meter.beats
                if now - better.steady_since >= bars * line.beat_frames:
                    self._lead(better)

    def _lead(self, heard: Heard | None) -> None:
        if heard is not self._leader and heard is not None:
            self._log(f"{heard.name}: leads", f"{heard.name}: the band follows it")
            self._leader, self._sent_at = heard, None

    def _rest(self, leader: Heard | None, before_song: bool) -> Iterator[Command]:
        """Yield what makes the band rest or play."""
        if leader is None:
            resting = not self._internal
        elif leader.lost or (leader.rolling and not leader.finder.locked):
            resting = self._resting
        else:
            resting = not leader.rolling or self._sent is None or before_song
        if resting != self._resting:
            yield Command("rest", value=1.0 if resting else 0.0)
        self._resting = resting

    def _before_song(self, leader: Heard, now: int) -> bool:
        """Whether the next bar line is one of a count-in: what is said to play would play from there."""
        line = leader.finder.line
        if line is None or line.beat_at(now) >= 0:
            return False
        bar, frame = self._reached(leader, line, now)
        return bar.number < 0 or (bar.number == 0 and frame - bar.meter.beats * line.beat_frames >= now)

    def _reached(self, heard: Heard, line: Timeline, now: int) -> tuple[Bar, Fraction]:
        """Return the first bar line that can still be reached, and its exact frame."""
        first = now + self._notice
        bar = heard.bars.at(line.beat_at(first))
        if line.position(bar.downbeat) < first:
            bar = heard.bars.at(bar.end)
        return bar, line.position(bar.downbeat)

    def _grid(self, leader: Heard, now: int) -> Iterator[Command]:
        """Yield an anchor if the grid that is wanted is not the one that was sent."""
        line = leader.finder.line
        if line is None:
            return
        bar, frame = self._reached(leader, line, now)
        if leader.expect_loop(bar, round_frame(frame), now):
            line = leader.finder.line or line
            bar, frame = self._reached(leader, line, now)
        if line is self._looked_at[0] and bar.number == self._looked_at[1]:
            return  # neither has changed since it was looked at
        if not self._wanted(leader, line, bar, frame, now):
            return
        anchor = self._anchor(leader, line, bar)
        if anchor is not None:
            self._sent, self._sent_at = anchor.grid(self._rate), now
            self._anchors, self._looked_at = self._anchors + 1, (None, 0)
            yield Command("anchor", anchor=anchor)

    def _wanted(self, leader: Heard, line: Timeline, bar: Bar, frame: Fraction, now: int) -> bool:
        """Whether what is wanted differs from what was sent by more than the source can tell."""
        sent = self._sent
        earlier = frame - bar.meter.beats * line.beat_frames
        if earlier >= now and leader.bars.bar(bar.number - 1).meter != bar.meter:
            return False  # before a change of meter its grid has bar lines that are none: the engine would take one
        if sent is None:
            return True
        if sent.meter != bar.meter:
            return True
        there = sent.position(sent.downbeat(bar.number))
        after = sent.position(sent.downbeat(bar.number + 1))
        off = max(abs(frame - there), abs(frame + bar.meter.beats * line.beat_frames - after))
        if abs(frame - there) > line.beat_frames / 4:
            return True
        least = EXACT_FRAMES
        if not leader.finder.exact:
            unsure = min(SURE * leader.finder.unsure_frames, MOST_SECONDS * self._rate)
            least = Fraction(max(unsure, LEAST_SECONDS * self._rate))
        if off <= least:
            self._looked_at = line, bar.number
            return False
        badly = off > BADLY_SECONDS * self._rate or abs(line.tempo / sent.tempo - 1) > BADLY_TEMPO
        pause = line.beat_frames * (1 if badly else bar.meter.beats)
        return self._sent_at is None or now - self._sent_at >= pause

    def _anchor(self, leader: Heard, line: Timeline, bar: Bar) -> Anchor | None:
        """Return the grid as an anchor, by a bar whose line falls on a whole frame if there is one."""
        if not leader.finder.exact:
            number = max(bar.number, 0)
            position = line.position(bar.downbeat + (number - bar.number) * bar.meter.beats)
            return self._safe_anchor(round_frame(position), number, line.tempo, bar.meter)
        first = max(leader.bars.first_like(bar), bar.number - SEARCHED_BARS, 0)
        best: tuple[Fraction, int, int] | None = None
        for number in range(first, max(bar.number, 0) + SEARCHED_BARS):
            position = line.position(bar.downbeat + (number - bar.number) * bar.meter.beats)
            off = abs(position - round_frame(position))
            if best is None or off < best[0]:
                best = off, round_frame(position), number
            if off <= EXACT_FRAMES / 10:
                break
        assert best is not None
        return self._safe_anchor(best[1], best[2], line.tempo, bar.meter)

    def _safe_anchor(self, frame: int, number: int, tempo: Fraction, meter: Meter) -> Anchor | None:
        try:
            return Anchor(frame, number, tempo, meter)
        except ValueError as error:  # a place beyond what the engine counts: the band stays where it is
            self._log("anchor", f"a place that cannot be played is not gone to: {error}")
            return None
