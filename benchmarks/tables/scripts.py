"""Careful scripts by hand, one a table: what a practitioner writes in half an hour, without a search over parameters.

Each is given the rows of train, valid and test as pandas frames, fits on train, stops early or chooses on valid, and
answers for test: the probability of the second class, of each class, or a number.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import xgboost as xgb
from sklearn.compose import ColumnTransformer, make_column_selector
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.impute import SimpleImputer
from sklearn.linear_model import LogisticRegression, RidgeCV
from sklearn.metrics import log_loss, mean_squared_error, roc_auc_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import OneHotEncoder, OrdinalEncoder, SplineTransformer, StandardScaler
from sklearn.svm import SVC

THREADS = os.cpu_count() or 1
Frame = pd.DataFrame
Answer = np.ndarray


def flights(train: Frame, valid: Frame, test: Frame) -> Answer:
    """Codes for carrier and airports, the weekday and the hour; trees stopped by the area under the curve."""

    def parts(rows: Frame) -> Frame:
        return rows.drop(columns=["hour", "late"]).assign(weekday=rows["hour"].dt.day_of_week, clock=rows["departs"] // 60)

    codes = ordinal(["carrier", "origin", "dest"])
    x = [codes.fit_transform(parts(train)), codes.transform(parts(valid)), codes.transform(parts(test))]
    return boosted_classes(x, train["late"], valid["late"], max_depth=5, eval_metric="auc")


def flights_3m(train: Frame, valid: Frame, test: Frame) -> Answer:
    """Month, weekday, hour and minute of the day, codes for the airports; trees."""

    def parts(rows: Frame) -> Frame:
        date = rows["date"].dt
        parts = {"month": date.month, "day": date.day_of_year, "weekday": date.day_of_week, "minute": date.hour * 60 + date.minute}
        return rows[["distance", "origin", "destination"]].assign(**parts)

    codes = ordinal(["origin", "destination"])
    x = [codes.fit_transform(parts(train)), codes.transform(parts(valid)), codes.transform(parts(test))]
    return boosted_classes(x, train["late"], valid["late"], max_depth=8, learning_rate=0.1)


def adult(train: Frame, valid: Frame, test: Frame) -> Answer:
    """One-hot categories, the numeric order of education in the place of its names; trees."""
    kept = [rows.drop(columns=["education", "salary"]) for rows in (train, valid, test)]
    encode = one_hot(min_frequency=20)
    x = [encode.fit_transform(kept[0]), *(encode.transform(rows) for rows in kept[1:])]
    return boosted_classes(x, train["salary"] == ">50K", valid["salary"] == ">50K", max_depth=5)


def credit_cards(train: Frame, valid: Frame, test: Frame) -> Answer:
    """What was used of the limit and what was paid of the bills beside the columns; trees."""

    def made(rows: Frame) -> Frame:
        used = {f"used_{i}": rows[f"BILL_AMT{i}"] / rows["LIMIT_BAL"] for i in range(1, 7)}
        paid = {f"paid_{i}": rows[f"PAY_AMT{i}"] / rows[f"BILL_AMT{i + 1}"].clip(lower=1) for i in range(1, 6)}
        return rows.drop(columns="defaults").assign(**used, **paid)

    return boosted_classes([made(rows) for rows in (train, valid, test)], train["defaults"], valid["defaults"], max_depth=4)


def employment(train: Frame, valid: Frame, test: Frame) -> Answer:
    """One-hot codes, schooling and the relation to the householder as the numbers that they are; trees."""

    def made(rows: Frame) -> Frame:
        return rows.drop(columns="employed").assign(schooling=pd.to_numeric(rows["SCHL"], errors="coerce"))

    encode = one_hot(min_frequency=20)
    x = [encode.fit_transform(made(train)), encode.transform(made(valid)), encode.transform(made(test))]
    return boosted_classes(x, train["employed"], valid["employed"])


def bikeshare(train: Frame, valid: Frame, test: Frame) -> Answer:
    """The month's place in the year, weather in its order, counts by a Poisson objective; trees."""
    months = ["Jan", "Feb", "March", "April", "May", "June", "July", "Aug", "Sept", "Oct", "Nov", "Dec"]
    weather = ["clear", "cloudy/misty", "light rain/snow", "heavy rain/snow"]

    def made(rows: Frame) -> Frame:
        sky = rows["weathersit"].map({name: i for i, name in enumerate(weather)})
        return rows.drop(columns="bikers").assign(mnth=rows["mnth"].map({name: i for i, name in enumerate(months)}), weathersit=sky)

    x = [made(rows) for rows in (train, valid, test)]
    return boosted_numbers(x, train["bikers"], valid["bikers"], objective="count:poisson", eval_metric="rmse")


