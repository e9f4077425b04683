"""The loop: bar lines to the frame, the same bits for any block size, the ladder, tempo changes, replay."""

from __future__ import annotations

from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rigs import RATE, ClickAgent, NoiseAgent, Rig

from realtime.buffers import RecordRing
from realtime.clock import Meter, TempoChange, TempoMap
from realtime.engine import LOG_BYTES, Command, CommandQueue, engine_layout
from realtime.mixer import Metronome, Monitor
from realtime.protocols import Block, SpanRequest
from realtime.voice import NEVER
from realtime.worker import RECORD_BYTES


def clicks(stem: Block) -> list[int]:
    return [int(frame) for frame in np.flatnonzero(np.abs(stem[:, 0]) > 0.25)]


@pytest.mark.parametrize("samplerate", [44100, 48000, 47999, 96000])
@pytest.mark.parametrize(("bpm", "meter"), [("60", "3/4"), ("137.3", "7/8"), ("240", "4/4")])
def test_every_click_of_every_bar_is_on_its_frame(samplerate: int, bpm: str, meter: str) -> None:
    tempo_map = TempoMap.steady(samplerate, bpm, Meter.parse(meter))
    rig = Rig({"click": ClickAgent()}, tempo_map, blocksize=300)
    frames = 8 * samplerate
    rig.run(frames)
    assert clicks(rig.stem("click")) == rig.beats(frames)


def test_ramps_and_meter_changes_known_ahead_keep_every_click_on_its_frame() -> None:
    tempo_map = TempoMap.steady(RATE, 90, Meter(4, 4)).ramped(Fraction(4), 8, Fraction(180))
    tempo_map = tempo_map.changed(tempo_map.downbeat(4), meter=Meter(7, 8))
    rig = Rig({"click": ClickAgent()}, tempo_map)
    rig.run(12 * RATE)
    assert clicks(rig.stem("click")) == rig.beats(12 * RATE)


@given(
    bpm=st.integers(60, 240),
    new=st.integers(60, 240),
    bar=st.integers(1, 3),
    ramp=st.integers(0, 6),
    press=st.integers(0, 3 * RATE),
)
@settings(max_examples=25, deadline=None)
def test_a_tempo_change_announced_while_playing_leaves_no_click_off_the_grid(
    bpm: int, new: int, bar: int, ramp: int, press: int
) -> None:
    change = Command("tempo", change=TempoChange(bar, tempo=Fraction(new), ramp_beats=ramp))
    rig = Rig({"click": ClickAgent()}, TempoMap.steady(RATE, bpm), script=[(press, change)], blocksize=512)
    rig.run(6 * RATE)
    assert clicks(rig.stem("click")) == rig.beats(6 * RATE)


@pytest.mark.parametrize("new", [60, 90, 150, 239])
def test_a_change_inside_a_sounding_bar_places_each_later_beat_anew(new: int) -> None:
    change = Command("tempo", change=TempoChange(1, beat=Fraction(2), tempo=Fraction(new)))
    rig = Rig({"click": ClickAgent()}, script=[(100_000, change)])  # bar 1 sounds from 96,000 on
    rig.run(6 * RATE)
    assert clicks(rig.stem("click")) == rig.beats(6 * RATE)
    assert rig.beats(6 * RATE)[7] - rig.beats(6 * RATE)[6] == round(60 * RATE / new)


def test_a_change_announced_too_late_counts_from_the_next_bar_and_is_counted() -> None:
    change = Command("tempo", change=TempoChange(1, tempo=Fraction(60)))
    rig = Rig({"click": ClickAgent()}, script=[(95_900, change)])
    rig.run(8 * RATE)
    assert rig.engine.transport.map.bar_frame(2) == 192_000
    assert rig.engine.transport.map.bar_frame(3) == 192_000 + 4 * RATE
    assert rig.engine.counters["late_changes"] == 1
    assert clicks(rig.stem("click")) == rig.beats(8 * RATE)


def shuffled(request: SpanRequest) -> int:
    """Delays that reach every rung: in time, after the deadline, in mid-bar, never."""
    table = [0, 3000, 30_000, NEVER, 60_000, NEVER]
    return table[(request.span.bar * 2 + request.attempt) % len(table)]


