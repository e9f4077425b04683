"""Reads a session, builds everything and connects it: rendered from a file, replayed from a take, or live.

Only this file builds what holds processes. :func:`render` and :func:`replay` run the engine here on a virtual clock;
:class:`Live` spawns the device process, the engine, the recorder and a worker per agent around one piece of shared
memory, and takes all of it down again.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import shutil
import time
import tomllib
from collections.abc import Callable
from dataclasses import dataclass, replace
from importlib.metadata import PackageNotFoundError
from importlib.metadata import version as installed_version
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

from bridge.children import Children, signals_held
from bridge.session import MAX_BYTES, AgentTable, Session
from bridge.tap import RecorderConfig, Tap, new_take, recorder_layout, run_recorder, take_header
from realtime.engine import Command, Engine, EngineConfig, Memory, PartConfig
from realtime.messages import decode, encode, to_bytes
from realtime.mixer import Metronome, Monitor, Strip
from realtime.protocols import Block, StreamSpec
from realtime.worker import (
    STATE_ARMED,
    STATE_FAILED,
    STATE_LOADING,
    AgentConfig,
    AgentRunner,
    InlinePort,
    RingHeard,
    build_agent,
)

if TYPE_CHECKING:
    from bridge.recorder import TakeReader
    from realtime.buffers import Layout
    from realtime.scheduler import Timing

OFFLINE_LEAD = 1024
OFFLINE_BLOCKSIZE = 1024
OFFLINE_BUDGET_SECONDS = 0.25
"""What an agent is held to take where nothing is measured: so a render does not depend on the machine."""
LONGEST_SPAN_SECONDS = 8.0
LEAST_LEAD_BLOCKS = 4
"""With fewer the device's ring would run empty between two turns."""
RESAMPLED_LEAD = 1536
"""What held where the device runs at another rate than the session (44.1 against 48 kHz)."""
FIRST_SOUND_SECONDS = 1.0
CLOSING_SECONDS = 10.0

Progress = Callable[[int, int], None]
"""Takes frames done and frames in all."""


def version() -> str:
    """Return sideman's version."""
    try:
        return installed_version("sideman")
    except PackageNotFoundError:
        return "unknown"


# From a session to what the engine knows


def engine_config(session: Session, spec: StreamSpec, *, live: bool) -> EngineConfig:
    """Return everything the engine has to know.

    Live, the clock starts with the count-in, or so many seconds before the first downbeat as the session says; a file
    brings its own downbeat.
    """
    rate = spec.samplerate
    downbeat = session.downbeat_frame(rate)
    if live and not downbeat:
        downbeat = session.count_in_frame(rate)
    monitor = Monitor(gain_db=session.mixer.monitor_gain_db, outputs=session.routed(session.mixer.monitor_outputs))
    metronome = Metronome(
        on=session.metronome.on, gain_db=session.metronome.gain_db, outputs=session.routed(session.metronome.outputs)
    )
    tempo_map = session.tempo_map(rate, downbeat)
    longest = max(float(timeline.meter.beats * 60 / timeline.tempo) for timeline in tempo_map.timelines)
    config = EngineConfig(
        spec=spec,
        tempo_map=tempo_map,
        seed=session.session.seed,
        parts=tuple(part_config(session, agent) for agent in session.agents),
        chart=session.chart(),
        metronome=metronome,
        monitor=monitor if session.mixer.monitor else None,
        monitor_delay_frames=spec.lead + spec.latency + 2 * spec.blocksize if live else 0,
        ceiling_db=session.mixer.ceiling_db,
        first_bar=max(0, tempo_map.moment(0).bar),
        longest_span_seconds=max(LONGEST_SPAN_SECONDS, 1.25 * longest),
    )
    config.mixer()  # what cannot be routed is refused here, before any process
    return config


