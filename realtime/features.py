"""What music sounds like, in 26 numbers a hop: chroma, loudness, timbre, onset strength. Pure NumPy.

A row belongs to one hop of :data:`~realtime.protocols.HOP_FRAMES` frames and uses nothing after it:

========== ========= ==============================================================================
columns    name      meaning
========== ========= ==============================================================================
0 to 11    chroma    share of each pitch class (C = 0) in the magnitudes from 60 to 5,000 Hz; their
                     sum is 1, or 0 in silence. Last 85 ms (4,096 frames at 48 kHz), and anew only
                     every second hop: it is the dear one
12         loudness  level of the hop (RMS) in dB, -120 to about 0
13 to 24   timbre    cepstral coefficients 1 to 12 of 24 mel bands in dB, 60 to 8,000 Hz; 0 in silence.
                     Last 21 ms
25         onset     spectral flux: mean rise of those bands since the hop before, in dB; 0 where none
========== ========= ==============================================================================

The same code hears live and reads files: :meth:`FeatureStream.process` takes any whole number of hops, and the
rows are the same, bit for bit, however they are cut. So nothing here multiplies matrices (a BLAS adds up in an
order that depends on the shape): sums run over one contiguous axis.
"""

from __future__ import annotations

import re

import numpy as np
import numpy.typing as npt

from realtime.protocols import HOP_FRAMES, Block

Rows = npt.NDArray[np.float32]
"""Features, ``(hops, FEATURES)`` float32."""

CHROMA = slice(0, 12)
LOUDNESS = 12
TIMBRE = slice(13, 25)
ONSET = 25
FEATURES = 26
SUMMARY = 25
"""Width of a summary: all but the onset strength."""

SILENCE_DB = -120.0
REFERENCE_HZ = 440.0
WINDOW_SECONDS = 4096 / 48000
SHORT_WINDOW_SECONDS = 1024 / 48000
CHROMA_HZ = (60.0, 5000.0)
MEL_HZ = (60.0, 8000.0)
MEL_BANDS, CEPSTRA = 24, 12
BAND_FLOOR = 1e-8
"""Power below which a band counts as silent (-80 dB), so that hiss and dither have no timbre."""
CHROMA_HOPS = 2
CHUNK_HOPS = 128


def _window_frames(seconds: float, samplerate: int) -> int:
    """Return the power of two nearest to ``seconds``, but a hop at least."""
    return max(HOP_FRAMES, int(2 ** np.round(np.log2(seconds * samplerate))))


