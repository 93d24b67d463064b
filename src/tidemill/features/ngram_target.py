"""N-gram target: what the runs of characters in a text say of the target, cross-fitted."""

from __future__ import annotations

import sys
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Any, ClassVar, Literal

import numpy as np

from tidemill.core.errors import ConfigError
from tidemill.core.schema import NULL_STRING
from tidemill.features.builder import DOUBLE, FLOAT, INT64, MICROSOFT, Block, Builder
from tidemill.features.characters import FILL, MAX_LENGTH, character_nodes
from tidemill.features.hash_ngrams import FACTORS, MAX_N, PRIME
from tidemill.features.murmur import hash_texts
from tidemill.features.operator import Fitted, Kind, Made, Predicted, TargetSums, Values, numbers


@dataclass(frozen=True, kw_only=True)
class NgramTarget:
    """For free text: features `<column>.<n>gram`, the sum over all runs of n characters of how far the target of the rows with
    that run is from the mean, over the root of the number of runs. The evidence of naive Bayes, in the target's unit.

    Each run's distance is drawn towards 0 the rarer it is. Runs share `buckets` as in `hash_ngrams`, both ends of the text
    counting as one character, capitals as small letters. A multiclass task makes a feature for each class. A training row
    sees what the folds taught that it is not in (`features.folds`); every other row, and all that a package answers, what
    all training rows taught. A package with it needs ONNX Runtime.

    | value                      | becomes                                                            |
    |----------------------------|--------------------------------------------------------------------|
    | null, empty text           | 0                                                                  |
    | runs never seen            | add 0                                                              |
    | beyond `max_length`        | what the first `max_length` characters say                         |
    | accents written apart      | characters of their own; text is not normalized                    |
    """

    n: tuple[int, ...] = (4, 6)
    """Characters in a run, each in 3..8: a feature for each."""
    buckets: int = field(default=65_536, metadata={"min": 2, "max": 2**20})
    """Buckets that runs of one length share, in 2..1048576."""
    smooth: float = field(default=2.0, metadata={"min": 0.0, "max": 1e6})
    """Rows at the mean that each bucket is mixed with."""
    max_length: int = field(default=MAX_LENGTH, metadata={"min": 1, "max": MAX_LENGTH})
    """Characters that are looked at, in 1..1000."""

    needs_target: ClassVar[Literal[True]] = True
    accepts: ClassVar[tuple[Kind, ...]] = ("string",)

    def check(self) -> None:
        if not self.n or len(set(self.n)) < len(self.n) or not all(3 <= n <= MAX_N for n in self.n):
            raise ConfigError(f"ngram_target: n must be different lengths in 3..{MAX_N}, got {list(self.n)}")

    def fit(self, kind: Kind, predicted: Predicted) -> NgramSums:
        return NgramSums(self, predicted)

    def reference(self, name: str, values: Values, fitted: Fitted, fold_N: np.ndarray | None = None) -> Made:
        texts = values.data.tolist()
        made = {}
        for n in self.n:
            table_BFT = self._table(fitted, n)
            fold = np.full(len(texts), table_BFT.shape[1] - 1) if fold_N is None else fold_N
            place_R, owner_R = runs(texts, n, buckets=self.buckets, max_length=self.max_length)
            said_RT = table_BFT[place_R, fold[owner_R]].astype(np.float64)
            size_N = np.maximum(np.bincount(owner_R, minlength=len(texts)), 1)
            for t, feature in enumerate(self._names(name, n, fitted)):
                made[feature] = numbers(np.bincount(owner_R, said_RT[:, t], len(texts)) / np.sqrt(size_N))
        return Made(made)

    def nodes(self, graph: Builder, block: Block, fitted: Sequence[Fitted]) -> Block:
        made, names, origins = [], [], []
        over_runs = graph.constant([1], np.int64)
        for i, texts in enumerate(graph.split(block)):
            for n in self.n:
                table_BFT = self._table(fitted[i], n)
                table_BFT = table_BFT[:, -1:] if graph.fold is None else table_BFT
                with graph.taking_apart():
                    places, there = self._run_nodes(graph, character_nodes(graph, texts, self.max_length), n)
                    rows = graph.constant(table_BFT.reshape(self.buckets, -1), np.float32)
                    said = graph.cast(graph.node("Gather", rows, places, axis=0), DOUBLE)
                    said = graph.node("Mul", said, graph.node("Unsqueeze", there, graph.constant([2], np.int64)))
                    total = graph.node("ReduceSum", said, over_runs, keepdims=0)
                    size = graph.node("Max", graph.node("ReduceSum", there, over_runs, keepdims=1), graph.constant([[1.0]], np.float64))
                    score = graph.cast(graph.node("Div", total, graph.node("Sqrt", size)), FLOAT)
                    null = graph.node("Equal", texts, graph.constant([[NULL_STRING]], object))
                    score = graph.node("Where", null, graph.constant([[0]], np.float32), score)
                if graph.fold is not None:
                    width = table_BFT.shape[2]
                    first = graph.node("Mul", graph.fold, graph.constant([[width]], np.int64))
                    score = graph.node(
                        "GatherElements", score, graph.node("Add", first, graph.constant([np.arange(width)], np.int64)), axis=1
                    )
                made.append(score)
                features = self._names(block.names[i], n, fitted[i])
                names += features
                origins += [block.origins[i]] * len(features)
        return block.take(names, graph.stack(made), FLOAT, origins=tuple(origins))

    def _run_nodes(self, graph: Builder, characters: str, n: int) -> tuple[str, str]:
        """The bucket of each run, int64 [N, R], and 1.0 where there is one, of characters [N, D]."""
        small = graph.node(
            "LabelEncoder",
            characters,
            domain="ai.onnx.ml",
            keys_strings=list(_small()),
            values_int64s=list(_small().values()),
            default_int64=-1,
        )
        hashes = graph.cast(graph.node("MurmurHash3", characters, domain=MICROSOFT, seed=0, positive=1), INT64)
        is_small = graph.node("Less", small, graph.constant([[0]], np.int64))
        (end,) = hash_texts([FILL]).tolist()
        hashes = graph.node("Where", is_small, hashes, small)
        hashes = graph.node("Pad", hashes, graph.constant([0, 1, 0, n - 1], np.int64), graph.constant(end, np.int64))
        total = ""
        for j in range(n):
            term = graph.node("Mul", _window(graph, hashes, j, n), graph.constant([[FACTORS[j]]], np.int64))
            total = graph.node("Add", total, term) if total else term
        prime, buckets = graph.constant([[PRIME]], np.int64), graph.constant([[self.buckets]], np.int64)
        places = graph.node("Mod", graph.node("Mod", total, prime), buckets)
        # A run is one where the character before its last is there: the first end counts as a character, the last does not.
        there = graph.cast(graph.node("Not", graph.node("Equal", characters, graph.constant([[FILL]], object))), DOUBLE)
        there = graph.node("Pad", there, graph.constant([0, 1, 0, 0], np.int64), graph.constant(1.0, np.float64))
        there = graph.node("Pad", there, graph.constant([0, 0, 0, n - 1], np.int64), graph.constant(0.0, np.float64))
        return places, _window(graph, there, n - 2, n)

    def _table(self, fitted: Fitted, n: int) -> np.ndarray:
        """What each bucket says, float32 [B, F + 1, T]; the last fold stands for all rows."""
        said = fitted["runs"][str(n)]
        table_BFT = np.zeros((self.buckets, fitted["folds"] + 1, max(1, len(fitted["labels"]))), np.float32)
        if said["buckets"]:
            table_BFT[said["buckets"]] = np.asarray(said["values"], np.float32).reshape(len(said["buckets"]), *table_BFT.shape[1:])
        return table_BFT

    def _names(self, name: str, n: int, fitted: Fitted) -> list[str]:
        return [f"{name}.{n}gram.{label}" for label in fitted["labels"]] or [f"{name}.{n}gram"]


