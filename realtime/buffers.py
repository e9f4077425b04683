"""Memory that outlives a block, shared or not: audio rings, record rings, status blocks.

Everything shared lives in one :class:`Arena`, sized before anything starts. Each array in it has exactly one
writing process. Python has no atomics and some processors reorder stores, so nothing relies on them alone:
records carry a stamp before and after and a checksum, audio is placed by its frame index and judged by the
writer's counter before and after it was copied. No lock crosses a process; a writer that dies in the middle
of a record leaves a record that fails its check, never a reader that waits.

Counters are read and written through memoryviews: a fifth of what NumPy takes for one number, and the engine
looks at some dozens of them in every block.

The same classes work on private memory, so the offline engine and the tests run the live code.
"""

from __future__ import annotations

import math
import os
import secrets
import struct
import sys
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from multiprocessing import resource_tracker
from multiprocessing.shared_memory import SharedMemory
from typing import Any, cast

import numpy as np
import numpy.typing as npt

from realtime.protocols import JOIN_SECONDS, Block

Layout = dict[str, tuple[np.dtype[Any], tuple[int, ...]]]
"""Name -> (dtype, shape) of every array in an arena."""

_FLOAT, _INDEX = np.dtype("f4"), np.dtype("i8")
_KINDS = {"i8": "q", "f8": "d"}  # what a status block holds, and how struct calls it
_ALIGN_BYTES = 64  # a cache line: two writers never share one


def numbers(array: npt.NDArray[Any]) -> memoryview[int]:
    """Return the quick way to single numbers of an array."""
    return memoryview(cast(Any, array.reshape(-1)))


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
    fall, rise, both = _fades(frames)
    energy = float(np.vdot(outgoing, outgoing)) * float(np.vdot(incoming, incoming))
    alike = float(np.vdot(outgoing, incoming)) / energy**0.5 if energy > 0 else 0.0
    if alike <= 0:
        return (outgoing * fall + incoming * rise).astype(np.float32)
    scale = both * (2 * min(1.0, alike))
    scale += 1
    np.sqrt(scale, out=scale)
    return ((outgoing * fall + incoming * rise) / scale).astype(np.float32)


@lru_cache(maxsize=64)  # a session has a few lengths: that of a join, and what shorter ones there was room for
def _fades(frames: int) -> tuple[npt.NDArray[np.float64], ...]:
    """Cosine, sine and their product over a quarter of a circle, ``(frames, 1)`` each."""
    angle = (np.arange(frames, dtype=np.float64)[:, None] + 0.5) * (np.pi / 2 / frames)
    fall, rise = np.cos(angle), np.sin(angle)
    return fall, rise, fall * rise


def checksum(audio: Block) -> int:
    """Sum a block's bits: cheap (some 80 bytes per nanosecond), and a torn or stale clip does not pass.

    The bits are taken as 64-bit words, an odd sample at the end for itself, the sum modulo 2**64.
    """
    words = np.ascontiguousarray(audio).view(np.uint32).reshape(-1)
    even = len(words) & ~1
    total = int(words[:even].view(np.uint64).sum(dtype=np.uint64)) if even else 0
    return add_checksums(total, int(words[even]) if even < len(words) else 0)


def add_checksums(first: int, second: int) -> int:
    """Return the checksum of two parts of a block, the first of an even number of samples."""
    return (first + second) & 0xFFFF_FFFF_FFFF_FFFF


def is_finite(audio: Block) -> bool:
    """Whether no sample is NaN or infinite; nothing is allocated, however long the block."""
    if audio.size == 0:
        return True
    return math.isfinite(audio.max()) and math.isfinite(audio.min())  # either finds NaN


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
    def create(cls, layout: Layout, name: str = "") -> Arena:
        """Reserve and clear the memory, so that no page is missing later.

        Parameters
        ----------
        layout
            What is in it.
        name
            As others will find it; one of its own if none is given.

        Raises
        ------
        OSError
            If there is not so much memory.
        """
        size = max((offset + _bytes(dtype, shape) for _, dtype, shape, offset in _places(layout)), default=1)
        memory = _Segment(name or f"sideman-{secrets.token_hex(6)}", create=True, size=size)
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
        """Return the audio ring laid out by :func:`ring_layout` under ``name``, or by :func:`stems_layout`: there
        it is called ``"GROUP.STEM"``.
        """
        if f"{name}.audio" in self._arrays:
            return AudioRing(self[f"{name}.audio"], self[f"{name}.index"])
        group, _, stem = name.partition(".")
        return self.stems(group).rings[stem]

    def stems(self, name: str) -> StemRings:
        """Return the rings laid out by :func:`stems_layout` under ``name``."""
        return StemRings(self[f"{name}.audio"], self[f"{name}.index"])

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


