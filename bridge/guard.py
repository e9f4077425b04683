"""Who may speak to a session from outside, and how much: the rules of every entrance, whatever it speaks.

* This machine's own programs may command. Others have to say the session's token first, each sender for himself (host
  and port), and again after :data:`SESSION_SECONDS` of silence. What a sender is called on the network can be forged:
  a token keeps strangers out of a stage's network, it is no lock against somebody who listens in.
* How much is taken is decided before anything is read: by token buckets (they hold ``burst`` packets and are refilled
  at ``rate``), one for each sender who is known, one for all together, and for strangers a fixed number that they
  share, so that a million of them take no more memory than one, and cannot crowd out those who are known.
* What is refused is counted, and told in one line a second of each kind at most.

Time is the caller's (monotonic nanoseconds). Each object belongs to one thread.
"""

from __future__ import annotations

import hmac
import ipaddress
import secrets
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field

Sender = tuple[str, int]
"""Host and port; what a socket may put behind them (IPv6) stays with it."""

SECOND_NS = 10**9
SENDER_RATE, SENDER_BURST = 1000.0, 500
"""Packets a second of one sender. A DAW that tells all it knows sends some hundreds, most of them in bundles."""
ALL_RATE, ALL_BURST = 3000.0, 1500
"""Of all together."""
STRANGERS_RATE, STRANGERS_BURST = 1000.0, 500
"""Of all on this machine who are not known yet."""
FOREIGN_RATE, FOREIGN_BURST = 100.0, 50
"""Of all from other machines who have not said the token; the fewer, the fewer guesses."""
SHARES, SHARE_RATE, SHARE_BURST = 256, 20.0, 10
"""Buckets that strangers share, by who they are: a single one empties only his own."""
ANSWERS_RATE, ANSWERS_BURST = 20.0, 20
"""Errors that one known sender is told a second, and all strangers together: a flood is not answered by a flood."""
QUESTIONS_RATE, QUESTIONS_BURST = 20.0, 20
"""Questions that one known sender is answered a second, and all strangers of this machine together: an answer may
take longer than ten commands."""
SENDERS = 64
"""Known at a time, of this machine and of others."""
IDLE_NS = 10 * SECOND_NS
"""After so long a sender of this machine may lose his place to another one."""
SESSION_SECONDS = 600
"""After so long a silence a sender of another machine has to say the token again."""
LEAST_TOKEN_CHARS, MOST_TOKEN_CHARS = 8, 128


class GuardError(ValueError):
    """A setting or a greeting that cannot be accepted, in one sentence."""


def make_token() -> str:
    """Return a new token: 16 characters that nobody guesses and a phone can be told."""
    return secrets.token_hex(8)


def is_local(host: str) -> bool:
    """Whether a sender's address is this machine's own; the system lets none in from outside under such a name."""
    return host.startswith("127.") or host == "::1"


def check_entrance(bind: str, token: str) -> None:
    """Refuse to listen to other machines without a token.

    Parameters
    ----------
    bind
        Address of the interface, a number such as ``"127.0.0.1"`` or ``"192.168.1.20"``.
    token
        What senders of other machines have to say, ``""`` for none.

    Raises
    ------
    GuardError
        In one sentence.
    """
    try:
        local = is_local(str(ipaddress.ip_address(bind)))
    except ValueError:
        raise GuardError(
            f"bind = {bind!r} is no address of an interface; it takes a number such as 127.0.0.1, or 0.0.0.0 for all"
        ) from None
    plain = token.isascii() and token.isprintable()
    if token and not (plain and LEAST_TOKEN_CHARS <= len(token) <= MOST_TOKEN_CHARS):
        raise GuardError(
            f"the token has {len(token)} characters; it takes {LEAST_TOKEN_CHARS} to {MOST_TOKEN_CHARS} printable "
            "ASCII ones"
        )
    if not local and not token:
        raise GuardError(
            f"bind = {bind} is open to other machines, and there is no token; give one of {LEAST_TOKEN_CHARS} "
            "characters or more, which each sender has to say, or bind to 127.0.0.1"
        )


class TokenBucket:
    """Lets ``rate`` a second through, and ``burst`` at once."""

    __slots__ = ("_burst", "_last_ns", "_level", "_rate_ns")

    def __init__(self, rate: float, burst: int) -> None:
        self._rate_ns, self._burst, self._level, self._last_ns = rate / SECOND_NS, float(burst), float(burst), 0

    def take(self, now_ns: int) -> bool:
        """Take one, if there is one. A clock that goes back refills nothing."""
        if now_ns > self._last_ns:
            self._level = min(self._burst, self._level + (now_ns - self._last_ns) * self._rate_ns)
        self._last_ns = now_ns
        if self._level < 1:
            return False
        self._level -= 1
        return True


@dataclass(slots=True, eq=False)
class _Known:
    """A sender who is known."""

    seen_ns: int
    packets: TokenBucket = field(default_factory=lambda: TokenBucket(SENDER_RATE, SENDER_BURST))
    answers: TokenBucket = field(default_factory=lambda: TokenBucket(ANSWERS_RATE, ANSWERS_BURST))
    questions: TokenBucket = field(default_factory=lambda: TokenBucket(QUESTIONS_RATE, QUESTIONS_BURST))
    reply_port: int = 0


