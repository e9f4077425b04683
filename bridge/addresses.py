"""What an OSC address is: its arguments, how they are read, what it does and answers, and a book of all there are.

An :class:`Argument` reads what came as it was meant, or refuses it in a sentence; an :class:`Address` is a line of
the table (:mod:`bridge.osctable`); a :class:`Book` finds addresses, and makes documentation and schema of them.
Values, but for what :meth:`Address.carry_out` asks of a desk; any thread.
"""

from __future__ import annotations

import difflib
import json
import math
import re
import struct
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from fractions import Fraction
from typing import Any, Final, Protocol, TypeAlias

from bridge.desk import Desk
from bridge.follower import INTERNAL
from bridge.guard import GuardError, Sender
from bridge.packets import Value
from bridge.shelves import ShelfError
from realtime.clock import as_tempo
from realtime.engine import Command
from realtime.foreign import shown

VERSION: Final = 1
"""Of the table. It grows; an address that comes to mean something else gets another name."""
TEXT_CHARS = 200
"""Most of a text that is an argument."""
SUGGESTED_CHARS = 64
"""Most of a name that is compared with all there are: that takes time."""

Output: TypeAlias = "str | int | float | bool | None"
Answer: TypeAlias = tuple[Output, ...]
"""The arguments of one answer."""


class RefusedError(ValueError):
    """Something that was asked for and is not done, in one sentence."""


# Arguments


class _Required:
    """Stands for the default of an argument that has none."""


REQUIRED: Final = _Required()


@dataclass(frozen=True, slots=True)
class Argument:
    """One argument of an address.

    Attributes
    ----------
    name, meaning, unit
        For people.
    kind
        One of :data:`KINDS`: how it is read.
    least, most
        The range of a number.
    default
        What counts where it is left out, :data:`REQUIRED` where it may not be.
    choices
        The texts there are, none for any.
    slip
        The likely slip, as a question.
    """

    name: str
    kind: str
    meaning: str
    unit: str = ""
    least: float = -math.inf
    most: float = math.inf
    default: object = REQUIRED
    choices: tuple[str, ...] = ()
    slip: str = ""

    @property
    def optional(self) -> bool:
        """Whether it may be left out."""
        return self.default is not REQUIRED

    @property
    def allowed(self) -> str:
        """What it takes, in words."""
        if self.choices:
            return "one of " + ", ".join(self.choices)
        words = KINDS[self.kind].words
        unit = f" ({self.unit})" if self.unit else ""
        ranged = f" from {_figure(self.least)} to {_figure(self.most)}" if math.isfinite(self.most) else ""
        return f"{words}{ranged}{unit}"

    @property
    def left_out(self) -> str:
        """What counts where it is left out, in words."""
        if isinstance(self.default, bool):
            return str(int(self.default))
        return "nothing" if self.default == "" else str(self.default)

    def read(self, value: Value) -> Any:
        """Return a value as the argument means it.

        Raises
        ------
        RefusedError
            In one sentence: name, what was found, what is allowed, the likely slip.
        """
        try:
            return KINDS[self.kind].read(self, value)
        except _Unfit:
            slip = f"; {self.slip}" if self.slip else ""
            raise RefusedError(f"{self.name} is {_found(value)}; it takes {self.allowed}{slip}") from None


def _figure(number: float) -> str:
    return f"{number:,.10g}"


class _Unfit(Exception):  # noqa: N818 - never leaves this module
    pass


_DECIMAL = re.compile(r"[+-]?[0-9]{1,15}(\.[0-9]{0,15})?")
_RATIO = re.compile(r"[0-9]{1,9}/0*[1-9][0-9]{0,8}")
_SWITCHES = {"1": True, "true": True, "on": True, "0": False, "false": False, "off": False}
_FLOAT = struct.Struct(">f")
_LARGEST_FLOAT = 3.4e38


