"""Small stand-ins for tests: a past that was heard, click trains, requests made from a tempo map, a plain render."""

from __future__ import annotations

import os
import time
from collections.abc import Iterable, Mapping
from fractions import Fraction

import numpy as np
import numpy.typing as npt

from realtime.buffers import crossfade
from realtime.clock import TempoMap
from realtime.protocols import HOP_FRAMES, Agent, Block, Chord, Clip, Origin, Span, SpanRequest, StreamSpec


class FakeHeard:
    """Views of arrays that start at frame 0: an input, and stems by name. Zeros outside them, and past ``known``."""

    def __init__(self, audio: Block, stems: Mapping[str, Block] | None = None, known: int | None = None) -> None:
        self._audio, self._stems, self._known = audio, dict(stems or {}), known

    def input(self, start: int, end: int) -> Block:
        return self._cut(self._audio, start, end)

    def stem(self, agent: str, start: int, end: int) -> Block:
        return self._cut(self._stems[agent], start, end)

    def _cut(self, audio: Block, start: int, end: int) -> Block:
        found = np.zeros((end - start, audio.shape[1]), np.float32)
        last = min(end, len(audio), len(audio) if self._known is None else self._known)
        if max(start, 0) < last:
            found[max(start, 0) - start : last - start] = audio[max(start, 0) : last]
        return found


def clicks(frames: int, at: Iterable[int], channels: int = 1, level: float = 0.9) -> Block:
    """Return silence with single-frame clicks."""
    audio = np.zeros((frames, channels), np.float32)
    audio[list(at)] = level
    return audio


def tones(frames: int, samplerate: int, hz: Iterable[float], level: float = 0.3) -> Block:
    """Return plucked tones one after the other, of equal length, ``(frames, 1)``."""
    pitches = list(hz)
    bounds = [frames * k // len(pitches) for k in range(len(pitches) + 1)]
    parts: list[npt.NDArray[np.float64]] = []
    for pitch, start, end in zip(pitches, bounds, bounds[1:], strict=False):
        t = np.arange(end - start) / samplerate
        parts.append(level * np.exp(-3 * t) * (np.sin(2 * np.pi * pitch * t) + 0.5 * np.sin(4 * np.pi * pitch * t)))
    return np.concatenate(parts)[:, None].astype(np.float32)


def request_for(
    tempo_map: TempoMap,
    span: Span,
    *,
    agent: str = "agent",
    seed: int = 1,
    context_end: int | None = None,
    heard: FakeHeard | None = None,
    chart: tuple[Chord, ...] = (),
    attempt: int = 1,
) -> SpanRequest:
    """Ask for a span as the scheduler does; the context ends where the span starts unless told otherwise."""
    beat = tempo_map.downbeat(span.bar) + span.beat
    start, end = tempo_map.frame_at(beat), tempo_map.frame_at(beat + span.beats)
    whole = int(np.ceil(float(span.beats)))
    return SpanRequest(
        agent=agent,
        span=span,
        start=start,
        frames=end - start,
        beat_frames=tuple(tempo_map.frame_at(beat + k) - start for k in range(whole)),
        timeline=tempo_map.at_beat(beat),
        context_end=start if context_end is None else context_end,
        seed=seed,
        attempt=attempt,
        chart=chart,
        heard=heard,
    )


def bar_span(tempo_map: TempoMap, bar: int) -> Span:
    """Return a whole bar."""
    return Span(bar, Fraction(0), tempo_map.bar_beats(bar))


def perform(
    agent: Agent, audio: Block, tempo_map: TempoMap, bars: Iterable[int], notice_frames: int = 4800, seed: int = 1
) -> tuple[Block, list[tuple[SpanRequest, Clip | None]]]:
    """Let a prepared agent hear ``audio`` and answer bar by bar, as an engine without faults would.

    Each bar is asked for ``notice_frames`` before it starts. Returns the stem, ``(frames, channels)`` from frame 0,
    and every request with its answer.
    """
    stem = np.zeros((len(audio), agent.channels), np.float32)
    answers: list[tuple[SpanRequest, Clip | None]] = []
    heard_frames = 0
    for bar in bars:
        span = bar_span(tempo_map, bar)
        context_end = max(0, tempo_map.bar_frame(bar) - notice_frames)
        while heard_frames + HOP_FRAMES <= min(context_end, len(audio)):
            agent.hear(audio[heard_frames : heard_frames + HOP_FRAMES], heard_frames)
            heard_frames += HOP_FRAMES
        heard = FakeHeard(audio, known=context_end)
        request = request_for(tempo_map, span, seed=seed + bar, context_end=context_end, heard=heard)
        clip = agent.play(request)
        agent.confirm(span, clip.origin if clip else None)
        answers.append((request, clip))
        if clip:
            place(stem, request.start, clip)
    return stem, answers


def place(stem: Block, start: int, clip: Clip) -> None:
    """Put a clip into a stem: its lead-in is crossfaded with what is there, the rest replaces it."""
    lead = min(clip.lead_in, start)
    incoming = clip.audio[clip.lead_in - lead : clip.lead_in]
    stem[start - lead : start] = crossfade(stem[start - lead : start], incoming)
    end = min(len(stem), start + len(clip.audio) - clip.lead_in)
    stem[start:end] = clip.audio[clip.lead_in : clip.lead_in + end - start]


class Misbehaves:
    """An agent for worker processes: plays a steady level, and goes wrong once it was told of so many spans.

    Parameters
    ----------
    mode
        ``""`` for never, ``"raise"``, ``"nan"``, ``"short"``, ``"hang"``, ``"exit"``, ``"grow"`` or ``"late"``.
    after
        Spans it plays before. What follows when its process was replaced behaves.
    for_good
        It does not: it goes wrong again at once.
    seconds
        How long it computes at an answer.
    """

    channels = 1

    def __init__(self, mode: str = "", after: int = 2, for_good: bool = False, seconds: float = 0.0) -> None:
        self._mode, self._after, self._for_good, self._seconds = mode, after, for_good, seconds
        self._told = 0
        self._replaced = False
        self._held: list[bytearray] = []

    @property
    def _wrong(self) -> bool:
        return self._told >= self._after and (self._for_good or not self._replaced)

    def prepare(self, spec: StreamSpec) -> None:
        pass

    def hear(self, hop: Block, frame: int) -> None:
        if self._wrong and self._mode == "grow":
            self._held.append(bytearray(b"x" * (2 << 20)))

    def play(self, request: SpanRequest) -> Clip:
        end = time.process_time() + self._seconds
        while time.process_time() < end:
            pass
        if self._wrong:
            if self._mode == "raise":
                raise RuntimeError("nothing comes to mind")
            if self._mode == "exit":
                os._exit(3)
            if self._mode == "hang":
                time.sleep(3600)
            if self._mode == "late":
                time.sleep(0.26)
        return self.realise(request, Origin("fake", name=str(self._told)))

    def realise(self, request: SpanRequest, origin: Origin) -> Clip:
        frames = request.frames - 1 if self._wrong and self._mode == "short" else request.frames
        level = np.nan if self._wrong and self._mode == "nan" else 0.25
        return Clip(np.full((frames, 1), level, np.float32), 0, origin)

    def confirm(self, span: Span, origin: Origin | None) -> None:
        self._told += origin is not None

    def snapshot(self) -> bytes:
        return str(self._told).encode()

    def restore(self, state: bytes) -> None:
        self._told, self._replaced = int(state), True
