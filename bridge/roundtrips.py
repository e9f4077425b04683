"""Round trips that were calibrated, kept from one session to the next: a file in the user's state folder.

An entry holds for a device to play to and one to record from (each with its host API, as
:attr:`realtime.devices.Device.full_name` says it), a rate and a block size: another of them is another round trip.
A session whose ``stream.latency`` is 0 takes the entry that fits it; ``stream.latency_offset`` is added in any case.

The file is TOML, written whole and put in its place at once, so a reader finds the old one or the new one. One that
cannot be read costs a sentence, never a session: it counts as empty, and is set aside before a new one is written.
"""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from realtime.foreign import Table, TomlError, parse_toml, read_inside

NAME = "calibration.toml"
VERSION = 1
MAX_BYTES = 100_000
MOST_ENTRIES = 200
MOST_FRAMES = 192_000
"""Most that a session may subtract from what it hears: a second at the highest rate."""

_HEADER = (
    "# Round trips that `sideman calibrate` measured; a session takes the one of its device where latency = 0.\n"
)


@dataclass(frozen=True, slots=True)
class Calibration:
    """One round trip, and for what it holds.

    Attributes
    ----------
    device, input_device
        Full names of the devices played to and recorded from.
    samplerate, blocksize
        The session's (Hz, frames).
    frames, exact_frames
        The round trip in the session's frames: what is subtracted, and as it was before rounding.
    device_samplerate, latency_in, latency_out
        How the device ran, and the latencies its host API stated, in its own frames: where they differ later, the
        round trip does too.
    made
        When, as ``2026-11-20 18:30``.
    """

    device: str
    input_device: str
    samplerate: int
    blocksize: int
    frames: int
    exact_frames: float
    device_samplerate: int
    latency_in: int
    latency_out: int
    made: str

    def fits(self, device: str, input_device: str, samplerate: int, blocksize: int) -> bool:
        """Whether it holds for such a session."""
        mine = (self.device, self.input_device, self.samplerate, self.blocksize)
        return mine == (device, input_device, samplerate, blocksize)

    def doubt(self, status: dict[str, Any]) -> str:
        """Say why it may not hold any more; ``""`` where nothing speaks against it.

        Parameters
        ----------
        status
            :data:`realtime.stream.IO_FIELDS` of a device that is open.
        """
        then = (self.device_samplerate, self.latency_in, self.latency_out)
        now = tuple(int(status[name]) for name in ("samplerate", "latency_in", "latency_out"))
        if then == now:
            return ""
        return (
            f"'{self.device}' was calibrated in another state ({_manner(*then)}; now {_manner(*now)}), so what is "
            "heard may be shifted by some frames: `sideman calibrate` measures it again"
        )


def _manner(samplerate: int, latency_in: int, latency_out: int) -> str:
    return f"{samplerate} Hz, {latency_in} frames in, {latency_out} out"


@dataclass(frozen=True, slots=True)
class Chosen:
    """What a session subtracts from what it hears.

    Attributes
    ----------
    frames
        0 or more.
    sentence
        Where the figure comes from.
    calibration
        The entry it was taken from, if any.
    """

    frames: int
    sentence: str
    calibration: Calibration | None = None


def state_file() -> Path:
    """Return where the round trips of this user are kept; its folder may not be there yet.

    ``$XDG_STATE_HOME``, else ``~/.local/state``, on Linux; ``~/Library/Application Support`` on macOS;
    ``%LOCALAPPDATA%`` on Windows.
    """
    home = Path.home()
    if sys.platform == "win32":
        base = os.environ.get("LOCALAPPDATA") or home / "AppData" / "Local"
    elif sys.platform == "darwin":
        base = home / "Library" / "Application Support"
    else:
        told = os.environ.get("XDG_STATE_HOME", "")
        base = told if os.path.isabs(told) else home / ".local" / "state"  # a relative one does not count, it says
    return Path(base) / "sideman" / NAME


def load(file: Path) -> list[Calibration]:
    """Return what is kept; nothing where there is no file.

    Raises
    ------
    ValueError
        In one sentence, if it is not a file of this kind.
    """
    if not os.path.lexists(file):
        return []
    content = read_inside(file.parent, file.name, MAX_BYTES, "`sideman calibrate` writes it")
    try:
        parsed = parse_toml(content.decode("utf-8"))
    except UnicodeDecodeError:
        raise ValueError(f"{file}: it is no text in UTF-8") from None
    except TomlError as error:
        raise ValueError(f"{file}: {error}") from None
    if parsed.get("version") != VERSION:
        found = Table(parsed, str(file)).refused("version", parsed.get("version"), f"{VERSION}")
        raise ValueError(f"{found}; was it written by another sideman?")
    table = Table(parsed, str(file))
    table.whole("version", VERSION, VERSION)
    entries = [_read(entry) for entry in table.tables("round_trips", 0, MOST_ENTRIES)]
    table.done()
    return entries


def _read(entry: Table) -> Calibration:
    read = Calibration(
        device=entry.text("device"),
        input_device=entry.text("input_device"),
        samplerate=entry.whole("samplerate", 8000, 192_000),
        blocksize=entry.whole("blocksize", 1, 8192),
        frames=entry.whole("frames", 0, MOST_FRAMES),
        exact_frames=entry.number("exact_frames", -1, MOST_FRAMES + 1),
        device_samplerate=entry.whole("device_samplerate", 1, 1_000_000),
        latency_in=entry.whole("latency_in", 0, 10_000_000),
        latency_out=entry.whole("latency_out", 0, 10_000_000),
        made=entry.text("made"),
    )
    entry.done()
    return read


