"""--random-weights: from_pretrained reads a checkpoint that holds nothing, made from the config.

Its files have a real header and a hole for their data, so that transformers loads them as it loads any
checkpoint: in its order, with its warm-up, its quantization and its device map.
"""

import copy
import json
import os
import sys

import torch

SHARD = 5 * 10**9
"""Bytes of a file at most, as on the hub: a mapping larger than the machine's memory is refused."""
_NAMES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}


def install(modeling):
    """In place of the search for a checkpoint's files, where a model is named at all."""
    original = modeling._get_resolved_checkpoint_files

    def resolved(pretrained_model_name_or_path=None, *args, **kwargs):
        around = sys._getframe(1).f_locals
        if pretrained_model_name_or_path is None or "cls" not in around or "config" not in around:
            return original(pretrained_model_name_or_path, *args, **kwargs)
        return write_checkpoint(around["cls"], around["config"]), None

    modeling._get_resolved_checkpoint_files = resolved


def write_checkpoint(cls, config):
    """The paths of a checkpoint for the model that `cls` builds of that config."""
    config = copy.deepcopy(config)
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    dtype = config.dtype if isinstance(getattr(config, "dtype", None), torch.dtype) else torch.bfloat16
    with torch.device("meta"):
        model = cls(config)
    paths, header, place = [], {}, 0
    for name, shape, kind in tensors_of(model, dtype):
        size = torch.Size(shape).numel() * kind.itemsize
        if header and place + size > SHARD:
            paths.append(_write(header, place))
            header, place = {}, 0
        header[name] = {"dtype": _NAMES[kind], "shape": list(shape), "data_offsets": [place, place + size]}
        place += size
    return [*paths, _write(header, place)]


def _write(header, nbytes):
    """The path of a file with that header and a hole of so many bytes."""
    text = json.dumps({"__metadata__": {"format": "pt"}, **header}).encode()
    text += b" " * (-len(text) % 8)
    folder = os.environ["MEMPLAN_DRYRUN_REPORTS"]
    path = os.path.join(folder, f"random-{os.getpid()}-{len(os.listdir(folder))}.safetensors")
    with open(path, "wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.truncate(8 + len(text) + nbytes)
    return path


def tensors_of(model, dtype):
    """(name, shape, dtype) of what a checkpoint of the model holds: tied weights once."""
    seen = set()
    tied = getattr(model, "all_tied_weights_keys", None) or {}
    for name, tensor in model.state_dict(keep_vars=True).items():
        if id(tensor) in seen or (name in tied and getattr(model.config, "tie_word_embeddings", False)):
            continue
        seen.add(id(tensor))
        yield name, tuple(tensor.shape), dtype if tensor.dtype.is_floating_point else tensor.dtype
