"""The loop: hear, do what is due, mix. One loop for live, offline and replay; a stream drives it.

Two cursors run along the session's clock: ``heard``, the input taken so far, and ``mixed``, the output made so far,
which is ``lead`` frames ahead of the loudspeaker. Blocks are cut where something is due, so what comes out does not
depend on how it was asked for. Nothing here waits, opens a file or raises once it rolls: what goes wrong is counted
and written in the take.

A block costs a copy for each stem, straight into the ring that everyone reads, and one pass of the mixer over all of
them. All that comes in bursts is rationed, so that no block carries the work of a whole bar: agents decide one after
the other, news and commands are taken a few a block, crossfades are made ahead, and what people look at is told bit
by bit.
"""

from __future__ import annotations

import gc
import math
import multiprocessing
import re
import signal
import sys
from bisect import insort
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from multiprocessing.synchronize import Semaphore

import numpy as np
import numpy.typing as npt

from realtime.buffers import (
    Arena,
    ArenaHandle,
    AudioRing,
    Layout,
    RecordRing,
    StemRings,
    is_finite,
    join_frames,
    numbers,
    record_layout,
    ring_layout,
    status_layout,
    stems_layout,
)
from realtime.clock import Anchor, Locate, Meter, TempoChange, TempoMap, Timeline, Transport, as_tempo
from realtime.messages import encode, field_names, from_bytes, to_bytes
from realtime.mixer import Metronome, Mixer, Monitor, Strip
from realtime.port import ProcessPort
from realtime.protocols import Action, Block, Chord, Log, Origin, SpanRequest, StreamSpec
from realtime.scheduler import LEDGER, LiveTiming, Part, Port, Timing, stagger_frames
from realtime.seat import ON_DUTY, AgentConfig, worker_layout
from realtime.voice import NEVER, Voice

HISTORY_SECONDS = 60
"""What agents can look back on at least; three of the longest bars if that is more."""
LONGEST_RAMP_BEATS = 128
"""Of a change that is announced while the music plays: every beat of it costs the engine time."""
STOP_FADE_SECONDS = 0.1
COMMANDS_AHEAD, FARTHEST_SECONDS = 256, 600
"""So many commands for later frames are kept, and so far ahead; of more, each is carried out at once, and what is
further off is dropped."""
GRID_FIELDS = {
    "frame": "i8",  # session frame of the downbeat of the bar that is mixed ...
    "fraction": "i8",  # ... and what is left of it, in 2**-32 frames
    "beat_above": "i8",  # its beat in the song, counted from the song's start, as a fraction
    "beat_below": "i8",
    "tempo_above": "i8",  # quarter notes per minute, as a fraction
    "tempo_below": "i8",
    "count": "i8",  # its meter
    "unit": "i8",
    "bar": "i8",  # of the session
    "song_bar": "i8",
    "resting": "i8",
    "mixed": "i8",  # the frame up to which is mixed
}
"""What the engine tells of musical time, in one status block."""
TUPLE_LENGTHS, TUPLES_KEPT = 20, 2000
"""Of so many lengths CPython keeps so many dead tuples each."""
SHORTEST_GRID = Fraction(1, 8)
"""Beats; the engine takes a few dozen steps for every span."""
_BEATS = re.compile(r"[0-9]{1,9}(/0*[1-9][0-9]{0,8})?")
LOG_RECORDS, LOG_BYTES = 1 << 15, 1 << 10
"""Places for lines of the take and their size: half a minute of sixteen agents that answer on every beat, should the
disk stand still for so long. A line takes as many places as it needs."""
COMMAND_RECORDS, COMMAND_BYTES = 256, 1024
COMMANDS_A_BLOCK = 8
SHARE_FRAMES = 256
"""For so many frames mixed one agent looks at its news, and one crossfade is made ahead."""
NEWS_WAITS_TURNS = 0
"""News is looked at in turns in which nothing else is due; after so many in a row in which something was, all the
same. Whoever decides looks for himself first, so nothing that came in time is late for it."""
NEWS_ASKED_TURNS = 4
EXAMINED_SAMPLES = 256
"""Of the answers that are in, looked at for each frame that is mixed."""
PUBLISH_HZ = 25
PATIENCE_SECONDS = 0.02
"""What can wait for a block in which nobody acts waits no longer than that."""
LONGEST_DOT_SAMPLES = 8192
"""What is longer, the linear algebra library may hand to threads of its own, and wait for them."""


