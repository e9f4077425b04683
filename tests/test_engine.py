"""The loop: bar lines to the frame, the same bits for any block size, the ladder, tempo changes, replay."""

from __future__ import annotations

import gc
import json
import math
import sys
from collections.abc import Sequence
from fractions import Fraction
from multiprocessing import get_context
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rigs import RATE, ClickAgent, NoiseAgent, Rig

from realtime.buffers import Arena, RecordRing, checksum
from realtime.clock import Anchor, Locate, Meter, TempoChange, TempoMap, Transport, round_frame
from realtime.engine import (
    COMMANDS_AHEAD,
    LOG_BYTES,
    LOG_RECORDS,
    Command,
    CommandQueue,
    EngineConfig,
    LogQueue,
    PartConfig,
    engine_layout,
    shared_engine,
    told_grid,
)
from realtime.messages import to_bytes
from realtime.mixer import Metronome, Monitor, Strip
from realtime.protocols import Block, SpanRequest, StreamSpec
from realtime.scheduler import LEDGER
from realtime.seat import ADMITTED, RECORD_BYTES, STATE_ARMED, AgentConfig
from realtime.voice import NEVER


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
        metronome=Metronome(on=True), script=SCRIPT, delay=shuffled, **options,
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
                   metronome=Metronome(on=True), replay=played.log)  # fmt: skip
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
    lines, counters = RecordRing.private(LOG_RECORDS, LOG_BYTES), {"dropped_log_lines": 0}
    log = LogQueue(lines, counters)
    for fault in ("ü" * RECORD_BYTES, "short", "\ud800"):
        log({"type": "reply", "fault": fault})
    log({"type": "reply", "compute_seconds": math.nan})
    assert [json.loads(lines.take() or b"0")["fault"] for _ in range(3)] == ["ü" * RECORD_BYTES, "short", "?"]
    assert lines.take() is None
    assert counters == {"dropped_log_lines": 1}, "what JSON cannot carry costs its line and nothing else"


def test_the_takes_queue_holds_half_a_minute_of_sixteen_agents_that_answer_on_every_beat() -> None:
    lines = RecordRing.private(LOG_RECORDS, LOG_BYTES)
    beats = 30 * 4  # 240 bpm
    for _ in range(16 * beats):
        for length in 3 * (250,) + 3 * (3500,) + (600,):
            assert lines.post(bytes(length))
    assert LOG_RECORDS * (LOG_BYTES + 32) <= 512 * (RECORD_BYTES + 2048), "no more memory than it ever took"


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


# Commands from outside


def test_a_locate_goes_elsewhere_in_the_song_is_told_and_is_replayed() -> None:
    tempo_map = TempoMap.steady(RATE, 120).changed(Fraction(16), Fraction(240))  # bar 4 of the song is twice as fast
    script = [(RATE, Command("locate", locate=Locate(2, 4)))]
    agent = ClickAgent()
    played = Rig({"a": agent}, tempo_map, script=script)
    mix = played.run(8 * RATE)
    assert clicks(played.stem("a")) == played.beats(8 * RATE)
    assert {request.span.bar: request.song_bar for request in agent.requests}[3] == 5
    [line] = played.lines("locate")
    assert (line["frame"], line["bar"], line["song_bar"], line["late"]) == (4 * RATE, 2, 4, False)
    assert np.diff(played.beats(8 * RATE))[-1] == RATE // 4
    replayed = Rig({"a": ClickAgent()}, tempo_map, blocksize=999, replay=played.log)
    assert np.array_equal(replayed.run(8 * RATE), mix)


@given(
    frame=st.integers(-200_000, 900_000),
    bpm=st.integers(60, 240),
    meter=st.sampled_from([Meter(4, 4), Meter(7, 8), Meter(3, 4)]),
    press=st.integers(0, 3 * RATE),
)
@settings(max_examples=25, deadline=None)
def test_another_who_leads_is_followed_to_the_frame_and_the_take_knows(
    frame: int, bpm: int, meter: Meter, press: int
) -> None:
    anchor = Anchor(frame, 40, Fraction(bpm), meter)
    agent = ClickAgent()
    rig = Rig({"click": agent}, script=[(press, Command("anchor", anchor=anchor))], blocksize=512)
    mix = rig.run(12 * RATE)
    assert clicks(rig.stem("click")) == rig.beats(12 * RATE)
    [line] = rig.lines("anchor")
    bar_frames = Fraction(60 * RATE) / bpm * meter.beats
    lines = [frame + round_frame(count * bar_frames) for count in range(-40, 40)]
    first = rig.engine.transport.map.moment(11 * RATE).bar
    for bar in range(line["bar"], first):
        assert rig.engine.transport.map.bar_frame(bar) in lines
    replayed = Rig({"click": ClickAgent()}, blocksize=999, replay=rig.log)
    assert np.array_equal(replayed.run(12 * RATE), mix)


