"""How long sound takes from the output back to the input, measured to the frame: what `sideman calibrate` does.

A chirp is played a few times through the path of a live session (device process, shared rings, the engine's stream)
and found again in what comes in. Only the engine is another: a :class:`Probe` that plays the chirps and keeps what
it hears. So the figure is what a session has to subtract, whatever driver, converter and block lie on the way.

The chirp sweeps all frequencies that a loudspeaker and a microphone share. Its autocorrelation is one peak, some
two frames wide, so a matched filter finds it under noise that buries it for the ear. Of several arrivals, as in a
room, the first counts. The chirps come at uneven distances: one that is taken for its neighbour disagrees with the
others. Several takes have to agree, each with the device opened anew, since some devices begin with another delay
every time.

What is pure (:class:`Train`, :func:`find`, :func:`judge`, :func:`agree`) needs no device. What was measured is kept
by :mod:`bridge.roundtrips`.

The first-arrival and matched-filter method is the usual one for impulse responses by sweeps: A. Farina,
*Simultaneous measurement of impulse response and distortion with a swept-sine technique*, AES 108 (2000).
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from realtime.buffers import Arena, ArenaHandle, AudioRing, Layout, StatusBlock, ring_layout, status_layout
from realtime.protocols import Block, StreamSpec
from realtime.stream import FAILED, RUNNING, DeviceStream

LONGEST_SECONDS = 0.5
"""The longest round trip that is found; wireless headphones take 0.3 s."""
CHIRP_SECONDS = 0.2
LOW_HZ = 200.0
HIGH_SHARE = 0.4
"""The chirp's highest frequency, as a share of the rate: below every converter's filter."""
UNEVEN_SECONDS = (0.0, 0.061, 0.023, 0.097, 0.041, 0.083, 0.011, 0.071)
SETTLE_SECONDS = 0.3
TAIL_SECONDS = 0.25
"""What a device with long blocks may deliver late."""
OPENING_SECONDS = 20.0

_TAPER = 0.1
_FIRST_SHARE = 0.5  # an arrival counts from this share of the strongest one
_LEAST_QUALITY = 10.0  # a peak over the scatter around it; chance reaches 5 in so long a window
_SILENT_DB = -60.0
_FULL_SCALE, _CLIPPED_SAMPLES = 0.999, 3
_AGREE_FRAMES = 1.0  # of two chirps, and of two takes: what rounding can do where rates are converted
_AGREE_SHARE = 0.8
_FINE, _TAPS = 64, 32  # steps of a frame to which an arrival is shown, and frames around it that it is made of
_LOOK_SECONDS = 0.02

PROBE_FIELDS = {"start": "i8", "end": "i8"}
"""Session frames of the train: 0 before the device runs."""

Signal = npt.NDArray[np.float64]


class CalibrationError(ValueError):
    """No round trip was found; the text is one sentence for the user: what was found, and what helps."""


def decibels(factor: float) -> float:
    """Return a linear factor in decibels, -200 for nothing."""
    return 20 * math.log10(max(factor, 1e-10))


# What is played


def chirp(samplerate: int) -> Block:
    """Return one chirp, ``(frames, 1)``, within -1 to 1: a linear sweep with soft ends."""
    frames = round(CHIRP_SECONDS * samplerate)
    time_seconds = np.arange(frames) / samplerate
    high_hz = HIGH_SHARE * samplerate
    rise_hz = (high_hz - LOW_HZ) / CHIRP_SECONDS
    sweep = np.sin(2 * np.pi * (LOW_HZ * time_seconds + rise_hz / 2 * time_seconds**2))
    taper = round(_TAPER * frames)
    edge = np.sin(np.pi / 2 * (np.arange(taper) + 0.5) / taper) ** 2
    sweep[:taper] *= edge
    sweep[-taper:] *= edge[::-1]
    return sweep[:, None].astype(np.float32)


@dataclass(frozen=True)
class Train:
    """Chirps at uneven distances, each followed by time for its return.

    Attributes
    ----------
    samplerate
        Hz.
    level_db
        Peak in decibels below full scale, -60 to 0.
    repeats
        Chirps, 3 to 8.
    """

    samplerate: int
    level_db: float = -18.0
    repeats: int = 5

    def __post_init__(self) -> None:
        if not -60 <= self.level_db <= 0:
            raise ValueError(
                f"level {self.level_db:g} dB: the chirp is played at -60 to 0 dB below full scale; -18 is usual"
            )
        if not 3 <= self.repeats <= len(UNEVEN_SECONDS):
            raise ValueError(f"{self.repeats} chirps: 3 to {len(UNEVEN_SECONDS)} are played; 5 are usual")

    @property
    def window(self) -> int:
        """Frames in which a chirp's return may begin."""
        return round(LONGEST_SECONDS * self.samplerate)

    @cached_property
    def chirp(self) -> Block:
        """One chirp at its level, ``(frames, 1)``."""
        return chirp(self.samplerate) * np.float32(10 ** (self.level_db / 20))

    @cached_property
    def starts(self) -> tuple[int, ...]:
        """Frame at which each chirp begins, from the train's own first."""
        slot = len(self.chirp) + self.window
        starts, at = [], 0
        for repeat in range(self.repeats):
            starts.append(at)
            at += slot + round(UNEVEN_SECONDS[repeat] * self.samplerate)
        return tuple(starts)

    @property
    def frames(self) -> int:
        """Length of the whole, with the time for the last return and for a slow device to deliver it."""
        return self.starts[-1] + len(self.chirp) + self.window + round(TAIL_SECONDS * self.samplerate)

    def play(self, start: int, frames: int) -> Block:
        """Return the train from ``start`` on, ``(frames, 1)``; silence before it and after."""
        out = np.zeros((frames, 1), np.float32)
        for at in self.starts:
            first, last = max(at, start), min(at + len(self.chirp), start + frames)
            if first < last:
                out[first - start : last - start] = self.chirp[first - at : last - at]
        return out