def keep(calibration: Calibration, file: Path) -> str:
    """Keep a round trip, in place of an older one that holds for the same.

    Returns
    -------
    str
        A sentence about a file that could not be read and was set aside, else ``""``.

    Raises
    ------
    OSError
        If it cannot be written.
    """
    said = ""
    file.parent.mkdir(parents=True, exist_ok=True)
    try:
        entries = load(file)
    except ValueError as error:
        aside = file.with_name(f"{file.name}.unread")
        os.replace(file, aside)
        entries, said = [], f"{error}; it was set aside as {aside.name}, and what was in it is to be calibrated again"
    key = (calibration.device, calibration.input_device, calibration.samplerate, calibration.blocksize)
    others = [entry for entry in entries if not entry.fits(*key)]
    _write(file, [*others, calibration][-MOST_ENTRIES:])
    return said


def _write(file: Path, entries: Iterable[Calibration]) -> None:
    """Write beside the file, down to the disk, and put it in its place."""
    import tomlkit

    text = _HEADER + tomlkit.dumps({"version": VERSION, "round_trips": [asdict(entry) for entry in entries]})
    handle, name = tempfile.mkstemp(dir=file.parent, prefix=f".{file.name}.")
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as fresh:
            fresh.write(text)
            fresh.flush()
            os.fsync(fresh.fileno())
        os.replace(name, file)
    except BaseException:
        os.unlink(name)
        raise


def choose(
    device: str,
    *,
    latency: int,
    offset: int,
    samplerate: int,
    blocksize: int,
    names: Callable[[], tuple[str, str]],
    file: Path | None = None,
) -> Chosen:
    """Return what a session subtracts from what it hears.

    Parameters
    ----------
    device
        As the session asks for it: a part of a name, ``""`` for the default one.
    latency, offset
        ``stream.latency`` (0: as calibrated) and ``stream.latency_offset``, in frames.
    samplerate, blocksize
        The session's.
    names
        Returns the full names of the devices it plays to and records from, ``""`` for none; may raise ValueError.
        Asked only where the answer matters, since it takes a third of a second: where something is kept that would
        do. If the device is not there yet, the only one kept that it can be is taken for it.
    file
        Where round trips are kept; the user's own if not given.

    Raises
    ------
    ValueError
        In one sentence, if the sum is no latency.
    """
    if latency:
        return _shifted(Chosen(latency, "as the session says"), offset)
    try:
        kept = [entry for entry in load(file or state_file()) if entry.samplerate == samplerate]
    except ValueError as error:
        return _shifted(Chosen(0, f"{error}; it is ignored until `sideman calibrate` writes it again"), offset)
    fitting, how = _of_device(kept, device, names)
    for entry in fitting:
        if entry.blocksize == blocksize:
            return _shifted(Chosen(entry.frames, f"as calibrated on {entry.made}{how}", entry), offset)
    said = "not calibrated: `sideman calibrate` measures it"
    if fitting:
        sizes = " and ".join(str(entry.blocksize) for entry in fitting)
        said += f" (for this device it is known with blocks of {sizes}, and the session's have {blocksize})"
    return _shifted(Chosen(0, said), offset)


def _of_device(
    kept: list[Calibration], device: str, names: Callable[[], tuple[str, str]]
) -> tuple[list[Calibration], str]:
    """Return the entries that are of the session's device, and what is to be said of how it was found."""
    if not kept:
        return [], ""
    try:
        target, source = names()
    except ValueError:
        asked = device.casefold()
        possible = [entry for entry in kept if asked in entry.device.casefold()]
        if len({(entry.device, entry.input_device) for entry in possible}) == 1:
            return possible, f" for '{possible[0].device}', which is not there yet"
        return [], ""
    return [entry for entry in kept if (entry.device, entry.input_device) == (target, source)], ""


def _shifted(chosen: Chosen, offset: int) -> Chosen:
    """Add the offset given by hand."""
    frames = chosen.frames + offset
    if not 0 <= frames <= MOST_FRAMES:
        raise ValueError(
            f"stream.latency_offset is {offset} and the round trip {chosen.frames} frames ({chosen.sentence}): their "
            f"sum must be 0 to {MOST_FRAMES}; did you give milliseconds, or the wrong sign?"
        )
    if not offset:
        return chosen
    return Chosen(frames, f"{chosen.sentence}, {offset:+d} by stream.latency_offset", chosen.calibration)


def device_names(device: str, inputs: int = 1, outputs: int = 2) -> tuple[str, str]:
    """Return the full names of the devices that a session opens which asks for ``device``; ``""`` for none.

    Parameters
    ----------
    device
        As in the session: a part of a name, ``""`` for the default.
    inputs, outputs
        How many channels the session has.

    Raises
    ------
    DeviceError
        If the machine has no such device, or cannot say.
    """
    from realtime.devices import IoConfig, choose_devices, list_devices
    from realtime.protocols import StreamSpec

    config = IoConfig(StreamSpec(48_000, inputs, outputs), device)
    source, target = choose_devices(list_devices(), config)
    return target.full_name if target else "", source.full_name if source else ""