def test_a_band_that_rests_fades_at_once_and_plays_again_from_a_bar_line() -> None:
    script = [
        (5 * RATE + 77, Command("rest", value=1.0)),
        (9 * RATE + 33, Command("rest", value=0.0)),
    ]
    agents = {"a": NoiseAgent(), "b": NoiseAgent()}
    rig = Rig(agents, script=script, metronome=Metronome(on=True))
    mix = rig.run(14 * RATE)
    for name in agents:
        stem = rig.stem(name)
        assert stem[4 * RATE : 5 * RATE + 77].any()
        assert not stem[5 * RATE + 77 + 480 : 10 * RATE - 480 - 480].any(), "it rests, and its neighbours too"
        assert stem[10 * RATE : 10 * RATE + 480].any(), "a bar of two seconds begins there"
        asked = [request.start for request in agents[name].requests if request.final]
        assert not [start for start in asked if 6 * RATE < start < 10 * RATE]
    assert not mix[6 * RATE : 9 * RATE].any(), "nor does the metronome sound"
    causes = {line["cause"] for line in rig.lines("span") if 6 * RATE < line["start"] < 10 * RATE}
    assert causes == {"resting"}
    replayed = Rig(
        {"a": NoiseAgent(), "b": NoiseAgent()}, blocksize=777, replay=rig.log, metronome=Metronome(on=True)
    )
    assert np.array_equal(replayed.run(14 * RATE), mix)


def test_a_command_for_a_later_frame_is_carried_out_on_it_and_replayed() -> None:
    commands = [
        (0, Command("mute", "a", value=1.0, frame=3 * RATE + 17)),
        (0, Command("gain", "a", value=-20.0, frame=RATE)),
        (2 * RATE, Command("pan", "a", value=0.5, frame=RATE + 1)),
    ]
    rig = Rig({"a": NoiseAgent()}, commands=commands, blocksize=96)
    mix = rig.run(4 * RATE)
    told = {line["command"]["do"]: line["frame"] for line in rig.lines("command")}
    assert told == {"gain": RATE, "mute": 3 * RATE + 17, "pan": 2 * RATE}, "what is over counts at once"
    replayed = Rig({"a": NoiseAgent()}, blocksize=777, replay=rig.log)
    assert np.array_equal(replayed.run(4 * RATE), mix)


def test_of_commands_for_later_more_than_are_kept_count_at_once() -> None:
    command = Command("pan", "a", value=0.1, frame=10 * RATE)
    rig = Rig({"a": NoiseAgent()}, commands=[(0, command)] * (COMMANDS_AHEAD + 3))
    rig.run(2 * RATE)
    assert len(rig.lines("command")) == 3


def test_the_grid_is_told_in_bars_and_beats_of_the_song() -> None:
    with Played(agents=1) as played:
        told, rate = played.arena.status("engine.grid"), played.config.spec.samplerate
        anchor = Anchor(9001, 40, Fraction(97), Meter(7, 8))
        played.run(BAR)
        line = told_grid(told.read(), rate)
        assert (line.tempo, line.frame_at(Fraction(0))) == (Fraction(400), 0)
        for command in (Command("anchor", anchor=anchor), Command("rest", value=1.0)):
            assert played.arena.records("commands").post(to_bytes(command))
        played.run(10 * BAR)
        read, grid = told.read(), anchor.grid(rate)
        line, mixed = told_grid(read, rate), read["mixed"]
        assert (line.tempo, line.meter, read["resting"]) == (Fraction(97), Meter(7, 8), 1)
        assert abs(line.beat_at(mixed) - grid.beat_at(mixed)) < Fraction(1, 10**6)
        assert line.bar_at(line.beat_at(mixed)) == read["song_bar"] == grid.bar_at(grid.beat_at(mixed))


