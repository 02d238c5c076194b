"""Fields: checked reads of a parsed config.json. A user's mistake is one UsageError naming the key, the value
and what was expected.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NoReturn

from memplan.planner.tables.errors import UsageError, nearest, shorten, shown

MOST_SIZE = 10**8  # the largest vocabulary or width that is believed
MOST_LAYERS = 10_000
MOST_HEADS = 65_536

# The names in transformers' ACT2FN (transformers/activations.py, 5.23).
ACTIVATIONS = (
    "gelu",
    "gelu_10",
    "gelu_accurate",
    "gelu_fast",
    "gelu_new",
    "gelu_python",
    "gelu_pytorch_tanh",
    "gelu_python_tanh",
    "laplace",
    "leaky_relu",
    "linear",
    "mish",
    "quick_gelu",
    "relu",
    "relu2",
    "relu6",
    "sigmoid",
    "silu",
    "swish",
    "tanh",
    "xielu",
)


class Fields:
    """A config with checked reads. Null counts as absent, as in transformers' own config classes."""

    def __init__(self, config: Mapping[str, Any], name: str) -> None:
        self.config = config
        self.name = name
        self.notes: list[str] = []

    def has(self, key: str) -> bool:
        """Whether the config sets this key to anything but null."""
        return self.config.get(key) is not None

    def refuse(self, key: str, value: object, expected: str) -> NoReturn:
        """Raise the UsageError for `key`; a missing key is answered with similar keys that the config does
        have.
        """
        if value is None:
            close = [k for k in nearest(key, (k for k in self.config if isinstance(k, str))) if k != key]
            hint = f" (the config has {', '.join(shorten(k, 40) for k in close)})" if close else ""
            raise UsageError(
                f"config of '{shorten(self.name)}': key {key} is missing, expected {expected}{hint}"
            )
        raise UsageError(f"config of '{shorten(self.name)}': {key} = {shown(value)}, expected {expected}")

    def size(
        self,
        *keys: str,
        default: int | None = None,
        assumed: int | None = None,
        least: int = 1,
        most: int = MOST_SIZE,
    ) -> int:
        """An integer in [least, most] under the first of `keys` that is present.

        `default` is what the config class computes from other keys, and stays silent; `assumed` is a plain
        number in the config class that publishers rely on by leaving the key out, and leaves a note.
        """
        key = next((k for k in keys if self.has(k)), keys[0])
        value = self.config.get(key)
        if value is None and assumed is not None:
            self.notes.append(
                f"{key} {assumed}: transformers' default for {self.config.get('model_type')}, as the config "
                "leaves it out"
            )
        value = next((v for v in (value, default, assumed) if v is not None), None)
        if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
            self.refuse(key, value, f"an integer from {least} to {most}")
        return value

    def layers(self, *keys: str) -> int:
        """The number of decoder layers."""
        return self.size(*(keys or ("num_hidden_layers",)), most=MOST_LAYERS)

    def maybe_size(self, key: str, least: int = 1) -> int | None:
        """As `size`, but None where the key is absent or null."""
        return self.size(key, least=least) if self.has(key) else None

    def flag(self, key: str, default: bool) -> bool:
        """A truth value of the config, or the default. Raises UsageError for any other type."""
        value = self.config.get(key)
        if value is None:
            return default
        if not isinstance(value, bool):
            self.refuse(key, value, "true or false")
        return value

    def number(self, key: str, default: float | None = None) -> float | None:
        """A finite positive number, or `default`."""
        value = self.config.get(key)
        if value is None:
            return default
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < 1e12:
            self.refuse(key, value, "a positive number")
        return float(value)

    def softcap(self, key: str, default: float | None) -> float | None:
        """As `number`, except that an explicit null switches the cap off."""
        return self.number(key, None if key in self.config else default)

    def fraction(self, key: str, default: float = 0.0) -> float:
        """A probability in [0, 1), such as a dropout."""
        value = self.config.get(key)
        if value is None:
            return default
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < 1:
            self.refuse(key, value, "a probability from 0 to below 1")
        return float(value)

    def activation(self, *keys: str, default: str | None = None) -> str:
        """The name of the MLP's activation function."""
        key = next((k for k in keys if self.has(k)), keys[0])
        value = self.config.get(key, default) if self.has(key) else default
        if not isinstance(value, str) or value not in ACTIVATIONS:
            close = nearest(value, ACTIVATIONS) if isinstance(value, str) else []
            self.refuse(key, value, f"an activation such as {', '.join(close or ('silu', 'gelu', 'relu'))}")
        return value

    def names(self, key: str, count: int, legal: Iterable[str]) -> Sequence[str] | None:
        """A list of `count` names out of `legal` (layer_types), or None where the key is absent."""
        value = self.config.get(key)
        if value is None:
            return None
        known = tuple(legal)
        if not isinstance(value, list) or len(value) < count:
            self.refuse(key, value, f"a list of {count} names, one for each layer")
        wrong = next((v for v in value[:count] if not isinstance(v, str) or v not in known), None)
        if wrong is not None:
            self.refuse(key, wrong, f"each entry one of {', '.join(known)}")
        return value[:count]

    def indices(self, key: str, count: int) -> frozenset[int]:
        """A list of layer indices (mlp_only_layers); empty where the key is absent."""
        value = self.config.get(key)
        if value is None:
            return frozenset()
        if not isinstance(value, list) or any(
            isinstance(v, bool) or not isinstance(v, int) or v < 0 for v in value
        ):
            self.refuse(key, value, f"a list of layer indices below {count}")
        return frozenset(value)

    def heads(
        self,
        *,
        kv: str | None = "num_key_value_heads",
        kv_default: int | None = None,
        head_dim: int | None = None,
        assumed: int | None = None,
        own_dim: bool = True,
    ) -> tuple[int, int, int]:
        """(A, K, D): attention heads, key-value heads and head size, checked against each other and against
        hidden_size.

        `kv_default` and `head_dim` are the config class's own defaults (None: as many key-value heads as
        heads, and hidden_size / heads); `assumed` is A where publishers leave even that out. `kv` None and
        `own_dim` False are for families whose modeling code does not read num_key_value_heads or head_dim.
        """
        a = self.size("num_attention_heads", "n_head", assumed=assumed, most=MOST_HEADS)
        k = self.size(kv, default=None if kv_default else a, assumed=kv_default) if kv else a
        if kv and (k > a or a % k):
            self.refuse(kv, k, f"a divisor of num_attention_heads {a}")
        d = (self.maybe_size("head_dim") if own_dim else None) or head_dim
        if d is None:
            hidden = self.size("hidden_size", "n_embd", "n_embed")
            if hidden % a:
                self.refuse(
                    "num_attention_heads", a, f"a divisor of hidden_size {hidden}, as there is no head_dim"
                )
            d = hidden // a
        return a, k, d

    def rotary(self, head_dim: int, *keys: str, default: float = 1.0) -> int:
        """Elements of each head that rotary embedding turns: head_dim x partial_rotary_factor.

        The factor is in `rope_parameters` (transformers 5) or beside it, under `keys` in older configs.
        """
        rope = self.config.get("rope_parameters")
        nested = rope.get("partial_rotary_factor") if isinstance(rope, Mapping) else None
        key = next((k for k in (*keys, "partial_rotary_factor") if self.has(k)), "partial_rotary_factor")
        factor = nested if nested is not None else self.config.get(key, default)
        factor = default if factor is None else factor
        if isinstance(factor, bool) or not isinstance(factor, int | float) or not 0 < factor <= 1:
            self.refuse(key, factor, "a fraction above 0 and at most 1")
        return int(head_dim * factor)

    def dtype(self) -> str | None:
        """The dtype that the checkpoint is stored in, where the config says so."""
        value = self.config.get("dtype") or self.config.get("torch_dtype")
        if value is None:
            return None
        text = value.removeprefix("torch.") if isinstance(value, str) else value
        if text not in ("float32", "float16", "bfloat16"):
            self.refuse("dtype", value, "float32, float16 or bfloat16")
        return str(text)
