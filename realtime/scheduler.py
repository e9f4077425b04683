"""Who is asked for what, when; what plays if the answer is not there. One :class:`Part` per agent.

For every span the agent is asked twice: a *speculative* request goes out when the span before begins, so that
something fitting exists, and the *final* one at the commit point, ``budget`` before the deadline, with all that was
heard and pressed until then. The deadline is the first frame of the crossfade into the span. There the best answer
at hand is taken, down a ladder (design: section 5), and the agent is told what really sounded.

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

from realtime.clock import TempoMap
from realtime.messages import encode
from realtime.protocols import Action, Chord, Clip, Log, Origin, Plan, Span, SpanRequest
from realtime.voice import NEVER, Material, Voice, place_clip

SPECULATIVE, FINAL = 0, 1
ACTIONS_KEPT = 64
REST, RUNG_FINAL, RUNG_SPECULATIVE, RUNG_LAST_BAR, RUNG_FADE = 0, 1, 2, 4, 5


@dataclass(frozen=True, slots=True)
class Reply:
    """What came back for one request: a clip, a rest (``clip`` is None and ``fault`` empty), or a fault."""

    span: Span
    attempt: int
    clip: Clip | None
    fault: str = ""
    compute_seconds: float = 0.0
    slot: int | None = None


class Port(Protocol):
    """The engine's end of the way to one agent. Never waits."""

    def armed(self) -> bool:
        """Whether the agent is loaded and takes requests."""

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


@dataclass(frozen=True, slots=True)
class Answer:
    """A clip, the request it was made for, and when it was in."""

    request: SpanRequest
    clip: Clip
    arrived: int


