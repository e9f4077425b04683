"""The ladder in virtual time, in short: workers late, stalled, dead or full of rubbish, and who accounts for it."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from realtime.clock import TempoMap
from realtime.protocols import Clip, Origin, SpanRequest

TOOLS = Path(__file__).resolve().parent.parent / "tools"
RATE = 48000


def load(name: str) -> Any:
    """Import a tool as its runner does: its folder stands first on the path."""
    sys.path.insert(0, str(TOOLS))
    try:
        return importlib.import_module(name)
    finally:
        sys.path.remove(str(TOOLS))


faults, ladder = load("faults"), load("bench_ladder")
Account, Seat, Stage = ladder.Account, ladder.Seat, ladder.Stage


def struck(seats: list[Any], bars: int, **more: Any) -> Any:
    """Let a band play, and expect it never to stop: no gap, no click, nothing unexplained."""
    outcome = ladder.play(seats, bars, **more)
    assert outcome.broken == 0, outcome.evidence()
    assert outcome.account.wrong == 0, outcome.account.unexplained[:3]
    return outcome


def test_a_band_struck_in_a_fifth_of_its_spans_never_stops() -> None:
    conductor = ladder.Conductor(3, tempi=ladder.FAST)
    outcome = struck(ladder.band(("lead", "beats", "second", "echo"), 0.2), 70, conductor=conductor, supervised=True)
    assert {1, 2, 3, 4} <= set(outcome.account.spans)
    assert outcome.account.spans[1] > 0.5 * outcome.spans
    assert outcome.stage.engine.counters["late_changes"] == 0
    assert sum(conductor.announced.values()) > 3


@pytest.mark.parametrize("kind", faults.KINDS)
def test_each_fault_costs_its_own_stem_a_rung_and_nobody_anything_else(kind: str) -> None:
    script = faults.RandomFaults(2, 0.5, RATE, (kind,))
    seats = [Seat("struck", ladder.ToneAgent, script=script), Seat("well", ladder.ToneAgent)]
    outcome = struck(seats, 24, bpm=400, supervised=True)
    port = outcome.stage.ports["struck"]
    assert port.struck[kind] > 5
    others = outcome.account.spans.total() - outcome.account.spans[1]
    assert others == 0 if kind in ("twice", "early") else others > 1
    assert outcome.watches["well"].gap_frames == 0


def test_answers_that_never_come_do_not_use_up_an_agents_places() -> None:
    """Every third answer is lost; the agent answers on, where after ten such losses it once had no place left."""

    def script(request: SpanRequest) -> Any:
        return faults.Fault("garbage", faults.ATTEMPTS) if request.span.bar % 3 == 0 else None

    outcome = ladder.play([Seat("model", ladder.ToneAgent, script=script)], 60, bpm=320)
    assert "no free clip slot" not in "".join(outcome.account.unexplained)
    assert outcome.account.spans[1] > 30


def test_the_echo_has_no_hole_where_it_could_not_hear_yet() -> None:
    """A speculative answer is asked for a lead before its source has ended."""

    def script(request: SpanRequest) -> Any:
        return faults.Fault("raises", (faults.FINAL,))

    outcome = ladder.play([seat_of("echo", script)], 12)
    assert outcome.account.spans[2] > 5
    assert outcome.broken == 0, outcome.evidence()


def seat_of(name: str, script: Callable[[SpanRequest], Any]) -> Any:
    """Return one of the suite's seats with a script of its own."""
    (seat,) = ladder.band((name,), 0)
    return Seat(seat.name, seat.build, seat.grid_beats, seat.follows, script=script)


def test_a_model_stalled_for_ever_leaves_no_frame_empty() -> None:
    seats = [Seat("model", ladder.ToneAgent, script=faults.stalled_from(ladder.FIRST_BAR + 2))]
    outcome = struck(seats, 60, bpm=240, blocksize=48000)
    assert outcome.watches["model"].gap_frames == 0
    assert outcome.mix_frames == outcome.stage.engine.mixed
    assert outcome.account.spans[4] > 50


def test_a_successor_goes_on_with_the_state_of_the_dead() -> None:
    def script(request: SpanRequest) -> Any:
        return faults.Fault("kill", faults.ATTEMPTS, 100, 4800) if request.span.bar % 6 == 5 else None

    outcome = struck([Seat("model", ladder.ToneAgent, script=script)], 40)
    port = outcome.stage.ports["model"]
    assert len(port.down) > 4
    assert port.generation() == len(port.down)
    confirmed = port._runner.agent.confirmed
    assert confirmed >= outcome.account.spans.total() - len(port.down), (
        "only what sounded while nobody was there is lost"
    )


