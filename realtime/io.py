"""The device process: it moves frames between the sound device and shared rings, and does nothing else.

The device is served by a callback in C (rtmixer), which no Python thread can hold up. It plays from a ring of its
own and records into another; the loop here keeps the one filled from what the engine mixed and empties the other,
every millisecond, by frame index.

One counter rules: the frames of all callbacks so far, exact and the same for input and output. A :class:`Grid`
ties it to the session's frames once, when the device has been opened, at the place where the engine's clock
stands. From then on every frame has its place. When this process was late and the ring ran empty, its play action
is gone: a new one is posted with silence in front, and when the callbacks tell where it began, the music goes on
at the frame that is due there. So the grid stays, whatever was lost.

It is a process of its own because a dead audio server makes PortAudio hang for ever. Then this process is killed
and replaced by the :class:`DeviceSupervisor`, while the engine's clock runs on.

Several ideas are those of `rtmixer <https://python-rtmixer.readthedocs.io/>`_ (actions, rings, statistics).
"""

from __future__ import annotations

import gc
import json
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Protocol, TypeVar

import numpy as np

from realtime.buffers import Arena, ArenaHandle, AudioRing, Layout, record_layout, ring_layout, status_layout
from realtime.protocols import Block, StreamSpec
from realtime.stream import (
    CLOSED,
    FAILED,
    IO_FIELDS,
    RUNNING,
    SECOND_NS,
    STALE_NS,
    STARTING,
    STREAM_FIELDS,
    frames_in,
)

RING_SECONDS = 4  # how much of input and output the shared rings hold
IO_PRIORITY, ENGINE_PRIORITY = 30, 20  # below an audio server's; the device before the engine
RESAMPLE_FRAMES = 512  # what a resampler may hold back: add it to the lead of a device at another rate

_TURN_SECONDS = 0.001
_RETRY_NS = 250_000_000
_OPEN_NS = 5_000_000_000  # a device may take this long to open
_IMPORT_NS = 15_000_000_000  # and a process, on a slow and busy machine, to say its first word
_ENVELOPE_NS = 500_000_000
_STALL_NS = 200_000_000  # a device that calls back no more for this long is dead
_SETTLE_TURNS = 3
_SETTLE_MOVES = 8
_STOOD_NS = 10_000_000
_TEXT_BYTES = 512

_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class IoConfig:
    """Which device, and how its channels are used.

    Attributes
    ----------
    spec
        The session's stream.
    device
        Name of the device, as :func:`list_devices` gives it; a part is enough if only one device has it, and
        ``"name, host API"`` tells two of the same name apart. ``""`` is the system's default.
    input_device
        Name of the device to record from, where it is another one.
    input_channels, output_channels
        Channels of the device, from 1; by default the first ones. Their number is that of the spec.
    """

    spec: StreamSpec
    device: str = ""
    input_device: str = ""
    input_channels: tuple[int, ...] = ()
    output_channels: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        for kind, channels, count in (
            ("input", self.input_channels, self.spec.inputs),
            ("output", self.output_channels, self.spec.outputs),
        ):
            if channels and len(channels) != count:
                raise ValueError(f"{kind}_channels={channels}: the stream has {count}; name one channel for each")
            if any(channel < 1 for channel in channels):
                raise ValueError(f"{kind}_channels={channels}: channels of a device count from 1")


def layout(spec: StreamSpec) -> Layout:
    """Arrays that the device process, its supervisor and :class:`~realtime.stream.DeviceStream` share."""
    frames = max(RING_SECONDS * spec.samplerate, 4 * spec.lead)
    return {
        **ring_layout("io.input", frames, spec.inputs),  # written by the device process
        **ring_layout("io.output", frames, spec.outputs),  # written by the engine
        **status_layout("io.status", IO_FIELDS),  # written by the device process
        **record_layout("io.text", 16, _TEXT_BYTES),  # written by the device process, taken by the supervisor
        **status_layout("io.control", {"stop": "i8"}),  # written by the supervisor
        **status_layout("stream.status", STREAM_FIELDS),  # written by the engine
    }


# ---- devices ---------------------------------------------------------------------------------------------------


class DeviceError(ValueError):
    """A device could not be used; the text is one sentence for the user."""


@dataclass(frozen=True, slots=True)
class Device:
    """One sound device as PortAudio shows it. ``inputs`` and ``outputs`` count its channels."""

    index: int
    name: str
    api: str
    inputs: int
    outputs: int
    samplerate: int
    default_input: bool
    default_output: bool