@dataclass(frozen=True, slots=True)
class Command:
    """Something the bridge lets through, checked and typed.

    ``do`` is ``"stop"`` (at once, or on the next bar line where ``name`` is ``"bar"``), ``"tempo"`` (with
    ``change``), ``"locate"`` (with ``locate``), ``"anchor"`` (with ``anchor``: from now on another leads), ``"rest"``
    (1: the band fades out now and rests while time goes on, 0: it plays again from the next bar line), ``"action"``
    (``target`` is the agent, ``name`` what it declares), ``"grid"`` (``name`` is the length of the spans of agent
    ``target`` from now on, beats as a fraction, ``"0"`` for bars), ``"quarantine"`` (agent ``target`` is asked for
    nothing any more), ``"lighter"`` (``name`` are the options with which agent ``target`` plays instead, as JSON),
    ``"metronome"`` (0 or 1), or a fader of stem ``target``: ``"gain"`` (dB), ``"pan"`` (-1 to 1), ``"mute"``,
    ``"solo"`` (0 or 1). With ``frame`` it is carried out at that session frame, if that is still to be mixed.
    """

    do: str
    target: str = ""
    name: str = ""
    value: float = 0.0
    change: TempoChange | None = None
    locate: Locate | None = None
    anchor: Anchor | None = None
    frame: int = -1


@dataclass(frozen=True, slots=True)
class PartConfig:
    """One agent's seat, ready to be built in any process."""

    agent: AgentConfig
    strip: Strip
    grid_beats: Fraction = Fraction(0)
    follows: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class EngineConfig:
    """Everything the engine knows before the stream opens.

    Attributes
    ----------
    spec, tempo_map, seed
        The stream, musical time as planned, the session's seed.
    parts
        The band.
    chart
        Chords of each bar, repeating.
    metronome, monitor, ceiling_db
        The mixer's settings.
    monitor_delay_frames
        How much later than it was played the input is monitored: at least lead and latency live, 0 from a file.
    first_bar
        Bar from which the agents play.
    longest_span_seconds
        Room for one clip.
    """

    spec: StreamSpec
    tempo_map: TempoMap
    seed: int
    parts: tuple[PartConfig, ...]
    chart: tuple[tuple[Chord, ...], ...] = ()
    metronome: Metronome | None = None
    monitor: Monitor | None = None
    monitor_delay_frames: int = 0
    ceiling_db: float = -0.3
    first_bar: int = 0
    longest_span_seconds: float = 8.0

    @property
    def history_frames(self) -> int:
        """Length of the rings of what was heard and played."""
        return round(max(HISTORY_SECONDS, 3 * self.longest_span_seconds) * self.spec.samplerate)

    @property
    def stem_channels(self) -> dict[str, int]:
        """Width of each stem."""
        return {part.agent.name: part.agent.channels for part in self.parts}

    def mixer(self) -> Mixer:
        """Return the mixer of this band; ``ValueError`` where a routing makes no sense."""
        strips = [part.strip for part in self.parts]
        return Mixer(self.spec, strips, self.metronome, self.monitor, ceiling_db=self.ceiling_db)


class Memory:
    """The rings the engine writes: what was heard, each stem, the mix. Readers are workers and the recorder.

    Attributes
    ----------
    inputs, mix
        What was heard and what was made of it.
    band
        The stems, as the engine writes them.
    stems
        Each of them by name, as everyone else reads it.
    """

    def __init__(self, inputs: AudioRing, band: StemRings, mix: AudioRing) -> None:
        self.inputs, self.band, self.mix = inputs, band, mix
        self.stems = band.rings

    @classmethod
    def private(cls, config: EngineConfig) -> Memory:
        """Return rings on this process's own memory."""
        frames = config.history_frames
        return cls(
            AudioRing.private(frames, config.spec.inputs),
            StemRings.private(frames, config.stem_channels),
            AudioRing.private(frames, config.spec.outputs),
        )

    @classmethod
    def shared(cls, arena: Arena, config: EngineConfig) -> Memory:
        """Return the rings laid out by :func:`engine_layout`."""
        return cls(arena.ring("input"), arena.stems("stem"), arena.ring("mix"))


