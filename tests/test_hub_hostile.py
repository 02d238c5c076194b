"""A hub that lies: sizes, encodings, names, redirects and words that never end. The real client asks it."""

from __future__ import annotations

import contextlib
import gzip
import json
import socket
import subprocess
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from memplan.planner.inputs import download, hub
from memplan.planner.tables.errors import NetworkError, UsageError

pytest.importorskip("huggingface_hub")
ROOT = Path(__file__).parent.parent
CONFIG = {"model_type": "llama", "hidden_size": 64}
BODY = json.dumps(CONFIG).encode()
TOKEN = "hf_thisTokenIsForTheTest"
COMMIT = "a" * 40


class Liar(BaseHTTPRequestHandler):
    """Answers with what `server.lie` is: a function of the handler."""

    protocol_version = "HTTP/1.1"

    def do_GET(self):
        self.server.asked.append(self.headers.get("authorization", ""))
        self.close_connection = True
        with contextlib.suppress(OSError):  # who asked went away, as it should
            self.server.lie(self)

    def log_message(self, *args):
        pass

    def say(self, body=b"", status=200, **headers):
        self.send_response(status)
        for name, value in {"Content_Length": len(body), "X_Repo_Commit": COMMIT, **headers}.items():
            if value is not None:
                self.send_header(name.replace("_", "-"), str(value))
        self.end_headers()
        self.wfile.write(body)


def serve():
    httpd = ThreadingHTTPServer(("127.0.0.1", 0), Liar)
    httpd.daemon_threads, httpd.asked, httpd.lie = True, [], Liar.say
    threading.Thread(target=httpd.serve_forever, daemon=True).start()
    return httpd


@pytest.fixture
def liar(tmp_path, monkeypatch):
    httpd = serve()
    for name in ("HF_HOME", "HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{httpd.server_address[1]}")
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    monkeypatch.setattr(hub, "SECONDS", 1.0)
    monkeypatch.setattr(hub, "DEADLINE", 2.0)
    monkeypatch.setattr(download, "DEADLINE", 2.0)
    httpd.folder = tmp_path
    yield httpd
    httpd.shutdown()
    httpd.server_close()


def kept(folder):
    return {
        str(path.relative_to(folder)): path.stat().st_size for path in folder.rglob("*") if path.is_file()
    }


def test_what_is_kept_lies_where_the_library_looks_for_it(liar):
    liar.lie = lambda handler: handler.say(BODY)
    assert hub.find_config("org/name")[0] == CONFIG
    home = "cache/models--org--name/"
    assert set(kept(liar.folder)) == {home + "refs/main", home + f"snapshots/{COMMIT}/config.json"}
    from huggingface_hub import try_to_load_from_cache

    found = try_to_load_from_cache("org/name", "config.json", cache_dir=str(liar.folder / "cache"))
    assert json.loads(Path(found).read_text()) == CONFIG
    assert hub.find_config("org/name") == (CONFIG, "Hugging Face cache (org/name)") and len(liar.asked) == 1


@pytest.mark.parametrize("commit", ["../../../evil", "/etc/x", "A" * 40, "a" * 41, "", None])
@pytest.mark.parametrize("etag", ["../../../../evil", "/etc/evil", '"x"', "\x7f"])
def test_no_name_of_the_server_s_becomes_a_path(liar, commit, etag):
    liar.lie = lambda handler: handler.say(BODY, X_Repo_Commit=commit, ETag=etag, X_Linked_Etag=etag)
    assert hub.find_config("org/name")[0] == CONFIG
    assert kept(liar.folder) == {}


def test_a_size_is_believed_before_a_byte_is_read(liar):
    sent = []

    def lie(handler):
        handler.say(Content_Length=419_000_000)
        for _ in range(419):
            handler.wfile.write(bytes(10**6))
            sent.append(1)

    liar.lie = lie
    with pytest.raises(UsageError, match="org/name: config.json has 419,000,000 bytes"):
        hub.find_config("org/name")
    assert len(sent) < 20 and kept(liar.folder) == {}


