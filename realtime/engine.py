"""The loop: hear, do what is due, mix. One loop for live, offline and replay; a stream drives it.

Two cursors run along the session's clock: ``heard``, the input taken so far, and ``mixed``, the output made so far,
which is ``lead`` frames ahead of the loudspeaker. Blocks are cut where something is due, so what comes out does not
depend on how it was asked for. Nothing here waits, opens a file or raises once it rolls: what goes wrong is counted
and written in the take.
"""

from __future__ import annotations

import gc
import json
import multiprocessing
import signal
from collections.abc import Callable, Sequence
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
    join_frames,
    record_layout,
    ring_layout,
)
from realtime.clock import Meter, TempoChange, TempoMap, Transport, as_tempo
from realtime.messages import encode, field_names, from_bytes
from realtime.mixer import Metronome, Mixer, Monitor, Strip
from realtime.protocols import Action, Block, Chord, Log, Origin, SpanRequest, StreamSpec
from realtime.scheduler import LiveTiming, Part, Port, Timing
from realtime.voice import NEVER, Voice
from realtime.worker import RECORD_BYTES, AgentConfig, ProcessPort, worker_layout

HISTORY_SECONDS = 60
"""What agents can look back on at least; three of the longest bars if that is more."""
LONGEST_RAMP_BEATS = 128
"""Of a change that is announced while the music plays: every beat of it costs the engine time."""
STOP_FADE_SECONDS = 0.1
LOG_RECORDS, LOG_BYTES = 512, RECORD_BYTES + 1024  # what a worker can answer fits into a line about it
COMMAND_RECORDS, COMMAND_BYTES = 256, 1024


@dataclass(frozen=True, slots=True)
class Command:
    """Something the bridge lets through, checked and typed.

    ``do`` is ``"stop"`` (at once, or on the next bar line where ``name`` is ``"bar"``), ``"tempo"`` (with
    ``change``), ``"action"`` (``target`` is the agent, ``name`` what it declares), ``"metronome"`` (0 or 1), or a
    fader of stem ``target``: ``"gain"`` (dB), ``"pan"`` (-1 to 1), ``"mute"``, ``"solo"`` (0 or 1).
    """

    do: str
    target: str = ""
    name: str = ""
    value: float = 0.0
    change: TempoChange | None = None


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

    def mixer(self) -> Mixer:
        """Return the mixer of this band; ``ValueError`` where a routing makes no sense."""
        strips = [part.strip for part in self.parts]
        return Mixer(self.spec, strips, self.metronome, self.monitor, ceiling_db=self.ceiling_db)


