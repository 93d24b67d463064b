from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tidemill.core import contract
from tidemill.core.errors import ContractViolation, Unsupported
from tidemill.core.events import Event, Events
from tidemill.core.package import Package
from tidemill.serve.model import Model
from tidemill.testing.packages import EXAMPLE, tiny_package, tiny_probability

HERE = contract.hardware()
ELSEWHERE = {"fingerprint": "Another CPU x64"}


def latency(limit: float) -> dict[str, Any]:
    return {"name": "latency p99_ms", "measure": "latency.p99_ms", "relation": "<=", "limit": limit}


def held(path: Path, *, limit: float, measured: float, hardware: dict[str, Any], accept: bool = False) -> tuple[Model, list[Event]]:
    package = tiny_package(path / "p", promises=[latency(limit)], evidence={"latency": {"p99_ms": measured, "hardware": hardware}})
    seen: list[Event] = []
    model = Model(package)
    model.keep_contract(accept_latency=accept, events=Events(seen.append), seconds=0.05)
    return model, seen


def test_latency_of_this_hardware_is_taken_as_measured(tmp_path: Path) -> None:
    model, seen = held(tmp_path, limit=5, measured=0.001, hardware=HERE)
    assert seen == []
    assert model.promises[0]["kept"] is True
    assert model.promises[0]["measured"] == 0.001


def test_latency_of_other_hardware_is_measured_here(tmp_path: Path) -> None:
    model, [event] = held(tmp_path, limit=10_000, measured=99_999, hardware=ELSEWHERE)
    assert event.kind == "serve.latency_measured"
    assert event.fields["evidence"]["hardware"] == HERE
    assert model.promises[0]["kept"] is True
    assert 0 < model.promises[0]["measured"] < 10_000


def test_what_was_measured_here_is_entered_as_evidence(tmp_path: Path) -> None:
    model, _ = held(tmp_path, limit=10_000, measured=99_999, hardware=ELSEWHERE)
    again = Package.open(tmp_path / "p")
    assert again.identity == model.package.identity
    assert again.evidence()["latency"]["p99_ms"] == model.promises[0]["measured"]
    assert again.evidence()["latency"]["hardware"] == HERE
    seen: list[Event] = []
    Model(again).keep_contract(accept_latency=False, events=Events(seen.append))
    assert seen == []


def test_a_package_that_cannot_be_written_is_served_all_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any) -> Any:
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr("tidemill.serve.model.add_evidence", refuse)
    model, seen = held(tmp_path, limit=10_000, measured=99_999, hardware=ELSEWHERE)
    assert [event.kind for event in seen] == ["serve.latency_measured", "serve.evidence_not_written"]
    assert model.promises[0]["kept"] is True


def test_a_latency_that_was_broken_here_once_is_measured_again(tmp_path: Path) -> None:
    model, [event] = held(tmp_path, limit=10_000, measured=99_999, hardware=HERE)
    assert event.kind == "serve.latency_measured"
    assert model.promises[0]["kept"] is True


@pytest.mark.parametrize("hardware", [HERE, ELSEWHERE])
def test_a_broken_latency_is_refused(tmp_path: Path, hardware: dict[str, Any]) -> None:
    with pytest.raises(ContractViolation, match=r"tiny .*: latency p99_ms: promised <= 1e-09, measured .*--accept-latency") as caught:
        held(tmp_path, limit=1e-9, measured=50, hardware=hardware)
    assert caught.value.exit_code == 3


def test_a_broken_latency_passes_with_the_word_and_is_recorded(tmp_path: Path) -> None:
    model, seen = held(tmp_path, limit=1e-9, measured=50, hardware=ELSEWHERE, accept=True)
    assert [(event.kind, event.level) for event in seen] == [("serve.latency_measured", "info"), ("serve.latency_accepted", "warning")]
    assert model.promises[0]["kept"] is False


def test_the_word_does_not_cover_other_promises(tmp_path: Path) -> None:
    promise = {"name": "parity", "measure": "parity.max_difference", "relation": "<=", "limit": 1e-5}
    package = tiny_package(tmp_path / "p", promises=[promise], evidence={"parity": {"max_difference": 0.1}})
    with pytest.raises(ContractViolation, match=r"parity: promised <= 1e-05, measured 0\.1") as caught:
        Model(package).keep_contract(accept_latency=True, events=Events())
    assert caught.value.hint is None


def test_a_package_of_another_kind_is_refused(packages: Path) -> None:
    package = Package.open(packages / "binary")
    signature = {**package.manifest["signature"], "kind": "window"}
    with pytest.raises(Unsupported, match="'window' cannot be served"):
        Model(Package(package.path, {**package.manifest, "signature": signature}))


def test_a_package_without_an_example_is_warmed_up_with_nulls(packages: Path) -> None:
    package = Package.open(packages / "binary")
    signature = {key: value for key, value in package.manifest["signature"].items() if key != "example"}
    model = Model(Package(package.path, {**package.manifest, "signature": signature}))
    assert model.example == dict.fromkeys(EXAMPLE)
    assert model.example_answer.probability is not None
    assert model.example_answer.probability[0, 1] == pytest.approx(tiny_probability(model.example))
    assert model.row_ms > 0


@pytest.mark.parametrize(
    ("classes", "words"),
    [
        (["NEGATIVE", "POSITIVE"], ["sentiment", "confidence"]),
        (["Positive", "negative"], ["sentiment", "confidence"]),
        (["spam", "ham"], ["label", "score"]),
        (["positive", "other"], ["label", "score"]),
    ],
)
def test_a_text_package_speaks_of_its_classes(tmp_path: Path, classes: list[str], words: list[str]) -> None:
    model = Model(tiny_package(tmp_path / "p", task="text", classes=classes))
    [row] = model.form.rows(model.example_answer)
    assert list(row) == [*words, "prediction", "probability"]
    assert row[words[0]] == row["prediction"] == classes[1]


def test_classes_of_numbers_and_booleans_keep_their_type(tmp_path: Path) -> None:
    numbers = Model(tiny_package(tmp_path / "n", task="multiclass", classes=[10, 20, 30]))
    assert numbers.form.rows(numbers.example_answer)[0]["prediction"] == 10
    assert list(numbers.form.rows(numbers.example_answer)[0]["probability"]) == ["10", "20", "30"]
    assert list(numbers.form.columns(numbers.example_answer)) == ["prediction", "probability_10", "probability_20", "probability_30"]
