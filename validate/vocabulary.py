"""The words that `memplan ask` knows, English and Chinese, as tables: a pattern and what it says. Word
boundaries are Latin's alone.
"""

from __future__ import annotations

from typing import Any

WIDE = {
    ord(a): b
    for a, b in zip("，。？！（）：；＝×＋０１２３４５６７８９", ",.?!():;=x+0123456789", strict=True)
}

COUNTS = {
    "one": 1,
    "two": 2,
    "three": 3,
    "four": 4,
    "six": 6,
    "eight": 8,
    "sixteen": 16,
    "single": 1,
    "a": 1,
    "an": 1,
    "一": 1,
    "单": 1,
    "两": 2,
    "二": 2,
    "双": 2,
    "三": 3,
    "四": 4,
    "六": 6,
    "八": 8,
    "十六": 16,
}

METHODS_SAID: tuple[tuple[str, str], ...] = (
    (r"q-?lora|4[- ]?bit|nf4|int4|4\s*位(?:量化)?|4比特(?:量化)?", "qlora"),
    (r"adalora", "adalora"),
    (r"rs-?lora", "rslora"),
    (r"lora[- ]fa", "lora-fa"),
    (r"lora\+", "lora+"),
    (r"dora", "dora"),
    (r"lora", "lora"),
    (r"ia3|\(ia\)3", "ia3"),
    (r"prefix[- ]tuning", "prefix-tuning"),
    (r"prompt[- ]tuning", "prompt-tuning"),
    (
        r"(?:full(?:y)?|sft full)(?:[- ]?(?:parameters?|param|fine[- ]?tun\w*|ft|train\w*))*|全参数?(?:量)?(?:微调|训练)?"
        r"|全量(?:参数)?(?:微调|训练)?",
        "full",
    ),
    (r"inference|infer(?:ring)?|serv(?:e|ing)|推理|部署", "inference"),
)

SWITCHES: tuple[tuple[str, str, Any], ...] = (
    (
        r"(?:no|without|w/o) (?:gradient |activation )?checkpointing|(?:不用|不开|没有|无)(?:梯度)?检查点",
        "checkpointing",
        "none",
    ),
    (
        r"(?:with |and )?(?:gradient |activation )?(?:checkpointing|checkpoints?)(?: on)?|(?:开|带)?(?:梯度)?检查点|gc",
        "checkpointing",
        "non_reentrant",
    ),
    (r"paged[- ]adamw?(?:[- ]?(?:32|8)[- ]?bit)?|分页优化器", "optimizer", "paged_adamw_8bit"),
    (r"(?:8[- ]?bit|8\s*位) ?adamw?|adamw?[- ]?8[- ]?bit", "optimizer", "adamw_bnb_8bit"),
    (r"adafactor", "optimizer", "adafactor"),
    (r"sgd", "optimizer", "sgd"),
    (r"adamw?", "optimizer", None),
    (r"(?:llm\.)?int8|8[- ]?bit|8\s*位(?:量化)?", "quant_type", "int8"),
    (r"float32|fp32|全精度|单精度|mixed precision|混合精度|amp", "weight_dtype", "float32"),
    (r"float16|fp16|半精度", "weight_dtype", "float16"),
    (r"bfloat16|bf16", "weight_dtype", "bfloat16"),
    (r"as (?:in )?(?:the |its )?paper|论文(?:设置|配方)?", "recipe", "paper"),
    (r"axolotl", "recipe", "axolotl"),
    (r"trl", "recipe", "trl"),
    (r"llama[- ]?factory", "recipe", "llamafactory"),
    (r"flash[- ]?att(?:entio)?n(?:[- ]?2)?|fa2", "attention", "flash_attention_2"),
    (r"eager(?: attention)?", "attention", "eager"),
    (r"(?:deepspeed )?zero[- ]?1", "parallel", "zero1"),
    (r"(?:deepspeed )?zero[- ]?2", "parallel", "zero2"),
    (r"(?:deepspeed )?zero[- ]?3", "parallel", "zero3"),
    (r"fsdp2?", "parallel", "fsdp"),
    (r"ddp|数据并行", "parallel", "ddp"),
    (r"all[- ]linear(?: layers?)?|全部?线性层|所有线性层", "targets", ("all-linear",)),
)

