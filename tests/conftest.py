"""What every test may use: deterministic property tests, free ports, server programs, a browser, real flights."""

from __future__ import annotations

import datetime as dt
import fcntl
import hashlib
import importlib.util
import json
import os
import pwd
import shutil
import socket
import subprocess
import sys
import tempfile
import venv
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, settings

ROOT = Path(__file__).parents[1]
CACHE = ROOT / ".cache"

# The same examples on every run: what fails, fails for everyone. `--hypothesis-profile deep` searches on.
_PATIENT = [HealthCheck.too_slow, HealthCheck.data_too_large]
settings.register_profile("house", derandomize=True, deadline=None, database=None, print_blob=True, suppress_health_check=_PATIENT)
settings.register_profile("deep", max_examples=1_000, deadline=None, print_blob=True, suppress_health_check=_PATIENT)
settings.load_profile("house")

# Libraries that would look for a hub, or report their use, find these before they are imported.
os.environ.update(
    HF_HUB_OFFLINE="1", TRANSFORMERS_OFFLINE="1", HF_HUB_DISABLE_TELEMETRY="1", TOKENIZERS_PARALLELISM="false",
    DO_NOT_TRACK="1", MLFLOW_DISABLE_TELEMETRY="true",
)  # fmt: skip

# Workers of the tests, and ranks, are more threads than cores: those that wait must not spin, which makes a fit take two to four times as long.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files with slow tests come first: a long one at the end keeps one worker busy while the others wait for it."""
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: item.path not in slow)
    for item in items:
        if item.path.is_relative_to(ROOT / "tests" / "e2e"):
            item.add_marker("e2e")


@pytest.fixture
def free_port() -> int:
    """A port of the loopback address that nothing listened on a moment ago."""
    return _free_port()


@pytest.fixture(scope="session")
def certify() -> Callable[..., bytes]:
    """Writes `cert.pem`, which signs itself for `localhost`, and `key.pem`, its key or another's, into a folder; the certificate."""

    def write(folder: Path, name: str = "localhost", *, with_its_key: bool = True) -> bytes:
        from cryptography import x509
        from cryptography.hazmat.primitives import hashes, serialization
        from cryptography.hazmat.primitives.asymmetric import ec

        key = ec.generate_private_key(ec.SECP256R1())
        subject = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)])
        now = dt.datetime.now(dt.UTC)
        certificate = (
            x509.CertificateBuilder().subject_name(subject).issuer_name(subject).public_key(key.public_key())
            .serial_number(x509.random_serial_number()).not_valid_before(now).not_valid_after(now + dt.timedelta(days=1))
            .add_extension(x509.SubjectAlternativeName([x509.DNSName("localhost")]), critical=False)
            .sign(key, hashes.SHA256())
        )  # fmt: skip
        kept = key if with_its_key else ec.generate_private_key(ec.SECP256R1())
        pem = certificate.public_bytes(serialization.Encoding.PEM)
        private = kept.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
        (folder / "key.pem").write_bytes(private)
        (folder / "cert.pem").write_bytes(pem)
        return pem

    return write


@pytest.fixture(scope="session")
def server_program() -> Callable[..., Path]:
    """Finds a server program, by the first of its names that is installed; else skips the test and says what to install."""

    def find(*names: str, package: str | None = None) -> Path:
        for name in names:
            if found := shutil.which(name):
                return Path(found)
        pytest.skip(f"{names[0]} is not installed (on Debian: apt-get install {package or names[0]})")

    return find


@pytest.fixture(scope="session")
def chromium(server_program: Callable[..., Path]) -> Path:
    return server_program("chromium", "chromium-browser", "google-chrome")


@pytest.fixture(scope="session")
def postgresql() -> Iterator[str]:
    """Address of a PostgreSQL of the tests' own, on loopback, gone when they end."""
    programs = sorted(Path("/usr/lib/postgresql").glob("*/bin")) + [Path(found).parent for found in [shutil.which("initdb")] if found]
    if not programs:
        pytest.skip("PostgreSQL's server is not installed (on Debian: apt-get install postgresql)")
    folder = Path(tempfile.mkdtemp(prefix="tidemill-postgresql-"))
    as_user: list[str] = []
    if os.getuid() == 0:  # PostgreSQL refuses to run as root
        if shutil.which("runuser") is None or not any(user.pw_name == "postgres" for user in pwd.getpwall()):
            pytest.skip("PostgreSQL does not run as root, and there is no user postgres")
        shutil.chown(folder, "postgres")
        as_user = ["runuser", "-u", "postgres", "--"]

    def run(program: str, *arguments: str) -> None:
        command = [*as_user, str(programs[-1] / program), "-D", str(folder / "data"), *arguments]
        # The server that pg_ctl leaves behind would hold a pipe open: output goes to a file.
        with (folder.with_suffix(".log")).open("a") as log:
            done = subprocess.run(command, cwd=folder, stdout=log, stderr=log, stdin=subprocess.DEVNULL, check=False)
        assert done.returncode == 0, folder.with_suffix(".log").read_text()

    port = _free_port()
    try:
        run("initdb", "--auth=trust", "--username=tidemill", "--no-sync")
        run("pg_ctl", "-w", "-o", f"-p {port} -k {folder} -h 127.0.0.1 -c fsync=off", "start")
        try:
            yield f"postgresql://tidemill@127.0.0.1:{port}/postgres"
        finally:
            run("pg_ctl", "-w", "-m", "immediate", "stop")
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        folder.with_suffix(".log").unlink(missing_ok=True)


