"""Costs of collectives by hand, lines through what was measured, and the file between doctor and plan."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tidemill.cli import main
from tidemill.core.errors import ConfigError, NotFound
from tidemill.train.planner.collectives import FORMAT, NAMES, Line, Measured, read, seconds, steps, volume
from tidemill.train.planner.measuring import Point, fitted

LINE = Line(alpha_s=1e-5, bandwidth=1e9)
PLAN = ["plan", "--hidden", "256", "--layers", "4", "--heads", "4", "--count", "4", "--batch", "16", "--device", "h100", "--json"]


@pytest.mark.parametrize(
    ("name", "ranks", "expected"),
    [
        ("all_reduce", 4, 6e-5 + 1.5),  # 2 x 3 steps, 2 x 3/4 of the bytes
        ("all_gather", 4, 3e-5 + 0.75),
        ("reduce_scatter", 2, 1e-5 + 0.5),
        ("all_to_all", 8, 7e-5 + 0.875),
        ("broadcast", 8, 3e-5 + 1.0),  # a tree of depth 3
        ("send_recv", 2, 1e-5 + 1.0),
        ("all_reduce", 1, 0.0),
    ],
)
def test_a_gigabyte_by_hand(name: str, ranks: int, expected: float) -> None:
    assert seconds(name, 1e9, ranks, LINE) == pytest.approx(expected, rel=1e-12)


def test_an_all_reduce_is_a_reduce_scatter_and_an_all_gather() -> None:
    assert seconds("all_reduce", 5e7, 6, LINE) == pytest.approx(
        seconds("reduce_scatter", 5e7, 6, LINE) + seconds("all_gather", 5e7, 6, LINE)
    )


def test_an_unknown_collective() -> None:
    with pytest.raises(NotFound, match="did you mean 'all_reduce'"):
        seconds("allreduce", 1.0, 2, LINE)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("ranks", [2, 3, 8])
def test_the_line_that_points_were_made_from(name: str, ranks: int) -> None:
    points = [_point(name, num, steps(name, ranks) * 2e-4 + num * volume(name, ranks) / 3e9) for num in (1000, 100_000, 10_000_000)]
    line = fitted(name, ranks, points)
    assert line.alpha_s == pytest.approx(2e-4)
    assert line.bandwidth == pytest.approx(3e9)


def test_a_line_is_never_below_zero() -> None:
    faster_when_larger = [_point("broadcast", 1000, 1e-3), _point("broadcast", 1_000_000, 1e-4)]
    below_at_zero = [_point("broadcast", 1000, 1e-9), _point("broadcast", 1_000_000, 1.0)]
    for points in (faster_when_larger, below_at_zero):
        line = fitted("broadcast", 2, points)
        assert line.alpha_s >= 0
        assert line.bandwidth > 0


def test_a_file_is_read_as_it_was_written(tmp_path: Path) -> None:
    measured = Measured(ranks=4, backend="gloo", lines=dict.fromkeys(NAMES, LINE))
    path = tmp_path / "c.json"
    path.write_text(json.dumps(measured.to_json()))
    assert read(path) == measured


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("{}", "must hold what tidemill doctor"),
        ("[1]", "must hold what tidemill doctor"),
        ("not json", "must hold what tidemill doctor"),
        (json.dumps({"format": "x/1"}), "format must be"),
        (json.dumps({"format": FORMAT, "ranks": 2, "backend": "gloo", "lines": {}}), "must hold a line for all_reduce"),
        (
            json.dumps({"format": FORMAT, "ranks": 2, "backend": "g", "lines": {name: {"alpha_s": -1, "bandwidth": 1} for name in NAMES}}),
            "bandwidth of all_reduce must be above 0",
        ),
    ],
)
def test_a_file_that_is_none(tmp_path: Path, text: str, why: str) -> None:
    path = tmp_path / "c.json"
    path.write_text(text)
    with pytest.raises(ConfigError, match=why):
        read(path)
    with pytest.raises(ConfigError, match="must be a file"):
        read(tmp_path / "none.json")


# The commands.


def test_a_plan_with_what_was_measured(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "c.json"
    slow = Measured(ranks=4, backend="gloo", lines=dict.fromkeys(NAMES, Line(alpha_s=0.5, bandwidth=1e6)))
    path.write_text(json.dumps(slow.to_json()))
    assert main(PLAN) == 0
    sheet = json.loads(capsys.readouterr().out)
    assert main([*PLAN, "--collectives", str(path)]) == 0
    measured = json.loads(capsys.readouterr().out)
    assert measured["collectives"] == "measured"
    assert measured["choices"][0]["seconds"]["total"] > 10 * sheet["choices"][0]["seconds"]["total"]


def test_a_plan_for_people(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", "--parameters", "70e9", "--device", "h100", "--count", "64", "--batch", "128"]) == 0
    shown = capsys.readouterr().out
    assert "64 x h100 (80 GiB each)" in shown
    assert "best: [train] batch_size = 128" in shown
    assert "tensor 16 crosses nodes of 8" in shown
    assert "GiB of 75.2" in shown


def test_nothing_fits_is_an_answer(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", "--parameters", "70e9", "--device", "a100-40", "--count", "1", "--batch", "1"]) == 0
    assert "nothing fits" in capsys.readouterr().out


@pytest.mark.parametrize("stages", [("2,2,12", 16), ("4,4,8", 16), ("2,4,12", 18)])
def test_bytes_a_parameter(stages: tuple[str, int], capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*PLAN, "--count", "1", "--bytes", stages[0]]) == 0
    made = json.loads(capsys.readouterr().out)
    memory = made["choices"][0]["memory"]
    assert memory["parameters"] + memory["optimizer"] + made["model"]["parameters"] * float(stages[0].split(",")[1]) == pytest.approx(
        stages[1] * made["model"]["parameters"]
    )


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        (["plan"], "--hidden: must be given, or --parameters"),
        (["plan", "--parameters", "1e9", "--hidden", "8"], "--parameters: must stand without --hidden"),
        ([*PLAN, "--bytes", "2,2"], "--bytes: must be three numbers"),
        ([*PLAN, "--device", "h1000"], "device 'h1000' is not known"),
        ([*PLAN, "--collectives", "none.json"], "--collectives: must be a file"),
        (["doctor", "--ranks", "3"], "--ranks: must go with --collectives"),
        (["doctor", "--collectives", "--ranks", "1"], "--ranks: must be at least 2"),
    ],
)
def test_a_wrong_call(arguments: list[str], why: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(arguments) == 2
    assert why in capsys.readouterr().err


def _point(name: str, num_bytes: int, took: float) -> Point:
    return Point(name=name, num_bytes=num_bytes, seconds=took)
