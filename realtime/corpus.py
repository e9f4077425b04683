"""A corpus: recordings cut into units that an agent can play again in another order.

On disk it is a folder: ``audio/`` (WAV and FLAC untouched, other formats decoded), ``units/`` (one ``.npy`` an
array, memory-mapped) and ``corpus.toml`` (where it comes from, how it was cut, hashes of everything). Nothing is
kept in memory but the unit arrays and a few decoded pages, so half an hour of material opens at once.

================ ======= ==========================================================================
array            dtype   a row is a unit; units lie in the order of source and start
================ ======= ==========================================================================
source           int32   index into the sources of ``corpus.toml``
start, frames    int64   where the unit lies, in frames of its source's own rate
beats            float32 length in quarter notes, NaN where no tempo is known
position         float32 quarter notes since the downbeat of its bar, NaN where no tempo is known
bar              int32   bar of the source, 0 at ``downbeat_seconds``
features         float32 (units, 25): summary of its hops, see :mod:`realtime.features`
labels           int32   nearest entry of the codebook
================ ======= ==========================================================================

``codebook`` is (labels, 25) and ``scaling`` (sources, 2, 25): mean and deviation of each source, which are taken
out before sounds are compared, so that a bright loud instrument and a dark soft one share their labels.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import re
import shutil
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from io import BufferedReader
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from realtime import features, soundfiles
from realtime.clock import Meter, as_tempo, round_frame
from realtime.foreign import Table, TomlError, npy_header, open_inside, parse_toml, read_inside, shown
from realtime.protocols import HOP_FRAMES, Block
from realtime.soundfiles import SoundFile

Floats = npt.NDArray[np.float32]
Ints = npt.NDArray[np.int64]
Segmentation = Literal["auto", "beat", "onset"]
Progress = Callable[[float, str], None]
"""Called with the share that is done (0 to 1) and what is being done."""

VERSION = 1
COMMON_TIME = Meter(4, 4)
ARRAYS = ("source", "start", "frames", "beats", "position", "bar", "features", "labels", "codebook", "scaling")
SILENT_DB = -70.0
"""A file that is never louder is refused: there is nothing in it to play."""
QUIET_UNIT_DB = -60.0
PEAK_SECONDS, MEAN_SECONDS, WAIT_SECONDS = 0.05, 0.2, 0.05
PEAK_DELTA = 0.07
"""An onset is the largest flux within PEAK_SECONDS and exceeds the mean within MEAN_SECONDS by this share of the
largest of all, WAIT_SECONDS after the last one (as in librosa's and Somax2's peak picking)."""
ATTACK_SHARE, ATTACK_STEP_FRAMES = 0.1, 64
SHORTEST_SECONDS, LONGEST_SECONDS = 0.1, 2.0
LEAST_SECONDS = 0.02
"""A recording shorter than a unit is one all the same: a drum's single hit may be."""
END_SLACK_SECONDS = 0.005
"""A last beat may be missing so much: excerpts are cut by rounding."""
CHROMA_SPREAD = 2.0
"""Unit chroma vectors of different chords differ by about 0.7: times this, as much as a standardised feature."""
WEIGHTS = (1.0, 0.5, 0.5)
"""Share of chroma, loudness and timbre in the labels."""
PAGE_FRAMES = 1 << 16
CACHE_BYTES = 64 << 20
READ_SECONDS = 10
OPEN_FILES = 64
"""Recordings that a corpus keeps open at once."""
SOURCES, UNITS = 2048, 1 << 20
DESCRIPTION_BYTES = 1 << 20
"""Limits of one corpus: the bridge reads its description too."""


@dataclass(frozen=True, slots=True)
class Source:
    """One recording of a corpus; ``sha256`` and ``size_bytes`` are those of the file in ``audio/``."""

    file: str
    original: str
    sha256: str
    size_bytes: int
    samplerate: int
    channels: int
    frames: int


def embed(summaries: Floats, mean: Floats, deviation: Floats) -> Floats:
    """Turn summaries ``(..., 25)`` into points whose plain distance means likeness.

    Chroma becomes a direction, because pitch is absolute; loudness and timbre become deviations from their own
    recording's mean, within -3 to 3. Each of the three groups then weighs about the same.
    """
    points: Floats = np.clip((summaries - mean) / deviation, -3, 3).astype(np.float32)
    chroma = summaries[..., features.CHROMA]
    length = np.sqrt((chroma * chroma).sum(axis=-1, keepdims=True))
    points[..., features.CHROMA] = CHROMA_SPREAD * chroma / np.maximum(length, 1e-6)
    points[..., features.TIMBRE] /= np.sqrt(np.float32(features.CEPSTRA))
    return points


def spread_weights(weights: tuple[float, float, float]) -> Floats:
    """Return ``(25,)``: the square roots of the weights of chroma, loudness and timbre, one a column."""
    if len(weights) != 3 or min(weights) < 0 or not 0 < sum(weights) < math.inf:
        raise ValueError(f"weights={weights}: three numbers, 0 or more, for chroma, loudness and timbre; not all 0")
    columns = np.empty(features.SUMMARY, np.float32)
    columns[features.CHROMA], columns[features.LOUDNESS], columns[features.TIMBRE] = np.sqrt(weights)
    return columns


