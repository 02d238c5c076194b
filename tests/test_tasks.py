"""Tasks in both engines: rows, heads and reference models, and what none of them may be answered as."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from memplan.planner.answers.verdict import not_modelled
from memplan.planner.formula.engine import plan, symbolic
from memplan.planner.formula.lacking import lacking
from memplan.planner.inputs.families.table import read_config
from memplan.planner.inputs.setup import Setup, resolve
from memplan.planner.inputs.tasks import lacks
from memplan.planner.tables.errors import UsageError
from memplan.planner.tables.heads import NEW_HEADS
from memplan.planner.tables.tasks import TASKS

LLAMA: dict[str, Any] = {
    "model_type": "llama",
    "hidden_size": 256,
    "intermediate_size": 512,
    "num_hidden_layers": 12,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 50_000,
    "tie_word_embeddings": False,
    "architectures": ["LlamaForCausalLM"],
}
QWEN = {**LLAMA, "model_type": "qwen3", "head_dim": 64, "tie_word_embeddings": True}
GPT2: dict[str, Any] = {
    "model_type": "gpt2",
    "n_embd": 128,
    "n_layer": 12,
    "n_head": 4,
    "n_positions": 1024,
    "vocab_size": 5000,
    "architectures": ["GPT2LMHeadModel"],
}
OPT: dict[str, Any] = {
    "model_type": "opt",
    "hidden_size": 128,
    "ffn_dim": 512,
    "num_hidden_layers": 12,
    "num_attention_heads": 4,
    "vocab_size": 5000,
    "max_position_embeddings": 1024,
    "word_embed_proj_dim": 128,
    "dropout": 0.1,
    "attention_dropout": 0.1,
    "architectures": ["OPTForCausalLM"],
}
CASES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "classify, full": (LLAMA, {"task": "classify", "method": "full"}),
    "classify, lora, raw loop": (GPT2, {"task": "classify", "recipe": "raw", "num_labels": 5}),
    "classify, accumulated": (QWEN, {"task": "classify", "gradient_accumulation": 3, "num_labels": 1}),
    "reward, qlora": (QWEN, {"task": "reward", "method": "qlora"}),
    "reward, full": (GPT2, {"task": "reward", "method": "full", "recipe": "trl"}),
    "prm, full": (GPT2, {"task": "prm", "method": "full"}),
    "prm, lora": (QWEN, {"task": "prm", "recipe": "trl", "num_labels": 3}),
    "dpo, lora": (LLAMA, {"task": "dpo", "recipe": "trl", "weight_dtype": "bfloat16"}),
    "dpo, full": (LLAMA, {"task": "dpo", "method": "full", "checkpointing": "none"}),
    "dpo, full, fp32 weights": (QWEN, {"task": "dpo", "method": "full", "recipe": "trl"}),
    "dpo, dropout that no module is": (OPT, {"task": "dpo", "method": "full", "checkpointing": "none"}),
    "dpo, dropout of modules": (GPT2, {"task": "dpo", "dropout": 0.1, "targets": ("attention",)}),
    "dpo, qlora": (QWEN, {"task": "dpo", "method": "qlora", "recipe": "trl"}),
    "dpo, second model beside an adapter": (LLAMA, {"task": "dpo", "reference": "model"}),
    "dpo, reference precomputed": (LLAMA, {"task": "dpo", "method": "full", "reference": "none"}),
    "dpo of whole logits, adapter off": (
        LLAMA,
        {"task": "dpo_logits", "recipe": "llamafactory", "method": "lora", "weight_dtype": "bfloat16"},
    ),
    "dpo of whole logits, second model": (QWEN, {"task": "dpo_logits", "recipe": "raw", "method": "full"}),
    "dpo up to TRL 1.13, full": (
        LLAMA,
        {"task": "dpo", "trl": "1.13", "method": "full", "checkpointing": "none"},
    ),
    "dpo up to TRL 1.13, axolotl": (QWEN, {"task": "dpo", "recipe": "axolotl", "method": "qlora"}),
    "dpo up to TRL 1.13, 16-bit logits": (
        LLAMA,
        {"task": "dpo", "trl": "1.13", "autocast": "none", "weight_dtype": "bfloat16"},
    ),
    "dpo of TRL 1.14": (LLAMA, {"task": "dpo", "trl": "1.14", "recipe": "trl", "method": "full"}),
    "kto up to TRL 1.13, second model": (QWEN, {"task": "kto", "trl": "1.13", "method": "full"}),
    "kto of TRL 1.14, axolotl": (LLAMA, {"task": "kto", "recipe": "axolotl", "trl": "1.14"}),
    "cpo up to TRL 1.13": (LLAMA, {"task": "cpo", "trl": "1.13", "recipe": "trl"}),
    "orpo of axolotl, qlora": (QWEN, {"task": "orpo", "recipe": "axolotl", "method": "qlora"}),
    "kto, lora": (LLAMA, {"task": "kto", "recipe": "trl", "weight_dtype": "bfloat16"}),
    "kto, full": (QWEN, {"task": "kto", "method": "full"}),
    "orpo, lora": (LLAMA, {"task": "orpo", "recipe": "trl", "weight_dtype": "bfloat16"}),
    "orpo, full": (QWEN, {"task": "orpo", "method": "full", "checkpointing": "none"}),
    "orpo, one pair": (LLAMA, {"task": "orpo", "recipe": "trl", "method": "full", "micro_batch": 1}),
    "cpo, without autocast": (LLAMA, {"task": "cpo", "autocast": "none", "weight_dtype": "bfloat16"}),
    "cpo, accumulated": (QWEN, {"task": "cpo", "recipe": "trl", "gradient_accumulation": 2}),
    "dpo, accumulated": (LLAMA, {"task": "dpo", "gradient_accumulation": 2}),
}


def setup_of(**fields: Any) -> Setup:
    return resolve({"gpu": "a100-40gb", "micro_batch": 2, "sequence_length": 128, **fields})


SLOW = (
    "dpo up to TRL 1.13, axolotl",
    "kto up to TRL 1.13, second model",
    "kto of TRL 1.14, axolotl",
    "dpo of TRL 1.14",
    "orpo of axolotl, qlora",
    "dpo, accumulated",
    "cpo, accumulated",
    "classify, accumulated",
    "kto, full",
    "dpo, qlora",
)
"""About ten seconds each."""


@pytest.mark.trace
@pytest.mark.parametrize(
    "case", [pytest.param(name, marks=[pytest.mark.slow] if name in SLOW else []) for name in CASES]
)
def test_the_formula_is_the_trace(case: str) -> None:
    """Allocated within 2 % in every moment (blocks are rounded up in one alone), reserved within 2 %,
    parameters equal; and the trace of a few layers is that of all.
    """
    pytest.importorskip("transformers")
    pytest.importorskip("bitsandbytes")
    from memplan.planner.trace.engine import trace

    config, fields = CASES[case]
    s = setup_of(**fields)
    traced, planned = trace(config, s), plan(read_config(config), s)
    assert planned.trainable_parameters == traced.trainable_parameters
    assert planned.total_parameters == traced.total_parameters
    assert planned.checkpoint_bytes == traced.checkpoint_bytes
    for moment in traced.moments:
        found = planned.moment(moment.moment).allocated_bytes
        assert found == pytest.approx(moment.allocated_bytes, rel=0.02), moment.moment
    assert planned.peak.reserved_bytes == pytest.approx(traced.peak.reserved_bytes, rel=0.02)
    assert traced.extra["traced_layers"] is not None and traced.extra["traced_layers"] < 12
    assert trace(config, s, full=True).peak == traced.peak


def peak(config: dict[str, Any], **fields: Any) -> int:
    return plan(read_config(config), setup_of(**fields)).peak.allocated_bytes


def test_no_task_is_a_supervised_step() -> None:
    """What each holds beside one: no logits, twice the rows, a second model or a second forward."""
    same = {"method": "full", "recipe": "hf", "loss": "full"}
    supervised = plan(read_config(LLAMA), setup_of(**same))
    classify = plan(read_config(LLAMA), setup_of(task="classify", **same))
    assert not any("logits" in row.name and 50_000 in row.shape for m in classify.moments for row in m.rows)
    assert any(50_000 in row.shape and "logits" in row.name for m in supervised.moments for row in m.rows)
    head = 50_000 * 256
    assert supervised.total_parameters - classify.total_parameters == head - 2 * 256
    steps = plan(read_config(LLAMA), setup_of(task="prm", **same))
    assert steps.total_parameters - classify.total_parameters == 2  # the biases
    assert not any(50_000 in row.shape and "logits" in row.name for m in steps.moments for row in m.rows)
    reward = plan(read_config(LLAMA), setup_of(task="reward", method="full"))
    saved = {
        name: p.moment("forward").components["activations"]
        for name, p in (("classify", classify), ("reward", reward))
    }
    assert saved["reward"] == pytest.approx(2 * saved["classify"], rel=0.02), "chosen and rejected rows"
    for model, precomputed in (("model", "none"),):
        weights = plan(read_config(LLAMA), setup_of(task="dpo", method="full")).moment("load")
        alone = plan(read_config(LLAMA), setup_of(task="dpo", method="full", reference=precomputed))
        assert weights.components["weights"] == 2 * alone.moment("load").components["weights"], model


@pytest.mark.parametrize("task", ["orpo", "cpo"])
def test_pairs_without_a_reference_have_whole_logits(task: str) -> None:
    """Of twice the rows, in fp32, and their gradient twice: more than DPO's tiles, than a supervised step."""
    same = {"method": "lora", "recipe": "trl", "micro_batch": 4, "sequence_length": 512}
    found = plan(read_config(LLAMA), setup_of(task=task, **same))
    logits = 2 * 4 * 512 * 50_000 * 4
    rows = [row for row in found.peak_rows if row.shape[-1:] == (50_000,)]
    assert sum(row.bytes for row in rows) >= 2.5 * logits
    assert found.peak.allocated_bytes > 2.5 * logits > peak(LLAMA, task="dpo", **same)
    assert found.peak.allocated_bytes > 1.5 * peak(LLAMA, loss="full", **same)
    assert not lacks(setup_of(task=task))