class _Bank:
    """A sparse filter bank: each output is a weighted sum over some bins, added up in a fixed order."""

    def __init__(self, weights: npt.NDArray[np.float64]) -> None:
        chosen = [np.flatnonzero(row) for row in weights]
        chosen = [bins if len(bins) else np.zeros(1, np.intp) for bins in chosen]  # a band between two bins: zero
        self._bins = np.concatenate(chosen)
        self._weights = np.concatenate([row[b] for row, b in zip(weights, chosen, strict=True)]).astype(np.float32)
        self._starts = np.cumsum([0, *map(len, chosen[:-1])])

    def apply(self, spectra: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        """Map ``(hops, bins)`` to ``(hops, bands)``."""
        gathered = spectra.take(self._bins, axis=1)
        gathered *= self._weights
        return np.add.reduceat(gathered, self._starts, axis=1)


def _chroma_weights(bins: int, samplerate: int) -> npt.NDArray[np.float64]:
    """Return (12, bins): each bin is shared between the two pitch classes next to it.

    Below the frequency where a semitone is one bin wide, pitch is guesswork: bins count less there.
    """
    hz = np.arange(bins) * samplerate / (2 * (bins - 1))
    inside = np.flatnonzero((hz >= CHROMA_HZ[0]) & (hz <= CHROMA_HZ[1]))
    pitch = 12 * np.log2(hz[inside] / REFERENCE_HZ) + 69
    lower = np.floor(pitch).astype(int)
    resolved = np.minimum(1.0, hz[inside] * (2 ** (1 / 12) - 1) / hz[1])
    weights = np.zeros((12, bins))
    np.add.at(weights, (lower % 12, inside), resolved * (1 - (pitch - lower)))
    np.add.at(weights, ((lower + 1) % 12, inside), resolved * (pitch - lower))
    return weights


def _mel_weights(bins: int, samplerate: int) -> npt.NDArray[np.float64]:
    """Return (MEL_BANDS, bins): triangles of equal width in mel, each with a sum of 1."""
    hz = np.arange(bins) * samplerate / (2 * (bins - 1))
    low, high = (2595 * np.log10(1 + f / 700) for f in (MEL_HZ[0], min(MEL_HZ[1], samplerate / 2)))
    edges = 700 * (10 ** (np.linspace(low, high, MEL_BANDS + 2) / 2595) - 1)
    rising = (hz - edges[:-2, None]) / (edges[1:-1] - edges[:-2])[:, None]
    falling = (edges[2:, None] - hz) / (edges[2:] - edges[1:-1])[:, None]
    weights = np.maximum(0.0, np.minimum(rising, falling))
    narrow = np.flatnonzero(weights.sum(axis=1) == 0)  # narrower than a bin: take the nearest
    weights[narrow, np.abs(hz[None] - edges[1:-1][narrow, None]).argmin(axis=1)] = 1
    weights /= weights.sum(axis=1, keepdims=True)
    return weights


def _to_db(power: npt.NDArray[np.float32], floor: float) -> npt.NDArray[np.float32]:
    return np.float32(10) * np.log10(np.maximum(power, np.float32(floor)))


class FeatureStream:
    """Turns hops into rows of features, as they come.

    Parameters
    ----------
    samplerate
        Frames per second, 4,000 to 768,000.

    Notes
    -----
    Chroma looks back over ``window_frames``: it describes the sound around the frame ``delay_hops`` hops before
    the end of the row's own hop. One thread.
    """

    def __init__(self, samplerate: int) -> None:
        if not 4000 <= samplerate <= 768000:
            raise ValueError(f"samplerate={samplerate}: features take 4000 to 768000 frames per second; kHz given?")
        self.samplerate = samplerate
        self.window_frames = _window_frames(WINDOW_SECONDS, samplerate)
        self.delay_hops = self.window_frames // (2 * HOP_FRAMES)
        short = _window_frames(SHORT_WINDOW_SECONDS, samplerate)
        # Windows are scaled so that a full-scale sine reads about 0 dB at every rate.
        self._long = (np.hanning(self.window_frames + 1)[:-1] * 4 / self.window_frames).astype(np.float32)
        self._short = (np.hanning(short + 1)[:-1] * 4 / short).astype(np.float32)
        self._to_chroma = _Bank(_chroma_weights(self.window_frames // 2 + 1, samplerate))
        self._to_mel = _Bank(_mel_weights(short // 2 + 1, samplerate))
        k, band = np.arange(1, CEPSTRA + 1), np.arange(MEL_BANDS)
        self._dct = (np.cos(np.pi / MEL_BANDS * k[:, None] * (band + 0.5)) / MEL_BANDS).astype(np.float32)
        self.reset()

    def reset(self) -> None:
        """Forget the past: what comes next follows silence."""
        self._past = np.zeros(max(self.window_frames, len(self._short)) - HOP_FRAMES, np.float32)
        self._bands = _to_db(np.zeros((1, MEL_BANDS), np.float32), BAND_FLOOR)
        self._chroma = np.zeros((1, 12), np.float32)
        self._hop = 0

    def state(self) -> npt.NDArray[np.float32]:
        """Return all that is remembered between hops, one float32 array."""
        return np.concatenate(([np.float32(self._hop % CHROMA_HOPS)], self._chroma[0], self._bands[0], self._past))

    def restore(self, state: npt.NDArray[np.float32]) -> None:
        """Take up what :meth:`state` gave at the same samplerate."""
        self._hop, end = int(state[0]), 13 + MEL_BANDS
        self._chroma, self._bands, self._past = (
            state[None, 1:13].copy(),
            state[None, 13:end].copy(),
            state[end:].copy(),
        )

    def process(self, audio: Block) -> Rows:
        """Return the rows of the next hops.

        Parameters
        ----------
        audio
            ``(n * HOP_FRAMES, channels)``: mixed down to mono here.

        Returns
        -------
        rows
            ``(n, FEATURES)`` float32.
        """
        hops = len(audio) // HOP_FRAMES
        if audio.ndim != 2 or hops * HOP_FRAMES != len(audio) or not hops:
            raise ValueError(
                f"features: a block of shape {audio.shape}; it must be (n * {HOP_FRAMES}, channels), n at least 1"
            )
        rows = np.empty((hops, FEATURES), np.float32)
        for first in range(0, hops, CHUNK_HOPS):
            last = min(first + CHUNK_HOPS, hops)
            self._process_chunk(_mono(audio[first * HOP_FRAMES : last * HOP_FRAMES]), rows[first:last])
        return rows

    def _process_chunk(self, mono: npt.NDArray[np.float32], rows: Rows) -> None:
        heard = np.concatenate((self._past, mono))
        self._past = heard[len(mono) :]
        hops = mono.reshape(-1, HOP_FRAMES)
        rows[:, LOUDNESS] = _to_db(np.add.reduce(hops * hops, axis=1) * np.float32(1 / HOP_FRAMES), 1e-12)
        rows[:, CHROMA] = self._chroma_rows(heard, len(rows))

        bands = _to_db(
            self._to_mel.apply(_power(_windows(heard, len(self._short), len(rows)) * self._short)), BAND_FLOOR
        )
        rows[:, TIMBRE] = np.add.reduce(bands[:, None, :] * self._dct, axis=2)
        before = np.concatenate((self._bands, bands[:-1]))
        rows[:, ONSET] = np.add.reduce(np.maximum(bands - before, 0), axis=1) * np.float32(1 / MEL_BANDS)
        self._bands = bands[-1:]

    def _chroma_rows(self, heard: npt.NDArray[np.float32], hops: int) -> npt.NDArray[np.float32]:
        """Return (hops, 12): new on every hop whose number divides by CHROMA_HOPS, else the one before."""
        first, skip = self._hop, -self._hop % CHROMA_HOPS
        self._hop += hops
        if skip >= hops:
            return self._chroma
        windows = _windows(heard, self.window_frames, hops)[skip::CHROMA_HOPS]
        chroma = self._to_chroma.apply(np.sqrt(_power(windows * self._long)))
        total = np.add.reduce(chroma, axis=1, keepdims=True)
        chroma = np.where(total > 1e-4, chroma / np.maximum(total, np.float32(1e-4)), np.float32(0))
        before, self._chroma = self._chroma, chroma[-1:]
        if hops == 1:
            return chroma
        since = np.arange(first, first + hops) // CHROMA_HOPS - (first - 1) // CHROMA_HOPS
        return np.concatenate((before, chroma))[since]


def _windows(heard: npt.NDArray[np.float32], frames: int, hops: int) -> npt.NDArray[np.float32]:
    """Return a view (hops, frames): the window that ends with each of the last ``hops`` hops."""
    first = len(heard) - (hops - 1) * HOP_FRAMES - frames
    return np.ndarray((hops, frames), np.float32, heard, first * 4, (HOP_FRAMES * 4, 4))


def _mono(audio: Block) -> npt.NDArray[np.float32]:
    """Mix down, channel by channel: the order of the sum must not depend on the length."""
    mono = audio[:, 0].astype(np.float32)
    for channel in range(1, audio.shape[1]):
        mono += audio[:, channel]
    if audio.shape[1] > 1:
        mono *= np.float32(1 / audio.shape[1])
    return mono


def _power(windows: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    spectra = np.fft.rfft(windows, axis=1)
    squared = spectra.view(np.float32)
    squared *= squared
    return squared[:, 0::2] + squared[:, 1::2]


def analyse(audio: Block, samplerate: int) -> Rows:
    """Return the rows of a whole recording; its last, partial hop is filled up with silence.

    ``audio`` is ``(frames, channels)``, the result ``(ceil(frames / HOP_FRAMES), FEATURES)``.
    """
    stream = FeatureStream(samplerate)
    whole = len(audio) // HOP_FRAMES * HOP_FRAMES
    rows = [stream.process(audio[:whole])] if whole else []
    if whole < len(audio):
        rest = np.zeros((HOP_FRAMES, audio.shape[1]), np.float32)
        rest[: len(audio) - whole] = audio[whole:]
        rows.append(stream.process(rest))
    return np.concatenate(rows) if rows else np.zeros((0, FEATURES), np.float32)


def summarise(rows: Rows, first: int, last: int, delay_hops: int) -> npt.NDArray[np.float32]:
    """Describe the hops ``[first, last)`` together: ``(SUMMARY,)`` float32.

    Chroma is taken ``delay_hops`` later, where its windows are centred on these hops (as far as rows are there);
    chroma and timbre are weighted by amplitude; loudness is the mean power in dB.
    """
    first = min(first, len(rows) - 1)
    last = min(max(last, first + 1), len(rows))
    late = rows[min(first + delay_hops, len(rows) - 1) : min(last + delay_hops, len(rows))]
    mean = _weighted_mean(rows[first:last])
    mean[CHROMA] = _weighted_mean(late)[CHROMA]
    mean[LOUDNESS] = 10 * np.log10((10.0 ** (rows[first:last, LOUDNESS].astype(np.float64) / 10)).mean())
    return mean[:SUMMARY].astype(np.float32)


def _weighted_mean(rows: Rows) -> npt.NDArray[np.float64]:
    amplitudes = 10.0 ** (rows[:, LOUDNESS].astype(np.float64) / 20)
    mean: npt.NDArray[np.float64] = (rows * amplitudes[:, None]).sum(axis=0) / amplitudes.sum()
    return mean


CHORDS: dict[str, tuple[int, ...]] = {
    "": (0, 4, 7),
    "m": (0, 3, 7),
    "7": (0, 4, 7, 10),
    "maj7": (0, 4, 7, 11),
    "m7": (0, 3, 7, 10),
    "mmaj7": (0, 3, 7, 11),
    "6": (0, 4, 7, 9),
    "m6": (0, 3, 7, 9),
    "9": (0, 2, 4, 7, 10),
    "maj9": (0, 2, 4, 7, 11),
    "m9": (0, 2, 3, 7, 10),
    "add9": (0, 2, 4, 7),
    "11": (0, 2, 5, 7, 10),
    "13": (0, 4, 7, 9, 10),
    "dim": (0, 3, 6),
    "dim7": (0, 3, 6, 9),
    "m7b5": (0, 3, 6, 10),
    "aug": (0, 4, 8),
    "sus2": (0, 2, 7),
    "sus4": (0, 5, 7),
    "7sus4": (0, 5, 7, 10),
    "5": (0, 7),
}
"""Chord qualities as semitones above the root."""

_SPELLINGS = {
    "maj": "", "M": "", "min": "m", "-": "m", "M7": "maj7", "Δ": "maj7", "Δ7": "maj7", "min7": "m7", "-7": "m7",
    "mM7": "mmaj7", "min6": "m6", "min9": "m9", "M9": "maj9", "2": "add9", "°": "dim", "o": "dim", "°7": "dim7",
    "o7": "dim7", "ø": "m7b5", "ø7": "m7b5", "min7b5": "m7b5", "+": "aug", "sus": "sus4", "7sus": "7sus4",
}  # fmt: skip
_NATURALS = {"C": 0, "D": 2, "E": 4, "F": 5, "G": 7, "A": 9, "B": 11}
_SYMBOL = re.compile(r"([A-G])([#♯b♭]*)([^/]*)(?:/([A-G])([#♯b♭]*))?")


def _pitch_class(letter: str, accidentals: str) -> int:
    sharps = sum(1 if a in "#♯" else -1 for a in accidentals)
    return (_NATURALS[letter] + sharps) % 12


def chord_chroma(symbol: str) -> npt.NDArray[np.float32] | None:
    """Return the chroma a chord symbol stands for, ``(12,)`` with a sum of 1; ``None`` for "N" or "N.C.".

    Raises
    ------
    ValueError
        If the symbol cannot be read.
    """
    text = symbol.strip()
    if text in ("", "N", "NC", "N.C.", "n.c."):
        return None
    match = _SYMBOL.fullmatch(text)
    quality = match[3].strip("()") if match else ""
    quality = _SPELLINGS.get(quality, quality)
    if match is None or quality not in CHORDS:
        raise ValueError(
            f"chord {symbol!r} cannot be read: write a root A to G with # or b, then one of "
            f"{', '.join(sorted(q for q in CHORDS if q))}, then /bass if wanted, as in F#m7 or C/E"
        )
    root = _pitch_class(match[1], match[2])
    chroma = np.zeros(12, np.float32)
    chroma[[(root + step) % 12 for step in CHORDS[quality]]] = 1
    if match[4]:
        chroma[_pitch_class(match[4], match[5])] = 1
    chroma /= chroma.sum()
    return chroma
