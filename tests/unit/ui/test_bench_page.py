from __future__ import annotations

from typing import Any

import pytest

from tidemill.ui.bench import cautions, columns, render_bench, sentence

LATENCY = {"mean_ms": 2.0, "std_ms": 1.0, "min_ms": 0.05, "p50_ms": 1.5, "p95_ms": 4.0, "p99_ms": 5.0, "max_ms": 9.0}
RUNTIME = {"runtime": "onnxruntime 1.31", "precision": "fp32", "against": "onnxruntime 1.31 fp32", "rows": 256}
MACHINE = {"cpu": "<b>Xeon</b>", "cores": 2, "memory_gb": 24, "fingerprint": "x"}


def run(**more: Any) -> dict[str, Any]:
    made = {"concurrency": 1, "batch": 1, "requests_per_s": 100.0, "rows_per_s": 100.0, "answers": 500, "latency": LATENCY, "refused": {},
            "lost": 0, "unanswered": 0, "client_cores": 0.1, "client_limited": False}  # fmt: skip
    return {**made, **more}


def server(*points: dict[str, Any], **knees: Any) -> dict[str, Any]:
    return {"of": "server", "url": "http://127.0.0.1:8000", "name": "flights", "version": "3", "framework": "onnxruntime", "bodies": 10,
            "points": list(points), "knee": knees, "seconds": 3.0, "repeats": 1, "client": MACHINE, "at": "2026-11-21T12:00:00+00:00"}  # fmt: skip


SWEPT = server(
    run(), run(concurrency=4, rows_per_s=300.0), run(concurrency=16, rows_per_s=310.0, client_limited=True),
    run(concurrency=4, batch=8, rows_per_s=900.0), run(concurrency=4, batch=64, rows_per_s=950.0, refused={"503": 7}, lost=2),
    concurrency={"at": 4, "rising": False}, batch={"at": 8, "rising": False},
)  # fmt: skip
RATED = server(run(rate=100, requests_per_s=99.0), run(rate=900, requests_per_s=500.0, unanswered=40))
PACKAGE = {
    "of": "package", "name": "flights", "version": None, "identity": "f" * 64, "rows": 100, "seconds": 0.4, "repeats": 3,
    "hardware": MACHINE, "at": "2026-11-21T12:00:00+00:00",
    "runtimes": {"onnxruntime": {**RUNTIME, "max_difference": 0.0, "kept": True}}, "left_out": [],
    "points": [
        {"runtime": "onnxruntime", "sessions": s, "threads": t, "batch": b, "rows_per_s": 1e4 * b**0.5, "calls": 500, "latency": LATENCY, "cores": 0.9 * s}
        for s, t in ((1, 1), (2, 1)) for b in (1, 64)
    ],
}  # fmt: skip
PACKAGE |= {"best": PACKAGE["points"][1], "single": PACKAGE["points"][0]}  # type: ignore[index]


def test_a_sweep_is_told_in_sentences() -> None:
    assert sentence(SWEPT) == ("950 rows/s at most (4 connections, 64 rows a request). Knee at 4 connections. Knee at 8 rows a request.")
    rising = server(run(), run(concurrency=2), run(concurrency=4), concurrency={"at": 4, "rising": True})
    assert "Knee at 4 connections, the most that was tried: the knee may lie beyond." in sentence(rising)
    assert sentence(RATED) == "100 requests/s are answered as they come; at 900 answers fall behind."
    assert sentence(PACKAGE).replace("\u00a0", " ") == (
        "80,000 rows/s with 1 session of 1 thread, 64 rows at once (1.5 ms a call); one row alone takes 1.5 ms."
    )


def test_what_weakens_the_figures_is_said() -> None:
    said = " ".join(cautions(SWEPT))
    assert "in 1 of 5 runs this client was as busy as one thread can be" in said
    assert "7 requests were refused (503)" in said
    assert "2 requests had no answer" in said
    assert "40 requests had no answer" in " ".join(cautions(RATED))
    assert cautions(PACKAGE) == []
    apart = {"openvino:bf16": {**RUNTIME, "max_difference": 0.0123, "min_cosine": 0.99999, "kept": False}}
    several = {**PACKAGE, "runtimes": {**PACKAGE["runtimes"], **apart}, "left_out": ["cuda: no"]}  # type: ignore[dict-item]
    said = " ".join(cautions(several))
    assert "answers of openvino:bf16 differ by up to 0.012 (cosine at least 0.999990), which the contract does not allow" in said
    assert "left out: cuda: no" in said
    assert columns(several)[0][0] == "runtime"
    crowded = {**PACKAGE, "points": [{**point, "cores": 0.3} for point in PACKAGE["points"]]}  # type: ignore[attr-defined]
    assert "had 30\u00a0% of a core" in " ".join(cautions(crowded))
    assert "1 of 1 runs hold under 100 answers" in " ".join(cautions(server(run(answers=20))))


def test_the_table_marks_the_knees_and_what_was_wrong() -> None:
    heads, rows = columns(SWEPT)
    assert heads[:6] == ["connections", "rows", "requests/s", "rows/s", "mean", "std"]
    assert [row[-1] for row in rows] == ["", "knee", "client limits", "knee of rows", "7 x 503, 2 unanswered"]
    assert columns(RATED)[0][0] == "rate"
    assert [row[-1] for row in columns(PACKAGE)[1]][:2] == ["single", "best"]


@pytest.mark.parametrize(
    ("found", "sections"),
    [(SWEPT, ["connections", "rows", "conditions"]), (RATED, ["rates", "conditions"]), (PACKAGE, ["sweep", "conditions"]),
     (server(run()), ["connections", "conditions"]), (server(run(latency={}, answers=0, rows_per_s=0.0)), ["connections", "conditions"])],
    ids=["sweep", "rates", "package", "one run", "no answer"],
)  # fmt: skip
def test_a_page_is_drawn(found: dict[str, Any], sections: list[str]) -> None:
    import re

    page = render_bench(found)
    assert re.findall(r'<section id="(\w+)">', page) == sections
    assert "<b>Xeon" not in page
    assert not re.search(r"\bnan\b", page.lower())