SCRIPT = [
    (30_000, Command("gain", "a", value=-6.0)),
    (77_777, Command("mute", "b", value=1.0)),
    (110_001, Command("tempo", change=TempoChange(2, tempo=Fraction(131), ramp_beats=3))),
    (150_000, Command("mute", "b", value=0.0)),
    (222_222, Command("pan", "a", value=-0.7)),
]


def band(blocksize: int, **options: Any) -> Rig:
    return Rig(
        {"a": NoiseAgent(), "b": NoiseAgent()}, blocksize=blocksize, monitor=Monitor(gain_db=-3.0),
        script=SCRIPT, delay=shuffled, **options,
    )  # fmt: skip


def decisions(rig: Rig) -> list[tuple[Any, ...]]:
    return [(line["agent"], line["bar"], line["start"], line["rung"], line["decided"]) for line in rig.lines("span")]


def source(frames: int) -> Block:
    return np.random.default_rng(7).normal(0, 0.3, (frames, 1)).astype(np.float32)


def test_stems_and_mix_are_bit_identical_for_any_block_size() -> None:
    frames = 6 * RATE
    reference = band(64)
    mix = reference.run(frames, source(frames))
    for blocksize in (65, 300, 8192):
        rig = band(blocksize)
        assert np.array_equal(rig.run(frames, source(frames)), mix)
        assert np.array_equal(rig.stem("a"), reference.stem("a"))
        assert np.array_equal(rig.stem("b"), reference.stem("b"))
        assert decisions(rig) == decisions(reference)


def test_one_frame_blocks_give_the_same_bits() -> None:
    frames = RATE // 2
    options = {"tempo_map": TempoMap.steady(RATE, 400)}  # several bars in half a second
    reference, single = band(64, **options), band(1, **options)
    assert np.array_equal(single.run(frames, source(frames)), reference.run(frames, source(frames)))
    assert np.array_equal(single.stem("a"), reference.stem("a"))


def test_replay_of_the_ledger_is_bit_identical_and_a_changed_line_changes_the_sound() -> None:
    frames = 8 * RATE
    played = band(128)
    mix = played.run(frames, source(frames))
    assert len(played.engine.parts[0].rungs) > 2, "the script was meant to reach several rungs"

    replayed = Rig({"a": NoiseAgent(), "b": NoiseAgent()}, blocksize=1000, monitor=Monitor(gain_db=-3.0),
                   replay=played.log)  # fmt: skip
    assert np.array_equal(replayed.run(frames, source(frames)), mix)
    assert replayed.engine.parts[0].rungs == played.engine.parts[0].rungs

    used = next(line for line in played.lines("reply") if line["agent"] == "a" and line["arrived"] < 90_000)
    used["origin"] = used["origin"] | {"name": "12345"}
    changed = Rig({"a": NoiseAgent(), "b": NoiseAgent()}, monitor=Monitor(gain_db=-3.0), replay=played.log)
    changed.run(frames, source(frames))
    assert not np.array_equal(changed.stem("a"), played.stem("a"))
    assert np.array_equal(changed.stem("b"), played.stem("b"))


def test_each_rung_is_taken_when_its_turn_comes_and_is_counted() -> None:
    def delay(request: SpanRequest) -> int:
        final = {0: 0, 1: NEVER, 2: NEVER, 3: 0}
        speculative = {1: 0, 2: NEVER, 3: 0}
        return (final if request.final else speculative).get(request.span.bar, NEVER)

    rig = Rig({"a": NoiseAgent()}, delay=delay)
    rig.run(5 * 2 * RATE - 4000)
    assert [line["rung"] for line in rig.lines("span")] == [1, 2, 4, 1, 4]
    assert [line["cause"] for line in rig.lines("span")] == ["", "late", "late", "", "late"]
    stem = rig.stem("a")[:, 0]
    bar = 2 * RATE
    join = 480
    assert np.array_equal(stem[2 * bar : 3 * bar - join], stem[bar : 2 * bar - join]), "rung 4 is the last good bar"
    assert rig.engine.parts[0].rungs == {1: 2, 2: 1, 4: 2}


def test_without_any_answer_yet_there_is_silence_and_rung_5_is_told() -> None:
    rig = Rig({"a": NoiseAgent()}, delay=lambda request: NEVER)
    rig.run(3 * RATE)
    assert not rig.stem("a").any()
    assert {line["rung"] for line in rig.lines("span")} == {5}


