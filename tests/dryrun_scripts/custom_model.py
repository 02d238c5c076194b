import sys

import torch
from torch import nn
from torch.nn import functional as F
from transformers import Trainer, TrainingArguments


class Classifier(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(512, 128)
        self.layers = nn.TransformerEncoder(nn.TransformerEncoderLayer(128, 4, 256, batch_first=True), 2)
        self.head = nn.Linear(128, 3)

    def forward(self, input_ids, labels=None):
        logits = self.head(self.layers(self.embed(input_ids)).mean(1))
        return {"loss": F.cross_entropy(logits, labels), "logits": logits}


rows = [{"input_ids": torch.arange(32) + place, "labels": place % 3} for place in range(64)]
args = TrainingArguments(
    f"{sys.argv[1]}/out", per_device_train_batch_size=8, report_to="none", save_strategy="no"
)
Trainer(Classifier(), args, train_dataset=rows).train()
