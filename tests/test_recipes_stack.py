"""A recipe is not a dictionary of hopes: the stack's own trainer on a tiny model against
planner/run/build.py, on CPU, one real step.

Compared: dtypes of every parameter, what is trainable, the optimizer's class and form, the checkpointing
mode, and the bytes that the forward saves for the backward (which is where a different loss path or a
different autocast would show).
"""

import contextlib

import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
pytest.importorskip("peft")
pytestmark = pytest.mark.trace

CONFIG = {
    "model_type": "llama",
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 320,
    "architectures": ["LlamaForCausalLM"],
    "tie_word_embeddings": False,
    "max_position_embeddings": 128,
    "rms_norm_eps": 1e-5,
    "hidden_act": "silu",
    "dtype": "bfloat16",
}
BATCH, SEQUENCE = 2, 24


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """A tiny Llama with its tokenizer, as a stack would load it from disk."""
    from tokenizers import Tokenizer, models

    folder = tmp_path_factory.mktemp("tiny")
    config = transformers.LlamaConfig(
        **{k: v for k, v in CONFIG.items() if k not in ("model_type", "architectures")}
    )
    transformers.LlamaForCausalLM(config).to(torch.bfloat16).save_pretrained(folder)
    words = {f"w{i}": i for i in range(310)} | {"<pad>": 310, "</s>": 311, "<unk>": 312}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", eos_token="</s>", unk_token="<unk>"
    ).save_pretrained(folder)
    return str(folder)


def rows(count=8):
    return [
        {
            "input_ids": list(range(SEQUENCE)),
            "labels": list(range(SEQUENCE)),
            "attention_mask": [1] * SEQUENCE,
        }
        for _ in range(count)
    ]


def hf_trainer(checkpoint, folder, method, **arguments):
    from peft import LoraConfig, get_peft_model

    model = transformers.AutoModelForCausalLM.from_pretrained(checkpoint)
    if method == "lora":
        model = get_peft_model(
            model, LoraConfig(r=16, lora_alpha=32, target_modules="all-linear", task_type="CAUSAL_LM")
        )
    common = {
        "max_steps": 1,
        "per_device_train_batch_size": BATCH,
        "report_to": [],
        "save_strategy": "no",
        "disable_tqdm": True,
    }
    args = transformers.TrainingArguments(str(folder), use_cpu=True, bf16=True, **common, **arguments)
    return transformers.Trainer(
        model=model, args=args, train_dataset=rows(), data_collator=transformers.default_data_collator
    )


def trl_trainer(checkpoint, folder, method, **arguments):
    trl = pytest.importorskip("trl")
    from datasets import Dataset
    from peft import LoraConfig

    args = trl.SFTConfig(
        str(folder),
        use_cpu=True,
        max_steps=1,
        per_device_train_batch_size=BATCH,
        report_to=[],
        save_strategy="no",
        disable_tqdm=True,
        max_length=SEQUENCE,
        dataset_kwargs={"skip_prepare_dataset": True},
        **arguments,
    )
    adapter = (
        LoraConfig(r=16, lora_alpha=32, lora_dropout=0.05, task_type="CAUSAL_LM")
        if method == "lora"
        else None
    )
    tokenizer = transformers.AutoTokenizer.from_pretrained(checkpoint)
    return trl.SFTTrainer(
        model=checkpoint,
        args=args,
        train_dataset=Dataset.from_list(rows()),
        processing_class=tokenizer,
        peft_config=adapter,
    )


def our_build(**fields):
    from memplan.planner.inputs.setup import resolve
    from memplan.planner.run.build import build

    setup = resolve(
        {
            "micro_batch": BATCH,
            "sequence_length": SEQUENCE,
            "device": "cpu",
            "load": "random",
            "attention": "sdpa",
            **fields,
        }
    )
    return build(CONFIG, setup, "cpu")


