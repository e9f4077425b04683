"""Open Sound Control: a session listens to controllers and DAWs over UDP, does what they may ask, and answers.

Three parts, of which only the last knows a socket:

* :func:`message` and :func:`bundle` build what goes out; the only place that uses python-osc. What comes in is read
  by :mod:`bridge.packets` alone.
* :class:`Server` is the whole of it without a socket and in its caller's time: packets in (:meth:`Server.take`),
  packets out. It knows who may speak (:mod:`bridge.guard`), finds addresses (:mod:`bridge.osctable`), asks the
  session (:mod:`bridge.desk`), keeps what is to be done later, and tells those who subscribed.
* :class:`Listener` gives it a socket and two threads: one that hears and speaks, one for what has to read files.

**Bundles with a time tag.** The tag is a time of the wall clock. It becomes host time when it arrives, by the offset
of the two clocks at that moment, and a frame of the session by the desk's clock. A command is kept here until the
engine is a few turns away from that frame; then it is handed over with the frame, where the engine carries it out.
Changes of tempo, meter and place wait for their bar line anyway.

**What is counted** is in :meth:`Server.counted`, and told in a line a second of each kind at most.
"""

from __future__ import annotations

import errno
import heapq
import ipaddress
import math
import socket
import threading
import time
from collections import Counter, OrderedDict, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from hashlib import blake2b
from typing import NamedTuple, Protocol

from bridge.addresses import Address, Book, Output, RefusedError, Request
from bridge.desk import Desk
from bridge.guard import Guard, Notices, Sender, check_entrance
from bridge.osctable import ERROR, PREFIX, REPLY, REPORT, REPORTS, book
from bridge.packets import IMMEDIATELY, MOST_BYTES, Message, PacketError, Value, parse, unix_ns

DATAGRAM_BYTES = 1400
"""Answers are sent together in packets of at most this, which no network has to cut in pieces."""
HELD, HELD_OF_ONE = 256, 64
"""Messages kept for later, of all and of one sender."""
EARLY_TURNS = 4
"""So many turns of the engine before its frame it is told of a command, which it then carries out to the frame."""
SEEN = 256
"""Bundles with a time that are remembered, so that a copy is known for one."""
SUBSCRIPTIONS = 32
QUESTIONS = 16
"""Questions that wait for files to be read."""
AHEAD_NS, BEHIND_NS = 60 * 10**9, 10 * 10**9
"""A time further off than this is no time of ours."""
SECOND_NS = 10**9
IDLE_SECONDS = 0.25
READING_SECONDS = 0.005
"""How often it is looked whether files were read."""
LEAST_SECONDS = 0.0005
BACKLOG_BYTES = 1 << 20
"""Room for packets that have come and are not read yet, if the system gives it."""
DROPPED_IN_A_ROW, BREATH_SECONDS = 64, 0.001
"""After so many packets in a row that were too many, the thread rests: the system drops the others for less."""
HELLO = "/sideman/hello"
SENTENCE_CHARS = 500
LARGEST_FLOAT = 3.4e38
"""About what 32 bits hold."""

Outgoing = tuple[bytes, Sender]
"""A packet, and where it goes."""


# What goes out


def message(address: str, *arguments: Output | bytes) -> bytes:
    """Return one message as a packet.

    An int becomes ``i`` (``h`` beyond 32 bits), a float ``f`` (``d`` where that cannot hold it), text ``s`` in UTF-8,
    bytes ``b``, and N what it says. Truth is sent as 1 or 0: Pure Data leaves out T and F, and what follows shifts.

    Raises
    ------
    ValueError
        For an int beyond 64 bits.
    """
    from pythonosc.osc_message_builder import OscMessageBuilder

    builder = OscMessageBuilder(address)
    for argument in arguments:
        if isinstance(argument, str):
            builder.add_arg(argument.replace("\0", " ").encode("utf-8", "replace").decode("utf-8"))
        elif isinstance(argument, float) and LARGEST_FLOAT < abs(argument) < math.inf:
            builder.add_arg(argument, OscMessageBuilder.ARG_TYPE_DOUBLE)
        elif isinstance(argument, int) and not -(2**63) <= argument < 2**63:
            raise ValueError(f"{address}: {argument} does not fit into 64 bits")
        else:
            builder.add_arg(int(argument) if isinstance(argument, bool) else argument)
    packet: bytes = builder.build().dgram
    return packet


