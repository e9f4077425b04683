"""Reading sound files: any WAV, FLAC, AIFF, OGG or MP3, any rate, 1 to 64 channels. Wraps soundfile.

A file that cannot be used ends in one :class:`ValueError`: a sentence that names the file, what was found, what is
allowed and the likely slip. A stranger's file is opened in a process under limits (:mod:`realtime.foreign`).
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np

from realtime.protocols import Block

MAX_CHANNELS = 64
MIN_SAMPLERATE, MAX_SAMPLERATE = 4000, 768000
SUFFIXES = (".wav", ".flac", ".aiff", ".aif", ".ogg", ".mp3")
_ALLOWED = "WAV, FLAC, AIFF, OGG and MP3 can be read"
_UNKNOWN_LENGTHS = (0, 0xFFFFFFFF, 0x7FFFFFFF)
"""Chunk sizes that a writer leaves when it never came back to its header: not a sign of truncation."""
_CHECK_FRAMES = 1 << 18
_FRAMES_PER_BYTE = 1 << 16
"""More than any format holds in a byte: what says so is a header that was damaged, or made up."""


@dataclass(frozen=True, slots=True)
class SoundInfo:
    """What a sound file says about itself; ``format`` and ``subtype`` are libsndfile's names."""

    frames: int
    samplerate: int
    channels: int
    format: str
    subtype: str

    @property
    def seconds(self) -> float:
        """Length."""
        return self.frames / self.samplerate


class SoundFile:
    """An open file; :meth:`read` gives any stretch of it, zeros where the file has none. One thread.

    Raises
    ------
    ValueError
        If the file is missing, no sound file, empty, truncated, or has an unusual rate or channel count.
    """

    def __init__(self, path: Path | str) -> None:
        self.path = Path(path)
        self._file = _open(self.path)
        self.info = SoundInfo(
            self._file.frames, self._file.samplerate, self._file.channels, self._file.format, self._file.subtype
        )
        try:
            _check_header(self.path, self.info, self._file.extra_info)
        except ValueError:
            self.close()
            raise

    def __enter__(self) -> SoundFile:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def read(self, start: int, end: int) -> Block:
        """Return ``[start, end)``, shape ``(end - start, channels)``; frames outside the file are zeros.

        Raises
        ------
        ValueError
            If the file breaks off there, or holds NaN or infinity.
        """
        audio = np.zeros((max(0, end - start), self.info.channels), np.float32)
        first, last = max(0, start), min(end, self.info.frames)
        if first >= last:
            return audio
        found = self._decode(first, last)
        if len(found) < last - first:
            raise ValueError(_truncated(self.path, f"says {self.info.frames} frames, holds {first + len(found)}"))
        _check_finite(self.path, found, first)
        audio[first - start : last - start] = found
        return audio

    def _decode(self, first: int, last: int) -> Block:
        import soundfile

        try:
            if self._file.tell() != first:
                self._file.seek(first)
            found: Block = self._file.read(last - first, dtype="float32", always_2d=True)
        except soundfile.LibsndfileError as error:
            raise ValueError(_truncated(self.path, f"cannot be decoded from frame {first} on ({error})")) from None
        return found


def info(path: Path | str) -> SoundInfo:
    """Return what the header of a sound file says; raises as :class:`SoundFile` does."""
    with SoundFile(path) as file:
        return file.info


def read(path: Path | str) -> tuple[Block, int]:
    """Read a whole sound file.

    Returns
    -------
    audio, samplerate
        ``(frames, channels)`` float32, and frames per second.

    Raises
    ------
    ValueError
        As :class:`SoundFile` and :meth:`SoundFile.read` do.
    """
    with SoundFile(path) as file:
        try:
            return file.read(0, file.info.frames), file.info.samplerate
        except MemoryError:
            raise ValueError(
                f"{path} is too long to be held in memory: {file.info.seconds:.0f} s of {file.info.channels} channels"
            ) from None


def write(path: Path | str, audio: Block, samplerate: int, subtype: str | None = None) -> None:
    """Write ``(frames, channels)`` to a file; its suffix says the format.

    Raises
    ------
    OSError
        If it cannot be written.
    """
    import soundfile

    try:
        soundfile.write(str(path), audio, samplerate, subtype=subtype)
    except (soundfile.LibsndfileError, AssertionError) as error:  # a full disk is a failed assertion there
        reason = str(error).rstrip(".") or "not all of it fits"
        raise OSError(None, f"it cannot be written ({reason}); is the disk full?", str(path)) from None


