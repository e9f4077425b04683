"""Models are checked before they are trusted: every defect has its sentence, and state is explicit."""

from __future__ import annotations

import hashlib
import io
import math
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import pytest
import tomlkit
from hypothesis import given
from hypothesis import strategies as st
from onnx import TensorProto, helper

from realtime import inference
from realtime.inference import Card, EngineCache, Model, ProviderError, missing_for

CHANNELS, FRAMES, STEPS = 2, 4, 3

CARD = """\
name = "sum"
version = "1.0.0"
task = "adding up"
licence = "GPL-3.0-or-later"
sha256 = "SHA256"
samplerate = 48000
hop = 4
latency = 0
receptive_field = "unbounded"
tolerance = 1e-6

[parameters]
threshold = 0.5

[[inputs]]
name = "audio"
shape = [2, 4]
dtype = "float32"
unit = "full scale"
axes = ["channel", "frame"]

[[outputs]]
name = "sum"
shape = [2, 4]
dtype = "float32"
unit = "full scale"
axes = ["channel", "frame"]

[[states]]
name = "past"
shape = [2, 4]
dtype = "float32"
unit = "full scale"
axes = ["channel", "frame"]
output = "past_next"

[[data]]
name = "none"
licence = "GPL-3.0-or-later"
note = "constructed"

[[metrics]]
name = "error"
value = 0.0
unit = "1"
command = "python -m pytest tests/test_inference.py"
"""


def one_sentence(start: str, part: str) -> str:
    """Pattern of a one-line message that begins with ``start`` and holds ``part``."""
    return rf"\A{re.escape(start)}[^\n]*{re.escape(part)}[^\n]*\Z"


def refusal_of(reader: Callable[[Any], object], content: object) -> str:
    """Return the sentence with which a reader refuses, or "accepted"; any other error is the test's failure."""
    try:
        reader(content)
    except ValueError as refusal:
        return str(refusal)
    return "accepted"


def value(name: str, shape: list[Any] | None = None, dtype: int = TensorProto.FLOAT) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, dtype, shape or [CHANNELS, FRAMES])


def adder(**changes: Any) -> onnx.ModelProto:
    """Return a model whose output is the sum of all its inputs so far."""
    parts: dict[str, Any] = {
        "nodes": [
            helper.make_node("Add", ["audio", "past"], ["sum"]),
            helper.make_node("Identity", ["sum"], ["past_next"]),
        ],
        "inputs": [value("audio"), value("past")],
        "outputs": [value("sum"), value("past_next")],
        "weights": [],
    } | changes
    graph = helper.make_graph(parts["nodes"], "adder", parts["inputs"], parts["outputs"], parts["weights"])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)


def golden() -> dict[str, np.ndarray[Any, Any]]:
    audio = np.arange(STEPS * CHANNELS * FRAMES, dtype=np.float32).reshape(STEPS, CHANNELS, FRAMES)
    first = np.full((1, CHANNELS, FRAMES), 7, np.float32)
    sums = first + np.cumsum(audio, axis=0)
    return {"input.audio": audio, "output.sum": sums, "state.past": np.concatenate([first, sums])}


def write(
    folder: Path,
    model: onnx.ModelProto | bytes | None = None,
    card: str = CARD,
    steps: dict[str, np.ndarray[Any, Any]] | None = None,
) -> Path:
    folder.mkdir(exist_ok=True)
    content = model if isinstance(model, bytes) else (model or adder()).SerializeToString()
    (folder / "model.onnx").write_bytes(content)
    (folder / "card.toml").write_text(card.replace("SHA256", hashlib.sha256(content).hexdigest()))
    np.savez(folder / "golden.npz", **(steps or golden()))  # type: ignore[arg-type]
    return folder


# ------------------------------------------------------------------------------- a model that is right


def test_a_step_takes_frames_by_channels_and_carries_its_state(tmp_path: Path) -> None:
    state = Model.open(write(tmp_path), "cpu").start()
    audio = np.arange(8, dtype=np.float32).reshape(FRAMES, CHANNELS)
    np.testing.assert_array_equal(state.step({"audio": audio})["sum"], audio)
    np.testing.assert_array_equal(state.step({"audio": audio})["sum"], 2 * audio)
    np.testing.assert_array_equal(state.step({"audio": 10 * audio})["sum"], 12 * audio)
    np.testing.assert_array_equal(state.snapshot()["past"], 12 * audio.T)


