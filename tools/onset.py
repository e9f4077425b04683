"""Make the onset network: synthesise the material, train, compare, export. No file is needed.

    python -m tools.onset train --work DIR       synthesise, train, compare: DIR/onset.npz and DIR/report.json
    python -m tools.onset evaluate --work DIR    compare again with the baseline, chance and the truth
    python -m tools.onset export --work DIR      write exported_models/onset/ from the two
    python -m tools.onset hear FILE --bpm 128    try the exported model on a recording

Everything is drawn from seeds, the splits from disjoint ones. What the network is, in one hop of 512 frames:

    audio ── 14 Gabor filters of 1024 taps every 256 ─┐
         └── 24 Gabor filters of  256 taps every 128 ─┴─ power ─ log ─ minus a slow mean = features
    features and their rise over the last hop (half-wave rectified) ─ linear 32 ─ GRU 32 ─ linear 1 ─ sigmoid

The filters are fixed, the rest is learned. What hop k puts out is about hop k - 1: the latency of one hop is there
so that an onset in the last frames of a hop has been heard.
"""

from __future__ import annotations

import argparse
import hashlib
import itertools
import json
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import nn
from torch.nn import functional

from realtime.inference import Model
from realtime.listener import OnsetDetector
from realtime.protocols import HOP_FRAMES

Array = npt.NDArray[np.float32]

SAMPLERATE = 48000
HOP = 512
CLIP_HOPS = 470
CLIP_FRAMES = CLIP_HOPS * HOP
MERGE_FRAMES = int(0.030 * SAMPLERATE)
"""Onsets closer than this are heard as one (a strummed chord): the first counts."""
REFRACTORY_HOPS = 3
"""32 ms: nothing is reported this soon after the last onset."""
SPLITS = {"train": (1_000, 560), "valid": (200_000, 60), "test": (500_000, 80)}
"""First seed and number of clips of five seconds. The test split was drawn after all choices (see `tools/LOG.md`)."""

# ---------------------------------------------------------------------------------------------- the material


def seconds(frames: int) -> Array:
    return (np.arange(frames) / SAMPLERATE).astype(np.float32)


def partials(
    f0: float,
    ratios: npt.NDArray[np.float64],
    gains: npt.NDArray[np.float64],
    decays: npt.NDArray[np.float64],
    frames: int,
    rng: np.random.Generator,
) -> Array:
    """Sum decaying sines; those above 20 kHz are left out."""
    t = seconds(frames)
    out = np.zeros(frames, np.float32)
    for ratio, gain, decay in zip(ratios, gains, decays, strict=True):
        if f0 * ratio < 20_000:
            phase = rng.uniform(0, 2 * math.pi)
            out += np.float32(gain) * np.sin(2 * math.pi * f0 * ratio * t + phase) * np.exp(-t / decay)
    return out


def shaped(sound: Array, attack: float, release: float) -> Array:
    """Give a note its attack and the fade at its end (seconds)."""
    rise = max(1, int(attack * SAMPLERATE))
    fall = min(len(sound), max(1, int(release * SAMPLERATE)))
    sound = sound.copy()
    rise = min(rise, len(sound))
    sound[:rise] *= np.linspace(0, 1, rise, endpoint=False, dtype=np.float32)
    sound[-fall:] *= np.linspace(1, 0, fall, dtype=np.float32)
    return sound


def pluck(rng: np.random.Generator, f0: float, frames: int) -> Array:
    n = np.arange(1, 13)
    bright = rng.uniform(0.6, 2.0)
    body = partials(f0, n * np.sqrt(1 + 2e-4 * n**2), n**-bright, rng.uniform(0.3, 1.2) / n**0.7, frames, rng)
    return shaped(body, rng.uniform(0.0005, 0.004), 0.02)


def mallet(rng: np.random.Generator, f0: float, frames: int) -> Array:
    ratios = np.array([1, 2.76, 4.0, 5.4, 8.93]) * rng.uniform(0.97, 1.03, 5)
    body = partials(f0, ratios, rng.uniform(0.2, 1, 5) / ratios, rng.uniform(0.15, 0.9) / ratios**0.6, frames, rng)
    return shaped(body, rng.uniform(0.0005, 0.003), 0.02)


def bass(rng: np.random.Generator, f0: float, frames: int) -> Array:
    n = np.arange(1, 16)
    cut = rng.uniform(2, 10)
    body = partials(f0, n * 1.0, 1 / n / (1 + (n / cut) ** 4), rng.uniform(0.3, 2.0) / n**0.3, frames, rng)
    return shaped(body, rng.uniform(0.001, 0.012), 0.03)


