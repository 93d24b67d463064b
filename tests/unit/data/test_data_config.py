"""`[data]` is read whole, and what is wrong is named by its path."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tidemill.core.errors import ConfigError, TidemillError
from tidemill.core.project import build, fingerprint, to_plain
from tidemill.data.config import CheckConfig, DataConfig, Sampling, SourceConfig, SplitConfig

LEAST = {"source": "a.csv", "target": "y"}


def made(**tree: Any) -> DataConfig:
    config: DataConfig = build(DataConfig, {**LEAST, **tree}, path="data", where="tidemill.toml")
    return config


def test_source_and_target_are_enough() -> None:
    config = made()
    assert config.split == SplitConfig(by="random", valid=0.1, test=0.1)
    assert config.sources() == {"table": SourceConfig(path="a.csv")}


def test_sources_are_paths_or_tables() -> None:
    config = made(source={"a": "a.csv", "b": {"path": "b.txt", "format": "csv", "null": ["?"]}}, prepare="m:f")
    assert config.sources()["b"] == SourceConfig(path="b.txt", format="csv", null=("?",))
    assert made(source={"path": "x.csv", "delimiter": ";"}).sources()["table"].delimiter == ";"


def test_relative_paths_are_the_projects(tmp_path: Path) -> None:
    assert SourceConfig(path="data/a.csv").resolved(tmp_path).path == str(tmp_path / "data" / "a.csv")
    assert SourceConfig(path="/data/a.csv").resolved(tmp_path).path == "/data/a.csv"
    assert SourceConfig(path="../a.csv").resolved(tmp_path / "x").path == str(tmp_path / "x" / ".." / "a.csv")


def test_plain_values_lead_back_to_the_same_config() -> None:
    config = made(checks={"x": {"in": [1, 2], "min": 0}}, split={"by": "time", "column": "at"}, keys=["k"], prepare="m:f")
    assert config.checks["x"] == CheckConfig(allowed=(1, 2), min=0)
    assert build(DataConfig, to_plain(config), path="data") == config
    assert fingerprint(config=config) == fingerprint(config=build(DataConfig, to_plain(config), path="data"))


@pytest.mark.parametrize(
    ("tree", "error", "message"),
    [
        ({"targt": "y"}, ConfigError, r"data\.targt: is not a known key \(tidemill\.toml\); did you mean 'data\.target'"),
        ({"source": 3}, ConfigError, r"data\.source: must be a path or a table of name = path, got 3"),
        ({"source": {"a": {"pth": "x"}}}, ConfigError, r"data\.source\.a\.pth: is not a known key"),
        ({"source": {"query": "select 1"}}, ConfigError, "query and url go together"),
        ({"source": {"query": "select 1", "url": "mysql://h/d"}}, ConfigError, "must be sqlite:///file.db or postgresql://host/name"),
        ({"source": {"query": "select 1", "url": "postgresql://u:secret@h/d"}}, ConfigError, "must not hold a password"),
        ({"source": {"query": "select 1", "url": "postgresql://h/d?password=secret"}}, ConfigError, "must not hold a password"),
        (
            {"source": {"query": "select 1", "url": "sqlite:///x.db", "path": "a.csv"}},
            ConfigError,
            r"data\.source\.path: has no effect on a query",
        ),
        ({"source": {"path": "a.csv", "endpoint": "http://h"}}, ConfigError, "has an effect on s3:// and gs:// alone"),
        ({"source": {"my table": "a.csv"}}, ConfigError, "must be usable as a parameter of prepare"),
        ({"source": {"a": "a.csv", "b": "b.csv"}}, ConfigError, r"data\.prepare: must join the 2 sources"),
        ({"source": {"path": "a.csv", "delimiter": "||"}}, ConfigError, r"delimiter must be one character, got '\|\|'"),
        ({"prepare": "prepare"}, ConfigError, r'data\.prepare: must be "module:function", got \'prepare\''),
        ({"split": {"by": "rand"}}, ConfigError, r"data\.split\.by: must be one of .* did you mean 'random'"),
        ({"split": {"column": "x"}}, ConfigError, r'data\.split\.column: has no effect with by = "random"'),
        ({"split": {"test": 0.0}}, ConfigError, r"valid 0\.1 \+ test 0\.0"),
        ({"split": {"test": 1.5}}, ConfigError, r"data\.split\.test: must be in 0\.0\.\.1\.0, got 1\.5"),
        ({"sample": 0}, ConfigError, r"data\.sample: must be above 0"),
        ({"sample": True}, ConfigError, r"data\.sample: must be a share such as 0\.1, or a table"),
        ({"sample": {"share": 0.0}}, ConfigError, r"data\.sample\.share: must be above 0"),
        ({"sample": {"by": "stratifed"}}, ConfigError, r"data\.sample\.by: must be one of .* did you mean 'stratified'"),
        ({"sample": {"share": 0.1, "column": "x"}}, ConfigError, r'data\.sample\.column: has an effect with by = "stratified" alone'),
        ({"sample": {"share": 0.1, "gain": 0.1}}, ConfigError, r'data\.sample\.gain: has an effect with by = "progressive" alone'),
        ({"sample": {"by": "progressive"}}, ConfigError, r"data\.sample\.share: must be below 1 to begin with"),
        ({"sample": {"by": "progressive", "share": 0.1, "growth": 1.0}}, ConfigError, r"data\.sample\.growth: must be in 1\.1\.\.100\.0"),
        ({"keys": ["y"]}, ConfigError, r"data\.keys: a column has one role, 'y' is in target too"),
        ({"weight": "w", "keys": ["w"]}, ConfigError, r"data\.weight: a column has one role, 'w' is in keys too"),
        ({"columns": ["x"]}, ConfigError, r"data\.columns: must list 'y'"),
        ({"checks": {"x": {"regex": "("}}}, ConfigError, "regex must be a pattern"),
        ({"checks": {"x": {"min": [1]}}}, ConfigError, "min and max must be numbers or times"),
        ({"leakage": 0.2}, ConfigError, r"data\.leakage: must be in 0\.5\.\.1\.0"),
    ],
)
def test_what_is_wrong_is_named_by_its_path(tree: dict[str, Any], error: type[TidemillError], message: str) -> None:
    with pytest.raises(error, match=message):
        made(**tree)


def test_a_share_is_short_for_a_random_sample() -> None:
    config = DataConfig(source="a.csv", target="y", sample=0.25)
    assert config.sampling() == Sampling(share=0.25, by="random")
    table = {"share": 0.1, "by": "progressive", "gain": 0.02}
    assert DataConfig(source="a.csv", target="y", sample=table).sampling() == Sampling(share=0.1, by="progressive", gain=0.02, growth=2.0)
    assert DataConfig(source="a.csv", target="y").sampling() == Sampling()
