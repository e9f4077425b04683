"""The suite ``bridge``: what is planted is found, what is clean stays clean, what cannot be said is not said."""

from __future__ import annotations

import importlib
import math
import os
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest

TOOLS = Path(__file__).resolve().parent.parent / "tools"
RATE = 48_000


@pytest.fixture(scope="module", autouse=True)
def tools() -> Iterator[None]:
    """Let suites be imported as their runner imports them."""
    sys.path.insert(0, str(TOOLS))
    yield
    sys.path.remove(str(TOOLS))


@pytest.fixture(scope="module")
def suite(tools: None) -> Any:
    return importlib.import_module("bench_bridge")


def by_name(rows: Any) -> dict[str, Any]:
    found = list(rows)
    assert len({row.name for row in found}) == len(found)
    assert {row.suite for row in found} == {"bridge"}
    return {row.name: row for row in found}


# -- OSC: mutants --------------------------------------------------------------------------------------------------


def looks(kb: float, seconds: int = 30) -> list[tuple[float, float]]:
    """Return what a process holds that grows by so much after a third of the time, and by more before."""
    noise = np.random.default_rng(1)
    return [
        (float(at), 40_000 + min(at, 10) * 500 + kb * max(0.0, (at - 10) / (seconds - 10)) + noise.normal(0, 2))
        for at in range(seconds)
    ]


def fuzzed(**changes: Any) -> dict[str, Any]:
    """Return what a run of mutants tells in which nothing happened."""
    fuzz = {
        "slowest_seconds": 0.01, "seconds": 10.0, "uncaught": [], "counted": {"faults": 0}, "replies": 900,
        "errors": 700, "reports": 30, "unreadable": 0, "blocks_grown": 40,
    }  # fmt: skip
    flood = {"counted": {"faults": 0}, "blocks_grown": 9, "of_the_known": 1.0, "senders": 1000, "lines": 3}
    return {"fuzz": fuzz | changes, "flood": flood}


def test_mutants_that_do_no_harm_pass(suite: Any) -> None:
    rows = by_name(suite.judged_fuzz(fuzzed(), looks(0), 1000))
    assert all(row.ok for row in rows.values())
    assert rows["hangs in 1,000 mutated packets"].value == 0
    assert abs(rows["growth of the fuzzed process"].value) < 20


@pytest.mark.parametrize(
    ("name", "result"),
    [
        ("hangs in 1,000 mutated packets", fuzzed(slowest_seconds=1.5)),
        ("uncaught exceptions meanwhile", fuzzed(uncaught=["KeyError() of 2f61"])),
        ("uncaught exceptions meanwhile", fuzzed(counted={"faults": 2})),
        ("answers that are no OSC", fuzzed(unreadable=1)),
        ("memory blocks left by the second half", fuzzed(blocks_grown=5000)),
        ("of one who is known, read in a flood", fuzzed() | {"flood": fuzzed()["flood"] | {"of_the_known": 0.9}}),
    ],
)
def test_harm_is_found(suite: Any, name: str, result: dict[str, Any]) -> None:
    rows = by_name(suite.judged_fuzz(result, looks(0), 1000))
    assert [row.name for row in rows.values() if not row.ok] == [name]


def test_a_run_that_does_not_end_is_a_hang(suite: Any) -> None:
    rows = by_name(suite.judged_fuzz(None, looks(0), 1000))
    assert rows["hangs in 1,000 mutated packets"].ok is False
    assert rows["uncaught exceptions meanwhile"].value is None


def test_growth_after_a_third_of_the_time_is_found_and_growth_before_it_is_not(suite: Any) -> None:
    row = suite.growth_row("growth", looks(1000))
    assert row.value == pytest.approx(800, abs=50)
    assert row.ok is False
    assert suite.growth_row("growth", looks(100)).ok
    assert suite.growth_row("growth", looks(0)[:9]).value is None
    assert suite.growth_row("growth", []).ok is None
    short = suite.growth_row("growth", [(at / 4, held) for at, held in looks(1000)])
    assert (short.value > 500, short.ok) == (True, None)