def test_dpo_up_to_trl_1_13_holds_two_models_logits() -> None:
    """Those of the reference too, and a copy for their entropy: three times a pair's whole logits. TRL 1.14
    has no copy, 1.15 no whole logits.
    """
    same = {"method": "lora", "recipe": "trl", "micro_batch": 4, "sequence_length": 512}
    logits = 2 * 4 * 512 * 50_000 * 4
    forward = {
        trl: plan(read_config(LLAMA), setup_of(task="dpo", trl=trl, **same)).moment("forward").allocated_bytes
        for trl in ("1.13", "1.14")
    }
    assert forward["1.13"] > 3 * logits * 511 / 512 > forward["1.14"] > 2.4 * logits
    for task in ("dpo", "sft"):
        assert peak(LLAMA, task=task, **same) < logits, task


@pytest.mark.trace
def test_asft_holds_a_second_model_and_its_logits() -> None:
    """Beside a supervised step: frozen weights, the reference's logits with their copy and softmax, and the
    graph of the model's own loss, which nobody runs backward and which the step frees all the same.
    """
    pytest.importorskip("transformers")
    from memplan.planner.trace.engine import trace

    small, logits = {**LLAMA, "num_hidden_layers": 2}, 2 * 128 * 50_000 * 4
    same = {"recipe": "llamafactory", "method": "full"}
    supervised, found = trace(small, setup_of(**same)), trace(small, setup_of(task="asft", **same))
    more = {m.moment: m.allocated_bytes - supervised.moment(m.moment).allocated_bytes for m in found.moments}
    weights = 2 * supervised.total_parameters  # in 16 bits, beside those that train in fp32
    assert more["load"] == pytest.approx(weights, rel=0.01)
    assert more["optimizer_step"] == pytest.approx(weights, rel=0.01)
    assert more["forward"] - weights > 7 * logits


