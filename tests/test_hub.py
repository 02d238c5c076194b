"""Models by id: the cache by path, then the real client against a loopback server that speaks the hub's
routes, healthy and faulty.
"""

import json
import struct
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from memplan.planner.inputs import hub
from memplan.planner.tables.errors import NetworkError, UsageError

CONFIG = {
    "model_type": "llama",
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "vocab_size": 100,
    "architectures": ["LlamaForCausalLM"],
}
COMMIT = "a" * 40


def safetensors(tensors):
    header, offset = {"__metadata__": {"format": "pt"}}, 0
    for name, (dtype, shape) in tensors.items():
        size = {"BF16": 2, "F32": 4, "I8": 1}[dtype]
        for dim in shape:
            size *= dim
        header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [offset, offset + size]}
        offset += size
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text


@pytest.fixture
def cache(tmp_path, monkeypatch):
    for name in ("HF_HOME", "HF_TOKEN", "HF_ENDPOINT", "HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def put(cache, repository, files, revision="0123abcd"):
    folder = cache / ("models--" + repository.replace("/", "--"))
    (folder / "refs").mkdir(parents=True)
    (folder / "refs" / "main").write_text(revision)
    snapshot = folder / "snapshots" / revision
    snapshot.mkdir(parents=True)
    for name, content in files.items():
        (snapshot / name).write_bytes(content if isinstance(content, bytes) else json.dumps(content).encode())


def test_the_cache_is_read_by_path_without_any_library(cache, monkeypatch):
    put(cache, "some/model", {"config.json": CONFIG})
    monkeypatch.setattr(hub, "_client", lambda repository: pytest.fail("the library was asked"))
    assert hub.find_config("some/model") == (CONFIG, "Hugging Face cache (some/model)")


def test_find_uses_the_cache(cache):
    from memplan.planner.inputs.models import find

    put(cache, "some/model", {"config.json": CONFIG})
    model = find("some/model")
    assert model.config == CONFIG and model.source == "Hugging Face cache (some/model)"


def test_exact_dtypes_come_from_headers_and_fill_a_config_that_names_none(cache):
    tensors = {"a": ("BF16", (64, 100)), "b": ("F32", (3,)), "c": ("I8", (5, 5))}
    put(cache, "some/model", {"config.json": CONFIG, "model.safetensors": safetensors(tensors)})
    found = list(hub.cached_tensors("some/model"))
    assert hub.parameters_by_dtype(found) == {"bfloat16": 6400, "int8": 25, "float32": 3}
    assert hub.find_config("some/model")[0]["dtype"] == "bfloat16"


def test_sharded_headers(cache):
    index = {"weight_map": {"a": "model-1.safetensors", "b": "model-2.safetensors"}}
    shards = {
        "model-1.safetensors": safetensors({"a": ("F32", (2, 3))}),
        "model-2.safetensors": safetensors({"b": ("F32", (4,))}),
    }
    put(cache, "some/model", {"config.json": CONFIG, "model.safetensors.index.json": index, **shards})
    assert hub.parameters_by_dtype(list(hub.cached_tensors("some/model"))) == {"float32": 10}


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"12345678",
        struct.pack("<Q", 10**12),
        struct.pack("<Q", 4) + b"{{{{",
        struct.pack("<Q", 13) + b'{"a": {"x":1}',
    ],
)
def test_a_broken_header_is_one_message(tmp_path, content):
    _refused(tmp_path, content)


@pytest.mark.parametrize("sizes", [[1] * 10**6, [1] * 65, [2**63, 2], [1.5], ["1"], [-1]])
def test_a_header_with_dimensions_that_no_tensor_has_is_refused_at_once(tmp_path, sizes):
    header = json.dumps({"a": {"dtype": "F32", "shape": sizes, "data_offsets": [0, 4]}}).encode()
    started = time.process_time()
    _refused(tmp_path, struct.pack("<Q", len(header)) + header)
    assert time.process_time() - started < 5


def _refused(tmp_path, content):
    path = tmp_path / "x.safetensors"
    path.write_bytes(content)
    with pytest.raises(UsageError, match="x.safetensors"):
        list(hub.read_header(path))


@pytest.mark.parametrize("revision", ["../../..", "/etc", "a b", ""])
def test_a_hostile_ref_does_not_leave_the_cache(cache, revision):
    put(cache, "some/model", {"config.json": CONFIG})
    (cache / "models--some--model" / "refs" / "main").write_text(revision)
    assert hub.cached_file("some/model", "config.json") is None