def plain(number: float) -> float:
    """Return a float of 32 bits as the shortest decimal that it stands for: 97.30000305 is 97.3 that was sent."""
    if abs(number) > _LARGEST_FLOAT or _FLOAT.unpack(_FLOAT.pack(number))[0] != number:
        return number
    for digits in (6, 7, 8):
        short = float(f"{number:.{digits}g}")
        if _FLOAT.unpack(_FLOAT.pack(short))[0] == number:
            return short
    return float(f"{number:.9g}")


def _number(argument: Argument, value: Value) -> float:
    """Read any number, or a text that is one."""
    if isinstance(value, str) and _DECIMAL.fullmatch(value.strip()):
        value = float(value)
    if not isinstance(value, int | float) or not argument.least <= value <= argument.most:  # refuses NaN too
        raise _Unfit
    return plain(float(value))


def _whole(argument: Argument, value: Value) -> int:
    """Read a whole number, also one that came as a float."""
    number = _number(argument, value)
    if number != math.floor(number):
        raise _Unfit
    return int(number)


def _switch(argument: Argument, value: Value) -> bool:
    """Read on or off: T and F, 1 and 0, or the words."""
    if isinstance(value, str):
        value = _SWITCHES.get(value.strip().lower())
    if isinstance(value, int | float) and value in (0, 1):
        return bool(value)
    raise _Unfit


def _press(argument: Argument, value: Value) -> bool:
    """Read how far a button is down; all but 0 is down."""
    return _number(argument, value) != 0


def _text(argument: Argument, value: Value) -> str:
    """Read one of the choices, or any line of text."""
    if isinstance(value, bool) or not isinstance(value, str | int):
        raise _Unfit
    text = str(value)
    if argument.choices:
        text = text.strip().lower()
        if text not in argument.choices:
            raise _Unfit
    elif len(text) > TEXT_CHARS or not text.isprintable():
        raise _Unfit
    return text


def _tempo_of(argument: Argument, value: Value) -> Fraction:
    """Read a tempo, also as a fraction in text."""
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        raise _Unfit
    try:
        return as_tempo(plain(value) if isinstance(value, float) else str(value))
    except ValueError:
        raise _Unfit from None


def _beats_of(argument: Argument, value: Value) -> Fraction:
    """Read a length in beats, also as a fraction in text; a float becomes the nearest one of musical use."""
    if isinstance(value, str) and _RATIO.fullmatch(value.strip()):
        beats = Fraction(value.strip())
    else:
        beats = Fraction(str(_number(argument, value))).limit_denominator(96)
    if not argument.least <= beats <= argument.most:
        raise _Unfit
    return beats


@dataclass(frozen=True, slots=True)
class Kind:
    """How an argument is read: OSC types it comes as, the usual one first; words; the reader."""

    types: str
    words: str
    read: Callable[[Argument, Value], Any]


KINDS: dict[str, Kind] = {
    "number": Kind("fidhsTF", "a number", _number),
    "whole": Kind("ihfds", "a whole number", _whole),
    "switch": Kind("TFifs", "1 or 0, T or F, on or off", _switch),
    "press": Kind("fiTFI", "1 for a button that is pressed, or 0 for one that is let go, which does nothing", _press),
    "text": Kind("si", f"a line of at most {TEXT_CHARS} characters", _text),
    "tempo": Kind("fidhs", "quarter notes per minute from 20 to 400, a number or a fraction as text", _tempo_of),
    "beats": Kind("fidhs", "a number, or a fraction as text,", _beats_of),
}
"""The kinds of argument."""


def _found(value: Value) -> str:
    if isinstance(value, bytes):
        return f"a blob of {len(value)} bytes"
    if isinstance(value, tuple):
        return f"an array of {len(value)}"
    if value is None:
        return "nothing (N)"
    return shown(plain(value) if isinstance(value, float) else value)


# Addresses


