"""The two doors that are sockets: a hub that answers anything, and requests of any bytes to `memplan ui`."""

from __future__ import annotations

import contextlib
import gzip
import io
import os
import random
import socket
import threading
import time
from functools import cache
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from unittest.mock import patch

from fuzzing import problems
from fuzzing_doors import Line
from fuzzing_input import SECRET, TOKENS, broken, nasty, spoiled, text_of

from memplan.cli import ui
from memplan.planner.inputs import download, hub

CONFIG = {
    "model_type": "llama",
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "vocab_size": 100,
}
MOST_KEPT = 10_000_000


class Anything(BaseHTTPRequestHandler):
    """Sends the bytes that `server.answer` holds, a few at a time where `server.pause` says so."""

    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        server: Any = self.server
        self.close_connection = True
        with contextlib.suppress(OSError):
            for start in range(0, len(server.answer), server.piece):
                self.wfile.write(server.answer[start : start + server.piece])
                time.sleep(server.pause)

    def log_message(self, *args: Any) -> None:
        pass


@cache
def hub_server() -> Any:
    server: Any = ThreadingHTTPServer(("127.0.0.1", 0), Anything)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, daemon=True).start()
    return server


def answer(rng: random.Random) -> bytes:
    """A hub's answer, with one thing or more that a hub does not say."""
    document, _ = broken(rng, CONFIG) if rng.random() < 0.7 else (CONFIG, [])
    body = spoiled(rng, text_of(rng, document)) if rng.random() < 0.9 else gzip.compress(bytes(10**8))
    odd = (
        str(nasty(rng)).replace("\r", "").replace("\n", "").replace("\0", ""),
        "../../x",
        "a" * 40,
        "-1",
        "1e9",
        "",
    )
    status = rng.choice(
        ("200 OK", "200 OK", "200 OK", "302 Found", "401 x", "403 x", "404 x", "429 x", "500 x", "99 x")
    )
    lines = [f"HTTP/1.1 {status}"]
    lines.append(f"Content-Length: {rng.choice((len(body), len(body), len(body), 9**9, 0, -1, 'x'))}")
    for name in (
        "ETag",
        "X-Repo-Commit",
        "X-Linked-Etag",
        "Location",
        "X-Error-Code",
        "X-Error-Message",
        "Retry-After",
    ):
        if rng.random() < 0.4:
            lines.append(f"{name}: {rng.choice(odd)}")
    if rng.random() < 0.15:
        lines.append(f"Content-Encoding: {rng.choice(('gzip', 'deflate', 'br', 'x'))}")
    if rng.random() < 0.1:
        lines += [f"X-{n}: {'y' * 90}" for n in range(2000)]
    return (
        "\r\n".join(lines).encode("utf-8", errors="replace") + rng.choice((b"\r\n\r\n",) * 9 + (b"",)) + body
    )


def fuzz_hub(rng: random.Random, folder: Path) -> list[str]:
    """What one answer of a hub broke: of every promise, and that nothing lies outside the cache or is
    large.
    """
    server = hub_server()
    server.answer, slow = answer(rng), rng.random() < 0.05
    server.pause, server.piece = (0.02, 7) if slow else (0.0, 2**20)
    around = {
        "HF_ENDPOINT": f"http://127.0.0.1:{server.server_address[1]}",
        "HF_HUB_CACHE": str(folder / "cache"),
        "HF_TOKEN": SECRET,
        "HF_HUB_OFFLINE": "0",
        "TRANSFORMERS_OFFLINE": "0",
    }
    with (
        patch.dict(os.environ, around),
        patch.object(download, "DEADLINE", 1.0),
        patch.object(hub, "SECONDS", 1.0),
    ):
        found = problems(Line(["org/name"]))
    for path in folder.rglob("*"):
        inside = path == folder / "cache" or path.is_relative_to(folder / "cache" / "models--org--name")
        if not inside or path.stat().st_size > MOST_KEPT:
            found.append(f"left behind: {path.relative_to(folder)}, {path.stat().st_size} bytes")
    return found


@cache
def ui_server() -> Any:
    server = ui.make_server(0)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    return server


def fuzz_ui(rng: random.Random, folder: Path) -> list[str]:
    """What one request broke: it gets an answer, whole, that holds no traceback and no token."""
    fields = ("model", "method", "gpu", "x", SECRET)
    values = ("gpt2", "lora", "t4", str(folder), "org/name", "../x", str(nasty(rng)), "%1b%5b31m", "<b>")
    query = "&".join(f"{rng.choice(fields)}={rng.choice(values)}" for _ in range(rng.choice((1, 2, 3, 40))))
    names = (
        "Host: localhost",
        "Host: localhost:80",
        "Host: evil.example",
        "Origin: http://evil.example",
        "X: " + "y" * 9000,
    )
    lines = [f"GET {rng.choice(('/?', '/?', '/?', '/', '//x?'))}{query} HTTP/1.1", "Host: localhost"]
    lines += rng.sample(names, rng.choice((0, 0, 1, 2)))
    data = "\r\n".join(lines).encode("utf-8", errors="replace") + b"\r\n\r\n"
    if rng.random() < 0.3:
        data = spoiled(rng, data.decode("utf-8", errors="replace"))[: 2**20] + b"\r\n\r\n"
    err = io.StringIO()
    with patch.dict(os.environ, {"HF_HUB_OFFLINE": "1"}), contextlib.redirect_stderr(err):
        return _answered(data, err)


def _answered(data: bytes, err: io.StringIO) -> list[str]:
    try:
        with socket.create_connection(ui_server().server_address, timeout=30) as client:
            with contextlib.suppress(BrokenPipeError, ConnectionResetError):  # refused before it was whole
                client.sendall(data)
            got = b"".join(iter(lambda: client.recv(2**16), b""))
    except OSError as error:
        return [f"{type(error).__name__}: {data[:80]!r}"] if len(data) < 2**14 else []
    head, _, body = got.partition(b"\r\n\r\n")
    found = []
    if not head.startswith(b"HTTP/1.1 ") or f"Content-Length: {len(body)}".encode() not in head:
        found.append(f"no whole answer: {got[:80]!r}")
    if b" 500 " in head[:16] or "Traceback" in err.getvalue():
        found.append(f"a defect: {err.getvalue()[-300:]}")
    if any(token in (got.decode(errors="replace") + err.getvalue()) for token in TOKENS):
        found.append("a token")
    return found


def one(door: str, rng: random.Random, folder: Path) -> list[str]:
    return {"hub": fuzz_hub, "ui": fuzz_ui}[door](rng, folder)