@pytest.mark.parametrize("name", ["a", "a/b/c", "../b", "a/..", "a b/c", "a/" + "x" * 200])
def test_names_that_are_no_ids(name):
    with pytest.raises(UsageError, match="is not a Hugging Face id"):
        hub.find_config(name)


def test_offline_says_what_to_do(cache, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(NetworkError, match="HF_HUB_OFFLINE forbids") as caught:
        hub.find_config("some/model")
    assert caught.value.exit_code == 3


class Hub(BaseHTTPRequestHandler):
    """The hub's file route, in the mood that the repository's name tells."""

    asked: list[str] = []
    body = json.dumps(CONFIG).encode()
    protocol_version = "HTTP/1.1"

    def do_HEAD(self):
        self.reply(head=True)

    def do_GET(self):
        self.reply(head=False)

    def reply(self, head):
        Hub.asked.append(self.headers.get("authorization", ""))
        mood = self.path.split("/")[2] if self.path.count("/") >= 2 else ""
        codes = {
            "gated": (403, "GatedRepo"),
            "unknown": (401, "RepoNotFound"),
            "missing": (404, "EntryNotFound"),
            "forbidden": (403, ""),
            "busy": (429, ""),
            "broken": (500, ""),
            "gone": (404, "RepoNotFound"),
        }
        if mood == "silent":
            self.server.release.wait(20)
            self.close_connection = True
            return
        if mood in codes:
            status, code = codes[mood]
            self.send_response(status)
            if code:
                self.send_header("X-Error-Code", code)
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        content = self.body
        self.send_response(200)
        self.send_header("X-Repo-Commit", COMMIT)
        self.send_header("ETag", '"' + "b" * 40 + '"')
        claimed = (
            50_000_000 if mood == "huge" else len(content) + (100 if mood == "truncated" and not head else 0)
        )
        self.send_header("Content-Length", str(claimed))
        self.end_headers()
        if not head:
            self.wfile.write(content[: len(content) // 2] if mood == "truncated" else content)
            self.close_connection = True

    def log_message(self, *args):
        pass


@pytest.fixture
def server(cache, monkeypatch):
    pytest.importorskip("huggingface_hub")
    httpd = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    httpd.daemon_threads = True
    httpd.release = threading.Event()
    thread = threading.Thread(target=httpd.serve_forever, daemon=True)
    thread.start()
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(cache))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(hub, "SECONDS", 1.0)
    monkeypatch.setattr(
        "time.sleep", lambda seconds: None
    )  # the client waits between its own retries; here there is nothing to wait for
    monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{httpd.server_address[1]}")
    monkeypatch.setenv("HF_TOKEN", "hf_thisTokenIsForTheTest")
    Hub.asked = []
    yield httpd
    httpd.release.set()
    httpd.shutdown()
    httpd.server_close()


def test_the_real_client_fetches_a_config_with_the_token_and_then_finds_it_cached(server):
    config, source = hub.find_config("org/good")
    assert config == CONFIG and source == "Hugging Face hub (org/good)"
    assert Hub.asked and all(header == "Bearer hf_thisTokenIsForTheTest" for header in Hub.asked)
    assert hub.find_config("org/good")[1] == "Hugging Face cache (org/good)"


@pytest.mark.parametrize(
    ("mood", "message"),
    [
        ("gated", "it is gated: accept its license"),
        ("unknown", "HTTP 401: the repository does not exist on the hub"),
        ("forbidden", "HTTP 403: your token cannot read it"),
        ("missing", "the repository exists, but the file does not"),
        ("gone", "HTTP 404: the hub has no such repository"),
        ("busy", "HTTP 429: the hub is rate-limiting requests"),
        ("broken", "HTTP 500: the hub had an internal error"),
        ("truncated", "incomplete or unexpected"),
        ("silent", "did not answer within 1 seconds"),
    ],
)
def test_each_fault_is_one_message_with_exit_code_3(server, mood, message):
    with pytest.raises(NetworkError) as caught:
        hub.find_config(f"org/{mood}")
    assert message in str(caught.value) and caught.value.exit_code == 3
    assert "hf_thisToken" not in str(caught.value) and len(str(caught.value)) < 300


def test_a_huge_config_is_not_downloaded(server):
    with pytest.raises(UsageError, match="50,000,000 bytes"):
        hub.find_config("org/huge")


def test_nobody_listening(server, monkeypatch):
    monkeypatch.setenv("HF_ENDPOINT", "http://user:secret@127.0.0.1:9")
    with pytest.raises(NetworkError, match="no connection to") as caught:
        hub.find_config("org/good")
    assert "secret" not in str(caught.value)
