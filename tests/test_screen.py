"""What a terminal shows of a session that plays: all of it in 80 columns, levels an eye can follow."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any, cast

from rich.console import Console

from bridge.app import Live, Status
from bridge.screen import CELLS, FALL_DB, View
from realtime.clock import Meter, TempoMap
from realtime.protocols import StreamSpec

STATUS = Status(
    frame=48000 * 83,
    bar=11,
    beat=2,
    stopped=False,
    rungs={"bass": [3, 204, 12, 0, 1, 0, 1, 0], "marimba": [2, 0, 0, 0, 0, 1, 5, 2]},
    peaks={"bass": 0.5, "marimba": 0.0},
    states={"bass": "armed", "marimba": "armed"},
    device={"xruns": 3},
    stream={"underruns": 4, "late_frames": 99},
)


def view() -> View:
    config = SimpleNamespace(spec=StreamSpec(48000, lead=512), tempo_map=TempoMap.steady(48000, 112, Meter(7, 8)))
    session = SimpleNamespace(session=SimpleNamespace(name="Your turn"))
    live: Any = SimpleNamespace(config=config, names=list(STATUS.rungs), session=session)
    return View(cast(Live, live))


def shown(of: View, status: Status = STATUS) -> list[str]:
    console = Console(width=80, force_terminal=False)
    with console.capture() as capture:
        console.print(of.table(status))
    return [line.rstrip() for line in capture.get().splitlines()]


def row(lines: list[str], agent: str) -> list[str]:
    return next(line.split() for line in lines if line.split()[:1] == [agent])


def test_everything_is_in_eighty_columns() -> None:
    lines = shown(view())
    assert lines[0] == "Your turn  1:23  bar 12, beat 3  \u25cb \u25cb \u25cf \u25cb"
    assert row(lines, "agent") == ["agent", "now", "final", "early", "repeat", "silent", "rest", "level", "dB"]
    bass, marimba = row(lines, "bass"), row(lines, "marimba")
    assert bass[1:7] == ["plays", "204", "12", "1", "0", "3"]
    assert bass[8] == "-6"
    assert marimba[1:7] == ["silent", "0", "0", "0", "1", "2"]
    assert marimba[7:] == ["\u2591" * CELLS, "-"]
    assert "lead 512   xruns 7   late frames 99   faults 2" in lines[-1]


def test_a_worker_that_does_not_play_says_why() -> None:
    states = {"bass": "loading", "marimba": "failed"}
    lines = shown(view(), replace(STATUS, states=states))
    assert [row(lines, agent)[1] for agent in states] == ["loading", "failed"]


def test_a_level_rises_at_once_and_falls_slowly() -> None:
    of = view()
    assert row(shown(of), "bass")[8] == "-6"
    quiet = replace(STATUS, peaks={"bass": 0.0, "marimba": 0.0})
    assert row(shown(of, quiet), "bass")[8] == f"{-6 - FALL_DB:.0f}"
    assert row(shown(of), "bass")[8] == "-6"


def test_a_log_gets_the_same_in_a_line() -> None:
    line = view().line(replace(STATUS, bar=-1, beat=0))
    assert line == (
        "1:23  count-in, beat 1; bass plays, marimba silent; lead 512   xruns 7   late frames 99   faults 2"
    )
