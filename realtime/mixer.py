"""Stems to outputs: routing, gain, pan, mute, solo, the dry input, the metronome, meters and the limiter.

The mixer is part of the engine's loop. Everything in it is defined per absolute frame, so the same frames give
the same bits however they are divided into blocks; only the meters' RMS, a sum, may differ in its last bits.
That is why sums are explicit multiplies and adds, element by element: a matrix product or a reduction may add
in another order when the block has another size.

Signal path: strip -> NaN guard -> strip meter -> gain, pan, mute, solo -> sum -> limiter -> output meter.
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
        One per stem, in the order in which :meth:`mix` takes them.
    metronome, monitor
        ``None`` for none. Neither is touched by a solo.
    ceiling_db
        No output sample is larger than this, -60 to 0 dBFS.

    Attributes
    ----------
    names : tuple of str
        The strips, then ``"monitor"`` and ``"metronome"`` where there are such.
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

        self._routing = _Routing(self._strips, spec.outputs)
        self._limiter = _Limiter(spec, ceiling_db, self._routing.width // 2)
        self._faders = _Faders(max(1, round(RAMP_SECONDS * spec.samplerate)), self._gains())
        columns, width = self._routing.columns, self._routing.width
        self._memory = np.zeros((3, SEGMENT_FRAMES * columns), np.float32)
        self._bus_memory = np.zeros((2, SEGMENT_FRAMES * width), np.float32)
        self._click_memory = np.zeros((SEGMENT_FRAMES, 1), np.float32)
        self._dry_memory = np.zeros((SEGMENT_FRAMES, len(self._dry)), np.float32)
        self._peak, self._top = np.zeros(columns, np.float32), np.zeros(columns, np.float32)
        self._bus_peak, self._bus_top = np.zeros(width, np.float32), np.zeros(width, np.float32)
        self._power, self._bus_power = np.zeros(columns), np.zeros(width)
        self._metered_frames = 0
        self._meters = np.zeros((len(self.names) + spec.outputs, 2), np.float32)

        self._pending: list[tuple[int, Callable[[], None]]] = []
        self._position: int | None = None
        self._frames = 0
        self.nan_frames = np.zeros(len(self.names), np.int64)
        self.limited_frames = 0
        self._lay_out(min(spec.blocksize, SEGMENT_FRAMES))

    def mix(
        self, start: int, frames: int, stems: Sequence[Block], dry: Block | None, tempo_map: TempoMap, out: Block
    ) -> None:
        """Write ``out[:frames]``, the outputs of frames ``[start, start + frames)``.

        Parameters
        ----------
        start, frames
            Normally from where the last call ended; a jump forgets click tails and the limiter.
        stems
            One per strip, ``(frames, channels)`` each; longer ones are cut.
        dry
            Input ``(frames, inputs)``; ``None`` is silence.
        tempo_map
            Where the metronome's beats are.
        out
            ``(frames, outputs)`` or longer.

        Raises
        ------
        ValueError
            If a stem has not the shape its strip promised.
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
                out[at - start : stop - start] = self._outputs
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

    def set_metronome(self, on: bool, at_frame: int) -> None:
        """Let the clicks from ``at_frame`` on sound or not; one that sounds already rings out."""
        clicks = self._clicks
        if clicks is None:
            raise ValueError("this mixer has no metronome; give it one when it is built")
        self._queue(at_frame, lambda: clicks.switch(on))

    @property
    def meter_names(self) -> tuple[str, ...]:
        """What the rows of :meth:`meters` are: :attr:`names`, then ``"output 1"`` and so on."""
        return (*self.names, *(f"output {output + 1}" for output in range(self._spec.outputs)))

    def meters(self) -> Floats:
        """Return peak and RMS since the last call, linear, ``(names + outputs, 2)``; valid until the next call.

        Strips are metered as they come in, before the fader; outputs as they leave, after the limiter. RMS is
        taken over the channels of a strip together.
        """
        rows, routing = len(self.names), self._routing
        frames = max(1, self._metered_frames)
        np.maximum.reduceat(self._top[routing.order], routing.starts, out=self._meters[:rows, 0])
        power = np.add.reduceat(self._power[routing.order], routing.starts) / routing.routes
        self._meters[:rows, 1] = np.sqrt(power / frames)
        self._meters[rows:, 0] = self._bus_top[: self._spec.outputs]
        self._meters[rows:, 1] = np.sqrt(self._bus_power[: self._spec.outputs] / frames)
        for total in (self._top, self._power, self._bus_top, self._bus_power):
            total.fill(0)
        self._metered_frames = 0
        return self._meters

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
        """Where every column's gain is going, by the strips as they stand."""
        soloing = any(strip.solo for strip in self._strips[: self._stems])
        gains = np.zeros(self._routing.columns, np.float32)
        for index, strip in enumerate(self._strips):
            silent = strip.mute or (soloing and index < self._stems and not strip.solo)
            gains[self._routing.of_strip[index]] = 0.0 if silent else _factors(strip)
        return gains

    # -- one run of frames

    def _lay_out(self, frames: int) -> None:
        """Cut the memory for runs of this many frames.

        Each channel's frames lie side by side in memory and columns follow each other without a gap, so that
        NumPy goes through a whole array in one loop; the axes remain (frames, channels).
        """

        def cut(memory: Floats, columns: int) -> Floats:
            return memory[: frames * columns].reshape((frames, columns), order="F")

        routing = self._routing
        self._frames = frames
        self._memory[0].fill(0)  # columns that nothing is routed to stay zero
        self._packed, self._scaled, self._gain = (cut(memory, routing.columns) for memory in self._memory)
        self._bus_memory.fill(0)
        self._bus, self._rectified = (cut(memory, routing.width) for memory in self._bus_memory)
        self._outputs = self._bus[:, : self._spec.outputs]
        self._gain[...] = self._faders.target
        self._copies = [
            (self._packed[:, copy.column : copy.column + copy.width], copy.strip, copy.channels)
            for copy in routing.copies
        ]
        self._sums, self._moves = routing.plan(self._scaled, self._bus)
        self._click_block, self._dry_block = self._click_memory[:frames], self._dry_memory[:frames]

    def _mix_run(
        self, at: int, frames: int, offset: int, stems: Sequence[Block], dry: Block | None, tempo_map: TempoMap
    ) -> None:
        if frames != self._frames:
            self._lay_out(frames)
        self._gather(at, offset, stems, dry, tempo_map)
        self._guard()
        if self._faders.moving:
            self._faders.write(at, self._gain, self._scaled)
        np.multiply(self._packed, self._gain, out=self._scaled)
        for first, second, total in self._sums:
            np.add(first, second, out=total)
        for source, target in self._moves:
            target[...] = source
        self._finish(at)
        self._metered_frames += frames

    def _gather(self, at: int, offset: int, stems: Sequence[Block], dry: Block | None, tempo_map: TempoMap) -> None:
        """Bring every strip's sound of this run into its columns."""
        frames = self._frames
        blocks = [stem if len(stem) == frames else stem[offset : offset + frames] for stem in stems]
        if self._dry:
            for column, channel in enumerate(self._dry):
                self._dry_block[:, column] = 0 if dry is None else dry[offset : offset + frames, channel]
            blocks.append(self._dry_block)
        if self._clicks:
            self._clicks.render(at, tempo_map, self._click_block)
            blocks.append(self._click_block)
        for target, strip, channels in self._copies:
            target[...] = blocks[strip] if channels is None else blocks[strip][:, channels]

    def _guard(self) -> None:
        """Meter the strips; where a peak is not finite, replace such samples by 0 first and count them."""
        np.abs(self._packed, out=self._scaled)
        np.maximum.reduce(self._scaled, axis=0, out=self._peak)
        if not math.isfinite(self._peak.max(initial=0)):
            bad = ~np.isfinite(self._packed)
            for index, columns in enumerate(self._routing.of_strip):
                self.nan_frames[index] += np.count_nonzero(bad[:, columns].any(axis=1))
            self._packed[bad] = 0
            np.abs(self._packed, out=self._scaled)
            np.maximum.reduce(self._scaled, axis=0, out=self._peak)
        np.maximum(self._top, self._peak, out=self._top)
        np.multiply(self._packed, self._packed, out=self._scaled)
        np.add.reduce(self._scaled, axis=0, out=self._peak)
        np.add(self._power, self._peak, out=self._power)

    def _finish(self, at: int) -> None:
        """Limit and meter the outputs."""
        bus = self._bus
        np.abs(bus, out=self._rectified)
        np.maximum.reduce(self._rectified, axis=0, out=self._bus_peak)
        if self._limiter.wanted(at, self._bus_peak.max()):
            self.limited_frames += self._limiter.limit(at, bus, self._rectified)
            np.abs(bus, out=self._rectified)
            np.maximum.reduce(self._rectified, axis=0, out=self._bus_peak)
        np.maximum(self._bus_top, self._bus_peak, out=self._bus_top)
        np.multiply(bus, bus, out=self._rectified)
        np.add.reduce(self._rectified, axis=0, out=self._bus_peak)
        np.add(self._bus_power, self._bus_peak, out=self._bus_power)

    def _jump(self) -> None:
        self._limiter.reset()
        if self._clicks:
            self._clicks.reset()

    def _check_blocks(self, frames: int, stems: Sequence[Block], dry: Block | None) -> None:
        if len(stems) != self._stems:
            raise ValueError(f"{len(stems)} stems for {self._stems} strips; give one for each, in their order")
        for strip, stem in zip(self._strips, stems, strict=False):
            if stem.shape[0] < frames or stem.shape[1] != strip.channels:
                raise ValueError(
                    f"strip {strip.name!r}: a stem of shape {stem.shape}; it takes ({frames}, {strip.channels}), "
                    "(frames, channels); are the axes swapped?"
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


@dataclass(frozen=True, slots=True)
class _Copy:
    """``packed[:, column : column + width] = stem[:, channels]``; ``channels`` is ``None`` for the whole stem."""

    strip: int
    channels: slice | None
    column: int
    width: int


class _Routing:
    """Which column of the packed block carries which route.

    Outputs are taken two by two. All that goes to one pair lies in one run of columns, two columns a slot, left
    and right, so that a stereo stem is one copy and a pair is summed by adding halves of its run.
    """

    def __init__(self, strips: Sequence[Strip], outputs: int) -> None:
        self.width = outputs + outputs % 2
        slots = self._slots(strips)
        self.columns = 0
        self.copies: list[_Copy] = []
        self._pairs: list[tuple[int, int, int]] = []
        column_of: dict[tuple[int, Route], int] = {}
        for pair in sorted(slots):
            self._pairs.append((pair, self.columns, len(slots[pair])))
            for index, left, right in slots[pair]:
                for output, channel in ((2 * pair, left), (2 * pair + 1, right)):
                    if channel is not None:
                        column_of[index, (channel, output)] = self.columns + output % 2
                self._copy(index, strips[index].channels, left, right)
                self.columns += 2
        self.of_strip = [
            np.array([column_of[index, route] for route in _routes(strip)]) for index, strip in enumerate(strips)
        ]
        self.order = np.concatenate([np.zeros(0, np.intp), *self.of_strip])
        self.routes = np.array([len(columns) for columns in self.of_strip], np.intp)
        self.starts = np.cumsum(self.routes) - self.routes

    @staticmethod
    def _slots(strips: Sequence[Strip]) -> dict[int, list[tuple[int, int | None, int | None]]]:
        """For each pair of outputs: strip, channel to the left one, channel to the right one."""
        slots: dict[int, list[tuple[int, int | None, int | None]]] = {}
        for index, strip in enumerate(strips):
            routes = _routes(strip)
            for pair in sorted({output // 2 for output in strip.outputs}):
                left = [channel for channel, output in routes if output == 2 * pair]
                right = [channel for channel, output in routes if output == 2 * pair + 1]
                slots.setdefault(pair, []).extend((index, *ends) for ends in zip_longest(left, right))
        return slots

    def _copy(self, index: int, channels: int, left: int | None, right: int | None) -> None:
        if left is not None and right is not None and right - left in (0, 1):  # a mono channel is spread over both
            part = None if channels == right - left + 1 else slice(left, right + 1)
            self.copies.append(_Copy(index, part, self.columns, 2))
            return
        for column, channel in ((self.columns, left), (self.columns + 1, right)):
            if channel is not None:
                part = None if channels == 1 else slice(channel, channel + 1)
                self.copies.append(_Copy(index, part, column, 1))

    def plan(
        self, scaled: Floats, bus: Floats
    ) -> tuple[list[tuple[Floats, Floats, Floats]], list[tuple[Floats, Floats]]]:
        """Return the additions and the moves that bring the columns of ``scaled`` to ``bus``, in order."""
        sums: list[tuple[Floats, Floats, Floats]] = []
        moves: list[tuple[Floats, Floats]] = []
        for pair, base, slots in self._pairs:
            target = bus[:, 2 * pair : 2 * pair + 2]
            if slots == 1:
                moves.append((scaled[:, base : base + 2], target))
            while slots > 1:
                half = (slots + 1) // 2
                width = 2 * (slots - half)
                first = scaled[:, base : base + width]
                second = scaled[:, base + 2 * half : base + 2 * half + width]
                sums.append((first, second, target if half == 1 else first))
                slots = half
        return sums, moves


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

    def write(self, at: int, gain: Floats, scratch: Floats) -> None:
        """Write the gains of ``len(gain)`` frames from ``at`` on; both arrays are (frames, columns)."""
        if at >= self._end:
            gain[...] = self.target
            self.moving = False
            return
        np.add(self._steps[: len(gain)], self._elapsed(at), out=scratch)  # whole numbers, exact in float32
        np.minimum(scratch, self._length, out=scratch)
        np.divide(scratch, self._length, out=scratch)
        np.multiply(self.target, scratch, out=gain)
        np.subtract(np.float32(1), scratch, out=scratch)
        np.multiply(self._origin, scratch, out=scratch)
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
        exponents = np.arange(SEGMENT_FRAMES + 1)[:, np.newaxis] / (RELEASE_SECONDS * spec.samplerate)
        self._falling, self._rising = np.exp(-exponents), np.exp(exponents)
        self._memory = np.zeros((SEGMENT_FRAMES, pairs))
        self._held = np.zeros(pairs)
        self._releasing = False
        self._segment = 0

    def reset(self) -> None:
        """Let go at once."""
        self._held.fill(0)
        self._releasing = False

    def wanted(self, at: int, peak: np.float32) -> bool:
        """Enter the run that starts at ``at``; return whether anything is to be done in it (NaN: yes)."""
        segment = at // SEGMENT_FRAMES
        if segment != self._segment and self._releasing:
            self._held *= self._falling[SEGMENT_FRAMES]
            self._held[self._held < RELEASED] = 0
            self._releasing = bool(self._held.any())
        self._segment = segment
        return self._releasing or not peak <= self._ceiling

    def limit(self, at: int, bus: Floats, rectified: Floats) -> int:
        """Limit ``bus`` in place, given its absolute values; return in how many frames it was too loud."""
        place = slice(at % SEGMENT_FRAMES, at % SEGMENT_FRAMES + len(bus))
        envelope = self._memory[: len(bus)]
        np.nan_to_num(bus, copy=False)  # sums of huge stems may have run over
        np.nan_to_num(rectified, copy=False)
        np.maximum(rectified[:, 0::2], rectified[:, 1::2], out=envelope)
        np.maximum(envelope, self._ceiling, out=envelope)
        np.divide(self._ceiling, envelope, out=envelope)
        np.subtract(1, envelope, out=envelope)
        limited = np.count_nonzero(envelope.any(axis=1))
        np.multiply(envelope, self._rising[place], out=envelope)
        np.maximum(envelope[0], self._held, out=envelope[0])
        np.maximum.accumulate(envelope, axis=0, out=envelope)
        self._held[...] = envelope[-1]
        self._releasing = bool(self._held.any())
        np.multiply(envelope, self._falling[place], out=envelope)
        np.subtract(1, envelope, out=envelope)
        bus[:, 0::2] *= envelope
        bus[:, 1::2] *= envelope
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

    def render(self, at: int, tempo_map: TempoMap, block: Floats) -> None:
        """Write the frames from ``at`` on to ``block``, ``(frames, 1)``."""
        if tempo_map is not self._map:
            self._find(at, tempo_map)
        while self._frame < at + len(block):
            if self._on if self._bar >= 0 else self._count_in:
                self._sounding.append((self._frame, self._beat if self._index else self._downbeat))
            self._advance(tempo_map)
        block.fill(0)
        if self._sounding:
            for onset, click in self._sounding:
                into, skip = max(0, onset - at), max(0, at - onset)
                frames = min(len(block) - into, len(click) - skip)
                block[into : into + frames] += click[skip : skip + frames]
            self._sounding = [entry for entry in self._sounding if entry[0] + len(entry[1]) > at + len(block)]

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
