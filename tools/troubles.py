"""An agent that fails when it is told to, in each of the ways in which a process can: for sessions that really run.

Its files may be whole, and its machine; what goes wrong here is the code of an agent, or of a library under it. What
goes wrong with other processes is done to them from outside.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from realtime import worker
from realtime.buffers import RecordRing, checksum, join_frames
from realtime.protocols import Block, Clip, Origin, Span, SpanRequest, StreamSpec
from realtime.seat import StateCell

CHUNK_BYTES = 16 * 2**20
GROWTH_SECONDS = 0.01
SLOWER_SHARE = 0.25
"""Of a span, by which each answer of an agent that dies slowly takes longer than the one before."""


class TroubledAgent:
    """Plays a steady tone until its time comes.

    Parameters
    ----------
    trouble
        A file: one of :data:`TROUBLES`, and the bar from which it strikes. Who is struck removes the file first, so
        that the next process is well; not so for ``"strikes"``.
    channels
        Width of the stem.
    """

    def __init__(self, trouble: str, channels: int = 1) -> None:
        self.channels = channels
        self._file = Path(trouble)
        self._mood = ""
        self._answers = 0  # since it was struck

    def prepare(self, spec: StreamSpec) -> None:
        """Note rate and join."""
        self._rate, self._join = spec.samplerate, join_frames(spec.samplerate)
        self._span_seconds = 0.0

    def hear(self, hop: Block, frame: int) -> None:
        """Listen to nothing."""

    def play(self, request: SpanRequest) -> Clip | None:
        """Answer as the mood is."""
        if not self._mood:
            self._mood = self._struck(request.span.bar)
        clip = self.realise(request, Origin("model", str(220 + request.seed % 220)))
        if not self._mood:
            return clip
        self._answers += 1
        self._span_seconds = request.frames / self._rate
        return TROUBLES[self._mood](self, clip)

    def carry_on(self, request: SpanRequest) -> Clip | None:
        """Hold the tone."""
        return self.realise(request, request.after) if request.after is not None else None

    def realise(self, request: SpanRequest, origin: Origin) -> Clip:
        """Make the tone, in phase with the session's clock."""
        frames = np.arange(request.start - self._join, request.start + request.frames) % self._rate
        tone = 0.1 * np.sin(2 * np.pi * int(origin.name) * frames / self._rate)
        return Clip(np.repeat(tone[:, None], self.channels, axis=1).astype(np.float32), self._join, origin)

    def confirm(self, span: Span, origin: Origin | None) -> None:
        """Change nothing."""

    def snapshot(self) -> bytes:
        """Return the state: none."""
        return b"{}"

    def restore(self, state: bytes) -> None:
        """Take the state up: none."""

    def _struck(self, bar: int) -> str:
        """Return the trouble whose bar has come; it comes over one process."""
        try:
            kind, since = self._file.read_text().rsplit(None, 1)
        except FileNotFoundError:
            return ""
        if bar < int(since):
            return ""
        if kind != "strikes":
            self._file.unlink(missing_ok=True)
        return kind

    # The troubles

    def _loops(self, clip: Clip) -> Clip:
        while True:
            pass

    def _grows(self, clip: Clip) -> Clip:
        grown = []
        while True:
            grown.append(bytearray(os.urandom(1)) * CHUNK_BYTES)
            time.sleep(GROWTH_SECONDS)

    def _raises(self, clip: Clip) -> Clip:
        raise ArithmeticError("no idea comes")

    def _sings_nan(self, clip: Clip) -> Clip:
        clip.audio[len(clip.audio) // 3] = np.nan
        return clip

    def _is_short(self, clip: Clip) -> Clip:
        return Clip(clip.audio[:-1], clip.lead_in, clip.origin)

    def _aborts(self, clip: Clip) -> Clip:
        os.abort()

    def _slows_down(self, clip: Clip) -> Clip:
        time.sleep(min(1.5, SLOWER_SHARE * self._answers) * self._span_seconds)
        return clip

    def _lies_about_sums(self, clip: Clip) -> Clip:
        worker.checksum = lambda audio: checksum(audio) ^ 1
        return clip

    def _stops_in_a_record(self, clip: Clip) -> Clip:
        return _half_done(clip, RecordRing, "post", signal.SIGSTOP)

    def _dies_in_a_record(self, clip: Clip) -> Clip:
        return _half_done(clip, RecordRing, "post", signal.SIGKILL)

    def _stops_in_a_state(self, clip: Clip) -> Clip:
        return _half_done(clip, StateCell, "write", signal.SIGSTOP)


TROUBLES: dict[str, Callable[[TroubledAgent, Clip], Clip]] = {
    "loop": TroubledAgent._loops,
    "memory": TroubledAgent._grows,
    "raises": TroubledAgent._raises,
    "nan": TroubledAgent._sings_nan,
    "length": TroubledAgent._is_short,
    "abort": TroubledAgent._aborts,
    "slow": TroubledAgent._slows_down,
    "checksum": TroubledAgent._lies_about_sums,
    "record-stopped": TroubledAgent._stops_in_a_record,
    "record-killed": TroubledAgent._dies_in_a_record,
    "state-stopped": TroubledAgent._stops_in_a_state,
    "strikes": TroubledAgent._aborts,
}
"""What may come over an agent, by name."""


def _half_done(clip: Clip, writer: type[Any], method: str, number: signal.Signals) -> Clip:
    """Have the process hit by a signal the next time it is in the middle of writing."""
    whole = getattr(writer, method)
    setattr(writer, method, lambda self, content: whole(self, _Trap(content, number)))
    return clip


class _Trap(bytes):
    """Bytes that send their own process a signal when a writer is half done with them.

    Both writers look at the length first, then put the first stamp down, then look into the bytes.
    """

    def __new__(cls, content: bytes, number: signal.Signals) -> _Trap:
        trap = super().__new__(cls, content)
        trap._number, trap._looks = number, 0
        return trap

    def __getitem__(self, key: Any) -> Any:
        os.kill(os.getpid(), self._number)
        return super().__getitem__(key)

    def __len__(self) -> int:
        self._looks += 1
        if self._looks == 2:
            os.kill(os.getpid(), self._number)
        return super().__len__()