def sustained(rng: np.random.Generator, f0: float, frames: int) -> Array:
    """Organ, wind or voice: no decay, a slower attack, often vibrato and tremolo, which are no onsets."""
    t = seconds(frames)
    depth, rate = rng.choice([0.0, 0.003, 0.01]), rng.uniform(4, 7)
    phase = 2 * math.pi * f0 * t + f0 * depth / rate * np.sin(2 * math.pi * rate * t)
    n = rng.integers(3, 10)
    gains = np.arange(1, n + 1) ** -rng.uniform(0.8, 2.0)
    out = sum(np.float32(g) * np.sin((k + 1) * phase) for k, g in enumerate(gains) if f0 * (k + 1) < 20_000)
    out = np.asarray(out, np.float32) * (1 + rng.choice([0.0, 0.25]) * np.sin(2 * math.pi * rate * t))
    return shaped(np.asarray(out, np.float32), rng.uniform(0.004, 0.03), rng.uniform(0.02, 0.1))


def coloured(rng: np.random.Generator, frames: int, low: float, high: float) -> Array:
    """Noise between two frequencies."""
    spectrum = np.fft.rfft(rng.standard_normal(frames))
    f = np.fft.rfftfreq(frames, 1 / SAMPLERATE)
    spectrum *= 1 / (1 + (low / np.maximum(f, 1)) ** 4) / (1 + (f / high) ** 4)
    noise = np.fft.irfft(spectrum, frames)
    return (noise / (np.abs(noise).max() + 1e-9)).astype(np.float32)


def kick(rng: np.random.Generator, frames: int) -> Array:
    t = seconds(frames)
    low, sweep = rng.uniform(40, 70), rng.uniform(60, 250)
    phase = 2 * math.pi * (low * t + sweep * 0.03 * (1 - np.exp(-t / 0.03)))
    click = coloured(rng, frames, 1000, 6000) * np.exp(-t / 0.004) * rng.uniform(0, 0.5)
    return shaped(np.sin(phase) * np.exp(-t / rng.uniform(0.08, 0.3)) + click, 0.001, 0.02)


def snare(rng: np.random.Generator, frames: int) -> Array:
    t = seconds(frames)
    tone = np.sin(2 * math.pi * rng.uniform(150, 260) * t) * np.exp(-t / 0.06)
    noise = coloured(rng, frames, rng.uniform(300, 1500), 12_000) * np.exp(-t / rng.uniform(0.05, 0.18))
    return shaped((tone * rng.uniform(0.2, 0.8) + noise).astype(np.float32), 0.0005, 0.02)


def hat(rng: np.random.Generator, frames: int) -> Array:
    noise = coloured(rng, frames, rng.uniform(4000, 8000), 16_000)
    return shaped(noise * np.exp(-seconds(frames) / rng.uniform(0.015, 0.25)) * np.float32(0.5), 0.0005, 0.02)


PITCHED: dict[str, tuple[Callable[..., Array], int, int]] = {
    "pluck": (pluck, 45, 84),
    "mallet": (mallet, 57, 91),
    "bass": (bass, 28, 52),
    "sustained": (sustained, 48, 80),
}
DRUMS: tuple[Callable[..., Array], ...] = (kick, snare, hat)


def rhythm(rng: np.random.Generator) -> list[int]:
    """Draw onset frames: on a grid with the odd hit left out and a human shake, or free."""
    if rng.random() < 0.75:
        step = 60 / rng.uniform(60, 180) / rng.choice([1, 2, 3, 4], p=[0.25, 0.4, 0.1, 0.25])
        times = np.arange(rng.uniform(0.05, 0.3), CLIP_FRAMES / SAMPLERATE - 0.1, step)
        times = times[rng.random(len(times)) < rng.uniform(0.35, 1.0)]
        times = times + rng.normal(0, 0.005, len(times))
    else:
        times = np.cumsum(rng.exponential(rng.uniform(0.15, 0.6), 40) + 0.06)
    return [int(t * SAMPLERATE) for t in times if 0 < t * SAMPLERATE < CLIP_FRAMES - HOP * 4]


def voice(rng: np.random.Generator) -> tuple[Array, list[int]]:
    """Play one part: the sound and where its notes start."""
    out = np.zeros(CLIP_FRAMES, np.float32)
    onsets = rhythm(rng)
    kit = rng.random() < 0.4
    name = str(rng.choice(list(PITCHED)))
    make, lowest, highest = PITCHED[name]
    chords, legato = rng.random() < 0.3 and name != "bass", rng.random() < 0.4
    centre = rng.integers(lowest, highest)
    for i, onset in enumerate(onsets):
        following = onsets[i + 1] if i + 1 < len(onsets) else CLIP_FRAMES
        velocity = np.float32(rng.uniform(0.25, 1.0))
        if kit:
            sounds = [DRUMS[k](rng, 16_000) for k in np.flatnonzero(rng.random(3) < (0.45, 0.35, 0.6))] or [
                hat(rng, 9_600)
            ]
            strums = [0] * len(sounds)
        else:
            frames = following - onset if legato or name == "sustained" else int(rng.uniform(0.1, 1.0) * SAMPLERATE)
            frames = int(np.clip(frames, 2400, 60_000))
            degrees = rng.choice([0, 3, 4, 7, 10, 12], rng.integers(2, 5), replace=False) if chords else [0]
            root = np.clip(centre + rng.integers(-5, 6), 24, 96)
            sounds = [make(rng, 440 * 2 ** ((root + d - 69) / 12), frames) for d in degrees]
            strums = [int(rng.uniform(0, 0.012) * SAMPLERATE) for _ in sounds]
            strums[0] = 0
        for sound, strum in zip(sounds, strums, strict=True):
            end = min(CLIP_FRAMES, onset + strum + len(sound))
            out[onset + strum : end] += velocity * sound[: end - onset - strum]
    return out, onsets


