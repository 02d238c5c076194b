"""A vocabulary that is resized: both engines hold the same bytes while transformers does it and afterwards;
files and scripts say so where they name the number of rows.
"""

from __future__ import annotations

import pytest

from memplan.cli.main import run as cli
from memplan.planner.formula.engine import plan
from memplan.planner.importers.files import read_training_file
from memplan.planner.inputs.models import find
from memplan.planner.inputs.setup import resolve
from memplan.planner.tables.errors import UsageError

LLAMA = {"model_type": "llama", "hidden_size": 512, "intermediate_size": 512, "num_hidden_layers": 2}
LLAMA |= {"num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 16000}
CASES = {
    "own head": ({"tie_word_embeddings": False}, {"method": "lora", "recipe": "raw", "vocabulary": 16064}),
    "tied": ({"tie_word_embeddings": True}, {"method": "full", "recipe": "hf", "vocabulary": 20000}),
    "fewer": ({"tie_word_embeddings": False}, {"method": "lora", "vocabulary": 15000}),
}
SCRIPT = """
model = AutoModelForCausalLM.from_pretrained("Qwen/Qwen3-0.6B")
model.resize_token_embeddings({})
trainer = SFTTrainer(model=model, args=SFTConfig(max_length=512))
"""


@pytest.mark.trace
@pytest.mark.parametrize("case", CASES)
def test_embeddings_that_are_resized_weigh_the_same_in_both_engines(case) -> None:
    """Single values of the check of the covariance, of at most 8 bytes, are left out of the formula."""
    from memplan.planner.trace.engine import trace

    changed, fields = CASES[case]
    config = LLAMA | changed
    setup = resolve({"sequence_length": 64, "gpu": "h100", **fields})
    planned, traced = plan(find(config).spec(), setup), trace(config, setup)
    for moment in ("load_peak", "load"):
        ours, theirs = (sum(row.bytes for row in each.moment(moment).rows) for each in (planned, traced))
        assert 0 <= theirs - ours <= 8, moment
    assert planned.peak.reserved_bytes == traced.peak.reserved_bytes
    assert planned.total_parameters == traced.total_parameters
    unchanged = plan(find(config).spec(), setup.replaced(vocabulary=None))
    grows = setup.vocabulary > config["vocab_size"]
    assert (planned.total_parameters > unchanged.total_parameters) == grows
    assert not grows or planned.moment("load_peak").allocated_bytes > (
        unchanged.moment("load_peak").allocated_bytes + 8 * 16000 * 512
    )


def test_a_model_in_parts_is_not_resized() -> None:
    for parallel in ("fsdp", "zero3"):
        with pytest.raises(UsageError, match="vocabulary 32064.* vocab_size"):
            plan(
                find("qwen3-0.6b").spec(),
                resolve({"method": "full", "gpus": 2, "parallel": parallel, "vocabulary": 32064}),
            )


@pytest.mark.parametrize(
    ("said", "rows"),
    [
        ("151672", 151672),
        ("151670, pad_to_multiple_of=64", 151680),
        ("new_num_tokens=151670, pad_to_multiple_of=8", 151672),
        ("len(tokenizer)", None),
        ("151670, pad_to_multiple_of=rows", None),
        ("151670, **options", None),
        ("True", None),
    ],
)
def test_a_script_s_resizing_is_read_or_makes_a_lower_bound(tmp_path, said, rows) -> None:
    (path := tmp_path / "train.py").write_text(SCRIPT.format(said))
    imported = read_training_file(path)
    assert imported.fields.get("vocabulary") == rows
    assert any("resize_token_embeddings" in each for each in imported.not_modelled()) == (rows is None)


def test_a_vocabulary_that_is_said_counts_the_new_tokens_of_a_file(tmp_path, capsys) -> None:
    (path := tmp_path / "run.yaml").write_text(
        "base_model: Qwen/Qwen3-0.6B\nmicro_batch_size: 1\nadapter: lora\nlora_r: 8\n"
        "lora_target_modules: [q_proj]\nsequence_len: 512\ntokens: ['<|a|>', '<|b|>']\n"
    )
    assert cli(["plan", str(path), "--gpu", "24gb"]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert (
        "FITS" in said and "2 rows are added to the vocabulary's 151,936" in said and "vocabulary=N" in said
    )
    assert cli(["plan", str(path), "--gpu", "24gb", "--set", "vocabulary=152064"]) == 0
    assert "FITS" in (said := capsys.readouterr().out) and "rows are added" not in said