class Guard:
    """Knows who may speak, and how much.

    Parameters
    ----------
    token
        What senders of other machines have to say; ``""``: they may say nothing at all.
    """

    def __init__(self, token: str = "") -> None:
        self._token = token.encode()
        self._local: OrderedDict[Sender, _Known] = OrderedDict()  # who was silent for longest first
        self._greeted: OrderedDict[Sender, _Known] = OrderedDict()
        self._all = TokenBucket(ALL_RATE, ALL_BURST)
        self._strangers = {
            True: TokenBucket(STRANGERS_RATE, STRANGERS_BURST),
            False: TokenBucket(FOREIGN_RATE, FOREIGN_BURST),
        }
        self._shares = [TokenBucket(SHARE_RATE, SHARE_BURST) for _ in range(SHARES)]
        self._answers = TokenBucket(ANSWERS_RATE, ANSWERS_BURST)
        self._questions = TokenBucket(QUESTIONS_RATE, QUESTIONS_BURST)

    def __len__(self) -> int:
        """Return how many senders are known."""
        return len(self._local) + len(self._greeted)

    def passes(self, sender: Sender, now_ns: int) -> bool:
        """Whether one more packet of a sender may be read. To be asked before it is."""
        known = self._look(sender, now_ns)
        if known is not None:
            return known.packets.take(now_ns) and self._all.take(now_ns)
        local = is_local(sender[0])
        share = self._shares[hash(sender if local else sender[0]) % SHARES]
        return share.take(now_ns) and self._strangers[local].take(now_ns) and self._all.take(now_ns)

    def trusts(self, sender: Sender, now_ns: int) -> bool:
        """Whether a sender may command: one of this machine, or one who has said the token."""
        return is_local(sender[0]) or self._look(sender, now_ns) is not None

    def meet(self, sender: Sender, now_ns: int) -> None:
        """Note that a sender who is trusted has said something sensible; from now on he has a bucket of his own."""
        known = self._look(sender, now_ns)
        if known is not None:
            known.seen_ns = now_ns
            (self._local if sender in self._local else self._greeted).move_to_end(sender)
        elif is_local(sender[0]) and self._has_room(now_ns):
            self._local[sender] = _Known(now_ns)

    def greet(self, sender: Sender, token: str, reply_port: int, now_ns: int) -> None:
        """Let a sender in who says the token; his answers go to ``reply_port`` of his host, 0 for where he sent from.

        Raises
        ------
        GuardError
            If the token is not the session's. Comparing takes the same time however much of it is right.
        """
        if not is_local(sender[0]):
            given = token.encode("utf-8", "replace")
            if not self._token or not hmac.compare_digest(self._token, given):
                raise GuardError("that is not this session's token; did you give the one of another session?")
            while len(self._greeted) >= SENDERS and sender not in self._greeted:
                self._greeted.popitem(last=False)
            self._greeted.setdefault(sender, _Known(now_ns))
        self.meet(sender, now_ns)
        known = self._look(sender, now_ns)
        if known is not None:
            known.reply_port = reply_port
        elif reply_port:
            raise GuardError(f"{SENDERS} senders of this machine are known already; try again in a few seconds")

    def may_answer(self, sender: Sender, now_ns: int) -> bool:
        """Whether a sender may be told of one more error."""
        known = self._look(sender, now_ns)
        return (known.answers if known is not None else self._answers).take(now_ns)

    def may_ask(self, sender: Sender, now_ns: int) -> bool:
        """Whether a sender may be answered one more question."""
        known = self._look(sender, now_ns)
        return (known.questions if known is not None else self._questions).take(now_ns)

    def way_back(self, sender: Sender) -> Sender:
        """Return where answers to a sender go."""
        known = self._local.get(sender) or self._greeted.get(sender)
        if known is None or not known.reply_port:
            return sender
        return (sender[0], known.reply_port, *sender[2:])

    def _look(self, sender: Sender, now_ns: int) -> _Known | None:
        known = self._local.get(sender)
        if known is not None:
            return known
        known = self._greeted.get(sender)
        if known is not None and now_ns - known.seen_ns > SESSION_SECONDS * SECOND_NS:
            del self._greeted[sender]
            return None
        return known

    def _has_room(self, now_ns: int) -> bool:
        """Whether one more sender of this machine can be known, in the place of one who has gone if need be."""
        if len(self._local) < SENDERS:
            return True
        idlest = next(iter(self._local))
        if now_ns - self._local[idlest].seen_ns <= IDLE_NS:
            return False
        del self._local[idlest]
        return True


class Notices:
    """Passes sentences on, of each kind one a second at most; the next one says how many were left out.

    Parameters
    ----------
    tell
        Takes the lines.
    """

    def __init__(self, tell: Callable[[str], None]) -> None:
        self._tell = tell
        self._told_ns: dict[str, int] = {}
        self._left_out: dict[str, int] = {}

    def may(self, kind: str, now_ns: int) -> bool:
        """Whether a line of this kind would be passed on; if not, it is counted as left out. Kinds are few."""
        told_ns = self._told_ns.get(kind)
        if told_ns is not None and 0 <= now_ns - told_ns < SECOND_NS:
            self._left_out[kind] = self._left_out.get(kind, 0) + 1
            return False
        return True

    def say(self, kind: str, sentence: str, now_ns: int) -> None:
        """Pass a line on, if it may."""
        if not self.may(kind, now_ns):
            return
        self._told_ns[kind] = now_ns
        more = self._left_out.pop(kind, 0)
        self._tell(f"{sentence} (and {more} more of the kind)" if more else sentence)
