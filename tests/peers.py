"""Real peers for tests: an audio server, Ardour, Pure Data, SuperCollider, each started afresh and ended by its id.

Nothing here is a test, and nothing here imports sideman: peers are spoken to as their manuals say, by a small OSC of
this file's own, and sideman is started as a user starts it (:func:`band`). What can listen to the whole network only
(Ardour, SuperCollider's language) runs in a network of its own that has nothing but a loopback; JACK needs no
network, so its clients meet across that border.

Everything is a context manager. What is not installed, or not permitted here, is said by :func:`missing`.

Notes
-----
What is known of the peers, all of it seen:

* JACK: a client that dies hard can take the server with it, so each test has a server of its own name. With periods
  below 1024 a headless Ardour loses its connection in the first second now and then: then both are started again.
* Ardour 7 rolls when a session is loaded. It tells position, but no tempo, over OSC. Its MIDI clock begins
  on the frame of its bar line and then keeps a tempo of its own where a tick is no whole number of frames: at 97 bpm
  it gains 12 frames in 10 s, at 120 none. Its song position pointer counts clocks, not sixteenths.
* Pure Data needs a small ``-audiobuf``, or it adds some 100 ms; SuperCollider's language needs Qt to be offscreen.
"""

from __future__ import annotations

import contextlib
import ctypes
import ctypes.util
import importlib.util
import multiprocessing
import os
import re
import secrets
import shutil
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

RATE = 48_000
PERIOD = 1024
ARDOUR_PORT = 3819
TRIES = 5
TICK, START, CONTINUE, STOP = b"\xf8", b"\xfa", b"\xfb", b"\xfc"
SUPERCLOCK = 282_240_000  # Ardour's own unit of time: so many to the second

_ARDOUR = Path("/usr/lib/ardour7")
_NEW_NETWORK = 0x40000000  # CLONE_NEWNET
_START_SECONDS = 20.0
_SETTLE_SECONDS = 1.0
_FEEDBACK = 16 + 32 + 64 + 1024  # Ardour's: position as samples, bars and time, and what plays

Audio = npt.NDArray[np.float32]
Message = tuple[str, tuple[Any, ...]]


class PeerError(RuntimeError):
    """A peer did not start, or does not answer."""


# -- what is there -------------------------------------------------------------------------------------------------


def missing(*peers: str) -> str:
    """Say what is not here of what a test needs, in a sentence; ``""`` if all of it is.

    Parameters
    ----------
    peers
        Any of ``"jack"``, ``"portaudio"``, ``"ardour"``, ``"pd"``, ``"scsynth"``, ``"sclang"``.
    """
    checks: dict[str, tuple[str, Callable[[], bool]]] = {
        "jack": ("a JACK server (jackd2) and the package JACK-Client", _has_jack),
        "portaudio": ("PortAudio (libportaudio2)", lambda: ctypes.util.find_library("portaudio") is not None),
        "ardour": ("Ardour 7 (ardour)", lambda: _hardour() is not None and shutil.which("ardour7-lua") is not None),
        "network": ("leave to make a network of its own (root, unshare and ip)", _may_unshare),
        "pd": ("Pure Data (puredata-core)", lambda: shutil.which("pd") is not None),
        "scsynth": ("SuperCollider's server (supercollider-server)", lambda: shutil.which("scsynth") is not None),
        "sclang": ("SuperCollider's language (supercollider-language)", lambda: shutil.which("sclang") is not None),
    }
    needed = dict.fromkeys(["jack", *peers, *(["network"] if {"ardour", "sclang"} & set(peers) else [])])
    absent = [words for words, there in (checks[peer] for peer in needed) if not there()]
    return f"not here: {', '.join(absent)}" if absent else ""


def _has_jack() -> bool:
    return shutil.which("jackd") is not None and importlib.util.find_spec("jack") is not None


def _hardour() -> Path | None:
    return next(iter(sorted(_ARDOUR.glob("hardour-*"))), None)


def _may_unshare() -> bool:
    tools = all(shutil.which(tool) for tool in ("unshare", "nsenter", "ip"))
    return tools and subprocess.run(["unshare", "-n", "true"], capture_output=True, check=False).returncode == 0


def _may_be_realtime() -> bool:
    """Whether a process may have realtime priority here."""
    allowed = "import os; os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(70))"
    return subprocess.run([sys.executable, "-S", "-c", allowed], capture_output=True, check=False).returncode == 0


# -- processes -----------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def running(
    command: Sequence[str], log: Path, env: dict[str, str] | None = None, **more: Any
) -> Iterator[subprocess.Popen[bytes]]:
    """Run a program, its words in a file; end it kindly, else at once; it ends as well if the tests die.

    Its input stays open: some end when that does.
    """
    if shutil.which("setpriv"):
        command = ["setpriv", "--pdeathsig", "KILL", *command]
    with open(log, "ab") as words:
        process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=words, stderr=words, env={**os.environ, **(env or {})}, **more
        )
    try:
        yield process
    finally:
        _end(process)


