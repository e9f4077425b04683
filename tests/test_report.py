"""The report of a take: figures, table, page and picture, from a small take made here."""

from __future__ import annotations

import dataclasses
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

from bridge import figures, ledger, margins, report
from bridge import picture as pictures
from bridge.recorder import SpanLine, TakeReader, TakeWriter
from realtime.clock import Locate, TempoChange, TempoMap
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
    assert (keys.agent, keys.course.bars, len(keys.spans)) == ("keys", 8, 8)
    assert dict(keys.course.rungs) == {0: 1, 1: 4, 2: 1, 4: 1, 5: 1}
    assert keys.margins_ms == [101, 102, 103, 105, 107]
    assert len(keys.units) == 24  # five clips, and the one that was played again
    assert len(set(keys.units)) == 20
    assert keys.stretched == 20  # bars 1, 3 (twice), 5 and 7
    assert keys.peak_db == pytest.approx(20 * math.log10(0.5), abs=0.01)
    assert dict(bass.course.rungs) == {0: 1, 1: 7}


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
    joined = f"{1000 * 2 * beat / RATE:.0f} ms"
    row = f"| 7 | 1 | keys | 5 fade to silence | its answer was faulty: too late \\| hung | {joined} |"
    assert row in report.markdown(take)


def test_the_later_line_of_a_span_counts(tmp_path: Path) -> None:
    record(tmp_path / "take")
    log = tmp_path / "take" / "take.jsonl"
    line = '{"type":"span","agent":"bass","bar":1,"beat":"0","beats":"4","start":16000,"frames":16000,"rung":2}\n'
    log.write_text(log.read_text() + line)
    bass = figures.summarise(TakeReader(tmp_path / "take"))[1]
    assert dict(bass.course.rungs) == {0: 1, 1: 6, 2: 1}


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
    assert keys.split() == ["keys", "8", "8", "4", "1", "0", "1", "1", "1", "101", "103", "24", "20", "20", "-6.0"]
    assert "31.4 times as fast" in text
    assert "\u2026" not in text  # nothing is cut off in 80 columns
    assert "4 last good bar again" in " ".join(text.split())


def test_the_legend_names_the_rungs_that_have_a_column(take: TakeReader) -> None:
    page, caption = report.markdown(take), str(report.table(take).caption)
    for rung, name in ledger.RUNGS.items():
        has_column = f"| rung {rung} |" in page
        assert (f"{rung} {name}" in caption) == has_column
        assert (f"{rung} {name}" in page.split("Spans by what played: ")[1].split("\n")[0]) == has_column


def test_the_page_tells_what_was_late_and_where_the_files_are(take: TakeReader) -> None:
    page = report.markdown(take, 31.4)
    assert "| keys | 8 | 8 | 4 | 1 | 0 | 1 | 1 | 1 | 101 | 103 | 24 | 20 | 20 | -6.0 |" in page
    assert "| 4 | 1 | keys | 2 speculative clip | its answer was faulty: too late \\| hung |" in page
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
    assert figures.summarise(take)[1].course.bars == BARS
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
    assert "> The take was not closed properly: it has no last line" in page
    assert "the recorder, or everything, was killed" in section(page, "How the time went")
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


# --- how the time went ---

HOPS: dict[str, object] = {"heard": [90, 80], "request": [100, 100], "mixed": [15920, 15600]}


