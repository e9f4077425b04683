"""Gaps and clicks: the one place that says what they are, and finds them.

A **gap** is 64 frames or more below -90 dBFS where the scheduled material is not silent. A **click** is a step, of
-40 dB or more relative to the local peak, that the material itself does not have. How small a step can be told from
the material depends on what is known of it, so there are three ways to look:

* :func:`join_clicks` knows the two materials of a join. What is heard must be these two under gains that move
  smoothly; whatever is left over is a step. It works in any material, noise and drums too.
* :func:`smooth_clicks` knows that the material has next to nothing above a 48th of its rate (1 kHz at 48 kHz). A
  fourth difference then leaves nothing but steps: quick enough for days of sound.
* :func:`clicks` knows nothing. It finds what stands out of all that a linear predictor cannot foretell nearby, before
  and after, so that an attack, which goes on, is not taken for a step. A step below the material's own noise is
  hidden from it, about as it is from the ear.

What share of planted steps each finds and how often each errs on clean material is measured by
``tests/test_continuity.py``. All functions take ``(frames, channels)`` float32; none changes its arguments.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

Block = npt.NDArray[np.float32]
Signal = npt.NDArray[np.float64]
Values = npt.NDArray[Any]

FLOOR = float(10 ** (-90 / 20))
"""-90 dBFS: what stays below is silence."""
GAP_FRAMES = 64
STEP = float(10 ** (-40 / 20))
"""The smallest step that is a click, as a part of the local peak."""
PEAK_SECONDS = 0.010
"""How near, on either side, the local peak is looked for."""
SMOOTH_PART = 48
"""Material is smooth if it lies below this part of its rate."""


@dataclass(frozen=True, slots=True)
class Click:
    """A step: its place, the channel, its size as a part of the local peak."""

    frame: int
    channel: int
    size: float


@dataclass(frozen=True, slots=True)
class Gap:
    """A stretch of silence where there should be sound."""

    frame: int
    frames: int


# Gaps


def gaps(audio: Block, scheduled: npt.NDArray[np.bool_] | Block) -> list[Gap]:
    """Find the silence that was not scheduled.

    Parameters
    ----------
    audio
        What was heard, ``(frames, channels)``. A frame is silent if all its channels are below -90 dBFS; NaN is not
        sound either.
    scheduled
        The material that should sound, ``(frames, channels)`` float, or ``(frames,)`` bool that says where it is
        not silent.

    Returns
    -------
    list of Gap
        Each a run of frames that lie in a window of :data:`GAP_FRAMES` which is silent throughout although
        something in it is scheduled.
    """
    half = _blocks(np.abs(audio).reshape(-1), GAP_FRAMES // 2 * audio.shape[1])
    if (half.max(axis=1, initial=0) >= FLOOR)[: len(audio) // (GAP_FRAMES // 2)].all():
        return []  # every gap holds a whole half of one: the quick way out, and the usual one
    silent = ~(np.abs(audio).max(axis=1, initial=0) >= FLOOR)
    wanted = scheduled if scheduled.dtype == np.bool_ else np.abs(scheduled).max(axis=1, initial=0) >= FLOOR
    if wanted.shape != silent.shape:
        raise ValueError(f"scheduled has {len(wanted)} frames and audio {len(silent)}; they lie side by side")
    sounding, due = _running(~silent), _running(wanted)
    windows = np.flatnonzero(
        (sounding[GAP_FRAMES:] == sounding[:-GAP_FRAMES]) & (due[GAP_FRAMES:] > due[:-GAP_FRAMES])
    )
    return [Gap(int(run[0]), int(run[-1] - run[0]) + GAP_FRAMES) for run in _runs(windows, GAP_FRAMES)]


def _running(mask: npt.NDArray[np.bool_]) -> npt.NDArray[np.int64]:
    return np.concatenate([[0], np.cumsum(mask)])


def _runs(places: npt.NDArray[np.int64], apart: int) -> Iterator[npt.NDArray[np.int64]]:
    """Split ascending places where two neighbours are more than ``apart`` apart."""
    if len(places):
        yield from np.split(places, np.flatnonzero(np.diff(places) > apart) + 1)


# Clicks where the materials are known

GAIN_TERMS = 6
"""Terms of the polynomial by which a gain may leave the straight line from 0 to 1: all that is smooth enough."""
LEFT_OVER = 0.3
"""Part of a step that is left over at least: the smooth gains may take up some of it where the material is slow."""


def join_clicks(heard: Block, outgoing: Block, incoming: Block, fade: int, join: int, samplerate: int) -> list[Click]:
    """Find the steps around one join of two known materials.

    Before the crossfade what is heard must be ``outgoing``, after it ``incoming``; in between a sum of both under
    gains that move smoothly from one to the other. How they move is not prescribed.

    Parameters
    ----------
    heard
        What was made of them, ``(frames, channels)``.
    outgoing, incoming
        What each material would sound like there alone, of the same shape; zeros for silence.
    fade, join
        The crossfade is ``heard[fade:join]``; with ``fade == join == 0`` all must be ``incoming``: no join at all.
    samplerate
        Frames per second.

    Returns
    -------
    list of Click
        At most one within a crossfade's length, where the residue moves most in one frame.
    """
    if not heard.shape == outgoing.shape == incoming.shape or not 0 <= fade <= join <= len(heard):
        raise ValueError(
            f"heard {heard.shape}, outgoing {outgoing.shape}, incoming {incoming.shape}, crossfade {fade} to {join}: "
            "all three cover the same frames, and the crossfade lies in them"
        )
    sound, before, after = (part.astype(np.float64) for part in (heard, outgoing, incoming))
    residue = np.concatenate(
        [
            sound[:fade] - before[:fade],
            _faded(sound[fade:join], before[fade:join], after[fade:join]),
            sound[join:] - after[join:],
        ]
    )
    residue[~np.isfinite(residue)] = 1e9
    peak = np.maximum(_local_peak(heard, samplerate), FLOOR)
    wrong = np.flatnonzero((np.abs(residue) >= STEP * LEFT_OVER * peak).any(axis=1))
    if not len(wrong):
        return []
    steps = np.abs(np.diff(residue, axis=0, prepend=0)) / peak
    found = []
    for run in _runs(wrong, max(1, round(PEAK_SECONDS * samplerate))):
        at, channel = divmod(int(np.argmax(steps[run])), heard.shape[1])
        found.append(Click(int(run[at]), channel, float(steps[run[at], channel])))
    return found


def _faded(heard: Signal, outgoing: Signal, incoming: Signal) -> Signal:
    """Return what is left of a crossfade when the two materials are taken out under the best smooth gains."""
    frames, channels = heard.shape
    if frames == 0:
        return heard
    x = (np.arange(frames) + 0.5) / frames
    bends = x * (1 - x) * np.stack([np.cos(k * np.arccos(2 * x - 1)) for k in range(GAIN_TERMS)])
    line = outgoing * (1 - x)[:, None] + incoming * x[:, None]
    terms = np.concatenate([bends[:, :, None] * outgoing, bends[:, :, None] * incoming])
    terms = terms.reshape(2 * GAIN_TERMS, frames * channels).T
    rest = (heard - line).reshape(-1)
    if not np.isfinite(rest).all():
        return heard - line
    values, vectors = np.linalg.eigh(terms.T @ terms)  # small, and of low rank where the two materials are alike
    vectors = vectors[:, values > 1e-13 * max(values[-1], 1e-300)]
    axes = terms @ vectors
    axes /= np.sqrt((axes**2).sum(axis=0))
    for _ in range(2):  # once more for what rounding left
        rest = rest - axes @ (axes.T @ rest)
    return rest.reshape(frames, channels)


def _local_peak(audio: Block, samplerate: int, block: int = 16) -> Signal:
    """Return the local peak at each frame, ``(frames, 1)``, over all channels; NaN counts as nothing."""
    level = np.nan_to_num(np.abs(audio).max(axis=1, initial=0), nan=0.0, posinf=0.0).astype(np.float64)
    blocks = _blocks(level, block).max(axis=1)
    near = _reach(blocks, round(PEAK_SECONDS * samplerate / block))
    return np.repeat(near, block)[: len(audio), None]


def _blocks(values: Values, block: int) -> Values:
    """Return values in rows of ``block``, the last one filled up with zeros."""
    missing = -len(values) % block
    return (np.concatenate([values, np.zeros(missing, values.dtype)]) if missing else values).reshape(-1, block)


def _reach(values: Values, far: int, skip: int = -1) -> Values:
    """Return the largest value at most ``far`` places away; with ``skip`` those within that distance do not count.

    With ``skip`` the larger of the two sides is taken.
    """
    far = max(1, far)
    count, padded = len(values), np.pad(values, skip + 1 + far)
    if skip < 0:
        return np.lib.stride_tricks.sliding_window_view(padded, 2 * far + 1).max(axis=1)[:count]
    sides = np.lib.stride_tricks.sliding_window_view(padded, far).max(axis=1)
    return np.maximum(sides[:count], sides[far + 2 * skip + 1 :][:count])


# Clicks in smooth material

SMOOTH_LIMIT = 1.3 * STEP
"""Of the fourth difference, as a part of the local peak. A step gives three times its size, the corners of a 10 ms
crossfade 0.65 of :data:`STEP`, a tone at the limit of smoothness 0.03 of it. A fade from full level in less than
about 3 ms passes the limit too: it is heard."""
SMOOTH_BLOCK = 64


def smooth_clicks(audio: Block, samplerate: int) -> list[Click]:
    """Find the steps in material that has next to nothing above ``samplerate / SMOOTH_PART``.

    Its joins must be as long as ours (10 ms), and its attacks may not be much harder. At least 32 kHz: below that the
    corners of such a join are as large as the smallest step.
    """
    if samplerate < 32000:
        raise ValueError(f"samplerate={samplerate}: steps in smooth material can be told from joins at 32000 or more")
    found = []
    for channel in range(audio.shape[1]):
        sound = np.ascontiguousarray(audio[:, channel])
        if not np.isfinite(sound).all():
            sound = np.where(np.isfinite(sound), sound, np.float32(1e3))  # found, and no overflow
        spike = _blocks(np.abs(_fourth_difference(sound)), SMOOTH_BLOCK)
        highest = spike.max(axis=1)
        level = _blocks(np.abs(sound), SMOOTH_BLOCK).max(axis=1)
        peak = np.maximum(_reach(level, round(PEAK_SECONDS * samplerate / SMOOTH_BLOCK)), np.float32(FLOOR / STEP))
        for run in _runs(np.flatnonzero(highest > SMOOTH_LIMIT * peak), 1):
            block = int(run[np.argmax(highest[run])])
            at = block * SMOOTH_BLOCK + int(np.argmax(spike[block]))
            found.append(Click(at, channel, float(highest[block] / peak[block] / 3)))
    return found


def _fourth_difference(sound: Values) -> Values:
    """Return the fourth difference, centred; zeros at both ends."""
    spikes = np.zeros_like(sound)
    if len(sound) > 4:
        second = sound[2:] - sound[1:-1]
        second -= sound[1:-1]
        second += sound[:-2]
        middle = spikes[2:-2]
        np.subtract(second[2:], second[1:-1], out=middle)
        middle -= second[1:-1]
        middle += second[:-2]
    return spikes


# Clicks in material of which nothing is known

ORDER, HOP, TAPS = 32, 1024, 24
"""Order of the predictor, frames it holds for, frames over which a step is gathered."""
WINDOW, BATCH = np.hanning(2 * HOP), 32
CLICK_BLOCK, CONTEXT_SECONDS = 16, 0.015
STANDS_OUT = 3.0
"""How far a step must stand out of everything within :data:`CONTEXT_SECONDS`. Set on two songs and some loops that no
test hears: 0.09 % of their 20 ms windows were taken for a click."""
SMALLEST = 0.7 * STEP
"""Below this estimate nothing is reported, however much it stands out."""


def clicks(audio: Block, samplerate: int) -> list[Click]:
    """Find the steps in any material, as far as they can be told from it.

    A step is what a linear predictor did not foresee, more than :data:`STANDS_OUT` times as much as anything else
    within 15 ms before and after. A step in the middle of a hiss or a cymbal is not found; one that a recording has
    (the first frame of a drum machine's sample) is.

    Returns
    -------
    list of Click
        At most one within 16 frames and channel.
    """
    found = []
    for channel in range(audio.shape[1]):
        sound = np.nan_to_num(audio[:, channel].astype(np.float64))
        if len(sound) < HOP or np.abs(sound).max() < FLOOR:
            continue
        surprise, size = _unforeseen(sound)
        surprise[:ORDER] = surprise[-TAPS:] = 0  # what lies before and after is not known
        surprises = _blocks(surprise, CLICK_BLOCK)
        highest = surprises.max(axis=1)
        near = _reach(highest, round(CONTEXT_SECONDS * samplerate / CLICK_BLOCK), skip=1)
        level = _blocks(np.abs(sound), CLICK_BLOCK).max(axis=1)
        peak = np.maximum(_reach(level, round(PEAK_SECONDS * samplerate / CLICK_BLOCK)), FLOOR / STEP)
        for block in np.flatnonzero(highest > STANDS_OUT * np.maximum(near, 1e-12)):
            at = int(block) * CLICK_BLOCK + int(np.argmax(surprises[block]))
            if (part := float(size[at] / peak[block])) >= SMALLEST:
                found.append(Click(at, channel, part))
    return found


def _unforeseen(sound: Signal) -> tuple[Signal, Signal]:
    """Return for each frame how unforeseen a step there would be, and how large a step it would take.

    Each hop has a predictor of its own (autocorrelation over two hops). The whitened sound is correlated with the
    whitened step, both by FFT.
    """
    frames, count = len(sound), -(-len(sound) // HOP)
    lead = HOP // 2 + ORDER
    padded = np.zeros(lead + (count + 2) * HOP + TAPS)
    padded[lead : lead + frames] = sound
    windows = np.lib.stride_tricks.sliding_window_view(padded, 2 * HOP)[ORDER::HOP]
    pieces = np.lib.stride_tricks.sliding_window_view(padded, ORDER + HOP + TAPS)[HOP // 2 :: HOP]
    surprise, size = np.empty((count, HOP)), np.empty((count, HOP))
    for first in range(0, count, BATCH):  # as many at a time as a cache holds
        batch = slice(first, min(first + BATCH, count))
        predictors = _predictors(windows[batch])
        steps = np.cumsum(predictors, axis=1)[:, :TAPS]
        energy = (steps**2).sum(axis=1, keepdims=True)
        matched = np.fft.rfft(predictors, 2 * HOP) * np.conj(np.fft.rfft(steps, 2 * HOP))
        gathered = np.fft.irfft(np.fft.rfft(pieces[batch], 2 * HOP) * matched)[:, ORDER : ORDER + HOP]
        size[batch] = np.abs(gathered) / energy
        surprise[batch] = size[batch] * np.sqrt(energy)
    return surprise.reshape(-1)[:frames], size.reshape(-1)[:frames]


def _predictors(windows: Signal) -> Signal:
    """Return the prediction filters of many hops at once, ``(hops, ORDER + 1)``, by autocorrelation and Levinson."""
    spectrum = np.fft.rfft(windows * WINDOW, 4 * HOP)
    likeness = np.fft.irfft(spectrum.real**2 + spectrum.imag**2)[:, : ORDER + 1]
    likeness[:, 0] = likeness[:, 0] * (1 + 1e-9) + 1e-10
    filters = np.zeros_like(likeness)
    filters[:, 0] = 1
    error = likeness[:, 0].copy()
    for order in range(1, ORDER + 1):
        miss = np.einsum("ij,ij->i", filters[:, :order], likeness[:, order:0:-1])
        reflection = -miss / error
        filters[:, 1 : order + 1] += reflection[:, None] * filters[:, order - 1 :: -1][:, :order]
        error *= 1 - reflection**2
    return filters
