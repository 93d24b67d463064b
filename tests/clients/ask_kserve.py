"""Asks a server with KServe's client over its three ways, and prints what came back as JSON.

Runs in the environment of `requirements.txt`. The argument is JSON: what `walk` takes.
"""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Awaitable
from typing import Any

import numpy as np
from kserve import InferenceGRPCClient, InferenceRESTClient, InferInput, InferRequest, RESTConfig

NUMPY = {"FP64": np.float64, "FP32": np.float32, "INT64": np.int64, "BYTES": np.object_, "BOOL": np.bool_}


async def walk(url: str, grpc: str, model: str, records: list[dict[str, Any]], columns: dict[str, Any]) -> Any:
    """States and answers over v1, v2 (raw and JSON tensors) and gRPC."""
    found: dict[str, Any] = {"states": {}, "answers": {}}
    async with InferenceRESTClient(RESTConfig(protocol="v1")) as client:
        found["states"]["v1"] = [await client.is_server_live(url), await client.is_model_ready(url, model)]
        told = await client.infer(url, {"instances": records}, model_name=model)
        found["answers"]["v1"] = [row["probability"] for row in told["predictions"]]
        found["errors"] = [await failure(client.infer(url, {"instances": [{}]}, model_name=model))]
    async with InferenceRESTClient(RESTConfig(protocol="v2")) as client:
        found["states"]["v2"] = [
            await client.is_server_live(url), await client.is_server_ready(url), await client.is_model_ready(url, model),
            await client.is_model_ready(url, "none"),
        ]  # fmt: skip
        for binary in (True, False):
            told = await client.infer(url, request(model, columns, binary=binary), model_name=model)
            found["answers"][f"v2, {'raw' if binary else 'JSON'}"] = probability(told)
        found["id"] = told.id
        found["errors"].append(await failure(client.infer(url, request("none", columns, binary=True), model_name="none")))
    async with InferenceGRPCClient(url=grpc) as client:
        found["states"]["grpc"] = [await client.is_server_live(), await client.is_server_ready(), await client.is_model_ready(model)]
        found["answers"]["grpc"] = probability(await client.infer(request(model, columns, binary=True)))
        found["errors"].append(await failure(client.infer(request("none", columns, binary=True))))
    return found


def request(model: str, columns: dict[str, Any], *, binary: bool) -> InferRequest:
    inputs = []
    for name, (kind, values) in columns.items():
        array = np.array(values, NUMPY[kind]).reshape(-1, 1)
        inputs.append(InferInput(name, list(array.shape), kind))
        inputs[-1].set_data_from_numpy(array, binary_data=binary)
    return InferRequest(model, inputs, request_id="7")


def probability(told: Any) -> list[float]:
    output = next(output for output in told.outputs if output.name == "probability")
    return [float(value) for value in output.as_numpy()[:, 1]]


async def failure(call: Awaitable[Any]) -> str:
    """What a call fails with; empty where it does not."""
    try:
        await call
    except Exception as error:  # noqa: BLE001 - each library has errors of its own
        return str(error)
    return ""


if __name__ == "__main__":
    print(json.dumps(asyncio.run(walk(**json.loads(sys.argv[1])))))