class Memory:
    """The rings the engine writes: what was heard, each stem, the mix. Readers are workers and the recorder."""

    def __init__(self, inputs: AudioRing, stems: dict[str, AudioRing], mix: AudioRing) -> None:
        self.inputs, self.stems, self.mix = inputs, stems, mix

    @classmethod
    def private(cls, config: EngineConfig) -> Memory:
        """Return rings on this process's own memory."""
        frames = config.history_frames
        stems = {part.agent.name: AudioRing.private(frames, part.agent.channels) for part in config.parts}
        return cls(
            AudioRing.private(frames, config.spec.inputs), stems, AudioRing.private(frames, config.spec.outputs)
        )

    @classmethod
    def shared(cls, arena: Arena, config: EngineConfig) -> Memory:
        """Return the rings laid out by :func:`engine_layout`."""
        stems = {part.agent.name: arena.ring(f"stem.{part.agent.name}") for part in config.parts}
        return cls(arena.ring("input"), stems, arena.ring("mix"))


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
    ) -> None:
        spec = config.spec
        self.heard = 0
        self.mixed = 0
        self.stopped = False
        self.memory = memory
        # A change needs notice: two joins' time, so that no span is already decided, and not blocks, so that what is
        # too late is too late for any block size.
        self.transport = Transport(config.tempo_map, spec.lead + 2 * join_frames(spec.samplerate))
        self.mixer = config.mixer()
        self.parts = [self._part(config, part, port, log) for part, port in zip(config.parts, ports, strict=True)]
        by_name = {part.name: part for part in self.parts}
        for part, seat in zip(self.parts, config.parts, strict=True):
            part.follows = tuple(by_name[name] for name in seat.follows)
            part.followers = tuple(by_name[other.agent.name] for other in config.parts if part.name in other.follows)
        self._leaders_first = sorted(self.parts, key=_following)
        self.counters = counters if counters is not None else {}
        self.counters |= {"dropped_commands": 0, "late_changes": 0, "input_nan_frames": 0}
        self.spec, self._log, self._take_command = spec, log, take_command
        self._timing = timing or LiveTiming(spec.lead, lambda: self.heard)
        self._script = list(script)
        self._next_event = 0
        self._stop_at = NEVER
        self.publish: Callable[[], None] = lambda: None  # called about fifty times a second
        self._publish_at = 0
        self._monitor_delay = config.monitor_delay_frames if config.monitor is not None else -1
        self._stems = [np.zeros((spec.blocksize, part.agent.channels), np.float32) for part in config.parts]
        self._dry = np.zeros((spec.blocksize, spec.inputs), np.float32)
        self._out = np.zeros((spec.blocksize, spec.outputs), np.float32)

    @staticmethod
    def _part(config: EngineConfig, seat: PartConfig, port: Port, log: Log) -> Part:
        voice = Voice(seat.agent.channels, join_frames(config.spec.samplerate))
        return Part(
            seat.agent.name, port, voice, grid=seat.grid_beats, first_bar=config.first_bar, seed=config.seed,
            chart=config.chart, log=log,
        )  # fmt: skip

    def hear(self, block: Block) -> None:
        """Take the next input, ``(frames, inputs)``; NaN and infinity become silence and are counted."""
        sound = np.isfinite(block)
        if not sound.all():
            self.counters["input_nan_frames"] += len(block) - int(np.count_nonzero(sound.all(axis=1)))
            block = np.where(sound, block, np.float32(0))
        self.memory.inputs.write(self.heard, block)
        self.heard += len(block)

    def mix(self, frames: int) -> Block:
        """Make the next ``frames`` (at most a block) of output; the array is reused."""
        start, end = self.mixed, self.mixed + frames
        while (command := self._take_command()) is not None:
            self._do(command)
        while self.mixed < end:
            cut = min(end, max(self._do_what_is_due(), self.mixed + 1), self._stop_at)
            self._render(self.mixed, cut, self._out[self.mixed - start : cut - start])
            self.mixed = cut
            if self.mixed >= self._stop_at:
                self.stopped = True
                self._log({"type": "counters", "frame": self.mixed, **self.summary()})
                self._out[self.mixed - start : frames] = 0
                break
        if self.mixed >= self._publish_at or self.stopped:
            self._publish_at = self.mixed + self.spec.samplerate // 50
            self.publish()
        return self._out[: self.mixed - start]

    def summary(self) -> dict[str, object]:
        """Return everything that was counted."""
        return {
            **self.counters,
            "agent_faults": sum(part.faults for part in self.parts),
            "nan_frames": int(self.mixer.nan_frames.sum()),
            "limited_frames": self.mixer.limited_frames,
        }

    def _do_what_is_due(self) -> int:
        """Do everything due at the mixing cursor; return the frame of the next thing."""
        now = self.mixed
        if now < self._next_event and not any(part.port.ready() for part in self.parts):
            return self._next_event
        while self._script and self._script[0][0] <= now:
            self._do(self._script.pop(0)[1])
        tempo_map = self.transport.map  # read once: everything due at this frame sees one map
        while any([part.act(now, tempo_map, self._timing) for part in self._leaders_first]):
            pass
        script = self._script[0][0] if self._script else NEVER
        self._next_event = min([script, *(part.next_event(tempo_map, self._timing) for part in self.parts)])
        return self._next_event

    def _render(self, start: int, end: int, out: Block) -> None:
        frames = end - start
        stems = []
        for part, memory in zip(self.parts, self._stems, strict=True):
            stem = memory[:frames]
            part.voice.render(start, stem)
            self.memory.stems[part.name].write(start, stem)
            stems.append(stem)
        dry = None
        if self._monitor_delay >= 0:
            dry = self._dry[:frames]
            self.memory.inputs.read_into(start - self._monitor_delay, dry)
        self.mixer.mix(start, frames, stems, dry, self.transport.map, out)
        self.memory.mix.write(start, out)

    def _do(self, command: Command) -> None:
        """Carry out one command at the mixing cursor and write it down; what makes no sense is counted."""
        now = self.mixed
        self._next_event = now
        try:
            if command.do == "stop":
                self._stop(now, command.name == "bar")
            elif command.do == "tempo" and command.change is not None:
                self._change_tempo(command.change, now)
            elif command.do == "action":
                part = next(part for part in self.parts if part.name == command.target)
                part.press(Action(now, command.target, command.name, command.value))
            else:
                self._set_fader(command, now)
        except (KeyError, StopIteration, ValueError) as error:
            self.counters["dropped_commands"] += 1
            self._log({"type": "dropped", "frame": now, "command": encode(command), "why": str(error)})
            return
        self._log({"type": "command", "frame": now, "command": encode(command)})

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
            self.mixer.set_metronome(bool(command.value), now)
        elif command.do in levels:
            levels[command.do](command.target, command.value, now)
        else:
            switches[command.do](command.target, bool(command.value), now)

    def _change_tempo(self, change: TempoChange, now: int) -> None:
        if change.tempo is not None:
            change = replace(change, tempo=as_tempo(change.tempo))
        if not (0 <= change.ramp_beats <= LONGEST_RAMP_BEATS and 0 <= change.beat < Meter(32, 1).beats):
            raise ValueError(f"a tempo change on beat {change.beat} of a bar, over {change.ramp_beats} beats")
        done = self.transport.announce(change, now)
        self.counters["late_changes"] += done != change
        for part in self.parts:
            part.retime(self.transport.map, now)
        place = self.transport.map.frame_at(self.transport.map.downbeat(done.bar) + done.beat)
        self._log({"type": "tempo", "frame": place, "announced": now, "late": done != change, **encode(done)})


