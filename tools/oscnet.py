"""Audio over OSC on a bad network, in virtual time: a band, a peer, and what lies between them.

The loop of the process, the engine's stream and the peer's protocol are those of a session; only sockets and the
clock are not. What the network does to packets is drawn from a seed, so a figure is the same every time.
"""

from __future__ import annotations

import heapq
import random
import time
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from bridge.audiopackets import IN, pack_audio, unpack
from bridge.oscaudio import OscAudioLoop, layout
from bridge.oscclient import Client
from bridge.oscpeer import Address, OscAudioConfig
from realtime import io
from realtime.buffers import Arena, ring_layout, stems_layout
from realtime.protocols import Block, StreamSpec
from realtime.stream import SECOND_NS, DeviceStream

MS = 1_000_000
SESSION, PEER = ("127.0.0.1", 9000), ("127.0.0.1", 5000)
WARM_UP_BLOCKS = 200
"""After so many the wait has been measured."""
Signal = Callable[[np.ndarray], np.ndarray]


@dataclass
class Network:
    """What happens to packets, each way: shares of them, and times in ns.

    Attributes
    ----------
    loss, reorder, duplicate, replay, damage
        Packets that are lost; that come after the next one; that come twice; that come again much later; that come
        again cut short.
    delay_ns, jitter_ns
        The least they take, and up to how much more.
    hold_ns
        How much later one comes that is overtaken.
    """

    loss: float = 0.05
    reorder: float = 0.05
    duplicate: float = 0.02
    replay: float = 0.01
    damage: float = 0.01
    delay_ns: int = 200_000
    jitter_ns: int = 3 * MS
    hold_ns: int = 3 * MS
    seed: int = 1
    lost: int = 0
    sent: int = 0
    _ways: list[tuple[int, int, bytes, Address]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._chance = random.Random(self.seed)

    def send(self, packet: bytes, to: Address, now_ns: int) -> None:
        """Put a packet on its way."""
        self.sent += 1
        chance = self._chance.random
        if chance() < self.loss:
            self.lost += 1
            return
        held = self.hold_ns if chance() < self.reorder else 0
        self._put(packet, to, now_ns + held)
        if chance() < self.duplicate:
            self._put(packet, to, now_ns)
        if chance() < self.replay:
            self._put(packet, to, now_ns + round(2 * SECOND_NS * chance()))
        if chance() < self.damage:
            self._put(packet[: int(len(packet) * chance())], to, now_ns)

    def arrived(self, now_ns: int) -> list[tuple[bytes, Address]]:
        """Return what has come by now, in order."""
        found = []
        while self._ways and self._ways[0][0] <= now_ns:
            _, _, packet, to = heapq.heappop(self._ways)
            found.append((packet, to))
        return found

    def _put(self, packet: bytes, to: Address, now_ns: int) -> None:
        takes_ns = self.delay_ns + round(self.jitter_ns * self._chance.random())
        heapq.heappush(self._ways, (now_ns + takes_ns, self._chance.getrandbits(62), packet, to))


def tell(frames: np.ndarray, stream: int, channels: int) -> Block:
    """Return sound that says which frame, channel and stream it is of, exactly."""
    told = frames[:, None] * 7919 + stream * 104_729 + np.arange(channels)[None] * 1_299_709
    sound = (told & 0xFFFFF).astype(np.float32) / np.float32(1 << 20)
    sound[frames < 0] = 0
    return sound


class Band:
    """A process that plays what tells its frame, on the rings of an engine, and keeps what it hears."""

    def __init__(self, arena: Arena, stems: tuple[tuple[str, int], ...], outputs: int, end: int) -> None:
        self.heard = self.mixed = 0
        self.played = -1
        self.stopped = False
        self.input: list[Block] = []
        self._end, self._stems, self._outputs = end, stems, outputs
        self._mix, self._band = arena.ring("mix"), arena.stems("stem")

    def hear(self, block: Block) -> None:
        """Keep it."""
        self.input.append(block.copy())
        self.heard += len(block)

    def mix(self, frames: int) -> Block:
        """Play."""
        start, self.mixed = self.mixed, self.mixed + frames
        count = np.arange(start, self.mixed)
        self._band.begin(self.mixed)
        for stream, ((_, channels), place) in enumerate(zip(self._stems, self._band.lanes(), strict=True)):
            sound = tell(count, stream + 1, channels)
            for begin in range(0, frames, 1 << 12):
                part = sound[begin : begin + (1 << 12)]
                at = (start + begin) % self._band.capacity
                run = min(len(part), self._band.capacity - at)
                wide = place.dtype == np.complex64
                flat = np.ascontiguousarray(part).view(np.complex64)[:, 0] if wide else part[:, 0]
                place[at : at + run], place[: len(part) - run] = flat[:run], flat[run:]
        self._band.finish(self.mixed)
        mix = tell(count, 0, self._outputs)
        self._mix.write(start, mix)
        self.stopped = self.mixed >= self._end
        return mix


class Rig:
    """A session over OSC in virtual time.

    Parameters
    ----------
    network
        Between session and peer; by default a bad one.
    spec, stems, want, delay, form
        The stream, the band, and what the peer asks for.
    signal
        What the peer hears: a function of its frames.
    drift_ppm
        How much faster than the wall clock the peer's count runs.

    Attributes
    ----------
    arena, loop, client, network
        The parts.
    now_ns
        Virtual time.
    missing, wrong
        Frames that lacked when the peer played them, and that were not what the band had played; of all streams.
    played
        Frames that the peer played of each stream, from the first that was to come on.
    waits_ns
        For each block of the peer: from its end to where the engine could hear it.
    silent_from_ns, silent_to_ns
        Between these the peer sends no sound: its program stands still.
    jump
        The peer's count jumps so far when it comes to ``jump_at``.
    """

    def __init__(
        self,
        network: Network | None = None,
        *,
        spec: StreamSpec | None = None,
        stems: tuple[tuple[str, int], ...] = (("bass", 1), ("keys", 2)),
        want: str = "all",
        delay: int = 12_000,
        form: str = "blob",
        blocksize: int = 128,
        signal: Signal | None = None,
        drift_ppm: float = 40.0,
    ) -> None:
        self.spec = spec or StreamSpec(48_000, inputs=1, outputs=2, blocksize=128, lead=1024)
        self.stems, frames = stems, 20 * self.spec.samplerate
        self.arena = Arena.create(
            {
                **io.layout(self.spec),
                **layout(),
                **ring_layout("mix", frames, self.spec.outputs),
                **stems_layout("stem", frames, dict(stems)),
            }
        )
        self.network = network or Network(hold_ns=(blocksize * SECOND_NS // self.spec.samplerate) * 5 // 4)
        self.now_ns = 7 * SECOND_NS
        self.config = OscAudioConfig(self.spec, stems)
        self.loop = self.new_loop()
        self.client = Client(
            self.spec.samplerate, self.spec.inputs, blocksize, want=want, delay=delay, form=form, id=1234
        )
        self.missing = self.wrong = self.played = 0
        self.waits_ns: list[int] = []
        self.texts: list[str] = []
        self.silent_from_ns = self.silent_to_ns = -1
        self.io_holds: list[tuple[int, int]] = []
        self.jump, self.jump_at = 0, 1 << 62
        self._signal = signal or (lambda frames: np.zeros(len(frames)))
        self._rate = self.spec.samplerate * (1 + drift_ppm * 1e-6)
        self._begun_ns = self.now_ns
        self._blocks = 0
        self._pending: list[tuple[int, int]] = []  # end of a block of the peer, and when that was

    def __enter__(self) -> Rig:
        return self

    def __exit__(self, *error: object) -> None:
        self.loop.close()
        self.arena.close()
        self.arena.unlink()

    def new_loop(self) -> OscAudioLoop:
        """Return the loop of a process that has just begun."""
        return OscAudioLoop(self.config, self.arena, self._to_peer, self.now_ns)

    def seconds(self) -> float:
        """Return the time since the beginning."""
        return (self.now_ns - self._begun_ns) / SECOND_NS

    def play(self, seconds: float) -> Band:
        """Let a band play so long."""
        band = Band(self.arena, self.stems, self.spec.outputs, round(seconds * self.spec.samplerate))
        stream = DeviceStream(self.spec, self.arena, lambda: self.now_ns, self._sleep)
        stream.run(band)
        self._sleep(0.3)
        return band

    def tick(self) -> None:
        """Let a millisecond pass."""
        self.now_ns += MS
        self._stream()
        for packet in self.client.due(self.now_ns):
            self.network.send(packet, SESSION, self.now_ns)
        held = any(start <= self.now_ns < end for start, end in self.io_holds)
        if not held:
            for packet, to in self.network.arrived(self.now_ns):
                if to == SESSION:
                    self.loop.take(packet, PEER, self.now_ns)
                else:
                    self.client.take(packet, self.now_ns)
            self.loop.turn(self.now_ns)
        self._look()
        while (text := self.arena.records("io.text").take()) is not None:
            self.texts.append(text.decode())

    def status(self) -> dict[str, int]:
        """Return what is told of devices."""
        return self.arena.status("io.status").read()

    def counts(self) -> dict[str, int]:
        """Return what is told of audio over OSC."""
        return self.arena.status("oscaudio.status").read()

    def _sleep(self, seconds: float) -> None:
        for _ in range(max(1, round(1000 * seconds))):
            self.tick()

    def _to_peer(self, packet: bytes, to: Address) -> None:
        self.network.send(packet, to, self.now_ns)

    def _stream(self) -> None:
        """Be the peer's sound card: call for each block that has passed."""
        n = self.client.blocksize
        while (self._blocks + 1) * n <= (self.now_ns - self._begun_ns) * self._rate / SECOND_NS:
            self._blocks += 1
            frame = self.client.frame
            if frame >= self.jump_at:
                self.client.skip(self.jump // n)
                frame = self.client.frame
                self.jump_at = 1 << 62
            self._check(frame, n)
            block = self._signal(np.arange(frame, frame + n)).astype(np.float32)[:, None]
            packet = self.client.send(np.repeat(block, self.spec.inputs, axis=1))
            if packet is not None and not self.silent_from_ns <= self.now_ns < self.silent_to_ns:
                self.network.send(packet, SESSION, self.now_ns)
                self._pending.append((frame + n, self.now_ns))

    def _check(self, frame: int, frames: int) -> None:
        """Play what is due, and look whether it is what the band has played."""
        start = self.client.start
        for name, (sound, lacking) in self.client.receive(frame, frames).items():
            inbox = next(inbox for inbox in self.client.inboxes.values() if inbox.name == name)
            if start is None or frame < inbox.first * frames:
                continue
            there = np.arange(frame, frame + frames) - start[0] + start[1]
            if there[-1] >= self.arena.status("stream.status").read()["mixed"]:
                continue
            stream = 0 if name == "mix" else 1 + [stem for stem, _ in self.stems].index(name)
            self.missing += lacking
            self.played += frames
            if not lacking:
                wanted = tell(there, stream, sound.shape[1])
                self.wrong += int(np.count_nonzero((sound != wanted).any(axis=1)))

    def _look(self) -> None:
        """Note which blocks can be heard by now."""
        start = self.client.start
        if start is None:
            return
        whole = self.arena.ring("io.input").written + self.spec.latency
        while self._pending and self._pending[0][0] - start[0] + start[1] <= whole:
            _, then_ns = self._pending.pop(0)
            self.waits_ns.append(self.now_ns - then_ns)


# ---- figures ---------------------------------------------------------------------------------------------------


def stems_whole(seconds: float = 60.0, network: Network | None = None, delay: int = 12_000) -> dict[str, float]:
    """Return what became of the stems on a bad network: frames that lacked when they were due or were wrong."""
    with Rig(network, delay=delay) as rig:
        rig.play(seconds)
        counts = rig.counts()
        return {
            "frames": rig.played,
            "missing_frames": rig.missing,
            "wrong_frames": rig.wrong,
            "resent_percent": round(100 * counts["resent"] / max(1, counts["sent"]), 2),
            "given_up": counts["given_up"],
            "lost_percent": round(100 * rig.network.lost / rig.network.sent, 2),
        }


def live_input(seconds: float = 60.0, network: Network | None = None, blocksize: int = 128) -> dict[str, float]:
    """Return how late live input is heard on a bad network, in blocks beyond its jitter, and how smooth it stays.

    ``roughness`` is the largest second difference of what was heard, by that of what was played: 1 is no click.
    """

    def tones(frames: np.ndarray) -> np.ndarray:
        return sum(0.2 * np.sin(2 * np.pi * hz * frames / 48_000) for hz in (196.0, 246.9, 1174.7))  # type: ignore

    with Rig(network, signal=tones, blocksize=blocksize) as rig:
        band = rig.play(seconds)
        counts, net, rate = rig.counts(), rig.network, rig.spec.samplerate
    block_ns = blocksize * SECOND_NS / rate
    added = (np.array(rig.waits_ns[WARM_UP_BLOCKS:]) - net.delay_ns - net.jitter_ns) / block_ns
    heard = np.concatenate(band.input)[rate : -rate // 2, 0].astype(np.float64)
    return {
        "blocks": len(added),
        "added_blocks_worst": round(float(added.max()), 2),
        "added_blocks_p99": round(float(np.quantile(added, 0.99)), 2),
        "lost_percent": round(100 * counts["lost"] / max(1, counts["lost"] + counts["received"]), 2),
        "concealed_frames": counts["concealed_frames"],
        "wait_ms": round(1000 * counts["wait_frames"] / rate, 2),
        "roughness": round(float(_bend(heard) / _bend(tones(np.arange(4800)))), 3),
    }


def _bend(sound: np.ndarray) -> float:
    """Return the largest second difference."""
    return float(np.abs(np.diff(sound, 2)).max())


def codec_microseconds(frames: int = 128, channels: int = 2, times: int = 5000) -> dict[str, float]:
    """Return what a block costs on the wire's edge: packing and unpacking."""
    block = np.zeros((frames, channels), np.float32)
    packet = pack_audio(IN, 1, 2, 3, block)
    figures = {}
    for name, work in (("pack", lambda: pack_audio(IN, 1, 2, 3, block)), ("unpack", lambda: unpack(packet))):
        begun = time.perf_counter()
        for _ in range(times):
            work()
        figures[f"{name}_us"] = round(1e6 * (time.perf_counter() - begun) / times, 2)
    return figures
