"""Sound devices: which there are, which one is meant by a name, and one opened with rtmixer.

A device that was named is never replaced by another one. Nothing here knows of the session's clock: that is
:mod:`realtime.io`.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import threading
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from realtime.protocols import Block, StreamSpec

_SETTLE_TURNS = 3
_RING_FRAMES = 1 << 15  # room in a device's own ring beyond what is mixed ahead: some take thousands at a time
_ALSA_NUMBERS = re.compile(r"\s*\(hw:\d+,\d+\)")


@dataclass(frozen=True, slots=True)
class IoConfig:
    """Which device, and how its channels are used.

    Attributes
    ----------
    spec
        The session's stream.
    device
        Name of the device, as :func:`list_devices` gives it; a part is enough if only one device has it, and
        ``"name, host API"`` tells two of the same name apart. ``""`` is the system's default.
    input_device
        Name of the device to record from, where it is another one.
    input_channels, output_channels
        Channels of the device, from 1; by default the first ones. Their number is that of the spec.
    """

    spec: StreamSpec
    device: str = ""
    input_device: str = ""
    input_channels: tuple[int, ...] = ()
    output_channels: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        for kind, channels, count in (
            ("input", self.input_channels, self.spec.inputs),
            ("output", self.output_channels, self.spec.outputs),
        ):
            if channels and len(channels) != count:
                raise ValueError(f"{kind}_channels={channels}: the stream has {count}; name one channel for each")
            if any(channel < 1 for channel in channels):
                raise ValueError(f"{kind}_channels={channels}: channels of a device count from 1")


class DeviceError(ValueError):
    """A device could not be used; the text is one sentence for the user."""


@dataclass(frozen=True, slots=True)
class Device:
    """One sound device as PortAudio shows it. ``inputs`` and ``outputs`` count its channels."""

    index: int
    name: str
    api: str
    inputs: int
    outputs: int
    samplerate: int
    default_input: bool
    default_output: bool

    @property
    def full_name(self) -> str:
        """Name and host API: what tells it from others, for a session file and for people."""
        return f"{self.name}, {self.api}"


def list_devices(timeout_seconds: float = 10.0) -> list[Device]:
    """Return the sound devices of this machine. Asks a process of its own, since PortAudio may hang.

    Raises
    ------
    DeviceError
        If PortAudio is missing or does not answer.
    """
    code = "from realtime import devices; devices._print_devices()"
    try:
        done = subprocess.run(
            [sys.executable, "-c", code],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=timeout_seconds,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise DeviceError(
            f"PortAudio did not answer within {timeout_seconds:g} s; is an audio server (JACK, PipeWire) hanging?"
        ) from None
    for line in done.stdout.splitlines():
        if line.startswith("{"):
            answer = json.loads(line)
            if "error" in answer:
                raise DeviceError(answer["error"])
            return [Device(**device) for device in answer["devices"]]
    raise DeviceError(f"the process that lists the sound devices ended with code {done.returncode} and said nothing")


def play_sound(audio: Block, samplerate: int) -> None:
    """Play ``audio`` on the default device and wait for its end. For listening to a finished file, not for a session.

    Raises
    ------
    DeviceError
        If PortAudio or a device is missing.
    """
    sounddevice = _sounddevice()
    try:
        device = pick_device(_query_devices(sounddevice), "", "output")
        if device.samplerate != samplerate:
            import soxr

            audio, samplerate = soxr.resample(audio, samplerate, device.samplerate), device.samplerate
        sounddevice.play(audio[:, : device.outputs], samplerate, device=device.index, blocking=True)
    except sounddevice.PortAudioError as error:
        raise DeviceError(f"the sound could not be played: {error.args[0]}") from None
    finally:
        sounddevice.stop()


def pick_device(devices: Sequence[Device], name: str, kind: str) -> Device:
    """Choose the device called ``name`` that has channels of ``kind`` (``"input"`` or ``"output"``).

    A device that was named is never replaced by another one. What counts is its whole name, else a part that only
    one has, else its whole name without ALSA's numbers ``(hw:1,0)``: they change when it is plugged in again.

    Raises
    ------
    DeviceError
        If there is none, or more than one.
    """
    able = [device for device in devices if _channels(device, kind)]
    if not name:
        if not able:
            raise DeviceError(f"there is no sound device with an {kind}; is an audio server to be started first?")
        return next((device for device in able if _is_default(device, kind)), able[0])
    wanted = name.casefold()
    for matches in (
        [device for device in able if wanted in (device.name.casefold(), device.full_name.casefold())],
        [device for device in able if wanted in device.full_name.casefold()],
        [device for device in able if _unnumbered(wanted) == _unnumbered(device.full_name.casefold())],
    ):
        if len(matches) == 1:
            return matches[0]
        if matches:
            return _of_one_name(matches, name, kind)
    found = "; ".join(f"'{device.full_name}'" for device in able) or "none"
    raise DeviceError(f"there is no device '{name}' with an {kind}; there is: {found}")


def _of_one_name(matches: Sequence[Device], name: str, kind: str) -> Device:
    """Return the system's default among devices that nothing else tells apart; refuse those a name would."""
    if len({device.full_name for device in matches}) == 1:
        for device in matches:
            if _is_default(device, kind):
                return device
        raise DeviceError(
            f"there are {len(matches)} devices '{matches[0].full_name}'; make the one you mean the system's default, "
            "or unplug the other"
        )
    found = "; ".join(f"'{device.full_name}'" for device in matches)
    raise DeviceError(f"device '{name}' fits more than one: {found}; write one of these in full")


