"""Other clocks (a computer's, a DAW's, a device's) as frames: one estimator that jitter does not shake.

Two crystals are never alike: 50 ppm apart they part by four seconds a day, which is 200,000 frames. What arrives
from another clock arrives late, by a little mostly and by a lot now and then, never early. So the least late of each
second is believed (the lower envelope), and a slow second-order loop follows it.
"""

from __future__ import annotations

import math

SECOND_NS = 10**9
WINDOW_SECONDS = 1.0
BANDWIDTH_HZ = 0.03
FASTEST_DRIFT = 1000e-6
"""No clock worth following is further off its nominal rate than this."""
WANDER = 20e-6
"""How far a rate that is known may be off after a while without news."""
PLAUSIBLE_SECONDS = 0.005
"""An observation further off than this says nothing about the drift: it was held up, or a clock has been set."""
TRUSTED_SECONDS = 50e-6
"""A window further off than this says where to go, not how far: only so much of it is taken at once."""
SLEW, GAP_SLEW, LOCKING_SLEW = 100e-6, 1000e-6, 0.5
"""Fastest correction, as a part of the rate (0.17 cent); after a gap (1.7 cents); and before it is locked."""
LOCKED_WINDOWS = 4
EARLY_WINDOWS, LATE_WINDOWS = 3, 10
"""Windows in which all is implausible and in agreement, until a clock is held to have been set: nothing arrives
before its time, so early ones need fewer; late ones may only be a jam."""
AGREEMENT_SECONDS = 0.001
LEAST_OBSERVED = 4
GAP_WINDOWS = 4
_LARGEST = 2**62


