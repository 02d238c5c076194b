import sys

from datasets import load_dataset
from trl import GRPOConfig, GRPOTrainer

folder = sys.argv[1]


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
)
trainer.train()