def reverberated(rng: np.random.Generator, dry: Array) -> Array:
    """Add a decaying-noise room and a random tilt, by FFT."""
    frames = len(dry)
    tail = int(0.8 * SAMPLERATE)
    t = seconds(tail)
    room = rng.standard_normal(tail).astype(np.float32) * np.exp(-6.9 * t / rng.uniform(0.15, 1.2))
    room[: int(rng.uniform(0.002, 0.02) * SAMPLERATE)] = 0
    room *= np.float32(rng.choice([0, 0.15, 0.35]) / (np.sqrt(np.sum(room**2)) + 1e-9))
    room[0] = 1.0
    size = 1 << (frames + tail - 1).bit_length()
    f = np.fft.rfftfreq(size, 1 / SAMPLERATE)
    knots = np.geomspace(40, 20_000, 6)
    tilt_db = np.interp(np.log(np.maximum(f, 20)), np.log(knots), rng.normal(0, 5, 6))
    spectrum = np.fft.rfft(dry, size) * np.fft.rfft(room, size) * 10 ** (tilt_db / 20)
    return np.fft.irfft(spectrum, size)[:frames].astype(np.float32)


def merged(onsets: list[int]) -> list[int]:
    kept: list[int] = []
    for onset in sorted(onsets):
        if not kept or onset - kept[-1] >= MERGE_FRAMES:
            kept.append(onset)
    return kept


def clip(seed: int) -> tuple[Array, list[int]]:
    """Return five seconds of one to three parts, ``(CLIP_FRAMES,)``, and its true onset frames."""
    rng = np.random.default_rng(seed)
    parts = [voice(rng) for _ in range(rng.integers(1, 4))]
    mix = np.zeros(CLIP_FRAMES, np.float32)
    for sound, _ in parts:
        mix += sound / (np.abs(sound).max() + 1e-6) * np.float32(rng.uniform(0.4, 1.0))
    wet = reverberated(rng, mix)
    peak = 10 ** (rng.uniform(-30, 0) / 20)
    wet *= np.float32(peak / (np.abs(wet).max() + 1e-6))
    bed = coloured(rng, CLIP_FRAMES, 20, rng.uniform(500, 16_000))
    wet += bed * np.float32(peak * 10 ** (rng.uniform(-75, -35) / 20))
    return wet, merged([onset for _, onsets in parts for onset in onsets])


def split(name: str) -> tuple[Array, list[list[int]]]:
    first, count = SPLITS[name]
    clips = [clip(first + i) for i in range(count)]
    return np.stack([audio for audio, _ in clips]), [onsets for _, onsets in clips]


# ----------------------------------------------------------------------------------------------- the network