def test_a_late_clip_is_joined_in_its_true_place_from_the_next_beat_on() -> None:
    def delay(request: SpanRequest) -> int:
        return 0 if request.span.bar != 1 else 40_000 if request.final else NEVER

    rig = Rig({"a": NoiseAgent()}, delay=delay)
    rig.run(4 * RATE)
    whole = Rig({"a": NoiseAgent()})
    whole.run(4 * RATE)
    late, true = rig.stem("a"), whole.stem("a")
    [join] = rig.lines("join")
    arrived = join["arrived"]
    assert join["frame"] == 96_000 + 24_000 * -(-(arrived + 480 - 96_000) // 24_000)
    assert np.array_equal(late[join["frame"] : 4 * RATE - 480], true[join["frame"] : 4 * RATE - 480])
    assert not np.array_equal(late[96_000 : join["frame"] - 480], true[96_000 : join["frame"] - 480])


def test_an_agent_that_fails_costs_its_own_stem_a_rung_and_nobody_else_a_bit() -> None:
    class Failing(NoiseAgent):
        def play(self, request: SpanRequest) -> Any:
            if request.span.bar in (1, 2):
                raise RuntimeError("out of tune")
            clip = super().play(request)
            assert clip is not None
            if request.span.bar == 3:
                clip.audio[100] = np.nan
            return clip

    rig = Rig({"a": Failing(), "b": NoiseAgent()})
    alone = Rig({"b": NoiseAgent()})
    rig.run(10 * RATE)
    alone.run(10 * RATE)
    spans = [line for line in rig.lines("span") if line["agent"] == "a"]
    assert [line["rung"] for line in spans] == [1, 4, 4, 4, 1, 1][: len(spans)]
    assert spans[1]["cause"] == "RuntimeError: out of tune"
    assert spans[3]["cause"] == "NaN or infinity in the clip"
    assert np.array_equal(rig.stem("b"), alone.stem("b"))


def test_what_an_agent_may_know_ends_lead_before_the_commit_point() -> None:
    agent = ClickAgent()
    rig = Rig({"a": agent}, lead=777, budget_frames=9600)
    rig.run(8 * RATE)
    finals = [request for request in agent.requests if request.final and request.span.bar > 0]
    assert [request.context_end for request in finals] == [r.start - 480 - 9600 - 777 for r in finals]
    assert agent.hops == [512 * index for index in range(len(agent.hops))], "every hop once, in order"
    assert 512 * len(agent.hops) <= finals[-1].context_end + 96_000


def test_the_agent_is_told_what_sounded_before_it_is_asked_again() -> None:
    agent = ClickAgent()
    rig = Rig({"a": agent}, delay=lambda r: 0 if r.span.bar != 2 else NEVER)
    rig.run(9 * RATE)
    told = {span.bar: origin for span, origin in agent.confirmed}
    assert told[1] is not None
    assert told[2] is not None, "rung 4 plays the last good clip, and says so"
    assert [span.bar for span, _ in agent.confirmed] == sorted(told)


def test_a_beat_grid_asks_for_beats_and_keeps_the_grid() -> None:
    agent = ClickAgent()
    rig = Rig({"a": agent}, TempoMap.steady(RATE, 100, Meter(7, 8)), grid_beats=Fraction(1))
    rig.run(5 * RATE)
    assert clicks(rig.stem("a")) == rig.beats(5 * RATE)
    assert {str(request.span.beats) for request in agent.requests} == {"1", "1/2"}


def test_stop_fades_and_ends() -> None:
    rig = Rig({"a": NoiseAgent()}, script=[(RATE, Command("stop"))])
    mix = rig.run(10 * RATE)
    assert rig.engine.stopped
    assert len(mix) == RATE + 4800
    assert np.abs(mix[: RATE - 100]).max() > 0.1
    assert not mix[RATE + 960 :].any()


def test_what_a_device_brings_that_is_no_sound_is_heard_as_silence_and_counted() -> None:
    source = np.full((RATE, 1), 0.25, np.float32)
    source[1000:1010], source[2000] = np.nan, np.inf
    rig = Rig({"a": NoiseAgent()}, monitor=Monitor(outputs=(0,)))
    rig.run(RATE, source)
    heard = rig.memory.inputs.read(0, RATE)
    assert np.array_equal(heard, np.where(np.isfinite(source), source, 0))
    assert rig.engine.summary()["input_nan_frames"] == 11


def test_a_bridge_that_has_died_stops_the_music_on_the_bar_line() -> None:
    rig = Rig({"a": NoiseAgent()}, script=[(3 * RATE, Command("stop", name="bar"))])
    mix = rig.run(10 * RATE)
    assert len(mix) == 4 * RATE, "bars of 120 bpm are two seconds"
    assert np.abs(mix[4 * RATE - 4800 - 100 : 4 * RATE - 4800]).max() > 0.1
    assert not mix[-1].any()


@pytest.mark.parametrize(
    "record", [b"[" * 1023, b"nonsense", b"null", b"\xff", b'{"do":"tempo","change":{"bar":"x"}}']
)
def test_what_is_no_command_is_counted(record: bytes) -> None:
    records, counters = RecordRing.private(4, 1024), {"dropped_commands": 0}
    commands = CommandQueue(records, counters)
    assert records.post(record)
    assert commands() is None
    assert counters == {"dropped_commands": 1}


def test_stop_fades_everything_that_is_heard() -> None:
    monitor, metronome = Monitor(outputs=(0,)), Metronome(on=True, outputs=(1,))
    stop = [(RATE, Command("stop"))]
    rig = Rig({"a": NoiseAgent()}, script=stop, monitor=monitor, metronome=metronome)
    mix = rig.run(10 * RATE, np.full((10 * RATE, 1), 0.25, np.float32))
    assert np.abs(mix[RATE - 10 : RATE, 0]).max() > 0.1
    assert not mix[RATE + 960 :].any(), "the player's own sound must not be cut off at full level"


@pytest.mark.parametrize("change", [TempoChange(3, Fraction(0), Fraction(90), None, 10**9),
                                    TempoChange(3, Fraction(0), Fraction(90), None, -1),
                                    TempoChange(3, Fraction(-1), Fraction(90)),
                                    TempoChange(3, Fraction(10**6), Fraction(90))])  # fmt: skip
def test_a_tempo_change_that_would_hold_the_engine_up_or_lies_nowhere_is_refused(change: TempoChange) -> None:
    rig = Rig({"a": NoiseAgent()}, script=[(1000, Command("tempo", change=change))])
    before = rig.engine.transport.map
    rig.run(RATE)
    assert rig.engine.counters["dropped_commands"] == 1
    assert rig.engine.transport.map is before


def test_history_holds_the_bars_that_agents_look_back_on() -> None:
    def capacity(longest_span_seconds: float) -> int:
        rig = Rig({"a": NoiseAgent()}, longest_span_seconds=longest_span_seconds)
        shared = engine_layout(rig.config)["input.audio"][1][0]
        assert rig.memory.inputs.capacity == shared
        return int(shared)

    assert capacity(8.0) == 60 * RATE
    assert capacity(45.0) == 135 * RATE, "two bars and the one that sounds"


def test_whatever_a_worker_can_answer_fits_into_a_line_of_the_take() -> None:
    assert LOG_BYTES >= RECORD_BYTES + 512


def test_a_command_that_makes_no_sense_is_counted_and_the_music_goes_on() -> None:
    commands = [Command("gain", "nobody", value=1.0), Command("dance"), Command("action", "nobody", name="x")]
    rig = Rig({"a": NoiseAgent()}, script=[(1000, command) for command in commands])
    rig.run(RATE)
    assert rig.engine.counters["dropped_commands"] == 3
    assert [line["command"]["do"] for line in rig.lines("dropped")] == ["gain", "dance", "action"]


def test_actions_reach_the_agent_with_its_next_final_request() -> None:
    agent = ClickAgent()
    rig = Rig({"a": agent}, script=[(50_000, Command("action", "a", name="density", value=0.3))])
    rig.run(4 * RATE)
    with_actions = [(r.span.bar, r.attempt, r.actions[0].name) for r in agent.requests if r.actions]
    assert with_actions == [(1, 1, "density")]


def test_of_more_actions_than_an_agent_can_be_handed_the_latest_are_kept() -> None:
    agent = ClickAgent()
    presses = [(50_000, Command("action", "a", name="density", value=float(n))) for n in range(1000)]
    Rig({"a": agent}, script=presses).run(3 * RATE)
    [handed] = [request.actions for request in agent.requests if request.final and request.actions]
    assert [action.value for action in handed] == list(range(1000 - 64, 1000))
