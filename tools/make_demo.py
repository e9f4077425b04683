"""Write the built-in music: ``python tools/make_demo.py`` renders the score below into bridge/demo/*.flac.

The score is ours, and so are the instruments that sound it (:mod:`realtime.instruments`). One bar a line, in 16ths:
``D4:3`` is D4 for three of them (one where no number stands), ``D4+A4:6`` a double stop, ``-:2`` a rest;
``?`` behind a note makes it a ghost, ``!`` an accent. Rhythms of chords and drums are rows of sixteen steps: a
digit strikes (1 soft to 9 loud), ``-`` holds on, ``.`` rests.

Everything is in D minor, around Dm7, Gm7, Bbmaj7, C7, Fmaj7, Am7 and A7, so that a corpus can follow the player's
chart. The corpora keep a steady tempo from frame 0 on; their notes on a downbeat start exactly there.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import numpy as np

from realtime.clock import TempoMap
from realtime.instruments import Note, drive, render, room
from realtime.protocols import Block

SAMPLERATE = 48_000
KEPT_BITS = 15
"""Of the files' 16 bits the last is left 0, which FLAC stores for nothing: 0.3 MB less for a hiss at -92 dBFS."""

DEMO = Path(__file__).resolve().parent.parent / "bridge" / "demo"

# ---------------------------------------------------------------------------------------------- the player

PLAYER_TEMPI = TempoMap.steady(SAMPLERATE, 112).ramped(Fraction(16 * 4), 8, Fraction(120))
"""112 until bar 17 (the seventeenth), then a push to 120 over two bars."""

CHART = """
Dm7 | Gm7 | Dm7 | A7
Dm7 | Am7 | Bbmaj7 | C7 | Dm7 | Am7 | Gm7 | A7
Bbmaj7 | C7 | Am7 | Dm7 | Gm7 | C7 | Fmaj7 | A7
Dm7 | Gm7 A7
Dm7 | Am7 | Bbmaj7 | C7 | Gm7 | A7 | Dm7 | Dm7
"""

MELODY = """
D4:3 F4 G4:2 A4:4 -:2 C5:2 A4:2
Bb4:3 A4 G4:2 D4:4 -:6
D4:3 F4 G4:2 A4:4 -:2 D5:2 C5:2
Bb4:2 A4:2 G4:2 E4:2 C#4:4 -:4

A4:6 D5:2 E5:3 F5 E5:2 D5:2
C5:6 A4:2 -:2 G4:2 A4:2 C5:2
D5:6 C5:2 A4:3 F4 A4:4
G4:8 -:4 E4:2 G4:2
A4:6 D5:2 E5:3 F5 G5:2 E5:2
C5:3 D5 C5:2 A4:4 -:2 A4:2 C5:2
Bb4:3 C5 D5:2 F5:4 E5:2 D5:2 Bb4:2
C#5:6 E5:2 G5:3 F5 E5:2 C#5:2

D5+F5:8 -:2 C5:2 D5:2 F5:2
E5+G5:6 E5:2 D5:2 C5:2 Bb4:4
C5+E5:8 -:2 A4:2 C5:2 E5:2
D5+F5:6 E5:2 D5:2 C5:2 A4:4
D5:2 Bb4:2 G4:2 Bb4:2 D5:2 F5:2 A5:4
G5:2 E5:2 C5:2 E5:2 G5:2 Bb5!:2 D5:4
C5+A5:6 G5:2 E5:2 C5:2 A4:4
C#5:2 E5:2 G5:2 Bb5:2 A5!:6 -:2

-:16
-:16

D4:3 F4 G4:2 A4:4 -:2 C5:2 A4:2
C5:3 D5 E5:2 C5:4 -:2 A4:2 C5:2
D5:6 F5:2 E5:3 D5 A4:4
G4:3 Bb4 C5:2 E5:4 D5:2 C5:2 Bb4:2
A4:2 Bb4:2 D5:2 F5:4 D5:2 Bb4:4
G5!:2 F5:2 E5:2 C#5:2 A4:2 Bb4:2 C#5:2 E5:2
A4+D5:6 C5:2 A4:2 F4:2 D4:4
E4+A4+D5:12 -:4
"""

