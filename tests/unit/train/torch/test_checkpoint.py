"""Checkpoints of one process; those of several are in tests/numerics."""

from __future__ import annotations

import json
import random
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tidemill.core.errors import ConfigError, NotFound, Unavailable
from tidemill.train.torch.checkpoint import CheckpointConfig, Checkpoints, random_state, set_random_state

torch = pytest.importorskip("torch")


def opened(folder: Path, **config: Any) -> Checkpoints:
    return Checkpoints(folder, CheckpointConfig(**config))


def model(seed: int = 0) -> tuple[Any, Any]:
    torch.manual_seed(seed)
    made = torch.nn.Sequential(torch.nn.Linear(3, 5), torch.nn.BatchNorm1d(5), torch.nn.Linear(5, 1))
    return made, torch.optim.AdamW(made.parameters(), lr=0.01)


def steps(made: Any, optimizer: Any, number: int) -> None:
    for _ in range(number):
        made(torch.randn(8, 3)).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()


@pytest.mark.parametrize("asynchronous", [False, True])
def test_a_run_goes_on_bitwise(tmp_path: Path, asynchronous: bool) -> None:
    made, optimizer = model()
    steps(made, optimizer, 3)
    saving = opened(tmp_path / "run", asynchronous=asynchronous)
    plain = {"epoch": 1, "best": float("inf"), "order": [1, 2.5, None, "x"], "pair": (1, "a"), 7: "whole number"}
    saving.save(3, {"model": made, "optimizer": optimizer, "progress": plain}, {"random": random_state()})
    steps(made, optimizer, 4)
    saving.close()

    again, its_optimizer = model(seed=9)
    restored = opened(tmp_path / "run").restore({"model": again, "optimizer": its_optimizer, "progress": {}})
    assert restored is not None
    assert (restored.step, restored.ranks) == (3, 1)
    assert restored.state["progress"] == plain
    assert restored.own is not None
    set_random_state(restored.own["random"])
    steps(again, its_optimizer, 4)
    for name, tensor in made.state_dict().items():
        assert torch.equal(tensor, again.state_dict()[name]), name


def test_generators_go_on_where_they_were() -> None:
    state = json_round(random_state())
    drawn = [random.random(), np.random.rand(), np.random.randn(), float(torch.rand(()))]  # noqa: NPY002
    set_random_state(state)
    assert [random.random(), np.random.rand(), np.random.randn(), float(torch.rand(()))] == drawn  # noqa: NPY002


def json_round(state: Any) -> Any:
    """As a checkpoint does it."""
    from tidemill.train.torch.tree import joined, split

    tensors, plain = split(state, "own")
    return joined(json.loads(json.dumps(plain)), {name: tensor.clone() for name, tensor in tensors.items()}.__getitem__)


def test_what_training_writes_meanwhile_is_not_in_it(tmp_path: Path) -> None:
    tensor = torch.arange(1_000_000, dtype=torch.float32)
    saving = opened(tmp_path)
    saving.save(1, {"weights": tensor, "views": [tensor[:10], tensor[5:15].reshape(2, 5).T]})
    tensor.fill_(-1)
    saving.close()
    back = {"weights": torch.empty(1_000_000), "views": [torch.empty(10), torch.empty(5, 2)]}
    opened(tmp_path).restore(back)
    assert torch.equal(back["weights"], torch.arange(1_000_000, dtype=torch.float32))
    assert torch.equal(back["views"][1], torch.arange(5.0, 15.0).reshape(2, 5).T)


def test_the_newest_stay_and_any_of_them_can_be_had(tmp_path: Path) -> None:
    saving = opened(tmp_path, keep=3)
    assert saving.latest() is None
    assert saving.restore({"x": torch.zeros(1)}) is None
    for step in (10, 20, 30, 40, 100):
        saving.save(step, {"x": torch.full((1,), float(step))})
    saving.wait()
    assert saving.steps() == [30, 40, 100]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-000000030", "step-000000040", "step-000000100"]
    back = {"x": torch.zeros(1)}
    saving.restore(back)
    assert back["x"] == 100
    saving.restore(back, step=30)
    assert back["x"] == 30
    with pytest.raises(NotFound, match=r"checkpoint '20' is not known .*known: 100, 30, 40"):
        saving.restore(back, step=20)
    saving.close()


