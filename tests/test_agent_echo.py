from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
from fakes import FakeHeard, bar_span, perform, request_for

from realtime.agents.echo import EchoAgent
from realtime.buffers import crossfade
from realtime.clock import Meter, TempoMap
from realtime.protocols import Block, Clip, Origin, Piece, Span, StreamSpec

RATE = 48000
NOISE = (np.random.default_rng(1).standard_normal((12 * RATE, 1)) * 0.1).astype(np.float32)


def echo(channels: int = 1, source: str = "input") -> EchoAgent:
    agent = EchoAgent(channels, source)
    agent.prepare(StreamSpec(RATE))
    return agent


def answer(agent: EchoAgent, bar: int, known: int | None = None, audio: Block = NOISE) -> Clip:
    tempo_map = TempoMap.steady(RATE, 120)
    heard = FakeHeard(audio, {"keys": audio * 0.5}, known)
    clip = agent.play(request_for(tempo_map, bar_span(tempo_map, bar), context_end=known, heard=heard))
    assert clip is not None
    return clip


def test_a_bar_that_was_heard_whole_comes_back_sample_for_sample() -> None:
    clip = answer(echo(), 2)
    assert clip.audio.shape == (480 + 96000, 1)
    assert clip.lead_in == 480
    assert np.array_equal(clip.audio, NOISE[96000 - 480 : 192000])
    assert clip.origin == Origin("heard", "input", pieces=(Piece("input", 96000, 96000, 0, 96000),))


def test_what_was_not_heard_yet_comes_from_the_bar_before() -> None:
    known = 2 * 96000 - 10000
    clip = answer(echo(), 2, known)
    assert [(p.source_frame, p.at, p.frames) for p in clip.origin.pieces] == [
        (96000, 0, 86000),
        (86000, 86000, 10000),
    ]
    sound = clip.audio[480:]
    assert np.array_equal(sound[: 86000 - 480], NOISE[96000 : 182000 - 480])
    assert np.array_equal(sound[86000:], NOISE[86000:96000])
    joined = crossfade(NOISE[182000 - 480 : 182000], NOISE[86000 - 480 : 86000])
    assert np.array_equal(sound[86000 - 480 : 86000], joined)


def test_it_uses_nothing_past_the_context() -> None:
    known = 2 * 96000 - 10000
    spoiled = NOISE.copy()
    spoiled[known:] = 7
    assert np.array_equal(answer(echo(), 2, known).audio, answer(echo(), 2, known, spoiled).audio)


def test_it_rests_while_no_bar_was_heard() -> None:
    tempo_map = TempoMap.steady(RATE, 120)
    request = request_for(tempo_map, bar_span(tempo_map, 0), context_end=0, heard=FakeHeard(NOISE))
    assert echo().play(request) is None
    late = request_for(tempo_map, bar_span(tempo_map, 1), context_end=40000, heard=FakeHeard(NOISE))
    clip = echo().play(late)
    assert clip is not None
    assert not clip.audio[480 + 40000 :].any()


@pytest.mark.parametrize("meter", [Meter(4, 4), Meter(7, 8), Meter(3, 4)])
def test_spans_of_a_beat_find_the_same_beat_of_the_last_bar(meter: Meter) -> None:
    tempo_map = TempoMap.steady(RATE, 131, meter)
    span = Span(2, Fraction(1), Fraction(1))
    request = request_for(tempo_map, span, heard=FakeHeard(NOISE))
    clip = echo().play(request)
    assert clip is not None
    start = tempo_map.frame_at(tempo_map.downbeat(1) + 1)
    assert abs(clip.origin.pieces[0].source_frame - start) <= 1
    assert len(clip.audio) == 480 + request.frames


def test_another_stem_and_another_width() -> None:
    clip = answer(echo(2, "keys"), 2)
    assert np.array_equal(clip.audio, np.repeat(NOISE[96000 - 480 : 192000] * np.float32(0.5), 2, axis=1))
    assert clip.origin.pieces[0].source == "keys"


def test_realise_gives_the_same_bits_and_follows_a_changed_origin() -> None:
    tempo_map = TempoMap.steady(RATE, 120)
    request = request_for(tempo_map, bar_span(tempo_map, 3), context_end=250000, heard=FakeHeard(NOISE))
    agent = echo()
    clip = agent.play(request)
    assert clip is not None
    assert np.array_equal(agent.realise(request, clip.origin).audio, clip.audio)
    changed = Origin("heard", "input", pieces=(Piece("input", 5000, 96000, 0, 96000, gain=0.5),))
    assert np.array_equal(agent.realise(request, changed).audio[480:], NOISE[5000:101000] * np.float32(0.5))


def test_a_performance_is_the_input_a_bar_late() -> None:
    tempo_map = TempoMap.steady(RATE, 120)
    repeated = np.tile(NOISE[:96000], (5, 1))
    stem, answers = perform(echo(), repeated, tempo_map, range(5))
    assert answers[0][1] is None
    assert np.abs(stem[2 * 96000 :] - repeated[96000 : 4 * 96000]).max() < 1e-6


def test_it_has_no_state_and_says_when_nothing_was_heard() -> None:
    agent = echo()
    before = agent.snapshot()
    answer(agent, 2)
    agent.confirm(Span(2, Fraction(0), Fraction(4)), None)
    agent.restore(before)
    assert agent.snapshot() == before
    tempo_map = TempoMap.steady(RATE, 120)
    with pytest.raises(ValueError, match="nothing heard"):
        agent.play(request_for(tempo_map, bar_span(tempo_map, 2)))


def test_where_a_bar_is_no_whole_number_of_frames_it_is_found_by_its_exact_beat() -> None:
    tempo_map = TempoMap.steady(44100, 128)  # a bar is 82,687.5 frames
    for bar in range(2, 12):
        clip = echo().play(request_for(tempo_map, bar_span(tempo_map, bar), heard=FakeHeard(NOISE)))
        assert clip is not None
        assert clip.origin.pieces[0].source_frame == tempo_map.bar_frame(bar - 1)