def _open(path: Path) -> Any:
    """Open with soundfile, after the checks whose reason libsndfile would not say."""
    import soundfile

    if not path.exists():
        raise ValueError(f"{path}: there is no such file; give the path of a sound file, and mind the spelling")
    if not path.is_file() and not path.is_dir():
        raise ValueError(f"{path} is no regular file, but a device or a pipe; give the path of a sound file")
    if path.is_dir():
        raise ValueError(f"{path} is a folder; give the sound files in it, for instance {path}/*.wav")
    if path.stat().st_size == 0:
        raise ValueError(f"{path} is empty (0 bytes); {_ALLOWED}; was its recording or download cut off?")
    try:
        return soundfile.SoundFile(str(path))
    except soundfile.LibsndfileError as error:
        reason = str(error.error_string).rstrip(".")
        raise ValueError(
            f"{path} cannot be read as sound ({reason}); {_ALLOWED}; "
            "is it damaged, or another kind of file with this name?"
        ) from None


def _check_header(path: Path, found: SoundInfo, extra: str) -> None:
    if not 1 <= found.channels <= MAX_CHANNELS:
        raise ValueError(f"{path} has {found.channels} channels; 1 to {MAX_CHANNELS} are allowed; split the file")
    if not MIN_SAMPLERATE <= found.samplerate <= MAX_SAMPLERATE:
        raise ValueError(
            f"{path} has {found.samplerate} frames per second; {MIN_SAMPLERATE} to {MAX_SAMPLERATE} are allowed; "
            "is its header damaged?"
        )
    for claimed, real in re.findall(r"^ *(?:data|SSND) *: *(\d+) \(should be (\d+)\)", extra, re.MULTILINE):
        if int(claimed) not in _UNKNOWN_LENGTHS and int(claimed) > int(real):
            raise ValueError(_truncated(path, f"says {claimed} bytes of sound, holds {real}"))
    if found.frames > path.stat().st_size * _FRAMES_PER_BYTE:
        raise ValueError(_truncated(path, f"says {found.frames} frames, in {path.stat().st_size} bytes"))
    if found.format == "OGG" and not _ogg_ends(path):
        raise ValueError(_truncated(path, "has no last page"))
    if found.frames < 1:
        raise ValueError(f"{path} holds no sound (0 frames); at least one is needed; was nothing recorded?")


def _ogg_ends(path: Path) -> bool:
    """Whether the last page of an Ogg file is marked as the end of its stream (RFC 3533, section 6)."""
    with path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - 70000))  # a page is at most 65,307 bytes
        tail = file.read()
    last = tail.rfind(b"OggS")
    if last < 0 or len(tail) < last + 27:
        return False
    segments = tail[last + 26]
    end = last + 27 + segments + sum(tail[last + 27 : last + 27 + segments])
    return bool(tail[last + 5] & 4) and len(tail) >= end


def _truncated(path: Path, found: str) -> str:
    return f"{path} is truncated: it {found}; a whole file is needed; copy or download it again"


def _check_finite(path: Path, audio: Block, first: int) -> None:
    """Refuse NaN and infinity; only float files can hold them, and they would spread through everything."""
    for start in range(0, len(audio), _CHECK_FRAMES):
        part = audio[start : start + _CHECK_FRAMES]
        with np.errstate(over="ignore", invalid="ignore"):
            total = np.add.reduce(part, axis=None)
        if not np.isfinite(total):  # one pass; exact only where it fails
            bad = np.flatnonzero(~np.isfinite(part).all(axis=1))
            if len(bad):
                at = int(bad[0])
                value = part[at][~np.isfinite(part[at])][0]
                raise ValueError(
                    f"{path}: frame {first + start + at} is {value}; sound is finite numbers, nominally -1 to 1; "
                    "which program wrote this file? export it again"
                )


def fit_channels(audio: Block, channels: int) -> Block:
    """Return sound as wide as a stem wants it: mixed down to one channel, or channel c from channel c mod n."""
    if audio.shape[1] == channels:
        return audio
    if channels == 1:
        mixed: Block = audio.mean(axis=1, keepdims=True, dtype=np.float32)
        return mixed
    return np.ascontiguousarray(audio[:, np.arange(channels) % audio.shape[1]])