# --- building -----------------------------------------------------------------------------------------------


def build(
    files: Sequence[Path | str],
    out: Path | str,
    *,
    name: str = "",
    bpm: float | str | Fraction | None = None,
    meter: Meter = COMMON_TIME,
    downbeat_seconds: float | str | Fraction = 0,
    segmentation: Segmentation = "auto",
    labels: int = 16,
    licence: str = "unknown",
    progress: Progress | None = None,
) -> Corpus:
    """Build a corpus from sound files and load it.

    Parameters
    ----------
    files
        WAV, FLAC, AIFF, OGG or MP3, of any rates and channel counts.
    out
        Folder to make. A corpus that is there is replaced, when the new one is whole.
    name
        Name of the corpus; that of the folder if empty.
    bpm, meter, downbeat_seconds
        The bar grid of the material, the same for every file: ``downbeat_seconds`` is where a bar starts.
    segmentation
        ``"beat"`` cuts on the grid, ``"onset"`` where notes start, ``"auto"`` by the beat if a tempo is given.
    labels
        Size of the codebook, 1 to 1024.
    licence
        What the material may be used for, in the user's words.

    Raises
    ------
    ValueError
        With one sentence, if a file or a parameter cannot be used. Nothing is left behind then.
    """
    out = Path(out)
    for what, text in (("name", name or out.name), ("licence", licence)):
        if not 1 <= len(text.strip()) <= 1000:
            raise ValueError(f"corpus build: the {what} has {len(text)} characters; 1 to 1000 are allowed")
    plan = _plan(files, out, bpm, meter, downbeat_seconds, segmentation, labels)
    scratch = out.with_name(out.name + ".building")
    shutil.rmtree(scratch, ignore_errors=True)
    try:
        _build_into(scratch, files, name or out.name, plan, licence, progress or (lambda share, what: None))
        if out.exists():
            shutil.rmtree(out)
        scratch.rename(out)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    return load(out)


@dataclass(frozen=True, slots=True)
class _Plan:
    """How the material is to be cut."""

    tempo: Fraction | None
    meter: Meter
    downbeat_seconds: Fraction
    segmentation: str
    labels: int


def _plan(
    files: Sequence[Path | str],
    out: Path,
    bpm: float | str | Fraction | None,
    meter: Meter,
    downbeat_seconds: float | str | Fraction,
    segmentation: str,
    labels: int,
) -> _Plan:
    if isinstance(files, (str, Path)):
        raise TypeError(f"files={files!r} is one path; a list of paths is needed: did you mean [{str(files)!r}]?")
    if not files:
        raise ValueError("corpus build: no files given; name at least one WAV, FLAC, AIFF, OGG or MP3 file")
    if len(files) > SOURCES:
        raise ValueError(f"corpus build: {len(files)} files given; a corpus holds up to {SOURCES}: build several")
    if out.exists() and not (out / "corpus.toml").exists() and (out.is_file() or any(out.iterdir())):
        raise ValueError(f"{out} is there and is no corpus; give a new folder, so that nothing is overwritten")
    if segmentation not in ("auto", "beat", "onset"):
        raise ValueError(f"segmentation={segmentation!r}: it is auto, beat or onset")
    if segmentation == "beat" and bpm is None:
        raise ValueError("segmentation by beat needs the tempo of the material: give bpm, or cut by onset")
    if not 1 <= labels <= 1024:
        raise ValueError(f"labels={labels}: a codebook has 1 to 1024 entries; 16 is usual")
    try:
        downbeat = Fraction(str(downbeat_seconds))
    except (ValueError, ZeroDivisionError):
        raise ValueError(f"downbeat_seconds={downbeat_seconds!r} is not a number of seconds, say 0.25") from None
    if segmentation == "auto":
        segmentation = "onset" if bpm is None else "beat"
    return _Plan(None if bpm is None else as_tempo(bpm), meter, downbeat, segmentation, labels)


def _build_into(
    folder: Path, files: Sequence[Path | str], name: str, plan: _Plan, licence: str, progress: Progress
) -> None:
    (folder / "audio").mkdir(parents=True)
    (folder / "units").mkdir()
    sources: list[Source] = []
    cuts = []
    for index, path in enumerate(map(Path, files)):
        progress(index / len(files), f"reading {path.name}")
        source = _take_in(path, folder / "audio", {s.file for s in sources})
        with SoundFile(folder / "audio" / source.file) as file:
            file.path = path  # what is wrong with it is wrong with the user's file
            cuts.append(_cut(file, path, plan))
        sources.append(source)
    progress(1.0, "labelling")
    arrays = _join(cuts)
    arrays["labels"], arrays["codebook"] = _label(arrays, plan.labels)
    hashes = {}
    for array_name in ARRAYS:
        target = folder / "units" / f"{array_name}.npy"
        np.save(target, arrays[array_name], allow_pickle=False)
        hashes[array_name] = _sha256(target)
    (folder / "corpus.toml").write_text(
        _description(name, plan, licence, sources, len(arrays["start"]), hashes), "utf-8"
    )


