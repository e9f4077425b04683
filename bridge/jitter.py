"""Live sound that came over a network: put in order, waited for as little as will do, made whole where it is lost.

Sound is placed by its frame and handed on as soon as what precedes it is there; so nothing is delayed while nothing
is missing. A block that is missing is waited for, and how long is measured: 99 of 100 blocks came within that time,
and a margin. Then something stands in for it, which continues what was heard and fades, and joins what comes next
without a click. What comes later is late: it has been replaced.

Everything here is plain arithmetic on times that are given: no clock, no socket.
"""

from __future__ import annotations

from collections import deque

import numpy as np
import numpy.typing as npt

from realtime.io import BlockClock
from realtime.protocols import Block
from realtime.stream import SECOND_NS

KEPT, LATE, TWICE, STRAY = "kept", "late", "twice", "stray"
"""What became of a block: it is waiting for its turn or had it; its place was taken by something else already; it
was there before; it belongs to another time altogether."""

SHARE_IN_TIME = 0.99
MARGIN_NS = 500_000
LEAST_WAIT_NS, FIRST_WAIT_NS, MOST_WAIT_NS = 2_000_000, 10_000_000, 200_000_000
"""Beyond the longest wait the engine takes silence for what is missing."""
STRAY_SECONDS = 1.0
"""A block further than this from where the sender's clock ought to be is not of this clock."""
ARRIVALS = 512
LOOK_EVERY = 16
MOST_WAITING, MOST_WAITING_SECONDS = 1024, 2.0
SEQUENCES = 4096

HOLD_SECONDS, FADE_SECONDS = 0.010, 0.030
"""What stands in for lost sound keeps its level for so long, and is silent after so much more."""
JOIN_SECONDS = 0.0025
ORDER = 32
HISTORY_FRAMES, HISTORY_SAMPLES = 1024, 8192
"""What a continuation is made from: so many frames, or fewer where many channels would take too long."""


class Wait:
    """How long to wait for a block, from how late blocks were.

    Attributes
    ----------
    wait_ns
        Time after a block is due at which it is given up.
    jitter_ns
        Within this time 99 of 100 blocks came, of the last 512.
    """

    def __init__(self) -> None:
        self._late_ns: deque[int] = deque(maxlen=ARRIVALS)
        self._seen = 0
        self.jitter_ns = 0
        self.wait_ns = FIRST_WAIT_NS

    def observe(self, late_ns: int) -> None:
        """Note how late a block was, in ns after the least late of late."""
        self._late_ns.append(max(0, late_ns))
        self._seen += 1
        if self._seen % LOOK_EVERY == 0 or late_ns > self.wait_ns:
            self._settle()

    def _settle(self) -> None:
        late_ns = sorted(self._late_ns)
        self.jitter_ns = late_ns[min(len(late_ns) - 1, int(SHARE_IN_TIME * len(late_ns)))]
        self.wait_ns = min(MOST_WAIT_NS, max(LEAST_WAIT_NS, self.jitter_ns + MARGIN_NS))