# What comes back


@dataclass(frozen=True, slots=True)
class Arrival:
    """A chirp found again.

    Attributes
    ----------
    frames
        How much later than it was played, to a fraction of a frame.
    gain
        Linear, negative where the loop turns the polarity.
    quality
        Height of the peak over the scatter around it; 10 is certain.
    """

    frames: float
    gain: float
    quality: float


@dataclass(frozen=True, slots=True)
class RoundTrip:
    """What one take or several amount to.

    Attributes
    ----------
    frames
        From the output to the input: what a session subtracts.
    exact_frames
        The same before rounding, for people.
    spread_frames
        Largest distance between two chirps that were counted.
    gain_db
        Of the loop.
    inverted
        Whether the loop turns the polarity.
    chirps
        How many were counted.
    channel
        Input on which they were heard best, from 0.
    """

    frames: int
    exact_frames: float
    spread_frames: float
    gain_db: float
    inverted: bool
    chirps: int
    channel: int


def find(played: Block, heard: Block) -> Arrival | None:
    """Find the first arrival of a sound in another that begins at the same frame.

    Parameters
    ----------
    played
        ``(frames, 1)``.
    heard
        ``(frames + window, 1)``: arrivals are looked for at 0 to ``window`` frames.

    Returns
    -------
    Arrival or None
        ``None`` where nothing stands out.
    """
    window = len(heard) - len(played) + 1
    size = 1 << (len(heard) - 1).bit_length()
    spectrum = np.fft.rfft(heard[:, 0], size) * np.conj(np.fft.rfft(played[:, 0], size))
    matched = np.fft.irfft(spectrum, size)
    height = np.abs(matched[:window])
    scatter = float(np.median(height)) / 0.6745  # as the standard deviation of noise
    highest = float(height.max())
    if highest <= 0 or highest < _LEAST_QUALITY * scatter:
        return None
    at = _first_peak(height, _FIRST_SHARE * highest)
    sign = float(np.sign(matched[at]))
    frames, peak = _between(matched, at, sign)
    energy = float(np.vdot(played, played))
    return Arrival(frames, sign * peak / energy, float(height[at]) / max(scatter, 1e-30))


