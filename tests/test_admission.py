"""Admission: what fits is left alone, what does not gives way as little as possible; every verdict has figures."""

from __future__ import annotations

import math
from dataclasses import replace
from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from realtime.admission import (
    WHOLE_BAR,
    Bar,
    Candidate,
    Cost,
    Decision,
    Verdict,
    admit,
    bars_of,
    room_seconds,
)
from realtime.clock import Meter, TempoMap, Timeline

FOUR = Bar(Fraction(4), 2.0)  # 4/4 at 120: a beat takes 500 ms
BEAT = Fraction(1)


def agent(name: str, final_ms: float, grid: Fraction = WHOLE_BAR, **more: object) -> Candidate:
    """Return an agent that takes as long for the speculative answer as for the final one."""
    return replace(Candidate(name, Cost(final_ms / 1000, final_ms / 1000), grid), **more)  # type: ignore[arg-type]


def decisions(*band: Candidate, cores: int = 2, bars: tuple[Bar, ...] = (FOUR,)) -> list[str]:
    return [verdict.decision.value for verdict in admit(band, bars, cores)]


# By example


def test_who_fits_is_admitted_with_figures() -> None:
    [bass, keys] = admit([agent("bass", 60, BEAT), agent("keys", 200)], [FOUR], 2)
    assert bass.decision is keys.decision is Decision.ADMITTED
    assert bass.sentence == "agent 'bass' takes 60 ms for a beat of 500 ms"
    assert keys.sentence == "agent 'keys' takes 200 ms for a bar of 2000 ms"


def test_too_slow_for_its_span_goes_to_the_next_grid_that_is_long_enough() -> None:
    [bass] = admit([agent("bass", 350, BEAT)], [FOUR], 4)
    assert (bass.decision, bass.grid_beats) == (Decision.COARSER, Fraction(2))
    assert bass.sentence == (
        "agent 'bass' takes 350 ms for a beat of 500 ms; agent 'bass' needs 530 ms to answer for a beat of 500 ms: "
        "it is tried by 2 beats"
    )


def test_too_much_together_the_smallest_step_that_is_enough_is_taken() -> None:
    # 8 * 100 + 8 * 105 = 1.64 s where 1.6 s are there; two beats at a time, either gives 0.4 s back
    verdicts = admit([agent("bass", 105, BEAT), agent("keys", 100, BEAT)], [FOUR], 2)
    assert [(verdict.decision, verdict.grid_beats) for verdict in verdicts] == [
        (Decision.ADMITTED, BEAT),
        (Decision.COARSER, Fraction(2)),
    ]
    assert verdicts[1].sentence == (
        "agent 'keys' takes 100 ms for a beat of 500 ms; the band together takes 1.64 s for a bar of 2.00 s, where "
        "2 cores leave it 1.60 s: it is tried by 2 beats"
    )


def test_a_light_agent_is_not_made_coarser_where_that_does_not_help() -> None:
    heavy = agent("keys", 700, lighter=("steps = 4",))
    verdicts = admit([agent("bass", 40, BEAT), heavy], [FOUR], 2)
    assert [verdict.decision for verdict in verdicts] == [Decision.COARSER, Decision.ADMITTED]
    assert decisions(agent("bass", 10, BEAT), replace(heavy, cost=Cost(0.9, 0.9))) == ["admitted", "lighter"]


def test_nobody_is_refused_where_the_others_can_make_room() -> None:
    # By half beats the bass is the greater load, but it is the keys that no grid can help.
    assert decisions(agent("bass", 75, Fraction(1, 2)), agent("keys", 1000)) == ["admitted", "refused"]
    assert decisions(agent("bass", 75, Fraction(1, 2)), agent("keys", 700)) == ["coarser", "admitted"]


def test_who_can_go_no_lighter_is_refused_and_told_what_would_help() -> None:
    [bass, keys] = admit([agent("bass", 500), agent("keys", 600)], [FOUR], 2)
    assert (bass.decision, keys.decision) == (Decision.REFUSED, Decision.ADMITTED)
    assert bass.sentence.startswith("agent 'bass' takes 500 ms for a bar of 2000 ms; the band together takes 2.20 s")
    assert bass.sentence.endswith("it rests; a smaller model, fewer agents or a slower tempo would make room")


def test_of_equals_the_later_in_the_session_gives_way() -> None:
    assert decisions(agent("a", 300), agent("b", 300), agent("c", 300)) == ["admitted", "admitted", "refused"]


def test_the_budgets_of_those_who_follow_add_up() -> None:
    leader, follower = agent("keys", 200, BEAT), agent("bass", 150, BEAT, follows=("keys",))
    [keys, bass] = admit([leader, follower], [FOUR], 8)
    assert (keys.decision, keys.grid_beats) == (Decision.COARSER, Fraction(2))
    assert (bass.decision, bass.grid_beats) == (Decision.COARSER, Fraction(2)), "a plan is for a span"
    assert "'keys' needs 305 ms to answer, and 'bass' after it 230 ms more, for a beat of 500 ms" in keys.sentence
    assert decisions(leader, replace(follower, follows=()), cores=8) == ["admitted", "admitted"]


