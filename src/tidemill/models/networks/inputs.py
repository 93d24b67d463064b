"""What networks over features begin and end with: numbers made normal, categories looked up; scores in the target's units."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from tidemill.models.networks.base import Shape


class Inputs(nn.Module):
    """`features` [N, F] to one row of numbers [N, `width`]: normal numbers, what is missing, and a learned vector for each category.

    A category's code that is missing or beyond its table counts as unseen, 0.

    Args:
        shape: What the data tell.
        max_embedding: Largest width of a table.
    """

    def __init__(self, shape: Shape, *, max_embedding: int) -> None:
        super().__init__()
        quantiles = shape.quantiles
        self.num_numbers, self.num_gaps = len(quantiles.places), len(quantiles.gaps)
        self.register_buffer("places", torch.tensor(quantiles.places, dtype=torch.int64))
        self.register_buffer("gaps", torch.tensor(quantiles.gaps, dtype=torch.int64))
        if self.num_numbers:
            knots_FK, values_FK = torch.tensor(quantiles.knots).reshape(self.num_numbers, -1), torch.tensor(quantiles.values)
            width_FK = knots_FK.diff(dim=1)
            self.register_buffer("low", knots_FK[:, :-1].clone())
            self.register_buffer("width_of", torch.where(width_FK > 0, width_FK, 1.0))
            self.register_buffer("rise", values_FK.diff(dim=1))
            self.register_buffer("start", values_FK[:, 0].clone())
        coded = [(place, name) for place, name in enumerate(shape.names) if name in shape.tables]
        self.register_buffer("codes", torch.tensor([place for place, _ in coded], dtype=torch.int64))
        tables = [shape.tables[name] for _, name in coded]
        self.tables = nn.ModuleList(nn.Embedding(table["rows"], min(table["width"], max_embedding)) for table in tables)
        for table in self.tables:
            nn.init.normal_(table.weight, std=0.05)
        self.width = self.num_numbers + self.num_gaps + sum(table.embedding_dim for table in self.tables)

    def forward(self, features: Tensor) -> Tensor:
        parts = []
        if self.num_numbers:
            raw_NF = features.index_select(1, self.places)
            missing_NF = raw_NF.isnan()
            filled_NF = torch.where(missing_NF, torch.zeros_like(raw_NF), raw_NF)
            passed_NFK = ((filled_NF.unsqueeze(2) - self.low) / self.width_of).clamp(0.0, 1.0)
            number_NF = self.start + (passed_NFK * self.rise).sum(2)
            parts.append(torch.where(missing_NF, torch.zeros_like(number_NF), number_NF))
        if self.num_gaps:
            parts.append(features.index_select(1, self.gaps).isnan().to(features.dtype))
        if len(self.tables):
            code_NC = features.index_select(1, self.codes)
            code_NC = torch.where(code_NC.isnan(), torch.zeros_like(code_NC), code_NC)
            for place, table in enumerate(self.tables):
                code_N = code_NC[:, place]
                known_N = (code_N >= 0) & (code_N < table.num_embeddings)
                parts.append(table(torch.where(known_N, code_N, torch.zeros_like(code_N)).long()))
        return torch.cat(parts, dim=1)


class Head(nn.Linear):
    """Scores [N, S]; of regression in the target's own units."""

    def __init__(self, width: int, shape: Shape) -> None:
        super().__init__(width, shape.num_outputs)
        nn.init.normal_(self.weight, std=0.01)
        nn.init.zeros_(self.bias)
        self.register_buffer("unit", torch.tensor([shape.center, shape.scale], dtype=torch.float32))
        self.in_units = shape.task == "regression"

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002 - PyTorch's name
        scores = super().forward(input)
        return scores * self.unit[1] + self.unit[0] if self.in_units else scores
