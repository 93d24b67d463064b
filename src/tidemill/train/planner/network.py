"""What a network asks of a device: parameters, matrix products, memory traffic and what stays in memory for the backward pass.

A network is a list of blocks. Lengths are counted a row of the batch; a transformer's row is one sequence.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import pairwise

from tidemill.core.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class Product:
    """A matrix product of [rows, inner] with [inner, outer], for one row of the batch: `rows` is the sequence's length, or 1."""

    rows: int
    inner: float
    outer: float
    is_weight: bool = True
    """Whether the right side is a parameter (read once for the whole micro-batch)."""

    @property
    def flops(self) -> float:
        return 2.0 * self.rows * self.inner * self.outer


@dataclass(frozen=True, kw_only=True)
class Block:
    """A part of a network that is computed, gathered and recomputed as one; `split` parts lie on the tensor axis, `whole` ones on every rank.

    Everything but parameters is of one row of the batch. Elements, where the bytes of one depend on the precision.
    """

    name: str
    whole_parameters: int = 0
    split_parameters: int = 0
    products: Sequence[Product] = ()
    """As one rank of `tensor` computes them."""
    attention_flops: float = 0.0
    """Of softmax(QK)V without a score in memory, on one rank."""
    whole_saved: float = 0.0
    """Elements that the backward pass needs, on every rank alike."""
    split_saved: float = 0.0
    """The same, of which each tensor rank has its part (already divided)."""
    saved_bytes: float = 0.0
    """Bytes that it needs whatever the precision: masks, positions, sums in float32 (already divided)."""
    whole_traffic: float = 0.0
    """Elements that element-wise work reads and writes forward, once fused."""
    split_traffic: float = 0.0
    input: float = 0.0
    """Elements of its input: what stays of it where it is recomputed."""
    reduced: float = 0.0
    """Elements that the tensor axis sums up forward, and as many backward."""
    transient: float = 0.0
    """Elements beyond what is saved while the block's backward pass runs: gradients of its widest part and of its input (already divided)."""
    loss_bytes: float = 0.0
    """Bytes beyond what is saved while the loss runs backward."""
    largest: float = 0.0
    """Parameters of its largest matrix on one rank: a gradient that is added to another is whole beside it first."""
    lasting_bytes: float = 0.0
    """Of what is saved, bytes that stay until the whole backward pass is over: the scores, which the caller holds."""

    @property
    def parameters(self) -> int:
        return self.whole_parameters + self.split_parameters

    def held(self, tensor: int) -> float:
        """Parameters on one rank of the tensor axis."""
        return self.whole_parameters + self.split_parameters / tensor


