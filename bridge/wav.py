"""A float32 WAV file that is whole at every moment, even if the process is killed or the disk fills up.

The header is one block of about a hundred bytes, rewritten in place by a single call *after* the data it describes,
so no reader ever meets a size that is not true. Room for 64-bit sizes is reserved from the start (a ``JUNK`` chunk
that becomes ``ds64``), so a file that passes 4 GiB turns into RF64 without being moved.

Sources: Microsoft/IBM *Multimedia Programming Interface* (RIFF), Microsoft ``WAVEFORMATEXTENSIBLE``, EBU Tech 3306
(RF64).
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import struct
from pathlib import Path
from types import TracebackType

import numpy as np

from realtime.protocols import Block

FLUSH_SECONDS = 0.25
"""Most sound that a kill can cost, but for the block that completes it."""
RIFF_BYTES = 2**32 - 2
"""Longest file whose sizes fit into 32 bits; all ones is RF64's word for "see ds64"."""

_IEEE_FLOAT, _EXTENSIBLE = 3, 0xFFFE
_FLOAT_GUID = struct.pack("<IHH", _IEEE_FLOAT, 0, 0x10) + bytes.fromhex("800000aa00389b71")
_SAMPLE_BYTES = 4


def wav_header(samplerate: int, channels: int, frames: int, riff_bytes: int = RIFF_BYTES) -> bytes:
    """Return the header of a float32 WAV file of ``frames`` frames: everything before the sound.

    Its length depends on ``channels`` only. A file longer than ``riff_bytes`` gets an RF64 header.
    """
    frame_bytes = channels * _SAMPLE_BYTES
    kind = _EXTENSIBLE if channels > 2 else _IEEE_FLOAT
    shape = struct.pack(
        "<HHIIHH", kind, channels, samplerate, samplerate * frame_bytes, frame_bytes, 8 * _SAMPLE_BYTES
    )
    # Speakers of more than two channels: mask 0, "direct to the outputs". Otherwise: no extra format bytes.
    extra = struct.pack("<HHI", 22, 8 * _SAMPLE_BYTES, 0) + _FLOAT_GUID if channels > 2 else struct.pack("<H", 0)
    fmt = shape + extra
    data_bytes = frames * frame_bytes
    riff_size = 4 + (8 + 28) + (8 + len(fmt)) + (8 + 4) + 8 + data_bytes
    if riff_size + 8 <= riff_bytes:
        start = struct.pack("<4sI4s4sI28x", b"RIFF", riff_size, b"WAVE", b"JUNK", 28)
        size, fact = data_bytes, frames
    else:
        ds64 = struct.pack("<4sIQQQI", b"ds64", 28, riff_size, data_bytes, frames, 0)
        start = struct.pack("<4sI4s", b"RF64", 0xFFFFFFFF, b"WAVE") + ds64
        size = fact = 0xFFFFFFFF
    return b"".join(
        (
            start,
            struct.pack("<4sI", b"fmt ", len(fmt)),
            fmt,
            struct.pack("<4sII", b"fact", 4, fact),
            struct.pack("<4sI", b"data", size),
        )
    )


def check_format(samplerate: int, channels: int) -> None:
    """Refuse, with a ``ValueError``, a rate or channel count that no WAV file of ours can have."""
    if not 1 <= samplerate <= 10_000_000:
        raise ValueError(f"samplerate={samplerate}: a WAV file has 1 to 10,000,000 frames per second")
    if not 1 <= channels <= 1024:
        raise ValueError(f"channels={channels}: a WAV file has 1 to 1,024 here; is the block (frames, channels)?")