def test_a_body_without_a_size_is_counted(liar):
    def lie(handler):
        handler.say(Content_Length=None)
        while True:
            handler.wfile.write(b"[" * 10**6)

    liar.lie = lie
    with pytest.raises(UsageError, match="more than a config"):
        hub.find_config("org/name")


def test_a_bomb_is_not_unpacked(liar):
    bomb = gzip.compress(bytes(300_000_000))
    liar.lie = lambda handler: handler.say(bomb, Content_Encoding="gzip")
    with pytest.raises(UsageError, match="more than a config"):
        hub.find_config("org/name")
    assert kept(liar.folder) == {}
    liar.lie = lambda handler: handler.say(gzip.compress(BODY), Content_Encoding="gzip")
    assert hub.find_config("org/name")[0] == CONFIG


def trickle(data, pause=0.05):
    def lie(handler):
        for byte in data:
            handler.wfile.write(bytes([byte]))
            time.sleep(pause)

    return lie


@pytest.mark.parametrize(
    "data",
    [
        b"HTTP/1.1 200 OK\r\nContent-Length: 9999\r\n\r\n" + b" " * 9999,
        b"HTTP/1.1 200 OK\r\n" + b"".join(b"X-%d: 1\r\n" % n for n in range(2000)),
    ],
    ids=["body", "headers"],
)
def test_an_answer_that_never_ends_has_a_deadline(liar, data):
    liar.lie = trickle(data)
    start = time.monotonic()
    with pytest.raises(NetworkError, match="sent no whole answer within 2 seconds"):
        hub.find_config("org/name")
    assert time.monotonic() - start < 6


@pytest.mark.parametrize(
    "body", [b"", b"<html>log in</html>", b"[]", b"\xff", b'{"a": 1', b"[" * 90_000, b"null", b'"x"']
)
def test_what_is_no_config_is_one_message(liar, body):
    liar.lie = lambda handler: handler.say(body)
    with pytest.raises((NetworkError, UsageError), match=r"org/name") as caught:
        hub.find_config("org/name")
    assert len(str(caught.value)) < 300


def test_the_token_does_not_follow_to_another_host(liar):
    other = serve()
    other.lie = lambda handler: handler.say(BODY)
    where = f"http://localhost:{other.server_address[1]}/elsewhere"
    liar.lie = lambda handler: handler.say(status=302, Location=where)
    try:
        assert hub.find_config("org/name")[0] == CONFIG
        assert liar.asked == [f"Bearer {TOKEN}"] and other.asked == [""]
    finally:
        other.shutdown()
        other.server_close()


def test_redirects_that_go_round_end(liar):
    liar.lie = lambda handler: handler.say(status=302, Location="/x")
    with pytest.raises(NetworkError, match="org/name"):
        hub.find_config("org/name")


@pytest.mark.parametrize("body", [BODY[:10], b""], ids=["cut short", "nothing"])
def test_the_client_says_nothing_of_its_own(liar, body):
    liar.lie = lambda handler: handler.say(body, Content_Length=len(BODY))
    done = subprocess.run(
        [sys.executable, "-m", "memplan", "org/name"], capture_output=True, text=True, cwd=ROOT, timeout=60
    )
    assert done.returncode == 3 and done.stdout == "" and len(done.stderr.splitlines()) == 1, done.stderr
    assert "org/name: cannot read config.json from the hub" in done.stderr and TOKEN not in done.stderr


def test_a_connection_that_says_nothing_ends(liar, monkeypatch):
    silent = socket.create_server(("127.0.0.1", 0))
    monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{silent.getsockname()[1]}")
    with pytest.raises(NetworkError, match="did not answer within 1 seconds"):
        hub.find_config("org/name")
    silent.close()
