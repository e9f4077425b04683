"""Damaged and hostile OSC packets, made from whole ones by chance, and floods: what the server has to outlive.

A mutant is a packet of the address table, alone or in bundles, with something in it changed: bytes flipped, cut,
spliced, doubled; sizes and types that lie; numbers that nobody expects; nesting; times of other ages. The same seed
gives the same packets. Everything goes through :class:`bridge.osc.Server` without a socket and in virtual time.
"""

from __future__ import annotations

import argparse
import json
import math
import random
import struct
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [] if str(ROOT) in sys.path else [str(ROOT)]

from bridge.addresses import Address, Argument, Output  # noqa: E402
from bridge.desk import StillDesk  # noqa: E402
from bridge.osc import Server, bundle, message  # noqa: E402
from bridge.osctable import ERROR, REPLY, book  # noqa: E402
from bridge.packets import MOST_BYTES, PacketError, parse, time_tag  # noqa: E402

STEP_NS = 51_000_000
"""Virtual time between two packets of a fuzz: slow enough for each error to be told."""
WALL_NS = 1_800_000_000 * 10**9
TICK_EVERY = 8
NAMES = {"agent": "bass", "stem": "keys", "action": "freeze"}
SENDER = ("127.0.0.1", 50_000)
NUMBERS = (0.0, -1.0, 1e38, -1e38, math.nan, math.inf, -math.inf, 1e-45, 0.1, 10_000.0, 2.0**31)
WORDS = (0, 1, 3, 4, 8, 20, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF, 0xFFFFFFFC, 0x7FFFFFFC)

Mutation = Callable[[random.Random, bytes], bytes]


def example(argument: Argument) -> Output:
    """Return a value that an argument takes."""
    if argument.choices:
        return argument.choices[0]
    if argument.kind in ("switch", "press"):
        return True
    if argument.kind == "text":
        return ""
    if argument.kind == "tempo":
        return 97.5
    middle = max(argument.least, min(1.0, argument.most))
    return int(middle) if argument.kind == "whole" else float(middle)


def path_of(address: Address) -> str:
    """Return an address with names in it."""
    path = address.path
    for name, value in NAMES.items():
        path = path.replace("{" + name + "}", value)
    return path


def whole_packets() -> list[bytes]:
    """Return a packet for each address: without what may be left out, and with it; and some bundles of them."""
    found = [
        message(path_of(address), *(example(argument) for argument in arguments))
        for address in book().addresses
        for arguments in ([a for a in address.arguments if not a.optional], list(address.arguments))
    ]
    odd = message("/position/bbt", "001|01|0430", 3, 2.5, b"blob", None, True)
    nested = bundle([found[0], bundle([found[3], bundle([odd])])])
    return [*found, odd, nested, bundle([]), bundle(found[:20])]


def mutate(chance: random.Random, packets: list[bytes], now_ns: int) -> bytes:
    """Return a packet with up to three changes."""
    packet = chance.choice(packets)
    if chance.random() < 0.1:
        offset_ns = chance.choice((-(10**18), -1_000_000, 0, 5_000_000, 300_000_000, 10**11, 10**18))
        packet = bundle([packet], time_tag(WALL_NS + now_ns + offset_ns))
    for _ in range(chance.randint(0, 3)):
        packet = chance.choice(MUTATIONS)(chance, packet)
    return packet[: 2 * MOST_BYTES]


def _flip(chance: random.Random, packet: bytes) -> bytes:
    if not packet:
        return packet
    at = chance.randrange(len(packet))
    return packet[:at] + bytes([packet[at] ^ (1 << chance.randrange(8))]) + packet[at + 1 :]


def _byte(chance: random.Random, packet: bytes) -> bytes:
    at = chance.randint(0, len(packet))
    return packet[:at] + bytes([chance.choice(b"\0/,#[]ifsbhdtTFNI*?\xff\x80")]) + packet[at + 1 :]


