"""Stems to outputs: routing, gain, pan, mute, solo, the dry input, the metronome and the limiter.

The mixer is part of the engine's loop. Everything in it is defined per absolute frame, so the same frames give
the same bits however they are divided into blocks. That is why sums are explicit multiplies and adds, element by
element: a matrix product or a reduction may add in another order when the block has another size.

Signal path: strip -> gain, pan, mute, solo -> sum -> NaN guard -> limiter. What is not finite survives any gain and
any sum, so the guard looks at the sums, of which there are few; where it finds something, the run is mixed again
without it. Nothing is metered here: see ``meters.py``.
All buffers are laid out at the start. Every method belongs to the engine's thread.

Latency: none. At frame n the outputs carry frame n of the stems and of the dry input as it is given.
"""

from __future__ import annotations

import math
from bisect import insort
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from itertools import zip_longest

import numpy as np
import numpy.typing as npt

from realtime.buffers import Columns, stem_columns
from realtime.clock import TempoMap
from realtime.protocols import Block, StreamSpec

RAMP_SECONDS = 0.020
"""Every change of gain, pan, mute or solo takes this long, linear in gain."""
RELEASE_SECONDS = 0.050
"""Time constant with which the limiter lets go."""
SEGMENT_FRAMES = 512
"""The longest run mixed at once. Runs never cross a multiple of it: the limiter's envelope is rescaled there."""
MONITOR, METRONOME = "monitor", "metronome"
"""Names under which the dry input and the metronome answer to ``set_gain`` and the like."""

LOUDEST_DB = 40.0
CLICK_SECONDS = 0.030
RELEASED = 1e-7
"""A reduction this small (0.000001 dB) counts as over, so that release ends and the fast path is taken again."""

Floats = npt.NDArray[np.float32]
Route = tuple[int, int]
"""A channel of a strip and the output it goes to."""


@dataclass(frozen=True, slots=True)
class Strip:
    """One stem's place in the mix.

    Attributes
    ----------
    name
        How it is called; unique in a mixer.
    channels
        Width of the stem, 1 to 64.
    gain_db
        Fader, up to 40 dB; ``-math.inf`` is off.
    pan
        -1 (left) to 1 (right), where the strip has two outputs: a mono stem is panned with equal power (-3 dB
        in the middle), a stereo stem is balanced (the other side is turned down, the middle is 0 dB).
        Elsewhere it does nothing.
    mute, solo
        Where any stem is solo, the others are silent; mute beats solo.
    outputs
        0-based output channels. One output takes the mean of the channels; two outputs take a mono or a stereo
        stem; n outputs take a stem of n channels, one to one.

    Raises
    ------
    ValueError
        If a value is out of range or the stem does not fit its outputs.
    """

    name: str
    channels: int
    gain_db: float = 0.0
    pan: float = 0.0
    mute: bool = False
    solo: bool = False
    outputs: tuple[int, ...] = (0, 1)

    def __post_init__(self) -> None:
        who = f"strip {self.name!r}"
        if not 1 <= self.channels <= 64:
            raise ValueError(f"{who}: channels={self.channels}; a stem has 1 to 64 channels")
        if not self.gain_db <= LOUDEST_DB:  # refuses NaN too
            raise ValueError(f"{who}: gain_db={self.gain_db}; a gain is at most {LOUDEST_DB:g} dB, -inf is off")
        if not -1 <= self.pan <= 1:
            raise ValueError(f"{who}: pan={self.pan}; pan is -1 (left) to 1 (right); did you give per cent?")
        if not self.outputs or len(set(self.outputs)) < len(self.outputs) or min(self.outputs) < 0:
            raise ValueError(f"{who}: outputs={list(self.outputs)}; name each output once, counted from 0")
        if len(self.outputs) not in (1, self.channels) and (self.channels, len(self.outputs)) != (1, 2):
            raise ValueError(
                f"{who}: {self.channels} channels to {len(self.outputs)} outputs; a stem goes to one output, "
                "to as many outputs as it has channels, or, if mono, to two"
            )


