"""Reads a session, builds everything and connects it.

Only this file builds what holds processes. :class:`Live` spawns the device process, the engine, the recorder and a
worker per agent around one piece of shared memory, and takes all of it down again. What runs on a virtual clock is in
``offline.py``.
"""

from __future__ import annotations

import json
import math
import os
import shutil
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from fractions import Fraction
from importlib.metadata import PackageNotFoundError
from importlib.metadata import version as installed_version
from multiprocessing import get_context
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

from bridge.children import Children, signals_held
from bridge.gate import Gate, GateError
from bridge.outside import Outside
from bridge.session import NO_DEVICE, OSC_DEVICE, AgentTable, Session
from bridge.supervise import Lighter, Member, Supervisor, Worker
from bridge.tap import RecorderConfig, recorder_layout, run_recorder, take_header
from bridge.watch import Respawn, how
from realtime.buffers import join_frames
from realtime.clock import Meter
from realtime.engine import Command, EngineConfig, PartConfig, told_grid
from realtime.messages import encode, to_bytes
from realtime.meters import Meters
from realtime.mixer import Metronome, Monitor, Strip
from realtime.protocols import StreamSpec
from realtime.scheduler import LEDGER, stagger_frames
from realtime.seat import AgentConfig
from realtime.worker import WorkerConfig, run_worker

if TYPE_CHECKING:
    from multiprocessing.synchronize import Semaphore
    from socket import socket

    from bridge.calibrate import Opened, Train
    from bridge.conductor import Conductor
    from bridge.jackclock import JackClock, JackConfig
    from bridge.offline import Progress, Rendered
    from bridge.osc import Listener
    from bridge.roundtrips import Calibration, Chosen
    from realtime.buffers import ArenaHandle, Layout
    from realtime.devices import IoConfig
    from realtime.iowatch import DeviceSupervisor

LONGEST_SPAN_SECONDS, LONGEST_LED_SECONDS = 8.0, 12.0
"""There is room for spans so long, where nobody's time is followed and where somebody's is: 4/4 at 20 BPM."""
LEAST_LEAD_BLOCKS = 4
"""With fewer the device's ring would run empty between two turns."""
FIRST_SOUND_SECONDS = 1.0
CLOSING_SECONDS = 10.0
STALLED_SECONDS = 2.0
"""An engine that stands still for so long does not answer; it makes a block every few milliseconds."""


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
    tempo_map, led = session.tempo_map(rate, downbeat), live and bool(session.sync.follow)
    longest = max(float(timeline.meter.beats * 60 / timeline.tempo) for timeline in tempo_map.timelines)
    config = EngineConfig(
        spec=spec,
        tempo_map=tempo_map,
        seed=session.session.seed,
        parts=tuple(part_config(session, agent) for agent in session.agents),
        chart=session.chart(),
        metronome=metronome,
        monitor=monitor if session.mixer.monitor else None,
        monitor_delay_frames=spec.lead + spec.latency + spec.turn_frames + spec.blocksize if live else 0,
        ceiling_db=session.mixer.ceiling_db,
        first_bar=max(0, tempo_map.moment(0).bar),
        longest_span_seconds=max(LONGEST_SPAN_SECONDS, 1.25 * longest, LONGEST_LED_SECONDS if led else 0),
    )
    config.mixer()  # what cannot be routed is refused here, before any process
    return config


def part_config(session: Session, agent: AgentTable) -> PartConfig:
    """Return one agent's seat in the band."""
    options = dict(agent.options)
    channels = agent.channels or 1
    if agent.kind == "corpus":
        from realtime.corpus import described_channels

        folder = session.corpus_path(agent)
        channels = agent.channels or described_channels(folder)
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


