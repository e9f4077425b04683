"""One source as it is heard: whether it rolls, where the song is, and how well that is known.

What a source says and what it does need not go together: it says that it has stopped and its position moves on, it
counts four beats where the session plans three, it goes back to a bar again and again, it falls silent. All that is
settled here, source by source; who of them leads is :mod:`bridge.follower`'s matter, and how a line is found in
positions that jitter is :mod:`bridge.songline`'s.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable
from dataclasses import dataclass, replace
from fractions import Fraction
from operator import attrgetter

from bridge.songline import Found, LineFinder
from bridge.sync import Observation
from realtime.clock import Meter, TempoMap
from realtime.hostclock import SECOND_NS

SILENT_EXACT_NS, SILENT_NS, SILENT_MOST_NS = 300_000_000, 1_000_000_000, 5_000_000_000
"""A source that rolls and says nothing for so long is lost; one that speaks seldom gets four of its intervals."""
FORGET_NS = 10 * SECOND_NS
"""After a longer silence its line is found anew."""
OTHER_SENDER_NS = 3 * SECOND_NS
"""A second sender of the same source is heard when the first has been silent for so long."""
STANDING_NS, STANDING_COUNT = 500_000_000, 3
"""A position that is said again and again stands still, whatever is said of playing."""
MOVING_NS = SECOND_NS
"""A position that moves in time for so long rolls, whatever is said of playing."""
LOOP_SEEN = 2
"""A loop that was seen so often is expected to come again."""
LOOP_SECONDS = 0.020
"""How far from a bar line a jump may be seen to begin, where the source is not exact."""


class Log:
    """Counts what happened and says it in words, the first time and then ever more seldom: a flood is one line."""

    def __init__(self, tell: Callable[[str], None]) -> None:
        self.counts: dict[str, int] = {}
        self._tell = tell

    def __call__(self, kind: str, text: str) -> None:
        count = self.counts[kind] = self.counts.get(kind, 0) + 1
        if count == 10 ** (len(str(count)) - 1):
            self._tell(text if count == 1 else f"{text} ({count} times so far)")


@dataclass(frozen=True, slots=True)
class Bar:
    """A bar of the song, the beat it starts on, and its meter."""

    number: int
    downbeat: Fraction
    meter: Meter

    @property
    def end(self) -> Fraction:
        return self.downbeat + self.meter.beats


class Bars:
    """Where a source's bar lines lie in its beats: as the session plans it, until the source says otherwise."""

    def __init__(self, song: TempoMap) -> None:
        self._lines = list(song.timelines)
        self.told = False

    def at(self, beat: Fraction) -> Bar:
        """Return the bar that contains a beat."""
        line = self._lines[max(0, bisect_right(self._lines, beat, key=attrgetter("beat")) - 1)]
        number = line.bar_at(beat)
        return Bar(number, line.downbeat(number), line.meter)

    def bar(self, number: int) -> Bar:
        """Return a bar by its number."""
        line = self._lines[max(0, bisect_right(self._lines, number, key=attrgetter("first_bar")) - 1)]
        return Bar(number, line.downbeat(number), line.meter)

    def first_like(self, bar: Bar) -> int:
        """Return the first bar from which on all have the meter of ``bar``, up to it."""
        index = max(0, bisect_right(self._lines, bar.downbeat, key=attrgetter("beat")) - 1)
        while index and self._lines[index - 1].meter == bar.meter:
            index -= 1
        return self._lines[index].first_bar if index else min(0, bar.number)

    def hear(self, meter: Meter, here: Bar, from_start: bool) -> bool:
        """Take in that ``here`` has a meter; return whether that is news."""
        first, self.told = not self.told, True
        if here.meter == meter:
            return False
        if first and from_start:  # who counts beats alone has had this meter all along, as far as anybody knows
            here = Bar(0, Fraction(0), meter)
        base = self._lines[0]
        line = replace(base, meter=meter, beat=here.downbeat, bar=here.number, bar_beat=here.downbeat)
        self._lines = [other for other in self._lines if other.beat < here.downbeat] + [line]
        return True


