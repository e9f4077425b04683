"""What a stranger's ONNX file is refused for, before the runtime sees it; what it is allowed."""

from __future__ import annotations

import random
import re
from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from realtime import onnxfile
from realtime.onnxfile import check_model


def model(*nodes: onnx.NodeProto, weights: tuple[onnx.TensorProto, ...] = (), **graph: Any) -> onnx.ModelProto:
    """Return a model of these nodes, or of one that does nothing."""
    body = list(nodes) or [helper.make_node("Identity", ["x"], ["y"])]
    tensor = helper.make_tensor_value_info
    made = helper.make_graph(body, "g", [tensor("x", 1, [2, 4])], [tensor("y", 1, [2, 4])], list(weights), **graph)
    return helper.make_model(made, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)


def field(number: int, content: bytes) -> bytes:
    """Return a protobuf field of bytes."""
    size, length = bytearray(), len(content)
    while True:
        size.append((length & 127) | (128 if length > 127 else 0))
        length >>= 7
        if not length:
            return bytes([number << 3 | 2]) + bytes(size) + content


def weight(array: np.ndarray[Any, Any], **changes: Any) -> onnx.TensorProto:
    """Return an array as a tensor, some of its fields changed."""
    tensor = numpy_helper.from_array(array, "w")
    for name, value in changes.items():
        if isinstance(value, list):
            del getattr(tensor, name)[:]
            getattr(tensor, name).extend(value)
        else:
            setattr(tensor, name, value)
    return tensor


def branch(*nodes: onnx.NodeProto) -> onnx.GraphProto:
    output = helper.make_tensor_value_info("b", 1, [2, 4])
    return helper.make_graph(list(nodes), "branch", [], [output])


def nested(depth: int) -> onnx.NodeProto:
    """Return branches in branches."""
    inner = helper.make_node("Identity", ["x"], ["b"]) if depth == 1 else nested(depth - 1)
    return helper.make_node("If", ["yes"], ["b"], then_branch=branch(inner), else_branch=branch(inner))


def with_function() -> onnx.ModelProto:
    made = model()
    body = [helper.make_node("Identity", ["x"], ["y"])]
    made.functions.append(helper.make_function("own", "f", ["x"], ["y"], body, [helper.make_opsetid("", 18)]))
    return made


def with_training() -> onnx.ModelProto:
    made = model()
    made.training_info.add().algorithm.CopyFrom(made.graph)
    return made


def sequence() -> onnx.ModelProto:
    made = model()
    made.graph.value_info.append(helper.make_tensor_sequence_value_info("s", 1, [2]))
    return made


FLOATS = np.arange(8, dtype=np.float32).reshape(2, 4)
EXTERNAL = onnx.StringStringEntryProto(key="location", value="weights.bin")


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (lambda: model(helper.make_node("Loop", ["n", ""], ["y"], body=branch())), "it has a loop (Loop)"),
        (lambda: model(helper.make_node("Scan", ["x"], ["y"], body=branch(), num_scan_inputs=1)), "a loop (Scan)"),
        (lambda: model(helper.make_node("EPContext", ["x"], ["y"], domain="com.microsoft")), "compiled code"),
        (lambda: model(helper.make_node("RandomNormal", [], ["y"], shape=[2])), "draws random numbers"),
        (lambda: model(helper.make_node("ATen", ["x"], ["y"], domain="org.pytorch.aten")), "not among those allowed"),
        (lambda: model(helper.make_node("Identity", ["x"], ["y"], domain="evil")), "'evil:Identity', which is not"),
        (lambda: model(helper.make_node("Conv\n", ["x"], ["y"])), "it has an operator 'Conv\\n'"),
        (with_function, "it has functions of its own"),
        (with_training, "it has parts for training"),
        (sequence, "unknown field 4"),
        (lambda: model(weights=(weight(FLOATS, external_data=[EXTERNAL]),)), "external data"),
        (lambda: model(weights=(weight(FLOATS, data_location=1),)), "external data"),
        (lambda: model(helper.make_node("Constant", [], ["y"], value=weight(FLOATS, data_location=1))), "external"),
        (lambda: model(weights=(weight(FLOATS, raw_data=bytes(31)),)), "says it has 8 elements and does not hold"),
        (lambda: model(weights=(weight(FLOATS, dims=[2, 2**40]),)), "up to 16 axes, 2147483648 elements"),
        (lambda: model(weights=(weight(FLOATS, dims=[-2, -4]),)), "has the shape [-2, -4]"),
        (lambda: model(weights=(weight(FLOATS, dims=[2] * 17),)), "up to 16 axes"),
        (lambda: model(weights=(weight(FLOATS, data_type=TensorProto.STRING),)), "of a type (8) that is not"),
        (lambda: model(weights=(weight(FLOATS, float_data=[1.0]),)), "in the wrong place"),
        (lambda: model(weights=(weight(FLOATS, data_type=TensorProto.INT64, raw_data=b"", float_data=[1.0] * 8),)),
         "in the wrong place"),
        (lambda: model(helper.make_node("Identity", ["x" * 1001], ["y"])), "a name that is no text of up to 1000"),
        (lambda: model(helper.make_node("Identity", ["x"], ["y"], s="x" * 70_000)), "a text of 70000 bytes"),
        (lambda: model(helper.make_node("Conv", ["x"], ["y"], pads=[2**40])), "an attribute of 1099511627776"),
        (lambda: model(helper.make_node("Identity", ["x"], ["y"], then_branch=branch())), "of a kind that is not"),
        (lambda: model(*[helper.make_node("Identity", ["x"], ["y"])] * 10_001), "more than 10000 nodes"),
        (lambda: model(nested(4)), "nested more than 4 deep"),
    ],
)  # fmt: skip
def test_what_is_no_plain_inference_is_refused(make: Callable[[], onnx.ModelProto], sentence: str) -> None:
    with pytest.raises(ValueError, match=rf"\A(?=its? )[^\n]*{re.escape(sentence)}"):
        check_model(make().SerializeToString())