@pytest.mark.trace
def test_embeddings_are_no_supervised_step() -> None:
    """No head and no logits; more texts need more; the cached loss saves of a mini-batch at a time alone."""
    pytest.importorskip("transformers")
    from memplan.planner.trace.engine import trace

    small = {**LLAMA, "num_hidden_layers": 2}

    def found(**fields: Any) -> Any:
        return trace(small, setup_of(recipe="hf", method="full", **fields))

    embedded, three = found(task="embed", micro_batch=8), found(task="embed", micro_batch=8, texts=3)
    supervised = found(micro_batch=8)
    assert supervised.total_parameters - embedded.total_parameters == 50_000 * 256
    assert three.moment("forward").allocated_bytes > embedded.moment("forward").allocated_bytes
    cached = found(task="embed", micro_batch=8, mini_batch=2)
    assert cached.moment("forward").allocated_bytes < embedded.moment("forward").allocated_bytes
    planned = plan(read_config(small), setup_of(recipe="hf", method="full", task="embed", micro_batch=8))
    assert planned.total_parameters == embedded.total_parameters


@pytest.mark.trace
def test_a_teacher_is_held_beside_its_student() -> None:
    """All of its weights, without gradients; a supervised step has none."""
    pytest.importorskip("transformers")
    from memplan.planner.inputs.models import find
    from memplan.planner.trace.engine import trace

    teacher = find("llama-3.2-1b")
    small = {**LLAMA, "num_hidden_layers": 1, "vocab_size": teacher.config["vocab_size"]}
    same = {"recipe": "trl", "micro_batch": 2, "sequence_length": 64, "weight_dtype": "bfloat16"}
    s = setup_of(task="distill", teacher="llama-3.2-1b", completion_length=16, **same)
    held, alone = (trace(small, each).moment("load").components["weights"] for each in (s, setup_of(**same)))
    assert held - alone == pytest.approx(2 * teacher.spec().parameters, rel=0.01)
    with pytest.raises(UsageError, match="entries in its vocabulary"):
        trace({**small, "vocab_size": 1000}, s)