def band(bars: int = 12, *, well: bool = False, live: bool = True) -> list[dict[str, Any]]:
    """Return the lines of two agents; not ``well``, one of them goes through all that can happen."""
    fates = {2: (2, "late"), 3: (3, "lost"), 5: (4, "late"), 6: (1, ""), 7: (2, "NaN or infinity in the clip")}
    lines: list[dict[str, Any]] = [{"type": "tempo", "frame": 0, "bar": 0, "tempo": "120", "meter": "4/4"}]
    bar_frames, join = 2 * RATE, 80
    for agent in ("keys", "bass"):
        lines.append({"type": "armed", "agent": agent, "budget_frames": 900, "generation": 0})
        for bar in range(bars + 1):
            rung, cause = (1, "") if well or agent == "bass" else fates.get(bar, (1, ""))
            rung, cause = (5, "quarantined") if not well and agent == "keys" and bar > 8 else (rung, cause)
            start = bar * bar_frames
            deadline = max(0, start - join)
            place = {"agent": agent, "bar": bar, "beat": "0"}
            asked = cause != "quarantined"
            hops = dict(HOPS) if live else {}
            if asked:
                lines.append({"type": "request", **place, "beats": "4", "attempt": 1, "start": start,
                              "frames": bar_frames, "posted": max(0, deadline - 900), "context_end": 0})  # fmt: skip
                hops["ready"] = [deadline, None if cause in ("late", "lost") else deadline - 400]
            if rung in (1, 2, 3):
                attempt = {1: 1, 2: 0, 3: 2}[rung]
                origin = clip(bar, agent, RATE // 2)
                lines.append({"type": "reply", **place, "attempt": attempt, "arrived": deadline, "origin": origin})
            lines.append({"type": "span", **place, "beats": "4", "start": start, "frames": bar_frames, "rung": rung,
                          "cause": cause, "deadline": deadline, "decided": deadline, "hops": hops})  # fmt: skip
            if live and bar < bars:
                lost = not well and bar == 7
                out: dict[str, Any] = {"type": "out", **place, "wanted": start, "actual": start, "margin_frames": 40}
                gone = {"actual": None, "margin_frames": None, "cause": "no device was there"}
                lines.append(out | gone if lost else out)
    if not well:
        lines += [
            {"type": "worker", "agent": "keys", "frame": 3 * bar_frames - 800, "generation": 1, "event": "lost"},
            {"type": "armed", "agent": "keys", "frame": 3 * bar_frames, "generation": 1, "budget_frames": 950},
            {"type": "command", "frame": 9 * bar_frames, "command": {"do": "quarantine", "target": "keys"}},
            {"type": "xrun", "frame": 100, "frames": 64, "cause": "the engine had not mixed it"},
        ]
    return [*lines, {"type": "counters", "frame": bars * bar_frames, "nan_frames": 0}]


def take_of(folder: Path, lines: list[dict[str, Any]], bars: int = 12) -> TakeReader:
    writer = TakeWriter(folder, {"samplerate": RATE, "engine": {"first_bar": 0}}, [("keys", 1), ("bass", 1)], 1, 2)
    for line in lines:
        writer.log(line)
    frames = bars * 2 * RATE
    writer.stem("keys", tone(frames, 0.5))
    writer.close(frames)
    return TakeReader(folder)


def section(page: str, title: str) -> str:
    return page.split(f"## {title}\n")[1].split("\n## ")[0]


def test_the_page_says_how_the_time_went(tmp_path: Path) -> None:
    report.write(take_of(tmp_path / "take", band()))
    told = section((tmp_path / "take" / "report.md").read_text(encoding="utf-8"), "How the time went")
    for text in (
        "accounted for: 24 spans, and 2 that were to begin after the end; each decided once",
        "| keys | 41.7 % | 16.7 % | 8.3 % | 8.3 % | 25.0 % | 2 of 9 | 166.7 | 1 |",
        "| bass | 100 % | - | - | - | - | 0 of 13 | 0.0 | 0 |",
        "| keys | the answer was not there in time | 2 |",
        "| keys | its worker was lost while it was at it | 1 |",
        "| keys | its answer was faulty: NaN or infinity in the clip | 1 |",
        "| keys | it is in quarantine",
        "- 0:00.0 (bar 1): 8.0 ms of sound did not leave the device, until 0:00.0 (bar 1): the engine had not mixed",
        "- 0:04.0 (bar 3): keys fell back in 7 spans, the last in bar 12: "
        "2 speculative clip, 1 corpus continuation, 1 last good bar again, 3 fade to silence.",
        "- 0:05.9 (bar 3): keys lost its worker; a new one was on duty 100 ms later.",
        "- 0:14.0 (bar 8): 1 span of bass was lost on the way out as it began.",
        "- 0:18.0 (bar 10): keys was put in quarantine: its worker had failed",
        "| keys | 0 / 0 / 0 | 50 / 50 / 50 | 40 / 40 / 40 | 5 / 5 / 5 | 3 ready, 1 out |",
        "*out*: what lay in the device's buffer",
        "![Time to spare](margins.png)",
    ):
        assert text in told, text


def test_of_a_band_in_which_all_went_well_little_is_said(tmp_path: Path) -> None:
    report.write(take_of(tmp_path / "take", band(well=True)))
    told = section((tmp_path / "take" / "report.md").read_text(encoding="utf-8"), "How the time went")
    assert "All went well" in told
    assert "quarantine" not in told
    assert "What happened" not in told
    assert "| keys | 0 / 0 / 0 |" in told
    assert "heard" not in told.replace("before it was heard", ""), "hearing is always a few milliseconds behind"
    assert "Fallbacks" not in told
    assert len(told.splitlines()) < 20


def test_the_time_is_drawn_where_it_says_something(tmp_path: Path) -> None:
    drawn = {}
    for name, options in {
        "live": {"well": True},
        "bad": {"live": False},
        "render": {"well": True, "live": False},
    }.items():
        report.write(take_of(tmp_path / name, band(**options)))
        drawn[name] = (tmp_path / name / "margins.png").is_file()
        page = (tmp_path / name / "report.md").read_text(encoding="utf-8")
        assert ("margins.png" in page) == drawn[name]
    assert drawn == {"live": True, "bad": False, "render": False}


def told_of(folder: Path, lines: list[dict[str, Any]], *, closed: bool = True) -> str:
    """Return what the page says of the time of a take."""
    take = take_of(folder, lines)
    if not closed:
        log = folder / "take.jsonl"
        log.write_bytes(b"".join(line for line in log.read_bytes().splitlines(True) if b'"type":"end"' not in line))
        take = TakeReader(folder)
    return section(report.markdown(take), "How the time went")


def test_nothing_is_well_in_a_take_that_was_killed(tmp_path: Path) -> None:
    told = told_of(tmp_path / "take", band(well=True)[:-1], closed=False)
    assert told.startswith("\n### What happened\n\n- 0:24.0 (bar 13): the take ends here and was not closed properly")
    assert "All went well" not in told
    assert "played as it should" in told


def test_nothing_is_well_where_the_engine_ended_early(tmp_path: Path) -> None:
    told = told_of(tmp_path / "take", band(well=True)[:-1])
    assert "- 0:24.0 (bar 13): the engine ended early" in told
    assert "All went well" not in told
    assert "All went well" in told_of(tmp_path / "render", band(well=True, live=False)[:-1]), (
        "a render has no counters"
    )


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ({"type": "xrun", "frame": 40000, "frames": 4000, "cause": "no device was there"},
         "- 0:05.0 (bar 3): 500 ms of sound did not leave the device, until 0:05.5 (bar 3): no device was there."),
        ({"type": "xrun", "frame": 40000, "frames": 0, "cause": "the audio server reported an xrun"},
         "- 0:05.0 (bar 3): the audio server reported an xrun."),
        ({"type": "worker", "agent": "bass", "frame": 40000, "generation": 1, "event": "lost",
          "cause": "no sign of life for 1.0 s"},
         "- 0:05.0 (bar 3): bass lost its worker (no sign of life for 1.0 s); none came in its place."),
        ({"type": "command", "frame": 40000, "command": {"do": "quarantine", "target": "bass"}},
         "- 0:05.0 (bar 3): bass was put in quarantine"),
    ],
)  # fmt: skip
def test_each_thing_that_happened_is_told_with_its_place(tmp_path: Path, line: dict[str, Any], words: str) -> None:
    told = told_of(tmp_path / "take", [*band(well=True), line])
    assert words in told
    assert "All went well" not in told


