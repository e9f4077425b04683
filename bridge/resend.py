"""Sound that is known ahead, sent so that it arrives whole: what goes out when, what is sent again, what is over.

Plain arithmetic on sequence numbers and times that are given: no clock, no socket.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import islice

from bridge.audiopackets import ACK
from bridge.packets import PacketError

LOOKED_AT = 512
"""Packets on their way whose age is looked at in a turn, the oldest first."""


@dataclass(slots=True)
class _Sent:
    """A packet that is not acknowledged yet."""

    time_ns: int
    tries: int = 1


class RoundTrip:
    """How long it takes from a packet to its acknowledgement.

    The estimator of TCP: V. Jacobson, "Congestion avoidance and control", 1988; RFC 6298, without packets that were
    sent twice (P. Karn).
    """

    def __init__(self) -> None:
        self.mean_ns = 0
        self._spread_ns = 0

    def observe(self, time_ns: int) -> None:
        """Note one."""
        if not self.mean_ns:
            self.mean_ns, self._spread_ns = time_ns, time_ns // 2
            return
        self._spread_ns += (abs(time_ns - self.mean_ns) - self._spread_ns) // 4
        self.mean_ns += (time_ns - self.mean_ns) // 8

    @property
    def patience_ns(self) -> int:
        """After this time without a word a packet is held for lost, in ns, 10 to 500 ms."""
        if not self.mean_ns:
            return 50_000_000
        return min(500_000_000, max(10_000_000, self.mean_ns + 4 * self._spread_ns))


class Sender:
    """Decides which packets of one stream go out when, until each is acknowledged or of no use any more. Pure.

    Parameters
    ----------
    first
        Sequence of the first packet.
    trip
        Shared by all streams of a peer.

    Attributes
    ----------
    next
        Sequence that is sent next for the first time.
    acknowledges
        Whether the peer acknowledges, to be set by the owner: one that does not is sent everything once.
    sent, resent, given_up
        Packets; those sent again do not count as sent.
    """

    def __init__(self, first: int, trip: RoundTrip) -> None:
        self.first = self.next = first
        self.acknowledges = False
        self.sent = self.resent = self.given_up = 0
        self._trip = trip
        self._on_way: dict[int, _Sent] = {}  # ascending
        self._asked_for: set[int] = set()
        self._skipped: set[int] = set()  # not there when they were due

    @property
    def whole(self) -> int:
        """Every packet before this one is acknowledged."""
        return next(iter(self._on_way), self.next)

    def due(self, ready: int, useful: int, now_ns: int, most: int) -> list[int]:
        """Return the sequences to be sent now, at most so many, and take them for sent.

        Parameters
        ----------
        ready
            Packets before this one can be made.
        useful
            Packets before this one come too late: they are neither sent nor sent again.
        now_ns, most
            Time, and how many packets may go.
        """
        if self.acknowledges:
            self._look_for_lost(now_ns)
        again = [sequence for sequence in sorted(self._asked_for) if sequence >= useful][:most]
        for sequence in again:
            self._on_way[sequence].time_ns = now_ns
            self._on_way[sequence].tries += 1
        self._asked_for.difference_update(again)
        self._asked_for = {sequence for sequence in self._asked_for if sequence >= useful}
        self.resent += len(again)
        begin = max(self.next, min(useful, ready))
        new = list(range(begin, min(ready, begin + most - len(again))))
        for sequence in new:
            self._on_way[sequence] = _Sent(now_ns)
        self._skipped.update(range(self.next, begin))
        self.next = begin + len(new)
        self.sent += len(new)
        return again + new

    def acknowledge(self, end: int, missing: Iterable[int], now_ns: int) -> list[int]:
        """Take note that all before ``end`` have come but those that are missing; return those that are new.

        Raises
        ------
        PacketError
            If that cannot be.
        """
        lacking = set(missing)
        if end > self.next or any(not sequence < end for sequence in lacking):
            raise PacketError(f"{ACK}: packets up to {end} of a stream that has been sent up to {self.next}")
        come = []
        for sequence, sent in self._on_way.items():
            if sequence >= end:
                break
            if sequence not in lacking:
                come.append(sequence)
            elif now_ns - sent.time_ns > 3 * self._trip.mean_ns // 4:  # else what was sent last is under way still
                self._asked_for.add(sequence)
        for sequence in come:
            sent = self._on_way.pop(sequence)
            if sent.tries == 1:
                self._trip.observe(now_ns - sent.time_ns)
        self._asked_for.difference_update(come)
        return come

    def drop(self, before: int) -> None:
        """Give up what is before: it is over."""
        gone = []
        for sequence in self._on_way:
            if sequence >= before:
                break
            gone.append(sequence)
        for sequence in gone:
            del self._on_way[sequence]
        self._asked_for.difference_update(gone)
        self._skipped = {sequence for sequence in self._skipped if sequence >= before}
        if self.acknowledges:
            self.given_up += len(gone)

    def was_late(self, sequence: int) -> bool:
        """Whether a packet that is due now, or was, could not be made in time."""
        return sequence >= self.next or sequence in self._skipped

    def _look_for_lost(self, now_ns: int) -> None:
        """Ask for what should have been acknowledged by now; each time the patience is doubled."""
        patience_ns = self._trip.patience_ns
        for sequence, sent in islice(self._on_way.items(), LOOKED_AT):
            if now_ns - sent.time_ns > patience_ns << min(sent.tries - 1, 4):
                self._asked_for.add(sequence)