def _following(part: Part) -> int:
    """Return how many stand before a part in the row of those who follow each other."""
    return 1 + max((_following(leader) for leader in part.follows), default=0)


# The engine as a process


def engine_layout(config: EngineConfig) -> Layout:
    """Return every shared array that the engine, its workers and the recorder meet in."""
    frames, rate = config.history_frames, config.spec.samplerate
    layout: Layout = {
        **ring_layout("input", frames, config.spec.inputs),
        **ring_layout("mix", frames, config.spec.outputs),
        **record_layout("commands", COMMAND_RECORDS, COMMAND_BYTES),
        **record_layout("log", LOG_RECORDS, LOG_BYTES),
        "meters": (np.dtype("f4"), (len(config.parts) + 2 + config.spec.outputs, 2)),  # 2: monitor, metronome
        "rungs": (np.dtype("i8"), (len(config.parts), 8)),
        "place": (np.dtype("i8"), (4,)),
    }
    for part in config.parts:
        layout |= ring_layout(f"stem.{part.agent.name}", frames, part.agent.channels)
        layout |= worker_layout(part.agent, config.spec, round(config.longest_span_seconds * rate))
    return layout


class LogQueue:
    """The engine's end of the way to the recorder: lines as JSON records, dropped and counted when it is full."""

    def __init__(self, records: RecordRing, counters: dict[str, int]) -> None:
        self._records, self._counters = records, counters

    def __call__(self, line: dict[str, object]) -> None:
        """Post one line."""
        record = json.dumps(line, default=encode, ensure_ascii=False, separators=(",", ":"))
        if not self._records.post(record.encode()):
            self._counters["dropped_log_lines"] += 1


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
        ProcessPort(part.agent, arena, wake, config.spec.samplerate, log)
        for part, wake in zip(config.parts, wakes, strict=True)
    ]
    engine = Engine(config, ports, Memory.shared(arena, config), log=log, take_command=commands, counters=counters)
    publish = Publisher(engine, arena)

    def about_fifty_times_a_second() -> None:
        commands.look()
        publish()

    engine.publish = about_fifty_times_a_second
    return engine


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
    from realtime.io import ENGINE_PRIORITY, use_realtime
    from realtime.stream import DeviceStream, NullStream

    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the bridge's to answer
    arena = Arena.attach(handle)
    engine = shared_engine(arena, config, wakes)
    status = arena.status("stream.status")
    stream = DeviceStream(config.spec, arena) if device else NullStream(config.spec, status=status)
    gc.collect()
    gc.freeze()
    gc.disable()
    use_realtime(ENGINE_PRIORITY)
    stream.run(engine)
    engine.publish()


class Publisher:
    """Puts what people look at into shared memory, once per call: place, rungs, meters."""

    def __init__(self, engine: Engine, arena: Arena) -> None:
        self._engine = engine
        self._place: npt.NDArray[np.int64] = arena["place"]
        self._rungs: npt.NDArray[np.int64] = arena["rungs"]
        self._meters: npt.NDArray[np.float32] = arena["meters"]

    def __call__(self) -> None:
        """Publish now."""
        moment = self._engine.transport.map.moment(self._engine.mixed)
        self._place[:3] = (moment.frame, moment.bar, int(moment.beat))
        for row, part in zip(self._rungs, self._engine.parts, strict=True):
            for rung, count in part.rungs.items():
                row[rung] = count
            row[6], row[7] = part.current.rung if part.current else -1, part.faults
        meters = self._engine.mixer.meters()
        self._meters[: len(meters)] = meters
        self._place[3] = int(self._engine.stopped)
