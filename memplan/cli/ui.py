"""memplan ui: the report page of any model one types, served on loopback only, until Ctrl-C."""

from __future__ import annotations

import sys
import traceback
from collections.abc import Mapping
from html import escape
from typing import Any
from urllib.parse import parse_qs, urlsplit

import click

from memplan.cli.options import HELP
from memplan.cli.page_cache import Pages
from memplan.cli.page_pool import Busy, Pool
from memplan.cli.server import HOST, Request, Server
from memplan.planner.tables.errors import MemplanError, UsageError, shorten, tidy
from memplan.planner.tables.units import gib

LOCAL = (HOST, "localhost", "::1")
MOST_QUERY, MOST_FIELDS = 2000, 20
NUMBERS = ("batch", "seq", "rank", "init_rank")
ASKED = ("method", "gpu", "recipe", "checkpointing", "loss", "attention", "optimizer", *NUMBERS)
"""What a page can be asked for beside the model: Setup fields and their short names."""
PAGES = Pages()
POOL = Pool()
FORM = """<!doctype html><html lang="en"><head><meta charset="utf-8"><title>memplan</title>
<meta http-equiv="Content-Security-Policy"
 content="default-src 'none'; style-src 'unsafe-inline'; form-action 'self'">
<style>:root{color-scheme:light dark}body{font:16px/1.5 system-ui,sans-serif;max-width:440px;margin:12vh auto;padding:0 20px}
label{display:block;margin:8px 0}input,select,button{font:inherit;padding:6px 10px;margin:4px 0;width:100%%;box-sizing:border-box}.error{color:#b3372f}</style></head><body>
<h1>memplan</h1><p>How much GPU memory will a fine-tuning run need, and where does every byte go?</p>%(error)s
<form action="/" method="get">
<label>model <input name="model" list="models" placeholder="llama-3.1-8b" value="%(model)s" autofocus required></label>
<datalist id="models">%(models)s</datalist>
<label>method <select name="method">%(methods)s</select></label>
<label>recipe <select name="recipe">%(recipes)s</select></label>
<label>GPU <select name="gpu"><option value="">the smallest that holds it</option>%(gpus)s</select></label> <button>predict</button></form>
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
    """Serve the report page on this machine only (127.0.0.1): pick a model, a method, a recipe and a GPU;
    what a page cannot vary by itself, it asks for. Press Ctrl-C to stop.
    """
    server = make_server(port)
    POOL.warm()
    click.echo(f"memplan ui: http://{HOST}:{server.server_address[1]}/ (Ctrl-C to stop)", err=True)
    try:
        server.serve_forever()
    except KeyboardInterrupt:
        pass
    finally:
        server.server_close()
        POOL.close()
        click.echo("memplan ui: closed", err=True)


def make_server(port: int) -> Server:
    """A server on loopback. UsageError where the port is taken."""
    try:
        return Server(port, answer)
    except OSError as error:
        raise UsageError(f"cannot listen on port {port}: {error.strerror or error}; try --port 0") from None


def answer(request: Request) -> tuple[int, str]:
    """GET /?model=NAME, with any of ASKED: the page, or the form with one message. Nothing else is served, no
    file of this machine is read.
    """
    try:
        status, text = _answer(request)
    except Exception:
        traceback.print_exc()
        status, text = 500, "this is a defect of memplan: see its terminal"
    print(f"memplan ui: {shorten(request.method)} {shorten(request.target)} {status}", file=sys.stderr)
    return status, text


def _answer(request: Request) -> tuple[int, str]:
    if not _is_local(request.headers.get("host", "")):
        return 403, "memplan ui answers this machine only"
    path, _, query = request.target.partition("?")
    if path != "/" or len(query) > MOST_QUERY:
        return 404, "not here"
    if query and _is_from_elsewhere(request.headers):
        return 403, "memplan ui answers its own form only: another page asked"
    try:
        fields = {key: values[0] for key, values in parse_qs(query, max_num_fields=MOST_FIELDS).items()}
    except ValueError:
        return 400, form(error=f"at most {MOST_FIELDS} fields")
    return respond(fields)


def _is_local(host: str) -> bool:
    """A name in the Host header that is not this machine means that some web page points here (DNS
    rebinding).
    """
    name = host.rpartition(":")[0] if host.rpartition(":")[2].isdecimal() else host
    return name.strip("[]") in LOCAL


def _is_from_elsewhere(headers: Mapping[str, str]) -> bool:
    """Whether another site's page made the browser ask: it would spend this machine's time, and its token on
    the hub. Browsers say so in Sec-Fetch-Site, older ones in Origin or Referer; what a person types has none.
    """
    site = headers.get("sec-fetch-site")
    if site is not None:
        return site not in ("same-origin", "none")
    return any(
        urlsplit(headers[name]).netloc != headers.get("host")
        for name in ("origin", "referer")
        if headers.get(name)
    )


def respond(fields: dict[str, str]) -> tuple[int, str]:
    """(status, page) for what somebody typed: a model's name or a Hugging Face id, never a path of this
    machine. Equal questions are computed once.
    """
    model = fields.get("model", "").strip()
    if not model:
        return 200, form()
    options = {name: _value(name, fields[name]) for name in ASKED if fields.get(name)}
    others = (f"{name}={value}" for name, value in options.items() if name not in ("method", "gpu"))
    key = (model, fields.get("method", ""), fields.get("gpu", ""), *others)
    try:
        return 200, PAGES.get(key, lambda: _page(model, options))
    except Busy as error:
        return 503, form(model, tidy(str(error)))
    except MemplanError as error:
        return 400, form(model, tidy(str(error)))


def _value(name: str, text: str) -> str | int:
    return int(text) if name in NUMBERS and text.isdecimal() and len(text) < 9 else text


def _page(model: str, options: dict[str, Any]) -> str:
    """The page, whose model is looked for here: a worker has neither network nor token."""
    from memplan import api
    from memplan.planner.inputs.models import named

    found, setup = api.request(named(model), **options)
    return POOL.compute(found, setup).replace("<main>", BACK + "<main>", 1)


def form(model: str = "", error: str = "") -> str:
    """The entry page, with one message where something went wrong."""
    from memplan.planner.inputs.models import names
    from memplan.planner.tables.gpus import gpus
    from memplan.planner.tables.methods import METHODS
    from memplan.planner.tables.recipes import DEFAULT_RECIPE, RECIPES

    def option(name: str, chosen: bool = False, text: str = "") -> str:
        selected = " selected" if chosen else ""
        return f'<option value="{escape(name)}"{selected}>{escape(text or name)}</option>'

    return FORM % {
        "model": escape(shorten(model), quote=True),
        "error": f'<p class="error">{escape(error)}</p>' if error else "",
        "models": "".join(f'<option value="{escape(name)}">' for name in names()),
        "methods": "".join(option(name, name == "lora") for name in METHODS),
        "recipes": "".join(option(name, name == DEFAULT_RECIPE) for name in RECIPES),
        "gpus": "".join(
            option(gpu.name, text=f"{gpu.name} ({gib(gpu.usable_bytes)})")
            for gpu in sorted(gpus().values(), key=lambda gpu: gpu.usable_bytes)
        ),
    }