def test_a_child_is_watched_and_ended_if_it_hangs_or_dies(suite: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(suite, "LOOK_SECONDS", 0.01)
    assert suite.watched(math.hypot, (3, 4), 60)[0] == 5.0
    answer, seen = suite.watched(time.sleep, (60,), 0.1)
    assert answer is None
    assert not Path("/proc/self/smaps_rollup").exists() or seen[0][1] > 1000
    assert suite.watched(os._exit, (1,), 60)[0] is None


# -- OSC: a flood --------------------------------------------------------------------------------------------------


def flooded(**changes: Any) -> Any:
    facts: dict[str, Any] = {
        "sent": 3_000_000, "seconds": 30.0, "asked": 600, "answered": 240, "after_seconds": 0.05, "unread": 1_800_000,
        "empty": 0, "attributable": 0, "control_late": 0.0, "looks": looks(0), "said": [], "realtime": True,
        "jack": True, "priority": "normal priority, nice 0",
    }  # fmt: skip
    return importlib.import_module("flood").Flooded(**facts | changes)


def test_a_flood_that_does_no_harm_passes(suite: Any) -> None:
    rows = by_name(suite.judged_flood(flooded(said=["OSC: 127.0.0.1:5000 sends more than can be taken"])))
    assert all(row.ok for row in rows.values())
    assert rows["flood: packets sent a second"].value == 100_000
    assert "1,200,000 reached the session" in rows["flood: packets sent a second"].reason


@pytest.mark.parametrize(
    ("name", "changes", "ok"),
    [
        ("flood: packets sent a second", {"sent": 2_000_000}, None),
        ("flood: attributable empty rings", {"empty": 2, "attributable": 1}, False),
        ("flood: attributable empty rings", {"empty": 2, "attributable": 1, "control_late": 0.02}, None),
        ("flood: attributable empty rings", {"realtime": False}, None),
        ("flood: attributable empty rings", {"jack": False}, None),
        ("flood: growth of the bridge", {"looks": looks(1000)}, False),
        ("flood: uncaught exceptions", {"said": ["OSC: an error that nobody has foreseen (X: y)"]}, False),
        ("flood: until a friend is answered after it", {"after_seconds": math.inf}, False),
    ],
)
def test_a_flood_that_does_harm_is_found(suite: Any, name: str, changes: dict[str, Any], ok: bool | None) -> None:
    rows = by_name(suite.judged_flood(flooded(**changes)))
    assert {row.name: row.ok for row in rows.values() if not row.ok} == {name: ok}


def test_a_flood_holds_no_command(suite: Any) -> None:
    """Every message of it that can be read is a question, or nobody's."""
    flood = importlib.import_module("flood")
    from bridge.osctable import book
    from bridge.packets import PacketError, parse

    packets, read = flood.flood_packets(), 0
    assert len(packets) == flood.PACKETS
    assert max(map(len, packets)) <= flood.MOST_BYTES
    for packet in packets:
        try:
            messages = parse(packet)
        except PacketError:
            continue
        read += len(messages)
        known = [book().find(message.address) for message in messages]
        assert all(found is None or found[0].answers for found in known)
    assert read > 1000
    assert flood.flood_packets() == packets


def test_what_the_system_drops_at_a_port_is_read() -> None:
    flood = importlib.import_module("flood")
    if not Path("/proc/net/udp").exists():
        assert flood.unread_packets(1) is None
        return
    import socket

    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as full:
        full.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1)
        full.bind(("127.0.0.1", 0))
        port = full.getsockname()[1]
        assert flood.unread_packets(port) == 0
        for _ in range(100):
            full.sendto(b"x" * 1000, ("127.0.0.1", port))
        assert flood.unread_packets(port) >= 90
    assert flood.unread_packets(port) is None


# -- audio over OSC ------------------------------------------------------------------------------------------------


