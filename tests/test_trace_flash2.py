"""flash_attention_2 in the trace: every architecture that transformers gives the package runs through its own
code, the others are refused with the library's reason. Which is which is read off the classes, not off a list
of ours.
"""

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")
pytest.importorskip("peft")

from test_trace_architectures import ARCHITECTURES, config_of, sampled  # noqa: E402
from transformers import CONFIG_MAPPING  # noqa: E402

from memplan.planner.inputs.setup import resolve  # noqa: E402
from memplan.planner.run.model import model_class, read_config  # noqa: E402
from memplan.planner.tables.errors import UsageError  # noqa: E402
from memplan.planner.trace.device.target import target_of  # noqa: E402
from memplan.planner.trace.events.record import record  # noqa: E402

pytestmark = pytest.mark.trace

OTHER_REASONS = {
    "gemma4_unified": "head sizes up to 256, found 512",
    "gemma4_unified_text": "head sizes up to 256, found 512",
    "gemma4_text": "head sizes up to 256, found 512",
    "hrm_text": "prefix_lm=True",
}
OLD_CLASSES = (
    "falcon",
    "gpt_neo",
)  # a table of attention classes, one of which calls the package itself


def refusal(model_type):
    """What transformers has against the package for this architecture; None where it takes it."""
    cls = model_class(read_config(config_of(model_type)))
    if not cls._supports_flash_attn:
        return "does not support Flash Attention 2"
    listed = getattr(cls, "_compatible_flash_implementations", None)
    return (
        f"takes {listed[0]} here"
        if listed and "flash_attention_2" not in listed
        else OTHER_REASONS.get(model_type)
    )


def streams(model_type, **fields):
    setup = resolve(
        {
            "method": "full",
            "micro_batch": 1,
            "sequence_length": 16,
            "attention": "flash_attention_2",
            **fields,
        }
    )
    return record(config_of(model_type), setup, target_of(setup), full=True)[0]


ALWAYS = (*OLD_CLASSES, "bloom", "gpt_oss", "mimo_v2_flash", "llama", "qwen2_vl", "deepseek_v3", "gemma2")


@pytest.mark.parametrize("model_type", sampled(ARCHITECTURES, always=ALWAYS, share=20))
def test_the_package_runs_where_transformers_takes_it(model_type):
    if model_type not in CONFIG_MAPPING:
        pytest.skip(f"this transformers has no {model_type}")
    refused = refusal(model_type)
    if refused is None:
        assert streams(model_type).storages
        return
    with pytest.raises(UsageError, match=refused) as caught:
        streams(model_type)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("model_type", OLD_CLASSES)
def test_an_older_attention_class_saves_the_packages_tensors(model_type):
    rows = [
        s for s in streams(model_type).storages if s.saved and s.moment == "forward" and s.dtype == "float32"
    ]
    assert any(s.shape == (1, 4, 16) for s in rows), "a log-sum-exp for each of four heads and 16 tokens"
    assert not any(s.shape == (1, 4, 16, 16) for s in rows), "no scores"


@pytest.mark.parametrize(
    ("model_type", "fields", "statistics"),
    [
        (model_type, fields, statistics)
        for model_type in ("llama", "falcon")
        for fields, statistics in (
            ({}, (1, 4, 16)),
            ({"padded": True}, (4, 14)),
            ({"packed_documents": 3, "recipe": "raw"}, (4, 16)),
        )
    ],
)
def test_rows_are_unpadded_and_documents_flattened(model_type, fields, statistics):
    saved = [s.shape for s in streams(model_type, **fields).storages if s.saved and s.dtype == "float32"]
    assert statistics in saved