VOICINGS = {
    "Dm7": "F3 A3 C4 E4",
    "Gm7": "F3 A3 Bb3 D4",
    "Bbmaj7": "F3 A3 C4 D4",
    "C7": "E3 G3 Bb3 D4",
    "Fmaj7": "E3 G3 A3 C4",
    "Am7": "E3 G3 A3 C4",
    "A7": "G3 Bb3 C#4 E4",
}
"""The left hand: no roots, they are the bass's; each hand position is near the last."""

COMPING = """
......4-........
......4-......3-
......4-........
......4-..4-....

4-----..3-......
4-----..3-..3---
4-----..3-......
4-----..3-..3-3-
4-----..4-......
4-----..4-..3---
4-----..4-......
5-----..4-..4---

6---..5---..4---
6---..5---..4-4-
6---..5---..4---
6---..5---..4-4-
6-5-..5-6-..5---
6-5-..5-6-..5-5-
7-6-..6-7-..6---
7---7---8-------

................
................

6-----..5-..4---
6-----..5-..4-4-
6-----..5-..4---
6-----..5-..5-5-
6---..5---..5---
7---6---5---5---
5-------..4-....
5-----------....
"""

# ---------------------------------------------------------------------------------------------- the corpora

BASS = """
D2:6 D2?:2 A1:6 C2:2
A1:6 A1?:2 E2:6 G2:2
Bb1:6 Bb1?:2 F2:6 D2:2
C2:6 C2?:2 G1:4 Bb1:2 C2:2
D2:6 D2?:2 A2:6 F2:2
E2:6 E2?:2 A1:6 G#1:2
G1:6 G1?:2 D2:6 Bb1:2
A1:6 A1?:2 C#2:4 E2:2 C#2:2

D2:4 F2:4 A2:4 Ab2:4
G2:4 F2:4 D2:4 Db2:4
C2:4 E2:4 G2:4 Gb2:4
F2:4 E2:4 C2:4 B1:4
Bb1:4 D2:4 F2:4 A2:4
G2:4 D2:4 Bb1:4 Ab1:4
A1:4 C#2:4 E2:4 C#2:3 E2
D2:4 A1:4 D2:8

D2:3 D2? -:2 D3:2 C3:2 A2:2 -:2 F2 G2
D2:3 D2? -:2 A2:2 C3:2 A2:2 G2:2 F2:2
G1:3 G1? -:2 G2:2 F2:2 D2:2 -:2 Bb1 C2
G1:3 G1? -:2 D2:2 F2:2 G2:2 F2:2 D2:2
Bb1:3 Bb1? -:2 Bb2:2 A2:2 F2:2 -:2 D2:2
C2:3 C2? -:2 C3:2 Bb2:2 G2:2 E2:2 C2:2
D2:3 D2? -:2 A2:2 D3:4 C3:2 A2:2
A1:3 A1? -:2 E2:2 G2:2 E2:2 C#2:2 E2:2

G1:2 G2:2 F2 G2? D2:2 F2:2 G2:2 Bb2:2 B2:2
C3:2 C2:2 Bb2 C3? G2:2 E2:2 G2:2 Bb2:2 C3:2
A2:2 A1:2 G2 A2? E2:2 C3:2 A2:2 G2:2 E2:2
D2:2 D3:2 C3 D3? A2:2 F2:2 A2:2 C3:2 A2:2
Bb1:2 Bb2:2 A2 Bb2? F2:2 D2:2 F2:2 A2:2 Bb2:2
F2:2 F2:2 E2 F2? C2:2 A1:2 C2:2 F2:2 G2:2
A2:2 A1:2 G2 A2? E2:2 C#2:2 E2:2 G2:2 C#2:2
D2:4 A2:2 D2:2 -:8
"""
"""Four choruses: in two, walking, a groove, and busy; soft to loud."""

