"""The model card: what a package is, what it was made from, how good it is and where it must not be trusted."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from tidemill.core.contract import Verdict
from tidemill.core.metrics import METRICS

_TASKS = {
    "binary": "Tells two classes apart",
    "multiclass": "Tells several classes apart",
    "regression": "Predicts a number",
    "embedding": "Turns a text into a vector",
}


def card(
    name: str,
    task: str,
    signature: Mapping[str, Any],
    evidence: Mapping[str, Any],
    verdicts: Sequence[Verdict],
    *,
    lineage: Mapping[str, Any],
    about: Mapping[str, Any],
) -> str:
    """A page of Markdown.

    Args:
        about: `source` (what it was made from), `model` (its kind), `rows` (by split), `generalization` (what training says of new rows), `limits` (sentences),
            each optional.
    """
    parts = [f"# {name}\n", _what(task, signature, about), _inputs(signature), _quality(evidence, about), _intervals(evidence)]
    parts += [_promises(verdicts, evidence), _limits(evidence, about), _made_from(lineage, about)]
    return "\n".join(part for part in parts if part)


def _what(task: str, signature: Mapping[str, Any], about: Mapping[str, Any]) -> str:
    lines = [f"{_TASKS.get(task, task.capitalize())}" + (f" of `{signature['target']}`." if signature.get("target") else ".")]
    classes = signature.get("classes")
    if classes:
        shown = ", ".join(f"`{json.dumps(label, ensure_ascii=False)}`" for label in classes[:20])
        lines.append(f"Classes, in the order of the probabilities: {shown}{', ...' if len(classes) > 20 else ''}.")
    if about.get("model"):
        lines.append(f"Model: {about['model']}.")
    return "\n".join(lines) + "\n"


def _inputs(signature: Mapping[str, Any]) -> str:
    rows = [f"| `{_cell(column['name'])}` | {column['type']} | {'yes' if column['nullable'] else 'no'} |" for column in signature["inputs"]]
    example = json.dumps(signature.get("example", {}), ensure_ascii=False, indent=1)
    return "\n".join(
        ["## Inputs\n", "| column | type | null allowed |", "|---|---|---|", *rows, "", "An example:\n", "```json", example, "```", ""]
    )


def _quality(evidence: Mapping[str, Any], about: Mapping[str, Any]) -> str:
    found = evidence.get("quality")
    if not found:
        return "## Quality\n\nNot measured: the data that the package was made with named no target.\n"
    lines = [
        f"## Quality\n\nOn {found['rows']:,} rows.\n",
        "| metric | this model | 95 % interval | linear baseline | trivial model |",
        "|---|---|---|---|---|",
    ]
    for name, value in found["metrics"].items():
        others = [_number(found.get(role, {}).get(name)) for role in ("baseline", "trivial")]
        lines.append(
            f"| {METRICS[name].title} | {_number(value['point'])} | {_number(value['low'])} to {_number(value['high'])} | {' | '.join(others)} |"
        )
    if about.get("generalization"):
        lines += ["", str(about["generalization"])]
    worst = found["slices"][:5]
    if worst:
        lines += ["", f"Where it does worst ({METRICS[found['metric']].title}):\n"]
        lines += [f"- `{_cell(one['column'])}` = {_cell(one['value'])}: {_number(one['point'])} on {one['rows']:,} rows" for one in worst]
    return "\n".join(lines) + "\n"


def _intervals(evidence: Mapping[str, Any]) -> str:
    found = evidence.get("interval")
    if not found:
        return ""
    return (
        f"## Intervals\n\nMade to hold {found['level']:.0%} of the true values. On {found['rows']:,} rows they held {found['coverage']:.1%} "
        f"({found['low']:.1%} to {found['high']:.1%}); {found['below']:.1%} lay below and {found['above']:.1%} above. Mean width "
        f"{_number(found['mean_width'])}, median {_number(found['median_width'])}; without the model {_number(found['target_width'])} "
        f"would hold as many. Pinball loss {_number(found['pinball'])}.\n"
    )


def _promises(verdicts: Sequence[Verdict], evidence: Mapping[str, Any]) -> str:
    parity, latency = evidence["parity"], evidence["latency"]
    lines = ["## Promises\n", *(f"- {verdict}" for verdict in verdicts), ""]
    lines.append(
        f"Parity was measured over {parity['rows']:,} rows against {parity['against']}; latency on {latency['hardware']['fingerprint']}."
    )
    return "\n".join(lines) + "\n"


def _limits(evidence: Mapping[str, Any], about: Mapping[str, Any]) -> str:
    limits = list(about.get("limits", []))
    limits.append("Rows unlike those it was made from get an answer all the same: watch for drift.")
    if "quality" in evidence:
        limits.append("The quality above holds for rows drawn like the ones it was measured on.")
    return "\n".join(["## Limits\n", *(f"- {limit}" for limit in limits)]) + "\n"


def _made_from(lineage: Mapping[str, Any], about: Mapping[str, Any]) -> str:
    lines = ["## Made from\n"]
    if about.get("source"):
        lines.append(f"- {about['source']}")
    lines += [f"- {split}: {count:,} rows" for split, count in about.get("rows", {}).items()]
    lines += [f"- {key}: `{value}`" for key, value in lineage.items() if isinstance(value, str)]
    return "\n".join(lines) + "\n"


def _number(value: Any) -> str:
    return "" if value is None else f"{value:.4g}"


def _cell(text: Any) -> str:
    return str(text).replace("|", "\\|").replace("\n", " ")