class Host(Protocol):
    """What an address may ask of who serves it."""

    book: Book

    def subscribe(self, sender: Sender, topic: str, rate_hz: float, lease_seconds: float) -> None:
        """Tell a sender of something from now on; raises :class:`RefusedError` if there are too many."""

    def unsubscribe(self, sender: Sender, topic: str) -> int:
        """Tell him no more, of all topics for ``""``; return of how many."""

    def greet(self, sender: Sender, token: str, reply_port: int) -> None:
        """Let a sender in; raises :class:`bridge.guard.GuardError`."""

    def counted(self) -> Mapping[str, int]:
        """Return what was counted of what came in."""


@dataclass(frozen=True, slots=True)
class Request:
    """One message that is carried out.

    Attributes
    ----------
    desk, host
        Whom to ask.
    sender
        Who sent it.
    arguments
        As they came, for an address that returns them.
    names
        What stands in the place of each name of the path.
    frame
        Session frame for which it was sent, -1 for as soon as can be.
    """

    desk: Desk
    host: Host
    sender: Sender
    arguments: tuple[Value, ...] = ()
    names: Mapping[str, str] = field(default_factory=dict)
    frame: int = -1

    def send(self, command: Command) -> None:
        """Hand a command to the engine; :class:`RefusedError` if it takes no more, or another keeps the time."""
        sync = self.desk.sync()
        if command.do in TIME and sync is not None and sync.leader != INTERNAL:
            raise RefusedError(f"{sync.leader} keeps the time, and the band follows it; change it there")
        if not self.desk.send(replace(command, frame=self.frame) if self.frame >= 0 else command):
            raise RefusedError("the session takes no more commands just now; send fewer at once, or has it ended?")

    @property
    def agent(self) -> str:
        """The agent of the path; :class:`RefusedError` where there is none of that name."""
        return self._one_of("agent", [agent.name for agent in self.desk.agents()])

    @property
    def stem(self) -> str:
        """The stem of the path, or the monitor or metronome."""
        return self._one_of("stem", [fader.name for fader in self.desk.faders()])

    def _one_of(self, what: str, known: Sequence[str]) -> str:
        name = self.names[what]
        if name not in known:
            raise RefusedError(f"there is no {what} {shown(name)}{meant(name, known)}; there are {', '.join(known)}")
        return name


TIME = ("tempo", "locate")
"""Commands that move musical time: where another keeps it, they are his."""
Do = Callable[..., "Iterable[Answer] | None"]


@dataclass(frozen=True, slots=True)
class Field:
    """One argument of what is answered."""

    name: str
    unit: str = ""
    meaning: str = ""

    def __str__(self) -> str:
        unit = f" ({self.unit})" if self.unit else ""
        return f"{self.name}{unit}" + (f": {self.meaning}" if self.meaning else "")