def bundle(packets: Iterable[bytes], tag: int = IMMEDIATELY) -> bytes:
    """Return packets as one that is to be carried out at a time tag (:func:`bridge.packets.time_tag`)."""
    parts = [b"#bundle\0", tag.to_bytes(8, "big")]
    for packet in packets:
        parts += [len(packet).to_bytes(4, "big"), packet]
    return b"".join(parts)


def _together(packets: Iterable[bytes]) -> Iterator[bytes]:
    """Yield packets as they are sent: one by itself, more in bundles of a size that needs no cutting."""
    waiting: list[bytes] = []
    size = 16
    for packet in packets:
        if waiting and size + 4 + len(packet) > DATAGRAM_BYTES:
            yield _one(waiting)
            waiting, size = [], 16
        waiting.append(packet)
        size += 4 + len(packet)
    if waiting:
        yield _one(waiting)


def _one(packets: Sequence[bytes]) -> bytes:
    return packets[0] if len(packets) == 1 else bundle(packets)


# What comes in


class Foreign(Protocol):
    """Takes messages of addresses that are not ours: what a DAW says of itself."""

    def __call__(self, address: str, arguments: tuple[Value, ...], time_ns: int, sender: Sender) -> bool:
        """Take one; return whether it means anything here.

        ``time_ns`` is the host time (``time.monotonic_ns()``) at which it came, or that of its bundle. Called on the
        listener's thread; must return at once. What it raises is counted and told, and nothing else happens.
        """


class _Held(NamedTuple):
    """A message that is due at a frame."""

    frame: int
    order: int
    message: Message
    sender: Sender


@dataclass(slots=True, eq=False)
class _Subscription:
    """Somebody who is told of a topic."""

    interval_ns: int
    next_ns: int
    until_ns: int


@dataclass(slots=True, eq=False)
class _Question:
    """Something that is answered once files were read."""

    address: Address
    request: Request
    path: str
    answers: list[bytes] = field(default_factory=list)
    refused: str = ""


