"""`memplan ui` in a crowd and among strangers: nothing is reset, nothing hangs, nothing of this machine is
read.
"""

from __future__ import annotations

import os
import random
import socket
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from memplan.cli import page_cache, ui
from memplan.cli import server as serving
from memplan.cli.server import Server

HEAD = "GET {} HTTP/1.1\r\nHost: localhost\r\n{}\r\n"


@pytest.fixture
def server() -> Iterator[Server]:
    made = ui.make_server(0)
    threading.Thread(target=made.serve_forever, daemon=True).start()
    yield made
    made.shutdown()
    made.server_close()


def ask(server: Server, target: str, headers: str = "", wait: float = 60) -> tuple[int, str]:
    """Status and body of one request, read to the end: a reset raises."""
    return raw(server, HEAD.format(target, headers).encode(), wait)


def raw(server: Server, data: bytes, wait: float = 60) -> tuple[int, str]:
    with socket.create_connection(server.server_address, timeout=wait) as client:
        client.sendall(data)
        answer = b"".join(iter(lambda: client.recv(2**16), b""))
    head, _, body = answer.partition(b"\r\n\r\n")
    length = int(head.split(b"Content-Length: ")[1].split(b"\r\n")[0])
    assert len(body) == length, (len(body), length)
    return int(head.split(b" ")[1]), body.decode()


def test_a_hundred_requests_at_once_are_all_answered(server):
    models = ("gpt2", "gpt2-medium", "llama-7b", "no-such-model")
    with ThreadPoolExecutor(100) as pool:
        found = list(pool.map(lambda n: ask(server, f"/?model={models[n % 4]}")[0], range(100)))
    assert sorted(set(found)) == [200, 400] and found.count(400) == 25


def test_slow_connections_are_ended_and_do_not_stop_others(server, monkeypatch):
    monkeypatch.setattr(serving, "HEAD_SECONDS", 1.0)
    slow = [socket.create_connection(server.server_address, timeout=20) for _ in range(150)]
    for client in slow:
        client.sendall(b"GET / HT")
    start = time.monotonic()
    assert ask(server, "/")[0] == 200
    assert time.monotonic() - start < 1
    for client in slow:
        assert b" 408 " in client.recv(1000)
        client.close()
    assert time.monotonic() - start < 10


def test_more_connections_than_places_get_an_answer(server, monkeypatch):
    monkeypatch.setattr(serving, "MOST_OPEN", 10)
    held = [socket.create_connection(server.server_address, timeout=20) for _ in range(10)]
    time.sleep(0.5)
    with socket.create_connection(server.server_address, timeout=20) as client:
        assert b" 503 " in client.recv(1000)
    for client in held:
        client.close()
    time.sleep(0.5)
    assert ask(server, "/")[0] == 200


def test_a_client_that_leaves_prints_nothing_and_costs_nothing(server, capsys):
    for data in (b"", b"GET /?mo", HEAD.format("/?model=gpt2", "").encode()):
        client = socket.create_connection(server.server_address)
        client.sendall(data)
        client.close()
    time.sleep(0.5)
    assert ask(server, "/")[0] == 200
    shown = capsys.readouterr()
    assert "Traceback" not in shown.err and shown.out == ""


@pytest.mark.parametrize(
    ("data", "status"),
    [
        (b"\x00\xff\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nno colon\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nHost: localhost\r\nHost: evil.example\r\n\r\n", 400),
        (b"POST / HTTP/1.1\r\nHost: localhost\r\n\r\n", 405),
        (b"GET / HTTP/1.1\r\nHost: localhost\r\nX: " + b"a" * 40_000, 431),
        (b"GET / HTTP/1.1\r\n\r\n", 403),
        (b"GET / HTTP/1.1\r\nHost: evil.example:80\r\n\r\n", 403),
        (b"GET //evil.example/ HTTP/1.1\r\nHost: localhost\r\n\r\n", 404),
        (b"GET http://localhost/ HTTP/1.1\r\nHost: localhost\r\n\r\n", 404),
        (HEAD.format("/?" + "&".join(f"a{n}=1" for n in range(50)), "").encode(), 400),
        (HEAD.format("/?model=gpt2&gpu=%1b%5b31m", "").encode(), 400),
    ],
)
def test_what_is_no_request_of_ours_gets_its_status(server, data, status):
    assert raw(server, data)[0] == status


@pytest.mark.parametrize(
    "header",
    ["Sec-Fetch-Site: cross-site", "Sec-Fetch-Site: same-site", "Origin: http://evil.example"]
    + ["Referer: http://evil.example/x", "Origin: null", "Origin: http://localhost:1"],
)
def test_another_site_s_page_cannot_ask(server, header, monkeypatch):
    monkeypatch.setattr(ui, "respond", lambda fields: pytest.fail("answered"))
    assert ask(server, "/?model=org/name", f"{header}\r\n")[0] == 403


@pytest.mark.parametrize(
    "header", ["Sec-Fetch-Site: same-origin", "Sec-Fetch-Site: none", "Referer: http://localhost/"]
)
def test_the_form_itself_can(server, header):
    assert ask(server, "/?model=no-such-model", f"{header}\r\n")[0] == 400


@pytest.mark.parametrize(
    "headers", ["Sec-Fetch-Site: cross-site\r\n", "Origin: http://evil.example\r\n", "Host: evil.example\r\n"]
)
@pytest.mark.parametrize("method", ["GET", "HEAD"])
def test_a_page_that_is_known_is_not_given_to_another_site_either(server, headers, method, monkeypatch):
    monkeypatch.setattr(ui, "_page", lambda model, options: "the page")
    assert ask(server, "/?model=org/known") == (200, "the page")
    host = "" if headers.startswith("Host") else "Host: localhost\r\n"
    with socket.create_connection(server.server_address, timeout=20) as client:
        client.sendall(f"{method} /?model=org/known HTTP/1.1\r\n{host}{headers}\r\n".encode())
        answer = b"".join(iter(lambda: client.recv(2**16), b""))
    assert b" 403 " in answer[:16] and b"the page" not in answer
    ui.PAGES.clear()


