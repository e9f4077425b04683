"""The device process: it moves frames between the sound device and shared rings, and does nothing else.

The device is served by a callback in C (rtmixer), which no Python thread can hold up. It plays from a ring of its
own and records into another; the loop here keeps the one filled from what the engine mixed and empties the other,
every millisecond, by frame index.

One counter rules: the frames of all callbacks so far, exact and the same for input and output. A :class:`Grid`
ties it to the session's frames once, when the device has been opened, at the place where the engine's clock
stands. From then on every frame has its place. When this process was late and the ring ran empty, its play action
is gone: a new one is posted with silence in front, and when the callbacks tell where it began, the music goes on
at the frame that is due there. So the grid stays, whatever was lost; and what became of each frame is written down.

It is a process of its own because a dead audio server makes PortAudio hang for ever. Then this process is killed
and replaced by the :class:`realtime.iowatch.DeviceSupervisor`, while the engine's clock runs on.

Several ideas are those of `rtmixer <https://python-rtmixer.readthedocs.io/>`_ (actions, rings, statistics).
"""

from __future__ import annotations

import gc
import json
import multiprocessing
import os
import signal
import sys
import time
from collections import deque
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from realtime.buffers import Arena, ArenaHandle, AudioRing, Layout, record_layout, ring_layout, status_layout
from realtime.devices import DeviceError, IoConfig, RtmixerPort
from realtime.protocols import Block, StreamSpec
from realtime.rights import IO_PRIORITY, use_realtime
from realtime.stream import (
    CLOSED,
    FAILED,
    IO_FIELDS,
    LOST_EMPTY,
    LOST_LATE,
    OUT_SECONDS,
    RUNNING,
    SECOND_NS,
    STARTING,
    STREAM_FIELDS,
    frames_in,
)

RING_SECONDS = 4  # how much of input and output the shared rings hold

_TURN_SECONDS = 0.001
_RETRY_NS = 250_000_000
_OPEN_NS = 5_000_000_000  # a device may take this long to begin
_ENVELOPE_NS = 500_000_000
_STALL_NS = 200_000_000  # a device that calls back no more for this long is dead
_SETTLE_MOVES = 8
_STOOD_NS = 10_000_000
_FEW_MOVES, _LONG_BLOCK = 4, 1024
_LONGEST_BURST = 1 << 14
_HOLD_FRAMES = 1 << 14
_TEXT_BYTES = 512
_NAMES_BYTES = 1024


def layout(spec: StreamSpec) -> Layout:
    """Arrays that the device process, its supervisor and :class:`~realtime.stream.DeviceStream` share."""
    frames = max(RING_SECONDS * spec.samplerate, 4 * spec.lead)
    return {
        **ring_layout("io.input", frames, spec.inputs),  # written by the device process
        **ring_layout("io.output", frames, spec.outputs),  # written by the engine
        **status_layout("io.status", IO_FIELDS),  # written by the device process
        **ring_layout("io.out", OUT_SECONDS * spec.samplerate, 1),  # written by the device process: Departing
        **record_layout("io.text", 16, _TEXT_BYTES),  # written by the device process, taken by the supervisor
        **record_layout("io.opened", 4, _NAMES_BYTES),  # the names of what was opened, likewise
        **status_layout("io.control", {"stop": "i8"}),  # written by the supervisor
        **status_layout("stream.status", STREAM_FIELDS),  # written by the engine
    }


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
        self.settled = self.settled or _enough(self._moves, frame)
        if self._moves in (1, 2, _SETTLE_MOVES):  # a device may begin with a burst
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

    def drop(self) -> None:
        """Empty the play ring; only where no action plays from it."""

    def start_record(self) -> None:
        """Post a record action on the empty record ring."""

    def record_first(self) -> int | None:
        """Device frame of the first frame recorded, ``None`` until that is certain."""

    def record_ended(self) -> bool:
        """Whether the ring ran full and the action is gone."""

    def read(self) -> Block:
        """Take all that was recorded."""


