"""A session as its entrances see it: what may be asked of it, what may be looked at, and which files have names.

Whoever speaks to a session from outside (OSC, say) does it through a :class:`Desk`. :class:`LiveDesk` is that of a
session that plays; :class:`StillDesk` is one without a session, which keeps what it is sent.
"""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import TYPE_CHECKING, Protocol

from bridge.screen import STATES, WORDS
from bridge.session import Session
from bridge.shelves import Item, ShelfError, shelf
from realtime.clock import Meter
from realtime.engine import Command
from realtime.mixer import METRONOME, MONITOR

if TYPE_CHECKING:
    from bridge.app import Live
    from bridge.follower import SyncStatus
    from bridge.sync import Position

SECOND_NS = 10**9


# What can be looked at


@dataclass(frozen=True, slots=True)
class Place:
    """Where a session is.

    Attributes
    ----------
    frame
        Session frame.
    bar, beat
        Bar of the session that is mixed, counted from 0, a count-in is negative; and quarter notes into the bar.
    song_bar
        Bar of the song, counted from 0, ``None`` where it is not known.
    tempo
        Quarter notes per minute, ``None`` where it is not known.
    meter
        ``None`` where it is not known.
    playing
        Whether the band plays; it may rest while the grid goes on.
    stopped
        Whether the session has ended.
    """

    frame: int = 0
    bar: int = 0
    beat: float = 0.0
    song_bar: int | None = None
    tempo: Fraction | None = None
    meter: Meter | None = None
    playing: bool = True
    stopped: bool = False


@dataclass(frozen=True, slots=True)
class AgentFacts:
    """How an agent does.

    Attributes
    ----------
    name, kind
        As in the session.
    state
        How its process stands, as :meth:`bridge.supervise.Supervisor.states` says.
    now
        What of it sounds, in a word.
    margin_seconds, budget_seconds
        How early its last answer came, and how long it is given.
    late, faults, generation
        Answers that came late or were none, and how often its process was replaced.
    """

    name: str
    kind: str
    state: str = ""
    now: str = ""
    margin_seconds: float = 0.0
    budget_seconds: float = 0.0
    late: int = 0
    faults: int = 0
    generation: int = 0


@dataclass(frozen=True, slots=True)
class ActionFacts:
    """Something an agent can be made to do: its name, the range of its value, and what it does."""

    name: str
    least: float = 0.0
    most: float = 1.0
    meaning: str = ""


@dataclass(frozen=True, slots=True)
class Fader:
    """One strip of the mixer as it was set last: gain in dB, pan -1 to 1."""

    name: str
    channels: int = 1
    gain_db: float = 0.0
    pan: float = 0.0
    mute: bool = False
    solo: bool = False


@dataclass(frozen=True, slots=True)
class Loudness:
    """How loud a signal was since the last look, linear: largest sample and RMS. Outputs count from 1."""

    name: str
    peak: float = 0.0
    rms: float = 0.0


@dataclass(frozen=True, slots=True)
class Setup:
    """What a session is made of; frames and Hz, channels counted. ``audio_port`` is 0 without audio over OSC."""

    name: str = "untitled"
    version: str = ""
    samplerate: int = 48000
    blocksize: int = 128
    inputs: int = 1
    outputs: int = 2
    lead_frames: int = 1024
    latency_frames: int = 0
    device_in_frames: int = 0
    device_out_frames: int = 0
    audio_port: int = 0


class Desk(Protocol):
    """What entrances need of a session. Everything but :meth:`shelf` returns at once; any thread.

    ``samplerate`` is in Hz. ``turn_frames`` is how many frames the engine makes at a time: it takes commands between.
    """

    samplerate: int
    turn_frames: int

    def send(self, command: Command) -> bool:
        """Hand a command to the engine; return whether there was room for it."""

    def frame_at(self, time_ns: int) -> int:
        """Return the session frame that leaves for the loudspeaker at a host time (``time.monotonic_ns()``)."""

    def mixed(self) -> int:
        """Return the frame at which a command that is sent now takes effect: what lies before it is made."""

    def place(self) -> Place:
        """Return where the session is."""

    def sync(self) -> SyncStatus | None:
        """Return how following another's time stands, ``None`` where nobody is followed."""

    def setup(self) -> Setup:
        """Return what it is made of."""

    def agents(self) -> Sequence[AgentFacts]:
        """Return how the agents do, in the session's order."""

    def actions(self, agent: str) -> Sequence[ActionFacts] | None:
        """Return what an agent can be made to do, ``None`` where it does not say: then it may be anything."""

    def faders(self) -> Sequence[Fader]:
        """Return the mixer's strips as they were set last through this desk, agents' stems first."""

    def loudness(self) -> Sequence[Loudness]:
        """Return how loud stems, input and outputs were since the last look."""

    def counted(self) -> Mapping[str, int]:
        """Return what the session counts."""

    def shelf(self, kind: str, name: str = "") -> Sequence[Item]:
        """Return what there is of a kind (:data:`bridge.shelves.SHELVES`), or the one of that name. May take long.

        Raises
        ------
        ShelfError
            In one sentence, where there is none of that name.
        """