class Engine:
    """Hears, schedules and mixes. Driven by one stream on one thread.

    Parameters
    ----------
    config
        What is known before the start.
    ports
        The way to each agent, in the order of ``config.parts``.
    memory
        Where it writes.
    log
        Takes the take's lines.
    timing
        When requests go out; by default as late as budgets allow.
    script
        Commands and the frames at which they count, in order: those of a replay or a test.
    take_command
        Returns the next command from the bridge, ``None`` if there is none.
    counters
        What is counted is added here; others may count in it too.
    anything_new
        Returns whether any port may have news since it was asked last: one quick look at all of them.
    """

    def __init__(
        self,
        config: EngineConfig,
        ports: Sequence[Port],
        memory: Memory,
        *,
        log: Log = lambda line: None,
        timing: Timing | None = None,
        script: Sequence[tuple[int, Command]] = (),
        take_command: Callable[[], Command | None] = lambda: None,
        counters: dict[str, int] | None = None,
        anything_new: Callable[[], bool] = lambda: True,
    ) -> None:
        spec = config.spec
        self.heard = 0
        self.mixed = 0
        self.played = -1
        self.stopped = False
        self.memory = memory
        # A change needs notice: two joins' time and the band's stagger, so that no span is already decided, and not
        # blocks, so that what is too late is too late for any block size.
        join = join_frames(spec.samplerate)
        notice_frames = spec.lead + 2 * join + stagger_frames(max(0, len(config.parts) - 1), join)
        self.transport = Transport(config.tempo_map, notice_frames)
        self.mixer = config.mixer()
        self.parts = _band(config, ports, log)
        self.stale: list[Part] = []  # whose ledger may have changed since it was told last
        self._leaders_first = sorted(self.parts, key=_following)
        # Who acts may have changed his own next event, and through his budget those of whom he follows.
        self._moved_by = [
            [index for index, other in enumerate(self._leaders_first) if other in (part, *_leaders(part))]
            for part in self._leaders_first
        ]
        self.counters = counters if counters is not None else {}
        self.counters |= {"dropped_commands": 0, "late_changes": 0, "input_nan_frames": 0}
        self.spec, self._log, self._take_command = spec, log, take_command
        self._timing = timing or LiveTiming(spec.lead, lambda: self.heard, lambda: self.played, spec.turn_frames)
        self._script = list(script)
        self._events = [0] * len(self.parts)  # when each of the leaders first has something to do next
        self._next_event = 0
        self._busy = False  # whether anybody acted in this block
        self._patience_frames = round(PATIENCE_SECONDS * spec.samplerate)
        self._anything_new, self._news_left = anything_new, True
        self._last_news, self._news_waits = -1, 0
        self._stop_at = NEVER
        self._farthest = FARTHEST_SECONDS * spec.samplerate
        self._led_bar = -NEVER  # first on the last anchor's grid
        self.resting = False  # whether the band does
        self._clicking = config.metronome is not None and config.metronome.on
        self.publish: Callable[[], None] = lambda: None  # called in every block that has time for it, and at the end
        self._published = 0
        self._monitor_delay = config.monitor_delay_frames if config.monitor is not None else -1
        self._voices = list(zip([part.voice for part in self.parts], memory.band.lanes(), strict=True))
        most = max(spec.blocksize, spec.turn_frames)
        self._dry = np.zeros((most, spec.inputs), np.float32)
        self._out = np.zeros((most, spec.outputs), np.float32)

    def hear(self, block: Block) -> None:
        """Take the next input, ``(frames, inputs)``; NaN and infinity become silence and are counted."""
        if not _surely_finite(block):
            sound = np.isfinite(block)
            self.counters["input_nan_frames"] += len(block) - int(np.count_nonzero(sound.all(axis=1)))
            block = np.where(sound, block, np.float32(0))
        self.memory.inputs.write(self.heard, block)
        self.heard += len(block)

    def mix(self, frames: int) -> Block:
        """Make the next ``frames`` of output, at most a block or a turn; the array is reused."""
        start, end = self.mixed, self.mixed + frames
        if self.stopped:
            return self._out[:0]
        self._take_commands()
        self._look_for_news(end)
        while self.mixed < end and not self.stopped:
            now = self.mixed
            cut = min(end, max(self._do_what_is_due(), now + 1), self._stop_at)
            self._render(now, cut)
            self.mixed = cut
            self.stopped = cut >= self._stop_at
        self._mix_down(start, self.mixed)
        if self.stopped:
            self._log({"type": "counters", "frame": self.mixed, **self.summary()})
            self.publish()
        else:
            self._do_ahead(self.mixed - start)
        return self._out[: self.mixed - start]

    def _do_ahead(self, frames: int) -> None:
        """Make some of the crossfades to come, as those of a downbeat would fall together; else, and if nobody acted
        in this block, take a step of telling people how things stand.
        """
        busy, self._busy = self._busy, False
        left = _shares(frames)
        for voice, _ in self._voices:
            if voice.prepare(self.mixed):
                busy, left = True, left - 1
                if not left:
                    break
        if not busy or self.mixed > self._published + self._patience_frames:
            self._published = self.mixed
            self.publish()

    def monitored(self, start: int, into: Block) -> Block | None:
        """Write the input as it is monitored from frame ``start`` on ``into`` an array, and return that; ``None`` if
        it is not monitored.
        """
        if self._monitor_delay < 0:
            return None
        self.memory.inputs.read_into(start - self._monitor_delay, into)
        return into

    def summary(self) -> dict[str, object]:
        """Return everything that was counted."""
        return {
            **self.counters,
            "agent_faults": sum(part.faults for part in self.parts),
            "nan_frames": int(self.mixer.nan_frames.sum()),
            "limited_frames": self.mixer.limited_frames,
        }

    def _take_commands(self) -> None:
        for _ in range(COMMANDS_A_BLOCK):
            command = self._take_command()
            if command is None:
                return
            if command.frame > self.mixed + self._farthest:
                self.counters["dropped_commands"] += 1
            elif command.frame > self.mixed and len(self._script) < COMMANDS_AHEAD:
                insort(self._script, (command.frame, command), key=_when)
                self._next_event = min(self._next_event, command.frame)
            else:
                self._do(command)

    def _look_for_news(self, end: int) -> None:
        """Let some of those who have news look at it, in turn, unless this block, up to frame ``end``, is taken."""
        if not (self._anything_new() or self._news_left):
            return
        news = self._examined(EXAMINED_SAMPLES * (end - self.mixed))
        if not news:
            return
        if self._next_event < end and self._news_waits < NEWS_WAITS_TURNS:
            self._news_waits += 1
            return
        for index in news[: _shares(end - self.mixed)]:
            self._last_news, self._news_waits = index, 0
            self._events[index] = self._next_event = self.mixed

    def _examined(self, samples: int) -> list[int]:
        """Look at up to so many samples of the answers that are in, one answer after the other; return who of the
        band has news that is ready to be taken.
        """
        band, news = self._leaders_first, []
        self._news_left = False  # unless somebody has some: who looks at it may leave some for the next time
        for index in (*range(self._last_news + 1, len(band)), *range(self._last_news + 1)):
            if not band[index].port.ready():
                continue
            self._news_left = True
            if samples >= 0:
                samples = band[index].port.examine(samples)
                if samples >= 0:
                    news.append(index)
        return news

    def _do_what_is_due(self) -> int:
        """Do everything due at the mixing cursor; return the frame of the next thing."""
        now = self.mixed
        if now < self._next_event:
            return self._next_event
        while self._script and self._script[0][0] <= now:
            self._do(self._script.pop(0)[1])
        tempo_map = self.transport.map  # read once: everything due at this frame sees one map
        waiting = {index for index, event in enumerate(self._events) if event <= now}
        while waiting:
            acted = [
                index for index in sorted(waiting) if self._leaders_first[index].act(now, tempo_map, self._timing)
            ]
            self._busy = self._busy or bool(acted)
            moved = waiting.union(*(self._moved_by[index] for index in acted))
            for index in moved:
                part = self._leaders_first[index]
                self._events[index] = part.next_event(tempo_map, self._timing)
                if part not in self.stale:
                    self.stale.append(part)
            again = {index for index in moved if self._events[index] <= now}
            waiting = again.union(acted) if acted else set()  # who acted looks once more: an answer may have come
        self._next_event = min([self._script[0][0] if self._script else NEVER, *self._events])
        return self._next_event

    def _render(self, start: int, end: int) -> None:
        """Make every stem's sound, in its place in the ring."""
        band = self.memory.band
        band.begin(end)
        while start < end:
            at = start % band.capacity
            frames = min(end - start, band.capacity - at)
            for voice, lane in self._voices:
                voice.render(start, lane, at, frames)
            start += frames
        band.finish(end)

    def _mix_down(self, start: int, end: int) -> None:
        """Mix what was made of the stems."""
        memory, at = self.memory, start
        while at < end:
            place = at % memory.band.capacity
            frames = min(end - at, memory.band.capacity - place)
            stems, out = memory.band.sound[place : place + frames], self._out[at - start : at - start + frames]
            self.mixer.mix(at, frames, stems, self.monitored(at, self._dry[:frames]), self.transport.map, out)
            at += frames
        memory.mix.write(start, self._out[: end - start])

    def _do(self, command: Command) -> None:
        """Carry out one command at the mixing cursor and write it down; what makes no sense is counted."""
        now = self.mixed
        try:
            told = encode(command)  # what cannot be written down cannot be played again
            self._carry_out(command, now)
        except Exception as error:  # noqa: BLE001 - whatever a command from outside says, the music goes on
            self.counters["dropped_commands"] += 1
            self._log({"type": "dropped", "frame": now, "command": _told(command), "why": str(error)})
        else:
            self._log({"type": "command", "frame": now, "command": told})
        self._events = [now] * len(self.parts)  # whatever it was, everyone looks anew
        self._next_event = now

    def _carry_out(self, command: Command, now: int) -> None:
        if command.do == "stop":
            self._stop(now, command.name == "bar")
        elif command.do == "tempo" and command.change is not None:
            self._change_tempo(command.change, now)
        elif command.do == "locate" and command.locate is not None:
            self._locate(command.locate, now)
        elif command.do == "anchor" and command.anchor is not None:
            self._anchor(command.anchor, now)
        elif command.do == "rest":
            self._rest(bool(command.value), now)
        elif command.do == "action":
            self._part(command.target).press(Action(now, command.target, command.name, command.value))
        elif command.do == "grid":
            self._part(command.target).set_grid(_grid(command.name))
        elif command.do == "quarantine":
            self._part(command.target).quarantine()
        elif command.do == "lighter":
            self._part(command.target)  # who it is: what it plays with is its worker's matter, and the take's to tell
        else:
            self._set_fader(command, now)

    def _part(self, name: str) -> Part:
        for part in self.parts:
            if part.name == name:
                return part
        raise ValueError(f"no agent is called {name!r}; there are {', '.join(part.name for part in self.parts)}")

    def _stop(self, now: int, at_bar: bool) -> None:
        """Settle the end, and the fade before it."""
        fade_frames, tempo_map = round(STOP_FADE_SECONDS * self.spec.samplerate), self.transport.map
        end = tempo_map.bar_frame(tempo_map.moment(now).bar + 1) if at_bar else now
        self._stop_at = min(self._stop_at, max(end, now + fade_frames))
        for name in self.mixer.names:
            self.mixer.set_mute(name, True, self._stop_at - fade_frames)

    def _set_fader(self, command: Command, now: int) -> None:
        levels = {"gain": self.mixer.set_gain, "pan": self.mixer.set_pan}
        switches = {"mute": self.mixer.set_mute, "solo": self.mixer.set_solo}
        if command.do == "metronome":
            self._clicking = bool(command.value)
            self.mixer.set_metronome(self._clicking and not self.resting, now)
        elif command.do in levels:
            levels[command.do](command.target, command.value, now)
        elif command.do in switches:
            switches[command.do](command.target, bool(command.value), now)
        else:
            raise ValueError(f"{command.do!r} is no command, or its details are missing")

    def _change_tempo(self, change: TempoChange, now: int) -> None:
        if change.tempo is not None:
            change = replace(change, tempo=as_tempo(change.tempo))
        if not (0 <= change.ramp_beats <= LONGEST_RAMP_BEATS and 0 <= change.beat < Meter(32, 1).beats):
            raise ValueError(f"a tempo change on beat {change.beat} of a bar, over {change.ramp_beats} beats")
        done = self.transport.announce(change, now)
        self.counters["late_changes"] += done != change
        self._retime(now)
        place = self.transport.map.frame_at(self.transport.map.downbeat(done.bar) + done.beat)
        self._log({"type": "tempo", "frame": place, "announced": now, "late": done != change, **encode(done)})

    def _locate(self, locate: Locate, now: int) -> None:
        done = self.transport.locate(locate, now)
        self.counters["late_changes"] += done != locate
        self._retime(now)
        place = self.transport.map.bar_frame(done.bar)
        self._log({"type": "locate", "frame": place, "announced": now, "late": done != locate, **encode(done)})

    def _anchor(self, anchor: Anchor, now: int) -> None:
        bar, song_bar, earliest = self.transport.anchor(anchor, now)
        self._led_bar = bar
        self._retime(now)
        place = self.transport.map.bar_frame(bar)
        self._log({"type": "anchor", "frame": place, "announced": now, "earliest": earliest, "bar": bar,
                   "song_bar": song_bar, "anchor": encode(anchor)})  # fmt: skip

    def _rest(self, resting: bool, now: int) -> None:
        """Let the band rest, and the metronome with it, or play again."""
        if not resting and not self.resting:
            return  # who plays, plays on
        here = self.transport.map.moment(now)
        # In a bar that is bent onto another's grid nobody plays.
        bar = max(here.bar + (here.beat > 0), self._led_bar)
        for part in self.parts:
            part.rest(now, NEVER if resting else bar)
        if self.mixer.has_metronome:
            self.mixer.set_metronome(self._clicking and not resting, now)
        self.resting = resting

    def _retime(self, now: int) -> None:
        for part in self.parts:
            part.retime(self.transport.map, now)


