"""The network of a project file, as the planner counts it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tidemill.core.errors import ConfigError, Unsupported
from tidemill.core.load import load
from tidemill.core.project import build
from tidemill.train.planner.network import Network, Perceptron, Transformer

if TYPE_CHECKING:
    from tidemill.core.project import Project


@dataclass(frozen=True, kw_only=True)
class Asked:
    """What a project says of its training."""

    network: Network
    batch: int
    precision: str
    is_compiled: bool


def asked(project: Project, *, inputs: int | None, vocabulary: int, sequence: int) -> Asked:
    """The network, the rows of a step and the precision of a project.

    Args:
        inputs: Features of a row, for mlp: the data say it, not the project.
        vocabulary, sequence: Words and tokens of a row, for a decoder without a tokenizer.

    Raises:
        Unsupported: If the planner does not know the kind of model.
        ConfigError: If something is missing that the project does not say.
    """
    kind = project.model.kind
    if kind not in ("mlp", "text", "decoder"):
        raise Unsupported(f"model.kind: must be one that the planner counts, got {kind!r}", hint="mlp, text, decoder; or --parameters")
    model = load("model", kind)()
    params: Any = build(model.Params, dict(project.model.params), path="model", where="project")
    if kind == "mlp":
        network: Network = _perceptron(params, inputs)
    elif kind == "text":
        network = _encoder(params, project.folder)
    else:
        outputs = 0
        if params.tokenizer:  # texts that have one answer each
            vocabulary, sequence, outputs = model.vocabulary(model.source(params, project.folder)), params.max_length, 1
        network = Transformer(
            hidden=params.width, layers=params.depth, heads=params.heads, ffn=params.hidden, vocabulary=vocabulary, sequence=sequence,
            outputs=outputs, gated=params.activation == "swiglu", biases=False, learned_positions=False, tied=params.tied, eager=True,
        )  # fmt: skip
    train = project.train
    batch = train.batch_size or model.defaults.get("batch_size", 256)
    return Asked(network=network, batch=batch, precision=train.precision, is_compiled=train.compile)


def _perceptron(params: Any, inputs: int | None) -> Perceptron:
    if inputs is None:
        raise ConfigError("--inputs: must be given for mlp, the features of a row", hint="the report of a run says how many there are")
    return Perceptron(inputs=inputs, widths=[params.width] * params.depth, norms=params.normalize != "none")


def _encoder(params: Any, folder: Path) -> Transformer:
    path = folder / params.encoder / "config.json"
    try:
        config: Mapping[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        return Transformer(
            hidden=config["hidden_size"], layers=config["num_hidden_layers"], heads=config["num_attention_heads"],
            ffn=config["intermediate_size"], vocabulary=config["vocab_size"], sequence=params.max_length, dropout=params.dropout > 0,
            causal=False, outputs=1, eager=True, kind="text encoder",
        )  # fmt: skip
    except (OSError, ValueError, KeyError) as error:
        raise ConfigError(
            f"model.encoder: must be a folder with a config.json of a BERT-like encoder, got {params.encoder}: {error}"
        ) from error
