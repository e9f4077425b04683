"""Play a take again: the same loop, its timing and decisions forced from the take's lines.

A request goes out at the frame at which it did, may know what it might know then, and its answer arrives when it
arrived; what was a late answer is late again. The agent does not decide anew: it makes the sound of the decision that
is written down. So a take replays bit for bit on one machine and build, and a line changed by hand changes the sound.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from realtime.engine import Command
from realtime.messages import decode
from realtime.protocols import Origin, SpanRequest
from realtime.runner import AgentRunner, InlinePort
from realtime.scheduler import Part, Reply, Turn
from realtime.voice import NEVER

Key = tuple[str, int, str, int]
"""Agent, bar, beat, attempt."""


@dataclass(frozen=True, slots=True)
class Script:
    """What a take says about timing and decisions.

    Attributes
    ----------
    requests, replies
        The take's lines of these types, by agent, bar, beat and attempt.
    commands
        Commands and the frames at which they counted.
    """

    requests: Mapping[Key, Mapping[str, Any]]
    replies: Mapping[Key, Mapping[str, Any]]
    commands: tuple[tuple[int, Command], ...]

    @classmethod
    def read(cls, lines: Iterable[Mapping[str, Any]]) -> Script:
        """Gather a script from a take's lines.

        Raises
        ------
        ValueError
            If a line lacks what its type has, or it makes no sense, naming the line's type and what is wrong.
        """
        requests: dict[Key, Mapping[str, Any]] = {}
        replies: dict[Key, Mapping[str, Any]] = {}
        commands = []
        for line in lines:
            kind = line.get("type", "?")
            try:
                if line["type"] == "request":
                    requests[_key(line)] = line
                    replies.pop(_key(line), None)  # what was answered before was another asking
                    _whole(line, "posted"), _whole(line, "context_end")
                elif kind == "reply":
                    replies[_key(line)] = line
                    _whole(line, "arrived"), line["fault"]
                    if line["origin"] is not None:
                        decode(Origin, line["origin"])
                elif kind == "command":
                    commands.append((_whole(line, "frame"), decode(Command, line["command"])))
            except KeyError as missing:
                raise ValueError(f"the take has a {kind!r} line without {missing}") from None
            except ValueError as problem:
                raise ValueError(f"the take has a {kind!r} line that makes no sense: {problem}") from None
        return cls(requests, replies, tuple(commands))


def _whole(line: Mapping[str, Any], key: str) -> int:
    value = line[key]
    if type(value) is not int:
        raise ValueError(f"{key} is {value!r}; it is a whole number")
    return value


def _key(line: Mapping[str, Any]) -> Key:
    return line["agent"], _whole(line, "bar"), str(line["beat"]), _whole(line, "attempt")


class ForcedTiming:
    """The timing of a take."""

    def __init__(self, script: Script) -> None:
        self._requests = script.requests

    def post_frame(self, part: Part, turn: Turn, attempt: int) -> int:
        """Return the frame at which the request went out."""
        line = self._requests.get((part.name, turn.span.bar, str(turn.span.beat), attempt))
        return NEVER if line is None else int(line["posted"])

    def context_end(self, part: Part, turn: Turn, attempt: int, now: int) -> int:
        """Return what the request might know."""
        return int(self._requests[part.name, turn.span.bar, str(turn.span.beat), attempt]["context_end"])

    def due_context(self, now: int) -> None:
        """Return None: a take does not say what should have been heard."""

    def playhead(self) -> int:
        """Return -1: time is virtual."""
        return -1


class ReplayPort(InlinePort):
    """Answers a request with what the take says was answered."""

    def __init__(self, runner: AgentRunner, script: Script) -> None:
        super().__init__(runner, 0, self._delay_of)
        self._replies = script.replies

    def continues(self) -> bool:
        """Return True: who could not carry on was not asked to, and the take's lines say who was asked."""
        return True

    def _line(self, request: SpanRequest) -> Mapping[str, Any] | None:
        return self._replies.get((request.agent, request.span.bar, str(request.span.beat), request.attempt))

    def _delay_of(self, request: SpanRequest) -> int:
        line = self._line(request)
        return NEVER if line is None else max(0, int(line["arrived"]) - self.now())

    def _answer(self, request: SpanRequest) -> Reply:
        line = self._line(request)
        if line is None:
            return Reply(request.span, request.attempt, None, "it never came")
        if line["fault"] or line["origin"] is None:
            return Reply(request.span, request.attempt, None, str(line["fault"]))
        return self._runner.play(request, decode(Origin, line["origin"]))