def test_a_state_starts_silent_and_reset_goes_back_to_silence(tmp_path: Path) -> None:
    state = Model.open(write(tmp_path), "cpu").start()
    ones = np.ones((FRAMES, CHANNELS), np.float32)
    for steps in (1, 2):  # an odd and an even number: the two sets of arrays take turns
        for _ in range(steps):
            state.step({"audio": ones})
        state.reset()
        assert not state.snapshot()["past"].any()
        assert np.all(state.step({"audio": ones})["sum"] == 1)
        state.reset()


def test_a_snapshot_is_a_copy_and_can_be_restored(tmp_path: Path) -> None:
    state = Model.open(write(tmp_path), "cpu").start()
    ones = np.ones((FRAMES, CHANNELS), np.float32)
    state.step({"audio": ones})
    kept = state.snapshot()
    state.step({"audio": ones})
    state.step({"audio": ones})
    assert np.all(kept["past"] == 1)
    state.restore(kept)
    assert np.all(state.step({"audio": ones})["sum"] == 2)
    with pytest.raises(ValueError, match="states other were given; the model takes past"):
        state.restore({"other": kept["past"]})


def test_two_streams_through_one_model_do_not_meet(tmp_path: Path) -> None:
    model = Model.open(write(tmp_path), "cpu")
    one, two = model.start(), model.start()
    ones = np.ones((FRAMES, CHANNELS), np.float32)
    one.step({"audio": ones})
    assert np.all(two.step({"audio": ones})["sum"] == 1)
    assert np.all(one.step({"audio": ones})["sum"] == 2)


def test_a_step_gives_the_same_arrays_every_time(tmp_path: Path) -> None:
    state = Model.open(write(tmp_path), "cpu").start()
    ones = np.ones((FRAMES, CHANNELS), np.float32)
    first = state.step({"audio": ones})
    assert state.step({"audio": ones})["sum"] is first["sum"]


@pytest.mark.parametrize(
    ("inputs", "sentence"),
    [
        ({}, "inputs (none) were given; the model takes audio"),
        ({"sound": np.zeros((4, 2), np.float32)}, "inputs sound were given; the model takes audio"),
        ({"audio": np.zeros((2, 4), np.float32)}, "input 'audio' has shape (2, 4); the model takes (4, 2)"),
        ({"audio": np.zeros((1, 2), np.float32)}, "input 'audio' has shape (1, 2); the model takes (4, 2)"),
    ],
)
def test_wrong_inputs_are_refused(tmp_path: Path, inputs: dict[str, Any], sentence: str) -> None:
    state = Model.open(write(tmp_path), "cpu").start()
    with pytest.raises(ValueError, match=f"^{re.escape(sentence)}$"):
        state.step(inputs)


def test_complex_input_is_refused_rather_than_cut(tmp_path: Path) -> None:
    state = Model.open(write(tmp_path), "cpu").start()
    with pytest.raises(TypeError):
        state.step({"audio": np.zeros((4, 2), np.complex64)})


def test_the_card_is_read_whole(tmp_path: Path) -> None:
    card = Model.open(write(tmp_path), "cpu").card
    assert (card.name, card.hop, card.receptive_field, card.parameters) == ("sum", 4, None, {"threshold": 0.5})
    assert card.states[0].output == "past_next"
    assert card.metrics[0].command.startswith("python -m pytest")
    assert card.data[0].licence == "GPL-3.0-or-later"


def test_a_model_without_states_is_allowed(tmp_path: Path) -> None:
    model = adder(
        nodes=[helper.make_node("Identity", ["audio"], ["sum"])], inputs=[value("audio")], outputs=[value("sum")]
    )
    card = CARD[: CARD.index("[[states]]")] + CARD[CARD.index("[[data]]") :]
    steps = {"input.audio": golden()["input.audio"], "output.sum": golden()["input.audio"]}
    assert Model.open(write(tmp_path, model, card, steps), "cpu").start().snapshot() == {}


# ---------------------------------------------------------------------------------- cards with defects


