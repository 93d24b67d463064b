"""Ray Serve: two replicas, batches of at most 32 after at most 5 ms."""

from __future__ import annotations

import os

import handlers
import ray
from ray import serve
from starlette.requests import Request


@serve.deployment(num_replicas=2, max_ongoing_requests=128, ray_actor_options={"num_cpus": 1})
class Service:
    def __init__(self):
        self.model = handlers.load()

    @serve.batch(max_batch_size=32, batch_wait_timeout_s=0.005)
    async def run(self, records):
        return [handlers.answer(value) for value in self.model.records(records)]

    async def __call__(self, request: Request):
        return {"answer": await self.run(await request.json())}


if __name__ == "__main__":
    ray.init(include_dashboard=False, num_cpus=2, logging_level="warning")
    serve.start(http_options={"host": "127.0.0.1", "port": int(os.environ["PORT"])})
    serve.run(Service.bind(), blocking=True)
