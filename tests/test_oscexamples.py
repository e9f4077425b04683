"""The examples for audio over OSC, in the programs they are written for. Run with ``pytest -m peers``."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import peers
import pytest

import bridge
from bridge.oscaudio import OscAudioLoop, layout, receive
from bridge.oscpeer import OscAudioConfig
from realtime import io
from realtime.buffers import Arena, ring_layout, stems_layout
from realtime.protocols import Block, StreamSpec
from realtime.stream import DeviceStream
from tools.oscnet import Band, tell

pytestmark = pytest.mark.peers

EXAMPLES = Path(bridge.__file__).parent / "examples"
RATE = peers.RATE
SPEC = StreamSpec(RATE, inputs=1, outputs=2, blocksize=128, lead=4096)
SECONDS = 20
HEARD, PLAYED = 7, 0  # what each sound is of, in the sense of ``tell``


class Session:
    """Audio over OSC and a band, on threads of this process; the socket may be in another network."""

    def __init__(self, server: socket.socket) -> None:
        stems = (("bass", 1),)
        rings = {
            **ring_layout("mix", 2 * SECONDS * RATE, SPEC.outputs),
            **stems_layout("stem", 2 * SECONDS * RATE, dict(stems)),
        }
        self.arena = Arena.create({**io.layout(SPEC), **layout(), **rings})
        self.band = Band(self.arena, stems, SPEC.outputs, SECONDS * RATE)
        self.port = int(server.getsockname()[1])
        server.setblocking(False)
        config = OscAudioConfig(SPEC, stems)
        loop = OscAudioLoop(
            config, self.arena, lambda packet, to: self._send(server, packet, to), time.monotonic_ns()
        )
        self._over = threading.Event()
        stream = DeviceStream(SPEC, self.arena, patience_seconds=60)
        self._threads = [
            threading.Thread(target=self._serve, args=(server, loop)),
            threading.Thread(target=stream.run, args=(self.band,)),
        ]
        for thread in self._threads:
            thread.start()

    def _serve(self, server: socket.socket, loop: OscAudioLoop) -> None:
        while not self._over.is_set():
            receive(server, loop)
            loop.turn(time.monotonic_ns())
            time.sleep(0.001)

    @staticmethod
    def _send(server: socket.socket, packet: bytes, to: tuple[Any, ...]) -> None:
        with contextlib.suppress(OSError):
            server.sendto(packet, to)

    def counts(self) -> dict[str, int]:
        return self.arena.status("oscaudio.status").read()

    def __enter__(self) -> Session:
        return self

    def __exit__(self, *_: object) -> None:
        self.band.stopped = True
        self._threads[1].join(30)
        self._over.set()
        self._threads[0].join(30)
        self.arena.close()
        self.arena.unlink()


class Ear:
    """Plays what tells its frame to a program, in a JACK client, and records what the program plays.

    Result: what was recorded, ``(frames, channels)``.
    """

    def __init__(self, client: Any, ports: dict[str, Any]) -> None:
        self._play, self._record = ports["play"], [port for name, port in ports.items() if name != "play"]
        self._recorded: list[Block] = []
        self._frame = 0

    def process(self, frames: int) -> None:
        """Make one period."""
        self._play.get_array()[:] = tell(np.arange(self._frame, self._frame + frames), HEARD, 1)[:, 0]
        self._recorded.append(np.stack([port.get_array() for port in self._record], axis=1))
        self._frame += frames

    def result(self) -> Block:
        """Return what was recorded."""
        return np.concatenate(self._recorded)


def frames_told(sound: npt.NDArray[np.float32], stream: int, most: int) -> npt.NDArray[np.int64]:
    """Return the frame that each sample says it is of, for channel 0 of a stream; -1 for silence or nothing known."""
    known = {float(value): frame for frame, value in enumerate(tell(np.arange(most), stream, 1)[:, 0])}
    return np.array([known.get(float(value), -1) for value in sound], np.int64)


def steady(told: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """Return the longest run of frames that follow each other without one missing."""
    breaks = np.flatnonzero(np.diff(told) != 1) + 1
    return max(np.split(told, breaks), key=len)


def listen(session: Session, jack: peers.Jack, source: str, targets: list[str]) -> None:
    """Let sound go both ways for some seconds, and look at it: to the bit, frame by frame."""
    peers.wait_for(lambda: session.counts()["peer"], 30, "the program does not stream")
    ports = {"play": "audio out"} | {f"record_{number}": "audio in" for number, _ in enumerate(targets)}
    with peers.Client(jack, "ear", ports, Ear) as ear:
        jack.connect("ear:play", source)
        for number, target in enumerate(targets):
            jack.connect(target, f"ear:record_{number}")
        time.sleep(6)
        recorded = ear.do("result")
    counts = session.counts()
    played = steady(frames_told(recorded[:, 0], PLAYED, SECONDS * RATE))
    assert len(played) > 2 * RATE, (len(played), counts, jack.xruns)
    at = int(np.flatnonzero(frames_told(recorded[:, 0], PLAYED, SECONDS * RATE) == played[RATE])[0])
    assert np.array_equal(recorded[at : at + RATE], tell(np.arange(played[RATE], played[RATE] + RATE), PLAYED, 2))
    heard = steady(frames_told(np.concatenate(session.band.input)[:, 0], HEARD, SECONDS * RATE))
    assert len(heard) > 2 * RATE, (len(heard), counts, jack.xruns)
    assert counts["malformed"] == counts["refused"] == 0


@pytest.fixture
def jack(tmp_path: Path) -> Iterator[peers.Jack]:
    if reason := peers.missing("jack"):
        pytest.skip(reason)
    with peers.Jack(tmp_path) as server:
        yield server


def test_pure_data_streams_and_plays(jack: peers.Jack, tmp_path: Path) -> None:
    if reason := peers.missing("pd"):
        pytest.skip(reason)
    server = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    server.bind(("127.0.0.1", 0))
    with server, Session(server) as session:
        command = ["pd", "-nogui", "-noprefs", "-jack", "-nojackconnect", "-jackname", "pd", "-r", str(RATE),
                   "-audiobuf", "30", "-inchannels", "1", "-outchannels", "2",
                   "-send", f"sideman-port {session.port}", str(EXAMPLES / "puredata.pd")]  # fmt: skip
        with peers.running(command, tmp_path / "pd.log", jack.env, cwd=tmp_path):
            jack.wait_for_port("pd:output_2")
            listen(session, jack, "pd:input_1", ["pd:output_1", "pd:output_2"])


def test_supercollider_streams_and_plays(jack: peers.Jack, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if reason := peers.missing("scsynth", "sclang", "network"):
        pytest.skip(reason)
    with peers.Network() as network, network.socket() as server, Session(server) as session:
        monkeypatch.setenv("SIDEMAN_PORT", str(session.port))
        monkeypatch.setenv("SIDEMAN_SERVER_PORT", "57110")
        with (
            peers.scsynth(jack, tmp_path, network),
            peers.sclang(EXAMPLES / "supercollider.scd", jack, tmp_path, network),
        ):
            jack.wait_for_port("SuperCollider:out_2")
            listen(session, jack, "SuperCollider:in_1", ["SuperCollider:out_1", "SuperCollider:out_2"])
