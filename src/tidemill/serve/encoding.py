"""Bodies that travel compressed: gzip and zstd, in and out, never unpacked beyond the limit."""

from __future__ import annotations

import io
import zlib
from typing import Any

from tidemill.serve.http import Refused, Response

# Responses from this size on are worth the time, where the caller takes them so.
WORTH_BYTES = 4_096
GZIP_LEVEL = 1

# Memory that a frame may ask for.
MAX_WINDOW_BYTES = 1 << 27

_GZIP = 16 + zlib.MAX_WBITS


def decoded(body: bytes, encoding: str, *, max_bytes: int) -> bytes:
    """The body of a request as it was before the caller compressed it.

    Args:
        encoding: The header Content-Encoding.
        max_bytes: Most bytes that may come out.

    Raises:
        Refused: With 415 for an encoding that is not taken, 413 where more would come out, 400 where it is damaged or cut short.
    """
    name = encoding.strip().lower()
    if name in ("", "identity"):
        return body
    if name in ("gzip", "x-gzip"):
        return _gunzipped(body, max_bytes)
    if name == "zstd":
        return _unpacked(body, max_bytes)
    raise Refused(
        415, "media_type", f"the body's encoding must be gzip or zstd, got {name[:40]!r}", headers=(("accept-encoding", "gzip, zstd"),)
    )


def encode(response: Response, accept: str) -> None:
    """Compress a large response where the header Accept-Encoding allows it: zstd before gzip."""
    if len(response.body) < WORTH_BYTES or any(name == "content-encoding" for name, _ in response.headers):
        return
    taken = {
        part.partition(";")[0].strip().lower()
        for part in accept.split(",")
        if part.partition("q=")[2].strip() not in ("0", "0.0", "0.00", "0.000")
    }
    zstandard = _zstandard() if "zstd" in taken else None
    if zstandard is not None:
        response.body = zstandard.ZstdCompressor(level=1).compress(response.body)
        response.headers.append(("content-encoding", "zstd"))
    elif taken & {"gzip", "*"}:
        packer = zlib.compressobj(GZIP_LEVEL, zlib.DEFLATED, _GZIP)
        response.body = packer.compress(response.body) + packer.flush()
        response.headers.append(("content-encoding", "gzip"))
    else:
        return
    response.headers.append(("vary", "accept-encoding"))


def _gunzipped(body: bytes, max_bytes: int) -> bytes:
    made = bytearray()
    try:
        while body:
            unpacker = zlib.decompressobj(_GZIP)
            made += unpacker.decompress(body, max_bytes + 1 - len(made))
            if len(made) > max_bytes:
                raise _too_large(max_bytes)
            if not unpacker.eof:
                raise Refused(400, "malformed", "the gzip body is cut short")
            body = unpacker.unused_data  # another member may follow
    except zlib.error as error:
        raise Refused(400, "malformed", f"the body must be gzip, as its encoding says: {error}") from error
    return bytes(made)


def _unpacked(body: bytes, max_bytes: int) -> bytes:
    zstandard = _zstandard()
    if zstandard is None:
        raise Refused(415, "media_type", "this server takes gzip alone", hint="pip install zstandard beside it")
    try:
        reader = zstandard.ZstdDecompressor(max_window_size=MAX_WINDOW_BYTES).stream_reader(io.BytesIO(body), read_across_frames=True)
        made: bytes = reader.read(max_bytes + 1)
        if len(made) > max_bytes:
            raise _too_large(max_bytes)
        # The reader takes a torn frame for its end; what it gave is bounded, so that looking again is cheap.
        while body:
            frame = zstandard.ZstdDecompressor(max_window_size=MAX_WINDOW_BYTES).decompressobj()
            frame.decompress(body)
            if not frame.eof:
                raise Refused(400, "malformed", "the zstd body is cut short")
            body = frame.unused_data
    except zstandard.ZstdError as error:
        raise Refused(400, "malformed", f"the body must be zstd, as its encoding says: {error}") from error
    return made


def _too_large(max_bytes: int) -> Refused:
    return Refused(413, "too_large", f"the body must be at most {max_bytes} bytes when it is unpacked", hint="send the rows in parts")


def _zstandard() -> Any:
    """The library, None where it is not installed."""
    try:
        import zstandard
    except ModuleNotFoundError:
        return None
    return zstandard