def stems_layout(name: str, frames: int, channels: Mapping[str, int]) -> Layout:
    """Arrays of :class:`StemRings`; ``channels`` is the width of each stem."""
    return {f"{name}.audio": (_side_by_side(channels), (frames,)), f"{name}.index": (_INDEX, (2,))}


def _side_by_side(channels: Mapping[str, int]) -> np.dtype[Any]:
    """Return one frame of several stems as a record type.

    A record has an even number of samples, and a stereo stem begins at an even one, so that its two channels can be
    moved as one number of eight bytes.
    """
    places = stem_columns(list(channels.values()))
    return np.dtype(
        {
            "names": list(channels),
            "formats": [(np.float32, (width,)) for width in channels.values()],
            "offsets": [_FLOAT.itemsize * column for column in places.first],
            "itemsize": _FLOAT.itemsize * places.width,
        }
    )


@dataclass(frozen=True, slots=True)
class Columns:
    """Where each of several stems begins in a frame of all of them, and how many samples such a frame has."""

    first: tuple[int, ...]
    width: int


def stem_columns(channels: Sequence[int]) -> Columns:
    """Give stems their columns side by side: those of an even width first, so that each of them begins evenly."""
    first, width = [0] * len(channels), 0
    for stem in sorted(range(len(channels)), key=lambda stem: channels[stem] % 2):
        first[stem] = width
        width += channels[stem]
    return Columns(tuple(first), max(2, width + width % 2))


def record_layout(name: str, count: int, size_bytes: int) -> Layout:
    """Arrays of a :class:`RecordRing` of ``count`` places of ``size_bytes``."""
    return {
        f"{name}.data": (np.dtype("u1"), (count, size_bytes)),
        f"{name}.head": (_INDEX, (count, 4)),
        f"{name}.index": (_INDEX, (2, 8)),
    }


def status_layout(name: str, fields: Mapping[str, str]) -> Layout:
    """Arrays of a :class:`StatusBlock`; ``fields`` maps names to dtypes."""
    return {f"{name}.fields": (_status_type(fields), (1,)), f"{name}.stamps": (_INDEX, (2,))}


def _status_type(fields: Mapping[str, str]) -> np.dtype[Any]:
    unknown = [f"{name}: {kind}" for name, kind in fields.items() if kind not in _KINDS]
    if unknown:
        raise ValueError(f"status field {unknown[0]}; a status block holds {' and '.join(_KINDS)}")
    return np.dtype(list(fields.items()))


class AudioRing:
    """The last ``capacity`` frames of one signal, by absolute frame. One writer, any number of readers.

    Frames are placed by their index, never by when they came. The writer counts up in two places: what it is
    about to overwrite, before it writes, and what is whole, after. A reader copies, then looks whether the writer
    has come round meanwhile, and takes what was overtaken for lost: zeros.
    """

    def __init__(self, audio: npt.NDArray[np.float32], index: npt.NDArray[np.int64]) -> None:
        self._audio = audio
        self._index = numbers(index)  # [end of the frames that are whole, end of the frames being written]
        self.capacity, self.channels = audio.shape

    @classmethod
    def private(cls, frames: int, channels: int) -> AudioRing:
        """Return a ring on this process's own memory."""
        return cls(np.zeros((frames, channels), np.float32), np.zeros(2, np.int64))

    @property
    def written(self) -> int:
        """End of the frames that are whole."""
        return self._index[0]

    def write(self, start: int, block: Block) -> None:
        """Place ``block`` at frame ``start``, which is ``written`` or later; a gap is filled with zeros. Writer."""
        index = self._index
        whole, end = index[0], start + len(block)
        index[1] = end
        if start > whole:
            self._silence(whole, start)
        at = start % self.capacity
        if at + len(block) <= self.capacity:
            self._audio[at : at + len(block)] = block
        else:
            self._wrap(start, block)
        index[0] = end

    def read(self, start: int, end: int) -> Block:
        """Copy frames ``[start, end)``; zeros stand for those before the beginning, lost, or not written yet."""
        out = np.zeros((end - start, self.channels), np.float32)
        self.read_into(start, out)
        return out

    def read_into(self, start: int, out: Block) -> int:
        """Copy ``len(out)`` frames from ``start`` into ``out``; return how many of them were held."""
        end, whole = start + len(out), self._index[0]
        first, last = max(start, 0, whole - self.capacity), min(end, whole)
        if first >= last:
            out[:] = 0
            return 0
        if first > start:
            out[: first - start] = 0
        if last < end:
            out[last - start :] = 0
        at = first % self.capacity
        run = min(last - first, self.capacity - at)
        out[first - start : first - start + run] = self._audio[at : at + run]
        if run < last - first:
            out[first - start + run : last - start] = self._audio[: last - first - run]
        overtaken = self._index[1] - self.capacity  # the writer may have come round while we copied
        if overtaken > first:
            out[: min(overtaken, end) - start] = 0
            first = min(overtaken, last)
        return int(last - first)

    def runs(self, start: int, end: int) -> Iterator[Block]:
        """Yield frames ``[start, end)``, which must be held, as views of the ring: one, or two where it wraps.

        For the writer, or whoever is on its thread: nobody says whether a view was overtaken.
        """
        return _runs(self._audio, start, end)

    def jump(self, frame: int) -> None:
        """Declare everything before ``frame`` lost or silent and go on from there. Writer."""
        if frame > self.written:
            self.write(frame, np.zeros((0, self.channels), np.float32))

    def _silence(self, start: int, end: int) -> None:
        start = max(start, end - self.capacity)
        for run in self.runs(start, end):
            run[:] = 0

    def _wrap(self, start: int, block: Block) -> None:
        if len(block) > self.capacity:
            start, block = start + len(block) - self.capacity, block[-self.capacity :]
        at = start % self.capacity
        run = min(len(block), self.capacity - at)
        self._audio[at : at + run] = block[:run]
        self._audio[: len(block) - run] = block[run:]