MARIMBA = """
F4+A4:6 F4+A4?:2 -:2 E4+A4:2 F4+A4:4
E4+G4:6 E4+G4?:2 -:2 D4+G4:2 E4+G4:4
D4+F4:6 D4+F4?:2 -:2 D4+A4:2 D4+F4:4
E4+Bb4:6 E4+Bb4?:2 -:2 D4+Bb4:2 E4+G4:4
D4+Bb4:6 D4+Bb4?:2 -:2 F4+Bb4:2 D4+G4:4
C#4+G4:6 C#4+G4?:2 -:2 E4+G4:2 C#4+A4:4

D4:2 A4:2 F4:2 C5:2 A4:2 E5:2 C5:2 A4:2
G4:2 D5:2 Bb4:2 F5:2 D5:2 A5:2 F5:2 D5:2
E4:2 Bb4:2 G4:2 D5:2 Bb4:2 E5:2 D5:2 Bb4:2
F4:2 C5:2 A4:2 E5:2 C5:2 G5:2 E5:2 C5:2
D4:2 A4:2 F4:2 D5:2 Bb4:2 F5:2 D5:2 A4:2
D4:2 Bb4:2 G4:2 D5:2 Bb4:2 F5:2 D5:2 Bb4:2
C#4:2 G4:2 E4:2 Bb4:2 G4:2 C#5:2 E5:2 G5:2
F5:2 D5:2 A4:2 F4:2 D4:4 F4+A4:4

D4 A4 D5 A4 F4 A4 C5 A4 D4 A4 E5 A4 F4 A4 C5 A4
C4 A4 C5 A4 E4 A4 G4 A4 C4 A4 D5 A4 E4 A4 G4 A4
D4 A4 D5 A4 F4 A4 Bb4 A4 D4 A4 F5 A4 F4 A4 C5 A4
E4 Bb4 D5 Bb4 G4 Bb4 C5 Bb4 E4 Bb4 E5 Bb4 G4 Bb4 D5 Bb4
F4 C5 E5 C5 A4 C5 F5 C5 F4 C5 G5 C5 A4 C5 E5 C5
E4 A4 C5 A4 G4 A4 E5 A4 E4 A4 G5 A4 G4 A4 C5 A4
D4 Bb4 D5 Bb4 G4 Bb4 F5 Bb4 D4 Bb4 A5 Bb4 G4 Bb4 F5 Bb4
C#4 G4 C#5 G4 E4 G4 Bb4 G4 C#4 G4 E5 G4 E4 G4 Bb4 G4

D5+D6:3 C5+C6 A4+A5:2 F5:2 D5+D6:3 E5+E6 F5:2 A5:2
Bb4+Bb5:3 A4+A5 G4+G5:2 D5:2 F5 G5 F5 D5 Bb4:2 D5:2
E5+Bb5:3 D5 C5:2 E5:2 G5 E5 G5 E5 D5:2 C5:2
C5+E5:3 D5 E5:2 A5:2 G5:2 E5:2 C5:2 A4:2
C#5+G5:2 A4:2 C#5:2 E5:2 G5 A5 G5 E5 C#5 E5 C#5 A4
D5+A5:4 D4+A4:4 D4+F4:8
"""
"""Double stops, arpeggios, an ostinato, octaves."""

DRUM_ROWS = ("kick", "rim", "snare", "closed hat", "open hat", "shaker")
DRUM_PITCHES = dict(zip(DRUM_ROWS, (36, 37, 38, 42, 46, 82), strict=True))

DRUMS = """
5............... ....4.......4... ................ ................ ................ 4.2.4.2.4.2.4.2.
5.........4..... ....4.......4..3 ................ ................ ................ 4.2.4.2.4.2.4.22
5............... ....4.......4... ................ ................ ................ 4.2.4.2.4.2.4.2.
5......4..4..... ....4..2....4... ................ ................ ................ 4.2.4.2.4.2.4222

6.........5..... ....5.......5... ................ 5.3.5.3.5.3.5.3. ................ ................
6......4..5..... ....5.......5..3 ................ 5.3.5.3.5.3.5.3. ................ ................
6.........5..... ....5.......5... ................ 5.3.5.325.3.5.3. ................ ................
6......4..5....4 ....5..3....5... ................ 5.3.5.3.5.3.5... ..............5. ................

8......5..7..... ................ ....8..2.2..8..2 6.4.6.4.6.4.6.4. ................ ................
8..5...5..7..5.. ................ ....8..2.2..8... 6.426.4.6.4.6... ..............6. ................
8......5..7..... ................ ....8..2.2..8..2 6.4.6.4.6.426.4. ................ ................
8..5...5..7....5 ................ ....8..2.2..8.3. 6.426.4.6.4.6... ..............6. ................
8......5..7..... ................ ....8..2.2..8..2 6464646464646464 ................ ................
8..5...5..7..5.. ................ ....8..2.2..8... 6464646464646... ..............7. ................
8.....7...7..... ................ ....8.22..4.6678 6.4.6.4.6....... ................ ................
9.......5....... ................ ............6... ................ 7............... ................
"""
"""One bar a line, one row of steps for each of :data:`DRUM_ROWS`: shaker and rim, hat and rim, full kit, a fill."""