def _first_peak(height: Signal, least: float) -> int:
    """Return where the first local maximum of at least some height is; there is one."""
    padded = np.concatenate([[-1.0], height, [-1.0]])
    peaks = (height >= padded[:-2]) & (height >= padded[2:]) & (height >= least)
    return int(np.flatnonzero(peaks)[0])


def _between(matched: Signal, at: int, sign: float) -> tuple[float, float]:
    """Return place and height of the peak near ``at``, between the frames: what is matched is band-limited."""
    offsets = np.arange(-_FINE, _FINE + 1) / _FINE
    taps = np.arange(-_TAPS, _TAPS + 1)
    distance = offsets[:, None] - taps[None, :]
    weights = np.sinc(distance) * np.cos(np.pi / 2 * distance / (_TAPS + 1)) ** 2
    curve = sign * (weights @ np.take(matched, at + taps, mode="wrap"))
    best = int(np.argmax(curve))
    return at + float(offsets[best]), float(curve[best])


def judge(train: Train, heard: Block) -> RoundTrip:
    """Return what a take amounts to.

    Parameters
    ----------
    train
        What was played.
    heard
        What came in, ``(train.frames, inputs)``, from the train's first frame on.

    Raises
    ------
    CalibrationError
        For silence, clipping, noise, chirps that disagree, and clocks that drift apart.
    """
    _check_levels(heard)
    found = [_arrivals(train, heard[:, [channel]]) for channel in range(heard.shape[1])]
    channel = max(range(len(found)), key=lambda channel: _strength(found[channel]))
    arrivals = [arrival for arrival in found[channel] if arrival is not None]
    needed = math.ceil(_AGREE_SHARE * train.repeats)
    if len(arrivals) < needed:
        raise _not_found(train, heard, len(arrivals))
    counted = _agreeing(arrivals)
    if len(counted) < needed:
        raise _disagreement(train, found[channel])
    exact = float(np.median([arrival.frames for arrival in counted]))
    spread = max(arrival.frames for arrival in counted) - min(arrival.frames for arrival in counted)
    gain = float(np.median([arrival.gain for arrival in counted]))
    return RoundTrip(
        round(exact), exact, spread, decibels(abs(gain)), gain < 0, len(counted), channel
    )  # fmt: skip


def agree(takes: Sequence[RoundTrip]) -> RoundTrip:
    """Return what several takes, each with the device opened anew, amount to.

    Raises
    ------
    CalibrationError
        If they are more than a frame apart.
    """
    exact = [take.exact_frames for take in takes]
    if max(exact) - min(exact) > _AGREE_FRAMES:
        said = ", ".join(f"{value:.1f}" for value in exact)
        raise CalibrationError(
            f"the takes do not agree ({said} frames): the device begins with another delay each time it is opened; "
            "choose another driver or host API for it, or give stream.latency by hand"
        )
    middle = float(np.median(exact))
    return RoundTrip(
        round(middle),
        middle,
        max(take.spread_frames for take in takes) + max(exact) - min(exact),
        float(np.median([take.gain_db for take in takes])),
        takes[0].inverted,
        sum(take.chirps for take in takes),
        takes[0].channel,
    )


def _arrivals(train: Train, heard: Block) -> list[Arrival | None]:
    length = len(train.chirp) + train.window
    return [find(train.chirp, heard[at : at + length]) for at in train.starts]


def _strength(arrivals: Sequence[Arrival | None]) -> tuple[int, float]:
    """Rank an input: how many chirps it heard, and how well."""
    qualities = [arrival.quality for arrival in arrivals if arrival is not None]
    return len(qualities), min(qualities, default=0.0)


def _agreeing(arrivals: Sequence[Arrival]) -> list[Arrival]:
    """Return the largest group of arrivals that lie within a frame, the earliest of those of one size."""
    ordered = sorted(arrivals, key=lambda arrival: arrival.frames)
    groups = [
        [other for other in ordered[first:] if other.frames - arrival.frames <= _AGREE_FRAMES]
        for first, arrival in enumerate(ordered)
    ]
    return max(groups, key=len)