def _runs(audio: Block, start: int, end: int) -> Iterator[Block]:
    while start < end:
        at = start % len(audio)
        count = min(end - start, len(audio) - at)
        yield audio[at : at + count]
        start += count


class StemRings:
    """The stems of a band side by side in one ring: the engine makes their sound in place, without a copy.

    Every other process reads a stem as an :class:`AudioRing` of its own, a view of its columns. All stems are made
    together, so they have one pair of counters.

    Attributes
    ----------
    rings
        By name, for reading.
    together
        All of them as one ring of ``sound``'s columns, for reading.
    sound
        ``(capacity, width)`` float32: the columns of every stem as :func:`stem_columns` gives them, and no others
        but one that makes the width even. The writer's to fill between :meth:`begin` and :meth:`finish`.
    """

    def __init__(self, audio: npt.NDArray[Any], index: npt.NDArray[np.int64]) -> None:
        names = audio.dtype.names or ()
        self.rings = {name: AudioRing(audio[name], index) for name in names}
        self.capacity = len(audio)
        self.sound: Block = audio.view(np.float32).reshape(len(audio), -1)
        self.together = AudioRing(self.sound, index)
        self._index = numbers(index)

    @classmethod
    def private(cls, frames: int, channels: Mapping[str, int]) -> StemRings:
        """Return rings on this process's own memory."""
        return cls(np.zeros(frames, _side_by_side(channels)), np.zeros(2, np.int64))

    def lanes(self) -> list[npt.NDArray[Any]]:
        """Return the columns of each stem, as :func:`lane` shapes them. Writer."""
        return [lane(ring._audio) for ring in self.rings.values()]

    @property
    def written(self) -> int:
        """End of the frames that are whole."""
        return self._index[0]

    def runs(self, start: int, end: int) -> Iterator[Block]:
        """Yield frames ``[start, end)`` of :attr:`sound`, as :meth:`AudioRing.runs` does. Writer."""
        return _runs(self.sound, start, end)

    def begin(self, end: int) -> None:
        """Say that the frames up to ``end`` are going to be overwritten, counted once round the ring. Writer."""
        self._index[1] = end

    def finish(self, end: int) -> None:
        """Say that the frames up to ``end`` are whole. Writer."""
        self._index[0] = end


def lane(audio: Block) -> npt.NDArray[Any]:
    """Return a view of ``(frames, channels)`` whose frames are quick to copy to another lane, bit for bit.

    A mono block becomes ``(frames,)``, and so does a stereo block, its two samples taken as one number of eight
    bytes; a wider one stays as it is.
    """
    if audio.shape[1] == 1:
        return audio[:, 0]
    if audio.shape[1] == 2:
        if audio.strides[1] != audio.itemsize:
            audio = np.ascontiguousarray(audio)
        pairs: npt.NDArray[Any] = audio.view(np.complex64)[:, 0]
        return pairs
    return audio


_HEAD = 4  # numbers before a record: stamp before, length, checksum, stamp after
_LOOKS = 4  # a look takes longer than a store from one processor to the other
_POSTED, _TAKEN = 0, 8  # where these two counters are in the index: a cache line each, as each has its own writer