@dataclass(frozen=True, slots=True)
class Address:
    """One address.

    Attributes
    ----------
    path
        Words and names, as in ``/sideman/stem/{stem}/gain``.
    arguments
        Those that may be left out come last.
    meaning
        In a sentence.
    do
        Carries it out: takes the request and a value for each argument, returns the answers.
    answers
        What is answered, nothing for a command: it shows in the reports.
    many
        Whether there is an answer for each of many things; then each begins with its number from 1 and how many
        there are, and of nothing there is one answer of two zeros.
    slow
        Whether files are read for it: then it is answered from another thread, in turn.
    variadic
        Whether it takes anything.
    """

    path: str
    arguments: tuple[Argument, ...]
    meaning: str
    do: Do
    answers: tuple[Field, ...] = ()
    many: bool = False
    slow: bool = False
    variadic: bool = False

    def values(self, arguments: tuple[Value, ...]) -> list[Any]:
        """Return the value of each argument; :class:`RefusedError` in one sentence where one does not fit."""
        if self.variadic:
            return []
        least, most = sum(not argument.optional for argument in self.arguments), len(self.arguments)
        if not least <= len(arguments) <= most:
            raise RefusedError(f"it takes {self._counted(least, most)}, and {len(arguments)} came")
        given = [argument.read(value) for argument, value in zip(self.arguments, arguments, strict=False)]
        return given + [argument.default for argument in self.arguments[len(given) :]]

    def explained(self) -> list[str]:
        """Return path, meaning, and a line for each argument and for each part of an answer."""
        lines = [self.path, self.meaning]
        for one in self.arguments:
            default = f"; {one.left_out} if left out" if one.optional else ""
            lines.append(f"{one.name} ({KINDS[one.kind].types}): {one.meaning}. Takes {one.allowed}{default}")
        return lines + [f"answers {one}" for one in self.answers]

    def _counted(self, least: int, most: int) -> str:
        if not most:
            return "no arguments"
        names = ", ".join(f"[{a.name}]" if a.optional else a.name for a in self.arguments)
        return f"{least if least == most else f'{least} to {most}'} of {names}"

    def carry_out(self, request: Request) -> list[Answer]:
        """Do it; return the answers.

        Raises
        ------
        RefusedError
            In one sentence.
        """
        values = self.values(request.arguments)
        try:
            answers = list(self.do(request, *values) or ())
        except (GuardError, ShelfError) as error:
            raise RefusedError(str(error)) from None
        return _numbered(answers) if self.many else answers


def _numbered(answers: Sequence[Answer]) -> list[Answer]:
    if not answers:
        return [(0, 0)]
    return [(number, len(answers), *answer) for number, answer in enumerate(answers, 1)]


def meant(name: str, known: Iterable[str]) -> str:
    """Ask whether one of those was meant, in brackets; nothing where none is like it."""
    close = difflib.get_close_matches(name, list(known), 1) if len(name) <= SUGGESTED_CHARS else []
    return f" (did you mean {close[0]}?)" if close else ""


@dataclass(frozen=True, slots=True)
class Report:
    """What is told to those who subscribed to a topic.

    Attributes
    ----------
    topic, path, answers, meaning
        As of an :class:`Address`.
    rows
        Returns the end of each message's path, after what all have in common, and its arguments.
    """

    topic: str
    path: str
    answers: tuple[Field, ...]
    meaning: str
    rows: Callable[[Desk], Iterable[tuple[str, Answer]]]


@dataclass(frozen=True, slots=True)
class Section:
    """Addresses of one subject."""

    title: str
    addresses: tuple[Address, ...]


# The book


