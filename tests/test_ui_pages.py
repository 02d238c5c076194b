"""Pages of `memplan ui`: each computed once for all who ask, in processes that end with the server, and no
more of them at once than there is room for.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from page_makers import endless, of_environment, of_process, refused, slow, wrong

from memplan import api
from memplan.cli import page_cache, page_pool, ui
from memplan.cli.page_cache import Pages
from memplan.cli.page_pool import Busy, Pool
from memplan.cli.server import Server
from memplan.planner.inputs.models import named
from memplan.planner.tables.errors import UsageError

forks = pytest.mark.skipif(not page_pool.can_fork(), reason="no fork server on this system")
GPT2 = api.request(named("gpt2"))


@pytest.fixture
def pool() -> Iterator[Callable[..., Pool]]:
    made: list[Pool] = []

    def make(*args: object, **options: object) -> Pool:
        made.append(Pool(*args, **options))  # type: ignore[arg-type]
        return made[-1]

    yield make
    for each in made:
        each.close()


def is_running(pid: int) -> bool:
    """Whether a process is there, a zombie that nobody has waited for not among them."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2][0]
    except (FileNotFoundError, ProcessLookupError):
        return False
    return state != "Z"


def gone(pids: list[int], seconds: float = 10) -> bool:
    end = time.monotonic() + seconds
    while any(map(is_running, pids)) and time.monotonic() < end:
        time.sleep(0.05)
    return not any(map(is_running, pids))


# ---- what is asked twice, and too much ---------------------------------------------------------------------


def test_equal_questions_in_flight_are_computed_once():
    pages, started, release = Pages(), [], threading.Event()

    def compute() -> str:
        started.append(1)
        assert release.wait(10)
        return "page"

    with ThreadPoolExecutor(20) as crowd:
        asked = [crowd.submit(pages.get, ("gpt2",), compute) for _ in range(20)]
        time.sleep(0.3)
        release.set()
        assert {each.result(10) for each in asked} == {"page"}
    assert len(started) == 1
    assert pages.get(("gpt2",), lambda: pytest.fail("computed again")) == "page"


def test_a_failure_is_told_to_all_who_wait_and_not_kept():
    pages, release = Pages(), threading.Event()

    def fail() -> str:
        assert release.wait(10)
        raise UsageError("no")

    with ThreadPoolExecutor(5) as crowd:
        asked = [crowd.submit(pages.get, ("x",), fail) for _ in range(5)]
        time.sleep(0.2)
        release.set()
        assert all(isinstance(each.exception(10), UsageError) for each in asked)
    assert pages.get(("x",), lambda: "page") == "page"


def test_too_many_pages_or_readers_are_refused_and_known_pages_are_not(monkeypatch):
    monkeypatch.setattr(page_cache, "MOST_COMPUTED", 2)
    monkeypatch.setattr(page_cache, "MOST_WAITING", 4)
    pages, release = Pages(), threading.Event()
    pages.get(("known",), lambda: "page")

    def compute() -> str:
        assert release.wait(10)
        return "late"

    with ThreadPoolExecutor(4) as crowd:
        asked = [crowd.submit(pages.get, (name,), compute) for name in "ab"]
        time.sleep(0.2)
        with pytest.raises(Busy):
            pages.get(("c",), compute)
        asked += [crowd.submit(pages.get, ("a",), compute) for _ in range(2)]
        time.sleep(0.2)
        with pytest.raises(Busy):
            pages.get(("a",), compute)
        assert pages.get(("known",), compute) == "page"
        release.set()
        assert [each.result(10) for each in asked] == ["late"] * 4
    assert pages.get(("c",), lambda: "page") == "page"


def test_a_refusal_says_when_to_ask_again(server_of: Server, monkeypatch):
    monkeypatch.setattr(page_cache, "MOST_COMPUTED", 0)
    answer = asked(server_of, "/?model=gpt2-xl&gpu=t4")
    assert answer.startswith(b"HTTP/1.1 503 ") and b"\r\nRetry-After: 10\r\n" in answer
    assert b"too many pages" in answer
    assert b"Retry-After" not in asked(server_of, "/")


@pytest.fixture
def server_of() -> Iterator[Server]:
    made = ui.make_server(0)
    threading.Thread(target=made.serve_forever, daemon=True).start()
    yield made
    made.shutdown()
    made.server_close()


