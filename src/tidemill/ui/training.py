"""How the model came about: search over parameters, learning curve, importance, operators by column."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from tidemill.ui import search
from tidemill.ui.charts import Axis, Mark, bar, dots, line, nice_ticks, plot, rule, spread
from tidemill.ui.collect import Report
from tidemill.ui.format import number, percent, plain, score, seconds, shorten, words
from tidemill.ui.page import Html, Section, badge, details, join, table, tag
from tidemill.ui.summary import less_is_better

TOP = 20
MAX_PARAMETERS = 8
SHOWN_TRIALS = 200

# A table of the calendar, not learnt from rows.
TIME_ZONE = ("transitions", "offsets")


def tuning(report: Report) -> Section | None:
    """The trials in order, the best so far, and what each parameter did."""
    trials = report.files.get("tune/trials.json")
    trials = trials.get("trials") if isinstance(trials, Mapping) else trials
    if not trials:
        return None
    lower = _is_lower_better(report)
    done = [trial for trial in trials if _state(trial) == "complete" and _finite(trial.get("value"))]
    best = (min if lower else max)(done, key=lambda trial: trial["value"]) if done else None
    counts = {state: sum(_state(trial) == state for trial in trials) for state in ("complete", "pruned", "failed")}
    said = [f"{counts['complete']} complete", f"{counts['pruned']} pruned", f"{counts['failed']} failed"]
    lead = f"{len(trials)} trials: " + ", ".join(text for text, count in zip(said, counts.values(), strict=True) if count) + "."
    if best is not None:
        lead += f" The best, trial {best.get('number')}, reached {score(best['value'])} on the validation split"
        first = trials[0] if trials[0] in done and trials[0] is not best else None
        lead += f"; the project's own parameters reached {score(first['value'])}." if first else "."
    metric = report.stages.get("tune", {}).get("facts", {}).get("metric")
    note = f"{words(str(metric))} on the validation split" if metric else "value on the validation split"
    lead = " ".join(part for part in (lead, search.told(report)) if part)
    body = join(
        _history(trials, done, best, lower=lower, note=note),
        search.importance(report),
        _parameters(done, best, search.ranges(report)),
        search.parallel(done, lower=lower),
        search.starts(report, trials),
        _trials(trials, best),
    )
    return Section(id="tuning", title="Tuning", lead=lead, body=body)


def model(report: Report) -> Section | None:
    """Learning curve and importance, and the parameters that the model was fitted with."""
    if "train/train.json" not in report.files and "train/history.jsonl" not in report.files:
        return None
    curve = _learning(report)
    importance = _importance(report.find("train/train.json", "importance", default={}))
    config = report.find("train/train.json", "config", default={})
    chosen = report.files.get("tune/best.json")
    chosen = chosen.get("params", chosen) if isinstance(chosen, Mapping) else {}
    entries = {**(config if isinstance(config, Mapping) else {}), **{key.removeprefix("model."): value for key, value in chosen.items()}}
    tuned = {key.removeprefix("model.") for key in chosen}
    facts = tag(
        "dl",
        *(part for key, value in _flat(entries) for part in (tag("dt", key), tag("dd", plain(value), " ", badge("tuned", "plain") if key in tuned else None))),
        class_="facts",
    )  # fmt: skip
    kind = str(report.find("train/train.json", "kind", default="model"))
    best = report.find("train/train.json", "best_round")
    lead = {
        "xgboost": "Gradient-boosted trees (XGBoost)",
        "ensemble": "Several models as one",
        "linear": "A linear model",
        "random_forest": "A random forest",
        "sklearn": f"An estimator of scikit-learn ({entries.get('estimator')})",
    }.get(kind, kind)
    lead += f"; round {number(best)} was the best." if best else "."
    judged = report.find("train/train.json", "generalization", "said")
    lead += f" {judged}" if judged else ""
    body = join(_samples(report), curve, _steps(report), importance, details("Parameters", facts) if entries else None)
    return Section(id="model", title="Model", lead=lead, body=body)


def features(report: Report) -> Section | None:
    """The operators of each raw column, with what they learnt from the data."""
    columns = report.find("features/features.json", "columns", default={})
    if not columns and not report.find("features/features.json", "derived", default={}):
        return None
    types = {column.get("name"): column.get("type") for column in report.find("features/features.json", "inputs", default=[])}
    rows = [(name, types.get(name, ""), _operators(steps), _fitted(steps)) for name, steps in columns.items()]
    for name, made_of in report.find("features/features.json", "derived", default={}).items():
        steps = [*next(iter(made_of["of"].values()), ()), *made_of["steps"]]
        rows.append((name, " + ".join(made_of["of"]), _operators(steps), _fitted(made_of["steps"])))
    made = report.find("features/features.json", "names", default=[])
    inputs = len(types) or len(columns)
    lead = f"{inputs} columns become {number(len(made))} features, in one graph that every route runs."
    columns_ = ("Column", "Type", "Operators", "Learnt from the training rows")
    return Section(id="features", title="Features", lead=lead, body=table(columns_, rows, caption="Operators by column"))


def _history(
    trials: Sequence[Mapping[str, Any]], done: Sequence[Mapping[str, Any]], best: Mapping[str, Any] | None, *, lower: bool, note: str
) -> Html | None:
    if not done:
        return None
    pruned = [trial for trial in trials if _state(trial) == "pruned"]
    known = [trial for trial in pruned if _finite(trial.get("value"))]
    low, high = spread(trial["value"] for trial in done)
    if known and not lower:
        low, high = spread([*(trial["value"] for trial in known), *(trial["value"] for trial in done)])
    floor = high if lower else low
    numbers = [trial.get("number", index) for index, trial in enumerate(trials)]
    so_far: list[tuple[float, float]] = []
    for trial in done:
        value = trial["value"] if not so_far else (min if lower else max)(so_far[-1][1], trial["value"])
        so_far.append((trial["number"], value))
    so_far.append((max(numbers), so_far[-1][1]))
    marks: list[Mark] = [
        line(so_far, role="model", step=True, name="best so far"),
        dots([(t["number"], t["value"]) for t in done], role="other", titles=[_named(t) for t in done], radius=4),
        dots([(t["number"], t["value"] if _finite(t.get("value")) else floor) for t in pruned], role="faded", titles=[_named(t) for t in pruned], radius=4),
    ]  # fmt: skip
    if best is not None:
        marks.append(dots([(best["number"], best["value"])], role="model", titles=[_named(best)], radius=5.5))
    legend = [("model", "best so far"), ("dot o", "complete"), ("dot", "best")] + ([("ring", "pruned")] if pruned else [])
    x = Axis(low=min(numbers) - 0.5, high=max(numbers) + 0.5, label="trial")
    return plot(*marks, x=x, y=Axis(low=low, high=high), title="Trials", note=note, legend=legend, class_="wide")


def _parameters(done: Sequence[Mapping[str, Any]], best: Mapping[str, Any] | None, narrowed: Mapping[str, Sequence[float]]) -> Html | None:
    """A small plot for each parameter: its value against the trial's, and the ends of what it was narrowed to."""
    names = list({name: None for trial in done for name in trial.get("params", {})})
    if len(done) < 3 or not names:
        return None
    low, high = spread(trial["value"] for trial in done)
    figures = []
    for name in names[:MAX_PARAMETERS]:
        pairs = [(trial["params"][name], trial["value"], trial) for trial in done if name in trial.get("params", {})]
        axis, place = _parameter_axis([value for value, _, _ in pairs])
        points = [(place(value), measured) for value, measured, _ in pairs]
        marks: list[Mark] = [rule(x=place(end), role="best", name=f"narrowed to {plain(end)}") for end in narrowed.get(name, ())]
        marks.append(dots(points, role="other", titles=[_named(trial) for _, _, trial in pairs], radius=3))
        if best is not None and name in best.get("params", {}):
            marks.append(dots([(place(best["params"][name]), best["value"])], role="model", radius=4.5, titles=[_named(best)]))
        figures.append(plot(*marks, x=axis, y=Axis(low=low, high=high, ticks=_few(low, high)), title=words(name)))
    return join(tag("h3", "By parameter"), tag("div", *figures, class_="charts small"))