def test_a_reference_runs_without_a_graph() -> None:
    """Its forward comes on top of all that the model's has saved, and keeps nothing of its own."""
    fields = {"task": "dpo", "checkpointing": "none", "micro_batch": 8, "sequence_length": 512}
    with_reference, without = peak(LLAMA, **fields), peak(LLAMA, **fields, reference="none")
    assert with_reference >= without
    rows = plan(read_config(LLAMA), setup_of(**fields)).moment("forward").rows
    assert not any(row.name.startswith("reference: ") and "saved" in row.why for row in rows)


def test_sizes_are_symbols_for_pairs_too() -> None:
    """One structure for every micro-batch: the grid has what one size has, B = 1 included."""
    numpy = pytest.importorskip("numpy")
    s = setup_of(task="dpo", recipe="trl")
    structure = symbolic(read_config(LLAMA), s)
    batches, tokens = numpy.array([[1], [2], [8]]), numpy.array([[64, 512]])
    cells = structure.grid(batches, tokens, 16)["peak"]
    for i, batch in enumerate((1, 2, 8)):
        for j, length in enumerate((64, 512)):
            assert cells[i, j] == structure.totals(batch, length, 16).peak
    assert "B * 2n" in structure.javascript()


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"task": "rewards"}, "unknown task 'rewards'"),
        ({"task": "classify", "method": "inference"}, "leave --task out"),
        ({"task": "classify", "method": "freeze"}, "use --method lora or full"),
        ({"task": "classify", "recipe": "trl"}, "use --recipe raw or hf"),
        ({"task": "reward", "num_labels": 3}, "num_labels 3 contradicts task 'reward'"),
        ({"task": "reward", "loss": "fused"}, "leave --loss out"),
        ({"task": "dpo", "recipe": "raw"}, "use --recipe hf or trl"),
        ({"task": "dpo", "method": "prefix-tuning"}, "use --method lora or full"),
        ({"task": "dpo", "method": "full", "reference": "base"}, "--set reference=model"),
        ({"task": "kto", "micro_batch": 1}, "use --batch 2 or more"),
        ({"task": "prm", "targets": ("all-linear",)}, "--targets attention, or name the layers"),
        ({"task": "prm", "method": "qlora"}, "PEFT then cannot train"),
        ({"task": "orpo", "method": "qlora"}, "no rule for nf4 weights"),
        ({"task": "cpo", "method": "prompt-tuning"}, "use --method lora or full"),
        ({"task": "orpo", "loss": "chunked"}, "leave --loss out"),
        ({"target_length": 64}, "use --task seq2seq, or --seq"),
        ({"task": "mlm", "recipe": "trl"}, "use --recipe raw or hf"),
        ({"task": "dpo", "packed_documents": 2}, "leave packing out"),
        ({"reference": "model"}, "use --task dpo"),
        ({"completion_length": 8}, "completion_length 8 contradicts task 'sft'"),
        ({"task": "grpo", "sequence_length": 512}, "leaves no prompt in 512 tokens of a row"),
        ({"task": "grpo", "generations": 3}, "a generation of 8 rows is no multiple of generations 3"),
        ({"task": "grpo", "vllm_share": 0.3}, "name it with --gpu"),
        ({"task": "grpo", "vllm_sleeps": True}, "--set vllm_share=0.3"),
        ({"task": "distill"}, "--set teacher=MODEL"),
        ({"teacher": "llama-7b"}, "use --task distill"),
        ({"reward_model": "llama-7b"}, "use --task grpo"),
        ({"texts": 2}, "--task embed's"),
        ({"task": "embed", "texts": 1}, "use 2 or more"),
        ({"mini_batch": 2}, "of --task embed"),
        ({"task": "distill", "teacher": "llama-7b", "eval_batch": 8}, "eval_batch 8 has no rule"),
        ({"task": "grpo", "gpus": 2, "parallel": "zero3"}, "leave it out for one GPU"),
        ({"num_labels": 0, "task": "classify"}, "num_labels is 0"),
    ],
)
def test_what_a_task_excludes(fields: dict[str, Any], said: str) -> None:
    with pytest.raises(UsageError, match="(?s)" + said) as refused:
        resolve(fields)
    assert refused.value.exit_code == 2


