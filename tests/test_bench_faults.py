"""What the suite ``faults`` judges by: each planted fault is found, what is whole stays without a flaw."""

from __future__ import annotations

import importlib
import math
import signal
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from realtime.buffers import RecordRing
from realtime.clock import Meter, TempoMap

TOOLS = Path(__file__).resolve().parent.parent / "tools"
PERIOD_NS = 128 * 10**9 // 48000
SPAN_FRAMES = 24000


@pytest.fixture(scope="module")
def faults() -> Iterator[Any]:
    """Return the suite, imported as its runner imports it."""
    sys.path.insert(0, str(TOOLS))
    try:
        yield importlib.import_module("bench_faults")
    finally:
        sys.path.remove(str(TOOLS))


@pytest.fixture(scope="module")
def live(faults: Any) -> Any:
    """Return what the live suites share."""
    return faults.harness


@dataclass(frozen=True)
class Span:
    """What the judges look at of a take's span."""

    bar: int
    rung: int = 1
    cause: str = ""
    agent: str = "bass"
    frames: int = SPAN_FRAMES
    start: int = -1

    def __post_init__(self) -> None:
        if self.start < 0:
            object.__setattr__(self, "start", self.bar * SPAN_FRAMES)


def spans(*rungs: int, cause: str = "late", agent: str = "bass") -> list[Any]:
    """Return one span a bar; those below the first rung with a cause."""
    return [Span(bar, rung, cause if rung > 1 else "", agent) for bar, rung in enumerate(rungs)]


# The ladder


def test_a_fade_is_a_gap_only_after_the_first_good_bar_and_without_quarantine(faults: Any) -> None:
    assert faults.fades(spans(0, 0, 5, 1, 2, 3, 4, 1)) == []
    assert [span.bar for span in faults.fades(spans(0, 1, 5, 1, 5))] == [2, 4]
    assert faults.fades(spans(1, 1, 5, 5, cause="quarantined")) == []
    assert faults.fades(spans(0, 0, 0)) == []
    assert faults.fades([]) == []


def test_whoever_goes_down_the_ladder_says_why(faults: Any) -> None:
    assert faults.unexplained(spans(0, 1, 2, 3, 4, 5)) == []
    assert [span.bar for span in faults.unexplained(spans(0, 1, 2, 1, 4, cause=""))] == [2, 4]


def test_every_frame_belongs_to_one_span(faults: Any) -> None:
    whole = spans(0, 1, 1, 2)
    assert faults.missing(whole) == 0
    assert faults.missing(whole[:1] + whole[2:]) == SPAN_FRAMES, "one is missing"
    assert faults.missing([*whole[:2], *whole[1:]]) == SPAN_FRAMES, "one is there twice"
    assert faults.missing([]) == 0


def test_shares_count_from_each_agents_first_good_span(faults: Any) -> None:
    found = faults.shares([*spans(0, 0, 1, 1, 4), *spans(0, 1, 1, 1, 2, agent="keys")])
    assert found == {0: 0.0, 1: pytest.approx(500 / 7), 2: pytest.approx(100 / 7), 3: 0.0,
                     4: pytest.approx(100 / 7), 5: 0.0}  # fmt: skip
    assert faults.shares([]) == {}


# A worker's trouble


def test_an_agent_that_was_struck_has_to_play_again(faults: Any) -> None:
    expected = faults.Expected(("hang",))
    well = spans(0, 1, 1, 4, 3, 2, 1, 1)
    assert faults.worker_flaws(well, 3, ["hang"], expected) == []
    (flaw,) = faults.worker_flaws(well, 3, ["exit"], expected)
    assert "expected hang" in flaw
    (flaw,) = faults.worker_flaws(well[:6], 3, ["hang"], expected)
    assert "does not play again" in flaw
    (flaw,) = faults.worker_flaws(well[1:], 1, ["hang"], expected)
    assert "had not played before" in flaw
    (flaw,) = faults.worker_flaws(spans(0, 1, 1, 4, 5, 1, 1, 1), 3, ["hang"], expected)
    assert flaw == "1 spans faded, the first in bar 5"
    (flaw,) = faults.worker_flaws(spans(0, 1, 1, 4, 1, 1, cause=""), 3, ["hang"], expected)
    assert "do not say why, the first in bar 4" in flaw
    (flaw,) = faults.worker_flaws(well[:5] + well[6:], 3, ["hang"], expected)
    assert "24000 frames" in flaw


