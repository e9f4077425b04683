"""Notes to sound: the built-in synth, which needs no file and no library but NumPy.

An instrument is a function from one note to its sound; :func:`render` places the sounds. Nearly everything here
is *modal*: a struck or plucked thing is a sum of decaying partials, and a thousand frames of thirty partials are
one matrix product (:func:`modes`). A partial above the top of the band is left out, so nothing aliases.

The same notes give the same sound everywhere: noise comes from a seeded bit generator whose stream NumPy
guarantees, and arithmetic is double until the last step.

Strings (stiffness, pluck and pickup place, two planes of swing) and bars (tuned 1 : 4 : 10) follow Fletcher and
Rossing, *The Physics of Musical Instruments*, 2nd edition, §2, §9 and §19; amounts were set by ear and eye.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache
from types import MappingProxyType

import numpy as np
import numpy.typing as npt

from realtime.clock import TempoMap
from realtime.protocols import Block

Sound = npt.NDArray[np.float64]
"""One channel, ``(frames,)``, while it is being made."""

TAIL_SECONDS = 3.0
"""No instrument sounds longer than this after its note's end."""

STEP = 512
"""Columns of the matrix product in :func:`modes`; sets its speed, not its sound."""

TOP_OF_BAND = 0.42
"""Partials above this part of the sample rate are left out."""


@dataclass(frozen=True, slots=True)
class Note:
    """One note of a part.

    Attributes
    ----------
    pitch
        0 to 127; 60 is middle C. A drum kit reads it as General MIDI's drum map does.
    velocity
        0 (silent) to 1.
    start, beats
        Where it starts, in quarter notes since bar 0, and how long it is held; exact.
    """

    pitch: int
    velocity: float
    start: Fraction
    beats: Fraction

    def __post_init__(self) -> None:
        if not 0 <= self.pitch <= 127:
            raise ValueError(f"pitch={self.pitch}: a pitch is 0 to 127, 60 is middle C; did you give a frequency?")
        if not 0 <= self.velocity <= 1:
            raise ValueError(f"velocity={self.velocity}: it is 0 to 1; a MIDI velocity is divided by 127")
        if self.beats <= 0:
            raise ValueError(f"beats={self.beats}: a note is longer than nothing")


NoteSound = Callable[[Note, int, int], Sound]
"""``instrument(note, held, samplerate)``: the sound of a note whose key is held for ``held`` frames, from its onset
to the end of its tail. Its first frame is not zero (though small), its last is."""


def render(
    instrument: str, notes: Iterable[Note], tempo_map: TempoMap, start: int = 0, frames: int | None = None
) -> Block:
    """Play notes on a built-in instrument, each from the very frame its beat falls on.

    Any thread. A stretch of a part is bit for bit the same whether it is rendered alone or within the whole.

    Parameters
    ----------
    instrument
        A key of :data:`INSTRUMENTS`.
    notes
        In any order.
    tempo_map
        What turns beats into frames; the sample rate is its own.
    start, frames
        The stretch to render, in frames of the map. Without ``frames``: until the last sound has died away.

    Returns
    -------
    Block
        ``(frames, 1)``. One note at full velocity peaks between -6 dBFS (bass, kick) and -13 dBFS (strings, hi-hat):
        a full chord stays below 0.

    Raises
    ------
    ValueError
        If there is no such instrument, or a drum kit has no such drum.
    """
    if instrument not in INSTRUMENTS:
        raise ValueError(f"instrument {instrument!r} is none of the built-in ones: {', '.join(INSTRUMENTS)}")
    samplerate = tempo_map.timelines[0].samplerate
    placed = [(tempo_map.frame_at(n.start), tempo_map.frame_at(n.start + n.beats), n) for n in notes]
    tail = round(TAIL_SECONDS * samplerate)
    if frames is None:
        frames = max((end for _, end, _ in placed), default=start) + tail - start
    out = np.zeros(max(0, frames))
    for onset, end, note in sorted(placed, key=lambda p: (p[0], p[2].pitch)):
        if end + tail <= start or onset >= start + frames:
            continue
        sound = INSTRUMENTS[instrument](note, max(1, end - onset), samplerate)
        skipped = max(0, start - onset)
        part = sound[skipped : start + frames - onset]
        at = onset + skipped - start
        out[at : at + len(part)] += part
    return out[:, np.newaxis].astype(np.float32)


