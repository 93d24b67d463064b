"""The pages as a browser reads them: nothing asked of the network, nothing run, nothing wider than the screen."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tidemill import pipeline
from tidemill.core.project import from_tree
from tidemill.monitor.drift import report
from tidemill.ui.bench import render_bench
from tidemill.ui.drift import render_drift
from tidemill.ui.report import collect, write_report

FLAGS = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
         "--disable-component-update", "--disable-sync", "--enable-logging=stderr", "--v=0", "--virtual-time-budget=4000"]  # fmt: skip
SECTIONS = ["contract", "quality", "slices", "parity", "model", "tuning", "features", "data", "lineage", "environment"]
HOSTILE = "<script>document.title='owned'</script><img src='http://127.0.0.1:9/x' onerror=\"document.title='owned'\">"

Dump = Callable[..., tuple[str, str]]


@pytest.fixture(scope="module")
def sample(script: Callable[[str], Any]) -> Any:
    """The module that makes a finished run's folders."""
    return script("tests/unit/ui/conftest.py")


@pytest.fixture
def browse(chromium: Path, tmp_path: Path) -> Dump:
    """`browse(page, *flags)`: the document after loading, and what the browser logged."""

    def dump(page: Path, *flags: str) -> tuple[str, str]:
        profile = tmp_path / f"profile-{len(list(tmp_path.glob('profile-*')))}"
        command = [str(chromium), *FLAGS, f"--user-data-dir={profile}", *flags, "--dump-dom", page.as_uri()]
        done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
        assert done.returncode == 0, done.stderr[-2000:]
        return done.stdout, done.stderr

    return dump


@pytest.mark.parametrize("task", ["binary", "multiclass", "regression"])
def test_a_browser_shows_every_section_and_complains_of_nothing(sample: Any, browse: Dump, tmp_path: Path, task: str) -> None:
    page = write_report(collect(sample.make(tmp_path / "run", task=task), run=sample.RUN), tmp_path / "report.html")
    dom, log = browse(page)
    assert re.findall(r'<section id="(\w+)">', dom) == SECTIONS
    assert "CONSOLE" not in log, log
    assert page.stat().st_size < 500_000


def test_markup_in_the_data_is_shown_and_not_run(sample: Any, browse: Dump, tmp_path: Path) -> None:
    page = write_report(collect(sample.make(tmp_path / "run", text=HOSTILE), run=sample.RUN), tmp_path / "report.html")
    dom, log = browse(page)
    assert "<title>flights 3 · Tidemill</title>" in dom
    assert "&lt;script&gt;" in dom
    assert "<script" not in dom
    assert "<img" not in dom
    assert "CONSOLE" not in log, log


def test_a_real_run_and_its_drift_are_shown(browse: Dump, tmp_path: Path) -> None:
    """From rows with a hostile column and value to the pages that the command line writes."""
    pa, pq = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    rng = np.random.default_rng(3)
    distance, carrier = rng.gamma(3, 300, 1500), rng.choice(["UA", "AA", HOSTILE], 1500)
    late = rng.random(1500) < 1 / (1 + np.exp(distance / 400 - 2 - (carrier == "UA")))
    rows = pa.table({"distance": distance, HOSTILE: carrier, "late": late, "leak": late.astype(float)})
    pq.write_table(rows, tmp_path / "rows.parquet")
    pq.write_table(rows.set_column(0, "distance", pa.array(distance * 3)), tmp_path / "live.parquet")
    tree = {
        "name": "flights", "data": {"source": str(tmp_path / "rows.parquet"), "target": "late"},
        "model": {"kind": "xgboost", "num_rounds": 30}, "tune": {"trials": 3, "space": {"model.max_depth": {"int": [2, 4]}}},
    }  # fmt: skip
    made = pipeline.run(from_tree(tree, folder=tmp_path), profile=True)
    page = write_report(collect(made.stages, run=made.to_json()), tmp_path / "report.html")
    dom, log = browse(page)
    assert re.findall(r'<section id="(\w+)">', dom) == SECTIONS
    assert "Version 1 is now champion." in dom
    assert "of leakage." in dom
    assert "<script" not in dom
    assert "CONSOLE" not in log, log

    assert made.package is not None
    drift = tmp_path / "drift.html"
    drift.write_text(render_drift(report(made.package, tmp_path / "live.parquet")), encoding="utf-8")
    dom, log = browse(drift)
    assert re.findall(r'<section id="(\w+)">', dom) == ["prediction", "moved", "columns"]
    assert "CONSOLE" not in log, log


def test_the_drift_page_is_as_quiet(browse: Dump, tmp_path: Path, script: Callable[[str], Any]) -> None:
    page = tmp_path / "drift.html"
    page.write_text(render_drift(script("tests/unit/ui/test_drift_page.py").drifted()), encoding="utf-8")
    dom, log = browse(page)
    assert re.findall(r'<section id="(\w+)">', dom) == ["prediction", "quality", "moved", "columns"]
    assert "<script" not in dom
    assert "CONSOLE" not in log, log


def test_measured_speed_is_shown_as_quietly(browse: Dump, tmp_path: Path, script: Callable[[str], Any]) -> None:
    found = script("tests/unit/ui/test_bench_page.py")
    page = tmp_path / "bench.html"
    for made, sections in ((found.SWEPT, ["connections", "rows", "conditions"]), (found.PACKAGE, ["sweep", "conditions"])):
        page.write_text(render_bench(made), encoding="utf-8")
        dom, log = browse(page)
        assert re.findall(r'<section id="(\w+)">', dom) == sections
        assert "CONSOLE" not in log, log


def test_a_script_is_refused_even_if_one_got_in(sample: Any, browse: Dump, tmp_path: Path) -> None:
    page = write_report(collect(sample.make(tmp_path / "run"), run=sample.RUN), tmp_path / "report.html")
    page.write_text(page.read_text(encoding="utf-8").replace("</body>", f"{HOSTILE}</body>"), encoding="utf-8")
    dom, log = browse(page)
    assert "<title>flights 3 · Tidemill</title>" in dom
    assert "Content Security Policy" in log


@pytest.mark.parametrize("width", [400, 800, 1400])
def test_no_part_of_the_page_is_wider_than_the_screen(sample: Any, browse: Dump, tmp_path: Path, width: int) -> None:
    page = write_report(collect(sample.make(tmp_path / "run", text="W" * 300), run=sample.RUN), tmp_path / "report.html")
    measure = "document.title = String(document.documentElement.scrollWidth) + ' of ' + String(innerWidth)"
    text = page.read_text(encoding="utf-8").replace("default-src 'none'", "default-src 'none'; script-src 'unsafe-inline'")
    page.write_text(text.replace("</body>", f"<script>addEventListener('load', () => {{ {measure} }})</script></body>"), encoding="utf-8")
    frame = tmp_path / "frame.html"
    listen = "setTimeout(() => { document.title = document.querySelector('iframe').contentDocument.title }, 1500)"
    frame.write_text(f"<!doctype html><iframe src='report.html' width={width} height=900></iframe><script>{listen}</script>")
    dom, _ = browse(frame, "--allow-file-access-from-files", f"--window-size={width + 100},1000")
    found = re.search(r"<title>(\d+) of (\d+)</title>", dom)
    assert found is not None, dom[:500]
    assert int(found[1]) <= int(found[2])