@dataclass(frozen=True, slots=True)
class Metronome:
    """A click on the beats of the meter's own unit (eighths in 7/8), its first frame exactly on the beat.

    Attributes
    ----------
    on
        Whether it sounds in bars from 0 on; see :meth:`Mixer.set_metronome`.
    count_in
        Whether it sounds in the bars before 0.
    accent
        Whether downbeats have a click of their own.
    gain_db, outputs
        As in :class:`Strip`; the click is mono. Give it a pair of outputs of its own to have a cue.
    """

    on: bool = False
    count_in: bool = True
    accent: bool = True
    gain_db: float = -12.0
    outputs: tuple[int, ...] = (0, 1)


@dataclass(frozen=True, slots=True)
class Monitor:
    """The player's own sound, dry.

    Attributes
    ----------
    inputs
        0-based input channels that are heard, in the order of ``outputs``; empty for all.
    gain_db, outputs
        As in :class:`Strip`.
    """

    inputs: tuple[int, ...] = ()
    gain_db: float = 0.0
    outputs: tuple[int, ...] = (0, 1)


class Mixer:
    """Mixes stems into output channels, any number of either.

    Parameters
    ----------
    spec
        Sample rate and channel counts.
    strips
        One per stem.
    metronome, monitor
        ``None`` for none. Neither is touched by a solo.
    ceiling_db
        No output sample is larger than this, -60 to 0 dBFS.

    Attributes
    ----------
    names : tuple of str
        The strips, then ``"monitor"`` and ``"metronome"`` where there are such.
    columns : Columns
        Where :meth:`mix` looks for each stem: as :func:`~realtime.buffers.stem_columns` lays them side by side.
    nan_frames : numpy.ndarray
        Frames with a sample that was NaN or infinite, and became 0, for each of ``names``.
    limited_frames : int
        Frames in which an output was above the ceiling.

    Raises
    ------
    ValueError
        If two strips have one name, a channel does not exist, or a figure is out of range.
    """

    def __init__(
        self,
        spec: StreamSpec,
        strips: Sequence[Strip],
        metronome: Metronome | None = None,
        monitor: Monitor | None = None,
        *,
        ceiling_db: float = -0.3,
    ) -> None:
        if not -60 <= ceiling_db <= 0:
            raise ValueError(f"ceiling_db={ceiling_db}; the limiter's ceiling is -60 to 0 dBFS")
        self._spec = spec
        self._stems = len(strips)
        self._strips = list(strips)
        self._dry = _dry_channels(monitor, spec.inputs) if monitor else ()
        if monitor:
            width = len(self._dry)
            self._strips.append(Strip(MONITOR, width, monitor.gain_db, outputs=monitor.outputs))
        self._clicks = _Clicks(metronome, spec.samplerate) if metronome else None
        if metronome:
            self._strips.append(Strip(METRONOME, 1, metronome.gain_db, outputs=metronome.outputs))
        self.names = tuple(strip.name for strip in self._strips)
        _check(self._strips, spec.outputs)

        self.columns = stem_columns([strip.channels for strip in strips])
        self._routing = _Routing(self._strips, self._stems, self.columns, spec.outputs)
        pairs, slots = self._routing.pairs, self._routing.slots
        self._limiter = _Limiter(spec, ceiling_db, pairs)
        self._faders = _Faders(max(1, round(RAMP_SECONDS * spec.samplerate)), self._gains())
        self._memory = np.zeros((3, SEGMENT_FRAMES * slots * 2), np.float32)
        self._bus_memory = np.zeros((2, SEGMENT_FRAMES * pairs * 2), np.float32)
        self._click_memory = np.zeros((SEGMENT_FRAMES, 1), np.float32)
        self._dry_memory = np.zeros((SEGMENT_FRAMES, len(self._dry)), np.float32)

        self._pending: list[tuple[int, Callable[[], None]]] = []
        self._position: int | None = None
        self._frames = 0
        self.nan_frames = np.zeros(len(self.names), np.int64)
        self.limited_frames = 0
        self._lay_out(min(spec.blocksize, SEGMENT_FRAMES))

    def mix(self, start: int, frames: int, stems: Block, dry: Block | None, tempo_map: TempoMap, out: Block) -> None:
        """Write ``out[:frames]``, the outputs of frames ``[start, start + frames)``.

        Parameters
        ----------
        start, frames
            Normally from where the last call ended; a jump forgets click tails and the limiter.
        stems
            All stems side by side, ``(frames, columns.width)``, or longer.
        dry
            Input ``(frames, inputs)``; ``None`` is silence.
        tempo_map
            Where the metronome's beats are.
        out
            ``(frames, outputs)`` or longer.

        Raises
        ------
        ValueError
            If a block has not the shape that was promised.
        """
        self._check_blocks(frames, stems, dry)
        if start != self._position:
            self._jump()
        end = self._position = start + frames
        at = start
        with np.errstate(all="ignore"):  # NaN, infinity and overflow are expected here, and dealt with
            while at < end:
                if self._pending and self._pending[0][0] <= at:
                    self._apply_changes(at)
                stop = min(end, at - at % SEGMENT_FRAMES + SEGMENT_FRAMES)
                if self._pending:
                    stop = min(stop, self._pending[0][0])
                self._mix_run(at, stop - at, at - start, stems, dry, tempo_map)
                for of_out, of_bus in self._outputs:
                    out[at - start : stop - start, of_out] = of_bus
                at = stop

    def set_gain(self, name: str, gain_db: float, at_frame: int) -> None:
        """Move the fader of ``name``: a ramp of 20 ms begins at ``at_frame``, or at once if that is mixed already.

        This and the other setters raise ``ValueError`` for an unknown name or a value out of range. A change
        during a ramp starts from where the ramp is.
        """
        self._schedule(name, at_frame, lambda strip: replace(strip, gain_db=gain_db))

    def set_pan(self, name: str, pan: float, at_frame: int) -> None:
        """Turn the pan of ``name``, -1 to 1."""
        self._schedule(name, at_frame, lambda strip: replace(strip, pan=pan))

    def set_mute(self, name: str, mute: bool, at_frame: int) -> None:
        """Silence ``name``, or let it sound again."""
        self._schedule(name, at_frame, lambda strip: replace(strip, mute=mute))

    def set_solo(self, name: str, solo: bool, at_frame: int) -> None:
        """Solo a stem, or end it. The monitor and the metronome are neither soloed nor silenced by a solo."""
        self._schedule(name, at_frame, lambda strip: replace(strip, solo=solo))

    @property
    def has_metronome(self) -> bool:
        """Whether there is one to turn on and off."""
        return self._clicks is not None

    def set_metronome(self, on: bool, at_frame: int) -> None:
        """Let the clicks from ``at_frame`` on sound or not; one that sounds already rings out."""
        clicks = self._clicks
        if clicks is None:
            raise ValueError("this mixer has no metronome; give it one when it is built")
        self._queue(at_frame, lambda: clicks.switch(on))

    # -- changes

    def _schedule(self, name: str, at_frame: int, change: Callable[[Strip], Strip]) -> None:
        if name not in self.names:
            raise ValueError(f"no strip is called {name!r}; there are {', '.join(self.names)}")
        index = self.names.index(name)
        change(self._strips[index])  # what is out of range is refused now, not while it is mixed

        def apply() -> None:
            self._strips[index] = change(self._strips[index])

        self._queue(at_frame, apply)

    def _queue(self, at_frame: int, apply: Callable[[], None]) -> None:
        insort(self._pending, (at_frame, apply), key=lambda entry: entry[0])  # equal frames stay in order

    def _apply_changes(self, at: int) -> None:
        while self._pending and self._pending[0][0] <= at:
            self._pending.pop(0)[1]()
        self._faders.aim(self._gains(), at)

    def _gains(self) -> Floats:
        """Where the gain of every column is going, by the strips as they stand."""
        soloing = any(strip.solo for strip in self._strips[: self._stems])
        gains = np.zeros(2 * self._routing.slots, np.float32)
        for index, strip in enumerate(self._strips):
            silent = strip.mute or (soloing and index < self._stems and not strip.solo)
            gains[self._routing.of_strip[index]] = 0.0 if silent else _factors(strip)
        return gains

    # -- one run of frames

    def _lay_out(self, frames: int) -> None:
        """Cut the memory for runs of this many frames.

        A slot is a row: its frames one after the other, each of them two samples, one for each output of the pair.
        Rows follow each other without a gap, so that NumPy goes through a whole array in one loop.
        """

        def rows(memory: Floats, count: int) -> Floats:
            return memory[: count * frames * 2].reshape(count, frames * 2)

        routing = self._routing
        self._frames = frames
        self._packed, self._gain, self._scratch = (rows(memory, routing.slots) for memory in self._memory)
        self._bus, self._rectified = (rows(memory, routing.pairs) for memory in self._bus_memory)
        self._bus.fill(0)  # pairs that nothing goes to stay so
        self._faders.hold(self._gain)
        self._click_block, self._dry_block = self._click_memory[:frames], self._dry_memory[:frames]
        self._copies = [(copy, copy.target(self._packed, frames)) for copy in routing.copies]
        self._sums, self._moves = routing.plan(self._packed, self._bus)
        self._outputs = routing.outputs_of(self._bus, frames)

    def _mix_run(
        self, at: int, frames: int, offset: int, stems: Block, dry: Block | None, tempo_map: TempoMap
    ) -> None:
        if frames != self._frames:
            self._lay_out(frames)
        clicking = self._clicks is not None and self._clicks.render(at, tempo_map, self._click_block)
        if self._faders.moving:
            self._faders.write(at, self._gain, self._scratch)
        sources = self._sources(offset, stems, dry, clicking)
        peak = self._sum(sources, clean=False)
        if not math.isfinite(peak):
            peak = self._sum(sources, clean=True)
        if self._limiter.wanted(at, peak):
            self.limited_frames += self._limiter.limit(at, self._bus, self._rectified)

    def _sources(self, offset: int, stems: Block, dry: Block | None, clicking: bool) -> list[Block | None]:
        """Return this run of the stems, the monitor and the click; ``None`` for silence."""
        frames = self._frames
        sources: list[Block | None] = [stems if len(stems) == frames else stems[offset : offset + frames], None, None]
        if self._dry and dry is not None:
            for column, channel in enumerate(self._dry):
                self._dry_block[:, column] = dry[offset : offset + frames, channel]
            sources[_DRY] = self._dry_block
        if clicking:
            sources[_CLICK] = self._click_block
        return sources

    def _sum(self, sources: list[Block | None], clean: bool) -> float:
        """Bring every strip's sound to its slots, scale it, add it up on the bus; return the bus's peak.

        With ``clean``, samples that are not finite become 0 first, and their frames are counted.
        """
        if self._routing.holes:
            self._packed.fill(0)  # it was added up in place
        for copy, target in self._copies:
            source = sources[copy.source]
            target[...] = 0 if source is None else copy.of(source)
        if clean:
            self._clean()
        np.multiply(self._packed, self._gain, out=self._packed)
        for first, second, total in self._sums:
            np.add(first, second, out=total)
        for moved, target in self._moves:
            target[...] = moved
        np.abs(self._bus, out=self._rectified)
        return float(np.maximum.reduce(self._rectified, axis=None, initial=0))

    def _clean(self) -> None:
        bad = ~np.isfinite(self._packed)
        by_frame = bad.reshape(-1, self._frames, 2).transpose(1, 0, 2).reshape(self._frames, -1)
        for index, columns in enumerate(self._routing.of_strip):
            self.nan_frames[index] += np.count_nonzero(by_frame[:, columns].any(axis=1))
        self._packed[bad] = 0

    def _jump(self) -> None:
        self._limiter.reset()
        if self._clicks:
            self._clicks.reset()

    def _check_blocks(self, frames: int, stems: Block, dry: Block | None) -> None:
        if stems.shape[0] < frames or stems.shape[1] != self.columns.width:
            raise ValueError(
                f"a block of stems of shape {stems.shape} for {self._stems} strips; it takes "
                f"({frames}, {self.columns.width}), (frames, columns); are the axes swapped?"
            )
        if dry is not None and self._dry and (len(dry) < frames or dry.shape[1] != self._spec.inputs):
            raise ValueError(f"an input of shape {dry.shape}; the stream's is ({frames}, {self._spec.inputs})")


