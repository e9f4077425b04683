"""The tutorial: an agent that plays the bar it heard back, placed on the next.

It has no state: what was heard comes with the request. `play` decides *what* (an origin), `realise` makes the
sound of it, so that a replay can skip the deciding. Write your own agent like this one.
"""

from __future__ import annotations

import numpy as np

from realtime.buffers import crossfade, join_frames
from realtime.protocols import Block, Clip, Origin, Piece, Span, SpanRequest, StreamSpec
from realtime.soundfiles import fit_channels

BARS_BACK = 4


class EchoAgent:
    """Plays ``source`` back a bar late; ``source`` is ``"input"`` or the name of another agent's stem."""

    def __init__(self, channels: int = 1, source: str = "input") -> None:
        self.channels, self.source = channels, source

    def prepare(self, spec: StreamSpec) -> None:
        """Note how long a join is."""
        self._join = join_frames(spec.samplerate)

    def hear(self, hop: Block, frame: int) -> None:
        """Remember nothing: every request brings what was heard with it."""

    def play(self, request: SpanRequest) -> Clip | None:
        """Take the same place one bar ago; what was not heard yet when the request was made, a bar before that."""
        timeline, span = request.timeline, request.span
        beat = timeline.downbeat(span.bar) + span.beat  # exact: a start frame was rounded
        pieces, at = [], 0
        for bars in range(1, BARS_BACK + 1):
            place = timeline.frame_at(beat - bars * timeline.meter.beats)
            known = max(at, min(request.frames, request.context_end - place))
            pieces.append(Piece(self.source, place + at, known - at, at, known - at))
            at = known
        heard = tuple(piece for piece in pieces if piece.frames and piece.source_frame >= 0)
        return self.realise(request, Origin("heard", self.source, pieces=heard)) if heard else None

    def realise(self, request: SpanRequest, origin: Origin) -> Clip:
        """Copy each piece to its place; the join lies before it, over what precedes the piece where it was heard."""
        join = self._join
        audio = np.zeros((join + request.frames, self.channels), np.float32)
        for piece in origin.pieces:
            sound = self._sound(request, piece)
            if piece.at:
                sound[:join] = crossfade(audio[piece.at : piece.at + join], sound[:join])
            audio[piece.at : piece.at + len(sound)] = sound
        return Clip(audio, join, origin)

    def _sound(self, request: SpanRequest, piece: Piece) -> Block:
        """Read a piece and the join before it, ``(join + frames, channels)``."""
        if request.heard is None:
            raise ValueError("echo: the request carries nothing heard; its worker adds `heard` before it asks")
        start, end = piece.source_frame - self._join, piece.source_frame + piece.frames
        if piece.source == "input":
            sound = request.heard.input(start, end)
        else:
            sound = request.heard.stem(piece.source, start, end)
        return fit_channels(sound, self.channels) * np.float32(piece.gain)

    def confirm(self, span: Span, origin: Origin | None) -> None:
        """Do nothing: what was played before changes nothing."""

    def snapshot(self) -> bytes:
        """Return the state: none."""
        return b"{}"

    def restore(self, state: bytes) -> None:
        """Take the state up: none."""