def lighter_ways(session: Session, agent: AgentTable) -> tuple[Lighter, ...]:
    """Return the lighter ways to play that an agent's entry lists; each says what differs from the entry itself."""
    ways = []
    for way in agent.lighter:
        keys = {name: way[name] for name in ("model", "corpus") if name in way}
        options = {name: value for name, value in way.items() if name not in keys}
        other = agent.model_copy(update=keys | {"options": agent.options | options})
        words = " and ".join(f"{name} = {value}" for name, value in way.items())
        ways.append(Lighter(words, part_config(session, other).agent.options))
    return tuple(ways)


def notice_frames(config: EngineConfig) -> int:
    """Return how far ahead of the loudspeaker the engine can still be told of a bar line, with some air."""
    join = join_frames(config.spec.samplerate)
    band = stagger_frames(max(0, len(config.parts) - 1), join)
    return config.spec.lead + 2 * config.spec.turn_frames + 2 * join + band + config.spec.samplerate // 50


# How long sound takes


def round_trip(session: Session) -> Chosen:
    """Return what a live session subtracts from what it hears, and where the figure comes from.

    Raises
    ------
    ValueError
        If ``stream.latency`` and ``stream.latency_offset`` make no latency together.
    """
    from bridge.roundtrips import Chosen, choose, device_names

    stream = session.stream
    if stream.device in (NO_DEVICE, OSC_DEVICE):
        return Chosen(max(0, stream.latency + stream.latency_offset), "")
    return choose(
        stream.device,
        latency=stream.latency,
        offset=stream.latency_offset,
        samplerate=stream.samplerate,
        blocksize=stream.blocksize,
        names=lambda: device_names(stream.device, len(stream.inputs), stream.outputs),
    )


def calibrate(
    session: Session, tell: Callable[[str], None], *, level_db: float = -18.0, takes: int = 3, output: int = 1
) -> tuple[Calibration, str]:
    """Measure the round trip of a session's device, and keep it for all sessions.

    Parameters
    ----------
    session
        Its ``[stream]`` says device, rate, block and inputs.
    tell
        Takes a sentence about each take.
    level_db
        Peak of the chirp below full scale, -60 to 0.
    takes
        How often the device is opened anew, 1 to 10.
    output
        Where the chirp is played, from 1.

    Returns
    -------
    calibration, sentence
        What was kept; and a sentence about an unreadable file that was set aside for it, or ``""``.

    Raises
    ------
    ValueError, OSError
        In one sentence: no such device, silence, noise, clipping, takes that do not agree; a file that cannot be
        written.
    """
    from bridge.calibrate import Train, measure
    from bridge.roundtrips import Calibration, device_names, keep, state_file
    from realtime.devices import IoConfig
    from realtime.rights import choose_lead, realtime_rights

    stream = session.stream
    if stream.device in (NO_DEVICE, OSC_DEVICE):
        raise ValueError(f"stream.device is {stream.device!r}, which is no sound device: name one (--device)")
    if not 1 <= output <= stream.outputs:
        raise ValueError(f"--output {output}: the stream has {stream.outputs} outputs, counted from 1")
    train = Train(stream.samplerate, level_db)
    target, source = device_names(stream.device, len(stream.inputs), stream.outputs)
    if not target or not source:
        lacks = "no inputs" if target else "no outputs"
        raise ValueError(f"'{target or source}' has {lacks}, so there is no way back: name one that has (--device)")
    lead = stream.lead or choose_lead(
        realtime_rights(), 1.0, stream.samplerate, stream.blocksize
    )  # nobody is waiting
    config = IoConfig(replace(session.spec(lead), latency=0), target, source, stream.inputs)
    found = measure(lambda: _opening(config, train, output - 1), train, takes, tell)
    calibration = Calibration(
        device=target,
        input_device=source,
        samplerate=stream.samplerate,
        blocksize=stream.blocksize,
        frames=max(0, found.round_trip.frames),
        exact_frames=found.round_trip.exact_frames,
        device_samplerate=found.device["samplerate"],
        latency_in=found.device["latency_in"],
        latency_out=found.device["latency_out"],
        made=time.strftime("%Y-%m-%d %H:%M"),
    )
    return calibration, keep(calibration, state_file())