# ---------------------------------------------------------------------------------------------- reading the score

STEP = Fraction(1, 4)
BAR_STEPS = 16
SWING = Fraction(1, 48)
"""How late every second 16th is, in beats."""

_NOTE = re.compile(r"([A-G])([#b]?)(-?\d)([?!]?)")


def bars(text: str) -> list[str]:
    """Split a part into its bars, one a line."""
    return [line for line in text.splitlines() if line.strip()]


def pitch(name: str) -> int:
    """Turn ``"Bb3"`` into 58."""
    match = _NOTE.fullmatch(name)
    if match is None:
        raise ValueError(f"{name!r} is no note; write a letter, # or b, and the octave, as in Bb3")
    letter, accidental, octave, _ = match.groups()
    return 12 * (int(octave) + 1) + "C D EF G A B".index(letter) + {"#": 1, "b": -1, "": 0}[accidental]


def line(text: str, dynamics: list[tuple[int, float, float]]) -> list[Note]:
    """Read a melodic part; ``dynamics`` gives (bars, first velocity, last velocity) for its sections in order."""
    levels = [float(x) for count, first, last in dynamics for x in np.linspace(first, last, count)]
    notes = []
    for bar, (content, level) in enumerate(zip(bars(text), levels, strict=True)):
        step = 0
        for token in content.split():
            names, _, steps = token.partition(":")
            length = int(steps or 1)
            for name in names.split("+") if names != "-" else ():
                touch = level * {"?": 0.6, "!": 1.15}.get(name[-1], 1.0)
                start = bar * 4 + step * STEP
                notes.append(Note(pitch(name), min(1.0, touch), start, (length - Fraction(1, 6)) * STEP))
            step += length
        if step != BAR_STEPS:
            raise ValueError(f"bar {bar + 1} has {step} sixteenths, it takes {BAR_STEPS}: {content}")
    return notes


def strikes(row: str) -> Iterator[tuple[int, int, float]]:
    """Read a row of steps: (step, length in steps, velocity) of each strike."""
    if len(row) != BAR_STEPS:
        raise ValueError(f"a row of steps has {len(row)} of them, it takes {BAR_STEPS}: {row}")
    for match in re.finditer(r"(\d)(-*)", row):
        yield match.start(), len(match.group()), int(match.group(1)) / 10


def chords() -> list[list[str]]:
    """Return the chart, a list of symbols for each bar."""
    return [entry.split() for row in bars(CHART) for entry in row.split("|")]


