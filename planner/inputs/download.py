"""One small file of the hub, fetched through huggingface_hub's own session without trusting the answer: its
size is asked first, its bytes are counted, it has a deadline, and what the server says names no path.

The copy that is kept lies where huggingface_hub looks for it: `refs/main` and a snapshot folder with plain
files, as that library itself leaves them where symbolic links are not to be had.
"""

from __future__ import annotations

import contextlib
import os
import re
import tempfile
import threading
import time
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from memplan.planner.tables.errors import UsageError

DEADLINE = 30.0
"""Seconds for the whole answer: a config has a few kilobytes."""
COMMIT = re.compile(r"[0-9a-f]{40}")


class DeadlineTimeout(Exception):
    """The answer was not whole within DEADLINE."""


@dataclass(frozen=True, slots=True)
class Downloaded:
    """A file's bytes, and the commit that the hub says they are of (None where it says none)."""

    content: bytes
    commit: str | None


def fetch(client: Any, url: str, token: str | None, most: int, seconds: float) -> Downloaded:
    """The file behind a URL of the hub, at most `most` bytes (UsageError), each word of the server within
    `seconds`, all of them within DEADLINE. Raises what the client raises.
    """
    found: list[Downloaded] = []
    failed: list[BaseException] = []

    def work() -> None:
        try:
            found.append(_fetch(client, url, token, most, seconds))
        except BaseException as error:
            failed.append(error)

    # headers may come a byte at a time, where no read ever times out: only a second thread can stop waiting
    worker = threading.Thread(target=work, daemon=True)
    worker.start()
    worker.join(DEADLINE + seconds)
    if failed:
        raise failed[0]
    if not found:
        raise DeadlineTimeout
    return found[0]


def _fetch(client: Any, url: str, token: str | None, most: int, seconds: float) -> Downloaded:
    from huggingface_hub import utils

    end = time.monotonic() + DEADLINE
    headers = {**utils.build_hf_headers(token=token), "Accept-Encoding": "identity"}
    with client.get_session().stream(
        "GET", url, headers=headers, follow_redirects=True, timeout=seconds
    ) as response:
        if response.status_code >= 400:  # judged by its status and headers: its body is nobody's to trust
            utils.hf_raise_for_status(
                type(response)(response.status_code, headers=_plain(response), request=response.request)
            )
        size = response.headers.get("content-length", "")
        if size.isdecimal() and len(size) < 20 and int(size) > most:
            raise too_large(int(size), most)
        content = bytearray()
        for chunk in _decoded(response, most):
            content += chunk
            if len(content) > most:
                raise too_large(len(content), most)
            if time.monotonic() > end:
                raise DeadlineTimeout
        commit = next(
            (
                r.headers["x-repo-commit"]
                for r in (response, *response.history)
                if "x-repo-commit" in r.headers
            ),
            "",
        )
    return Downloaded(bytes(content), commit if COMMIT.fullmatch(commit) else None)


def _plain(response: Any) -> dict[str, str]:
    """The headers that say why the hub refused."""
    return {
        name: response.headers[name]
        for name in ("x-error-code", "x-error-message")
        if name in response.headers
    }


def _decoded(response: Any, most: int) -> Iterator[bytes]:
    """The body; one that is compressed although that was not asked for, up to one byte more than `most`."""
    encoding = response.headers.get("content-encoding", "identity").strip().lower()
    if encoding in ("", "identity"):
        yield from response.iter_raw()
        return
    if encoding not in ("gzip", "deflate"):
        raise ValueError(f"content-encoding {encoding}")
    inflate, left = zlib.decompressobj(47), most + 1
    for chunk in response.iter_raw():
        piece = inflate.decompress(chunk, left)
        left -= len(piece)
        yield piece
        if left <= 0:
            return


def too_large(size: int, most: int) -> UsageError:
    """The error for a file of more bytes than a config can have."""
    return UsageError(f"has {size:,} bytes, more than a config of at most {most:,} can have")


def keep(cache: Path, repository: str, name: str, file: Downloaded) -> None:
    """Put a file into the cache, under the commit that it is of; nothing where the hub named none or the
    cache cannot be written. `repository` and `name` are checked ids.
    """
    if file.commit is None:
        return
    folder = cache / ("models--" + repository.replace("/", "--"))
    with contextlib.suppress(OSError):
        _write(folder / "snapshots" / file.commit / name, file.content)
        _write(folder / "refs" / "main", file.commit.encode())


def _write(path: Path, content: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(temporary)
        raise
