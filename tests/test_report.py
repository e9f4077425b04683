"""The report of a take: figures, table, page and picture, from a small take made here."""

from __future__ import annotations

import math
import subprocess
import sys
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bridge import figures, report
from bridge import picture as pictures
from bridge.recorder import TakeReader, TakeWriter
from realtime.clock import TempoChange, TempoMap
from realtime.messages import encode, to_bytes
from realtime.protocols import Block, Origin, Piece

RATE, BARS = 8000, 8
RUNGS = {"keys": [0, 1, 1, 2, 4, 1, 5, 1], "bass": [0, 1, 1, 1, 1, 1, 1, 1]}
SLOWER = TempoChange(4, Fraction(0), Fraction(90))


def tone(frames: int, level: float) -> Block:
    wave: Block = (level * np.cos(np.arange(frames) * 0.3)).astype(np.float32)[:, None]
    return wave


def tempo_map() -> TempoMap:
    return SLOWER.applied(TempoMap.steady(RATE, 120))


def clip(bar: int, agent: str, beat: int) -> Origin:
    """Four units, one a beat; every second bar of the keys is stretched."""
    pieces = (
        Piece(f"{agent}.flac", 4000 * (bar * 4 + k), 4000, k * beat, beat, bar * 4 + k, bar % 2 == 1)
        for k in range(4)
    )
    return Origin("corpus", "songs", "d1", tuple(pieces))