def room(audio: Block, samplerate: int, seconds: float = 0.5, wet_db: float = -14.0) -> Block:
    """Put audio into a small room: a fixed, decaying echo pattern is added, the direct sound stays as it is.

    Parameters
    ----------
    audio
        ``(frames, channels)``.
    seconds
        Time in which the room decays by 60 dB.
    wet_db
        Energy of the pattern against the direct sound's.

    Returns
    -------
    Block
        As long as ``audio``; what would ring on after its end is left off.
    """
    pattern = _room_pattern(samplerate, seconds) * 10 ** (wet_db / 20)
    size = _fft_size(len(audio) + len(pattern))
    echo = np.fft.irfft(
        np.fft.rfft(audio.astype(np.float64), size, axis=0) * np.fft.rfft(pattern, size)[:, np.newaxis], size, axis=0
    )
    return (audio + echo[: len(audio)]).astype(np.float32)


def drive(audio: Block, gain_db: float) -> Block:
    """Send audio through a warm amplifier: amplified by ``gain_db``, then bent softly towards -1 and 1 (tanh)."""
    driven: Block = np.tanh(audio * np.float32(10 ** (gain_db / 20)))
    return driven


@lru_cache(maxsize=8)
def _room_pattern(samplerate: int, seconds: float) -> Sound:
    """Return the room's answer to a click: six walls, then a diffuse decay from which the bass is taken."""
    frames = round(seconds * samplerate)
    diffuse = band_noise(frames, 250.0, 4500.0, samplerate, seed=1)
    diffuse *= _decay(frames, seconds, samplerate) * np.minimum(1.0, np.arange(frames) / (0.03 * samplerate))
    diffuse /= np.sqrt(np.sum(diffuse**2))
    for delay_seconds, gain in ((0.0071, 0.5), (0.0113, -0.4), (0.0167, 0.35), (0.0199, 0.3), (0.0263, -0.25)):
        diffuse[round(delay_seconds * samplerate)] += gain
    result: Sound = diffuse / np.sqrt(np.sum(diffuse**2))
    return result


# ---------------------------------------------------------------------------------------------- building blocks


def hertz(pitch: float) -> float:
    """Frequency of a pitch in equal temperament, A4 (69) = 440 Hz."""
    return float(440.0 * 2 ** ((pitch - 69) / 12))


