"""Makes the golden render that `tests/test_golden.py` compares with.

Run it after a change that is meant to be heard, listen to the take that `--listen FOLDER` keeps, commit the file::

    python tests/golden/make_golden.py

Everything is generated: plucked tones as corpus and as player, no recording is needed. The stems are small, so that
they can be kept whole: two seconds of a corpus agent and of an echo that listens to it.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import numpy as np
import numpy.typing as npt

RATE = 16000
FRAMES = 2 * RATE + 1
GOLDEN = Path(__file__).resolve().parent / "render.npz"

SESSION = """
[session]
seed = 11
[stream]
samplerate = 16000
[transport]
bpm = 300
meter = "3/4"
downbeat_seconds = 0.05
chart = ["Am", "-", "F C"]
[[transport.changes]]
bar = 3
bpm = 270
ramp_beats = 2
[[agents]]
name = "keys"
kind = "corpus"
corpus = "{corpus}"
grid_beats = 1
[[agents]]
name = "echo"
kind = "echo"
listens = "keys"
"""


def pluck(hz: float, frames: int) -> npt.NDArray[np.float64]:
    """Return a plucked tone with three partials."""
    t = np.arange(frames) / RATE
    partials = [np.sin(2 * np.pi * k * hz * t) / k for k in (1, 2, 3)]
    attack = np.minimum(1, np.arange(frames) / 40)
    return np.asarray(0.25 * attack * np.exp(-4 * t) * np.sum(partials, axis=0))


def melody(pitches: list[int], beat_seconds: float) -> npt.NDArray[np.float32]:
    """Return plucked notes, MIDI pitches one a beat, ``(frames, 1)``."""
    frames = round(beat_seconds * RATE)
    notes = [pluck(440 * 2 ** ((pitch - 69) / 12), frames) for pitch in pitches]
    return np.concatenate(notes)[:, None].astype(np.float32)


def render(folder: Path) -> dict[str, npt.NDArray[np.generic]]:
    """Render the session into ``folder``; return its stems, and the unit each piece of the corpus's stem is."""
    from bridge import offline
    from bridge.recorder import TakeReader
    from bridge.session import Session
    from realtime.clock import Meter
    from realtime.corpus import build
    from realtime.soundfiles import write

    write(folder / "corpus.wav", melody([57, 60, 64, 53, 57, 60, 48, 52, 55, 62, 65, 69] * 2, 0.25), RATE, "FLOAT")
    player = np.zeros((FRAMES, 1), np.float32)
    tune = melody([69, 72, 76, 72, 65, 69, 72, 67, 64], 0.2)
    player[800 : 800 + len(tune)] = tune[: FRAMES - 800]
    write(folder / "player.wav", player, RATE, "FLOAT")
    build([folder / "corpus.wav"], folder / "corpus", bpm=240, meter=Meter(3, 4))
    session = Session.parse(SESSION.format(corpus=(folder / "corpus").as_posix()))
    offline.render(session, folder / "player.wav", folder / "take")
    take = TakeReader(folder / "take")
    units = [
        piece.unit
        for reply in take.replies
        if reply.agent == "keys" and reply.attempt == 1 and reply.origin
        for piece in reply.origin.pieces
    ]
    return {**{name: take.stem(name) for name in take.stems}, "units": np.array(units, np.int32)}


def main() -> None:
    """Write the golden file."""
    parser = argparse.ArgumentParser(description="Make the golden render of the tests again.")
    parser.add_argument("--listen", type=Path, metavar="FOLDER", help="keep the take here, to listen to it")
    listen = parser.parse_args().listen
    with tempfile.TemporaryDirectory() as scratch:
        folder = listen or Path(scratch)
        folder.mkdir(parents=True, exist_ok=True)
        made = render(folder)
    np.savez_compressed(GOLDEN, **made)  # type: ignore[arg-type]
    print(f"{GOLDEN}: {GOLDEN.stat().st_size / 1000:.0f} kB, units {made['units'].tolist()}")


if __name__ == "__main__":
    main()