def test_three_strikes_have_to_end_in_quarantine(faults: Any) -> None:
    expected = faults.Expected(("exit",), again=False)
    left_out = [
        *spans(0, 1, 1, 4, 4),
        Span(5, 5, "quarantined"),
        Span(6, 5, "quarantined"),
        Span(7, 5, "quarantined"),
    ]
    assert faults.worker_flaws(left_out, 3, ["exit", "exit"], expected) == []
    assert faults.worker_flaws(spans(0, 1, 1, 4, 4, 4, 4, 4), 3, ["exit"], expected) == ["it was not quarantined"]


def test_every_trouble_has_an_expectation_and_a_group(faults: Any) -> None:
    played = [name for group in faults.GROUPS for name in group]
    assert sorted(played) == sorted(faults.EXPECTED)
    assert set(faults.QUICK) < set(played)
    assert set(faults.TROUBLES) | {"stopped"} == set(faults.EXPECTED)


# Respawns


def respawn(agent: str, detected: float, armed: float) -> Any:
    return SimpleNamespace(
        agent=agent, detected_ns=round(detected * 1e9), armed_ns=round(armed * 1e9), seconds=armed - detected
    )


def test_each_kill_is_matched_with_its_own_successor(faults: Any) -> None:
    second = 10**9
    kills = [faults.Kill("agent bass", 1 * second), faults.Kill("spare bass", 2 * second),
             faults.Kill("agent keys", 3 * second, warm=False), faults.Kill("agent bass", 6 * second)]  # fmt: skip
    respawns = [respawn("bass", 1.25, 1.5), respawn("keys", 3.5, 5.5), respawn("bass", 6.5, 7.5)]
    found = faults.replacements(kills, respawns)
    assert (found.warm, found.cold, found.noticed, found.lost) == ([0.25, 1.0], [2.0], [0.25, 0.5, 0.5], 0)
    assert faults.replacements(kills, respawns[:2]).lost == 1
    assert faults.replacements(kills[1:2], []).lost == 0, "nobody has to come after a spare in the band"
    assert faults.replacements([], respawns).warm == []


def test_who_is_hit_again_while_it_is_replaced_has_one_successor(faults: Any) -> None:
    kills = [faults.Kill("agent bass", 10**9), faults.Kill("agent bass", 3 * 10**9)]
    found = faults.replacements(kills, [respawn("bass", 1.25, 4.25)])
    assert (found.warm, found.cold, found.noticed, found.lost) == ([], [3.0], [0.25], 0)
    kills = [faults.Kill("agent bass", 10**9), faults.Kill("spare bass", 2 * 10**9)]
    found = faults.replacements(kills, [respawn("bass", 1.25, 4.25)])
    assert (found.warm, found.cold) == ([], [3.0]), "the one that was to take over was hit"


def test_the_percentile_of_a_few_is_the_worst(faults: Any) -> None:
    assert faults.quantiles([0.3, 0.1, 0.2]) == (0.2, 0.3)
    assert faults.quantiles([*range(1, 101)]) == (50, 99)
    assert faults.quantiles([*range(1, 1001)]) == (500, 990)
    assert faults.quantiles([]) == (math.inf, math.inf)


# Takes