class StillDesk:
    """A desk without a session: time is what it is told, and what it is sent is kept.

    Parameters
    ----------
    names
        Agents that it says it has.
    samplerate, turn_frames, lead_frames
        As of a session.

    Attributes
    ----------
    sent
        The last :data:`KEPT` commands.
    full
        Whether it takes no more.
    now_ns
        Host time; frame 0 leaves at 0.
    """

    KEPT = 1024

    def __init__(
        self,
        names: Iterable[str] = ("bass", "keys"),
        *,
        samplerate: int = 48000,
        turn_frames: int = 256,
        lead_frames: int = 1024,
    ) -> None:
        self.samplerate, self.turn_frames, self._lead_frames = samplerate, turn_frames, lead_frames
        self.sent: deque[Command] = deque(maxlen=self.KEPT)
        self.full, self.now_ns = False, 0
        self.playing = True
        self._faders = _Faders(Fader(name) for name in (*names, METRONOME))
        self._agents = [AgentFacts(name, "echo", "armed", "plays") for name in names]

    def send(self, command: Command) -> bool:
        """Keep a command."""
        if self.full:
            return False
        self.sent.append(command)
        self._faders.note(command)
        if command.do == "rest":
            self.playing = not command.value
        return True

    def frame_at(self, time_ns: int) -> int:
        """Return the frame of a time, by arithmetic."""
        return time_ns * self.samplerate // SECOND_NS

    def mixed(self) -> int:
        """Return the frame now, and the lead."""
        return self.frame_at(self.now_ns) + self._lead_frames

    def place(self) -> Place:
        """Return the place at 120 in 4/4."""
        frame = self.frame_at(self.now_ns)
        bar, rest = divmod(frame, 2 * self.samplerate)
        return Place(frame, bar, 2 * rest / self.samplerate, bar, Fraction(120), Meter(), self.playing)

    def sync(self) -> SyncStatus | None:
        """Return None: nobody is followed."""
        return None

    def setup(self) -> Setup:
        """Return what nothing is made of."""
        return Setup(version="0", samplerate=self.samplerate, lead_frames=self._lead_frames)

    def agents(self) -> Sequence[AgentFacts]:
        """Return agents that are always well."""
        return self._agents

    def actions(self, agent: str) -> Sequence[ActionFacts] | None:
        """Return two, of the first agent; the others do not say."""
        first = bool(self._agents) and agent == self._agents[0].name
        return (ActionFacts("freeze", meaning="repeats the bar"), ActionFacts("density", 0, 2)) if first else None

    def faders(self) -> Sequence[Fader]:
        """Return the strips as they were set."""
        return self._faders.all()

    def loudness(self) -> Sequence[Loudness]:
        """Return silence."""
        names = [agent.name for agent in self._agents]
        return [Loudness(name) for name in (*names, "input", "output 1", "output 2")]

    def counted(self) -> Mapping[str, int]:
        """Return nothing."""
        return {}

    def shelf(self, kind: str, name: str = "") -> Sequence[Item]:
        """Return nothing: there are no folders."""
        if name:
            raise ShelfError(f"there is no {name!r} among the {kind}; there are none")
        return []