def _check_levels(heard: Block) -> None:
    if not np.isfinite(heard).all():
        raise CalibrationError("what came in is no sound (NaN or infinite): is another program feeding the input?")
    loud = np.count_nonzero(np.abs(heard) >= _FULL_SCALE, axis=0)
    if loud.max() >= _CLIPPED_SAMPLES:
        raise CalibrationError(
            f"input {int(loud.argmax()) + 1} of the stream clips ({int(loud.max())} samples at full scale): turn its "
            "gain down, or play the chirp more softly (--level -30)"
        )


def _not_found(train: Train, heard: Block, found: int) -> CalibrationError:
    """Say why too few chirps came back: nothing is connected, or too much else is heard."""
    level_db = decibels(float(np.sqrt(np.mean(np.square(heard, dtype=np.float64), axis=0)).max()))
    if level_db < _SILENT_DB:
        came = "nothing came back" if level_db <= -150 else f"hardly anything came back ({level_db:.0f} dBFS)"
        return CalibrationError(
            f"{came}: connect the output to the input with a cable, or put the microphone before the loudspeaker; "
            "check the channels (--output, --input), the input's gain and the volume"
        )
    return CalibrationError(
        f"{found} of {train.repeats} chirps were found in what came back ({level_db:.0f} dBFS): most of it is "
        "something else; make it quieter around, play louder (--level -6), or check the channels (--output, --input)"
    )


def _disagreement(train: Train, arrivals: Sequence[Arrival | None]) -> CalibrationError:
    """Say in which way the chirps of one take disagree: steadily more, or just so."""
    heard = {at: arrival.frames for at, arrival in zip(train.starts, arrivals, strict=True) if arrival is not None}
    times, frames = np.array(list(heard)), np.array(list(heard.values()))
    slope, offset = np.polyfit(times, frames, 1)
    stretched = abs(slope) * len(train.chirp)  # so much a drift smears each chirp itself
    if np.abs(frames - slope * times - offset).max() <= _AGREE_FRAMES + stretched:
        return CalibrationError(
            f"the round trip changes by {slope * train.samplerate:+.1f} frames a second ({1e6 * slope:+.0f} ppm): "
            "input and output run on clocks of their own; use one device for both, or join them to one clock"
        )
    said = ", ".join(f"{value:.0f}" for value in frames)
    return CalibrationError(
        f"the chirps of one take do not agree ({said} frames): sound is lost on the way, or an echo is louder than "
        "what comes straight; close other programs, use longer blocks, or bring the microphone nearer"
    )


# The live part: what takes the engine's place


def probe_layout(spec: StreamSpec, train: Train) -> Layout:
    """Arrays beside those of :func:`realtime.io.layout`: what the probe heard, and where its train lies."""
    frames = train.frames + spec.samplerate
    return {**ring_layout("probe.heard", frames, spec.inputs), **status_layout("probe.status", PROBE_FIELDS)}


class Probe:
    """What a stream drives in place of the engine: plays the train once the device runs, and keeps what it hears.

    Parameters
    ----------
    train
        What to play.
    outputs, output
        How many outputs the stream has, and the one to play on, from 0.
    running
        Whether the device runs.
    record, status
        Where it keeps what it hears, and says where the train lies.
    """

    def __init__(
        self,
        train: Train,
        outputs: int,
        output: int,
        running: Callable[[], bool],
        record: AudioRing,
        status: StatusBlock,
    ) -> None:
        self.heard = self.mixed = 0
        self.played = -1
        self.stopped = False
        self._train, self._outputs, self._output = train, outputs, output
        self._running, self._record, self._status = running, record, status
        self._start: int | None = None

    def hear(self, block: Block) -> None:
        """Keep the next input."""
        self._record.write(self.heard, block)
        self.heard += len(block)

    def mix(self, frames: int) -> Block:
        """Return the next output: silence, the train, and then no more."""
        out = np.zeros((frames, self._outputs), np.float32)
        if self._start is None and self._running():
            self._start = self.mixed + round(SETTLE_SECONDS * self._train.samplerate)
            self._status.publish(start=self._start, end=self._start + self._train.frames)
        if self._start is not None:
            out[:, self._output] = self._train.play(self.mixed - self._start, frames)[:, 0]
            self.stopped = self.mixed + frames >= self._start + self._train.frames
        self.mixed += frames
        return out


