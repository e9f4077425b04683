"""A flood of OSC through the socket of a session that plays; what becomes of the music, and of a friend, meanwhile.

The flood comes from a process of its own, from many ports; its packets are questions and nonsense, whole and damaged.
It never starves the machine: it sends a handful, rests, and says which rate it kept.
"""

from __future__ import annotations

import gc
import math
import multiprocessing
import os
import random
import socket
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import live as harness
import osc_mutants
from bench_memory import Look, anonymous_kb
from live import LIVE_LEAD, controlled, jack_server, live_text, wait_for

PER_SECOND = 100_000
SOCKETS, PACKETS, MOST_BYTES = 16, 4096, 1400
TURN_PACKETS, TURN_SECONDS = 400, 0.0005
"""The sender never sends more in a row, and rests so long after: the machine stays everybody's."""
MOST_OWED = 4000.0
"""What it could not send because it was held up is made up for, as far as that."""
FRIEND_SECONDS, PATIENCE_SECONDS = 0.05, 10.0
LOOK_SECONDS = 0.25
BPM = 112


def flood_packets(seed: int = 1) -> list[bytes]:
    """Return what a flood consists of: questions and nonsense, whole and damaged.

    No commands: this machine's own programs may stop a session, and would.
    """
    from bridge.osctable import book

    questions = [
        osc_mutants.message(
            osc_mutants.path_of(address), *(osc_mutants.example(argument) for argument in address.arguments)
        )
        for address in book().addresses
        if address.answers
    ]
    questions += [osc_mutants.bundle(questions[:8]), osc_mutants.message("/nobody/knows", 1, 2.5, "x")]
    chance, packets = random.Random(seed), []
    while len(packets) < PACKETS:
        packet = osc_mutants.mutate(chance, questions, 0)
        if len(packet) <= MOST_BYTES:
            packets.append(packet)
    return packets


def be_sender(port: int, seconds: float, told: Any) -> None:
    """Be the process that floods a port from many sockets, and a friend who asks something now and then."""
    packets, ping = flood_packets(), osc_mutants.message("/sideman/ping", 1)
    crowd = [_connected(port) for _ in range(SOCKETS)]
    friend = _connected(port)
    asked = _ask(friend, ping)
    told.send("ready")
    told.recv()
    at = sent = answered = 0
    begun = last = time.monotonic()
    asks, owed = begun, 0.0  # packets that are due
    while (now := time.monotonic()) - begun < seconds:
        owed = min(owed + (now - last) * PER_SECOND, MOST_OWED)
        last = now
        for _ in range(min(int(owed), TURN_PACKETS)):
            at, owed = at + 1, owed - 1
            with suppress(OSError):
                sent += crowd[at % SOCKETS].send(packets[at % PACKETS]) >= 0
        if now >= asks:
            asks += FRIEND_SECONDS
            asked += _ask(friend, ping)
        answered += _answers(friend)
        time.sleep(TURN_SECONDS)
    took, ended = time.monotonic() - begun, time.monotonic()
    answered += _answers(friend)
    after = math.inf
    while after == math.inf and time.monotonic() - ended < PATIENCE_SECONDS:
        _ask(friend, ping)
        time.sleep(FRIEND_SECONDS)
        if _answers(friend):
            after = time.monotonic() - ended
    policy = "idle" if hasattr(os, "SCHED_IDLE") and os.sched_getscheduler(0) == os.SCHED_IDLE else "normal"
    told.send({"sent": sent, "seconds": took, "asked": asked, "answered": answered, "after_seconds": after,
               "priority": f"{policy} priority, nice {os.nice(0)}"})  # fmt: skip


def _connected(port: int) -> socket.socket:
    made = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    made.connect(("127.0.0.1", port))
    made.setblocking(False)
    return made


def _ask(friend: socket.socket, packet: bytes) -> int:
    with suppress(OSError):
        return int(friend.send(packet) > 0)
    return 0


def _answers(friend: socket.socket) -> int:
    count = 0
    with suppress(OSError):
        while friend.recv(65_535):
            count += 1
    return count


@dataclass(frozen=True, slots=True)
class Flooded:
    """What became of a flood through a session's socket.

    Attributes
    ----------
    sent, seconds
        Packets, and for how long.
    asked, answered
        What a friend asked meanwhile, and what was answered.
    after_seconds
        How long after the flood the friend was answered again.
    unread
        Packets that the system dropped, as nobody had read those before them; ``None`` where it does not tell.
    empty, attributable, control_late
        Rings that ran empty, those of them that the control does not excuse, and its late share.
    looks
        What the bridge held: seconds, kB.
    said
        Sentences of the session meanwhile.
    realtime, jack
        Whether there were rights, and a server.
    priority
        Of the sender, in words.
    """

    sent: int
    seconds: float
    asked: int
    answered: int
    after_seconds: float
    unread: int | None
    empty: int
    attributable: int
    control_late: float
    looks: list[Look]
    said: list[str]
    realtime: bool
    jack: bool
    priority: str = ""


def flooded(folder: Path, seconds: float) -> Flooded:
    """Play with two agents and have the session's OSC port flooded."""
    from bridge.app import Live
    from bridge.demo import build_corpora
    from bridge.session import Session

    build_corpora(folder / "demo-corpora")
    agents = [harness.corpus_agent(name, folder / "demo-corpora" / name) for name in ("bass", "drums")]
    port, said = free_port(), list[str]()
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    sender = context.Process(target=be_sender, args=(port, seconds, theirs), daemon=True)
    with jack_server("sideman-bench-flood") as server:
        text = live_text(
            *agents, f"[osc]\non = true\nport = {port}\n", device="system" if server else "null", bpm=BPM
        )
        with Live(Session.parse(text).placed(folder / "flood.toml"), None, said.append, lead=LIVE_LEAD) as live:
            wait_for(live, lambda: set(live.status().states.values()) == {"armed"}, 60)
            sender.start()
            try:
                theirs.close()
                ours.recv()
                gc.collect()
                with controlled(live, seconds + 1, folder) as table:
                    time.sleep(0.5)
                    unread, said_before, looks = unread_packets(port), len(said), []
                    ours.send("go")
                    begun = time.monotonic()
                    while not ours.poll(LOOK_SECONDS) and live.poll():
                        held = anonymous_kb(os.getpid())
                        if held is not None and time.monotonic() - begun < seconds:
                            looks.append((time.monotonic() - begun, held))
                    facts, lost = ours.recv(), unread_packets(port)
                    empty, attributable, late = harness.judge(table(), live.config.spec.lead)
            finally:
                sender.kill()
                sender.join()
            return Flooded(
                **facts,
                unread=None if unread is None or lost is None else lost - unread,
                empty=empty,
                attributable=attributable,
                control_late=late,
                looks=looks,
                said=said[said_before:],
                realtime=live.realtime,
                jack=server is not None,
            )


def free_port() -> int:
    """Return a UDP port that nobody has now."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def unread_packets(port: int) -> int | None:
    """Return how many packets the system has dropped at a UDP port of ours; ``None`` where it does not tell."""
    with suppress(OSError, ValueError):
        for line in Path("/proc/net/udp").read_text().splitlines()[1:]:
            fields = line.split()
            if fields[1].endswith(f":{port:04X}"):
                return int(fields[-1])
    return None