def part_config(session: Session, agent: AgentTable) -> PartConfig:
    """Return one agent's seat in the band."""
    options = dict(agent.options)
    channels = agent.channels or 1
    if agent.kind == "corpus":
        folder = session.corpus_path(agent)
        channels = agent.channels or corpus_channels(folder)
        options["corpus"] = str(folder)
    model = session.model_path(agent)
    if model is not None:
        options["model"] = str(model)
    options["channels"] = channels
    if agent.kind == "echo":
        options["source"] = agent.listens
    strip = Strip(
        agent.name, channels, agent.gain_db, agent.pan, agent.mute, agent.solo, session.routed(agent.outputs)
    )
    config = AgentConfig(agent.name, agent.kind, channels, options, agent.listens, agent.budget_seconds)
    return PartConfig(config, strip, agent.grid_beats, agent.follows)


def corpus_channels(folder: Path) -> int:
    """Return the channels of a corpus's widest recording; 1 where its description says nothing usable.

    Only the description is read: the corpus itself is its worker's to open, and to refuse in words.
    """
    try:
        description = folder / "corpus.toml"
        if description.stat().st_size > MAX_BYTES:
            return 1
        sources = tomllib.loads(description.read_text(encoding="utf-8"))["sources"]
        return min(64, max(1, *(int(source["channels"]) for source in sources)))
    except (OSError, ValueError, KeyError, TypeError):
        return 1


# Input


class FileInput:
    """A sound file as the session hears it: its channels chosen, at the session's rate, block by block.

    Raises
    ------
    ValueError
        In one sentence, if the file cannot be used or lacks a channel.
    """

    _CHUNK = 1 << 16  # always the same, so that the result does not depend on how it is read

    def __init__(self, path: str | os.PathLike[str], samplerate: int, channels: tuple[int, ...]) -> None:
        from realtime.soundfiles import SoundFile

        self._file = SoundFile(Path(path))
        info = self._file.info
        if max(channels) > info.channels:
            self._file.close()
            has = "1 channel" if info.channels == 1 else f"{info.channels} channels"
            raise ValueError(
                f"{path} has {has}, but the session hears input {max(channels)}; set stream.inputs to channels "
                "that the file has, for instance [1]"
            )
        self._channels = [channel - 1 for channel in channels]
        self._samplerate = samplerate
        self.frames = max(1, round(info.frames * samplerate / info.samplerate))
        self._total, self._at = info.frames, 0
        self._resampler: Any = None
        self._ready: list[Block] = []  # what was made and not handed out yet; the first is begun at `_used`
        self._used = 0

    def check(self, progress: Progress = lambda done, total: None) -> None:
        """Decode the whole file once: what is wrong anywhere in it is found before anything is written.

        Raises
        ------
        ValueError
            If it breaks off, or holds NaN or infinity.
        """
        for start in range(0, self._total, self._CHUNK):
            self._file.read(start, min(self._total, start + self._CHUNK))
            progress(min(self._total, start + self._CHUNK), self._total)

    def read(self, frames: int) -> Block:
        """Return the next ``frames``; fewer, or none, at the end."""
        import numpy as np

        parts = [np.zeros((0, len(self._channels)), np.float32)]
        missing = frames
        while missing and (self._ready or self._at < self._total):
            if not self._ready:
                self._ready.append(self._next_chunk())
                continue
            part = self._ready[0][self._used : self._used + missing]
            parts.append(part)
            missing -= len(part)
            self._used += len(part)
            if self._used == len(self._ready[0]):
                self._ready.pop()
                self._used = 0
        return np.concatenate(parts)

    def _next_chunk(self) -> Block:
        import numpy as np

        end = min(self._total, self._at + self._CHUNK)
        chunk: Block = np.ascontiguousarray(self._file.read(self._at, end)[:, self._channels])
        self._at = end
        rate = self._file.info.samplerate
        if rate == self._samplerate:
            return chunk
        if self._resampler is None:
            import soxr

            self._resampler = soxr.ResampleStream(
                rate, self._samplerate, len(self._channels), dtype="float32", quality="HQ"
            )
        resampled: Block = self._resampler.resample_chunk(chunk, last=end == self._total)
        return resampled

    def close(self) -> None:
        """Close the file."""
        self._file.close()


