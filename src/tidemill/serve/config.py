"""`[serve]`: where the server listens, what it accepts, how it computes."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from tidemill.core.errors import ConfigError
from tidemill.core.runtime import RanksConfig
from tidemill.serve.access.config import AuthConfig
from tidemill.serve.batching.config import BatchConfig
from tidemill.serve.cache import CacheConfig
from tidemill.serve.cors import CorsConfig
from tidemill.serve.limits import LimitsConfig
from tidemill.serve.replicas.config import ReplicasConfig, cores_each
from tidemill.serve.tls import TlsConfig
from tidemill.serve.tracing import TraceConfig


@dataclass(frozen=True, kw_only=True)
class ImagesConfig:
    """`[serve.images]`: how large one image of a request may be; a body holds several within `max_body_mb`."""

    max_mb: float = field(default=16.0, metadata={"min": 0.001, "max": 4096.0})
    """Largest file, in 10^6 bytes."""
    max_mpixels: float = field(default=25.0, metadata={"min": 0.001, "max": 170.0})
    """Most pixels before it is resized, in 10^6; told from the file's header, before any is decoded. Three or four bytes of memory each."""


@dataclass(frozen=True, kw_only=True)
class ServeConfig:
    """How a server listens and answers."""

    host: str = "127.0.0.1"
    """Address to listen on; one that is not loopback needs the word --allow-open."""
    port: int = field(default=8000, metadata={"min": 0, "max": 65535})
    """Port to listen on; 0 takes a free one."""
    grpc_port: int | None = field(default=None, metadata={"min": 0, "max": 65535})
    """Port for the inference protocol over gRPC; 0 takes a free one, none is opened when absent."""
    replicas: int | Literal["auto"] | ReplicasConfig = field(default=1, metadata={"min": 1, "max": 256})
    """Processes that answer on the port: a number; a table of bounds, between which the number follows the load; or auto, from one to
    one per core. More than one are watched, and started again when they end."""
    threads: int = field(default=0, metadata={"min": 0, "max": 256})
    """Threads that one prediction may use inside the runtime; 0 takes one for rows, and for texts and images all cores up to four, of several
    replicas each its share."""
    runtime: str = "auto"
    """What runs the graph: onnxruntime, openvino, cuda, tensorrt, an installed extension; auto takes openvino where it may round, else
    onnxruntime. torch runs the network that a package carries, on ranks."""
    parallel: RanksConfig | None = None
    """The ranks of the runtime torch, each a process; as the package's contract promises when absent."""
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """How exactly: fp32, bf16, or auto, which is bf16 where the contract promises how far that may be off and the promise holds here."""
    workers: int = field(default=0, metadata={"min": 0, "max": 256})
    """Threads for large requests, and runs of a slow model at once; 0 takes one per core, of several replicas each its share for the runs."""
    inline_ms: float = field(default=1.0, metadata={"min": 0.0, "max": 1000.0})
    """A model whose median row takes at most this long answers small requests without changing threads, in milliseconds."""
    max_body_mb: float = field(default=32.0, metadata={"min": 0.001, "max": 4096.0})
    """Largest request body, in 10^6 bytes."""
    max_batch_rows: int = field(default=100_000, metadata={"min": 1, "max": 10_000_000})
    """Most rows of one request."""
    header_timeout_s: float = field(default=30.0, metadata={"min": 0.1, "max": 3600.0})
    """Time a client may take to send a request's headers, in seconds."""
    body_timeout_s: float = field(default=30.0, metadata={"min": 0.1, "max": 3600.0})
    """Time a client may take to send a request's body, and at most to take nothing of its answer, in seconds."""
    idle_timeout_s: float = field(default=75.0, metadata={"min": 0.1, "max": 86_400.0})
    """Time that a connection is kept between two requests, in seconds; longer than what a proxy in front keeps it."""
    drain_timeout_s: float = field(default=30.0, metadata={"min": 0.0, "max": 3600.0})
    """Time that requests in flight are given to finish when the server stops, in seconds."""
    tls: TlsConfig | None = None
    """Certificate of HTTPS, and of gRPC; plain HTTP when absent."""
    auth: AuthConfig | None = None
    """Who may ask; anyone when absent, which is refused on an address that is not loopback."""
    limits: LimitsConfig | None = None
    """How much one key or address may ask; any amount when absent."""
    cors: CorsConfig | None = None
    """Which pages of other origins may ask; none when absent."""
    batch: BatchConfig = field(default_factory=BatchConfig)
    """How requests are put together, and who is refused when too much is asked."""
    cache: CacheConfig | None = None
    """Answers that are kept; none when absent."""
    images: ImagesConfig = field(default_factory=ImagesConfig)
    """How large an image may be."""
    access_log: Path | None = None
    """File of one JSON line a request, "-" for stderr; none when absent."""
    trace: TraceConfig | None = None
    """Where OpenTelemetry spans of requests go; nowhere when absent."""
    log: bool = False
    """Whether inputs and predictions are written to a file a day, for `tidemill monitor`."""
    log_folder: Path = Path(".tidemill/predictions")
    """Folder of the prediction log."""

    @property
    def cores(self) -> int:
        """Cores that one process may count on."""
        return cores_each(self.replicas)

    def check(self) -> None:
        """Raise ConfigError where a setting has nothing to act on."""
        if self.parallel is not None and self.runtime != "torch":
            raise ConfigError(f"serve.parallel: needs serve.runtime torch, got {self.runtime!r}", hint="the others run in one process")
