from __future__ import annotations

from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import soxr
from fakes import FakeHeard, bar_span, clicks, perform, request_for, tones
from hypothesis import example, given, settings
from hypothesis import strategies as st

from realtime import corpus, soundfiles
from realtime.agents.corpus import CorpusAgent
from realtime.clock import Meter, TempoChange, TempoMap, as_tempo
from realtime.protocols import HOP_FRAMES, Block, Chord, Clip, Origin, Piece, Span, SpanRequest, StreamSpec

RATE = 48000
PITCHES = [220 * 2 ** (k * 7 % 12 / 12) for k in range(32)]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Corpora: a melody of 32 beats at 120, the same at 44.1 kHz, by onsets, and clicks on every beat at 120."""
    home = tmp_path_factory.mktemp("corpora")
    melody = tones(16 * RATE, RATE, PITCHES)
    soundfiles.write(home / "melody.wav", melody, RATE, "FLOAT")
    soundfiles.write(home / "other.wav", tones(16 * 44100, 44100, PITCHES), 44100, "FLOAT")
    soundfiles.write(home / "clicks.wav", clicks(16 * 44100, range(0, 16 * 44100, 22050)), 44100, "FLOAT")
    corpus.build([home / "melody.wav"], home / "beats", bpm=120, labels=8)
    corpus.build([home / "other.wav"], home / "rate", bpm=120, labels=8)
    corpus.build([home / "melody.wav"], home / "onsets", segmentation="onset", labels=8)
    corpus.build([home / "clicks.wav"], home / "clicks", bpm=120, labels=4)
    return {path.name: path for path in home.iterdir() if path.is_dir()}


def agent_of(folder: Path, samplerate: int = RATE, **options: object) -> CorpusAgent:
    agent = CorpusAgent(folder, **options)  # type: ignore[arg-type]
    agent.prepare(StreamSpec(samplerate))
    return agent


def hear(agent: CorpusAgent, audio: Block, start: int = 0) -> None:
    for at in range(start, len(audio) - HOP_FRAMES + 1, HOP_FRAMES):
        agent.hear(audio[at : at + HOP_FRAMES], at)


def asked(agent: CorpusAgent, bpm: float = 120, bar: int = 1, seed: int = 1, **options: object) -> SpanRequest:
    tempo_map = TempoMap.steady(RATE, bpm)
    return replace(request_for(tempo_map, bar_span(tempo_map, bar), seed=seed), **options)  # type: ignore[arg-type]


def played(agent: CorpusAgent, request: SpanRequest) -> Clip:
    clip = agent.play(request)
    assert clip is not None
    return clip


@pytest.fixture
def agent(folders: dict[str, Path]) -> CorpusAgent:
    agent = agent_of(folders["beats"])
    hear(agent, tones(2 * RATE, RATE, PITCHES[8:12]))
    return agent


# --- deciding


def test_it_rests_before_anything_was_heard_and_in_silence(folders: dict[str, Path]) -> None:
    agent = agent_of(folders["beats"])
    assert agent.play(asked(agent)) is None
    hear(agent, np.zeros((2 * RATE, 1), np.float32))
    assert agent.play(asked(agent)) is None
    hear(
        agent,
        np.concatenate((np.zeros((2 * RATE, 1), np.float32), tones(2 * RATE, RATE, [440]))),
        2 * RATE // 512 * 512,
    )
    assert agent.play(asked(agent, bar=2)) is not None


def test_it_answers_a_melody_with_the_same_notes_of_its_corpus(agent: CorpusAgent) -> None:
    units = [piece.unit for piece in played(agent, asked(agent)).origin.pieces]
    assert units == [8, 9, 10, 11] or [PITCHES[u] for u in units] == PITCHES[8:12]


def test_the_chart_beats_what_was_heard_and_plays_in_silence(tmp_path: Path) -> None:
    t = np.arange(2 * RATE) / RATE
    chords = [np.sum([np.sin(2 * np.pi * 261.63 * 2 ** (s / 12) * t) for s in notes], axis=0) * 0.1
              for notes in ((0, 4, 7), (5, 9, 12), (7, 11, 14))]  # fmt: skip
    soundfiles.write(tmp_path / "c.wav", np.concatenate(chords)[:, None].astype(np.float32), RATE, "FLOAT")
    corpus.build([tmp_path / "c.wav"], tmp_path / "out", bpm=120, labels=3)
    agent = agent_of(tmp_path / "out")
    chart = (Chord("F", Fraction(0), Fraction(2)), Chord("G", Fraction(2), Fraction(2)))
    units = [piece.unit // 4 for piece in played(agent, asked(agent, chart=chart)).origin.pieces]
    assert units == [1, 1, 2, 2]
    assert agent.play(asked(agent, chart=(Chord("not a chord", Fraction(0), Fraction(4)),))) is not None


def test_it_jumps_when_it_went_on_long_enough(folders: dict[str, Path]) -> None:
    melody, _ = soundfiles.read(folders["beats"] / "audio/melody.wav")
    for longest in (2, 3, 5):
        agent = agent_of(folders["beats"], max_continuity=longest)
        _, answers = perform(agent, melody, TempoMap.steady(RATE, 120), range(1, 8))
        units = [piece.unit for _, clip in answers if clip for piece in clip.origin.pieces]
        runs = np.split(np.array(units), np.flatnonzero(np.diff(units) != 1) + 1)
        assert max(map(len, runs)) == longest


def test_what_was_played_lately_is_avoided(folders: dict[str, Path]) -> None:
    """In the corpus of clicks all units are alike, so only chance and the taboo choose."""
    beats = clicks(20 * RATE, range(0, 20 * RATE, RATE // 2))
    for taboo in (0, 8):
        agent = agent_of(folders["clicks"], taboo=taboo, max_continuity=1)
        _, answers = perform(agent, beats, TempoMap.steady(RATE, 120), range(1, 9))
        units = [piece.unit for _, clip in answers if clip for piece in clip.origin.pieces]
        assert len(units) == 32
        repeats = [unit in units[max(0, k - 4) : k] for k, unit in enumerate(units)]
        assert any(repeats) == (taboo == 0)


def test_play_changes_no_state_and_chance_comes_from_the_seed(agent: CorpusAgent) -> None:
    before = agent.snapshot()
    first = played(agent, asked(agent, seed=5))
    assert agent.snapshot() == before
    again = played(agent, asked(agent, seed=5))
    assert first.origin == again.origin
    assert np.array_equal(first.audio, again.audio)


def test_beats_not_heard_yet_come_from_the_bar_before(folders: dict[str, Path]) -> None:
    agent = agent_of(folders["beats"])
    hear(agent, np.concatenate((tones(2 * RATE, RATE, PITCHES[4:8]), tones(RATE, RATE, PITCHES[8:10]))))
    request = asked(agent, bar=2, context_end=3 * RATE)
    units = [piece.unit for piece in played(agent, request).origin.pieces]
    assert [PITCHES[u] for u in units] == PITCHES[8:10] + PITCHES[6:8]


def test_it_carries_on_in_its_recording_whatever_is_heard(agent: CorpusAgent) -> None:
    before = agent.snapshot()
    clip = played(agent, asked(agent))
    units = [piece.unit for piece in clip.origin.pieces]
    more = agent.carry_on(asked(agent, bar=2, attempt=2, after=clip.origin))
    assert more is not None
    assert [piece.unit for piece in more.origin.pieces] == [units[-1] + k for k in range(1, 5)]
    assert agent.snapshot() == before, "to carry on is not to play"
    again = agent.realise(asked(agent, bar=2), more.origin)
    assert np.array_equal(again.audio, more.audio)


def test_at_the_end_of_its_recording_it_carries_on_elsewhere(agent: CorpusAgent, folders: dict[str, Path]) -> None:
    last = len(agent.corpus) - 1
    clip = played(agent, asked(agent))
    at_the_end = replace(clip.origin, pieces=(replace(clip.origin.pieces[-1], unit=last),))
    more = agent.carry_on(asked(agent, bar=2, attempt=2, after=at_the_end))
    assert more is not None
    units = [piece.unit for piece in more.origin.pieces]
    assert 0 <= units[0] < last
    assert units[1:] == [units[0] + k for k in range(1, 4)]
    assert np.abs(more.audio).max() > 0.01


def test_what_is_not_its_own_it_does_not_carry_on(agent: CorpusAgent) -> None:
    for after in (None, Origin("heard"), Origin("corpus", "other", "0000")):
        assert agent.carry_on(asked(agent, bar=2, attempt=2, after=after)) is None


# --- sounding


def test_the_same_tempo_is_played_sample_for_sample(agent: CorpusAgent, folders: dict[str, Path]) -> None:
    request = asked(agent)
    clip = played(agent, request)
    source, _ = soundfiles.read(folders["beats"] / "audio/melody.wav")
    assert clip.audio.shape == (480 + request.frames, 1)
    for piece in clip.origin.pieces:
        assert not piece.stretched
        inside = slice(480 + piece.at, 480 + piece.at + piece.frames - 480)
        expected = source[piece.source_frame : piece.source_frame + piece.frames - 480]
        assert np.array_equal(clip.audio[inside], expected)


def test_a_run_has_no_seam(folders: dict[str, Path]) -> None:
    agent = agent_of(folders["beats"])
    source, _ = soundfiles.read(folders["beats"] / "audio/melody.wav")
    pieces = tuple(Piece("melody.wav", k * 24000, 24000, (k - 4) * 24000, 24000, k) for k in range(4, 8))
    clip = agent.realise(asked(agent), Origin("corpus", pieces=pieces))
    assert np.array_equal(clip.audio, source[96000 - 480 : 192000])


def test_a_run_of_another_rate_is_one_read(folders: dict[str, Path]) -> None:
    agent = agent_of(folders["rate"])
    pieces = tuple(Piece("other.wav", k * 22050, 22050, (k - 4) * 24000, 24000, k) for k in range(4, 8))
    clip = agent.realise(asked(agent), Origin("corpus", pieces=pieces))
    assert np.array_equal(clip.audio, agent.corpus.read(0, 4 * 22050, 480, 96000, RATE))


def test_where_rounding_differs_by_a_frame_the_click_wins_over_the_seam(tmp_path: Path) -> None:
    """A beat of 130 bpm is 22153.846 frames: units and slots are rounded at other places once a bar has passed."""
    tempo_map = TempoMap.steady(RATE, 130)
    beats = [tempo_map.frame_at(Fraction(k)) for k in range(64)]
    soundfiles.write(tmp_path / "c.wav", clicks(beats[-1] + 20000, beats[:-1]), RATE, "FLOAT")
    corpus.build([tmp_path / "c.wav"], tmp_path / "out", bpm=130, labels=2)
    agent = agent_of(tmp_path / "out", max_continuity=64)
    drifts = set()
    for first in range(0, 40, 3):
        units = range(first, first + 12)
        slots = beats[:13]
        pieces = tuple(
            Piece("c.wav", beats[u], 22154, a, b - a, u) for u, a, b in zip(units, slots, slots[1:], strict=False)
        )
        drifts |= {beats[u] - beats[first] - slot for u, slot in zip(units, slots, strict=False)}
        span = Span(0, Fraction(0), Fraction(12))
        clip = agent.realise(request_for(tempo_map, span), Origin("corpus", pieces=pieces))
        before_the_next_join = clip.audio[480:-480, 0]  # whose last frame may be the next attack's first
        assert np.flatnonzero(before_the_next_join > 0.8).tolist() == slots[:12]
    assert drifts >= {0, 1}


def test_an_unstretched_unit_of_another_rate_is_found_at_its_frame(folders: dict[str, Path]) -> None:
    agent = agent_of(folders["rate"])
    source, rate = soundfiles.read(folders["rate"] / "audio/other.wav")
    whole = soxr.resample(source, rate, RATE, "HQ")
    stem, answers = perform(agent, tones(10 * RATE, RATE, PITCHES[3:23]), TempoMap.steady(RATE, 120), range(1, 5))
    checked = 0
    for request, clip in answers:
        for piece in clip.origin.pieces if clip else ():
            at, start = request.start + piece.at, round(piece.source_frame * RATE / rate)
            frames = piece.frames - 480
            if start < 64 or not frames:
                continue
            part = stem[at : at + frames, 0]
            lags = [float(np.dot(part, whole[start + lag : start + lag + frames, 0])) for lag in range(-64, 65)]
            assert int(np.argmax(lags)) == 64
            assert np.abs(part - whole[start : start + frames, 0]).max() < 1e-4
            checked += 1
    assert checked >= 12


@settings(max_examples=12, deadline=None)
@given(
    bpm=st.integers(60, 240),
    meter=st.sampled_from([Meter(3, 4), Meter(4, 4), Meter(7, 8), Meter(5, 4)]),
    samplerate=st.sampled_from([44100, 48000, 47999, 32000, 96000]),
    ramp=st.integers(60, 240),
)
@example(bpm=60, meter=Meter(3, 4), samplerate=96000, ramp=60)
def test_every_click_is_on_its_beat(
    folders: dict[str, Path], bpm: int, meter: Meter, samplerate: int, ramp: int
) -> None:
    tempo_map = TempoMap.steady(samplerate, bpm, meter)
    tempo_map = TempoChange(3, tempo=as_tempo(ramp), ramp_beats=3).applied(tempo_map)
    agent = agent_of(folders["clicks"], samplerate)
    frames = tempo_map.bar_frame(6)
    beats = [tempo_map.frame_at(Fraction(k)) for k in range(int(6 * meter.beats))]
    stem, answers = perform(agent, clicks(frames, beats), tempo_map, range(1, 6), notice_frames=2000)
    level = np.abs(stem[:, 0])
    bounds = []
    for request, clip in answers:
        assert clip is not None
        bounds += [request.start + beat for beat in request.beat_frames]
    for start, end in zip(bounds, [*bounds[1:], frames], strict=True):
        near = level[max(0, start - 300) : end - 300]
        assert int(near.argmax()) == min(start, 300)
        assert near.max() > 0.5
        assert (
            np.delete(near, np.arange(min(start, 300) - 100, min(start, 300) + 100)).max() < 0.02
        )  # a resampled click rings


def test_a_corpus_by_onsets_fills_the_bar_by_quarter_beats(folders: dict[str, Path]) -> None:
    agent = agent_of(folders["onsets"])
    hear(agent, tones(2 * RATE, RATE, PITCHES[8:12]))
    request = asked(agent, bpm=97, context_end=2 * RATE)
    pieces = played(agent, request).origin.pieces
    quarter = request.frames / 16
    at = 0
    for piece in pieces:
        assert piece.at == at
        assert abs(piece.at / quarter - round(piece.at / quarter)) < 1e-3
        at += piece.frames
    assert at == request.frames


def test_spans_of_a_beat_and_half_a_beat(agent: CorpusAgent) -> None:
    tempo_map = TempoMap.steady(RATE, 120)
    units = []
    for beat in range(8):
        span = Span(1, Fraction(beat, 2), Fraction(1, 2))
        request = request_for(tempo_map, span, context_end=2 * RATE)
        clip = played(agent, request)
        assert len(clip.audio) == 480 + request.frames
        agent.confirm(span, clip.origin)
        units.append((clip.origin.pieces[0].unit, clip.origin.pieces[0].source_frame % 24000))
    assert [frame for _, frame in units] == [0, 12000] * 4
    assert [a for a, _ in units[::2]] == [b for b, _ in units[1::2]]


@pytest.mark.parametrize("bpm", [120, 97, 61, 239])
def test_realise_repeats_play_bit_for_bit_in_another_process_too(folders: dict[str, Path], bpm: int) -> None:
    agent = agent_of(folders["rate"])
    hear(agent, tones(5 * RATE, RATE, PITCHES[2:12]))
    request = asked(agent, bpm=bpm, context_end=5 * RATE // 512 * 512)
    clip = played(agent, request)
    fresh = agent_of(folders["rate"])  # has heard nothing, cached nothing
    assert np.array_equal(fresh.realise(request, clip.origin).audio, clip.audio)


def test_a_changed_unit_changes_the_sound(agent: CorpusAgent) -> None:
    request = asked(agent)
    clip = played(agent, request)
    first, *rest = clip.origin.pieces
    other = replace(first, unit=first.unit + 3, source_frame=first.source_frame + 3 * 24000)
    changed = agent.realise(request, replace(clip.origin, pieces=(other, *rest)))
    assert np.abs(changed.audio - clip.audio).max() > 0.01
    assert np.array_equal(changed.audio[480 + 24000 :], clip.audio[480 + 24000 :])


def test_gain_holes_and_the_end_of_the_file(agent: CorpusAgent, folders: dict[str, Path]) -> None:
    source, _ = soundfiles.read(folders["beats"] / "audio/melody.wav")
    last = len(source) - 24000
    pieces = (
        Piece("melody.wav", 0, 24000, 0, 24000, 0, gain=0.5),
        Piece("melody.wav", last, 24000, 48000, 48000, 31),
    )
    audio = agent.realise(asked(agent), Origin("corpus", pieces=pieces)).audio
    assert not audio[:480].any()  # nothing precedes the recording
    assert np.array_equal(audio[480:24000], source[: 24000 - 480] * np.float32(0.5))
    assert not audio[24480 : 48000 - 1].any()
    assert np.abs(audio[24400:24480]).max() < 0.02
    assert np.array_equal(audio[48480:72480], source[last:])
    assert not audio[72480:].any()


def test_the_stem_is_as_wide_as_asked(folders: dict[str, Path]) -> None:
    agent = CorpusAgent(folders["beats"], channels=3)
    agent.prepare(StreamSpec(RATE))
    hear(agent, tones(2 * RATE, RATE, PITCHES[8:12]))
    audio = played(agent, asked(agent)).audio
    assert audio.shape[1] == 3
    assert np.array_equal(audio[:, 0], audio[:, 2])


# --- remembering


def origin_of(agent: CorpusAgent, units: list[int]) -> Origin:
    pieces = tuple(Piece("melody.wav", u * 24000, 24000, k * 24000, 24000, u) for k, u in enumerate(units))
    return Origin("corpus", agent.corpus.name, agent.corpus.digest, pieces)


def span(bar: int) -> Span:
    return Span(bar, Fraction(0), Fraction(4))


def test_a_second_confirm_replaces_the_first(folders: dict[str, Path]) -> None:
    once, twice, later = (agent_of(folders["beats"]) for _ in range(3))
    for agent in (once, twice, later):
        agent.confirm(span(0), origin_of(agent, [1, 2, 3, 4]))
    once.confirm(span(1), origin_of(once, [9, 10, 20, 21]))
    twice.confirm(span(1), origin_of(twice, [5, 6, 7, 8]))
    assert twice.snapshot() != once.snapshot()
    twice.confirm(span(1), origin_of(twice, [9, 10, 20, 21]))
    assert twice.snapshot() == once.snapshot()
    later.confirm(span(1), None)
    later.confirm(span(2), origin_of(later, [3, 4]))
    once.confirm(span(2), origin_of(once, [3, 4]))
    later.confirm(span(1), origin_of(later, [9, 10, 20, 21]))
    assert later.snapshot() == once.snapshot()


def test_what_is_not_of_this_corpus_counts_as_a_rest(folders: dict[str, Path]) -> None:
    agent, rested = agent_of(folders["beats"]), agent_of(folders["beats"])
    agent.confirm(span(0), Origin("heard", pieces=(Piece("input", 0, 9, 0, 9),)))
    rested.confirm(span(0), None)
    assert agent.snapshot() == rested.snapshot()


def test_a_snapshot_gives_the_same_continuation(folders: dict[str, Path]) -> None:
    audio = tones(20 * RATE, RATE, PITCHES * 2)
    tempo_map = TempoMap.steady(RATE, 113)
    whole, answers = perform(agent_of(folders["beats"]), audio, tempo_map, range(8))
    first = agent_of(folders["beats"])
    heard = 0
    for bar in range(8):
        request, expected = answers[bar]
        while heard + HOP_FRAMES <= request.context_end:
            first.hear(audio[heard : heard + HOP_FRAMES], heard)
            heard += HOP_FRAMES
        clip = first.play(request)
        assert (clip and clip.origin) == (expected and expected.origin)
        if clip is not None and expected is not None:
            assert np.array_equal(clip.audio, expected.audio)
        first.confirm(request.span, clip.origin if clip else None)
        respawned = agent_of(folders["beats"])
        respawned.restore(first.snapshot())
        assert respawned.snapshot() == first.snapshot()
        first = respawned
    assert np.abs(whole).max() > 0.1


def test_a_snapshot_of_another_corpus_is_refused(folders: dict[str, Path]) -> None:
    with pytest.raises(ValueError, match="was it rebuilt"):
        agent_of(folders["beats"]).restore(agent_of(folders["rate"]).snapshot())


def test_a_gap_in_what_is_heard_forgets_the_past(folders: dict[str, Path]) -> None:
    agent = agent_of(folders["beats"])
    hear(agent, tones(2 * RATE, RATE, PITCHES[8:12]))
    agent.hear(np.zeros((HOP_FRAMES, 1), np.float32), 1000 * HOP_FRAMES)
    assert agent.play(asked(agent, bar=6, context_end=1001 * HOP_FRAMES)) is None


def test_bad_parameters_and_a_changed_recording(folders: dict[str, Path], tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="max_continuity=0"):
        CorpusAgent(folders["beats"], max_continuity=0)
    with pytest.raises(ValueError, match="no corpus"):
        CorpusAgent(tmp_path)
    sound = tones(4 * RATE, RATE, PITCHES[:8])
    soundfiles.write(tmp_path / "m.wav", sound, RATE)
    built = corpus.build([tmp_path / "m.wav"], tmp_path / "out", bpm=120)
    data = bytearray((built.folder / "audio/m.wav").read_bytes())
    data[5000] ^= 1
    (built.folder / "audio/m.wav").write_bytes(bytes(data))
    with pytest.raises(ValueError, match=r"m\.wav has changed"):
        CorpusAgent(built.folder).prepare(StreamSpec(RATE))


def test_heard_requests_need_no_history(agent: CorpusAgent) -> None:
    request = asked(agent, heard=FakeHeard(np.zeros((10, 1), np.float32)))
    assert played(agent, request).origin == played(agent, asked(agent)).origin


ONSET_MODEL = Path(__file__).resolve().parent.parent / "exported_models" / "onset"


def test_with_ears_it_leaves_space_while_the_player_is_busy(folders: dict[str, Path]) -> None:
    melody = tones(2 * RATE, RATE, [262, 330, 392, 262], 0.1)
    busy = melody + clicks(len(melody), range(0, len(melody), RATE // 8))  # sixteenths at 120
    gains = {}
    for name, heard in (("calm", melody), ("busy", busy)):
        agent = agent_of(folders["beats"], model=ONSET_MODEL, space_db=12.0)
        hear(agent, heard)
        clip = played(agent, asked(agent))
        gains[name] = {piece.gain for piece in clip.origin.pieces}
    assert gains["calm"] == {1.0}
    assert gains["busy"] == {round(10 ** (-12 / 20), 4)}


def test_without_ears_it_always_plays_at_full_level(agent: CorpusAgent) -> None:
    assert {piece.gain for piece in played(agent, asked(agent)).origin.pieces} == {1.0}


def test_space_out_of_range_is_refused(folders: dict[str, Path]) -> None:
    with pytest.raises(ValueError, match="space_db=-6"):
        CorpusAgent(folders["beats"], space_db=-6)