class Server:
    """Hears packets, has done what they may ask, and says what is to be answered. Without a socket.

    Parameters
    ----------
    desk
        The session.
    guard
        Who may speak; by default this machine's programs alone.
    addresses
        What may be said; by default :func:`bridge.osctable.book`.
    foreign
        Takes addresses that are not ours, ``None`` for nobody.
    tell
        Takes lines for the log: one a second of each kind at most.
    wall_ns
        The wall clock that time tags are of, in nanoseconds since 1970.

    Notes
    -----
    Times are host times in nanoseconds (``time.monotonic_ns()``), given by the caller. All calls come from one
    thread, but :meth:`read`, which is for another one, and :meth:`counted`, which is for any. Nothing raises.
    """

    def __init__(
        self,
        desk: Desk,
        *,
        guard: Guard | None = None,
        addresses: Book | None = None,
        foreign: Foreign | None = None,
        tell: Callable[[str], None] = lambda line: None,
        wall_ns: Callable[[], int] = time.time_ns,
    ) -> None:
        self.book = addresses or book()
        self._desk, self._foreign, self._wall_ns = desk, foreign, wall_ns
        self._guard = Guard() if guard is None else guard
        self._notices = Notices(tell)
        self._counts: Counter[str] = Counter(dict.fromkeys(COUNTED, 0))
        self._held: list[_Held] = []
        self._held_of: Counter[Sender] = Counter()
        self._order = 0
        self._seen: OrderedDict[tuple[Sender, bytes], None] = OrderedDict()
        self._subscriptions: dict[tuple[Sender, str], _Subscription] = {}
        self._reports = {report.topic: report for report in REPORTS}
        self._to_read: deque[_Question] = deque()  # each has one thread that appends and one that takes
        self._were_read: deque[_Question] = deque()
        self._reading = 0
        self._now_ns = 0

    # What the listener calls

    def take(self, packet: bytes, sender: Sender, now_ns: int) -> list[Outgoing]:
        """Take a packet that has come; return what is to be sent."""
        self._now_ns = now_ns
        self._counts["received"] += 1
        if not self._guard.passes(sender, now_ns):
            self._drop("too_many", sender, "sends more than can be taken, so some packets are dropped unread")
            return []
        try:
            messages = parse(packet)
        except PacketError as error:
            return self._refused("malformed", "", sender, str(error))
        if self._guard.trusts(sender, now_ns):
            self._guard.meet(sender, now_ns)
        elif [one.address for one in messages] != [HELLO]:
            first = messages[0].address if messages else ""
            return self._refused("strangers", first, sender, f"say {HELLO} with this session's token first")
        if any(one.time != IMMEDIATELY for one in messages) and self._is_copy(packet, sender):
            return []
        return self._sent(sender, [answer for one in messages for answer in self._hear(one, sender)])

    def tick(self, now_ns: int) -> list[Outgoing]:
        """Do what is due, and tell those who subscribed; return what is to be sent. As often as :meth:`wait` says."""
        self._now_ns = now_ns
        sent: list[Outgoing] = []
        while self._held and self._is_due(self._held[0].frame):
            held = heapq.heappop(self._held)
            self._held_of[held.sender] -= 1
            if not self._held_of[held.sender]:
                del self._held_of[held.sender]
            sent += self._sent(held.sender, self._carry_out(held.message, held.sender, held.frame))
        while self._were_read:
            sent += self._told(self._were_read.popleft())
        return sent + self._tell_subscribers(now_ns)

    def wait(self, now_ns: int) -> float:
        """Return for how many seconds there is nothing to do unless a packet comes, at most a quarter of one."""
        waits = [READING_SECONDS if self._reading else IDLE_SECONDS]
        if self._held:
            frames = self._held[0].frame - EARLY_TURNS * self._desk.turn_frames - self._desk.mixed()
            waits.append(frames / self._desk.samplerate)
        waits += [(one.next_ns - now_ns) / SECOND_NS for one in self._subscriptions.values()]
        return max(LEAST_SECONDS, min(waits))

    def read(self) -> bool:
        """Read the files for the question that has waited longest; return whether there was one. Its answer goes out
        with :meth:`tick`. The one call that may take long; one thread, which may be another than that of the others.
        """
        try:
            question = self._to_read.popleft()
        except IndexError:
            return False
        try:
            answers = question.address.carry_out(question.request)
            question.answers = [message(REPLY, question.path, *answer) for answer in answers]
        except RefusedError as error:
            question.refused = str(error)
        except Exception as error:  # noqa: BLE001 - whatever it is, the next question is answered
            question.refused = _unforeseen(question.path, error)
        self._were_read.append(question)
        return True

    @property
    def dropped(self) -> int:
        """How many packets were dropped unread."""
        return self._counts["too_many"]

    @property
    def asked(self) -> bool:
        """Whether a question waits for :meth:`read`."""
        return bool(self._to_read)

    def counted(self) -> dict[str, int]:
        """Return what was counted, by the names of :data:`COUNTED`."""
        return dict(self._counts)

    # What addresses ask for (Host)

    def subscribe(self, sender: Sender, topic: str, rate_hz: float, lease_seconds: float) -> None:
        """Tell a sender of a topic from now on."""
        key = (sender, topic)
        if key not in self._subscriptions and len(self._subscriptions) >= SUBSCRIPTIONS:
            raise RefusedError(f"there are {SUBSCRIPTIONS} subscriptions already; wait until one is over")
        interval_ns, lease_ns = round(SECOND_NS / rate_hz), round(SECOND_NS * lease_seconds)
        before = self._subscriptions.get(key)
        next_ns = self._now_ns if before is None else min(before.next_ns, self._now_ns + interval_ns)
        self._subscriptions[key] = _Subscription(interval_ns, next_ns, self._now_ns + lease_ns)

    def unsubscribe(self, sender: Sender, topic: str) -> int:
        """Tell him no more."""
        gone = [key for key in self._subscriptions if key[0] == sender and topic in ("", key[1])]
        for key in gone:
            del self._subscriptions[key]
        return len(gone)

    def greet(self, sender: Sender, token: str, reply_port: int) -> None:
        """Let a sender in."""
        self._guard.greet(sender, token, reply_port, self._now_ns)

    # One message

    def _hear(self, one: Message, sender: Sender) -> list[bytes]:
        """Carry out a message, now or later; return the answers."""
        if not one.address.startswith(PREFIX):
            return self._pass_on(one, sender)
        if one.address in (REPLY, ERROR) or one.address.startswith(REPORT):
            self._counts["echoes"] += 1
            return []
        if one.time == IMMEDIATELY:
            return self._carry_out(one, sender)
        return self._hold(one, sender)

    def _carry_out(self, one: Message, sender: Sender, frame: int = -1) -> list[bytes]:
        """Do what a message of ours says, commands on a session frame or as soon as can be."""
        found = self.book.find(one.address)
        if found is None:
            return self._error("unknown", one.address, sender, lambda: self.book.unknown(one.address))
        address, names = found
        if address.answers and not self._guard.may_ask(sender, self._now_ns):
            return self._plain_error("refused", one.address, sender, "more questions a second than are answered")
        request = Request(self._desk, self, sender, one.arguments, names, frame)
        try:
            if address.slow:
                self._ask(_Question(address, request, one.address))
                return []
            answers = [message(REPLY, one.address, *answer) for answer in address.carry_out(request)]
        except RefusedError as error:
            return self._plain_error("refused", one.address, sender, str(error))
        except Exception as error:  # noqa: BLE001 - whatever it is, the next packet is heard
            return self._plain_error("faults", one.address, sender, _unforeseen(one.address, error))
        self._counts["done"] += 1
        return answers

    def _ask(self, question: _Question) -> None:
        """Have files read for a question; what does not fit is refused before that."""
        question.address.values(question.request.arguments)
        if self._reading >= QUESTIONS:
            raise RefusedError(f"{QUESTIONS} such questions wait already; ask again in a moment")
        self._reading += 1
        self._to_read.append(question)

    def _told(self, question: _Question) -> list[Outgoing]:
        """Return the answer to a question for which files were read."""
        self._reading -= 1
        sender = question.request.sender
        if question.refused:
            return self._sent(sender, self._plain_error("refused", question.path, sender, question.refused))
        self._counts["done"] += 1
        return self._sent(sender, question.answers)

    def _pass_on(self, one: Message, sender: Sender) -> list[bytes]:
        """Hand a message that is not ours to who knows it. A DAW says much that means nothing: it is not told so."""
        if self._foreign is None:
            return self._error("unknown", one.address, sender, lambda: self.book.unknown(one.address))
        time_ns = self._now_ns
        if one.time != IMMEDIATELY:
            time_ns = self._host_ns(one.time)
            if not -BEHIND_NS <= time_ns - self._now_ns <= AHEAD_NS:
                self._counts["off_time"] += 1
                time_ns = self._now_ns
        try:
            meant = self._foreign(one.address, one.arguments, time_ns, sender)
        except Exception as error:  # noqa: BLE001 - whatever it is, the next packet is heard
            return self._plain_error("faults", one.address, sender, _unforeseen(one.address, error))
        self._counts["passed_on" if meant else "not_ours"] += 1
        return []

    # Later

    def _host_ns(self, tag: int) -> int:
        """Return the host time of a time tag, by the two clocks as they stand now."""
        return self._now_ns + unix_ns(tag) - self._wall_ns()

    def _is_copy(self, packet: bytes, sender: Sender) -> bool:
        """Whether this bundle with a time has come before: networks double packets, and somebody may replay them."""
        key = (sender, blake2b(packet, digest_size=16).digest())
        if key in self._seen:
            self._counts["copies"] += 1
            return True
        self._seen[key] = None
        if len(self._seen) > SEEN:
            self._seen.popitem(last=False)
        return False

    def _hold(self, one: Message, sender: Sender) -> list[bytes]:
        """Keep a message until it is due; one whose time has passed is due now."""
        time_ns = self._host_ns(one.time)
        ahead_ns = time_ns - self._now_ns
        if not -BEHIND_NS <= ahead_ns <= AHEAD_NS:
            seconds = ahead_ns / SECOND_NS
            off = f"{abs(seconds):,.0f} s {'ahead' if seconds > 0 else 'ago'}"
            allowed = f"{AHEAD_NS // SECOND_NS} s ahead to {BEHIND_NS // SECOND_NS} s ago are allowed"
            sentence = f"its time is {off} by this machine's clock; {allowed}. Do the clocks agree?"
            return self._plain_error("off_time", one.address, sender, sentence)
        if ahead_ns < 0:
            self._counts["late"] += 1
        frame = self._desk.frame_at(time_ns)
        if self._is_due(frame):
            return self._carry_out(one, sender, frame)
        if len(self._held) >= HELD or self._held_of[sender] >= HELD_OF_ONE:
            most = f"{HELD_OF_ONE} of your messages ({HELD} of all)"
            sentence = f"{most} wait for their time already; send this one later"
            return self._plain_error("not_held", one.address, sender, sentence)
        self._order += 1
        heapq.heappush(self._held, _Held(frame, self._order, one, sender))
        self._held_of[sender] += 1
        self._counts["held"] += 1
        return []

    def _is_due(self, frame: int) -> bool:
        """Whether the engine is to be told now: early enough for it to be carried out on its frame."""
        return frame <= self._desk.mixed() + EARLY_TURNS * self._desk.turn_frames

    # Those who are told

    def _tell_subscribers(self, now_ns: int) -> list[Outgoing]:
        sent: list[Outgoing] = []
        told: dict[str, list[bytes]] = {}  # what all who listen to a topic are told now is made once
        for (sender, topic), one in list(self._subscriptions.items()):
            if now_ns >= one.until_ns or not self._guard.trusts(sender, now_ns):
                del self._subscriptions[sender, topic]
            elif now_ns >= one.next_ns:
                one.next_ns = max(one.next_ns + one.interval_ns, now_ns + one.interval_ns // 2)
                if topic not in told:
                    told[topic] = self._report(topic)
                sent += self._sent(sender, told[topic])
        return sent

    def _report(self, topic: str) -> list[bytes]:
        try:
            return [message(REPORT + topic + end, *answer) for end, answer in self._reports[topic].rows(self._desk)]
        except Exception as error:  # noqa: BLE001 - whatever it is, the next packet is heard
            self._counts["faults"] += 1
            self._notices.say("faults", f"OSC: {_sentence(_unforeseen(REPORT + topic, error))}", self._now_ns)
            return []

    # What goes wrong

    def _drop(self, kind: str, sender: Sender, why: str) -> None:
        self._counts[kind] += 1
        if self._notices.may(kind, self._now_ns):
            self._notices.say(kind, f"OSC: {_who(sender)} {why}", self._now_ns)

    def _refused(self, kind: str, address: str, sender: Sender, sentence: str) -> list[Outgoing]:
        return self._sent(sender, self._plain_error(kind, address, sender, sentence))

    def _plain_error(self, kind: str, address: str, sender: Sender, sentence: str) -> list[bytes]:
        return self._error(kind, address, sender, lambda: sentence)

    def _error(self, kind: str, address: str, sender: Sender, words: Callable[[], str]) -> list[bytes]:
        """Count an error; tell the log and the sender as far as both may be told. Words are made only if one is."""
        self._counts[kind] += 1
        told, answered = self._notices.may(kind, self._now_ns), self._guard.may_answer(sender, self._now_ns)
        if not (told or answered):
            self._counts["silent"] += 1
            return []
        sentence = _sentence(words())
        if told:
            self._notices.say(kind, f"OSC: {_who(sender)}, {address or 'a packet'}: {sentence}", self._now_ns)
        if not answered:
            self._counts["silent"] += 1
            return []
        return [message(ERROR, address, sentence)]

    def _sent(self, sender: Sender, packets: Iterable[bytes]) -> list[Outgoing]:
        """Return packets with where they go."""
        if not 0 < sender[1] < 65536:  # nobody can be answered there
            return []
        way_back = self._guard.way_back(sender)
        sent = [(packet, way_back) for packet in _together(packets)]
        self._counts["sent"] += len(sent)
        return sent


COUNTED = (
    "received", "done", "passed_on", "sent", "held", "late", "too_many", "malformed", "strangers", "unknown",
    "refused", "off_time", "not_held", "copies", "echoes", "not_ours", "silent", "faults",
)  # fmt: skip
"""What a server counts. Packets: received, sent, and dropped because there were too many or they were malformed, of
strangers, or copies. Messages: done, passed on to who follows a DAW, not ours, held for their time, late for it,
refused for what they say, for a time that is none of ours, or because too many wait; of unknown addresses; echoes of
what a sideman says. Errors that the sender was not told of (silent), and those that nobody foresaw (faults)."""


def _sentence(text: str) -> str:
    """Return words as they may be sent and logged: on one line, of bounded length."""
    line = " ".join("".join(c if c.isprintable() else " " for c in text[: 2 * SENTENCE_CHARS]).split())
    return line if len(line) <= SENTENCE_CHARS else line[: SENTENCE_CHARS - 3] + "..."


def _unforeseen(path: str, error: Exception) -> str:
    return f"{path} failed, because of an error that nobody has foreseen ({type(error).__name__}: {error})"


def _who(sender: Sender) -> str:
    return f"{sender[0]}:{sender[1]}"


# The socket


def open_socket(bind: str, port: int, token: str) -> socket.socket:
    """Return a UDP socket on an interface of this machine.

    Parameters
    ----------
    bind
        The interface's address as a number; ``"127.0.0.1"`` is heard by this machine's programs alone.
    port
        1 to 65535, or 0 to have one chosen.
    token
        What senders of other machines have to say, ``""`` for none; without one no other interface is opened.

    Raises
    ------
    GuardError
        If the interface is open to others and there is no token, or the token is too short.
    OSError
        In one sentence, if the system does not give it.
    """
    check_entrance(bind, token)
    family = socket.AF_INET6 if ipaddress.ip_address(bind).version == 6 else socket.AF_INET
    entrance = socket.socket(family, socket.SOCK_DGRAM)
    try:
        with suppress(OSError):
            entrance.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, BACKLOG_BYTES)
        entrance.bind((bind, port))
    except OSError as error:
        entrance.close()
        taken = "; is another sideman running, or a DAW listening there?" if error.errno == errno.EADDRINUSE else ""
        raise OSError(error.errno, f"OSC cannot listen on {bind}, port {port}: {error.strerror}{taken}") from None
    return entrance


