"""A headless browser for tests of the page, by the WebDriver protocol alone."""

from __future__ import annotations

import json
import shutil
import subprocess
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

DRIVER = shutil.which("chromedriver")
BROWSER = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
HERE = bool(DRIVER and BROWSER)


@contextmanager
def headless() -> Iterator[Browser]:
    """A browser of its own, closed at the end."""
    process = subprocess.Popen([str(DRIVER), "--port=0"], stdout=subprocess.PIPE, text=True)
    try:
        port = None
        assert process.stdout is not None
        for line in process.stdout:
            if "successfully on port" in line:
                port = int(line.rstrip().rstrip(".").rpartition(" ")[2])
                break
        assert port, "the driver did not say its port"
        found = Browser(port)
        yield found
        found.close()
    finally:
        process.terminate()
        process.wait(timeout=20)


class Browser:
    """The few WebDriver calls that a test needs, over the driver's HTTP interface."""

    def __init__(self, port: int) -> None:
        self.address = f"http://127.0.0.1:{port}"
        arguments = [
            "--headless=new",
            "--no-sandbox",
            "--disable-gpu",
            "--window-size=1180,1600",
            "--disable-dev-shm-usage",
        ]
        options = {
            "goog:chromeOptions": {"args": arguments, "binary": BROWSER},
            "goog:loggingPrefs": {"browser": "ALL"},
        }
        self.session = self.call("POST", "/session", {"capabilities": {"alwaysMatch": options}})["sessionId"]

    def call(self, verb: str, path: str, body: Any = None) -> Any:
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(
            self.address + path, data=data, method=verb, headers={"Content-Type": "application/json"}
        )
        with urllib.request.urlopen(request, timeout=120) as answer:
            return json.loads(answer.read())["value"]

    def open(self, url: str) -> None:
        self.call(
            "POST", f"/session/{self.session}/url", {"url": "about:blank"}
        )  # a new address fragment alone would load nothing
        self.call("POST", f"/session/{self.session}/url", {"url": url})
        self.until("return document.body.dataset.ready === '1'")

    def until(self, script: str, seconds: float = 60) -> None:
        """Wait until a script says true."""
        end = time.monotonic() + seconds
        while not self.run(script):
            assert time.monotonic() < end, f"never so: {script}: {json.dumps(self.log())}"
            time.sleep(0.1)

    def run(self, script: str, *args: Any) -> Any:
        return self.call(
            "POST", f"/session/{self.session}/execute/sync", {"script": script, "args": list(args)}
        )

    def log(self) -> Any:
        return self.call("POST", f"/session/{self.session}/se/log", {"type": "browser"})

    def move(self, name: str, value: Any) -> None:
        self.run(
            "const e = document.getElementById(arguments[0]); e.value = arguments[1];"
            "e.dispatchEvent(new Event(e.type === 'range' ? 'input' : 'change'))",
            name,
            str(value),
        )

    def close(self) -> None:
        self.call("DELETE", f"/session/{self.session}")
