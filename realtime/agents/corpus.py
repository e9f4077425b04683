"""The corpus agent: it plays recordings in a new order, led by what it hears and by the chart.

For each slot of a span (a beat, or the length of a note for a corpus cut by onsets) it asks what was heard at
this place of the bar last time, or what chord the chart has there: the *influence*. It goes on in the recording
while that agrees with the influence; else it jumps to the unit of least cost, which weighs likeness to the
influence, place in the bar, the past shared with where it was (factor oracle), how much of the coming influences
can be played through from there (scenario), and what was played lately.

After Dicy2 (Nika et al., "DYCI2 agents", ICMC 2017: influences, continuity, taboo) and Somax2 (Borg, Assayag:
one score from several views); both decisions are one cost here.
"""

from __future__ import annotations

import base64
import json
import math
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from realtime import corpus as corpora
from realtime import features, stretch
from realtime.buffers import crossfade, join_frames
from realtime.clock import round_frame
from realtime.listener import OnsetDetector
from realtime.oracle import ANY, LONGEST_CONTEXT, FactorOracle
from realtime.protocols import HOP_FRAMES, Block, Chord, Clip, Origin, Piece, Span, SpanRequest, StreamSpec
from realtime.soundfiles import fit_channels

Floats = npt.NDArray[np.float32]

HEARD_SECONDS = 24
"""How far back influences are remembered: two bars of 4/4 at 20 bpm."""
BARS_BACK = 4
SCENARIO_LABELS = 16
QUIET_DB = -80.0
"""Units below are not chosen: a rest is the agent's word, not an accident of the corpus."""
ALIGNED_FRAMES = 0.25
"""A unit that follows the last one in its source is read in one go with it if that puts it this close to its slot."""
CALM_ONSETS, BUSY_ONSETS = 1.0, 4.0
"""Onsets a beat at which the agent begins to leave space, and at which it leaves most: quarters, sixteenths."""
CACHED_FITS = 64
HISTORY_SPANS = 8
STATE_VERSION = 1

# Costs, in units of squared distance between points of `corpus.embed` (two unlike sounds are about 2 apart).
POSITION_COST = 1.0
CONTEXT_GAIN = 1.0
SCENARIO_GAIN = 0.5
SOURCE_COST = 0.25
RECENT_COST = 6.0
"""For the unit just played; less for those before it, so that a right note may come again sooner than a wrong one."""
NEVER_COST = 1e6
CHANCE_MARGIN = 0.1
"""Candidates this close to the best are alike: chance picks one."""


@dataclass(frozen=True, slots=True)
class _State:
    """Where the agent is in its corpus: unit last played (-1: none), units since a jump, units lately played."""

    unit: int = -1
    run: int = 0
    recent: tuple[int, ...] = ()

    def after(self, unit: int, remembered: int) -> _State:
        """Return the state once ``unit`` was played; the rest of the same unit changes nothing."""
        if unit == self.unit:
            return self
        recent = (*self.recent, unit)[-remembered:] if remembered else ()
        return _State(unit, self.run + 1 if unit == self.unit + 1 else 0, recent)


@dataclass(frozen=True, slots=True)
class _Confirmed:
    """One span as it sounded: its units (``None``: a rest) and the state before it."""

    bar: int
    beat: str
    units: tuple[int, ...] | None
    before: _State


@dataclass(frozen=True, slots=True)
class _Influence:
    """What one beat is to be like: a point, and how much each column of it is known (0 or 1)."""

    point: Floats
    known: Floats