def _unnumbered(name: str) -> str:
    return _ALSA_NUMBERS.sub("", name)


def _channels(device: Device, kind: str) -> int:
    return device.inputs if kind == "input" else device.outputs


def _is_default(device: Device, kind: str) -> bool:
    return device.default_input if kind == "input" else device.default_output


def _sounddevice() -> Any:
    """Import sounddevice (which initialises PortAudio), or say how to get PortAudio."""
    try:
        import sounddevice
    except OSError as error:
        hint = "; on Debian or Ubuntu: apt install libportaudio2" if sys.platform == "linux" else ""
        raise DeviceError(f"PortAudio, which opens sound devices, is not on this machine ({error}){hint}") from None
    return sounddevice


def _query_devices(sounddevice: Any) -> list[Device]:
    apis = sounddevice.query_hostapis()
    return [
        Device(
            index=index,
            name=str(found["name"]),
            api=str(apis[found["hostapi"]]["name"]),
            inputs=int(found["max_input_channels"]),
            outputs=int(found["max_output_channels"]),
            samplerate=round(found["default_samplerate"]),
            default_input=index == _default(sounddevice, apis, "input"),
            default_output=index == _default(sounddevice, apis, "output"),
        )
        for index, found in enumerate(sounddevice.query_devices())
    ]


def _default(sounddevice: Any, apis: Sequence[dict[str, Any]], kind: str) -> int:
    """Return PortAudio's default; if its first host API has no devices at all, that of the next which has."""
    chosen = int(sounddevice.default.device[kind == "output"])
    return chosen if chosen >= 0 else next((int(api[f"default_{kind}_device"]) for api in apis if api["devices"]), -1)


def _print_devices() -> None:
    """Body of the process behind :func:`list_devices`; ends hard, since PortAudio's own end may hang."""
    try:
        answer: dict[str, Any] = {"devices": [asdict(device) for device in _query_devices(_sounddevice())]}
    except DeviceError as error:
        answer = {"error": str(error)}
    print(json.dumps(answer), flush=True)
    os._exit(0)


# ---- one opened ------------------------------------------------------------------------------------------------


