"""What a terminal shows of a session that plays: all of it in 80 columns, levels an eye can follow."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any, cast

from rich.console import Console

from bridge.app import Live, Status
from bridge.screen import CELLS, FALL_DB, View, _meter
from realtime.clock import Meter
from realtime.protocols import StreamSpec
from realtime.scheduler import LEDGER


def ledger(**columns: int) -> dict[str, int]:
    """Return a row of the engine's ledger, as the engine names its columns."""
    assert columns.keys() <= set(LEDGER)
    return dict.fromkeys(LEDGER, 0) | columns


STATUS = Status(
    frame=48000 * 83,
    bar=11,
    beat=2,
    stopped=False,
    ledger={
        "bass": ledger(rest=3, final=204, speculative=12, continuation=5, last_bar=1, sounding=1, finals=214,
                       late_finals=4, ready_margin=4080, budget_frames=5760, generation=2),
        "marimba": ledger(rest=2, fade=1, sounding=5, faults=2),
    },
    peaks={"bass": 0.5, "marimba": 0.0},
    states={"bass": "armed", "marimba": "armed"},
    device={"xruns": 3, "lost_frames": 120, "starved_frames": 8},
    stream={"underruns": 4, "late_frames": 99},
    song_bar=11,
    meter=Meter(7, 8),
)  # fmt: skip


def view() -> View:
    config = SimpleNamespace(spec=StreamSpec(48000, lead=512))
    session = SimpleNamespace(session=SimpleNamespace(name="Your turn"))
    live: Any = SimpleNamespace(config=config, names=list(STATUS.ledger), session=session)
    return View(cast(Live, live))


def view_of(status: Status) -> View:
    of = view()
    of._held_db = dict.fromkeys(status.ledger, -48.0)
    return of


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
    heads = ["agent", "now", "final", "early", "on", "again", "lent", "rest", "late", "of", "ms", "new", "level"]
    assert row(lines, "agent") == heads
    bass, marimba = row(lines, "bass"), row(lines, "marimba")
    assert bass[1:11] == ["plays", "204", "12", "5", "1", "0", "3", "4", "85/120", "2"]
    assert bass[11] == "\u2588" * 5 + "\u258e"
    assert marimba[1:] == ["silent", "0", "0", "0", "0", "1", "2", "0", "-", "-", "\u2591" * CELLS]
    assert "lead 512   xruns 7   lost frames 128   late frames 99   faults 2" in lines[-1]


def test_a_long_night_still_fits() -> None:
    many = ledger(rest=12345, final=104321, speculative=10231, continuation=9999, last_bar=9999, fade=12345,
                  late_finals=12345, sounding=3, finals=100000, ready_margin=-9600, budget_frames=57600,
                  generation=9999)  # fmt: skip
    name = "a-very-long-name-of-an-agent"
    status = replace(STATUS, ledger={name: many}, peaks={name: 1.0}, states={name: "quarantined"})
    lines = shown(view_of(status), status)
    assert max(map(len, lines)) <= 80
    (shown_row,) = [line.split() for line in lines if line.startswith("a-very-l\u2026")]
    counts = ["104k", "10k", "9999", "9999", "12k", "12k", "12k", "-0.2/1.2s", "9999"]
    assert shown_row[1:] == ["quarantine", *counts, "\u2588" * CELLS]


def test_a_worker_that_cannot_play_says_why_and_one_that_is_replaced_goes_on() -> None:
    words = {}
    for state in ("loading", "failed", "refused", "quarantined", "gone", "measured"):
        states = {"bass": state, "marimba": state}
        rows = replace(STATUS, states=states, ledger={**STATUS.ledger, "bass": ledger(sounding=3)})
        words[state] = row(shown(view(), rows), "bass")[1:3]
    assert words["loading"][0] == "loading"
    assert words["failed"][0] == "failed"
    assert words["refused"] == ["left", "out"]
    assert words["quarantined"][0] == "quarantine"
    assert words["gone"] == words["measured"] == ["goes", "on"]


def test_what_sounds_has_a_word_on_every_rung() -> None:
    found = []
    for rung in range(-1, 6):
        status = replace(STATUS, ledger={**STATUS.ledger, "bass": ledger(sounding=rung)})
        found.append(view().line(status).split("bass ")[1].split(",")[0])
    assert found == ["waits", "rests", "plays", "plays", "goes on", "repeats", "silent"]


def test_a_level_rises_at_once_and_falls_slowly() -> None:
    of = view()
    loud = row(shown(of), "bass")[-1]
    quiet = replace(STATUS, peaks={"bass": 0.0, "marimba": 0.0})
    falling = [row(shown(of, quiet), "bass")[-1] for _ in range(16)]
    assert falling[0] == _meter(-6.02 - FALL_DB)
    assert falling[-1] == "\u2591" * CELLS
    assert row(shown(of), "bass")[-1] == loud == _meter(-6.02)


def test_a_log_gets_the_same_in_a_line() -> None:
    line = view().line(replace(STATUS, song_bar=-1, beat=0))
    assert line == (
        "1:23  count-in, beat 1; bass plays, marimba silent; "
        "lead 512   xruns 7   lost frames 128   late frames 99   faults 2"
    )


def test_who_is_followed_is_said_and_the_bars_are_the_songs() -> None:
    followed = replace(STATUS, bar=40, song_bar=7, meter=Meter(3, 4), leader="jack-midi (silent)")
    [head, *_] = shown(view(), followed)
    assert head == "Your turn  1:23  bar 8, beat 3  follows jack-midi (silent)  \u25cb \u25cb \u25cf"
