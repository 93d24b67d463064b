"""TorchServe's handler: a batch of bodies in, a list of answers out."""

from __future__ import annotations

import json
import os
import sys

sys.path.insert(0, os.environ["PEERS"])
import handlers


class Handler:
    initialized = False

    def initialize(self, context):
        self.model = handlers.load()
        self.initialized = True

    def handle(self, data, context):
        bodies = [one.get("body") or one.get("data") for one in data]
        records = [body if isinstance(body, dict) else json.loads(body) for body in bodies]
        return [{"answer": handlers.answer(value)} for value in self.model.records(records)]