def record(folder: Path, *, close: bool = True, quiet: bool = False) -> TakeReader:
    """Write a take of eight bars: two agents, one tempo change, every rung but 3."""
    the_map = tempo_map()
    frames = the_map.bar_frame(BARS)
    writer = TakeWriter(folder, {"samplerate": RATE, "title": "Test $piece"}, [("keys", 1), ("bass", 1)], 1, 2)
    writer.log({"type": "tempo", "frame": 0, "bar": 0, "beat": "0", "tempo": "120", "meter": "4/4"})
    writer.log({"type": "tempo", "frame": the_map.bar_frame(4), **encode(SLOWER)})
    for agent, rungs in RUNGS.items():
        stem = np.zeros((frames, 1), np.float32)
        for bar, rung in enumerate(rungs):
            start, stop = the_map.bar_frame(bar), the_map.bar_frame(bar + 1)
            place = {"agent": agent, "bar": bar, "beat": "0"}
            attempt, answered = int(rung == 1), rung in (1, 2)
            margin = (100 + bar) * RATE // 1000 if answered else None
            if answered:
                origin = clip(bar, agent, (stop - start) // 4)
                reply = {"attempt": attempt, "arrived": 0, "lead_in": 80, "origin": origin}
                writer.log({"type": "reply", **place, **reply})
                stem[start:stop] = 0 if quiet else tone(stop - start, 0.5)
            writer.log({
                "type": "span", **place, "beats": "4", "start": start, "frames": stop - start, "rung": rung,
                "cause": "too late | hung" if rung > 1 else "", "attempt": attempt, "margin_frames": margin,
            })  # fmt: skip
        writer.stem(agent, stem)
    writer.input(tone(frames, 0.0 if quiet else 0.25))
    if close:
        writer.close(frames, {"xruns": 0, "late_clips": 3})
    else:  # as a kill leaves it
        for file in writer._files.values():
            file.close()
    return TakeReader(folder)


@pytest.fixture(scope="module")
def take(tmp_path_factory: pytest.TempPathFactory) -> TakeReader:
    return record(tmp_path_factory.mktemp("takes") / "first")


def test_figures_are_those_of_the_take(take: TakeReader) -> None:
    keys, bass = figures.summarise(take)
    assert (keys.agent, keys.bars, len(keys.spans)) == ("keys", 8, 8)
    assert dict(keys.rungs) == {0: 1, 1: 4, 2: 1, 4: 1, 5: 1}
    assert keys.margins_ms == [101, 102, 103, 105, 107]
    assert len(keys.units) == 24  # five clips, and the one that was played again
    assert len(set(keys.units)) == 20
    assert keys.stretched == 20  # bars 1, 3 (twice), 5 and 7
    assert keys.peak_db == pytest.approx(20 * math.log10(0.5), abs=0.01)
    assert dict(bass.rungs) == {0: 1, 1: 7}


def test_units_lie_where_they_sound(take: TakeReader) -> None:
    keys = figures.summarise(take)[0]
    start, beat = tempo_map().bar_frame(1), RATE // 2
    assert [(p.start, p.stop) for p in keys.placed[:4]] == [
        (start + k * beat, start + (k + 1) * beat) for k in range(4)
    ]
    again = [p.piece.unit for p in keys.placed if tempo_map().bar_frame(4) <= p.start < tempo_map().bar_frame(5)]
    assert again == [12, 13, 14, 15]  # bar 4 of rung 4 sounds like bar 3


def test_a_clip_joined_late_sounds_from_there_on(tmp_path: Path) -> None:
    record(tmp_path / "take")
    the_map = tempo_map()
    begin, end = the_map.bar_frame(6), the_map.bar_frame(7)
    beat = (end - begin) // 4
    place: dict[str, object] = {"agent": "keys", "bar": 6, "beat": "0", "attempt": 1, "arrived": begin + 9}
    lines = [
        {"type": "reply", **place, "origin": clip(6, "keys", beat)},
        {"type": "join", **place, "frame": begin + 2 * beat},
    ]
    with open(tmp_path / "take" / "take.jsonl", "ab") as log:
        log.writelines(to_bytes(line) + b"\n" for line in lines)
    take = TakeReader(tmp_path / "take")
    keys = figures.summarise(take)[0]
    sounding = [(p.start, p.piece.unit) for p in keys.placed if begin <= p.start < end]
    assert sounding == [(begin + 2 * beat, 26), (begin + 3 * beat, 27)]
    assert (5, begin, begin + 2 * beat) in pictures._fields(keys)
    assert (
        f"| 7 | 1 | keys | 5 fade to silence | too late \\| hung | {1000 * 2 * beat / RATE:.0f} ms |"
        in report.markdown(take)
    )


def test_the_later_line_of_a_span_counts(tmp_path: Path) -> None:
    record(tmp_path / "take")
    log = tmp_path / "take" / "take.jsonl"
    line = '{"type":"span","agent":"bass","bar":1,"beat":"0","beats":"4","start":16000,"frames":16000,"rung":2}\n'
    log.write_text(log.read_text() + line)
    bass = figures.summarise(TakeReader(tmp_path / "take"))[1]
    assert dict(bass.rungs) == {0: 1, 1: 6, 2: 1}


@settings(max_examples=60, deadline=None)
@given(
    frames=st.integers(1, 500), columns=st.integers(1, 600), blocksize=st.integers(1, 600), seed=st.integers(0, 99)
)
def test_the_envelope_is_that_of_every_column(frames: int, columns: int, blocksize: int, seed: int) -> None:
    sound = np.random.default_rng(seed).uniform(-1, 1, (frames, 2)).astype(np.float32)
    blocks = [sound[start : start + blocksize] for start in range(0, frames, blocksize)]
    envelope = figures.Envelope(blocks, frames, columns)
    assert envelope.peak == np.abs(sound).max()
    assert envelope.edges[0] == 0
    assert envelope.edges[-1] == frames
    assert len(envelope.low) == min(columns, frames)
    for column, (first, last) in enumerate(zip(envelope.edges[:-1], envelope.edges[1:], strict=True)):
        assert envelope.low[column] == min(0, sound[first:last].min())
        assert envelope.high[column] == max(0, sound[first:last].max())


def rendered(table: Any) -> str:
    from rich.console import Console

    console = Console(width=80, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    console.print(table)
    return console.export_text()


def test_the_table_has_a_row_for_each_agent(take: TakeReader) -> None:
    text = rendered(report.table(take, 31.4))
    (keys,) = [line for line in text.splitlines() if line.strip().startswith("keys")]
    assert keys.split() == ["keys", "8", "8", "4", "1", "1", "1", "1", "101", "103", "24", "20", "20", "-6.0"]
    assert "31.4 times as fast" in text
    assert "\u2026" not in text  # nothing is cut off in 80 columns
    assert "4 last good bar again" in " ".join(text.split())


def test_the_legend_names_the_rungs_that_have_a_column(take: TakeReader) -> None:
    page, caption = report.markdown(take), str(report.table(take).caption)
    for rung, name in figures.RUNGS.items():
        has_column = f"| rung {rung} |" in page
        assert (f"{rung} {name}" in caption) == has_column
        assert (f"{rung} {name}" in page.split("Spans by what played: ")[1].split("\n")[0]) == has_column


def test_the_page_tells_what_was_late_and_where_the_files_are(take: TakeReader) -> None:
    page = report.markdown(take, 31.4)
    assert "| keys | 8 | 8 | 4 | 1 | 1 | 1 | 1 | 101 | 103 | 24 | 20 | 20 | -6.0 |" in page
    assert "| 4 | 1 | keys | 2 speculative clip | too late \\| hung |" in page
    assert "| 7 | 1 | keys | 5 fade to silence |" in page
    assert "| late_clips | 3 |" in page
    assert "31.4 times real time" in page
    assert take.end is not None
    assert take.end.stems["bass"] in page
    assert "8 bars, 0:18, 8,000 Hz, ♩ = 120  4/4 from bar 1, ♩ = 90 from bar 5." in page


def pixels(path: Path) -> npt.NDArray[np.int64]:
    from matplotlib.image import imread

    image = np.asarray(imread(path))[:, :, :3]
    return np.round(image * 255).astype(np.int64)


def count(image: npt.NDArray[np.int64], colour: tuple[float, float, float] | str) -> int:
    from matplotlib.colors import to_rgb

    wanted = np.round(np.array(to_rgb(colour)) * 255)
    return int((np.abs(image - wanted).max(axis=2) <= 1).sum())


def test_the_picture_shows_each_unit_in_the_colour_of_its_place(take: TakeReader, tmp_path: Path) -> None:
    picture = pictures._Picture(take, "title")
    picture.save(tmp_path / "a.png")
    image = pixels(tmp_path / "a.png")
    assert image.shape == (900, 1600, 3)
    for index, part in enumerate(picture.parts, 1):
        ribbon = image[int(picture._lane_top(index) + picture.lane_height) - 3]
        for placed in part.placed:
            inside = ribbon[None, math.ceil(picture.x(placed.start)) + 1 : int(picture.x(placed.stop)) - 2]
            assert count(inside, picture.palette.of(placed.piece)) == inside.shape[1] > 20, placed
    assert len({picture.palette.of(p.piece) for p in picture.parts[0].placed}) == 20
    assert count(image[120:350], pictures._INPUT_COLOUR) > 1000


def test_the_picture_flags_fallbacks(take: TakeReader, tmp_path: Path) -> None:
    pictures.draw(take, tmp_path / "a.png")
    image = pixels(tmp_path / "a.png")
    keys, bass = image[355:580], image[584:800]
    for rung in (2, 4, 5):
        assert count(keys, pictures._RUNG_COLOURS[rung]) > 200
        assert count(bass, pictures._RUNG_COLOURS[rung]) == 0


def test_the_picture_marks_tempo_changes(tmp_path: Path) -> None:
    take = record(tmp_path / "take", quiet=True)
    pictures.draw(take, tmp_path / "a.png")
    lane = pixels(tmp_path / "a.png")[140:330]  # the input, silent here
    red = (lane[:, :, 0] - lane[:, :, 1] > 60).mean(axis=0)
    change = pictures._LEFT + (1600 - pictures._LEFT - pictures._RIGHT) * tempo_map().bar_frame(4) / take.frames
    columns = np.flatnonzero(red > 0.3)
    assert len(columns) > 0
    assert np.abs(columns - change).max() <= 2  # a dashed line there, and nowhere else


def test_steps_of_a_ramp_are_one_mark(tmp_path: Path) -> None:
    """The engine logs a planned ramp as one line a beat, an announced one as a single line."""
    the_map = TempoChange(2, Fraction(0), Fraction(140), None, 8).applied(TempoMap.steady(RATE, 120))
    for folder, lines in {
        "steps": [
            {
                "type": "tempo",
                "frame": t.frame_at(t.beat),
                "bar": t.bar,
                "beat": t.beat - t.bar_beat,
                "tempo": t.tempo,
            }
            for t in the_map.timelines
        ],
        "line": [
            {"type": "tempo", "frame": 0, "bar": 0, "tempo": "120"},
            {"type": "tempo", "frame": the_map.bar_frame(2), "bar": 2, "tempo": "140", "ramp_beats": 8},
        ],
    }.items():
        writer = TakeWriter(tmp_path / folder, {"samplerate": RATE}, [], 1, 1)
        for line in lines:
            writer.log(line)
        writer.close(the_map.bar_frame(8))
        marks = figures.tempo_marks(TakeReader(tmp_path / folder))
        assert [(m.frame, m.until, m.bar, m.text) for m in marks] == [
            (0, 0, 0, "♩ = 120"),
            (the_map.bar_frame(2), the_map.bar_frame(4), 2, "♩ to 140"),
        ]


def test_what_lies_behind_the_end_is_left_out(tmp_path: Path) -> None:
    record(tmp_path / "take")
    log = tmp_path / "take" / "take.jsonl"
    start = tempo_map().bar_frame(BARS)
    line = {
        "type": "span",
        "agent": "bass",
        "bar": BARS,
        "beat": "0",
        "beats": "4",
        "start": start,
        "frames": 9,
        "rung": 1,
    }
    log.write_bytes(log.read_bytes() + to_bytes(line) + b"\n")
    take = TakeReader(tmp_path / "take")
    assert figures.summarise(take)[1].bars == BARS
    assert max(p.stop for part in figures.summarise(take) for p in part.placed) <= take.frames


def test_the_files_lie_in_the_take(tmp_path: Path) -> None:
    picture, page = report.write(record(tmp_path / "take"))
    assert picture == tmp_path / "take" / "arrangement.png"
    assert "![The arrangement](arrangement.png)" in page.read_text(encoding="utf-8")


def test_a_take_that_crashed_and_lost_a_stem_still_has_a_report(tmp_path: Path) -> None:
    folder = tmp_path / "take"
    record(folder, close=False)
    (folder / "mix.wav").unlink()
    (folder / "stems" / "bass.wav").unlink()
    take = TakeReader(folder)
    report.write(take)
    page = (folder / "report.md").read_text(encoding="utf-8")
    assert "has no last line" in page
    assert "| `stems/bass.wav` | missing |" in page
    assert "| no file |" in page
    assert figures.summarise(take)[1].peak_db is None
    assert "no file" in rendered(report.table(take))


def test_silence_is_called_silent(tmp_path: Path) -> None:
    take = record(tmp_path / "take", quiet=True)
    assert figures.summarise(take)[0].peak_db == -math.inf
    assert "| silent |" in report.markdown(take)
    pictures.draw(take, tmp_path / "a.png")


@pytest.mark.parametrize("frames", [0, 1, 7])
@pytest.mark.parametrize("stems", [[], [("solo", 3)]])
def test_the_smallest_takes_have_a_report(tmp_path: Path, frames: int, stems: list[tuple[str, int]]) -> None:
    writer = TakeWriter(tmp_path / "take", {"samplerate": 8000}, stems, 2, 1)
    writer.input(np.full((frames, 2), np.nan, np.float32))
    writer.close(frames)
    take = TakeReader(tmp_path / "take")
    picture, _ = report.write(take)
    assert pixels(picture).shape == (900, 1600, 3)
    assert "no bar lines" in report.markdown(take)
    rendered(report.table(take))


def test_many_sources_and_lanes_find_their_place(tmp_path: Path) -> None:
    agents = [f"agent-{i}" for i in range(9)]
    writer = TakeWriter(tmp_path / "take", {"samplerate": 8000}, [(agent, 1) for agent in agents], 1, 1)
    for i, agent in enumerate(agents):
        pieces = tuple(
            Piece(f"a/very/long/path/of/a/source/file/number-{i}-{k}.flac", 0, 50, k * 50, 50) for k in (0, 1)
        )
        place = {"agent": agent, "bar": 0, "beat": "0"}
        writer.log({"type": "reply", **place, "attempt": 1, "arrived": 0, "origin": Origin("model", pieces=pieces)})
        writer.log({"type": "span", **place, "beats": "4", "start": 0, "frames": 100, "rung": 1, "attempt": 1})
    writer.close(100)
    take = TakeReader(tmp_path / "take")
    palette = pictures._Palette(figures.summarise(take))
    assert (len(palette.sources), palette.others) == (8, 10)
    pictures.draw(take, tmp_path / "a.png")
    assert pixels(tmp_path / "a.png").shape[0] > 1200


def test_importing_the_report_imports_no_plotting() -> None:
    code = "import sys, bridge.report; print([m for m in ('matplotlib', 'rich', 'soundfile') if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "[]\n"
