"""One stem's sound: pieces of audio laid along the clock and joined one after the other, free of clicks.

Every join ends where the new material starts: the crossfade lies before it, over the new material's lead-in, so that
an attack on the first frame is whole and stands where it should. What sounds at a frame does not depend on how the
frames are divided into blocks. Engine thread only.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from realtime.buffers import crossfade, lane
from realtime.protocols import Block, Clip

NEVER = 1 << 62
"""A frame that no session reaches."""


@dataclass(frozen=True, slots=True)
class Material:
    """Audio laid along the clock: ``audio[0]`` sounds at frame ``zero``; from ``end`` on there is silence."""

    audio: Block
    zero: int
    end: int

    def later(self, frames: int) -> Material:
        """Return the same sound, ``frames`` later."""
        return replace(self, zero=self.zero + frames, end=self.end + frames)

    def read_into(self, start: int, out: Block) -> None:
        """Write the frames from ``start`` on into ``out``; zeros outside."""
        first = min(max(start, self.zero), start + len(out))
        last = max(first, min(start + len(out), self.end, self.zero + len(self.audio)))
        out[: first - start] = 0
        out[first - start : last - start] = self.audio[first - self.zero : last - self.zero]
        out[last - start :] = 0


class Voice:
    """One stem's sound: materials joined one after the other, each by a crossfade that ends where it starts.

    What sounds is a row of runs: a stretch of material, of silence or of a crossfade that was made whole when it
    began, or before. A block that lies in one run costs one copy.
    """

    def __init__(self, channels: int, join_frames: int) -> None:
        self.channels = channels
        self.join_frames = join_frames
        self._now: Material | None = None
        self._joins: list[tuple[int, Material | None]] = []
        self._seam: Block | None = None
        self._seam_start = 0
        # The present run: ``_source[0]`` sounds at frame ``_zero`` (None: silence), and this holds until ``_until``.
        self._source: npt.NDArray[Any] | None = None
        self._zero = 0
        self._until = -1

    @property
    def last(self) -> Material | None:
        """What sounds when all joins planned are done."""
        return self._joins[-1][1] if self._joins else self._now

    def join(self, at: int, material: Material | None) -> None:
        """Let ``material`` (None: silence) sound from frame ``at`` on; joins planned from there on are dropped."""
        self.drop_from(at)
        self._joins.append((at, material))

    def drop_from(self, at: int) -> None:
        """Forget the joins planned at ``at`` or later."""
        self._until = -1
        self._joins = [join for join in self._joins if join[0] < at]
        if not self._joins:
            self._seam = None  # if one was sounding, it was the crossfade into a join that is no more

    def render(self, start: int, out: npt.NDArray[Any], at: int, frames: int) -> None:
        """Write ``frames`` from frame ``start`` on into ``out[at:]``, a :func:`~realtime.buffers.lane` of as many
        channels; consecutive calls only.
        """
        end = start + frames
        if end <= self._until:  # one run, as in nearly every block
            if (source := self._source) is None:
                out[at : at + frames] = 0
            else:
                first = start - self._zero
                out[at : at + frames] = source[first : first + frames]
            return
        while start < end:
            if start >= self._until:
                self._begin_run(start)
            stop = min(end, self._until)
            if self._source is None:
                out[at : at + stop - start] = 0
            else:
                out[at : at + stop - start] = self._source[start - self._zero : stop - self._zero]
            at += stop - start
            start = stop

    def prepare(self, now: int) -> bool:
        """Make the coming crossfade ahead of its time, if that can be; return whether there was anything to do.

        ``now`` is the frame rendered up to. It comes out the same as when it is made where it begins.
        """
        if self._seam is not None or not self._joins or self._joins[0][0] - self.join_frames < now:
            return False
        at = self._joins[0][0]
        self._make_seam(at - self.join_frames, at)
        return True

    def _begin_run(self, position: int) -> None:
        """Settle what sounds from ``position`` on, and for how long."""
        while self._joins and position >= self._joins[0][0]:
            self._now, self._seam = self._joins.pop(0)[1], None
        at = self._joins[0][0] if self._joins else NEVER
        if position >= at - self.join_frames:
            if self._seam is None:
                self._make_seam(position, at)
            assert self._seam is not None
            self._source, self._zero, self._until = lane(self._seam), self._seam_start, at
            return
        self._source, self._until = None, at - self.join_frames
        if (now := self._now) is None:
            return
        last = min(now.end, now.zero + len(now.audio))
        if position < now.zero:
            self._until = min(self._until, now.zero)
        elif position < last:
            self._source, self._zero, self._until = lane(now.audio), now.zero, min(self._until, last)

    def _make_seam(self, start: int, at: int) -> None:
        """Make the crossfade from what sounds now into what is joined at ``at``, from ``start`` on."""
        self._seam_start = start
        self._seam = crossfade(self._read(self._now, start, at), self._read(self._joins[0][1], start, at))

    def _read(self, material: Material | None, start: int, end: int) -> Block:
        if material is None:
            return np.zeros((end - start, self.channels), np.float32)
        out = np.empty((end - start, self.channels), np.float32)
        material.read_into(start, out)
        return out


def place_clip(
    clip: Clip, old_beats: Sequence[int], old_frames: int, start: int, beats: Sequence[int], frames: int
) -> list[tuple[int, Material]]:
    """Lay a clip along a span: as one piece if it was made for these beats, else beat by beat, each placed anew.

    Parameters
    ----------
    old_beats, old_frames
        Frames of the beats and of the whole, from the start, that the clip was made for.
    start, beats, frames
        The span it goes to. A beat that got shorter is cut, one that got longer ends early; beats the clip does
        not have are taken from its start again.

    Returns
    -------
    list of (frame, Material)
        Joins in order.
    """
    if frames == old_frames and tuple(beats) == tuple(old_beats):
        return [(start, Material(clip.audio, start - clip.lead_in, start + frames))]
    old_ends, ends = [*old_beats[1:], old_frames], [*beats[1:], frames]
    joins = []
    for index, beat in enumerate(beats):
        old = index % len(old_beats)
        zero = start + beat - old_beats[old] - clip.lead_in
        length = min(ends[index] - beat, old_ends[old] - old_beats[old])
        joins.append((start + beat, Material(clip.audio, zero, start + beat + length)))
    return joins
