from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from tidemill.core.artifact import Artifact, write_json
from tidemill.ui.page import VOID
from tidemill.ui.report import collect, render, write_report

Stages = dict[str, Artifact]
SECTIONS = ["contract", "quality", "slices", "parity", "model", "tuning", "features", "data", "lineage", "environment"]
HOSTILE = """</style></title>--><script>alert(1)</script><img src=x onerror=alert(1)>"'&\u202e\x00"""


class Outline(HTMLParser):
    """Reads a page strictly: what is open, what it links to, what it would run or load."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: Counter[str] = Counter()
        self.ids: list[str] = []
        self.links: list[str] = []
        self.attributes: Counter[str] = Counter()
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags[tag] += 1
        for name, value in attrs:
            self.attributes[name] += 1
            if name == "id":
                self.ids.append(value or "")
            if name in ("href", "src", "action", "xlink:href", "srcset", "data", "poster"):
                self.links.append(value or "")
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open, f"</{tag}> closes nothing"
        assert self.open.pop() == tag


def outline(text: str) -> Outline:
    read = Outline(text)
    assert not read.open
    assert max(Counter(read.ids).values()) == 1
    assert all(link == "data:," or link.removeprefix("#") in read.ids for link in read.links), read.links
    assert not {"script", "iframe", "object", "embed", "base", "form"} & read.tags.keys()
    assert not [name for name in read.attributes if name.startswith("on")]
    return read


def sections(text: str) -> list[str]:
    return re.findall(r'<section id="([^"]+)">', text)


@pytest.mark.parametrize("task", ["binary", "multiclass", "regression"])
def test_a_whole_run_shows_every_section(stages_of: Callable[..., Stages], run: dict[str, Any], task: str) -> None:
    text = render(collect(stages_of(task=task), run=run))
    read = outline(text)
    assert sections(text) == SECTIONS
    assert read.tags["svg"] > 15
    assert len(text) < 300_000
    assert "http" not in text.replace("http-equiv", "")
    assert "Accepted. All 5 promises are kept. Version 3 is now champion." in re.sub("<[^>]*>", "", text)


def test_each_task_has_its_own_pictures(stages_of: Callable[..., Stages], run: dict[str, Any], tmp_path: Path) -> None:
    titles = {"binary": "Precision and recall", "multiclass": "Confusion", "regression": "Residuals"}
    for task in titles:
        made = render(collect(stages_of(task=task), run=run))
        assert [name for name, title in titles.items() if title in made] == [task]


@pytest.mark.parametrize("task", ["binary", "multiclass", "regression"])
def test_names_and_values_of_the_data_stay_text(stages_of: Callable[..., Stages], run: dict[str, Any], task: str) -> None:
    text = render(collect(stages_of(task=task, text=HOSTILE), run={**run, "name": HOSTILE, "command": HOSTILE}))
    read = outline(text)
    assert read.tags["img"] == 0
    assert text.count("<style>") == text.count("</style>") == 1
    assert "&lt;script&gt;alert(1)" in text
    assert "\x00" not in text


@pytest.mark.parametrize(
    ("last", "shown"),
    [
        (0, []),
        (1, ["data", "lineage"]),
        (2, ["features", "data", "lineage"]),
        (3, ["tuning", "features", "data", "lineage"]),
        (4, ["quality", "model", "tuning", "features", "data", "lineage"]),
        (5, ["contract", "quality", "slices", "parity", "model", "tuning", "features", "data", "lineage", "environment"]),
    ],
)
def test_what_has_not_run_is_left_out(binary: Stages, last: int, shown: list[str]) -> None:
    text = render(collect(dict(list(binary.items())[:last]), run={"name": "flights"}))
    outline(text)
    assert sections(text) == shown
    assert ("No package." in text) == (last < 5)


@pytest.mark.parametrize("gone", ["profile.json", "checks.json", "leakage.json", "trials.json", "best.json", "history.jsonl", "features.json",
                                  "train.json", "contract.json", "evidence/quality.json", "evidence/latency.json", "evidence/parity.json",
                                  "evidence/size.json", "schema.json"])  # fmt: skip
@pytest.mark.parametrize("content", [None, "{", "{}", "[]", "null"])
def test_an_absent_damaged_or_empty_file_costs_its_section_only(
    binary: Stages, run: dict[str, Any], gone: str, content: str | None
) -> None:
    (path,) = [artifact.path / gone for artifact in binary.values() if (artifact.path / gone).exists()]
    path.unlink() if content is None else path.write_text(content, encoding="utf-8")
    text = render(collect(binary, run=run))
    outline(text)
    assert len(sections(text)) >= len(SECTIONS) - 2


def test_a_refused_package_says_so_first(binary: Stages, run: dict[str, Any]) -> None:
    del binary["package"]
    breach = "quality min (roc_auc): promised >= 0.8, measured 0.7071"
    text = render(collect(binary, run={**run, "version": None, "refused": [breach]}))
    assert "Refused. 1 promise is broken; nothing was packaged." in re.sub("<[^>]*>", "", text)
    assert breach.replace(">", "&gt;") in text
    assert "Accepted" not in text


def test_evidence_of_a_refused_package_is_shown_from_its_folder(binary: Stages, run: dict[str, Any]) -> None:
    package = binary.pop("package")
    promises = [{"name": "size max_mb", "measure": "size.mb", "limit": 4.0, "relation": "<="}]
    kept = {"contract": promises, "evidence": str(package.path / "evidence")}
    text = render(collect(binary, run={**run, "refused": ["size max_mb: promised <= 4, measured 4.21"], **kept}))
    assert {"contract", "quality", "slices", "parity"} <= set(sections(text))
    assert '<span class="badge bad">broken</span>' in text
    assert "Accepted" not in text


def test_signs_of_leakage_stand_at_the_top(binary: Stages, run: dict[str, Any]) -> None:
    text = render(collect(binary, run=run))
    assert text.index("1 sign of leakage.") < text.index('<section id="contract">')


def test_a_sign_of_leakage_in_a_column_that_is_not_used_stays_in_its_table(binary: Stages, run: dict[str, Any]) -> None:
    sign = {"kind": "predicts_target", "column": "arr_delay", "message": "arr_delay alone predicts late", "value": 1.0}
    write_json(binary["data"].path / "leakage.json", [sign])
    text = render(collect(binary, run=run))
    assert "of leakage." not in text
    assert text.index("arr_delay alone predicts late") > text.index('<section id="data">')


def test_the_worst_slices_come_first(stages_of: Callable[..., Stages], run: dict[str, Any]) -> None:
    for task, worst_is_high in (("binary", False), ("regression", True)):
        text = render(collect(stages_of(task=task), run=run))
        part = text[text.index('id="slices"') : text.index('id="parity"')]
        shown = [float(row[1]) for row in re.findall(r'<td class="number">([\d,]+)</td><td class="number">([\d.]+)</td>', part)]
        assert len(shown) == 12
        assert shown == sorted(shown, reverse=worst_is_high)


def test_writing_leaves_one_file(binary: Stages, run: dict[str, Any], tmp_path: Path) -> None:
    path = tmp_path / "out" / "report.html"
    assert write_report(collect(binary, run=run), path) == path
    assert [entry.name for entry in path.parent.iterdir()] == ["report.html"]
    outline(path.read_text(encoding="utf-8"))


def test_features_that_were_left_out_stand_with_their_reasons(binary: Stages, run: dict[str, Any]) -> None:
    assert 'id="selection"' not in render(collect(binary, run=run))
    file = binary["features"].path / "features.json"
    dropped = {f"f<{i}>": {"by": "mutual_information", "reason": f"says nothing & {i}", "value": 0.0} for i in range(50)}
    steps = [{"op": "mutual_information", "params": {"keep": 47, "sample_rows": 50_000}, "before": 97, "after": 47}]
    file.write_text(json.dumps({**json.loads(file.read_text()), "selected": {"steps": steps, "dropped": dropped}}))
    page = render(collect(binary, run=run))
    assert "50 of 97 features were left out" in page
    assert "keep 47, sample rows 50,000" in page
    assert page.count("says nothing &amp; ") == 50
    assert "f&lt;49&gt;" in page
    assert "10 more features" in page


def test_a_search_says_what_mattered_what_was_narrowed_and_where_it_began(binary: Stages, run: dict[str, Any]) -> None:
    made = render(collect(binary, run=run))
    for said in (
        "It began with 2 settings that did well on other tables.",
        "The space was narrowed after 12 trials: grow fixed at loss",
        "2 processes searched.",
        "What mattered",
        "Share of the differences between trials",
        "fixed at loss",
        "narrowed to 0.02",
        "Values that go together",
        "bikes, distance 1.20",
    ):
        assert said in made, said


def test_a_search_names_the_tables_that_it_learnt_from(binary: Stages, run: dict[str, Any]) -> None:
    search = binary["tune"].read_json("search.json")
    (binary["tune"].path / "search.json").write_text(json.dumps({**search, "starts": [], "studies": [{"name": "bikes", "distance": 0.75}]}))
    made = render(collect(binary, run=run))
    assert "It learnt from earlier searches on other tables, 1 in all." in made
    assert "Distance of its table" in made
