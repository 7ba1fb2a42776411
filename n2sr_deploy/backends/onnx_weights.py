"""What is in an ONNX file, without the library that writes such files."""

from __future__ import annotations

import hashlib
import math
from typing import TYPE_CHECKING, Any

import numpy as np
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
from google.protobuf.message import DecodeError

from n2sr_deploy.errors import ModelError

if TYPE_CHECKING:
    from n2sr_deploy.sampling import FloatArray

_Field = descriptor_pb2.FieldDescriptorProto
# What is read of https://github.com/onnx/onnx/blob/main/onnx/onnx.proto: name, number, type.
_MESSAGES = {
    "Model": [("graph", 7, ".Graph", False)],
    "Whole": [("graph", 7, _Field.TYPE_BYTES, False)],
    "Graph": [("initializer", 5, ".Tensor", True)],
    "Tensor": [
        ("dims", 1, _Field.TYPE_INT64, True),
        ("data_type", 2, _Field.TYPE_INT32, False),
        ("name", 8, _Field.TYPE_STRING, False),
        ("raw_data", 9, _Field.TYPE_BYTES, False),
    ],
}
_DTYPES = {1: "<f4", 10: "<f2"}


def _parsed(onnx: bytes, message: str) -> Any:
    file = descriptor_pb2.FileDescriptorProto(name="weights.proto")
    for kind_of_message, fields in _MESSAGES.items():
        described = file.message_type.add(name=kind_of_message)
        for name, number, kind, is_repeated in fields:
            label = _Field.LABEL_REPEATED if is_repeated else _Field.LABEL_OPTIONAL
            field = described.field.add(name=name, number=number, label=label)
            if isinstance(kind, str):
                field.type_name = kind
            else:
                field.type = kind
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    parsed = message_factory.GetMessageClass(pool.FindMessageTypeByName(message))()
    try:
        parsed.ParseFromString(onnx)
    except DecodeError as error:
        raise ModelError(f"the model is no ONNX file ({error}); export it again") from error
    return parsed


def graph_sha256(onnx: bytes) -> str:
    """Of the network, weights and all, but for what the file says of it.

    Raises
    ------
    ModelError
        When it is no ONNX file.
    """
    return hashlib.sha256(_parsed(onnx, "Whole").graph).hexdigest()


def weights_in(onnx: bytes) -> dict[str, FloatArray]:
    """The initializers that are float32 or float16 and raw bytes, as float32, by name.

    Raises
    ------
    ModelError
        When it is no ONNX file, or an initializer's bytes are not as many as its shape asks for.
    """
    found = {}
    for tensor in _parsed(onnx, "Model").graph.initializer:
        dtype = _DTYPES.get(tensor.data_type)
        if dtype is None or not tensor.raw_data or not isinstance(tensor.name, str):
            continue
        shape, n_bytes = tuple(tensor.dims), len(tensor.raw_data)
        if min(shape, default=1) < 0 or math.prod(shape) * np.dtype(dtype).itemsize != n_bytes:
            raise ModelError(
                f"{tensor.name} in the model is damaged: {n_bytes} bytes for shape {shape}"
            )
        values = np.frombuffer(tensor.raw_data, dtype).reshape(shape)
        found[tensor.name] = values.astype(np.float32)
    return found