# -- what goes where


def _check(strips: Sequence[Strip], outputs: int) -> None:
    seen: set[str] = set()
    for strip in strips:
        if strip.name in seen:
            raise ValueError(
                f"two strips are called {strip.name!r}; names are unique, and monitor and metronome taken"
            )
        seen.add(strip.name)
        if max(strip.outputs) >= outputs:
            raise ValueError(
                f"strip {strip.name!r}: output {max(strip.outputs)} where the stream has {outputs}, counted from 0; "
                "did you count from 1?"
            )


def _routes(strip: Strip) -> list[Route]:
    if len(strip.outputs) == 1:
        return [(channel, strip.outputs[0]) for channel in range(strip.channels)]
    if strip.channels == 1:
        return [(0, output) for output in strip.outputs]
    return list(enumerate(strip.outputs))


def _factors(strip: Strip) -> list[float]:
    """Linear gain of each of the strip's routes, in their order."""
    gain = 10 ** (strip.gain_db / 20)
    if len(strip.outputs) == 1:  # the mean: never louder than the loudest channel
        return [gain / strip.channels] * strip.channels
    if len(strip.outputs) != 2:
        return [gain] * strip.channels
    left, right = 1 - strip.pan, 1 + strip.pan
    if strip.channels == 1:  # left**2 + right**2 == 1; written with sines, both ends are exactly 0
        return [gain * math.sin(left * math.pi / 4), gain * math.sin(right * math.pi / 4)]
    return [gain * math.sin(min(1, left) * math.pi / 2), gain * math.sin(min(1, right) * math.pi / 2)]


