"""The words that every room shares: spans, requests, clips, agents, streams.

Read this first. Everything here is a value or a contract; nothing here does anything.

Conventions
-----------
* Audio is ``(frames, channels)`` float32, nominally within -1 to 1. Axes are never swapped here.
* A position is an integer frame of the session's one clock, in *output time*: frame 0 of a bar is when it
  leaves the speaker. Names ending in ``_frames _beats _seconds _hz _db`` carry that unit.
* A beat is a quarter note. Musical positions are exact fractions; they become frames once, by rounding.
* Bars count from 0 (shown to people from 1); those of a count-in are negative.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Protocol

import numpy as np
import numpy.typing as npt

from realtime.clock import Timeline

Block = npt.NDArray[np.float32]
"""Audio: ``(frames, channels)`` float32."""

HOP_FRAMES = 512
"""Frames in one hop of :meth:`Agent.hear`. Hops start at multiples of it, counted from frame 0."""

JOIN_SECONDS = 0.010
"""Length of the crossfade between one clip and the next; it lies before the join, so attacks stay whole."""


@dataclass(frozen=True, slots=True)
class StreamSpec:
    """What a stream is: known before it opens, the same until it closes.

    Attributes
    ----------
    samplerate
        Frames per second (Hz).
    inputs, outputs
        Channel counts, 1 to 64.
    blocksize
        Frames in a block: what a device takes at a time, and what offline is mixed at a time.
    lead
        Frames mixed ahead of the loudspeaker.
    latency
        Round trip in frames: output frame to the input frame that a player answers it with. Subtracted
        from every input position on entry, so that bar k heard lines up with bar k played.
    """

    samplerate: int
    inputs: int = 1
    outputs: int = 2
    blocksize: int = 128
    lead: int = 1024
    latency: int = 0

    @property
    def turn_frames(self) -> int:
        """Frames mixed at a time by a live engine: half the lead, in whole blocks.

        Waking up costs as much as mixing some blocks, so the engine wakes as seldom as the lead allows. When it does,
        ``lead`` frames or more are still in hand.
        """
        return max(1, self.lead // 2 // self.blocksize) * self.blocksize


@dataclass(frozen=True, slots=True)
class Span:
    """The stretch of music an agent is asked for: a bar, a beat, or less.

    ``beat`` is the offset from the bar's downbeat, ``beats`` the length, both in quarter notes.
    """

    bar: int
    beat: Fraction
    beats: Fraction


@dataclass(frozen=True, slots=True)
class Piece:
    """One run of source material as it was placed in a clip.

    Attributes
    ----------
    source
        File of the corpus, ``"input"``, or the name of a stem.
    source_frame, source_frames
        Where the run starts in the source and how long it is there, in frames of the source's own rate.
    at, frames
        Where it lies in the span, in output frames from the span's first frame (``Clip.audio[lead_in]``), and how
        long it is there. What precedes it in its source may sound before ``at``, in the crossfade.
    unit
        Index in the corpus, -1 where there is none.
    stretched
        True if the length was fitted by time stretching; if False the frames are the source's own
        (resampled where the rates differ), scaled by ``gain``.
    gain
        Linear factor on the source.
    """

    source: str
    source_frame: int
    source_frames: int
    at: int
    frames: int
    unit: int = -1
    stretched: bool = False
    gain: float = 1.0


@dataclass(frozen=True, slots=True)
class Origin:
    """Where a clip's sound comes from: enough to make it again and to say whose it is.

    Attributes
    ----------
    kind
        ``"corpus"``, ``"heard"`` (the player's own sound), ``"model"`` or ``"silence"``.
    name, digest
        Corpus or model, and the hash of its content.
    pieces
        In order of ``at``.
    """

    kind: str
    name: str = ""
    digest: str = ""
    pieces: tuple[Piece, ...] = ()


@dataclass(frozen=True, slots=True)
class Plan:
    """What another agent is going to play in the span that is asked for."""

    agent: str
    origin: Origin


@dataclass(frozen=True, slots=True)
class Chord:
    """One entry of the chart: a chord symbol (``"C"``, ``"F#m7"``) from ``beat`` of its span, for ``beats``."""

    symbol: str
    beat: Fraction
    beats: Fraction


@dataclass(frozen=True, slots=True)
class Action:
    """Something a player pressed: ``name`` and ``value`` mean what the agent declares; ``frame`` is when."""

    frame: int
    agent: str
    name: str
    value: float = 1.0


class Heard(Protocol):
    """What has been heard, by output frame. Frames not (or no longer) held are zeros. Any thread of the worker."""

    def input(self, start: int, end: int) -> Block:
        """Return the player's input in ``[start, end)``, shape ``(end - start, inputs)``."""

    def stem(self, agent: str, start: int, end: int) -> Block:
        """Return what ``agent`` played in ``[start, end)``, before the fader, ``(end - start, channels)``."""


@dataclass(frozen=True, slots=True)
class SpanRequest:
    """One question to an agent: what do you play in this span?

    Attributes
    ----------
    agent
        Who is asked.
    span, start, frames
        The span, its first output frame and its length in frames.
    beat_frames
        Output frames, relative to ``start``, of the span's whole beats (offsets 0, 1, 2, ... beats from its
        start); the first is 0. Place by these, never by adding up a rounded beat.
    timeline
        Tempo, meter and phase at the start of the span.
    context_end
        Last input frame (exclusive) that may be used.
    seed
        Differs for every agent and span, the same on replay.
    attempt
        0 is the speculative question, 1 the final one, 2 asks to carry on from ``after``.
    heard
        Views of the past up to ``context_end``; ``None`` only while the request travels.
    plans, chart, actions
        What the agents this one follows will play; the chart over the span; what was pressed since the last one.
    song_bar
        Bar of the song that is played in this bar: another one than ``span.bar`` after a seek or in a loop.
    after
        Where the sound of the span before comes from, in a question to carry on.
    """

    agent: str
    span: Span
    start: int
    frames: int
    beat_frames: tuple[int, ...]
    timeline: Timeline
    context_end: int
    seed: int
    attempt: int = 1
    plans: tuple[Plan, ...] = ()
    chart: tuple[Chord, ...] = ()
    actions: tuple[Action, ...] = ()
    song_bar: int = 0
    after: Origin | None = None
    heard: Heard | None = field(default=None, compare=False)

    @property
    def final(self) -> bool:
        """Whether this is the last time the span is asked for."""
        return self.attempt == 1


@dataclass(frozen=True, slots=True)
class Clip:
    """Sound for one span; never written to once it was handed over.

    Attributes
    ----------
    audio
        ``(lead_in + frames, channels)``. ``audio[lead_in]`` is the span's first frame.
    lead_in
        Frames of material *before* the span: the crossfade from what sounds now runs over them, so that an
        attack on the first frame is never faded. 0 where nothing precedes.
    origin
        Where it comes from.
    """

    audio: Block
    lead_in: int
    origin: Origin


class Agent(Protocol):
    """A player of its own stem. All methods are called on one thread of one worker; none needs to be quick to
    the millisecond, and none may be called by the engine.

    ``channels`` is the width of the stem. ``lead_in`` of a clip is at most ``JOIN_SECONDS`` of material.
    """

    channels: int

    def prepare(self, spec: StreamSpec) -> None:
        """Load, allocate, warm up. Called once, before anything else. May raise ``ValueError``."""

    def hear(self, hop: Block, frame: int) -> None:
        """Take the next ``HOP_FRAMES`` of what this agent listens to, in order and without gaps.

        Called with every whole hop that ends at or before ``context_end`` before :meth:`play` is.
        """

    def play(self, request: SpanRequest) -> Clip | None:
        """Answer a request; ``None`` is a rest. Changes no musical state, draws chance only from the seed."""

    def realise(self, request: SpanRequest, origin: Origin) -> Clip:
        """Make the sound of a decision already taken, bit for bit: ``play`` decides, then calls this. Replay
        calls it with the origin that the take recorded.
        """

    def confirm(self, span: Span, origin: Origin | None) -> None:
        """Learn what really sounded in a span, ``None`` for a rest; advances the musical state.

        A span may be confirmed again when a late clip was joined inside it: the later word replaces the former.
        """

    def snapshot(self) -> bytes:
        """Return the musical state, as JSON or npz; no pickle."""

    def restore(self, state: bytes) -> None:
        """Take up the state that :meth:`snapshot` gave."""


class Continues(Protocol):
    """An agent that can also say how its own last span goes on, without listening: what plays if it fails."""

    def carry_on(self, request: SpanRequest) -> Clip | None:
        """Continue ``request.after`` over the span; ``None`` if it has no continuation. Changes no state."""


class Process(Protocol):
    """What a stream drives: the engine. Called on the stream's one thread."""

    heard: int
    """Input frames taken so far, in output time."""
    mixed: int
    """Output frames made so far."""
    played: int
    """Frame that leaves for the loudspeaker now, as a live stream tells it; -1 on a virtual clock."""
    stopped: bool
    """True once the last frame was made."""

    def hear(self, block: Block) -> None:
        """Take the next input, ``(frames, inputs)``, which starts at frame ``heard``."""

    def mix(self, frames: int) -> Block:
        """Make the next ``frames`` of output, ``(frames, outputs)``; valid until the next call."""


class AudioStream(Protocol):
    """Where audio comes from and goes to: a device, a file, a DAW, or nowhere."""

    spec: StreamSpec

    def run(self, process: Process) -> None:
        """Drive ``process`` until it has stopped or the stream has ended."""


Log = Callable[[dict[str, object]], None]
"""Takes one line of the take: a flat dict that JSON can carry."""
