"""memplan ui: the report page of any model one types, served on loopback only, until Ctrl-C."""

from __future__ import annotations

import socket
import sys
from html import escape
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlsplit

import click

from memplan.cli.options import HELP
from memplan.planner.tables.errors import MemplanError, shorten

HOST = "127.0.0.1"
MOST_QUERY = 2000
FORM = """<!doctype html><html lang="en"><head><meta charset="utf-8"><title>memplan</title>
<meta http-equiv="Content-Security-Policy"
 content="default-src 'none'; style-src 'unsafe-inline'; form-action 'self'">
<style>:root{color-scheme:light dark}body{font:16px/1.5 system-ui,sans-serif;max-width:640px;margin:12vh auto;padding:0 20px}
input,select,button{font:inherit;padding:6px 10px;margin:4px 0}input[name=model]{width:100%%}.error{color:#b3372f}</style></head><body>
<h1>memplan</h1><p>How much GPU memory will a fine-tuning run need, and where does every byte go?</p>%(error)s
<form action="/" method="get">
<input name="model" list="models" placeholder="llama-3.1-8b" value="%(model)s" autofocus required>
<datalist id="models">%(models)s</datalist>
<select name="method">%(methods)s</select>
<select name="gpu"><option value="">any GPU</option>%(gpus)s</select> <button>predict</button></form>
</body></html>"""


BACK = '<p class="no-print"><a href="/" style="color:inherit">another model, method or GPU</a></p>'


@click.command("ui", context_settings=HELP, short_help="Serve the report page of any model on this machine.")
@click.option(
    "--port",
    type=click.IntRange(0, 65535),
    default=8765,
    show_default=True,
    help="Port to listen on; 0 picks a free one.",
)
def command(port: int) -> None:
    """Serve the report page on this machine only (127.0.0.1): pick a model, a method and a GPU. Press Ctrl-C
    to stop.
    """
    server = make_server(port)
    click.echo(f"memplan ui: http://{HOST}:{server.server_address[1]}/ (Ctrl-C to stop)", err=True)
    try:
        server.serve_forever()
    except KeyboardInterrupt:
        pass
    finally:
        server.server_close()
        click.echo("memplan ui: closed", err=True)


def make_server(port: int) -> ThreadingHTTPServer:
    """A server on loopback. UsageError where the port is taken."""
    from memplan.planner.tables.errors import UsageError

    try:
        return ThreadingHTTPServer((HOST, port), Page)
    except OSError as error:
        raise UsageError(
            f"cannot listen on port {port}: {error.strerror or socket.error.__name__}; try --port 0"
        ) from None


class Page(BaseHTTPRequestHandler):
    """GET /?model=NAME&method=NAME&gpu=NAME: the page, or the form with one message. Nothing else is served,
    no file is read.
    """

    server_version = "memplan"
    sys_version = ""

    def do_GET(self) -> None:
        """Answer one request: the form, a report page, or an error as plain text. Only this machine is
        answered.
        """
        if not self._is_local():
            self._answer(403, "memplan ui answers this machine only")
            return
        parts = urlsplit(self.path)
        if parts.path != "/" or len(parts.query) > MOST_QUERY:
            self._answer(404, "not here")
            return
        fields = {key: values[0] for key, values in parse_qs(parts.query, max_num_fields=20).items()}
        status, text = respond(fields)
        self._answer(status, text)

    def _is_local(self) -> bool:
        """A name in the Host header that is not this machine means that some web page points here (DNS
        rebinding).
        """
        host = (self.headers.get("Host") or "").rpartition(":")[0] or self.headers.get("Host") or ""
        return host.strip("[]") in ("127.0.0.1", "localhost", "::1")

    def _answer(self, status: int, text: str) -> None:
        body = text.encode("utf-8")
        self.send_response(status)
        self.send_header("Content-Type", "text/html; charset=utf-8")
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Cache-Control", "no-store")
        self.send_header("X-Content-Type-Options", "nosniff")
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        """One line per request on standard error, shortened."""
        print(f"memplan ui: {shorten(format % args, 120)}", file=sys.stderr)


def respond(fields: dict[str, str]) -> tuple[int, str]:
    """(status, page) for what somebody typed: a model's name or a Hugging Face id, never a path of this
    machine.
    """
    model = fields.get("model", "").strip()
    if not model:
        return 200, form()
    try:
        return 200, _page(model, {name: fields[name] for name in ("method", "gpu") if fields.get(name)})
    except MemplanError as error:
        return 400, form(model, str(error))


def _page(model: str, options: dict[str, Any]) -> str:
    from memplan import api
    from memplan.cli.report import page_of
    from memplan.cli.subject import Subject
    from memplan.planner.tables.errors import UsageError

    if (
        model.startswith((".", "/", "~"))
        or "\\" in model
        or model.count("/") > 1
        or model.endswith((".json", ".yaml", ".yml", ".py", ".md"))
    ):
        raise UsageError("enter a model name or a Hugging Face id; for files, use memplan report")
    found, setup = api.request(model, **options)
    return page_of(Subject(found, setup)).replace("<main>", BACK + "<main>", 1)


def form(model: str = "", error: str = "") -> str:
    """The entry page, with one message where something went wrong."""
    from memplan.planner.inputs.models import names
    from memplan.planner.tables.gpus import common_gpus
    from memplan.planner.tables.methods import METHODS

    def option(name: str, chosen: bool = False) -> str:
        return f'<option value="{escape(name)}"{" selected" if chosen else ""}>{escape(name)}</option>'

    return FORM % {
        "model": escape(shorten(model), quote=True),
        "error": f'<p class="error">{escape(error)}</p>' if error else "",
        "models": "".join(f'<option value="{escape(name)}">' for name in names()),
        "methods": "".join(option(name, name == "lora") for name in METHODS),
        "gpus": "".join(option(gpu.name) for gpu in common_gpus()),
    }
