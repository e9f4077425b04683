"""Audio over OSC: a program that streams its buffers takes the place of the sound device.

It is another kind of device process on the same shared rings (:func:`realtime.io.layout`): engine, recorder and
whoever asks what became of a frame do not know the difference. The program, the *peer*, says hello, sends what it
hears in blocks that count its own frames, and is sent back the mix, or each stem for itself, in blocks that say at
which of its frames they sound. How that looks on the wire is in ``audiopackets.py``; ``oscclient.py`` is a peer to
learn from.

**Clock.** The peer's count of frames is the session's clock while it streams; a :class:`~realtime.io.Grid` ties the
two once. When it falls silent the bars go on by the wall clock, and when it is back, or its count has jumped, a new
grid is laid where the engine then is.

**In.** Every block is placed by its frame and heard as soon as those before it are there; a lost one is waited for,
then concealed (``jitter.py``).

**Out.** Blocks are sent as soon as they are mixed, and sent again until they are acknowledged or have become due. The
head start of a block over the moment in which it sounds is::

    head start = lead + delay - (way of the peer's clock to us) - (way of the block to the peer)

``lead`` is the session's, 5 to 40 ms. ``delay`` is what the peer asks for beyond it in its hello, up to 16 s: so much
earlier everything is mixed. With 5 % of packets lost, a lead of 21 ms alone leaves 0.05 % of the stems missing, and
100 ms more leave none; with a bar of delay each stem is there a bar ahead. It costs what it must: what the player
plays is answered that much later, as the coming bar is mixed before it was heard. It does not make a sound late:
every block says at which frame of the peer it sounds, and bar lines stay where they are.

A peer that asks for a delay (or for more of it than the one before) first hears nothing for as long: the engine goes
on mixing at its pace, and the loudspeaker waits until it is ``delay`` behind. So no bar has to be made in a hurry.

**Bounds.** One peer at a time. How many packets are read a second is bounded before any is read, how many wait for
their turn, how many are on their way, how many go out in a turn. Other machines need a token (``guard.py``).
"""

from __future__ import annotations

import contextlib
import gc
import hmac
import ipaddress
import signal
import socket
import time
from collections.abc import Callable

from bridge.audiopackets import (
    ACK,
    BYE,
    ERROR,
    HELLO,
    IN,
    MOST_BYTES,
    OUT,
    REFUSED,
    REPORT,
    START,
    STREAM,
    WELCOME,
    AudioPacket,
    pack,
    pack_audio,
    pack_floats,
    unpack,
    whole,
)
from bridge.guard import Notices, TokenBucket, is_local
from bridge.oscpeer import MIX, Address, Course, Hello, OscAudioConfig, Peer
from bridge.packets import PacketError, Value
from realtime.buffers import Arena, ArenaHandle, Layout, status_layout
from realtime.io import over
from realtime.rights import IO_PRIORITY, use_realtime
from realtime.stream import CLOSED, FAILED, RUNNING, STARTING, frames_in

FIELDS = {
    "port": "i8",  # UDP port, 0 before it is open
    "peer": "i8",  # 1 while a peer streams
    "peers": "i8",  # times one was let in
    "restarts": "i8",  # times a grid came to its end: goodbye, silence, or a jump in its count
    "delay": "i8",  # frames asked for beyond the lead
    "blocksize": "i8",  # the peer's
    "wait_frames": "i8",  # how long a missing block is waited for
    "jitter_frames": "i8",  # within this 99 of 100 blocks came
    "received": "i8",  # blocks that came in time
    "lost": "i8",  # blocks that did not
    "concealed_frames": "i8",  # what stands in their place
    "joined_frames": "i8",  # frames of sound that came, blended with what stood in before it
    "late": "i8",
    "duplicates": "i8",
    "strays": "i8",  # blocks of another stream or another time
    "sent": "i8",
    "resent": "i8",
    "given_up": "i8",  # blocks that were not acknowledged when they were due
    "round_trip_us": "i8",
    "malformed": "i8",
    "refused": "i8",
    "limited": "i8",  # packets that were not read, as there were too many
}
"""What the process tells besides :data:`realtime.stream.IO_FIELDS`; counters go on across its restarts and peers."""

