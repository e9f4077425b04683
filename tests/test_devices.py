"""The choice of a device: by name, never another one; and sentences where there is none."""

from __future__ import annotations

import sys
from dataclasses import replace
from types import SimpleNamespace

import pytest

from realtime import devices
from realtime.protocols import StreamSpec

DEVICES = [
    devices.Device(0, "Built-in Output", "Core Audio", 0, 2, 48_000, False, True),
    devices.Device(1, "Built-in Microphone", "Core Audio", 1, 0, 48_000, True, False),
    devices.Device(2, "Scarlett 18i8", "Core Audio", 18, 8, 48_000, False, False),
    devices.Device(3, "Scarlett 2i2", "Core Audio", 2, 2, 44_100, False, False),
    devices.Device(4, "HDMI", "ALSA", 0, 2, 48_000, False, False),
    devices.Device(5, "HDMI", "OSS", 0, 2, 48_000, False, False),
]


@pytest.mark.parametrize(
    ("name", "kind", "index"),
    [
        ("", "output", 0),
        ("", "input", 1),
        ("Scarlett 2i2", "input", 3),
        ("scarlett 18", "output", 2),
        ("HDMI, OSS", "output", 5),
    ],
)
def test_devices_are_chosen_by_name(name: str, kind: str, index: int) -> None:
    assert devices.pick_device(DEVICES, name, kind).index == index


@pytest.mark.parametrize(
    ("name", "kind", "words"),
    [
        ("Scarlett", "output", ["more than one", "Scarlett 18i8, Core Audio", "Scarlett 2i2, Core Audio"]),
        ("HDMI", "output", ["more than one", "HDMI, ALSA", "HDMI, OSS"]),
        ("Behringer", "output", ["no device 'Behringer'", "Built-in Output", "HDMI, ALSA"]),
        ("Built-in Output", "input", ["with an input", "Built-in Microphone"]),
    ],
)
def test_a_device_is_never_replaced_by_another(name: str, kind: str, words: list[str]) -> None:
    with pytest.raises(devices.DeviceError) as caught:
        devices.pick_device(DEVICES, name, kind)
    assert all(word in str(caught.value) for word in words)


def test_no_device_at_all_is_a_sentence() -> None:
    with pytest.raises(devices.DeviceError, match="no sound device with an output"):
        devices.pick_device([], "", "output")


def test_missing_portaudio_is_a_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    class Refuses:
        def find_spec(self, name: str, *_: object) -> None:
            if name == "sounddevice":
                raise OSError("PortAudio library not found")

    monkeypatch.delitem(sys.modules, "sounddevice", raising=False)
    monkeypatch.setattr(sys, "meta_path", [Refuses(), *sys.meta_path])
    monkeypatch.setattr(sys, "platform", "linux")
    with pytest.raises(devices.DeviceError, match="apt install libportaudio2"):
        devices._sounddevice()


def test_config_names_the_slip() -> None:
    with pytest.raises(ValueError, match="the stream has 2"):
        devices.IoConfig(StreamSpec(48_000, 1, 2), output_channels=(1, 2, 3))
    with pytest.raises(ValueError, match="count from 1"):
        devices.IoConfig(StreamSpec(48_000, 1, 2), output_channels=(0, 1))


def test_the_device_list_survives_a_process_that_says_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("subprocess.run", lambda *_, **__: SimpleNamespace(stdout="noise\n", returncode=-6))
    with pytest.raises(devices.DeviceError, match="code -6"):
        devices.list_devices()


USB = devices.Device(0, "Scarlett 2i2: USB Audio (hw:1,0)", "ALSA", 2, 2, 48_000, True, True)


def test_alsa_gives_a_device_another_number_when_it_is_plugged_in_again() -> None:
    again = replace(USB, name="Scarlett 2i2: USB Audio (hw:2,0)")
    other = replace(USB, name="Webcam: USB Audio (hw:1,0)", index=1)
    assert devices.pick_device([other, again], USB.full_name, "output") is again
    with pytest.raises(devices.DeviceError, match="no device 'Scarlett"):
        devices.pick_device([other], USB.full_name, "output")


def test_devices_of_one_name_are_told_apart_by_the_default_only() -> None:
    first = replace(USB, default_output=False)
    assert devices.pick_device([first, USB], USB.full_name, "output") is USB
    with pytest.raises(devices.DeviceError, match="2 devices 'Scarlett 2i2: USB"):
        devices.pick_device([first, first], USB.full_name, "output")


@pytest.mark.parametrize(
    ("there", "device", "input_device", "found"),
    [
        ([0, 1, 2], "", "", (1, 0)),
        ([0, 1, 2], "Scarlett 18i8", "", (2, 2)),
        ([0, 1, 2], "Built-in Output", "", (None, 0)),
        ([0, 1, 2], "Built-in Output", "Built-in Microphone", (1, 0)),
        ([0, 2], "Built-in Output", "Built-in Microphone", "no device 'Built-in Microphone'"),
        ([1, 2], "Built-in Output", "Built-in Microphone", "no device 'Built-in Output'"),
        ([1, 2], "Built-in Output", "", "no device 'Built-in Output'"),
        ([0, 1], "Scarlett 18i8", "", "no device 'Scarlett 18i8'"),
        ([1], "", "", (1, None)),
        ([], "", "", "no sound device"),
    ],
)
def test_what_was_named_is_waited_for_and_never_replaced(
    there: list[int], device: str, input_device: str, found: tuple[int | None, int | None] | str
) -> None:
    """Only the microphone being there is no reason to play to nothing."""
    config = devices.IoConfig(StreamSpec(48_000, 1, 2), device, input_device)
    present = [DEVICES[index] for index in there]
    if isinstance(found, str):
        with pytest.raises(devices.DeviceError, match=found):
            devices.choose_devices(present, config)
        return
    source, target = devices.choose_devices(present, config)
    assert (source.index if source else None, target.index if target else None) == found