@contextmanager
def _opening(config: IoConfig, train: Train, output: int) -> Iterator[Opened]:
    """Open a device around a probe, as :class:`Live` opens it around the engine."""
    from bridge.calibrate import Opened, probe_layout, run_probe
    from realtime import io
    from realtime.buffers import Arena
    from realtime.iowatch import DeviceSupervisor

    layout = {**io.layout(config.spec), **probe_layout(config.spec, train)}
    _check_room(layout)
    with signals_held():
        children = Children()
        name = children.reserve()
        try:
            arena = Arena.create(layout, name)
        except BaseException:
            children.end()
            raise
        children.keep(name)
    device = DeviceSupervisor(arena, config)
    try:
        with signals_held():
            children.spawn("probe", run_probe, arena.handle, config.spec, train, output)
            device.start()
        yield Opened(arena, lambda: device.sentence)
    finally:
        children.kill("probe")
        device.stop()
        children.end()
        arena.close()
        arena.unlink()


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
    ledger
        For each agent its row of the engine's ledger, by the names of :data:`realtime.scheduler.LEDGER`.
    peaks
        Peak of each stem before its fader since somebody looked last, linear; see :meth:`Live.status`.
    states
        How each agent stands, in a word, as :meth:`bridge.supervise.Supervisor.states` says.
    device, stream
        What the device process and the stream count.
    song_bar, tempo, meter
        Bar of the song that is, counted from 0, its tempo in quarter notes per minute, and its meter.
    leader
        Who is followed, empty for nobody; what is wrong with it, if anything, stands behind it in brackets.
    """

    frame: int
    bar: int
    beat: int
    stopped: bool
    ledger: dict[str, dict[str, int]]
    peaks: dict[str, float]
    states: dict[str, str]
    device: dict[str, Any]
    stream: dict[str, Any]
    song_bar: int = 0
    tempo: Fraction = field(default_factory=lambda: Fraction(120))
    meter: Meter = field(default_factory=Meter)
    leader: str = ""


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


class _Hands:
    """What the supervisor of the agents needs of the bridge."""

    def __init__(self, children: Children, handle: ArenaHandle, wakes: dict[str, Semaphore]) -> None:
        self._children, self._handle, self._wakes = children, handle, wakes
        self._calls = {name: children.semaphore() for name in wakes}
        self.send: Callable[[Command], bool] = lambda command: False
        self.said: deque[tuple[str, bool]] = deque()

    @staticmethod
    def _name(config: WorkerConfig) -> str:
        return f"agent {config.agent.name}, process {config.generation}"

    def spawn(self, config: WorkerConfig) -> Worker:
        """Start one of an agent's processes."""
        agent = config.agent.name
        return self._children.spawn(
            self._name(config), run_worker, self._handle, config, self._wakes[agent], self._calls[agent]
        )

    def forget(self, config: WorkerConfig) -> None:
        """Let go of one that has ended."""
        self._children.forget(self._name(config))

    def call(self, agent: str) -> None:
        """Wake whoever stands by."""
        self._calls[agent].release()

    def say(self, text: str, *, bad: bool) -> None:
        """Keep a sentence until the bridge's thread passes it on."""
        self.said.append((text, bad))


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
    latency
        The round trip that is reckoned with, and where the figure comes from.
    respawns
        Every replacement of an agent's process, in order.
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
        from realtime.rights import choose_lead, measure_lateness, realtime_rights

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
        self.latency = round_trip(session)
        self.config = engine_config(session, replace(session.spec(chosen), latency=self.latency.frames), live=True)
        self.names = [part.agent.name for part in self.config.parts]
        self.failed = False
        self.closed_frames: int | None = None
        self.respawns: list[Respawn] = []
        self._refused = False
        self._reported: set[str] = set()
        self._sending = threading.Lock()
        self._stalled = _Stalled()

    def __enter__(self) -> Live:
        from realtime import io
        from realtime.buffers import Arena
        from realtime.engine import Memory, engine_layout

        layout = {**engine_layout(self.config), **io.layout(self.config.spec), **recorder_layout()}
        if self.session.stream.device == OSC_DEVICE:
            from bridge import oscaudio

            layout |= oscaudio.layout()
        sync = self.session.sync
        if any(kind.startswith("jack") for kind in [*(c.kind for c in sync.follow), *(c.kind for c in sync.lead)]):
            from bridge.jackclock import jack_layout

            layout |= jack_layout()
        _check_room(layout)
        self._device: DeviceSupervisor | None = None
        self._band: Supervisor | None = None
        self._conductor: Conductor | None = None
        self._listener: Listener | None = None
        self._entrance = self._open_entrance()  # before anything rolls: without its ears a session follows nobody
        with signals_held():  # the processes that look after the memory are born here, and unblock Ctrl-C
            self._children = Children()
            name = self._children.reserve()
            try:
                self.arena = Arena.create(layout, name)
            except BaseException:
                self._children.end()
                raise
            self._children.keep(name)
        try:
            self._meters = Meters(Memory.shared(self.arena, self.config), self.config.spec.samplerate)
            with signals_held():
                self._start()
        except BaseException:
            self._take_down()
            raise
        return self

    def _open_entrance(self) -> socket | None:
        """Open the port of OSC; ``ValueError`` in one sentence where that cannot be had."""
        from bridge.osc import open_socket

        osc = self.session.osc
        if not osc.on:
            return None
        try:
            return open_socket(osc.bind, osc.port, osc.token)
        except OSError as problem:
            raise ValueError(problem.strerror or str(problem)) from None

    def _start(self) -> None:
        """Spawn every process; the one that makes the first sound first."""
        from realtime.engine import run_engine

        config, children, handle = self.config, self._children, self.arena.handle
        wakes = {name: children.semaphore() for name in self.names}
        self._hands = _Hands(children, handle, wakes)
        self._hands.send = self.send
        device = self.session.stream.device
        children.spawn("engine", run_engine, handle, config, list(wakes.values()), device != NO_DEVICE)
        if device != NO_DEVICE:
            self._device = self._osc_device() if device == OSC_DEVICE else self._sound_device()
            self._device.start()
        self._wait_for_sound()  # those who are not needed for it yet would only be in its way
        self._doubt_latency()
        if self.folder is not None:
            header = take_header(config, version(), self.session.toml())
            recorder = RecorderConfig(str(self.folder), config, header)
            children.spawn("recorder", run_recorder, handle, recorder)
        spares = self.session.session.spares
        self._band = Supervisor(self.arena, self._members(), self._hands, self.respawns, spares=spares)
        self._band.start()
        self._open_outside()

    def _sound_device(self) -> DeviceSupervisor:
        from realtime.devices import IoConfig
        from realtime.iowatch import DeviceSupervisor

        stream = self.session.stream
        io_config = IoConfig(self.config.spec, stream.device, input_channels=stream.inputs)
        return DeviceSupervisor(self.arena, io_config, self._tell)

    def _osc_device(self) -> DeviceSupervisor:
        """Return what looks after the process in which another program is the sound device."""
        from bridge.oscaudio import run_oscaudio
        from bridge.oscpeer import OscAudioConfig
        from realtime.devices import IoConfig
        from realtime.iowatch import Child, DeviceSupervisor

        osc, spec, handle = self.session.osc, self.config.spec, self.arena.handle
        stems = tuple(self.config.stem_channels.items())
        config = OscAudioConfig(spec, stems, osc.bind, osc.audio_port, osc.token)

        def spawn(_: IoConfig) -> Child:
            process = get_context("spawn").Process(
                target=run_oscaudio, args=(handle, config), name="sideman-oscaudio", daemon=True
            )
            process.start()
            return process

        return DeviceSupervisor(self.arena, IoConfig(spec, OSC_DEVICE), self._tell, spawn, server="audio over OSC")

    def _open_outside(self) -> None:
        """Let others be followed, follow, ask and steer."""
        from bridge.conductor import Conductor
        from bridge.follower import INTERNAL, Follower
        from bridge.sync import SessionClock

        spec, sync = self.config.spec, self.session.sync
        clock = SessionClock(spec.samplerate)
        outside = Outside(self.session, self.config, clock, self._say_later, self._send_osc, self._jack_clock)
        follower = None
        if outside.sources:
            order = [*(source.name for source in outside.sources), *([INTERNAL] if sync.internal else [])]
            follower = Follower(
                clock, self.session.tempo_map(spec.samplerate), order, notice_frames=notice_frames(self.config),
                offset_frames=outside.offsets, tell=self._say_later,
            )  # fmt: skip
        self._conductor = Conductor(
            self.arena, clock, follower, outside.sources, outside.senders, self.send, self._say_later
        )
        if self.session.osc.on:
            self._open_osc(self._conductor, outside.hear)
        self._conductor.start()
        if follower is not None and not sync.internal:
            self._say_later(f"the band rests until it hears {' or '.join(source.name for source in outside.sources)}")

    def _open_osc(self, conductor: Conductor, foreign: Callable[..., bool]) -> None:
        """Listen to OSC."""
        from bridge.desk import LiveDesk
        from bridge.guard import Guard
        from bridge.osc import Listener, Server

        assert self._entrance is not None
        osc = self.session.osc
        audio_port = osc.audio_port if self.session.stream.device == OSC_DEVICE else 0
        desk = LiveDesk(
            self, self.session, frame_at=conductor.frame_at, position=lambda: conductor.position, version=version(),
            audio_port=audio_port, sync=conductor.sync,
        )  # fmt: skip
        server = Server(desk, guard=Guard(osc.token), tell=self._say_later, foreign=foreign)
        self._listener = Listener(server, self._entrance, self._say_later)
        self._listener.start()
        self._say_later(f"OSC is heard on {osc.bind}, port {self._listener.port} (UDP)")

    def _jack_clock(self, config: JackConfig) -> JackClock:
        from bridge.jackclock import JackClock

        return JackClock(self.arena, config, self.config.spec, self._say_later)

    def _send_osc(self, packet: bytes, address: tuple[str, int]) -> int:
        """Send a packet from the port on which we listen; return that port, 0 while there is none. Any thread."""
        if self._listener is None:
            return 0
        if packet:
            self._listener.send([(packet, address)])
        return self._listener.port

    def _say_later(self, text: str, *, bad: bool = False) -> None:
        """Keep a sentence until the bridge's thread passes it on. Any thread."""
        self._hands.said.append((text, bad))

    def _doubt_latency(self) -> None:
        """Say so if the device does not stand as it did when its round trip was measured."""
        status, calibration = self.arena.status("io.status").read(), self.latency.calibration
        if calibration is not None and status["epoch"] and status["latency_out"] + status["latency_in"]:
            doubt = calibration.doubt(status)
            if doubt:
                self._tell(doubt)

    def _members(self) -> list[Member]:
        """Return the band as it is looked after."""
        config, members = self.config, []
        for part, agent in zip(config.parts, self.session.agents, strict=True):
            memory_bytes = agent.memory_mb * 2**20
            worker = WorkerConfig(
                part.agent, config.spec, tuple(self.names), config.tempo_map, part.grid_beats,
                memory_bytes=memory_bytes,
            )  # fmt: skip
            members.append(Member(worker, part.follows, lighter_ways(self.session, agent)))
        return members

    def _wait_for_sound(self) -> None:
        """Wait until the first frame was mixed and the device plays or cannot, for a second at most."""
        from realtime.stream import FAILED, RUNNING

        device, stream = self.arena.status("io.status"), self.arena.status("stream.status")
        until = time.monotonic() + FIRST_SOUND_SECONDS
        while time.monotonic() < until:
            settled = self._device is None or device.read()["state"] in (RUNNING, FAILED)
            if settled and (stream.read()["mixed"] or self.arena["place"][0]):
                break
            time.sleep(0.005)

    def send(self, command: Command) -> bool:
        """Hand a command to the engine; return whether its queue took it. Any thread."""
        record = to_bytes(encode(command))
        with self._sending:
            return self.arena.records("commands").post(record)

    def pids(self) -> dict[str, int]:
        """Return the ids of the session's processes by name: ``"engine"``, ``"recorder"``, ``"io"``, ``"agent NAME"``
        for the one on duty and ``"spare NAME"`` for the one that stands by.
        """
        found = {name: pid for name, pid in self._children.pids().items() if not name.startswith("agent ")}
        if self._device is not None and self._device.pid is not None:
            found["io"] = self._device.pid
        return found | (self._band.pids() if self._band is not None else {})

    def spares(self) -> dict[str, str]:
        """Say how the processes that stand by stand, by agent: ``"loading"`` or ``"measured"``."""
        return self._band.spares() if self._band is not None else {}

    def status(self) -> Status:
        """Return how things stand. Any thread, while the session is open.

        All who call share the peaks, as :meth:`realtime.meters.Meters.read` says; who wants every one of them builds
        meters of his own on the rings of ``arena``.
        """
        place, stems = self.arena["place"], self._meters.read().stems
        rows, grid = self.arena["ledger"], self.arena.status("engine.grid").read()
        line = told_grid(grid, self.config.spec.samplerate)
        return Status(
            frame=int(place[0]),
            bar=int(place[1]),
            beat=int(place[2]),
            stopped=bool(place[3]),
            ledger={
                name: dict(zip(LEDGER, (int(value) for value in row), strict=True))
                for name, row in zip(self.names, rows, strict=True)
            },
            peaks={name: stems[name].peak for name in self.names},
            states=self._band.states() if self._band is not None else dict.fromkeys(self.names, "loading"),
            device=self.arena.status("io.status").read(),
            stream=self.arena.status("stream.status").read(),
            song_bar=grid["song_bar"],
            tempo=line.tempo,
            meter=line.meter,
            leader=self._conductor.leader if self._conductor is not None else "",
        )

    def poll(self) -> bool:
        """Look after everything once; return whether the session still runs. Call it a few times a second."""
        self._hear()
        ended = self._children.ended()
        for name, code in ended.items():
            if name not in self._reported and not self.status().stopped:
                self._reported.add(name)
                self._report(name, code)
        if "engine" not in ended:
            self._look_at_engine()
        if self._band is not None and self._band.nobody and not self._refused:
            self._refused = True
            self._warn(self._band.nobody)
        return "engine" not in ended and not self._refused

    def _look_at_engine(self) -> None:
        """Say so if the engine stands still, and when it goes on."""
        place = self.arena["place"]
        if place[3] or not place[0]:
            return  # it has ended, or not begun
        before, stalled = self._stalled.told, self._stalled.look(int(place[0]), time.monotonic())
        if before and not stalled:
            self._tell("the engine goes on")
        elif stalled and not before:
            self._warn(
                f"the engine has stood still for {STALLED_SECONDS:.0f} s, so there is no music; if it does not go "
                "on, end the session: the take up to here is kept"
            )

    def _report(self, name: str, code: int) -> None:
        """Say that a process has ended before its time, unless it has said why itself."""
        if name == "engine":
            self._warn(f"the engine {how(code)}, so the music stopped; the take up to here is kept")
        elif name == "recorder" and not self._refused:
            self._warn(
                f"the recorder {how(code)}; {self.folder} keeps what was recorded up to here, and the music goes on"
            )

    def _warn(self, text: str) -> None:
        self.failed = True
        self._say_warning(text)

    def _hear(self) -> None:
        """Pass on what the agents, those who look after them and the recorder have to say."""
        for name in self.names:
            while (text := self.arena.records(f"{name}.text").take()) is not None:
                self._warn(text.decode(errors="replace"))
        while self._hands.said:
            sentence, bad = self._hands.said.popleft()
            (self._warn if bad else self._tell)(sentence)
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
        if self._band is not None:
            self._band.stop()  # who ends from now on is meant to
        self.send(Command("stop"))
        self._wait_for_engine()
        self.arena.records("recorder.orders").post(b"close")
        self._children.wait("recorder", CLOSING_SECONDS)
        self._hear()

    def _wait_for_engine(self) -> None:
        """Wait until the engine has faded out; one that stands still will not, and is ended."""
        stalled, until = _Stalled(), time.monotonic() + CLOSING_SECONDS
        while not self._children.wait("engine", 0.05):
            now = time.monotonic()
            if stalled.look(int(self.arena["place"][0]), now) or now > until:
                self._children.kill("engine")

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self.stop()
        finally:
            self._take_down()

    def _take_down(self) -> None:
        if self._listener is not None:
            self._listener.stop()
        elif self._entrance is not None:
            self._entrance.close()
        if self._conductor is not None:
            self._conductor.stop()
        if self._band is not None:
            self._band.stop()
            self._band.dismiss()
        if self._device is not None:
            self._device.stop()
        self._children.end()
        self.arena.close()
        self.arena.unlink()


