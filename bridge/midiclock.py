"""MIDI clock as a language: bytes with their times to observations, and a position to bytes.

Pure: no port, no thread, no clock of its own. What opens ports is in ``midi.py`` and ``jackclock.py``.

The words: a *tick* (F8) is a 24th of a quarter note; *start* (FA), *continue* (FB) and *stop* (FC) are what they
say; *song position* (F2) is where the next continue begins, in sixteenths. The first tick after a start or a
continue is the position itself. There is no tempo and no meter: the one is read off the ticks, the other is the
song's, which the session knows.

Where ticks are counted in frames of an audio server's clock they are exact but for their rounding, and so is what is
made of them: a tempo that is known to the third decimal after two bars, and the frame of every bar line.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from enum import StrEnum
from fractions import Fraction
from itertools import pairwise
from typing import Protocol

from bridge.sync import Observation, Position
from realtime.clock import POSITION_DENOMINATOR, round_frame

TICKS = 24
"""Ticks in a quarter note."""
SIXTEENTH = 6
"""Ticks in a sixteenth, the unit of a song position."""
LAST_SIXTEENTH = 0x3FFF
"""The furthest song position that can be said: 1024 bars of 4/4."""
CLOCK, START, CONTINUE, STOP, SONG_POSITION = 0xF8, 0xFA, 0xFB, 0xFC, 0xF2
SPOKEN = frozenset((CLOCK, START, CONTINUE, STOP, SONG_POSITION))
"""First bytes of the messages that are MIDI clock; everything else on a port is somebody else's."""

SECOND_NS = 10**9
_SLOWEST, _FASTEST = 10, 800  # tempi whose ticks are taken for ticks at all
_JITTER_SECONDS = 0.002  # of ticks that a thread or a cable sends
_GONE_TICKS = 48  # a longer silence is a pause, not lost ticks
_LOOK_BACK = 48
_CONFUSED = 16  # uneven intervals of the last _LOOK_BACK: somebody else is ticking as well
_CLEAR = 192  # even ones in a row: there is one again
_PATIENT = 4  # jittery ticks in a row on one side of where they should be: the tempo has changed
_RESTLESS = 8
_EVEN = 48  # intervals in a row that differ by a unit at most: the ticks are exact after all
_REGULAR = 6  # intervals in a row that agree: what they are is the tempo, whatever it was
_PROOFS = 2
_MISSED_PERIODS = 8  # a peer that stood still for longer has been gone
_SILENT_SECONDS = Fraction(1, 2)  # beyond the longest interval there is, at 10 bpm


class Times(Protocol):
    """Host time and session frames, each as the other: a :class:`bridge.sync.SessionClock`."""

    def frame_at(self, host_ns: int) -> int: ...

    def time_ns_at(self, frame: int) -> int: ...


class Dialect(StrEnum):
    """How a peer speaks MIDI clock."""

    AUTO = "auto"
    """As the standard says, until what it does proves otherwise."""
    STANDARD = "standard"
    ARDOUR = "ardour"
    """As Ardour 7 does (seen with 7.3, at 97 and 120 bpm). A song position counts ticks, where the standard says
    sixteenths: six times too much. It names the beat of the first tick that follows, always a whole one, so up to a
    beat of silence comes before it. And a quarter note is cut to whole frames before it is divided into ticks: at 97
    bpm and 48 kHz the ticks run away from Ardour's own bars by 0.7 frames in each beat. And it ticks only while it
    rolls."""

    @classmethod
    def of(cls, port: str) -> Dialect:
        """Return how the peer behind a port called so is known to speak."""
        return cls.ARDOUR if port.casefold().lstrip().startswith("ardour") else cls.AUTO


def simplest_tempo(low: Fraction, high: Fraction, hint: Fraction | None = None) -> Fraction:
    """Return the tempo that somebody will have meant who plays between ``low`` and ``high`` (both excluded).

    The ``hint`` if it lies there; else the roundest number: whole, with one, two, three decimals; else the fraction
    of the smallest denominator (133.333... is 400/3).
    """
    if hint is not None and low < hint < high:
        return hint
    middle = (low + high) / 2
    for scale in (1, 10, 100, 1000):
        candidate = Fraction(round(middle * scale), scale)
        if low < candidate < high:
            return candidate
    return _simplest(low, high)