@pytest.fixture(scope="session")
def script() -> Callable[[str], Any]:
    """Gives a file of the project that is no part of a package, such as "benchmarks/gpu/run.py", as a module."""

    def loaded(path: str) -> Any:
        name = path.removesuffix(".py").replace("/", "_")
        spec = importlib.util.spec_from_file_location(name, ROOT / path)
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules[name] = module  # where dataclasses look up the types of their fields
        spec.loader.exec_module(module)
        return module

    return loaded


@pytest.fixture(scope="session")
def nycflights(script: Callable[[str], Any]) -> Path:
    """Folder with the tables of the flights example (flights.csv.zip, weather.csv, planes.csv), fetched with pip once."""
    module = script("examples/flights/get_data.py")
    with _only_one("nycflights"):
        return Path(module.get_data())


@pytest.fixture(scope="session")
def ask_client() -> Callable[..., Any]:
    """Runs a script of tests/clients in the environment of other makers' clients, made once, and reads the JSON that it prints."""
    folder = ROOT / "tests" / "clients"
    with _only_one("clients"):
        python = _clients_environment(folder / "requirements.txt")

    def ask(script: str, **said: Any) -> Any:
        command = [str(python), str(folder / script), json.dumps(said)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout.splitlines()[-1])

    return ask


@pytest.fixture(scope="session")
def ranks(script: Callable[[str], Any]) -> Iterator[Any]:
    """Eight processes that speak gloo, started by the first job; see tests/numerics/pool.py."""
    pytest.importorskip("torch")
    pool = script("tests/numerics/pool.py").Pool()
    yield pool
    pool.close()


@pytest.fixture(scope="session")
def tiny_encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Hugging Face folder with a BERT of random weights, some thousand of them, and a tokenizer of few words."""
    import tokenizers
    import torch
    import transformers

    folder = tmp_path_factory.mktemp("encoder")
    words = [
        "[PAD]",
        "[UNK]",
        "[CLS]",
        "[SEP]",
        *["a", "the", "film", "is", "not", "good", "great", "fine", "bad", "awful", "dull", "was", "so", "plot"],
    ]
    made = tokenizers.Tokenizer(tokenizers.models.WordLevel({word: place for place, word in enumerate(words)}, unk_token="[UNK]"))
    made.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    made.post_processor = tokenizers.processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    made.save(str(folder / "tokenizer.json"))
    torch.manual_seed(0)
    config = transformers.BertConfig(
        vocab_size=len(words), hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32, max_position_embeddings=24
    )
    transformers.BertModel(config).save_pretrained(folder)
    return folder


def _clients_environment(requirements: Path) -> Path:
    """The Python that has them. A machine of continuous integration must be able to install them; another one may skip."""
    made = CACHE / "clients" / hashlib.sha256(requirements.read_bytes()).hexdigest()[:16]
    python, finished = made / "bin" / "python", made / "finished"
    if not finished.exists():
        shutil.rmtree(made.parent, ignore_errors=True)
        venv.create(made, with_pip=False)
        pip = [sys.executable, "-m", "pip", "--python", str(python), "install", "-qq", "--disable-pip-version-check"]
        command = [*pip, "--no-deps", "--no-compile", "-r", str(requirements)]  # little of it is ever imported
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode != 0 and not os.environ.get("CI"):
            pytest.skip(f"the clients of tests/clients/requirements.txt cannot be installed: {done.stderr[-300:]}")
        assert done.returncode == 0, done.stderr
        finished.touch()
    return python


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def _only_one(name: str) -> Iterator[None]:
    """Holds a lock that the test processes share, so that one of them fetches and the others wait."""
    CACHE.mkdir(exist_ok=True)
    with (CACHE / f"{name}.lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