def _band(config: EngineConfig, ports: Sequence[Port], log: Log) -> list[Part]:
    """Build every agent's part."""
    join = join_frames(config.spec.samplerate)
    parts = {
        seat.agent.name: Part(
            seat.agent.name, port, Voice(seat.agent.channels, join), grid=seat.grid_beats,
            first_bar=config.first_bar, seed=config.seed, chart=config.chart, log=log, order=order,
        )
        for order, (seat, port) in enumerate(zip(config.parts, ports, strict=True))
    }  # fmt: skip
    for seat in config.parts:
        part = parts[seat.agent.name]
        part.follows = tuple(parts[name] for name in seat.follows)
        part.followers = tuple(parts[other.agent.name] for other in config.parts if part.name in other.follows)
    return list(parts.values())


def _when(entry: tuple[int, Command]) -> int:
    return entry[0]


def told_grid(told: Mapping[str, int], samplerate: int) -> Timeline:
    """Return what :data:`GRID_FIELDS` say as a timeline in bars and beats of the song, over session frames."""
    beat = Fraction(told["beat_above"], told["beat_below"] or 1)
    frame = told["frame"] + Fraction(told["fraction"], 1 << 32)
    tempo = Fraction(told["tempo_above"], told["tempo_below"]) if told["tempo_above"] else Fraction(120)
    meter = Meter(told["count"], told["unit"]) if told["count"] else Meter()
    return Timeline(samplerate, tempo, meter, frame, beat, told["song_bar"], beat)