# On a virtual clock


@dataclass(frozen=True, slots=True)
class Rendered:
    """What a render or a replay left: the take, and how it went."""

    folder: Path
    frames: int
    seconds: float
    samplerate: int
    fault: str = ""
    interrupted: bool = False

    @property
    def realtime_factor(self) -> float:
        """Seconds of music made in a second."""
        return self.frames / self.samplerate / max(self.seconds, 1e-9)


def inline_band(
    config: EngineConfig,
    make_port: Callable[[AgentRunner, int], InlinePort],
    log: Callable[[dict[str, object]], None],
    timing: Timing | None = None,
    script: tuple[tuple[int, Command], ...] = (),
) -> Engine:
    """Build an engine whose agents run in this process."""
    memory = Memory.private(config)
    heard = RingHeard(memory.inputs, memory.stems)
    ports = []
    for part in config.parts:
        runner = AgentRunner(build_agent(part.agent), part.agent, config.spec, heard)
        budget_seconds = part.agent.budget_seconds or OFFLINE_BUDGET_SECONDS
        ports.append(make_port(runner, round(budget_seconds * config.spec.samplerate)))
    engine = Engine(config, ports, memory, log=log, timing=timing, script=script)
    for port in ports:
        port.now = lambda: engine.mixed
    return engine


def render(
    session: Session,
    source: str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    blocksize: int = OFFLINE_BLOCKSIZE,
    script: tuple[tuple[int, Command], ...] = (),
    progress: Progress = lambda done, total: None,
) -> Rendered:
    """Play a session against a file, as it would be played live, and write the take into ``out``.

    Parameters
    ----------
    session
        The session; its downbeat is that of the file.
    source
        What the player plays: any sound file. The stems are exactly as long, at the session's rate.
    out
        Folder of the take; one that holds a take is refused.
    blocksize
        Frames at a time. The result does not depend on it.
    script
        Commands and the frames at which they count.
    progress
        Called after each block.

    Raises
    ------
    ValueError
        In one sentence, before anything is written, if the session, a corpus or the file cannot be used.
    """
    spec = replace(session.spec(OFFLINE_LEAD), blocksize=blocksize)
    config = engine_config(session, spec, live=False)
    with contextlib.closing(FileInput(source, session.stream.samplerate, session.stream.inputs)) as audio:
        audio.check(lambda done, total: progress(0, audio.frames))
        lines: list[dict[str, object]] = []
        engine = inline_band(config, InlinePort, lambda line: lines.append(line), script=script)
        take = new_take(Path(out), config, take_header(config, version(), session.toml()))
        return _run(engine, take, lines, audio.read, audio.frames, progress)


def replay(
    folder: str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    progress: Progress = lambda done, total: None,
) -> Rendered:
    """Play a take again from its input and its lines, and write it into ``out``; its stems are not read."""
    from bridge.recorder import TakeReader
    from realtime.replay import ForcedTiming, ReplayPort, Script

    take = TakeReader(folder)
    if "engine" not in take.header:
        raise ValueError(f"{take.folder}: its first line has no engine; was it recorded by another program?")
    config = decode(EngineConfig, take.header["engine"])
    config = replace(config, spec=replace(config.spec, blocksize=OFFLINE_BLOCKSIZE))
    forced = Script.read(take.lines)
    lines: list[dict[str, object]] = []
    engine = inline_band(
        config,
        lambda runner, budget: ReplayPort(runner, forced),
        lambda line: lines.append(line),
        timing=ForcedTiming(forced),
        script=forced.commands,
    )
    heard = take.input(OFFLINE_BLOCKSIZE)
    again = new_take(Path(out), config, {key: take.header[key] for key in take.header if key not in _FRESH})
    return _run(engine, again, lines, lambda frames: next(heard), take.frames, progress)


