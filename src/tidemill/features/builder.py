"""A thin layer over `onnx.helper`: unique names, shared constants, and blocks of columns handled by the same nodes.

A row through dozens of columns must take microseconds, and each node costs about half of one: columns of one kind
with one chain of steps are stacked into one tensor [N, C], and their statistics into constants [1, C].
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from tidemill.core.errors import ConfigError
from tidemill.core.graph import IR_VERSION, OPSETS, RUNTIME_OPSETS, TAKEN_APART
from tidemill.core.schema import NULL_BOOLEAN, VALID_SUFFIX, Column
from tidemill.features.operator import Kind

# Element types by the numbers that ONNX gives them (TensorProto.DataType).
FLOAT, UINT8, INT64, STRING, BOOL, DOUBLE = 1, 2, 7, 8, 9, 11

# Domain of the nodes that only ONNX Runtime has.
MICROSOFT = "com.microsoft"

# Attributes with an entry for each category, of which there may be 100,000; by name, and last of a node's.
TABLES = ("keys_int64s", "keys_strings", "values_floats", "values_int64s", "values_strings")

ELEMENTS = {"boolean": UINT8, "int64": INT64, "float32": FLOAT, "float64": DOUBLE, "string": STRING, "timestamp": INT64}


@dataclass(frozen=True, kw_only=True)
class Block:
    """Columns of one kind on their way through the graph.

    Nulls: NaN in numbers, U+FFFF in strings, the int64 minimum in times, False of `valid` in integers.
    """

    kind: Kind
    names: tuple[str, ...]
    origins: tuple[str, ...]
    """The raw or derived column behind each column."""
    tensors: tuple[str, ...]
    """One tensor [N, C] with all columns side by side, or C tensors [N, 1]."""
    element: int
    """ONNX element type; numbers are FLOAT or DOUBLE, integers any type that holds them exactly."""
    valid: tuple[str, ...] = ()
    """Bool tensors laid out as `tensors` are, or one [N, 1] for all columns; none where an integer cannot be null."""
    parts: tuple[tuple[Block, ...], ...] = ()
    """Of crossed columns, which have no tensors: blocks of one column each whose categories make up theirs."""

    def __len__(self) -> int:
        return len(self.names)

    def take(self, names: Sequence[str], tensor: str, element: int, **changes: Any) -> Block:
        """This block with one stacked tensor of numbers in the place of its own, columns named anew."""
        return replace(self, **{"kind": "number", "names": tuple(names), "tensors": (tensor,), "element": element, "valid": (), **changes})


class Builder:
    """Collects nodes and constants of one graph, and the features that leave it."""

    def __init__(self, left_out: Iterable[str] = (), *, fold: str | None = None) -> None:
        """Of no columns yet.

        Args:
            left_out: Names of features that must not leave.
            fold: Input int64 [N, 1] with the fold of each row, in a graph for training.
        """
        self._left_out = frozenset(left_out)
        self.fold = fold
        self._nodes: list[Any] = []
        self._taking_apart = False
        self._constants: dict[tuple[Any, ...], str] = {}
        self._initializers: list[Any] = []
        self._features: list[tuple[str, list[tuple[str, str]]]] = []

    def node(self, kind: str, *inputs: str, domain: str = "", **attributes: Any) -> str:
        """Add a node of one output and return the output's name."""
        return self.nodes(kind, inputs, 1, domain=domain, **attributes)[0]

    def nodes(self, kind: str, inputs: Iterable[str], outputs: int, *, domain: str = "", **attributes: Any) -> tuple[str, ...]:
        """Add a node and return its outputs' names."""
        from onnx import helper

        tables = {name: attributes.pop(name) for name in TABLES if name in attributes}
        number = len(self._nodes)
        names = tuple(f"/{kind}_{number}" if outputs == 1 else f"/{kind}_{number}_{i}" for i in range(outputs))
        mark = TAKEN_APART if self._taking_apart else None
        made = helper.make_node(kind, list(inputs), list(names), name=f"{kind}_{number}", domain=domain, doc_string=mark, **attributes)
        for name, values in tables.items():
            _add_table(made, name, values)
        self._nodes.append(made)
        return names

    @contextmanager
    def taking_apart(self) -> Iterator[None]:
        """Nodes made in here are row by row a function of one text column and end in float32 [N, K].

        Bulk computes them once per distinct text, and of so many at once that all their characters fit in memory.
        """
        self._taking_apart = True
        try:
            yield
        finally:
            self._taking_apart = False

    def constant(self, values: Any, kind: Any = None) -> str:
        """The name of a constant; equal ones are stored once."""
        from onnx import numpy_helper

        array = np.asarray(values, kind)
        key = (array.dtype.str, array.shape, tuple(array.ravel().tolist()) if array.dtype == object else array.tobytes())
        if key not in self._constants:
            self._constants[key] = f"/constant_{len(self._constants)}"
            self._initializers.append(numpy_helper.from_array(array, self._constants[key]))
        return self._constants[key]

    def cast(self, tensor: str, element: int) -> str:
        return self.node("Cast", tensor, to=element)

    def stack(self, tensors: Sequence[str]) -> str:
        """Tensors [N, ...] side by side as one."""
        return tensors[0] if len(tensors) == 1 else self.node("Concat", *tensors, axis=1)

    def split(self, block: Block) -> tuple[str, ...]:
        """A block's columns as tensors [N, 1] each."""
        if block.parts:
            raise ConfigError(
                f"features.{block.names[0]}: cross must be followed by an operator that looks categories up",
                hint="one_hot, vocabulary, hash, frequency and target do",
            )
        if len(block.tensors) == len(block):
            return block.tensors
        return self.nodes("Split", block.tensors, len(block), axis=1, num_outputs=len(block))

    def singles(self, block: Block) -> list[Block]:
        """A block as blocks of one column each."""
        if len(block) == 1:
            return [block]
        tensors, valid = self.split(block), block.valid
        if valid and len(valid) < len(block):
            each = self.node("And", self.stack(valid), self.constant([[True] * len(block)], bool))
            valid = self.nodes("Split", [each], len(block), axis=1, num_outputs=len(block))
        return [
            replace(block, names=(name,), origins=(origin,), tensors=(tensors[i],), valid=valid[i : i + 1])
            for i, (name, origin) in enumerate(zip(block.names, block.origins, strict=True))
        ]

    def numbers(self, block: Block) -> str:
        """A block of numbers or integers as one double tensor [N, C], null NaN."""
        stacked = self.stack(block.tensors)
        doubles = stacked if block.element == DOUBLE else self.cast(stacked, DOUBLE)
        return self._without_nulls(block, doubles, np.float64)

    def together(self, blocks: Sequence[Block]) -> Block:
        """Blocks of one kind and layout as one."""
        if len(blocks) == 1:
            return blocks[0]
        first = blocks[0]
        names = tuple(name for block in blocks for name in block.names)
        origins = tuple(origin for block in blocks for origin in block.origins)
        if first.kind == "number":
            stacked = self.stack([self.numbers(block) for block in blocks])
            return Block(kind="number", names=names, origins=origins, tensors=(stacked,), element=DOUBLE)
        if first.valid or (first.tensors and len(first.tensors) < len(first)):
            blocks = [one for block in blocks for one in self.singles(block)]
        tensors = tuple(tensor for block in blocks for tensor in block.tensors)
        valid = tuple(tensor for block in blocks for tensor in block.valid)
        parts = tuple(part for block in blocks for part in block.parts)
        return replace(first, names=names, origins=origins, tensors=tensors, valid=valid, parts=parts)

    def integers(self, block: Block) -> Block:
        """A block of integers as int64."""
        if block.element == INT64:
            return block
        return replace(block, tensors=(self.cast(self.stack(block.tensors), INT64),), element=INT64)

    def raw(self, columns: Sequence[Column], kind: Kind) -> Block:
        """The graph's inputs for raw columns, as a block of the kind.

        Number blocks may mix types; the order of `columns` is kept where all are of one type, else it goes by type.
        Blocks of any other kind hold columns of one type, all nullable or none.
        """
        if kind == "number":
            return self._raw_numbers(columns)
        names = tuple(column.name for column in columns)
        if columns[0].type == "boolean":
            stacked = self.stack(names)
            valid: tuple[str, ...] = (self._is_boolean(stacked),)
            return Block(kind=kind, names=names, origins=names, tensors=(stacked,), element=UINT8, valid=valid)
        valid = tuple(name + VALID_SUFFIX for name in names) if columns[0].type == "int64" and columns[0].nullable else ()
        return Block(kind=kind, names=names, origins=names, tensors=names, element=ELEMENTS[columns[0].type], valid=valid)

    def emit(self, block: Block) -> None:
        """Let a block's columns leave as features, null NaN, but for those that are left out."""
        kept = [i for i, name in enumerate(block.names) if name not in self._left_out]
        leaving = [(block.origins[i], block.names[i]) for i in kept]
        if block.element == FLOAT and not block.valid and len(block.tensors) == len(block):
            self._features += [(block.tensors[i], [place]) for i, place in zip(kept, leaving, strict=True)]
            return
        if not kept:
            return
        stacked = self.stack(block.tensors)
        if block.element == FLOAT:
            made = self._without_nulls(block, stacked, np.float32)
        elif block.element in (UINT8, BOOL):
            made = self._without_nulls(block, self.cast(stacked, FLOAT), np.float32)
        else:
            made = self.cast(self.numbers(block), FLOAT)
        if len(kept) < len(block):
            made = self.node("Gather", made, self.constant(kept, np.int64), axis=1)
        self._features.append((made, leaving))

    def makers(self) -> dict[str, str]:
        """Which raw or derived column each feature comes from, in the features' order."""
        return {name: origin for _, places in self._features for origin, name in places}

    def finish(self, columns: Sequence[Column]) -> tuple[bytes, list[str]]:
        """The serialized graph from these raw columns to `features` float32 [N, F], and the features' names in its order.

        Raises:
            ConfigError: If two features have one name.
        """
        from onnx import helper

        names = [name for _, places in self._features for _, name in places]
        twice = next((name for name, count in Counter(names).items() if count > 1), None)
        if twice is not None:
            makers = sorted({origin for _, places in self._features for origin, name in places if name == twice})
            raise ConfigError(
                f"features must have names of their own, columns {' and '.join(makers)} make {twice!r}", hint="rename one in prepare"
            )
        self.node("Concat", *(tensor for tensor, _ in self._features), axis=1)
        self._nodes[-1].output[0] = "features"
        nodes, initializers = self._needed()
        inputs = []
        for column in columns:
            inputs.append(helper.make_tensor_value_info(column.name, ELEMENTS[column.type], [None, 1]))
            if column.type == "int64" and column.nullable:
                inputs.append(helper.make_tensor_value_info(column.name + VALID_SUFFIX, BOOL, [None, 1]))
        if self.fold is not None:
            inputs.append(helper.make_tensor_value_info(self.fold, INT64, [None, 1]))
        output = helper.make_tensor_value_info("features", FLOAT, [None, len(names)])
        graph = helper.make_graph(nodes, "features", inputs, [output], initializers)
        used = {node.domain for node in nodes}
        domains = {**OPSETS, **{domain: version for domain, version in RUNTIME_OPSETS.items() if domain in used}}
        opsets = [helper.make_opsetid(domain, version) for domain, version in domains.items()]
        model = helper.make_model(graph, opset_imports=opsets, ir_version=IR_VERSION, producer_name="tidemill")
        return model.SerializeToString(deterministic=True), names

    def _needed(self) -> tuple[list[Any], list[Any]]:
        """The nodes and constants that the features depend on, in order; what only a feature that is left out needs is not among them."""
        wanted = {"features"}
        nodes = []
        for node in reversed(self._nodes):
            if wanted.intersection(node.output):
                wanted.update(node.input)
                nodes.append(node)
        return nodes[::-1], [value for value in self._initializers if value.name in wanted]

    def _raw_numbers(self, columns: Sequence[Column]) -> Block:
        """Columns of several types as numbers: converted type by type, so that each costs its nodes once."""
        parts: dict[tuple[str, bool], list[Column]] = {}
        for column in columns:
            parts.setdefault((column.type, column.nullable and column.type == "int64"), []).append(column)
        blocks = []
        for (kind, nullable), members in parts.items():
            names = tuple(column.name for column in members)
            valid: tuple[str, ...] = ()
            tensors = names
            if kind == "boolean":
                tensors = (self.stack(names),)
                valid = (self._is_boolean(tensors[0]),)
            elif nullable:
                valid = tuple(name + VALID_SUFFIX for name in names)
            blocks.append(Block(kind="number", names=names, origins=names, tensors=tensors, element=ELEMENTS[kind], valid=valid))
        if len(blocks) == 1:
            return blocks[0]
        names = tuple(name for block in blocks for name in block.names)
        stacked = self.stack([self.numbers(block) for block in blocks])
        return Block(kind="number", names=names, origins=names, tensors=(stacked,), element=DOUBLE)

    def _is_boolean(self, stacked: str) -> str:
        return self.node("Less", stacked, self.constant([[NULL_BOOLEAN]], np.uint8))

    def _without_nulls(self, block: Block, tensor: str, kind: Any) -> str:
        """`tensor` with NaN where the block is not valid."""
        if not block.valid:
            return tensor
        return self.node("Where", self.stack(block.valid), tensor, self.constant([[np.nan]], kind))


def _add_table(node: Any, name: str, values: Sequence[Any]) -> None:
    """Add an attribute to a node as `onnx.helper` would, without asking each entry what it is."""
    from onnx import AttributeProto

    attribute = node.attribute.add()
    attribute.name = name
    if name.endswith("strings"):
        attribute.type = AttributeProto.STRINGS
        attribute.strings.extend([value.encode() for value in values])
    elif name.endswith("int64s"):
        attribute.type = AttributeProto.INTS
        attribute.ints.extend(values)
    else:
        attribute.type = AttributeProto.FLOATS
        attribute.floats.extend(values)