@pytest.mark.parametrize("task", ["mlm", "seq2seq"])
def test_a_decoder_is_no_encoder(task: str) -> None:
    """The formula has decoders alone, of which transformers lists no class for these tasks."""
    from memplan.planner.inputs.families.table import FAMILIES

    auto = pytest.importorskip("transformers.models.auto.modeling_auto")
    assert not set(FAMILIES) & set(getattr(auto, f"{TASKS[task].classes}_NAMES"))
    with pytest.raises(UsageError, match="model_type 'llama': leave --task out"):
        plan(read_config(LLAMA), setup_of(task=task, recipe="hf"))


@pytest.mark.trace
def test_encoders_are_traced_by_their_own_class() -> None:
    """A decoder is refused there too; of an encoder-decoder the decoder's rows have a length of their own."""
    pytest.importorskip("transformers")
    from test_trace_tasks import BERT, T5

    from memplan.planner.trace.engine import trace

    def bytes_of(config: dict[str, Any], **fields: Any) -> int:
        return trace(config, setup_of(recipe="hf", method="full", **fields)).peak.allocated_bytes

    with pytest.raises(UsageError, match="model_type 'llama': leave --task out"):
        bytes_of(LLAMA, task="mlm")
    with pytest.raises(UsageError, match="model_type 'bert': leave --task out"):
        bytes_of(BERT, task="seq2seq")
    short, same, supervised = (
        bytes_of(T5, **fields)
        for fields in ({"task": "seq2seq", "target_length": 16}, {"task": "seq2seq"}, {})
    )
    logits = 2 * (128 - 16) * T5["vocab_size"] * 4
    assert same - short > 2 * logits and abs(same - supervised) < 0.01 * same
    assert bytes_of(BERT, task="mlm") != bytes_of(BERT, task="classify")


@pytest.mark.parametrize("task", ["classify", "prm"])
def test_models_without_a_class_for_it(task: str) -> None:
    """They are those that transformers does not list; what its other classes call the head."""
    from memplan.planner.inputs.families.table import FAMILIES

    auto, head = pytest.importorskip("transformers.models.auto.modeling_auto"), NEW_HEADS[TASKS[task].head]
    have = getattr(auto, f"{head.classes}_NAMES")
    assert {name for name in FAMILIES if name not in have} == set(head.without)
    for model_type in head.without:
        spec = read_config(LLAMA)
        object.__setattr__(spec, "model_type", model_type)
        with pytest.raises(UsageError, match=f"{head.what} class"):
            plan(spec, setup_of(task=task))


def test_defaults_are_the_trainers() -> None:
    """DPO compares with a second model, or with its own base where an adapter is trained; a reward model has
    one label.
    """
    assert resolve({"task": "dpo"}).reference == "base"
    assert resolve({"task": "dpo", "method": "full"}).reference == "model"
    assert resolve({"task": "reward"}).num_labels == 1
    assert resolve({}).reference == "none"
    trl = pytest.importorskip("trl")
    from trl.experimental.cpo import CPOConfig
    from trl.experimental.orpo import ORPOConfig

    for config in (trl.DPOConfig, trl.RewardConfig, trl.KTOConfig, ORPOConfig, CPOConfig):
        assert config.__dataclass_fields__["disable_dropout"].default is True
    assert not TASKS["dpo"].dropout and not TASKS["reward"].dropout


def test_what_is_not_modeled_has_no_verdict() -> None:
    s = setup_of(task="gkd")
    assert "teacher" in lacks(s)
    assert [name for name in not_modelled(plan(read_config(LLAMA), s)) if name.startswith("task gkd")]
    assert lacks(setup_of()) == lacks(setup_of(task="dpo")) == ""


# ---- files and launch lines ------------------------------------------------------------------------------


def written(folder: Path, name: str, text: str) -> Any:
    from memplan.planner.importers.anyfile import read_file

    (folder / name).write_text(text)
    return read_file(folder / name)


