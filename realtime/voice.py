"""One stem's sound: pieces of audio laid along the clock and joined one after the other, free of clicks.

Every join ends where the new material starts: the crossfade lies before it, over the new material's lead-in, so that
an attack on the first frame is whole and stands where it should. What sounds at a frame does not depend on how the
frames are divided into blocks. Engine thread only.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from realtime.buffers import crossfade
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
    """One stem's sound: materials joined one after the other, each by a crossfade that ends where it starts."""

    def __init__(self, channels: int, join_frames: int) -> None:
        self.channels = channels
        self.join_frames = join_frames
        self._now: Material | None = None
        self._joins: list[tuple[int, Material | None]] = []
        self._seam: Block | None = None
        self._seam_start = 0

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
        self._joins = [join for join in self._joins if join[0] < at]
        if not self._joins:
            self._seam = None  # if one was sounding, it was the crossfade into a join that is no more

    def render(self, start: int, out: Block) -> None:
        """Write the frames from ``start`` on into ``out``, ``(frames, channels)``; consecutive calls only."""
        position, end = start, start + len(out)
        while position < end:
            at, coming = self._joins[0] if self._joins else (NEVER, None)
            fade = at - self.join_frames
            if position >= at:
                self._now, self._seam = coming, None
                self._joins.pop(0)
            elif position >= fade:
                if self._seam is None:
                    self._seam_start = position
                    self._seam = crossfade(self._read(self._now, position, at), self._read(coming, position, at))
                stop = min(end, at)
                out[position - start : stop - start] = self._seam[
                    position - self._seam_start : stop - self._seam_start
                ]
                position = stop
            else:
                stop = min(end, fade)
                self._copy(self._now, position, out[position - start : stop - start])
                position = stop

    def _read(self, material: Material | None, start: int, end: int) -> Block:
        out = np.empty((end - start, self.channels), np.float32)
        self._copy(material, start, out)
        return out

    def _copy(self, material: Material | None, start: int, out: Block) -> None:
        if material is None:
            out[:] = 0
        else:
            material.read_into(start, out)


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