@dataclass
class Take:
    """What the judges look at of a take."""

    truncated: bool = False
    frames: int = 1000
    end: Any = field(default_factory=lambda: SimpleNamespace(frames=1000, counters={}))
    pads: tuple[Any, ...] = ()
    spans: tuple[Any, ...] = (1,)


LENGTHS = {"input.wav": 1000, "mix.wav": 1000, "bass.wav": 1000}


def test_a_whole_take_has_no_flaw(faults: Any) -> None:
    assert faults.take_flaws(Take(), LENGTHS, closed=True) == []
    never_asked_for = SimpleNamespace(file="input.wav", start=900, frames=100)
    assert faults.take_flaws(Take(pads=(never_asked_for,)), LENGTHS, closed=True) == []
    cut = Take(end=None, truncated=True)
    assert faults.take_flaws(cut, LENGTHS | {"bass.wav": 990}, closed=False) == [], "nobody was there to close it"


@pytest.mark.parametrize(
    ("take", "lengths", "word"),
    [
        (Take(end=None), LENGTHS, "not closed"),
        (Take(truncated=True), LENGTHS, "cut off"),
        (Take(), LENGTHS | {"bass.wav": 999}, "differ in length"),
        (Take(end=SimpleNamespace(frames=999, counters={})), LENGTHS, "says 999"),
        (
            Take(end=SimpleNamespace(frames=1000, counters={"dropped_log_lines": 2})),
            LENGTHS,
            "dropped_log_lines is 2",
        ),
        (Take(pads=(SimpleNamespace(file="bass.wav", start=900, frames=100),)), LENGTHS, "sound were lost"),
        (Take(pads=(SimpleNamespace(file="input.wav", start=500, frames=100),)), LENGTHS, "sound were lost"),
        (Take(spans=()), LENGTHS, "no span"),
    ],
)
def test_what_is_wrong_with_a_take_is_said(faults: Any, take: Take, lengths: dict[str, int], word: str) -> None:
    assert any(word in flaw for flaw in faults.take_flaws(take, lengths, closed=True))


class Stems:
    """A take that is an array."""

    samplerate = 1000

    def __init__(self, sound: Any) -> None:
        self.stems = {"bass": 1}
        self._sound = sound

    def stem(self, name: str, start: int, frames: int) -> Any:
        return self._sound[start : start + frames]


def test_one_bit_in_a_replay_is_found_wherever_it_is(faults: Any) -> None:
    sound = np.random.default_rng(1).normal(0, 0.1, (130_000, 1)).astype(np.float32)
    assert faults.different_stems(Stems(sound), Stems(sound.copy()), len(sound)) == []
    for at in (0, 59_999, 60_000, 129_999):
        other = sound.copy()
        other[at] = np.nextafter(other[at], np.float32(1))
        assert faults.different_stems(Stems(sound), Stems(other), len(sound)) == ["bass"]
        assert faults.different_stems(Stems(sound), Stems(other), at) == [], "beyond what was played again"


def tone(seconds: float, samplerate: int = 48000) -> Any:
    """Return the tone that the network's agent holds."""
    at = np.arange(round(seconds * samplerate))
    return (0.1 * np.sin(2 * np.pi * 220 * at / samplerate)).astype(np.float32)[:, None]


def minutes(sound: Any, frames: int = 96000) -> Iterator[Any]:
    for at in range(0, len(sound), frames):
        yield sound[at : at + frames]


@pytest.mark.parametrize("at", [24000, 95_900, 96_000, 96_100, 191_990, 280_000])
def test_a_gap_and_a_click_in_a_tone_are_each_found_once(faults: Any, at: int) -> None:
    sound = tone(6)
    assert faults.tone_flaws(minutes(sound), 48000, 0, len(sound)) == (0, 0)
    stepped = sound.copy()
    stepped[at:] *= -1
    stepped[at:] += 0.02
    assert faults.tone_flaws(minutes(stepped), 48000, 0, len(sound))[1] == 1
    holed = sound.copy()
    fade = np.linspace(1, 0, 480, dtype=np.float32)[:, None]
    holed[at - 600 : at - 120] *= fade
    holed[at - 120 : at] = 0
    holed[at : at + 480] *= fade[::-1]
    assert faults.tone_flaws(minutes(holed), 48000, 0, len(sound))[0] == 1