CLASSIFIER = """
import torch
from transformers import AutoModelForSequenceClassification, TrainingArguments
from peft import LoraConfig
model = AutoModelForSequenceClassification.from_pretrained("google/gemma-2-2b", num_labels=5)
lora = LoraConfig(task_type="SEQ_CLS", r=16, target_modules=["q_proj", "v_proj"])
args = TrainingArguments(output_dir="o", per_device_train_batch_size=16, bf16=True)
"""
PREFERENCES = """
from trl import DPOConfig, DPOTrainer
from peft import LoraConfig
args = DPOConfig(output_dir="o", beta=0.2, loss_type="ipo", max_length=512, bf16=True{more})
trainer = DPOTrainer("Qwen/Qwen2.5-7B"{second}, args=args, peft_config=LoraConfig(r=8))
"""


def test_scripts_name_their_task(tmp_path: Path) -> None:
    found = written(tmp_path, "classify.py", CLASSIFIER)
    assert (found.fields["task"], found.fields["num_labels"]) == ("classify", 5)
    assert not found.not_modelled() and not any("classification" in text for text in found.warnings)
    for name, task in (("MaskedLM", "mlm"), ("Seq2SeqLM", "seq2seq")):
        encoder = CLASSIFIER.replace("SequenceClassification", name).replace(", num_labels=5", "")
        encoder = encoder.replace('task_type="SEQ_CLS", ', "")
        found = written(tmp_path, "encoder.py", encoder)
        assert found.fields["task"] == task and not found.not_modelled()
    cases = {
        ("", ""): ("dpo", None),
        ("", ", ref"): ("dpo", "model"),
        ("", ", ref_model=None"): ("dpo", None),
        (", precompute_ref_log_probs=True", ""): ("dpo", "none"),
    }
    for (more, second), (task, reference) in cases.items():
        found = written(tmp_path, "train.py", PREFERENCES.format(more=more, second=second))
        assert (found.fields["task"], found.fields.get("reference")) == (task, reference), second
        assert found.fields["sequence_length"] == 512 and not found.not_modelled()
    reward = PREFERENCES.replace("DPO", "Reward").format(more="", second="")
    assert written(tmp_path, "reward.py", reward).fields["task"] == "reward"
    for name in ("ORPO", "CPO"):
        found = written(tmp_path, "train.py", PREFERENCES.replace("DPO", name).format(more="", second=""))
        assert found.fields["task"] == name.lower() and not found.not_modelled()
    grpo = PREFERENCES.replace("DPO", "GRPO").format(more="", second="")
    sampled = written(tmp_path, "grpo.py", grpo)
    s = resolve(imported=sampled.fields)
    assert (s.task, s.completion_length, s.sequence_length, s.reference) == ("grpo", 512, 1024, "base")
    assert lacks(s) == "" and any("512 tokens are assumed" in text for text in sampled.warnings)


@pytest.mark.parametrize(
    ("line", "task"),
    [
        ("python trl/scripts/dpo.py --model_name_or_path Qwen/Qwen2.5-7B --beta 0.1", "dpo"),
        ("trl dpo --model_name_or_path Qwen/Qwen2.5-7B --use_peft", "dpo"),
        ("accelerate launch reward_modeling.py --model_name_or_path Qwen/Qwen2.5-7B --use_peft", "reward"),
        ("python examples/scripts/orpo.py --model_name_or_path Qwen/Qwen2.5-7B --use_peft", "orpo"),
        ("accelerate launch cpo.py --model_name_or_path Qwen/Qwen2.5-7B --cpo_alpha 1.0 --use_peft", "cpo"),
        ("trl kto --model_name_or_path Qwen/Qwen2.5-7B --desirable_weight 2", "kto"),
        ("trl grpo --model_name_or_path Qwen/Qwen2.5-7B", "grpo"),
        ("trl rloo --model_name_or_path Qwen/Qwen2.5-7B --top_p 0.9 --top_k 20", "rloo"),
        ("python prm.py --model_name_or_path Qwen/Qwen2.5-7B --use_peft", "prm"),
        (
            "python distillation.py --model_name_or_path a/b --teacher_model_name_or_path Qwen/Qwen2.5-7B",
            "distill",
        ),
        ("trl sft --model_name_or_path Qwen/Qwen2.5-7B --use_peft", None),
    ],
)
def test_launch_lines_name_their_task(line: str, task: str | None) -> None:
    from memplan.planner.importers.launch import read_launch

    found = read_launch(line.split())
    assert found.fields.get("task") == task
    assert resolve(imported=found.fields).task == (task or "sft")
    assert not found.not_modelled()


