"""Ableton Link: tempo, beat and start and stop in common with everybody on the network.

The one file that wraps the package LinkPython-extern (import name ``link``): the whole interface of Ableton's own
library, with times, where others offer only what an event loop can await.

What is shared is a tempo and a *phase*: where in a bar everybody is. How many bars there were is each peer's own
business. So a song's position is found by a convention that peers keep to: when the transport starts, the song begins
at the next bar line. From there it is counted; who joins later learns the time of the start and does the same.

Link's clock is the machine's monotonic clock of another kind, which may run at a slightly different rate. The two
are read together each time, so nothing drifts.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

from bridge.midiclock import Times, simplest_tempo
from bridge.sync import Observation, Position
from realtime.clock import Meter

MICRO_BEATS = 10**6
"""Link counts beats in millionths."""
MINUTE_US = 60 * 10**6
PHASE_SECONDS = 0.0005
"""A session that is led is put right when it is off by more than this."""
_READING_NS = 50_000
_READINGS = 4
_JUMP_BEATS = 0.25


class LinkError(OSError):
    """Link could not be used; the text is one sentence for the user."""


@dataclass(frozen=True, slots=True)
class LinkState:
    """What the session says at one moment.

    Attributes
    ----------
    time_ns
        Host time.
    tempo
        Quarter notes per minute.
    beat
        In this peer's own count; its phase in the quantum is everybody's.
    playing
        Whether the transport was started.
    start_beat
        Beat at which it was started or stopped last, in the same count.
    peers
        Others in the session.
    """

    time_ns: int
    tempo: float
    beat: float
    playing: bool
    start_beat: float
    peers: int


def shared_tempo(bpm: float) -> Fraction:
    """Return the tempo that a peer will have set, given what the session says.

    Link tells microseconds to the beat, so 97 comes as 96.99994: what is meant is the roundest number that would.
    """
    micros = Fraction(MINUTE_US) / Fraction(bpm)
    whole = round(micros)
    if abs(micros - whole) > Fraction(1, 1000):  # somebody who does not round
        return Fraction(bpm).limit_denominator(10**6)
    return simplest_tempo(Fraction(MINUTE_US) / (whole + 1), Fraction(MINUTE_US) / (whole - 1))


class SongCount:
    """The song's beat from Link's. Pure. One thread.

    The song begins at the first bar line at or after the start. From then on its beat is Link's less a whole number
    of bars. When this peer meets a session its own count leaps; then the bars are kept and only the phase is
    taken over.
    """

    def __init__(self) -> None:
        self._shift: Fraction | None = None
        self._started: float | None = None
        self._before: LinkState | None = None

    def song_beat(self, state: LinkState, quantum: Fraction) -> tuple[Fraction, bool]:
        """Return the song's beat, and whether it is another place than the last led to.

        Before the first bar line it is negative; while nobody has started, it is Link's own count.
        """
        beat = Fraction(round(state.beat * MICRO_BEATS), MICRO_BEATS)
        before, self._before = self._before, state
        begun = state.playing and (before is None or not before.playing)
        leap = before is not None and abs(state.beat - _expected(before, state.time_ns)) > _JUMP_BEATS
        if begun:
            start = Fraction(round(state.start_beat * MICRO_BEATS), MICRO_BEATS)
            self._shift = -(-(start - Fraction(1, 1000)) // quantum) * quantum
        elif leap and before is not None:
            ought = Fraction(round(_expected(before, state.time_ns) * MICRO_BEATS), MICRO_BEATS)
            self._shift = (self._shift or 0) + round((beat - ought) / quantum) * quantum
        return beat - (self._shift or 0), begun


def _expected(before: LinkState, time_ns: int) -> float:
    return before.beat + (time_ns - before.time_ns) * before.tempo / 60e9


class LinkPeer:
    """A machine in a Link session, this one; a source and a sender hold one in common. One thread.

    Parameters
    ----------
    tempo
        For the session, if nobody else is there yet.
    start_stop
        Whether to share start and stop with those who do.
    make, clock
        Make Link's object, and tell monotonic nanoseconds; tests give their own.
    """

    def __init__(
        self,
        tempo: Fraction,
        *,
        start_stop: bool = True,
        make: Callable[[float], Any] | None = None,
        clock: Callable[[], int] = time.monotonic_ns,
    ) -> None:
        self.start_stop = start_stop
        self._tempo, self._make, self._now = tempo, make or _link, clock
        self._link: Any = None
        self._micros: Any = None
        self._users = 0

    def start(self) -> None:
        """Join the session of this network, for the first who asks.

        Raises
        ------
        LinkError
            If the package is missing, or the network is.
        """
        if self._link is None:
            try:
                self._link = self._make(float(self._tempo))
                self._link.startStopSyncEnabled = self.start_stop
                self._link.enabled = True
            except RuntimeError as error:
                self._link = None
                raise LinkError(f"Ableton Link does not start: {error}; is there a network?") from None
            self._micros = self._link.clock().micros
        self._users += 1

    def stop(self) -> None:
        """Leave it with the last who used it."""
        self._users = max(0, self._users - 1)
        if self._link is not None and not self._users:
            self._link.enabled = False
            self._link = None

    @property
    def running(self) -> bool:
        """Whether it has joined."""
        return self._link is not None

    def state(self, quantum: Fraction) -> LinkState:
        """Return what the session says now."""
        captured = self._link.captureAppSessionState()
        time_ns, micros = self.moment()
        length = float(quantum)
        return LinkState(
            time_ns=time_ns,
            tempo=captured.tempo(),
            beat=captured.beatAtTime(micros, length),
            playing=captured.isPlaying(),
            start_beat=captured.beatAtTime(captured.timeForIsPlaying(), length),
            peers=self._link.numPeers(),
        )

    def beat_at(self, host_ns: int, quantum: Fraction) -> float:
        """Return the beat at a host time, in this peer's own count."""
        time_ns, micros = self.moment()
        beat: float = self._link.captureAppSessionState().beatAtTime(
            micros + (host_ns - time_ns) // 1000, float(quantum)
        )
        return beat

    def moment(self) -> tuple[int, int]:
        """Return one moment twice: as host time and as Link's microseconds. The closest of a few readings."""
        best = (1 << 62, 0, 0)
        for _ in range(_READINGS):
            before = self._now()
            micros = self._micros()
            after = self._now()
            best = min(best, (after - before, (before + after) // 2, micros))
            if best[0] < _READING_NS:
                break
        return best[1], best[2]

    def lead(self, tempo: Fraction, beat: Fraction, quantum: Fraction, playing: bool, host_ns: int) -> bool:
        """Have the session be there: ``beat`` at a host time, in this tempo. Return whether anything was changed.

        Nothing is said while all is well. A phase that is off by half a millisecond is put right, for everybody: to
        lead a session is what this is for.
        """
        captured = self._link.captureAppSessionState()
        time_ns, now = self.moment()
        micros, length = now + (host_ns - time_ns) // 1000, float(quantum)
        changed = False
        if shared_tempo(captured.tempo()) != tempo:
            captured.setTempo(float(tempo), micros)
            changed = True
        off = (Fraction(captured.beatAtTime(micros, length)) - beat + quantum / 2) % quantum - quantum / 2
        if changed or abs(off) * 60 / tempo > PHASE_SECONDS:
            captured.forceBeatAtTime(float(beat), micros, length)
            changed = True
        if self.start_stop and captured.isPlaying() is not playing:
            captured.setIsPlaying(playing, micros)
            changed = True
        if changed:
            self._link.commitAppSessionState(captured)
        return changed


def _link(tempo: float) -> Any:
    try:
        import link
    except ImportError:
        raise LinkError("Ableton Link needs the package LinkPython-extern: pip install 'sideman[link]'") from None
    return link.Link(tempo)


class LinkIn:
    """Ableton Link: a source.

    Parameters
    ----------
    name
        Of the source in the session.
    peer
        This machine in the session.
    meter
        The session's: its bar is the quantum, in which a phase is shared.
    """

    def __init__(self, name: str, peer: LinkPeer, meter: Meter) -> None:
        self.name = name
        self.peers = 0
        self._peer, self._meter = peer, meter
        self._count = SongCount()

    def start(self) -> None:
        """Join the session.

        Raises
        ------
        LinkError
            If the package is missing, or the network is.
        """
        self._peer.start()

    def poll(self, now_ns: int) -> Iterable[Observation]:
        """Return what the session says; nothing while nobody else is there, as there is nobody to follow."""
        if not self._peer.running:
            return []
        state = self._peer.state(self._meter.beats)
        self.peers = state.peers
        if not state.peers:
            return []
        beat, located = self._count.song_beat(state, self._meter.beats)
        return [
            Observation(
                source=self.name,
                time_ns=state.time_ns,
                beat=beat,
                tempo=shared_tempo(state.tempo),
                playing=state.playing if self._peer.start_stop else None,
                located=located,
            )
        ]

    def stop(self) -> None:
        """Leave the session."""
        self._peer.stop()


class LinkOut:
    """Leads a Link session with the band's time: a sender.

    Parameters
    ----------
    name
        Of the sender in the session.
    peer
        This machine in the session. Nobody may follow it with the same peer meanwhile.
    times
        When a frame leaves the loudspeaker.

    Attributes
    ----------
    changes
        Times that the session was told something.
    """

    def __init__(self, name: str, peer: LinkPeer, times: Times) -> None:
        self.name = name
        self.changes = 0
        self._peer, self._times = peer, times

    def start(self) -> None:
        """Join the session.

        Raises
        ------
        LinkError
            If the package is missing, or the network is.
        """
        self._peer.start()

    def send(self, position: Position, now_ns: int) -> None:
        """Put the session right, if it is not."""
        if self._peer.running:
            frame = self._times.frame_at(now_ns)
            self.changes += self._peer.lead(
                position.tempo, position.beat_at(frame), position.meter.beats, position.playing, now_ns
            )

    def stop(self) -> None:
        """Leave the session."""
        self._peer.stop()
