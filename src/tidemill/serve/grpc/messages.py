"""The messages of `inference.GRPCInferenceService`, by name and number as the protocol has them, without generated code.

Source: Open Inference Protocol v2, gRPC part. They live in a pool of their own, so that a client library with its own definitions may be loaded beside.
"""

from __future__ import annotations

from functools import cache
from typing import Any

from tidemill.core.load import need

PACKAGE = "inference"
SERVICE = "GRPCInferenceService"

# Method: request, response.
METHODS = {
    "ServerLive": ("ServerLiveRequest", "ServerLiveResponse"),
    "ServerReady": ("ServerReadyRequest", "ServerReadyResponse"),
    "ModelReady": ("ModelReadyRequest", "ModelReadyResponse"),
    "ServerMetadata": ("ServerMetadataRequest", "ServerMetadataResponse"),
    "ModelMetadata": ("ModelMetadataRequest", "ModelMetadataResponse"),
    "ModelInfer": ("ModelInferRequest", "ModelInferResponse"),
    "RepositoryIndex": ("RepositoryIndexRequest", "RepositoryIndexResponse"),
    "RepositoryModelLoad": ("RepositoryModelLoadRequest", "RepositoryModelLoadResponse"),
    "RepositoryModelUnload": ("RepositoryModelUnloadRequest", "RepositoryModelUnloadResponse"),
}

# Message: fields in the order of their numbers, from 1; `*` is repeated, `%` a map from text, `|` one of a choice.
_MESSAGES = {
    "ServerLiveRequest": "",
    "ServerLiveResponse": "bool live",
    "ServerReadyRequest": "",
    "ServerReadyResponse": "bool ready",
    "ModelReadyRequest": "string name, string version",
    "ModelReadyResponse": "bool ready",
    "ServerMetadataRequest": "",
    "ServerMetadataResponse": "string name, string version, string* extensions",
    "ModelMetadataRequest": "string name, string version",
    "TensorMetadata": "string name, string datatype, int64* shape",
    "ModelMetadataResponse": "string name, string* versions, string platform, TensorMetadata* inputs, TensorMetadata* outputs",
    "InferParameter": "bool| bool_param, int64| int64_param, string| string_param, double| double_param, uint64| uint64_param",
    "InferTensorContents": "bool* bool_contents, int32* int_contents, int64* int64_contents, uint32* uint_contents, uint64* uint64_contents,"
    " float* fp32_contents, double* fp64_contents, bytes* bytes_contents",
    "InferInputTensor": "string name, string datatype, int64* shape, InferParameter% parameters, InferTensorContents contents",
    "InferRequestedOutputTensor": "string name, InferParameter% parameters",
    "ModelInferRequest": "string model_name, string model_version, string id, InferParameter% parameters, InferInputTensor* inputs,"
    " InferRequestedOutputTensor* outputs, bytes* raw_input_contents",
    "InferOutputTensor": "string name, string datatype, int64* shape, InferParameter% parameters, InferTensorContents contents",
    "ModelInferResponse": "string model_name, string model_version, string id, InferParameter% parameters, InferOutputTensor* outputs,"
    " bytes* raw_output_contents",
    "RepositoryIndexRequest": "string repository_name, bool ready",
    "ModelIndex": "string name, string version, string state, string reason",
    "RepositoryIndexResponse": "ModelIndex* models",
    "RepositoryModelLoadRequest": "string repository_name, string model_name, RepositoryParameter% parameters",
    "RepositoryModelLoadResponse": "",
    "RepositoryModelUnloadRequest": "string repository_name, string model_name, RepositoryParameter% parameters",
    "RepositoryModelUnloadResponse": "",
    "RepositoryParameter": "bool| bool_param, int64| int64_param, string| string_param, bytes| bytes_param",
}


@cache
def messages() -> dict[str, Any]:
    """Message classes by name.

    Raises:
        MissingDependency: If protobuf is not installed.
    """
    descriptor_pb2 = need("google.protobuf.descriptor_pb2", "serve.grpc_port")
    descriptor_pool = need("google.protobuf.descriptor_pool", "serve.grpc_port")
    message_factory = need("google.protobuf.message_factory", "serve.grpc_port")
    file = descriptor_pb2.FileDescriptorProto(name="tidemill/inference.proto", package=PACKAGE, syntax="proto3")
    for name, fields in _MESSAGES.items():
        _define(file.message_type.add(name=name), fields, descriptor_pb2.FieldDescriptorProto)
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return {name: message_factory.GetMessageClass(pool.FindMessageTypeByName(f"{PACKAGE}.{name}")) for name in _MESSAGES}


def _define(message: Any, fields: str, kinds: Any) -> None:
    for number, text in enumerate(filter(None, fields.split(", ")), 1):
        kind, name = text.split()
        field = message.field.add(name=name, number=number, label=kinds.LABEL_OPTIONAL)
        if kind.endswith("|"):
            if not message.oneof_decl:
                message.oneof_decl.add(name="parameter_choice")
            field.oneof_index = 0
        if kind.endswith("*"):
            field.label = kinds.LABEL_REPEATED
        if kind.endswith("%"):
            _map_of(message, field, kind[:-1], kinds)
        else:
            _type(field, kind.rstrip("*|"), kinds)


def _map_of(message: Any, field: Any, kind: str, kinds: Any) -> None:
    """A map is, on the wire, repeated entries of key and value."""
    entry = message.nested_type.add(name="".join(part.capitalize() for part in field.name.split("_")) + "Entry")
    entry.options.map_entry = True
    _type(entry.field.add(name="key", number=1, label=kinds.LABEL_OPTIONAL), "string", kinds)
    _type(entry.field.add(name="value", number=2, label=kinds.LABEL_OPTIONAL), kind, kinds)
    field.label, field.type = kinds.LABEL_REPEATED, kinds.TYPE_MESSAGE
    field.type_name = f".{PACKAGE}.{message.name}.{entry.name}"


def _type(field: Any, kind: str, kinds: Any) -> None:
    if kind in _MESSAGES:
        field.type, field.type_name = kinds.TYPE_MESSAGE, f".{PACKAGE}.{kind}"
    else:
        field.type = getattr(kinds, f"TYPE_{kind.upper()}")
