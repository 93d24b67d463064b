"""NVIDIA pytriton, which runs Triton: one instance, dynamic batches of at most 32 after at most 5 ms."""

from __future__ import annotations

import os

import handlers
import numpy as np
from pytriton.decorators import batch
from pytriton.model_config import DynamicBatcher, ModelConfig, Tensor
from pytriton.triton import Triton, TritonConfig

model = handlers.load()
NAMES = ["numbers", "texts"] if len(handlers.TENSORS) > 1 else ["x"]


@batch
def infer(**tensors):
    given = [tensors[name] for name in NAMES]
    given = [
        np.char.decode(one.astype(bytes), "utf-8").astype(object) if is_text else one
        for one, (_, is_text) in zip(given, handlers.TENSORS, strict=True)
    ]
    return {"answer": model.tensors(*given)}


if __name__ == "__main__":
    port = int(os.environ["PORT"])
    config = TritonConfig(
        http_address="127.0.0.1", http_port=port, grpc_port=int(os.environ["PORT2"]), metrics_port=int(os.environ["PORT3"])
    )
    with Triton(config=config) as triton:
        triton.bind(
            model_name="model",
            infer_func=infer,
            inputs=[
                Tensor(name=name, dtype=bytes if is_text else np.float32, shape=(width,))
                for name, (width, is_text) in zip(NAMES, handlers.TENSORS, strict=True)
            ],
            outputs=[Tensor(name="answer", dtype=np.float32, shape=(handlers.ANSWER_SIZE,))],
            config=ModelConfig(max_batch_size=32, batching=True, batcher=DynamicBatcher(max_queue_delay_microseconds=5000)),
        )
        triton.serve()