def _word(chance: random.Random, packet: bytes) -> bytes:
    at = 4 * chance.randrange(max(1, len(packet) // 4))
    return packet[:at] + struct.pack(">I", chance.choice(WORDS)) + packet[at + 4 :]


def _number(chance: random.Random, packet: bytes) -> bytes:
    at = 4 * chance.randrange(max(1, len(packet) // 4))
    number = chance.choice(NUMBERS)
    return packet[:at] + struct.pack(">f", number) + packet[at + 4 :]


def _cut(chance: random.Random, packet: bytes) -> bytes:
    return packet[: chance.randint(0, len(packet))]


def _cut_even(chance: random.Random, packet: bytes) -> bytes:
    return packet[: 4 * chance.randint(0, len(packet) // 4)]


def _double(chance: random.Random, packet: bytes) -> bytes:
    return packet + packet[4 * chance.randint(0, len(packet) // 4) :]


def _insert(chance: random.Random, packet: bytes) -> bytes:
    at = 4 * chance.randint(0, len(packet) // 4)
    return packet[:at] + chance.randbytes(4 * chance.randint(1, 8)) + packet[at:]


def _swap(chance: random.Random, packet: bytes) -> bytes:
    if len(packet) < 8:
        return packet
    first, second = sorted(4 * chance.randrange(len(packet) // 4) for _ in range(2))
    word, other = packet[first : first + 4], packet[second : second + 4]
    return (
        packet[:first] + other + packet[first + 4 : second] + word + packet[second + 4 :]
        if first < second
        else packet
    )


def _nest(chance: random.Random, packet: bytes) -> bytes:
    for _ in range(chance.choice((1, 2, 4, 5, 40))):
        packet = bundle([packet])
    return packet


def _repeat(chance: random.Random, packet: bytes) -> bytes:
    return bundle([packet] * chance.choice((2, 10, 70)))


def _noise(chance: random.Random, packet: bytes) -> bytes:
    return chance.randbytes(chance.choice((4, 20, 64, 1000)))


MUTATIONS: tuple[Mutation, ...] = (
    _flip, _flip, _byte, _word, _number, _number, _cut, _cut_even, _double, _insert, _swap, _nest, _repeat, _noise,
)  # fmt: skip


@dataclass(slots=True)
class Fuzzed:
    """What became of many packets.

    Attributes
    ----------
    packets
        How many there were.
    replies, errors, reports
        Messages that were answered, and that subscribers were told.
    uncaught
        What the server raised, and the packet; must stay empty.
    unreadable
        Answers that our own parser refuses; must stay 0.
    slowest_seconds, slowest
        The packet that took most of this thread's time: what else runs on the machine does not count.
    seconds
        Of the whole run, the making of the packets included.
    blocks_grown
        Memory blocks that the second half of the run left behind.
    counted
        What the server counted.
    """

    packets: int = 0
    replies: int = 0
    errors: int = 0
    reports: int = 0
    uncaught: list[str] = field(default_factory=list)
    unreadable: int = 0
    slowest_seconds: float = 0.0
    slowest: str = ""
    seconds: float = 0.0
    blocks_grown: int = 0
    counted: dict[str, int] = field(default_factory=dict)


def fuzz(count: int = 1_000_000, seed: int = 1, *, checks: bool = True) -> Fuzzed:
    """Send mutants through a server, one after the other, and look at what comes back.

    Parameters
    ----------
    count
        How many.
    seed
        Of all chances.
    checks
        Whether each answer is read by our own parser, which costs as much as the rest.
    """
    chance, packets, result = random.Random(seed), whole_packets(), Fuzzed()
    desk = StillDesk()
    server = Server(desk, foreign=_ours, wall_ns=lambda: WALL_NS + desk.now_ns)
    begun, half = time.perf_counter(), 0
    for number in range(count):
        if number == count // 2:
            half = sys.getallocatedblocks()
        desk.now_ns += STEP_NS
        packet = mutate(chance, packets, desk.now_ns)
        at = time.thread_time()
        try:
            sent = server.take(packet, SENDER, desk.now_ns)
            if number % TICK_EVERY == 0:
                server.wait(desk.now_ns)
                while server.read():
                    pass
                sent = sent + server.tick(desk.now_ns)
        except Exception as error:  # noqa: BLE001 - it is what is looked for
            result.uncaught.append(f"{error!r} of {packet.hex()}")
            continue
        took = time.thread_time() - at
        if took > result.slowest_seconds:
            result.slowest_seconds, result.slowest = took, packet.hex()
        if checks:
            _look_at(result, sent)
    result.packets, result.seconds = count, time.perf_counter() - begun
    result.blocks_grown, result.counted = sys.getallocatedblocks() - half, server.counted()
    return result


def _ours(address: str, arguments: object, time_ns: int, sender: object) -> bool:
    return address.startswith("/position")


def _look_at(result: Fuzzed, sent: list[tuple[bytes, tuple[str, int]]]) -> None:
    for packet, _ in sent:
        try:
            messages = parse(packet)
        except PacketError:
            result.unreadable += 1
            continue
        for one in messages:
            result.replies += one.address == REPLY
            result.errors += one.address == ERROR
            result.reports += one.address not in (REPLY, ERROR)


@dataclass(slots=True)
class Flooded:
    """What became of a flood.

    Attributes
    ----------
    packets, senders
        How many came, from how many ports.
    passed
        How many were read.
    answered
        How many packets went back.
    lines
        What was written to the log.
    of_the_known
        Of the packets that one who was known before sent meanwhile, which share was read.
    seconds
        On the wall clock.
    blocks_grown
        Memory blocks that the second half left behind.
    counted
        What the server counted.
    """

    packets: int
    senders: int
    passed: int = 0
    answered: int = 0
    lines: int = 0
    of_the_known: float = 0.0
    seconds: float = 0.0
    blocks_grown: int = 0
    counted: dict[str, int] = field(default_factory=dict)


def flood(count: int = 1_000_000, *, per_second: int = 100_000, hosts: int = 16) -> Flooded:
    """Send packets from as many ports as there are, in virtual time, while one who is known sends a tempo in between.

    Parameters
    ----------
    count
        How many packets.
    per_second
        How fast, of virtual time.
    hosts
        How many addresses of this machine they come from, each of 64,000 ports.
    """
    known, lines = ("127.0.0.1", 40_000), Counter[str]()
    desk = StillDesk()
    server = Server(desk, tell=lambda line: lines.update(["lines"]), wall_ns=lambda: WALL_NS + desk.now_ns)
    result = Flooded(count, 0)
    own, bad, good = message("/sideman/metronome", 1), b"\xff" * 20, message("/sideman/ping", 1)
    server.take(own, known, desk.now_ns)
    senders: Iterator[tuple[str, int]] = (
        (f"127.0.0.{1 + number // 64_000 % hosts}", 1024 + number % 64_000) for number in range(count)
    )
    step_ns, every = 10**9 // per_second, max(1, per_second // 100)
    sent_by_known = heard_of_known = half = 0
    begun = time.perf_counter()
    for number, sender in enumerate(senders):
        if number == count // 2:
            half = sys.getallocatedblocks()
        desk.now_ns += step_ns
        if number % every == 0:
            desk.sent.clear()
            server.take(own, known, desk.now_ns)
            sent_by_known, heard_of_known = sent_by_known + 1, heard_of_known + len(desk.sent)
        result.answered += len(server.take(good if number % 2 else bad, sender, desk.now_ns))
    result.seconds, result.blocks_grown = time.perf_counter() - begun, sys.getallocatedblocks() - half
    result.senders = min(count, 64_000 * hosts)
    result.counted, result.lines = server.counted(), lines["lines"]
    result.passed = result.counted["received"] - result.counted["too_many"]
    result.of_the_known = heard_of_known / max(1, sent_by_known)
    return result


def main() -> None:
    """Fuzz and flood; print what became of it as JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--count", type=int, default=1_000_000)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    print(json.dumps(asdict(fuzz(options.count, options.seed)), indent=1))
    print(json.dumps(asdict(flood(options.count)), indent=1))


if __name__ == "__main__":
    main()