@dataclass(frozen=True, kw_only=True)
class Transformer:
    """A decoder of tokens, or an encoder of them with a head for a row.

    `gelu` with `biases`, `positions` and `dropout` is the GPT of Megatron-LM; `gated` without them a Llama.
    """

    hidden: int
    layers: int
    heads: int
    vocabulary: int
    sequence: int
    kv_heads: int = 0
    """Heads of keys and values; 0: as many as `heads`."""
    ffn: int = 0
    """Width of the feed-forward part; 0: 4 x hidden."""
    gated: bool = False
    biases: bool = True
    learned_positions: bool = True
    tied: bool = True
    """Whether the head is the embedding's table."""
    dropout: bool = False
    flash: bool = True
    """Whether attention keeps no scores in memory."""
    causal: bool = True
    outputs: int = 0
    """Numbers that a row's head gives; 0: a score for each word at each position."""
    eager: bool = False
    """Whether counted as `models/networks/decoder.py` runs without a compiler: more is kept than the papers' fused kernels keep."""
    kind: str = "decoder"

    def __post_init__(self) -> None:
        for name in ("hidden", "layers", "heads", "vocabulary", "sequence"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name}: must be at least 1, got {getattr(self, name)}")
        if self.hidden % self.heads:
            raise ConfigError(f"heads: must divide hidden, got {self.heads} heads of hidden {self.hidden}")
        if self.kv_heads and self.heads % self.kv_heads:
            raise ConfigError(f"kv_heads: must divide heads, got {self.kv_heads} of {self.heads}")

    @property
    def width(self) -> int:
        return self.ffn or 4 * self.hidden

    @property
    def kv_width(self) -> int:
        return self.hidden // self.heads * (self.kv_heads or self.heads)

    @cached_property
    def parameters(self) -> int:
        return sum(block.parameters for block in self.blocks(1))

    @property
    def unit(self) -> str:
        return "tokens"

    @property
    def units_a_row(self) -> int:
        return self.sequence

    def blocks(self, tensor: int) -> list[Block]:
        """Embedding, layers and head as one rank of `tensor` has them."""
        return [self._embedding(tensor), *[self._layer(tensor)] * self.layers, self._head(tensor)]

    def model_flops(self, *, attention: float = 1.0) -> float:
        """FLOP of forward and backward for one row, recomputation not counted (three times forward; Narayanan et al. 2021, appendix).

        Args:
            attention: Share of the scores that count: 1 as papers count, 0.5 as a causal kernel computes.
        """
        s, h, kv = self.sequence, self.hidden, self.kv_width
        layer = 2 * s * h * (2 * h + 2 * kv + (3 if self.gated else 2) * self.width) + 4 * attention * s * s * h
        head = 2 * h * (self.outputs or s * self.vocabulary)
        return 3.0 * (self.layers * layer + head)

    def illegal(self, tensor: int, pipeline: int) -> str | None:
        """Why the network cannot be split so, or None."""
        if self.heads % tensor:
            return f"{self.heads} heads must be divisible by tensor {tensor}"
        if self.kv_heads and self.kv_heads % tensor:
            return f"{self.kv_heads} heads of keys and values must be divisible by tensor {tensor}"
        if self.width % tensor:
            return f"feed-forward width {self.width} must be divisible by tensor {tensor}"
        if pipeline > self.layers:
            return f"{self.layers} layers are fewer than pipeline {pipeline}"
        if self.layers % pipeline:
            return f"{self.layers} layers must be divisible by pipeline {pipeline}"
        return None

    def _embedding(self, t: int) -> Block:
        s, h = self.sequence, self.hidden
        return Block(
            name="embedding",
            split_parameters=self.vocabulary * h,
            whole_parameters=s * h if self.learned_positions else 0,
            saved_bytes=8.0 * s + (s * h if self.dropout else 0),
            whole_traffic=3.0 * s * h,
            input=0.0,
            largest=self.vocabulary * h / t,
            reduced=s * h if t > 1 else 0.0,
        )

    def _layer(self, t: int) -> Block:
        s, h, kv, f, a = self.sequence, self.hidden, self.kv_width, self.width, self.heads
        matrices = h * (h + 2 * kv) + h * h + (3 if self.gated else 2) * h * f
        norms = 2 * h * (2 if self.biases else 1)
        biases = h + 2 * kv + f if self.biases else 0
        products = [
            Product(rows=s, inner=h, outer=(h + 2 * kv) / t),
            Product(rows=s, inner=h / t, outer=h),
            Product(rows=s, inner=h, outer=(2 if self.gated else 1) * f / t),
            Product(rows=s, inner=f / t, outer=h),
        ]
        scores = 0.0 if self.flash else a * s * s / t
        # Korthikanti et al. 2022, section 4.1: inputs of both norms, of QKV and of the first product are whole, the rest is split.
        # Run kernel by kernel, norms keep what they scaled too, attention its answer twice, and a gate what it was made of.
        whole = (6.0 if self.eager else 4.0) * s * h
        kept = (4 if self.eager else 3) if self.gated else 2
        split = s * ((2 if self.eager else 1) * h + h + 2 * kv + kept * f) / t + (2 if self.dropout else 1) * scores
        masks = (2.0 * s * h + scores) if self.dropout else 0.0
        sums = 0.0 if not self.flash else 4.0 * a * s / t
        return Block(
            name="layer",
            whole_parameters=norms + (2 * h if self.biases else 0),
            split_parameters=matrices + biases,
            products=products,
            attention_flops=(4.0 * s * s * h / t) * (0.5 if self.flash and self.causal else 1.0),
            whole_saved=whole,
            split_saved=split,
            saved_bytes=masks + sums,
            whole_traffic=10.0 * s * h,
            split_traffic=s * ((3 if self.gated else 2) * f + (0 if self.learned_positions else 2 * (h + kv))) / t + 6.0 * scores,
            input=s * h,
            transient=s * (2.0 * h + (2 if self.gated else 1) * f / t),
            largest=h * max(f, h) / t,
            reduced=2.0 * s * h if t > 1 else 0.0,
        )

    def _head(self, t: int) -> Block:
        s, h = self.sequence, self.hidden
        places, outputs = (1, self.outputs) if self.outputs else (s, self.vocabulary)
        split = t if not self.outputs else 1
        logits = places * outputs / (1 if self.eager else split)  # gathered there for the loss
        return Block(
            name="head",
            whole_parameters=h * (2 if self.biases else 1) + (0 if not self.outputs else h * outputs),
            split_parameters=0 if self.tied or self.outputs else h * outputs,
            products=[Product(rows=places, inner=h, outer=outputs / split)],
            whole_saved=(3.0 if self.eager else 2.0) * s * h,
            saved_bytes=(8.0 if self.eager else 4.0) * logits,
            whole_traffic=2.0 * s * h,
            split_traffic=6.0 * logits,
            loss_bytes=(8.0 if self.eager else 4.0) * logits,
            largest=h * outputs / split,
            lasting_bytes=4.0 * logits if self.eager else 0.0,
            reduced=s * h if t > 1 else 0.0,
        )