def test_what_a_network_takes_away_is_found(suite: Any) -> None:
    stems = {"frames": 1e6, "missing_frames": 0, "wrong_frames": 0, "resent_percent": 13.0, "lost_percent": 5.0}
    heard = {
        "added_blocks_worst": 1.8,
        "added_blocks_p99": 1.7,
        "lost_percent": 4.7,
        "wait_ms": 5.8,
        "roughness": 1.01,
    }
    rows = by_name(suite.judged_network([stems], [heard]))
    assert [row.ok for row in rows.values()] == [True, True, True, None]
    rows = by_name(
        suite.judged_network(
            [stems, stems | {"missing_frames": 128, "wrong_frames": 1}], [heard, heard | {"added_blocks_worst": 2.5}]
        )
    )
    assert [row.ok for row in rows.values()] == [False, False, False, None]
    assert rows["live input over OSC: added delay, worst"].value == 2.5


def test_the_network_is_as_bad_as_said(suite: Any) -> None:
    network = suite.bad_network(3)
    came: dict[bytes, float] = {}
    for number in range(4000):
        network.send(number.to_bytes(2, "big"), ("there", 1), number * 1_000_000)
    for packet, _ in network.arrived(10**12):
        came.setdefault(packet, 0)
    assert network.lost / network.sent == pytest.approx(0.05, abs=0.01)
    assert (network.jitter_ns, network.reorder) == (3_000_000, 0.05)
    assert len({packet for packet in came if len(packet) == 2}) == network.sent - network.lost


# -- Link ----------------------------------------------------------------------------------------------------------

LINK = {
    "bpm": "97", "samples": 600, "tempo": 97.0, "tempo_equal": True, "playing_equal": True, "phase_p50_ms": 0.001,
    "phase_p99_ms": 0.003, "phase_max_ms": 0.005, "control_p99_ms": 0.2, "reading_p99_ms": 0.002,
}  # fmt: skip


@pytest.mark.parametrize(
    ("changes", "verdicts"),
    [
        ({}, [True, True]),
        ({"tempo_equal": False}, [False, True]),
        ({"playing_equal": False}, [False, True]),
        ({"phase_p99_ms": 1.2}, [True, False]),
        ({"phase_p99_ms": 1.2, "control_p99_ms": 3.0}, [True, None]),
    ],
)
def test_two_processes_of_link_are_judged(suite: Any, changes: dict[str, Any], verdicts: list[Any]) -> None:
    assert [row.ok for row in suite.judged_link(LINK | changes, "")] == verdicts