_STEMS, _DRY, _CLICK = range(3)
"""Where sound comes from: the stems side by side, the monitor's channels, the click."""


@dataclass(frozen=True, slots=True)
class _Copy:
    """From columns of a source to slots that lie one after the other.

    ``kind`` says what becomes of a column: ``"pair"``, two of them are the two samples of a slot, and both begin
    evenly, so that they are moved as one number; ``"both"``, one goes to both; ``"left"`` or ``"right"``, to one.
    """

    source: int
    kind: str
    column: int
    slot: int
    count: int = 1

    def after(self, before: _Copy) -> bool:
        """Whether this goes on where ``before`` ends, so that they are one."""
        step = 2 if self.kind == "pair" else 1
        return (
            (self.source, self.kind) == (before.source, before.kind)
            and self.kind in ("pair", "both")
            and self.slot == before.slot + before.count
            and self.column == before.column + step * before.count
        )

    def target(self, packed: Floats, frames: int) -> npt.NDArray[np.generic]:
        """Return the slots, shaped as :meth:`of` gives the sound for them."""
        slots = packed[self.slot : self.slot + self.count]
        if self.kind == "pair":
            return slots.view(np.complex64)
        samples = slots.reshape(self.count, frames, 2)
        return samples if self.kind == "both" else samples[0, :, 0 if self.kind == "left" else 1]

    def of(self, source: Block) -> npt.NDArray[np.generic]:
        """Return the sound for the slots."""
        if self.kind == "pair":
            first = self.column // 2
            return source.view(np.complex64)[:, first : first + self.count].T
        if self.kind == "both":
            return source.T[self.column : self.column + self.count, :, np.newaxis]
        return source[:, self.column]