def test_workers_that_were_lost_one_after_the_other_are_one_gap(tmp_path: Path) -> None:
    loss = {"type": "worker", "agent": "keys", "event": "lost", "cause": "killed by signal 9"}
    lines = [
        {**loss, "frame": 40000, "generation": 1},
        {**loss, "frame": 44000, "generation": 2},
        {"type": "armed", "agent": "keys", "frame": 48000, "generation": 2},
    ]
    told = told_of(tmp_path / "take", [*band(well=True), *lines])
    words = (
        "keys lost its worker (killed by signal 9), and 1 more that were to take over; a new one was on duty 1000 ms"
    )
    assert words.replace("were", "was") in told
    assert "none came" not in told


def test_of_many_losses_the_first_are_told_and_the_rest_in_a_sum(tmp_path: Path) -> None:
    lines = [{"type": "xrun", "frame": 8000 * k, "frames": 80, "cause": "no device was there"} for k in range(1, 21)]
    told = told_of(tmp_path / "take", [*band(well=True), *lines])
    assert told.count("no device was there") == 7
    assert "140 ms more did not leave the device, in 14 places until 0:20.0 (bar 11): no device was there." in told


def test_what_had_been_heard_is_told_by_its_age_where_it_was_old(tmp_path: Path) -> None:
    lines = band(well=True)
    for line in lines:
        if line["type"] == "span" and line["agent"] == "keys":
            line["hops"] |= {"heard": [500, 300]}
    told = told_of(tmp_path / "take", lines)
    assert "| agent | heard, age (ms) | request (ms) |" in told
    assert "| keys | 25 / 25 / 25 | 0 / 0 / 0 |" in told


