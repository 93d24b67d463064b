"""The run report: one HTML page that needs nothing but itself."""

from __future__ import annotations

import uuid
from pathlib import Path

from tidemill.core.artifact import PARTIAL
from tidemill.core.events import now
from tidemill.ui import data, lineage, quality, selection, summary, training
from tidemill.ui.collect import Report, collect
from tidemill.ui.format import moment
from tidemill.ui.page import page, tag

__all__ = ["Report", "collect", "render", "write_report"]

SECTIONS = (
    summary.contract, quality.quality, quality.slices, quality.parity, training.model, training.tuning,
    training.features, selection.selection, data.data, lineage.lineage, lineage.environment,
)  # fmt: skip


def write_report(report: Report, path: Path) -> Path:
    """Write the page to `path`, whole or not at all.

    Returns:
        `path`.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.parent / f"{PARTIAL}{path.name}-{uuid.uuid4().hex[:8]}"
    try:
        partial.write_text(render(report), encoding="utf-8")
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
    return path


def render(report: Report) -> str:
    """The page as text. A section whose input is absent is left out."""
    name = str(report.about("name") or report.find("package/tidemill.json", "name", default="run"))
    version = report.about("version")
    sections = [section for make in SECTIONS if (section := make(report)) is not None]
    made = tag("p", f"Made by Tidemill, {moment(report.about('ended', default=now()))}. This page needs no network and holds no script.")
    title = f"{name} {version}" if version is not None else name
    return page(title=f"{title} \u00b7 Tidemill", header=summary.header(report), sections=sections, footer=made)
