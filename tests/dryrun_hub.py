"""What unmodified scripts find on disk: a config, a tokenizer that is trained here, rows of data."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

SMALL: dict[str, Any] = {
    "model_type": "llama",
    "architectures": ["LlamaForCausalLM"],
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 512,
    "max_position_embeddings": 256,
    "tie_word_embeddings": False,
    "pad_token_id": 0,
    "eos_token_id": 1,
    "bos_token_id": 1,
    "dtype": "bfloat16",
}
PARAMETERS = 2 * 512 * 64 + 64 + 2 * (2 * 64 * 64 + 2 * 64 * 32 + 3 * 64 * 128 + 2 * 64)
"""Of the small model: embedding and head, the last norm, and a layer's attention, MLP and norms twice."""
TEXTS = [f"the run number {place} needs {place * place} bytes of memory on a card" for place in range(64)]
CHAT = "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}</s>{% endfor %}"


def layout(folder: Path, config: dict[str, Any] | None = None) -> Path:
    """A model's folder (config, tokenizer); beside it JSON Lines of text, of preferences, of prompts."""
    import transformers
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers

    model = folder / "model"
    model.mkdir(parents=True)
    (model / "config.json").write_text(json.dumps(config or SMALL))
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    trainer = trainers.BpeTrainer(vocab_size=512, special_tokens=["<pad>", "</s>", "<unk>"])
    tokenizer.train_from_iterator(TEXTS, trainer)
    transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", eos_token="</s>", unk_token="<unk>", chat_template=CHAT
    ).save_pretrained(model)
    rows = {
        "text": [{"text": text} for text in TEXTS],
        "preferences": [{"prompt": text[:20], "chosen": text[20:], "rejected": text[::-1]} for text in TEXTS],
        "prompts": [{"prompt": text[:20]} for text in TEXTS],
    }
    for name, found in rows.items():
        (folder / f"{name}.jsonl").write_text("\n".join(map(json.dumps, found)))
    return folder
