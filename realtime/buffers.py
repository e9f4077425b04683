"""Memory that outlives a block, shared or not: audio rings, record rings, clip slots, status blocks.

Everything shared lives in one :class:`Arena`, sized before anything starts. Each array in it has exactly one
writing process. Python has no atomics and some processors reorder stores, so nothing relies on them alone:
records carry a stamp before and after and a checksum, audio is placed by its frame index and judged by the
writer's counter before and after it was copied. No lock crosses a process; a writer that dies in the middle
of a record leaves a record that fails its check, never a reader that waits.

The same classes work on private memory, so the offline engine and the tests run the live code.
"""

from __future__ import annotations

import math
import os
import secrets
import sys
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from multiprocessing import resource_tracker
from multiprocessing.shared_memory import SharedMemory
from typing import Any

import numpy as np
import numpy.typing as npt

from realtime.protocols import JOIN_SECONDS, Block

Layout = dict[str, tuple[np.dtype[Any], tuple[int, ...]]]
"""Name -> (dtype, shape) of every array in an arena."""

_FLOAT, _INDEX = np.dtype("f4"), np.dtype("i8")
_ALIGN_BYTES = 64  # a cache line: two writers never share one


def join_frames(samplerate: int) -> int:
    """Length of a crossfade between two clips, in frames."""
    return round(JOIN_SECONDS * samplerate)


def crossfade(outgoing: Block, incoming: Block) -> Block:
    """Crossfade two blocks of ``(frames, channels)`` at equal power, whatever their correlation.

    The gains are cosine and sine, divided by ``sqrt(1 + 2 r a b)``, where r is the correlation of the two blocks
    (not below 0). Unrelated material keeps its power; material that continues itself comes out as it went in,
    without the 3 dB swell that a plain equal-power fade would give it.
    """
    frames = len(outgoing)
    if frames == 0:
        return incoming.copy()
    angle = (np.arange(frames, dtype=np.float64) + 0.5) * (np.pi / 2 / frames)
    fall, rise = np.cos(angle), np.sin(angle)
    energy = float(np.vdot(outgoing, outgoing)) * float(np.vdot(incoming, incoming))
    alike = float(np.vdot(outgoing, incoming)) / energy**0.5 if energy > 0 else 0.0
    scale = 1 / np.sqrt(1 + 2 * min(1.0, max(0.0, alike)) * fall * rise)
    fall, rise = fall * scale, rise * scale
    return (outgoing * fall[:, None] + incoming * rise[:, None]).astype(np.float32)


def checksum(audio: Block) -> int:
    """Sum a block's bits as 32-bit words: cheap (8 bytes per nanosecond), and a torn or stale clip does not pass."""
    return int(np.ascontiguousarray(audio).view(np.uint32).sum(dtype=np.uint64))


@dataclass(frozen=True, slots=True)
class ArenaHandle:
    """What a child process needs to find an arena: plain values, safe to send."""

    name: str
    layout: Layout


class _Segment(SharedMemory):
    """Shared memory that stays mapped while a view of it is alive, and says nothing of it at the process's end."""

    def close(self) -> None:
        try:
            super().close()
        except BufferError:  # a view is still alive somewhere: the process's end will free it
            return

    @classmethod
    def of_another(cls, name: str) -> _Segment:
        """Open a segment that another process created and will remove.

        Before Python 3.13 (``track=False``) the resource tracker takes everyone who opens a segment for its owner,
        and a program that ends would take the memory away from those who still use it.
        """
        if sys.version_info >= (3, 13):
            return cls(name, track=False)
        register = resource_tracker.register
        resource_tracker.register = _untracked
        try:
            return cls(name)
        finally:
            resource_tracker.register = register


def _untracked(name: object, rtype: str) -> None:
    """Stand in for the resource tracker's ``register``."""