class WavWriter:
    """Writes one float32 WAV file that can be read while it grows and after any end.

    Parameters
    ----------
    path
        The file; one that exists is replaced.
    samplerate
        Frames per second (Hz).
    channels
        1 to 1,024. More than two are written as ``WAVE_FORMAT_EXTENSIBLE``.
    flush_seconds
        Sound gathered in memory before it goes to the file, in seconds.
    riff_bytes
        Size of file above which it becomes RF64; for tests.

    Attributes
    ----------
    frames
        Whole frames in the file, as its header says.
    fault
        The error that ended the writing, ``None`` if there was none. It is raised once, by the call that meets it;
        afterwards :meth:`write` takes blocks and drops them.

    Raises
    ------
    ValueError
        For a rate or channel count that no WAV file can have.
    OSError
        If the file cannot be made, or (once) if the disk is full or failing.

    Notes
    -----
    Any one thread. After ``kill -9`` the file holds all up to the last flush; a power cut may cost more, as only
    :meth:`close` waits for the disk.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        samplerate: int,
        channels: int,
        *,
        flush_seconds: float = FLUSH_SECONDS,
        riff_bytes: int = RIFF_BYTES,
    ) -> None:
        check_format(samplerate, channels)
        self.path = Path(path)
        self.samplerate = samplerate
        self.channels = channels
        self.frames = 0
        self.fault: OSError | None = None
        self._riff_bytes = riff_bytes
        self._frame_bytes = channels * _SAMPLE_BYTES
        self._flush_bytes = max(1, round(flush_seconds * samplerate)) * self._frame_bytes
        self._pending = bytearray()
        self._digest = hashlib.sha256()
        self._data_start = len(self._header())
        self._file = open(self.path, "wb", buffering=0)  # noqa: SIM115 - closed by close()
        try:
            self._write_at(0, self._header())
        except OSError:
            self._file.close()
            raise

    def write(self, block: Block) -> None:
        """Append a block, shape ``(frames, channels)``; flushes when ``flush_seconds`` of sound have gathered.

        The block is copied: it may be written over afterwards.
        """
        if block.ndim != 2 or block.shape[1] != self.channels or block.dtype != np.float32:
            raise ValueError(
                f"{self.path.name}: block of shape {block.shape}, {block.dtype}; "
                f"expected (frames, {self.channels}) float32"
            )
        if self.fault is None:
            self._pending += np.ascontiguousarray(block, dtype="<f4").tobytes()
            if len(self._pending) >= self._flush_bytes:
                self.flush()

    def flush(self) -> None:
        """Write what has gathered, then the header that says so."""
        if self.fault is not None or self._file.closed:
            return
        data, self._pending = self._pending, bytearray()
        try:
            self._append(data)
            self._write_at(0, self._header())
        except OSError as fault:
            self._salvage(fault)
            raise

    def sha256(self) -> str:
        """Return the hash of all samples in the file so far (float32, little-endian), in hexadecimal."""
        return self._digest.hexdigest()

    def close(self) -> None:
        """Flush, wait for the disk, close. Closing twice is nothing."""
        if self._file.closed:
            return
        try:
            self.flush()
            if self.fault is None:
                self._sync()
        finally:
            self._file.close()

    def __enter__(self) -> WavWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None
    ) -> None:
        self.close()

    def _header(self) -> bytes:
        return wav_header(self.samplerate, self.channels, self.frames, self._riff_bytes)

    def _append(self, data: bytearray) -> None:
        """Write at the end of the sound; whatever happens, count and hash the whole frames that arrived."""
        start = self._data_start + self.frames * self._frame_bytes
        try:
            self._write_at(start, data)
        finally:
            whole = max(0, self._file.tell() - start) // self._frame_bytes
            self._digest.update(memoryview(data)[: whole * self._frame_bytes])
            self.frames += whole

    def _write_at(self, position: int, data: bytes | bytearray) -> None:
        self._file.seek(position)
        rest = memoryview(data)
        while rest:  # a full disk takes part of the data, and refuses the next call
            rest = rest[self._file.write(rest) :]

    def _sync(self) -> None:
        try:
            os.fsync(self._file.fileno())
        except OSError as fault:
            self.fault = fault
            raise

    def _salvage(self, fault: OSError) -> None:
        """Leave whole frames and a true header behind; both overwrite or shorten, so a full disk allows them."""
        self.fault = fault
        with contextlib.suppress(OSError):
            self._file.truncate(self._data_start + self.frames * self._frame_bytes)
        with contextlib.suppress(OSError):
            self._write_at(0, self._header())