def first_sound(stem: Block, begin: int, end: int) -> int | None:
    """Return the first frame between two that is not silent."""
    found = np.flatnonzero(stem[begin:end].any(axis=1))
    return begin + int(found[0]) if len(found) else None


def rests(*script: tuple[int, Command], **keys: Any) -> Rig:
    rig = Rig({"a": NoiseAgent()}, script=script, **keys)
    rig.run(14 * RATE)
    return rig


REST, PLAY = Command("rest", value=1.0), Command("rest", value=0.0)
INSIDE = 8 * RATE + RATE // 4
"""In bar 4, which lasts from 8 s to 10 s."""


def test_who_plays_by_the_beat_comes_in_on_the_bar_line_too() -> None:
    rig = rests((5 * RATE, REST), (INSIDE, PLAY), grid_beats=Fraction(1))
    assert first_sound(rig.stem("a"), 6 * RATE, 10 * RATE - 480) is None
    assert first_sound(rig.stem("a"), 10 * RATE - 480, 14 * RATE) is not None


@pytest.mark.parametrize("rested", [8 * RATE - 2000, 8 * RATE + 1000])
def test_a_late_answer_for_a_bar_that_rests_is_not_joined_in_it(rested: int) -> None:
    rig = rests(
        (rested, REST),
        (INSIDE, PLAY),
        delay=lambda asked: 30_000 if asked.attempt == 1 and asked.span.bar == 4 else 0,
    )
    assert first_sound(rig.stem("a"), max(rested, 8 * RATE) + 480, 10 * RATE - 480) is None
    assert rig.lines("join") == []