class Arena:
    """One segment of shared memory that holds named arrays.

    The process that created it must :meth:`unlink` it; every process closes it. A view keeps the memory mapped.
    """

    def __init__(self, memory: SharedMemory, layout: Layout) -> None:
        self._memory = memory
        self.handle = ArenaHandle(memory.name, layout)
        self._arrays: dict[str, npt.NDArray[Any]] = {}
        for name, dtype, shape, offset in _places(layout):
            # frombuffer, not ndarray(buffer=...): that one would let the memory be unmapped under a living view
            count = math.prod(shape)
            flat = np.frombuffer(memory.buf or b"", dtype, count, offset) if count else np.empty(0, dtype)
            self._arrays[name] = flat.reshape(shape)

    @classmethod
    def create(cls, layout: Layout) -> Arena:
        """Reserve and clear the memory, so that no page is missing later.

        Raises
        ------
        OSError
            If there is not so much memory.
        """
        size = max((offset + _bytes(dtype, shape) for _, dtype, shape, offset in _places(layout)), default=1)
        memory = _Segment(f"sideman-{secrets.token_hex(6)}", create=True, size=size)
        arena = cls(memory, layout)
        file = getattr(memory, "_fd", -1)
        if file < 0 or not hasattr(os, "posix_fallocate"):
            for array in arena._arrays.values():
                array.fill(0)
            return arena
        try:
            os.posix_fallocate(file, 0, size)  # zeros, in a quarter of the time
        except OSError:
            arena.close()
            arena.unlink()
            raise
        return arena

    @classmethod
    def attach(cls, handle: ArenaHandle) -> Arena:
        """Open an arena that another process created."""
        return cls(_Segment.of_another(handle.name), handle.layout)

    def __getitem__(self, name: str) -> npt.NDArray[Any]:
        return self._arrays[name]

    def ring(self, name: str) -> AudioRing:
        """Return the audio ring laid out by :func:`ring_layout` under ``name``."""
        return AudioRing(self[f"{name}.audio"], self[f"{name}.index"])

    def records(self, name: str) -> RecordRing:
        """Return the record ring laid out by :func:`record_layout` under ``name``."""
        return RecordRing(self[f"{name}.data"], self[f"{name}.head"], self[f"{name}.index"])

    def status(self, name: str) -> StatusBlock:
        """Return the status block laid out by :func:`status_layout` under ``name``."""
        return StatusBlock(self[f"{name}.fields"], self[f"{name}.stamps"])

    def close(self) -> None:
        """Let go of the memory. A view that is still held keeps it until it goes."""
        self._arrays.clear()
        self._memory.close()

    def unlink(self) -> None:
        """Remove the memory for everybody; the creator does this last."""
        self._memory.unlink()


def _bytes(dtype: np.dtype[Any], shape: tuple[int, ...]) -> int:
    return dtype.itemsize * math.prod(shape)