_SEQUENCE = r"seq(?:uence)?(?:[- ]?len(?:gth)?)?|context(?: (?:length|window|size))?|序列(?:长度)?|上下文(?:长度)?|长度"
_IS = r"\s*(?:of|=|:|为|是)?\s*"
NUMBERS: tuple[tuple[str, str], ...] = (
    (rf"(?:{_SEQUENCE}){_IS}(\d+)\s*(k)?", "sequence_length"),
    (
        r"(\d+)\s*(k)?[- ]?(?:tokens?|context(?: length| window)?|个?\s*token|上下文|长度|的?序列)",
        "sequence_length",
    ),
    (rf"(?:micro[- ]?)?(?:batch(?:[- ]?size)?|bs|批(?:次)?(?:大小)?){_IS}(\d+)", "micro_batch"),
    (r"(\d+)[- ]batch", "micro_batch"),
    (
        rf"(?:grad(?:ient)?[- ]accum(?:ulation)?(?: steps)?|梯度累积){_IS}(\d+)(?: steps?|步)?",
        "gradient_accumulation",
    ),
    (rf"(?:rank|秩|r){_IS}(\d+)", "rank"),
    (rf"(?:lora[- ])?alpha{_IS}(\d+)", "alpha"),
    (r"(\d+)\s*(k)", "sequence_length"),
)

WANTED: tuple[tuple[str, str], ...] = (
    (
        r"(?:how many|number of) (?:\S+ )?(?:gpus?|cards?|[ablh]\d+\w*|\d{4}s?)|几张|多少张|几块|多少块|几卡|多少卡",
        "cards",
    ),
    (
        r"(?:max(?:imum)?|longest|largest) (?:sequence|seq|context)(?: ?len(?:gth)?| window)?|how long"
        r"|(?:最长|最大)(?:的)?(?:序列|上下文)(?:长度)?"
        r"|(?:序列|上下文)(?:长度)?(?:最长|最大|能到|可以到|能开)?多(?:长|少|大)|最长",
        "sequence_length",
    ),
    (
        r"(?:what|max(?:imum)?|largest|biggest|which) (?:micro[- ]?)?batch(?:[- ]?size)?|最大(?:的)?(?:批|batch)(?:大小|次|[- ]?size)?"
        r"|(?:batch(?:[- ]?size)?|批(?:大小)?)(?:最大|能到|能开|可以)?多(?:少|大)",
        "micro_batch",
    ),
)

UNANSWERED: tuple[tuple[str, str], ...] = (
    (r"gptq|awq|gguf|exl2|aqlm|hqq", "weights quantized that way are not predicted: nf4, fp4 and int8 are"),
    (r"unsloth", "its kernels are not modeled: ask without it for the nearest answer (hf)"),
    (r"vllm|sglang|tensorrt", "serving engines are not modeled: ask for inference alone"),
    (
        r"tensor[- ]parallel\w*|pipeline[- ]parallel\w*|张量并行|流水线并行|megatron",
        "tensor and pipeline parallelism are not predicted: fsdp, zero1 to zero3 and ddp are",
    ),
    (
        r"(?:cpu |nvme )?offload\w*|卸载",
        "offloading is a setting of a strategy: memplan plan MODEL --gpus 8 --parallel zero3 --set "
        "offload=all",
    ),
    (
        r"pre-?train\w*|预训练",
        "pretraining is not one of the methods: ask for full fine-tuning, which holds the same tensors",
    ),
    (r"rlhf|ppo|grpo|dpo", "preference and reinforcement training hold more than one model: not predicted"),
)
"""What would change the answer and cannot be read: refused, never ignored."""

SPELT = (
    "qlora",
    "adalora",
    "mistral",
    "mixtral",
    "falcon",
    "deepseek",
    "tinyllama",
    "checkpointing",
    "inference",
    "sequence",
    "llama",
)
"""Words that are read with one letter wrong, missing or more, and said so."""