@pytest.mark.parametrize(
    ("old", "new", "sentence"),
    [
        ('name = "sum"\nversion', "version", "name is missing; it is a text of 1 to 1000 characters"),
        ('task = "adding up"', "task = 3", "task = 3; it must be a text of 1 to 1000 characters"),
        ('task = "adding up"', 'task = " "', "task = ' '; it must be a text of 1 to 1000 characters"),
        ('sha256 = "SHA256"', 'sha256 = "abc"', "sha256 = 'abc'; it must be 64 lower-case hexadecimal digits"),
        ("samplerate = 48000", "samplerate = 48000.0", "samplerate = 48000.0; it must be a whole number from 1"),
        ("hop = 4", "hop = true", "hop = True; it must be a whole number from 1"),
        ("latency = 0", "latency = -1", "latency = -1; it must be a whole number from 0"),
        ('receptive_field = "unbounded"', 'receptive_field = "long"', "receptive_field = 'long'; it must be a whole"),
        ("tolerance = 1e-6", "tolerance = nan", "tolerance = nan; it must be a finite number from 0"),
        ("tolerance = 1e-6", "tolerance = -1", "tolerance = -1; it must be a finite number from 0"),
        ("threshold = 0.5", "threshold = inf", ", parameters: threshold = inf; it must be a finite number"),
        ("hop = 4", "hop = 4\nhopp = 4", "unknown key 'hopp'; known are data, hop,"),
        ('output = "past_next"', 'output = "past_next"\nx = 1', "states[0]: unknown key 'x'; known are axes, dtype,"),
        (
            "shape = [2, 4]",
            "shape = [2, 0]",
            "inputs[0]: shape = [2, 0]; it must be up to 16 whole numbers of 1 or more",
        ),
        ("shape = [2, 4]", 'shape = [2, "T"]', "inputs[0]: shape = [2, 'T']; it must be up to 16 whole numbers"),
        ("shape = [2, 4]", "shape = [2, 99999999]", "67108864 elements at most; shapes are fixed"),
        ('dtype = "float32"', 'dtype = "float"', "inputs[0]: dtype = 'float'; it must be one of float32, float16"),
        (
            'axes = ["channel", "frame"]',
            'axes = ["frame"]',
            "axes = ['frame']; it must be one name for each of the 2",
        ),
        ('output = "past_next"', 'output = "sum"', "output 'sum' is listed twice; a state is listed under states"),
        ("value = 0.0", 'value = "good"', "metrics[0]: value = 'good'; it must be a finite number"),
        ('command = "python -m pytest tests/test_inference.py"', "", "metrics[0]: command is missing"),
        ("[[inputs]]", "[inputs]", "inputs = {"),
        ("hop = 4", "hop = 4 4", "not valid TOML"),
    ],
)
def test_a_card_with_a_defect_is_refused(old: str, new: str, sentence: str) -> None:
    assert old in CARD
    with pytest.raises(ValueError, match=one_sentence("card.toml", sentence)):
        Card.parse(CARD.replace("SHA256", "0" * 64).replace(old.replace("SHA256", "0" * 64), new, 1))


def test_a_card_of_more_than_a_megabyte_is_refused(tmp_path: Path) -> None:
    folder = write(tmp_path, card=CARD + "#" * (1 << 20))
    with pytest.raises(ValueError, match="larger than 1048576 bytes"):
        Model.open(folder, "cpu")


def test_a_card_that_is_no_text_is_refused(tmp_path: Path) -> None:
    (tmp_path / "card.toml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ValueError, match="not UTF-8 text"):
        Card.read(tmp_path / "card.toml")


def test_a_card_nested_without_end_is_refused() -> None:
    with pytest.raises(ValueError, match="not valid TOML"):
        Card.parse("x = " + "[" * 100_000)


tomls = st.recursive(
    st.one_of(st.integers(-(2**70), 2**70), st.floats(), st.booleans(), st.text(max_size=8)),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text("abn_", max_size=3), inner, max_size=3),
    max_leaves=6,
)


@given(st.text(max_size=200))
def test_no_text_crashes_the_card_reader(text: str) -> None:
    with pytest.raises(ValueError, match=r"card\.toml"):
        Card.parse(text)


@given(st.sampled_from(CARD.splitlines()), st.text(max_size=20))
def test_no_changed_line_crashes_the_card_reader(line: str, other: str) -> None:
    text = CARD.replace("SHA256", "0" * 64).replace(line, line.partition("=")[0] + "=" + other, 1)
    assert refusal_of(Card.parse, text).startswith(("card.toml", "accepted"))


