"""Tensors of all ranks in one folder, by torch.distributed.checkpoint, with an index that is JSON and so holds no code.

Each rank writes its parts to a file of its own. `index.json`, written last by the first rank when all are on the disk, says
where each part of each tensor is, so that any other number of ranks finds what it needs.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch.distributed.checkpoint import FileSystemReader, FileSystemWriter
from torch.distributed.checkpoint.filesystem import _StorageInfo
from torch.distributed.checkpoint.metadata import (
    ChunkStorageMetadata,
    Metadata,
    MetadataIndex,
    StorageMeta,
    TensorProperties,
    TensorStorageMetadata,
)

from tidemill.core.artifact import sync, write_json

INDEX = "index.json"


class Writer(FileSystemWriter):
    """Writes a folder that is whole once it has its index.

    Args:
        facts: What the index says beside; JSON values.
    """

    def __init__(self, folder: Path, facts: Mapping[str, Any]) -> None:
        super().__init__(str(folder), single_file_per_rank=True, sync_files=True)
        self._facts = facts

    def finish(self, metadata: Metadata, results: list[list[Any]]) -> None:
        placed: dict[str, dict[tuple[int, ...], Any]] = {}
        for one in (one for rank in results for one in rank):
            placed.setdefault(one.index.fqn, {})[tuple(one.index.offset)] = one.storage_data
        tensors = {}
        for name, tensor in metadata.state_dict_metadata.items():
            chunks = []
            for chunk in tensor.chunks:
                where = placed[name][tuple(chunk.offsets)]
                place = {"file": where.relative_path, "start": where.offset, "bytes": where.length}
                chunks.append({"offset": list(chunk.offsets), "size": list(chunk.sizes), **place})
            tensors[name] = {"dtype": str(tensor.properties.dtype).removeprefix("torch."), "size": list(tensor.size), "chunks": chunks}
        folder = Path(self.path)
        sync(folder)
        write_json(folder / INDEX, {"format": 1, **self._facts, "tensors": tensors})
        sync(folder)


class Reader(FileSystemReader):
    """Reads what `Writer` left."""

    def read_metadata(self, *args: Any, **kwargs: Any) -> Metadata:
        tensors: dict[str, TensorStorageMetadata] = {}
        places: dict[MetadataIndex, _StorageInfo] = {}
        for name, told in read_index(Path(self.path))["tensors"].items():
            chunks = [ChunkStorageMetadata(torch.Size(chunk["offset"]), torch.Size(chunk["size"])) for chunk in told["chunks"]]
            properties = TensorProperties(dtype=getattr(torch, told["dtype"]))
            tensors[name] = TensorStorageMetadata(properties, torch.Size(told["size"]), chunks)
            for chunk in told["chunks"]:
                places[MetadataIndex(name, chunk["offset"])] = _StorageInfo(chunk["file"], chunk["start"], chunk["bytes"])
        return Metadata(state_dict_metadata=tensors, storage_data=places, storage_meta=StorageMeta(load_id=self.load_id))


def read_index(folder: Path) -> dict[str, Any]:
    told: dict[str, Any] = json.loads((folder / INDEX).read_text(encoding="utf-8"))
    return told


def empty(told: Mapping[str, Any]) -> torch.Tensor:
    """A tensor of the size and type that the index says, to be filled."""
    return torch.empty(told["size"], dtype=getattr(torch, told["dtype"]))