class JitterBuffer:
    """Puts blocks in order by frame; fills what is lost. One thread.

    Parameters
    ----------
    samplerate, channels, blocksize
        The sender's; a block has ``blocksize`` frames or fewer.
    frame
        The first frame handed on, by the sender's count.
    clock
        When a frame was due: fed by the owner with every arrival.

    Attributes
    ----------
    next
        Frame that is handed on next.
    wait
        How long a block is waited for.
    received, lost, late, twice, strays
        Blocks that came in their time; that were given up; that came after that, came twice, were of another time.
    concealed_frames, joined_frames
        Frames that were made up, and frames that were blended with these where nobody could know that they would
        come.
    """

    def __init__(self, samplerate: int, channels: int, blocksize: int, frame: int, clock: BlockClock) -> None:
        self.next = frame
        self.wait = Wait()
        self.received = self.lost = self.late = self.twice = self.strays = 0
        self.concealed_frames = self.joined_frames = 0
        self._rate, self._channels, self._blocksize, self._clock = samplerate, channels, blocksize, clock
        self._waiting: dict[int, Block] = {}  # by first frame
        self._most_waiting = max(16, min(MOST_WAITING, round(MOST_WAITING_SECONDS * samplerate) // blocksize))
        self._seen: dict[int, None] = {}  # sequences, the oldest first
        self._heard = np.zeros((_history(channels), channels), np.float32)
        self._filling: Continuation | None = None  # while what was handed on last was made up

    def put(self, sequence: int, frame: int, block: Block, time_ns: int) -> str:
        """Take a block that came at ``time_ns``; return what becomes of it: one of the four words."""
        late_ns = time_ns - self._clock.time_ns(frame + len(block))
        if abs(late_ns) > STRAY_SECONDS * SECOND_NS:
            self.strays += 1
            return STRAY
        if sequence in self._seen or frame in self._waiting:
            self.twice += 1
            return TWICE
        self._seen[sequence] = None
        if len(self._seen) > SEQUENCES:
            del self._seen[next(iter(self._seen))]
        self.wait.observe(late_ns)
        if frame + len(block) <= self.next:
            self.late += 1
            return LATE
        if len(self._waiting) >= self._most_waiting:
            self.strays += 1
            return STRAY
        self.received += 1
        self._waiting[frame] = block
        return KEPT

    def take(self, time_ns: int) -> Block | None:
        """Return what is to be handed on next, ``(frames, channels)`` from :attr:`next` on; ``None`` if that is to
        be waited for.
        """
        block = self._take_waiting()
        if block is None and self._given_up(time_ns):
            block = self._fill()
        if block is not None:
            self.next += len(block)
            self._remember(block)
        return block

    def _take_waiting(self) -> Block | None:
        """Return the block that comes next, if it is there; its beginning is joined to what was made up."""
        block = self._waiting.pop(self.next, None)
        if block is None:
            block = self._take_overlapping()
        if block is not None and self._filling is not None:
            block = self._join(self._filling, block)
            self._filling = None
        return block

    def _take_overlapping(self) -> Block | None:
        """Return the rest of a block that began before; what lies before altogether is let go."""
        for frame in [frame for frame in self._waiting if frame < self.next]:
            rest = self._waiting.pop(frame)[self.next - frame :]
            if len(rest):
                return rest
        return None

    def _given_up(self, time_ns: int) -> bool:
        """Whether the next block should have been here by now."""
        due = self._clock.time_ns(self.next + self._missing())
        return time_ns > due + self.wait.wait_ns

    def _missing(self) -> int:
        """Frames that are missing, a block at most."""
        ahead = min(self._waiting, default=self.next + self._blocksize) - self.next
        return min(ahead, self._blocksize)

    def _fill(self) -> Block:
        """Make up what is missing: continued from the left, and if what follows is there, from the right as well."""
        frames = self._missing()
        if self._filling is None:
            self._filling = Continuation(self._heard, self._rate)
        self.lost += 1
        self.concealed_frames += frames
        following = self._waiting.get(self.next + frames)
        if following is None:
            return self._filling.go_on(frames)
        filled = self._filling.go_over(frames, following)
        self._filling = None
        return filled

    def _join(self, filling: Continuation, block: Block) -> Block:
        """Blend the beginning of a block with how what was made up would have gone on."""
        frames = min(len(block), round(JOIN_SECONDS * self._rate))
        joined = block.copy()
        rise = _rise(frames)
        joined[:frames] = filling.go_on(frames) * (1 - rise) + block[:frames] * rise
        self.joined_frames += frames
        return joined

    def _remember(self, block: Block) -> None:
        kept = len(self._heard)
        if len(block) >= kept:
            self._heard[:] = block[-kept:]
        else:
            self._heard[: kept - len(block)] = self._heard[len(block) :]
            self._heard[kept - len(block) :] = block


class Continuation:
    """How sound would have gone on: predicted from what was heard, at its level for a while, then fading.

    A linear prediction of order 32 from the last 20 ms by Burg's method, whose filters are stable; so tones go on as
    tones, and noise dies away. Source: I. Kauppinen, K. Roth, "Audio signal extrapolation: theory and applications",
    DAFx 2002.

    Parameters
    ----------
    heard
        ``(frames, channels)``, the last of it last.
    samplerate
        Hz.
    """

    def __init__(self, heard: Block, samplerate: int) -> None:
        past = np.nan_to_num(heard.astype(np.float64), nan=0.0, posinf=0.0, neginf=0.0)
        self._coefficients = _burg(past, min(ORDER, len(past) // 3))
        self._order = len(self._coefficients)
        self._limit = 1.5 * np.abs(past).max(axis=0)
        self._state = past[-self._order :]
        self._hold, self._fade = round(HOLD_SECONDS * samplerate), round(FADE_SECONDS * samplerate)
        self._made = 0

    def go_on(self, frames: int) -> Block:
        """Return the next ``(frames, channels)``."""
        return (self._predict(frames) * self._level(frames)).astype(np.float32)

    def go_over(self, frames: int, following: Block) -> Block:
        """Return the next ``(frames, channels)``, which ``following`` follows; that is not touched.

        What stands there is continued backwards with the same coefficients, as a stationary sound has one spectrum
        in both directions, and the two are crossfaded.
        """
        seed = np.nan_to_num(following[: self._order][::-1].astype(np.float64), nan=0.0, posinf=0.0, neginf=0.0)
        if len(seed) < self._order:  # too little to know its direction: held
            seed = np.concatenate([np.repeat(seed[:1], self._order - len(seed), axis=0), seed])
        limit = np.maximum(self._limit, 1.5 * np.abs(seed).max(axis=0))
        back = _predict(self._coefficients, seed, frames, limit)[::-1]
        rise = _rise(frames)
        ahead = self._predict(frames) * self._level(frames)
        return (ahead * (1 - rise) + back * rise).astype(np.float32)

    def _predict(self, frames: int) -> npt.NDArray[np.float64]:
        if self._made >= self._hold + self._fade:
            return np.zeros((frames, self._state.shape[1]))
        made = _predict(self._coefficients, self._state, frames, self._limit)
        self._state = np.concatenate([self._state, made])[-self._order :]
        return made

    def _level(self, frames: int) -> npt.NDArray[np.float64]:
        """Return the gain over the next frames."""
        at = np.arange(self._made, self._made + frames) - self._hold
        self._made += frames
        gain: npt.NDArray[np.float64] = 0.5 + 0.5 * np.cos(np.pi * np.clip(at / self._fade, 0.0, 1.0))
        return gain[:, None]


def _history(channels: int) -> int:
    return max(4 * ORDER, min(HISTORY_FRAMES, HISTORY_SAMPLES // channels))


def _rise(frames: int) -> npt.NDArray[np.float64]:
    """A raised cosine from 0 to 1 over so many frames, neither end included."""
    gain: npt.NDArray[np.float64] = 0.5 - 0.5 * np.cos(np.pi * (np.arange(frames) + 1) / (frames + 1))
    return gain[:, None]


def _burg(past: npt.NDArray[np.float64], order: int) -> npt.NDArray[np.float64]:
    """Return the coefficients that predict a frame from the ``order`` before it, the oldest first, per channel.

    Source: J. P. Burg, "Maximum entropy spectral analysis", 1975.
    """
    forward, backward = past[1:], past[:-1]
    polynomial = np.zeros((order + 1, past.shape[1]))
    polynomial[0] = 1
    for stage in range(1, order + 1):
        energy = (forward * forward + backward * backward).sum(axis=0)
        both = (forward * backward).sum(axis=0)
        reflection = np.where(energy > 1e-12, -2 * both / np.maximum(energy, 1e-12), 0.0)
        polynomial[1 : stage + 1] += reflection * polynomial[:stage][::-1]
        forward, backward = (forward + reflection * backward)[1:], (backward + reflection * forward)[:-1]
    predictor: npt.NDArray[np.float64] = -polynomial[1:][::-1]
    return predictor


def _predict(
    coefficients: npt.NDArray[np.float64], state: npt.NDArray[np.float64], frames: int, limit: npt.NDArray[np.float64]
) -> npt.NDArray[np.float64]:
    order = len(coefficients)
    sound = np.concatenate([state, np.zeros((frames, state.shape[1]))])
    for at in range(frames):
        sound[order + at] = np.einsum("pc,pc->c", coefficients, sound[at : at + order])
    made: npt.NDArray[np.float64] = np.clip(sound[order:], -limit, limit)
    return made