class CorpusAgent:
    """Plays a corpus.

    Parameters
    ----------
    corpus
        Folder that ``sideman corpus build`` made, or an open corpus.
    channels
        Width of the stem; that of the widest recording if ``None``.
    max_continuity
        Units played in a row before it must jump, 1 or more.
    weights
        What likeness means: weights of chroma, loudness and timbre.
    rest_below_db
        If the last bar heard was softer, and no chart is given, the agent rests.
    taboo
        So many units are avoided after they were played.
    model
        Folder of an onset network (``exported_models/onset``): with it the agent leaves space.
    space_db
        How much softer it plays while the player is busiest.

    Raises
    ------
    ValueError
        If the corpus cannot be opened, or a parameter is out of range.
    """

    def __init__(
        self,
        corpus: corpora.Corpus | Path | str,
        *,
        channels: int | None = None,
        max_continuity: int = 8,
        weights: tuple[float, float, float] = corpora.WEIGHTS,
        rest_below_db: float = -60.0,
        taboo: int = 8,
        model: Path | str | None = None,
        space_db: float = 6.0,
    ) -> None:
        if max_continuity < 1 or taboo < 0:
            raise ValueError(f"max_continuity={max_continuity}, taboo={taboo}: at least 1 and 0 units are needed")
        if not 0 <= space_db <= 60:
            raise ValueError(f"space_db={space_db}: 0 to 60 dB softer while the player is busy; did you give a gain?")
        self.corpus = corpus if isinstance(corpus, corpora.Corpus) else corpora.load(corpus)
        self.channels = self.corpus.channels if channels is None else channels
        self.max_continuity = max_continuity
        self.rest_below_db = rest_below_db
        self.taboo = min(taboo, len(self.corpus) // 2)
        self._weights = corpora.spread_weights(weights)
        self._label_weights = corpora.spread_weights(corpora.WEIGHTS)
        self._model, self.space_db = model, space_db
        self._onsets: OnsetDetector | None = None
        self._state = _State()
        self._history: list[_Confirmed] = []

    def prepare(self, spec: StreamSpec) -> None:
        """Check the recordings, build the oracle and play a unit for warming up."""
        self._samplerate = spec.samplerate
        self._join = join_frames(spec.samplerate)
        self._attack = round(stretch.ATTACK_SECONDS * spec.samplerate)
        self._stream = features.FeatureStream(spec.samplerate)
        self._rows = np.zeros((HEARD_SECONDS * spec.samplerate // HOP_FRAMES, features.FEATURES), np.float32)
        self._first_hop = self._end_hop = 0
        self._onsets = None if self._model is None else OnsetDetector(self._model, spec.samplerate)
        self.corpus.verify()
        self.oracle = FactorOracle(self.corpus.labels.tolist())
        self._points = self.corpus.points * self._weights
        self._source = np.asarray(self.corpus.source)
        self._position = np.asarray(self.corpus.position)
        self._base_cost = self._quiet_cost()
        self._fits: OrderedDict[tuple[str, int, int, int], Block] = OrderedDict()
        frames = round(int(self.corpus.frames[0]) * 0.9 * spec.samplerate / self._rate_of(0))
        self._sound([self._piece(0, 0, max(1, frames), Fraction(1), Fraction(0))])

    def _quiet_cost(self) -> Floats:
        """Return what a unit costs before anything is asked: silent ones are kept away from, unless all are."""
        quiet = self.corpus.features[:, features.LOUDNESS] < QUIET_DB
        return np.where(quiet & ~quiet.all(), NEVER_COST, 0).astype(np.float32)

    # --- hearing --------------------------------------------------------------------------------------------

    def hear(self, hop: Block, frame: int) -> None:
        """Keep the features of a hop; after a gap the past is forgotten."""
        index = frame // HOP_FRAMES
        if index != self._end_hop:
            self._first_hop = self._end_hop = index
        self._rows[index % len(self._rows)] = self._stream.process(hop)[0]
        self._end_hop = index + 1
        self._first_hop = max(self._first_hop, self._end_hop - len(self._rows))
        if self._onsets is not None:
            self._onsets.hear(hop, frame)

    def _heard_rows(self, first: int, end: int) -> features.Rows:
        """Return the rows of the hops ``[first, end)`` as far as they are remembered."""
        hops = np.arange(max(first, self._first_hop), min(end, self._end_hop))
        return self._rows[hops % len(self._rows)]

    def _rests(self, request: SpanRequest) -> bool:
        """Whether nothing to answer was heard over the last bar, and no chart says what to play."""
        if request.chart:
            return False
        bar_frames = request.timeline.meter.beats * request.timeline.beat_frames
        end = request.context_end // HOP_FRAMES
        rows = self._heard_rows(end - max(1, round(bar_frames / HOP_FRAMES)), end)
        return not len(rows) or _power_db(rows) < self.rest_below_db

    def _space(self, request: SpanRequest) -> float:
        """Return the gain that leaves the player space: full where notes are few, ``space_db`` less where many."""
        if self._onsets is None:
            return 1.0
        beats = request.timeline.meter.beats
        end = request.context_end - self._onsets.latency
        start = end - round_frame(beats * request.timeline.beat_frames)
        busy = (self._onsets.activity(max(0, start), max(1, end), float(beats)) - CALM_ONSETS) / (
            BUSY_ONSETS - CALM_ONSETS
        )
        return round(10 ** (-self.space_db * min(1.0, max(0.0, busy)) / 20), 4)

    def _influences(self, request: SpanRequest) -> list[_Influence | None]:
        """Return what each beat of the span is to be like; ``None`` where nothing is known."""
        scaling = self._heard_scaling(request)
        beat = request.timeline.beat_at(request.start)
        found = []
        for offset in range(len(request.beat_frames)):
            length = min(Fraction(1), request.span.beats - offset)
            summary = self._heard_at(request, beat + offset, length)
            influence = None
            if summary is not None:
                influence = _Influence(corpora.embed(summary, *scaling), np.ones(features.SUMMARY, np.float32))
            found.append(_with_chord(influence, request.chart, Fraction(offset)))
        return found

    def _heard_at(self, request: SpanRequest, beat: Fraction, length: Fraction) -> Floats | None:
        """Describe what was heard at the same place of the latest bar of which at least half is known."""
        timeline = request.timeline
        heard_end = min(self._end_hop, request.context_end // HOP_FRAMES)
        for bars in range(1, BARS_BACK + 1):
            ago = beat - bars * timeline.meter.beats
            first = round(timeline.position(ago) / HOP_FRAMES)
            end = max(first + 1, round(timeline.position(ago + length) / HOP_FRAMES))
            if first >= self._first_hop and heard_end - first >= (end - first + 1) // 2:
                delay = self._stream.delay_hops
                rows = self._heard_rows(first, min(end + delay, heard_end))
                return features.summarise(rows, 0, min(end, heard_end) - first, delay)
        return None

    def _heard_scaling(self, request: SpanRequest) -> tuple[Floats, Floats]:
        """Return mean and deviation of what was heard, beat by beat: another instrument has other ones."""
        rows = self._heard_rows(self._first_hop, request.context_end // HOP_FRAMES)[:, : features.SUMMARY]
        size = max(1, round(request.timeline.beat_frames / HOP_FRAMES))
        corpus_mean, corpus_deviation = self.corpus.scaling.mean(axis=0)
        if not len(rows):
            return corpus_mean, corpus_deviation
        amplitude = 10.0 ** (rows[:, features.LOUDNESS, None].astype(np.float64) / 20)
        starts = np.arange(0, len(rows), size)
        weight = np.add.reduceat(amplitude, starts)
        means = np.add.reduceat(rows * amplitude, starts) / weight
        power = np.add.reduceat(amplitude[:, 0] ** 2, starts) / np.diff([*starts, len(rows)])
        means[:, features.LOUDNESS] = 10 * np.log10(power)
        means = means[means[:, features.LOUDNESS] >= self.rest_below_db]
        if not len(means):
            return corpus_mean, corpus_deviation
        deviation = np.maximum(means.std(axis=0), 0.1) if len(means) >= 4 else corpus_deviation
        return means.mean(axis=0).astype(np.float32), deviation.astype(np.float32)

    # --- deciding -------------------------------------------------------------------------------------------

    def play(self, request: SpanRequest) -> Clip | None:
        """Choose units for the span, and make their sound; a rest if there is nothing to answer."""
        if self._rests(request):
            return None
        influences = self._influences(request)
        labels = [self._label(influence) for influence in influences]
        chance, gain = np.random.default_rng(request.seed), self._space(request)
        state, beat, pieces = self._state, Fraction(0), []
        while beat < request.span.beats:
            now = int(beat)
            phase = (request.span.beat + beat) % 1 if self.corpus.segmentation == "beat" else Fraction(0)
            if phase and state.unit >= 0:
                unit = state.unit  # inside a beat: the rest of its unit
            else:
                place = request.span.beat + beat
                unit = self._next_unit(state, influences[now], labels[now:], place, chance)
            length = self._slot_beats(unit, phase, request.span.beats - beat, request.timeline.beat_frames)
            at, end = _place(request, beat), _place(request, beat + length)
            pieces.append(replace(self._piece(unit, at, end - at, length, phase), gain=gain))
            state, beat = state.after(unit, self.taboo), beat + length
        return self.realise(request, Origin("corpus", self.corpus.name, self.corpus.digest, tuple(pieces)))

    def carry_on(self, request: SpanRequest) -> Clip | None:
        """Go on in the recording from the unit that sounds last, beat by beat, whatever is heard meanwhile.

        Where a recording ends it goes on from that unit's continuations in the oracle; after ``max_continuity`` units
        it may go on all the same, since this is only played when nothing better came.
        """
        units = self._units(request.after)
        if not units:
            return None
        unit, beat, pieces = units[-1], Fraction(0), []
        gain = request.after.pieces[-1].gain if request.after is not None else 1.0
        chance = np.random.default_rng(request.seed)
        while beat < request.span.beats:
            phase = (request.span.beat + beat) % 1 if self.corpus.segmentation == "beat" else Fraction(0)
            if not phase:
                unit = self._following(unit, chance)
            length = self._slot_beats(unit, phase, request.span.beats - beat, request.timeline.beat_frames)
            at, end = _place(request, beat), _place(request, beat + length)
            pieces.append(replace(self._piece(unit, at, end - at, length, phase), gain=gain))
            beat += length
        return self.realise(request, Origin("corpus", self.corpus.name, self.corpus.digest, tuple(pieces)))

    def _following(self, unit: int, chance: np.random.Generator) -> int:
        """Return the unit after ``unit`` in its recording; at its end, or before a silence, one after a like unit."""
        if self.corpus.follows(unit) and not self._base_cost[unit + 1]:
            return unit + 1
        units, contexts = self.oracle.continuations(unit)
        sounding = (units != unit + 1) & (self._base_cost[units] == 0)
        if sounding.any():
            return int(units[sounding][np.argmax(contexts[sounding])])
        return int(chance.choice(np.flatnonzero(self._base_cost == self._base_cost.min())))

    def _label(self, influence: _Influence | None) -> int:
        if influence is None:
            return ANY
        weights = self._label_weights * influence.known
        return int(corpora.nearest_centres((influence.point * weights)[None], self.corpus.codebook * weights)[0])

    def _next_unit(
        self,
        state: _State,
        influence: _Influence | None,
        labels: Sequence[int],
        place: Fraction,
        chance: np.random.Generator,
    ) -> int:
        """Go on while it agrees with the influence, else jump to the best candidate."""
        following = state.unit + 1 if state.unit >= 0 and self.corpus.follows(state.unit) else -1
        may_go_on = following >= 0 and state.run + 1 < self.max_continuity and not self._base_cost[following]
        if may_go_on and labels[0] in (ANY, int(self.corpus.labels[following])):
            return following
        cost = self._costs(state, influence, labels, place)
        if following >= 0 and not may_go_on:
            cost[following] += NEVER_COST
        best = np.flatnonzero(cost <= cost.min() + CHANCE_MARGIN)
        return int(chance.choice(best))

    def _costs(
        self, state: _State, influence: _Influence | None, labels: Sequence[int], place: Fraction
    ) -> npt.NDArray[np.float64]:
        """Return what it costs to play each unit next."""
        cost = self._base_cost.astype(np.float64)
        if influence is not None:
            apart = (self._points - influence.point * self._weights) * influence.known
            cost += np.einsum("ij,ij->i", apart, apart)
        cost += POSITION_COST * np.minimum(1, np.nan_to_num(np.abs(self._position - float(place))))
        scenario = labels[:SCENARIO_LABELS]
        cost -= SCENARIO_GAIN / len(scenario) * self.oracle.prefixes(scenario)
        if state.unit >= 0:
            cost += SOURCE_COST * (self._source != self._source[state.unit])
            units, contexts = self.oracle.continuations(state.unit)
            gain = CONTEXT_GAIN * np.log2(1 + contexts) / math.log2(1 + LONGEST_CONTEXT)
            cost[units] -= gain
        for age, unit in enumerate(reversed(state.recent)):
            cost[unit] += RECENT_COST * (1 - age / self.taboo)
        return cost

    def _slot_beats(self, unit: int, phase: Fraction, left: Fraction, beat_frames: Fraction) -> Fraction:
        """Return the beats a unit gets: to the next beat, or for onset units its length in quarters of a beat."""
        if self.corpus.segmentation == "beat":
            return min(1 - phase, left)
        natural = int(self.corpus.frames[unit]) * Fraction(self._samplerate, self._rate_of(unit)) / beat_frames
        return min(Fraction(max(1, round(natural * 4)), 4), left)

    def _piece(self, unit: int, at: int, frames: int, beats: Fraction, phase: Fraction) -> Piece:
        """Lay a unit, or the part of it that its slot has room for, over ``[at, at + frames)``."""
        start, length = int(self.corpus.start[unit]), Fraction(int(self.corpus.frames[unit]))
        rate = self._rate_of(unit)
        if self.corpus.segmentation == "beat" and self.corpus.tempo:
            per_beat = 60 * rate / self.corpus.tempo  # exact: the unit's own length was rounded
            start, length = start + round_frame(phase * per_beat), per_beat * beats
        elif frames < length * Fraction(self._samplerate, rate) / 2:
            length = Fraction(frames * rate, self._samplerate)  # the span ends first: cut it, do not squeeze it
        natural = length * Fraction(self._samplerate, rate)
        file = self.corpus.sources[self._source[unit]].file
        return Piece(file, start, round_frame(length), at, frames, unit, stretched=abs(natural - frames) > 1)

    def _rate_of(self, unit: int) -> int:
        return self.corpus.sources[int(self.corpus.source[unit])].samplerate

    # --- sounding -------------------------------------------------------------------------------------------

    def realise(self, request: SpanRequest, origin: Origin) -> Clip:
        """Make the sound of an origin: units on their slots, each joined over the frames before it."""
        join = self._join
        audio = np.zeros((join + request.frames, self.channels), np.float32)
        runs = self._runs(origin.pieces)
        for run, following in zip(runs, [*(r[0].at for r in runs[1:]), request.frames], strict=True):
            at = run[0].at
            sound = fit_channels(self._sound(run), self.channels)[: len(audio) - at] * np.float32(run[0].gain)
            if at:
                sound[:join] = crossfade(audio[at : at + join], sound[:join])
            if at + len(sound) - join < following:
                sound[-join:] = crossfade(sound[-join:], np.zeros((join, self.channels), np.float32))
            audio[at : at + len(sound)] = sound
        return Clip(audio, join, origin)

    def _runs(self, pieces: Iterable[Piece]) -> list[list[Piece]]:
        """Group pieces that go on in their source as they do in the clip, to be read as one, without a seam."""
        runs: list[list[Piece]] = []
        for piece in pieces:
            if runs and self._goes_on(runs[-1], piece):
                runs[-1].append(piece)
            else:
                runs.append([piece])
        return runs

    def _goes_on(self, run: list[Piece], piece: Piece) -> bool:
        first, last = run[0], run[-1]
        if (first.stretched, first.source, first.gain) != (False, piece.source, piece.gain) or piece.stretched:
            return False
        rate = self.corpus.sources[self.corpus.index_of(piece.source)].samplerate
        drift = (piece.source_frame - first.source_frame) * self._samplerate / rate - (piece.at - first.at)
        return last.at + last.frames == piece.at and abs(drift) <= ALIGNED_FRAMES

    def _sound(self, run: list[Piece]) -> Block:
        """Return ``(join + frames, channels of the source)``: a run, and before it what precedes it there."""
        first = run[0]
        source = self.corpus.index_of(first.source)
        if first.stretched:
            return self._fitted(first, source)
        frames = run[-1].at + run[-1].frames - first.at
        return self.corpus.read(source, first.source_frame, self._join, frames, self._samplerate)

    def _fitted(self, piece: Piece, source: int) -> Block:
        """Stretch a unit to its slot. Kept for a while: a final answer often repeats the speculative one."""
        key = (piece.source, piece.source_frame, piece.source_frames, piece.frames)
        if key in self._fits:
            self._fits.move_to_end(key)
            return self._fits[key]
        rate = self.corpus.sources[source].samplerate
        length = max(1, round_frame(Fraction(piece.source_frames * self._samplerate, rate)))
        sound = self.corpus.read(source, piece.source_frame, self._join, length, self._samplerate)
        before, unit = sound[: self._join], sound[self._join :]
        fitted = stretch.fit(unit, piece.frames, self._attack, self._samplerate)
        self._fits[key] = np.concatenate((before, fitted))
        if len(self._fits) > CACHED_FITS:
            self._fits.popitem(last=False)
        return self._fits[key]

    # --- remembering ----------------------------------------------------------------------------------------

    def confirm(self, span: Span, origin: Origin | None) -> None:
        """Go on from what sounded. A span confirmed again is taken back first, with all that came after it."""
        units = self._units(origin)
        key = (span.bar, str(span.beat))
        at = next((i for i, done in enumerate(self._history) if (done.bar, done.beat) == key), len(self._history))
        later = [(done.bar, done.beat, done.units) for done in self._history[at + 1 :]]
        if at < len(self._history):
            self._state = self._history[at].before
        del self._history[at:]
        for bar, beat, played in [(*key, units), *later]:
            self._history.append(_Confirmed(bar, beat, played, self._state))
            self._state = self._after(self._state, played)
        del self._history[:-HISTORY_SPANS]

    def _units(self, origin: Origin | None) -> tuple[int, ...] | None:
        """Return the units that sounded; ``None`` for a rest, or for what is not of this corpus."""
        if origin is None or (origin.kind, origin.digest) != ("corpus", self.corpus.digest):
            return None
        return tuple(piece.unit for piece in origin.pieces if 0 <= piece.unit < len(self.corpus))

    def _after(self, state: _State, units: tuple[int, ...] | None) -> _State:
        if units is None:
            return replace(state, run=0)
        for unit in units:
            state = state.after(unit, self.taboo)
        return state

    def snapshot(self) -> bytes:
        """Return the state as JSON; arrays are base64 of little-endian float32."""
        rows = self._heard_rows(self._first_hop, self._end_hop)
        state = {
            "version": STATE_VERSION,
            "corpus": self.corpus.digest,
            "state": _state_to_json(self._state),
            "history": [[c.bar, c.beat, c.units, _state_to_json(c.before)] for c in self._history],
            "first_hop": self._first_hop,
            "end_hop": self._end_hop,
            "rows": _to_text(rows),
            "stream": _to_text(self._stream.state()),
        }
        return json.dumps(state).encode()

    def restore(self, state: bytes) -> None:
        """Take up a snapshot of an agent with the same corpus and samplerate."""
        found = json.loads(state)
        if found.get("version") != STATE_VERSION or found.get("corpus") != self.corpus.digest:
            raise ValueError(f"corpus agent: the snapshot is not of corpus {self.corpus.name!r}; was it rebuilt?")
        self._state = _state_from_json(found["state"])
        self._history = [
            _Confirmed(bar, beat, None if units is None else tuple(units), _state_from_json(before))
            for bar, beat, units, before in found["history"]
        ]
        self._first_hop, self._end_hop = found["first_hop"], found["end_hop"]
        rows = _from_text(found["rows"]).reshape(-1, features.FEATURES)
        self._rows[np.arange(self._first_hop, self._end_hop) % len(self._rows)] = rows
        self._stream.restore(_from_text(found["stream"]))


def _place(request: SpanRequest, beat: Fraction) -> int:
    """Return the frame, from the start of the span, of a beat of it; between beats in proportion."""
    if beat >= request.span.beats:
        return request.frames
    whole = int(beat)
    start = request.beat_frames[whole]
    last = whole + 1 >= len(request.beat_frames)
    end, length = (request.frames, request.span.beats - whole) if last else (request.beat_frames[whole + 1], 1)
    return start + round_frame((end - start) * (beat - whole) / length)


def _with_chord(influence: _Influence | None, chart: Sequence[Chord], beat: Fraction) -> _Influence | None:
    """Put the chord that the chart has at a beat in the place of the chroma heard."""
    symbols = [chord.symbol for chord in chart if chord.beat <= beat < chord.beat + chord.beats]
    chroma = _chroma_of(symbols[-1]) if symbols else None
    if chroma is None:
        return influence
    point = np.zeros(features.SUMMARY, np.float32) if influence is None else influence.point.copy()
    known = np.zeros(features.SUMMARY, np.float32) if influence is None else influence.known.copy()
    point[features.CHROMA] = corpora.CHROMA_SPREAD * chroma / np.sqrt((chroma * chroma).sum())
    known[features.CHROMA] = 1
    return _Influence(point, known)


def _chroma_of(symbol: str) -> Floats | None:
    """Read a chord; one that cannot be read says nothing: once rolling nothing raises."""
    try:
        return features.chord_chroma(symbol)
    except ValueError:
        return None


def _power_db(rows: features.Rows) -> float:
    return 10 * math.log10(float((10.0 ** (rows[:, features.LOUDNESS].astype(np.float64) / 10)).mean()))


def _state_to_json(state: _State) -> list[Any]:
    return [state.unit, state.run, list(state.recent)]


def _state_from_json(found: list[Any]) -> _State:
    return _State(found[0], found[1], tuple(found[2]))


def _to_text(array: Floats) -> str:
    return base64.b64encode(array.astype("<f4").tobytes()).decode()


def _from_text(text: str) -> Floats:
    return np.frombuffer(base64.b64decode(text), "<f4").astype(np.float32)
