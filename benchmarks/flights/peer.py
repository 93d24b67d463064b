"""The same job as a careful script: pandas joins, frequency codes, XGBoost with early stopping, 20 Optuna trials.

Written as a good practitioner would without a platform: the same tables, joins, features, split, search space, number
of trials, rounds and threads as examples/flights. Writes its predictions of the test rows and its AUC.
"""

from __future__ import annotations

import json
import os
import sys
import warnings
from pathlib import Path

import optuna
import pandas as pd
import xgboost as xgb
from sklearn.metrics import roc_auc_score

NUMBERS = [
    "flight", "distance", "month", "day", "departs_minute", "arrives_minute", "planned_minutes", "temp", "dewp", "humid",
    "wind_dir", "wind_speed", "wind_gust", "precip", "pressure", "visib", "age", "seats", "weekday",
]  # fmt: skip
TEXTS = ["carrier", "origin", "dest", "tailnum", "manufacturer", "model", "engine"]
KEY = ["time_hour", "carrier", "flight", "origin", "dest", "departs_minute"]
THREADS = os.cpu_count() or 1


def main(data: Path, out: Path, trials: int) -> None:
    train, valid, test = split(load(data))
    codes = {column: {value: code for code, value in enumerate(train[column].value_counts().index, 1)} for column in TEXTS}
    matrix_train = xgb.QuantileDMatrix(encode(train, codes), train["late"], nthread=THREADS)
    matrix_valid = xgb.QuantileDMatrix(encode(valid, codes), valid["late"], ref=matrix_train, nthread=THREADS)

    def objective(trial: optuna.Trial) -> float:
        parameters = {
            "max_depth": trial.suggest_int("max_depth", 3, 6),
            "eta": trial.suggest_float("learning_rate", 0.03, 0.3, log=True),
            "min_child_weight": trial.suggest_float("min_child_weight", 1, 50, log=True),
            "subsample": trial.suggest_float("subsample", 0.6, 1.0),
            "colsample_bytree": trial.suggest_float("colsample_bytree", 0.5, 1.0),
            "lambda": trial.suggest_float("reg_lambda", 0.1, 10, log=True),
        }
        booster = train_one(parameters, matrix_train, matrix_valid)
        trial.set_user_attr("parameters", parameters)
        return float(booster.best_score)

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study(direction="maximize", sampler=optuna.samplers.TPESampler(seed=0))
    study.optimize(objective, n_trials=trials)
    booster = train_one(study.best_trial.user_attrs["parameters"], matrix_train, matrix_valid)
    scores = booster.inplace_predict(encode(test, codes), iteration_range=(0, booster.best_iteration + 1))
    test[KEY].assign(probability=scores, late=test["late"]).to_parquet(out / "peer.parquet")
    result = {"auc": roc_auc_score(test["late"], scores), "valid_auc": study.best_value, "rows": [len(train), len(valid), len(test)]}
    (out / "peer.json").write_text(json.dumps(result), encoding="utf-8")


def train_one(parameters: dict[str, float], train: xgb.DMatrix, valid: xgb.DMatrix) -> xgb.Booster:
    fixed = {"objective": "binary:logistic", "eval_metric": "auc", "tree_method": "hist", "nthread": THREADS, "seed": 0}
    return xgb.train(
        {**fixed, **parameters}, train, num_boost_round=500, evals=[(valid, "valid")], early_stopping_rounds=30, verbose_eval=False
    )


def load(data: Path) -> pd.DataFrame:
    flights = pd.read_csv(data / "flights.csv.zip")
    weather = pd.read_csv(data / "weather.csv").drop(columns=["year", "month", "day", "hour"])
    planes = pd.read_csv(data / "planes.csv")[["tailnum", "year", "manufacturer", "model", "engine", "seats"]]
    rows = flights[flights["arr_delay"].notna()].merge(weather, on=["origin", "time_hour"], how="left")
    rows = rows.merge(planes.rename(columns={"year": "built"}), on="tailnum", how="left")
    left = rows["sched_dep_time"] // 100 * 60 + rows["sched_dep_time"] % 100
    due = rows["sched_arr_time"] // 100 * 60 + rows["sched_arr_time"] % 100
    time_hour = pd.to_datetime(rows["time_hour"])
    return rows.assign(
        late=rows["arr_delay"] >= 15,
        time_hour=time_hour,
        weekday=time_hour.dt.tz_convert("America/New_York").dt.day_of_week,
        departs_minute=left,
        arrives_minute=due,
        planned_minutes=(due - left) % 1440,
        age=rows["year"] - rows["built"],
    )


def split(rows: pd.DataFrame) -> tuple[pd.DataFrame, pd.DataFrame, pd.DataFrame]:
    """The newest tenth of time to test, the tenth before to validation; an hour is never cut in two."""
    rows = rows.sort_values(KEY, kind="stable", ignore_index=True)
    last_train, last_valid = (rows["time_hour"].iloc[round(len(rows) * share)] for share in (0.8, 0.9))
    before, after = rows["time_hour"] <= last_train, rows["time_hour"] > last_valid
    return rows[before], rows[~before & ~after], rows[after]


def encode(rows: pd.DataFrame, codes: dict[str, dict[str, int]]) -> pd.DataFrame:
    texts = {column: rows[column].map(known).fillna(0).astype("float32") for column, known in codes.items()}
    return rows[NUMBERS].astype("float32").assign(**texts)


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    main(Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]) if len(sys.argv) > 3 else 20)
