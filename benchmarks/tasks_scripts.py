"""The training scripts of benchmarks/tasks_dryrun.py: the trainers as their documentation calls them."""

from __future__ import annotations

HEAD = """
import sys
from datasets import Dataset
from peft import LoraConfig, get_peft_model
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoModelForSequenceClassification, BitsAndBytesConfig, PreTrainedTokenizerFast
from transformers import Trainer, TrainingArguments, default_data_collator
from trl import DPOConfig, DPOTrainer, KTOConfig, KTOTrainer, RewardConfig, RewardTrainer
folder, method = sys.argv[1:3]
batch, tokens, checkpoints = map(int, sys.argv[3:6])
said = dict(word.split("=") for word in sys.argv[6:] if "=" in word)
names = ["<pad>", "</s>", "<unk>", "a"]
if "reward_model" in said:  # which reads completions as text: what is sampled here, 0, is to be a word
    names = ["a", "</s>", "<unk>", "<pad>"]
words = Tokenizer(models.WordLevel({name: i for i, name in enumerate(names)}, unk_token="<unk>"))
words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
tokenizer = PreTrainedTokenizerFast(
    tokenizer_object=words, pad_token="<pad>", eos_token="</s>", unk_token="<unk>")
common = dict(
    output_dir="out", per_device_train_batch_size=batch, max_steps=3, report_to=[], save_strategy="no",
    gradient_checkpointing=bool(checkpoints), bf16=True)
def lora(task_type, targets="all-linear"):
    return None if method == "full" else LoraConfig(
        r=16, lora_alpha=32, lora_dropout=0.05, target_modules=targets, task_type=task_type)
bits = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype="bfloat16")
quantized = dict(quantization_config=bits) if method == "qlora" else {}
"""
WHOLE_LOGITS = """
text = " a" * tokens
from transformers import AutoModelForCausalLM
model = AutoModelForCausalLM.from_pretrained(folder, dtype="bfloat16", device_map="auto", **quantized)
trainer = NAMETrainer(
    model=model, args=NAMEConfig(**common, max_length=tokens), processing_class=tokenizer,
    train_dataset=Dataset.from_list([{"prompt": "a", "chosen": text, "rejected": text}] * 64),
    peft_config=lora("CAUSAL_LM"))
trainer.train()
"""
DPO = """
text = " a" * tokens
trainer = DPOTrainer(
    model=folder, args=DPOConfig(**common, max_length=tokens, model_init_kwargs={"dtype": "bfloat16"}),
    train_dataset=Dataset.from_list([{"prompt": "a", "chosen": text, "rejected": text}] * 64),
    processing_class=tokenizer, peft_config=lora("CAUSAL_LM"), **quantized)
trainer.train()
"""
SAMPLED = """
from trl import NAMEConfig, NAMETrainer
completion, accumulation = map(int, sys.argv[6:8])
tokenizer.padding_side = "left"
def lengths(completions, **kwargs):
    return [float(len(each)) for each in completions]
rewards = dict(reward_funcs=lengths)
if "reward_model" in said:
    rewards = dict(reward_funcs=folder + "/reward_model", reward_processing_classes=tokenizer)
trainer = NAMETrainer(
    model=folder, **rewards, processing_class=tokenizer, peft_config=lora("CAUSAL_LM"),
    args=NAMEConfig(
        **common, gradient_accumulation_steps=accumulation, num_generations=4, beta=0.04,
        max_completion_length=completion, generation_kwargs={"min_new_tokens": completion},
        top_p=float(said.get("top_p", 1)), top_k=int(said.get("top_k", 0)),
        model_init_kwargs={"dtype": "bfloat16"}),
    train_dataset=Dataset.from_list([{"prompt": "a " * (tokens - completion)}] * 64), **quantized)
trainer.train()
"""
SCRIPTS = {
    "classify": """
model = AutoModelForSequenceClassification.from_pretrained(
    folder, num_labels=5, dtype="bfloat16", device_map="auto")
model.config.pad_token_id = 0
if method != "full":
    model = get_peft_model(model, lora("SEQ_CLS"))
row = {"input_ids": [3] * tokens, "attention_mask": [1] * tokens, "labels": 1}
trainer = Trainer(
    model=model, args=TrainingArguments(**common), train_dataset=[row] * 64,
    data_collator=default_data_collator)
trainer.train()
""",
    "reward": """
ids = [3] * tokens
trainer = RewardTrainer(
    model=folder, args=RewardConfig(**common, max_length=tokens, model_init_kwargs={"dtype": "bfloat16"}),
    train_dataset=Dataset.from_list([{"chosen_ids": ids, "rejected_ids": ids}] * 64),
    processing_class=tokenizer, peft_config=lora("SEQ_CLS"), **quantized)
trainer.train()
""",
    "prm": """
from transformers import AutoModelForTokenClassification
from trl.experimental.prm import PRMConfig, PRMTrainer
model = AutoModelForTokenClassification.from_pretrained(
    folder, num_labels=2, dtype="bfloat16", device_map="auto")
trainer = PRMTrainer(
    model=model, args=PRMConfig(**common, max_length=tokens), processing_class=tokenizer,
    train_dataset=Dataset.from_list([{"input_ids": [3] * tokens, "labels": [-100, 1] * (tokens // 2)}] * 64),
    peft_config=lora("TOKEN_CLS", None))
trainer.train()
""",
    "kto": """
text = " a" * tokens
rows = [{"prompt": "a", "completion": text, "label": bool(i % 2)} for i in range(64)]
trainer = KTOTrainer(
    model=folder, args=KTOConfig(**common, max_length=tokens, model_init_kwargs={"dtype": "bfloat16"}),
    train_dataset=Dataset.from_list(rows), processing_class=tokenizer, peft_config=lora("CAUSAL_LM"),
    **quantized)
trainer.train()
""",
    "dpo": DPO,
    "orpo": """
from trl.experimental.orpo import ORPOConfig, ORPOTrainer
"""
    + WHOLE_LOGITS.replace("NAME", "ORPO"),
    "cpo": """
from trl.experimental.cpo import CPOConfig, CPOTrainer
"""
    + WHOLE_LOGITS.replace("NAME", "CPO"),
    "grpo": SAMPLED.replace("NAME", "GRPO"),
    "rloo": SAMPLED.replace("NAME", "RLOO"),
    "distill": """
from trl import DistillationConfig, DistillationTrainer
completion, accumulation = map(int, sys.argv[6:8])
tokenizer.padding_side = "left"
trainer = DistillationTrainer(
    model=folder, teacher_model=folder + "/teacher", processing_class=tokenizer,
    peft_config=lora("CAUSAL_LM"),
    args=DistillationConfig(
        **common, gradient_accumulation_steps=accumulation, max_completion_length=completion,
        generation_kwargs={"min_new_tokens": completion}, model_init_kwargs={"dtype": "bfloat16"},
        teacher_model_init_kwargs={"dtype": "bfloat16"}),
    train_dataset=Dataset.from_list([{"prompt": "a " * (tokens - completion)}] * 64))
trainer.train()
""",
    "ppo": """
import os
from transformers import AutoModelForCausalLM
from trl.experimental.ppo import PPOConfig, PPOTrainer
completion, accumulation = map(int, sys.argv[6:8])
tokenizer.padding_side, tokenizer.pad_token = "left", "<unk>"
judge = folder + "/reward_model" if "reward_model" in said else folder
def headed():
    return AutoModelForSequenceClassification.from_pretrained(judge, num_labels=1, dtype="bfloat16")
def policy():
    return AutoModelForCausalLM.from_pretrained(folder, dtype="bfloat16")
common.pop("max_steps")
data = Dataset.from_list([{"input_ids": [3] * (tokens - completion)}] * 64)
if "autocast" in said:  # as accelerate launch --mixed_precision bf16 does
    os.environ["ACCELERATE_MIXED_PRECISION"] = "bf16"
trainer = PPOTrainer(
    processing_class=tokenizer, model=policy(), ref_model=policy() if method == "full" else None,
    reward_model=headed(), value_model=headed(), peft_config=lora("CAUSAL_LM"),
    args=PPOConfig(
        **common, gradient_accumulation_steps=accumulation, response_length=completion, num_ppo_epochs=2,
        total_episodes=3 * batch * accumulation, num_mini_batches=int(said.get("num_mini_batches", 1)),
        local_rollout_forward_batch_size=int(said.get("rollout_batch", 64)),
        per_device_eval_batch_size=int(said.get("eval_batch", 8))),
    train_dataset=data, eval_dataset=data if "eval_batch" in said else None)
trainer.train()
""",
    "embed": """
from sentence_transformers import SentenceTransformer, SentenceTransformerTrainer
from sentence_transformers import SentenceTransformerTrainingArguments
from sentence_transformers.losses import CachedMultipleNegativesRankingLoss, MultipleNegativesRankingLoss
tokenizer.model_max_length = tokens
tokenizer.save_pretrained(folder)
model = SentenceTransformer(folder, model_kwargs={"dtype": said.get("weight_dtype", "bfloat16")})
if method != "full":
    model[0].auto_model = get_peft_model(model[0].auto_model, lora("FEATURE_EXTRACTION"))
size, names = said.get("mini_batch"), ["anchor", "positive", "negative"][: int(said["texts"])]
loss = CachedMultipleNegativesRankingLoss(model, mini_batch_size=int(size)) if size else None
loss = loss or MultipleNegativesRankingLoss(model)
trainer = SentenceTransformerTrainer(
    model=model, args=SentenceTransformerTrainingArguments(**common), loss=loss,
    train_dataset=Dataset.from_list([dict.fromkeys(names, "a " * tokens)] * 64))
trainer.train()
""",
    "mlm": """
from transformers import AutoModelForMaskedLM, DataCollatorForLanguageModeling
tokenizer.add_special_tokens({"mask_token": "<mask>"})
model = AutoModelForMaskedLM.from_pretrained(folder, dtype="bfloat16", device_map="auto")
row = {"input_ids": [3] * tokens, "attention_mask": [1] * tokens}
trainer = Trainer(
    model=model, args=TrainingArguments(**common), train_dataset=[row] * 64,
    data_collator=DataCollatorForLanguageModeling(tokenizer))
trainer.train()
""",
    "seq2seq": """
from transformers import AutoModelForSeq2SeqLM, DataCollatorForSeq2Seq
from transformers import Seq2SeqTrainer, Seq2SeqTrainingArguments
model = AutoModelForSeq2SeqLM.from_pretrained(folder, dtype="bfloat16", device_map="auto")
if method != "full":
    model = get_peft_model(model, lora("SEQ_2_SEQ_LM"))
row = {"input_ids": [3] * tokens, "attention_mask": [1] * tokens, "labels": [3] * (tokens // 4)}
trainer = Seq2SeqTrainer(
    model=model, args=Seq2SeqTrainingArguments(**common), train_dataset=[row] * 64,
    data_collator=DataCollatorForSeq2Seq(tokenizer, model=model))
trainer.train()
""",
}
BERT = {
    "architectures": ["BertForMaskedLM"],
    "model_type": "bert",
    "hidden_size": 768,
    "intermediate_size": 3072,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "max_position_embeddings": 512,
    "type_vocab_size": 2,
    "vocab_size": 30522,
    "pad_token_id": 0,
}
T5 = {
    "architectures": ["T5ForConditionalGeneration"],
    "model_type": "t5",
    "d_model": 768,
    "d_ff": 3072,
    "d_kv": 64,
    "num_layers": 12,
    "num_heads": 12,
    "vocab_size": 32128,
    "decoder_start_token_id": 0,
    "eos_token_id": 1,
    "pad_token_id": 0,
    "is_encoder_decoder": True,
}
LARGE = BERT | {
    "hidden_size": 1024,
    "intermediate_size": 4096,
    "num_hidden_layers": 24,
    "num_attention_heads": 16,
}
E5 = LARGE | {
    "architectures": ["XLMRobertaModel"],
    "model_type": "xlm-roberta",
    "max_position_embeddings": 514,
    "type_vocab_size": 1,
    "vocab_size": 250002,
    "pad_token_id": 1,
}
CONFIGS = {"bert-base": BERT, "bge-large": LARGE, "e5-large": E5, "t5-base": T5}
"""Models that the catalog, of decoders, does not have: google-bert/bert-base-uncased, BAAI/bge-large-en-v1.5,
intfloat/multilingual-e5-large, google-t5/t5-base."""
