"""Who is asked for what, when; what plays if the answer is not there. One :class:`Part` per agent.

For every span the agent is asked twice: a *speculative* request goes out when the span before begins, so that
something fitting exists, and the *final* one at the commit point, ``budget`` before the deadline, with all that was
heard and pressed until then. As soon as the final answer is in, an agent that can is asked to *carry on* from it over
the span after: that lies ready a span ahead, should the agent die. The deadline is the first frame of the crossfade
into the span. There the best answer at hand is taken, down a ladder (design: section 5), and the agent is told what
really sounded.

Nothing an agent's process sends is trusted: an answer that nobody asked for, of another length or span, not finite or
damaged, is counted and held for late.

All frames here are positions of the mixing cursor, so the scheduler knows neither wall clocks nor devices; the engine
cuts its blocks at :meth:`Part.next_event`, and the result does not depend on block sizes. Engine thread only.
"""

from __future__ import annotations

import hashlib
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from fractions import Fraction
from typing import Protocol

import numpy as np

from realtime.buffers import is_finite
from realtime.clock import TempoMap
from realtime.messages import encode
from realtime.protocols import Action, Chord, Clip, Log, Origin, Plan, Span, SpanRequest
from realtime.voice import NEVER, Material, Voice, place_clip

SPECULATIVE, FINAL, CONTINUATION = 0, 1, 2
LEAST_BEATS = Fraction(1, 8)
"""What would be left of a bar and is shorter belongs to the span before: no answer fits into it."""
ACTIONS_KEPT = 64
STRAYS_TOLD = 4
"""Answers that nobody waits for are written down so often in one frame; all are counted."""
TAILS = 64
"""So often a tail sounds again at most: what is missing beyond that is silence."""
QUESTIONS_KEPT = 64
"""So many questions back, an answer is late and not one that nobody asked for."""
REST, RUNG_FINAL, RUNG_SPECULATIVE, RUNG_CONTINUATION, RUNG_LAST_BAR, RUNG_FADE = range(6)
TOO_LONG = "a question longer than its place"
NO_SLOT, QUEUE_FULL = "no free clip slot", "request queue full"
"""Why a question cannot be sent to an agent that does not keep up; a span that is asked for in vain is late."""
NOT_FINITE = "NaN or infinity in the clip"
SUPERSEDED = "superseded"
"""The fault of a speculative answer that was given up for the final one; it says nothing against the agent."""

LEDGER = (
    "rest", "final", "speculative", "continuation", "last_bar", "fade", "sounding", "faults", "finals", "late_finals",
    "late_in_a_row", "faulty_in_a_row", "good", "generation", "budget_frames", "heard_margin", "request_margin",
    "ready_margin", "mixed_margin", "ready_margin_min",
)  # fmt: skip
"""What :meth:`Part.ledger` tells, in order: spans by rung; the rung that sounds (-1: none yet); faulty answers;
finals asked, late, late in a row; faulty answers in a row; usable answers since this generation of the worker took
over; the generation; the budget; margins of the latest span in frames (negative: late) and the least margin of an
answer."""


@dataclass(frozen=True, slots=True)
class Reply:
    """What came back for one request: a clip, a rest (``clip`` is None and ``fault`` empty), or a fault."""

    span: Span
    attempt: int
    clip: Clip | None
    fault: str = ""
    compute_seconds: float = 0.0
    slot: int | None = None
    look: Callable[[], str] | None = None  # looks at every sample and says what is wrong; None: it was looked at


class Port(Protocol):
    """The engine's end of the way to one agent. Never waits."""

    def armed(self) -> bool:
        """Whether the agent is loaded and takes requests."""

    def continues(self) -> bool:
        """Whether the agent can carry on from its last span."""

    def generation(self) -> int:
        """How often the agent's process has been replaced."""

    def renew(self) -> int:
        """Take up the present generation and return it: what the former has not answered will not come."""

    def budget_frames(self) -> int:
        """How long the agent takes for a span at most, with hand-over, as known now."""

    def post(self, request: SpanRequest) -> str:
        """Send a request; return why it could not be sent, or an empty string."""

    def confirm(self, span: Span, origin: Origin | None) -> None:
        """Tell the agent what really sounded."""

    def take(self, now: int) -> Reply | None:
        """Return the next reply that is in at frame ``now``."""

    def ready(self) -> bool:
        """Whether a reply may be waiting to be taken; cheap, asked once a block. Virtual time says False."""

    def examine(self, samples: int) -> int:
        """Look at up to ``samples`` of a final reply that waits, ahead of its being taken, when else all of it has to
        be looked at. Return how many of them were not needed; -1 if there is more to look at.
        """

    def next_due(self) -> int:
        """Frame at which the next reply will be in, ``NEVER`` if unknown. Known only where time is virtual."""

    def release(self, reply: Reply) -> None:
        """Say that the reply's clip will not be read again."""