class LiveDesk:
    """The desk of a session that plays. Valid while it is open.

    Parameters
    ----------
    live
        The session; anything may be sent to it from other places too.
    session
        As it was read: its folders are where files are found.
    frame_at
        Session frame at a host time, from who follows the device's clock; ``None`` counts on from what the engine
        told last, right to some 10 frames.
    position
        The grid of the song as it is played, from who knows it; where it returns ``None``, only bar and beat of the
        session are known, as the engine tells them.
    actions
        What agents can be made to do, by kind of agent; a kind that is not there does not say.
    version
        Sideman's.
    audio_port
        Where a DAW streams its audio to, 0 without.
    sync
        How following another's time stands, from who does it.
    """

    def __init__(
        self,
        live: Live,
        session: Session,
        *,
        frame_at: Callable[[int], int] | None = None,
        position: Callable[[], Position | None] = lambda: None,
        actions: Mapping[str, Sequence[ActionFacts]] | None = None,
        version: str = "",
        audio_port: int = 0,
        sync: Callable[[], SyncStatus | None] = lambda: None,
    ) -> None:
        from realtime.engine import Memory
        from realtime.meters import Meters

        spec = live.config.spec
        self.samplerate, self.turn_frames = spec.samplerate, spec.turn_frames
        self._live, self._session, self._position, self._version = live, session, position, version
        self._actions, self._audio_port, self._sync = actions or {}, audio_port, sync
        self._stream, self._device = live.arena.status("stream.status"), live.arena.status("io.status")
        self._frame_at = frame_at or self._counted_on
        self._grid = live.arena.status("engine.grid")
        # Its own, because "since the last look" is: what is told here is not lost to those who look elsewhere.
        self._meters = Meters(Memory.shared(live.arena, live.config), spec.samplerate)
        self._playing = True
        self._faders = _Faders(_strips(live, session))
        self._kinds = {agent.name: agent.kind for agent in session.agents}

    def send(self, command: Command) -> bool:
        """Hand a command to the engine."""
        taken = self._live.send(command)
        if taken:
            self._faders.note(command)
            if command.do == "rest":
                self._playing = not command.value
        return taken

    def frame_at(self, time_ns: int) -> int:
        """Return the frame of a host time."""
        return self._frame_at(time_ns)

    def mixed(self) -> int:
        """Return how far the engine is."""
        return int(self._stream.read()["mixed"])

    def place(self) -> Place:
        """Return what leaves for the loudspeaker now, where the song's grid is known; else what is mixed."""
        told, grid = self._live.arena["place"], self._grid.read()
        place = Place(int(told[0]), int(told[1]), float(told[2]), playing=self._playing, stopped=bool(told[3]))
        position = self._position()
        if position is None:
            return place
        frame, line = self._frame_at(time.monotonic_ns()), position.timeline
        beat = line.beat_at(frame)
        song_bar = line.bar_at(beat)
        bar = grid["bar"] + song_bar - grid["song_bar"]  # of the same moment as the song's
        return replace(
            place, frame=frame, bar=bar, song_bar=song_bar, beat=float(beat - line.downbeat(song_bar)),
            tempo=line.tempo, meter=line.meter, playing=position.playing,
        )  # fmt: skip

    def sync(self) -> SyncStatus | None:
        """Return how following stands."""
        return self._sync()

    def setup(self) -> Setup:
        """Return what the session is made of."""
        spec, device = self._live.config.spec, self._device.read()
        return Setup(
            self._session.session.name, self._version, spec.samplerate, spec.blocksize, spec.inputs, spec.outputs,
            spec.lead, spec.latency, int(device["latency_in"]), int(device["latency_out"]), self._audio_port,
        )  # fmt: skip

    def agents(self) -> Sequence[AgentFacts]:
        """Return how the agents do."""
        status = self._live.status()
        return [self._agent(name, status.ledger[name], status.states[name]) for name in self._live.names]

    def _agent(self, name: str, row: Mapping[str, int], state: str) -> AgentFacts:
        sounding = WORDS.get(row["sounding"], f"rung {row['sounding']}")
        return AgentFacts(
            name, self._kinds[name], state, STATES.get(state, sounding), row["ready_margin"] / self.samplerate,
            row["budget_frames"] / self.samplerate, row["late_finals"], row["faults"], max(0, row["generation"]),
        )  # fmt: skip

    def actions(self, agent: str) -> Sequence[ActionFacts] | None:
        """Return what an agent's kind declares."""
        return self._actions.get(self._kinds[agent])

    def faders(self) -> Sequence[Fader]:
        """Return the strips as they were set through this desk."""
        return self._faders.all()

    def loudness(self) -> Sequence[Loudness]:
        """Return levels since this desk looked last."""
        levels = self._meters.read()
        named = [*levels.stems.items(), ("input", levels.input)]
        named += [(f"output {number}", level) for number, level in enumerate(levels.outputs, 1)]
        return [Loudness(name, level.peak, level.rms) for name, level in named]

    def counted(self) -> Mapping[str, int]:
        """Return what device and stream count of what went wrong."""
        device, stream = self._device.read(), self._stream.read()
        told = {name: device[name] for name in ("xruns", "lost_frames", "starved_frames", "overflows")}
        told |= {name: stream[name] for name in ("underruns", "late_frames")}
        return {name: int(count) for name, count in told.items()}

    def shelf(self, kind: str, name: str = "") -> Sequence[Item]:
        """Return what lies in the session's folders."""
        return shelf(self._session, kind, name)

    def _counted_on(self, time_ns: int) -> int:
        told = self._stream.read()
        return int(told["frame"]) + (time_ns - int(told["time_ns"])) * self.samplerate // SECOND_NS


def _strips(live: Live, session: Session) -> Iterator[Fader]:
    for part in live.config.parts:
        strip = part.strip
        yield Fader(strip.name, strip.channels, strip.gain_db, strip.pan, strip.mute, strip.solo)
    if live.config.monitor is not None:
        yield Fader(MONITOR, live.config.spec.inputs, session.mixer.monitor_gain_db)
    if live.config.metronome is not None:
        yield Fader(METRONOME, 1, session.metronome.gain_db)


class _Faders:
    """Remembers how the strips were set."""

    def __init__(self, faders: Iterable[Fader]) -> None:
        self._faders = {fader.name: fader for fader in faders}

    def note(self, command: Command) -> None:
        fader = self._faders.get(command.target)
        if fader is None:
            return
        if command.do == "gain":
            fader = replace(fader, gain_db=command.value)
        elif command.do == "pan":
            fader = replace(fader, pan=command.value)
        elif command.do == "mute":
            fader = replace(fader, mute=bool(command.value))
        elif command.do == "solo":
            fader = replace(fader, solo=bool(command.value))
        self._faders[fader.name] = fader

    def all(self) -> list[Fader]:
        return list(self._faders.values())


def decibels(linear: float) -> float:
    """Return a level in dB of full scale, -120 for silence and for what is no number."""
    return max(-120.0, 20 * math.log10(linear)) if linear > 1e-6 and math.isfinite(linear) else -120.0
