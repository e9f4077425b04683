"""Meters: how loud each stem, the input and each output were, for whoever has the rings and asks.

The engine meters nothing, as the music needs none of it. It keeps a minute of all sound in shared memory, and a
process that wants levels, the bridge for one, works them out from that on its own time. What the engine has come
round to overwrite meanwhile is left out, as with every reader of a ring.

The metronome has no row: its sound is kept nowhere. Where it has outputs of its own, their meters show it.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from realtime.buffers import AudioRing, stem_columns

if TYPE_CHECKING:
    from realtime.engine import Memory

LONGEST_SECONDS = 1.0
"""A look goes back no further, so that it costs a bounded time however long ago the last one was."""
SHORTEST_SECONDS = 0.04
"""Until so much is new the last figures stand, so that two who look in turn do not take each other's peaks."""
CHUNK_SAMPLES = 1 << 16
"""Read at once: what stays in a cache, and needs few calls."""
ROW_SAMPLES = 512
"""Frames are laid side by side to rows of this length, which are added up and compared several times as fast."""

Samples = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Level:
    """How loud a signal was, linear: its largest absolute sample, and its RMS over all its channels together."""

    peak: float = 0.0
    rms: float = 0.0


@dataclass(frozen=True, slots=True)
class Levels:
    """How loud everything was between two looks.

    Attributes
    ----------
    stems
        By name, as the agent played it: before fader, mute and solo.
    input
        What was heard, all channels together, as the engine got it: before the monitor's fader and delay.
    outputs
        One for each output channel, as it left: after the limiter.
    """

    stems: Mapping[str, Level]
    input: Level
    outputs: tuple[Level, ...]


class Meters:
    """Reads levels from the rings that the engine writes, in any process.

    Parameters
    ----------
    memory
        The rings. Frames that were written before this was built are not metered.
    samplerate
        In Hz.
    """

    def __init__(self, memory: Memory, samplerate: int) -> None:
        inputs, band, mix = memory.inputs, memory.band, memory.mix
        self._names = tuple(memory.stems)
        widths = [ring.channels for ring in memory.stems.values()]
        side_by_side = band.together
        self._heard, self._made = _Unseen(inputs, samplerate), _Unseen(mix, samplerate)
        self._input = _Signals(inputs, [(0, inputs.channels)])
        self._stems = _Signals(side_by_side, list(zip(stem_columns(widths).first, widths, strict=True)))
        self._outputs = _Signals(mix, [(output, 1) for output in range(mix.channels)])
        self._lock = threading.Lock()
        self._levels = Levels(dict.fromkeys(self._names, Level()), Level(), (Level(),) * mix.channels)

    def read(self) -> Levels:
        """Return peak and RMS of what came since the last call, or of its last second if that is long ago.

        All who call share this "since": what one was told, the next is not. Only if less than 40 ms are new is he
        told the same again, and so is everyone while nothing comes. Stems and outputs are metered over the same
        frames, the input over as many as were heard meanwhile. What is not finite counts as 0, as it did in the mix.

        Any thread, but not one that makes sound: calls wait for each other, and one takes 0.4 ms for 16 stems
        and 50 ms of sound, 1.5 ms for a second of it.
        """
        with self._lock:
            heard, made, levels = self._heard.take(), self._made.take(), self._levels
            if heard:
                levels = replace(levels, input=self._input.levels(heard)[0])
            if made:  # the mix is written last: as far as it goes, the stems are whole
                stems = dict(zip(self._names, self._stems.levels(made), strict=True))
                levels = Levels(stems, levels.input, tuple(self._outputs.levels(made)))
            self._levels = levels
            return levels


class _Unseen:
    """Says which frames of a ring nobody has looked at yet."""

    def __init__(self, ring: AudioRing, samplerate: int) -> None:
        self._ring, self._seen = ring, ring.written
        self._shortest = max(1, round(SHORTEST_SECONDS * samplerate))
        self._longest = round(LONGEST_SECONDS * samplerate)

    def take(self) -> range:
        """Return them, none of them if they are too few yet, and the last of them if they are too many."""
        end = self._ring.written
        if end - self._seen < self._shortest:
            return range(0)
        start, self._seen = max(self._seen, end - self._longest), end
        return range(start, end)


class _Signals:
    """Signals that lie side by side in a ring; each has its first column and its width."""

    def __init__(self, ring: AudioRing, columns: Sequence[tuple[int, int]]) -> None:
        self._ring, self._columns = ring, [(first, first + width) for first, width in columns]
        self._fold = max(1, ROW_SAMPLES // ring.channels)
        self._most = max(1, CHUNK_SAMPLES // (self._fold * ring.channels)) * self._fold
        self._scratch = np.zeros((self._most, ring.channels), np.float32)

    def levels(self, frames: range) -> list[Level]:
        """Return the level of each signal over some frames, but those at the beginning that were overtaken."""
        width, held = self._ring.channels, 0
        peaks, powers = np.zeros(width, np.float32), np.zeros(width)
        for start in range(frames.start, frames.stop, self._most):
            count = min(self._most, frames.stop - start)
            rows = -(-count // self._fold)
            block = self._scratch[: rows * self._fold]
            held += self._ring.read_into(start, block[:count])
            block[count:] = 0  # silence adds nothing
            power, peak = _power_and_peak(block.reshape(rows, -1))
            powers += power.reshape(-1, width).sum(axis=0, dtype=np.float64)
            np.maximum(peaks, peak.reshape(-1, width).max(axis=0), out=peaks)
        tops, sums = peaks.tolist(), powers.tolist()
        return [
            Level(max(tops[first:end]), math.sqrt(sum(sums[first:end]) / ((end - first) * max(1, held))))
            for first, end in self._columns
        ]


def _power_and_peak(rows: Samples) -> tuple[npt.NDArray[np.floating[Any]], Samples]:
    """Return the sum of squares and the largest absolute value of each column; the rows are changed."""
    power: npt.NDArray[np.floating[Any]] = np.einsum("ij,ij->j", rows, rows)
    if not np.isfinite(power).all():
        np.nan_to_num(rows, copy=False, nan=0, posinf=0, neginf=0)
        power = np.square(rows, dtype=np.float64).sum(axis=0)  # what is huge has no square in float32
    np.abs(rows, out=rows)
    return power, rows.max(axis=0)