def test_what_comes_out_does_not_depend_on_the_size_of_blocks() -> None:
    stems = []
    for blocksize in (300, 8192):
        stage = Stage(
            ladder.band(("lead", "beats", "second"), 0.5), TempoMap.steady(RATE, 320), blocksize=blocksize,
            longest_span_seconds=8, first_bar=3,
        )  # fmt: skip
        while stage.engine.mixed < 12 * 36000:
            stage.advance(np.zeros((min(blocksize, 12 * 36000 - stage.engine.mixed), 1), np.float32))
        stems.append([stage.memory.stems[name].read(0, 12 * 36000) for name in stage.ports])
    assert all(np.array_equal(one, other) for one, other in zip(*stems, strict=True))
    assert all(np.abs(stem).max() > 0.1 for stem in stems[0])


@pytest.fixture(scope="module")
def clips_on_wav(tmp_path_factory: pytest.TempPathFactory) -> list[Any]:
    """Return the rows of the alignment, from a short run."""
    return list(ladder.alignment_rows(tmp_path_factory.mktemp("wav"), load("rows").Options(True, None), bars=40))


def test_stems_stand_on_the_grid_through_ramps_meters_seeks_and_loops(clips_on_wav: list[Any]) -> None:
    assert [(row.name, row.value) for row in clips_on_wav if not row.ok] == []
    assert {row.value for row in clips_on_wav} == {0}
    assert sum("late joins" in row.reason for row in clips_on_wav) == 2


# Who watches: what is planted is found


class HollowAgent(ladder.ToneAgent):  # type: ignore[misc, name-defined]
    """Has a hole of 100 frames in every clip."""

    def realise(self, request: SpanRequest, origin: Origin) -> Clip:
        clip: Clip = super().realise(request, origin)
        audio = clip.audio.copy()
        audio[5000:5100] = 0
        return Clip(audio, clip.lead_in, clip.origin)


def test_holes_and_hard_cuts_are_found() -> None:
    hollow = ladder.play([Seat("hollow", HollowAgent)], 20)
    assert len(hollow.watches["hollow"].gaps) > 14
    with ladder.hard_cuts():
        cut = ladder.play(ladder.band(("lead",), 0.2), 20)
    assert len(cut.watches["lead"].clicks) > 8
    whole = ladder.play(ladder.band(("lead",), 0.0), 20)
    assert whole.broken == 0


def test_a_take_that_says_something_else_than_what_happened_is_found() -> None:
    lines: list[dict[str, Any]] = []
    seats = ladder.band(("lead",), 0.5)
    stage = Stage(seats, TempoMap.steady(RATE, 320), log=lines.append, longest_span_seconds=8, first_bar=3)
    account = Account(stage.ports)
    lies = 0
    for _ in range(120):
        lines.clear()
        stage.advance(np.zeros((8192, 1), np.float32))
        for line in lines:
            if line["type"] == "span" and line["bar"] % 3 == 0:
                line = line | ({"rung": line["rung"] % 4 + 1} if line["bar"] % 2 else {"cause": "the weather"})
                lies += 1
            account(line)
    assert account.wrong >= lies > 5
    assert "the weather" in "".join(account.unexplained)


def test_the_grid_is_summed_up_as_a_musician_would() -> None:
    changes = {
        1: ladder.TempoChange(1, tempo=Fraction(120)),
        2: ladder.TempoChange(2, meter=ladder.Meter(3, 4)),
        3: ladder.TempoChange(3, tempo=Fraction(60), ramp_beats=2),
    }
    bars = [next_bar for next_bar, _ in zip(ladder.bars_of(changes, Fraction(60)), range(5), strict=False)]
    assert [len(bar.beats) for bar in bars] == [4, 4, 3, 3, 3]
    assert [bar.beats[0] for bar in bars[:4]] == [0, 4 * RATE, 6 * RATE, Fraction(15 * RATE, 2)]
    lengths = [60 * RATE / Fraction(tempo) for tempo in (105, 75, 60)]
    assert bars[4].beats[0] - bars[3].beats[0] == sum(lengths)
    looped = ladder.seeking(bars, {1: ladder.Locate(1, 3, 1)})
    assert [place for (place, _), _ in zip(looped, range(4), strict=False)] == [0, 3, 3, 3]