_FRESH = ("type", "version", "inputs", "outputs", "stems")


def _run(
    engine: Engine,
    take: Any,
    lines: list[dict[str, object]],
    read: Callable[[int], Block],
    frames: int,
    progress: Progress,
) -> Rendered:
    """Drive an engine over ``frames`` of input into a take. Whatever ends it early, what there is is kept."""
    from realtime.stream import OfflineStream

    tap, spec = Tap(take, engine.memory), engine.spec
    every = max(1, spec.samplerate // 2)
    begin, interrupted = time.perf_counter(), False

    def keep(done: int, end: int | None = None) -> None:
        with signals_held():  # in the middle, it would leave a line or a stretch of sound twice in the take
            tap.mark()
            for line in lines:
                take.log(line)
            lines.clear()
            tap.drain(end)
        engine.stopped = engine.stopped or bool(take.fault)  # what cannot be kept need not be made
        progress(done, frames)

    def after_block(done: int) -> None:
        if done // every != (done - spec.blocksize) // every or done == frames:
            keep(done)

    try:
        OfflineStream(spec, read, frames, lambda block: None, after_block).run(engine)
    except KeyboardInterrupt:
        interrupted = True
    finally:
        with signals_held():
            keep(engine.mixed, engine.mixed)
            made = take.close(engine.mixed, engine.summary())
    return Rendered(take.folder, made, time.perf_counter() - begin, spec.samplerate, take.fault, interrupted)


def verdicts(original: TakeReader, again: TakeReader) -> dict[str, str]:
    """Say of every stem whether a replay gave the same bits: ``"identical"``, ``"different"``, ``"unknown"``."""
    recorded = original.end.stems if original.end is not None else {}
    found = {}
    for name in original.stems:
        truth = recorded.get(name) or (original.stem_hash(name) if original.has(name) else "")
        same = "identical" if truth == again.stem_hash(name) else "different"
        found[name] = same if truth else "unknown"
    return found


# Live


@dataclass(frozen=True, slots=True)
class Status:
    """What a session looks like at one moment.

    Attributes
    ----------
    frame, bar, beat
        The mixing cursor; bar 0 is the first, a count-in is negative.
    stopped
        Whether the engine has ended.
    rungs
        For each agent how many spans were played on rung 0 (rests) to 5, then the rung that sounds now (-1: none
        yet) at index 6 and the agent's faults at index 7.
    peaks
        Peak of each stem before its fader since the last look of the engine, linear.
    states
        Of each agent's worker: ``"loading"``, ``"armed"``, ``"failed"`` or ``"gone"``.
    device, stream
        What the device process and the stream count.
    """

    frame: int
    bar: int
    beat: int
    stopped: bool
    rungs: dict[str, list[int]]
    peaks: dict[str, float]
    states: dict[str, str]
    device: dict[str, Any]
    stream: dict[str, Any]


def _check_room(layout: Layout) -> None:
    """Refuse what does not fit: Linux would give the memory, and end whoever touches it."""
    need = sum(dtype.itemsize * math.prod(shape) for dtype, shape in layout.values())
    shared = Path("/dev/shm")
    free = shutil.disk_usage(shared).free if shared.is_dir() else need
    if free < need:
        raise ValueError(
            f"{shared}: {free / 1e6:.0f} MB of shared memory are free, this session needs {need / 1e6:.0f} MB; make "
            "it larger (in a container: --shm-size=1g), or play with fewer agents and channels"
        )


_STATES = {STATE_LOADING: "loading", STATE_ARMED: "armed", STATE_FAILED: "failed"}


class Live:
    """A session that plays, as one ``with``.

    Parameters
    ----------
    session
        What to play.
    folder
        Where the take goes, ``None`` for no take.
    tell
        Takes sentences for the user: which device, that it is back, ...
    lead
        Frames mixed ahead, 0 to choose it now from rights and a short measurement.
    warn
        Takes sentences about what went wrong; ``tell`` if not given.

    Attributes
    ----------
    failed
        Whether something went wrong that the music went on without: a disk, a corpus, a process.
    closed_frames
        Length of the take once it is closed.
    """

    def __init__(
        self,
        session: Session,
        folder: Path | None,
        tell: Callable[[str], None],
        *,
        lead: int = 0,
        warn: Callable[[str], None] | None = None,
    ) -> None:
        from realtime.io import choose_lead, measure_lateness, realtime_rights

        self.session, self.folder, self._tell, self._say_warning = session, folder, tell, warn or tell
        stream = session.stream
        self.realtime = realtime_rights()
        chosen = lead or stream.lead
        if not chosen:
            chosen = choose_lead(self.realtime, measure_lateness(0.05), stream.samplerate, stream.blocksize)
        if chosen < LEAST_LEAD_BLOCKS * stream.blocksize:
            raise ValueError(
                f"stream.lead is {chosen}; to play live with blocks of {stream.blocksize} it takes "
                f"{LEAST_LEAD_BLOCKS * stream.blocksize} frames or more, or 0 to have it chosen; "
                "did you give milliseconds?"
            )
        self.config = engine_config(session, session.spec(chosen), live=True)
        self.names = [part.agent.name for part in self.config.parts]
        self.failed = False
        self.closed_frames: int | None = None
        self._refused = False
        self._reported: set[str] = set()

    def __enter__(self) -> Live:
        from realtime import io
        from realtime.buffers import Arena
        from realtime.engine import engine_layout

        layout = {**engine_layout(self.config), **io.layout(self.config.spec), **recorder_layout()}
        _check_room(layout)
        with signals_held():  # Python's own process that looks after the memory is born here, and unblocks Ctrl-C
            self.arena = Arena.create(layout)
        self._supervisor: Any = None
        self._children = Children(self.arena.handle.name)
        try:
            with signals_held():
                self._start()
        except BaseException:
            self._take_down()
            raise
        return self

    def _start(self) -> None:
        """Spawn every process; the one that makes the first sound first."""
        from realtime import io
        from realtime.engine import run_engine
        from realtime.worker import WorkerConfig, run_worker

        config, children, handle = self.config, self._children, self.arena.handle
        wakes = [children.semaphore() for _ in config.parts]
        device = self.session.stream.device
        children.spawn("engine", run_engine, handle, config, wakes, device != "null")
        if device != "null":
            io_config = io.IoConfig(config.spec, device, input_channels=self.session.stream.inputs)
            self._supervisor = io.DeviceSupervisor(self.arena, io_config, self._tell)
            self._supervisor.start()
        self._wait_for_sound()  # those who are not needed for it yet would only be in its way
        if self.folder is not None:
            header = take_header(config, version(), self.session.toml())
            recorder = RecorderConfig(str(self.folder), config, header)
            children.spawn("recorder", run_recorder, handle, recorder)
        stems = tuple(self.names)
        for part, wake in zip(config.parts, wakes, strict=True):
            worker = WorkerConfig(part.agent, config.spec, stems, config.tempo_map, part.grid_beats)
            children.spawn(f"agent {part.agent.name}", run_worker, handle, worker, wake)

    def _wait_for_sound(self) -> None:
        """Wait until the first frame was mixed and the device plays or cannot, for a second at most."""
        from realtime.stream import FAILED, RUNNING

        device, stream = self.arena.status("io.status"), self.arena.status("stream.status")
        until = time.monotonic() + FIRST_SOUND_SECONDS
        while time.monotonic() < until:
            settled = self._supervisor is None or device.read()["state"] in (RUNNING, FAILED)
            if settled and (stream.read()["mixed"] or self.arena["place"][0]):
                break
            time.sleep(0.005)
        rate, spec = device.read()["samplerate"], self.config.spec
        if rate not in (0, spec.samplerate) and spec.lead < RESAMPLED_LEAD:
            self._tell(
                f"the device runs at {rate} Hz and the session at {spec.samplerate} Hz, so the sound is converted; "
                f"if xruns are counted, play with --lead {RESAMPLED_LEAD}, or set samplerate = {rate} in the session"
            )

    def send(self, command: Command) -> bool:
        """Hand a command to the engine; return whether its queue took it."""
        return self.arena.records("commands").post(to_bytes(encode(command)))

    def pids(self) -> dict[str, int]:
        """Return the ids of the session's processes, by name: ``"engine"``, ``"recorder"``, ``"agent NAME"``."""
        return self._children.pids()

    def status(self) -> Status:
        """Return how things stand."""
        place = self.arena["place"]
        peaks = self.arena["meters"][: len(self.names), 0]
        return Status(
            frame=int(place[0]),
            bar=int(place[1]),
            beat=int(place[2]),
            stopped=bool(place[3]),
            rungs={name: [int(n) for n in row] for name, row in zip(self.names, self.arena["rungs"], strict=True)},
            peaks={name: float(peak) for name, peak in zip(self.names, peaks, strict=True)},
            states={name: self._state(name) for name in self.names},
            device=self.arena.status("io.status").read(),
            stream=self.arena.status("stream.status").read(),
        )

    def _state(self, name: str) -> str:
        state = _STATES[self.arena.status(f"{name}.worker").read()["state"]]
        return state if state == "failed" or self._children.alive(f"agent {name}") else "gone"

    def poll(self) -> bool:
        """Look after everything once; return whether the session still runs. Call it a few times a second."""
        self._hear()
        ended = self._children.ended()
        for name, code in ended.items():
            if name not in self._reported and not self.status().stopped:
                self._reported.add(name)
                self._report(name, code)
        return "engine" not in ended and not self._refused

    def _report(self, name: str, code: int) -> None:
        """Say that a process has ended before its time, unless it has said why itself."""
        how = f"was killed by signal {-code}" if code < 0 else f"ended with code {code}"
        if name == "engine":
            self._warn(f"the engine {how}, so the music stopped; the take up to here is kept")
        elif name == "recorder" and not self._refused:
            self._warn(f"the recorder {how}; {self.folder} keeps what was recorded up to here, and the music goes on")
        elif name.startswith("agent ") and self._state(name.removeprefix("agent ")) != "failed":
            agent = name.removeprefix("agent ")
            self._warn(f"the process of agent {agent!r} {how}; its stem goes down the ladder, the others play on")

    def _warn(self, text: str) -> None:
        self.failed = True
        self._say_warning(text)

    def _hear(self) -> None:
        """Pass on what the workers and the recorder have to say."""
        for name in self.names:
            while (text := self.arena.records(f"{name}.text").take()) is not None:
                self._warn(text.decode(errors="replace"))
        while (record := self.arena.records("recorder.notes").take()) is not None:
            note = json.loads(record)
            if "failed" in note:
                self._refused = True
                self._warn(note["failed"])
            if "fault" in note:
                self._warn(note["fault"])
            if "closed" in note:
                self.closed_frames = int(note["closed"])

    def stop(self) -> None:
        """Fade out, let the take close, end every process; bounded in time."""
        self._hear()
        self.send(Command("stop"))
        self._children.wait("engine", CLOSING_SECONDS)
        self.arena.records("recorder.orders").post(b"close")
        self._children.wait("recorder", CLOSING_SECONDS)
        self._hear()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self.stop()
        finally:
            self._take_down()

    def _take_down(self) -> None:
        for name in self.names:
            self.arena[f"{name}.ending"][0] = 1
        if self._supervisor is not None:
            self._supervisor.stop()
        self._children.end()
        self.arena.close()
        self.arena.unlink()
