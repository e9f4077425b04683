"""Agents for benchmarks only: what no session needs, and a measurement does."""

from __future__ import annotations

import math
import time

import numpy as np

from realtime.buffers import join_frames
from realtime.inference import Model
from realtime.protocols import Block, Clip, Origin, Span, SpanRequest, StreamSpec


class ModelAgent:
    """Runs a network step after step until a given time is used up, then plays a tone for the span.

    Parameters
    ----------
    model
        Folder of an exported model.
    work_seconds
        How long it works for a span; the step it is in is finished.
    channels
        Width of the stem.
    """

    def __init__(self, model: str, work_seconds: float, channels: int = 1) -> None:
        self.channels = channels
        self._folder, self._work_seconds = model, work_seconds

    def prepare(self, spec: StreamSpec) -> None:
        """Open the model."""
        self._spec, self._join = spec, join_frames(spec.samplerate)
        self._model = Model.open(self._folder, provider="cpu")
        self._state = self._model.start()
        noise = np.random.default_rng(5)
        self._inputs = {
            tensor.name: tensor.outside(noise.normal(0, 0.1, tensor.shape).astype(tensor.dtype))
            for tensor in self._model.card.inputs
        }

    def hear(self, hop: Block, frame: int) -> None:
        """Listen to nothing."""

    def play(self, request: SpanRequest) -> Clip | None:
        """Work for as long as told, then answer."""
        until = time.perf_counter() + self._work_seconds
        while time.perf_counter() < until:
            self._state.step(self._inputs)
        return self.realise(request, Origin("model", self._model.card.name, self._model.card.sha256))

    def realise(self, request: SpanRequest, origin: Origin) -> Clip:
        """Make the tone: steady, so that a join or a gap would be heard."""
        frames = self._join + request.frames
        phase = np.arange(request.start - self._join, request.start + request.frames) % self._spec.samplerate
        tone = 0.1 * np.sin(2 * math.pi * 220 * phase / self._spec.samplerate)
        return Clip(np.repeat(tone[:frames, None], self.channels, axis=1).astype(np.float32), self._join, origin)

    def confirm(self, span: Span, origin: Origin | None) -> None:
        """Change nothing."""

    def snapshot(self) -> bytes:
        """Return the state: none."""
        return b"{}"

    def restore(self, state: bytes) -> None:
        """Take the state up: none."""