def list_devices(timeout_seconds: float = 10.0) -> list[Device]:
    """Return the sound devices of this machine. Asks a process of its own, since PortAudio may hang.

    Raises
    ------
    DeviceError
        If PortAudio is missing or does not answer.
    """
    code = "from realtime import io; io._print_devices()"
    try:
        done = subprocess.run(
            [sys.executable, "-c", code],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=timeout_seconds,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise DeviceError(
            f"PortAudio did not answer within {timeout_seconds:g} s; is an audio server (JACK, PipeWire) hanging?"
        ) from None
    for line in done.stdout.splitlines():
        if line.startswith("{"):
            answer = json.loads(line)
            if "error" in answer:
                raise DeviceError(answer["error"])
            return [Device(**device) for device in answer["devices"]]
    raise DeviceError(f"the process that lists the sound devices ended with code {done.returncode} and said nothing")


def play_sound(audio: Block, samplerate: int) -> None:
    """Play ``audio`` on the default device and wait for its end. For listening to a finished file, not for a session.

    Raises
    ------
    DeviceError
        If PortAudio or a device is missing.
    """
    sounddevice = _sounddevice()
    try:
        device = pick_device(_query_devices(sounddevice), "", "output")
        if device.samplerate != samplerate:
            import soxr

            audio, samplerate = soxr.resample(audio, samplerate, device.samplerate), device.samplerate
        sounddevice.play(audio[:, : device.outputs], samplerate, device=device.index, blocking=True)
    except sounddevice.PortAudioError as error:
        raise DeviceError(f"the sound could not be played: {error.args[0]}") from None
    finally:
        sounddevice.stop()


def pick_device(devices: Sequence[Device], name: str, kind: str) -> Device:
    """Choose the device called ``name`` that has channels of ``kind`` (``"input"`` or ``"output"``).

    A device that was named is never replaced by another one.

    Raises
    ------
    DeviceError
        If there is none, or more than one.
    """
    able = [device for device in devices if _channels(device, kind)]
    if not name:
        if not able:
            raise DeviceError(f"there is no sound device with an {kind}; is an audio server to be started first?")
        return next((device for device in able if _is_default(device, kind)), able[0])
    wanted = name.casefold()
    for matches in (
        [device for device in able if wanted in (device.name.casefold(), _full_name(device).casefold())],
        [device for device in able if wanted in _full_name(device).casefold()],
    ):
        if len(matches) == 1:
            return matches[0]
        if matches:
            found = "; ".join(f"'{_full_name(device)}'" for device in matches)
            raise DeviceError(f"device '{name}' fits more than one: {found}; write one of these in full")
    found = "; ".join(f"'{_full_name(device)}'" for device in able) or "none"
    raise DeviceError(f"there is no device '{name}' with an {kind}; there is: {found}")


def _full_name(device: Device) -> str:
    return f"{device.name}, {device.api}"


def _channels(device: Device, kind: str) -> int:
    return device.inputs if kind == "input" else device.outputs


def _is_default(device: Device, kind: str) -> bool:
    return device.default_input if kind == "input" else device.default_output


def _sounddevice() -> Any:
    """Import sounddevice (which initialises PortAudio), or say how to get PortAudio."""
    try:
        import sounddevice
    except OSError as error:
        hint = "; on Debian or Ubuntu: apt install libportaudio2" if sys.platform == "linux" else ""
        raise DeviceError(f"PortAudio, which opens sound devices, is not on this machine ({error}){hint}") from None
    return sounddevice


def _query_devices(sounddevice: Any) -> list[Device]:
    apis = sounddevice.query_hostapis()
    return [
        Device(
            index=index,
            name=str(found["name"]),
            api=str(apis[found["hostapi"]]["name"]),
            inputs=int(found["max_input_channels"]),
            outputs=int(found["max_output_channels"]),
            samplerate=round(found["default_samplerate"]),
            default_input=index == _default(sounddevice, apis, "input"),
            default_output=index == _default(sounddevice, apis, "output"),
        )
        for index, found in enumerate(sounddevice.query_devices())
    ]


def _default(sounddevice: Any, apis: Sequence[dict[str, Any]], kind: str) -> int:
    """Return PortAudio's default; if its first host API has no devices at all, that of the next which has."""
    chosen = int(sounddevice.default.device[kind == "output"])
    return chosen if chosen >= 0 else next((int(api[f"default_{kind}_device"]) for api in apis if api["devices"]), -1)


def _print_devices() -> None:
    """Body of the process behind :func:`list_devices`; ends hard, since PortAudio's own end may hang."""
    try:
        answer: dict[str, Any] = {"devices": [asdict(device) for device in _query_devices(_sounddevice())]}
    except DeviceError as error:
        answer = {"error": str(error)}
    print(json.dumps(answer), flush=True)
    os._exit(0)


# ---- scheduling ------------------------------------------------------------------------------------------------


def use_realtime(priority: int) -> bool:
    """Put the calling thread under SCHED_FIFO where the system allows it; return whether it does.

    Threads and processes started from it later are not realtime. Linux only: elsewhere the audio thread of the
    host API is privileged by itself, and this returns False.
    """
    if sys.platform != "linux":
        return False
    try:
        os.sched_setscheduler(0, os.SCHED_FIFO | os.SCHED_RESET_ON_FORK, os.sched_param(priority))
    except OSError:
        return False
    return True


def realtime_rights() -> bool:
    """Return whether this process may use realtime scheduling. Tries it on a thread that ends at once."""
    return _on_thread(lambda: use_realtime(1))


def measure_lateness(seconds: float = 0.1) -> float:
    """Return by how many seconds a wake-up after 1 ms was late at worst, with the rights that there are."""

    def measure() -> float:
        use_realtime(ENGINE_PRIORITY)
        worst, until = 0.0, time.monotonic() + seconds
        while (begun := time.monotonic()) < until:
            time.sleep(0.001)
            worst = max(worst, time.monotonic() - begun - 0.001)
        return worst

    return _on_thread(measure)


def choose_lead(
    realtime: bool, late_seconds: float, samplerate: int = 48_000, blocksize: int = 128, resampled: bool = False
) -> int:
    """Return how many frames to mix ahead.

    With realtime rights 512 on a quiet machine (256 with blocks of 64 or less) and 1024 on a loaded one, without
    2048: the least that held in measurements of 10 to 20 s on two saturated cores, at 48 kHz; in proportion at
    other rates. Never less than four blocks.

    Parameters
    ----------
    realtime
        Answer of :func:`realtime_rights`.
    late_seconds
        Answer of :func:`measure_lateness`.
    samplerate, blocksize
        The stream's.
    resampled
        Whether the device runs at another rate than the session.
    """
    quiet = realtime and late_seconds < 0.0005
    at_48k = (256 if blocksize <= 64 else 512) if quiet else 1024 if realtime else 2048
    lead = -(-at_48k * max(samplerate, 48_000) // 48_000) + (RESAMPLE_FRAMES if resampled else 0)
    return max(4, -(-lead // blocksize)) * blocksize


def _on_thread(work: Callable[[], _T]) -> _T:
    results: list[_T] = []
    thread = threading.Thread(target=lambda: results.append(work()), daemon=True)
    thread.start()
    thread.join()
    return results[0]


# ---- the grid --------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Grid:
    """Ties the device's frames to the session's: ``device_frame`` is ``session_frame``, and both rates are exact."""

    device_frame: int
    session_frame: int
    device_rate: int
    session_rate: int

    def session(self, device_frame: int) -> int:
        """Session frame of a device frame; rounded only where the rates differ."""
        scaled = 2 * (device_frame - self.device_frame) * self.session_rate + self.device_rate
        return self.session_frame + scaled // (2 * self.device_rate)  # a half goes up


class BlockClock:
    """When a device frame was due, from noticing callbacks late by chance: the lower envelope of what was seen.

    A callback is noticed some hundred microseconds after it happened, at worst much later, never before. So the
    least late of the last half second to second gives the time of all.

    Attributes
    ----------
    settled
        Whether enough was seen to trust it.
    """

    def __init__(self, rate: int) -> None:
        self.settled = False
        self._rate = rate
        self._frame = 0
        self._moves = 0
        self._behind = 0
        self._least = [0, 0]  # lateness in ns: of this half second, of the one before
        self._since_ns = 0

    def observe(self, frame: int, time_ns: int) -> bool:
        """Note that the counter stands at ``frame``; return whether it has moved."""
        if frame in (0, self._frame):
            return False
        late = time_ns - frame * SECOND_NS // self._rate
        self._moves += 1
        self.settled = self._moves > 2 * _SETTLE_MOVES
        if self._moves in (1, _SETTLE_MOVES):  # a device may begin with a burst
            self._least, self._since_ns = [late, late], time_ns
        elif time_ns - self._since_ns > _ENVELOPE_NS:
            self._least, self._since_ns = [late, self._least[0]], time_ns
        self._least[0] = min(self._least[0], late)
        self._behind = self._behind + 1 if late - min(self._least) > _STOOD_NS else 0
        if self._behind > _SETTLE_MOVES:  # not chance any more: the device itself stood still
            self._least, self._since_ns, self._behind = [late, late], time_ns, 0
        self._frame = frame
        return True

    def time_ns(self, frame: int) -> int:
        """Monotonic time at which ``frame`` was reached."""
        return frame * SECOND_NS // self._rate + min(self._least)


class Port(Protocol):
    """An open device as the loop sees it; positions and fills in device frames. :class:`RtmixerPort`, or a fake.

    A play or record *action* begins with the first callback after it was posted, ends by itself when its ring is
    empty (full), and its first frame is known a few turns after it began.
    """

    samplerate: int
    blocksize: int
    inputs: int
    outputs: int
    latency: tuple[int, int]

    def frames(self) -> int:
        """Frames of all callbacks so far."""

    def active(self) -> bool:
        """Whether the host API says that the device runs."""

    def device_xruns(self) -> int:
        """Under- and overflows that the host API reported so far."""

    def start_play(self) -> None:
        """Post a play action on what is in the play ring."""

    def play_first(self) -> int | None:
        """Device frame at which the action took the first frame of the ring, ``None`` until that is certain."""

    def play_ended(self) -> bool:
        """Whether the ring ran empty and the action is gone."""

    def fill(self) -> int:
        """Frames in the play ring."""

    def write(self, block: Block) -> None:
        """Add to the play ring."""

    def start_record(self) -> None:
        """Post a record action on the empty record ring."""

    def record_first(self) -> int | None:
        """Device frame of the first frame recorded, ``None`` until that is certain."""

    def record_ended(self) -> bool:
        """Whether the ring ran full and the action is gone."""

    def read(self) -> Block:
        """Take all that was recorded."""


class Player:
    """Keeps the device's play ring filled from the engine's ring, by index.

    Attributes
    ----------
    xruns, lost_frames, starved, starved_frames, fill_min
        As in :data:`realtime.stream.IO_FIELDS`.
    """

    def __init__(self, spec: StreamSpec, port: Port, source: AudioRing) -> None:
        self.xruns = self.lost_frames = self.starved = self.starved_frames = 0
        self.fill_min = -1
        self._spec = spec
        self._port = port
        self._source = source
        self._lead = -(-spec.lead * port.samplerate // spec.samplerate)
        # The least to leave in the ring when the engine is late: silence that cannot be taken back.
        self._reserve = max(2 * port.blocksize, self._lead // 4)
        self._resampler = _Resampler(spec.samplerate, port.samplerate, spec.outputs)
        self._next: int | None = None  # session frame that is written next, once it is certain
        self._left_off = 0
        self._was_full = False
        self._restart()

    def turn(self, grid: Grid | None, idle: bool) -> None:
        """Look after the ring; ``idle`` says that the engine owes nothing."""
        if self._port.play_ended():
            self._end()
        if self._next is None:
            self._find_place(grid)
        if self._next is None:
            self._fill_up(self._reserve)
            return
        if not idle:
            self._measure()
        self._feed()
        self._pad(idle)

    def _measure(self) -> None:
        """Note the least fill, from the first time on that the ring was full."""
        fill = self._port.fill()
        self._was_full = self._was_full or 4 * fill >= 3 * self._lead
        if self._was_full:
            self.fill_min = fill if self.fill_min < 0 else min(self.fill_min, fill)

    def _restart(self) -> None:
        """Post a new play action with silence in front, enough to last until its place is known."""
        self._written, self._was_full = 0, False
        self._fill_up(max(self._lead // 2, 3 * self._port.blocksize))
        self._port.start_play()

    def _fill_up(self, frames: int) -> None:
        missing = frames - self._port.fill()
        if missing > 0:
            self._write(np.zeros((missing, self._spec.outputs), np.float32))

    def _end(self) -> None:
        """Take note that the ring ran empty: everything up to ``_next`` was played, what follows has to wait."""
        if self._next is not None:
            self.xruns += 1
            self._left_off, self._next = self._next, None
        self._restart()

    def _find_place(self, grid: Grid | None) -> None:
        first = self._port.play_first()
        if grid is None or first is None:
            return
        self._resampler.clear()
        self._next = grid.session(first + self._written)
        if self.xruns:
            self.lost_frames += self._next - self._left_off

    def _feed(self) -> None:
        """Write what the engine has mixed, up to ``lead`` frames in the ring."""
        assert self._next is not None
        while self._port.fill() < self._lead:
            count = min(self._spec.blocksize, self._source.written - self._next)
            if count <= 0:
                return
            self._write(self._resampler(self._source.read(self._next, self._next + count)))
            self._next += count

    def _pad(self, idle: bool) -> None:
        """Play silence for what the engine has not mixed in time, so that the action goes on and the grid stays."""
        assert self._next is not None
        padded = 0
        while self._port.fill() < self._reserve:
            count = self._spec.blocksize
            self._write(self._resampler(np.zeros((count, self._spec.outputs), np.float32)))
            self._next += count
            padded += count
        if padded and not idle:
            self.starved += 1
            self.starved_frames += padded

    def _write(self, block: Block) -> None:
        self._port.write(block)
        self._written += len(block)


class Recorder:
    """Empties the device's record ring into the input ring, by index in output time.

    Attributes
    ----------
    overflows
        Times that input was lost.
    """

    def __init__(self, spec: StreamSpec, port: Port, sink: AudioRing) -> None:
        self.overflows = 0
        self._spec = spec
        self._port = port
        self._sink = sink
        self._resampler = _Resampler(port.samplerate, spec.samplerate, spec.inputs)
        self._restart()

    def turn(self, grid: Grid | None) -> None:
        """Move what was recorded; before the grid is known it is dropped."""
        ended = self._port.record_ended()
        block = self._port.read()
        if self._next is None:
            self._find_place(grid)
        self._taken += len(block)
        if self._next is not None and len(block):
            self._place(self._resampler(block))
        if ended:
            self.overflows += 1
            self._restart()

    def _restart(self) -> None:
        self._taken = 0
        self._next: int | None = None
        self._port.start_record()

    def _find_place(self, grid: Grid | None) -> None:
        first = self._port.record_first()
        if grid is not None and first is not None:
            self._resampler.clear()
            self._next = grid.session(first + self._taken) - self._spec.latency

    def _place(self, block: Block) -> None:
        """Write behind what is there: a device that came back may repeat a little of what was heard as silence."""
        assert self._next is not None
        start = max(self._next, self._sink.written)
        self._next += len(block)
        if self._next > start:
            self._sink.write(start, block[len(block) - (self._next - start) :])


class _Resampler:
    """Converts a stream of blocks; frame n out lies at n times the ratio in, from the start or last ``clear``.

    soxr's LQ is linear in phase and drops its own delay (measured: 0.0 frames at 1 and 15 kHz), it only holds back
    some frames; so counting is enough. At equal rates nothing is touched.
    """

    def __init__(self, in_rate: int, out_rate: int, channels: int) -> None:
        self._stream: Any = None
        if in_rate != out_rate:
            import soxr

            self._stream = soxr.ResampleStream(in_rate, out_rate, channels, dtype="float32", quality="LQ")

    def __call__(self, block: Block) -> Block:
        if self._stream is None:
            return block
        converted: Block = self._stream.resample_chunk(block)
        return converted

    def clear(self) -> None:
        if self._stream is not None:
            self._stream.clear()


class DeviceGone(Exception):  # noqa: N818 - it is news, not a mistake
    """The device stopped calling back: nothing that touches it may be called any more."""


class DeviceLoop:
    """One open device: ties the clocks together, then plays and records by index until told to stop.

    Waits with silence until the engine's stream has published its first time. Runs in the device process.
    """

    def __init__(self, spec: StreamSpec, port: Port, arena: Arena) -> None:
        self._arena = arena  # the memory is unmapped when the last reference to it goes
        self._spec = spec
        self._port = port
        self._status = arena.status("io.status")
        self._stream = arena.status("stream.status")
        self._player = Player(spec, port, arena.ring("io.output")) if port.outputs else None
        self._recorder = Recorder(spec, port, arena.ring("io.input")) if port.inputs else None
        self._clock = BlockClock(port.samplerate)
        self._grid: Grid | None = None
        self._idle = True
        self._quiet_ns = 0
        self._turn_ns = 0
        self._before = self._status.read()  # counters go on from those of the process before
        self._status.publish(
            state=STARTING,
            epoch=self._before["epoch"] + 1,
            has_input=port.inputs > 0,
            fill_min=-1,
            latency_in=port.latency[0],
            latency_out=port.latency[1],
            samplerate=port.samplerate,
        )

    def turn(self, time_ns: int) -> None:
        """Serve the device once; to be called every millisecond.

        Raises
        ------
        DeviceGone
            If it does not run any more.
        """
        frames = self._port.frames()
        moved = self._clock.observe(frames, time_ns)
        self._watch(moved, time_ns)
        if moved or self._grid is None:
            self._follow(frames)
        if self._player is not None:
            self._player.turn(self._grid, self._idle)
        if self._recorder is not None:
            self._recorder.turn(self._grid)
        self._publish(frames, moved, time_ns)

    def _follow(self, frames: int) -> None:
        """Look at the engine's clock, and lay the grid as soon as both clocks are known: it stays for good."""
        stream = self._stream.read()
        self._idle = bool(stream["stopped"]) or not stream["mixed"]
        if self._grid is None and stream["time_ns"] and self._clock.settled:
            elapsed_ns = self._clock.time_ns(frames) - stream["time_ns"]
            session = stream["frame"] + frames_in(elapsed_ns, self._spec.samplerate)
            self._grid = Grid(frames, session, self._port.samplerate, self._spec.samplerate)

    def _watch(self, moved: bool, time_ns: int) -> None:
        """Give the device up when it is silent for long; time in which this process itself was held up is not."""
        if moved or not self._turn_ns:
            self._quiet_ns = 0
        else:
            self._quiet_ns += min(time_ns - self._turn_ns, 10_000_000)
        self._turn_ns = time_ns
        block_ns = self._port.blocksize * SECOND_NS // self._port.samplerate
        if self._quiet_ns > (max(_STALL_NS, 8 * block_ns) if self._grid else _OPEN_NS) or not self._port.active():
            raise DeviceGone

    def _publish(self, frames: int, moved: bool, time_ns: int) -> None:
        if not moved:
            self._status.publish(heartbeat_ns=time_ns)
            return
        values: dict[str, float] = {"heartbeat_ns": time_ns}
        if self._grid is not None:
            values |= {
                "state": RUNNING,
                "playhead": self._grid.session(frames),
                "playhead_ns": self._clock.time_ns(frames),
            }
        if self._player is not None:
            values["fill_min"] = self._player.fill_min
            for name in ("xruns", "lost_frames", "starved", "starved_frames"):
                values[name] = self._before[name] + getattr(self._player, name)
        if self._recorder is not None:
            values["overflows"] = self._before["overflows"] + self._recorder.overflows
        values["device_xruns"] = self._before["device_xruns"] + self._port.device_xruns()
        self._status.publish(**values)


# ---- rtmixer ---------------------------------------------------------------------------------------------------


class RtmixerPort:
    """A device opened with rtmixer: its callback is C.

    rtmixer starts an action at a time, and host APIs give that time with a jitter; so actions are posted to start
    at once, and where they began is read from the callbacks counted by the stream and by the action: exact.

    Raises
    ------
    DeviceError
        If the device cannot be opened as asked.
    """

    def __init__(self, config: IoConfig, rescan: bool) -> None:
        sounddevice = _sounddevice()
        import rtmixer

        if rescan:  # PortAudio lists devices and servers when it is initialised, never after
            sounddevice._terminate()
            sounddevice._initialize()
        self._rtmixer = rtmixer
        spec = config.spec
        self._in_map = config.input_channels or tuple(range(1, spec.inputs + 1))
        self._out_map = config.output_channels or tuple(range(1, spec.outputs + 1))
        devices = _query_devices(sounddevice)
        source, target = _choose(devices, config)
        _check_channels(source, self._in_map, "input")
        _check_channels(target, self._out_map, "output")
        self.inputs, self.outputs = spec.inputs * (source is not None), spec.outputs * (target is not None)
        self.blocksize = spec.blocksize
        try:
            self.samplerate = self._rate(sounddevice, source, target, spec.samplerate)
            self._stream = self._open(source, target)
            self._stream.start()
        except sounddevice.PortAudioError as error:
            name = _full_name(target or source or devices[0])
            raise DeviceError(
                f"device '{name}' does not open: {error.args[0]}; is another program using it?"
            ) from None
        self.text = _opened(source, target, self.samplerate, spec.samplerate)
        self.latency = self._latency(self._stream.latency)
        size = _power_of_two(2 * spec.lead * self.samplerate // spec.samplerate + 2048)
        self._play_ring = rtmixer.RingBuffer(4 * spec.outputs, size)
        self._record_ring = rtmixer.RingBuffer(4 * spec.inputs, _power_of_two(self.samplerate // 2))
        self._play: Any = None
        self._record: Any = None
        self._play_seen: list[int] = []
        self._record_seen: list[int] = []

    def frames(self) -> int:
        """Frames of all callbacks so far."""
        return int(self._stream._state.stats.blocks) * self.blocksize

    def active(self) -> bool:
        """Whether the host API says that the device runs."""
        return bool(self._stream.active)

    def device_xruns(self) -> int:
        """Under- and overflows that the host API reported so far."""
        stats = self._stream._state.stats
        return int(stats.output_underflows + stats.input_overflows)

    def start_play(self) -> None:
        """Post a play action."""
        self._play_seen = []
        self._play = self._stream.play_ringbuffer(self._play_ring, self._out_map, start=-1.0)

    def play_first(self) -> int | None:
        """Device frame of the action's first frame."""
        return self._first(self._play, self._play_seen)

    def play_ended(self) -> bool:
        """Whether the action is gone."""
        return self._play not in self._stream.actions

    def fill(self) -> int:
        """Frames in the play ring."""
        return int(self._play_ring.read_available)

    def write(self, block: Block) -> None:
        """Add to the play ring."""
        self._play_ring.write(np.ascontiguousarray(block))

    def start_record(self) -> None:
        """Post a record action."""
        self._record_seen = []
        self._record = self._stream.record_ringbuffer(self._record_ring, self._in_map, start=-1.0)

    def record_first(self) -> int | None:
        """Device frame of the first frame recorded."""
        return self._first(self._record, self._record_seen)

    def record_ended(self) -> bool:
        """Whether the action is gone."""
        return self._record not in self._stream.actions

    def read(self) -> Block:
        """Take all that was recorded."""
        block = np.frombuffer(self._record_ring.read(), np.float32)
        return block.reshape(-1, self.inputs)

    def close(self) -> None:
        """Stop and close, or end the process if that hangs."""
        guard = threading.Timer(0.5, os._exit, (0,))
        guard.daemon = True
        guard.start()
        self._stream.abort()
        self._stream.close()
        guard.cancel()

    def _first(self, action: Any, seen: list[int]) -> int | None:
        """Return the stream's callbacks less the action's, in frames.

        A callback between or during the two reads makes the difference one too large, never too small: the least
        of a few turns is right.
        """
        blocks = int(action.stats.blocks)  # read before the stream's
        if blocks == 0:
            return None
        if len(seen) < _SETTLE_TURNS:
            seen.append(int(self._stream._state.stats.blocks) - blocks)
        return min(seen) * self.blocksize if len(seen) == _SETTLE_TURNS else None

    def _rate(self, sounddevice: Any, source: Device | None, target: Device | None, wanted: int) -> int:
        """Return the session's rate if the device takes it, else the device's own."""
        try:
            if source is not None:
                sounddevice.check_input_settings(source.index, max(self._in_map), "float32", samplerate=wanted)
            if target is not None:
                sounddevice.check_output_settings(target.index, max(self._out_map), "float32", samplerate=wanted)
        except sounddevice.PortAudioError:
            rates = {device.samplerate for device in (source, target) if device is not None}
            if len(rates) > 1:
                raise DeviceError(
                    f"input and output run at different rates ({sorted(rates)} Hz) and cannot do {wanted} Hz; "
                    "set both to one rate in the system's sound settings"
                ) from None
            return rates.pop()
        return wanted

    def _open(self, source: Device | None, target: Device | None) -> Any:
        common = {"samplerate": self.samplerate, "blocksize": self.blocksize, "latency": "low"}
        ins, outs = max(self._in_map), max(self._out_map)
        if source is None and target is not None:
            return self._rtmixer.Mixer(device=target.index, channels=outs, **common)
        if target is None and source is not None:
            return self._rtmixer.Recorder(device=source.index, channels=ins, **common)
        assert source is not None
        assert target is not None
        return self._rtmixer.MixerAndRecorder(device=(source.index, target.index), channels=(ins, outs), **common)

    def _latency(self, seconds: float | tuple[float, float]) -> tuple[int, int]:
        if not isinstance(seconds, tuple):
            seconds = (0.0, seconds) if self.outputs else (seconds, 0.0)
        return round(seconds[0] * self.samplerate), round(seconds[1] * self.samplerate)


def _choose(devices: Sequence[Device], config: IoConfig) -> tuple[Device | None, Device | None]:
    """Return the devices to record from and to play to; one of the two may be missing, not both."""
    found: dict[str, Device | None] = {"input": None, "output": None}
    errors: list[str] = []
    for kind, name in (("output", config.device), ("input", config.input_device or config.device)):
        try:
            found[kind] = pick_device(devices, name, kind)
        except DeviceError as error:
            if kind == "input" and config.input_device:
                raise
            errors.append(str(error))
    if len(errors) == 2:
        raise DeviceError(errors[0])
    return found["input"], found["output"]


def _check_channels(device: Device | None, channels: tuple[int, ...], kind: str) -> None:
    if device is not None and max(channels) > _channels(device, kind):
        raise DeviceError(
            f"device '{_full_name(device)}' has {_channels(device, kind)} {kind}s and the session asks for {kind} "
            f"{max(channels)}; change its {kind} channels or choose another device"
        )


def _opened(source: Device | None, target: Device | None, rate: int, wanted: int) -> str:
    parts = [f"playing to '{_full_name(target)}'" if target else "playing to nothing: the device has no outputs"]
    parts.append(f"hearing '{_full_name(source)}'" if source else "hearing nothing: the device has no inputs")
    if rate != wanted:
        parts.append(f"converting between its {rate} Hz and the session's {wanted} Hz")
    return "; ".join(parts)


def _power_of_two(frames: int) -> int:
    return 1 << (frames - 1).bit_length()


# ---- the process -----------------------------------------------------------------------------------------------


def run_io(handle: ArenaHandle, config: IoConfig) -> None:
    """Serve the device until told to stop. Body of the device process, which does nothing else.

    A device that cannot be opened is tried again four times a second, with one sentence for each new reason.
    Returns when the supervisor says so, when the device has died, or when the parent is gone and the engine has
    ended. What PortAudio then still holds may hang on closing, so the process has to end without (:func:`_io_process`
    does).
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the bridge's to answer
    arena = Arena.attach(handle)
    use_realtime(IO_PRIORITY)
    _tell(arena, STARTING)
    port = _open_port(arena, config)
    if port is None:
        _tell(arena, CLOSED)
        return
    _tell(arena, STARTING, port.text)
    loop = DeviceLoop(config.spec, port, arena)
    gc.collect()
    gc.freeze()
    gc.disable()
    try:
        _serve(arena, loop)
    except DeviceGone:
        _tell(arena, FAILED, "the sound device stopped; the bar is kept and sound goes on when the device is back")
        return
    _tell(arena, CLOSED)
    port.close()


def _io_process(handle: ArenaHandle, config: IoConfig) -> None:
    run_io(handle, config)
    os._exit(0)  # the interpreter's own end would wait for PortAudio


def _serve(arena: Arena, loop: DeviceLoop) -> None:
    while not _over(arena):
        for _ in range(64):
            loop.turn(time.monotonic_ns())
            time.sleep(_TURN_SECONDS)


def _open_port(arena: Arena, config: IoConfig) -> RtmixerPort | None:
    """Try until it succeeds; ``None`` if told to stop before."""
    said = ""
    while not _over(arena):
        try:
            return RtmixerPort(config, rescan=bool(said))
        except DeviceError as error:
            _tell(arena, FAILED, str(error) if str(error) != said else "")
            said = str(error)
        time.sleep(_RETRY_NS / SECOND_NS)
    return None


def _over(arena: Arena) -> bool:
    """Whether the supervisor said stop, or is gone and the engine has played its last frame or is gone too."""
    parent = multiprocessing.parent_process()
    if arena.status("io.control").read()["stop"]:
        return True
    if parent is None or parent.is_alive():
        return False
    stream = arena.status("stream.status").read()
    played = stream["stopped"] and stream["frame"] >= stream["mixed"]
    return bool(played or time.monotonic_ns() - stream["time_ns"] > SECOND_NS)


def _tell(arena: Arena, state: int, text: str = "") -> None:
    arena.status("io.status").publish(state=state, heartbeat_ns=time.monotonic_ns())
    if text:
        arena.records("io.text").post(text.encode()[:_TEXT_BYTES])


class Child(Protocol):
    """What the supervisor needs of a process."""

    @property
    def exitcode(self) -> int | None:
        """``None`` while it lives."""

    def is_alive(self) -> bool:
        """Whether it lives."""

    def kill(self) -> None:
        """End it at once."""

    def join(self, timeout: float | None = None) -> None:
        """Wait for its end."""


class DeviceSupervisor:
    """Keeps a device process alive: kills one that hangs, replaces one that has died, for as long as it takes.

    Lives in the bridge; :meth:`start` gives it a thread of its own. :meth:`stop` ends both.

    Parameters
    ----------
    arena
        Memory laid out by :func:`layout`.
    config
        Which device.
    tell
        Takes each new sentence for the user: what was opened, why it does not open, that it is back.
    spawn
        Starts a device process; tests give their own.
    clock
        Monotonic nanoseconds.

    Attributes
    ----------
    sentence
        The last one told.
    restarts
        Processes started beyond the first.
    """

    def __init__(
        self,
        arena: Arena,
        config: IoConfig,
        tell: Callable[[str], None] | None = None,
        spawn: Callable[[], Child] | None = None,
        clock: Callable[[], int] = time.monotonic_ns,
    ) -> None:
        self.sentence = ""
        self.restarts = 0
        self._arena = arena
        self._config = config
        self._say = tell
        self._spawn = spawn or self._spawn_process
        self._clock = clock
        self._status = arena.status("io.status")
        self._texts = arena.records("io.text")
        self._child: Child | None = None
        self._spawned_ns = 0
        self._due_ns = 0
        self._ending = threading.Event()
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Start the process and the thread that watches it."""
        self.poll()
        self._thread = threading.Thread(target=self._watch, name="device-supervisor", daemon=True)
        self._thread.start()

    def stop(self, timeout_seconds: float = 1.0) -> None:
        """End the process, kindly if it listens within the timeout, and the thread."""
        self._ending.set()
        if self._thread is not None:
            self._thread.join()
        self._arena.status("io.control").publish(stop=1)
        if self._child is not None:
            self._child.join(timeout_seconds)
            self._kill()
        self._hear_texts()

    def poll(self) -> None:
        """Look once: hear what it says, end it if it hangs, replace it if it is gone."""
        self._hear_texts()
        now = self._clock()
        if self._child is None:
            if now >= self._due_ns:
                self._child, self._spawned_ns = self._spawn(), now
            return
        if not self._child.is_alive():
            code = self._child.exitcode  # 0: it has said itself why
            self._replace(f"the device process ended with code {code}" if code else "", now)
        elif now - max(self._status.read()["heartbeat_ns"], self._spawned_ns) > self._patience_ns():
            self._kill()
            self._replace("the audio server does not answer; the device process is started again", now)

    def _patience_ns(self) -> int:
        """Starting and opening a device may take seconds; serving it, every turn counts."""
        status = self._status.read()
        if status["heartbeat_ns"] <= self._spawned_ns:
            return _IMPORT_NS
        return STALE_NS if status["state"] == RUNNING else _OPEN_NS

    def _replace(self, why: str, now: int) -> None:
        """Forget the dead process and set the time for the next; one that never spoke is given more of it."""
        spoke = self._status.read()["heartbeat_ns"] > self._spawned_ns
        if why:
            self._tell(why)
        self._child = None
        self.restarts += 1
        self._due_ns = now if spoke else now + 4 * _RETRY_NS

    def _kill(self) -> None:
        assert self._child is not None
        self._child.kill()
        self._child.join(1.0)

    def _hear_texts(self) -> None:
        while (record := self._texts.take()) is not None:
            self._tell(record.decode(errors="replace"))

    def _tell(self, text: str) -> None:
        if text != self.sentence and self._say is not None:
            self._say(text)
        self.sentence = text

    def _watch(self) -> None:
        while not self._ending.wait(0.02):
            self.poll()

    def _spawn_process(self) -> Child:
        context = multiprocessing.get_context("spawn")
        process = context.Process(
            target=_io_process, args=(self._arena.handle, self._config), name="sideman-io", daemon=True
        )
        process.start()
        return process
