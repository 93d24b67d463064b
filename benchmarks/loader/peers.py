"""The same work in torch's DataLoader, as its documentation has it: processes, collating, sharding by worker."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import torch
from tokenizers import Tokenizer
from torch.utils.data import DataLoader, Dataset, IterableDataset, TensorDataset, get_worker_info

from tidemill.core.artifact import Artifact
from tidemill.core.graph import BulkGraph
from tidemill.core.schema import Schema


class RowGroups(IterableDataset):  # type: ignore[type-arg]
    """Row groups dealt to workers, through the same graph, rows of as many groups as a window has mixed, in batches."""

    def __init__(self, data: Artifact, features: Artifact, *, batch_rows: int, window: int) -> None:
        self.files = sorted((data.path / "train").glob("*.parquet"))
        self.groups = [(file, number) for file in self.files for number in range(pq.read_metadata(file).num_row_groups)]
        self.features, self.batch_rows, self.window = features.path, batch_rows, window
        self.inputs = features.read_json("features.json")["inputs"]

    def __iter__(self) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        worker = get_worker_info()
        schema = Schema.from_json(self.inputs)
        graph = BulkGraph(self.features / "features.onnx", schema, threads=1)
        texts = [column.name for column in schema if column.type == "string"]
        rng = np.random.default_rng(worker.seed if worker else 0)
        groups = [self.groups[place] for place in np.random.default_rng(0).permutation(len(self.groups))]
        own = groups[worker.id :: worker.num_workers] if worker else groups
        for first in range(0, len(own), self.window):
            x, y = [], []
            for file, number in own[first : first + self.window]:
                with pq.ParquetFile(file, read_dictionary=texts) as parquet:
                    for rows in parquet.iter_batches(65_536, row_groups=[number], columns=[*schema.names, "click"]):
                        x.append(graph.run(rows, ["features"])["features"])
                        y.append(rows["click"].to_numpy())
            x_NF, y_N = torch.from_numpy(np.concatenate(x)), torch.from_numpy(np.concatenate(y))
            order = torch.from_numpy(rng.permutation(len(y_N)))
            for start in range(0, len(order), self.batch_rows):
                rows_N = order[start : start + self.batch_rows]
                yield x_NF[rows_N], y_N[rows_N]


def row_groups(data: Artifact, features: Artifact, *, batch_rows: int, workers: int, window: int) -> DataLoader:  # type: ignore[type-arg]
    return DataLoader(RowGroups(data, features, batch_rows=batch_rows, window=window), batch_size=None, num_workers=workers)


def tensors(x_NF: np.ndarray, y_N: np.ndarray, *, batch_rows: int, workers: int) -> DataLoader:  # type: ignore[type-arg]
    """Rows in memory, by TensorDataset with shuffle."""
    return DataLoader(
        TensorDataset(torch.from_numpy(x_NF), torch.from_numpy(y_N)), batch_size=batch_rows, shuffle=True, num_workers=workers
    )


class Texts(Dataset):  # type: ignore[type-arg]
    def __init__(self, texts: Sequence[str]) -> None:
        self.texts = list(texts)

    def __len__(self) -> int:
        return len(self.texts)

    def __getitem__(self, place: int) -> str:
        return self.texts[place]


class Collate:
    """Tokenizes and pads to the longest of the batch."""

    def __init__(self, tokenizer: Path, *, max_length: int) -> None:
        self.tokenizer = Tokenizer.from_file(str(tokenizer))
        self.tokenizer.enable_truncation(max_length=max_length)
        self.tokenizer.enable_padding()

    def __call__(self, texts: Sequence[str]) -> dict[str, torch.Tensor]:
        rows = self.tokenizer.encode_batch_fast(list(texts))
        return {
            "input_ids": torch.tensor([row.ids for row in rows]),
            "attention_mask": torch.tensor([row.attention_mask for row in rows]),
        }


def texts(rows: Sequence[str], tokenizer: Path, *, batch_rows: int, workers: int, max_length: int) -> DataLoader:  # type: ignore[type-arg]
    return DataLoader(
        Texts(rows), batch_size=batch_rows, shuffle=True, num_workers=workers, collate_fn=Collate(tokenizer, max_length=max_length)
    )


class Images(Dataset):  # type: ignore[type-arg]
    """Images one by one: padded, cut, mirrored, a rectangle wiped out."""

    def __init__(self, pixels_NCHW: np.ndarray, y_N: np.ndarray, *, crop: int) -> None:
        self.pixels_NCHW, self.y_N, self.crop = torch.from_numpy(pixels_NCHW), torch.from_numpy(y_N), crop

    def __len__(self) -> int:
        return len(self.y_N)

    def __getitem__(self, place: int) -> Any:
        image = self.pixels_NCHW[place]
        height, width = image.shape[1:]
        padded = torch.nn.functional.pad(image, (self.crop,) * 4)
        top, left = torch.randint(0, 2 * self.crop + 1, (2,)).tolist()
        image = padded[:, top : top + height, left : left + width]
        if torch.rand(1).item() < 0.5:
            image = image.flip(2)
        if torch.rand(1).item() < 0.5:
            image = image.clone()
            area = float(torch.empty(1).uniform_(0.02, 0.33)) * height * width
            aspect = float(torch.exp(torch.empty(1).uniform_(-1.2, 1.2)))
            tall, wide = min(height, round((area * aspect) ** 0.5)), min(width, round((area / aspect) ** 0.5))
            y, x = int(torch.randint(0, height - tall + 1, (1,))), int(torch.randint(0, width - wide + 1, (1,)))
            image[:, y : y + tall, x : x + wide] = 0
        return image, self.y_N[place]


def images(pixels_NCHW: np.ndarray, y_N: np.ndarray, *, batch_rows: int, workers: int, crop: int) -> DataLoader:  # type: ignore[type-arg]
    return DataLoader(Images(pixels_NCHW, y_N, crop=crop), batch_size=batch_rows, shuffle=True, num_workers=workers)