@pytest.mark.parametrize("off", [200, 3000, 30_000, 50_000, 90_000])
@pytest.mark.parametrize("played", [7 * RATE + RATE // 2 + 13, 8 * RATE - 2000, 8 * RATE - 700, 8 * RATE])
def test_in_a_bar_that_is_bent_nobody_begins_to_play(off: int, played: int) -> None:
    rig = rests((3 * RATE, REST), (played, Command("anchor", anchor=Anchor(off, 40, Fraction(120)))), (played, PLAY))
    [line] = rig.lines("anchor")
    first = first_sound(rig.stem("a"), 4 * RATE, 14 * RATE)
    assert first is not None
    assert first >= line["frame"] - 480


def test_to_play_says_nothing_to_those_who_play_and_the_ledger_says_who_rests() -> None:
    assert {line["rung"] for line in rests((INSIDE, PLAY), grid_beats=Fraction(1)).lines("span")} == {1}
    row = dict(zip(LEDGER, rests((13 * RATE, REST)).engine.parts[0].ledger(), strict=True))
    assert row["sounding"] == 0


def test_bars_longer_than_the_sessions_own_are_played_if_there_is_room() -> None:
    """12/8 at 40 is a bar of 9 s."""
    with Played(agents=1, seconds=12.0) as played:
        played.run(5 * BAR)
        anchor = Anchor(played.engine.mixed, 0, Fraction(40), Meter(12, 8))
        assert played.arena.records("commands").post(to_bytes(Command("anchor", anchor=anchor)))
        played.run(40 * 8000, block=256)
        assert [line["rung"] for line in played.spans("a0")[-3:]] == [1, 1, 1]


def test_commands_for_a_frame_nobody_reaches_are_dropped_and_take_nobodys_place() -> None:
    never = Command("mute", "a", value=0.0, frame=1 << 60)
    mute = Command("mute", "a", value=1.0, frame=3 * RATE)
    rig = Rig({"a": NoiseAgent()}, commands=[(0, never)] * COMMANDS_AHEAD + [(RATE, mute)])
    rig.run(4 * RATE)
    assert [line["frame"] for line in rig.lines("command")] == [3 * RATE]
    assert rig.engine.counters["dropped_commands"] == COMMANDS_AHEAD


@pytest.mark.parametrize("bpm", [97, 101, 113])
def test_the_grid_told_on_a_downbeat_that_is_rounded_is_the_new_ones(bpm: int) -> None:
    transport = Transport(TempoMap.steady(RATE, 120), 2000)
    for bar in range(1, 30):
        transport.anchor(Anchor(50_000 - 700_001 * bar, 400, Fraction(bpm), Meter(7, 8)), 0)
        frame = transport.map.bar_frame(transport.map.led_bar)
        with Played(agents=1) as played:
            played.engine.transport, played.engine.mixed = transport, frame
            played.engine.publish.__self__._tell_place()  # type: ignore[attr-defined]
            told = played.arena.status("engine.grid").read()
        line = told_grid(told, RATE)
        assert abs(line.position(line.downbeat(told["song_bar"])) - frame) < 1


def test_a_locate_announced_too_late_counts_from_the_next_bar_and_is_counted() -> None:
    rig = Rig({"a": ClickAgent()}, script=[(2 * RATE - 100, Command("locate", locate=Locate(1, 7)))])
    rig.run(3 * RATE)
    [line] = rig.lines("locate")
    assert (line["bar"], line["late"], rig.engine.counters["late_changes"]) == (2, True, 1)


def test_an_agent_in_quarantine_is_asked_for_nothing_more_and_fades() -> None:
    script = [(5 * RATE, Command("quarantine", "a"))]
    agents = {"a": NoiseAgent(), "b": NoiseAgent()}
    rig = Rig(agents, script=script)
    mix = rig.run(12 * RATE)
    assert max(request.span.bar for request in agents["a"].requests) < max(
        request.span.bar for request in agents["b"].requests
    )
    assert not rig.stem("a")[8 * RATE :].any()
    assert rig.stem("b")[8 * RATE :].any()
    replayed = Rig({"a": NoiseAgent(), "b": NoiseAgent()}, blocksize=777, replay=rig.log)
    assert np.array_equal(replayed.run(12 * RATE), mix)


def test_a_grid_from_outside_changes_the_length_of_the_spans() -> None:
    agent = ClickAgent()
    rig = Rig(
        {"a": agent}, script=[(RATE, Command("grid", "a", name="1")), (9 * RATE, Command("grid", "a", name="0"))]
    )
    rig.run(16 * RATE)
    lengths = [str(request.span.beats) for request in agent.requests if request.final]
    assert lengths[0] == lengths[-1] == "4"
    assert "1" in lengths
    assert clicks(rig.stem("a")) == rig.beats(16 * RATE)


@pytest.mark.parametrize("grid", ["", "-1", "1/0", "0.5", "1e9", "1/9", "129", "9" * 400, "١", "1/3 "])
def test_a_grid_that_is_none_is_refused(grid: str) -> None:
    agent = ClickAgent()
    rig = Rig({"a": agent}, script=[(RATE, Command("grid", "a", name=grid))])
    rig.run(5 * RATE)
    assert rig.engine.counters["dropped_commands"] == 1
    assert {str(request.span.beats) for request in agent.requests} == {"4"}


BARS = st.sampled_from([-(10**30), -7, 0, 1, 2, 3, 10**30])
TEMPI = st.none() | st.sampled_from([Fraction(0), Fraction(-5), Fraction(1, 10**30), Fraction(90), Fraction(10**30)])
BEATS = st.sampled_from([Fraction(-1), Fraction(0), Fraction(7, 3), Fraction(10**30)])


@given(
    do=st.sampled_from(["stop", "tempo", "locate", "action", "grid", "quarantine", "gain", "pan", "mute", "solo",
                        "metronome", "", "dance"]),
    target=st.sampled_from(["a", "monitor", "metronome", "", "\ud800"]),
    name=st.sampled_from(["", "bar", "1", "\ud800", "x" * 300]),
    value=st.sampled_from([0.0, 1.0, -90.0, math.nan, math.inf, -math.inf, 1e308, 10**400]),
    change=st.none() | st.builds(TempoChange, BARS, BEATS, TEMPI, st.none() | st.just(Meter(7, 8)), BARS),
    locate=st.none() | st.builds(Locate, st.integers(-10, 10**5), st.integers(0, 10**5), st.integers(0, 10**5)),
)  # fmt: skip
@settings(max_examples=100, deadline=None)
def test_no_command_whatsoever_raises_in_the_loop(
    do: str, target: str, name: str, value: float, change: TempoChange | None, locate: Locate | None
) -> None:
    """What is typed rightly may still say anything."""
    command = Command(do, target, name, value, change, locate)
    rig = Rig({"a": ClickAgent()}, script=[(100, command)], metronome=Metronome(), monitor=Monitor())
    rig.run(5000)
    assert rig.engine.mixed >= 4900


def test_of_a_flood_of_commands_a_few_are_carried_out_a_block() -> None:
    records, counters = RecordRing.private(64, 256), {"dropped_commands": 0}
    rig = Rig({"a": NoiseAgent()})
    rig.engine._take_command = CommandQueue(records, counters)
    for level in range(40):
        assert records.post(to_bytes(Command("gain", "a", value=-float(level))))
    rig.run(128)
    assert 0 < len(rig.lines("command")) < 10
    rig.run(10 * 128)
    assert [line["command"]["value"] for line in rig.lines("command")] == [-float(level) for level in range(40)]


# The engine on shared memory, its workers played by the test


BAR = 4800
"""Frames; four beats at 400 bpm and 8 kHz. All joins at 10 ms, blocks of 16 ms."""


class Played:
    """An engine on an arena of its own, and one stand-in for every agent's worker."""

    def __init__(self, agents: int = 2, seconds: float = 1.0) -> None:
        spec = StreamSpec(8000, 1, 2, 128, 512)
        names = [f"a{index}" for index in range(agents)]
        parts = tuple(PartConfig(AgentConfig(name, "echo", 2), Strip(name, 2)) for name in names)
        tempo_map = TempoMap.steady(spec.samplerate, 400)
        self.config = EngineConfig(spec, tempo_map, 1, parts, monitor=Monitor(), longest_span_seconds=seconds)
        self.arena = Arena.create(engine_layout(self.config))
        wakes = [get_context("spawn").Semaphore(0) for _ in names]
        self.engine = shared_engine(self.arena, self.config, wakes)
        self.log: list[dict[str, Any]] = []
        self.names = names
        for name in names:
            self.arena[f"{name}.seat"][ADMITTED] = 1
            self.arena.status(f"{name}.worker0").publish(state=STATE_ARMED, budget_seconds=0.02)

    def __enter__(self) -> Played:
        return self

    def __exit__(self, *_: object) -> None:
        self.arena.close()
        self.arena.unlink()

    def run(self, frames: int, answering: Sequence[str] | None = None, block: int = 128) -> None:
        """Play on; the agents named, or all, answer after every block."""
        lines, end = self.arena.records("log"), self.engine.mixed + frames
        while self.engine.mixed < end and not self.engine.stopped:
            self.engine.hear(np.zeros((block, 1), np.float32))
            self.engine.mix(block)
            for name in self.names if answering is None else answering:
                self.answer(name)
            while (record := lines.take()) is not None:
                self.log.append(json.loads(record))

    def answer(self, name: str) -> None:
        requests, clips = self.arena.records(f"{name}.requests"), self.arena[f"{name}.clips"]
        while (record := requests.take()) is not None:
            message = json.loads(record)
            if "play" not in message:
                continue
            request, slot = message["play"], message["slot"]
            clip = clips[slot, : request["frames"]]
            clip[:] = 0.25
            origin = {"kind": "corpus", "name": "n", "digest": "", "pieces": []}
            self.arena.records(f"{name}.replies").post(to_bytes({
                "span": request["span"], "attempt": request["attempt"], "slot": slot, "fault": "",
                "compute_seconds": 0.001, "origin": origin, "frames": len(clip), "lead_in": 0,
                "checksum": checksum(clip),
            }))  # fmt: skip

    def spans(self, name: str) -> list[dict[str, Any]]:
        return [line for line in self.log if line["type"] == "span" and line["agent"] == name]


def test_a_worker_that_stops_in_the_middle_of_a_record_holds_nobody_up() -> None:
    with Played() as played:
        played.run(5 * BAR)
        replies, index = played.arena["a0.replies.data"], played.arena["a0.replies.index"]
        head, place = played.arena["a0.replies.head"], int(index[0, 0]) % len(replies)
        head[place, 0], replies[place, :5] = int(index[0, 0]) + 1, 77  # it began its next record, and here it stands
        status = played.arena["a0.worker0.stamps"]
        status[0] += 1  # and in the middle of its status
        played.run(10 * BAR, answering=["a1"])
        assert played.engine.mixed >= 15 * BAR
        assert {line["rung"] for line in played.spans("a1")[1:]} == {1}
        assert played.spans("a0")[-1]["rung"] in (4, 5)
        assert played.engine.memory.stems["a0"].written == played.engine.mixed


@pytest.mark.parametrize(
    "array", ["replies.data", "replies.head", "replies.index", "worker0.stamps", "worker0.fields"]
)
@given(seed=st.integers(0, 10**6))
@settings(max_examples=15, deadline=None)
def test_whatever_a_mad_worker_writes_into_its_memory_the_others_play_on(array: str, seed: int) -> None:
    chance = np.random.default_rng(seed)
    with Played() as played:
        played.run(3 * BAR)
        for _ in range(4):
            memory = played.arena[f"a0.{array}"].reshape(-1).view(np.uint8)
            at = chance.integers(0, len(memory), 200)
            memory[at] = chance.integers(0, 256, 200)
            played.run(BAR)
        assert played.engine.mixed >= 7 * BAR
        assert {line["rung"] for line in played.spans("a1")[1:]} == {1}


def test_the_ledger_and_the_place_are_published_bit_by_bit_and_at_the_end_in_full() -> None:
    with Played(agents=5) as played:
        played.run(6 * BAR)
        rows = played.arena["ledger"]
        assert np.abs(rows - [part.ledger() for part in played.engine.parts])[:, :6].max() <= 1, "soon"
        assert rows[:, LEDGER.index("final")].min() >= 4
        assert played.arena["place"][1] >= 5
        assert not played.arena["place"][3]
        assert played.arena.records("commands").post(to_bytes(Command("stop")))
        played.run(2000)
        assert played.engine.stopped
        assert [list(row) for row in rows] == [part.ledger() for part in played.engine.parts]
        assert played.arena["place"][:4].tolist()[0::3] == [played.engine.mixed, 1]


def test_an_answer_has_its_whole_budget_although_many_blocks_are_mixed_at_once() -> None:
    """What is asked and decided in one turn happens at one moment, in which nobody can answer."""
    with Played(agents=2) as played:
        turn, budget = played.config.spec.turn_frames, round(0.02 * 8000)
        assert turn > budget
        played.run(12 * BAR, block=turn)
        asked = {(line["agent"], line["bar"]): line["posted"] for line in played.log
                 if line["type"] == "request" and line["attempt"] == 1}  # fmt: skip
        spans = [line for name in played.names for line in played.spans(name)[2:]]
        assert {line["rung"] for line in spans} == {1}
        for line in spans:
            posted = asked[line["agent"], line["bar"]]
            assert line["deadline"] // turn * turn - posted // turn * turn >= budget


def test_news_of_many_agents_is_looked_at_one_a_block_and_soon() -> None:
    with Played(agents=9) as played:
        played.run(3 * BAR)
        arrived = [line["arrived"] for line in played.log if line["type"] == "reply" and line["attempt"] == 0]
        assert len(arrived) > 9
        assert {line["rung"] for name in played.names for line in played.spans(name)[1:]} == {1}


def test_a_stalled_recorder_loses_lines_that_are_counted_and_nothing_else() -> None:
    with Played(agents=1) as played:
        played.run(2 * BAR)
        lines = played.arena.records("log")
        while lines.post(bytes(1 << 20)):
            pass
        while lines.post(b""):
            pass
        before = played.engine.mixed
        for _ in range(100):
            played.engine.hear(np.zeros((128, 1), np.float32))
            played.engine.mix(128)
        assert played.engine.mixed == before + 12_800
        assert played.engine.counters["dropped_log_lines"] > 0


def test_the_engine_keeps_nothing_for_ever() -> None:
    """Its interpreter's memory, looked at once a bar in the same place, does not grow; nor does it make garbage that
    only the collector finds, which is off while it plays.
    """
    with Played() as played:
        sound, lines, counts = np.zeros((128, 1), np.float32), played.arena.records("log"), np.zeros(240, np.int64)
        gc.collect()
        gc.freeze()
        gc.disable()
        try:
            for bar in range(1, 240):
                while played.engine.mixed < bar * BAR:
                    played.engine.hear(sound)
                    played.engine.mix(min(128, bar * BAR - played.engine.mixed))
                    for name in played.names:
                        played.answer(name)
                    while lines.take() is not None:
                        pass
                if bar >= 160:  # what is bounded is full: the latest answers and questions
                    assert gc.collect() == 0  # frees the interpreter's own stock of tuples, too, which may grow
                    counts[bar] = sys.getallocatedblocks()
        finally:
            gc.enable()
            gc.unfreeze()
        growth = np.median((counts[200:] - counts[160:200]) / 40)
        assert abs(growth) < 0.5, f"{growth} objects a bar"
