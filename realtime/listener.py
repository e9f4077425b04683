"""Hearing: what the player does, as numbers an agent can be guided by."""

from __future__ import annotations

import math
from bisect import bisect_left
from pathlib import Path
from typing import Any

import numpy as np

from realtime.inference import Model
from realtime.protocols import HOP_FRAMES, Block

REFRACTORY_SECONDS = 0.032
"""Nothing is counted this soon after an onset: what follows is the same attack."""
ONSETS_KEPT = 8192
"""The oldest are forgotten beyond this many: a quarter of an hour of sixteenth notes at 140 BPM."""
PROVIDER = "cpu"
"""A hop costs tens of microseconds on one core, about what it takes to hand a GPU its work and fetch the answer."""


class OnsetDetector:
    """Counts attacks in what is heard, hop by hop, with the onset network. One thread of a worker.

    An onset is reported one hop of the model (10.7 ms) after the hop in which it lies, so :meth:`onsets` is complete
    up to ``heard - latency``.

    Parameters
    ----------
    folder
        The model: ``exported_models/onset``, or another of the same task.
    samplerate
        Of the hops. Other rates than the model's are resampled as they come (soxr LQ, under a millisecond).

    Raises
    ------
    ValueError
        If the model cannot be opened or is for another task.
    """

    def __init__(self, folder: str | Path, samplerate: int) -> None:
        model = Model.open(folder, PROVIDER)
        card = model.card
        if card.task != "onset detection" or not {"threshold", "offset_frames"} <= card.parameters.keys():
            raise ValueError(f"{folder}: the card's task is {card.task!r}; an onset detector needs 'onset detection'")
        self._state = model.start()
        self._threshold = card.parameters["threshold"]
        self._offset = card.parameters["offset_frames"]
        self._rate = samplerate / card.samplerate
        self._hop = card.hop
        self._samplerate = samplerate
        self._model_rate = card.samplerate
        self._refractory = round(REFRACTORY_SECONDS * samplerate)
        self.latency = math.ceil(card.latency * self._rate)
        self._waiting = np.zeros((card.hop + 2 * math.ceil(HOP_FRAMES / self._rate) + 4096, 1), np.float32)
        self._onsets: list[int] = []
        self.reset()

    def reset(self, frame: int = 0) -> None:
        """Forget all that was heard; the next hop starts at ``frame``."""
        self._state.reset()
        self._resampler = self._new_resampler()
        self._filled = 0
        self._steps = 0
        self._origin = self._expected = frame
        self._onsets.clear()

    def _new_resampler(self) -> Any:
        if self._samplerate == self._model_rate:
            return None
        import soxr

        return soxr.ResampleStream(self._samplerate, self._model_rate, 1, dtype="float32", quality="LQ")

    def hear(self, hop: Block, frame: int) -> float:
        """Take the next hop.

        Parameters
        ----------
        hop
            ``(HOP_FRAMES, channels)``; channels are averaged.
        frame
            Its first frame. After a gap everything before is forgotten but the onsets already found.

        Returns
        -------
        float
            Largest onset probability of the model's steps that this hop completed, 0 to 1; 0 if it completed none.
        """
        if hop.ndim != 2 or len(hop) != HOP_FRAMES:
            raise ValueError(f"a hop of shape {hop.shape}; the detector takes ({HOP_FRAMES}, channels)")
        if frame != self._expected:
            kept = [onset for onset in self._onsets if onset < frame]
            self.reset(frame)
            self._onsets = kept
        self._expected = frame + HOP_FRAMES
        mono = hop if hop.shape[1] == 1 else hop.mean(axis=1, keepdims=True, dtype=np.float32)
        if self._resampler is None and self._hop == HOP_FRAMES:
            return self._step(mono)
        return self._converted(mono)

    def _converted(self, mono: Block) -> float:
        """Resample, and step as often as there is a whole hop of the model's."""
        more = mono if self._resampler is None else self._resampler.resample_chunk(np.ascontiguousarray(mono))
        more = np.asarray(more, np.float32).reshape(-1, 1)
        self._waiting[self._filled : self._filled + len(more)] = more
        self._filled += len(more)
        largest = 0.0
        while self._filled >= self._hop:
            largest = max(largest, self._step(self._waiting[: self._hop]))
            self._filled -= self._hop
            self._waiting[: self._filled] = self._waiting[self._hop : self._hop + self._filled].copy()
        return largest

    def _step(self, audio: Block) -> float:
        probability = float(self._state.step({"audio": audio})["onset"][0, 0])
        if not math.isfinite(probability):  # NaN or infinity came in: it must not stay in the state
            self._state.reset()
            probability = 0.0
        if probability >= self._threshold:
            self._report(self._steps * self._hop + self._offset)
        self._steps += 1
        return probability

    def _report(self, model_frame: float) -> None:
        onset = max(self._origin, self._origin + round(model_frame * self._rate))
        if not self._onsets or onset - self._onsets[-1] >= self._refractory:
            self._onsets.append(onset)
            del self._onsets[:-ONSETS_KEPT]

    def onsets(self, start: int, end: int) -> list[int]:
        """Frames of the onsets found in ``[start, end)``, in order."""
        return self._onsets[bisect_left(self._onsets, start) : bisect_left(self._onsets, end)]

    def activity(self, start: int, end: int, beats: float = 1.0) -> float:
        """Onsets per beat in ``[start, end)``, a stretch that is ``beats`` long.

        Raises
        ------
        ValueError
            If the stretch or its length in beats is not above 0.
        """
        if end <= start or not beats > 0:
            raise ValueError(f"activity from frame {start} to {end} over {beats} beats; both lengths must be above 0")
        return (bisect_left(self._onsets, end) - bisect_left(self._onsets, start)) / float(beats)