def test_silence_outside_of_what_has_to_sound_is_no_gap(faults: Any) -> None:
    sound = tone(6)
    rise = np.linspace(0, 1, 4800, dtype=np.float32)[:, None]
    sound[:100_000] = 0
    sound[100_000:104_800] *= rise
    sound[250_000:] = 0
    sound[245_200:250_000] *= rise[::-1]
    assert faults.tone_flaws(minutes(sound), 48000, 101_000, 249_000) == (0, 0)
    assert faults.tone_flaws(minutes(sound), 48000, 0, 249_000)[0] >= 1


def test_an_end_on_a_bar_line_is_told_from_one_elsewhere(faults: Any) -> None:
    def ended(frames: int, level: float) -> Any:
        sound = np.full((frames, 2), level, np.float32)
        tempo_map = TempoMap.steady(48000, 240, Meter(2, 4))
        return SimpleNamespace(frames=frames, tempo_map=tempo_map, mix=lambda: iter([sound]))

    assert faults.end_flaws(ended(72000, 0.0)) == []
    assert faults.end_flaws(ended(72000, 0.1)) == ["it was not faded out"]
    assert faults.end_flaws(ended(72500, 0.0)) == ["it ends 500 frames from a bar line"]
    assert faults.end_flaws(ended(71500, 0.0)) == ["it ends -500 frames from a bar line"]


# What the live suites share


def test_the_longest_turn_is_between_two_turns(live: Any) -> None:
    table = np.zeros((100, 7), np.int64)
    table[:, 5] = np.arange(100) * PERIOD_NS
    table[60:, 5] += 5_000_000
    assert live.longest_turn_seconds(table) == pytest.approx((PERIOD_NS + 5_000_000) / 1e9)
    assert live.longest_turn_seconds(table[:1]) == 0


def test_being_told_to_end_unwinds_once(live: Any) -> None:
    before = signal.getsignal(signal.SIGTERM)
    cleared = []

    def be_told() -> None:
        with live.ended_in_order():
            try:
                signal.raise_signal(signal.SIGTERM)
            finally:
                signal.raise_signal(signal.SIGTERM)  # an impatient one: what is being ended is ended
                cleared.append(True)

    with pytest.raises(SystemExit) as ended:
        be_told()
    assert ended.value.code == 128 + signal.SIGTERM
    assert cleared == [True]
    assert signal.getsignal(signal.SIGTERM) is before


# Who makes the trouble


def test_a_writer_is_caught_in_the_middle(faults: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    troubles = importlib.import_module("troubles")
    hit: list[int] = []
    monkeypatch.setattr(troubles.os, "kill", lambda pid, number: hit.append(number))
    ring = RecordRing.private(4, 64)
    ring.post(b"whole")
    ring.post(troubles._Trap(b"half done", signal.SIGSTOP))
    assert hit == [signal.SIGSTOP]
    assert [ring.take(), ring.take(), ring.take()] == [b"whole", b"half done", None], "as nothing stopped it here"


def test_trouble_comes_over_one_process_and_strikes_over_all(faults: Any, tmp_path: Path) -> None:
    troubles = importlib.import_module("troubles")
    file = tmp_path / "trouble"
    file.write_text("nan 8")
    first, second = troubles.TroubledAgent(str(file)), troubles.TroubledAgent(str(file))
    assert first._struck(7) == ""
    assert (first._struck(8), second._struck(9)) == ("nan", "")
    file.write_text("strikes 8")
    assert [first._struck(8), second._struck(9)] == ["strikes", "strikes"]