def _parameter_axis(values: Sequence[Any]) -> tuple[Axis, Any]:
    """An axis for a parameter's values: logarithmic where they span a hundredfold, one place a choice where they are no numbers."""
    if all(_finite(value) for value in values):
        low, high = min(values), max(values)
        if low > 0 and high / low >= 30:
            return Axis(low=low / 1.15, high=high * 1.15, log=True), float
        if all(isinstance(value, int) for value in values) and high - low <= 12:
            step = max(1, math.ceil((high - low) / 6))
            return Axis(low=low - 0.5, high=high + 0.5, ticks=[(tick, str(tick)) for tick in range(low, high + 1, step)]), float
        ends = spread(values)
        return Axis(low=ends[0], high=ends[1], ticks=_few(low, high)), float
    choices = sorted({plain(value) for value in values})
    places = {choice: float(index) for index, choice in enumerate(choices)}
    axis = Axis(low=-0.5, high=len(choices) - 0.5, ticks=[(index, shorten(choice, 10)) for choice, index in places.items()])
    return axis, lambda value: places[plain(value)]


def _few(low: float, high: float) -> list[tuple[float, str]]:
    return [(tick, number(tick)) for tick in nice_ticks(low, high, most=3)]


def _trials(trials: Sequence[Mapping[str, Any]], best: Mapping[str, Any] | None) -> Html:
    names = list({name: None for trial in trials for name in trial.get("params", {})})
    shown = trials[:SHOWN_TRIALS]
    kinds = {"complete": "good", "pruned": "plain", "failed": "bad"}
    rows = [
        (
            number(trial.get("number")),
            badge(_state(trial), kinds.get(_state(trial), "plain")),
            score(trial.get("value")) if _finite(trial.get("value")) else "\u2013",
            *(plain(trial.get("params", {}).get(name, "\u2013")) for name in names),
            seconds(trial.get("seconds")),
        )
        for trial in shown
    ]
    marked = ["best" if best is not None and trial.get("number") == best.get("number") else None for trial in shown]
    columns = ("Trial", "State", "Value", *(words(name) for name in names), "Time")
    made = table(columns, rows, caption="Trials", numbers=range(2, len(columns)), marked=marked)
    return details("All trials" if len(trials) <= SHOWN_TRIALS else f"The first {SHOWN_TRIALS} of {len(trials)} trials", made)


