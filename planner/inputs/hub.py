"""Models by Hugging Face id: the local cache first, by path and without any library, then the hub through
huggingface_hub.

Only config.json and the headers of cached safetensors files are read, never a weight, and nothing from a
repository is run. `HF_HUB_CACHE`, `HF_HOME`, `HF_ENDPOINT`, `HF_TOKEN`, `HF_HUB_OFFLINE` and
`TRANSFORMERS_OFFLINE` are honored; a failure is one NetworkError (exit code 3).
"""

from __future__ import annotations

import os
import re
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from memplan.planner.inputs.download import DEADLINE, fetch, keep
from memplan.planner.inputs.jsonfile import MOST_BYTES, parse_json, read_json
from memplan.planner.inputs.textfile import open_regular
from memplan.planner.tables.errors import MemplanError, NetworkError, UsageError, shorten

REPOSITORY = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,95}/[A-Za-z0-9._-]{1,96}")
LARGEST_HEADER = 2**25
"""Bytes of a safetensors header: 200,000 tensors; the format itself allows 100 MB."""
MOST_VALUES = 2_000_000
MOST_DIMENSIONS = 64
"""Dimensions of a tensor: more than any operation of torch takes."""
SECONDS = 10.0  # to wait for the hub's first word
DTYPES = {
    "BF16": "bfloat16",
    "F16": "float16",
    "F32": "float32",
    "F64": "float64",
    "I8": "int8",
    "U8": "uint8",
    "I16": "int16",
    "I32": "int32",
    "I64": "int64",
    "BOOL": "bool",
    "F8_E4M3": "float8_e4m3fn",
    "F8_E5M2": "float8_e5m2",
}


@dataclass(frozen=True, slots=True)
class StoredTensor:
    """One tensor of a checkpoint as its safetensors header has it; `dtype` in torch's words, or the header's
    where torch has none.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]

    @property
    def elements(self) -> int:
        """The number of elements of this tensor."""
        count = 1
        for size in self.shape:
            count *= size
        return count


def find_config(repository: str) -> tuple[dict[str, Any], str]:
    """The config.json of a repository and where it came from: the local cache, else the hub. Raises
    UsageError, NetworkError.
    """
    check_name(repository)
    cached = cached_file(repository, "config.json")
    if cached is not None:
        return _with_dtype(
            read_json(cached), lambda: list(cached_tensors(repository))
        ), f"Hugging Face cache ({repository})"
    content = download(repository, "config.json")
    return _with_dtype(_config(repository, content), list), f"Hugging Face hub ({repository})"


def parameters_by_dtype(tensors: list[StoredTensor]) -> dict[str, int]:
    """How many elements a checkpoint stores in each dtype, most first."""
    counts: dict[str, int] = {}
    for tensor in tensors:
        counts[tensor.dtype] = counts.get(tensor.dtype, 0) + tensor.elements
    return dict(sorted(counts.items(), key=lambda item: -item[1]))


def check_name(repository: str) -> None:
    """UsageError where a text cannot be a repository's id."""
    if not REPOSITORY.fullmatch(repository) or ".." in repository:
        raise UsageError(f"'{shorten(repository)}' is not a Hugging Face id: expected organization/name")


def cache_folder() -> Path:
    """Where the Hugging Face libraries keep downloads: HF_HUB_CACHE, HF_HOME/hub, else huggingface/hub under
    XDG_CACHE_HOME or ~/.cache.
    """
    if os.environ.get("HF_HUB_CACHE"):
        return Path(os.environ["HF_HUB_CACHE"]).expanduser()
    home = os.environ.get("HF_HOME")
    base = (
        Path(home)
        if home
        else Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "huggingface"
    )
    return base.expanduser() / "hub"


def cached_file(repository: str, name: str) -> Path | None:
    """A file of a repository's main revision in the local cache, None where it is not there. Stays inside the
    cache folder.
    """
    folder = cache_folder() / ("models--" + repository.replace("/", "--"))
    try:
        revision = (folder / "refs" / "main").read_text(encoding="utf-8").strip()
        if (
            not re.fullmatch(r"[0-9a-zA-Z._-]{1,80}", revision)
            or ".." in revision
            or not re.fullmatch(r"[\w.-]+", name)
        ):
            return None
        path = folder / "snapshots" / revision / name
        return path if path.is_file() and path.resolve().is_relative_to(folder.parent.resolve()) else None
    except (OSError, ValueError):
        return None


def cached_tensors(repository: str) -> Iterator[StoredTensor]:
    """The tensors of the safetensors files that the cache holds; none where a shard is missing."""
    single = cached_file(repository, "model.safetensors")
    if single is not None:
        yield from read_header(single)
        return
    index = cached_file(repository, "model.safetensors.index.json")
    if index is None:
        return
    names = {str(name) for name in _mapping(read_json(index).get("weight_map")).values()}
    shards = [cached_file(repository, name) for name in sorted(names)]
    if all(shard is not None for shard in shards):
        for shard in shards:
            if shard is not None:
                yield from read_header(shard)