def _simplest(low: Fraction, high: Fraction) -> Fraction:
    """Return the fraction of the smallest denominator between two positive ones (Stern and Brocot)."""
    whole = low.numerator // low.denominator
    if whole + 1 < high:
        return Fraction(whole + 1)
    if low == whole:
        below = 1 / (high - whole)
        return whole + Fraction(1, below.numerator // below.denominator + 1)
    return whole + 1 / _simplest(1 / (high - whole), 1 / (low - whole))


class TickTempo:
    """The tempo of a row of ticks, from bounds: each tick says between which tempi it can be.

    A tick is where it belongs, rounded to the unit it is counted in (a frame); so two ticks k apart give the interval
    to within a k-th of a unit or two, and all that was seen since the tempo changed last narrows it down. What is
    then said is :func:`simplest_tempo` of what is left. A tick outside what is left is a change of tempo.

    Ticks that a thread or a cable sends jitter by far more. Where changes of tempo follow each other to and fro, that
    is what it is: then every tick is taken to be off by up to 2 ms, and it takes four in a row to change the tempo.

    Parameters
    ----------
    rate
        Units per second in which ticks are counted.
    exact
        Whether they may be exact to the unit.
    whole_quarters
        Whether the peer cuts a quarter note to whole units before it divides it into ticks.

    Attributes
    ----------
    tempo
        Quarter notes per minute, ``None`` until two intervals agree.
    exact
        Whether they are exact to the unit, as far as is known.
    """

    def __init__(self, rate: int, *, exact: bool, whole_quarters: bool = False) -> None:
        self.rate = rate
        self.whole_quarters = whole_quarters
        self.exact = exact
        self.tempo: Fraction | None = None
        self._jitter = max(1, round(_JITTER_SECONDS * rate))
        self._counted_in_frames = exact
        self._segments: deque[int] = deque(maxlen=3 * _RESTLESS)  # of the last ticks: -1, 0, 1 for how it broke off
        self._off: list[tuple[int, int]] = []
        self._off_side = 0
        self._even = self._even_interval = 0
        self._anchor: tuple[int, int] | None = None
        self._last: tuple[int, int] | None = None
        self._low: Fraction | None = None
        self._high: Fraction | None = None

    @property
    def interval(self) -> Fraction | None:
        """Exact units between two ticks."""
        return Fraction(60 * self.rate, TICKS) / self.tempo if self.tempo else None

    def pause(self) -> None:
        """Forget where the ticks were, not how fast: what follows is another row."""
        self._anchor = self._last = self._low = self._high = None
        self._off.clear()

    def again(self, number: int, at: int) -> None:
        """Begin a new tempo with a tick that was taken in already, under this number."""
        self.pause()
        self._anchor = self._last = (number, at)

    def tick(self, number: int, at: int) -> None:
        """Take in that tick ``number`` came at ``at``; numbers go up by one, or by more where ticks were lost."""
        if self._anchor is None or self._last is None:
            self._anchor = self._last = (number, at)
            return
        self._compare(at - self._last[1])
        side = self._narrow(number, at)
        if self.exact:
            self._segments.append(side)
            if side:
                self._begin([self._last, (number, at)])
                self._settle_down()
        elif side:
            self._off = [*self._off, (number, at)] if self._off and self._off_side == side else [(number, at)]
            self._off_side = side
            if len(self._off) >= _PATIENT:
                self._begin(self._off)
        else:
            self._off.clear()
        self._last = (number, at)

    @property
    def anchor(self) -> tuple[int, int] | None:
        """The tick with which the tempo began: its number and when it was."""
        return self._anchor

    def fits(self, steps: int, units: int) -> bool:
        """Whether ``units`` are so many intervals to the unit, for one whose tempo is known well enough to tell."""
        low, high, interval = self._low, self._high, self.interval
        if not self.exact or low is None or high is None or interval is None:
            return False
        return 8 * steps * (high - low) < interval and steps * low - 2 <= units <= steps * high + 2

    def _compare(self, interval: int) -> None:
        """Notice that ticks taken for jittery are exact: two masters on one port were, one of them is."""
        self._even = self._even + 1 if abs(interval - self._even_interval) <= 1 else 0
        self._even_interval = interval
        if self._counted_in_frames and not self.exact and self._even >= _EVEN and self._last is not None:
            self.exact = True
            self._segments.clear()
            self.again(*self._last)

    def _narrow(self, number: int, at: int) -> int:
        """Narrow the bounds by a tick; return -1 if it is too early for them, 1 if too late, else 0."""
        assert self._anchor is not None
        count, units = number - self._anchor[0], at - self._anchor[1]
        slack = 1 if self.exact else self._jitter
        low, high = Fraction(units - slack, count), Fraction(units + slack, count)
        if self._high is not None and low >= self._high:
            return 1
        if self._low is not None and high <= self._low:
            return -1
        self._low = low if self._low is None else max(low, self._low)
        self._high = high if self._high is None else min(high, self._high)
        self._say(count)
        return 0

    def _say(self, count: int) -> None:
        assert self._low is not None
        assert self._high is not None
        fastest = Fraction(60 * self.rate, TICKS * _FASTEST)
        if self._high <= fastest or (count < 2 and self.tempo is None):
            return
        shortest, longest = TICKS * max(self._low, fastest), TICKS * self._high  # a quarter note
        least, most = -(-shortest // 1), longest // 1
        if self.whole_quarters and least <= most:
            shortest, longest = least - Fraction(1, self.rate), Fraction(most + 1)
        self.tempo = simplest_tempo(60 * self.rate / longest, 60 * self.rate / shortest, self.tempo)

    def _begin(self, ticks: list[tuple[int, int]]) -> None:
        """Begin a new tempo with what has been seen of it."""
        self._anchor, self._low, self._high, self._off = ticks[0], None, None, []
        for number, at in ticks[1:]:
            if self._narrow(number, at):
                break

    def _settle_down(self) -> None:
        """Take ticks for jittery if tempi break off on both sides again and again."""
        breaks = [side for side in self._segments if side]
        turns = sum(a != b for a, b in pairwise(breaks))
        if len(breaks) >= _RESTLESS and turns >= _RESTLESS // 2:
            self.exact = False
            self._low = self._high = None


@dataclass(frozen=True, slots=True)
class Tick:
    """When something was said.

    Attributes
    ----------
    time_ns
        Host time.
    count
        Frame of the audio server's clock, exact, where the port has one.
    frame
        Session frame of the same, where the two clocks are known to go together.
    """

    time_ns: int
    count: int | None = None
    frame: int | None = None


class _Line:
    """Song beats over frames at one tempo, through a point.

    A song that starts on a tick began, in its own frames, at a whole one: so the line of a start is moved to where
    its beat 0 is one, by less than half a frame.
    """

    def __init__(self, frame: int, beat: Fraction, rate: int, *, starts: bool) -> None:
        self.frame, self.began = frame, frame
        self._beat, self._rate, self._starts = beat, rate, starts
        self._tempo: Fraction | None = None

    def at(self, frame: int, tempo: Fraction) -> Fraction:
        """Return the beat of a frame, if this is the tempo."""
        self._tempo = tempo
        if self._starts:
            origin = round_frame(self.frame - self._beat * 60 * self._rate / tempo)
            return (frame - origin) * tempo / (60 * self._rate)
        return self._beat + (frame - self.frame) * tempo / (60 * self._rate)

    def stand_still(self, frames: int) -> None:
        """Have all beats come so much later."""
        self.frame += frames

    def turned(self, frame: int) -> _Line:
        """Return the line that goes on from ``frame`` at a tempo yet to be told."""
        if self._tempo is None:
            return self
        return _Line(
            frame, self.at(frame, self._tempo).limit_denominator(POSITION_DENOMINATOR), self._rate, starts=False
        )


@dataclass(frozen=True, slots=True)
class _Late:
    """A tick that came late by whole periods: ``steps`` ticks after the last one, and ``missed`` frames later."""

    when: Tick
    at: int
    steps: int
    missed: int


class ClockReader:
    """What one MIDI port says, as observations. Any bytes are allowed; nothing raises. One thread.

    A peer on an audio server that is late misses periods of it (an xrun): the server's frames go on, the peer's song
    does not. Its ticks then come later by whole periods, at the pace they had; that is no lost tick and no other
    tempo, but the same song later.

    Ticks are counted for themselves; the song's position rests on that count. So a tick that was lost (the next comes
    after two intervals) is counted, one that comes twice is not, and neither moves the bar line. Where intervals
    are uneven for a second, two masters are on one port: nothing is said then, as neither is known, and when one is
    left the position has to be said anew.

    The position stays unknown until somebody says it: who joins in the middle hears ticks, and gets a tempo. It
    becomes unknown again where a peer that always says where it continues does not (a position beyond what can be
    said): no bar number is better than a wrong one.

    Parameters
    ----------
    source
        Name for the observations.
    rate
        Frames per second of ``Tick.count``.
    dialect
        How the peer speaks; ``AUTO`` believes the standard until two times of stopping and continuing on the spot
        have proved otherwise.

    Attributes
    ----------
    lost, doubled
        Ticks that never came, and that came twice.
    odd
        Messages that made no sense: a song position cut short.
    unsaid
        Times that it continued without saying where.
    missed
        Starts and stops that must have been lost, as the peer ticks only while it rolls.
    stalls
        Times that the peer missed periods of the audio server: its ticks came later by whole ones from then on.
    confused
        Whether there seems to be more than one master.
    period
        Frames in a period of the audio server that ``Tick.count`` counts for, 0 for none. To be set when it is known.
    """

    def __init__(self, source: str, rate: int, dialect: Dialect | str = Dialect.AUTO) -> None:
        self.lost = self.doubled = self.odd = self.unsaid = self.missed = self.stalls = 0
        self.period = 0
        self.confused = False
        self.dialect = Dialect(dialect)
        self._source, self._rate = source, rate
        self._partial: list[int] | None = None  # a song position of which data bytes are missing
        self._ticks = self._new_ticks(counted=True)
        self._counted = True  # whether ticks have come with frames
        self._clock = 0  # ticks so far, stopped or not
        self._at: int | None = None  # when the last one was
        self._heard: int | None = None  # when something that looked like a tick was, counted or not
        self._since = 0
        self._regular = 0  # intervals in a row that agreed with each other
        self._gap = 0  # steps that the last interval was taken for, if ticks were lost in it
        self._proofs = 0
        self._uneven: deque[bool] = deque(maxlen=_LOOK_BACK)
        self._even = 0
        self._line: _Line | None = None  # beats over counted frames
        self._song: int | None = None  # song position of the next tick, while it plays or could continue
        self._offset: int | None = None  # song position less clock, while it plays
        self._playing: bool | None = None
        self._begins = False  # the next tick is the first after start or continue
        self._located = False
        self._said: int | None = None  # the song position as it was sent last, until it continues
        self._late: _Late | None = None  # a tick that waits for the next to say what it means that it was late

    @property
    def playing(self) -> bool | None:
        """Whether it rolls, ``None`` until it has said so."""
        return self._playing

    @property
    def tempo(self) -> Fraction | None:
        """Tempo of the ticks."""
        return self._ticks.tempo

    @property
    def exact(self) -> bool:
        """Whether the ticks are exact to the frame."""
        return self._counted and self._ticks.exact

    def feed(self, data: bytes, when: Tick) -> list[Observation]:
        """Take in bytes that arrived at one time; return what they say."""
        said: list[Observation] = []
        for byte in data:
            if byte >= CLOCK:
                self._realtime(byte, when, said)
            elif byte >= 0x80:
                self.odd += self._partial is not None
                self._partial = [] if byte == SONG_POSITION else None
            elif self._partial is not None:
                self._partial.append(byte)
                if len(self._partial) == 2:
                    self._position(self._partial[0] | self._partial[1] << 7, when, said)
                    self._partial = None
        return said

    def silent(self, when: Tick) -> list[Observation]:
        """Say that nothing has come up to ``when``, from a peer that is known to be there.

        One that ticks only while it rolls has stopped, then: its stop was lost on the way.
        """
        said: list[Observation] = []
        if self.dialect is Dialect.ARDOUR and self._playing and self._at is not None and not self._begins:
            since = Fraction(self._unit(when) - self._at, self._ticks.rate)
            if since > _SILENT_SECONDS:
                self._settle(said)
                self.missed += 1
                self._stop(when, said)
        return said

    def _realtime(self, byte: int, when: Tick, said: list[Observation]) -> None:
        if byte == CLOCK:
            self._tick(when, said)
            return
        self._settle(said)
        if byte == START:
            self._song, self._said, self._located = 0, None, True
            self._roll()
        elif byte == CONTINUE:
            self._continue()
            self._roll()
        elif byte == STOP:
            self._stop(when, said)

    def _roll(self) -> None:
        self._playing, self._begins, self._offset = True, True, None
        self._ticks.pause()  # the ticks before were another row, or none

    def _roll_unheard(self) -> None:
        """A peer that ticks only while it rolls is rolling: its start was not heard, so the place is not known."""
        self.missed += self._playing is False
        self._playing, self._begins, self._offset, self._song = True, False, None, None

    def _continue(self) -> None:
        if self._said is None and self.dialect is Dialect.ARDOUR:
            self._song = None  # this peer always says it if it can
            self.unsaid += 1
        self._said = None

    def _stop(self, when: Tick, said: list[Observation]) -> None:
        self._playing, self._begins, self._offset = False, False, None
        self._say(said, when, playing=False)

    def _position(self, value: int, when: Tick, said: list[Observation]) -> None:
        """Take a song position: it holds from the next continue, or from the next tick if it rolls."""
        self._settle(said)
        self._find_out(value)
        self._song = value if self.dialect is Dialect.ARDOUR else SIXTEENTH * value
        self._said, self._located = value, True
        if self._playing:
            self._roll()
        else:
            self._say(said, when, beat=Fraction(self._song, TICKS), located=True)

    def _find_out(self, value: int) -> None:
        """Learn how the peer counts, from a position said where it had stopped."""
        if self.dialect is not Dialect.AUTO or self._song is None or self._playing or self._said is not None:
            return
        there = self._song
        if there < TICKS:
            return
        if abs(value - there // SIXTEENTH) <= 1:
            self.dialect = Dialect.STANDARD
        elif value % TICKS == 0 and abs(value - there) <= 2 * TICKS:
            self._proofs += 1  # it may have gone elsewhere by chance
            if self._proofs == _PROOFS:
                self.dialect = Dialect.ARDOUR

    # Ticks

    def _tick(self, when: Tick, said: list[Observation]) -> None:
        """Take in a tick; one that is late by whole periods waits until the next one has come.

        If that comes in the old tempo, the peer was not run in those periods, and its song stood still meanwhile.
        """
        late, at = self._late, self._unit(when)
        if late is None and not self._begins and (stall := self._stall(at)) is not None:
            self._late = _Late(when, at, *stall)
            return
        self._late = None
        if late is not None and self._ticks.fits(1, at - late.at):
            self._fall_behind(late)
        elif late is not None:
            self._count_in(late.when, late.at, said)
        self._count_in(when, at, said)

    def _settle(self, said: list[Observation]) -> None:
        """Take a tick that waits for what it seems to be: no other tick follows it."""
        late, self._late = self._late, None
        if late is not None:
            self._count_in(late.when, late.at, said)

    def _stall(self, at: int) -> tuple[int, int] | None:
        """Return how many ticks and how many periods, in frames, an interval stands for that ticks alone are not."""
        interval, period = self._ticks.interval, self.period
        if not period or self._at is None or interval is None or not self.exact:
            return None
        since = at - self._at
        if since <= interval + 2 or self._ticks.fits(round(since / interval), since):
            return None
        for missed in range(period, _MISSED_PERIODS * period + 1, period):
            steps = round((since - missed) / interval)
            if 1 <= steps <= _GONE_TICKS and self._ticks.fits(steps, since - missed):
                return steps, missed
        return None

    def _fall_behind(self, late: _Late) -> None:
        """Have the song go on from where it was, so many periods later."""
        self.stalls += 1
        self.lost += late.steps - 1
        self._clock += late.steps
        self._at = self._heard = late.at
        self._ticks.again(self._clock, late.at)
        if self._line is not None:
            self._line.stand_still(late.missed)
        if self._song is not None:
            self._song += late.steps

    def _count_in(self, when: Tick, at: int, said: list[Observation]) -> None:
        self._compare(at)
        if self.confused or not self._count(at):
            return
        if self.dialect is Dialect.ARDOUR and not self._playing:
            self._roll_unheard()
        self._ticks.tick(self._clock, at)
        if self._playing and self._song is not None:
            self._say_place(when, at, said)
        elif self._clock % TICKS == 0:
            self._say(said, when, playing=self._playing)
        if self._playing:
            self._begins = False

    def _unit(self, when: Tick) -> int:
        """Return when it was in the unit of this port; a port that changes its mind begins anew."""
        counted = when.count is not None
        if counted is not self._counted:
            tempo = self._ticks.tempo
            self._ticks = self._new_ticks(counted=counted)
            self._ticks.tempo = tempo
            self._counted, self._at = counted, None
        return when.count if when.count is not None else when.time_ns

    def _new_ticks(self, *, counted: bool) -> TickTempo:
        whole = counted and self.dialect is Dialect.ARDOUR
        return TickTempo(self._rate if counted else SECOND_NS, exact=counted, whole_quarters=whole)

    def _count(self, at: int) -> bool:
        """Count a tick that came at ``at``, and those that must have been lost before it; False if it is no tick."""
        interval, before = self._ticks.interval, self._at
        if before is not None and at < before and not self._begins:
            self._lose_place()  # another server's frames: nobody knows what passed meanwhile
            before = None
        if before is None or self._begins:
            self._at, self._gap = at, 0
            self._clock += 1
            return True
        since = at - before
        if self._regular >= _REGULAR and interval is not None and not 3 * self._since > 2 * interval:
            return self._give_in(at)
        if since < self._ticks.rate * 60 // (TICKS * _FASTEST) or (interval is not None and 4 * since < interval):
            self.doubled += 1
            return False
        steps = 1
        if interval is not None and 2 * since > 3 * interval:
            steps = self._missing(before, since, interval)
        else:
            self._gap = 0
        self._at = at
        self._clock += steps
        self.lost += steps - 1
        return True

    def _compare(self, at: int) -> None:
        """Judge the interval to whatever came last: how long they have been even, and whether there is one master."""
        since, before = at - (at if self._heard is None else self._heard), self._since
        self._heard, self._since = at, since
        self._regular = self._regular + 1 if 8 * abs(since - before) <= since else 0
        even = 10 * abs(since - before) <= 3 * max(since, before)
        self._even = self._even + 1 if even else 0
        self._uneven.append(not even and not self._begins)
        if not self.confused and sum(self._uneven) > _CONFUSED:
            self.confused = True
        elif self.confused and self._even >= _CLEAR:
            self.confused = False
            self._uneven.clear()
            self._ticks.again(self._clock, at - since)
            self._at = at - since
            self._song = self._offset = None

    def _give_in(self, at: int) -> bool:
        """Take up the pace of what came for some time, where that was taken for ticks that came twice."""
        self._song = self._offset = None  # how many of them were ticks nobody knows any more
        self._ticks.again(self._clock, at - self._since)
        self._clock += 1
        self._at, self._gap, self._regular = at, 0, 0
        return True

    def _missing(self, before: int, since: int, interval: Fraction) -> int:
        """Return how many ticks a long interval stands for."""
        steps = round(since / interval)
        if steps > _GONE_TICKS:
            if not self._ticks.fits(steps, since):
                self._lose_place()
                steps = 1
        elif steps == self._gap:  # again: it has become slower, nothing was lost
            self._clock -= steps - 1
            self.lost -= steps - 1
            self._ticks.again(self._clock, before)
            steps = 1
        elif abs(since / interval - steps) > Fraction(1, 4):
            if self._ticks.exact:
                self._ticks.again(self._clock, before)
            steps = 1
        self._gap = steps if steps > 1 else 0
        return steps

    def _lose_place(self) -> None:
        """Begin a new row of ticks somewhere in the song: while it rolls, who knows where."""
        self._ticks.pause()
        if self._playing is not False:
            self._song = self._offset = None

    # Saying it

    def _say_place(self, when: Tick, at: int, said: list[Observation]) -> None:
        assert self._song is not None
        if self._begins or self._offset is None:
            self._offset = self._song - self._clock
            self._line = None
        number = self._clock + self._offset
        self._song = number + 1
        beat = self._exact_beat(number, at) if self.exact else Fraction(number, TICKS)
        self._say(said, when, beat=beat, playing=True, located=self._located)
        self._located = False

    def _exact_beat(self, number: int, at: int) -> Fraction:
        """Return the beat at frame ``at``, on which tick ``number`` of the song came.

        Not the tick's own, which is rounded to a frame, but that of the line it lies on. The line goes through the
        first tick after a start; from there the tempo's frames are counted, not ticks. A new tempo begins where the
        old one has led.
        """
        anchor, tempo = self._ticks.anchor, self._ticks.tempo
        if self._line is None:
            self._line = _Line(at, Fraction(number, TICKS), self._rate, starts=True)
        line = self._line
        if anchor is not None and anchor[1] > line.frame and anchor[1] != line.began:
            line = self._line = line.turned(anchor[1])
        if tempo is None:
            return Fraction(number, TICKS)
        beat = line.at(at, tempo)
        if abs(beat * TICKS - number) > Fraction(1, 8) and self.dialect is not Dialect.ARDOUR:
            self._line, beat = None, Fraction(number, TICKS)
        return beat

    def _say(
        self,
        said: list[Observation],
        when: Tick,
        beat: Fraction | None = None,
        playing: bool | None = None,
        located: bool = False,
    ) -> None:
        if self.confused:
            return
        said.append(
            Observation(
                source=self._source,
                time_ns=when.time_ns,
                beat=beat,
                tempo=self._ticks.tempo,
                playing=self._playing if playing is None else playing,
                frame=when.frame if self.exact else None,
                located=located,
            )
        )


class ClockWriter:
    """The band's position as MIDI clock: which bytes fall on which frames. Nothing is sent here. One thread.

    Ticks go on while the band rests, as the grid does, so that who listens knows the tempo. A start, a continue and
    the song position stand half a tick before the tick they hold for, so that every receiver has taken them in; they
    hold for a sixteenth, as a song position cannot say more. Before the song's beginning, in a count-in, only ticks
    are sent, and the start before beat 0. Where the band goes on elsewhere: stop, song position, continue.

    Attributes
    ----------
    unsaid
        Positions beyond what a song position can say (1024 bars of 4/4): it was continued without.
    """

    def __init__(self) -> None:
        self.unsaid = 0
        self._rolling = False
        self._next: int | None = None  # number of the tick that is next

    def write(self, position: Position, first: int, end: int) -> list[tuple[int, bytes]]:
        """Return what falls on the frames ``[first, end)``, in order, as pairs of frame and message.

        Windows follow each other without a gap; a window may be cut anywhere.
        """
        out: list[tuple[int, bytes]] = []
        ticks = list(position.ticks(first, end))
        if self._rolling and not position.playing:
            self._rolling = False
            out.append((first, bytes((STOP,))))
        ticks = self._carry_on(position, first, ticks, out)
        for frame, tick in ticks:
            out.append((frame, bytes((CLOCK,))))
            self._next = tick + 1
        if position.playing and not self._rolling:
            out += self._start(position, first, end)
        return sorted(out, key=_place)

    def _carry_on(
        self, position: Position, first: int, ticks: list[tuple[int, int]], out: list[tuple[int, bytes]]
    ) -> list[tuple[int, int]]:
        """Return the ticks to send: those that a small shift of the line moved into the past are made up for."""
        if self._next is None or not ticks:
            return ticks
        off = ticks[0][1] - self._next
        if abs(off) > SIXTEENTH // 2:
            if self._rolling:
                self._rolling = False
                out.append((first, bytes((STOP,))))
            return ticks
        missed = [(first, self._next + n) for n in range(off)]
        return missed + ticks[max(0, -off) :]

    def _start(self, position: Position, first: int, end: int) -> list[tuple[int, bytes]]:
        """Return start, or song position and continue, before the first sixteenth of the window that leaves room."""
        beyond = round(position.timeline.beat_frames / TICKS) + 1
        for _, tick in position.ticks(first, end + beyond):
            half = position.frame_at(Fraction(2 * tick - 1, 2 * TICKS))
            if tick >= 0 and tick % SIXTEENTH == 0 and first <= half < end:
                self._rolling = True
                return [(half, message) for message in self._messages(tick)]
        return []

    def _messages(self, tick: int) -> list[bytes]:
        if tick == 0:
            return [bytes((START,))]
        sixteenth = tick // SIXTEENTH
        if sixteenth > LAST_SIXTEENTH:
            self.unsaid += 1
            return [bytes((CONTINUE,))]
        return [bytes((SONG_POSITION, sixteenth & 0x7F, sixteenth >> 7)), bytes((CONTINUE,))]


_ORDER = {STOP: 0, SONG_POSITION: 1, START: 2, CONTINUE: 2, CLOCK: 3}


def _place(event: tuple[int, bytes]) -> tuple[int, int]:
    """Return the order of an event: by frame, and what holds for a tick before it."""
    return event[0], _ORDER[event[1][0]]
