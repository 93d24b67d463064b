"""MLServer's model: the tensors of the inference protocol, batched by MLServer."""

from __future__ import annotations

import handlers
import numpy as np
from mlserver import MLModel
from mlserver.codecs import NumpyCodec, StringCodec
from mlserver.types import InferenceRequest, InferenceResponse


class Runtime(MLModel):
    async def load(self) -> bool:
        self.model = handlers.load()
        return True

    async def predict(self, payload: InferenceRequest) -> InferenceResponse:
        given = []
        for one, (width, is_text) in zip(payload.inputs, handlers.TENSORS, strict=True):
            values = np.array(StringCodec.decode_input(one), object) if is_text else NumpyCodec.decode_input(one)
            given.append(values.reshape(-1, width))
        return InferenceResponse(model_name=self.name, outputs=[NumpyCodec.encode_output("answer", self.model.tensors(*given))])