def _shares(frames: int) -> int:
    """Return for how many agents something is done while so many frames are mixed."""
    return max(1, frames // SHARE_FRAMES)


def _told(command: Command) -> object:
    """Return what a take can hold of a command that was refused."""
    try:
        return encode(command)
    except ValueError:
        return {"do": command.do, "target": command.target}


def _following(part: Part) -> int:
    """Return how many stand before a part in the row of those who follow each other."""
    return 1 + max((_following(leader) for leader in part.follows), default=0)


def _leaders(part: Part) -> list[Part]:
    """Return all whom a part follows, and whom those follow."""
    return [found for leader in part.follows for found in (leader, *_leaders(leader))]


def _grid(text: str) -> Fraction:
    """Read the length of a span from outside; what would hold the engine up is refused."""
    longest = Meter(32, 1).beats
    if _BEATS.fullmatch(text) and (Fraction(text) == 0 or SHORTEST_GRID <= Fraction(text) <= longest):
        return Fraction(text)
    raise ValueError(f"a grid of {text!r} beats; it is 0 (a bar) or {SHORTEST_GRID} to {longest}, whole or as n/d")


def _surely_finite(block: Block) -> bool:
    """Whether no sample is NaN or infinite; False may also mean that they are very large."""
    if block.size > LONGEST_DOT_SAMPLES:
        return is_finite(block)
    return math.isfinite(np.vdot(block, block))


# The engine as a process


def engine_layout(config: EngineConfig) -> Layout:
    """Return every shared array that the engine, its workers and the recorder meet in."""
    frames, rate = config.history_frames, config.spec.samplerate
    layout: Layout = {
        **ring_layout("input", frames, config.spec.inputs),
        **ring_layout("mix", frames, config.spec.outputs),
        **record_layout("commands", COMMAND_RECORDS, COMMAND_BYTES),
        **record_layout("log", LOG_RECORDS, LOG_BYTES),
        **stems_layout("stem", frames, config.stem_channels),
        "ledger": (np.dtype("i8"), (len(config.parts), len(LEDGER))),
        **status_layout("engine.status", {"allocated_blocks": "i8"}),
        **status_layout("engine.grid", GRID_FIELDS),
        "place": (np.dtype("i8"), (4,)),
    }
    for part in config.parts:
        layout |= worker_layout(part.agent, config.spec, round(config.longest_span_seconds * rate))
    return layout


class LogQueue:
    """The engine's end of the way to the recorder: lines as JSON records, dropped and counted when it is full."""

    def __init__(self, records: RecordRing, counters: dict[str, int]) -> None:
        self._records, self._counters = records, counters

    def __call__(self, line: dict[str, object]) -> None:
        """Post one line; one that cannot be written is dropped too."""
        try:
            posted = self._records.post(to_bytes(line))
        except ValueError:  # a number that JSON has not, say: nothing of ours, but nothing to die for
            posted = False
        if not posted:
            self._counters["dropped_log_lines"] += 1


class News:
    """Sees whether any worker has answered or was replaced: the counters that move then, of all agents in one look.

    A worker that is ready to serve moves none of them; for that everyone is asked now and then.
    """

    def __init__(self, arena: Arena, names: Sequence[str]) -> None:
        answers = [numbers(arena[f"{name}.replies.index"]) for name in names]
        seats = [numbers(arena[f"{name}.seat"][ON_DUTY:]) for name in names]
        self._counters = answers + seats
        self._seen: list[int] = []
        self._calls = 0

    def __call__(self) -> bool:
        """Whether anything has moved since the last call."""
        self._calls += 1
        seen = [counter[0] for counter in self._counters]
        if seen == self._seen:
            return self._calls % NEWS_ASKED_TURNS == 0
        self._seen = seen
        return True


class CommandQueue:
    """The engine's end of the way from the bridge. A bridge that has died says stop, on the next bar line."""

    def __init__(self, records: RecordRing, counters: dict[str, int]) -> None:
        self._records, self._counters = records, counters
        self._parent = multiprocessing.parent_process()
        self._orphaned = False

    def look(self) -> None:
        """See whether the bridge is still there: a system call, so not for every block."""
        if self._parent is not None and not self._orphaned and not self._parent.is_alive():
            self._orphaned, self._parent = True, None

    def __call__(self) -> Command | None:
        """Return the next command, ``None`` if there is none; what is no command is counted."""
        if self._orphaned:
            self._orphaned = False
            return Command("stop", name="bar")  # nobody is left to say so
        record = self._records.take()
        if record is None:
            return None
        try:
            return from_bytes(Command, record)
        except ValueError:
            self._counters["dropped_commands"] += 1
            return None


def shared_engine(arena: Arena, config: EngineConfig, wakes: Sequence[Semaphore]) -> Engine:
    """Build the engine on shared memory, with a port to each worker."""
    for kind in (Command, SpanRequest, Origin):
        field_names(kind)  # how a type travels is found out the first time, which takes milliseconds
    counters = {"dropped_log_lines": 0, "dropped_commands": 0}
    log, commands = LogQueue(arena.records("log"), counters), CommandQueue(arena.records("commands"), counters)
    ports = [
        ProcessPort(part.agent, arena, wake, config.spec.samplerate, log, config.spec.turn_frames)
        for part, wake in zip(config.parts, wakes, strict=True)
    ]
    engine = Engine(
        config, ports, Memory.shared(arena, config), log=log, take_command=commands, counters=counters,
        anything_new=News(arena, [part.agent.name for part in config.parts]),
    )  # fmt: skip
    publisher = Publisher(engine, arena, commands.look)
    engine.publish = publisher.step
    return engine


def settle() -> None:
    """Bring this interpreter's memory to rest: nothing is collected any more, nor is there anything left to stock up.

    The interpreter keeps up to 2,000 dead tuples of each length below 20 for the next ones. Filling that stock now
    costs 5 MB and a millisecond or two, and nothing grows later.
    """
    gc.collect()
    for length in range(1, TUPLE_LENGTHS):
        stock = [tuple(range(length)) for _ in range(TUPLES_KEPT)]
        del stock
    gc.freeze()
    gc.disable()


def run_engine(handle: ArenaHandle, config: EngineConfig, wakes: Sequence[Semaphore], device: bool) -> None:
    """Be the engine's process: build everything, then serve the stream until the session stops.

    Parameters
    ----------
    handle
        Memory laid out by :func:`engine_layout` and :func:`realtime.io.layout`.
    config
        The session's.
    wakes
        One wake-up per worker.
    device
        Whether there is a device process; without one the wall clock drives.
    """
    from realtime.rights import ENGINE_PRIORITY, use_realtime
    from realtime.stream import DeviceStream, NullStream

    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the bridge's to answer
    arena = Arena.attach(handle)
    engine = shared_engine(arena, config, wakes)
    status = arena.status("stream.status")
    stream = DeviceStream(config.spec, arena) if device else NullStream(config.spec, status=status)
    settle()
    use_realtime(ENGINE_PRIORITY)
    stream.run(engine)
    Publisher(engine, arena, lambda: None).all()


class Publisher:
    """Puts what people look at into shared memory: place and ledger. A step at a time, as none may take long.

    Parameters
    ----------
    engine, arena
        What is told, and where: laid out by :func:`engine_layout`.
    look
        Is called once a round, for what takes a system call.
    """

    def __init__(self, engine: Engine, arena: Arena, look: Callable[[], None]) -> None:
        self._engine, self._look_out = engine, look
        self._place: npt.NDArray[np.int64] = arena["place"]
        self._ledger: npt.NDArray[np.int64] = arena["ledger"]
        self._next_count = 0
        self._status, self._grid = arena.status("engine.status"), arena.status("engine.grid")
        self._row = {part.name: row for row, part in enumerate(engine.parts)}
        self._steps = [self._look, self._tell_place]
        self._next, self._next_frame, self._of_parts = 0, 0, False

    def step(self) -> None:
        """Tell how one of those who acted stands, or, in turn with that, the place; all of it at the end."""
        engine = self._engine
        self._of_parts = bool(engine.stale) and not self._of_parts
        if engine.stopped:
            self.all()
        elif self._of_parts:
            self._tell(engine.stale.pop(0))
        elif engine.mixed >= self._next_frame and self._steps[self._next]():
            self._next_frame = engine.mixed + engine.spec.samplerate // PUBLISH_HZ // len(self._steps)
            self._next = (self._next + 1) % len(self._steps)

    def all(self) -> None:
        """Tell everything now; that the engine has stopped last of all."""
        for step in self._steps:
            while not step():
                pass
        for part in self._engine.parts:
            self._tell(part)
        self._place[3] = int(self._engine.stopped)

    # Each step returns whether it is done; else it wants another turn soon.

    def _look(self) -> bool:
        self._look_out()
        if self._engine.mixed >= self._next_count:
            self._next_count = self._engine.mixed + self._engine.spec.samplerate
            self._status.publish(allocated_blocks=sys.getallocatedblocks())
        return True

    def _tell_place(self) -> bool:
        engine, tempo_map = self._engine, self._engine.transport.map
        moment = tempo_map.moment(engine.mixed)
        self._place[:3] = (moment.frame, moment.bar, int(moment.beat))
        start = tempo_map.downbeat(moment.bar)  # by up to half a frame later than the frame it is rounded to
        line = tempo_map.song_at(max(Fraction(engine.mixed), tempo_map.at_beat(start).position(start)))
        song_bar = tempo_map.song_bar(moment.bar)
        beat = line.downbeat(song_bar)
        whole, rest = divmod(line.position(beat), 1)
        self._grid.publish(
            frame=whole, fraction=int(rest * (1 << 32)), beat_above=beat.numerator, beat_below=beat.denominator,
            tempo_above=line.tempo.numerator, tempo_below=line.tempo.denominator, count=line.meter.count,
            unit=line.meter.unit, bar=moment.bar, song_bar=song_bar, resting=engine.resting, mixed=engine.mixed,
        )  # fmt: skip
        return True

    def _tell(self, part: Part) -> None:
        self._ledger[self._row[part.name]] = part.ledger()