_TURN_SECONDS = 0.001
_TURN_PACKETS = 512  # read in a turn, and the most that are sent in one
_RETRY_SECONDS = 0.25
_SILENT_NS = 1_000_000_000  # a peer that sends nothing for so long has stopped
_PATIENCE_NS = 5_000_000_000  # so long the first frame may wait for a peer
_OLD = 8  # packets in a row that count back further than a peer was before it fell silent: then it has begun anew
_REPORT_NS = 500_000_000
_START_NS = 50_000_000
_STARTS, _MOST_STARTS = 20, 200  # a peer that has not acknowledged anything by then does not do so
_STRANGERS_RATE, _STRANGERS_BURST = 100.0, 50
_SHARES, _HELLOS_RATE, _HELLOS_BURST = 64, 20.0, 10  # by who says hello: a flood empties only its own
_HELLO = HELLO.encode() + b"\0"
_TEXT_BYTES = 512
_BUFFER_BYTES = 1 << 20


def layout() -> Layout:
    """Return the array that this process tells its own counts in; it comes beside :func:`realtime.io.layout`."""
    return status_layout("oscaudio.status", FIELDS)


# ---- the process -----------------------------------------------------------------------------------------------


class OscAudioLoop:
    """What the process does in a turn, without its socket: so it runs in virtual time as well.

    Parameters
    ----------
    config
        What there is to be had.
    arena
        Memory laid out by :func:`realtime.io.layout`, :func:`realtime.engine.engine_layout` and :func:`layout`.
    send
        Sends a packet to an address; what it cannot send it drops.
    time_ns
        Now, monotonic.
    """

    def __init__(
        self, config: OscAudioConfig, arena: Arena, send: Callable[[bytes, Address], None], time_ns: int
    ) -> None:
        self._config, self._arena, self._send = config, arena, send
        self._status, self._own = arena.status("io.status"), arena.status("oscaudio.status")
        self._texts = arena.records("io.text")
        self._notices = Notices(self._tell)
        self._answers = Notices(lambda sentence: None)
        self._strangers = TokenBucket(_STRANGERS_RATE, _STRANGERS_BURST)
        self._hellos = [TokenBucket(_HELLOS_RATE, _HELLOS_BURST) for _ in range(_SHARES)]
        self._told_ns = time_ns
        self._peer: Peer | None = None
        self._begun_ns = time_ns
        self._state = STARTING
        before, counted = self._status.read(), self._own.read()  # counters go on from those of the process before
        self._epoch = before["epoch"]
        self._mixed_ahead = before["extra_lead"]
        self._counts = {name: counted[name] for name in FIELDS}
        self._io_counts = {
            name: before[name] for name in ("xruns", "lost_frames", "starved", "starved_frames", "overflows")
        }
        self._status.publish(
            state=STARTING, heartbeat_ns=time_ns, has_input=1, fill=0, fill_min=-1, samplerate=config.spec.samplerate
        )

    # What comes in

    def take(self, packet: bytes, sender: Address, time_ns: int) -> None:
        """Take a packet that came from ``sender``. Whatever it is, nothing is raised."""
        peer = self._peer
        known = peer is not None and sender == peer.address
        if not self._bucket(packet, sender).take(time_ns):
            self._counts["limited"] += 1
            return
        try:
            found = unpack(packet)
            if isinstance(found, AudioPacket):
                self._take_audio(found, sender, known, time_ns)
            elif found.address == HELLO:
                self._take_hello(found.arguments, sender, time_ns)
            elif peer is None or not known:
                self._counts["refused"] += 1
                self._complain("stranger", "say hello first", sender, time_ns, log=False)
            elif found.address == ACK:
                self._take_ack(peer, found.arguments, time_ns)
            elif found.address == BYE:
                self._part(f"{peer.name} has said goodbye; the bars go on")
            else:
                raise PacketError(f"{found.address} is no address of audio over OSC")
        except PacketError as error:
            self._counts["malformed"] += 1
            self._complain("malformed", str(error), sender, time_ns)

    def _bucket(self, packet: bytes, sender: Address) -> TokenBucket:
        """Return what decides whether a packet is read. A hello has one of its own: who was let in by the process
        before this one sends sound as well, and would crowd himself out.
        """
        if self._peer is not None and sender == self._peer.address:
            return self._peer.packets
        if packet.startswith(_HELLO):
            return self._hellos[hash(sender) % _SHARES]
        return self._strangers

    def _take_hello(self, arguments: tuple[Value, ...], sender: Address, time_ns: int) -> None:
        hello = Hello.read(arguments)
        peer = self._peer
        if peer is None or sender != peer.address or hello != peer.hello:
            try:
                self._check(hello, sender, time_ns)
            except PacketError as error:
                self._counts["refused"] += 1
                self._notices.say("refused", f"{sender[0]}:{sender[1]} may not stream: {error}", time_ns)
                self._send(pack(REFUSED, hello.id, str(error)), sender)
                return
            peer = self._peer = self._let_in(hello, sender, time_ns)
        spec, out = self._config.spec, enumerate(peer.streams)
        self._send(
            pack(WELCOME, hello.id, peer.stream_in, spec.lead, spec.latency, hello.delay, len(peer.streams)), sender
        )
        for index, (name, channels) in out:
            self._send(pack(STREAM, peer.stream_out(index), channels, name), sender)

    def _check(self, hello: Hello, sender: Address, time_ns: int) -> None:
        """Refuse a peer that has no right, or asks for what is not to be had, or whose place is taken."""
        token = self._config.token.encode()
        if not is_local(str(sender[0])) and not (token and hmac.compare_digest(hello.token.encode(), token)):
            raise PacketError("another machine has to say this session's token")
        hello.check(self._config)
        if self._arena.status("stream.status").read()["stopped"]:
            raise PacketError("the session is over")
        peer = self._peer
        if peer is not None and sender != peer.address and time_ns - peer.last_ns < _SILENT_NS:
            raise PacketError(f"{peer.name} streams already; end it there first")

    def _let_in(self, hello: Hello, sender: Address, time_ns: int) -> Peer:
        if self._peer is not None:
            self._end_course(self._peer)
        peer = Peer(sender, hello, hello.streams(self._config), time_ns)
        self._counts["peers"] += 1
        self._counts |= {"delay": hello.delay, "blocksize": hello.blocksize}
        names = ", ".join(name for name, _ in peer.streams)
        ms = 1000 * (self._config.spec.lead + hello.delay) / self._config.spec.samplerate
        self._tell(
            f"{peer.name} streams {hello.inputs} channels in blocks of {hello.blocksize} frames, and is sent {names} "
            f"{ms:.0f} ms before it sounds"
        )
        return peer

    def _take_audio(self, packet: AudioPacket, sender: Address, known: bool, time_ns: int) -> None:
        peer = self._peer
        if peer is None or not known or packet.stream != peer.stream_in or packet.address != IN:
            self._counts["strays"] += 1
            if not known:
                self._complain("stranger", "say hello first", sender, time_ns, log=False)
            return
        frames, channels = packet.block.shape
        if channels != peer.hello.inputs or frames > peer.hello.blocksize:
            raise PacketError(
                f"{IN}: a block of {frames} frames of {channels} channels; hello said {peer.hello.blocksize} of "
                f"{peer.hello.inputs}"
            )
        frame = packet.frame if packet.frame >= 0 else packet.sequence * peer.hello.blocksize
        if peer.course is not None and peer.course.jumped:
            self._end_course(peer)
            self._tell(f"the frame count of {peer.name} has jumped to {frame}; the bars go on from where they are")
        if peer.course is None:
            if frame < peer.newest and peer.old < _OLD:  # from before it fell silent
                peer.old += 1
                self._counts["strays"] += 1
                return
            self._begin_course(peer, time_ns)
        assert peer.course is not None
        if peer.course.take(packet, frame, time_ns):
            peer.last_ns, peer.newest = time_ns, peer.course.newest

    def _take_ack(self, peer: Peer, arguments: tuple[Value, ...], time_ns: int) -> None:
        numbers = [whole(value, ACK) for value in arguments]
        if len(numbers) < 2:
            raise PacketError(f"{ACK} has {len(numbers)} arguments; it takes stream, end, and what is missing")
        index = peer.index(numbers[0])
        if peer.course is not None and peer.course.grid is not None:
            peer.course.acknowledge(index, numbers[1], numbers[2:], time_ns)

    # What is done in a turn

    def turn(self, time_ns: int) -> None:
        """Do what is due; to be called every millisecond, after what has come was taken."""
        peer = self._peer
        course = peer.course if peer is not None else None
        values: dict[str, float] = {"heartbeat_ns": time_ns}
        if peer is not None and course is not None:
            if time_ns - peer.last_ns > _SILENT_NS:
                self._end_course(peer)
                self._tell(f"{peer.name} has stopped streaming; the bars go on, and it may come back")
                return
            moved = course.follow(time_ns)
            course.hear(time_ns)
            self._send_out(peer, course, time_ns)
            course.settle(time_ns)
            if moved and course.grid is not None:
                values |= self._at(peer, course, time_ns)
            if course.gone_out:
                self._part(f"the session is over, and {peer.name} has been sent all of it")
        elif self._state == STARTING and time_ns - self._begun_ns > _PATIENCE_NS:
            values["state"] = self._state = FAILED
            self._tell("nobody streams yet; the bars go on, and a peer may come at any time")
        elif time_ns - self._told_ns > _REPORT_NS:
            self._told_ns = time_ns
            self._own.publish(**self._counts)
        self._status.publish(**values)

    def _at(self, peer: Peer, course: Course, time_ns: int) -> dict[str, float]:
        """Return where the peer is, for the engine."""
        assert course.grid is not None
        self._state = RUNNING
        self._mixed_ahead = course.mixed_ahead
        fill, fill_min = course.fill(time_ns), self._status.read()["fill_min"]
        start, end = course.lost_range
        return {
            "state": RUNNING,
            "playhead": course.grid.session(course.newest),
            "playhead_ns": course.clock.time_ns(course.newest),
            "extra_lead": course.mixed_ahead,
            "fill": fill,
            "fill_min": fill if fill_min < 0 else min(fill, fill_min),
            "lost_start": start,
            "lost_end": end,
        } | self._counted(peer, course)

    def _counted(self, peer: Peer, course: Course) -> dict[str, float]:
        """Tell the counts of this process and return those of every device; the course adds to those before it."""
        jitter, rate = course.jitter, peer.hello.samplerate
        if jitter is not None:
            self._counts |= {
                "wait_frames": frames_in(jitter.wait.wait_ns, rate),
                "jitter_frames": frames_in(jitter.wait.jitter_ns, rate),
                "round_trip_us": course.trip.mean_ns // 1000,
            }
        added = _course_counts(course)
        self._own.publish(**{name: count + added.get(name, 0) for name, count in self._counts.items()})
        return {
            "xruns": self._io_counts["xruns"] + course.lost,
            "lost_frames": self._io_counts["lost_frames"] + course.lost_frames,
            "starved": self._io_counts["starved"] + course.starved,
            "starved_frames": self._io_counts["starved_frames"] + course.starved_frames,
            "overflows": self._io_counts["overflows"] + added["lost"],
        }

    def _send_out(self, peer: Peer, course: Course, time_ns: int) -> None:
        """Send what is due: sound, where it begins, how it stands."""
        packs = pack_floats if peer.hello.form == "floats" else pack_audio
        for index, sequence in course.due(time_ns):
            frame = sequence * peer.hello.blocksize
            block = course.read(index, sequence)
            self._send(packs(OUT, peer.stream_out(index), sequence, frame, block), peer.address)
        starts = _STARTS if course.acknowledged else _MOST_STARTS
        if course.grid is not None and peer.starts < starts and time_ns - peer.start_ns >= _START_NS:
            peer.starts, peer.start_ns = peer.starts + 1, time_ns
            first = course.senders[0].first
            self._send(
                pack(START, peer.stream_in, first, first * peer.hello.blocksize, course.start(first)), peer.address
            )
        if time_ns - peer.report_ns >= _REPORT_NS:
            peer.report_ns = time_ns
            self._send(pack(REPORT, peer.stream_in, *self._report(peer, course)), peer.address)

    def _report(self, peer: Peer, course: Course) -> list[int]:
        """Return the numbers of a report, in the order of ``REPORT_FIELDS``."""
        jitter, rate = course.jitter, peer.hello.samplerate
        wait, jitters = (jitter.wait.wait_ns, jitter.wait.jitter_ns) if jitter is not None else (0, 0)
        counts = _course_counts(course)
        names = ("received", "lost", "concealed_frames", "late", "duplicates", "sent", "resent", "given_up")
        spec = self._config.spec
        return [frames_in(wait, rate), frames_in(jitters, rate), *(counts[name] for name in names),
                course.trip.mean_ns // 1000, spec.lead, peer.hello.delay, spec.latency]  # fmt: skip

    # Beginnings and ends

    def _begin_course(self, peer: Peer, time_ns: int) -> None:
        arena, spec = self._arena, self._config.spec
        rings = [arena.ring("mix" if name == MIX else f"stem.{name}") for name, _ in peer.streams]
        peer.last_ns, peer.old = time_ns, 0
        peer.course = Course(spec, peer.hello, arena, rings, self._mixed_ahead)
        peer.starts = peer.start_ns = peer.report_ns = 0
        self._epoch += 1
        self._counts["peer"] = 1
        self._state = STARTING
        self._status.publish(state=STARTING, epoch=self._epoch, fill=0, fill_min=-1)

    def _end_course(self, peer: Peer) -> None:
        """Free-wheel: what was counted is kept, what was on its way is not followed any more."""
        course, peer.course = peer.course, None
        if course is None:
            return
        self._io_counts |= {name: int(count) for name, count in self._counted(peer, course).items()}
        for name, count in _course_counts(course).items():
            self._counts[name] += count
        self._counts |= {"restarts": self._counts["restarts"] + 1, "peer": 0}
        self._own.publish(**self._counts)
        self._state = FAILED
        self._status.publish(state=FAILED, **self._io_counts)

    def _part(self, text: str) -> None:
        """Let the peer go."""
        peer, self._peer = self._peer, None
        if peer is None:
            return
        self._end_course(peer)
        self._send(pack(BYE, peer.hello.id), peer.address)
        self._tell(text)

    def close(self) -> None:
        """Say goodbye to whoever is there."""
        if self._peer is not None:
            self._part(f"{self._peer.name} is not served any more")

    # Words

    def _complain(self, kind: str, sentence: str, sender: Address, time_ns: int, *, log: bool = True) -> None:
        """Say what is wrong, in the log and to the sender, of each kind one a second; not to strangers elsewhere."""
        if log:
            self._notices.say(kind, f"{sender[0]}:{sender[1]} sent what is no audio over OSC: {sentence}", time_ns)
        known = self._peer is not None and sender == self._peer.address
        if (known or is_local(str(sender[0]))) and self._answers.may(kind, time_ns):
            self._answers.say(kind, sentence, time_ns)
            self._send(pack(ERROR, sentence), sender)

    def _tell(self, text: str) -> None:
        self._texts.post(text.encode()[:_TEXT_BYTES])


def _course_counts(course: Course) -> dict[str, int]:
    """Return what a course counts, by the names of :data:`FIELDS`."""
    jitter, senders = course.jitter, course.senders
    counts = {
        "sent": sum(sender.sent for sender in senders),
        "resent": sum(sender.resent for sender in senders),
        "given_up": sum(sender.given_up for sender in senders),
    }
    names = {"duplicates": "twice"}
    for name in ("received", "lost", "concealed_frames", "joined_frames", "late", "duplicates", "strays"):
        counts[name] = getattr(jitter, names.get(name, name)) if jitter is not None else 0
    return counts


def run_oscaudio(handle: ArenaHandle, config: OscAudioConfig) -> None:
    """Serve peers until told to stop. Body of a process of its own, in the place of :func:`realtime.io.run_io`.

    A port that is taken is tried again four times a second. A process that follows another one takes the port that
    this one had.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the bridge's to answer
    arena = Arena.attach(handle)
    use_realtime(IO_PRIORITY)
    server = _open_entrance(arena, config)
    if server is not None:
        with server:
            _serve(arena, config, server)
    arena.status("io.status").publish(state=CLOSED, heartbeat_ns=time.monotonic_ns())


def _serve(arena: Arena, config: OscAudioConfig, server: socket.socket) -> None:
    host, port = server.getsockname()[:2]
    arena.status("oscaudio.status").publish(port=port)
    arena.records("io.text").post(f"audio over OSC is heard on {host}:{port} (UDP)".encode())
    loop = OscAudioLoop(config, arena, _sending(server), time.monotonic_ns())
    gc.collect()
    gc.freeze()
    while not over(arena):
        for _ in range(64):
            receive(server, loop)
            loop.turn(time.monotonic_ns())
            time.sleep(_TURN_SECONDS)
    loop.close()


def receive(server: socket.socket, loop: OscAudioLoop) -> None:
    """Take what has come, a bounded number of packets."""
    for _ in range(_TURN_PACKETS):
        try:
            packet, sender = server.recvfrom(MOST_BYTES + 1)
        except BlockingIOError:
            return
        except OSError:  # an earlier packet of ours found nobody: Windows tells of it here
            continue
        loop.take(packet, sender, time.monotonic_ns())


def _sending(server: socket.socket) -> Callable[[bytes, Address], None]:
    def send(packet: bytes, address: Address) -> None:
        with contextlib.suppress(OSError):  # full, or nobody is there: like a packet that was lost on the way
            server.sendto(packet, address)

    return send


def _open_entrance(arena: Arena, config: OscAudioConfig) -> socket.socket | None:
    """Open the port; try until it is free. ``None`` if told to stop before."""
    port, said = config.port or arena.status("oscaudio.status").read()["port"], False
    family = socket.AF_INET6 if ipaddress.ip_address(config.bind).version == 6 else socket.AF_INET
    while not over(arena):
        server = socket.socket(family, socket.SOCK_DGRAM)
        try:
            server.setblocking(False)
            server.bind((config.bind, port))
        except OSError as error:
            server.close()
            if not said:
                said = True
                text = (
                    f"{config.bind}:{port} (UDP) cannot be had for audio over OSC: {error.strerror or error}; does "
                    "another program use it? It is tried again until it is free"
                )
                arena.records("io.text").post(text.encode()[:_TEXT_BYTES])
            arena.status("io.status").publish(state=FAILED, heartbeat_ns=time.monotonic_ns())
            time.sleep(_RETRY_SECONDS)
        else:
            for option in (socket.SO_RCVBUF, socket.SO_SNDBUF):
                with contextlib.suppress(OSError):  # some systems give no more than they have
                    server.setsockopt(socket.SOL_SOCKET, option, _BUFFER_BYTES)
            return server
    return None