def _samples(report: Report) -> Html | None:
    """The metric on training and validation rows by the rows that a fit had, where samples grew."""
    curve = [point for point in report.find("train/train.json", "learning_curve", default=[]) if _finite(point.get("rows"))]
    if not curve:
        return None
    metric = str(report.find("train/train.json", "curve_metric", default=""))
    sides = {"train": ("other", "training"), "valid": ("model", "validation")}
    marks: list[Mark] = []
    for side, (role, name) in sides.items():
        known = [point for point in curve if _finite(point.get(side))]
        points = [(point["rows"], point[side]) for point in known]
        titles = [f"{name}, {number(point['rows'])} rows: {score(point[side])}, {seconds(point.get('seconds'))}" for point in known]
        marks += [line(points, role=role, name=name), dots(points, role=role, titles=titles)]
    low, high = spread(point[side] for point in curve for side in sides if _finite(point.get(side)))
    rows = [point["rows"] for point in curve]
    shown = [count for count in rows if count == rows[-1] or count * 1.4 < rows[-1]]
    x = Axis(low=rows[0] / 1.1, high=rows[-1] * 1.1, log=True, label="rows", ticks=[(count, number(count)) for count in shown])
    legend = [(role, name) for role, name in sides.values()]
    note = f"{words(metric)} by training rows" + (", less is better" if less_is_better(metric) else "")
    note += f". {report.find('train/train.json', 'stopped', default='')}"
    return plot(*marks, x=x, y=Axis(low=low, high=high), title="Growing samples", note=note, legend=legend, class_="wide")


def _learning(report: Report) -> Html | None:
    """Train and validation by round, from whichever of the known line shapes was written."""
    curves: dict[str, dict[str, list[tuple[float, float]]]] = {}
    for index, entry in enumerate(report.files.get("train/history.jsonl", [])):
        at = entry.get("round", entry.get("epoch", entry.get("step", index)))
        for split, metric, value in _measurements(entry):
            curves.setdefault(metric, {}).setdefault(split, []).append((at, value))
    if not curves:
        return None
    best = report.find("train/train.json", "best_round")
    drawn = [_learning_curve(metric, by_split, best) for metric, by_split in list(curves.items())[:3]]
    return tag("div", *drawn, class_="charts") if len(drawn) > 1 else drawn[0]


def _steps(report: Report) -> Html | None:
    """Loss and gradient norm by step of a network."""
    lines = [entry for entry in report.files.get("train/steps.jsonl", []) if _finite(entry.get("step"))]
    drawn = []
    for key, title in (("loss", "Loss of steps"), ("grad_norm", "Gradient norm")):
        points = [(entry["step"], entry[key]) for entry in lines if _finite(entry.get(key))]
        if len(points) > 1:
            low, high = spread((value for _, value in points), room=0.05)
            x = Axis(low=points[0][0], high=points[-1][0], label="step")
            drawn.append(
                plot(line(points, role="other", name=key), x=x, y=Axis(low=low, high=high), title=title, note=f"{words(key)} by step")
            )
    return tag("div", *drawn, class_="charts") if drawn else None


