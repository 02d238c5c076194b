"""A seeded sample of architecture x recipe x method x attention x checkpointing x loss x dtypes: where the
trace runs, the real tiny model's step holds the same bytes; where it refuses, the real step fails too;
nothing crashes, and no failure is the trace's own.
"""

import random

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")
pytest.importorskip("peft")
pytest.importorskip("bitsandbytes")

from test_trace_architectures import ARCHITECTURES, LONG, config_of  # noqa: E402
from transformers import CONFIG_MAPPING  # noqa: E402

from memplan.planner.inputs.setup import resolve  # noqa: E402
from memplan.planner.tables.errors import UsageError  # noqa: E402

pytestmark = pytest.mark.trace

CHOICES = {
    "recipe": ("raw", "hf", "hf", "trl", "axolotl", "llamafactory"),
    "method": (
        "full",
        "full",
        "lora",
        "lora",
        "qlora",
        "dora",
        "adalora",
        "freeze",
        "adapter",
        "prefix-tuning",
        "lora-fa",
    ),
    "attention": ("eager", "sdpa", "sdpa", "sdpa-math"),
    "checkpointing": ("none", "non_reentrant", "reentrant"),
    "loss": ("full", "full", "chunked", "fused"),
    "weight_dtype": ("float32", "bfloat16", "float16"),
    "autocast": ("none", "bfloat16", "float16"),
    "optimizer": ("adamw_torch_fused", "adamw_torch_fused", "sgd", "adafactor"),
    "micro_batch": (1, 2),
    "sequence_length": (16, 32),
    "gradient_accumulation": (1, 1, 1, 2),
    "checkpoint_every": (1, 1, 1, 2),
}
ADAPTED = {"targets": ("all-linear", "all-linear", "attention"), "rank": (4,), "dropout": (0.0, 0.0, 0.1)}
ON_A_CPU_ALONE = (
    "mixed dtype (CPU)"  # layer norms of a GPU take 16-bit weights with fp32 inputs, and autocast casts both
)


# What the real step saves more or less than the trace says, and why: number of a case -> sizes.
# 105: PLBart, packed: it makes a mask of ones itself, and the trace's answer to "all ones?" is that of packed
# rows.
APART = {105: {512: 1}}


def case(number):
    """(model_type, fields) of one case; another architecture in the list leaves the others' cases as they
    are.
    """
    rng = random.Random(f"trace-{number}")
    model_type = min(
        sorted(set(ARCHITECTURES) - LONG), key=lambda name: random.Random(f"{number} {name}").random()
    )
    fields = {key: rng.choice(values) for key, values in CHOICES.items()} | {"device": "cpu"}
    rows = rng.choice(({}, {}, {"padded": True}, {"packed_documents": 2}))
    if fields["method"] in ("lora", "qlora", "dora", "adalora", "lora-fa"):
        fields |= {key: rng.choice(values) for key, values in ADAPTED.items()}
    return model_type, fields | rows


def outcome(run, *args):
    """What a step holds, or why it does not run."""
    try:
        return run(*args)
    except (UsageError, RuntimeError, TypeError, ValueError, AttributeError) as error:
        return error


FAST = (3, 4, 6, 7, 12, 13, 15, 20, 58)


@pytest.mark.parametrize(
    "number", [pytest.param(n, marks=[] if n in FAST else pytest.mark.slow) for n in range(160)]
)
def test_a_sampled_step_is_the_real_one_or_refused_as_the_real_one_is(number, held):
    model_type, fields = case(number)
    if model_type not in CONFIG_MAPPING:
        pytest.skip(f"this transformers has no {model_type}")
    config, setup = config_of(model_type), resolve(fields)
    found, truth = outcome(held.traced, config, setup), outcome(held.real, config, setup)
    if isinstance(found, Exception):
        assert isinstance(found, UsageError), "a crash"
        assert isinstance(truth, Exception), f"refused, and the real step runs: {found}"
    elif isinstance(truth, Exception):
        assert ON_A_CPU_ALONE in str(truth), "the real step fails"
    else:
        if (
            fields["method"] == "prefix-tuning"
        ):  # its indices are on the host: a copy, where the device is another one
            found.saved[setup.virtual_tokens * setup.micro_batch * 8] -= 1
        found.saved.subtract(APART.get(number, {}))
        found.saved = +found.saved
        assert found.differences(truth) == {}