def test_a_chain_that_no_bar_holds_lets_go_of_its_slowest() -> None:
    band = agent("keys", 600), agent("bass", 300, follows=("keys",)), agent("horn", 500, follows=("bass",))
    assert decisions(*band, cores=8) == ["refused", "admitted", "admitted"]
    lighter = replace(band[2], lighter=("steps = 2",))
    assert decisions(band[0], band[1], lighter, cores=8) == ["admitted", "admitted", "lighter"]


def test_what_the_session_says_of_a_budget_holds() -> None:
    assert decisions(agent("bass", 350, BEAT, budget_seconds=0.4), cores=8) == ["admitted"]
    assert decisions(agent("bass", 10, BEAT, budget_seconds=0.6)) == ["coarser"]


def test_who_plays_already_is_counted_and_left_alone() -> None:
    playing = agent("bass", 600, settled=True, lighter=("steps = 1",))
    assert decisions(playing, agent("keys", 300)) == ["admitted", "refused"]
    assert decisions(playing, agent("keys", 190)) == ["admitted", "admitted"]


def test_who_was_not_timed_waits_and_takes_no_room() -> None:
    waits = Candidate("bass", None)
    [bass, _] = admit([waits, agent("keys", 790)], [FOUR], 2)
    assert (bass.decision, bass.sentence) == (Decision.WAITS, "agent 'bass' has not been timed yet")
    assert decisions(waits, agent("keys", 790)) == ["waits", "admitted"]


def test_one_core_has_room_for_a_small_band() -> None:
    assert room_seconds(FOUR, 1) == pytest.approx(0.8)
    assert decisions(agent("bass", 390), cores=1) == ["admitted"]
    [bass] = admit([agent("bass", 410)], [FOUR], 1)
    assert bass.decision is Decision.REFUSED
    assert "where one core leaves it 0.80 s" in bass.sentence


def test_every_bar_of_the_session_counts_at_its_fastest() -> None:
    seven, rate = Meter(7, 8), 48000
    tempo_map = TempoMap(
        (
            Timeline(rate, Fraction(120)),
            Timeline(rate, Fraction(60), seven, Fraction(4 * rate), Fraction(8), 2, Fraction(8)),
            Timeline(rate, Fraction(140), seven, Fraction(18 * rate), Fraction(22), 6, Fraction(22)),
        )
    )
    bars = bars_of(tempo_map)
    assert bars == (FOUR, Bar(Fraction(7, 2), 1.5))
    # By two beats 7/8 has two spans in 1.5 s, 4/4 two in 2 s: what fits the one does not fit the other.
    assert decisions(agent("bass", 350, Fraction(2)), bars=(FOUR,)) == ["admitted"]
    assert decisions(agent("bass", 350, Fraction(2)), bars=bars) == ["coarser"]


@pytest.mark.parametrize(("bars", "cores"), [((), 2), ((FOUR,), 0)])
def test_nothing_to_judge_by_is_an_error(bars: tuple[Bar, ...], cores: int) -> None:
    with pytest.raises(ValueError, match="at least one of each"):
        admit([agent("bass", 1)], bars, cores)


# Whatever the band


GRIDS = [WHOLE_BAR, Fraction(1, 2), BEAT, Fraction(3, 2), Fraction(2), Fraction(64)]
BARS = st.sampled_from(
    [(FOUR,), (Bar(Fraction(7, 2), 1.2),), (FOUR, Bar(Fraction(3), 0.9)), (Bar(Fraction(5, 4), 0.4), FOUR)]
)
CORES = st.integers(1, 5)


@st.composite
def bands(draw: st.DrawFn) -> list[Candidate]:
    """Return up to six agents, each of whom may follow some of those before it."""
    seconds = st.sampled_from([0.0, 0.001, 0.02, 0.05, 0.1, 0.1, 0.25, 0.4, 1.0, 3.0])
    band: list[Candidate] = []
    for index in range(draw(st.integers(1, 6))):
        leaders = draw(st.sets(st.sampled_from(band), max_size=2)) if band else set()
        lighter = tuple(f"steps = {steps}" for steps in range(draw(st.integers(0, 2))))
        cost = Cost(draw(seconds), draw(seconds), draw(seconds)) if draw(st.integers(0, 9)) else None
        names = tuple(sorted(leader.name for leader in leaders))
        band.append(Candidate(f"agent{index}", cost, draw(st.sampled_from(GRIDS)), names, 0.0, lighter))
    return band