FILES = {
    "reward.yaml": (
        "base_model: google/gemma-2-2b\nmodel_type: AutoModelForSequenceClassification\nnum_labels: 1\n"
        "reward_model: true\nsequence_len: 2048\nmicro_batch_size: 2\ndatasets: [{path: mine}]\n",
        "reward",
        "",
    ),
    "dpo.yaml": (
        "base_model: meta-llama/Llama-2-7b-hf\nrl: ipo\nadapter: qlora\nload_in_4bit: true\nlora_r: 8\n"
        "lora_target_linear: true\nsequence_len: 1024\n",
        "dpo",
        "",
    ),
    "rl.yaml": ("base_model: meta-llama/Llama-2-7b-hf\nrl: ebft\nadapter: lora\nlora_r: 8\n", "sft", "rl"),
    "unpaired.yaml": (
        "base_model: meta-llama/Llama-2-7b-hf\nrl: kto\nadapter: lora\nlora_r: 8\nmicro_batch_size: 2\n",
        "kto",
        "",
    ),
    "simpo.yaml": ("base_model: meta-llama/Llama-2-7b-hf\nrl: simpo\nadapter: lora\nlora_r: 8\n", "cpo", ""),
    "steps.yaml": (
        "base_model: Qwen/Qwen2.5-3B\nprocess_reward_model: true\nnum_labels: 2\nsequence_len: 512\n"
        "micro_batch_size: 2\n",
        "prm",
        "",
    ),
    "adapted.yaml": (
        "base_model: meta-llama/Llama-2-7b-hf\nrl: gdpo\nadapter: lora\nlora_r: 8\nsequence_len: 512\n"
        "trl: {beta: 0.01, max_completion_length: 128, num_generations: 1}\n",
        "grpo",
        "trl.beta",
    ),
    "asft.yaml": (
        "model_name_or_path: meta-llama/Llama-2-7b-hf\nstage: sft\nfinetuning_type: full\n"
        "use_asft_loss: true\ncutoff_len: 2048\n",
        "asft",
        "",
    ),
    "stage.yaml": (
        "model_name_or_path: meta-llama/Llama-2-7b-hf\nstage: dpo\nfinetuning_type: lora\n",
        "dpo_logits",
        "",
    ),
    "kto.yaml": (
        "model_name_or_path: meta-llama/Llama-2-7b-hf\nstage: kto\nfinetuning_type: lora\n",
        "kto_logits",
        "",
    ),
    "value.yaml": (
        "model_name_or_path: meta-llama/Llama-2-7b-hf\nstage: rm\nfinetuning_type: lora\n",
        "sft",
        "stage",
    ),
    "grown.yaml": (
        "model_name_or_path: meta-llama/Llama-2-7b-hf\nfinetuning_type: lora\nadd_tokens: [one]\n",
        "sft",
        "add_tokens",
    ),
    "tune.yaml": (
        "model: {_component_: torchtune.models.llama3_1.lora_llama3_1_8b, lora_attn_modules: [q_proj]}\n"
        "loss: {_component_: torchtune.rlhf.loss.DPOLoss, beta: 0.1}\nbatch_size: 4\ndtype: bf16\n"
        "optimizer: {_component_: torch.optim.AdamW, fused: true}\n",
        "dpo_logits",
        "",
    ),
}


@pytest.mark.parametrize("name", FILES)
def test_files_name_their_task_or_what_is_not_counted(name: str, tmp_path: Path) -> None:
    """A trainer that is not TRL's own gives a lower bound, never a supervised step's verdict."""
    text, task, missing = FILES[name]
    found = written(tmp_path, name, text)
    assert resolve(imported=found.fields).task == task
    names = [entry.partition(" ")[0] for entry in found.not_modelled()]
    assert names == ([missing] if missing else [])


def test_axolotl_trains_as_the_trl_that_it_pins(tmp_path: Path) -> None:
    """Whole logits, since it pins TRL 1.9; a quantized model's adapters in bfloat16 where TRL makes them or
    casts them; prompts as long as sequence_len leaves; a reward model by its name.
    """
    quantized = "base_model: meta-llama/Llama-2-7b-hf\nadapter: qlora\nload_in_4bit: true\nlora_r: 8\n"
    quantized += "lora_target_linear: true\nmicro_batch_size: 2\n"
    for rl, dtype in (("dpo", "bfloat16"), ("kto", "bfloat16"), ("orpo", "float32"), ("simpo", "float32")):
        s = resolve(imported=written(tmp_path, "a.yaml", f"{quantized}rl: {rl}\n").fields)
        assert (s.trl, s.loss, s.adapter_dtype) == ("1.13", "full", dtype), rl
    sampled = (
        "base_model: meta-llama/Llama-3.2-1B\nrl: grpo\nsequence_len: 512\nmicro_batch_size: 2\n"
        "trl:\n  beta: 0.001\n  max_completion_length: 128\n  num_generations: 2\n  top_p: 0.95\n"
        "  use_vllm: true\n  vllm_mode: colocate\n  reward_funcs: [rwd.style, a/judge]\n"
        "vllm: {gpu_memory_utilization: 0.2, max_model_len: 2048}\n"
    )
    found = written(tmp_path, "b.yaml", sampled)
    assert not found.not_modelled()
    s = resolve(imported=found.fields | {"gpu": "h100-80gb"})
    assert (s.completion_length, s.sequence_length, s.reference, s.generations) == (128, 512, "model", 2)
    assert (s.top_p, s.vllm_share, s.reward_model, s.loss) == (0.95, 0.2, "a/judge", "full")