class RtmixerPort:
    """A device opened with rtmixer: its callback is C. The :class:`realtime.io.Port` of a real device.

    rtmixer starts an action at a time, and host APIs give that time with a jitter; so actions are posted to start
    at once, and where they began is read from the callbacks counted by the stream and by the action: exact.

    Parameters
    ----------
    config
        Which device.
    rescan
        Look for devices anew: PortAudio lists devices and servers when it is initialised, never after.

    Attributes
    ----------
    text
        A sentence that names what was opened.
    target, source
        Full names of the devices played to and recorded from, ``""`` for none.

    Raises
    ------
    DeviceError
        If the device cannot be opened as asked.
    """

    def __init__(self, config: IoConfig, rescan: bool) -> None:
        sounddevice = _sounddevice()
        import rtmixer

        self._rtmixer = rtmixer
        spec = config.spec
        self._in_map = config.input_channels or tuple(range(1, spec.inputs + 1))
        self._out_map = config.output_channels or tuple(range(1, spec.outputs + 1))
        self.blocksize = spec.blocksize
        name = config.device
        try:
            if rescan:
                sounddevice._terminate()
                sounddevice._initialize()
            source, target = choose_devices(_query_devices(sounddevice), config)
            _check_channels(source, self._in_map, "input")
            _check_channels(target, self._out_map, "output")
            self.target, self.source = (device.full_name if device else "" for device in (target, source))
            name = self.target or self.source
            self.samplerate = self._rate(sounddevice, source, target, spec.samplerate)
            self._stream = self._open(source, target)
            self._stream.start()
        except sounddevice.PortAudioError as error:
            raise DeviceError(
                f"device '{name}' does not open: {error.args[0]}; is another program using it?"
            ) from None
        self.inputs, self.outputs = spec.inputs * (source is not None), spec.outputs * (target is not None)
        self.text = _opened(self.target, self.source, self.samplerate, spec.samplerate)
        self.latency = self._latency(self._stream.latency)
        size = _power_of_two(2 * spec.lead * self.samplerate // spec.samplerate + _RING_FRAMES)
        self._play_ring = rtmixer.RingBuffer(4 * spec.outputs, size)
        self._record_ring = rtmixer.RingBuffer(4 * spec.inputs, _power_of_two(self.samplerate // 2))
        self._play: Any = None
        self._record: Any = None
        self._play_seen: list[int] = []
        self._record_seen: list[int] = []

    def frames(self) -> int:
        """Frames of all callbacks so far."""
        return int(self._stream._state.stats.blocks) * self.blocksize

    def active(self) -> bool:
        """Whether the host API says that the device runs."""
        return bool(self._stream.active)

    def device_xruns(self) -> int:
        """Under- and overflows that the host API reported so far."""
        stats = self._stream._state.stats
        return int(stats.output_underflows + stats.input_overflows)

    def start_play(self) -> None:
        """Post a play action."""
        self._play_seen = []
        self._play = self._stream.play_ringbuffer(self._play_ring, self._out_map, start=-1.0)

    def play_first(self) -> int | None:
        """Device frame of the action's first frame."""
        return self._first(self._play, self._play_seen)

    def play_ended(self) -> bool:
        """Whether the action is gone."""
        return self._play not in self._stream.actions

    def fill(self) -> int:
        """Frames in the play ring."""
        return int(self._play_ring.read_available)

    def write(self, block: Block) -> None:
        """Add to the play ring."""
        self._play_ring.write(np.ascontiguousarray(block))

    def drop(self) -> None:
        """Empty the play ring; only where no action plays from it."""
        self._play_ring.read()

    def start_record(self) -> None:
        """Post a record action."""
        self._record_seen = []
        self._record = self._stream.record_ringbuffer(self._record_ring, self._in_map, start=-1.0)

    def record_first(self) -> int | None:
        """Device frame of the first frame recorded."""
        return self._first(self._record, self._record_seen)

    def record_ended(self) -> bool:
        """Whether the action is gone."""
        return self._record not in self._stream.actions

    def read(self) -> Block:
        """Take all that was recorded."""
        block = np.frombuffer(self._record_ring.read(), np.float32)
        return block.reshape(-1, self.inputs)

    def close(self) -> None:
        """Stop and close, or end the process if that hangs."""
        guard = threading.Timer(0.5, os._exit, (0,))
        guard.daemon = True
        guard.start()
        self._stream.abort()
        self._stream.close()
        guard.cancel()

    def _first(self, action: Any, seen: list[int]) -> int | None:
        """Return the stream's callbacks less the action's, in frames.

        A callback between or during the two reads makes the difference one too large, never too small: the least
        of a few turns is right.
        """
        blocks = int(action.stats.blocks)  # read before the stream's
        if blocks == 0:
            return None
        if len(seen) < _SETTLE_TURNS:
            seen.append(int(self._stream._state.stats.blocks) - blocks)
        return min(seen) * self.blocksize if len(seen) == _SETTLE_TURNS else None

    def _rate(self, sounddevice: Any, source: Device | None, target: Device | None, wanted: int) -> int:
        """Return the session's rate if the device takes it, else the device's own."""
        try:
            if source is not None:
                sounddevice.check_input_settings(source.index, max(self._in_map), "float32", samplerate=wanted)
            if target is not None:
                sounddevice.check_output_settings(target.index, max(self._out_map), "float32", samplerate=wanted)
        except sounddevice.PortAudioError:
            rates = {device.samplerate for device in (source, target) if device is not None}
            if len(rates) > 1:
                raise DeviceError(
                    f"input and output run at different rates ({sorted(rates)} Hz) and cannot do {wanted} Hz; "
                    "set both to one rate in the system's sound settings"
                ) from None
            return rates.pop()
        return wanted

    def _open(self, source: Device | None, target: Device | None) -> Any:
        common = {"samplerate": self.samplerate, "blocksize": self.blocksize, "latency": "low"}
        ins, outs = max(self._in_map), max(self._out_map)
        if source is None and target is not None:
            return self._rtmixer.Mixer(device=target.index, channels=outs, **common)
        if target is None and source is not None:
            return self._rtmixer.Recorder(device=source.index, channels=ins, **common)
        assert source is not None
        assert target is not None
        return self._rtmixer.MixerAndRecorder(device=(source.index, target.index), channels=(ins, outs), **common)

    def _latency(self, seconds: float | tuple[float, float]) -> tuple[int, int]:
        if not isinstance(seconds, tuple):
            seconds = (0.0, seconds) if self.outputs else (seconds, 0.0)
        return round(seconds[0] * self.samplerate), round(seconds[1] * self.samplerate)


def choose_devices(devices: Sequence[Device], config: IoConfig) -> tuple[Device | None, Device | None]:
    """Return the devices to record from and to play to; one of the two may be missing, not both.

    What was named for one use has to be there: a band is not heard through nothing because only the microphone came
    back. A device named for both uses may have only one of them.

    Raises
    ------
    DeviceError
        If one that is needed is not there.
    """
    found: dict[str, Device | None] = {"output": None, "input": None}
    needed = {"output": bool(config.device and config.input_device), "input": bool(config.input_device)}
    errors: list[DeviceError] = []
    for kind, name in (("output", config.device), ("input", config.input_device or config.device)):
        try:
            found[kind] = pick_device(devices, name, kind)
        except DeviceError as error:
            if needed[kind]:
                raise
            errors.append(error)
    if len(errors) == 2:
        raise errors[0]
    return found["input"], found["output"]


def _check_channels(device: Device | None, channels: tuple[int, ...], kind: str) -> None:
    if device is not None and max(channels) > _channels(device, kind):
        raise DeviceError(
            f"device '{device.full_name}' has {_channels(device, kind)} {kind}s and the session asks for {kind} "
            f"{max(channels)}; change its {kind} channels or choose another device"
        )


def _opened(target: str, source: str, rate: int, wanted: int) -> str:
    parts = [f"playing to '{target}'" if target else "playing to nothing: the device has no outputs"]
    parts.append(f"hearing '{source}'" if source else "hearing nothing: the device has no inputs")
    if rate != wanted:
        parts.append(f"converting between its {rate} Hz and the session's {wanted} Hz")
    return "; ".join(parts)


def _power_of_two(frames: int) -> int:
    return 1 << (frames - 1).bit_length()