def test_a_render_shows_no_margins(tmp_path: Path) -> None:
    take = take_of(tmp_path / "take", band(live=False))
    page = report.markdown(take)
    assert "(ms)" not in page
    assert "argin" not in page
    assert "argin" not in rendered(report.table(take))
    assert not any("margin" in word for part in figures.summarise(take) for word in pictures._part_words(part))


def test_one_bar_is_one_bar(tmp_path: Path) -> None:
    assert figures.length(take_of(tmp_path / "take", band(1), bars=1)) == "1 bar, 0:02, 8,000 Hz"


def test_the_axis_says_that_it_is_bent() -> None:
    assert "logarithmic beyond \u00b110" in margins._AXIS


def test_a_report_made_again_forgets_the_picture_of_before(tmp_path: Path) -> None:
    take = take_of(tmp_path / "take", band(well=True, live=False))
    (take.folder / "margins.png").write_bytes(b"old")
    report.write(take)
    assert not (take.folder / "margins.png").exists()


def test_the_plot_marks_each_hop_what_is_late_and_each_rung(tmp_path: Path) -> None:
    images = {}
    for well in (True, False):
        take = take_of(tmp_path / str(well), band(well=well))
        margins.draw_margins(take, ledger.courses(take), tmp_path / f"{well}.png")
        images[well] = pixels(tmp_path / f"{well}.png")
        assert images[well].shape[1] == 1800
    for hop, (colour, _) in margins._LOOKS.items():
        assert count(images[True], colour) > 300, hop
    for rung, colour in margins._RUNG_COLOURS.items():
        if rung < 5:  # the last is black, as is the text
            assert count(images[False], colour) > 1000, rung
            assert count(images[True], colour) == 0
    assert count(images[False], margins._LATE) > count(images[True], margins._LATE) + 50


def test_many_spans_are_drawn_by_the_worst_of_each_stretch() -> None:
    rng = np.random.default_rng(3)
    line = SpanLine("keys", 0, Fraction(0), Fraction(4), 0, 10, 1)
    steps = [
        ledger.Step(dataclasses.replace(line, start=10 * at), int(m))
        for at, m in enumerate(rng.integers(0, 99, 9000))
    ]
    steps[4321] = ledger.Step(steps[4321].span, None)
    drawn = margins._worst(steps, 90_000)
    assert len(drawn) == margins._COLUMNS
    assert steps[4321] in drawn
    assert min(s.margin_frames for s in drawn if s.margin_frames is not None) == min(
        s.margin_frames for s in steps if s.margin_frames is not None
    )