def _learning_curve(metric: str, by_split: Mapping[str, list[tuple[float, float]]], best: Any) -> Html:
    names = {"train": "training", "valid": "validation"}
    roles = {"train": "other", "valid": "model"}
    points = [point for curve in by_split.values() for point in curve]
    low, high = spread((value for _, value in points), room=0.05)
    last = max(at for at, _ in points)
    marks: list[Mark] = [line(curve, role=roles.get(split, f"c{i + 1}"), name=split) for i, (split, curve) in enumerate(by_split.items())]
    if _finite(best):
        marks.append(rule(x=best, role="best", name=f"best round {best}"))
    legend = [(roles.get(split, f"c{i + 1}"), names.get(split, split)) for i, split in enumerate(by_split)]
    legend += [("best", f"best round, {number(best)}")] if _finite(best) else []
    note = f"{words(metric)} by round" + (", less is better" if less_is_better(metric) else "")
    x = Axis(low=min(at for at, _ in points), high=max(last, 1), label="round")
    return plot(*marks, x=x, y=Axis(low=low, high=high), title="Learning curve", note=note, legend=legend, class_="wide")


def _measurements(entry: Mapping[str, Any]) -> list[tuple[str, str, float]]:
    """(split, metric, value) of one line: {"train": {"logloss": 1}}, {"train": 1} or {"train_logloss": 1}."""
    found = []
    for key, value in entry.items():
        if key in ("round", "epoch", "step", "seconds", "at", "learning_rate", "grad_norm"):
            continue
        if isinstance(value, Mapping):
            found += [(key, str(metric), float(inner)) for metric, inner in value.items() if _finite(inner)]
        elif _finite(value):
            split, _, metric = key.replace("-", "_").partition("_")
            found.append((split, metric or "loss", float(value)) if split in ("train", "valid", "test") else ("valid", key, float(value)))
    return found


def _importance(found: Mapping[str, Any]) -> Html | None:
    known = sorted(((name, value) for name, value in found.items() if _finite(value) and value > 0), key=lambda item: -item[1])
    if not known:
        return None
    total = sum(value for _, value in known)
    rows = [(shorten(name, 80), bar(value / known[0][1], percent(value / total))) for name, value in known[:TOP]]
    rest = sum(value for _, value in known[TOP:])
    note = f"The other {len(known) - TOP} features bring {percent(rest / total)}." if rest else None
    return join(
        tag("h3", "Importance"),
        table(("Feature", "Share of the gain"), rows, caption="Features by importance", class_="importance"),
        tag("p", note, class_="note") if note else None,
    )


def _operators(steps: Any) -> Html:
    """The operators in the order in which they are applied."""
    parts: list[Html] = []
    for index, step in enumerate(steps):
        if index:
            parts.append(tag("i", "\u2192"))
        given = {key: value for key, value in (step.get("params") or {}).items() if value is not None}
        parts.append(tag("span", str(step.get("op", "")), title=plain(given) if given else None))
    return tag("div", *(parts or [tag("i", "as it is")]), class_="chips")


def _fitted(steps: Any) -> str:
    """What the operators learnt, in few words: small values as they are, long lists by their length."""
    said = []
    for step in steps:
        for key, value in (step.get("fitted") or {}).items():
            name = key.replace("_", " ")
            if value in (None, False, [], {}) or key in TIME_ZONE:
                continue
            if isinstance(value, (list, Mapping)) and len(value) > 4:
                said.append(f"{number(len(value))} {name}")
            else:
                said.append(name if value is True else f"{name} {plain(value)}")
    return shorten(", ".join(said), 160)


def _flat(tree: Mapping[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    flat: list[tuple[str, Any]] = []
    for key, value in tree.items():
        flat += _flat(value, f"{prefix}{key}.") if isinstance(value, Mapping) and value else [(f"{prefix}{key}", value)]
    return [(key, value) for key, value in flat if value is not None and value != {}]


def _is_lower_better(report: Report) -> bool:
    """Which way the search went: as its facts say, else from the metric's name."""
    facts = report.stages.get("tune", {}).get("facts", {})
    direction = facts.get("direction")
    if direction:
        return str(direction).startswith("min")
    return less_is_better(str(facts.get("metric", "")))


def _state(trial: Mapping[str, Any]) -> str:
    state = str(trial.get("state", "complete")).lower()
    return {"fail": "failed"}.get(state, state)


def _named(trial: Mapping[str, Any]) -> str:
    value = f" {score(trial['value'])}" if _finite(trial.get("value")) else ""
    return f"trial {trial.get('number')}, {_state(trial)}{value}: {plain(trial.get('params', {}))}"


def _finite(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