@given(st.sampled_from(["name", "hop", "tolerance", "parameters", "inputs", "states", "data", "metrics"]), tomls)
def test_no_value_crashes_the_card_reader(key: str, content: Any) -> None:
    try:
        text = tomlkit.dumps(dict(tomlkit.parse(CARD.replace("SHA256", "0" * 64))) | {key: content})
    except (ValueError, TypeError):
        return  # not every value can be written as TOML
    assert refusal_of(Card.parse, text).startswith(("card.toml", "accepted"))


# -------------------------------------------------------------------------------- folders with defects


def function_model() -> onnx.ModelProto:
    model = adder()
    body = [helper.make_node("Identity", ["x"], ["y"])]
    model.functions.append(helper.make_function("own", "f", ["x"], ["y"], body, [helper.make_opsetid("", 18)]))
    return model


def external_model() -> onnx.ModelProto:
    weight = helper.make_tensor("w", TensorProto.FLOAT, [CHANNELS, FRAMES], bytes(32), raw=True)
    onnx.external_data_helper.set_external_data(weight, "weights.bin")
    return adder(weights=[weight])


def hidden_in_a_branch(weight: onnx.TensorProto) -> onnx.ModelProto:
    """Return a model with a tensor in a Constant in one branch of an If: two graphs deep."""
    branch = helper.make_graph([helper.make_node("Constant", [], ["c"], value=weight)], "branch", [], [value("c")])
    condition = helper.make_tensor("yes", TensorProto.BOOL, [], [True])
    choice = helper.make_node("If", ["yes"], ["chosen"], then_branch=branch, else_branch=branch)
    nodes = [choice, *adder().graph.node]
    return adder(nodes=nodes, weights=[condition])


def external_in_a_branch() -> onnx.ModelProto:
    weight = helper.make_tensor("w", TensorProto.FLOAT, [CHANNELS, FRAMES], np.zeros(8, np.float32))
    weight.data_location = TensorProto.EXTERNAL
    return hidden_in_a_branch(weight)


def context_model() -> onnx.ModelProto:
    node = helper.make_node("EPContext", ["audio"], ["x"], domain="com.microsoft", ep_cache_context="\x7fELF")
    return adder(nodes=[node, *adder().graph.node])


FLOAT16, OPEN = TensorProto.FLOAT16, ["T", FRAMES]
HALF = [helper.make_node("Cast", ["audio16"], ["audio"], to=1), *adder().graph.node]


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (lambda: adder(inputs=[value("sound"), value("past")], nodes=[
            helper.make_node("Add", ["sound", "past"], ["sum"]), helper.make_node("Identity", ["sum"], ["past_next"])
        ]), "the model has an input 'sound' that its card does not list"),
        (lambda: adder(inputs=[value("audio"), value("past"), value("more")]),
         "the model has an input 'more' that its card does not list"),
        (lambda: adder(outputs=[value("sum")]), "the card lists an output 'past_next' that the model does not have"),
        (lambda: adder(inputs=[value("audio", [1, FRAMES]), value("past")]),
         "input 'audio' has shape [1, 4] in the model and [2, 4] in its card"),
        (lambda: adder(inputs=[value("audio", OPEN), value("past")]),
         "input 'audio' of the model has the open shape ['T', 4]; export it with fixed shapes"),
        (lambda: adder(inputs=[value("audio", dtype=FLOAT16), value("past", dtype=FLOAT16)],
                       outputs=[value("sum", dtype=FLOAT16), value("past_next", dtype=FLOAT16)]),
         "input 'audio' is tensor(float16) in the model and float32 in its card"),
        (external_model, "it keeps weights outside the file (external data)"),
        (external_in_a_branch, "it keeps weights outside the file (external data)"),
        (context_model, "it has an EPContext node, which is somebody's compiled code"),
        (function_model, "it has functions of its own"),
        (lambda: adder(nodes=[helper.make_node("Concat", ["audio"], ["sum"]), adder().graph.node[1]]),
         "ONNX Runtime cannot load it on cpu"),
        (lambda: b"", "it is no ONNX file"),
        (lambda: b"no model at all, but some text", "it is no"),
        (lambda: b"\x00\x00\x00\x00ORTM" + b"\x00" * 40, "it is in ORT format"),
        (lambda: adder().SerializeToString()[:-20], "it ends early; was it copied completely?"),
    ],
)  # fmt: skip
def test_a_model_that_is_not_as_its_card_is_refused(
    tmp_path: Path, make: Callable[[], onnx.ModelProto | bytes], sentence: str
) -> None:
    with pytest.raises(ValueError, match=one_sentence(str(tmp_path), sentence)):
        Model.open(write(tmp_path, make()), "cpu")