def modes(
    frequencies_hz: Sound,
    gains: Sound,
    decays_seconds: Sound,
    frames: int,
    samplerate: int,
    phases: Sound | float = 0.0,
) -> Sound:
    """Sum decaying sinusoids: ``gain * sin(2 pi f t + phase) * 10 ** (-3 t / decay)``, t counted from frame 1.

    With z the factor of one frame, ``z ** (row * STEP + column)`` is ``z ** (row * STEP)`` times ``z ** column``: the
    sum over partials is the product of a (rows, partials) and a (partials, STEP) matrix.

    Parameters
    ----------
    frequencies_hz, gains, decays_seconds, phases
        ``(partials,)`` each; a decay is the time to fall by 60 dB.
    """
    audible = frequencies_hz < TOP_OF_BAND * samplerate
    rates = (-np.log(1000.0) / decays_seconds + 2j * np.pi * frequencies_hz)[audible] / samplerate
    weights = (gains * np.exp(1j * np.asarray(phases)))[audible]
    rows = -(-frames // STEP)
    coarse = weights * np.exp(np.outer(np.arange(rows) * STEP, rates))
    fine = np.exp(np.outer(rates, np.arange(1, STEP + 1)))
    table: Sound = coarse.real @ fine.imag + coarse.imag @ fine.real
    return table.ravel()[:frames]


@lru_cache(maxsize=64)
def _white(frames: int, seed: int) -> Sound:
    raw = np.random.PCG64(seed).random_raw(frames)
    return (np.asarray(raw, dtype=np.uint64) >> np.uint64(11)).astype(np.float64) * 2.0**-52 - 1.0


def band_noise(frames: int, low_hz: float, high_hz: float, samplerate: int, seed: int) -> Sound:
    """Return noise of RMS 1 between two frequencies, with edges of about a third of an octave; the same per seed."""
    size = _fft_size(frames)
    spectrum = np.fft.rfft(_white(frames, seed), size)
    octaves = np.log2(np.maximum(np.fft.rfftfreq(size, 1 / samplerate), 1.0))
    low = 1 / (1 + np.exp(-12 * (octaves - np.log2(low_hz))))
    high = 1 / (1 + np.exp(12 * (octaves - np.log2(min(high_hz, TOP_OF_BAND * samplerate)))))
    noise: Sound = np.fft.irfft(spectrum * low * high, size)[:frames]
    noise /= np.sqrt(np.mean(noise**2))
    return noise


def _fft_size(frames: int) -> int:
    return 1 << max(4, (frames - 1).bit_length())


def _decay(frames: int, seconds: float, samplerate: int) -> Sound:
    """Return a fall by 60 dB in ``seconds``."""
    result: Sound = np.exp(-np.log(1000.0) / (seconds * samplerate) * np.arange(frames))
    return result


def _shaped(sound: Sound, held: int, samplerate: int, attack: float, release: float) -> Sound:
    """Give a sound its start and its end: a rise over ``attack`` seconds, and a fall by 60 dB in ``release`` from
    the frame its key is let go. The last 5 ms reach zero.
    """
    rise = min(len(sound), max(1, round(attack * samplerate)))
    sound[:rise] *= np.sin(np.pi / 2 * np.arange(1, rise + 1) / rise) ** 2
    if held < len(sound):
        sound[held:] *= _decay(len(sound) - held, release, samplerate)
    fade = min(len(sound), round(0.005 * samplerate))
    sound[len(sound) - fade :] *= np.cos(np.pi / 2 * np.arange(1, fade + 1) / fade) ** 2
    return sound


def _length(held: int, samplerate: int, release: float, decay: float) -> int:
    """Return how long a sound is worth computing: to the end of its release or of its own decay."""
    return min(held + round(min(release, TAIL_SECONDS) * samplerate), round(decay * samplerate))


def _loudness(velocity: float) -> float:
    """Amplitude of a velocity: half the velocity is 10 dB less."""
    return float(velocity**1.66)


# ---------------------------------------------------------------------------------------------- strings


@dataclass(frozen=True, slots=True)
class _String:
    """What makes one plucked instrument differ from another. Frequencies in Hz, times in seconds.

    ``pluck`` and ``pickup`` are places along the string (0 to 1); ``stiffness`` is the B of
    ``f_n = n f sqrt(1 + B n^2)``; ``ring`` the decay of a middle C's fundamental and ``ring_hz`` the frequency at
    which decay is half as long; ``soft_hz`` and ``hard_hz`` are where the touch starts to round the tone off at the
    lowest and the highest velocity; ``body`` is (frequency, width in octaves, gain).
    """

    pluck: float
    pickup: float
    stiffness: float
    ring: float
    ring_hz: float
    soft_hz: float
    hard_hz: float
    release: float
    level: float
    knock: float
    body: tuple[tuple[float, float, float], ...]

    def __call__(self, note: Note, held: int, samplerate: int) -> Sound:
        base = hertz(note.pitch)
        n = np.arange(1, 65)
        partials = n * base * np.sqrt(1 + self.stiffness * n**2)
        touch = self.soft_hz * (self.hard_hz / self.soft_hz) ** note.velocity
        gains = np.sin(np.pi * n * self.pluck) * np.sin(np.pi * n * self.pickup) / n
        gains = gains * np.exp(-((partials / touch) ** 1.2)) * self._body(partials)
        gains /= np.sqrt(np.sum(gains**2))
        decays = self.ring * (261.6 / base) ** 0.4 / (1 + (partials / self.ring_hz))
        worth = gains**2 > 1e-9
        partials, gains, decays, n = partials[worth], gains[worth], decays[worth], n[worth]
        frames = _length(held, samplerate, self.release, float(decays.max()))
        # A string swings in two planes: one couples to the bridge and dies first, the other sings on, a hair off.
        sound = modes(
            np.concatenate((partials, partials * 1.0004)),
            np.concatenate((0.62 * gains, 0.52 * gains)),
            np.concatenate((0.5 * decays, decays)),
            frames,
            samplerate,
            np.tile(0.9 * n, 2),
        )
        sound += self._knocked(frames, note.velocity, samplerate)
        return _shaped(self.level * _loudness(note.velocity) * sound, held, samplerate, 0.0015, self.release)

    def _body(self, frequencies: Sound) -> Sound:
        octaves = np.log2(frequencies)
        gain = np.ones_like(frequencies)
        for centre, width, peak in self.body:
            gain += peak * np.exp(-(((octaves - np.log2(centre)) / width) ** 2))
        return gain

    def _knocked(self, frames: int, velocity: float, samplerate: int) -> Sound:
        """Return the finger's thud on the body."""
        sound = np.zeros(frames)
        short = min(frames, round(0.12 * samplerate))
        centres = np.array([c for c, _, _ in self.body])
        thud = modes(centres, np.ones(len(centres)), np.full(len(centres), 0.09), short, samplerate)
        sound[:short] = self.knock * (0.5 + 0.5 * velocity) * thud
        return sound


_GUITAR = _String(
    pluck=0.19,
    pickup=0.27,
    stiffness=4e-5,
    ring=3.2,
    ring_hz=1500.0,
    soft_hz=1100.0,
    hard_hz=3800.0,
    release=0.18,
    level=0.21,
    knock=0.06,
    body=((112.0, 0.3, 1.2), (205.0, 0.25, 1.0), (410.0, 0.3, 0.6), (980.0, 0.5, 0.4)),
)
_BASS = _String(
    pluck=0.31,
    pickup=0.13,
    stiffness=1e-4,
    ring=2.3,
    ring_hz=420.0,
    soft_hz=420.0,
    hard_hz=1300.0,
    release=0.14,
    level=0.28,
    knock=0.10,
    body=((98.0, 0.35, 0.9), (190.0, 0.35, 0.7), (700.0, 0.6, 1.2)),
)


# ---------------------------------------------------------------------------------------------- tines, bars, bows


def _electric_piano(note: Note, held: int, samplerate: int) -> Sound:
    """Play a tine before a pickup: a pure swing, bent by the magnet's field the more the harder it is struck.

    The field is an exponential in the tine's place, so harmonic n has the strength of the Bessel function I_n of the
    depth: nothing is left of it above the tenth, and nothing aliases. The pickup gives the change of the flux,
    which has no constant part.
    """
    base = hertz(note.pitch)
    ring = 5.5 * (261.6 / base) ** 0.55
    release = 0.22
    frames = _length(held, samplerate, release, ring)
    swing = modes(np.array([base]), np.ones(1), np.array([ring]), frames + 1, samplerate, -np.pi / 2)
    depth = (0.35 + 1.75 * note.velocity**1.3) * min(1.0, (880.0 / base) ** 0.5)
    flux = np.exp(depth * swing) / depth
    tine = np.diff(flux) * samplerate / (2 * np.pi * base) / (1 + 0.55 * depth)
    bell = modes(
        np.array([6.27 * base, 17.5 * base]),
        np.array([0.16, 0.05]) * note.velocity,
        np.array([0.55, 0.12]) * min(1.0, 261.6 / base),
        frames,
        samplerate,
    )
    return _shaped(0.20 * _loudness(note.velocity) * (tine + bell), held, samplerate, 0.0012, release)


def _bar(ring: float, upper: float, level: float, knock: float, release: float) -> Callable[[Note, int, int], Sound]:
    """Return a tuned bar (marimba, vibraphone): partials 1 : 4 : 10; a hard mallet wakes the upper ones."""

    def strike(note: Note, held: int, samplerate: int) -> Sound:
        base = hertz(note.pitch)
        rings = ring * (261.6 / base) ** 0.7 * np.array([1.0, upper, upper / 3, 0.05])
        hard = note.velocity**0.8
        gains = np.array([1.0, 0.32 * hard, 0.16 * hard**2, 0.05 * hard])
        frames = _length(max(held, round(0.4 * samplerate)), samplerate, release, float(rings[0]))
        sound = modes(base * np.array([1.0, 3.99, 9.6, 16.2]), gains, rings, frames, samplerate)
        short = min(frames, round(0.02 * samplerate))
        click = band_noise(short, 500.0, 3500.0, samplerate, seed=3 + note.pitch)
        sound[:short] += knock * hard * click * _decay(short, 0.02, samplerate)
        return _shaped(level * _loudness(note.velocity) * sound, held, samplerate, 0.0012, release)

    return strike


def _strings(note: Note, held: int, samplerate: int) -> Sound:
    """Bow a section: five saw-like players a few cents apart, whose beating is the section's breath."""
    base = hertz(note.pitch)
    n = np.arange(1, 41)
    cents = np.array([-7.1, -3.3, 0.4, 3.9, 6.2])
    partials = np.outer(2 ** (cents / 1200), n * base).ravel()
    bright = 900.0 + 2600.0 * note.velocity
    gains = np.tile(1 / n * np.exp(-((n * base / bright) ** 1.1)), len(cents)) / len(cents)
    phases = np.pi * _white(len(partials), seed=100 + note.pitch)
    worth = gains > 1e-5
    release = 0.45
    frames = held + round(release * samplerate)
    endless = np.full(len(partials), 1e3)
    sound = modes(partials[worth], gains[worth], endless[worth], frames, samplerate, phases[worth])
    return _shaped(0.34 * _loudness(note.velocity) * sound, held, samplerate, 0.09, release)


# ---------------------------------------------------------------------------------------------- drums


def _kick(velocity: float, samplerate: int, stroke: int) -> Sound:
    """Return a skin whose pitch falls as it relaxes, and the beater."""
    frames = round(0.32 * samplerate)
    t = np.arange(1, frames + 1) / samplerate
    sweep = 2 * np.pi * (47.0 * t + 0.026 * (60.0 + 90.0 * velocity) * (1 - np.exp(-t / 0.026)))
    beater = modes(np.array([1150.0, 2300.0]), np.array([0.22, 0.1]) * velocity, np.full(2, 0.03), frames, samplerate)
    fall = _decay(frames, 0.34, samplerate)
    skin = np.sin(sweep) * fall
    skin -= fall * (skin.sum() / fall.sum())  # else the last, half-finished swings leave a constant part
    return 0.75 * (skin + beater)


def _snare(velocity: float, samplerate: int, stroke: int) -> Sound:
    """Return two skin modes and the wires under them."""
    frames = round(0.26 * samplerate)
    skin = modes(np.array([184.0, 331.0]), np.array([0.6, 0.35]), np.array([0.16, 0.11]), frames, samplerate)
    wires = band_noise(frames, 900.0, 3500.0 + 3500.0 * velocity, samplerate, seed=20 + stroke)
    return 0.55 * skin + 0.2 * wires * _decay(frames, 0.23, samplerate)


def _hat(ring: float, seconds: float) -> Callable[[float, int, int], Sound]:
    """Return a pair of cymbals: noise and six clashing partials."""

    def strike(velocity: float, samplerate: int, stroke: int) -> Sound:
        frames = round(seconds * samplerate)
        metal = np.array([3140.0, 4270.0, 5430.0, 6790.0, 8210.0, 9630.0])
        clash = modes(metal, np.full(6, 0.07), np.full(6, ring), frames, samplerate, np.arange(6.0))
        noise = band_noise(frames, 6000.0, 7000.0 + 4000.0 * velocity, samplerate, seed=30 + stroke)
        return clash + 0.18 * noise * _decay(frames, ring, samplerate)

    return strike


def _rim(velocity: float, samplerate: int, stroke: int) -> Sound:
    """Return a stick laid across the rim."""
    frames = round(0.08 * samplerate)
    return modes(
        np.array([488.0, 1672.0, 2530.0]),
        np.array([0.3, 0.4, 0.25]),
        np.array([0.07, 0.05, 0.04]),
        frames,
        samplerate,
    )


def _shaker(velocity: float, samplerate: int, stroke: int) -> Sound:
    """Return one throw of the beads: a breath of noise that swells for 12 ms."""
    frames = round(0.09 * samplerate)
    swell = np.minimum(1.0, np.arange(1, frames + 1) / (0.012 * samplerate))
    noise = band_noise(frames, 4500.0, 9000.0, samplerate, seed=40 + stroke)
    return 0.21 * noise * swell * _decay(frames, 0.09, samplerate)


DRUMS: Mapping[int, Callable[[float, int, int], Sound]] = MappingProxyType(
    {36: _kick, 37: _rim, 38: _snare, 42: _hat(0.07, 0.07), 46: _hat(0.5, 0.45), 82: _shaker}
)
"""The kit by General MIDI pitch: kick 36, rim 37, snare 38, closed hat 42, open hat 46, shaker 82."""


def _drums(note: Note, held: int, samplerate: int) -> Sound:
    """Strike a drum; how long the note is held is of no matter, but no two neighbouring strokes are quite alike."""
    if note.pitch not in DRUMS:
        raise ValueError(f"the drum kit has no drum at pitch {note.pitch}; it has {', '.join(map(str, DRUMS))}")
    sound = DRUMS[note.pitch](note.velocity, samplerate, int(note.start * 4) % 5)
    return _shaped(0.5 * _loudness(note.velocity) * sound, len(sound), samplerate, 0.0006, 0.1)


INSTRUMENTS: Mapping[str, NoteSound] = MappingProxyType(
    {
        "electric piano": _electric_piano,
        "guitar": _GUITAR,
        "bass": _BASS,
        "marimba": _bar(ring=1.5, upper=0.22, level=0.23, knock=0.07, release=1.2),
        "vibraphone": _bar(ring=5.0, upper=0.35, level=0.22, knock=0.04, release=0.35),
        "strings": _strings,
        "drums": _drums,
    }
)
"""What can be played, by name."""