def read_header(path: Path) -> Iterator[StoredTensor]:
    """The tensors that a safetensors file's header lists; its data is not read. Raises UsageError where it is
    not such a file.

    Format: 8 bytes little-endian length, then that many bytes of JSON (safetensors 0.8, format
    documentation).
    """
    name = shorten(path.name)
    with open_regular(path) as file:
        start = file.read(8)
        length = struct.unpack("<Q", start)[0] if len(start) == 8 else 0
        if not 2 <= length <= LARGEST_HEADER:
            raise UsageError(f"'{name}' is not a safetensors file")
        content = file.read(length)
    try:
        header = parse_json(content.decode("utf-8"), name, MOST_VALUES)
    except ValueError:
        raise UsageError(f"'{name}' has no readable safetensors header") from None
    for tensor, entry in _mapping(header).items():
        if tensor != "__metadata__":
            shape, dtype = _mapping(entry).get("shape"), _mapping(entry).get("dtype")
            if (
                not isinstance(shape, list)
                or len(shape) > MOST_DIMENSIONS
                or not all(isinstance(size, int) and 0 <= size < 2**40 for size in shape)
            ):
                raise UsageError(f"'{name}' has a tensor without a shape")
            yield StoredTensor(str(tensor), DTYPES.get(str(dtype), shorten(str(dtype))), tuple(shape))


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


def _with_dtype(config: dict[str, Any], tensors: Any) -> dict[str, Any]:
    """A config that names no dtype gets the one that most of its checkpoint is stored in, where a header says
    so.
    """
    if config.get("dtype") or config.get("torch_dtype"):
        return config
    try:
        stored = parameters_by_dtype(tensors())
    except MemplanError:
        stored = {}
    floats = [name for name in stored if name in ("bfloat16", "float16", "float32")]
    return {**config, "dtype": floats[0]} if floats else config


def offline() -> bool:
    """Whether the environment forbids the network."""
    return any(
        os.environ.get(name, "").upper() in ("1", "ON", "YES", "TRUE")
        for name in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE")
    )


def download(repository: str, name: str) -> bytes:
    """One small file of a repository through the real client's session, kept in its cache. Raises
    NetworkError naming the remedy, UsageError for a file larger than a config can be.
    """
    client = _client(repository)
    endpoint, token = os.environ.get("HF_ENDPOINT") or None, os.environ.get("HF_TOKEN") or None
    try:
        url = client.hf_hub_url(repository, name, endpoint=endpoint)
        found = fetch(client, url, token, MOST_BYTES, SECONDS)
    except MemplanError as error:
        raise type(error)(f"{repository}: {name} {error}") from None
    except Exception as error:  # the client's errors come from several libraries: each ends as one message
        raise explain(repository, name, error) from None
    keep(cache_folder(), repository, name, found)
    return found.content


def _config(repository: str, content: bytes) -> dict[str, Any]:
    """The config.json that the hub sent. NetworkError where it is none: a proxy or a login page answered."""
    try:
        value = parse_json(content.decode("utf-8-sig"), f"config.json of {repository}", infinity=True)
    except ValueError:
        value = None
    if not isinstance(value, dict):
        raise NetworkError(
            f"{repository}: what {_endpoint()} sent as config.json is not a JSON object: try again"
        )
    return value


def _client(repository: str) -> Any:
    if offline():
        raise NetworkError(
            f"{repository} is not in the local Hugging Face cache, and HF_HUB_OFFLINE forbids asking the "
            "hub: "
            "unset it, download the model's config.json first, or give its path"
        )
    try:
        import huggingface_hub
    except ImportError:
        raise UsageError(
            f"{repository} is neither in the catalog nor in the local cache, and asking the hub needs: "
            "pip install huggingface_hub; or give the path of its config.json"
        ) from None
    return huggingface_hub


ADVICE = {
    401: "the repository does not exist on the hub, or it is private: check the name, or set "
    "HF_TOKEN if you have access",
    403: "your token cannot read it: request access on its page, or use a token with access",
    404: "the hub has no such repository or file: check the name",
    429: "the hub is rate-limiting requests: try again later",
}


def explain(repository: str, name: str, error: BaseException) -> NetworkError:
    """One sentence for whatever the client raised: gated, missing, refused, broken or silent, each with the
    next move.
    """
    from huggingface_hub import errors

    where = f"{repository}: cannot read {name} from the hub"
    status = getattr(getattr(error, "response", None), "status_code", None)
    if isinstance(error, errors.GatedRepoError):
        return NetworkError(
            f"{where}: it is gated: accept its license on its page and set HF_TOKEN, or give a "
            "config.json's path"
        )
    if isinstance(error, errors.LocalEntryNotFoundError):
        return NetworkError(
            f"{where}: no connection to {_endpoint()}: check the network, or give the path of a config.json"
        )
    if isinstance(error, errors.EntryNotFoundError):
        return NetworkError(f"{where}: the repository exists, but the file does not")
    if status is not None:
        advice = ADVICE.get(
            status, "the hub had an internal error: try again later" if status >= 500 else "unexpected"
        )
        return NetworkError(f"{where}: HTTP {status}: {advice}")
    if isinstance(error, errors.NotASafetensorsRepoError):
        return NetworkError(f"{where}: it has no safetensors files")
    word = type(error).__name__
    if word == "DeadlineTimeout":
        return NetworkError(f"{where}: {_endpoint()} sent no whole answer within {DEADLINE:.0f} seconds")
    if "Timeout" in word:
        return NetworkError(f"{where}: {_endpoint()} did not answer within {SECONDS:.0f} seconds")
    if "Connect" in word or "Network" in word:
        return NetworkError(
            f"{where}: no connection to {_endpoint()}: check the network, or give the path of a config.json"
        )
    return NetworkError(f"{where}: the response was incomplete or unexpected ({word}): try again")


def _endpoint() -> str:
    address = os.environ.get("HF_ENDPOINT") or "https://huggingface.co"
    return shorten(re.sub(r"//[^/@]*@", "//", address), 60)