@dataclass(slots=True)
class Asked:
    """One request of a turn and its answer."""

    request: SpanRequest
    posted: int
    reply: Reply | None = None
    arrived: int = NEVER

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
        self.start = tempo_map.frame_at(first)
        self.frames = tempo_map.frame_at(first + self.span.beats) - self.start
        self.beat_frames = tuple(tempo_map.frame_at(first + beat) - self.start for beat in whole)

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
    bar, beat = (first_bar, Fraction(0)) if span is None else (span.bar, span.beat + span.beats)
    if span is not None and beat >= tempo_map.bar_beats(bar):
        bar, beat = bar + 1, Fraction(0)
    left = tempo_map.bar_beats(bar) - beat
    return Span(bar, beat, min(grid, left) if grid else left)


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
    """

    def __init__(self, lead: int, heard: Callable[[], int]) -> None:
        self._lead = lead
        self._heard = heard

    def post_frame(self, part: Part, turn: Turn, attempt: int) -> int:
        """Return the commit point for the final request, the beginning of the span before for the other."""
        latest = part.deadline(turn) - 1  # an agent that takes no time, or a span shorter than a join, is asked too
        begin = min(part.current.start if part.current is not None else 0, latest)
        commit = max(begin, min(latest, part.deadline(turn) - part.notice_frames()))
        if attempt == FINAL:
            return commit
        return begin if commit > begin else NEVER

    def context_end(self, part: Part, turn: Turn, attempt: int, now: int) -> int:
        """Return what the player was heard up to when frame ``now`` is mixed."""
        return min(self._heard(), now - self._lead)


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
    ) -> None:
        self.name, self.port, self.voice = name, port, voice
        self.follows: tuple[Part, ...] = ()
        self.followers: tuple[Part, ...] = ()
        self.current: Turn | None = None
        self.coming: Turn | None = None
        self.rungs: dict[int, int] = {}
        self.faults = 0
        self._grid, self._first_bar, self._seed, self._chart, self._log = grid, first_bar, seed, chart, log
        self._good: Turn | None = None  # the last turn in which an answer of the agent sounded
        self._gone: list[Turn] = []  # turns whose sound may still be in a crossfade; let go at the next decision
        self._actions: deque[Action] = deque(maxlen=ACTIONS_KEPT)

    # What the engine asks

    def deadline(self, turn: Turn) -> int:
        """First frame of the crossfade into a turn; the session's beginning has none before it."""
        return max(0, turn.start - self.voice.join_frames)

    def notice_frames(self) -> int:
        """Frames before the deadline at which the final request goes out: its own budget and its followers'."""
        return self.port.budget_frames() + max((part.notice_frames() for part in self.followers), default=0)

    def next_event(self, tempo_map: TempoMap, timing: Timing) -> int:
        """Frame of the next thing to do, in the past if something is due."""
        turn = self._turn(tempo_map)
        due = [self.deadline(turn), self.port.next_due()]
        due += [
            timing.post_frame(self, turn, attempt) for attempt in (SPECULATIVE, FINAL) if attempt not in turn.asked
        ]
        return min(due + self._late_joins())

    def act(self, now: int, tempo_map: TempoMap, timing: Timing) -> bool:
        """Do what is due at frame ``now``; return whether there was anything."""
        turn = self._turn(tempo_map)
        done = self._collect(now)
        for attempt in (SPECULATIVE, FINAL):
            if attempt not in turn.asked and timing.post_frame(self, turn, attempt) <= now < max(
                1, self.deadline(turn)
            ):
                self._ask(turn, attempt, now, tempo_map, timing)
                done = True
        done = self._collect(now) or done
        late = self._late_answer()
        if late is not None and self.current is not None and now in self._late_joins():
            self._join_late(self.current, late, now)
            done = True
        if now >= self.deadline(turn):
            self._decide(turn, now)
            done = True
        return done

    def press(self, action: Action) -> None:
        """Hand an action to the agent with the next final request; of too many the latest are kept."""
        self._actions.append(action)

    def retime(self, tempo_map: TempoMap, now: int) -> None:
        """Follow a new tempo map: what sounds is cut at its beats, and those still to come are placed anew."""
        if self.coming is not None:
            grid = self._grid or tempo_map.bar_beats(self.coming.span.bar)
            left = tempo_map.bar_beats(self.coming.span.bar) - self.coming.span.beat
            span = self.coming.span
            self.coming.span = Span(span.bar, span.beat, min(grid, left) if left > 0 else span.beats)
            self.coming.settle(tempo_map)
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
        if self.coming is None:
            before = self.current.span if self.current else None
            self.coming = Turn(next_span(before, self._grid, tempo_map, self._first_bar))
            self.coming.settle(tempo_map)
        return self.coming

    def _ask(self, turn: Turn, attempt: int, now: int, tempo_map: TempoMap, timing: Timing) -> None:
        final = attempt == FINAL
        actions = tuple(self._actions)
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
            chart=chart_over(self._chart, turn.span),
            actions=actions,
        )
        turn.asked[attempt] = Asked(request, now)
        turn.note = self.port.post(request) if self.port.armed() else "loading"
        if turn.note:
            return
        if final:
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

    def _collect(self, now: int) -> bool:
        found = False
        while (reply := self.port.take(now)) is not None:
            found = True
            asked = self._asked(reply)
            arrived = self._arrival(reply, now)
            if reply.fault:
                self.faults += 1
            self._log(
                {
                    "type": "reply",
                    **_place(reply.span),
                    "agent": self.name,
                    "attempt": reply.attempt,
                    "arrived": arrived,
                    "compute_seconds": round(reply.compute_seconds, 6),
                    "fault": reply.fault,
                    "lead_in": reply.clip.lead_in if reply.clip else 0,
                    "origin": encode(reply.clip.origin) if reply.clip else None,
                }
            )
            if asked is None:
                self.port.release(reply)
            else:
                asked.reply, asked.arrived = reply, arrived
        return found

    def _arrival(self, reply: Reply, now: int) -> int:
        """Return when a reply is held to be in.

        Live, one may come in the very frame of the decision but after it. It is late then, and on replay, where it
        would be there first, it is late too because it says so.
        """
        if self.current is not None and self.current.is_for(reply):
            return max(now, self.deadline(self.current) + 1)
        return now

    def _asked(self, reply: Reply) -> Asked | None:
        """Return the request that a reply answers, if its sound may still be wanted."""
        for turn in (self.coming, self.current):
            if turn is not None and turn.is_for(reply):
                if turn is self.current and turn.rung == RUNG_FINAL:
                    return None
                asked = turn.asked.get(reply.attempt)
                return asked if asked is not None and asked.reply is None else None
        return None

    # The ladder

    def _decide(self, turn: Turn, now: int) -> None:
        turn.rung, turn.used, cause = self._best(turn)
        if turn.used is not None:
            self._lay(turn, turn.used, from_frame=turn.start)
        else:
            self.voice.join(turn.start, None)
        played = turn.used is not None and turn.rung in (RUNG_FINAL, RUNG_SPECULATIVE)
        self.rungs[turn.rung] = self.rungs.get(turn.rung, 0) + 1
        self._tell(turn, now, cause)
        if self.port.armed():
            self.port.confirm(turn.span, turn.used.clip.origin if turn.used is not None else None)
        before, self.current, self.coming = self.current, turn, None
        good, self._good = self._good, turn if played else self._good
        self._let_go(before, good)

    def _best(self, turn: Turn) -> tuple[int, Answer | None, str]:
        """Return rung, what to play (None: silence) and why it is not the final answer."""
        final, speculative = turn.asked.get(FINAL), turn.asked.get(SPECULATIVE)
        if self._good is None and (final is None or turn.note):
            return REST, None, turn.note or "not asked"
        cause = self._cause(turn, final)
        if final is not None and final.usable:
            return (REST if final.answer is None else RUNG_FINAL), final.answer, ""
        if speculative is not None and speculative.usable:
            return (REST if speculative.answer is None else RUNG_SPECULATIVE), speculative.answer, cause
        if self._good is not None:
            return RUNG_LAST_BAR, self._good.used, cause
        return RUNG_FADE, None, cause

    @staticmethod
    def _cause(turn: Turn, final: Asked | None) -> str:
        if final is None:
            return turn.note or "not asked"
        if final.reply is None:
            return turn.note or "late"
        return final.reply.fault

    def _lay(self, turn: Turn, answer: Answer, from_frame: int, beat_end: int = NEVER) -> None:
        """Plan the joins of a clip over a turn from ``from_frame`` on; what sounds now ends at ``beat_end``."""
        made = answer.request
        joins = place_clip(answer.clip, made.beat_frames, made.frames, turn.start, turn.beat_frames, turn.frames)
        self.voice.drop_from(from_frame)
        coming = [join for join in joins if join[0] >= from_frame]
        starts = [*(at for at, _ in coming), turn.start + turn.frames]
        if beat_end < NEVER and (sounding := self.voice.last) is not None:
            self._end_softly(replace(sounding, end=min(beat_end, sounding.end)), from_frame, starts[0])
        for (at, material), following in zip(coming, starts[1:], strict=True):
            self.voice.join(at, material)
            self._end_softly(material, at + self.voice.join_frames, following)

    def _end_softly(self, material: Material, earliest: int, following: int) -> None:
        """Plan the end of material that ends before ``following``: what is missing is its own tail again, if it is
        no longer than a join (as it mostly is: a frame, from rounding), else silence.
        """
        missing = following - material.end
        if missing > self.voice.join_frames:
            self.voice.join(max(earliest, material.end), None)
        elif missing > 0:
            self.voice.join(max(earliest, following - self.voice.join_frames), material.later(missing))

    def _late_answer(self) -> Answer | None:
        """Return an answer to the sounding turn that came after its deadline and would climb the ladder."""
        turn = self.current
        if turn is None or turn.rung in (RUNG_FINAL, -1) or turn.rests:
            return None
        for attempt in (FINAL,) if turn.rung == RUNG_SPECULATIVE else (FINAL, SPECULATIVE):
            asked = turn.asked.get(attempt)
            if asked is not None and asked.answer is not None and asked.arrived > self.deadline(turn):
                return asked.answer
        return None

    def _late_joins(self) -> list[int]:
        """Frames at which a late answer's crossfade may begin: one join before each beat after it came."""
        turn, late = self.current, self._late_answer()
        if turn is None or late is None:
            return []
        frames = (turn.start + beat - self.voice.join_frames for beat in turn.beat_frames[1:])
        return [frame for frame in frames if frame >= late.arrived]

    def _join_late(self, turn: Turn, late: Answer, now: int) -> None:
        at, made = now + self.voice.join_frames, late.request
        joins = place_clip(late.clip, made.beat_frames, made.frames, turn.start, turn.beat_frames, turn.frames)
        if len(joins) == 1:  # it fits as it is: join it in the middle, in its true place
            self.voice.join(at, joins[0][1])
        else:
            self._lay(turn, late, from_frame=at)
        turn.used, turn.rung = late, RUNG_FINAL if made.final else RUNG_SPECULATIVE
        good, self._good = self._good, turn
        self._let_go(good)
        self.port.confirm(turn.span, late.clip.origin)
        self._log(
            {"type": "join", **_place(turn.span), "agent": self.name, "attempt": made.attempt, "frame": at,
             "arrived": late.arrived}
        )  # fmt: skip

    def _tell(self, turn: Turn, now: int, cause: str) -> None:
        line: dict[str, object] = {
            "type": "span", **_place(turn.span), "agent": self.name, "start": turn.start, "frames": turn.frames,
            "rung": turn.rung, "cause": cause, "deadline": self.deadline(turn), "decided": now,
        }  # fmt: skip
        asked = turn.asked.get(SPECULATIVE if turn.rung == RUNG_SPECULATIVE else FINAL)
        if asked is not None and asked.reply is not None:
            line |= {"attempt": asked.request.attempt, "arrived": asked.arrived}
            if asked.posted < self.deadline(turn):  # else there was no time to be early in: the session's beginning
                ready = asked.posted + round(asked.reply.compute_seconds * asked.request.timeline.samplerate)
                line["margin_frames"] = self.deadline(turn) - max(asked.arrived, ready)
        self._log(line)

    def _let_go(self, *turns: Turn | None) -> None:
        """Release the clips of turns gone by; those named now are still in a crossfade and go the next time."""
        for turn in self._gone:
            for asked in turn.asked.values():
                if asked.reply is not None:
                    self.port.release(asked.reply)
            turn.asked.clear()
        unwanted = {id(turn): turn for turn in turns if turn is not None}
        self._gone = [turn for turn in unwanted.values() if turn is not self.current and turn is not self._good]


def _place(span: Span) -> dict[str, object]:
    return {"bar": span.bar, "beat": str(span.beat), "beats": str(span.beats)}
