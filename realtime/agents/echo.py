"""The tutorial: an agent that plays the bar it heard back, placed on the next.

It has no state: what was heard comes with the request. `play` decides *what* (an origin), `realise` makes the
sound of it, so that a replay can skip the deciding. Write your own agent like this one.
"""

from __future__ import annotations

from realtime.buffers import crossfade, join_frames
from realtime.protocols import Block, Clip, Origin, Piece, Span, SpanRequest, StreamSpec


class EchoAgent:
    """Plays ``source`` back a bar late; ``source`` is ``"input"`` or the name of another agent's stem."""

    def __init__(self, channels: int = 1, source: str = "input") -> None:
        self.channels, self.source = channels, source

    def prepare(self, spec: StreamSpec) -> None:
        self._join = join_frames(spec.samplerate)

    def hear(self, hop: Block, frame: int) -> None:
        pass  # a request brings all that was heard with it

    def play(self, request: SpanRequest) -> Clip | None:
        """Take the same place one bar ago; what had not been heard of it yet when the request was made, two."""
        bar = self._bar_ago(request, 1)
        known = max(0, min(request.frames, request.context_end - bar))
        pieces = [Piece(self.source, bar, known, 0, known)]
        if known < request.frames:
            rest, earlier = request.frames - known, self._bar_ago(request, 2) + known
            pieces.append(Piece(self.source, earlier, rest, known, rest))
        pieces = [piece for piece in pieces if piece.frames and piece.source_frame >= 0]
        return self.realise(request, Origin("heard", pieces=tuple(pieces))) if pieces else None

    def _bar_ago(self, request: SpanRequest, bars: int) -> int:
        timeline = request.timeline
        return timeline.frame_at(timeline.beat_at(request.start) - bars * timeline.meter.beats)

    def realise(self, request: SpanRequest, origin: Origin) -> Clip:
        """Copy each piece to its place, with what sounded before it faded in under what it follows."""
        audio = self._heard(request, self.source, 0, 0, self._join + request.frames)
        for piece in origin.pieces:
            sound = self._heard(request, piece.source, piece.source_frame, self._join, piece.frames) * piece.gain
            at = piece.at + self._join
            audio[piece.at : at] = crossfade(audio[piece.at : at], sound[: self._join])
            audio[at : at + piece.frames] = sound[self._join :]
        return Clip(audio, self._join, origin)
