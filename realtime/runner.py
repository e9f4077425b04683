"""An agent built, and run: what it hears, what it may know, and what of its answers no engine could play.

:class:`AgentRunner` holds one agent and does what the contract says. A worker's process drives it
(:mod:`realtime.worker`) or, where time is virtual, a port in the engine's own (:class:`InlinePort`), so the agent
cannot tell them apart.
"""

from __future__ import annotations

import difflib
import importlib
import time
import typing
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, cast

import numpy as np

from realtime.buffers import AudioRing, join_frames
from realtime.messages import encode
from realtime.protocols import HOP_FRAMES, Agent, Block, Clip, Continues, Origin, Span, SpanRequest, StreamSpec
from realtime.scheduler import CONTINUATION, SUPERSEDED, Reply, clip_fault
from realtime.seat import AgentConfig, fault_words
from realtime.voice import NEVER

AGENTS = {
    "echo": "realtime.agents.echo:EchoAgent",
    "corpus": "realtime.agents.corpus:CorpusAgent",
}
"""Kinds of agent a session can name, and where they are."""


def agent_class(kind: str) -> type[Agent]:
    """Import and return the class of a kind of agent, or of ``"module:Class"``, which no session file may name.

    Raises
    ------
    ValueError
        If there is no such kind.
    """
    if kind not in AGENTS and ":" not in kind:
        raise ValueError(f"agent kind {kind!r} is not known; there are {', '.join(sorted(AGENTS))}")
    module, _, name = AGENTS.get(kind, kind).partition(":")
    return cast("type[Agent]", getattr(importlib.import_module(module), name))


def build_agent(config: AgentConfig) -> Agent:
    """Make the agent of a session's entry; it still has to be prepared.

    Raises
    ------
    ValueError
        In one sentence that names the agent, if an option is unknown or its value cannot be used.
    """
    kind = agent_class(config.kind)
    _check_options(config, typing.get_type_hints(kind.__init__))
    try:
        return kind(**config.options)
    except (TypeError, ValueError) as error:
        raise ValueError(f"agent {config.name!r}: {error}") from None


_PLAIN = {int: "a whole number", float: "a number", bool: "true or false", str: "text in quotes"}


def _check_options(config: AgentConfig, allowed: Mapping[str, Any]) -> None:
    names = sorted(set(allowed) - {"return", "corpus", "model", "channels", "source"})  # these are keys of their own
    for option, value in config.options.items():
        if option not in allowed:
            near = difflib.get_close_matches(option, names, 1)
            meant = f"; did you mean {near[0]!r}?" if near else ""
            raise ValueError(
                f"agent {config.name!r}: the kind {config.kind} takes no {option!r}; "
                f"its options are: {', '.join(names) or 'none'}{meant}"
            )
        kind = allowed[option]
        fits = isinstance(value, (int, float) if kind is float else kind) if kind in _PLAIN else True
        if not fits or (isinstance(value, bool) and kind in (int, float)):
            raise ValueError(f"agent {config.name!r}: option {option} is {value!r}; it takes {_PLAIN[kind]}")


class RingHeard:
    """The past as the rings hold it, shared or private."""

    def __init__(self, inputs: AudioRing, stems: Mapping[str, AudioRing]) -> None:
        self._inputs = inputs
        self._stems = stems

    def input(self, start: int, end: int) -> Block:
        """Return the input in ``[start, end)``."""
        return self._inputs.read(start, end)

    def stem(self, agent: str, start: int, end: int) -> Block:
        """Return an agent's stem in ``[start, end)``."""
        return self._stems[agent].read(start, end)

    def settled(self, agent: str, lead: int) -> int:
        """Return how far an agent may hear already: every request that comes from now on knows at least so much.

        A request is made where the stems end, or later, and knows what was heard ``lead`` frames before that, as
        :class:`realtime.scheduler.LiveTiming` says.
        """
        return min(self._inputs.written, self._stems[agent].written - lead)

    def listen(self, source: str, start: int, end: int) -> Block:
        """Return what an agent that listens to ``source`` hears."""
        return self.input(start, end) if source == "input" else self.stem(source, start, end)