@dataclass(frozen=True)
class NgramSums:
    """Fits `NgramTarget`: runs and sums of the target by fold and bucket, for each length; rows and sums by fold."""

    operator: NgramTarget
    predicted: Predicted

    def init(self) -> dict[str, np.ndarray]:
        folds, buckets, width = self.predicted.num_folds, self.operator.buckets, self.predicted.num_values
        state = {"rows": np.zeros(folds, np.int64), "sums": np.zeros((folds, width))}
        for n in self.operator.n:
            state |= {f"{n} rows": np.zeros((folds, buckets), np.int64), f"{n} sums": np.zeros((folds, buckets, width))}
        return state

    def update(self, state: dict[str, np.ndarray], values: Values, target: TargetSums) -> dict[str, np.ndarray]:
        np.add.at(state["rows"], target.fold_N, target.rows_N)
        np.add.at(state["sums"], target.fold_N, target.sum_NT)
        buckets = self.operator.buckets
        for n in self.operator.n:
            place_R, owner_R = runs(values.data.tolist(), n, buckets=buckets, max_length=self.operator.max_length)
            cell_R = target.fold_N[owner_R] * buckets + place_R
            rows_FB, sums_FBT = state[f"{n} rows"], state[f"{n} sums"]
            rows_FB += np.bincount(cell_R, target.rows_N[owner_R], rows_FB.size).astype(np.int64).reshape(rows_FB.shape)
            for t in range(self.predicted.num_values):
                sums_FBT[..., t] += np.bincount(cell_R, target.sum_NT[owner_R, t], rows_FB.size).reshape(rows_FB.shape)
        return state

    def merge(self, left: dict[str, np.ndarray], right: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        for name, sums in right.items():
            left[name] += sums
        return left

    def finish(self, state: dict[str, np.ndarray]) -> Fitted:
        folds = self.predicted.num_folds
        taught = [*([other for other in range(folds) if other != fold] for fold in range(folds)), list(range(folds))]
        found: dict[str, Any] = {}
        for n in self.operator.n:
            place_B = np.flatnonzero(state[f"{n} rows"].sum(axis=0))
            rows_FB, sums_FBT = state[f"{n} rows"][:, place_B], state[f"{n} sums"][:, place_B]
            said_BFT = np.empty((len(place_B), folds + 1, self.predicted.num_values))
            for fold, kept in enumerate(taught):
                mean_T = state["sums"][kept].sum(axis=0) / max(int(state["rows"][kept].sum()), 1)
                rows_B1 = rows_FB[kept].sum(axis=0)[:, None]
                said_BFT[:, fold] = (sums_FBT[kept].sum(axis=0) - rows_B1 * mean_T) / np.maximum(rows_B1 + self.operator.smooth, 1e-9)
            found[str(n)] = {
                "buckets": place_B.tolist(),
                "values": _rounded(said_BFT[..., 0] if said_BFT.shape[2] == 1 else said_BFT).tolist(),
            }
        return {"labels": list(self.predicted.labels), "folds": folds, "unicode": unicodedata.unidata_version, "runs": found}


def runs(texts: Sequence[str | None], n: int, *, buckets: int, max_length: int) -> tuple[np.ndarray, np.ndarray]:
    """The bucket of each run of n characters of N texts, and the place of the text that it is in; int64 [R] both."""
    cut = [(text or "")[:max_length] for text in texts]
    length_N = np.fromiter(map(len, cut), np.int64, len(cut))
    point_C = np.frombuffer("".join(cut).encode("utf-32-le"), "<u4").astype(np.int64)
    alphabet, at_C = np.unique(point_C, return_inverse=True)
    hash_A = np.array(hash_texts([chr(point) for point in alphabet.tolist()]), np.int64)
    small = _small()
    hash_A = np.array([small.get(chr(point), own) for point, own in zip(alphabet.tolist(), hash_A.tolist(), strict=True)], np.int64)
    (end,) = hash_texts([FILL]).tolist()
    # Each text between two ends, one after the other.
    first_N = np.cumsum(length_N + 2) - length_N - 1
    hash_M = np.full(int(length_N.sum()) + 2 * len(cut), end, np.int64)
    inner_C = np.arange(len(point_C)) + np.repeat(first_N - np.cumsum(length_N) + length_N, length_N)
    hash_M[inner_C] = hash_A[at_C]
    owner_M = np.repeat(np.arange(len(cut)), length_N + 2)
    num_runs = max(len(hash_M) - n + 1, 0)
    total_R = sum((hash_M[j : j + num_runs] * FACTORS[j] for j in range(n)), np.zeros(num_runs, np.int64))
    whole_R = owner_M[:num_runs] == owner_M[n - 1 : n - 1 + num_runs]
    return (total_R % PRIME % buckets)[whole_R], owner_M[:num_runs][whole_R]


def _window(graph: Builder, tensor: str, start: int, n: int) -> str:
    """Columns from `start` on, as many as runs may begin at: n - 1 fewer than there are."""
    left = n - 1 - start
    end = graph.constant([-left if left else 2**62], np.int64)
    return graph.node("Slice", tensor, graph.constant([start], np.int64), end, graph.constant([1], np.int64))


def _rounded(values: np.ndarray) -> np.ndarray:
    """Numbers of four digits: there are many, and no more is known of them."""
    with np.errstate(divide="ignore"):
        digits = 3 - np.floor(np.log10(np.abs(values)))
    scale = 10.0 ** np.where(np.isfinite(digits), digits, 0)
    return np.asarray(np.round(values * scale) / scale + 0.0)


@cache
def _small() -> dict[str, int]:
    """The hash of the small letter of every capital that has one alone."""
    capitals = [
        character for character in map(chr, range(sys.maxunicode + 1)) if character != character.lower() and len(character.lower()) == 1
    ]
    return dict(zip(capitals, hash_texts([character.lower() for character in capitals]).tolist(), strict=True))