class RecordRing:
    """A bounded queue of byte records from one process to one other. Nothing waits, nothing is torn.

    A record takes one place of the queue, or as many in a row as it needs. ``post`` fails when there is not so much
    room. A record whose stamps or checksum are wrong is looked at again, as its stores may still be on their way;
    then it is passed over and counted. Counters that cannot be are taken for damage too: what a process gone mad
    writes there costs a bounded time.

    Attributes
    ----------
    count, size_bytes
        Places, and bytes in one.
    refused, damaged
        Records that found no room (counted by the writer) or were passed over (by the reader).
    """

    def __init__(
        self, data: npt.NDArray[np.uint8], head: npt.NDArray[np.int64], index: npt.NDArray[np.int64]
    ) -> None:
        self.count, self.size_bytes = data.shape
        self._data = numbers(data)
        self._head = numbers(head)
        self._index = numbers(index)
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
        return self._index[_POSTED] != self._index[_TAKEN]

    def post(self, record: bytes) -> bool:
        """Add a record; return False, and count it, if there is no room for it. Writer."""
        posted, length = self._index[_POSTED], len(record)
        places = -(-length // self.size_bytes) or 1
        if posted - self._index[_TAKEN] + places > self.count:
            self.refused += 1
            return False
        head, first = self._head, posted % self.count
        at, stamp = _HEAD * first, posted + 1
        head[at] = stamp
        start = first * self.size_bytes
        fits = len(self._data) - start
        self._data[start : start + length] = record[:fits]
        if length > fits:
            self._data[: length - fits] = record[fits:]
        for place in range(posted + 1, posted + places):
            head[_HEAD * (place % self.count)] = 0  # no record begins here
        head[at + 1], head[at + 2] = length, zlib.crc32(record)
        head[at + 3] = stamp
        self._index[_POSTED] = posted + places
        return True

    def take(self) -> bytes | None:
        """Remove the oldest record and return it, ``None`` if there is none. Reader."""
        index = self._index
        posted = index[_POSTED]
        if not 0 <= posted - index[_TAKEN] <= self.count:
            self.damaged += 1
            index[_TAKEN] = posted
        while (taken := index[_TAKEN]) < posted:
            for _ in range(_LOOKS):
                record = self._look(taken, posted)
                if record is not None:
                    index[_TAKEN] = taken + (-(-len(record) // self.size_bytes) or 1)
                    return record
            self.damaged += 1
            index[_TAKEN] = self._next_begin(taken + 1, posted)
        return None

    def _look(self, taken: int, posted: int) -> bytes | None:
        """Return the record that begins at place ``taken``, ``None`` if none does or it is damaged."""
        first = taken % self.count
        before, length, crc, after = self._head[_HEAD * first : _HEAD * first + _HEAD]
        if not (before == after == taken + 1 and 0 <= length <= (posted - taken) * self.size_bytes):
            return None
        start = first * self.size_bytes
        record = bytes(self._data[start : start + length])
        if len(record) < length:
            record += bytes(self._data[: length - len(record)])
        return record if zlib.crc32(record) == crc else None

    def _next_begin(self, place: int, posted: int) -> int:
        while place < posted and self._head[_HEAD * (place % self.count)] != place + 1:
            place += 1
        return place


class StatusBlock:
    """The latest of a few numbers, written by one process, read by any. A reader never waits for the writer."""

    def __init__(self, fields: npt.NDArray[Any], stamps: npt.NDArray[np.int64]) -> None:
        self._fields = fields
        self._stamps = numbers(stamps)
        self._names: tuple[str, ...] = fields.dtype.names or ()
        kinds = (fields.dtype[name].str[1:] for name in self._names)
        self._numbers = struct.Struct("=" + "".join(_KINDS[kind] for kind in kinds))
        self._bytes = numbers(fields.view(np.uint8))
        self._good = self._numbers.unpack_from(self._bytes)

    @classmethod
    def private(cls, fields: Mapping[str, str]) -> StatusBlock:
        """Return a block on this process's own memory."""
        return cls(np.zeros(1, _status_type(fields)), np.zeros(2, np.int64))

    @property
    def stamp(self) -> int:
        """Counts up with every word of the writer: whoever has read at this stamp has nothing new to read."""
        return self._stamps[1]

    def publish(self, **values: float) -> None:
        """Write some of the numbers; those not named keep their value. Writer."""
        stamps = self._stamps
        stamps[0] = stamp = stamps[0] + 1
        for name, value in values.items():
            self._fields[name][0] = value
        stamps[1] = stamp

    def read(self) -> dict[str, Any]:
        """Return all numbers as they were at one time; the last good ones while the writer is in the middle."""
        stamps = self._stamps
        for _ in range(8):
            after = stamps[1]
            copy = self._numbers.unpack_from(self._bytes)
            if stamps[0] == after:
                self._good = copy
                break
        return dict(zip(self._names, self._good, strict=True))
