"""What an address leads to, and the work that an answer needs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from tidemill.core.graph import Arrays
from tidemill.core.package import Answers
from tidemill.serve.batching.rows import Rows, prepared
from tidemill.serve.http import Request, Response
from tidemill.serve.model import Model


@dataclass(slots=True)
class Work:
    """Rows that were read and wait for their model; whoever runs them, alone or with others' rows, then calls `encode`.

    One row that the model's `reader` took comes as `values`, and may be answered by its fields, through `encode_row`.
    """

    model: Model
    given: Arrays | None
    rows: int
    encode: Callable[[Answers], Response]
    values: tuple[Any, ...] | None = None
    encode_row: Callable[[dict[str, Any]], Response] | None = None
    timeout_s: float | None = None
    """Time that the caller gives from its arrival on, where it says so in the body."""
    priority: int | None = None
    """How urgent, 1 before 9, where the caller says so in the body."""

    @property
    def inputs(self) -> Arrays:
        """The rows as graph inputs.

        Raises:
            DataError: If a value cannot be what its column holds.
        """
        if self.given is None:
            self.given = self.model.reader.inputs([self.values]) if self.model.reader is not None and self.values is not None else {}
        return self.given

    def prepared(self) -> Rows:
        """The rows as what can be put together with others'."""
        if self.values is not None:
            return [self.values]
        return prepared(self.model, self.inputs)


Handler = Callable[[Request], Response | Work]


@dataclass(frozen=True, kw_only=True)
class Route:
    """One method of one address.

    `label` is what it is counted under; `model` whose rows it takes; `plain` says that errors are objects, as outside the protocols.
    `verb` is what a caller must be allowed, on the model called `subject` where it is about one; anyone may ask what is open.
    `waits` says that answering may take long without a model being asked.
    """

    method: str
    path: str
    label: str
    handle: Handler
    model: Model | None = None
    plain: bool = True
    verb: Literal["open", "predict", "read", "metrics", "admin"] = "read"
    subject: str | None = None
    waits: bool = False


def addresses(prefix: str, model: Model, *, first: bool) -> list[str]:
    """Where a model is found under a prefix: by name and version, and by name alone where it is the first of its name."""
    named = f"{prefix}/models/{model.name}"
    return [*([named] if first else []), f"{named}/versions/{model.version}"]


def whole_number(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)