class HostClock:
    """Turns a host's time into frames of another clock, and back, from late observations. One thread.

    An observation is a pair: at host time ``host_ns`` somebody saw that the clock was at ``frame``. It was at that
    frame a little earlier, mostly by microseconds, now and then by seconds. The clock itself is a crystal: its rate
    is nominal but for some 100 ppm, and wanders.

    What it does, for each window of a second:

    1. *Lower envelope.* Of the window's observations the least late one counts: its residual
       ``e = frame estimated at host_ns - frame`` is the smallest. Lateness has a long tail and a hard lower edge;
       the edge of 300 observations with exponential lateness of 30 us is 0.1 us wide.
    2. *A second-order loop* (a delay-locked loop; F. Adriaensen, "Using a DLL to filter time", Linux Audio Conference
       2005) of natural frequency ``omega = 2 pi 0.03 Hz`` and damping 0.7, over windows of ``T``::

           frame <- frame - alpha e                alpha = sqrt(2) omega T
           rate  <- rate  - beta e / T             beta  = (omega T)^2

       It starts as a least-squares line through all windows so far, with ``alpha = 2 (2n - 1) / (n (n + 1))`` and
       ``beta = 6 / (n (n + 1))`` in window n (the growing-memory filter), until these have fallen to the loop's own.
    3. *No jumps.* ``alpha e`` is worked off evenly over the following window. So the estimate is continuous and
       strictly rising, and without news it goes on at the last rate for as long as it must.

    What it answers to faults:

    * *Late observations*, by 5 ms to ever: not used, counted in ``outliers``. A window that is off by 50 us to 5 ms
      is followed, but only 50 us of it at first, then twice as much each time as long as that goes on, at most at
      100 ppm (0.17 cent), and without a change of rate as long as the distance shrinks. So a change of the constant
      part of the lateness, which nobody can tell from a shift of the clock, is followed without being heard.
    * *Gaps*: it goes on at the last rate. After more than four windows the loop opens again, for the drift meanwhile.
    * *A clock that is set* (NTP, a suspended laptop, a counter that starts anew): all that comes is implausible. When
      it has agreed with itself for 3 windows (early) or 10 (late), the estimate leaps there: ``relocks`` is counted,
      ``leap_frames`` says how far. Nothing is slewed over such a distance. Until then it goes on at the last rate,
      and ``doubts`` counts the windows: if it is the host's time that leapt, what it says of *now* has leapt with it.
      So whoever places sound by it counts on alone while there are doubts, and when ``relocks`` has grown takes up
      the new place at a bar line.
    * *What is no observation* (NaN, not a number, backwards, twice the same): counted in ``ignored``.

    Lock-in: until the end of the first window, a second after the first observation, the estimate is provisional: the
    first observation and the nominal rate. From then on it is continuous, and from the end of the fourth window
    (:attr:`locked`) it is within a frame, for a clock up to 500 ppm off (1,000 are followed) and lateness as above.

    Positions are kept as an integer host time, an integer frame, and a fraction of a frame counted from there, anew
    for each window: nothing is added up over hours but integers. An observation costs about a microsecond and
    allocates nothing that stays.

    Parameters
    ----------
    samplerate
        The clock's nominal rate in frames per second; 10**9 where the clock counts nanoseconds.
    window_seconds, bandwidth_hz
        Of envelope and loop. Where observations are fewer than four in a window, windows are longer.

    Attributes
    ----------
    locked
        Whether phase and rate are known. Stays so through gaps, not through a relock.
    relocks, leap_frames
        Leaps of the estimate, and the length of the last one.
    doubts
        Windows in a row that have brought something, but nothing plausible.
    outliers, ignored
        Observations that were implausible, and what was none.
    """

    def __init__(
        self, samplerate: int, window_seconds: float = WINDOW_SECONDS, bandwidth_hz: float = BANDWIDTH_HZ
    ) -> None:
        if not (samplerate > 0 and 0.01 <= window_seconds <= 60 and 0 < bandwidth_hz * window_seconds <= 0.05):
            raise ValueError(
                f"samplerate={samplerate}, window_seconds={window_seconds}, bandwidth_hz={bandwidth_hz}: a clock has "
                "a positive rate, a window 0.01 to 60 seconds, and a loop is slower than a twentieth of its windows"
            )
        self.locked = False
        self.relocks = self.outliers = self.ignored = self.doubts = 0
        self.leap_frames = 0.0
        self._samplerate = samplerate
        self._nominal = self._rate = samplerate / SECOND_NS  # frames per ns
        self._window_ns = round(window_seconds * SECOND_NS)
        self._gains = _gains(2 * math.pi * bandwidth_hz * window_seconds)
        # The estimate: the frame at _ns is _frame + _fraction; _pull frames are taken back over the next window.
        self._ns = self._frame = 0
        self._fraction = self._pull = 0.0
        self._count = -1  # windows the line goes through, -1 before the first observation
        self._updated_ns: int | None = None  # host time of the observation that counted last
        self._error = 0.0  # the last window's
        self._far = 0  # windows in a row that were off by more than is trusted, negative if early
        self._last_ns = self._last_frame = 0  # the last observation
        self._seen = self._until_ns = self._gap_ns = 0  # the window: what was seen, when it ends, and at the latest
        self._plausible = math.inf
        self._lowest = self._other = math.inf  # least residual of what is plausible, and of the rest
        self._lowest_ns = self._other_ns = 0
        self._other_before, self._agreed = 0.0, 0  # windows in a row of which nothing was plausible, in agreement
        self._open(0)

    @property
    def drift_ppm(self) -> float:
        """How much faster than nominal the clock is held to run, in parts per million."""
        return (self._rate / self._nominal - 1) * 1e6

    def observe(self, host_ns: int, frame: int) -> None:
        """Take in that the clock was seen at ``frame`` at host time ``host_ns``."""
        if host_ns.__class__ is not int or frame.__class__ is not int or self._count < 0:
            self._observe_odd(host_ns, frame)
            return
        if not (self._last_ns < host_ns < _LARGEST and self._last_frame <= frame < _LARGEST):
            self._back(host_ns, frame)
            return
        self._last_ns, self._last_frame = host_ns, frame
        if host_ns >= self._until_ns and (self._seen >= LEAST_OBSERVED or host_ns >= self._gap_ns):
            self._close(host_ns)
        self._seen += 1
        elapsed = host_ns - self._ns
        pulled = elapsed / self._window_ns
        if pulled > 1.0:
            pulled = 1.0
        elif pulled < 0.0:
            pulled = 0.0
        ahead = self._frame - frame + self._fraction + elapsed * self._rate - self._pull * pulled
        if -self._plausible < ahead < self._plausible:
            if ahead < self._lowest:
                self._lowest, self._lowest_ns = ahead, host_ns
        else:
            self.outliers += 1
            if ahead < self._other:
                self._other, self._other_ns = ahead, host_ns

    def relock(self) -> None:
        """Begin anew with the next observation, at the last rate: the caller knows that the clock is another one."""
        self._count, self.locked = -1, False

    def position(self, host_ns: int) -> tuple[int, float]:
        """Return the frame at a host time, and the fraction of one (0 <= fraction < 1) beyond it.

        Before :attr:`locked` it is provisional; before the first observation it counts from host time 0. What is said
        of a time to come may be corrected when that time comes, by less than its distance times the change of rate.
        """
        elapsed = host_ns - self._ns
        pulled = min(max(elapsed / self._window_ns, 0.0), 1.0)
        frames = self._fraction + elapsed * self._rate - self._pull * pulled
        whole = math.floor(frames)
        return self._frame + whole, frames - whole

    def frame_at(self, host_ns: int) -> int:
        """Return the frame nearest to a host time."""
        frame, fraction = self.position(host_ns)
        return frame + (fraction >= 0.5)

    def host_ns_at(self, frame: int) -> int:
        """Return the host time of a frame, to the nanosecond."""
        frames = frame - self._frame - self._fraction
        if frames <= 0:
            return self._ns + round(frames / self._rate)
        pulling = self._rate - self._pull / self._window_ns
        if frames < pulling * self._window_ns:
            return self._ns + round(frames / pulling)
        return self._ns + round((frames + self._pull) / self._rate)

    # Observations that are not the next one

    def _observe_odd(self, host_ns: object, frame: object) -> None:
        """Take the first observation, and any whose numbers are not plain integers."""
        host, at = _whole(host_ns), _whole(frame)
        if host is None or at is None:
            self.ignored += 1
        elif self._count >= 0:
            self.observe(host, at)
        else:
            self._begin(host, at)

    def _begin(self, host_ns: int, frame: int) -> None:
        """Take the first observation, of all or after :meth:`relock`."""
        if self._updated_ns is not None:
            expected, fraction = self.position(host_ns)
            self.relocks, self.leap_frames = self.relocks + 1, frame - expected - fraction
        self._last_ns, self._last_frame = host_ns, frame
        self._ns, self._frame, self._fraction, self._pull = host_ns, frame, 0.0, 0.0
        self._count = self._far = self._agreed = self.doubts = 0
        self._updated_ns, self._error = host_ns, 0.0
        self._open(host_ns)
        self._seen, self._lowest, self._lowest_ns = 1, 0.0, host_ns

    def _back(self, host_ns: int, frame: int) -> None:
        """Ignore what goes backwards, or is the same again. If what follows goes on from there, a clock was set."""
        self.ignored += 1
        if -_LARGEST < host_ns < _LARGEST and -_LARGEST < frame < _LARGEST:
            if host_ns < self._last_ns:
                self._until_ns = min(self._until_ns, host_ns + self._window_ns)
                self._gap_ns = self._until_ns + GAP_WINDOWS * self._window_ns
            self._last_ns, self._last_frame = host_ns, frame

    # A window

    def _open(self, host_ns: int) -> None:
        """Begin a window."""
        self._seen = 0
        self._lowest = self._other = math.inf
        self._lowest_ns = self._other_ns = host_ns
        self._until_ns = host_ns + self._window_ns
        self._gap_ns = self._until_ns + GAP_WINDOWS * self._window_ns
        since_ns = max(0, host_ns - (self._updated_ns or 0)) + 2 * self._window_ns
        self._plausible = self._reach(PLAUSIBLE_SECONDS, since_ns) if self._count > 0 else math.inf

    def _reach(self, seconds: float, since_ns: int) -> float:
        """Return a distance in frames, widened for what the clock may have drifted in a time."""
        drift = WANDER if self.locked else FASTEST_DRIFT
        return self._samplerate * (seconds + drift * since_ns / SECOND_NS)

    def _close(self, host_ns: int) -> None:
        """End a window at ``host_ns``, the first time after it, and begin the next."""
        frame, fraction = self.position(host_ns)
        if self._lowest < math.inf:
            self._agreed, self.doubts, leap = 0, 0, 0.0
            pull = self._correct(host_ns)
            if self._count == 1:  # the first window: the line begins
                leap, pull = -pull, 0.0
        else:
            leap, pull = self._doubt(), 0.0
        leap += fraction
        whole = math.floor(leap)
        self._ns, self._frame, self._fraction, self._pull = host_ns, frame + whole, leap - whole, pull
        self._open(host_ns)

    def _correct(self, host_ns: int) -> float:
        """Turn the rate after the lowest residual of a window; return how many frames to pull the estimate back."""
        at = self._lowest_ns
        since_ns = max(at - (self._updated_ns or 0), self._window_ns // 2)
        gap = since_ns > GAP_WINDOWS * self._window_ns and self._seen >= LEAST_OBSERVED
        self._count = min(self._count, 1) + 1 if gap else min(self._count + 1, len(self._gains) - 1)
        left = self._pull * (1 - min(max(0, at - self._ns) / self._window_ns, 1.0))
        error = self._lowest - left
        believed, trusted = self._believed(error, self._reach(TRUSTED_SECONDS, since_ns))
        alpha, beta = self._gains[self._count]
        turn = beta * trusted / since_ns
        if self._far and abs(error) < abs(self._error):
            turn = 0.0  # it is getting there, so the rate is right
        turned = min(max(self._rate - turn, self._nominal * (1 - FASTEST_DRIFT)), self._nominal * (1 + FASTEST_DRIFT))
        turn, self._rate = self._rate - turned, turned
        self._updated_ns, self._error = at, error
        slew = LOCKING_SLEW
        if self.locked:
            slew = SLEW if self._count == len(self._gains) - 1 else GAP_SLEW
        self.locked = self.locked or self._count >= LOCKED_WINDOWS
        pull = alpha * believed + turn * min(max(0, host_ns - at), 2 * self._window_ns)
        if self._count == 1:
            return pull
        most = slew * self._nominal * self._window_ns
        return min(max(pull, -most), most)

    def _believed(self, error: float, trusted: float) -> tuple[float, float]:
        """Return how much of a window's error is worked off now, and how much of it may turn the rate."""
        if not self.locked or -trusted <= error <= trusted:
            self._far = 0
            return error, error
        way = 1 if error > 0 else -1
        self._far = self._far + way if self._far * way > 0 else way
        most = trusted * 2 ** min(abs(self._far) - 1, 8)
        return min(max(error, -most), most), way * trusted

    def _doubt(self) -> float:
        """Judge a window without a plausible observation; return how many frames to leap."""
        self.doubts += 1
        other = self._other
        far = abs(other - self._other_before)
        agrees = far <= self._samplerate * (AGREEMENT_SECONDS + FASTEST_DRIFT * self._window_ns / SECOND_NS)
        self._agreed = self._agreed + 1 if self._agreed and agrees else 1
        self._other_before = other
        if self._agreed < (EARLY_WINDOWS if other < 0 else LATE_WINDOWS):
            return 0.0
        self.relocks += 1
        self.leap_frames = -other
        self._count, self._agreed, self._far, self.doubts, self.locked = 1, 0, 0, 0, False
        self._updated_ns, self._error = self._other_ns, 0.0
        return -other


def aligned_frame(clock: HostClock, frame: int, other: HostClock) -> int:
    """Return the frame of ``other`` when ``clock`` is at ``frame``; both were observed in one host's time."""
    return other.frame_at(clock.host_ns_at(frame))


def _gains(omega: float) -> list[tuple[float, float]]:
    """Return the gains of window 1, 2, ... of a line (index 0 is unused); the last ones are the loop's own."""
    alpha, beta = math.sqrt(2) * omega, omega * omega
    gains = [(1.0, 0.0), (1.0, 0.0), (1.0, 1.0)]
    while gains[-1][1] > beta:
        n = len(gains)
        gains.append((max(alpha, 2 * (2 * n - 1) / (n * (n + 1))), max(beta, 6 / (n * (n + 1)))))
    gains[-1] = (alpha, beta)
    return gains


def _whole(number: object) -> int | None:
    """Return what is a number, and finite, as an integer; else None."""
    try:
        whole = int(number)  # type: ignore[call-overload]
    except (TypeError, ValueError, OverflowError):
        return None
    return whole if -_LARGEST < whole < _LARGEST and not isinstance(number, (str, bytes, bool)) else None