def load(band: list[Candidate], verdicts: tuple[Verdict, ...], bar: Bar) -> float:
    """Work of a bar after the verdicts: those who are to be timed another way, or rest, take none."""
    return math.fsum(
        agent.cost.work_seconds * math.ceil(bar.beats / min(verdict.grid_beats or bar.beats, bar.beats))
        for agent, verdict in zip(band, verdicts, strict=True)
        if agent.cost is not None and verdict.decision in (Decision.ADMITTED, Decision.COARSER)
    )


def notice(band: list[Candidate], verdicts: tuple[Verdict, ...], name: str) -> float:
    """Return how long before its deadline an agent has to be asked."""
    [(one, verdict)] = [pair for pair in zip(band, verdicts, strict=True) if pair[0].name == name]
    plays = verdict.decision in (Decision.ADMITTED, Decision.COARSER)
    own = one.cost.budget_seconds if one.cost is not None and one.cost.work_seconds and plays else 0.0
    return own + max((notice(band, verdicts, other.name) for other in band if name in other.follows), default=0.0)


@given(bands(), BARS, CORES)
def test_what_is_left_fits(band: list[Candidate], bars: tuple[Bar, ...], cores: int) -> None:
    verdicts = admit(band, bars, cores)
    assert [verdict.name for verdict in verdicts] == [one.name for one in band]
    for bar in bars:
        assert load(band, verdicts, bar) <= room_seconds(bar, cores) + 1e-9
        for verdict in verdicts:
            assert notice(band, verdicts, verdict.name) <= bar.span_seconds(verdict.grid_beats) + 1e-9


@given(bands(), BARS, CORES)
def test_what_fits_is_left_alone(band: list[Candidate], bars: tuple[Bar, ...], cores: int) -> None:
    asked = tuple(Verdict(one.name, Decision.ADMITTED, one.grid_beats, "") for one in band)
    fits = all(
        load(band, asked, bar) <= room_seconds(bar, cores)
        and all(notice(band, asked, one.name) <= bar.span_seconds(one.grid_beats) for one in band)
        for bar in bars
    )
    touched = [verdict.decision not in (Decision.ADMITTED, Decision.WAITS) for verdict in admit(band, bars, cores)]
    assert any(touched) == (not fits)


@given(bands(), BARS, CORES)
def test_more_cores_never_cost_an_agent_its_place(band: list[Candidate], bars: tuple[Bar, ...], cores: int) -> None:
    refused = [decisions(*band, cores=more, bars=bars).count("refused") for more in (cores, cores + 1)]
    assert refused[1] <= refused[0]


@given(bands(), BARS, CORES, st.floats(0.0, 1.0))
def test_a_faster_machine_never_costs_an_agent_its_place(
    band: list[Candidate], bars: tuple[Bar, ...], cores: int, factor: float
) -> None:
    faster = [
        one if one.cost is None else replace(one, cost=Cost(
            factor * one.cost.final_seconds, factor * one.cost.speculative_seconds,
            factor * one.cost.continuation_seconds,
        ))
        for one in band
    ]  # fmt: skip
    refused = [decisions(*players, cores=cores, bars=bars).count("refused") for players in (band, faster)]
    assert refused[1] <= refused[0]


@settings(max_examples=50)
@given(bands(), CORES, st.floats(0.0, 1.0))
def test_judged_again_and_again_it_comes_to_an_end_that_fits(
    band: list[Candidate], cores: int, proportional: float
) -> None:
    """Play the session's part: time whoever was changed, on a machine where longer spans do cost more."""
    bar = FOUR
    base = {one.name: one for one in band}
    halvings = dict.fromkeys(base, 0)

    def timed(one: Candidate) -> Candidate:
        cost = base[one.name].cost
        if cost is None:
            return one
        before, now = bar.span_beats(base[one.name].grid_beats), bar.span_beats(one.grid_beats)
        factor = (1 + proportional * float(now / before - 1)) / 2 ** halvings[one.name]
        seconds = (cost.final_seconds, cost.speculative_seconds, cost.continuation_seconds)
        return replace(one, cost=Cost(*(factor * part for part in seconds)))

    playing: list[Candidate] = band
    for _ in range(20):
        verdicts = admit(playing, [bar], cores)
        again = []
        for one, verdict in zip(playing, verdicts, strict=True):
            if verdict.decision is Decision.LIGHTER:
                halvings[one.name] += 1
                again.append(timed(replace(one, grid_beats=verdict.grid_beats, lighter=one.lighter[1:])))
            elif verdict.decision is Decision.COARSER:
                again.append(timed(replace(one, grid_beats=verdict.grid_beats)))
            elif verdict.decision is Decision.ADMITTED:
                again.append(replace(one, settled=True))
        playing = again
        if all(verdict.decision in (Decision.ADMITTED, Decision.WAITS) for verdict in verdicts):
            break
    else:
        pytest.fail("it never ends")
    assert load(playing, admit(playing, [bar], cores), bar) <= room_seconds(bar, cores) + 1e-9