class Book:
    """Finds addresses, and explains them.

    Parameters
    ----------
    sections, reports
        The table.
    introduction
        Begins the page, in Markdown.
    """

    def __init__(self, sections: Sequence[Section], reports: Sequence[Report], introduction: str) -> None:
        self.sections, self.reports, self._introduction = tuple(sections), tuple(reports), introduction
        self.addresses = tuple(address for section in self.sections for address in section.addresses)
        self._plain = {address.path: address for address in self.addresses if "{" not in address.path}
        self._schema = ""  # made once, when somebody asks
        self._named: dict[int, list[tuple[tuple[str, ...], Address]]] = {}
        for address in self.addresses:
            words = tuple(address.path.split("/"))
            if address.path not in self._plain:
                self._named.setdefault(len(words), []).append((words, address))
        if len({address.path for address in self.addresses}) < len(self.addresses):
            raise ValueError("two addresses of the table have one path")

    def find(self, path: str) -> tuple[Address, dict[str, str]] | None:
        """Return an address and the names in its path; ``None`` for a path of no address."""
        address = self._plain.get(path)
        if address is not None:
            return address, {}
        words = path.split("/")
        for pattern, address in self._named.get(len(words), ()):
            names = _matched(pattern, words)
            if names is not None:
                return address, names
        return None

    def named(self, path: str) -> Address:
        """Return the address that a path is of, or that is written so in the table.

        Raises
        ------
        RefusedError
            In one sentence, with what was meant.
        """
        for address in self.addresses:
            if address.path == path:
                return address
        found = self.find(path)
        if found is None:
            raise RefusedError(self.unknown(path))
        return found[0]

    def unknown(self, path: str) -> str:
        """Say that there is no such address."""
        words = path.count("/")
        near = meant(path, (address.path for address in self.addresses if address.path.count("/") == words))
        return f"there is no address {shown(path, 80)}{near}; /sideman/help lists those there are"

    def schema(self) -> str:
        """Return the table as JSON: ``version``, ``addresses`` and ``reports``; ASCII."""
        if self._schema:
            return self._schema
        addresses = [
            {"section": section.title, **_schema_of(address)}
            for section in self.sections
            for address in section.addresses
        ]
        reports = [
            {"topic": one.topic, "path": one.path, "meaning": one.meaning, "answers": _fields_of(one.answers)}
            for one in self.reports
        ]
        whole = {"version": VERSION, "addresses": addresses, "reports": reports}
        self._schema = json.dumps(whole, separators=(",", ":"), allow_nan=False)
        return self._schema

    def markdown(self) -> str:
        """Return the table as a page of Markdown."""
        parts = [self._introduction]
        for section in self.sections:
            parts.append(f"## {section.title}\n")
            parts += [_page_of(address) for address in section.addresses]
        parts.append("## Reports\n\nWhat you are told after `/sideman/subscribe` with the topic:\n")
        for report in self.reports:
            told = f"Topic `{report.topic}`. {report.meaning}\n{_rows_of(report.answers)}"
            parts.append(f"### `{report.path}`\n\n{told}\n")
        return "\n".join(parts)


def _matched(pattern: Sequence[str], words: Sequence[str]) -> dict[str, str] | None:
    names: dict[str, str] = {}
    for expected, word in zip(pattern, words, strict=True):
        if expected.startswith("{") and word:
            names[expected[1:-1]] = word
        elif expected != word:
            return None
    return names


def _page_of(address: Address) -> str:
    parts = [f"### `{address.path}`", address.meaning]
    if address.arguments:
        parts.append(_ARGUMENTS + "\n".join(_row_of(argument) for argument in address.arguments))
    if address.answers:
        each = "Answers, for each, its number and how many there are, and then:" if address.many else "Answers:"
        parts.append(f"{each}\n{_rows_of(address.answers)}")
    return "\n\n".join(parts) + "\n"


_ARGUMENTS = "| argument | types | takes | meaning |\n|---|---|---|---|\n"


def _row_of(argument: Argument) -> str:
    default = f"; {argument.left_out} if left out" if argument.optional else ""
    types = KINDS[argument.kind].types
    return f"| {argument.name} | {types} | {argument.allowed}{default} | {argument.meaning} |"


def _rows_of(fields: Sequence[Field]) -> str:
    return "\n".join(f"- {one}" for one in fields)


def _schema_of(address: Address) -> dict[str, Any]:
    return {
        "path": address.path,
        "meaning": address.meaning,
        "arguments": [_schema_of_argument(argument) for argument in address.arguments],
        "variadic": address.variadic,
        "many": address.many,
        "answers": _fields_of(address.answers),
    }


def _schema_of_argument(argument: Argument) -> dict[str, Any]:
    told: dict[str, Any] = {"name": argument.name, "types": KINDS[argument.kind].types, "meaning": argument.meaning}
    if argument.unit:
        told["unit"] = argument.unit
    if math.isfinite(argument.most):
        told |= {"least": argument.least, "most": argument.most}
    if argument.choices:
        told["choices"] = argument.choices
    if argument.optional:
        default = argument.default
        told["default"] = float(default) if isinstance(default, Fraction) else default
    return told


def _fields_of(fields: Sequence[Field]) -> list[dict[str, str]]:
    return [{"name": one.name, "unit": one.unit, "meaning": one.meaning} for one in fields]