def _take_in(path: Path, folder: Path, taken: set[str]) -> Source:
    """Bring a recording into the corpus: WAV and FLAC as they are, others decoded without loss of quality."""
    with SoundFile(path) as file:
        found = file.info
        untouched = found.format in ("WAV", "WAVEX", "RF64", "FLAC")
        target = folder / _free_name(path, path.suffix if untouched else ".flac", taken)
        if untouched:
            shutil.copyfile(path, target)
        else:
            target = _decoded(file, target)
    return Source(
        target.name, path.name, _sha256(target), target.stat().st_size, found.samplerate, found.channels, found.frames
    )


def _free_name(path: Path, suffix: str, taken: set[str]) -> str:
    name, count = path.stem + suffix.lower(), 1
    while name in taken:
        count += 1
        name = f"{path.stem}_{count}{suffix.lower()}"
    return name


def _decoded(file: SoundFile, target: Path) -> Path:
    """Decode to 24-bit FLAC, or to float WAV where that cannot hold it (more than 8 channels, peaks over 1)."""
    audio = file.read(0, file.info.frames)
    if file.info.channels > 8 or file.info.samplerate > 655350 or (len(audio) and np.abs(audio).max() >= 1):
        target = target.with_suffix(".wav")
        soundfiles.write(target, audio, file.info.samplerate, "FLOAT")
    else:
        soundfiles.write(target, audio, file.info.samplerate, "PCM_24")
    return target


def _cut(file: SoundFile, path: Path, plan: _Plan) -> dict[str, npt.NDArray[Any]]:
    """Return the unit arrays of one recording, and its ``scaling``."""
    rows = _rows(file)
    loudest_db = rows[:, features.LOUDNESS].max()
    if loudest_db < SILENT_DB:
        raise ValueError(
            f"{path} is silent: its loudest moment is {loudest_db:.0f} dB; a corpus needs sound "
            f"above {SILENT_DB:.0f} dB; was the right track exported?"
        )
    if plan.tempo and plan.downbeat_seconds >= file.info.seconds:
        raise ValueError(
            f"{path} is {file.info.seconds:.1f} s long, so no bar starts {float(plan.downbeat_seconds):g} s into it; "
            "did you give frames or milliseconds?"
        )
    grid = _beat_grid(file.info, plan) if plan.tempo else None
    if plan.segmentation == "beat" and grid is not None:
        cut = _beat_units(file.info, path, plan, grid)
    else:
        cut = _onset_units(file, path, rows, grid)
    delay = features.FeatureStream(file.info.samplerate).delay_hops
    hops = np.stack((cut["start"], cut["start"] + cut["frames"])) // HOP_FRAMES  # its own attack, not the next one's
    cut["features"] = np.stack([features.summarise(rows, a, b, delay) for a, b in zip(*hops, strict=True)])
    if plan.segmentation == "onset":
        cut = _without_quiet(cut)
    cut["scaling"] = _scaling(cut["features"])[None]
    return cut