def _places(layout: Layout) -> Iterator[tuple[str, np.dtype[Any], tuple[int, ...], int]]:
    offset = 0
    for name, (dtype, shape) in layout.items():
        yield name, dtype, shape, offset
        offset += -(-_bytes(dtype, shape) // _ALIGN_BYTES) * _ALIGN_BYTES


def ring_layout(name: str, frames: int, channels: int) -> Layout:
    """Arrays of an :class:`AudioRing`."""
    return {f"{name}.audio": (_FLOAT, (frames, channels)), f"{name}.index": (_INDEX, (2,))}


def record_layout(name: str, count: int, size_bytes: int) -> Layout:
    """Arrays of a :class:`RecordRing`."""
    return {
        f"{name}.data": (np.dtype("u1"), (count, size_bytes)),
        f"{name}.head": (_INDEX, (count, 4)),
        f"{name}.index": (_INDEX, (2, 8)),
    }


def status_layout(name: str, fields: Mapping[str, str]) -> Layout:
    """Arrays of a :class:`StatusBlock`; ``fields`` maps names to dtypes."""
    return {f"{name}.fields": (np.dtype(list(fields.items())), (1,)), f"{name}.stamps": (_INDEX, (2,))}


class AudioRing:
    """The last ``capacity`` frames of one signal, by absolute frame. One writer, any number of readers.

    Frames are placed by their index, never by when they came. The writer counts up in two places: what it is
    about to overwrite, before it writes, and what is whole, after. A reader copies, then looks whether the writer
    has come round meanwhile, and takes what was overtaken for lost: zeros.
    """

    def __init__(self, audio: npt.NDArray[np.float32], index: npt.NDArray[np.int64]) -> None:
        self._audio = audio
        self._index = index  # [end of the frames that are whole, end of the frames being written]
        self.capacity, self.channels = audio.shape

    @classmethod
    def private(cls, frames: int, channels: int) -> AudioRing:
        """Return a ring on this process's own memory."""
        return cls(np.zeros((frames, channels), np.float32), np.zeros(2, np.int64))

    @property
    def written(self) -> int:
        """End of the frames that are whole."""
        return int(self._index[0])

    def write(self, start: int, block: Block) -> None:
        """Place ``block`` at frame ``start``, which is ``written`` or later; a gap is filled with zeros. Writer."""
        end = start + len(block)
        whole = int(self._index[0])
        self._index[1] = end
        if start > whole:
            self._place(
                max(whole, start - self.capacity),
                np.zeros((min(start - whole, self.capacity), self.channels), np.float32),
            )
        self._place(start, block)
        self._index[0] = end

    def read(self, start: int, end: int) -> Block:
        """Copy frames ``[start, end)``; zeros stand for those before the beginning, lost, or not written yet."""
        out = np.zeros((end - start, self.channels), np.float32)
        self.read_into(start, out)
        return out

    def read_into(self, start: int, out: Block) -> int:
        """Copy ``len(out)`` frames from ``start`` into ``out``; return how many of them were held."""
        end = start + len(out)
        first, last = max(start, 0, self.written - self.capacity), min(end, self.written)
        out[: max(0, min(first, end) - start)] = 0
        out[max(0, last - start) :] = 0
        if first >= last:
            out[:] = 0
            return 0
        at = first % self.capacity
        run = min(last - first, self.capacity - at)
        out[first - start : first - start + run] = self._audio[at : at + run]
        if run < last - first:
            out[first - start + run : last - start] = self._audio[: last - first - run]
        overtaken = int(self._index[1]) - self.capacity  # the writer may have come round while we copied
        if overtaken > first:
            out[: min(overtaken, end) - start] = 0
            first = min(overtaken, last)
        return int(last - first)

    def jump(self, frame: int) -> None:
        """Declare everything before ``frame`` lost or silent and go on from there. Writer."""
        if frame > self.written:
            self.write(frame, np.zeros((0, self.channels), np.float32))

    def _place(self, start: int, block: Block) -> None:
        if len(block) > self.capacity:
            start, block = start + len(block) - self.capacity, block[-self.capacity :]
        at = start % self.capacity
        run = min(len(block), self.capacity - at)
        self._audio[at : at + run] = block[:run]
        self._audio[: len(block) - run] = block[run:]


class RecordRing:
    """A bounded queue of byte records from one process to one other. Nothing waits, nothing is torn.

    ``post`` fails when the queue is full; ``take`` passes over a record whose stamps or checksum are wrong and
    counts it.
    """

    def __init__(
        self, data: npt.NDArray[np.uint8], head: npt.NDArray[np.int64], index: npt.NDArray[np.int64]
    ) -> None:
        self._data = data
        self._head = head  # per record: stamp before, length, checksum, stamp after
        self._index = index  # row 0: posted, by the writer; row 1: taken, by the reader
        self.count, self.size_bytes = data.shape
        self.refused = 0
        self.damaged = 0

    @classmethod
    def private(cls, count: int, size_bytes: int) -> RecordRing:
        """Return a queue on this process's own memory."""
        return cls(
            np.zeros((count, size_bytes), np.uint8), np.zeros((count, 4), np.int64), np.zeros((2, 8), np.int64)
        )

    @property
    def waiting(self) -> bool:
        """Whether a record is there to take."""
        return bool(self._index[0, 0] != self._index[1, 0])

    def post(self, record: bytes) -> bool:
        """Add a record; return False, and count it, if the queue is full or the record too long. Writer."""
        posted = int(self._index[0, 0])
        if posted - int(self._index[1, 0]) >= self.count or len(record) > self.size_bytes:
            self.refused += 1
            return False
        at, stamp = posted % self.count, posted + 1
        head = self._head[at]
        head[0] = stamp
        self._data[at, : len(record)] = np.frombuffer(record, np.uint8)
        head[1], head[2] = len(record), zlib.crc32(record)
        head[3] = stamp
        self._index[0, 0] = stamp
        return True

    def take(self) -> bytes | None:
        """Remove the oldest record and return it, ``None`` if there is none. Reader."""
        while (taken := int(self._index[1, 0])) < int(self._index[0, 0]):
            at = taken % self.count
            before, length, crc, after = (int(value) for value in self._head[at])
            record = self._data[at, : max(0, min(length, self.size_bytes))].tobytes()
            self._index[1, 0] = taken + 1
            if before == after == taken + 1 and zlib.crc32(record) == crc:
                return record
            self.damaged += 1
        return None


class StatusBlock:
    """The latest of a few numbers, written by one process, read by any. A reader never waits for the writer."""

    def __init__(self, fields: npt.NDArray[Any], stamps: npt.NDArray[np.int64]) -> None:
        self._fields = fields
        self._stamps = stamps
        self._good: Any = fields[0].copy()

    @classmethod
    def private(cls, fields: Mapping[str, str]) -> StatusBlock:
        """Return a block on this process's own memory."""
        return cls(np.zeros(1, [(name, kind) for name, kind in fields.items()]), np.zeros(2, np.int64))

    def publish(self, **values: float) -> None:
        """Write some of the numbers; those not named keep their value. Writer."""
        self._stamps[0] += 1
        for name, value in values.items():
            self._fields[name][0] = value
        self._stamps[1] = self._stamps[0]

    def read(self) -> dict[str, Any]:
        """Return all numbers as they were at one time; the last good ones while the writer is in the middle."""
        for _ in range(8):
            after = int(self._stamps[1])
            copy = self._fields[0].copy()
            if int(self._stamps[0]) == after:
                self._good = copy
                break
        return {name: self._good[name].item() for name in self._good.dtype.names}


class Slots:
    """Places for clips on their way from a worker: ``(count, frames, channels)``. The engine says which to use."""

    def __init__(self, audio: npt.NDArray[np.float32]) -> None:
        self.audio = audio
        self._free = list(range(len(audio)))

    def acquire(self) -> int | None:
        """Return a free place, ``None`` if there is none. Engine."""
        return self._free.pop() if self._free else None

    def release(self, slot: int) -> None:
        """Give a place back. Engine."""
        self._free.append(slot)