class Timing(Protocol):
    """When a request goes out and what it may know; measured live, forced on replay."""

    def post_frame(self, part: Part, turn: Turn, attempt: int) -> int:
        """Frame at which to post; ``NEVER`` for not at all."""

    def context_end(self, part: Part, turn: Turn, attempt: int, now: int) -> int:
        """Last input frame (exclusive) the agent may use."""

    def due_context(self, now: int) -> int | None:
        """What ought to be heard by frame ``now``; ``None`` where that is not known."""

    def playhead(self) -> int:
        """Frame that leaves for the loudspeaker now; -1 where time is virtual."""


@dataclass(frozen=True, slots=True)
class Answer:
    """A clip, the request it was made for, and when it was in."""

    request: SpanRequest
    clip: Clip
    arrived: int


@dataclass(slots=True)
class Asked:
    """One request of a turn and its answer; when it went out, when it was to, and what was to be heard by then."""

    request: SpanRequest
    posted: int
    due: int
    due_context: int
    note: str = ""  # why it could not be sent
    reply: Reply | None = None
    arrived: int = NEVER
    released: bool = False

    @property
    def usable(self) -> bool:
        """Whether there is an answer, be it a rest."""
        return self.reply is not None and not self.reply.fault

    @property
    def answer(self) -> Answer | None:
        """The clip that came, if one did."""
        if self.reply is None or self.reply.fault or self.reply.clip is None:
            return None
        return Answer(self.request, self.reply.clip, self.arrived)