@pytest.mark.parametrize(
    "make",
    [
        model,
        lambda: model(nested(3)),
        lambda: model(helper.make_node("Slice", ["x"], ["y"], ends=[2**63 - 1], starts=[-(2**63)])),
        lambda: model(helper.make_node("FusedConv", ["x"], ["y"], domain="com.microsoft", activation="Relu")),
        lambda: model(helper.make_node("Constant", [], ["y"], value=weight(FLOATS))),
        lambda: model(weights=(weight(np.zeros((0, 3), np.float32)), weight(np.float32(1)))),  # type: ignore[arg-type]
        lambda: model(doc_string="a stack trace\n" * 1000),
        *(
            lambda kind=kind: model(weights=(helper.make_tensor("w", kind, [3], [1, 2, 3]),))
            for kind in (1, 2, 3, 4, 5, 6, 7, 9, 10, 11, 12, 13, 16, 17, 21, 22)
        ),
    ],
)
def test_what_inference_needs_is_allowed(make: Callable[[], onnx.ModelProto]) -> None:
    check_model(make().SerializeToString())


def test_a_field_that_comes_twice_is_refused_as_a_reader_may_merge_the_two() -> None:
    part = model().graph.SerializeToString()
    check_model(field(7, part))
    with pytest.raises(ValueError, match="a model has field 7 twice"):
        check_model(field(7, part) + field(7, part))


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (b"", "there is no graph in it"),
        (b"\x00\x00\x00\x00ORTM" + bytes(40), "ORT format"),
        (b"\x3a", "ends early"),
        (b"\x3a\x05\x0a", "ends early"),
        (b"\x3b", "its bytes are no protobuf"),
        (b"\x08" + b"\xff" * 20, "its bytes are no protobuf"),
        (b"\x3d\x00\x00\x00\x00", "unknown field 7"),
        (b"\xf8\x07\x01", "unknown field 127"),
    ],
)
def test_bytes_that_are_no_model_are_refused(content: bytes, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        check_model(content)


def test_graphs_nested_without_end_are_refused() -> None:
    graph = b""
    for _ in range(2000):
        graph = field(1, field(4, b"If") + field(5, field(6, graph)))  # graph > node > attribute > graph
    with pytest.raises(ValueError, match="nested more than 4 deep"):
        check_model(field(7, graph))


def test_a_model_of_countless_fields_is_refused_before_it_takes_long(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(onnxfile, "FIELDS", 1000)
    with pytest.raises(ValueError, match="more than 1000 fields"):
        check_model(field(7, field(13, b"") * 2000))
    with pytest.raises(ValueError, match="more than 1000 fields"):
        check_model(field(7, field(1, field(4, b"Identity") + field(5, field(8, b"\x01" * 2000)))))


MODEL = model(weights=(weight(FLOATS),)).SerializeToString()


def refusal(content: bytes) -> str:
    """Return the sentence that refuses it, or "accepted"; any other error is the test's failure."""
    try:
        check_model(content)
    except ValueError as refused:
        return str(refused)
    return "accepted"


@given(st.binary(max_size=100))
def test_no_bytes_crash_the_walk(content: bytes) -> None:
    assert refusal(content).startswith("it")


@given(st.integers(0, len(MODEL) - 1), st.integers(0, 255))
def test_no_changed_byte_crashes_the_walk(at: int, byte: int) -> None:
    assert refusal(MODEL[:at] + bytes([byte]) + MODEL[at + 1 :]).startswith(("it", "accepted"))


def test_a_tensor_that_lies_about_its_size_is_always_found() -> None:
    chance = random.Random(1)
    for _ in range(200):
        dims = [chance.randrange(5) for _ in range(chance.randrange(4))]
        held = chance.randrange(30)
        tensor = TensorProto(data_type=1, dims=dims, name="w", raw_data=bytes(4 * held))
        fits = int(np.prod(dims, dtype=np.int64)) == held
        assert (refusal(model(weights=(tensor,)).SerializeToString()) == "accepted") == fits
