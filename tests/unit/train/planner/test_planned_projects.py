"""Plans of a project's network."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tidemill.cli import main

pytest.importorskip("torch")


def test_a_perceptron_of_a_project(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = _project(tmp_path, 'kind = "mlp"\nwidth = 8\ndepth = 2', "batch_size = 128")
    assert main(["plan", "-f", str(path), "--inputs", "4", "--device", "h100", "--count", "2", "--json"]) == 0
    made = json.loads(capsys.readouterr().out)
    assert made["model"] == {"kind": "mlp", "parameters": (4 * 8 + 8 + 16) + (8 * 8 + 8 + 16) + (8 + 1)}
    assert (made["batch"], made["precision"]) == (128, "fp32")
    assert main(["plan", "-f", str(path)]) == 2
    assert "--inputs: must be given for mlp" in capsys.readouterr().err


def test_an_encoder_of_a_project(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "mini").mkdir()
    config = {"hidden_size": 384, "num_hidden_layers": 6, "num_attention_heads": 12, "intermediate_size": 1536, "vocab_size": 30522}
    (tmp_path / "mini" / "config.json").write_text(json.dumps(config))
    path = _project(tmp_path, 'kind = "text"\nencoder = "mini"\nmax_length = 64')
    assert main(["plan", "-f", str(path), "--device", "h100", "--json"]) == 0
    made = json.loads(capsys.readouterr().out)
    assert made["model"]["parameters"] == pytest.approx(22.4e6, rel=0.02)  # MiniLM-L6
    (tmp_path / "mini" / "config.json").write_text("{}")
    assert main(["plan", "-f", str(path)]) == 2
    assert "model.encoder: must be a folder with a config.json" in capsys.readouterr().err


def test_a_kind_that_is_not_counted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = _project(tmp_path, 'kind = "linear"')
    assert main(["plan", "-f", str(path)]) == 2
    assert "model.kind: must be one that the planner counts, got 'linear'" in capsys.readouterr().err
    assert main(["plan", "-f", str(path), "--layers", "2"]) == 2
    assert "--layers: must stand without -f" in capsys.readouterr().err


def _project(folder: Path, model: str, train: str = "") -> Path:
    path = folder / "tidemill.toml"
    path.write_text(f'name = "x"\n[data]\nsource = "x.csv"\ntarget = "y"\n[model]\n{model}\n[train]\n{train}\n')
    return path