def test_external_data_is_refused_even_where_the_file_is_there(tmp_path: Path) -> None:
    folder = write(tmp_path, external_model())
    (folder / "weights.bin").write_bytes(bytes(32))
    with pytest.raises(ValueError, match="outside the file"):
        Model.open(folder, "cpu")


def test_a_changed_model_is_refused(tmp_path: Path) -> None:
    folder = write(tmp_path)
    content = bytearray((folder / "model.onnx").read_bytes())
    content[-1] ^= 1
    (folder / "model.onnx").write_bytes(content)
    with pytest.raises(ValueError, match=r"model\.onnx has sha256 .*one of the two was changed without the other"):
        Model.open(folder, "cpu")


@pytest.mark.parametrize("name", ["card.toml", "model.onnx", "golden.npz"])
def test_a_missing_file_is_named(tmp_path: Path, name: str) -> None:
    folder = write(tmp_path)
    (folder / name).unlink()
    with pytest.raises(ValueError, match=f"{name}: no such file"):
        Model.open(folder, "cpu")


def changed(name: str, change: Callable[[np.ndarray[Any, Any]], Any]) -> dict[str, np.ndarray[Any, Any]]:
    steps = golden()
    steps[name] = np.asarray(change(steps[name]))
    return steps


def with_one(array: np.ndarray[Any, Any], number: float) -> np.ndarray[Any, Any]:
    array = array.copy()
    array.flat[-1] = number
    return array


@pytest.mark.parametrize(
    ("steps", "sentence"),
    [
        (changed("output.sum", lambda a: a + 1e-3), "step 0 on cpu gives 'sum' 0.001 away from golden.npz"),
        (changed("output.sum", lambda a: with_one(a, math.nan)), "step 2 on cpu gives 'sum' nan away"),
        (changed("state.past", lambda a: with_one(a, 0)), "step 2 on cpu gives 'past'"),
        (changed("input.audio", lambda a: with_one(a, math.inf)), "step 2 on cpu gives 'sum' inf away"),
        (changed("output.sum", lambda a: a[:-1]), "'output.sum' is float32 of shape (2, 2, 4); the card makes it"),
        (changed("output.sum", lambda a: a.astype(np.float64)), "'output.sum' is float64"),
        (changed("output.sum", lambda a: a.astype(object)), "'output.sum': its elements are object"),
        (changed("input.audio", lambda a: a[:1]), "it has 1 steps; it takes at least two"),
        (changed("input.audio", lambda a: np.float32(3)), "'input.audio' is float32 of shape ()"),
        ({"input.audio": golden()["input.audio"]}, "it has no array 'output.sum'"),
    ],
)
def test_a_model_that_does_not_reproduce_its_golden_steps_is_refused(
    tmp_path: Path, steps: dict[str, np.ndarray[Any, Any]], sentence: str
) -> None:
    with pytest.raises(ValueError, match=one_sentence(str(tmp_path), sentence)):
        Model.open(write(tmp_path, steps=steps), "cpu")


def test_a_golden_file_that_claims_more_than_it_holds_is_refused(tmp_path: Path) -> None:
    import zipfile

    folder = write(tmp_path)
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(
        header, {"descr": "<f4", "fortran_order": False, "shape": (1 << 40, CHANNELS, FRAMES)}
    )
    with zipfile.ZipFile(folder / "golden.npz", "w") as archive:
        archive.writestr("input.audio.npy", header.getvalue())
    with pytest.raises(ValueError, match=r"'input\.audio' is shorter than its header says"):
        Model.open(folder, "cpu")


