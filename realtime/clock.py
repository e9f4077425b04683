"""Musical time: meters, timelines, tempo maps, and the transport that publishes them.

There is one clock, the session's frame counter, an integer. Musical time is exact: tempo, beats and the
position of every bar line are fractions, and a position becomes a frame once, by rounding. So errors never
add up: bar 10,000 starts where arithmetic says it does, and ``frame -> beat -> frame`` is the identity.

A :class:`TempoMap` is an immutable value. A reader takes it once per block or span and never twice
(after Ableton Link's session state). Only the :class:`Transport`, in the engine, publishes a new one.

A session's bars count up for ever; the *song bar* is where in the song a session bar is. The two part at the first
:class:`Locate`, which says that from a bar on the song goes on from another place, once or in a loop. A loop is
arithmetic and not a list: round n of it lies n exact lengths after round 0, so nothing is unrolled, nothing grows and
nothing adds up, however long it goes round.

How the time of other clocks becomes frames is the subject of :mod:`realtime.hostclock`.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, replace
from fractions import Fraction
from operator import attrgetter

SLOWEST_BPM, FASTEST_BPM = 20, 400
TEMPO_DENOMINATOR = 10**6
"""An outside tempo (a float, a host's) becomes the nearest fraction with at most this denominator."""
MAX_DIGITS = 40
KEPT_SECONDS = 600
"""The transport forgets timelines that ended longer ago: nobody looks back so far, and a map stays small for ever."""
POSITION_DENOMINATOR = 10**12
"""Bound of an origin's denominator: the rounding is below 1e-12 frame a change, and numbers stay small for ever."""
GENTLE = Fraction(1, 20)
"""Where what is left of a bar, or the next one, has to be bent by no more than this, that is done."""
SHORTEST_BEND = Fraction(1, 4)
"""No bar line is hurried by more than down to this part of what is left of its bar."""
BEND_GRID = Fraction(1, 8)
"""Beats; a bend begins on one of these places in a bar."""
MAX_FRAME = 2**48
MAX_BARS = 10**6
"""Bars are counted to here where somebody names one: more than 300 hours of 4/4 at 240 bpm."""


def round_frame(position: Fraction) -> int:
    """Round an exact position to its frame; a half goes up, for negative positions too."""
    return (2 * position.numerator + position.denominator) // (2 * position.denominator)


def as_tempo(bpm: float | str | Fraction) -> Fraction:
    """Turn a tempo from outside (quarter notes per minute) into a fraction.

    Raises
    ------
    ValueError
        If it is no number or outside 20 to 400.
    """
    text = str(bpm)
    try:
        if len(text) > MAX_DIGITS or "e" in text.lower():  # 1e999999999 would be written out before it is refused
            text = str(float(text))
        tempo = Fraction(text).limit_denominator(TEMPO_DENOMINATOR)
    except (ValueError, ZeroDivisionError, OverflowError):
        raise ValueError(f"bpm={bpm!r} is not a number; a tempo is quarter notes per minute, say 120") from None
    if not SLOWEST_BPM <= tempo <= FASTEST_BPM:
        raise ValueError(
            f"bpm={bpm}: a tempo is {SLOWEST_BPM} to {FASTEST_BPM} quarter notes per minute; "
            "did you give a period, or count eighths?"
        )
    return tempo


@dataclass(frozen=True, slots=True)
class Meter:
    """Beats to the bar as musicians write it: ``Meter(7, 8)`` is seven eighths."""

    count: int = 4
    unit: int = 4

    def __post_init__(self) -> None:
        if not (1 <= self.count <= 32 and self.unit in (1, 2, 4, 8, 16, 32)):
            raise ValueError(f"meter {self}: the count is 1 to 32 and the unit 1, 2, 4, 8, 16 or 32, as in 7/8")

    @classmethod
    def parse(cls, text: str) -> Meter:
        """Read ``"7/8"``."""
        count, slash, unit = text.partition("/")
        if not (slash and count.strip().isdecimal() and unit.strip().isdecimal()):
            raise ValueError(f"meter {text!r}: write count/unit, for instance 4/4, 3/4 or 7/8")
        return cls(int(count), int(unit))

    @property
    def beats(self) -> Fraction:
        """Length of a bar in quarter notes."""
        return Fraction(4 * self.count, self.unit)

    def __str__(self) -> str:
        return f"{self.count}/{self.unit}"


@dataclass(frozen=True, slots=True)
class Timeline:
    """One stretch of constant tempo and meter: two lines, frame over beat and bar over beat.

    Attributes
    ----------
    samplerate
        Frames per second.
    tempo
        Quarter notes per minute.
    meter
        Beats to the bar.
    frame, beat
        The origin: exact frame at which ``beat`` (quarter notes since bar 0) falls. A timeline holds from here.
    bar, bar_beat
        A bar whose downbeat is at ``bar_beat``.
    """

    samplerate: int
    tempo: Fraction
    meter: Meter = Meter()
    frame: Fraction = Fraction(0)
    beat: Fraction = Fraction(0)
    bar: int = 0
    bar_beat: Fraction = Fraction(0)

    @property
    def beat_frames(self) -> Fraction:
        """Exact frames in one beat."""
        return 60 * self.samplerate / self.tempo

    def position(self, beat: Fraction) -> Fraction:
        """Exact frame of a beat."""
        return self.frame + (beat - self.beat) * self.beat_frames

    def frame_at(self, beat: Fraction) -> int:
        """Frame of a beat, rounded once."""
        # round_frame(self.position(beat)) in plain integers: a fraction is brought to lowest terms at every step,
        # which is most of its price, and here none is kept.
        origin, tempo = self.frame, self.tempo
        beats = beat.numerator * self.beat.denominator - self.beat.numerator * beat.denominator
        scale = beat.denominator * self.beat.denominator * tempo.numerator
        below = origin.denominator * scale
        above = origin.numerator * scale + origin.denominator * beats * 60 * self.samplerate * tempo.denominator
        return (2 * above + below) // (2 * below)

    def beat_at(self, frame: int | Fraction) -> Fraction:
        """Exact beat of a frame."""
        origin, beat, tempo = self.frame, self.beat, self.tempo
        frames = frame.numerator * origin.denominator - origin.numerator * frame.denominator
        scale = frame.denominator * origin.denominator * 60 * self.samplerate * tempo.denominator
        return Fraction(
            beat.numerator * scale + beat.denominator * frames * tempo.numerator, beat.denominator * scale
        )

    def downbeat(self, bar: int) -> Fraction:
        """Beat on which ``bar`` starts."""
        return self.bar_beat + Fraction((bar - self.bar) * 4 * self.meter.count, self.meter.unit)

    def bar_at(self, beat: Fraction) -> int:
        """Bar that contains ``beat``."""
        first, meter = self.bar_beat, self.meter
        beats = beat.numerator * first.denominator - first.numerator * beat.denominator
        return self.bar + beats * meter.unit // (beat.denominator * first.denominator * 4 * meter.count)

    @property
    def first_bar(self) -> int:
        """First bar that starts at or after the origin."""
        bar = self.bar_at(self.beat)
        return bar if self.downbeat(bar) == self.beat else bar + 1

    def from_beat(self, beat: Fraction) -> Timeline:
        """Return the same line with its origin at ``beat``."""
        return replace(self, frame=self.position(beat), beat=beat)


@dataclass(frozen=True, slots=True)
class Moment:
    """One instant in all its names: frame, bar, beat within the bar, and phase of the bar (0 <= phase < 1)."""

    frame: int
    bar: int
    beat: Fraction
    phase: float


_beat, _frame = attrgetter("beat"), attrgetter("frame")
_bar, _first_bar = attrgetter("bar"), attrgetter("first_bar")


@dataclass(frozen=True, slots=True)
class TempoMap:
    """Timelines in order, each holding from its origin to the next one's; the first reaches back for ever.

    Attributes
    ----------
    timelines
        The song as it is written.
    stretches
        What became of it in a session: which stretch of the song is played from where on. Empty for a song that is
        played as it is written, and for a plan.
    """

    timelines: tuple[Timeline, ...]
    stretches: tuple[Stretch, ...] = ()

    @classmethod
    def steady(
        cls, samplerate: int, bpm: float | str | Fraction, meter: Meter = Meter(), downbeat: int = 0
    ) -> TempoMap:
        """Return a map of one tempo whose bar 0 starts at frame ``downbeat``."""
        return cls((Timeline(samplerate, as_tempo(bpm), meter, Fraction(downbeat)),))

    def as_session(self) -> TempoMap:
        """Return the map as that of a session in which this song is played.

        In a plan a change edits the song. In a session it is made by hand, and :class:`TempoChange` and
        :class:`Locate` say what that means.
        """
        if self.stretches:
            return self
        start = self.timelines[0]
        return TempoMap(self.timelines, (Stretch(self, start.frame, start.beat, start.first_bar),))

    # Where is what

    def at_beat(self, beat: Fraction) -> Timeline:
        """Return the timeline that holds at ``beat``."""
        if self.stretches:
            return self.stretches[_place(self.stretches, beat, _beat)].at_beat(beat)
        return self.timelines[max(0, bisect_right(self.timelines, beat, key=_beat) - 1)]

    def at_frame(self, frame: int | Fraction) -> Timeline:
        """Return the timeline that holds at ``frame``."""
        if self.stretches:
            return self.stretches[_place(self.stretches, frame, _frame)].at_frame(frame)
        return self.timelines[max(0, bisect_right(self.timelines, frame, key=_frame) - 1)]

    def at_bar(self, bar: int) -> Timeline:
        """Return a timeline by which ``bar`` starts; its tempo need not be the one that holds there."""
        if self.stretches:
            return self.stretches[_place(self.stretches, bar, _bar)].at_bar(bar)
        return self.timelines[max(0, bisect_right(self.timelines, bar, key=_first_bar) - 1)]

    def song_bar(self, bar: int) -> int:
        """Bar of the song that is played in bar ``bar`` of the session."""
        return self.stretches[_place(self.stretches, bar, _bar)].song_bar(bar) if self.stretches else bar

    def song_at(self, frame: int | Fraction) -> Timeline:
        """Return the timeline that holds at a frame of the session, in bars and beats of the *song*."""
        if self.stretches:
            return self.stretches[_place(self.stretches, frame, _frame)].song_at(frame)
        return self.at_frame(frame)

    def frame_at(self, beat: Fraction) -> int:
        """Frame of a beat, rounded once."""
        return self.at_beat(beat).frame_at(beat)

    def beat_at(self, frame: int) -> Fraction:
        """Exact beat of a frame; its inverse is :meth:`frame_at`."""
        return self.at_frame(frame).beat_at(frame)

    def downbeat(self, bar: int) -> Fraction:
        """Beat on which ``bar`` starts."""
        return self.at_bar(bar).downbeat(bar)

    def bar_frame(self, bar: int) -> int:
        """Frame on which ``bar`` starts."""
        return self.frame_at(self.downbeat(bar))

    def bar_beats(self, bar: int) -> Fraction:
        """Length of ``bar`` in beats."""
        return self.at_beat(self.downbeat(bar)).meter.beats

    def moment(self, frame: int) -> Moment:
        """Name an instant by bar and beat.

        A downbeat's frame, which is rounded, belongs to the bar it starts, even where the exact bar line lies up
        to half a frame later.
        """
        beat = self.beat_at(frame)
        line = self.at_beat(beat)
        bar = line.bar_at(beat)
        start = self.downbeat(bar + 1)
        if self.frame_at(start) <= frame:
            bar, line = bar + 1, self.at_beat(start)
        else:
            start = line.downbeat(bar)
        offset = max(Fraction(0), beat - start)
        return Moment(frame, bar, offset, float(offset / line.meter.beats))

    def unrolled(self, end: int) -> tuple[Timeline, ...]:
        """Return the timelines of all that sounds before frame ``end``, every round of a loop written out."""
        if not self.stretches:
            return self.timelines[: max(1, bisect_left(self.timelines, end, key=_frame))]
        found: list[Timeline] = []
        for index, stretch in enumerate(self.stretches):
            following = self.stretches[index + 1 : index + 2]
            stop = min([Fraction(end), *(later.frame for later in following)])
            if stretch.frame < stop or not found:
                for line in stretch.lines(stop):
                    if not found or (line.tempo, line.meter) != (found[-1].tempo, found[-1].meter):
                        found.append(line)
        return tuple(found)

    # What becomes of it

    def changed(self, beat: Fraction, tempo: Fraction | None = None, meter: Meter | None = None) -> TempoMap:
        """Return the map with a new tempo or meter from ``beat`` on; what lies before stays where it was.

        In a plan, a new tempo drops the tempi planned after it, but no meter; a new meter drops neither. A meter
        planned for what is no bar line any more comes on the next one. In a session it is made by hand.

        Raises
        ------
        ValueError
            If the meter changes where no bar starts.
        """
        old = self.at_beat(beat)
        bar = old.bar_at(beat)
        bar_beat = old.downbeat(bar)
        if meter is not None and meter != old.meter and bar_beat != beat:
            raise ValueError(f"the meter can change only on a bar line; beat {beat} is inside bar {bar + 1}")
        if self.stretches:
            return self._with(TempoChange(bar, beat - bar_beat, tempo, meter))
        new = Timeline(
            old.samplerate,
            tempo if tempo is not None else old.tempo,
            meter or old.meter,
            old.position(beat).limit_denominator(POSITION_DENOMINATOR),
            beat,
            bar,
            bar_beat,
        )
        kept = self.timelines[: bisect_left(self.timelines, beat, key=_beat)]
        if not kept:  # the first timeline reaches back for ever: what lies before the change keeps its tempo
            kept = (old.from_beat(beat),)
        result, before = TempoMap((*kept, new)), old.meter
        for timeline in self.timelines[bisect_right(self.timelines, beat, key=_beat) :]:
            result = result._with_planned(timeline, timeline.meter != before, tempo is None)
            before = timeline.meter
        return result

    def _with_planned(self, planned: Timeline, meter_changes: bool, keeps_tempo: bool) -> TempoMap:
        """Return the map with what an older one had planned at a later place."""
        result = self
        if keeps_tempo:
            result = result.changed(planned.beat, planned.tempo)
        if meter_changes:
            last = result.timelines[-1]
            beat = last.downbeat(last.bar_at(planned.beat))
            result = result.changed(beat if beat == planned.beat else beat + last.meter.beats, meter=planned.meter)
        return result

    def ramped(self, beat: Fraction, beats: int, tempo: Fraction) -> TempoMap:
        """Return the map with a linear ramp to ``tempo`` over ``beats`` whole beats: one constant timeline a beat.

        Step i of n has the tempo half-way through it: ``a + (b - a) * (i + 1/2) / n``; ``tempo`` holds after.
        """
        steps = _ramp(self.at_beat(beat).tempo, tempo, beats)
        if self.stretches:
            line = self.at_beat(beat)
            bar = line.bar_at(beat)
            return self._with(TempoChange(bar, beat - line.downbeat(bar), tempo, None, beats))
        ramp = self
        for step, part in enumerate(steps):
            ramp = ramp.changed(beat + step, part)
        return ramp

    def located(self, bar: int, song_bar: int, loop_bars: int = 0, as_written: bool = False) -> TempoMap:
        """Return the session's map in which bar ``bar`` plays ``song_bar`` of the song: see :class:`Locate`."""
        return self.as_session()._with(Locate(bar, song_bar, loop_bars, as_written))

    def anchored(self, anchor: Anchor, earliest: int) -> tuple[TempoMap, int, int]:
        """Return the session's map that is on the grid of an :class:`Anchor` as soon as it can be.

        Parameters
        ----------
        anchor
            The grid.
        earliest
            First frame that may be changed.

        Returns
        -------
        TempoMap
            Nothing before ``earliest`` moves; what was wished for later is dropped, as another holds the time now.
        int
            First bar of the session on the grid.
        int
            Bar of the song that it is.
        """
        session = self.as_session()
        bar, beat = session._first_beat(earliest)
        # What begins there is kept, or the tempo before it, bent perhaps, would go on where nothing is bent.
        later = bisect_right(session.stretches, session.downbeat(bar) + beat, lo=1, key=_beat)
        session = TempoMap(session.timelines, session.stretches[:later])
        grid = anchor.grid(session.timelines[0].samplerate)
        bend, bar = session._bend(grid, bar, beat)
        assert bend.tempo is not None
        session = session._stepped(_Step(session._beat_of(bend), bend.tempo, bend, 0))
        song_bar = _nearest_bar(grid, session.bar_frame(bar))
        stretch = session.stretches[-1].led(session.downbeat(bar), TempoMap((grid,)), song_bar)
        return session._followed_by(stretch), bar, song_bar

    def _first_beat(self, earliest: int) -> tuple[int, Fraction]:
        """Return bar and beat, in eighths of one, of the first place at frame ``earliest`` or later."""
        here = self.moment(earliest)
        bar, beat = here.bar, -(-here.beat // BEND_GRID) * BEND_GRID
        if beat < self.bar_beats(bar) and self.frame_at(self.downbeat(bar) + beat) < earliest:
            beat += BEND_GRID
        return (bar, beat) if beat < self.bar_beats(bar) else (bar + 1, Fraction(0))

    def _bend(self, grid: Timeline, bar: int, beat: Fraction) -> tuple[TempoChange, int]:
        """Return with which tempo from which place on a bar line falls on one of the grid's, and its bar.

        What is left of ``bar`` from ``beat`` on is bent. If that is nearly on the grid anyway, a little; if the next
        bar is, that one, and gently. Else the first bar line of the grid is taken that can be reached.
        """
        for first, since in ((bar, beat), (bar + 1, Fraction(0))):
            if first > bar and _nearest_bar(grid, self.bar_frame(first)) != self.song_bar(first):
                break  # that bar would be played under its old number, where the song is elsewhere
            line = grid.position(grid.downbeat(_nearest_bar(grid, self.bar_frame(first + 1))))
            start = self._position(self.downbeat(first) + since)
            length = self._position(self.downbeat(first + 1)) - start
            if abs(line - start - length) <= GENTLE * length:
                change = self._bent(first, since, line - start, first + 1)
                if change.tempo is not None and SLOWEST_BPM <= change.tempo <= FASTEST_BPM:
                    return change, first + 1
        start, end = self._position(self.downbeat(bar) + beat), bar + 1
        while True:  # more bars as long as they would be bent beyond the slowest tempo there is
            length, beats = self._position(self.downbeat(end)) - start, self.downbeat(end) - self.downbeat(bar) - beat
            shortest = max(length * SHORTEST_BEND, beats * 60 * grid.samplerate / FASTEST_BPM)
            reached = grid.bar_at(grid.beat_at(start + shortest)) + 1
            frames = grid.position(grid.downbeat(reached)) - start
            change = self._bent(bar, beat, frames, end)
            if change.tempo is not None and change.tempo >= SLOWEST_BPM:
                return change, end
            needed = frames * SLOWEST_BPM / (60 * grid.samplerate) - beats
            end += max(1, int(needed // self.bar_beats(end)))

    def _bent(self, bar: int, beat: Fraction, frames: Fraction, end: int) -> TempoChange:
        """Return the change with which what is left from ``beat`` of a bar to bar ``end`` lasts ``frames``."""
        beats = self.downbeat(end) - self.downbeat(bar) - beat
        tempo = beats * 60 * self.timelines[0].samplerate / frames
        return TempoChange(bar, beat, tempo.limit_denominator(TEMPO_DENOMINATOR))

    def _position(self, beat: Fraction) -> Fraction:
        return self.at_beat(beat).position(beat)

    def since(self, frame: int) -> TempoMap:
        """Return the map without what ended before ``frame``; from there on nothing moves."""
        if self.stretches:
            gone = _place(self.stretches, frame, _frame)
            return TempoMap(self.timelines, self.stretches[gone:]) if gone else self
        gone = max(0, bisect_right(self.timelines, frame, key=_frame) - 1)
        return TempoMap(self.timelines[gone:]) if gone else self

    def _with(self, wish: TempoChange | Locate) -> TempoMap:
        """Return the session's map with one wish more.

        The last word holds: of what was wished for the same place or a later one it drops what it replaces, and what
        it leaves counts anew on the map as it now is.
        """
        at = self._beat_of(wish)
        first = bisect_left(self.stretches, at, lo=1 + self._led(), key=_beat)
        wishes, steps = _still_wished(self.stretches[first:], wish)
        index = sum(self._beat_of(other) <= at for other in wishes)
        return TempoMap(self.timelines, self.stretches[:first])._told([*wishes[:index], wish, *wishes[index:]], steps)

    @property
    def led_bar(self) -> int:
        """First bar of the session on another's grid; before it nothing is changed by hand, as its bar is bent."""
        return self.stretches[led].bar if (led := self._led()) else -MAX_BARS

    def _led(self) -> int:
        """Index of the last stretch that is another's, 0 if there is none: nobody here wished for it."""
        return next((at for at in range(len(self.stretches) - 1, 0, -1) if self.stretches[at].wish is None), 0)

    def _told(self, wishes: list[TempoChange | Locate], steps: deque[_Step]) -> TempoMap:
        """Return the map with wishes, in the order of their places, and steps of a ramp among them."""
        session = self
        for wish in wishes:
            at = session._beat_of(wish)
            while steps and steps[0].beat < at:  # each place is known only when all before it is
                session = session._stepped(steps.popleft())
            session = session._granted(wish, at)
            if isinstance(wish, Locate):
                steps = deque() if wish.as_written else steps
            elif wish.tempo is not None:
                steps = session._ramp_of(wish, at)
        for step in steps:
            session = session._stepped(step)
        return session

    def _beat_of(self, wish: TempoChange | Locate) -> Fraction:
        """Beat for which something was wished; where the bar is shorter by now, its end."""
        beat = wish.beat if isinstance(wish, TempoChange) else Fraction(0)
        return self.downbeat(wish.bar) + (min(beat, self.bar_beats(wish.bar)) if beat else 0)

    def _granted(self, wish: TempoChange | Locate, at: Fraction) -> TempoMap:
        """Return the map with a wish, of a ramp what precedes it, at or after the last place where there was one."""
        last = self.stretches[-1]
        if isinstance(wish, Locate):
            return self._followed_by(
                last.leaving(at, TempoMap(self.timelines) if wish.as_written else last.song, wish)
            )
        session = self
        if wish.meter is not None:
            session = session._followed_by(last.with_meter(at, wish.meter, replace(wish, tempo=None, ramp_beats=0)))
        return session

    def _ramp_of(self, wish: TempoChange, at: Fraction) -> deque[_Step]:
        """Return the steps in which a tempo comes, at least one."""
        tempo, wish = wish.tempo, replace(wish, meter=None)
        if tempo is None:
            return deque()
        tempi = _ramp(self.stretches[-1].at_beat(at).tempo, tempo, wish.ramp_beats) if wish.ramp_beats else [tempo]
        return deque(_Step(at + number, tempo, wish, number) for number, tempo in enumerate(tempi))

    def _stepped(self, step: _Step) -> TempoMap:
        return self._followed_by(self.stretches[-1].with_tempo(step))

    def _followed_by(self, stretch: Stretch) -> TempoMap:
        return TempoMap(self.timelines, (*self.stretches, stretch))

    # A song by hand: both are for plans only

    def in_tempo(self, tempo: Fraction) -> TempoMap:
        """Return the song in one tempo throughout; its meters stay."""
        lines: list[Timeline] = []
        for line in self.timelines:
            if not lines:
                lines.append(replace(line, tempo=tempo))
            elif line.meter is not lines[-1].meter and line.meter != lines[-1].meter:
                lines.append(replace(line, tempo=tempo, frame=lines[-1].position(line.beat)))
        return TempoMap(tuple(lines))

    def in_meter(self, bar: int, meter: Meter) -> TempoMap:
        """Return the song with another meter in the part around ``bar``: back and on to the next change of meter.

        What was written stays in its bar; what lay beyond the end of a bar that is shorter now comes on the next.
        """
        lines = self.timelines
        here = max(0, bisect_right(lines, bar, key=_first_bar) - 1)
        first = next((i for i in range(here, 0, -1) if lines[i].meter != lines[i - 1].meter), 0)
        until = next((i for i in range(here + 1, len(lines)) if lines[i].meter != lines[i - 1].meter), len(lines))
        new: list[Timeline] = []
        for index, line in enumerate(lines):
            own = meter if first <= index < until else line.meter
            at = line.bar_at(line.beat)
            offset = line.beat - line.downbeat(at)
            anchor = new[-1] if new else replace(line, meter=own)
            beat = anchor.downbeat(at) + min(offset, anchor.meter.beats)
            frame = anchor.position(beat).limit_denominator(POSITION_DENOMINATOR) if new else line.frame
            if new and new[-1].beat == beat:
                new.pop()
            bar_at = anchor.bar_at(beat)
            new.append(Timeline(line.samplerate, line.tempo, own, frame, beat, bar_at, anchor.downbeat(bar_at)))
        return TempoMap(tuple(new))


@dataclass(frozen=True, slots=True)
class Loop:
    """A part of a song that comes again and again: where it begins and how long it is, exactly."""

    bar: int
    bars: int
    beat: Fraction
    beats: Fraction
    end_beat: Fraction
    frame: Fraction
    frames: Fraction
    end_frame: Fraction

    @classmethod
    def of(cls, song: TempoMap, bar: int, bars: int) -> Loop:
        """Return the ``bars`` bars of a song from ``bar`` on."""
        beat, end = song.downbeat(bar), song.downbeat(bar + bars)
        # The bar line after the last one may be that of a new tempo: the same place, by either.
        frame, end_frame = (song.at_beat(line).position(line) for line in (beat, end))
        return cls(bar, bars, beat, end - beat, end, frame, end_frame - frame, end_frame)


@dataclass(frozen=True, slots=True)
class Stretch:
    """A stretch of a session: from its place on a song is played from some place of its own, once or in a loop.

    Attributes
    ----------
    song
        A plan: what is played, with what was set by hand so far.
    frame, beat, bar
        Where it begins: exact frame, beat, and the first bar that starts in it.
    frame_shift, beat_shift, bar_shift
        Session minus song, in the first round.
    loop
        What comes again and again from there on.
    wish, step
        What was wished that it begins here, and which step of a ramp it is.
    """

    song: TempoMap
    frame: Fraction
    beat: Fraction
    bar: int
    frame_shift: Fraction = Fraction(0)
    beat_shift: Fraction = Fraction(0)
    bar_shift: int = 0
    loop: Loop | None = None
    wish: TempoChange | Locate | None = None
    step: int = 0

    def at_beat(self, beat: Fraction) -> Timeline:
        """Return the timeline that holds at a beat of the session."""
        beat, rounds = self._in_song(beat)
        return self._shown(self.song.at_beat(beat), rounds)

    def at_frame(self, frame: int | Fraction) -> Timeline:
        """Return the timeline that holds at a frame of the session."""
        in_song, rounds = self._frame_in_song(frame)
        return self._shown(self.song.at_frame(in_song), rounds)

    def song_at(self, frame: int | Fraction) -> Timeline:
        """Return the timeline that holds at a frame of the session, in bars and beats of the song."""
        in_song, _ = self._frame_in_song(frame)
        line = self.song.at_frame(in_song)
        return replace(line, frame=line.frame + frame - in_song)

    def _frame_in_song(self, frame: int | Fraction) -> tuple[int | Fraction, int]:
        """Return the frame of the song at a frame of the session, and the rounds that are over."""
        frame, loop, rounds = frame - self.frame_shift, self.loop, 0
        if loop is not None and frame >= loop.end_frame:
            rounds = (frame - loop.frame) // loop.frames
            frame -= rounds * loop.frames
        return frame, rounds

    def at_bar(self, bar: int) -> Timeline:
        """Return a timeline by which a bar of the session starts."""
        song_bar = self.song_bar(bar)
        rounds = (bar - self.bar_shift - song_bar) // self.loop.bars if self.loop is not None else 0
        return self._shown(self.song.at_bar(song_bar), rounds)

    def song_bar(self, bar: int) -> int:
        """Bar of the song that is played in a bar of the session."""
        bar, loop = bar - self.bar_shift, self.loop
        if loop is not None and bar >= loop.bar + loop.bars:
            return loop.bar + (bar - loop.bar) % loop.bars
        return bar

    def lines(self, stop: Fraction) -> Iterator[Timeline]:
        """Yield its timelines up to exact frame ``stop``, each from where it holds, at least the first."""
        beat, rounds = self._in_song(self.beat)
        song = self.song.timelines
        yield self._shown(self.song.at_beat(beat).from_beat(beat), rounds)
        while True:
            for line in song[bisect_right(song, beat, key=_beat) :]:
                if self.loop is not None and line.beat >= self.loop.end_beat:
                    break
                shown = self._shown(line, rounds)
                if shown.frame >= stop:
                    return
                yield shown
            if self.loop is None:
                return
            beat, rounds = self.loop.beat, rounds + 1
            again = self._shown(self.song.at_beat(beat).from_beat(beat), rounds)
            if again.frame >= stop:
                return
            yield again

    def with_tempo(self, step: _Step) -> Stretch:
        """Return what follows from a step of a ramp on."""
        in_song, rounds = self._in_song(step.beat)
        return self._going_on(step.beat, self.song.in_tempo(step.tempo), in_song, rounds, step.wish, step.number)

    def with_meter(self, beat: Fraction, meter: Meter, wish: TempoChange) -> Stretch:
        """Return what follows from ``beat``, a bar line, on if the meter is set there."""
        in_song, rounds = self._in_song(beat)
        bar = self.song.at_beat(in_song).bar_at(in_song)
        song = self.song.in_meter(bar, meter)
        return self._going_on(beat, song, song.downbeat(bar), rounds, wish)

    def leaving(self, beat: Fraction, song: TempoMap, locate: Locate) -> Stretch:
        """Return what follows from ``beat``, a bar line, on if the song goes on from elsewhere."""
        loop = Loop.of(song, locate.song_bar, locate.loop_bars) if locate.loop_bars else None
        shift = self.at_beat(beat).bar_at(beat) - locate.song_bar
        return self._followed(beat, song, song.downbeat(locate.song_bar), shift, loop, locate)

    def led(self, beat: Fraction, song: TempoMap, song_bar: int) -> Stretch:
        """Return what follows from ``beat``, a bar line, on if the song is another's, in whose time ``song`` is."""
        song_beat = song.downbeat(song_bar)
        frame = song.at_beat(song_beat).position(song_beat)
        bar = self.at_beat(beat).bar_at(beat)
        return Stretch(song, frame, beat, bar, Fraction(0), beat - song_beat, bar - song_bar)

    def _going_on(
        self, beat: Fraction, song: TempoMap, song_beat: Fraction, rounds: int, wish: TempoChange, step: int = 0
    ) -> Stretch:
        """Return a stretch that plays another version of the song from the same place."""
        loop, shift = self.loop, self.bar_shift
        if loop is not None:
            shift, loop = shift + rounds * loop.bars, Loop.of(song, loop.bar, loop.bars)
        return self._followed(beat, song, song_beat, shift, loop, wish, step)

    def _followed(
        self,
        beat: Fraction,
        song: TempoMap,
        song_beat: Fraction,
        bar_shift: int,
        loop: Loop | None,
        wish: TempoChange | Locate,
        step: int = 0,
    ) -> Stretch:
        """Return a stretch that begins at ``beat``, where this one ends."""
        here = self.at_beat(beat)
        bar = here.bar_at(beat)
        frame = here.position(beat).limit_denominator(POSITION_DENOMINATOR)
        frame_shift = frame - song.at_beat(song_beat).position(song_beat)
        first_bar = bar if here.downbeat(bar) == beat else bar + 1
        return Stretch(song, frame, beat, first_bar, frame_shift, beat - song_beat, bar_shift, loop, wish, step)

    def _in_song(self, beat: Fraction) -> tuple[Fraction, int]:
        """Return the beat of the song at a beat of the session, and the rounds that are over."""
        beat, loop = beat - self.beat_shift, self.loop
        if loop is None or beat < loop.end_beat:
            return beat, 0
        rounds = (beat - loop.beat) // loop.beats
        return beat - rounds * loop.beats, rounds

    def _shown(self, line: Timeline, rounds: int) -> Timeline:
        """Return a timeline of the song as one of the session."""
        frames, beats, bars = self.frame_shift, self.beat_shift, self.bar_shift
        if rounds and self.loop is not None:
            frames += rounds * self.loop.frames
            beats += rounds * self.loop.beats
            bars += rounds * self.loop.bars
        if not (frames or beats or bars):
            return line
        return Timeline(
            line.samplerate,
            line.tempo,
            line.meter,
            line.frame + frames,
            line.beat + beats,
            line.bar + bars,
            line.bar_beat + beats,
        )


@dataclass(frozen=True, slots=True)
class _Step:
    """One step of a tempo set by hand: at this beat of the session, whatever becomes of its bars."""

    beat: Fraction
    tempo: Fraction
    wish: TempoChange
    number: int


def _place(stretches: tuple[Stretch, ...], place: int | Fraction, key: attrgetter[Fraction | int]) -> int:
    """Index of the stretch that holds at a place; the first reaches back for ever."""
    return bisect_right(stretches, place, lo=1, key=key) - 1


def _still_wished(
    stretches: tuple[Stretch, ...], wish: TempoChange | Locate
) -> tuple[list[TempoChange | Locate], deque[_Step]]:
    """Return what was wished for these stretches and is not replaced by ``wish``.

    Beside the wishes, which count from a place in a bar, there are the steps of a ramp that has begun before: it goes
    on by its beats.
    """
    wishes: list[TempoChange | Locate] = []
    steps: deque[_Step] = deque()
    for stretch in stretches:
        asked = stretch.wish
        if asked is None or _replaces(wish, asked):
            continue
        if not stretch.step:
            wishes.append(asked)
        elif isinstance(asked, TempoChange) and not any(other is asked for other in wishes):
            steps.append(_Step(stretch.beat, stretch.song.timelines[0].tempo, asked, stretch.step))
    return wishes, steps


def _replaces(wish: TempoChange | Locate, later: TempoChange | Locate) -> bool:
    """Whether ``later``, wished before ``wish`` for the same place or a later one, is dropped for it."""
    if isinstance(wish, Locate):
        return isinstance(later, Locate) or (wish.as_written and (later.bar, later.beat) <= (wish.bar, 0))
    if isinstance(later, Locate):
        return False
    if wish.tempo is not None and later.tempo is not None:
        return True
    return wish.meter is not None and later.meter is not None and (wish.bar, wish.beat) == (later.bar, later.beat)


def _ramp(first: Fraction, last: Fraction, beats: int) -> list[Fraction]:
    """Return the tempo of each beat of a linear ramp, and the one that holds after it."""
    if beats < 1:
        raise ValueError(f"a tempo ramp over {beats} beats; it takes at least one whole beat")
    parts = (Fraction(2 * step + 1, 2 * beats) for step in range(beats))
    return [*((first + (last - first) * part).limit_denominator(TEMPO_DENOMINATOR) for part in parts), last]


@dataclass(frozen=True, slots=True)
class TempoChange:
    """A wish to change tempo or meter at ``beat`` of ``bar``; with ``ramp_beats`` the tempo gets there gradually.

    In a session it is made by hand, and the hand overrides the song:

    * A tempo set by hand holds until another one is: planned tempi and ramps are dropped, and neither a loop nor a
      :class:`Locate` brings them back, unless it says ``as_written``. A ramp that is under way goes on, beat by beat.
    * A meter set by hand is that of this part of the song from then on, as far as its next planned meter and whenever
      the part comes again. What is planned stays in its bar of the song.
    """

    bar: int
    beat: Fraction = Fraction(0)
    tempo: Fraction | None = None
    meter: Meter | None = None
    ramp_beats: int = 0

    def applied(self, tempo_map: TempoMap) -> TempoMap:
        """Return ``tempo_map`` with this change in it."""
        at = tempo_map.downbeat(self.bar) + self.beat
        if self.meter is not None:
            tempo_map = tempo_map.changed(at, meter=self.meter)
        if self.tempo is not None and self.ramp_beats:
            tempo_map = tempo_map.ramped(at, self.ramp_beats, self.tempo)
        elif self.tempo is not None:
            tempo_map = tempo_map.changed(at, self.tempo)
        return tempo_map


@dataclass(frozen=True, slots=True)
class Locate:
    """A wish to go elsewhere in the song: bar ``bar`` of the session plays bar ``song_bar`` of the song.

    The session's bars count on, and nothing before the place moves. Tempi, ramps and meters planned for that part of
    the song come with it; where the tempo was set by hand (:class:`TempoChange`), it stays by hand. What was wished
    by hand for a later bar of the session still comes in that bar; a locate wished for a later bar is dropped.

    Attributes
    ----------
    bar, song_bar
        Bars of the session and of the song, counted from 0.
    loop_bars
        After so many bars the song goes back to ``song_bar``, for ever; 0 for no loop. A locate without it ends one.
    as_written
        What was set by hand is given up: the song is as it was planned.

    Raises
    ------
    ValueError
        If a bar is beyond what anybody plays, or the loop is not a number of bars.
    """

    bar: int
    song_bar: int
    loop_bars: int = 0
    as_written: bool = False

    def __post_init__(self) -> None:
        if not -MAX_BARS <= self.bar <= MAX_BARS:
            raise ValueError(f"locate at bar {self.bar}: a session's bars are {-MAX_BARS:,} to {MAX_BARS:,}")
        if not 0 <= self.song_bar <= MAX_BARS:
            raise ValueError(
                f"locate to song bar {self.song_bar}: a song's bars are 0 to {MAX_BARS:,}, counted from 0; "
                "a count-in cannot be gone back to"
            )
        if not 0 <= self.loop_bars <= MAX_BARS:
            raise ValueError(
                f"locate with a loop of {self.loop_bars} bars: a loop has 1 to {MAX_BARS:,}, and 0 is no loop"
            )

    def applied(self, tempo_map: TempoMap) -> TempoMap:
        """Return ``tempo_map``, that of a session, with this in it."""
        return tempo_map.located(self.bar, self.song_bar, self.loop_bars, self.as_written)


@dataclass(frozen=True, slots=True)
class Anchor:
    """A wish to be on another's grid: bar ``song_bar`` of the song begins at frame ``frame``, and so on from there.

    The session's bars count on. What is left of the present bar is bent (or the next one, where that is gentler; or
    some, where the grid's bars are long), so that a bar line falls on one of the grid, to the frame, and from there
    on song bars are the other's. What was planned or wished by hand for later
    is given up: another holds the time now.

    Attributes
    ----------
    frame
        Session frame, past or to come; it only names the grid.
    song_bar
        Bar of the song that begins there, counted from 0; in a count-in they are negative.
    tempo, meter
        Of the grid.

    Raises
    ------
    ValueError
        If a figure is beyond what anybody plays.
    """

    frame: int
    song_bar: int
    tempo: Fraction
    meter: Meter = Meter()

    def __post_init__(self) -> None:
        if not SLOWEST_BPM <= self.tempo <= FASTEST_BPM:
            raise ValueError(f"an anchor at {float(self.tempo):g} BPM; a tempo is {SLOWEST_BPM} to {FASTEST_BPM}")
        if self.tempo.denominator > TEMPO_DENOMINATOR:
            raise ValueError(f"a tempo of {self.tempo}; its denominator is at most {TEMPO_DENOMINATOR}")
        if not -MAX_BARS <= self.song_bar <= MAX_BARS:
            raise ValueError(f"an anchor at song bar {self.song_bar}; bars are {-MAX_BARS:,} to {MAX_BARS:,}")
        if not -MAX_FRAME <= self.frame <= MAX_FRAME:
            raise ValueError(f"an anchor at frame {self.frame}, which no session reaches")

    def grid(self, samplerate: int) -> Timeline:
        """Return the timeline it names; its beats count as if the song had had this meter from its start."""
        beat = self.song_bar * self.meter.beats
        return Timeline(samplerate, self.tempo, self.meter, Fraction(self.frame), beat, self.song_bar, beat)


def _nearest_bar(grid: Timeline, frame: int) -> int:
    """Return the bar of a grid whose bar line is nearest to a frame."""
    return grid.bar_at(grid.beat_at(frame) + grid.meter.beats / 2)


class Transport:
    """Publishes one tempo map; the only writer of musical time. Engine thread only.

    Parameters
    ----------
    tempo_map
        The song as it is planned: what holds until something is announced.
    notice_frames
        How early a change must be known before the place it is for: ``lead``, two joins and the band's stagger.
    """

    def __init__(self, tempo_map: TempoMap, notice_frames: int) -> None:
        self.map = tempo_map
        self._notice_frames = notice_frames
        self._kept_frames = KEPT_SECONDS * tempo_map.timelines[0].samplerate

    def announce(self, change: TempoChange, now: int) -> TempoChange:
        """Take a change in, at frame ``now``, and return it as it will happen.

        One announced too late for its place counts from the first bar line that is far enough ahead.
        """
        # What is past cannot be changed, nor be counted up from; nor can what is bent onto another's grid.
        bar = max(change.bar, self.map.moment(now).bar, self.map.led_bar)
        if bar > change.bar:
            change = replace(change, bar=bar, beat=Fraction(0))
        while self.map.frame_at(self.map.downbeat(bar) + change.beat) - now < self._notice_frames:
            bar += 1
            change = replace(change, bar=bar, beat=Fraction(0))
        self.map = change.applied(self.map.as_session().since(now - self._kept_frames))
        return change

    def locate(self, locate: Locate, now: int) -> Locate:
        """Take a locate in, at frame ``now``, and return it as it will happen.

        One announced too late for its bar counts from the first bar line that is far enough ahead, and the song then
        goes on from the same ``song_bar``.
        """
        bar = max(locate.bar, self.map.moment(now).bar, self.map.led_bar)
        while self.map.bar_frame(bar) - now < self._notice_frames:
            bar += 1
        locate = replace(locate, bar=bar)
        self.map = locate.applied(self.map.as_session().since(now - self._kept_frames))
        return locate

    def anchor(self, anchor: Anchor, now: int) -> tuple[int, int, int]:
        """Take an anchor in, at frame ``now``; return the first bar of the session on its grid, its song bar, and the
        first frame that could be changed.
        """
        session, earliest = self.map.as_session().since(now - self._kept_frames), now + self._notice_frames
        self.map, bar, song_bar = session.anchored(anchor, earliest)
        return bar, song_bar, earliest

    def advance(self, now: int) -> None:
        """Forget what ended long before frame ``now``. Nothing that can still be heard moves, so it may be called at
        any time, or never: a loop needs nobody to go round.
        """
        if self.map.stretches:  # a song nobody has touched is kept whole: it may be gone back to
            self.map = self.map.since(now - self._kept_frames)