def test_what_a_kill_left_is_no_checkpoint_and_goes(tmp_path: Path) -> None:
    saving = opened(tmp_path, asynchronous=False)
    saving.save(1, {"x": torch.ones(1)})
    half = tmp_path / ".partial-step-000000002"
    shutil.copytree(tmp_path / "step-000000001", half)
    (half / "index.json").unlink()
    again = opened(tmp_path)
    assert again.steps() == [1]
    assert not half.exists()


def test_no_checkpoint_holds_code(tmp_path: Path) -> None:
    made, optimizer = model()
    steps(made, optimizer, 1)
    opened(tmp_path, asynchronous=False).save(1, {"model": made, "optimizer": optimizer}, {"random": random_state()})
    folder = tmp_path / "step-000000001"
    assert sorted(path.name for path in folder.iterdir()) == ["__0_0.distcp", "index.json"]
    index = json.loads((folder / "index.json").read_text())
    assert index["tensors"]["state/model/0.weight"]["size"] == [5, 3]


def test_a_checkpoint_of_another_model_is_refused(tmp_path: Path) -> None:
    saving = opened(tmp_path, asynchronous=False)
    saving.save(1, {"model": {"a": torch.zeros(2), "b": torch.zeros(3), "c": torch.zeros(4)}})
    other = {"a": torch.zeros(2), "b": torch.zeros(3, 1), "d": torch.zeros(1)}
    with pytest.raises(
        ConfigError, match=r"state/model/d is missing; state/model/c has no place; state/model/b is float32 \[3\], not float32 \[3, 1\]"
    ):
        saving.restore({"model": other})
    with pytest.raises(ConfigError, match=r"a is float32 \[2\], not float64 \[2\]"):
        saving.restore({"model": {"a": torch.zeros(2).double(), "b": torch.zeros(3), "c": torch.zeros(4)}})


def test_a_leaf_that_is_no_value_is_refused(tmp_path: Path) -> None:
    with pytest.raises(TypeError, match="state/when: a checkpoint holds tensors and JSON values, got object"):
        opened(tmp_path).save(1, {"when": object()})


@pytest.mark.parametrize("asynchronous", [False, True])
def test_what_cannot_be_written_is_told_and_the_last_good_one_stays(tmp_path: Path, asynchronous: bool) -> None:
    saving = opened(tmp_path, asynchronous=asynchronous)
    saving.save(1, {"x": torch.ones(1)})
    saving.wait()
    (tmp_path / ".partial-step-000000002").write_text("in the way")
    with pytest.raises(Unavailable, match="the checkpoint of step 2 must be written to"):
        saving.save(2, {"x": torch.full((1,), 2.0)})
        saving.wait()
    back = {"x": torch.zeros(1)}
    saving.restore(back)
    assert back["x"] == 1
    saving.close()


def test_due_by_steps(tmp_path: Path) -> None:
    saving = opened(tmp_path, every_steps=3, every_s=0)
    assert [step for step in range(1, 10) if saving.due(step)] == [3, 6, 9]


def test_due_by_seconds_looks_at_the_clock_seldom(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now, looks = [0.0], [0]

    def monotonic() -> float:
        looks[0] += 1
        return now[0]

    monkeypatch.setattr("tidemill.train.torch.checkpoint.time.monotonic", monotonic)
    saving = opened(tmp_path, every_s=60, asynchronous=False)
    saved = []
    for step in range(1, 20_001):
        now[0] += 0.01
        if saving.due(step):
            saving.save(step, {"x": torch.zeros(1)})
            saved.append(now[0])
    gaps = np.diff([0.0, *saved])
    assert len(gaps) == 3
    assert gaps.min() >= 60
    assert gaps.max() < 75
    assert looks[0] < 200