def run_probe(handle: ArenaHandle, spec: StreamSpec, train: Train, output: int) -> None:
    """Be the process that takes the engine's place."""
    from realtime.rights import ENGINE_PRIORITY, use_realtime

    arena = Arena.attach(handle)
    device = arena.status("io.status")
    probe = Probe(
        train,
        spec.outputs,
        output,
        lambda: bool(device.read()["state"] == RUNNING),
        arena.ring("probe.heard"),
        arena.status("probe.status"),
    )
    use_realtime(ENGINE_PRIORITY)
    DeviceStream(spec, arena).run(probe)


@dataclass(frozen=True, slots=True)
class Opened:
    """One opening of the device, with a probe that plays through it.

    Attributes
    ----------
    arena
        Memory of :func:`realtime.io.layout` and :func:`probe_layout`.
    said
        Returns the last sentence about the device.
    """

    arena: Arena
    said: Callable[[], str]


@dataclass(frozen=True, slots=True)
class Measured:
    """A round trip, and how the device stood that it was measured on.

    Attributes
    ----------
    round_trip
        What all takes amount to.
    device
        What the device process told last: :data:`realtime.stream.IO_FIELDS`.
    """

    round_trip: RoundTrip
    device: dict[str, Any]


def measure(
    opening: Callable[[], AbstractContextManager[Opened]],
    train: Train,
    takes: int = 3,
    tell: Callable[[str], None] = lambda text: None,
    *,
    clock: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], None] = time.sleep,
) -> Measured:
    """Measure the round trip of a device, opened anew for each take.

    Parameters
    ----------
    opening
        Opens the device and starts a probe; closes both.
    train
        What the probe plays.
    takes
        How often, 1 to 10.
    tell
        Takes a sentence about each take.
    clock, sleep
        Monotonic seconds, and a wait; tests give their own.

    Raises
    ------
    CalibrationError
        In one sentence: the device does not open, nothing or no chirp comes back, or the takes do not agree.
    """
    if not 1 <= takes <= 10:
        raise ValueError(f"{takes} takes: 1 to 10 are made; 3 are usual")
    done: list[RoundTrip] = []
    device: dict[str, Any] = {}
    for number in range(takes):
        with opening() as opened:
            heard = _listen(opened, train, clock, sleep)
            device = opened.arena.status("io.status").read()
        done.append(judge(train, heard))
        tell(
            f"take {number + 1} of {takes}: {done[-1].exact_frames:.2f} frames, "
            f"{done[-1].chirps} chirps within {done[-1].spread_frames:.2f}"
        )
    return Measured(agree(done), device)


def _listen(opened: Opened, train: Train, clock: Callable[[], float], sleep: Callable[[float], None]) -> Block:
    """Wait until the train was played and heard; return what came in, from its first frame on."""
    probe, record = opened.arena.status("probe.status"), opened.arena.ring("probe.heard")
    device = opened.arena.status("io.status")
    until = clock() + OPENING_SECONDS
    while not (place := probe.read())["start"]:
        if device.read()["state"] == FAILED:
            sleep(5 * _LOOK_SECONDS)  # its sentence is on the way
            raise CalibrationError(opened.said().partition("; it is tried again")[0] or "the device does not open")
        if clock() > until:
            raise CalibrationError(
                f"the device does not begin to play within {OPENING_SECONDS:.0f} s; {opened.said()}"
            )
        sleep(_LOOK_SECONDS)
    if not device.read()["has_input"]:
        raise CalibrationError("the device has no inputs, so there is no way back: name one that has (--device)")
    epoch, end = device.read()["epoch"], place["end"] - round(TAIL_SECONDS * train.samplerate)
    until = clock() + 2 * train.frames / train.samplerate + OPENING_SECONDS / 4
    while record.written < end:
        state = device.read()
        if state["state"] == FAILED or state["epoch"] != epoch:
            raise CalibrationError("the device stopped while the chirps were played; try again when it is steady")
        if clock() > until:
            raise CalibrationError("the process that plays the chirps does not go on; is this machine overloaded?")
        sleep(_LOOK_SECONDS)
    return record.read(place["start"], place["start"] + train.frames)