class Departing:
    """Writes down what became of each session frame, as the device takes it: what :class:`Departures` reads.

    Attributes
    ----------
    lost
        The range of session frames that was lost last, ``(start, end)``.
    """

    def __init__(self, ring: AudioRing) -> None:
        self.lost = (0, 0)
        self._ring = ring
        self._handed: deque[tuple[int, int]] = deque()  # end of a run of frames, and what is to be said of it
        self._end = ring.written

    def hand(self, end: int, margin: int) -> None:
        """Note that the frames up to ``end`` were handed to the device with ``margin`` frames before them."""
        self._add(end, margin + 1)

    def lose(self, end: int, why: int) -> None:
        """Note that the frames up to ``end`` will not be heard."""
        if end > self._end:
            self.lost = (self.lost[0] if self.lost[1] == self._end else max(0, self._end), end)
        self._add(end, why)

    def skip(self, end: int) -> None:
        """Note that the frames up to ``end`` were nobody's."""
        self._add(end, 0)

    def settle(self, taken: int) -> None:
        """Write down what is known now that the device has taken everything up to frame ``taken``."""
        while self._handed and (start := self._ring.written) < taken:
            end, value = self._handed[0]
            stop = min(end, taken)
            if value == 0:
                self._ring.jump(stop)
            elif stop > start:
                start = max(start, stop - self._ring.capacity)
                self._ring.write(start, np.full((stop - start, 1), value, np.float32))
            if stop == end:
                self._handed.popleft()

    def drop(self) -> None:
        """Forget what was handed over and not taken."""
        self._handed.clear()
        self._end = self._ring.written

    def _add(self, end: int, value: int) -> None:
        if end > self._end:
            self._handed.append((end, value))
            self._end = end


