"""What an observed program puts elsewhere than on the computing stream: host memory, and another stream."""

from __future__ import annotations

import weakref
from collections.abc import Iterator
from contextlib import contextmanager

import torch


class Elsewhere:
    """The part of the observer that counts host memory and knows which stream asks."""

    host_bytes = 0
    _on_host_now = 0
    _stream = ""

    def keep_on_host(self, tensor: torch.Tensor, nbytes: int) -> torch.Tensor:
        """Count `nbytes` of host memory for as long as `tensor` lives; returns it."""

        def let_go() -> None:
            self._on_host_now -= nbytes

        self._on_host_now += nbytes
        self.host_bytes = max(self.host_bytes, self._on_host_now)
        weakref.finalize(tensor.untyped_storage(), let_go)
        return tensor

    @contextmanager
    def side_stream(self) -> Iterator[None]:
        """Tensors made inside are another stream's than the computing one's."""
        outer, self._stream = self._stream, "side"
        try:
            yield
        finally:
            self._stream = outer
