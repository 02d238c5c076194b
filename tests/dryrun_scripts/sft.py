import sys

from datasets import load_dataset
from peft import LoraConfig
from trl import SFTConfig, SFTTrainer

folder = sys.argv[1]
trainer = SFTTrainer(
    model=f"{folder}/model",
    args=SFTConfig(output_dir=f"{folder}/out", per_device_train_batch_size=2, report_to="none"),
    train_dataset=load_dataset("json", data_files=f"{folder}/text.jsonl", split="train"),
    peft_config=LoraConfig(r=8, target_modules="all-linear"),
)
trainer.train()