def _rows(file: SoundFile) -> features.Rows:
    stream = features.FeatureStream(file.info.samplerate)
    step = READ_SECONDS * file.info.samplerate // HOP_FRAMES * HOP_FRAMES
    rows = []
    for start in range(0, file.info.frames, step):
        end = min(start + step, -(-file.info.frames // HOP_FRAMES) * HOP_FRAMES)  # zeros fill the last hop
        rows.append(stream.process(file.read(start, end)))
    return np.concatenate(rows)


@dataclass(frozen=True, slots=True)
class _Grid:
    """The beats of a recording: exact frames of a beat and of the first downbeat, beats of a bar."""

    beat_frames: Fraction
    downbeat: Fraction
    bar_beats: Fraction

    def at(self, bar: int, beat: Fraction) -> int:
        return round_frame(self.downbeat + (bar * self.bar_beats + beat) * self.beat_frames)

    def bar_of(self, frame: int) -> int:
        return math.floor((frame + Fraction(1, 2) - self.downbeat) / self.beat_frames / self.bar_beats)


def _beat_grid(info: soundfiles.SoundInfo, plan: _Plan) -> _Grid:
    assert plan.tempo is not None
    return _Grid(60 * info.samplerate / plan.tempo, plan.downbeat_seconds * info.samplerate, plan.meter.beats)


def _beat_units(info: soundfiles.SoundInfo, path: Path, plan: _Plan, grid: _Grid) -> dict[str, npt.NDArray[Any]]:
    """Cut at every quarter note of every bar; what is left of a bar of 7/8 is a half."""
    found: list[tuple[int, int, float, float, int]] = []
    last = info.frames + END_SLACK_SECONDS * info.samplerate
    for bar in range(grid.bar_of(0), grid.bar_of(info.frames) + 1):
        for beat in range(math.ceil(grid.bar_beats)):
            length = min(Fraction(1), grid.bar_beats - beat)
            start, end = grid.at(bar, Fraction(beat)), grid.at(bar, beat + length)
            if start >= 0 and end <= last:
                found.append((start, end - start, float(length), float(beat), bar))
    if not found:
        raise ValueError(
            f"{path} is {info.seconds:.3f} s long; at {float(plan.tempo or 0):g} bpm it must hold a whole beat "
            f"({float(grid.beat_frames) / info.samplerate:.3f} s); is the tempo right?"
        )
    starts, frames, beats, position, bars = zip(*found, strict=True)
    return {
        "start": np.array(starts, np.int64),
        "frames": np.array(frames, np.int64),
        "beats": np.array(beats, np.float32),
        "position": np.array(position, np.float32),
        "bar": np.array(bars, np.int32),
    }


def _onset_units(file: SoundFile, path: Path, rows: features.Rows, grid: _Grid | None) -> dict[str, npt.NDArray[Any]]:
    """Cut where notes start; long ones into parts, so that no unit is longer than LONGEST_SECONDS."""
    rate, frames = file.info.samplerate, file.info.frames
    if frames < LEAST_SECONDS * rate:
        raise ValueError(
            f"{path} is {file.info.seconds:.3f} s long; a corpus needs {LEAST_SECONDS} s at least; is it cut off?"
        )
    onsets = [_attack(file, hop) for hop in pick_onsets(rows[:, features.ONSET], rate)] or [0]
    starts: list[int] = []
    for start, end in zip(onsets, [*onsets[1:], frames], strict=True):
        if starts and start - starts[-1] < SHORTEST_SECONDS * rate:
            continue
        parts = max(1, math.ceil((end - start) / (LONGEST_SECONDS * rate)))
        starts.extend(start + (end - start) * part // parts for part in range(parts))
    if len(starts) > 1 and frames - starts[-1] < SHORTEST_SECONDS * rate:
        starts.pop()
    lengths = np.diff([*starts, frames])
    nothing = np.full(len(starts), np.nan, np.float32)
    cut: dict[str, npt.NDArray[Any]] = {
        "start": np.array(starts, np.int64),
        "frames": lengths.astype(np.int64),
        "beats": nothing,
        "position": nothing,
        "bar": np.zeros(len(starts), np.int32),
    }
    if grid is not None:
        bars = np.array([grid.bar_of(start) for start in starts])
        downbeats = np.array([grid.at(int(bar), Fraction(0)) for bar in bars])
        cut["beats"] = (lengths / float(grid.beat_frames)).astype(np.float32)
        cut["position"] = np.maximum(0, (cut["start"] - downbeats) / float(grid.beat_frames)).astype(np.float32)
        cut["bar"] = bars.astype(np.int32)
    return cut


def pick_onsets(strength: Floats, samplerate: int) -> list[int]:
    """Return the hops in which notes start, from the onset strength of each hop."""
    if not len(strength) or strength.max() <= 0:
        return []
    flux = strength / strength.max()
    hop_seconds = HOP_FRAMES / samplerate
    around, wide = max(1, round(PEAK_SECONDS / hop_seconds)), max(1, round(MEAN_SECONDS / hop_seconds))
    peaks = np.lib.stride_tricks.sliding_window_view(np.pad(flux, around), 2 * around + 1).max(axis=1)
    means = np.lib.stride_tricks.sliding_window_view(np.pad(flux, wide, mode="edge"), 2 * wide + 1).mean(axis=1)
    found: list[int] = []
    for hop in np.flatnonzero((flux == peaks) & (flux >= means + PEAK_DELTA)):
        if not found or (hop - found[-1]) * hop_seconds >= WAIT_SECONDS:
            found.append(int(hop))
    return found


def _attack(file: SoundFile, hop: int) -> int:
    """Return the frame on which the note found in ``hop`` starts.

    The flux of a hop may stem from any part of its window. So look for the place around it where the sound gets
    louder most; the note starts where it first rises by a tenth. A click's attack is the click.
    """
    first = (hop - 4) * HOP_FRAMES
    level = np.abs(file.read(first, (hop + 4) * HOP_FRAMES)).max(axis=1)
    peaks = level.reshape(-1, ATTACK_STEP_FRAMES).max(axis=1)
    steps = HOP_FRAMES // ATTACK_STEP_FRAMES
    windows = np.lib.stride_tricks.sliding_window_view(peaks, steps).max(axis=1)
    past, future = windows[:-steps], windows[steps:]  # a hop before and a hop after each step
    rise = future / (past + 0.05 * peaks.max() + 1e-9)
    place = len(rise) - 1 - int(rise[::-1].argmax())
    floor, top = past[place], future[place]
    start = (place + steps) * ATTACK_STEP_FRAMES
    return first + start + int((level[start:] >= floor + ATTACK_SHARE * (top - floor)).argmax())


def _without_quiet(cut: dict[str, npt.NDArray[Any]]) -> dict[str, npt.NDArray[Any]]:
    """Drop units that cannot be heard, unless all are such."""
    loud = cut["features"][:, features.LOUDNESS] >= QUIET_UNIT_DB
    return {key: array[loud] for key, array in cut.items()} if loud.any() else cut


def _scaling(summaries: Floats) -> Floats:
    """Return (2, 25): mean and deviation over the units that sound; a deviation is at least a tenth."""
    sounding = summaries[summaries[:, features.LOUDNESS] >= QUIET_UNIT_DB]
    if not len(sounding):
        sounding = summaries
    return np.stack((sounding.mean(axis=0), np.maximum(sounding.std(axis=0), 0.1))).astype(np.float32)


def _join(cuts: list[dict[str, npt.NDArray[Any]]]) -> dict[str, npt.NDArray[Any]]:
    arrays = {key: np.concatenate([cut[key] for cut in cuts]) for key in cuts[0]}
    arrays["source"] = np.repeat(np.arange(len(cuts), dtype=np.int32), [len(cut["start"]) for cut in cuts])
    return arrays


def _label(arrays: dict[str, npt.NDArray[Any]], count: int) -> tuple[npt.NDArray[np.int32], Floats]:
    scaling = arrays["scaling"][arrays["source"]]
    points = embed(arrays["features"], scaling[:, 0], scaling[:, 1])
    weights = spread_weights(WEIGHTS)
    labels, codebook = k_means(points * weights, count)
    return labels, (codebook / np.where(weights > 0, weights, 1)).astype(np.float32)


def k_means(points: Floats, count: int, seed: int = 1, rounds: int = 30) -> tuple[npt.NDArray[np.int32], Floats]:
    """Group points, ``(n, d)``, around at most ``count`` centres (Lloyd, started by k-means++).

    Returns
    -------
    labels, centres
        ``(n,)`` int32 and ``(k, d)`` float32; k is less than ``count`` where fewer points differ.
    """
    chance = np.random.default_rng(seed)
    centres = points[chance.integers(len(points))][None].astype(np.float32)
    nearest = ((points - centres[0]) ** 2).sum(axis=1)
    while len(centres) < count and nearest.max() > 1e-9:
        share = np.cumsum(nearest, dtype=np.float64)
        pick = min(int(np.searchsorted(share, chance.random() * share[-1], side="right")), len(points) - 1)
        centres = np.concatenate((centres, points[pick][None]))
        nearest = np.minimum(nearest, ((points - points[pick]) ** 2).sum(axis=1))
    labels = nearest_centres(points, centres)
    for _ in range(rounds):
        sums = np.zeros(centres.shape, np.float64)
        np.add.at(sums, labels, points)
        sizes = np.bincount(labels, minlength=len(centres))[:, None]
        centres = np.where(sizes > 0, sums / np.maximum(sizes, 1), centres).astype(np.float32)
        before, labels = labels, nearest_centres(points, centres)
        if np.array_equal(before, labels):
            break
    return labels, centres


def nearest_centres(points: Floats, centres: Floats) -> npt.NDArray[np.int32]:
    """Return the index of the centre nearest to each point."""
    labels = np.empty(len(points), np.int32)
    step = max(1, (1 << 22) // max(1, centres.size))
    for first in range(0, len(points), step):
        apart = points[first : first + step, None, :] - centres[None]
        labels[first : first + step] = (apart * apart).sum(axis=2).argmin(axis=1)
    return labels


def _description(
    name: str, plan: _Plan, licence: str, sources: list[Source], units: int, hashes: dict[str, str]
) -> str:
    """Return the text of ``corpus.toml``."""
    lines = [
        "# A sideman corpus. Built from the files below; build it again instead of editing it.",
        f"version = {VERSION}",
        f"name = {_quote(name)}",
        f"licence = {_quote(licence)}",
        f"units = {units}",
        "",
        "[segmentation]",
        f"kind = {_quote(plan.segmentation)}",
        f"meter = {_quote(str(plan.meter))}",
        f"downbeat_seconds = {_quote(str(plan.downbeat_seconds))}",
        f"labels = {plan.labels}",
        f"weights = [{', '.join(map(str, WEIGHTS))}]",
    ]
    if plan.tempo is not None:
        lines.append(f"bpm = {_quote(str(plan.tempo))}")
    lines += ["", "[arrays] # sha256", *(f"{key} = {_quote(value)}" for key, value in hashes.items())]
    for source in sources:
        lines += ["", "[[sources]]"]
        lines += [f"{field} = {_toml(getattr(source, field))}" for field in Source.__slots__]
    return "\n".join(lines) + "\n"


def _toml(value: str | int) -> str:
    return _quote(value) if isinstance(value, str) else str(value)


def _quote(text: str) -> str:
    """Return a TOML string; JSON's escapes are TOML's, but for DEL."""
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f")


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


# --- using --------------------------------------------------------------------------------------------------


class Corpus:
    """A corpus on disk, opened by :func:`load`. One thread.

    Attributes
    ----------
    folder, name, licence, digest
        ``digest`` is the sha256 of ``corpus.toml``, which holds the hashes of everything else.
    segmentation, tempo, meter
        ``"beat"`` or ``"onset"``; tempo in bpm or ``None``.
    sources
        The recordings.
    source, start, frames, beats, position, bar, features, labels, codebook, scaling
        The arrays, as in this module's table; memory-mapped, read only.
    points
        ``(units, 25)``: the features as :func:`embed` gives them.
    """

    def __init__(self, folder: Path, description: _Description, digest: str) -> None:
        self.folder = folder
        self.name, self.licence = description.name, description.licence
        self.digest = digest
        self.segmentation, self.tempo, self.meter = description.segmentation, description.tempo, description.meter
        self.downbeat_seconds = description.downbeat_seconds
        self.sources = description.sources
        arrays = {name: _array(folder, name, description.arrays[name]) for name in ARRAYS}
        _check_arrays(arrays, description)
        self.source, self.start, self.frames = arrays["source"], arrays["start"], arrays["frames"]
        self.beats, self.position, self.bar = arrays["beats"], arrays["position"], arrays["bar"]
        self.features, self.labels = arrays["features"], arrays["labels"]
        self.codebook, self.scaling = arrays["codebook"], arrays["scaling"]
        scaling = self.scaling[self.source]
        self.points = embed(self.features, scaling[:, 0], scaling[:, 1])
        self._index = {source.file: index for index, source in enumerate(self.sources)}
        self._right: set[int] = set()  # recordings whose hash was found right
        self._files: OrderedDict[int, SoundFile] = OrderedDict()
        self._pages: OrderedDict[tuple[int, int], Block] = OrderedDict()
        self._page_bytes = 0

    def __len__(self) -> int:
        return len(self.start)

    @property
    def seconds(self) -> float:
        """Length of all sources together."""
        return sum(source.frames / source.samplerate for source in self.sources)

    @property
    def channels(self) -> int:
        """Channels of the widest source."""
        return max(source.channels for source in self.sources)

    def index_of(self, file: str) -> int:
        """Return the index of a source by its file name, as a :class:`~realtime.protocols.Piece` names it."""
        if file not in self._index:
            raise ValueError(f"corpus {self.name!r} has no source {file!r}; is the take from another corpus?")
        return self._index[file]

    def follows(self, unit: int) -> bool:
        """Whether ``unit + 1`` starts where ``unit`` ends, in the same recording."""
        return bool(
            unit + 1 < len(self)
            and self.source[unit] == self.source[unit + 1]
            and self.start[unit] + self.frames[unit] == self.start[unit + 1]
        )

    def verify(self) -> None:
        """Check every recording against its hash now; otherwise each is checked when it is first read.

        Raises
        ------
        ValueError
            If one is missing or has changed.
        """
        for index in range(len(self.sources)):
            self._file(index)

    def read(self, source: int, start: int, before: int, frames: int, samplerate: int) -> Block:
        """Return sound of a source at another rate, placed to the frame.

        Parameters
        ----------
        source
            Index of the recording.
        start
            Frame of the recording (its own rate) that becomes frame ``before`` of the result.
        before, frames
            Frames wanted before and from there on, at ``samplerate``. Zeros where the recording has none.

        Returns
        -------
        audio
            ``(before + frames, channels of the source)``.

        Notes
        -----
        Resampling starts a whole number of rate periods before ``start`` (147 frames of 44.1 kHz are 160 of
        48 kHz), so that ``start`` falls on an output frame exactly.
        """
        rate = self.sources[source].samplerate
        if rate == samplerate:
            return self._decoded(source, start - before, start + frames)
        import soxr

        common = math.gcd(rate, samplerate)
        period, out_period = rate // common, samplerate // common
        margin = 512 * max(1, -(-rate // samplerate))  # longer than soxr's filter on either side
        periods = -(-(before * rate // samplerate + margin) // period)
        material = self._decoded(source, start - periods * period, start + frames * rate // samplerate + margin)
        resampled: Block = soxr.resample(material, rate, samplerate, "HQ")
        at = periods * out_period
        return resampled[at - before : at + frames]

    def _decoded(self, source: int, start: int, end: int) -> Block:
        """Return frames of a recording at its own rate, from pages that are kept for a while."""
        audio = np.zeros((end - start, self.sources[source].channels), np.float32)
        last = min(end, self.sources[source].frames)
        at = max(start, 0)
        while at < last:
            page = at // PAGE_FRAMES
            upto = min(last, (page + 1) * PAGE_FRAMES)
            found = self._page(source, page)
            audio[at - start : upto - start] = found[at - page * PAGE_FRAMES : upto - page * PAGE_FRAMES]
            at = upto
        return audio

    def _page(self, source: int, page: int) -> Block:
        key = (source, page)
        if key in self._pages:
            self._pages.move_to_end(key)
            return self._pages[key]
        audio = self._file(source).read(page * PAGE_FRAMES, (page + 1) * PAGE_FRAMES)
        self._pages[key] = audio
        self._page_bytes += audio.nbytes
        while self._page_bytes > CACHE_BYTES and len(self._pages) > 1:
            self._page_bytes -= self._pages.popitem(last=False)[1].nbytes
        return audio

    def _file(self, source: int) -> SoundFile:
        """Open a recording after its hash was found right; the one that was used longest ago is closed for it."""
        if source in self._files:
            self._files.move_to_end(source)
            return self._files[source]
        said = self.sources[source]
        path = self.folder / "audio" / said.file
        if source not in self._right:
            with _opened(self.folder, "audio/" + said.file) as content:
                if hashlib.file_digest(content, "sha256").hexdigest() != said.sha256:
                    raise _ChangedError(_changed(self.folder, path))
            self._right.add(source)
        file = SoundFile(path)
        found = file.info
        if (found.samplerate, found.channels, found.frames) != (said.samplerate, said.channels, said.frames):
            file.close()
            raise _ChangedError(
                f"{path} has {found.frames} frames of {found.channels} channels at {found.samplerate} Hz; "
                f"corpus.toml says otherwise: build {self.folder} again"
            )
        self._files[source] = file
        if len(self._files) > OPEN_FILES:
            self._files.popitem(last=False)[1].close()
        return file

    def close(self) -> None:
        """Close the files and let go of what was decoded."""
        for file in self._files.values():
            file.close()
        self._files.clear()
        self._pages.clear()
        self._page_bytes = 0


def load(folder: Path | str) -> Corpus:
    """Open a corpus, which may be a stranger's: in a process under limits (:mod:`realtime.foreign`).

    Raises
    ------
    ValueError
        With one sentence, if the folder is no corpus, or something in it is missing, has changed since it was built,
        or does not fit the rest. Sizes of recordings are compared now, their hashes when they are first read.
    """
    folder = Path(folder)
    text = _description_bytes(folder)
    file = folder / "corpus.toml"
    try:
        description = _Description.parse(text)
    except ValueError as error:
        raise ValueError(
            f"{file} cannot be read ({_one_line(error)}); version {VERSION} is allowed; was it edited? "
            "build the corpus again"
        ) from None
    try:
        corpus = Corpus(folder, description, hashlib.sha256(text).hexdigest())
    except _Unfit as error:
        raise ValueError(f"{folder}: {error}; a corpus must stay as it was built: build it again") from None
    for source in corpus.sources:
        with _opened(folder, "audio/" + source.file) as content:
            if os.fstat(content.fileno()).st_size != source.size_bytes:
                raise _ChangedError(_changed(folder, folder / "audio" / source.file))
    return corpus


def described_channels(folder: Path | str) -> int:
    """Return the channels of a corpus's widest recording; 1 where its description says nothing usable.

    Only the description is read, so the bridge may ask: the corpus itself is its worker's to open, and to refuse.
    """
    try:
        return max(source.channels for source in _Description.parse(_description_bytes(Path(folder))).sources)
    except ValueError:
        return 1


def _description_bytes(folder: Path) -> bytes:
    if not (folder / "corpus.toml").is_file():
        raise ValueError(
            f"{folder} is no corpus: it has no corpus.toml; give the folder that 'sideman corpus build' made"
        )
    return read_inside(folder, "corpus.toml", DESCRIPTION_BYTES, "a corpus has its description there")


@dataclass(frozen=True, slots=True)
class _Description:
    """What ``corpus.toml`` says, checked by itself."""

    name: str
    licence: str
    units: int
    segmentation: str
    tempo: Fraction | None
    meter: Meter
    downbeat_seconds: Fraction
    arrays: dict[str, str]
    sources: tuple[Source, ...]

    @classmethod
    def parse(cls, content: bytes) -> _Description:
        """Check the bytes of a ``corpus.toml``; ``ValueError`` says what is wrong, without the file's name."""
        try:
            table = Table(parse_toml(content.decode("utf-8")), "it")
        except UnicodeDecodeError:
            raise ValueError("it is not UTF-8 text") from None
        except TomlError as error:
            raise ValueError(f"not valid TOML: {error}") from None
        table.whole("version", VERSION, VERSION)
        cutting, hashes = table.table("segmentation"), table.table("arrays")
        bpm = cutting.maybe_text("bpm")
        description = cls(
            name=table.text("name"),
            licence=table.text("licence"),
            units=table.whole("units", 1, UNITS),
            segmentation=cutting.text("kind"),
            tempo=None if bpm is None else as_tempo(_exact(bpm)),
            meter=Meter.parse(cutting.text("meter")),
            downbeat_seconds=_exact(cutting.text("downbeat_seconds")),
            arrays={name: hashes.digest(name) for name in ARRAYS},
            sources=tuple(_source(source) for source in table.tables("sources", 1, SOURCES)),
        )
        if description.segmentation not in ("beat", "onset"):
            raise cutting.refused("kind", description.segmentation, '"beat" or "onset"')
        if len({source.file for source in description.sources}) < len(description.sources):
            raise ValueError("two of its sources are the same file")
        return description


_EXACT = re.compile(r"-?[0-9]{1,40}(/[0-9]{1,40})?")


def _exact(text: str) -> Fraction:
    """Read an exact number as it is written here, ``"n"`` or ``"n/d"``: others may take for ever."""
    try:
        if _EXACT.fullmatch(text):
            return Fraction(text)
    except ZeroDivisionError:
        pass
    raise ValueError(f"{shown(text)} is no exact number, such as 120 or 240/7")


def _source(table: Table) -> Source:
    file = table.text("file")
    if Path(file).name != file or file in (".", "..") or "\0" in file:
        raise table.refused("file", file, "the name of a file in audio/, without a folder")
    source = Source(
        file=file,
        original=table.text("original"),
        sha256=table.digest("sha256"),
        size_bytes=table.whole("size_bytes", 1, 1 << 50),
        samplerate=table.whole("samplerate", soundfiles.MIN_SAMPLERATE, soundfiles.MAX_SAMPLERATE),
        channels=table.whole("channels", 1, soundfiles.MAX_CHANNELS),
        frames=table.whole("frames", 1, 1 << 40),
    )
    table.done()
    return source


_FLOAT, _INT32, _INT64 = np.dtype("<f4"), np.dtype("<i4"), np.dtype("<i8")
_LAYOUT: dict[str, tuple[np.dtype[Any], tuple[int, ...]]] = {
    "source": (_INT32, ()),
    "start": (_INT64, ()),
    "frames": (_INT64, ()),
    "beats": (_FLOAT, ()),
    "position": (_FLOAT, ()),
    "bar": (_INT32, ()),
    "features": (_FLOAT, (features.SUMMARY,)),
    "labels": (_INT32, ()),
    "codebook": (_FLOAT, (features.SUMMARY,)),
    "scaling": (_FLOAT, (2, features.SUMMARY)),
}
"""Type of each array, and its axes after the first."""


def _array(folder: Path, name: str, sha256: str) -> npt.NDArray[Any]:
    """Map an array whose hash is right and whose header says what it is; the file is opened once for all of it."""
    path = folder / "units" / f"{name}.npy"
    with _opened(folder, f"units/{name}.npy") as file:
        if hashlib.file_digest(file, "sha256").hexdigest() != sha256:
            raise _ChangedError(_changed(folder, path))
        file.seek(0)
        try:
            shape, dtype, offset = npy_header(file.read(4106))
        except ValueError as error:
            raise ValueError(f"{path}: {error}; build {folder} again") from None
        wanted, axes = _LAYOUT[name]
        size = os.fstat(file.fileno()).st_size - offset
        fits = len(shape) == 1 + len(axes) and shape[1:] == axes and 1 <= shape[0] <= max(UNITS, SOURCES)
        if dtype != wanted or not fits or math.prod(shape) * dtype.itemsize != size:
            raise ValueError(
                f"{path} is {dtype} of shape {shape} in {size} bytes; it must be {wanted} of "
                f"(rows{''.join(f', {n}' for n in axes)}); build {folder} again"
            )
        return np.memmap(file, dtype, "r", offset, shape)


def _check_arrays(arrays: dict[str, npt.NDArray[Any]], description: _Description) -> None:
    """Refuse arrays that do not fit each other or the sources: whoever plays from them need not look again."""
    rows = {"codebook": len(arrays["codebook"]), "scaling": len(description.sources)}
    for name, array in arrays.items():
        if len(array) != rows.get(name, description.units):
            raise _Unfit(name, f"{len(array)} rows", f"{rows.get(name, description.units)}")
    lengths = np.array([source.frames for source in description.sources], np.int64)
    slack = np.array([math.ceil(END_SLACK_SECONDS * source.samplerate) + 1 for source in description.sources])
    source, start, frames = arrays["source"], arrays["start"], arrays["frames"]
    _between("source", source, 0, len(lengths) - 1)
    _between("start", start, 0, 1 << 40)
    _between("frames", frames, 1, 1 << 40)
    if np.any(start + frames > lengths[source] + slack[source]):
        raise _Unfit("frames", "a unit that ends after its recording", "units inside their recordings")
    _between("labels", arrays["labels"], 0, len(arrays["codebook"]) - 1)
    for name in ("beats", "position"):
        known = arrays[name][~np.isnan(arrays[name])]
        _between(name, known, 0, 1e6)
    for name in ("features", "codebook", "scaling"):
        _between(name, arrays[name], -1e9, 1e9)
    if np.any(arrays["scaling"][:, 1] <= 0):
        raise _Unfit("scaling", "a deviation of 0 or less", "deviations above 0")


def _between(name: str, array: npt.NDArray[Any], least: float, most: float) -> None:
    if len(array) and not (array.min() >= least and array.max() <= most):  # written so that NaN is refused
        raise _Unfit(name, f"{array.min():g} to {array.max():g}", f"{least:g} to {most:g}")


class _Unfit(ValueError):  # noqa: N818 - reads as the sentence it is
    """An array that does not fit the rest of its corpus."""

    def __init__(self, name: str, found: str, allowed: str) -> None:
        super().__init__(f"units/{name}.npy has {found} where {allowed} must be")


def _opened(folder: Path, name: str) -> BufferedReader:
    """Open a file of a corpus, which must be there."""
    if not (folder / name).is_file():
        raise _ChangedError(_changed(folder, folder / name))
    return open_inside(folder, name, f"build {folder} again")


class _ChangedError(ValueError):
    """Something in a corpus is not what it was when it was built."""


def _changed(folder: Path, path: Path) -> str:
    found = "has changed since the corpus was built" if path.exists() else "is missing"
    return f"{path} {found}; a corpus must stay as it was built: build {folder} again"


def _one_line(error: Exception) -> str:
    return re.sub(r"\s+", " ", str(error)) or type(error).__name__
