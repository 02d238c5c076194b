"""A model with only some of its decoder layers: the trace's few stand for all, in the models beside the
trained one too where they are built alike.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import nn

from memplan.planner.run.model import layer_list, layer_place


def cut_like(model: nn.Module, trained: nn.Module) -> None:
    """Leave the layers that `trained` has, which was made from the same config."""
    (path, layers), left = layer_list(model) or ("", nn.ModuleList()), layer_list(trained)
    places = [layer_place(layer) for layer in left[1]] if left else []
    if len(places) < len(layers):
        parent, _, name = path.rpartition(".")
        prune(model.get_submodule(parent), name, layers, places, configs_around(model, path))


def prune(
    parent: nn.Module, name: str, layers: nn.ModuleList, keep: Sequence[int], configs: Sequence[Any]
) -> None:
    """Leave only the layers `keep` in the model, renumbered; each remembers its place as `memplan_index`."""
    depth = len(layers)
    for new, old in enumerate(keep):
        layers[old].memplan_index = old  # type: ignore[assignment]
        for module in layers[old].modules():
            for key in ("layer_idx", "layer_id"):
                if vars(module).get(key) == old:
                    setattr(module, key, new)
    setattr(parent, name, nn.ModuleList([layers[index] for index in keep]))
    for config in configs:
        for key, value in list(vars(config).items()):
            if isinstance(value, (list, tuple)) and len(value) == depth:
                config.__dict__[key] = type(value)(value[index] for index in keep)
            elif key in ("num_hidden_layers", "n_layer", "n_layers", "num_layers") and value == depth:
                config.__dict__[key] = len(keep)


def configs_around(model: Any, path: str) -> list[Any]:
    """The configurations that the modules around a path were made from; those of other parts (a tower of as
    many layers) are left as they are.
    """
    parts = path.split(".")
    around = (model.get_submodule(".".join(parts[:count])) for count in range(len(parts)))
    found = {
        id(config): config for module in around if (config := getattr(module, "config", None)) is not None
    }
    return list(found.values())