class Listener:
    """Gives a server a socket, and two threads that nothing ends but :meth:`stop`. A ``with``, or start and stop.

    Parameters
    ----------
    server
        Who hears and answers; from the start on it belongs to these threads.
    entrance
        The socket, from :func:`open_socket`; it is closed at the end.
    tell
        Takes a line where the socket itself fails.

    Attributes
    ----------
    port
        Where it listens.
    failures
        How often the socket failed, in hearing or in sending.
    """

    def __init__(
        self, server: Server, entrance: socket.socket, tell: Callable[[str], None] = lambda line: None
    ) -> None:
        self.port: int = entrance.getsockname()[1]
        self.failures = 0
        self._server, self._entrance, self._notices = server, entrance, Notices(tell)
        self._buffer = bytearray(MOST_BYTES + 1)  # a byte more than may be: so it shows where a packet is longer
        self._ended, self._asked = threading.Event(), threading.Event()
        self._dropped, self._in_a_row = 0, 0
        self._threads = [
            threading.Thread(target=self._run, args=(turn,), name=f"osc {name}", daemon=True)
            for name, turn in (("listener", self._turn), ("reader", self._read))
        ]

    def start(self) -> None:
        """Begin."""
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        """End; within half a second, or a file's reading. May be called twice."""
        self._ended.set()
        self._asked.set()
        for thread in self._threads:
            if thread.ident is not None:
                thread.join(2.0)
        self._entrance.close()

    def __enter__(self) -> Listener:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def _run(self, turn: Callable[[], None]) -> None:
        """Turn until the end, whatever happens."""
        while not self._ended.is_set():
            try:
                turn()
            except Exception as error:  # noqa: BLE001 - whatever it is, the next packet is heard
                self._fail(error)

    def _fail(self, error: Exception) -> None:
        self.failures += 1
        self._notices.say("socket", f"OSC: {error!r}; it goes on", time.monotonic_ns())
        self._ended.wait(BREATH_SECONDS)

    def _turn(self) -> None:
        """Hear one packet, or do what is due."""
        server = self._server
        self._entrance.settimeout(server.wait(time.monotonic_ns()))
        with suppress(TimeoutError, BlockingIOError, ConnectionError):  # one who was answered may be gone
            size, sender = self._entrance.recvfrom_into(self._buffer)
            self.send(server.take(bytes(memoryview(self._buffer)[:size]), sender, time.monotonic_ns()))
            self._rest_if_flooded()
        self.send(server.tick(time.monotonic_ns()))
        if server.asked:
            self._asked.set()

    def _rest_if_flooded(self) -> None:
        """Rest after many packets in a row that were dropped unread."""
        dropped = self._server.dropped
        self._in_a_row = self._in_a_row + 1 if dropped != self._dropped else 0
        self._dropped = dropped
        if self._in_a_row >= DROPPED_IN_A_ROW:
            self._in_a_row = 0
            time.sleep(BREATH_SECONDS)

    def _read(self) -> None:
        """Read files for one question after the other."""
        self._asked.wait(IDLE_SECONDS)
        self._asked.clear()
        while not self._ended.is_set() and self._server.read():
            pass

    def send(self, packets: Iterable[Outgoing]) -> None:
        """Send packets from this socket; one that cannot be is counted and told. Any thread, while it listens."""
        for packet, sender in packets:
            try:
                self._entrance.sendto(packet, sender)
            except OSError as error:
                self._fail(error)
