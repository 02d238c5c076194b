import sys

from datasets import load_dataset
from trl import RewardConfig, RewardTrainer

folder = sys.argv[1]
trainer = RewardTrainer(
    model=f"{folder}/model",
    args=RewardConfig(output_dir=f"{folder}/out", per_device_train_batch_size=2, report_to="none"),
    train_dataset=load_dataset("json", data_files=f"{folder}/preferences.jsonl", split="train"),
)
trainer.train()
