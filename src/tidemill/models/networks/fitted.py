"""A fitted network: answers by PyTorch, its graph, and what is written of it.

The graph comes from PyTorch's exporter, which traces the module. It is held against the module on trial rows before anyone
gets it, and against the whole test split by the parity gate.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from tidemill.core.artifact import write_json
from tidemill.core.load import need
from tidemill.core.project import to_plain
from tidemill.models import base, export
from tidemill.models.networks.graph import exported
from tidemill.models.permuted import permuted

if TYPE_CHECKING:
    import onnx

    from tidemill.models.networks.base import NetworkModel, Shape
    from tidemill.models.networks.graph import Nodes

WEIGHTS = "weights.safetensors"
FACTS = "network.json"

# Score of a class that training never saw: its probability is 0.
NEVER = -1e4


class FittedNetwork:
    """A fitted network, whose link is that of the task.

    Args:
        state: The module's weights and buffers by name.
        folder: Where it was loaded from.
    """

    def __init__(
        self,
        kind: NetworkModel,
        shape: Shape,
        params: Any,
        state: Mapping[str, np.ndarray],
        *,
        num_classes: int | None,
        best_round: int | None = None,
        folder: Path | None = None,
    ) -> None:
        self.kind, self.shape, self.params = kind, shape, params
        # As a file holds them, whatever order of axes the module likes in memory.
        self.state = {name: np.ascontiguousarray(value) for name, value in state.items()}
        self.task, self.num_classes, self.best_round = shape.task, num_classes, best_round
        self.shares: list[float] = [0.0] * len(shape.names)
        self._folder = folder
        self._read = kind.reader(shape, params, folder)
        self._ready: Any = None
        self._nodes: Nodes | None = None

    def predict(self, x_NF: np.ndarray) -> np.ndarray:
        return export.link(self.task).apply(self.score(x_NF))

    def score(self, x_NF: np.ndarray) -> np.ndarray:
        import torch

        if self._ready is None:
            module = self.module()
            self._ready = module.double() if self.kind.double else module
        made = [np.empty((0, self.shape.num_outputs))]
        with torch.inference_mode():
            for start in range(0, len(x_NF), self.kind.predict_rows):
                inputs = self._read(x_NF[start : start + self.kind.predict_rows])
                made.append(self._ready(**_tensors(inputs, double=self.kind.double)).double().numpy())
        score_NS = np.concatenate(made)
        score_NS[:, list(self.shape.unseen)] = NEVER
        return score_NS

    def module(self) -> Any:
        """The module with its weights, in single precision, not training."""
        import torch

        module = self.kind.rebuild(self.shape, self.params, self._folder)
        module.load_state_dict({name: torch.from_numpy(np.array(value)) for name, value in self.state.items()})
        return module.eval()

    def to_onnx(self) -> onnx.ModelProto:
        classes = None if self.task == "regression" else self.num_classes or 2
        return export.assemble(self.score_graph(), export.link(self.task), inputs=self.graph_inputs(), num_classes=classes)

    def score_graph(self) -> Nodes:
        """Nodes and initializers from the inputs to the tensor `export.SCORE`.

        Raises:
            Unsupported: If PyTorch cannot export the module, or the graph answers otherwise than the module.
        """
        if self._nodes is None:
            trial = self.kind.trial(self.shape, self.params)
            axes, never = self.kind.axes(self.shape, self.params), dict.fromkeys(self.shape.unseen, NEVER)
            self._nodes = exported(self.module(), self._read(trial), axes, expected_NS=self.score(trial), never=never)
        return self._nodes

    def graph_inputs(self) -> list[onnx.ValueInfoProto]:
        """What the graph takes."""
        helper = need("onnx.helper", "exporting a model")
        found = self._read(self.kind.trial(self.shape, self.params)[:1])
        return [
            helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(found[name].dtype), axes)
            for name, axes in self.kind.axes(self.shape, self.params).items()
        ]

    def weigh(self, rows: base.Matrix, *, seed: int) -> None:
        """Measure how much each feature matters, on some of the rows."""
        self.shares = permuted(self, rows, seed=seed) if self.shape.names else []

    def importance(self) -> dict[str, float]:
        """Each feature's share of the loss that shuffling it brings on some rows."""
        return dict(zip(self.shape.names, self.shares, strict=True))

    def save(self, folder: Path) -> None:
        need("safetensors.numpy", "a network").save_file(self.state, folder / WEIGHTS)
        facts = {"shape": to_plain(self.shape), "params": to_plain(self.params), "num_classes": self.num_classes}
        write_json(folder / FACTS, {**facts, "best_round": self.best_round, "importance": self.shares})
        for file in self.kind.keep(self.shape, self.params, self._folder):
            shutil.copyfile(file, folder / file.name)


def _tensors(arrays: Mapping[str, np.ndarray], *, double: bool) -> dict[str, Any]:
    import torch

    given = {name: torch.from_numpy(np.ascontiguousarray(array)) for name, array in arrays.items()}
    return {name: tensor.double() if double and tensor.is_floating_point() else tensor for name, tensor in given.items()}
