"""How the time of a take went: rungs, causes, margins at every hop, and whether every span is accounted for."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rigs import RATE as ENGINE_RATE
from rigs import NoiseAgent, Rig

from bridge.ledger import CAUSES, Course, Margins, Step, account_words, cause_words, courses
from bridge.recorder import SpanLine, TakeReader, TakeWriter
from bridge.tap import Tap, new_take, take_header
from realtime.clock import Locate, Meter, TempoChange, TempoMap
from realtime.engine import Command
from realtime.protocols import SpanRequest
from realtime.voice import NEVER

RATE, BAR, JOIN = 8000, 16000, 80
Lines = list[dict[str, Any]]


def span(bar: int, agent: str = "keys", **more: Any) -> dict[str, Any]:
    """Return the line of a bar, decided a join before it; by default by its final answer."""
    line = {"type": "span", "agent": agent, "bar": bar, "beat": "0", "beats": "4", "start": BAR * bar, "frames": BAR,
            "rung": 1, "cause": "", "deadline": max(0, BAR * bar - JOIN),
            "decided": max(0, BAR * bar - JOIN)}  # fmt: skip
    return line | more


def request(bar: int, attempt: int = 1, agent: str = "keys") -> dict[str, Any]:
    return {"type": "request", "agent": agent, "attempt": attempt, "bar": bar, "beat": "0", "beats": "4",
            "start": BAR * bar, "frames": BAR, "posted": 0, "context_end": 0}  # fmt: skip


def read(folder: Path, lines: Iterable[dict[str, Any]], bars: float = 8, **header: Any) -> TakeReader:
    """Write a take of so many bars with these lines, and read it."""
    with TakeWriter(folder, {"samplerate": RATE, **header}, [("keys", 1), ("bass", 1)], 1, 2) as writer:
        writer.log({"type": "tempo", "frame": 0, "bar": 0, "tempo": "120", "meter": "4/4"})
        for line in lines:
            writer.log(line)
        writer.close(round(bars * BAR))
    return TakeReader(folder)


def whole(bars: int = 9, **more: dict[str, Any]) -> Lines:
    """Return every span of two agents, and the one that is decided before the end."""
    return [span(bar, agent) for agent in ("keys", "bass") for bar in range(bars)]


def of_keys(folder: Path, lines: Iterable[dict[str, Any]], **more: Any) -> Course:
    return courses(read(folder, lines, **more))[0]


# --- rungs, causes, what was late ---


def test_rungs_and_causes_are_counted(tmp_path: Path) -> None:
    rungs = [(0, "loading"), (1, ""), (2, "late"), (3, "lost"), (3, "lost"), (4, "NaN"), (5, "quarantined"), (1, "")]
    lines = [line for bar in range(8) for line in (request(bar), request(bar, 0))]
    course = of_keys(tmp_path / "take", [*lines, *(span(b, rung=r, cause=c) for b, (r, c) in enumerate(rungs))])
    assert dict(course.rungs) == {0: 1, 1: 2, 2: 1, 3: 2, 4: 1, 5: 1}
    assert dict(course.causes) == {"loading": 1, "late": 1, "lost": 2, "NaN": 1, "quarantined": 1}
    assert (course.finals, course.late_finals, course.late_per_1000_bars) == (8, 1, 125.0)
    assert [s.bar for s in course.fallen] == [2, 3, 4, 5, 6]
    assert not course.well


def test_an_agent_that_rests_because_it_will_is_well_and_one_that_never_could_play_is_not(tmp_path: Path) -> None:
    causes = {"wish": ["", "", ""], "at first": ["loading", "loading", ""], "never": ["loading"] * 3}
    wells = {}
    for name, those in causes.items():
        course = of_keys(tmp_path / name, [span(b, rung=0, cause=c) for b, c in enumerate(those)], bars=2.9)
        wells[name] = course.well
    assert wells == {"wish": True, "at first": True, "never": False}


def test_a_late_final_is_one_that_was_asked_for(tmp_path: Path) -> None:
    """A question that could not be sent says nothing about the agent."""
    lines = [request(1), request(2, 0), *(span(b, rung=2, cause="late") for b in range(3))]
    course = of_keys(tmp_path / "take", lines)
    assert (course.finals, course.late_finals) == (1, 1)


@pytest.mark.parametrize("cause", [*CAUSES, "NaN or infinity in the clip"])
def test_every_cause_has_words(cause: str) -> None:
    assert len(cause_words(cause)) > 15
    assert cause in CAUSES or cause in cause_words(cause)


# --- margins ---


def test_each_hop_has_its_margin(tmp_path: Path) -> None:
    hops = {"heard": [900, 880], "request": [1000, 1010], "ready": [15920, 15000], "mixed": [15920, 15400]}
    never = hops | {"ready": [31920, None]}
    lines = [span(0), span(1, hops=hops), span(2, hops=never, rung=2, cause="late")]
    place = {"type": "out", "agent": "keys", "beat": "0"}
    lines += [
        {**place, "bar": 1, "wanted": 16000, "actual": 16000, "margin_frames": 300},
        {**place, "bar": 2, "wanted": 32000, "actual": None, "margin_frames": None, "cause": "no device was there"},
    ]
    course = of_keys(tmp_path / "take", lines)
    assert {hop: [step.margin_frames for step in steps] for hop, steps in course.hops.items()} == {
        "heard": [-20, -20],
        "request": [-10, -10],
        "ready": [920, None],
        "mixed": [520, 520],
        "out": [300, None],
    }
    assert course.margins("ready") == Margins(2, 115.0, 115.0, 115.0, 1)
    assert course.margins("out").late == 1


def test_a_take_of_before_has_the_margins_of_its_answers(tmp_path: Path) -> None:
    course = of_keys(tmp_path / "take", [span(0, margin_frames=80), span(1, rung=2, margin_frames=-8), span(2)])
    assert [step.margin_frames for step in course.hops["ready"]] == [80, -8]
    assert list(course.hops) == ["ready"]


@given(st.lists(st.one_of(st.none(), st.integers(-5000, 5000)), max_size=300))
def test_quantiles_are_margins_that_happened(margins: list[int | None]) -> None:
    line = SpanLine("keys", 0, Fraction(0), Fraction(4), 0, BAR, 1)
    found = Margins.of([Step(line, margin) for margin in margins], 1000)
    came = sorted(margin for margin in margins if margin is not None)
    assert found.late == sum(margin is None or margin < 0 for margin in margins)
    if not came:
        assert (found.median_ms, found.p1_ms, found.worst_ms) == (None, None, None)
        return
    assert found.worst_ms == came[0]
    assert found.median_ms is not None
    assert found.p1_ms is not None
    assert found.worst_ms <= found.p1_ms <= found.median_ms
    assert sum(margin < found.p1_ms for margin in came) <= len(came) / 100
    assert sum(margin < found.median_ms for margin in came) <= len(came) / 2


# --- what happened to the workers ---


def test_workers_that_were_replaced_and_budgets_are_told_in_time(tmp_path: Path) -> None:
    agent = {"agent": "keys"}
    lines = [
        {"type": "armed", **agent, "budget_frames": 900},  # no frame: of the first line that has none before it
        span(0), span(1),
        {"type": "budget", **agent, "budget_frames": 1100, "p50_seconds": 0.1, "p99_seconds": 0.2},
        {"type": "worker", **agent, "frame": 20000, "generation": 1, "event": "lost", "requests": 2},
        {"type": "armed", **agent, "frame": 22400, "generation": 1, "budget_frames": 1000},
        {"type": "worker", **agent, "frame": 50000, "generation": 2, "event": "lost", "requests": 0},
        {"type": "command", "frame": 60000, "command": {"do": "quarantine", "target": "keys"}},
        {"type": "command", "frame": 6000, "command": {"do": "quarantine", "target": "bass"}},
        *(span(b) for b in range(2, 5)), *(span(b, rung=5, cause="quarantined") for b in range(5, 9)),
        {"type": "stray", **agent, "bar": 3, "beat": "0", "attempt": 1, "arrived": 49000, "fault": ""},
    ]  # fmt: skip
    keys, bass = courses(read(tmp_path / "take", lines))
    assert [(event.frame, event.what) for event in keys.events] == [
        (22400, "new worker"), (50000, "lost worker"), (60000, "quarantine")
    ]  # fmt: skip
    assert (keys.respawns, keys.deserted, keys.away_ms, keys.quarantined, keys.strays) == (1, 1, [300.0], 60000, 1)
    assert keys.budgets == [(0, 900), (15920, 1100), (22400, 1000)]
    assert (bass.quarantined, bass.respawns) == (6000, 0)


@pytest.mark.parametrize(
    ("came", "deserted", "away_ms"), [([], 2, []), ([2], 0, [500.0]), ([1, 2], 0, [100.0, 300.0])]
)
def test_a_worker_that_came_later_took_the_place_of_all_that_were_lost_before(
    tmp_path: Path, came: list[int], deserted: int, away_ms: list[float]
) -> None:
    lost = {1: 20000, 2: 21600}
    lines = [
        {"type": "worker", "agent": "keys", "frame": frame, "generation": number, "event": "lost"}
        for number, frame in lost.items()
    ]
    frames = {1: 20800, 2: 24000}
    lines += [{"type": "armed", "agent": "keys", "frame": frames[number], "generation": number} for number in came]
    keys = of_keys(tmp_path / "take", [*lines, *whole()])
    assert (keys.deserted, keys.away_ms) == (deserted, away_ms)


def test_why_a_worker_was_lost_is_read_where_it_is_written(tmp_path: Path) -> None:
    loss = {"type": "worker", "agent": "keys", "event": "lost"}
    lines = [
        {**loss, "frame": 9, "generation": 1, "cause": "killed by signal 9"},
        {**loss, "frame": 99, "generation": 2},
    ]
    assert [event.cause for event in of_keys(tmp_path / "take", lines).events] == ["killed by signal 9", ""]


def test_in_virtual_time_there_are_no_margins(tmp_path: Path) -> None:
    """A render waits for every answer, so that each comes the moment it is asked for."""
    hops = {"heard": [900, 900], "request": [1000, 1000], "ready": [15920, 1000]}
    assert of_keys(tmp_path / "render", [span(b, hops=hops) for b in range(3)]).hops == {}
    live = [span(b, hops=hops | {"mixed": [15920, 15400]}) for b in range(3)]
    assert list(of_keys(tmp_path / "live", live).hops) == ["heard", "request", "ready", "mixed"]


# --- the account ---


def test_a_whole_take_is_accounted_for(tmp_path: Path) -> None:
    found = courses(read(tmp_path / "take", whole(), engine={"first_bar": 0}))
    assert all(course.account.whole and course.well for course in found)
    assert [len(course.spans) for course in found] == [8, 8], "what begins at the end does not sound"
    assert account_words(found) == [
        "Every span of every agent is accounted for: 16 spans, and 2 that were to begin after the end; each decided "
        "once, none missing."
    ]


def beat(number: int) -> dict[str, Any]:
    start = number * BAR // 4
    return span(number // 4, beat=str(number % 4), beats="1", start=start, frames=BAR // 4, deadline=start - JOIN)


def test_spans_of_a_beat_that_cross_bar_lines_are_accounted_for(tmp_path: Path) -> None:
    assert of_keys(tmp_path / "take", map(beat, range(33))).account.whole


@pytest.mark.parametrize(
    ("change", "missing", "double", "words"),
    [
        (lambda lines: lines[1:], ((None, 1),), (), "spans are missing before bar 2"),
        (lambda lines: lines[:4] + lines[5:], ((3, 5),), (), "spans are missing between bars 4 and 6"),
        (lambda lines: lines[:-1], ((7, None),), (), "spans are missing after bar 8"),
        (lambda lines: [*lines[:4], lines[3], *lines[4:]], (), (3,), "a span is there twice in bar 4"),
        (lambda lines: [*lines[:4], lines[4] | {"start": BAR * 4 - 9}, *lines[5:]], ((4, 5),), (4,), "bar 5"),
        (lambda lines: [], ((None, None),), (), "none of its spans is there"),
    ],
)
def test_what_is_missing_or_double_is_said(
    tmp_path: Path, change: Callable[[Lines], Lines], missing: object, double: object, words: str
) -> None:
    keys = [span(bar) for bar in range(9)]
    take = read(tmp_path / "take", [*change(keys), *(span(bar, "bass") for bar in range(9))], engine={"first_bar": 0})
    course, bass = courses(take)
    assert (course.account.missing, course.account.double) == (missing, double)
    assert bass.account.whole
    assert not course.well
    (said,) = account_words([course, bass])
    assert said.startswith("keys: ")
    assert words in said


def test_a_beat_that_is_missing_inside_a_bar_is_found(tmp_path: Path) -> None:
    beats = [beat(number) for number in range(33) if number != 14]
    assert of_keys(tmp_path / "take", beats).account.missing == ((3, 3),)


def test_a_span_that_was_given_another_length_while_it_sounded_counts_with_it(tmp_path: Path) -> None:
    longer = BAR * 3 + BAR // 2
    lines = [span(b) for b in range(3)]
    lines += [{"type": "retime", "agent": "keys", "bar": 2, "beat": "0", "beats": "4", "start": BAR * 2,
               "frames": longer - BAR * 2, "decided": BAR * 2 + 500}]  # fmt: skip
    lines += [span(3, start=longer), span(4, start=longer + BAR)]
    course = of_keys(tmp_path / "take", lines, bars=4)
    assert course.account.whole
    assert course.spans[2].frames == BAR + BAR // 2
    without = of_keys(tmp_path / "other", [line for line in lines if line["type"] != "retime"], bars=4)
    assert without.account.missing == ((2, 3),)


def test_no_span_at_all_is_said_so(tmp_path: Path) -> None:
    assert account_words(courses(read(tmp_path / "take", []))) == ["No agent has played a span."]


# --- the engine's own lines ---


def played(folder: Path, rig: Rig, bars: int) -> TakeReader:
    """Let a rig play so many bars into a take."""
    take = new_take(folder, rig.config, take_header(rig.config, "1", ""))
    tap, silence, at = Tap(take, rig.memory), np.zeros((rig.spec.blocksize, 1), np.float32), 0
    while rig.engine.mixed < rig.engine.transport.map.bar_frame(bars):
        rig.engine.hear(silence)
        rig.engine.mix(rig.spec.blocksize)
        if at % 50 == 0:
            write(take, tap, rig)
        at += 1
    write(take, tap, rig)
    take.close(rig.engine.mixed)
    return TakeReader(folder)


def write(take: TakeWriter, tap: Tap, rig: Rig) -> None:
    tap.mark()
    for line in rig.log:
        take.log(line)
    rig.log.clear()
    tap.drain()


def stalls(seed: int) -> Callable[[SpanRequest], int]:
    """Return delays of which one in three is too long, or for ever."""
    rng = np.random.default_rng(seed)

    def delay(request: SpanRequest) -> int:
        return int(rng.choice([0, 0, 0, 0, 6000, 40000, NEVER]))

    return delay


@settings(max_examples=6, deadline=None)
@given(
    seed=st.integers(0, 99),
    grid=st.sampled_from([Fraction(0), Fraction(1), Fraction(3, 2)]),
    wishes=st.lists(
        st.one_of(
            st.builds(lambda bar, beat, bpm: TempoChange(bar, Fraction(beat), Fraction(bpm)),
                      st.integers(1, 8), st.integers(0, 2), st.sampled_from([90, 150])),
            st.builds(lambda bar, count: TempoChange(bar, meter=Meter(count, 4)),
                      st.integers(1, 8), st.integers(3, 5)),
            st.builds(Locate, st.integers(1, 8), st.integers(0, 20), st.integers(0, 2)),
        ),
        max_size=3,
    ),
)  # fmt: skip
def test_whatever_happens_the_engine_accounts_for_every_span(
    tmp_path_factory: pytest.TempPathFactory, seed: int, grid: Fraction, wishes: Sequence[TempoChange | Locate]
) -> None:
    """Late and lost answers, tempo, meter and place changed on the way: no span is missing, none is there twice."""
    script = sorted(
        (
            (max(0, wish.bar - 1) * 2 * ENGINE_RATE + 30000,
             Command("locate", locate=wish) if isinstance(wish, Locate) else Command("tempo", change=wish))
            for wish in wishes
        ),
        key=lambda step: step[0],
    )  # fmt: skip
    rig = Rig(
        {"keys": NoiseAgent(), "bass": NoiseAgent()}, TempoMap.steady(ENGINE_RATE, 120), delay=stalls(seed),
        grid_beats=grid, script=script, blocksize=2048, lead=4096,
    )  # fmt: skip
    take = played(tmp_path_factory.mktemp("takes") / "take", rig, 10)
    found = courses(take)
    assert all(course.account.whole for course in found), account_words(found)
    assert all(course.spans[0].bar == 0 for course in found)
    assert sum(course.late_finals for course in found) == sum(part.ledger()[9] for part in rig.engine.parts)
    heard = [take.tempo_map.bar_frame(bar) for bar in range(10)]
    assert heard == [rig.engine.transport.map.bar_frame(bar) for bar in range(10)]
