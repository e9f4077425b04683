"""Somebody else's time: the words in which it is said, and the host's time as session frames.

A *source* (OSC position of a DAW, Ableton Link, MIDI clock, JACK transport) says what it sees as immutable
:class:`Observation` values; :mod:`bridge.follower` makes the grid of them in which the band plays. The other way
round, a :class:`Position` is that grid, for those who send it out.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from fractions import Fraction
from typing import Protocol

from realtime.clock import Meter, Timeline
from realtime.hostclock import HostClock


@dataclass(frozen=True, slots=True)
class Observation:
    """What one source said at one moment; whatever it did not say is ``None``.

    A position is said as ``beat`` or as ``bar`` and ``bar_beat``, whichever the source knows. What is said here has
    been translated (bars from 0, quarter notes, tempo in quarter notes per minute), not judged, which the follower
    does.

    Attributes
    ----------
    source
        Name of the source in the session.
    time_ns
        Host time (``time.monotonic_ns()``) at which it was so, as early as the source can tell: the arrival of a
        packet, the time of a tick. It may be late, never early.
    beat
        Position in the song in quarter notes from its start; negative in a count-in.
    bar, bar_beat
        Bar of the song, counted from 0, and quarter notes into it.
    tempo
        Quarter notes per minute.
    meter
        Beats to the bar.
    playing
        Whether the transport rolls.
    frame
        The session frame at which it was so, exact but for its rounding, where the source's clock is the device's own
        (JACK); ``None`` where only ``time_ns`` is known.
    located
        The source says itself that this position does not go on from the last one (MIDI start and song position).
    grain
        The position was rounded down to multiples of this many quarter notes (a tick of JACK's, say).
    sender
        Who said it, where several could (an address and port): two who say different things are told apart by it.
    """

    source: str
    time_ns: int
    beat: Fraction | None = None
    bar: int | None = None
    bar_beat: Fraction | None = None
    tempo: Fraction | None = None
    meter: Meter | None = None
    playing: bool | None = None
    frame: int | None = None
    located: bool = False
    grain: Fraction = Fraction(0)
    sender: str = ""


class Source(Protocol):
    """Somebody whose time can be followed. All calls come from one thread, the bridge's; none of them waits.

    ``start`` opens what is outside and may raise one clear ``OSError`` or ``ValueError``; from then on nothing
    raises, and trouble is counted and told by the source itself. ``poll`` returns what was observed since the last
    call, in order of time; threads of a driver only ever append to a queue. ``stop`` may be called twice, or without
    ``start``.
    """

    name: str

    def start(self) -> None: ...

    def poll(self, now_ns: int) -> Iterable[Observation]: ...

    def stop(self) -> None: ...


@dataclass(frozen=True, slots=True)
class Position:
    """The band's place in the song as a line: song beats over session frames. What is sent out is read from it.

    A frame is when it leaves the loudspeaker. The line holds from the frame of the last change on, until another
    position is published.

    Attributes
    ----------
    timeline
        Song beats, song bars, tempo and meter over session frames; of bars and beats of the *song*, not the session.
    playing
        Whether the band plays; the grid goes on while it rests.
    """

    timeline: Timeline
    playing: bool = True

    @property
    def tempo(self) -> Fraction:
        """Quarter notes per minute."""
        return self.timeline.tempo

    @property
    def meter(self) -> Meter:
        """Beats to the bar; its ``beats`` is Link's quantum."""
        return self.timeline.meter

    def beat_at(self, frame: int) -> Fraction:
        """Exact song beat at a session frame; negative in a count-in."""
        return self.timeline.beat_at(frame)

    def frame_at(self, beat: Fraction) -> int:
        """Session frame of a song beat, rounded once."""
        return self.timeline.frame_at(beat)

    def bar_at(self, frame: int) -> int:
        """Song bar at a session frame, counted from 0."""
        return self.timeline.bar_at(self.timeline.beat_at(frame))

    def ticks(self, first: int, end: int, per_beat: int = 24) -> Iterator[tuple[int, int]]:
        """Yield (session frame, tick number since the song's start) of every tick with first <= frame < end."""
        at = self.timeline.beat_at(first) * per_beat
        tick = at.numerator // at.denominator - 1
        while (frame := self.frame_at(Fraction(tick, per_beat))) < end:
            if frame >= first:
                yield frame, tick
            tick += 1


class SessionClock:
    """Turns host time into session frames and back. The bridge's thread.

    Fed with what the stream tells (``stream.status``: frame ``frame`` leaves for the loudspeaker at ``time_ns``), so
    it counts in output time. See :class:`realtime.hostclock.HostClock` for what it does about jitter, gaps and leaps.

    Parameters
    ----------
    samplerate
        Frames per second of the session.

    Attributes
    ----------
    latest_ns
        Host time of the last reading, ``None`` before the first.
    """

    def __init__(self, samplerate: int) -> None:
        self.samplerate = samplerate
        self.latest_ns: int | None = None
        self._clock = HostClock(samplerate)

    def observe(self, time_ns: int, frame: int) -> None:
        """Take in one reading of the stream's status; a time of 0 means that the stream does not run yet."""
        if time_ns > 0:
            self.latest_ns = time_ns
            self._clock.observe(time_ns, frame)

    @property
    def known(self) -> bool:
        """Whether there is any idea of the time."""
        return self.latest_ns is not None

    @property
    def leaps(self) -> int:
        """Times that it had to begin anew: what was placed by it before lies elsewhere now."""
        return self._clock.relocks

    def frame_at(self, time_ns: int) -> int:
        """Session frame that leaves for the loudspeaker at a host time."""
        return self._clock.frame_at(time_ns)

    def time_ns_at(self, frame: int) -> int:
        """Host time at which a session frame leaves for the loudspeaker."""
        return self._clock.host_ns_at(frame)