def asked(server: Server, target: str) -> bytes:
    import socket

    with socket.create_connection(server.server_address, timeout=60) as client:
        client.sendall(f"GET {target} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
        return b"".join(iter(lambda: client.recv(2**16), b""))


# ---- the processes -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(("model", "options"), [("gpt2", {}), ("gpt2", {"method": "qlora", "gpu": "t4"})])
def test_a_worker_s_page_is_the_page_to_the_byte(pool, model, options, monkeypatch):
    monkeypatch.undo()  # a worker knows nothing of the tests' small pages
    request = api.request(named(model), **options)
    assert pool(1).compute(*request) == page_pool.page(*request)


@forks
def test_workers_are_other_processes_one_at_a_time_each_and_replaced(pool, monkeypatch):
    monkeypatch.setattr(page_pool, "PAGES_EACH", 2)
    one = pool(1, of_process)
    found = [one.compute(*GPT2) for _ in range(6)]
    assert found[0] == found[1] != found[2] == found[3] != found[4] and str(os.getpid()) not in found
    two = pool(2, slow)
    with ThreadPoolExecutor(4) as crowd:
        pids = list(crowd.map(lambda _: two.compute(*GPT2), range(4)))
    assert len(set(pids)) == 2 and len(two.pids()) <= 2


@forks
def test_a_page_that_takes_too_long_is_ended_and_the_next_is_computed(pool):
    made = pool(1, endless, longest=0.5)
    with pytest.raises(Busy, match="took longer"):
        made.compute(*GPT2)
    assert made.pids() == []
    made._make = of_process
    assert int(made.compute(*GPT2)) in made.pids()


@forks
def test_a_worker_that_is_killed_costs_its_own_page_alone(pool):
    made = pool(1, slow)
    made.compute(*GPT2)
    threading.Timer(0.2, os.kill, (made.pids()[0], signal.SIGKILL)).start()
    with pytest.raises(Busy, match="was stopped"):
        made.compute(*GPT2)
    assert made.compute(*GPT2)


@forks
def test_a_worker_holds_no_token_and_asks_no_hub(pool, monkeypatch):
    found = pool(1, of_environment).compute(*GPT2).split()
    assert "HF_HUB_OFFLINE=1" in found and not any("TOKEN=" in pair for pair in found)
    for name in page_pool.TOKENS:
        monkeypatch.setenv(name, "hf_secretsecretsecret")
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")
    page_pool.without_hub()
    assert "hf_secretsecretsecret" not in os.environ.values() and os.environ["HF_HUB_OFFLINE"] == "1"


@forks
def test_what_a_worker_raises_is_a_refusal_or_a_defect_here(pool):
    with pytest.raises(UsageError, match="no such thing"):
        pool(1, refused).compute(*GPT2)
    with pytest.raises(page_pool.Defect, match="our mistake"):
        pool(1, wrong).compute(*GPT2)


def test_where_nothing_can_be_forked_the_thread_computes_one_page_at_a_time(pool, monkeypatch):
    monkeypatch.setattr(page_pool, "can_fork", lambda: False)
    made, busy = pool(make=lambda model, setup: page()), threading.Lock()

    def page() -> str:
        assert busy.acquire(blocking=False)
        time.sleep(0.1)
        busy.release()
        return f"{os.getpid()}"

    with ThreadPoolExecutor(3) as crowd:
        assert set(crowd.map(lambda _: made.compute(*GPT2), range(3))) == {f"{os.getpid()}"}


def test_a_closed_pool_computes_nothing(pool):
    made = pool(1, of_process)
    if page_pool.can_fork():
        pids = [int(made.compute(*GPT2))]
        made.close()
        assert gone(pids)
        with pytest.raises(Busy):
            made.compute(*GPT2)


SERVE = """
import sys, threading, time
from memplan import api
from memplan.cli import page_pool, ui
from memplan.cli.main import run
from memplan.planner.inputs.models import named
import page_makers

if __name__ == "__main__":
    ui.POOL = page_pool.Pool(2, page_makers.endless)
    for _ in range(2):
        threading.Thread(target=ui.POOL.compute, args=api.request(named("gpt2")), daemon=True).start()
    while len(ui.POOL.pids()) < 2:
        time.sleep(0.05)
    time.sleep(0.5)
    from multiprocessing import forkserver
    print(*ui.POOL.pids(), forkserver._forkserver._forkserver_pid, flush=True)
    sys.exit(run(["ui", "--port", "0"]))
"""


@forks
@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="reads /proc (Linux)")
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL, signal.SIGINT])
def test_workers_that_are_busy_end_with_the_server(tmp_path, number):
    script = tmp_path / "serve.py"
    script.write_text(SERVE)
    around = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    with subprocess.Popen(
        [sys.executable, script], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=around
    ) as server:
        assert server.stdout is not None and server.stderr is not None
        pids = [int(word) for word in server.stdout.readline().split()]
        assert len(pids) == 3 and all(map(is_running, pids))
        assert "Ctrl-C to stop" in server.stderr.readline()
        server.send_signal(number)
        server.wait(10)
        assert gone(pids), "left running"
