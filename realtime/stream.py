"""Where the engine's audio comes from and goes to: arrays and files, nowhere, or a sound device.

All three drive the same :class:`~realtime.protocols.Process`. Offline, the clock is the number of frames made.
Live, it is the device's own frame counter as the device process (:mod:`realtime.io`) publishes it; while there is
no device it is the wall clock, counted on from the last frame the device told. Either way it never goes back, and
never leaps ahead of the time that has passed: the bar goes on whether or not anybody can hear it.

A live clock starts ``lead`` frames before the first frame mixed, so that nothing of it is lost on the way.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Any, ClassVar

import numpy as np

from realtime.buffers import Arena, AudioRing, StatusBlock
from realtime.protocols import Block, Process, StreamSpec

SECOND_NS = 1_000_000_000
STALE_NS = 300_000_000
"""A device process whose heartbeat is older than this is taken for dead."""

STARTING, RUNNING, FAILED, CLOSED = range(4)
"""States of the device process."""

IO_FIELDS = {
    "state": "i8",  # STARTING, RUNNING, FAILED (and trying again) or CLOSED
    "epoch": "i8",  # counts the times a device was opened
    "heartbeat_ns": "i8",  # monotonic time of the last turn of the loop that touches the device
    "playhead": "i8",  # session frame that the device was given last ...
    "playhead_ns": "i8",  # ... and when
    "has_input": "i8",  # 0: nothing will ever come, silence is heard
    "extra_lead": "i8",  # session frames to mix ahead beyond the lead: what this device holds back, or takes at once
    "fill": "i8",  # session frames in the device's own ring
    "fill_min": "i8",  # least device frames in it since it opened, -1 before
    "xruns": "i8",  # times that ring ran empty: this process was late
    "lost_frames": "i8",  # session frames that were never played for it
    "lost_start": "i8",  # the session frames that were lost last, for whatever reason; both 0 before
    "lost_end": "i8",
    "starved": "i8",  # times the engine had not mixed what was due
    "starved_frames": "i8",  # frames of silence played instead
    "overflows": "i8",  # times input was lost because this process was late
    "device_xruns": "i8",  # under- and overflows that the host API reported itself
    "latency_in": "i8",  # frames, as the host API states them
    "latency_out": "i8",
    "samplerate": "i8",  # the device's own, Hz
}
"""What the device process tells, in one status block; counters go on across its restarts."""

STREAM_FIELDS = {
    "frame": "i8",  # session frame that leaves for the loudspeaker ...
    "time_ns": "i8",  # ... at this monotonic time; 0 before the stream runs
    "mixed": "i8",
    "heard": "i8",
    "underruns": "i8",  # times a frame was due before it was mixed: the engine was late
    "late_frames": "i8",
    "stopped": "i8",
}
"""What :class:`DeviceStream` tells, in one status block."""

OUT_SECONDS = 30  # for how long it is known what became of a frame
LOST_EMPTY, LOST_LATE, LOST_GONE, LOST_UNSEEN = -1, -2, -3, -4
"""Why a frame did not go out: see :attr:`Departures.words`."""

_HEAR_FRAMES = 1024  # largest block of input handed over at once
_TURNS_AT_ONCE = 32  # mixed before the status is told again
_SHORTEST_SLEEP = 0.001  # seconds


def frames_in(elapsed_ns: int, samplerate: int) -> int:
    """Whole frames in a time."""
    return elapsed_ns * samplerate // SECOND_NS


class OfflineStream:
    """A stream on a virtual clock: as fast as the machine can, the same frames every time.

    Parameters
    ----------
    spec
        Its ``blocksize`` is the size of every block but the last.
    source
        The input as one ``(frames, inputs)`` array, or a reader: called with a number of frames, it returns the
        next ``(n, inputs)``; what is missing at the end of either is silence.
    frames
        How many frames to make; the stream ends earlier only if the process stops.
    sink
        Takes each block of output, ``(n, outputs)``, which is valid until it returns.
    progress
        Called with the number of frames made after each block.

    Raises
    ------
    ValueError
        If ``frames`` or the block size make no stream, or the input has the wrong shape.
    """

    def __init__(
        self,
        spec: StreamSpec,
        source: Block | Callable[[int], Block],
        frames: int,
        sink: Callable[[Block], None],
        progress: Callable[[int], None] | None = None,
    ) -> None:
        if spec.blocksize < 1:
            raise ValueError(f"blocksize={spec.blocksize}: a block has at least one frame; did you mean 128?")
        if frames < 0:
            raise ValueError(
                f"frames={frames}: a stream has no negative length; did you mean its end minus its start?"
            )
        self.spec = spec
        self._frames = frames
        self._read = source if callable(source) else _reader(source)
        self._sink = sink
        self._progress = progress

    def run(self, process: Process) -> None:
        """Drive ``process`` for the given number of frames, or until it has stopped."""
        for start in range(0, self._frames, self.spec.blocksize):
            if process.stopped:
                return
            count = min(self.spec.blocksize, self._frames - start)
            process.hear(self._input(count))
            self._sink(process.mix(count))
            if self._progress is not None:
                self._progress(start + count)

    def _input(self, count: int) -> Block:
        block = self._read(count)
        if block.ndim != 2 or block.shape[1] != self.spec.inputs or len(block) > count:
            raise ValueError(
                f"input of shape {block.shape}: this stream takes ({count}, {self.spec.inputs}), frames by channels; "
                "are the axes swapped, or the channels miscounted?"
            )
        if len(block) == count:
            return block
        return np.concatenate([block, np.zeros((count - len(block), self.spec.inputs), np.float32)])


class Lateness:
    """Counts what was due before it was mixed.

    Attributes
    ----------
    underruns, frames
        How often that was so, and how many frames were late.
    """

    def __init__(self) -> None:
        self.underruns = self.frames = 0
        self._until = 0

    def count(self, due: int, process: Process) -> None:
        """Look once: ``due`` is the end of what has been asked for."""
        known = max(process.mixed, self._until)
        if due <= known or process.stopped:
            return
        self.underruns += process.mixed >= self._until  # else still the same one
        self.frames += due - known
        self._until = due

    def publish(self, status: StatusBlock, process: Process, frame: int, time_ns: int) -> None:
        """Tell how the stream stands: ``frame`` leaves for the loudspeaker at ``time_ns``."""
        status.publish(
            frame=frame,
            time_ns=time_ns,
            mixed=process.mixed,
            heard=process.heard,
            underruns=self.underruns,
            late_frames=self.frames,
            stopped=process.stopped,
        )


class NullStream:
    """A stream to nowhere, at the pace of the wall clock: silence in, nothing out.

    Parameters
    ----------
    spec
        ``lead`` frames are kept mixed ahead of the clock.
    clock, sleep
        Monotonic nanoseconds, and a wait in seconds; tests give their own.
    status
        Where it tells how it stands: :data:`STREAM_FIELDS`.

    Attributes
    ----------
    late
        What was due before it was mixed.
    """

    def __init__(
        self,
        spec: StreamSpec,
        clock: Callable[[], int] = time.monotonic_ns,
        sleep: Callable[[float], None] = time.sleep,
        status: StatusBlock | None = None,
    ) -> None:
        self.spec = spec
        self.late = Lateness()
        self._clock = clock
        self._sleep = sleep
        self._status = status or StatusBlock.private(STREAM_FIELDS)

    def run(self, process: Process) -> None:
        """Drive ``process`` until it has stopped."""
        origin, begun_ns = process.mixed - self.spec.lead, self._clock()
        while not process.stopped:
            time_ns = self._clock()
            now = origin + frames_in(time_ns - begun_ns, self.spec.samplerate)
            process.played = now
            self.late.count(now, process)
            for block in _silence(process.heard, now - self.spec.latency, self.spec.inputs):
                process.hear(block)
            while process.mixed < now + self.spec.lead and not process.stopped:
                process.mix(self.spec.turn_frames)
            self.late.publish(self._status, process, now, time_ns)
            self._sleep(_seconds_ahead(self.spec, process, now))


class DeviceStream:
    """A stream to the device process. Runs in the engine's process, on its one thread; opens nothing itself.

    A turn of the loop: tell the time, hear what came in, mix ``lead`` frames ahead and up to a turn more, publish,
    sleep until that is used up. If the
    engine was held up for longer than ``lead``, it counts an underrun and mixes on: frames are placed by their
    index, so what is late is lost and what follows is in its place.

    Parameters
    ----------
    spec
        Input positions in the input ring have ``latency`` subtracted already.
    arena
        Memory laid out by :func:`realtime.io.layout`.
    clock, sleep
        Monotonic nanoseconds, and a wait in seconds; tests give their own.
    patience_seconds
        How long the first frame waits for a device that is being opened. One that cannot be opened is not waited for.

    Attributes
    ----------
    late
        What was due before it was mixed.
    """

    def __init__(
        self,
        spec: StreamSpec,
        arena: Arena,
        clock: Callable[[], int] = time.monotonic_ns,
        sleep: Callable[[float], None] = time.sleep,
        patience_seconds: float = 5.0,
    ) -> None:
        self.spec = spec
        self.late = Lateness()
        self._arena = arena  # the memory is unmapped when the last reference to it goes
        self._input: AudioRing = arena.ring("io.input")
        self._output: AudioRing = arena.ring("io.output")
        self._device: StatusBlock = arena.status("io.status")
        self._status: StatusBlock = arena.status("stream.status")
        self._clock = clock
        self._sleep = sleep
        self._patience_ns = round(patience_seconds * SECOND_NS)

    def run(self, process: Process) -> None:
        """Drive ``process`` until it has stopped and its last frame has left for the loudspeaker."""
        origin = process.mixed
        self._mix(process, origin)  # what is slow the first time happens before the clock starts
        self._await_device()
        playhead = Playhead(self.spec, origin - self.spec.lead, self._clock())
        while True:
            time_ns, device = self._clock(), self._device.read()
            now = process.played = playhead.advance(time_ns, device)
            self._hear(process, now, playhead.follows, device)
            # Due is what the device has taken, not what time alone would have: it may have stood still as well.
            self.late.count(device["playhead"] if playhead.follows else now, process)
            behind = self._mix(process, now + device["extra_lead"])
            self.late.publish(self._status, process, now, time_ns)
            if process.stopped and now >= process.mixed:
                return
            if not behind:
                self._sleep(_seconds_ahead(self.spec, process, now + device["extra_lead"]))

    def _await_device(self) -> None:
        """Let the device open, so that the first frame is not lost; not if it is known not to."""
        until_ns = self._clock() + self._patience_ns
        while self._clock() < until_ns:
            device = self._device.read()
            if device["epoch"] or device["state"] == FAILED:
                return
            self._sleep(0.001)

    def _hear(self, process: Process, now: int, alive: bool, device: dict[str, Any]) -> None:
        """Take what has come in. Where nothing comes, silence is heard, so that the hearing keeps up."""
        due = now - self.spec.latency
        if alive and device["has_input"]:
            # Later than that, and it does not come any more. A long block comes only when it is over.
            due -= max(frames_in(STALE_NS, self.spec.samplerate), 2 * self.spec.blocksize)
        end = max(due, self._input.written)
        while process.heard < end:
            process.hear(self._input.read(process.heard, min(end, process.heard + _HEAR_FRAMES)))

    def _mix(self, process: Process, now: int) -> bool:
        """Mix at least ``lead`` frames ahead, a bounded number at once; return whether more is due already.

        Whole turns only: a piece of one would cost the engine as much.
        """
        due = now + self.spec.lead
        for _ in range(_TURNS_AT_ONCE):
            if process.mixed >= due or process.stopped:
                return False
            start = process.mixed
            self._output.write(start, process.mix(self.spec.turn_frames))
        return process.mixed < due and not process.stopped


class Departures:
    """What became of each frame on its way to the loudspeaker. Reads what the device process writes down.

    The device process writes, by session frame, how many frames lay before it in the device's ring when it was handed
    over, and it does so when the device takes the frame, not before: what lay in the ring of a device that died did
    not go out.

    Parameters
    ----------
    arena
        Memory laid out by :func:`realtime.io.layout`.
    """

    words: ClassVar[dict[int, str]] = {
        LOST_EMPTY: "the device's ring ran empty",
        LOST_LATE: "the engine had not mixed it",
        LOST_GONE: "no device was there",
        LOST_UNSEEN: "nobody looked in time",
    }
    """Why a frame was lost, for people."""

    def __init__(self, arena: Arena) -> None:
        self._out = arena.ring("io.out")
        self._stream = arena.status("stream.status")
        self._patience_frames = self._out.capacity // OUT_SECONDS

    def of(self, frame: int) -> int | None:
        """Return the margin in frames with which ``frame`` (0 or later) went out in its place.

        Returns
        -------
        int or None
            0 or more: it went out, with so many frames before it in the device's ring. ``LOST_EMPTY``, ``LOST_LATE``
            or ``LOST_GONE``: it did not, and silence or nothing stood in its place. ``LOST_UNSEEN``: it is too
            long ago to know. ``None``: it is not decided yet. Without a device that is so until the clock is a second
            beyond it.
        """
        if frame >= self._out.written:
            gone = self._stream.read()["frame"] - frame > self._patience_frames
            return LOST_GONE if gone else None
        told = np.zeros((1, 1), np.float32)
        if not self._out.read_into(frame, told):
            return LOST_UNSEEN
        value = int(told[0, 0])
        return value - 1 if value > 0 else value or LOST_GONE


class Playhead:
    """The session frame that leaves for the loudspeaker now.

    Follows the device while there is one, else the wall clock from where the device left off. It never goes back:
    if the device says less than was told before, the playhead waits for it. It never runs ahead of time: in each
    step it gains at most one block on the wall clock, so a device that comes back is approached, not jumped at.

    Attributes
    ----------
    follows
        Whether the last step followed the device.
    """

    def __init__(self, spec: StreamSpec, frame: int, time_ns: int) -> None:
        self.follows = False
        self._spec = spec
        self._anchor = (frame, time_ns)  # last word of the device; frames count on from here
        self._told = (frame, time_ns)

    def advance(self, time_ns: int, device: dict[str, Any]) -> int:
        """Return the frame at ``time_ns``, given what the device process published."""
        self.follows = device["state"] == RUNNING and time_ns - device["heartbeat_ns"] < STALE_NS
        if self.follows:
            self._anchor = (device["playhead"], device["playhead_ns"])
        frame = self._anchor[0] + frames_in(time_ns - self._anchor[1], self._spec.samplerate)
        told, told_ns = self._told
        limit = told + frames_in(time_ns - told_ns, self._spec.samplerate) + self._spec.blocksize
        self._told = (max(told, min(frame, limit)), time_ns)
        return self._told[0]


def _reader(audio: Block) -> Callable[[int], Block]:
    position = 0

    def read(count: int) -> Block:
        nonlocal position
        position += count
        return audio[position - count : position]

    return read


def _silence(start: int, end: int, channels: int) -> Iterator[Block]:
    for at in range(start, end, _HEAR_FRAMES):
        yield np.zeros((min(_HEAR_FRAMES, end - at), channels), np.float32)


def _seconds_ahead(spec: StreamSpec, process: Process, now: int) -> float:
    """Return how long nothing has to be mixed, at most a turn: then what came in is heard."""
    ahead_frames = min(process.mixed - now - spec.lead, spec.turn_frames)
    return max(_SHORTEST_SLEEP, ahead_frames / spec.samplerate)
