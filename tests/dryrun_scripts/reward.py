import sys

from datasets import load_dataset
from peft import LoraConfig
from trl import RewardConfig, RewardTrainer

folder = sys.argv[1]
adapter = (
    LoraConfig(r=8, task_type="SEQ_CLS", target_modules="all-linear") if sys.argv[2:] == ["lora"] else None
)
trainer = RewardTrainer(
    model=f"{folder}/model",
    args=RewardConfig(output_dir=f"{folder}/out", per_device_train_batch_size=2, report_to="none"),
    train_dataset=load_dataset("json", data_files=f"{folder}/preferences.jsonl", split="train"),
    peft_config=adapter,
)
trainer.train()