class UpTo:
    """A view of the past that ends where the agent's knowledge does: later frames are zeros."""

    def __init__(self, heard: RingHeard, end: int) -> None:
        self._heard = heard
        self._end = end

    def input(self, start: int, end: int) -> Block:
        """Return the input in ``[start, end)``, zeros from the end of knowledge on."""
        return self._cut(self._heard.input(start, end), start)

    def stem(self, agent: str, start: int, end: int) -> Block:
        """Return an agent's stem in ``[start, end)``, zeros from the end of knowledge on."""
        return self._cut(self._heard.stem(agent, start, end), start)

    def _cut(self, block: Block, start: int) -> Block:
        block[max(0, self._end - start) :] = 0
        return block


class Superseded(BaseException):
    """Ends a speculative answer whose final question is there. No ``Exception``: an agent must not catch it."""


class AgentRunner:
    """One agent and what it has heard. One thread.

    Parameters
    ----------
    agent
        Already built; it is prepared here.
    config, spec
        The session's.
    heard
        The rings it listens to.
    """

    def __init__(self, agent: Agent, config: AgentConfig, spec: StreamSpec, heard: RingHeard) -> None:
        self.agent, self.config, self._spec, self._heard = agent, config, spec, heard
        self.playing: SpanRequest | None = None  # what the agent works at; only then may it be interrupted
        self.given_up: Callable[[SpanRequest], bool] = lambda request: False
        self._next_hop = 0
        self._trouble = ""  # what went wrong since the last answer, to be told with the next
        agent.prepare(spec)

    @property
    def continues(self) -> bool:
        """Whether the agent can carry on from its last span."""
        return hasattr(self.agent, "carry_on")

    def play(self, request: SpanRequest, origin: Origin | None = None) -> Reply:
        """Let the agent hear up to the request's context, then play; with ``origin``, make that decision's sound."""
        begin = time.perf_counter()
        clip, fault = None, ""
        try:
            self.hear_up_to(request.context_end)
            request = replace(request, heard=UpTo(self._heard, request.context_end))
            try:
                self.playing = request
                if self.given_up(request):  # looked at once it can be interrupted: no word is lost in between
                    raise Superseded
                clip = self._answer(request, origin)
            finally:
                self.playing = None
            fault = self._trouble or self._fault(clip, request)
        except Superseded:
            self.playing, clip, fault = None, None, SUPERSEDED
        except Exception as error:  # noqa: BLE001 - an agent may fail in any way; it costs its stem a rung, and is told
            clip, fault = None, fault_words(error)
        self._trouble = ""
        return Reply(request.span, request.attempt, None if fault else clip, fault, time.perf_counter() - begin)

    def _answer(self, request: SpanRequest, origin: Origin | None) -> Clip | None:
        if origin is not None:
            return self.agent.realise(request, origin)
        if request.attempt == CONTINUATION:
            return cast(Continues, self.agent).carry_on(request)
        return self.agent.play(request)

    def skip_to(self, frame: int) -> None:
        """Leave out what was to be heard before ``frame``."""
        self._next_hop = max(self._next_hop, frame // HOP_FRAMES)

    def snapshot(self) -> bytes:
        """Return the agent's state, and how far it has heard."""
        return self._next_hop.to_bytes(8, "little") + self.agent.snapshot()

    def restore(self, state: bytes) -> None:
        """Take up what :meth:`snapshot` gave: what was heard since is heard again."""
        self.agent.restore(state[8:])
        self._next_hop = int.from_bytes(state[:8], "little")

    def hear_up_to(self, end: int, most: int = 1 << 62) -> int:
        """Feed the agent each whole hop that ends by frame ``end``, once and ``most`` at a time; return how many.
        If the agent fails, its next answer does.
        """
        first = self._next_hop
        while (self._next_hop + 1) * HOP_FRAMES <= end and self._next_hop - first < most:
            frame = self._next_hop * HOP_FRAMES
            self._next_hop += 1
            try:
                self.agent.hear(self._heard.listen(self.config.listens, frame, frame + HOP_FRAMES), frame)
            except Exception as error:  # noqa: BLE001 - as in play
                self._trouble = f"while it listened: {fault_words(error)}"
        return self._next_hop - first

    def trouble(self, text: str) -> None:
        """Let the next answer fail, with these words."""
        self._trouble = text

    def confirm(self, span: Span, origin: Origin | None) -> None:
        """Tell the agent what sounded; if it fails, its next answer does."""
        try:
            self.agent.confirm(span, origin)
        except Exception as error:  # noqa: BLE001 - as in play
            self._trouble = f"while it was told what sounded: {fault_words(error)}"

    def _fault(self, clip: Clip | None, request: SpanRequest) -> str:
        if clip is None:
            return ""
        if not isinstance(clip, Clip):
            return f"{type(clip).__name__} where a Clip or None was asked for"
        if not isinstance(clip.origin, Origin):
            return f"a clip with {clip.origin!r} where an Origin was asked for"
        encode(clip.origin)  # it has to travel
        if not isinstance(clip.lead_in, int | np.integer):
            return f"a lead-in of {clip.lead_in!r} where a whole number of frames was asked for"
        return clip_fault(clip, request, self.config.channels, join_frames(self._spec.samplerate))


class InlinePort:
    """A port whose agent runs in this process, at once, while virtual time stands still.

    Parameters
    ----------
    runner
        The agent.
    budget_frames
        What the agent is held to take.
    delay
        Frames from posting to the reply's arrival, per request; ``NEVER`` for one that never comes. A test's fault
        script, or a replay's record. By default replies are in at once.
    """

    def __init__(
        self, runner: AgentRunner, budget_frames: int, delay: Callable[[SpanRequest], int] = lambda request: 0
    ) -> None:
        self._runner, self._budget_frames, self._delay = runner, budget_frames, delay
        self._due: list[tuple[int, Reply]] = []
        self.now: Callable[[], int] = lambda: 0  # set by the engine: its mixing cursor

    def armed(self) -> bool:
        """Return True: what runs here was prepared before time began."""
        return True

    def continues(self) -> bool:
        """Whether the agent can carry on from its last span."""
        return self._runner.continues

    def generation(self) -> int:
        """Return 0: nothing dies here."""
        return 0

    def renew(self) -> int:
        """Return 0."""
        return 0

    def budget_frames(self) -> int:
        """Return the budget given."""
        return self._budget_frames

    def post(self, request: SpanRequest) -> str:
        """Answer now; the reply is in after the scripted delay."""
        reply = self._answer(request)
        if (delay := self._delay(request)) < NEVER:
            self._due.append((self.now() + delay, reply))
            self._due.sort(key=lambda due: due[0])
        return ""

    def _answer(self, request: SpanRequest) -> Reply:
        return self._runner.play(request)

    def confirm(self, span: Span, origin: Origin | None) -> None:
        """Tell the agent."""
        self._runner.confirm(span, origin)

    def take(self, now: int) -> Reply | None:
        """Return the next reply due."""
        return self._due.pop(0)[1] if self._due and self._due[0][0] <= now else None

    def ready(self) -> bool:
        """Return False: when a reply is due is known."""
        return False

    def examine(self, samples: int) -> int:
        """Return ``samples``: nothing waits."""
        return samples

    def next_due(self) -> int:
        """Return when the next reply is due."""
        return self._due[0][0] if self._due else NEVER

    def release(self, reply: Reply) -> None:
        """Do nothing: the clip is ordinary memory."""
