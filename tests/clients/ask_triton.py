"""Asks a server with one of Triton's clients, as its documentation has it, and prints what came back as JSON.

Runs in the environment of `requirements.txt`. The argument is JSON: `what` to do, `over` (http, grpc, http.aio, grpc.aio), `address`, and what
the function of that name takes.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from importlib import import_module
from typing import Any

import numpy as np

NUMPY = {"FP64": np.float64, "FP32": np.float32, "INT64": np.int64, "BYTES": np.object_, "BOOL": np.bool_}
PATIENCE_S = 60


class InTurn:
    """An asynchronous client whose calls are waited for, one after the other."""

    def __init__(self, library: Any, address: str) -> None:
        async def make() -> Any:
            return library.InferenceServerClient(address)

        self._runner = asyncio.Runner()
        self._client = self._runner.run(make())

    def __getattr__(self, name: str) -> Callable[..., Any]:
        async def call(*arguments: Any, **more: Any) -> Any:
            return await getattr(self._client, name)(*arguments, **more)

        return lambda *arguments, **more: self._runner.run(call(*arguments, **more))

    def close(self) -> None:
        self.__getattr__("close")()
        self._runner.close()


@contextmanager
def connected(over: str, address: str) -> Iterator[tuple[Any, Any]]:
    """The library, and a client of it."""
    library = import_module(f"tritonclient.{over}")
    client = InTurn(library, address) if over.endswith("aio") else library.InferenceServerClient(address)
    try:
        yield library, client
    finally:
        client.close()


def tensors(library: Any, over: str, columns: dict[str, Any], *, binary: bool = True) -> list[Any]:
    """Inputs of columns, `{name: [datatype, values]}`."""
    made = []
    for name, (kind, values) in columns.items():
        array = np.array(values, NUMPY[kind]).reshape(-1, 1)
        made.append(library.InferInput(name, list(array.shape), kind))
        made[-1].set_data_from_numpy(array, **({"binary_data": binary} if over.startswith("http") else {}))
    return made


def walk(over: str, address: str, model: str, version: str, columns: dict[str, Any], text_model: str, texts: list[str]) -> Any:
    """Everything that a first visit asks for, in both ways to write tensors where there are two."""
    is_http = over.startswith("http")
    as_json = {} if is_http else {"as_json": True}
    squeezed: dict[str, Any] = (
        {"request_compression_algorithm": "gzip", "response_compression_algorithm": "gzip"}
        if is_http
        else {"compression_algorithm": "gzip"}
    )
    with connected(over, address) as (library, client):
        described = client.get_model_metadata(model, **as_json)
        found: dict[str, Any] = {
            "states": [
                client.is_server_live(), client.is_server_ready(), client.is_model_ready(model), client.is_model_ready(model, version),
            ],
            "server": client.get_server_metadata(**as_json),
            "name": described["name"],
            "versions": described["versions"],
            "inputs": {tensor["name"]: tensor["datatype"] for tensor in described["inputs"]},
            "outputs": {tensor["name"]: tensor["datatype"] for tensor in described["outputs"]},
            "shapes": [[int(size) for size in tensor["shape"]] for tensor in described["outputs"]],
            "answers": {},
        }  # fmt: skip
        for binary in (True, False) if is_http else (True,):
            inputs = tensors(library, over, columns, binary=binary)
            wanted = library.InferRequestedOutput("probability", **({"binary_data": binary} if is_http else {}))
            for name, more in (("plain", {}), ("by version", {"model_version": version}), ("compressed", squeezed)):
                answer = client.infer(model, inputs, request_id="7", outputs=[wanted], **more)
                said = answer.get_response(**as_json)
                found["answers"][f"{name}, {'raw' if binary else 'JSON'}"] = [
                    said["id"], said.get("model_version", said.get("modelVersion")), answer.as_numpy("probability")[:, 1].tolist(),
                ]  # fmt: skip
        everything = client.infer(model, tensors(library, over, columns))
        found["prediction"] = everything.as_numpy("prediction").tolist()
        labels = client.infer(text_model, tensors(library, over, {"text": ["BYTES", texts]})).as_numpy("prediction")
        found["texts"] = [label.decode() if isinstance(label, bytes) else label for label in labels.tolist()]
        found["errors"] = [
            failure(lambda: client.infer("none", inputs)),
            failure(lambda: client.infer(model, inputs[:1])),
            failure(lambda: client.get_model_metadata("none")),
        ]
    return found


def repository(over: str, address: str, model: str) -> Any:
    """The index before, after unloading one, and after loading it again."""
    with connected(over, address) as (_, client):
        found = [index(client, over)]
        client.unload_model(model)
        found.append(index(client, over))
        client.load_model(model)
        end = time.monotonic() + PATIENCE_S
        while not client.is_model_ready(model) and time.monotonic() < end:
            time.sleep(0.05)
        return [*found, index(client, over)]


def index(client: Any, over: str) -> list[list[str]]:
    told = client.get_model_repository_index(**({} if over.startswith("http") else {"as_json": True}))
    return [[entry["name"], entry["state"]] for entry in (told if over.startswith("http") else told["models"])]


def wishes(over: str, address: str, model: str, columns: dict[str, Any]) -> Any:
    """What becomes of calls with too little time, by the client's clock and by the protocol's, and of two at once with enough of it."""
    with connected(over, address) as (library, client):
        inputs = tensors(library, over, columns)
        found = [
            failure(lambda: client.infer(model, inputs, client_timeout=0.05)),
            failure(lambda: client.infer(model, inputs, timeout=30_000, priority=1)),
        ]
        with ThreadPoolExecutor(2) as callers:
            both = callers.map(lambda _: float(client.infer(model, inputs).as_numpy("probability")[0, 1]), range(2))
            return [*found, list(both)]


def failure(call: Callable[[], Any]) -> str:
    """What a call fails with; empty where it does not."""
    try:
        call()
    except Exception as error:  # noqa: BLE001 - each library has errors of its own
        return str(error)
    return ""


def schema() -> Any:
    """The file of Triton's model configuration, as protobuf describes it, in hexadecimal."""
    described = import_module("tritonclient.grpc.model_config_pb2").DESCRIPTOR
    return described.serialized_pb.hex()


if __name__ == "__main__":
    given = json.loads(sys.argv[1])
    print(json.dumps({"walk": walk, "repository": repository, "wishes": wishes, "schema": schema}[given.pop("what")](**given)))