class _Stalled:
    """Notices that a number does not change any more."""

    def __init__(self) -> None:
        self._value, self._since, self._looked = -1, 0.0, 0.0
        self.told = False

    def look(self, value: int, now: float) -> bool:
        """Return whether it has stood still for too long; time in which nobody looked does not count."""
        held_up = now - self._looked > STALLED_SECONDS / 2
        if value != self._value or held_up:
            self._value, self._since = value, now
        self._looked = now
        self.told = now - self._since > STALLED_SECONDS
        return self.told


# On a virtual clock: in a child, as a session and a take name files of other people


def gate() -> Gate:
    """Return a gate, for files to be opened at."""
    return Gate()


def render(
    gate: Gate,
    session: Session,
    source: str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    blocksize: int = 1024,
    progress: Progress = lambda done, total: None,
) -> Rendered:
    """Have a session rendered, as :func:`bridge.offline.render` does; Ctrl-C ends it, and keeps what there is.

    Raises
    ------
    ValueError, OSError
        As that does; and in one sentence, if the child died: of what, if that is known, and what was kept.
    """
    return _performed(
        gate, "render", source, out, progress, session=session.toml(), path=session.path and str(session.path),
        source=str(source), blocksize=blocksize,
    )  # fmt: skip


def replay(
    gate: Gate,
    folder: str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    progress: Progress = lambda done, total: None,
) -> Rendered:
    """Have a take replayed, as :func:`bridge.offline.replay` does; as :func:`render` does otherwise."""
    return _performed(gate, "replay", folder, out, progress, folder=str(folder))


def _performed(
    gate: Gate, task: str, about: str | os.PathLike[str], out: str | os.PathLike[str], progress: Progress, **what: Any
) -> Rendered:
    from bridge.offline import Rendered

    doing, done = str(about), 0

    def hear(said: dict[str, Any]) -> None:
        nonlocal doing, done
        doing = str(said.get("doing", doing))
        if "done" in said:
            done = int(said["done"])
            progress(done, int(said["total"]))

    fresh = not (Path(out) / "take.jsonl").exists()
    try:
        return Rendered.heard(gate.ask(task, about, seconds=None, hear=hear, stoppable=True, out=str(out), **what))
    except GateError as error:
        if error.unforeseen:
            raise
        kept = f"{out} keeps what was made up to then" if fresh and (Path(out) / "take.jsonl").exists() else ""
        raise ValueError(
            f"the process of this {task} {error.how}; the last at work was {doing}; {kept or 'nothing was made'}"
        ) from None