@dataclass(slots=True)
class Turn:
    """One span of one agent and what has become of it."""

    span: Span
    grid: Fraction = Fraction(0)
    start: int = 0
    frames: int = 0
    beat_frames: tuple[int, ...] = ()
    asked: dict[int, Asked] = field(default_factory=dict)
    rung: int = -1
    used: Answer | None = None
    note: str = ""

    def settle(self, tempo_map: TempoMap) -> None:
        """Take frames from the tempo map as it is now."""
        first = tempo_map.downbeat(self.span.bar) + self.span.beat
        whole = range(-(-self.span.beats.numerator // self.span.beats.denominator))
        self.start = start = tempo_map.frame_at(first)
        self.frames = tempo_map.frame_at(first + self.span.beats) - start
        self.beat_frames = tuple([tempo_map.frame_at(first + beat) - start for beat in whole])

    @property
    def rests(self) -> bool:
        """Whether the agent's last word is a rest."""
        final = self.asked.get(FINAL)
        return final is not None and final.usable and final.answer is None

    def is_for(self, reply: Reply) -> bool:
        """Whether a reply answers a request of this turn."""
        return (self.span.bar, self.span.beat) == (reply.span.bar, reply.span.beat)


def next_span(span: Span | None, grid: Fraction, tempo_map: TempoMap, first_bar: int = 0) -> Span:
    """Return the span after ``span`` on a grid of ``grid`` beats, 0 for whole bars; a bar's last may be shorter."""
    return _span_at(*_after(span, tempo_map, first_bar), grid, tempo_map)


def _after(span: Span | None, tempo_map: TempoMap, first_bar: int) -> tuple[int, Fraction]:
    bar, beat = (first_bar, Fraction(0)) if span is None else (span.bar, span.beat + span.beats)
    if span is not None and beat >= tempo_map.bar_beats(bar):
        bar, beat = bar + 1, Fraction(0)
    return bar, beat


def _span_at(bar: int, beat: Fraction, grid: Fraction, tempo_map: TempoMap) -> Span:
    """Return the span that begins there; what would be left of the bar after it is no crumb."""
    left = tempo_map.bar_beats(bar) - beat
    beats = min(grid, left) if grid else left
    return Span(bar, beat, left if left - beats < LEAST_BEATS else beats)


def span_seed(session_seed: int, agent: str, span: Span) -> int:
    """Return the seed of one span: blake2b of session seed, agent and span."""
    text = f"{session_seed}/{agent}/{span.bar}/{span.beat}".encode()
    return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "big") >> 1


def chart_over(chart: Sequence[tuple[Chord, ...]], span: Span) -> tuple[Chord, ...]:
    """Cut the chart (one entry a bar, repeating) to a span; beats count from the span's start."""
    if not chart:
        return ()
    found = []
    for chord in chart[span.bar % len(chart)]:
        start = max(chord.beat - span.beat, Fraction(0))
        end = min(chord.beat + chord.beats - span.beat, span.beats)
        if end > start:
            found.append(Chord(chord.symbol, start, end - start))
    return tuple(found)


class LiveTiming:
    """Requests go out as late as the agent's budget allows, and know what was heard when they do.

    Parameters
    ----------
    lead
        Frames mixed ahead: at frame f of the mixing cursor, the player is heard up to ``f - lead``.
    heard
        Returns the end of the input taken so far.
    played
        Returns the frame that leaves for the loudspeaker, -1 where time is virtual.
    turn_frames
        Mixed at a time: what is heard may be so much older.
    """

    def __init__(
        self,
        lead: int,
        heard: Callable[[], int],
        played: Callable[[], int] = lambda: -1,
        turn_frames: int = 0,
    ) -> None:
        self._lead, self._heard, self._played, self._turn_frames = lead, heard, played, turn_frames

    def post_frame(self, part: Part, turn: Turn, attempt: int) -> int:
        """Return the commit point for the final request, the beginning of the span before for the speculative one;
        to carry on is asked as soon as it can be.
        """
        if attempt == CONTINUATION:  # a little later, so that one moment does not bring all of an agent's work
            latest = part.deadline(part.coming) - 1 if part.coming is not None else NEVER
            return min(part.acted_at + part.voice.join_frames, latest)
        latest = part.deadline(turn) - 1  # an agent that takes no time, or a span shorter than a join, is asked too
        begin = min(part.current.start + part.stagger_frames if part.current is not None else 0, latest)
        commit = max(begin, min(latest, part.deadline(turn) - part.notice_frames()))
        if attempt == FINAL:
            return commit
        return begin if commit > begin else NEVER

    def context_end(self, part: Part, turn: Turn, attempt: int, now: int) -> int:
        """Return what the player was heard up to when frame ``now`` is mixed."""
        return min(self._heard(), now - self._lead)

    def due_context(self, now: int) -> int:
        """Return what the player ought to be heard up to by then."""
        return max(0, now - self._lead - self._turn_frames)

    def playhead(self) -> int:
        """Return what the stream told last."""
        return self._played()


def clip_fault(
    clip: Clip, request: SpanRequest, channels: int, longest_lead_in: int, look: Callable[[], str] | None = None
) -> str:
    """Say what is wrong with an answer's sound, an empty string if nothing is; ``look`` looks at the samples."""
    if not 0 <= clip.lead_in <= longest_lead_in:
        return f"a lead-in of {clip.lead_in} frames; 0 to {longest_lead_in} are allowed"
    shape = (clip.lead_in + request.frames, channels)
    if clip.audio.shape != shape or clip.audio.dtype != np.float32:
        return f"clip of {clip.audio.dtype} {clip.audio.shape} where float32 {shape} was asked for"
    if look is not None:
        return look()
    return "" if is_finite(clip.audio) else NOT_FINITE


class Part:
    """One agent's seat in the band: its requests, its ladder, its voice.

    Parameters
    ----------
    name, port, voice
        The agent, the way to it, its sound.
    grid
        Length of a span in beats, 0 for a bar.
    first_bar
        Bar from which on it plays.
    seed
        The session's.
    chart
        Chords of each bar, repeating.
    log
        Takes the ledger's lines.
    order
        Its place in the band. Each later one is asked and decides a join earlier than the one before,
        so that no block carries the work of all.
    """

    def __init__(
        self,
        name: str,
        port: Port,
        voice: Voice,
        *,
        grid: Fraction = Fraction(0),
        first_bar: int = 0,
        seed: int = 0,
        chart: Sequence[tuple[Chord, ...]] = (),
        log: Log = lambda line: None,
        order: int = 0,
    ) -> None:
        self.name, self.port, self.voice = name, port, voice
        self._faulty_sound = False  # whether the last answer that was looked at was faulty
        self.acted_at = 0  # frame at which it last asked, took or decided anything
        self.stagger_frames = stagger_frames(order, voice.join_frames)
        self.follows: tuple[Part, ...] = ()
        self.followers: tuple[Part, ...] = ()
        self.current: Turn | None = None
        self.coming: Turn | None = None
        self.quarantined = False
        self._plays_from = -NEVER  # bar before which it rests
        self.rungs: dict[int, int] = {}
        self.faults = 0
        self._grid, self._first_bar, self._seed, self._chart, self._log = grid, first_bar, seed, chart, log
        self._beyond: Turn | None = None  # the span after the coming one, while only its continuation is asked for
        self._good: Turn | None = None  # the last turn in which an answer of the agent sounded
        self._gone: list[tuple[Turn, int]] = []  # turns that are over, and from when on nothing of them sounds
        self._actions: deque[Action] = deque(maxlen=ACTIONS_KEPT)
        self._questions: deque[tuple[int, Fraction, int]] = deque(maxlen=QUESTIONS_KEPT)
        self._generation = port.generation()
        self._finals = self._late_finals = self._late_in_a_row = 0
        self._faulty_in_a_row = self._good_answers = 0
        self._margins = dict.fromkeys(("heard", "request", "ready", "mixed"), 0)
        self._least_margin = NEVER
        self._strays, self._stray_at = 0, -1

    # What the engine asks

    def deadline(self, turn: Turn) -> int:
        """First frame of the crossfade into a turn, or a little before; the session's beginning has none."""
        return max(0, turn.start - self.voice.join_frames - self.stagger_frames)

    def notice_frames(self) -> int:
        """Frames before the deadline at which the final request goes out: its own budget and its followers'."""
        own = self.port.budget_frames()
        needed = (part.stagger_frames + part.notice_frames() for part in self.followers)
        return max(own, own + max(needed, default=0) - self.stagger_frames)

    def next_event(self, tempo_map: TempoMap, timing: Timing) -> int:
        """Frame of the next thing to do, in the past if something is due."""
        turn = self._turn(tempo_map)
        due = [self.deadline(turn), self.port.next_due()]
        if self._may_ask():
            due += [
                timing.post_frame(self, turn, attempt)
                for attempt in (SPECULATIVE, FINAL)
                if attempt not in turn.asked
            ]
            target, _ = self._to_carry_on(tempo_map)
            if target is not None:
                due.append(timing.post_frame(self, target, CONTINUATION))
        return min(due + self._late_joins())

    def act(self, now: int, tempo_map: TempoMap, timing: Timing) -> bool:
        """Do what is due at frame ``now``; return whether there was anything."""
        turn = self._turn(tempo_map)
        renewed = self.port.generation() != self._generation  # looked at first: what the dead one sent is all there
        done = self._collect(now)
        if renewed:
            self._renew(now)
            done = True
        if self._may_ask() and now < max(1, self.deadline(turn)):
            for attempt in (SPECULATIVE, FINAL):
                if attempt not in turn.asked and timing.post_frame(self, turn, attempt) <= now:
                    self._ask(turn, attempt, now, tempo_map, timing)
                    done = True
        done = self._collect(now) or done
        late = self._late_answer()
        if late is not None and self.current is not None and now in self._late_joins():
            self._join_late(self.current, late, now)
            done = True
        if now >= self.deadline(turn):
            self._decide(turn, now, timing)
            done = True
        if done:
            self.acted_at = now
        return self._carry_on(now, tempo_map, timing) or done

    def press(self, action: Action) -> None:
        """Hand an action to the agent with the next final request; of too many the latest are kept."""
        self._actions.append(action)

    def quarantine(self) -> None:
        """Ask the agent for nothing any more; its stem fades out with the span that sounds or was decided."""
        self.quarantined = True

    def rest(self, now: int, plays_from: int) -> None:
        """Rest in all bars before ``plays_from``; if that is never, fade out from frame ``now`` on."""
        self._plays_from = plays_from
        if plays_from == NEVER:
            self.voice.join(now + self.voice.join_frames, None)
            if self.current is not None:
                self.current.used, self.current.rung = None, REST
            good, self._good = self._good, None  # what was played before says nothing of what fits after
            self._let_go(now, good, until=now + self.voice.join_frames)

    def _rests_in(self, turn: Turn) -> bool:
        return turn.span.bar < self._plays_from

    def set_grid(self, grid: Fraction) -> None:
        """Take spans of ``grid`` beats, 0 for bars, from the span after the coming one on."""
        self._grid = grid
        self._forget_beyond()

    def ledger(self) -> list[int]:
        """Return how the part stands: :data:`LEDGER`."""
        row = [
            *(self.rungs.get(rung, 0) for rung in range(RUNG_FADE + 1)),
            self.current.rung if self.current is not None else -1,
            self.faults, self._finals, self._late_finals, self._late_in_a_row, self._faulty_in_a_row,
            self._good_answers, self._generation, self.port.budget_frames(), *self._margins.values(),
            self._least_margin if self._least_margin < NEVER else 0,
        ]  # fmt: skip
        return [max(-NEVER, min(number, NEVER)) for number in row]

    def retime(self, tempo_map: TempoMap, now: int) -> None:
        """Follow a new tempo map: what sounds is cut at its beats, and those still to come are placed anew."""
        if self.coming is not None:
            span = self.coming.span
            if tempo_map.bar_beats(span.bar) > span.beat:
                self.coming.span = _span_at(span.bar, span.beat, self.coming.grid, tempo_map)
            self.coming.settle(tempo_map)
        self._forget_beyond()
        turn = self.current
        if turn is None or now >= turn.start + turn.frames:
            return
        beats, frames = turn.beat_frames, turn.frames
        turn.settle(tempo_map)
        if (turn.beat_frames, turn.frames) == (beats, frames):
            return
        self._log(
            {"type": "retime", **_place(turn.span), "agent": self.name, "start": turn.start, "frames": turn.frames,
             "decided": now}
        )  # fmt: skip
        if turn.used is not None:
            from_frame = now + self.voice.join_frames
            ends = (turn.start + end for end in (*beats[1:], frames))
            beat_end = next((end for end in ends if end >= from_frame), turn.start + frames)
            self._lay(turn, turn.used, from_frame=from_frame, beat_end=beat_end)

    # Requests and replies

    def _turn(self, tempo_map: TempoMap) -> Turn:
        """Return the coming turn, which begins where the one before ends."""
        if self.coming is None:
            before = self.current.span if self.current else None
            span = next_span(before, self._grid, tempo_map, self._first_bar)
            beyond, self._beyond = self._beyond, None
            if beyond is not None and beyond.span != span:  # the grid or the meter has changed since
                self._release(beyond)
                beyond = None
            self.coming = beyond or Turn(span, self._grid)
            self.coming.settle(tempo_map)
        return self.coming

    def _may_ask(self) -> bool:
        rests = self.coming is not None and self._rests_in(self.coming)
        return not self.quarantined and not rests and self.port.armed()

    def _ask(
        self, turn: Turn, attempt: int, now: int, tempo_map: TempoMap, timing: Timing, after: Origin | None = None
    ) -> None:
        actions = () if attempt == CONTINUATION else tuple(self._actions)
        song_bar = tempo_map.song_bar(turn.span.bar)
        request = SpanRequest(
            agent=self.name,
            span=turn.span,
            start=turn.start,
            frames=turn.frames,
            beat_frames=turn.beat_frames,
            timeline=tempo_map.at_beat(tempo_map.downbeat(turn.span.bar) + turn.span.beat),
            context_end=max(0, timing.context_end(self, turn, attempt, now)),
            seed=span_seed(self._seed, self.name, turn.span),
            attempt=attempt,
            plans=tuple(plan for leader in self.follows for plan in leader.plans_for(turn.span)),
            chart=chart_over(self._chart, replace(turn.span, bar=song_bar)),
            actions=actions,
            song_bar=song_bar,
            after=after,
        )
        due, due_context = max(0, timing.post_frame(self, turn, attempt)), timing.due_context(now)
        turn.asked[attempt] = Asked(request, now, due, request.context_end if due_context is None else due_context)
        note = self.port.post(request)
        if note == TOO_LONG and actions:  # what was pressed is lost, and the question is not
            self._actions.clear()
            self._log({"type": "dropped", "frame": now, "agent": self.name, "why": "more was pressed than fits"})
            request = replace(request, actions=())
            turn.asked[attempt].request, note = request, self.port.post(request)
        turn.asked[attempt].note = note
        if note:
            return
        self._questions.append((turn.span.bar, turn.span.beat, attempt))
        if attempt == FINAL:
            self._finals += 1
            self._actions.clear()
        self._log(
            {
                "type": "request",
                **_place(turn.span),
                "agent": self.name,
                "attempt": attempt,
                "posted": now,
                "start": request.start,
                "frames": request.frames,
                "context_end": request.context_end,
            }
        )

    def plans_for(self, span: Span) -> tuple[Plan, ...]:
        """Return what this part will play in ``span``, as far as it is known now."""
        turn = next((turn for turn in (self.coming, self.current) if turn is not None and turn.span == span), None)
        for attempt in (FINAL, SPECULATIVE):
            asked = turn.asked.get(attempt) if turn is not None else None
            if asked is not None and asked.answer is not None:
                return (Plan(self.name, asked.answer.clip.origin),)
        return ()

    def _carry_on(self, now: int, tempo_map: TempoMap, timing: Timing) -> bool:
        """Ask how what sounds next goes on, as soon as that is known; return whether it was asked."""
        target, source = self._to_carry_on(tempo_map) if self._may_ask() else (None, None)
        if target is None or source is None or timing.post_frame(self, target, CONTINUATION) > now:
            return False
        target.settle(tempo_map)
        self._ask(target, CONTINUATION, now, tempo_map, timing, after=source.clip.origin)
        return True

    def _to_carry_on(self, tempo_map: TempoMap) -> tuple[Turn | None, Answer | None]:
        """Return the turn for which a continuation is to be asked, and what it goes on from.

        That is the turn beyond the coming one once the final answer to that is in; else the coming one, from what
        was decided for the one before it.
        """
        coming, current = self.coming, self.current
        if coming is None or not self.port.continues():
            return None, None
        final = coming.asked.get(FINAL)
        if final is not None and final.usable:
            if final.answer is None or (self._beyond is not None and self._beyond.asked):
                return None, None
            if self._beyond is None:  # kept: it is looked at often until it is asked for
                self._beyond = Turn(next_span(coming.span, self._grid, tempo_map), self._grid)
            return self._beyond, final.answer
        if current is None or current.used is None or CONTINUATION in coming.asked:
            return None, None
        in_time = current.used.arrived <= self.deadline(current)  # one who is late has no time to spare for this
        return (coming, current.used) if current.rung in PLAYED and in_time else (None, None)

    def _forget_beyond(self) -> None:
        """Name the span after the coming one anew, unless it was asked for."""
        if self._beyond is not None and not self._beyond.asked:
            self._beyond = None

    def _collect(self, now: int) -> bool:
        """Take the replies that are in."""
        found = False
        while (reply := self.port.take(now)) is not None:
            found = True
            turn, asked = self._asked(reply)
            if turn is None or asked is None:
                self._stray(reply, now)
                continue
            # What only stands by, and mostly never sounds, is looked at when it is to sound.
            stands_by = reply.attempt != FINAL and turn is not self.current
            reply = self._vetted(reply, asked.request, stands_by)
            asked.reply, asked.arrived = reply, self._arrival(reply, now)
            self._note(asked)
            self._count(asked.reply)
            if turn is self.current and reply.attempt not in _CLIMBS[turn.rung]:
                self._drop(asked)
        return found

    def _note(self, asked: Asked) -> None:
        """Write an answer down."""
        reply = asked.reply
        assert reply is not None
        self._log(
            {
                "type": "reply",
                **_place(reply.span),
                "agent": self.name,
                "attempt": reply.attempt,
                "arrived": asked.arrived,
                "compute_seconds": round(reply.compute_seconds, 6),
                "fault": reply.fault,
                "lead_in": reply.clip.lead_in if reply.clip else 0,
                "origin": encode(reply.clip.origin) if reply.clip else None,
            }
        )

    def _count(self, reply: Reply) -> None:
        """Count an answer for or against the agent. That it can answer is shown by one that was looked at whole, and
        not by carrying on; one that was not makes good only what was no answer at all.
        """
        if reply.fault:
            self._faulty_in_a_row += reply.fault != SUPERSEDED
            self.faults += reply.fault != SUPERSEDED
            self._faulty_sound = self._faulty_sound or reply.fault != SUPERSEDED
        elif reply.attempt != CONTINUATION and (reply.look is None or not self._faulty_sound):
            self._faulty_in_a_row = 0
            self._good_answers += reply.look is None
            self._faulty_sound = False

    def _vetted(self, reply: Reply, request: SpanRequest, stands_by: bool) -> Reply:
        """Return the reply, or a fault in its place if its sound is not what was asked for. Of one that ``stands_by``
        the samples are left for later, if its port has a way to look at them.
        """
        if reply.clip is None or reply.fault:
            return replace(reply, clip=None)
        later = stands_by and reply.look is not None
        fault = clip_fault(reply.clip, request, self.voice.channels, self.voice.join_frames,
                           (lambda: "") if later else reply.look)  # fmt: skip
        if fault:
            return replace(reply, clip=None, fault=fault)
        return reply if later else replace(reply, look=None)

    def _stood_by(self, asked: Asked | None) -> bool:
        """Whether there is a usable answer among those that stand by, now that it may have to sound. What is wrong
        with it and comes out only now is written down once more, and counts as if it had come like that.
        """
        reply = asked.reply if asked is not None else None
        if asked is None or reply is None:
            return False
        if reply.look is not None and reply.clip is not None:
            asked.reply = self._vetted(reply, asked.request, stands_by=False)
            self._count(asked.reply)
            if asked.reply.fault:
                self._note(asked)
        return asked.usable

    def _arrival(self, reply: Reply, now: int) -> int:
        """Return when a reply is held to be in.

        Live, one may come in the very frame of the decision but after it. It is late then, and on replay, where it
        would be there first, it is late too because it says so.
        """
        if self.current is not None and self.current.is_for(reply):
            return max(now, self.deadline(self.current) + 1)
        return now

    def _asked(self, reply: Reply) -> tuple[Turn | None, Asked | None]:
        """Return the turn and the request that a reply answers, if it was waited for."""
        for turn in (self.coming, self.current, self._beyond):
            if turn is not None and turn.is_for(reply):
                asked = turn.asked.get(reply.attempt)
                waits = asked is not None and asked.reply is None and asked.request.span == reply.span
                return turn, asked if waits else None
        return None, None

    def _stray(self, reply: Reply, now: int) -> None:
        """Let go of a reply that nobody waits for: it comes long after its span, or nobody asked."""
        late = (reply.span.bar, reply.span.beat, reply.attempt) in self._questions
        if not late:
            self.faults += 1
            self._faulty_in_a_row += 1
        why = reply.fault or ("its span is over or was answered" if late else "an answer that nobody asked for")
        self.port.release(reply)
        self._strays = self._strays + 1 if now == self._stray_at else 0
        self._stray_at = now
        if self._strays < STRAYS_TOLD:  # of a flood, the beginning tells enough
            self._log({"type": "stray", **_place(reply.span), "agent": self.name, "attempt": reply.attempt,
                       "arrived": now, "fault": why})  # fmt: skip

    def _renew(self, now: int) -> None:
        """Take up a new generation of the agent's process: what was asked of the one before is asked again."""
        self._generation = self.port.renew()
        self._good_answers = self._faulty_in_a_row = self._late_in_a_row = 0
        self._faulty_sound = False
        lost = 0
        for turn in (self.current, self.coming, self._beyond):
            waiting = [asked for asked in turn.asked.values() if asked.reply is None] if turn is not None else []
            for asked in waiting:
                assert turn is not None
                del turn.asked[asked.request.attempt]
                turn.note = "lost"
                self._actions.extendleft(reversed(asked.request.actions if asked.request.final else ()))
                lost += 1
        self._forget_beyond()
        self._log({"type": "worker", "agent": self.name, "frame": now, "generation": self._generation,
                   "event": "lost", "requests": lost})  # fmt: skip

    # The ladder

    def _decide(self, turn: Turn, now: int, timing: Timing) -> None:
        turn.rung, turn.used, cause = self._best(turn)
        if turn.used is not None:
            self._lay(turn, turn.used, from_frame=turn.start)
        else:
            self.voice.join(turn.start, None)
        played = turn.used is not None and turn.rung in PLAYED
        self.rungs[turn.rung] = self.rungs.get(turn.rung, 0) + 1
        if timing.playhead() <= self.deadline(turn):  # else it is we who are late, and that says nothing of the agent
            self._count_final(turn, turn.asked.get(FINAL))
        self._tell(turn, now, cause, timing)
        if not self.quarantined:  # one that is not there now is told when it is
            self.port.confirm(turn.span, turn.used.clip.origin if turn.used is not None else None)
        before, self.current, self.coming = self.current, turn, None
        good, self._good = self._good, turn if played else self._good
        self._drop_unused(turn)
        self._let_go(now, before, good, until=turn.start)

    def _best(self, turn: Turn) -> tuple[int, Answer | None, str]:
        """Return rung, what to play (None: silence) and why it is not the final answer."""
        if self.quarantined:
            return (REST if self._good is None else RUNG_FADE), None, "quarantined"
        if self._rests_in(turn):
            return REST, None, "resting"
        final, speculative = turn.asked.get(FINAL), turn.asked.get(SPECULATIVE)
        cause = self._cause(turn, final)
        if self._good is None and (final is None or final.note):
            return REST, None, cause
        if final is not None and final.usable:
            return (REST if final.answer is None else RUNG_FINAL), final.answer, ""
        if speculative is not None and self._stood_by(speculative):
            return (REST if speculative.answer is None else RUNG_SPECULATIVE), speculative.answer, cause
        continuation = turn.asked.get(CONTINUATION)
        if continuation is not None and self._stood_by(continuation) and continuation.answer is not None:
            return RUNG_CONTINUATION, continuation.answer, cause
        if self._good is not None:
            return RUNG_LAST_BAR, self._good.used, cause
        return RUNG_FADE, None, cause

    def _cause(self, turn: Turn, final: Asked | None) -> str:
        """Say why there is no final answer."""
        if final is None:
            return turn.note or ("not asked" if self.port.armed() else "loading")
        if final.reply is None:
            return final.note or "late"
        return final.reply.fault

    def _count_final(self, turn: Turn, final: Asked | None) -> None:
        """Count whether the final answer was there in time; one that could not be asked for says nothing."""
        if final is None or final.note not in ("", NO_SLOT, QUEUE_FULL) or self.quarantined or self._rests_in(turn):
            return
        late = final.reply is None
        self._late_finals += late
        self._late_in_a_row = self._late_in_a_row + 1 if late else 0

    def _lay(self, turn: Turn, answer: Answer, from_frame: int, beat_end: int = NEVER) -> None:
        """Plan the joins of a clip over a turn from ``from_frame`` on; what sounds now ends at ``beat_end``."""
        made = answer.request
        joins = place_clip(answer.clip, made.beat_frames, made.frames, turn.start, turn.beat_frames, turn.frames)
        self.voice.drop_from(from_frame)
        coming = [join for join in joins if join[0] >= from_frame]
        starts = [*(at for at, _ in coming), turn.start + turn.frames]
        if beat_end < NEVER and (sounding := self.voice.last) is not None:
            self._hold(replace(sounding, end=min(beat_end, sounding.end)), sounding.zero, from_frame, starts[0])
        for (at, material), following in zip(coming, starts[1:], strict=True):
            self.voice.join(at, material)
            self._hold(material, at, at + self.voice.join_frames, following)

    def _hold(self, material: Material, begin: int, earliest: int, following: int) -> None:
        """Let material that ends before ``following`` last until then: its tail sounds again, as often as it takes.

        What is missing is mostly a frame, from rounding; in a bar that got slower it is a part of each beat, and a
        tail heard twice is plainer than a hole. Nothing before frame ``begin`` is repeated, and nothing is joined
        before ``earliest``.
        """
        join, end = self.voice.join_frames, material.end
        missing, there = following - end, end - begin - join
        if missing <= 0:
            return
        if there < join:  # a short piece: what precedes it in its clip sounds again with it
            there = end - material.zero - join
        if there < min(join, missing):
            self.voice.join(max(earliest, end), None)
            return
        times = min(-(-missing // there), TAILS)
        tail = missing if missing <= join else max(join, min(there, -(-missing // times)))
        at = following - join if missing <= join else end
        for _ in range(times):
            material = material.later(tail)
            self.voice.join(max(earliest, at), material)
            at += tail

    def _late_answer(self) -> Answer | None:
        """Return an answer to the sounding turn that came after its deadline and would climb the ladder."""
        turn = self.current
        if turn is None or turn.rests or self.quarantined or self._rests_in(turn):
            return None
        for attempt in _CLIMBS[turn.rung]:
            asked = turn.asked.get(attempt)
            if asked is not None and asked.answer is not None and asked.arrived > self.deadline(turn):
                return asked.answer
        return None

    def _late_joins(self) -> list[int]:
        """Frames at which a late answer may be joined: one join, and its place in the band, before each beat after it
        came.
        """
        turn, late = self.current, self._late_answer()
        if turn is None or late is None:
            return []
        before = self.voice.join_frames + self.stagger_frames
        return [frame for beat in turn.beat_frames[1:] if (frame := turn.start + beat - before) >= late.arrived]

    def _join_late(self, turn: Turn, late: Answer, now: int) -> None:
        at, made = now + self.voice.join_frames + self.stagger_frames, late.request
        joins = place_clip(late.clip, made.beat_frames, made.frames, turn.start, turn.beat_frames, turn.frames)
        if len(joins) == 1:  # it fits as it is: join it in the middle, in its true place
            self.voice.join(at, joins[0][1])
        else:
            self._lay(turn, late, from_frame=at)
        turn.used, turn.rung = late, RUNG_FINAL if made.final else RUNG_SPECULATIVE
        good, self._good = self._good, turn
        self._let_go(now, good, until=at)
        self.port.confirm(turn.span, late.clip.origin)
        self._log(
            {"type": "join", **_place(turn.span), "agent": self.name, "attempt": made.attempt, "frame": at,
             "arrived": late.arrived}
        )  # fmt: skip

    # The ledger

    def _tell(self, turn: Turn, now: int, cause: str, timing: Timing) -> None:
        deadline = self.deadline(turn)
        line: dict[str, object] = {
            "type": "span", **_place(turn.span), "agent": self.name, "start": turn.start, "frames": turn.frames,
            "rung": turn.rung, "cause": cause, "deadline": deadline, "decided": now,
        }  # fmt: skip
        asked = turn.asked.get(_ATTEMPT_OF.get(turn.rung, FINAL))
        if asked is not None and asked.reply is not None:
            line |= {"attempt": asked.request.attempt, "arrived": asked.arrived}
            if asked.posted < deadline:  # else there was no time to be early in: the session's beginning
                ready = asked.posted + round(asked.reply.compute_seconds * asked.request.timeline.samplerate)
                line["margin_frames"] = deadline - max(asked.arrived, ready)
        self._log(line | {"hops": self._hops(turn.asked.get(FINAL), deadline, timing.playhead())})

    def _hops(self, final: Asked | None, deadline: int, playhead: int) -> dict[str, list[int | None]]:
        """Return when each step towards the span was wanted and when it came, in frames; remember the margins."""
        hops: dict[str, list[int | None]] = {}
        if final is not None:
            known, ready = final.request.context_end, final.arrived if final.arrived < NEVER else None
            hops = {"heard": [final.due_context, known], "request": [final.due, final.posted],
                    "ready": [deadline, ready]}  # fmt: skip
            self._margins["heard"], self._margins["request"] = known - final.due_context, final.due - final.posted
            if ready is not None and final.posted < deadline:  # as above
                self._margins["ready"] = deadline - ready
                self._least_margin = min(deadline - ready, self._least_margin)
        if playhead >= 0:
            hops["mixed"] = [deadline, playhead]
            self._margins["mixed"] = deadline - playhead
        return hops

    # Whose memory is whose

    def _drop_unused(self, turn: Turn) -> None:
        """Release the answers of a turn just decided that will not sound: those worse than what does."""
        for asked in turn.asked.values():
            if asked.reply is not None and (turn.used is None or asked.request is not turn.used.request):
                self._drop(asked)

    def _drop(self, asked: Asked) -> None:
        if asked.reply is not None and not asked.released:
            self.port.release(asked.reply)
            asked.reply, asked.released = replace(asked.reply, clip=None), True

    def _release(self, turn: Turn) -> None:
        for asked in turn.asked.values():
            self._drop(asked)
        turn.asked.clear()

    def _let_go(self, now: int, *turns: Turn | None, until: int) -> None:
        """Release the clips of turns gone by once they no longer sound: those named now do until frame ``until``."""
        kept = (self.current, self._good, self.coming)
        gone = {id(turn): (turn, until) for turn in turns if turn is not None and turn not in kept}
        for turn, end in self._gone:
            if turn in kept or id(turn) in gone:
                continue
            if end <= now:
                self._release(turn)
            else:
                gone[id(turn)] = (turn, end)
        self._gone = list(gone.values())


PLAYED = (RUNG_FINAL, RUNG_SPECULATIVE, RUNG_CONTINUATION)
"""Rungs on which an answer of the agent sounds."""
_CLIMBS: dict[int, tuple[int, ...]] = {
    -1: (), REST: (FINAL, SPECULATIVE), RUNG_FINAL: (), RUNG_SPECULATIVE: (FINAL,),
    RUNG_CONTINUATION: (FINAL, SPECULATIVE), RUNG_LAST_BAR: (FINAL, SPECULATIVE), RUNG_FADE: (FINAL, SPECULATIVE),
}  # fmt: skip
"""Answers that may be joined late where a span was decided on a rung."""
_ATTEMPT_OF = {RUNG_SPECULATIVE: SPECULATIVE, RUNG_CONTINUATION: CONTINUATION}


def stagger_frames(order: int, join_frames: int) -> int:
    """Return how much earlier than the first of the band the agent in place ``order`` is asked and decides."""
    return order * join_frames


def _place(span: Span) -> dict[str, object]:
    return {"bar": span.bar, "beat": str(span.beat), "beats": str(span.beats)}
