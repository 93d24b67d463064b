"""LitServe: two workers, batches of at most 32 after at most 5 ms."""

from __future__ import annotations

import os

import handlers
import litserve


class Api(litserve.LitAPI):
    def setup(self, device):
        self.model = handlers.load()

    def decode_request(self, request):
        return request

    def batch(self, inputs):
        return inputs

    def predict(self, records):
        return self.model.records(records)

    def unbatch(self, output):
        return list(output)

    def encode_response(self, output):
        return {"answer": handlers.answer(output)}


if __name__ == "__main__":
    server = litserve.LitServer(Api(max_batch_size=32, batch_timeout=0.005), accelerator="cpu", workers_per_device=2)
    server.run(host="127.0.0.1", port=int(os.environ["PORT"]), generate_client_file=False, log_level="warning", num_api_servers=1)