class Player:
    """Keeps the device's play ring filled from the engine's ring, by index.

    Attributes
    ----------
    xruns, lost_frames, starved, starved_frames, fill_min, extra_lead
        As in :data:`realtime.stream.IO_FIELDS`.
    """

    def __init__(self, spec: StreamSpec, port: Port, source: AudioRing, departing: Departing) -> None:
        self.xruns = self.lost_frames = self.starved = self.starved_frames = 0
        self.fill_min = -1
        self._spec = spec
        self._port = port
        self._source = source
        self._departing = departing
        self._lead = -(-spec.lead * port.samplerate // spec.samplerate)
        # The least to leave in the ring when the engine is late: silence that cannot be taken back.
        self._reserve = max(2 * port.blocksize, self._lead // 4)
        self._resampler = _Resampler(spec.samplerate, port.samplerate, spec.outputs)
        self.extra_lead = self._resampler.hold(spec.blocksize)
        self._next: int | None = None  # session frame that is written next, once it is certain
        self._left_off = 0
        self._was_full = False
        self._restart()

    def turn(self, grid: Grid | None, idle: bool) -> None:
        """Look after the ring; ``idle`` says that the engine owes nothing."""
        if self._port.play_ended():
            self._end(grid)
        if self._next is None:
            self._find_place(grid)
        if self._next is None:
            self._fill_up(self._reserve)
            return
        if not idle:
            self._measure()
        self._feed()
        self._pad(idle)

    def settle(self, taken: int) -> None:
        """Take note that the device has taken everything up to session frame ``taken``."""
        if self._next is not None:
            self._departing.settle(taken)

    def fill(self) -> int:
        """Session frames in the ring."""
        return self._in_session(self._port.fill())

    def lost(self) -> tuple[int, int]:
        """Return the range of session frames that was lost last."""
        return self._departing.lost

    def widen(self, frames: int) -> None:
        """Keep so many device frames more in the ring: the device takes many at a time."""
        self._lead += frames
        self._reserve += frames
        self.extra_lead += self._in_session(frames)

    def _in_session(self, frames: int) -> int:
        return frames * self._spec.samplerate // self._port.samplerate

    def _measure(self) -> None:
        """Note the least fill, from the first time on that the ring was full."""
        fill = self._port.fill()
        self._was_full = self._was_full or 4 * fill >= 3 * self._lead
        if self._was_full:
            self.fill_min = fill if self.fill_min < 0 else min(self.fill_min, fill)

    def _restart(self) -> None:
        """Post a new play action with silence in front, enough to last until its place is known."""
        self._port.drop()  # what was written after the ring had run empty: nobody took it, and its time is over
        self._written, self._was_full = 0, False
        self._fill_up(max(self._lead // 2, 3 * self._port.blocksize))
        self._port.start_play()

    def _fill_up(self, frames: int) -> None:
        missing = frames - self._port.fill()
        if missing > 0:
            self._write(np.zeros((missing, self._spec.outputs), np.float32))

    def _end(self, grid: Grid | None) -> None:
        """Take note that the ring ran empty: everything in it was played, what follows has to wait."""
        first = self._port.play_first()
        if self._next is not None and grid is not None and first is not None:
            self.xruns += 1
            # Where the rates differ a little of what was handed over had not come through yet.
            taken = self._written - self._port.fill()  # the ring may have run empty before it was last written to
            self._left_off, self._next = min(self._next, grid.session(first + taken)), None
            self._departing.settle(self._left_off)
            self._departing.drop()
        self._restart()

    def _find_place(self, grid: Grid | None) -> None:
        first = self._port.play_first()
        if grid is None or first is None:
            return
        self._resampler.clear()
        self._next = grid.session(first + self._written)
        if self.xruns:
            self.lost_frames += self._next - self._left_off
            self._departing.lose(self._next, LOST_EMPTY)
        else:
            self._departing.skip(self._next)

    def _feed(self) -> None:
        """Write what the engine has mixed, up to ``lead`` frames in the ring."""
        assert self._next is not None
        while (fill := self._port.fill()) < self._lead:
            count = min(self._spec.blocksize, self._source.written - self._next)
            if count <= 0:
                return
            self._write(self._resampler(self._source.read(self._next, self._next + count)))
            self._next += count
            self._departing.hand(self._next, self._in_session(fill))

    def _pad(self, idle: bool) -> None:
        """Play silence for what the engine has not mixed in time, so that the action goes on and the grid stays."""
        assert self._next is not None
        padded = 0
        while self._port.fill() < self._reserve:
            count = self._spec.blocksize
            self._write(self._resampler(np.zeros((count, self._spec.outputs), np.float32)))
            self._next += count
            padded += count
        if idle:
            self._departing.skip(self._next)
        elif padded:
            self.starved += 1
            self.starved_frames += padded
            self._departing.lose(self._next, LOST_LATE)

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
        self._in_rate, self._out_rate, self._channels = in_rate, out_rate, channels
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

    def hold(self, blocksize: int) -> int:
        """Return how many frames in it holds back at most, fed with blocks. Tried out; leaves it cleared."""
        if self._stream is None:
            return 0
        silence = np.zeros((blocksize, self._channels), np.float32)
        made = most = 0
        for block in range(1, -(-_HOLD_FRAMES // blocksize) + 1):
            made += len(self(silence))
            most = max(most, block * blocksize - made * self._in_rate // self._out_rate)
        self.clear()
        return most


class Bursts:
    """How many frames a device takes at a time: more than a block where the audio server's own block is longer.

    The least of a few moves, seen every millisecond: a single one may be large because this process was late.

    Attributes
    ----------
    frames
        The largest found so far; 0 before.
    """

    def __init__(self) -> None:
        self.frames = 0
        self._least = _LONGEST_BURST
        self._moves = self._at = self._since = 0

    def observe(self, frames: int) -> bool:
        """Note where the counter stands after it moved; return whether more at a time are taken than was known."""
        self._least = min(self._least, frames - self._at)
        self._moves, self._at = self._moves + 1, frames
        if not _enough(self._moves, frames - self._since):
            return False
        more = self._least > self.frames
        self.frames = max(self.frames, self._least)
        self._least, self._moves, self._since = _LONGEST_BURST, 0, frames
        return more


def _enough(moves: int, frames: int) -> bool:
    """Whether a device was seen often enough to know its manners; one that takes long blocks is seen seldom."""
    return moves > 2 * _SETTLE_MOVES or (moves >= _FEW_MOVES and frames >= _FEW_MOVES * _LONG_BLOCK)


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
        departing = Departing(arena.ring("io.out"))
        self._player = Player(spec, port, arena.ring("io.output"), departing) if port.outputs else None
        self._recorder = Recorder(spec, port, arena.ring("io.input")) if port.inputs else None
        self._clock = BlockClock(port.samplerate)
        self._bursts = Bursts()
        self._widened = 0
        self._grid: Grid | None = None
        self._idle = True
        self._quiet_ns = 0
        self._turn_ns = 0
        self._before = self._status.read()  # counters go on from those of the process before
        self._status.publish(
            state=STARTING,
            epoch=self._before["epoch"] + 1,
            has_input=port.inputs > 0,
            extra_lead=self._player.extra_lead if self._player else 0,
            fill=0,
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
        if moved:
            self._widen(frames)
        if moved or self._grid is None:
            self._follow(frames)
        if self._player is not None:
            self._player.turn(self._grid, self._idle)
        if self._player is not None and self._grid is not None:
            self._player.settle(self._grid.session(frames))
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

    def _widen(self, frames: int) -> None:
        """Keep more in the ring for a device that takes more than a block at a time."""
        if self._bursts.observe(frames) and self._player is not None:
            extra = max(0, self._bursts.frames - self._port.blocksize)
            self._player.widen(extra - self._widened)
            self._widened = extra
            if 2 * extra > self._spec.lead:
                ms = 1000 * extra / self._port.samplerate
                text = f"the device takes {self._bursts.frames} frames at a time, so {ms:.0f} ms more are mixed ahead"
                self._arena.records("io.text").post(text.encode())

    def _watch(self, moved: bool, time_ns: int) -> None:
        """Give the device up when it is silent for long; time in which this process itself was held up is not."""
        if moved or not self._turn_ns:
            self._quiet_ns = 0
        else:
            self._quiet_ns += min(time_ns - self._turn_ns, 10_000_000)
        self._turn_ns = time_ns
        block_ns = max(self._port.blocksize, self._bursts.frames) * SECOND_NS // self._port.samplerate
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
            values["fill"], values["fill_min"] = self._player.fill(), self._player.fill_min
            values["extra_lead"] = self._player.extra_lead
            values["lost_start"], values["lost_end"] = self._player.lost()
            for name in ("xruns", "lost_frames", "starved", "starved_frames"):
                values[name] = self._before[name] + getattr(self._player, name)
        if self._recorder is not None:
            values["overflows"] = self._before["overflows"] + self._recorder.overflows
        values["device_xruns"] = self._before["device_xruns"] + self._port.device_xruns()
        self._status.publish(**values)


def run_io(handle: ArenaHandle, config: IoConfig) -> None:
    """Serve the device until told to stop. Body of the device process, which does nothing else.

    A device that cannot be opened is tried again four times a second, with one sentence for each new reason.
    Returns when the supervisor says so, when the device has died, or when the parent is gone and the engine has
    ended. What PortAudio then still holds may hang on closing, so the process has to end without
    (:func:`io_process` does).
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the bridge's to answer
    arena = Arena.attach(handle)
    use_realtime(IO_PRIORITY)
    _tell(arena, STARTING)
    port = _open_port(arena, config)
    if port is None:
        _tell(arena, CLOSED)
        return
    arena.records("io.opened").post(json.dumps({"device": port.target, "input_device": port.source}).encode())
    _tell(arena, STARTING, port.text)
    loop = DeviceLoop(config.spec, port, arena)
    gc.collect()
    gc.freeze()
    gc.disable()
    try:
        _serve(arena, loop)
    except DeviceGone:
        name = port.target or port.source
        _tell(arena, FAILED, f"device '{name}' stopped; the bar is kept, and sound goes on when it is back")
        return
    _tell(arena, CLOSED)
    port.close()


def io_process(handle: ArenaHandle, config: IoConfig) -> None:
    """Be the device process: :func:`run_io`, and a hard end, since the interpreter's would wait for PortAudio."""
    _mute_libraries()
    run_io(handle, config)
    os._exit(0)


def _mute_libraries() -> None:
    """Let only Python speak to the terminal: audio libraries write several lines there at each try to open."""
    if sys.stderr is None:
        return
    kept, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    for descriptor in (1, 2):
        os.dup2(nowhere, descriptor)
    os.close(nowhere)
    sys.stderr = os.fdopen(kept, "w", buffering=1)


def _serve(arena: Arena, loop: DeviceLoop) -> None:
    while not over(arena):
        for _ in range(64):
            loop.turn(time.monotonic_ns())
            time.sleep(_TURN_SECONDS)


def _open_port(arena: Arena, config: IoConfig) -> RtmixerPort | None:
    """Try until it succeeds; ``None`` if told to stop before."""
    said = ""
    while not over(arena):
        try:
            return RtmixerPort(config, rescan=bool(said))
        except DeviceError as error:
            what = str(error).partition(";")[0]  # what follows lists the others, which come and go
            _tell(arena, FAILED, f"{error}; it is tried again until it opens" if what != said else "")
            said = what
        time.sleep(_RETRY_NS / SECOND_NS)
    return None


def over(arena: Arena) -> bool:
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