def traffic(train: Frame, valid: Frame, test: Frame) -> Answer:
    """Hour, weekday, month and place in the year, codes for the weather; trees."""

    def parts(rows: Frame) -> Frame:
        date = rows["datetime"].dt
        parts = {"hour": date.hour, "weekday": date.day_of_week, "month": date.month, "day": date.day_of_year}
        return rows.drop(columns=["datetime", "traffic_volume"]).assign(**parts)

    codes = ordinal(["weather_main"])
    x = [codes.fit_transform(parts(train)), codes.transform(parts(valid)), codes.transform(parts(test))]
    return boosted_numbers(x, train["traffic_volume"], valid["traffic_volume"])


def diamonds(train: Frame, valid: Frame, test: Frame) -> Answer:
    """Cut, colour and clarity in the order of their grades, the stone's volume; trees."""
    grades = {
        "cut": ["Fair", "Good", "Very Good", "Premium", "Ideal"],
        "color": list("JIHGFED"),
        "clarity": ["I1", "SI2", "SI1", "VS2", "VS1", "VVS2", "VVS1", "IF"],
    }

    def made(rows: Frame) -> Frame:
        codes = {column: rows[column].map({name: i for i, name in enumerate(order)}) for column, order in grades.items()}
        return rows.drop(columns="log_price").assign(**codes, volume=rows["x"] * rows["y"] * rows["z"])

    return boosted_numbers([made(rows) for rows in (train, valid, test)], train["log_price"], valid["log_price"])


def housing(train: Frame, valid: Frame, test: Frame) -> Answer:
    """The columns as they are; trees."""
    x = [rows.drop(columns="clf_target") for rows in (train, valid, test)]
    return boosted_classes(x, train["clf_target"], valid["clf_target"])


def reviews(train: Frame, valid: Frame, test: Frame) -> Answer:
    """TF-IDF of words and pairs of words, logistic regression; its strength chosen on the validation rows."""
    words = TfidfVectorizer(ngram_range=(1, 2), min_df=2, sublinear_tf=True)
    x = [words.fit_transform(train["sentence"]), words.transform(valid["sentence"]), words.transform(test["sentence"])]
    models = [LogisticRegression(C=strength, max_iter=1000).fit(x[0], train["praise"]) for strength in (0.3, 1, 3, 10)]
    best = max(models, key=lambda model: roc_auc_score(valid["praise"], model.predict_proba(x[1])[:, 1]))
    return best.predict_proba(x[2])[:, 1]


def wage(train: Frame, valid: Frame, test: Frame) -> Answer:
    """Ridge on splines of age and year and one-hot categories, which a look at the curves suggests."""
    texts = make_column_selector(dtype_include=["object", "string", "category"])
    encode = ColumnTransformer(
        [
            ("age", make_pipeline(SplineTransformer(n_knots=6), StandardScaler()), ["age"]),
            ("year", StandardScaler(), ["year"]),
            ("texts", OneHotEncoder(handle_unknown="ignore"), texts),
        ]
    )
    fitted = make_pipeline(encode, RidgeCV(np.logspace(-2, 3, 12))).fit(pd.concat([train, valid]), pd.concat([train, valid])["wage"])
    return np.asarray(fitted.predict(test))


def fifa(train: Frame, valid: Frame, test: Frame) -> Answer:
    """The columns as they are; trees."""
    x = [rows.drop(columns="log_value") for rows in (train, valid, test)]
    return boosted_numbers(x, train["log_value"], valid["log_value"], max_depth=5, colsample_bytree=0.5)


def doctor_visits(train: Frame, valid: Frame, test: Frame) -> Answer:
    """Counts by a Poisson objective; shallow trees."""
    x = [rows.drop(columns="mdvis") for rows in (train, valid, test)]
    return boosted_numbers(x, train["mdvis"], valid["mdvis"], objective="count:poisson", max_depth=4, learning_rate=0.03)


def caravan(train: Frame, valid: Frame, test: Frame) -> Answer:
    """Logistic regression or shallow trees, whichever orders the validation rows better."""
    return better_of_two("Purchase", True, train, valid, test)


def default(train: Frame, valid: Frame, test: Frame) -> Answer:
    """Logistic regression or shallow trees, whichever orders the validation rows better."""
    return better_of_two("default", True, train, valid, test)


def german_credit(train: Frame, valid: Frame, test: Frame) -> Answer:
    """Logistic regression or shallow trees, whichever orders the validation rows better."""
    return better_of_two("risk", 1, train, valid, test)


def oj(train: Frame, valid: Frame, test: Frame) -> Answer:
    """Logistic regression or shallow trees, whichever orders the validation rows better."""
    return better_of_two("Purchase", "MM", train, valid, test)


def affairs(train: Frame, valid: Frame, test: Frame) -> Answer:
    """Logistic regression or shallow trees, whichever orders the validation rows better."""
    return better_of_two("affair", True, train, valid, test)