LOW_BANDS, LOW_TAPS, LOW_STRIDE = 14, 1024, 256
HIGH_BANDS, HIGH_TAPS, HIGH_STRIDE = 24, 256, 128
HISTORY = LOW_TAPS - LOW_STRIDE
BANDS = LOW_BANDS + HIGH_BANDS
FEATURES = LOW_BANDS * (HOP // LOW_STRIDE) + HIGH_BANDS * (HOP // HIGH_STRIDE)
HIDDEN = 32
MEAN_RATE = 0.02
"""The slow mean follows with a time constant of 50 hops, about half a second."""
POWER_FLOOR = 1e-8
"""-80 dB: below, the logarithm flattens; silence is exactly 0 after the offset."""


def gabor(centres_hz: npt.NDArray[np.float64], lengths: npt.NDArray[np.int64], taps: int) -> torch.Tensor:
    """Real and imaginary filters ``(2 * bands, 1, taps)``; a full-scale sine at the centre has power 1."""
    n = np.arange(taps)
    rows = []
    for centre, length in zip(centres_hz, lengths, strict=True):
        window = np.zeros(taps)
        start = (taps - length) // 2
        window[start : start + length] = np.hanning(length + 2)[1:-1]
        rows.append(window * np.exp(2j * math.pi * centre / SAMPLERATE * n) * 2 / window.sum())
    filters = np.array(rows)
    return torch.from_numpy(np.concatenate([filters.real, filters.imag])[:, None].astype(np.float32))


def mel_centres() -> npt.NDArray[np.float64]:
    mel = np.linspace(*(2595 * np.log10(1 + np.array([550, 13_000]) / 700)), HIGH_BANDS)
    return np.asarray(700 * (10 ** (mel / 2595) - 1))


class Onset(nn.Module):
    """The causal onset network. ``forward`` is one hop with explicit state; ``whole`` is a recording at once."""

    def __init__(self) -> None:
        super().__init__()
        low = SAMPLERATE / LOW_TAPS * np.arange(1, LOW_BANDS + 1)
        high = mel_centres()
        lengths = np.clip(HIGH_TAPS * 4000 / high, 160, HIGH_TAPS).astype(np.int64) // 2 * 2
        self.register_buffer("low", gabor(low, np.full(LOW_BANDS, LOW_TAPS), LOW_TAPS))
        self.register_buffer("high", gabor(high, lengths, HIGH_TAPS))
        self.squeeze = nn.Linear(2 * FEATURES, HIDDEN)
        self.gru = nn.GRU(HIDDEN, HIDDEN, batch_first=True)
        self.output = nn.Linear(HIDDEN, 1)

    def powers(self, audio: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Log powers of ``(n, HISTORY + frames)``: low ``(n, bands, 2 a hop)``, high ``(n, bands, 4 a hop)``."""
        signal = audio[:, None]
        low = functional.conv1d(signal, self.low, stride=LOW_STRIDE)
        high = functional.conv1d(signal[:, :, HISTORY - (HIGH_TAPS - HIGH_STRIDE) :], self.high, stride=HIGH_STRIDE)
        return _log_power(low, LOW_BANDS), _log_power(high, HIGH_BANDS)

    def forward(
        self, audio: torch.Tensor, history: torch.Tensor, mean: torch.Tensor, last: torch.Tensor, hidden: torch.Tensor
    ) -> tuple[torch.Tensor, ...]:
        signal = torch.cat([history, audio], 1)
        features, mean = _normalised(*self.powers(signal), mean)
        squeezed = torch.relu(self.squeeze(torch.cat([features, torch.relu(features - last)], 1)))
        hidden = self._cell(squeezed, hidden)
        return torch.sigmoid(self.output(hidden)), signal[:, HOP:], mean, features, hidden

    def _cell(self, x: torch.Tensor, h: torch.Tensor) -> torch.Tensor:
        """One step of ``self.gru``, written out so that the export is plain matrix products."""
        gates_x = functional.linear(x, self.gru.weight_ih_l0, self.gru.bias_ih_l0)
        gates_h = functional.linear(h, self.gru.weight_hh_l0, self.gru.bias_hh_l0)
        rx, zx, nx = gates_x.chunk(3, 1)
        rh, zh, nh = gates_h.chunk(3, 1)
        update = torch.sigmoid(zx + zh)
        candidate = torch.tanh(nx + torch.sigmoid(rx + rh) * nh)
        return candidate + update * (h - candidate)

    def features(self, audio: torch.Tensor) -> torch.Tensor:
        """Features of whole recordings ``(n, frames)``: ``(n, hops, FEATURES)``."""
        low, high = self.powers(functional.pad(audio, (HISTORY, 0)))
        mean = torch.zeros(len(audio), BANDS)
        hops = []
        for k in range(audio.shape[1] // HOP):
            hop, mean = _normalised(low[:, :, 2 * k : 2 * k + 2], high[:, :, 4 * k : 4 * k + 4], mean)
            hops.append(hop)
        return torch.stack(hops, 1)

    def logits(self, features: torch.Tensor) -> torch.Tensor:
        """Logits ``(n, hops)`` of features, with torch's own GRU."""
        last = functional.pad(features, (0, 0, 1, 0))[:, :-1]
        hidden, _ = self.gru(torch.relu(self.squeeze(torch.cat([features, torch.relu(features - last)], 2))))
        return self.output(hidden)[..., 0]

    def whole(self, audio: torch.Tensor) -> torch.Tensor:
        """Onset probability of whole recordings ``(n, frames)``: ``(n, hops)``."""
        return torch.sigmoid(self.logits(self.features(audio)))

    @staticmethod
    def silence() -> tuple[torch.Tensor, ...]:
        """Return the state before the first hop: as if silence had gone on for ever."""
        return torch.zeros(1, HISTORY), torch.zeros(1, BANDS), torch.zeros(1, FEATURES), torch.zeros(1, HIDDEN)


def _log_power(filtered: torch.Tensor, bands: int) -> torch.Tensor:
    power = filtered[:, :bands] ** 2 + filtered[:, bands:] ** 2
    return torch.log(power / POWER_FLOOR + 1) / 10


def _normalised(low: torch.Tensor, high: torch.Tensor, mean: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Subtract the slow mean from one hop and move the mean on."""
    level = torch.cat([low.mean(2), high.mean(2)], 1)
    hop = torch.cat([(low - mean[:, :LOW_BANDS, None]).flatten(1), (high - mean[:, LOW_BANDS:, None]).flatten(1)], 1)
    return hop, mean + MEAN_RATE * (level - mean)


# ------------------------------------------------------------------------------------------------- the picking


def crossings(probability: Array, threshold: float) -> npt.NDArray[np.int64]:
    """Hops at which the probability reaches the threshold, none within the refractory period of the last."""
    found: list[int] = []
    for k in np.flatnonzero(probability >= threshold):
        if not found or k - found[-1] >= REFRACTORY_HOPS:
            found.append(int(k))
    return np.array(found, np.int64)


def flux(audio: Array, gain: float) -> Array:
    """Causal spectral flux of log magnitudes, half-wave rectified: ``(hops,)`` (Bello 2005, Böck 2012)."""
    padded = np.concatenate([np.zeros(2048 - HOP, np.float32), audio])
    frames = np.lib.stride_tricks.sliding_window_view(padded, 2048)[::HOP]
    magnitude = np.log1p(gain * np.abs(np.fft.rfft(frames * np.hanning(2048).astype(np.float32))))
    rise = np.maximum(np.diff(magnitude, axis=0, prepend=magnitude[:1] * 0), 0)
    return rise.mean(1).astype(np.float32)


def peaks(curve: Array, delta: float, mean_hops: int, floor: float) -> npt.NDArray[np.int64]:
    """Causal peak picker: the largest of three hops, and ``floor`` above ``delta`` times the mean of the past."""
    padded = np.concatenate([np.zeros(mean_hops, np.float32), curve])
    mean = np.lib.stride_tricks.sliding_window_view(padded, mean_hops)[: len(curve)].mean(1)
    largest = np.maximum(np.concatenate([[0], curve[:-1]]), np.concatenate([[0, 0], curve[:-2]]))
    found: list[int] = []
    for k in np.flatnonzero((curve >= delta * mean + floor) & (curve >= largest)):
        if not found or k - found[-1] >= REFRACTORY_HOPS:
            found.append(int(k))
    return np.array(found, np.int64)


def matches(truth: npt.NDArray[np.int64], found: npt.NDArray[np.int64], tolerance: int) -> int:
    """Size of the largest one-to-one matching within ``tolerance`` frames (both in order)."""
    i = j = hits = 0
    while i < len(truth) and j < len(found):
        if abs(truth[i] - found[j]) <= tolerance:
            hits, i, j = hits + 1, i + 1, j + 1
        elif found[j] < truth[i]:
            j += 1
        else:
            i += 1
    return hits


@dataclass(frozen=True)
class Score:
    """Pooled over all clips."""

    f1: float
    precision: float
    recall: float


def score(truths: list[list[int]], founds: list[npt.NDArray[np.int64]], tolerance_seconds: float) -> Score:
    tolerance = int(tolerance_seconds * SAMPLERATE)
    hits = sum(matches(np.array(t), f, tolerance) for t, f in zip(truths, founds, strict=True))
    n_true, n_found = sum(map(len, truths)), sum(map(len, founds))
    return Score(2 * hits / max(1, n_true + n_found), hits / max(1, n_found), hits / max(1, n_true))


def best_shift(truths: list[list[int]], hops: list[npt.NDArray[np.int64]]) -> int:
    """Frames to add to a hop's start so that reports lie on the onsets in the median (valid only)."""
    errors = [np.zeros(0)]
    for truth, found in zip(truths, hops, strict=True):
        if truth and len(found):
            distance = np.array(truth)[:, None] - found * HOP
            errors.append(distance[np.abs(distance).argmin(0), np.arange(len(found))])
    near = np.concatenate(errors)
    near = near[np.abs(near) < 2400]
    return int(np.median(near)) if len(near) else 0


# ------------------------------------------------------------------------------------------------ the training


def targets(onsets: list[list[int]]) -> tuple[torch.Tensor, torch.Tensor]:
    """Targets and weights ``(n, hops)``: 1 in the hop after the onset's, and no verdict on that hop's neighbours."""
    target = torch.zeros(len(onsets), CLIP_HOPS)
    weight = torch.ones(len(onsets), CLIP_HOPS)
    for row, clip_onsets in enumerate(onsets):
        at = np.array(clip_onsets, np.int64) // HOP + 1
        for neighbour in (at - 1, at + 1):
            weight[row, neighbour[neighbour < CLIP_HOPS]] = 0
        target[row, at] = 1
        weight[row, at] = 2
    return target, weight


def train(net: Onset, features: torch.Tensor, onsets: list[list[int]], epochs: int) -> Iterator[float]:
    """Yield the mean loss of each epoch."""
    target, weight = targets(onsets)
    steps = epochs * math.ceil(len(features) / 16)
    optimiser = torch.optim.AdamW(net.parameters(), lr=4e-3, weight_decay=1e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, 4e-3, total_steps=steps)
    for _ in range(epochs):
        losses = []
        for rows in torch.randperm(len(features)).split(16):
            loss = functional.binary_cross_entropy_with_logits(
                net.logits(features[rows]), target[rows], weight=weight[rows]
            )
            optimiser.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(net.parameters(), 1.0)
            optimiser.step()
            schedule.step()
            losses.append(loss.item())
        yield float(np.mean(losses))


def probabilities(net: Onset, features: torch.Tensor) -> list[Array]:
    with torch.no_grad():
        return list(torch.sigmoid(net.logits(features)).numpy())


Picker = Callable[..., list[npt.NDArray[np.int64]]]


def tuned(truths: list[list[int]], settings: list[dict[str, float]], pick: Picker) -> tuple[dict[str, float], int]:
    """Return the setting of the highest F1 within 25 ms on these truths, and its shift in frames."""
    best: tuple[float, dict[str, float], int] = (-1.0, {}, 0)
    for setting in settings:
        hops = pick(**setting)
        shift = best_shift(truths, hops)
        f1 = score(truths, [h * HOP + shift for h in hops], 0.025).f1
        if f1 > best[0]:
            best = (f1, setting, shift)
    return best[1], best[2]


FLUX_GAINS = (0.1, 1, 10, 100, 1000)


def flux_settings() -> list[dict[str, float]]:
    deltas, lengths, floors = (
        (1.0, 1.1, 1.2, 1.3, 1.5, 2.0),
        (2, 3, 4, 6, 8, 16),
        (0.0005, 0.001, 0.002, 0.004, 0.008),
    )
    return [
        {"gain": gain, "delta": delta, "mean_hops": length, "floor": floor}
        for gain, delta, length, floor in itertools.product(FLUX_GAINS, deltas, lengths, floors)
    ]


def flux_picker(audio: Array) -> Picker:
    curves = {gain: [flux(a, gain) for a in audio] for gain in FLUX_GAINS}
    return lambda gain, delta, mean_hops, floor: [peaks(c, delta, int(mean_hops), floor) for c in curves[gain]]


def compared(
    net: Onset,
    valid: tuple[Array, list[list[int]]],
    test: tuple[Array, list[list[int]]],
    feats: dict[str, torch.Tensor],
) -> dict[str, object]:
    """Tune network and baseline on valid, score both on test beside chance and the truth itself."""
    p_valid, p_test = probabilities(net, feats["valid"]), probabilities(net, feats["test"])
    pick: Picker = lambda threshold: [crossings(p, threshold) for p in p_valid]  # noqa: E731
    setting, shift = tuned(valid[1], [{"threshold": t / 100} for t in range(10, 95, 5)], pick)
    flux_setting, flux_shift = tuned(valid[1], flux_settings(), flux_picker(valid[0]))
    truths = test[1]
    rng = np.random.default_rng(400_000)
    found = {
        "network": [crossings(p, setting["threshold"]) * HOP + shift for p in p_test],
        "spectral flux": [h * HOP + flux_shift for h in flux_picker(test[0])(**flux_setting)],
        "random": [np.sort(rng.integers(0, CLIP_FRAMES, len(t))) for t in truths],
        "truth": [np.array(t, np.int64) for t in truths],
    }
    rows = {
        name: {f"{ms} ms": vars(score(truths, hops, ms / 1000)) for ms in (50, 25)} for name, hops in found.items()
    }
    return {
        "threshold": setting["threshold"],
        "shift": shift,
        "flux": flux_setting,
        "onsets": sum(map(len, truths)),
        "test": rows,
    }


def features_of(net: Onset, audio: Array) -> torch.Tensor:
    """Features of many clips, some at a time."""
    with torch.no_grad():
        return torch.cat([net.features(torch.from_numpy(part)) for part in np.array_split(audio, 10)])


def run_training(work: Path, epochs: int) -> None:
    """Train from nothing, write the weights, then compare."""
    torch.manual_seed(7)
    torch.use_deterministic_algorithms(True)
    torch.set_num_threads(1)  # the order of sums, and so the weights, must not depend on the machine's cores
    began = time.perf_counter()
    work.mkdir(parents=True, exist_ok=True)
    audio, onsets = split("train")
    net = Onset()
    features = features_of(net, audio)
    print(f"material and features after {time.perf_counter() - began:.0f} s", flush=True)
    for epoch, loss in enumerate(train(net, features, onsets, epochs)):
        if epoch % 5 == 4:
            print(f"epoch {epoch + 1}: loss {loss:.4f}, {time.perf_counter() - began:.0f} s", flush=True)
    np.savez(work / "onset.npz", **{name: p.detach().numpy() for name, p in net.named_parameters()})
    run_comparison(work)


def run_comparison(work: Path) -> None:
    """Score the weights in ``work`` and write ``report.json`` beside them."""
    torch.set_num_threads(1)
    net = trained(work)
    sets = {name: split(name) for name in ("valid", "test")}
    feats = {name: features_of(net, audio) for name, (audio, _) in sets.items()}
    report = json.dumps(compared(net, sets["valid"], sets["test"], feats), indent=1)
    (work / "report.json").write_text(report)
    print(report)


# -------------------------------------------------------------------------------------------------- the export

NAMES_IN = ["audio", "history", "mean", "last", "hidden"]
NAMES_OUT = ["onset", "history_next", "mean_next", "last_next", "hidden_next"]
MODEL_FOLDER = Path("exported_models/onset")
TRAIN_COMMAND = "python -m tools.onset train --work DIR"
EVALUATE_COMMAND = "python -m tools.onset evaluate --work DIR"
EXPORT_COMMAND = "python -m tools.onset export --work DIR"
GOLDEN_STEPS = 24


def stepped(net: Onset, audio: torch.Tensor) -> tuple[list[Array], list[list[Array]]]:
    """Run a recording ``(frames,)`` hop by hop: probabilities, and the states before each hop and after the last."""
    state = net.silence()
    outputs, states = [], [[s.numpy() for s in state]]
    with torch.no_grad():
        for hop in audio.split(HOP):
            probability, *state = net(hop[None], *state)
            outputs.append(probability.numpy())
            states.append([s.numpy() for s in state])
    return outputs, states


def onnx_bytes(net: Onset) -> bytes:
    """Export one hop. Names of files, lines and stack frames are taken out; the same weights give the same bytes."""
    import onnx

    example = (torch.zeros(1, HOP), *net.silence())
    program = torch.onnx.export(
        net, example, dynamo=True, external_data=False, opset_version=20, verbose=False,
        input_names=NAMES_IN, output_names=NAMES_OUT,
    )  # fmt: skip
    model = program.model_proto
    del model.metadata_props[:]
    del model.graph.metadata_props[:]
    del model.graph.value_info[:]
    for part in (*model.graph.node, *model.graph.initializer, *model.graph.input, *model.graph.output):
        part.doc_string = ""
        del part.metadata_props[:]
    model.doc_string = model.graph.doc_string = ""
    model.graph.name = "onset"
    onnx.checker.check_model(model, full_check=True)
    return bytes(model.SerializeToString(deterministic=True))


def tensor(name: str, shape: list[int], unit: str, axes: list[str]) -> dict[str, object]:
    return {"name": name, "shape": shape, "dtype": "float32", "unit": unit, "axes": axes}


def card(report: dict[str, Any], sha256: str, largest_error: float, hops: int) -> dict[str, object]:
    test = report["test"]
    metrics = [
        {"name": f"F1 on the test split, {within}, {who}", "value": round(test[who][within]["f1"], 6), "unit": "1",
         "command": EVALUATE_COMMAND}
        for within in ("50 ms", "25 ms") for who in ("network", "spectral flux", "random", "truth")
    ]  # fmt: skip
    metrics.append(
        {"name": f"largest difference, ONNX hop by hop against torch whole, {hops} hops", "value": largest_error,
         "unit": "1", "command": EXPORT_COMMAND}
    )  # fmt: skip
    state_axes = {"history": ["channel", "frame_past"], "mean": ["batch", "band"], "last": ["batch", "feature"],
                  "hidden": ["batch", "unit"]}  # fmt: skip
    shapes = {name: list(s.shape) for name, s in zip(NAMES_IN[1:], Onset.silence(), strict=True)}
    units = {"history": "full scale", "mean": "nepers of power / 10", "last": "nepers of power / 10", "hidden": "1"}
    return {
        "name": "onset",
        "version": "1.0.0",
        "task": "onset detection",
        "licence": "GPL-3.0-or-later",
        "sha256": sha256,
        "samplerate": SAMPLERATE,
        "hop": HOP,
        "latency": HOP,
        "receptive_field": "unbounded",
        "tolerance": 1e-4,
        "parameters": {"threshold": report["threshold"], "offset_frames": report["shift"]},
        "inputs": [tensor("audio", [1, HOP], "full scale, -1 to 1", ["channel", "frame"])],
        "outputs": [tensor("onset", [1, 1], "probability", ["batch", "hop"])],
        "states": [
            tensor(n, shapes[n], units[n], state_axes[n]) | {"output": n + "_next"} for n in NAMES_IN[1:]
        ],
        "data": [
            {"name": "synthetic parts, drawn from seeds by tools/onset.py", "licence": "GPL-3.0-or-later",
             "note": "; ".join(f"{n}: {c} clips of 5 s from seed {s}" for n, (s, c) in SPLITS.items())}
        ],
        "metrics": metrics,
    }  # fmt: skip


def trained(work: Path) -> Onset:
    net = Onset()
    with np.load(work / "onset.npz", allow_pickle=False) as weights:
        for name, parameter in net.named_parameters():
            parameter.data = torch.from_numpy(weights[name])
    return net.eval()


def run_export(work: Path, folder: Path) -> None:
    import tomlkit

    torch.set_num_threads(1)
    net, report = trained(work), json.loads((work / "report.json").read_text())
    model = onnx_bytes(net)
    if str(Path.cwd()).encode() in model or b"site-packages" in model:
        raise SystemExit("the exported file holds a path of this machine")
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "model.onnx").write_bytes(model)
    first = SPLITS["test"][0]
    audio = np.concatenate([clip(first + i)[0] for i in range(4)])
    error = largest_error(net, model, audio)
    golden(folder / "golden.npz", net, torch.from_numpy(audio))
    content = card(report, hashlib.sha256(model).hexdigest(), error, len(audio) // HOP)
    (folder / "card.toml").write_text(
        f"# Written by {EXPORT_COMMAND}; DIR is where {TRAIN_COMMAND} put its result.\n" + tomlkit.dumps(content)
    )
    print(f"{len(model)} bytes, largest difference {error:.2g}; opened on {Model.open(folder).provider}")


def largest_error(net: Onset, model: bytes, audio: Array) -> float:
    """Compare ONNX, hop by hop, with torch on the whole recording."""
    import onnxruntime

    session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
    state = [s.numpy() for s in net.silence()]
    streamed = []
    for hop in audio.reshape(-1, 1, HOP):
        probability, *state = session.run(NAMES_OUT, dict(zip(NAMES_IN, [hop, *state], strict=True)))
        streamed.append(probability[0, 0])
    with torch.no_grad():
        whole = net.whole(torch.from_numpy(audio)[None])[0].numpy()
    return float(np.abs(np.array(streamed) - whole).max())


def golden(path: Path, net: Onset, audio: torch.Tensor) -> None:
    """Write steps with an onset in them: outputs from the whole recording, states from torch hop by hop."""
    with torch.no_grad():
        whole = net.whole(audio[None])[0].numpy()
    onset = next(k for k in range(CLIP_HOPS) if k >= GOLDEN_STEPS and whole[k] > 0.9)
    first = onset - GOLDEN_STEPS // 2
    _, states = stepped(net, audio[: (first + GOLDEN_STEPS) * HOP])
    columns = [np.stack(s) for s in zip(*states[first:], strict=True)]
    hops = audio[first * HOP : (first + GOLDEN_STEPS) * HOP].numpy().reshape(GOLDEN_STEPS, 1, HOP)
    np.savez(
        path,
        **{"input.audio": hops, "output.onset": whole[first : first + GOLDEN_STEPS].reshape(-1, 1, 1)},
        **{f"state.{name}": column for name, column in zip(NAMES_IN[1:], columns, strict=True)},
    )


def run_hearing(files: list[Path], bpm: float) -> None:
    """Count onsets of recordings that start on a bar line, and how many lie within 25 ms of a sixteenth note."""
    import soundfile

    for file in files:
        audio, samplerate = soundfile.read(file, dtype="float32", always_2d=True)
        detector = OnsetDetector(MODEL_FOLDER, samplerate)
        began = time.perf_counter()
        hops = len(audio) // HOP_FRAMES
        for k in range(hops):
            detector.hear(audio[k * HOP_FRAMES : (k + 1) * HOP_FRAMES], k * HOP_FRAMES)
        spent = (time.perf_counter() - began) / max(1, hops)
        times = np.array(detector.onsets(0, len(audio))) / samplerate
        step = 15 / bpm
        near = np.mean(np.abs(times - np.round(times / step) * step) <= 0.025) if len(times) else 0.0
        beats = len(audio) / samplerate * bpm / 60
        print(
            f"{file.parent.name}/{file.name}: {len(times)} onsets, "
            f"{detector.activity(0, len(audio), beats):.2f} a beat, "
            f"{near:.0%} within 25 ms of a sixteenth (chance {min(1, 0.05 / step):.0%}), {spent * 1e6:.0f} us a hop"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    verbs = parser.add_subparsers(dest="verb", required=True)
    for name in ("train", "evaluate", "export"):
        verb = verbs.add_parser(name)
        verb.add_argument("--work", type=Path, required=True, metavar="DIR")
    verbs.choices["train"].add_argument("--epochs", type=int, default=30)
    verbs.choices["export"].add_argument("--out", type=Path, default=MODEL_FOLDER)
    verb = verbs.add_parser("hear")
    verb.add_argument("files", type=Path, nargs="+")
    verb.add_argument("--bpm", type=float, default=120.0)
    options = parser.parse_args()
    if options.verb == "train":
        run_training(options.work, options.epochs)
    elif options.verb == "evaluate":
        run_comparison(options.work)
    elif options.verb == "export":
        run_export(options.work, options.out)
    else:
        run_hearing(options.files, options.bpm)


if __name__ == "__main__":
    main()
