import sys

from datasets import load_dataset
from peft import LoraConfig
from trl import GRPOConfig, GRPOTrainer

folder = sys.argv[1]
adapter = LoraConfig(r=8, target_modules="all-linear") if sys.argv[2:] == ["lora"] else None


def shorter_is_better(completions, **kwargs):
    return [-float(len(text)) for text in completions]


trainer = GRPOTrainer(
    model=f"{folder}/model",
    args=GRPOConfig(
        output_dir=f"{folder}/out",
        per_device_train_batch_size=4,
        num_generations=4,
        max_completion_length=16,
        report_to="none",
    ),
    reward_funcs=shorter_is_better,
    train_dataset=load_dataset("json", data_files=f"{folder}/prompts.jsonl", split="train"),
    peft_config=adapter,
)
trainer.train()