class _Routing:
    """Which slot carries which route.

    Outputs are taken two by two. All that goes to one pair lies in one run of slots, each with a sample for the
    left and one for the right output, and a pair is summed by adding halves of its run.
    """

    def __init__(self, strips: Sequence[Strip], stems: int, columns: Columns, outputs: int) -> None:
        self.pairs = outputs - outputs // 2
        self._outputs = outputs
        self.slots = 0
        self.copies: list[_Copy] = []
        self._runs: list[tuple[int, int, int]] = []
        column_of: dict[tuple[int, Route], int] = {}
        of_pair = self._slots_of_pairs(strips)
        for pair in sorted(of_pair):
            self._runs.append((pair, self.slots, len(of_pair[pair])))
            for index, left, right in of_pair[pair]:
                for output, channel in ((2 * pair, left), (2 * pair + 1, right)):
                    if channel is not None:
                        column_of[index, (channel, output)] = 2 * self.slots + output % 2
                source = _STEMS if index < stems else _CLICK if strips[index].name == METRONOME else _DRY
                first = columns.first[index] if index < stems else 0
                self._copy(source, first, strips[index].channels, left, right)
                self.slots += 1
        self.slots = max(1, self.slots)  # without any strip, one that nothing goes to
        self.holes = len(column_of) < 2 * self.slots  # slots of which one half carries nothing
        self.of_strip = [
            np.array([column_of[index, route] for route in _routes(strip)]) for index, strip in enumerate(strips)
        ]

    @staticmethod
    def _slots_of_pairs(strips: Sequence[Strip]) -> dict[int, list[tuple[int, int | None, int | None]]]:
        """For each pair of outputs: strip, channel to the left one, channel to the right one."""
        slots: dict[int, list[tuple[int, int | None, int | None]]] = {}
        for index, strip in enumerate(strips):
            routes = _routes(strip)
            for pair in sorted({output // 2 for output in strip.outputs}):
                left = [channel for channel, output in routes if output == 2 * pair]
                right = [channel for channel, output in routes if output == 2 * pair + 1]
                slots.setdefault(pair, []).extend((index, *ends) for ends in zip_longest(left, right))
        return slots

    def _copy(self, source: int, first: int, channels: int, left: int | None, right: int | None) -> None:
        """Note how a slot gets its sound; ``first`` is the strip's first column in its source."""
        if left is not None and left == right:
            self._add(_Copy(source, "both", first + left, self.slots))
        elif left is not None and right == left + 1 and first % 2 == left % 2 == channels % 2 == 0:
            self._add(_Copy(source, "pair", first + left, self.slots))
        else:
            for kind, channel in (("left", left), ("right", right)):
                if channel is not None:
                    self._add(_Copy(source, kind, first + channel, self.slots))

    def _add(self, copy: _Copy) -> None:
        if self.copies and copy.after(self.copies[-1]):
            before = self.copies.pop()
            copy = replace(before, count=before.count + 1)
        self.copies.append(copy)

    def plan(
        self, packed: Floats, bus: Floats
    ) -> tuple[list[tuple[Floats, Floats, Floats]], list[tuple[Floats, Floats]]]:
        """Return the additions and the moves that bring the slots of ``packed`` to ``bus``, in order."""
        sums: list[tuple[Floats, Floats, Floats]] = []
        moves: list[tuple[Floats, Floats]] = []
        for pair, base, slots in self._runs:
            target = bus[pair : pair + 1]
            if slots == 1:
                moves.append((packed[base : base + 1], target))
            while slots > 1:
                half = (slots + 1) // 2
                first, second = packed[base : base + slots - half], packed[base + half : base + slots]
                sums.append((first, second, target if half == 1 else first))
                slots = half
        return sums, moves

    def outputs_of(self, bus: Floats, frames: int) -> list[tuple[slice, Floats]]:
        """Return for each pair its outputs and, ``(frames, outputs)``, what goes there."""
        of_outputs = []
        for pair in range(self.pairs):
            count = min(2, self._outputs - 2 * pair)
            of_outputs.append((slice(2 * pair, 2 * pair + count), bus[pair].reshape(frames, 2)[:, :count]))
        return of_outputs


# -- what changes


class _Faders:
    """The gain of every column, as a function of the frame: ``target * w + origin * (1 - w)``.

    ``w`` is ``(frame - ramp start) / ramp frames``, at most 1, where the gain is exactly the target.
    """

    def __init__(self, ramp_frames: int, gains: Floats) -> None:
        self.target = gains
        self.moving = False
        self._origin = gains.copy()
        self._start = np.full(len(gains), -(1 << 62), np.int64)  # every ramp is over long since
        self._end = 0
        self._ramp_frames = ramp_frames
        self._length = np.float32(ramp_frames)
        self._steps = np.arange(SEGMENT_FRAMES, dtype=np.float32)[:, np.newaxis]

    def aim(self, gains: Floats, at: int) -> None:
        """Begin a ramp at frame ``at`` in every column that has a new target, from where its gain is then."""
        changed = gains != self.target
        if not changed.any():
            return
        weight = self._elapsed(at) / self._length
        present = self.target * weight + self._origin * (np.float32(1) - weight)
        self._origin[changed] = present[changed]
        self._start[changed] = at
        self.target = gains
        self._end = at + self._ramp_frames
        self.moving = True

    def hold(self, gain: Floats) -> None:
        """Write the targets to ``gain``, ``(slots, 2 * frames)``."""
        gain.reshape(len(gain), -1, 2)[...] = self.target.reshape(-1, 1, 2)

    def write(self, at: int, gain: Floats, scratch: Floats) -> None:
        """Write the gains from frame ``at`` on; both arrays are ``(slots, 2 * frames)``."""
        if at >= self._end:
            self.hold(gain)
            self.moving = False
            return
        gain, scratch = gain.reshape(len(gain), -1, 2), scratch.reshape(len(scratch), -1, 2)
        elapsed, target, origin = (a.reshape(-1, 1, 2) for a in (self._elapsed(at), self.target, self._origin))
        np.add(self._steps[: gain.shape[1]], elapsed, out=scratch)  # whole numbers, exact in float32
        np.minimum(scratch, self._length, out=scratch)
        np.divide(scratch, self._length, out=scratch)
        np.multiply(target, scratch, out=gain)
        np.subtract(np.float32(1), scratch, out=scratch)
        np.multiply(origin, scratch, out=scratch)
        np.add(gain, scratch, out=gain)

    def _elapsed(self, at: int) -> Floats:
        """Frames since each column's ramp began, at most its length."""
        elapsed: Floats = np.clip(at - self._start, 0, self._ramp_frames).astype(np.float32)
        return elapsed


# -- what is always there


class _Limiter:
    """Zero latency, instant attack, exponential release; linked within each pair of outputs.

    With the peak p of a pair at frame n, the wanted reduction is ``d[n] = 1 - min(1, ceiling / p)``, the actual
    one ``a[n] = max(d[n], a[n - 1] * r)``, and the gain ``1 - a[n]``. A pair keeps its stereo image; other pairs
    are left alone, so a click on a cue never ducks the room.

    The recursion is a running maximum, ``a[n] = r**j * max(d[i] * r**-i)``, with j and i counted from the last
    multiple of ``SEGMENT_FRAMES``. A maximum does not round, and the powers come from one table of absolute
    places: so the bits do not depend on where the blocks are cut.
    """

    def __init__(self, spec: StreamSpec, ceiling_db: float, pairs: int) -> None:
        self._ceiling = np.float32(10 ** (ceiling_db / 20))
        exponents = np.arange(SEGMENT_FRAMES + 1) / (RELEASE_SECONDS * spec.samplerate)
        self._falling, self._rising = np.exp(-exponents), np.exp(exponents)
        self._memory = np.zeros((pairs, SEGMENT_FRAMES))
        self._held = np.zeros(pairs)
        self._releasing = False
        self._segment = 0

    def reset(self) -> None:
        """Let go at once."""
        self._held.fill(0)
        self._releasing = False

    def wanted(self, at: int, peak: float) -> bool:
        """Enter the run that starts at ``at``; return whether anything is to be done in it (NaN: yes)."""
        segment = at // SEGMENT_FRAMES
        if segment != self._segment and self._releasing:
            self._held *= self._falling[SEGMENT_FRAMES]
            self._held[self._held < RELEASED] = 0
            self._releasing = bool(self._held.any())
        self._segment = segment
        return self._releasing or not peak <= self._ceiling

    def limit(self, at: int, bus: Floats, rectified: Floats) -> int:
        """Limit ``bus``, ``(pairs, 2 * frames)``, in place, given its absolute values; return in how many frames it
        was too loud.
        """
        pairs, samples = bus.shape
        place = slice(at % SEGMENT_FRAMES, at % SEGMENT_FRAMES + samples // 2)
        envelope = self._memory[:, : samples // 2]
        np.nan_to_num(bus, copy=False)  # sums of huge stems may have run over
        np.nan_to_num(rectified, copy=False)
        np.maximum(rectified[:, 0::2], rectified[:, 1::2], out=envelope)
        np.maximum(envelope, self._ceiling, out=envelope)
        np.divide(self._ceiling, envelope, out=envelope)
        np.subtract(1, envelope, out=envelope)
        limited = np.count_nonzero(envelope.any(axis=0))
        np.multiply(envelope, self._rising[place], out=envelope)
        np.maximum(envelope[:, 0], self._held, out=envelope[:, 0])
        np.maximum.accumulate(envelope, axis=1, out=envelope)
        self._held[...] = envelope[:, -1]
        self._releasing = bool(self._held.any())
        np.multiply(envelope, self._falling[place], out=envelope)
        np.subtract(1, envelope, out=envelope)
        bus.reshape(pairs, -1, 2)[...] *= envelope[:, :, np.newaxis]
        np.clip(bus, -self._ceiling, self._ceiling, out=bus)  # rounding may leave one unit in the last place
        return int(limited)


def _dry_channels(monitor: Monitor, inputs: int) -> tuple[int, ...]:
    """Return the input channels that are heard."""
    channels = monitor.inputs or tuple(range(inputs))
    if not all(0 <= channel < inputs for channel in channels):
        raise ValueError(
            f"monitor: inputs={list(channels)} where the stream has {inputs}, counted from 0; did you count from 1?"
        )
    return channels


class _Clicks:
    """Renders the metronome. A click is placed once, when its first frame is mixed, and then rings out."""

    def __init__(self, settings: Metronome, samplerate: int) -> None:
        self._on, self._count_in = settings.on, settings.count_in
        self._beat = _click(samplerate, 1000.0, 0.7)
        self._downbeat = _click(samplerate, 1500.0, 1.0) if settings.accent else self._beat
        self._map: TempoMap | None = None
        self._sounding: list[tuple[int, Floats]] = []
        self._bar = self._index = self._frame = 0
        self._start, self._unit, self._count = Fraction(0), Fraction(1), 4

    def switch(self, on: bool) -> None:
        """Turn the clicks of bars from 0 on on or off."""
        self._on = on

    def reset(self) -> None:
        """Cut off what rings; look for the next click anew."""
        self._map = None
        self._sounding.clear()

    def render(self, at: int, tempo_map: TempoMap, block: Floats) -> bool:
        """Write the frames from ``at`` on to ``block``, ``(frames, 1)``, if a click sounds; say whether one does."""
        if tempo_map is not self._map:
            self._find(at, tempo_map)
        while self._frame < at + len(block):
            if self._on if self._bar >= 0 else self._count_in:
                self._sounding.append((self._frame, self._beat if self._index else self._downbeat))
            self._advance(tempo_map)
        if not self._sounding:
            return False
        block.fill(0)
        for onset, click in self._sounding:
            into, skip = max(0, onset - at), max(0, at - onset)
            frames = min(len(block) - into, len(click) - skip)
            block[into : into + frames] += click[skip : skip + frames]
        self._sounding = [entry for entry in self._sounding if entry[0] + len(entry[1]) > at + len(block)]
        return True

    def _find(self, at: int, tempo_map: TempoMap) -> None:
        """Go to the first click at or after frame ``at``."""
        self._map = tempo_map
        moment = tempo_map.moment(at)
        self._enter(tempo_map, moment.bar, tempo_map.downbeat(moment.bar))
        self._index = int(moment.beat // self._unit)
        self._frame = tempo_map.frame_at(self._start + self._index * self._unit)
        while self._frame < at:
            self._advance(tempo_map)

    def _advance(self, tempo_map: TempoMap) -> None:
        self._index += 1
        if self._index == self._count:  # a meter changes on bar lines only, so this is the next bar line
            self._enter(tempo_map, self._bar + 1, self._start + self._count * self._unit)
        self._frame = tempo_map.frame_at(self._start + self._index * self._unit)

    def _enter(self, tempo_map: TempoMap, bar: int, start: Fraction) -> None:
        meter = tempo_map.at_beat(start).meter
        self._bar, self._start, self._index = bar, start, 0
        self._unit, self._count = Fraction(4, meter.unit), meter.count


def _click(samplerate: int, pitch_hz: float, level: float) -> Floats:
    """A short ring, ``(frames, 1)``, loudest in its first frame, 0 after its last."""
    frames = max(1, round(CLICK_SECONDS * samplerate))
    seconds = np.arange(frames) / samplerate
    fade = 1 - np.arange(frames) / frames
    sound = level * np.cos(2 * np.pi * pitch_hz * seconds) * np.exp(-seconds / (CLICK_SECONDS / 6)) * fade
    return sound.astype(np.float32)[:, np.newaxis]