def test_without_link_nothing_is_said(suite: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(suite, "link_missing", lambda: "the package LinkPython-extern is not installed")
    with suite.link_beside(True) as link:
        rows = list(link())
    assert [(row.value, row.ok, row.reason) for row in rows] == [(None, None, suite.link_missing())] * 2


# -- a DAW that dies and returns -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def relock(tools: None) -> Any:
    return importlib.import_module("relock")


def steady(relock: Any, kind: str, way: str) -> Any:
    """Return a case that every source masters: four in a bar at 120, away for a second or two."""
    from realtime.clock import TempoMap, Timeline

    first = Timeline(RATE, Fraction(120), frame=Fraction(RATE))
    places = {"from the start": Fraction(0), "where it died": Fraction(41, 2), "elsewhere": Fraction(4 * 30 + 1)}
    after = first if way == relock.ON else Timeline(RATE, Fraction(120), frame=Fraction(14 * RATE), beat=places[way])
    plan = TempoMap.steady(RATE, 110)
    return relock.Case(kind, way, plan, first, after, round(11.3 * RATE), 14 * RATE, 26 * RATE, False, False, 1)


@pytest.mark.parametrize("kind", ["midi clock through JACK", "midi clock by cable", "JACK transport", "OSC, Ardour",
                                  "OSC, REAPER", "OSC, Live"])  # fmt: skip
def test_every_kind_of_daw_speaks_so_that_it_is_followed_and_again(relock: Any, kind: str) -> None:
    assert set(relock.SPEAKERS) >= {kind}
    case = steady(relock, kind, "elsewhere")
    found = relock.judge(case, relock.play(case).lines)
    assert (found.bars, found.wrong) == (0, 0)
    assert 0.7 < found.elapsed_bars < 0.8
    assert len(found.off_seconds) >= 4
    assert max(found.off_seconds) < (0.00003 if "JACK" in kind else 0.006)


def test_one_that_goes_on_as_if_nothing_had_been_is_never_left(relock: Any) -> None:
    case = steady(relock, "JACK transport", relock.ON)
    found = relock.judge(case, relock.play(case).lines)
    assert (found.bars, found.wrong) == (0, 0)


def test_an_anchor_that_names_another_bar_is_found(relock: Any, suite: Any) -> None:
    case = steady(relock, "midi clock through JACK", "where it died")
    found = relock.judge(case, relock.play(case, relock.grid_moved(1)).lines)
    assert found.wrong >= 5
    assert found.bars == math.inf
    rows = by_name(suite.judged_relock(relock.Figures([found])))
    assert rows["back with a DAW: wrong bar numbers"].ok is False
    assert rows["back with a DAW, worst"].ok is False


def test_an_anchor_that_comes_late_is_found(relock: Any) -> None:
    case = steady(relock, "midi clock through JACK", "elsewhere")
    waiting: list[Any] = []

    def late(command: Any, frame: int) -> Any:
        """Keep the first anchor after the return for two bars."""
        if command.do == "anchor" and frame >= case.returns:
            waiting.append(command)
            return None
        return command

    band = relock.play(case, late)
    assert waiting
    assert relock.judge(case, band.lines).bars == math.inf
    clean = relock.play(case).lines
    moved = [replace(line, bar=line.bar - 5) if 14 * RATE < line.frame < 18.4 * RATE else line for line in clean]
    found = relock.judge(case, moved)
    assert (found.bars, found.elapsed_bars) == (2, 2.75)
    assert found.wrong >= 1


def test_a_bar_that_is_misnamed_while_the_band_is_alone_is_found(relock: Any) -> None:
    case = steady(relock, "midi clock through JACK", "where it died")
    lines = relock.play(case).lines
    alone = next(index for index, line in enumerate(lines) if line.frame > case.dies)
    assert lines[alone].frame < case.returns
    lines[alone] = replace(lines[alone], bar=lines[alone].bar + 3)
    assert relock.judge(case, lines).wrong >= 1


def test_a_band_beside_the_grid_is_not_with_it(relock: Any) -> None:
    case = steady(relock, "midi clock through JACK", "elsewhere")
    lines = relock.play(case).lines
    late = [replace(line, frame=line.frame + 600) for line in lines]
    assert relock.judge(case, late).bars == math.inf
    silent = [replace(line, plays=False) for line in lines]
    assert relock.judge(case, silent).bars == math.inf


def test_cases_are_the_same_every_time_and_of_every_way(relock: Any) -> None:
    kind = "midi clock through JACK"
    cases = [relock.draw(kind, seed) for seed in range(60)]
    assert cases == [relock.draw(kind, seed) for seed in range(60)]
    assert {case.way for case in cases} == {*relock.WAYS, relock.ON}
    assert not [case for case in cases if not case.first.frame < case.dies < case.returns < case.ends]
    assert any(case.said_stop for case in cases)
    assert {relock.draw("midi clock by cable", seed).way for seed in range(60)} == {*relock.WAYS}


# -- MIDI clock ----------------------------------------------------------------------------------------------------


def performance(bpm: str = "97", constant: int = 512, **changes: Any) -> Any:
    """Return what a DAW hears of a session that follows it as it should: a start, and on from within a bar."""
    jackdaw = importlib.import_module("jackdaw")
    beat, rolls, clicks, bars = Fraction(60 * RATE) / Fraction(bpm), [], [], []
    begun, second = 1_000_000, 10**9
    for place in (0, 67):
        first = 4 if place == 0 else 1  # beats until the band is in
        rolls.append([place, begun, begun * second // RATE, begun + round(16 * beat)])
        clicks += [begun + round(number * beat) + constant for number in range(first, 16)]
        for number in range(first, 16, 4):
            time_ns = round((begun + number * beat) * second / RATE) + 3_000_000
            bars.append(jackdaw.BarTold((place + number) // 4, time_ns, False))
        begun += round(20 * beat)
    facts: dict[str, Any] = {"bpm": bpm, "rolls": rolls, "clicks": clicks, "late": [], "bars": bars}
    return jackdaw.Performance(**facts | changes)


def test_a_band_on_the_daws_grid_passes(suite: Any) -> None:
    for constant in (0, 512, -300):
        rows = list(suite.judged_midi("97", performance(constant=constant)))
        assert [row.ok for row in rows] == [True, True, True]
        assert rows[1].value == 1
        assert rows[2].value < 0.03
        assert f"{constant} frames" in rows[2].reason


def test_a_click_off_the_grid_is_found(suite: Any) -> None:
    clean = performance()
    clicks = [*clean.clicks[:5], clean.clicks[5] + 60, *clean.clicks[6:]]
    rows = list(suite.judged_midi("97", replace(clean, clicks=clicks)))
    assert [row.ok for row in rows] == [True, True, False]
    assert rows[2].value == pytest.approx(60 / 48, abs=0.03)


def test_a_click_of_the_bar_before_the_band_is_in_is_told_and_not_judged(suite: Any) -> None:
    clean = performance()
    early = sorted([*clean.clicks, clean.rolls[0][1] + 50_000])
    rows = list(suite.judged_midi("97", replace(clean, clicks=early)))
    assert [row.ok for row in rows] == [True, True, True]
    assert "; 1 of a first bar lay elsewhere" in rows[2].reason
    for bar in (2, 3):
        later = sorted([*clean.clicks, clean.rolls[0][1] + bar * 150_000])
        assert list(suite.judged_midi("97", replace(clean, clicks=later)))[2].ok is False


def test_a_band_that_runs_away_from_the_grid_is_found(suite: Any) -> None:
    clean = performance()
    clicks = [frame + round(1e-4 * (frame - clean.clicks[0])) for frame in clean.clicks]
    assert list(suite.judged_midi("97", replace(clean, clicks=clicks)))[2].ok is False


def test_a_wrong_bar_number_is_found(suite: Any) -> None:
    clean = performance()
    bars = [*clean.bars[:-1], replace(clean.bars[-1], song_bar=clean.bars[-1].song_bar - 1)]
    rows = list(suite.judged_midi("97", replace(clean, bars=bars)))
    assert (rows[0].value, rows[0].ok) == (1, False)
    resting = [replace(bar, song_bar=99, resting=True) for bar in clean.bars]
    rows = list(suite.judged_midi("97", replace(clean, bars=resting)))
    assert rows[0].value == 0


def test_a_band_that_comes_in_late_is_found_and_one_that_never_does(suite: Any) -> None:
    clean = performance()
    late = [frame for frame in clean.clicks if not 0 <= frame - clean.rolls[0][1] < 9 * 60 * RATE / 97]
    rows = list(suite.judged_midi("97", replace(clean, clicks=late)))
    assert (rows[1].value, rows[1].ok) == (3, False)
    rows = list(suite.judged_midi("97", replace(clean, clicks=[])))
    assert [row.ok for row in rows] == [True, False, False]


def test_a_roll_in_which_jack_missed_a_cycle_counts_in_nothing(suite: Any) -> None:
    clean = performance()
    begun, ended = clean.rolls[0][1], clean.rolls[0][3]
    clicks = [frame + 100 * (begun < frame < ended) for frame in clean.clicks]
    rows = list(suite.judged_midi("97", replace(clean, clicks=clicks, late=[begun + 10])))
    assert [row.ok for row in rows] == [True, True, True]
    assert "1 more were left out" in rows[0].reason
    late = [roll[1] for roll in clean.rolls]
    rows = list(suite.judged_midi("97", replace(clean, late=late)))
    assert [(row.value, row.ok) for row in rows] == [(None, None)] * 3
    assert [row.reason for row in suite.judged_midi("97", None)] == [suite.NO_JACK] * 3


def test_a_bar_that_is_bent_later_is_where_it_was_told_first() -> None:
    grid = {"tempo_above": 120, "bar": 5, "song_bar": 2, "frame": 96_000, "resting": 0}
    stream = {"time_ns": 10**9, "frame": 48_000}
    told = {"engine.grid": grid, "stream.status": stream}

    class Block:
        def __init__(self, name: str) -> None:
            self.read = lambda: told[name]

    class Live:
        class arena:  # noqa: N801
            status = Block

    jackdaw = importlib.import_module("jackdaw")
    seen = jackdaw.Grid(Live)
    seen.look()
    assert not seen.resting
    grid |= {"frame": 50_000, "resting": 1}
    seen.look()
    grid |= {"bar": 6, "song_bar": 9}
    seen.look()
    assert seen.bars[5] == jackdaw.BarTold(2, 2 * 10**9, False)
    assert seen.bars[6].song_bar == 9
    assert seen.resting


class Client:
    """A JACK client whose cycles a test turns."""

    def __init__(self) -> None:
        self.last_frame_time = 0
        self.events: list[tuple[int, bytes]] = []
        self.sound = np.zeros(128, np.float32)
        self.midi_outports = self.inports = self

    def register(self, name: str) -> Client:
        return self

    def clear_buffer(self) -> None: ...

    def write_midi_event(self, at: int, message: bytes) -> None:
        self.events.append((self.last_frame_time + at, message))

    def get_array(self) -> Any:
        return self.sound


def test_the_daw_ticks_on_its_own_grid_and_hears_where_a_click_begins() -> None:
    client = Client()
    daw = importlib.import_module("jackdaw").Daw(client, "97")
    for cycle in range(4000):
        client.last_frame_time = 10_000 + 128 * cycle
        client.sound[:] = 0
        if cycle in (100, 101, 600):
            client.sound[77:] = 0.5
        if cycle in (10, 2000):
            daw.order = 67
        if cycle == 1900:
            daw.order = -1
        daw(128)
    begun = daw.rolls[0][1]
    assert begun == 10_000 + 1280
    assert [event for event in client.events if event[0] == begun] == [
        (begun, bytes((0xF2, 268 & 127, 268 >> 7))), (begun, b"\xfb"), (begun, b"\xf8")
    ]  # fmt: skip
    ticks = [frame for frame, message in client.events if message == b"\xf8" and frame < daw.rolls[1][1]]
    assert ticks == [begun + round(Fraction(60 * RATE, 24 * 97) * number) for number in range(len(ticks))]
    assert daw.rolls[0][3] == 10_000 + 128 * 1900 == client.events[len(ticks) + 2][0]
    assert daw.clicks == [10_000 + 128 * 100 + 77, 10_000 + 128 * 600 + 77]


# -- calibration ---------------------------------------------------------------------------------------------------


def test_a_click_beside_its_frame_is_found(suite: Any) -> None:
    at = np.arange(3, 11) * suite.CLICK_EVERY
    assert suite.beside(at) == [0] * 8
    assert suite.beside(at + 1) == [1] * 8
    assert suite.beside(at - 5) == [-5] * 8
    good = suite.judged_calibration(640, 640.0, 3, suite.beside(at), 0)
    assert (good.value, good.ok) == (0, True)
    bad = suite.judged_calibration(640, 640.0, 3, [0, 0, -1, 0], 0)
    assert (bad.value, bad.ok) == (-1, False)
    assert suite.judged_calibration(640, 640.0, 3, [0, 128], 2).ok is None
    assert suite.judged_calibration(640, 640.0, 3, [], 0).value is None


def test_the_clicks_are_where_they_are_said_to_be(suite: Any) -> None:
    clicks = suite.Clicks(2, None)
    sound = np.concatenate([clicks.mix(frames) for frames in (100, 12_000, 7, 30_000)])
    assert np.flatnonzero(sound[:, 1]).tolist() == [0, 12_000, 24_000, 36_000]


def test_what_is_kept_for_a_user_is_left_alone(suite: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from bridge.roundtrips import state_file

    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "mine"))
    before = state_file()
    with suite.state_in(tmp_path / "bench"):
        assert sys.platform != "linux" or state_file().is_relative_to(tmp_path / "bench")
    assert state_file() == before


def test_the_suite_is_one_of_those_that_there_are(suite: Any) -> None:
    assert importlib.import_module("bench").suites()["bridge"] is suite.rows
