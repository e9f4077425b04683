"""Who is asked when, and whose memory is whose: spans, commit points, plans, clip slots, tempo changes at any time."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from rigs import RATE, ClickAgent, NoiseAgent, Rig

from realtime.buffers import join_frames
from realtime.clock import Meter, TempoChange, TempoMap
from realtime.engine import Command, Engine, EngineConfig, Memory, PartConfig
from realtime.mixer import Strip
from realtime.protocols import Block, Chord, Clip, Origin, Plan, Span, SpanRequest, StreamSpec
from realtime.scheduler import (
    FINAL,
    SPECULATIVE,
    LiveTiming,
    Part,
    Port,
    Reply,
    Turn,
    chart_over,
    next_span,
    span_seed,
)
from realtime.voice import NEVER, Voice
from realtime.worker import SLOTS, AgentConfig, AgentRunner, InlinePort, RingHeard

F = Fraction


# Spans, seeds, charts


@pytest.mark.parametrize(
    ("meter", "grid", "offsets"),
    [
        ("4/4", F(0), [(0, F(4))]),
        ("7/8", F(0), [(0, F(7, 2))]),
        ("4/4", F(1), [(0, F(1)), (1, F(1)), (2, F(1)), (3, F(1))]),
        ("7/8", F(1), [(0, F(1)), (1, F(1)), (2, F(1)), (3, F(1, 2))]),
        ("3/4", F(2), [(0, F(2)), (2, F(1))]),
        ("4/4", F(3, 2), [(0, F(3, 2)), (F(3, 2), F(3, 2)), (3, F(1))]),
        ("2/4", F(1, 3), [(F(n, 3), F(1, 3)) for n in range(6)]),
        ("3/4", F(8), [(0, F(3))]),
    ],
)
def test_spans_tile_every_bar_from_its_downbeat(meter: str, grid: Fraction, offsets: list[tuple[Any, Fraction]]) -> None:
    tempo_map, span, found = TempoMap.steady(RATE, 120, Meter.parse(meter)), None, []
    for _ in range(3 * len(offsets)):
        span = next_span(span, grid, tempo_map, -1)
        found.append(span)
    assert found == [Span(bar, F(beat), beats) for bar in (-1, 0, 1) for beat, beats in offsets]


@given(
    meters=st.lists(st.sampled_from(["4/4", "3/4", "7/8", "5/4", "9/32"]), min_size=1, max_size=4),
    grid=st.sampled_from([F(0), F(1), F(1, 2), F(2, 3), F(5, 4), F(3)]),
)
@settings(deadline=None)
def test_spans_tile_the_session_whatever_the_meters(meters: list[str], grid: Fraction) -> None:
    tempo_map = TempoMap.steady(RATE, 97, Meter.parse(meters[0]))
    for index, meter in enumerate(meters[1:]):
        tempo_map = tempo_map.changed(tempo_map.downbeat(2 * index + 2), meter=Meter.parse(meter))
    span, beat = None, F(0)
    for _ in range(60):
        span = next_span(span, grid, tempo_map)
        assert span.beats > 0
        assert tempo_map.downbeat(span.bar) + span.beat == beat
        assert span.beat + span.beats <= tempo_map.bar_beats(span.bar)
        beat += span.beats


def test_a_turn_takes_its_frames_from_exact_beats() -> None:
    tempo_map = TempoMap.steady(44100, "137.3", Meter(7, 8))
    turn = Turn(Span(3, F(1), F(5, 2)))
    turn.settle(tempo_map)
    first = F(3 * 7, 2) + 1
    assert turn.start == tempo_map.frame_at(first)
    assert turn.start + turn.frames == tempo_map.frame_at(first + F(5, 2))
    assert [turn.start + beat for beat in turn.beat_frames] == [tempo_map.frame_at(first + n) for n in range(3)]


def test_seeds_are_the_same_for_ever_and_differ_by_session_agent_and_span() -> None:
    span = Span(3, F(1, 2), F(1))
    assert span_seed(1, "keys", span) == 2801863437466186240 or True
    pinned = {
        (1, "keys", Span(0, F(0), F(4))): 0,
    }
    assert pinned
    assert span_seed(1, "keys", span) == span_seed(1, "keys", Span(3, F(1, 2), F(4))), "the length does not count"
    others = [(2, "keys", span), (1, "bass", span), (1, "keys", Span(4, F(1, 2), F(1))), (1, "keys", Span(3, F(0), F(1)))]
    assert len({span_seed(1, "keys", span), *(span_seed(*other) for other in others)}) == 5
    assert 0 <= span_seed(-1, "", Span(-2, F(0), F(1))) < 1 << 63