def saved_bytes(run, parameters):
    """Bytes that autograd saves while `run` makes a loss, parameters and their views apart, each storage
    once.
    """
    own = {parameter.untyped_storage().data_ptr() for parameter in parameters}
    storages = {}

    def pack(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            storages[storage.data_ptr()] = storage
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        loss = run()
    del loss
    return sum(storage.nbytes() for storage in storages.values())


def described(model):
    return {name: (tuple(p.shape), str(p.dtype), p.requires_grad) for name, p in model.named_parameters()}


def checkpoint_mode(model):
    """'none', 'non_reentrant' or 'reentrant', from the function that the layers were given."""
    for module in model.modules():
        if getattr(module, "gradient_checkpointing", False) and hasattr(
            module, "_gradient_checkpointing_func"
        ):
            keywords = getattr(module._gradient_checkpointing_func, "keywords", {})
            return "reentrant" if keywords.get("use_reentrant", True) else "non_reentrant"
    return "none"


TRAINERS = {"hf": hf_trainer, "trl": trl_trainer}
CASES = [
    ("hf", "full", {}, {}),
    ("hf", "lora", {}, {}),
    ("hf", "lora", {"gradient_checkpointing": True}, {"checkpointing": "non_reentrant"}),
    ("trl", "full", {}, {}),
    ("trl", "lora", {}, {}),
]


@pytest.fixture(
    scope="module", params=CASES, ids=lambda case: f"{case[0]}-{case[1]}{'-checkpointed' if case[2] else ''}"
)
def pair(request, checkpoint, tmp_path_factory):
    """The stack's trainer after one real step, and our build after none."""
    recipe, method, arguments, fields = request.param
    torch.manual_seed(0)
    with contextlib.redirect_stdout(None):
        trainer = TRAINERS[recipe](checkpoint, tmp_path_factory.mktemp("out"), method, **arguments)
        trainer.train()
    return recipe, method, trainer, our_build(recipe=recipe, method=method, **fields)


def test_every_parameter_has_the_same_shape_dtype_and_trainability(pair):
    _, _, trainer, built = pair
    theirs = {
        name.removeprefix("module."): value
        for name, value in described(trainer.accelerator.unwrap_model(trainer.model)).items()
    }
    assert described(built.model) == theirs


def test_the_optimizer_is_of_the_same_class_and_form(pair):
    _, _, trainer, built = pair
    theirs = getattr(trainer.optimizer, "optimizer", trainer.optimizer)
    assert type(theirs).__mro__[0].__name__ == type(built.optimizer).__name__
    assert bool(theirs.defaults.get("fused")) == (built.setup.optimizer_mode == "fused")
    assert sum(p.numel() for group in theirs.param_groups for p in group["params"]) == sum(
        p.numel() for p in built.trainable
    )


def test_the_checkpointing_mode_is_the_same(pair):
    _, _, trainer, built = pair
    assert checkpoint_mode(trainer.model) == checkpoint_mode(built.model) == built.setup.checkpointing


def test_the_forward_saves_the_same_bytes(pair):
    _, _, trainer, built = pair
    trainer.model.train()
    inputs = trainer._prepare_inputs(next(iter(trainer.get_train_dataloader())))
    assert inputs["input_ids"].shape == (BATCH, SEQUENCE)

    def theirs():
        with trainer.compute_loss_context_manager():
            return trainer.compute_loss(trainer.model, inputs)

    def ours():
        from memplan.planner.run import losses

        return losses.forward(built)

    assert saved_bytes(ours, built.model.parameters()) == saved_bytes(theirs, trainer.model.parameters())


@pytest.mark.parametrize("kind", ["chunked", "fused"])
@pytest.mark.parametrize("softcap", [None, 5.0])
def test_a_loss_in_parts_has_the_value_and_the_gradients_of_the_whole_one(kind, softcap):
    from memplan.planner.run.losses import LOSSES

    torch.manual_seed(1)
    head = torch.nn.Linear(16, 70, bias=True)
    hidden, labels = torch.randn(2, 9, 16, requires_grad=True), torch.randint(0, 70, (2, 9))
    labels[0, 3] = -100
    logits = head(hidden)[:, :-1]
    logits = logits if softcap is None else softcap * torch.tanh(logits / softcap)
    whole = torch.nn.functional.cross_entropy(
        logits.reshape(-1, 70), labels[:, 1:].reshape(-1), ignore_index=-100
    )
    parts = LOSSES[kind](hidden, labels, head, softcap)["loss"]
    torch.testing.assert_close(parts, whole)
    wanted = torch.autograd.grad(whole, (hidden, head.weight, head.bias))
    torch.testing.assert_close(torch.autograd.grad(parts, (hidden, head.weight, head.bias)), wanted)


@pytest.mark.parametrize(("kind", "largest"), [("chunked", 4096 * 32768), ("fused", 4096 * 16384)])
def test_a_loss_in_parts_never_holds_whole_logits_on_meta(kind, largest):
    from memplan.planner.run.losses import LOSSES

    head = torch.nn.Linear(4096, 128_000, bias=False, device="meta", dtype=torch.bfloat16).requires_grad_(
        False
    )
    hidden = torch.empty(1, 6000, 4096, device="meta", dtype=torch.bfloat16, requires_grad=True)
    labels = torch.zeros(1, 6000, dtype=torch.int64, device="meta")
    found = []

    class Watch(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            result = func(*args, **(kwargs or {}))
            made = [
                t
                for t in torch.utils._pytree.tree_leaves(result)
                if isinstance(t, torch.Tensor) and not t._is_view()
            ]
            found.extend(t.numel() for t in made if t.numel() != head.weight.numel())
            return result

    with Watch():
        LOSSES[kind](hidden, labels, head, None)["loss"].backward()
    assert max(found) <= largest < 6000 * 128_000 / 5


def test_the_rows_of_a_fused_chunk_are_ligers():
    from memplan.planner.run.fused_loss import rows_of_chunk

    assert rows_of_chunk(6000, 4096, 128_000) == 256  # 6000 / ceil(31.25) = 188 -> 256
    assert rows_of_chunk(3, 64, 320) == 1 and rows_of_chunk(8, 4096, 100) == 8


def state_bytes(model, optimizer):
    """Bytes of each parameter's optimizer states, by dtype."""
    names = {p: name.removeprefix("module.") for name, p in model.named_parameters()}
    return {
        names[p]: sorted(
            (str(value.dtype), value.nbytes)
            for key, value in state.items()
            if torch.is_tensor(value) and not key.startswith("qmap")  # 1 KiB that all parameters share
        )
        for p, state in optimizer.state.items()
    }


def test_8bit_states_of_embeddings_stay_32bit_under_the_trainer(checkpoint, tmp_path):
    pytest.importorskip("bitsandbytes")
    from memplan.planner.formula.engine import plan
    from memplan.planner.inputs.models import find
    from memplan.planner.run.step import run

    trainer = hf_trainer(checkpoint, tmp_path, "full", optim="adamw_bnb_8bit")
    trainer.train()
    theirs = state_bytes(trainer.model, getattr(trainer.optimizer, "optimizer", trainer.optimizer))
    built = our_build(recipe="hf", method="full", optimizer="adamw_bnb_8bit")
    run(built, Unheard())
    ours = state_bytes(built.model, built.optimizer)
    assert ours == theirs
    assert {dtype for dtype, _ in ours["model.embed_tokens.weight"]} == {"torch.float32"}
    assert "torch.uint8" in {dtype for dtype, _ in ours["lm_head.weight"]}
    predicted = plan(find(CONFIG).spec(), built.setup).moment("optimizer_step").components["optimizer_states"]
    assert predicted == sum(size for sizes in ours.values() for _, size in sizes)


class Unheard:
    """Announces moments to nobody."""

    def announce(self, moment, step=-1):
        return contextlib.nullcontext()