def _end(process: subprocess.Popen[bytes]) -> None:
    for end, patience_seconds in ((process.terminate, 3.0), (process.kill, 3.0)):
        if process.poll() is None:
            end()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(patience_seconds)
            break
    if process.stdin is not None:
        with contextlib.suppress(OSError):
            process.stdin.close()


def wait_for(what: Callable[[], Any], seconds: float, words: str) -> Any:
    """Look twenty times a second until something is true, and return it.

    Raises
    ------
    PeerError
        If it does not come true in time.
    """
    until = time.monotonic() + seconds
    while not (answer := what()):
        if time.monotonic() > until:
            raise PeerError(f"{words} within {seconds:g} s")
        time.sleep(0.05)
    return answer


class Network:
    """A network of its own that has a loopback and nothing else."""

    def __enter__(self) -> Network:
        script = "ip link set lo up && echo up && exec cat"  # until its input ends, with the tests
        command = ["unshare", "-n", "sh", "-c", script]
        self._holder = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        assert self._holder.stdout is not None
        if self._holder.stdout.readline() != b"up\n":
            self.__exit__()
            raise PeerError("no network of its own could be made")
        return self

    def __exit__(self, *_: object) -> None:
        _end(self._holder)
        assert self._holder.stdout is not None
        self._holder.stdout.close()

    def command(self, *command: str) -> list[str]:
        """Return a command that runs in it."""
        return ["nsenter", "-t", str(self._holder.pid), "-n", *command]

    def socket(self, port: int = 0, host: str = "127.0.0.1") -> socket.socket:
        """Return a UDP socket in it, on the loopback, for any thread of this process."""
        made: list[socket.socket] = []

        def make() -> None:
            with open(f"/proc/{self._holder.pid}/ns/net", "rb") as place:
                if ctypes.CDLL(None, use_errno=True).setns(place.fileno(), _NEW_NETWORK) == 0:
                    made.append(socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
                    made[0].bind((host, port))

        thread = threading.Thread(target=make)  # a thread changes its network for itself
        thread.start()
        thread.join()
        if not made:
            raise PeerError("the network cannot be entered")
        return made[0]


# -- OSC -----------------------------------------------------------------------------------------------------------


def osc(address: str, *arguments: float | str | bytes) -> bytes:
    """Return an OSC message: ints as ``i``, floats as ``f``, text as ``s``, bytes as ``b``."""
    tags, body = ",", b""
    for argument in arguments:
        if isinstance(argument, str):
            tags, body = tags + "s", body + _padded(argument.encode() + b"\0")
        elif isinstance(argument, bytes):
            tags, body = tags + "b", body + struct.pack(">i", len(argument)) + _padded(argument)
        elif isinstance(argument, int):
            tags, body = tags + "i", body + struct.pack(">i", argument)
        else:
            tags, body = tags + "f", body + struct.pack(">f", argument)
    return _padded(address.encode() + b"\0") + _padded(tags.encode() + b"\0") + body


def messages(packet: bytes) -> list[Message]:
    """Return the messages of a packet, those of a bundle in order."""
    if packet.startswith(b"#bundle\0"):
        found, at = [], 16
        while at < len(packet):
            size = struct.unpack_from(">i", packet, at)[0]
            found += messages(packet[at + 4 : at + 4 + size])
            at += 4 + size
        return found
    address, at = _text(packet, 0)
    tags, at = _text(packet, at)
    values: list[Any] = []
    for tag in tags[1:]:
        if tag == "s":
            text, at = _text(packet, at)
            values.append(text)
        elif tag == "b":
            size = struct.unpack_from(">i", packet, at)[0]
            values.append(packet[at + 4 : at + 4 + size])
            at += 4 + -(-size // 4) * 4
        elif tag in "TFNI":
            values.append({"T": True, "F": False}.get(tag))
        else:
            kind = {"i": ">i", "f": ">f", "d": ">d", "h": ">q", "t": ">Q"}[tag]
            values.append(struct.unpack_from(kind, packet, at)[0])
            at += struct.calcsize(kind)
    return [(address, tuple(values))]


def _padded(content: bytes) -> bytes:
    return content + b"\0" * (-len(content) % 4)


def _text(packet: bytes, at: int) -> tuple[str, int]:
    end = packet.index(b"\0", at)
    return packet[at:end].decode(), at + (end - at) // 4 * 4 + 4


class OscPeer:
    """A socket to a peer's OSC: sends, and keeps what comes back with the monotonic time it came at."""

    def __init__(self, place: socket.socket, port: int) -> None:
        self.heard: list[tuple[int, Message]] = []
        self.port: int = place.getsockname()[1]
        self._socket, self._to = place, ("127.0.0.1", port)
        self._ending = threading.Event()
        self._thread = threading.Thread(target=self._listen, daemon=True)
        self._thread.start()

    def send(self, address: str, *arguments: float | str | bytes) -> None:
        """Send one message."""
        self._socket.sendto(osc(address, *arguments), self._to)

    def last(self, address: str) -> tuple[Any, ...] | None:
        """Return the arguments of the last message that came to an address."""
        return next((values for _, (where, values) in reversed(self.heard) if where == address), None)

    def ask(self, address: str, *arguments: float | str | bytes, seconds: float = 5.0) -> tuple[Any, ...]:
        """Send a question and return the answer to the same address."""
        before = len(self.heard)
        self.send(address, *arguments)

        def answer() -> list[tuple[Any, ...]]:
            return [values for _, (where, values) in self.heard[before:] if where == address]

        found: list[tuple[Any, ...]] = wait_for(answer, seconds, f"no answer to {address}")
        return found[0]

    def close(self) -> None:
        """Stop listening."""
        self._ending.set()
        self._thread.join()
        self._socket.close()

    def _listen(self) -> None:
        self._socket.settimeout(0.1)
        while not self._ending.is_set():
            with contextlib.suppress(OSError):
                packet = self._socket.recv(65_536)
                self.heard += [(time.monotonic_ns(), message) for message in messages(packet)]


# -- JACK ----------------------------------------------------------------------------------------------------------


class Jack:
    """An audio server of its own name with the dummy driver.

    Parameters
    ----------
    folder
        Where its words go.
    rate, period
        Hz, frames.

    Attributes
    ----------
    name
        Of the server: the environment variable ``JACK_DEFAULT_SERVER`` of its clients.
    """

    def __init__(self, folder: Path, rate: int = RATE, period: int = PERIOD) -> None:
        self.name = f"peers-{os.getpid()}-{secrets.token_hex(3)}"
        self.rate, self.period = rate, period
        self._folder = folder
        self._stack = contextlib.ExitStack()
        self._patchbay: Client | None = None

    @property
    def env(self) -> dict[str, str]:
        """Environment of its clients."""
        return {"JACK_DEFAULT_SERVER": self.name, "JACK_NO_START_SERVER": "1", "JACK_NO_AUDIO_RESERVATION": "1"}

    def __enter__(self) -> Jack:
        realtime = ["-R", "-P", "70"] if _may_be_realtime() else ["-r"]
        command = ["jackd", "-n", self.name, *realtime, "-d", "dummy", "-r", str(self.rate), "-p", str(self.period)]
        with self._stack:
            self.process = self._stack.enter_context(running(command, self._folder / "jackd.log", self.env))
            door = Path(f"/dev/shm/jack_{self.name}_{os.getuid()}_0")
            wait_for(door.exists, _START_SECONDS, "there is no audio server")
            time.sleep(0.5)  # one that is called while it starts may lose its next client
            self._stack = self._stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()
        if self.process.returncode:
            self._sign_off()

    def _sign_off(self) -> None:
        """Have a server that died hard taken off JACK's list, which has eight lines for all of a user's servers.

        One of the same name takes its line over, and strikes it out when it ends kindly.
        """
        command = ["jackd", "-n", self.name, "-r", "-d", "dummy"]
        with running(command, self._folder / "jackd.log", self.env):
            time.sleep(0.5)

    @property
    def patchbay(self) -> Client:
        """The client that connects others. It comes when it is first needed: others like to find the server alone."""
        if self._patchbay is None:
            self._patchbay = self._stack.enter_context(Client(self, "patchbay"))
        return self._patchbay

    @property
    def xruns(self) -> int:
        """How often the server was late since it was first asked for a port, or this was."""
        return int(self.patchbay.do("xruns"))

    def ports(self, pattern: str = "") -> list[str]:
        """Return the names of all ports that fit a pattern."""
        return list(self.patchbay.do("ports", pattern))

    def wait_for_port(self, name: str, seconds: float = _START_SECONDS) -> str:
        """Wait until a port is there."""
        wait_for(lambda: name in self.ports(), seconds, f"there is no port {name}")
        return name

    def connections(self, name: str) -> list[str]:
        """Return the names of the ports that one is connected to."""
        return list(self.patchbay.do("connections", name))

    def connect(self, source: str, target: str) -> None:
        """Connect two ports, and wait until they are."""
        self.patchbay.do("connect", source, target)
        wait_for(lambda: target in self.connections(source), 2.0, f"{source} and {target} are not connected")

    @contextlib.contextmanager
    def freewheeling(self) -> Iterator[None]:
        """Have all clients go as fast as they can, a hundred times real time: not for those that wait for nobody."""
        self.patchbay.do("freewheel", True)
        try:
            yield
        finally:
            self.patchbay.do("freewheel", False)

    def disconnect_all(self, name: str) -> None:
        """Take everything off a port."""
        self.patchbay.do("disconnect", name)


class Client:
    """A JACK client in a process of its own: a server that dies may take its clients with it, not the tests.

    Parameters
    ----------
    jack
        The server.
    name
        Its name there.
    ports
        What it has: ``{"out": "audio out", "clock": "midi in"}``.
    play
        What it does in each period: a class of a module, made in that process with the client and its ports by name;
        its ``process(frames)`` is called in each period, its ``result()`` is what ``do("result")`` returns.
    arguments
        What else that class is made with.
    """

    def __init__(
        self, jack: Jack, name: str, ports: dict[str, str] | None = None, play: type | None = None, **arguments: Any
    ) -> None:
        self.name = name
        self._what = (jack.name, name, ports or {}, play, arguments)

    def __enter__(self) -> Client:
        context = multiprocessing.get_context("spawn")
        self._pipe, other = context.Pipe()
        self._process = context.Process(target=_be_client, args=(other, *self._what), daemon=True)
        self._process.start()
        other.close()
        try:
            self._answer(_START_SECONDS)
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        with contextlib.suppress(OSError):
            self._pipe.send(None)
        self._process.join(3.0)
        self._process.kill()
        self._process.join()
        self._pipe.close()

    def do(self, verb: str, *arguments: Any) -> Any:
        """Have it do something, and return what comes of it."""
        try:
            self._pipe.send((verb, arguments))
        except OSError:
            raise PeerError(f"the JACK client {self.name} is gone") from None
        return self._answer(10.0)

    def _answer(self, seconds: float) -> Any:
        try:
            if not self._pipe.poll(seconds):
                raise PeerError(f"the JACK client {self.name} does not answer within {seconds:g} s")
            good, answer = self._pipe.recv()
        except (EOFError, OSError):
            raise PeerError(f"the JACK client {self.name} is gone") from None
        if not good:
            raise PeerError(f"{self.name}: {answer}")
        return answer


def _be_client(
    pipe: Any, server: str, name: str, ports: dict[str, str], play: type | None, arguments: dict[str, Any]
) -> None:
    """Be the process of a client: do what the tests ask until they have had enough."""
    import jack

    jack.set_error_function(lambda text: None)
    jack.set_info_function(lambda text: None)
    try:
        client = jack.Client(name, no_start_server=True, servername=server)
    except jack.JackError as error:
        pipe.send((False, f"the audio server does not take it ({error})"))
        return
    late = [0]
    client.set_xrun_callback(lambda delayed: late.__setitem__(0, late[0] + 1))
    kinds = {
        "audio in": client.inports,
        "audio out": client.outports,
        "midi in": client.midi_inports,
        "midi out": client.midi_outports,
    }
    own = {port: kinds[kind].register(port) for port, kind in ports.items()}
    player: Any = play(client, own, **arguments) if play is not None else None
    if player is not None:
        client.set_process_callback(player.process)
    verbs: dict[str, Callable[..., Any]] = {
        "ports": lambda pattern: [port.name for port in client.get_ports(pattern)],
        "connections": lambda port: [other.name for other in client.get_all_connections(port)],
        "connect": lambda source, target: client.connect(source, target),
        "disconnect": lambda port: _disconnect(client, port),
        "xruns": lambda: late[0],
        "freewheel": lambda on: client.set_freewheel(on),
        "result": lambda: player.result(),
    }
    client.activate()
    pipe.send((True, None))
    with contextlib.suppress(EOFError):
        while (asked := pipe.recv()) is not None:
            try:
                pipe.send((True, verbs[asked[0]](*asked[1])))
            except jack.JackError as error:
                pipe.send((False, str(error)))
    client.deactivate()
    client.close()


def _disconnect(client: Any, port: str) -> None:
    own = client.get_port_by_name(port)
    for other in client.get_all_connections(own):
        client.disconnect(*((other, own) if own.is_input else (own, other)))


class Clicker:
    """Plays a click of one sample on every so many ticks of a MIDI clock, in the very frame in which the tick came.

    The first tick after a start is beat 0 and the loudest. Result: frames and bytes of all that the clock said, and
    the frames of the clicks, both counted by the server.

    Parameters
    ----------
    every
        Ticks from click to click, 24 to the quarter note.
    """

    PORTS: ClassVar[dict[str, str]] = {"clock": "midi in", "out": "audio out"}

    def __init__(self, client: Any, ports: dict[str, Any], every: int = 24) -> None:
        self._client, self._midi, self._out = client, ports["clock"], ports["out"]
        self._every = every
        self._tick: int | None = None
        self._said: list[tuple[int, bytes]] = []
        self._clicks: list[int] = []

    def process(self, frames: int) -> None:
        """Make one period."""
        out = self._out.get_array()
        out[:] = 0
        base = self._client.last_frame_time
        for offset, data in self._midi.incoming_midi_events():
            message = bytes(data)
            self._said.append((base + offset, message))
            if message == START:
                self._tick = 0
            elif message == STOP:
                self._tick = None
            elif message == TICK and self._tick is not None:
                if self._tick % self._every == 0:
                    out[offset] = 1.0 if self._tick == 0 else 0.5
                    self._clicks.append(base + offset)
                self._tick += 1

    def result(self) -> tuple[list[tuple[int, bytes]], list[int]]:
        """Return what the clock said, and the clicks."""
        return self._said, self._clicks


class Looper:
    """Plays a click of one sample every so many frames, and keeps what comes in.

    Result: the frame of the first period, and what was played and heard from there on, each ``(frames,)``.

    Parameters
    ----------
    every
        Frames from click to click.
    """

    PORTS: ClassVar[dict[str, str]] = {"in": "audio in", "out": "audio out"}

    def __init__(self, client: Any, ports: dict[str, Any], every: int = 4800) -> None:
        self._client, self._in, self._out = client, ports["in"], ports["out"]
        self._every = every
        self._first = -1
        self._played: list[Audio] = []
        self._heard: list[Audio] = []

    def process(self, frames: int) -> None:
        """Make one period."""
        base = self._client.last_frame_time
        if self._first < 0:
            self._first = base
        out = self._out.get_array()
        out[:] = 0
        out[-base % self._every :: self._every] = 0.5
        self._heard.append(self._in.get_array().copy())
        self._played.append(out.copy())

    def result(self) -> tuple[int, Audio, Audio]:
        """Return the first frame, what was played and what was heard."""
        count = min(len(self._heard), len(self._played))
        return self._first, np.concatenate(self._played[:count]), np.concatenate(self._heard[:count])


def looper(jack: Jack, every: int = 4800, name: str = "looper") -> Client:
    """Return a client that plays a :class:`Looper`; ports ``looper:in`` and ``looper:out``."""
    return Client(jack, name, Looper.PORTS, Looper, every=every)


def clicker(jack: Jack, every: int = 24, name: str = "clicker") -> Client:
    """Return a client that plays a :class:`Clicker`; ports ``clicker:clock`` and ``clicker:out``."""
    return Client(jack, name, Clicker.PORTS, Clicker, every=every)


# -- Ardour --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Take:
    """What Ardour recorded on a track.

    Attributes
    ----------
    start
        Frame of Ardour's timeline at which it begins.
    audio
        ``(frames, channels)``.
    """

    start: int
    audio: Audio


class Ardour:
    """A headless Ardour with a session made for the test: it plays, records, sends MIDI clock and speaks OSC.

    Parameters
    ----------
    folder
        A new folder for its home and its session.
    jack, network
        Where it lives.
    bpm, meter
        Of the whole session: quarter notes per minute, and as in ``"7/8"``.
    tracks
        Names and channels of its audio tracks.
    click
        Whether its own click sounds, on ``ardour:Click/audio_out 1``.

    Attributes
    ----------
    osc
        To and from its control surface.
    """

    CLOCK = "ardour:MIDI Clock out"
    CLICK = "ardour:Click/audio_out 1"

    def __init__(
        self,
        folder: Path,
        jack: Jack,
        network: Network,
        bpm: float = 120,
        meter: str = "4/4",
        tracks: dict[str, int] | None = None,
        click: bool = False,
    ) -> None:
        self.folder, self.jack, self.network = folder, jack, network
        self.bpm, self.meter = bpm, meter
        self.tracks = tracks or {"stem": 1}
        self._click = click
        self._session = folder / "session"
        self._log = folder / "ardour.log"
        self._stack = contextlib.ExitStack()

    def __enter__(self) -> Ardour:
        self.folder.mkdir(parents=True, exist_ok=True)
        with self._stack:
            self._make_session()
            hardour = _hardour()
            command = self.network.command(str(hardour), str(self._session), "session")
            self.process = self._stack.enter_context(running(command, self._log, self._env() | self.jack.env))
            # From another host than the one that follows it: Ardour tells apart by host whom it answers where.
            self.osc = OscPeer(self.network.socket(host="127.0.0.2"), ARDOUR_PORT)
            self._stack.callback(self.osc.close)
            wait_for(self._is_up, _START_SECONDS, "Ardour does not come up")
            self._settle()
            self._stack = self._stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    # transport

    def play(self) -> None:
        """Roll from where it stands."""
        self.osc.send("/transport_play")

    def stop(self) -> None:
        """Stop, and wait until it stands."""
        self.osc.send("/transport_stop")
        wait_for(lambda: self.osc.ask("/transport_speed")[0] == 0, 5.0, "Ardour does not stop")

    def locate(self, frame: int, roll: bool = False) -> None:
        """Go to a frame of its timeline, and roll on or stand there."""
        self.osc.send("/locate", frame, int(roll))

    def goto_start(self) -> None:
        """Go to the beginning."""
        self.osc.send("/goto_start")

    def position(self) -> int:
        """Return the frame at which it stands, or is about now."""
        return int(self.osc.ask("/transport_frame")[0])

    def record(self, *tracks: str) -> None:
        """Arm tracks, all if none is named; what is played from now on is recorded."""
        for number, name in enumerate(self.tracks, 1):
            if not tracks or name in tracks:
                self.osc.send("/strip/recenable", number, 1)
        if not self.osc.ask("/record_enabled")[0]:
            self.osc.send("/rec_enable_toggle", 1)
        wait_for(lambda: self.osc.ask("/record_enabled")[0], 5.0, "Ardour does not arm")

    def tell(self, port: int) -> None:
        """Have position and transport told to a port of 127.0.0.1, some ten times a second; 0: to ``osc.heard``."""
        if not port:
            self._introduce(_FEEDBACK)
            return
        with self.network.socket() as place:
            place.sendto(osc("/set_surface", 0, 159, _FEEDBACK, 0, 0, 0, port), ("127.0.0.1", ARDOUR_PORT))

    # ports

    def inputs(self, track: str) -> list[str]:
        """Return the ports of a track's inputs."""
        return [f"ardour:{track}/audio_in {number + 1}" for number in range(self.tracks[track])]

    def outputs(self, track: str) -> list[str]:
        """Return the ports of a track's outputs."""
        return [f"ardour:{track}/audio_out {number + 1}" for number in range(self.tracks[track])]

    # what it recorded

    def takes(self, track: str) -> list[Take]:
        """Save the session and return what was recorded on a track, in order of the timeline."""
        file = self._session / "session.ardour"
        before = file.stat().st_mtime_ns
        self.osc.send("/save_state")
        wait_for(lambda: file.stat().st_mtime_ns != before, 10.0, "Ardour does not save")
        time.sleep(0.2)  # it is written under another name and moved; then the backup is
        tree = ElementTree.parse(file)
        names = {source.get("id"): source.get("name") for source in tree.iterfind("./Sources/Source")}
        regions = [
            region
            for playlist in tree.iterfind("./Playlists/Playlist")
            if playlist.get("name", "").split(".")[0] == track
            for region in playlist.iterfind("Region")
        ]
        return sorted((self._take(region, names) for region in regions), key=lambda take: take.start)

    def _take(self, region: Any, names: dict[str | None, str | None]) -> Take:
        import soundfile

        columns, number = [], 0
        while (source := region.get(f"source-{number}")) is not None:
            file = next((self._session / "interchange").glob(f"*/audiofiles/{_escaped(names[source] or '')}"))
            columns.append(soundfile.read(file, dtype="float32", always_2d=True)[0][:, 0])
            number += 1
        first = self._frames(region.get("start", "a0"))
        audio = np.stack([column[first : first + self._frames(region.get("length", "a0"))] for column in columns], 1)
        return Take(self._frames(region.get("position") or region.get("length", "a0").partition("@")[2]), audio)

    def _frames(self, text: str) -> int:
        """Read a time as Ardour writes it: ``a`` and superclocks, ``length@position``, or plain frames."""
        found = re.match(r"([ab]?)(-?\d+)", text)
        assert found is not None, text
        assert found[1] != "b", f"{text} counts beats"
        return int(found[2]) * self.jack.rate // SUPERCLOCK if found[1] == "a" else int(found[2])

    # how it starts

    def _env(self) -> dict[str, str]:
        here = str(_ARDOUR)
        home = self.folder / "home"
        return {
            "HOME": str(home),
            "XDG_CONFIG_HOME": str(home / ".config"),
            "XDG_CACHE_HOME": str(home / ".cache"),
            "XDG_DATA_HOME": str(home / ".local" / "share"),
            "LD_LIBRARY_PATH": here,
            "ARDOUR_DLL_PATH": here,
            "ARDOUR_DATA_PATH": "/usr/share/ardour7",
            "ARDOUR_CONFIG_PATH": "/etc/ardour7",
            "ARDOUR_BACKEND_PATH": f"{here}/backends",
            "ARDOUR_SURFACES_PATH": f"{here}/surfaces",
        }

    def _make_session(self) -> None:
        """Have Ardour's own Lua make the session; then write tempo, meter and protocols into its file."""
        settings = self.folder / "home" / ".config" / "ardour7" / "config"
        settings.parent.mkdir(parents=True, exist_ok=True)
        options = {"send-midi-clock": 1, "clicking": int(self._click), "auto-connect-standard-busses": 0}
        lines = "".join(f'<Option name="{name}" value="{value}"/>' for name, value in options.items())
        settings.write_text(f'<?xml version="1.0" encoding="UTF-8"?><Ardour><Config>{lines}</Config></Ardour>')
        script = self.folder / "make.lua"
        script.write_text(_lua(self._session, self.jack.rate, self.tracks))
        with open(self._log, "ab") as words:
            command = self.network.command("ardour7-lua", str(script))
            env = os.environ | self._env()
            done = subprocess.run(command, stdout=words, stderr=words, timeout=60, check=False, env=env)
        file = self._session / "session.ardour"
        if not file.is_file():
            raise PeerError(
                f"Ardour made no session (code {done.returncode}): {self._log.read_text(errors='replace')}"
            )
        beats, unit = self.meter.split("/")
        text = file.read_text(encoding="utf-8")
        text = re.sub(r'(<Tempo npm=)"120" enpm="120"', rf'\1"{self.bpm}" enpm="{self.bpm}"', text)
        text = re.sub(r'<Meter note-value="4" divisions-per-bar="4"',
                      f'<Meter note-value="{unit}" divisions-per-bar="{beats}"', text)  # fmt: skip
        text = re.sub(r'(name="Open Sound Control \(OSC\)" active=)"0"', r'\1"1"', text)
        file.write_text(text, encoding="utf-8")

    def _is_up(self) -> bool:
        """Whether it answers; JACK is not asked, since it takes a client badly while another one starts."""
        self._check()
        self._introduce(0)
        with contextlib.suppress(PeerError):
            return bool(self.osc.ask("/transport_speed", seconds=0.5))
        return False

    def _check(self) -> None:
        if self.process.poll() is not None:
            raise PeerError(f"Ardour ended with code {self.process.returncode}")
        if "JACK HALTED" in self._log.read_text(errors="replace"):
            raise PeerError("Ardour lost its audio server")

    def _introduce(self, feedback: int) -> None:
        """Tell Ardour where to answer, without which it does not, and what to tell by itself."""
        self.osc.send("/set_surface", 0, 159, feedback, 0, 0, 0, self.osc.port)

    def _settle(self) -> None:
        """Stop it, since it rolls when it is loaded, and look whether it is still there two seconds later."""
        time.sleep(_SETTLE_SECONDS)
        self._check()
        self.jack.wait_for_port(self.CLOCK)
        time.sleep(_SETTLE_SECONDS)
        self._check()
        self.stop()
        self.goto_start()
        wait_for(lambda: self.position() == 0, 5.0, "Ardour does not go to the start")


def _lua(session: Path, rate: int, tracks: dict[str, int]) -> str:
    lines = [
        'AudioEngine:set_backend("None (Dummy)", "", "")',
        f'local s = create_session("{session}", "session", {rate})',
    ]
    for name, channels in tracks.items():
        lines.append(
            f's:new_audio_track({channels}, {channels}, nil, 1, "{name}", -1, ARDOUR.TrackMode.Normal, true)'
        )
    return "\n".join([*lines, 's:save_state("")', "close_session()", "quit()"]) + "\n"


def _escaped(name: str) -> str:
    """Return a file's name for a pattern."""
    return re.sub(r"([\[\]*?])", r"[\1]", name)


@contextlib.contextmanager
def studio(folder: Path, period: int = PERIOD, **session: Any) -> Iterator[Ardour]:
    """Start an audio server and an Ardour on it; both again, up to five times, where one does not come up.

    Parameters
    ----------
    folder
        An empty folder.
    period
        Of the audio server, frames.
    session
        As :class:`Ardour` takes it: ``bpm``, ``meter``, ``tracks``, ``click``.
    """
    with contextlib.ExitStack() as stack:
        network = stack.enter_context(Network())
        for number in range(TRIES):
            place = folder / f"try-{number + 1}"
            place.mkdir()
            with contextlib.ExitStack() as pair:
                try:
                    jack = pair.enter_context(Jack(place, period=period))
                    ardour = pair.enter_context(Ardour(place / "ardour", jack, network, **session))
                except PeerError:
                    if number + 1 == TRIES:
                        raise
                    continue
                stack.push(pair.pop_all())
                break
        yield ardour


# -- Pure Data and SuperCollider -----------------------------------------------------------------------------------


@contextlib.contextmanager
def pure_data(
    patch: Path, jack: Jack, folder: Path, inputs: int = 1, outputs: int = 1, name: str = "pure_data",
    network: Network | None = None,
) -> Iterator[subprocess.Popen[bytes]]:  # fmt: skip
    """Run a patch without a window, as a JACK client of a name; its ports are there when this returns."""
    command = ["pd", "-nogui", "-noprefs", "-jack", "-nojackconnect", "-jackname", name, "-r", str(jack.rate),
               "-audiobuf", "10", "-inchannels", str(inputs), "-outchannels", str(outputs), str(patch)]  # fmt: skip
    if network is not None:
        command = network.command(*command)
    with running(command, folder / "pd.log", jack.env, cwd=folder) as process:
        if outputs:
            jack.wait_for_port(f"{name}:output_1")
        yield process


@contextlib.contextmanager
def scsynth(
    jack: Jack, folder: Path, network: Network, port: int = 57_110, inputs: int = 2, outputs: int = 2
) -> Iterator[OscPeer]:
    """Run SuperCollider's server on the loopback of a network; yield what speaks to it once it answers."""
    home = folder / "supercollider"
    (home / ".local" / "share" / "SuperCollider" / "synthdefs").mkdir(parents=True, exist_ok=True)
    env = jack.env | {
        "HOME": str(home),
        "XDG_DATA_HOME": str(home / ".local" / "share"),
        "SC_JACK_DEFAULT_INPUTS": "",
        "SC_JACK_DEFAULT_OUTPUTS": "",
    }
    command = network.command("scsynth", "-u", str(port), "-B", "127.0.0.1", "-i", str(inputs), "-o", str(outputs))
    with running(command, folder / "scsynth.log", env):
        peer = OscPeer(network.socket(), port)
        try:
            wait_for(lambda: _status(peer), _START_SECONDS, "SuperCollider's server does not answer")
            yield peer
        finally:
            peer.close()


def _status(peer: OscPeer) -> bool:
    peer.send("/status")
    time.sleep(0.1)
    return peer.last("/status.reply") is not None


@contextlib.contextmanager
def sclang(script: Path, jack: Jack, folder: Path, network: Network) -> Iterator[subprocess.Popen[bytes]]:
    """Run a script in SuperCollider's language, without a window."""
    home = folder / "sclang"
    home.mkdir(exist_ok=True)
    env = jack.env | {
        "HOME": str(home),
        "XDG_CONFIG_HOME": str(home / ".config"),
        "XDG_DATA_HOME": str(home / ".local" / "share"),
        "XDG_RUNTIME_DIR": str(home),
        "QT_QPA_PLATFORM": "offscreen",
        "QTWEBENGINE_DISABLE_SANDBOX": "1",
        "QTWEBENGINE_CHROMIUM_FLAGS": "--no-sandbox",
    }
    command = network.command("sclang", "-D", str(script))
    with running(command, folder / "sclang.log", env, cwd=folder) as process:
        yield process


# -- the one that is tested ----------------------------------------------------------------------------------------


class Band:
    """A sideman that plays through the audio server: its ports, and what it says."""

    def __init__(self, process: subprocess.Popen[bytes], jack: Jack, log: Path) -> None:
        self.process, self._jack, self._log = process, jack, log

    def patch(self, sources: Sequence[str], targets: Sequence[Sequence[str]]) -> None:
        """Take its ports off whatever the system gave it, and connect each input and output as told.

        Parameters
        ----------
        sources
            A port for each of its inputs.
        targets
            Ports for each of its outputs.
        """
        ins = [f"PortAudio:in_{number}" for number in range(len(sources))]
        outs = [f"PortAudio:out_{number}" for number in range(len(targets))]
        for port in [*ins, *outs]:
            self._jack.wait_for_port(port)
        time.sleep(0.5)  # the system's own connections come a moment later
        for port in [*ins, *outs]:
            self._jack.disconnect_all(port)
        for source, port in zip(sources, ins, strict=True):
            self._jack.connect(source, port)
        for port, others in zip(outs, targets, strict=True):
            for other in others:
                self._jack.connect(port, other)

    @property
    def words(self) -> str:
        """All it has said."""
        return self._log.read_text(errors="replace")

    def end(self) -> None:
        """Have it end as Ctrl-C does, and close its take."""
        self.process.send_signal(signal.SIGINT)
        self.process.wait(30)


@contextlib.contextmanager
def band(jack: Jack, folder: Path, session: str, network: Network | None = None) -> Iterator[Band]:
    """Run ``sideman play`` on a session's text; its take goes into ``folder / "take"``."""
    (folder / "session.toml").write_text(session, encoding="utf-8")
    command = [sys.executable, "-m", "bridge", "play", str(folder / "session.toml"), "--out", str(folder / "take")]
    command = [*command, "--no-report"]
    env = jack.env | {"XDG_STATE_HOME": str(folder / "state")}
    home = Path(__file__).resolve().parent.parent
    with running(network.command(*command) if network else command, folder / "band.log", env, cwd=home) as process:
        yield Band(process, jack, folder / "band.log")


# -- looking at sound ----------------------------------------------------------------------------------------------


def onsets(audio: Audio, level: float = 0.1, apart: int = 100) -> list[int]:
    """Return the frames at which a sound rises above a level after having been below it for so many frames."""
    loud = np.flatnonzero(np.abs(audio).max(axis=1) > level) if len(audio) else np.zeros(0, int)
    first = np.diff(loud, prepend=-apart - 1) > apart
    return [int(frame) for frame in loud[first]]


def grid(bpm: float, beats: Fraction, count: int, rate: int = RATE) -> list[int]:
    """Return the frames of a steady grid from 0: ``count`` points, so many quarter notes apart, each rounded once."""
    step = beats * 60 * rate / Fraction(str(bpm))
    return [round(number * step) for number in range(count)]