def test_the_disk_that_was_too_slow_is_named(tmp_path: Path) -> None:
    pads = [{"type": "pad", "file": name, "start": 2 * RATE, "frames": RATE} for name in ("input.wav", "mix.wav")]
    page = report.markdown(take_of(tmp_path / "take", [*band(), *pads]))
    assert "> The disk was too slow: about 1.0 s could not be kept" in page
    assert "the first of it at 0:02" in page
    assert "too slow" not in report.markdown(take_of(tmp_path / "other", band()))


def test_xruns_are_told_by_cause(tmp_path: Path) -> None:
    more = [{"type": "xrun", "frame": k, "frames": 10, "cause": "the engine was late"} for k in range(3)]
    page = report.markdown(take_of(tmp_path / "take", [*band(), *more]))
    assert "> 3 times the engine was late (30 frames), once the engine had not mixed it (64 frames)." in page


def test_of_many_fallbacks_the_first_are_listed(tmp_path: Path) -> None:
    lines = band(bars=500)
    page = report.markdown(take_of(tmp_path / "take", lines, bars=500))
    assert section(page, "Fallbacks").count("| keys | 5 fade to silence |") == 196
    assert "And 295 more; each has its line in `take.jsonl`." in page


def test_a_continuation_is_placed_and_is_the_last_good_bar(tmp_path: Path) -> None:
    lines = [
        line for line in band() if not (line["type"] == "reply" and line["bar"] == 4 and line["agent"] == "keys")
    ]
    for line in lines:
        if line["type"] == "span" and line["bar"] == 4 and line["agent"] == "keys":
            line |= {"rung": 4, "cause": "late"}
    keys = figures.summarise(take_of(tmp_path / "take", lines))[0]
    start = 3 * 2 * RATE
    units = [(p.start, p.piece.unit) for p in keys.placed if start <= p.start < start + 4 * RATE]
    assert units == [(start + k * RATE // 2, 12 + k % 4) for k in range(8)]


def test_a_change_inside_a_span_moves_its_beats(tmp_path: Path) -> None:
    """At 120 the bar has 16000 frames; from its third beat on it goes at 60, so each beat takes twice as long."""
    bar, beat = 2 * RATE, RATE // 2
    retime = {"type": "retime", "agent": "keys", "bar": 2, "beat": "0", "beats": "4", "start": 2 * bar,
              "frames": bar + 2 * beat, "decided": 2 * bar + beat + 9}  # fmt: skip
    tempo = {"type": "tempo", "frame": 2 * bar + 2 * beat, "bar": 2, "beat": "2", "tempo": "60", "announced": 2 * bar}
    lines = [*band(3, well=True), tempo, retime]
    for line in lines:
        if line["type"] in ("span", "request") and line["bar"] == 3:
            line |= {key: line[key] + 2 * beat for key in ("start", "deadline") if key in line}
    keys = figures.summarise(take_of(tmp_path / "take", lines, bars=4))[0]
    start = 2 * bar
    sounding = [(p.start - start, p.stop - start) for p in keys.placed if start <= p.start < start + bar + 2 * beat]
    assert sounding == [(0, beat), (beat, 2 * beat), (2 * beat, 3 * beat), (4 * beat, 5 * beat)]
    assert keys.course.account.whole


def test_leaps_in_the_song_are_marked_and_the_bar_lines_are_those_that_sounded(tmp_path: Path) -> None:
    song = SLOWER.applied(TempoMap.steady(RATE, 120))  # slower from bar 5 of the song on
    leaps = [Locate(2, 5), Locate(4, 0, 2)]
    session = song.as_session()
    lines: list[dict[str, Any]] = [
        {"type": "tempo", "frame": 0, "bar": 0, "tempo": "120", "meter": "4/4"},
        {"type": "tempo", "frame": song.bar_frame(4), **encode(SLOWER)},
    ]
    for leap in leaps:
        session = leap.applied(session)
        lines.append({"type": "locate", "frame": session.bar_frame(leap.bar), "announced": 0, **encode(leap)})
    writer = TakeWriter(tmp_path / "take", {"samplerate": RATE}, [], 1, 1)
    for line in lines:
        writer.log(line)
    writer.close(session.bar_frame(8))
    take = TakeReader(tmp_path / "take")
    assert list(figures.bar_frames(take).values()) == [session.bar_frame(bar) for bar in range(8)]
    assert [(m.bar, m.text) for m in figures.song_marks(take)] == [(2, "to bar 6"), (4, "loop 1\u20132")]
    assert [(m.bar, m.text) for m in figures.tempo_marks(take)] == [
        (0, "♩ = 120  4/4"), (2, "♩ = 90"), (4, "♩ = 120")
    ]  # fmt: skip
    pictures.draw(take, tmp_path / "a.png")
    assert count(pixels(tmp_path / "a.png"), pictures._LEAP) > 300


def test_the_picture_marks_new_workers_and_quarantine(tmp_path: Path) -> None:
    lanes = {}
    for well in (True, False):
        picture = pictures._Picture(take_of(tmp_path / str(well), band(well=well)), "title")
        picture.save(tmp_path / "a.png")
        top = int(picture._lane_top(1))
        at = int(picture.x(9 * 2 * RATE))
        lanes[well] = pixels(tmp_path / "a.png")[top + 20 : top + 180, at - 4 : at + 5]
    assert count(lanes[False], pictures._INK) > 150
    assert count(lanes[True], pictures._INK) == 0


WHOLE = band()


@settings(max_examples=25, deadline=None)
@given(data=st.data())
def test_whatever_lines_are_left_there_is_a_report(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    """Any line may be missing, and the last cut in the middle: what is there is told, and what is not is said."""
    folder = tmp_path_factory.mktemp("takes") / "take"
    kept = data.draw(st.one_of(
        st.builds(lambda end: list(range(end)), st.integers(0, len(WHOLE))),
        st.lists(st.integers(0, len(WHOLE) - 1), unique=True, max_size=len(WHOLE)).map(sorted),
        st.lists(st.integers(0, len(WHOLE) - 1), max_size=40),
    ))  # fmt: skip
    take_of(folder, [WHOLE[at] for at in kept])
    log = folder / "take.jsonl"
    log.write_bytes(log.read_bytes()[: -data.draw(st.integers(0, 60)) or None])
    take = TakeReader(folder)
    page = report.markdown(take)
    rendered(report.table(take))
    found = ledger.courses(take)
    for course in found:
        keys = [at for at in kept if WHOLE[at]["type"] == "span" and WHOLE[at]["agent"] == course.agent]
        lines = [line for line in take.spans if line.agent == course.agent]
        everything = {line.key for line in lines} == {(course.agent, bar, Fraction(0)) for bar in range(13)}
        assert course.account.whole == (everything and len(lines) == 13), keys
    assert ("## How the time went" in page) == any(course.spans for course in found)


@pytest.mark.parametrize("seed", range(3))
def test_whatever_lines_are_left_it_can_be_drawn(tmp_path: Path, seed: int) -> None:
    rng = np.random.default_rng(seed)
    kept = [line for line in WHOLE if rng.random() < 0.6]
    picture, page = report.write(take_of(tmp_path / "take", kept))
    assert picture.is_file()
    assert page.is_file()
    assert (tmp_path / "take" / "margins.png").is_file()


def test_every_prefix_of_a_takes_lines_is_a_take(tmp_path: Path) -> None:
    """As a kill leaves it: each line whole or not there."""
    take = take_of(tmp_path / "take", WHOLE)
    log = take.folder / "take.jsonl"
    lines = log.read_bytes().splitlines(keepends=True)
    spans = 0
    for end in range(1, len(lines) + 1):
        log.write_bytes(b"".join(lines[:end]))
        part = TakeReader(take.folder)
        spans += len(part.spans) > 0
        assert [line["type"] for line in part.lines] == [line["type"] for line in take.lines[:end]]
        assert part.frames == take.frames
        ledger.courses(part)
    assert spans > 40