def comping() -> list[Note]:
    """Return the player's left hand: the chart's chords in the rhythm of :data:`COMPING`."""
    notes = []
    for bar, (symbols, row) in enumerate(zip(chords(), bars(COMPING), strict=True)):
        for step, length, velocity in strikes(row):
            symbol = symbols[step * len(symbols) // BAR_STEPS]
            start, beats = bar * 4 + step * STEP, (length - Fraction(1, 4)) * STEP
            notes += [Note(pitch(name), velocity, start, beats) for name in VOICINGS[symbol].split()]
    return notes


def kit() -> list[Note]:
    """Return the drum part."""
    return [
        Note(DRUM_PITCHES[drum], velocity, bar * 4 + step * STEP, STEP)
        for bar, rows in enumerate(bars(DRUMS))
        for drum, row in zip(DRUM_ROWS, rows.split(), strict=True)
        for step, _, velocity in strikes(row)
    ]


# ---------------------------------------------------------------------------------------------- playing it


def humanised(notes: list[Note], seed: int, late: float, early: float) -> list[Note]:
    """Give a part its swing, its accents and a hand: off the beat a note is up to ``early`` or ``late`` beats
    away from its place, on a beat a quarter of that and never early, on a downbeat exactly on it.
    """
    draws = np.random.PCG64(seed).random_raw(2 * len(notes)).astype(np.float64) / 2.0**64
    played = []
    for note, place, touch in zip(notes, draws[::2], draws[1::2], strict=True):
        start, velocity = note.start, note.velocity
        if start % 4 == 0:
            velocity *= 1.08
        elif start % 1 == 0:
            start += Fraction(round(4800 * place * late / 4), 4800)
        else:
            swing = SWING if start % Fraction(1, 2) else Fraction(0)
            start += swing + Fraction(round(4800 * (place * (late + early) - early)), 4800)
            velocity *= 0.86 if swing else 0.92
        velocity = min(1.0, velocity * (0.94 + 0.12 * touch))
        played.append(Note(note.pitch, velocity, start, note.beats))
    return played


@dataclass(frozen=True)
class Part:
    """One file of the demo: who plays what, how fast, how hard the amplifier is driven, how loud it is recorded and
    in how large a room (seconds).
    """

    name: str
    instrument: str
    notes: tuple[Note, ...]
    tempi: TempoMap
    bars: int
    drive_db: float
    gain_db: float
    room_seconds: float = 0.35
    room_db: float = -17.0

    def sound(self, frames: int | None = None) -> Block:
        """Render the part, or its first ``frames``; a whole part ends on the bar line after its last bar."""
        frames = self.tempi.bar_frame(self.bars) if frames is None else frames
        dry = drive(render(self.instrument, self.notes, self.tempi, 0, frames), self.drive_db)
        return room(dry, SAMPLERATE, self.room_seconds, self.room_db) * np.float32(10 ** (self.gain_db / 20))


def parts() -> list[Part]:
    """Return the demo's files: the performance first, then the corpora."""
    melody = line(
        MELODY, [(4, 0.60, 0.64), (8, 0.66, 0.74), (8, 0.78, 0.82), (2, 0, 0), (6, 0.78, 0.78), (2, 0.70, 0.62)]
    )
    bass = line(BASS, [(8, 0.55, 0.60), (8, 0.64, 0.70), (8, 0.72, 0.78), (8, 0.80, 0.88)])
    marimba = line(MARIMBA, [(6, 0.48, 0.54), (8, 0.56, 0.66), (8, 0.55, 0.80), (6, 0.80, 0.80)])
    player = humanised(melody, seed=1, late=0.014, early=0.010) + humanised(comping(), 2, late=0.014, early=0.006)
    bass = humanised(bass, seed=3, late=0.010, early=0.004)
    marimba = humanised(marimba, seed=4, late=0.008, early=0.004)
    drums = humanised(kit(), seed=5, late=0.008, early=0.004)
    at_112, at_100 = TempoMap.steady(SAMPLERATE, 112), TempoMap.steady(SAMPLERATE, 100)
    return [
        Part("player", "electric piano", tuple(player), PLAYER_TEMPI, 30, drive_db=4.0, gain_db=-4.5),
        Part("bass", "bass", tuple(bass), at_112, 32, drive_db=4.0, gain_db=-4.5),
        Part("marimba", "marimba", tuple(marimba), at_100, 28, drive_db=4.0, gain_db=-5.0, room_db=-20.0),
        Part("drums", "drums", tuple(drums), at_112, 16, drive_db=8.0, gain_db=-5.5, room_db=-20.0),
    ]


def main() -> None:
    """Write every part as 16-bit FLAC."""
    import soundfile

    parser = argparse.ArgumentParser(description="Render the built-in music into FLAC files.")
    parser.add_argument("--out", type=Path, default=DEMO, help="folder to write to (default: bridge/demo)")
    folder = parser.parse_args().out
    for part in parts():
        audio = np.round(part.sound() * 2 ** (KEPT_BITS - 1)) / 2 ** (KEPT_BITS - 1)
        path = folder / f"{part.name}.flac"
        soundfile.write(path, audio, SAMPLERATE, subtype="PCM_16", compression_level=1.0)
        peak_db, rms_db = (20 * np.log10(x) for x in (np.abs(audio).max(), np.sqrt(np.mean(audio**2))))
        seconds, size = len(audio) / SAMPLERATE, path.stat().st_size / 1e6
        print(f"{path.name:14} {seconds:5.1f} s  {size:5.2f} MB  peak {peak_db:6.2f} dBFS  rms {rms_db:6.2f} dBFS")


if __name__ == "__main__":
    main()