@pytest.mark.parametrize("content", [b"", b"\x80\x04K\x01.", b"PK\x03\x04" + b"\x00" * 30])
def test_a_golden_file_that_is_no_npz_is_refused(tmp_path: Path, content: bytes) -> None:
    folder = write(tmp_path)
    (folder / "golden.npz").write_bytes(content)
    with pytest.raises(ValueError, match=r"golden\.npz cannot be used"):
        Model.open(folder, "cpu")


# ------------------------------------------------------------------------------------------- providers


def test_auto_is_quiet_and_says_what_it_took(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    model = Model.open(write(tmp_path), "auto")
    assert capfd.readouterr() == ("", "")
    assert model.session.get_providers()[0] == inference.PROVIDERS[model.provider][0]
    if missing_for("cuda"):
        assert model.provider == "cpu"
        assert model.passed_over == (f"provider cuda cannot be used: {missing_for('cuda')}",)


@pytest.mark.parametrize("provider", ["cuda", "tensorrt"])
def test_a_provider_asked_for_by_name_is_had_or_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], provider: str
) -> None:
    monkeypatch.setattr(inference, "_gpu", lambda: inference._Gpu("", "there is no NVIDIA driver on this machine"))
    folder = write(tmp_path)
    with pytest.raises(ValueError, match=rf"^{folder}: provider {provider} cannot be used: [^\n]*$"):
        Model.open(folder, provider)
    assert capfd.readouterr() == ("", "")


def test_an_unknown_provider_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="provider='gpu': it must be auto, cpu, cuda, tensorrt"):
        Model.open(write(tmp_path), "gpu")


def runtime(given: list[str], fails: bool = False) -> Any:
    """Return ONNX Runtime as it is on a machine with a GPU, whose sessions get ``given`` whatever was asked for."""
    import onnxruntime

    def session(model: bytes, options: Any, providers: list[tuple[str, dict[str, str]]], enable_fallback: int) -> Any:
        assert enable_fallback == 0
        if fails and providers[0][0] != "CPUExecutionProvider":
            raise RuntimeError("CUDA failure 2: out of memory\nand a second line")
        real = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
        names = given if providers[0][0] != "CPUExecutionProvider" else ["CPUExecutionProvider"]
        return SimpleNamespace(get_providers=lambda: names, get_inputs=real.get_inputs, get_outputs=real.get_outputs,
                               io_binding=real.io_binding, run_with_iobinding=real.run_with_iobinding)  # fmt: skip

    fake = SimpleNamespace(**{name: getattr(onnxruntime, name) for name in dir(onnxruntime) if name[0] != "_"})
    fake.__version__ = onnxruntime.__version__
    fake.InferenceSession = session
    session.__module__ = onnxruntime.InferenceSession.__module__
    return fake


@pytest.mark.parametrize(
    ("given", "fails", "reason"),
    [
        (["CPUExecutionProvider"], False, "provider cuda was asked for and ONNX Runtime gave CPUExecutionProvider"),
        ([], True, "ONNX Runtime cannot load it on cuda: CUDA failure 2: out of memory"),
    ],
)
def test_a_silent_fallback_is_found_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, given: list[str], fails: bool, reason: str
) -> None:
    monkeypatch.setattr(inference, "missing_for", lambda provider: "")
    fake = runtime(given, fails)
    monkeypatch.setattr(inference, "_onnxruntime", lambda: fake)
    folder = write(tmp_path)
    with pytest.raises(ValueError, match=f"^{re.escape(f'{folder}: {reason}')}$"):
        Model.open(folder, "cuda")
    model = Model.open(folder, "auto")
    assert (model.provider, model.passed_over) == ("cpu", (reason,))


def test_a_library_that_is_missing_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    fake = runtime([])
    fake.get_available_providers = lambda: ["TensorrtExecutionProvider", "CUDAExecutionProvider"]
    fake.preload_dlls = lambda: print("Failed to load everything")
    fake.cuda_version = "13.0"
    monkeypatch.setattr(inference, "_onnxruntime", lambda: fake)
    monkeypatch.setattr(inference, "_gpu", lambda: inference._Gpu("a GPU"))
    monkeypatch.setattr(inference, "_loads", lambda library: "dnn" not in library)
    assert missing_for("cuda").startswith(("libcudnn.so.9 was not found", "cudnn64_9.dll was not found"))
    monkeypatch.setattr(inference, "_loads", lambda library: "nv" not in library)
    assert missing_for("cuda") == ""
    assert "sideman[tensorrt]" in missing_for("tensorrt")
    fake.get_available_providers = lambda: ["CPUExecutionProvider"]
    assert "was built without it" in missing_for("cuda")