def college(train: Frame, valid: Frame, test: Frame) -> Answer:
    """Ridge on logarithms of what counts people and money, or shallow trees, whichever is closer on the validation rows."""
    target = "Grad.Rate"
    x = [rows.drop(columns=target) for rows in (train, valid, test)]
    wide = [column for column in x[0] if x[0][column].dtype != bool and x[0][column].max() > 500]
    logs = [rows.assign(**np.log1p(rows[wide])).astype(float) for rows in x]
    ridge = make_pipeline(StandardScaler(), RidgeCV(np.logspace(-2, 4, 16))).fit(logs[0], train[target])
    trees = boosted_numbers([x[0], x[1], pd.concat(x[1:])], train[target], valid[target], max_depth=3)
    both = [ridge.predict(pd.concat(logs[1:])), trees]
    return min(both, key=lambda answer: mean_squared_error(valid[target], answer[: len(valid)]))[len(valid) :]


def digits(train: Frame, valid: Frame, test: Frame) -> Answer:
    """A support vector machine with probabilities: the textbook's answer to small pictures."""
    x = [rows.drop(columns="digit") / 16 for rows in (train, valid, test)]
    models = [SVC(C=strength, gamma="scale", probability=True, random_state=0).fit(x[0], train["digit"]) for strength in (1, 10)]
    best = min(models, key=lambda model: log_loss(valid["digit"], model.predict_proba(x[1])))
    return best.predict_proba(x[2])


def boosted_classes(x: list[Any], y: pd.Series, y_valid: pd.Series, **given: Any) -> Answer:
    """Probabilities of the second class from trees that stop by the validation rows."""
    model = xgb.XGBClassifier(**settings(given))
    model.fit(x[0], y.astype(int), eval_set=[(x[1], y_valid.astype(int))], verbose=False)
    return model.predict_proba(x[2])[:, 1]


def boosted_numbers(x: list[Any], y: pd.Series, y_valid: pd.Series, **given: Any) -> Answer:
    """Numbers from trees that stop by the validation rows."""
    model = xgb.XGBRegressor(**settings(given))
    model.fit(x[0], y, eval_set=[(x[1], y_valid)], verbose=False)
    return model.predict(x[2])


def settings(given: dict[str, Any]) -> dict[str, Any]:
    """What experience says of trees: slow, a little blind, and stopped in time."""
    usual = {"n_estimators": 2000, "learning_rate": 0.05, "max_depth": 6, "subsample": 0.8, "colsample_bytree": 0.8}
    return {**usual, "early_stopping_rounds": 50, "n_jobs": THREADS, "random_state": 0, "tree_method": "hist", **given}


def better_of_two(target: str, second: Any, train: Frame, valid: Frame, test: Frame) -> Answer:
    """Logistic regression or shallow trees, whichever orders the validation rows better."""
    y, y_valid = train[target] == second, valid[target] == second
    x = [rows.drop(columns=target) for rows in (train, valid, test)]
    later = pd.concat(x[1:])
    encode = one_hot(min_frequency=5, scale=True).fit(x[0])
    encoded = [encode.transform(rows) for rows in (*x, later)]
    linear = [
        LogisticRegression(C=strength, max_iter=2000).fit(encoded[0], y).predict_proba(encoded[3])[:, 1] for strength in (0.01, 0.1, 1)
    ]
    trees = boosted_classes([encoded[0], encoded[1], encoded[3]], y, y_valid, max_depth=3)
    return max([*linear, trees], key=lambda answer: roc_auc_score(y_valid, answer[: len(valid)]))[len(valid) :]


def one_hot(*, min_frequency: int, scale: bool = False) -> ColumnTransformer:
    """Text as one-hot features, numbers as they are, or filled and scaled."""
    texts = make_column_selector(dtype_include=["object", "string", "category"])
    numbers = make_column_selector(dtype_exclude=["object", "string", "category"])
    filled = make_pipeline(SimpleImputer(strategy="constant", fill_value="(null)", missing_values=None), _categories(min_frequency))
    return ColumnTransformer(
        [
            ("texts", filled, texts),
            ("numbers", make_pipeline(SimpleImputer(strategy="median"), StandardScaler()) if scale else "passthrough", numbers),
        ]
    )


def _categories(min_frequency: int) -> OneHotEncoder:
    return OneHotEncoder(handle_unknown="infrequent_if_exist", min_frequency=min_frequency, sparse_output=False)


def ordinal(columns: list[str]) -> ColumnTransformer:
    """Codes for these columns, the others as they are."""
    codes = OrdinalEncoder(handle_unknown="use_encoded_value", unknown_value=-1, encoded_missing_value=-2)
    return ColumnTransformer([("codes", codes, columns)], remainder="passthrough")


SCRIPTS: dict[str, Callable[[Frame, Frame, Frame], Answer]] = {
    script.__name__: script
    for script in (
        flights, flights_3m, adult, credit_cards, employment, bikeshare, traffic, diamonds, housing, reviews, wage, fifa, doctor_visits,
        caravan, default, german_credit, oj, affairs, college, digits,
    )
}  # fmt: skip


if __name__ == "__main__":
    name, folder, out = sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3])
    np.save(out, SCRIPTS[name](*(pd.read_parquet(folder / part) for part in ("train", "valid", "test"))))