def test_a_resized_vocabulary_trains_embeddings_and_head(tmp_path: Path) -> None:
    """LLaMA-Factory's, with an adapter that names no modules of its own; nothing grows without new tokens."""
    text = "model_name_or_path: meta-llama/Llama-2-7b-hf\nfinetuning_type: {}\nresize_vocab: true\n"
    found = written(tmp_path, "train.yaml", text.format("lora"))
    assert found.fields["modules_to_save"] == ("embed_tokens", "lm_head") and not found.not_modelled()
    named = written(tmp_path, "train.yaml", text.format("lora") + "additional_target: embed_tokens\n")
    assert named.fields["modules_to_save"] == ("embed_tokens",)
    assert "modules_to_save" not in written(tmp_path, "train.yaml", text.format("full")).fields


@pytest.mark.trace
def test_samples_scored_by_an_earlier_trl_have_whole_logits() -> None:
    """Those of the completions in fp32, their gradient twice up to TRL 1.13; the kernel of 1.14 makes one."""
    pytest.importorskip("transformers")
    from memplan.planner.trace.engine import trace

    small, logits = {**LLAMA, "num_hidden_layers": 1}, 4 * 64 * 50_000 * 4
    same = {"task": "grpo", "recipe": "trl", "weight_dtype": "bfloat16", "completion_length": 64}
    found = {
        trl: trace(small, setup_of(**same, trl=trl, micro_batch=4)).moment("backward").allocated_bytes
        for trl in ("1.13", "1.14", "1.16")
    }
    assert found["1.13"] - found["1.14"] == pytest.approx(2 * logits, rel=0.02)
    assert found["1.14"] - found["1.16"] > logits
    assert "trl 1.14" in lacking(read_config(small), setup_of(**same, trl="1.14", micro_batch=4))


@pytest.mark.trace
def test_unpaired_preferences_of_llama_factory_copy_both_halves() -> None:
    """Whole logits in fp32, their log-softmax, and a copy of either half of the rows'."""
    pytest.importorskip("transformers")
    from memplan.planner.trace.engine import trace

    small, logits = {**LLAMA, "num_hidden_layers": 1}, 4 * 128 * 50_000 * 4
    same = {"recipe": "llamafactory", "micro_batch": 4}
    forward = {
        task: trace(small, setup_of(task=task, **same)).moment("forward").allocated_bytes
        for task in ("kto_logits", "sft")
    }
    assert forward["kto_logits"] > 5 * logits > 2 * forward["sft"] / 2


def test_the_page_is_of_the_kept_dry_runs() -> None:
    """docs/tasks.md is generated; every dry run is met within 0.5 % by the trace and 2 % by the formula, and
    the formula of today says what is kept.
    """
    import sys

    root = Path(__file__).parents[1]
    sys.path.insert(0, str(root / "benchmarks"))
    try:
        import tasks_dryrun as judged  # and the scripts beside it
    finally:
        sys.path.pop(0)
    from memplan.planner.inputs.models import find

    kept = json.loads(judged.KEPT.read_text())
    assert (root / "docs" / "tasks.md").read_text() == judged.page(kept), (
        "run: python benchmarks/tasks_dryrun.py --page > docs/tasks.md"
    )
    for case in judged.judged(kept):
        entry = kept[case.label]
        assert abs(judged.error(entry, "trace")) <= 0.005, case.label
        assert abs(judged.error(entry, "formula")) <= 0.02, case.label
        if case.model not in judged.CONFIGS and not case.sampled and not case.beside:
            spec, setup = find(case.model).spec(), case.setup()
            if lacking(spec, setup):
                continue
            today = plan(spec, setup).peak.allocated_bytes
            assert today == entry["formula"]["allocated_bytes"], case.label