def test_a_hub_is_asked_with_the_token_only_for_who_may_ask_and_never_in_a_worker(server, monkeypatch):
    from memplan.planner.inputs import models

    threads = []
    monkeypatch.setattr(models, "_from_hub", lambda name: threads.append(os.getpid()) or models.find("gpt2"))
    assert ask(server, "/?model=org/asked", "Origin: http://evil.example\r\n")[0] == 403 and not threads
    assert ask(server, "/?model=org/asked")[0] == 200 and threads == [os.getpid()]
    ui.PAGES.clear()


def test_a_folder_of_this_machine_is_never_read(server, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    for name in ("mine", "a/b"):
        (tmp_path / name).mkdir(parents=True)
        (tmp_path / name / "config.json").write_text('{"model_type": "my-secret-model"}')
    for name in (
        "mine",
        "a/b",
        "./mine",
        "mine/config.json",
        str(tmp_path / "mine"),
        "~",
        "file:///etc/passwd",
    ):
        status, text = ask(server, f"/?model={name}")
        assert status == 400 and "my-secret-model" not in text


MODELS = ("gpt2", "gpt2-medium", "gpt2-large", "llama-7b", "llama-13b", "qwen3-4b", "qwen3-8b", "mistral-7b")
OWN = [(model, method) for method in ("full", "qlora", "dora", "ia3") for model in MODELS]
"""Pages of which each reader takes one that nobody else asks."""


def crowd(
    server: Server, readers: int, seconds: float, models: tuple[str, ...]
) -> tuple[list[tuple[bool, float]], set[str]]:
    """Whether each answer's page was known before, and the seconds that it took, of parallel readers; and the
    pages that were asked. The mix: every reader begins, all at once, with a model that is not known (so some
    ask the same), reads each page for up to two seconds, goes on with one of these models, and once, at any
    time of the first three quarters, asks a page that nobody else asks.
    """
    begin, found, asked = time.monotonic(), [], set()

    def read(seed: int) -> None:
        rng = random.Random(seed)
        model, method = OWN[seed]
        own, at = f"/?model={model}&method={method}", rng.uniform(0, 0.75 * seconds)
        following = f"/?model={models[seed % len(models)]}"
        while (now := time.monotonic() - begin) < seconds or own:
            target, own = (own, "") if own and now >= at else (following, own)
            key = tuple((*(field.partition("=")[2] for field in target[2:].split("&")), "", "")[:3])
            known, start = key in ui.PAGES, time.monotonic()
            assert ask(server, target, wait=300)[0] == 200
            found.append((known, time.monotonic() - start))
            asked.add(target)
            following = f"/?model={rng.choice(models)}"
            time.sleep(rng.uniform(0, min(2, seconds / 10)))

    with ThreadPoolExecutor(readers) as pool:
        list(pool.map(read, range(readers)))
    return found, asked


@pytest.mark.parametrize(
    ("readers", "seconds"),
    [(4, 2.0), pytest.param(20, 60.0, marks=pytest.mark.slow)],
    ids=["seconds", "a minute"],
)
def test_parallel_readers_are_served_without_a_reset(server, readers, seconds, monkeypatch):
    made = []
    compute = ui._page
    monkeypatch.setattr(ui, "_page", lambda *asked: made.append(asked) or compute(*asked))
    ui.PAGES.clear()
    ui.POOL.warm()
    models = MODELS if seconds > 10 else MODELS[:2]
    found, asked = crowd(server, readers, seconds, models)
    assert len(made) == len(asked) == len(models) + readers  # each page once, whoever asked it
    cached = sorted(took for known, took in found if known) or [0.0]
    cold = sorted(took for known, took in found if not known)
    assert len(cold) > len(made)  # some waited for the same page
    worst, late = cached[-1], cold[int(0.95 * len(cold))]
    load = f"load {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores"
    print(
        f"{len(cached)} cached, at most {worst:.3f} s; {len(cold)} asked before they were known ({len(made)} "
        f"pages), P50 {cold[len(cold) // 2]:.1f} s, P95 {late:.1f} s, at most {cold[-1]:.1f} s; {load}"
    )
    if seconds > 10:  # a promise about a machine that does little else, tried by hand
        assert worst <= 2 and late <= 10


def test_any_bytes_get_an_answer_or_a_close(server):
    rng = random.Random(20261128)
    head = HEAD.format("/?model=gpt2&method=lora&gpu=t4", "Accept: */*\r\n").encode()
    for _ in range(300):
        data = bytearray(head)
        for _ in range(rng.randrange(1, 9)):
            at = rng.randrange(len(data))
            data[at : at + rng.randrange(3)] = bytes(rng.randrange(256) for _ in range(rng.randrange(3)))
        data += b"\r\n\r\n"
        assert raw(server, bytes(data))[0] in (200, 400, 403, 404, 405, 431)


def test_pages_that_were_computed_are_bounded(monkeypatch):
    monkeypatch.setattr(ui, "_page", lambda model, options: model)
    for n in range(3 * page_cache.MOST_KEPT):
        assert ui.respond({"model": f"m{n}"}) == (200, f"m{n}")
    assert len(ui.PAGES) == page_cache.MOST_KEPT
    ui.PAGES.clear()


def test_nothing_is_served_from_the_folder_it_runs_in():
    assert ui.answer(serving.Request("GET", f"/{Path(__file__).name}", {"host": "localhost"}))[0] == 404
