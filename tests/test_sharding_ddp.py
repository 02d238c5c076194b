"""DDP's buckets as torch's own reducer makes them, on a fake process group; and the page of strategies."""

from __future__ import annotations

import types
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from memplan.planner.formula.engine import plan
from memplan.planner.formula.sharding import strategies
from memplan.planner.inputs.models import find
from memplan.planner.inputs.setup import resolve

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
accelerate = pytest.importorskip("accelerate")

LLAMA: dict[str, Any] = {
    "model_type": "llama",
    "hidden_size": 64,
    "intermediate_size": 172,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 1003,
    "max_position_embeddings": 64,
}
MODELS = {
    "llama": {**LLAMA, "tie_word_embeddings": False},
    "tied llama": {**LLAMA, "tie_word_embeddings": True},
    "gpt2": {
        "model_type": "gpt2",
        "n_embd": 60,
        "n_layer": 3,
        "n_head": 4,
        "vocab_size": 1003,
        "n_positions": 64,
    },
}


@pytest.fixture
def ranks() -> Iterator[Callable[[int], None]]:
    """Makes this process rank 0 of N, the others imaginary."""
    from torch import distributed
    from torch.testing._internal.distributed.fake_pg import FakeStore

    yield lambda count: distributed.init_process_group("fake", rank=0, world_size=count, store=FakeStore())
    distributed.destroy_process_group()


@pytest.mark.parametrize(
    "name, cap, count", [*((name, cap, 2) for name in MODELS for cap in (0.02, 25)), ("llama", 25, 1)]
)
@pytest.mark.filterwarnings("ignore")
def test_buckets_hold_every_gradient_once_whatever_their_size(
    name: str, cap: float, count: int, ranks: Callable[[int], None]
):
    """A plain loop that calls DDP: one process has buckets too."""
    ranks(count)
    config = MODELS[name]
    model = transformers.AutoModelForCausalLM.from_config(
        transformers.AutoConfig.for_model(**config), dtype=torch.bfloat16
    )
    wrapped = torch.nn.parallel.DistributedDataParallel(model, bucket_cap_mb=cap)
    sizes: list[int] = []

    def reduced(_, bucket):  # torch checks annotations: none are written
        """In the place of an all-reduce, which imaginary ranks do not answer."""
        sizes.append(bucket.buffer().untyped_storage().nbytes())
        done = torch.futures.Future()
        done.set_result(bucket.buffer())
        return done

    wrapped.register_comm_hook(None, reduced)
    ids = torch.randint(0, 1003, (1, 8))
    for _ in range(2):  # buckets are made again in the order in which gradients came
        sizes.clear()
        wrapped(input_ids=ids, labels=ids).loss.backward()
    setup = resolve(
        {
            "method": "full",
            "recipe": "raw",
            "gpus": count,
            "parallel": "ddp",
            "device": "cpu",
            "sequence_length": 8,
        }
    )
    found = plan(find(config).spec(), setup)
    buckets = sum(row.bytes for row in found.moment("load").rows if row.name.endswith(" bucket"))
    assert sum(sizes) == buckets
    assert len(sizes) > 1 if cap < 1 else len(sizes) <= 2


def test_accelerate_does_not_wrap_one_process():
    from accelerate import Accelerator

    one, two = (
        types.SimpleNamespace(use_distributed=n > 1, distributed_type=accelerate.DistributedType.MULTI_GPU)
        for n in (1, 2)
    )
    assert not Accelerator.multi_device.fget(one) and Accelerator.multi_device.fget(two)  # type: ignore[attr-defined]
    state = types.SimpleNamespace(distributed_type=accelerate.DistributedType.MULTI_GPU, num_processes=1)
    assert not accelerate.PartialState.use_distributed.fget(state), (
        "torchrun with one process is a type, and still one process"
    )
    alone, single = (
        plan(find("llama-7b").spec(), resolve({"method": "full", **extra}))
        for extra in ({"parallel": "ddp"}, {})
    )
    assert alone.peak == single.peak and alone.moments == single.moments
    assert any("does not wrap" in line for line in strategies.warnings("formula", alone.setup))
    assert not any("one rank of" in line for line in alone.assumptions)


def test_the_page_of_strategies_is_not_stale():
    page = (Path(__file__).parent.parent / "docs" / "parallel.md").read_text(encoding="utf-8")
    assert page == strategies.page(), (
        "run: python -m memplan.planner.formula.sharding.strategies > docs/parallel.md"
    )


def test_one_rank_alone_and_the_older_fsdp_are_said():
    alone = strategies.warnings("formula", resolve({"parallel": "zero2"}))
    assert any("--gpus N" in warning for warning in alone)
    eight = strategies.warnings("formula", resolve({"parallel": "fsdp1", "gpus": 8, "method": "dora"}))
    assert any("FSDP1" in warning for warning in eight) and not any(
        "--gpus N" in warning for warning in eight
    )


def test_the_trace_has_the_formulas_buckets() -> None:
    """Also where layers are synthesized."""
    pytest.importorskip("peft")
    from memplan.planner.trace.engine import trace

    config = {**LLAMA, "tie_word_embeddings": False, "num_hidden_layers": 8}
    setup = resolve({"method": "full", "parallel": "ddp", "gpus": 2, "sequence_length": 32})
    traced, found = trace(config, setup), plan(find(config).spec(), setup)
    alone = trace(config, setup.replaced(parallel="none", gpus=1))

    def kept(prediction: Any) -> int:
        rows = prediction.moment("backward").rows
        return sum(row.bytes for row in rows if row.name.endswith("bucket"))

    assert kept(traced) == kept(found) > 0 == kept(alone)
    assert traced.extra["traced_layers"] is not None and traced.extra["traced_layers"] < 8
    charged = sum(row.charged for row in traced.moment("backward").rows if row.name.endswith("bucket"))
    assert traced.step_peak.allocated_bytes - alone.step_peak.allocated_bytes == charged >= kept(traced)