def test_options_are_those_of_a_real_time_worker() -> None:
    import onnxruntime

    options = inference._session_options(onnxruntime)
    assert (options.intra_op_num_threads, options.inter_op_num_threads) == (1, 1)
    assert options.execution_mode == onnxruntime.ExecutionMode.ORT_SEQUENTIAL
    assert options.get_session_config_entry("session.intra_op.allow_spinning") == "0"


def test_tensorrt_engines_go_to_our_own_folder(tmp_path: Path) -> None:
    options = inference._provider_options("TensorrtExecutionProvider", tmp_path)
    assert (options["trt_engine_cache_enable"], options["trt_engine_cache_path"]) == ("1", str(tmp_path))
    assert options["trt_fp16_enable"] == "0"


def test_nothing_is_imported_before_it_is_used() -> None:
    heavy = "{'onnxruntime', 'pydantic', 'onnx', 'torch', 'soxr'}"
    code = f"import realtime.listener, sys; print(sorted({heavy} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"


def test_an_emptied_onnxruntime_package_is_explained(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", SimpleNamespace())
    with pytest.raises(ValueError, match="were both onnxruntime and onnxruntime-gpu installed"):
        inference._onnxruntime()


# ---------------------------------------------------------------------------------------- engine cache


@pytest.fixture
def cache(tmp_path: Path) -> EngineCache:
    return EngineCache(tmp_path / "engines", tmp_path / "state" / "engine.key")


def built(cache: EngineCache, *identity: str) -> Path:
    folder = cache.opened(*identity)
    (folder / "a.engine").write_bytes(b"native code")
    cache.sign(folder)
    return folder


def test_an_engine_we_built_is_kept(cache: EngineCache) -> None:
    built(cache, "model", "gpu")
    assert (cache.opened("model", "gpu") / "a.engine").read_bytes() == b"native code"


def test_another_model_or_gpu_has_another_folder(cache: EngineCache) -> None:
    assert len({cache.opened("m", "g"), cache.opened("m", "h"), cache.opened("n", "g"), cache.opened("mg", "")}) == 4


@pytest.mark.parametrize("crime", ["changed", "added", "linked", "moved", "unsigned", "nested"])
def test_an_engine_we_did_not_build_is_deleted(cache: EngineCache, tmp_path: Path, crime: str) -> None:
    folder = built(cache, "model", "gpu")
    victim = folder / "a.engine"
    if crime == "changed":
        victim.write_bytes(b"native c0de")
    elif crime == "added":
        victim = folder / "b.engine"
        victim.write_bytes(b"native code")
    elif crime == "linked":
        victim.rename(tmp_path / "elsewhere")
        victim.symlink_to(tmp_path / "elsewhere")
    elif crime == "moved":
        other = cache.opened("another model", "gpu")
        for path in folder.iterdir():
            (other / path.name).write_bytes(path.read_bytes())
        victim = other / "a.engine"
    elif crime == "unsigned":
        (folder / EngineCache.LIST).write_text('{"a.engine": ["no text"]}')
    else:
        victim = folder / "folder"
        victim.mkdir()
    cache.opened("another model" if crime == "moved" else "model", "gpu")
    assert not victim.exists()


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no mode bits")
def test_the_key_is_private_and_one_that_was_not_is_replaced(cache: EngineCache, tmp_path: Path) -> None:
    built(cache, "model", "gpu")
    key = tmp_path / "state" / "engine.key"
    assert key.stat().st_mode & 0o777 == 0o600
    key.chmod(0o644)
    before = key.read_bytes()
    assert not (cache.opened("model", "gpu") / "a.engine").exists()
    assert key.read_bytes() != before
    assert key.stat().st_mode & 0o777 == 0o600


def test_the_key_lies_outside_the_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    cache = EngineCache.default(tmp_path / "cache")
    built(cache, "model")
    assert (tmp_path / "state" / "sideman" / "engine.key").is_file()
    assert not list((tmp_path / "cache").rglob("*.key"))


def test_a_provider_error_is_a_value_error() -> None:
    assert issubclass(ProviderError, ValueError)