class Heard:
    """One source as it is heard: whether it rolls, where, and how well it is known."""

    def __init__(self, name: str, rank: int, samplerate: int, song: TempoMap, log: Log) -> None:
        self.name, self.rank = name, rank
        self.finder = LineFinder(samplerate, song.timelines[0].tempo)
        self.bars = Bars(song)
        self.lost = False
        self.started = self.stopped = 0  # counts of the follower's, to tell which was first
        self.steady_since: int | None = None
        self._log, self._samplerate = log, samplerate
        self._said: bool | None = None
        self._moves = False  # although it says that it has stopped
        self._last_ns = self._place_ns = self._interval_ns = self._sender_ns = self._said_ns = 0
        self._sender = ""
        self._same: tuple[Fraction, int, int] | None = None  # a beat that was said again and again: since, how often
        self._bar: tuple[int, int] | None = None  # the last bar that was named, and when
        self._meter: Meter | None = None
        self._last_fit = 0
        self._loop: tuple[int, int] | None = None  # the bar it ended before, the bar it went back to
        self._loops = 0

    # -- how it stands ------------------------------------------------------------------------------------------

    @property
    def standing(self) -> bool:
        """Whether its position has not moved for a while."""
        same = self._same
        return same is not None and same[2] >= STANDING_COUNT and self._place_ns - same[1] >= STANDING_NS

    @property
    def rolling(self) -> bool:
        """Whether it plays, as far as what it says and what it does go together."""
        if self.standing:
            return False
        if self._said is None:
            return self.finder.locked
        return self._said or self._moves

    @property
    def stopped_now(self) -> bool:
        """Whether it has said or shown that it stands."""
        return self.standing or (self._said is False and not self._moves)

    @property
    def known(self) -> bool:
        """Whether it rolls and its line is believed."""
        return self.rolling and self.finder.locked and not self.lost

    # -- what it says -------------------------------------------------------------------------------------------

    def take(self, said: Observation, frame: int) -> None:
        """Take in an observation whose fields have been checked; its sender speaks for this source."""
        self._last_ns = max(self._last_ns, said.time_ns)
        if said.playing is not None:
            self._hear_playing(said.playing, said.time_ns)
        self._hear_tempo(said.tempo)
        if said.meter is not None:
            self._meter = said.meter
        if said.bar is None and said.beat is None:
            self._hear_meter(frame)
            return
        if said.located or (self._place_ns and said.time_ns - self._place_ns > FORGET_NS):
            self.finder.restart()
            self._same = self._bar = None
        beat = self._beat(said, frame)
        self._hear_place(said, frame, beat)

    def speaks(self, said: Observation) -> bool:
        """Whether a sender is the one that is listened to; another one is when that has been silent for long."""
        if said.sender != self._sender and self._sender_ns and said.time_ns - self._sender_ns < OTHER_SENDER_NS:
            self._log(
                f"{self.name}: doubled",
                f"{self.name}: {said.sender or 'a second sender'} says where the song is as well; "
                f"{self._sender or 'the first'} is followed, so switch one of them off",
            )
            return False
        if said.sender != self._sender and self._sender_ns:
            self.finder.restart()
        self._sender, self._sender_ns = said.sender, max(self._sender_ns, said.time_ns)
        return True

    def _hear_playing(self, playing: bool, time_ns: int) -> None:
        if playing == self._said:
            return
        if not (playing and self._moves):
            self.finder.restart()
        self.lost = self.lost and playing
        self._said, self._moves, self._same = playing, False, None
        self._said_ns = time_ns

    def _hear_tempo(self, tempo: Fraction | None) -> None:
        before = self.finder.contradicted
        self.finder.tell(tempo)
        if self.finder.contradicted > before:
            self._contradiction()

    def _contradiction(self) -> None:
        line = self.finder.line
        if line is not None and self.finder.told is not None:
            self._log(
                f"{self.name}: contradictory",
                f"{self.name}: it says {float(self.finder.told):g} bpm, but its position moves at "
                f"{float(line.tempo):.3f}; the position is followed",
            )

    def _beat(self, said: Observation, frame: int) -> Fraction:
        """Return the place in beats, having learnt about bars what there is to learn."""
        if said.bar is None:
            assert said.beat is not None
            if self._meter is not None and self.bars.hear(self._meter, self.bars.at(said.beat), from_start=True):
                self._say_meter(self.bars.at(said.beat))
            return said.beat
        if self._meter is not None and self.bars.hear(self._meter, self.bars.bar(said.bar), from_start=False):
            self._say_meter(self.bars.bar(said.bar))
        beat = self.bars.bar(said.bar).downbeat + (said.bar_beat or 0)
        if self._meter is None and self._bar is not None and said.bar == self._bar[0] + 1:
            beat = self._inferred(said, frame, beat)
        self._bar = said.bar, said.time_ns
        return beat

    def _inferred(self, said: Observation, frame: int, beat: Fraction) -> Fraction:
        """Return the place, where the bar before turned out longer or shorter than the session has it."""
        assert said.bar is not None
        assert self._bar is not None
        line = self.finder.line
        if line is None or not self.finder.locked or said.time_ns - self._bar[1] > SECOND_NS:
            return beat
        before = self.bars.bar(self._bar[0])
        unit = Fraction(4, before.meter.unit)
        more = (line.beat_at(frame) - beat) / unit
        count = before.meter.count + round(more)
        if not round(more) or abs(more - round(more)) > Fraction(1, 4) or not 1 <= count <= 32:
            return beat
        self.bars.hear(Meter(count, before.meter.unit), before, from_start=False)
        self._say_meter(self.bars.bar(before.number))
        return self.bars.bar(said.bar).downbeat + (said.bar_beat or 0)

    def _hear_meter(self, frame: int) -> None:
        line = self.finder.line
        if self._meter is not None and line is not None and self.finder.locked:
            here = self.bars.at(line.beat_at(frame))
            if self.bars.hear(self._meter, here, from_start=self._bar is None):
                self._say_meter(here)

    def _say_meter(self, bar: Bar) -> None:
        self._log(
            f"{self.name}: meter",
            f"{self.name}: bar {bar.number + 1} has {self.bars.bar(bar.number).meter}, which the session does not "
            "plan; it is followed",
        )

    def _hear_place(self, said: Observation, frame: int, beat: Fraction) -> None:
        self._note_standing(beat, said.time_ns)
        if self._place_ns and said.time_ns > self._place_ns:
            gap = said.time_ns - self._place_ns
            self._interval_ns += (min(gap, SILENT_MOST_NS) - self._interval_ns) // 8
        self._place_ns = max(self._place_ns, said.time_ns)
        if self.standing:
            if self.finder.locked:
                self.finder.restart()
            return
        contradicted = self.finder.contradicted
        found = self.finder.add(frame, beat, said.frame is not None, said.grain)
        if self.finder.contradicted > contradicted:
            self._contradiction()
        if found is Found.FITS:
            self._last_fit = frame
        elif found in (Found.JUMPED, Found.LOCKED):
            self._learn_loop()
        if self._said is False and not self._moves:
            self._judge_movement(frame)
        self.lost = False

    def _note_standing(self, beat: Fraction, time_ns: int) -> None:
        if self._same is not None and self._same[0] == beat:
            if self._said and not self.standing and time_ns - self._same[1] >= STANDING_NS:
                self._log(
                    f"{self.name}: contradictory",
                    f"{self.name}: it says that it plays, but its position stands still; it is taken to have stopped",
                )
            self._same = beat, self._same[1], self._same[2] + 1
        else:
            self._same = beat, time_ns, 1

    def _judge_movement(self, frame: int) -> None:
        """See whether a source that says it has stopped rolls all the same."""
        if self.finder.locked and frame - self.finder.since > MOVING_NS * self._samplerate // SECOND_NS:
            self._moves = True
            self._log(
                f"{self.name}: contradictory",
                f"{self.name}: it says that it has stopped, but its position moves on; the position is followed",
            )

    # -- silence ------------------------------------------------------------------------------------------------

    def look(self, now_ns: int) -> None:
        """Notice that it has fallen silent while it rolled."""
        if self.lost or not self.rolling or not self._place_ns:
            return
        limit = SILENT_EXACT_NS if self.finder.exact else SILENT_NS
        limit = min(max(limit, 4 * self._interval_ns), SILENT_MOST_NS)
        if now_ns - max(self._place_ns, self._said_ns) > limit:
            self.lost, self.steady_since = True, None
            self._log(f"{self.name}: lost", f"{self.name}: nothing is heard of it; the band goes on in its tempo")

    # -- loops --------------------------------------------------------------------------------------------------

    def _learn_loop(self) -> None:
        """See whether a jump went back from a bar line to a bar line, as the one before it did."""
        before, line = self.finder.before, self.finder.line
        if before is None or line is None:
            return
        at = self.finder.since
        slack = 2 if self.finder.exact else round(LOOP_SECONDS * self._samplerate)
        back = before.beat_at(at) - line.beat_at(at)
        if abs(back) < Fraction(1, 8):
            return  # it was expected
        end = self.bars.at(before.beat_at(at + slack))
        start = self.bars.at(end.downbeat - back + Fraction(1, 8))
        whole = abs(end.downbeat - back - start.downbeat) < Fraction(1, 8)
        crossed = self._last_fit - slack <= before.position(end.downbeat)
        fresh = at - self._last_fit < self._samplerate
        if not (back > 0 and whole and crossed and fresh):
            self._loop, self._loops = None, 0
            return
        loop = end.number, start.number
        self._loops = self._loops + 1 if loop == self._loop else 1
        self._loop = loop

    def expect_loop(self, bar: Bar, frame: int, now: int) -> bool:
        """Go round a loop that is known in its last bar, which ends at ``frame``; return whether it was that."""
        line = self.finder.line
        if self._loop is None or self._loops < LOOP_SEEN or bar.number != self._loop[0] or line is None:
            return False
        if frame - self.bars.bar(bar.number - 1).meter.beats * line.beat_frames >= now:
            return False  # not in it yet: what the song is said to go on from counts from the next bar line on
        self.finder.fold(frame, bar.downbeat - self.bars.bar(self._loop[1]).downbeat)
        return True
