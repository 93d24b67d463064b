"""`[model]`: the kind of model; every further key is a parameter of that kind."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tidemill.core.errors import ConfigError, Unsupported, nearest
from tidemill.core.load import load, names
from tidemill.core.project import build
from tidemill.models.base import Model
from tidemill.models.calibration import CURVES
from tidemill.models.interval import QuantileModel
from tidemill.models.kinds import kind_of

# Kinds that are known by name and not built in this version.
UNBUILT = ("two_tower", "sequence")


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """What is fitted, and how its scores become probabilities."""

    kind: str = "xgboost"
    """linear | random_forest | xgboost | sklearn | ensemble | mlp | dcn | text | decoder | image | the name of an installed kind |
    "my.module:name", a class or function that gives a Model, or a function `build(shape, **params)` that gives a torch.nn.Module."""
    calibrate: str | None = None
    """platt: a logistic curve over the score, fitted on the validation rows; isotonic: any rising curve, for 500 of them or
    more; absent means none."""
    class_weight: Any = None
    """balanced, or a table of weights by class (class names as text, others keep 1); absent means none."""
    interval: float | None = None
    """Share of new rows whose true value an interval around the prediction is to hold, in 0.1..0.99; regression by
    xgboost; absent means no interval."""
    params: Mapping[str, Any] = field(default_factory=dict)
    """The kind's parameters, those that differ from its defaults; in a project file they stand beside `kind`."""

    @classmethod
    def from_tree(cls, tree: Mapping[str, Any], path: str, where: str) -> ModelConfig:
        """The section of a project file; parameters of built-in and installed kinds are checked here."""
        kind = tree.get("kind", cls.kind)
        if not isinstance(kind, str):
            raise ConfigError(f"{path}.kind: must be text, got {kind!r} ({where})")
        nested = tree.get("params", {})
        if not isinstance(nested, Mapping):
            raise ConfigError(f"{path}.params: must be a table, got {nested!r} ({where})")
        own = ("kind", "calibrate", "class_weight", "interval", "params")
        config = cls(
            kind=kind,
            calibrate=tree.get("calibrate"),
            class_weight=tree.get("class_weight"),
            interval=tree.get("interval"),
            params={**{key: value for key, value in tree.items() if key not in own}, **nested},
        )
        config.check(path, where)
        return config

    def check(self, path: str = "model", where: str = "project") -> None:
        """Raise ConfigError or Unsupported where a value is wrong; a "module:name" kind is looked up only when it is used."""
        if self.kind in UNBUILT:
            raise Unsupported(
                f"{path}.kind: {self.kind!r} is not built in this version ({where})", hint=f"built: {', '.join(names('model'))}"
            )
        if self.calibrate not in (None, *CURVES):
            raise ConfigError(f"{path}.calibrate: must be platt, isotonic or absent, got {self.calibrate!r} ({where})")
        self._check_class_weight(path, where)
        self._check_interval(path, where)
        if ":" not in self.kind:
            self.parameters(path=path, where=where)

    def reach(self, folder: Path) -> None:
        """Let Python find kinds and estimators of one's own, "module:name", in the project's folder."""
        members = [member for member in self.params.get("members", ()) if isinstance(member, Mapping)]
        named = [one.get(key, "") for one in ({"kind": self.kind, **self.params}, *members) for key in ("kind", "estimator")]
        if any(":" in str(name) for name in named) and (place := str(folder.resolve())) not in sys.path:
            sys.path.insert(0, place)

    def model(self) -> Model:
        """A fresh model of this kind."""
        return kind_of(self.kind)

    @property
    def reads(self) -> str:
        """What the kind reads of a row: features, text or image."""
        return "features" if ":" in self.kind else str(getattr(load("model", self.kind), "reads", "features"))

    @property
    def embeds(self) -> bool:
        """Whether the kind learns a table for each feature that is codes of categories."""
        return bool(getattr(self.model(), "embeds", False))

    def content(self, folder: Path) -> Any:
        """What the kind's answers depend on beside its parameters: hashes of files that they name, relative to `folder`."""
        return None if self.reads == "features" else self.model().content(self.parameters(), folder)  # type: ignore[attr-defined]

    def tuned(self, found: Mapping[str, Any]) -> ModelConfig:
        """This section with what a search found, by path such as model.max_depth, over it.

        Another kind keeps those of the project's parameters that it knows too; "none" is no calibration and no class weights.
        """
        values = {path.removeprefix("model."): value for path, value in found.items()}
        own: dict[str, Any] = {name: values.pop(name) for name in ("kind", "calibrate", "class_weight") if name in values}
        own |= {name: None for name in ("calibrate", "class_weight") if own.get(name) == "none"}
        params = dict(self.params)
        if own.get("kind", self.kind) != self.kind:
            known = {f.name for f in dataclasses.fields(ModelConfig(kind=own["kind"]).model().Params)}
            params = {name: value for name, value in params.items() if name in known}
        return dataclasses.replace(self, **own, params={**params, **values})

    def parameters(self, overrides: Mapping[str, Any] | None = None, *, path: str = "model", where: str = "project") -> Any:
        """The kind's `Params`, checked, `overrides` (by plain name) laid over what the project says.

        Raises:
            ConfigError: If a name is unknown or a value is out of its range.
        """
        struct = self.model().Params  # of an instance: a kind may be a function that makes one
        given = {**self.params, **(overrides or {})}
        if hasattr(struct, "from_tree"):  # it knows its keys itself
            return build(struct, given, path=path, where=where)
        known = [f.name for f in dataclasses.fields(struct)]
        for key in given:
            if key not in known:
                candidates = [*known, "kind", "calibrate", "class_weight", "interval"]
                close = nearest(key, candidates)
                hint = f"did you mean {f'{path}.{close}'!r}?" if close else f"known for {self.kind}: {', '.join(candidates)}"
                raise ConfigError(f"{path}.{key}: is not a known key ({where})", hint=hint)
        return build(struct, given, path=path, where=where)

    def _check_class_weight(self, path: str, where: str) -> None:
        setting = self.class_weight
        if setting is None or setting == "balanced":
            return
        if not isinstance(setting, Mapping) or not setting:
            raise ConfigError(f"{path}.class_weight: must be balanced or a table of weights by class, got {setting!r} ({where})")
        for name, weight in setting.items():
            if isinstance(weight, bool) or not isinstance(weight, (int, float)) or not 0 <= weight < float("inf"):
                raise ConfigError(f"{path}.class_weight.{name}: must be a number of at least 0, got {weight!r} ({where})")

    def _check_interval(self, path: str, where: str) -> None:
        share: Any = self.interval
        if share is None:
            return
        if isinstance(share, bool) or not isinstance(share, (int, float)) or not 0.1 <= share <= 0.99:
            raise ConfigError(f"{path}.interval: must be a share in 0.1..0.99, got {share!r} ({where})")
        if ":" not in self.kind and not isinstance(self.model(), QuantileModel):
            raise Unsupported(f"{path}.interval: needs a kind that fits quantiles, got {self.kind!r} ({where})", hint="xgboost does")