@dataclass(frozen=True, kw_only=True)
class Perceptron:
    """Layers of full products over the features of a row."""

    inputs: int
    widths: Sequence[int]
    outputs: int = 1
    norms: bool = True
    """Whether each hidden layer is normalised."""
    kind: str = field(default="mlp")

    def __post_init__(self) -> None:
        if self.inputs < 1 or self.outputs < 1 or not self.widths or min(self.widths) < 1:
            raise ConfigError(f"inputs, widths and outputs must be at least 1, got {self.inputs}, {list(self.widths)}, {self.outputs}")

    @property
    def unit(self) -> str:
        return "rows"

    @property
    def units_a_row(self) -> int:
        return 1

    @cached_property
    def parameters(self) -> int:
        return sum(block.parameters for block in self.blocks(1))

    def blocks(self, tensor: int) -> list[Block]:
        sizes = [self.inputs, *self.widths]
        hidden = [
            Block(
                name="layer",
                whole_parameters=i * o + o + (2 * o if self.norms else 0),
                products=[Product(rows=1, inner=i, outer=o)],
                whole_saved=float(i + (2 * o if self.norms else o)),
                whole_traffic=float((8 if self.norms else 4) * o),
                input=float(i),
                transient=float(2 * o + i),
                largest=float(i * o),
            )
            for i, o in pairwise(sizes)
        ]
        last = Block(
            name="head",
            whole_parameters=sizes[-1] * self.outputs + self.outputs,
            products=[Product(rows=1, inner=sizes[-1], outer=self.outputs)],
            whole_saved=float(sizes[-1]),
            saved_bytes=4.0 * self.outputs,
            whole_traffic=6.0 * self.outputs,
        )
        return [*hidden, last]

    def model_flops(self, *, attention: float = 1.0) -> float:
        return 3.0 * sum(product.flops for block in self.blocks(1) for product in block.products)

    def illegal(self, tensor: int, pipeline: int) -> str | None:
        if tensor > 1:
            return "a perceptron has no tensor plan"
        if pipeline > len(self.widths):
            return f"{len(self.widths)} layers are fewer than pipeline {pipeline}"
        return None


Network = Transformer | Perceptron


def sized(parameters: float, *, sequence: int = 2048, vocabulary: int = 51_200, **said: object) -> Transformer:
    """A transformer of about so many parameters, of the proportions that published models have.

    Heads of 128, and layers that grow with the cube root: about 24 at 1.7 billion parameters, 96 at 175 billion (Narayanan et al. 2021, table 1).
    """
    best: Transformer | None = None
    for hidden in (64, 128, 192, 256, 384, 512, 768, 1024, 1280, 1536, *range(2048, 32769, 1024)):
        layers = max(1, round((parameters - vocabulary * hidden) / (12 * hidden * hidden)))
        step = 8 if layers >= 64 else 4 if layers >= 12 else 1
        layers = max(1, round(layers / step)) * step
        if not 20 <= hidden / layers <= 320:
            continue
        made = Transformer(
            hidden=hidden, layers=layers, heads=max(1, hidden // 128), vocabulary=vocabulary, sequence=sequence, **said,  # type: ignore[arg-type]
        )  # fmt: skip
        if best is None or _apart(made, parameters) < _apart(best, parameters):
            best = made
    if best is None or abs(best.parameters / parameters - 1) > 0.2:
        raise ConfigError(
            f"parameters: must be of a decoder with {vocabulary} words, got {parameters:g}", hint="give hidden, layers and heads"
        )
    return best


def _apart(made: Transformer, parameters: float) -> float:
    shape = abs(made.hidden / made.layers - 110) / 110
    return abs(made.parameters / parameters - 1) + 0.1 * shape
