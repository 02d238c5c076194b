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

UNQUANTIZED = (
    r"(?:without|with no|no|w/o) (?:any )?quantiz\w+|(?:不用|不做|不|无|没有)量化|unquantized|non-quantized"
)
QUANTIZED = r"4[- ]?bits?(?: quantiz\w+)?|nf4|int4|fp4|4\s*(?:位|比特)(?:的)?(?:量化)?(?:后)?|(?<!double )(?<!double-)quantiz(?:ed|ation|ing)|(?<!双重)(?<!双)量化(?:后|之后)?"
"""The base in 4 bits: QLoRA where an adapter is trained, the weights alone where nothing is."""

METHODS_SAID: tuple[tuple[str, str], ...] = (
    (r"q-?lora", "qlora"),
    (r"adalora", "adalora"),
    (r"rs-?lora", "rslora"),
    (r"lora[- ]fa", "lora-fa"),
    (r"lora\+", "lora+"),
    (r"dora", "dora"),
    (r"lora", "lora"),
    (r"ia3|\(ia\)3", "ia3"),
    (r"prefix(?:[- ]?tun\w*)?|前缀(?:微调|调优)?", "prefix-tuning"),
    (r"(?:soft[- ])?prompt[- ]?tun\w*|提示(?:词)?(?:微调|调优)", "prompt-tuning"),
    (
        r"(?:bottleneck|houlsby|series) adapters?|adapter[- ]?(?:tun\w*|fine[- ]?tun\w*|training|layers?)|适配器(?:微调|调优|训练)",
        "adapter",
    ),
    (
        r"(?:full(?:y)?|sft full)(?:[- ]?(?:parameters?|param|fine[- ]?tun\w*|ft|train\w*|sft|weights?))*|全参数?(?:量)?(?:微调|训练)?"
        r"|全量(?:参数)?(?:微调|训练)?|全部参数(?:都)?(?:微调|训练)",
        "full",
    ),
    (r"inference|infer(?:ring)?|serv(?:e|ing)|推理|部署", "inference"),
)

FROZEN = r"freez(?:e|ing)(?: (?:the )?(?:first|lower|all but the last) \S+)?(?: layers?)?|frozen|last[- ]layers?(?: only)?|冻结(?:部分|大部分|前面?几?)?(?:的)?(?:层)?(?:微调)?"
"""The method that trains the last layers alone, unless another method is named: LoRA's base is frozen too."""

SWITCHES: tuple[tuple[str, str, Any], ...] = (
    (
        r"(?:no|without|w/o|disable|disabling) (?:gradient |activation )?checkpoint(?:ing|s)?|(?:gradient |activation )?checkpointing (?:off|disabled)"
        r"|(?:不用|不开|没有|没开|无|关闭|关掉|不使用|不启用)(?:梯度|激活)?检查点|(?:梯度|激活)?检查点(?:关闭|不开|关掉)",
        "checkpointing",
        "none",
    ),
    (
        r"(?:with |and )?(?:gradient |activation )?(?:checkpointing|checkpoints?)(?: on| enabled)?|(?:开启?|带|打开|启用)?(?:了)?(?:梯度|激活)?检查点(?:打开|开启)?|gc",
        "checkpointing",
        "non_reentrant",
    ),
    (r"paged[- ]adamw?[- ]?32[- ]?bit", "optimizer", "paged_adamw_32bit"),
    (
        r"paged[- ](?:adamw?(?:[- ]?8[- ]?bit)?|optimi[sz]ers?)|paging|分页(?:优化器|adamw?|机制)?",
        "optimizer",
        "paged_adamw_8bit",
    ),
    (
        r"(?:no|without|w/o|disable) double[- ]?quant\w*|(?:不用|不开|没有|无|不做)双重?量化",
        "double_quant",
        False,
    ),
    (r"(?:with )?double[- ]?quant\w*|双重?量化", "double_quant", True),
    (r"(?:8[- ]?bit|8\s*位) ?adamw?|adamw?[- ]?8[- ]?bit", "optimizer", "adamw_bnb_8bit"),
    (r"adafactor", "optimizer", "adafactor"),
    (r"sgd", "optimizer", "sgd"),
    (r"adamw?", "optimizer", None),
    (r"(?:llm\.)?int8|8[- ]?bit|8\s*(?:位|比特)(?:量化)?", "quant_type", "int8"),
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
    (r"fsdp ?1|fsdp v1", "parallel", "fsdp1"),
    (r"fsdp2?", "parallel", "fsdp"),
    (r"ddp|数据并行", "parallel", "ddp"),
    (r"all[- ]linear(?: layers?)?|全部?线性层|所有线性层", "targets", ("all-linear",)),
    (r"sft|supervised fine-?tuning|(?:有)?监督微调|指令微调|instruction[- ]?tuning", "task", "sft"),
    (r"dpo|direct preference optimi[sz]ation|直接偏好优化", "task", "dpo"),
    (r"orpo", "task", "orpo"),
    (r"cpo", "task", "cpo"),
    (r"kto", "task", "kto"),
    (r"grpo", "task", "grpo"),
    (r"rloo", "task", "rloo"),
    (r"prm|process[- ]reward model(?:s|ing|ling)?", "task", "prm"),
    (r"distill(?:ing|ation)?|知识蒸馏", "task", "distill"),
    (r"(?:text |sentence )?embedding models?|sentence[- ]transformers?", "task", "embed"),
    (r"ppo", "task", "ppo"),
    (r"gkd", "task", "gkd"),
    (r"reward model(?:s|ing|ling)?|奖励模型", "task", "reward"),
    (r"(?:sequence |text )?classif(?:ication|ier)|(?:文本|序列)?分类(?:任务|模型)?", "task", "classify"),
)

_SEQUENCE = r"seq(?:uence)?(?:[- ]?len(?:gth)?)?|context(?: (?:length|window|size))?|序列(?:长度)?|上下文(?:长度)?|长度"
_IS = r"\s*(?:of|=|:|为|是)?\s*"
NUMBERS: tuple[tuple[str, str], ...] = (
    (rf"(?:{_SEQUENCE}){_IS}(\d+)\s*(k)?", "sequence_length"),
    (
        r"(\d+)\s*(k)?[- ]?(?:tokens?|context(?: length| window)?|个?\s*token|上下文|长度|的?序列)",
        "sequence_length",
    ),
    (
        rf"(?:an? )?(?:eval(?:uation)?|validation|评估|验证)[- ]?(?:batch(?:[- ]?size)?|bs|批(?:次)?(?:大小)?){_IS}(\d+)",
        "eval_batch",
    ),
    (
        r"(\d+)\s+(?:different )?(?:loras|(?:lora )?adapters)(?: (?:on one|on a single|side by side|at once))?",
        "adapters",
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

PAIRED = {
    "rank": r"(?:lora )?rank|秩|r",
    "sequence_length": _SEQUENCE,
    "micro_batch": r"(?:micro[- ]?)?(?:batch(?:[- ]?size)?|bs|批(?:次)?(?:大小)?)",
}
"""Settings of which a question may name two values: from 8 to 64, rank 8 or 64."""
CHANGED = r"从|from|改|变|提高|增|升|降|换|->"
"""What says that the second of two values comes after the first."""
TO = r"(?:改成|改为|变成|变为|提高到|增加到|增大到|升到|降到|换成|到|至|和|与|或|还是|/|to|->|vs\.?|versus|and|or|instead of|rather than)"

OPPOSITE: dict[tuple[str, object], tuple[str, object]] = {
    ("checkpointing", "non_reentrant"): ("checkpointing", "none"),
    ("checkpointing", "none"): ("checkpointing", "non_reentrant"),
    ("double_quant", True): ("double_quant", False),
    ("double_quant", False): ("double_quant", True),
    ("optimizer", "paged_adamw_8bit"): ("optimizer", "adamw_bnb_8bit"),
    ("optimizer", "paged_adamw_32bit"): ("optimizer", "adamw_torch_fused"),
    ("optimizer", "adamw_bnb_8bit"): ("optimizer", "adamw_torch_fused"),
    ("optimizer", "adafactor"): ("optimizer", "adamw_torch_fused"),
    ("optimizer", "sgd"): ("optimizer", "adamw_torch_fused"),
    ("attention", "flash_attention_2"): ("attention", "eager"),
    ("weight_dtype", "bfloat16"): ("weight_dtype", "float32"),
    ("weight_dtype", "float16"): ("weight_dtype", "float32"),
    **{("task", name): ("task", "sft") for name in ("dpo", "orpo", "cpo", "kto", "reward", "classify")},
    ("method", "qlora"): ("method", "lora"),
    ("method", "lora"): ("method", "full"),
}
"""What a setting is compared with where only one side is said: how much does checkpointing save?"""

UNANSWERED: tuple[tuple[str, str], ...] = (
    (
        r"accuracy|perplexity|quality|overfit\w*|forgetting|converge\w*|better|worse|准确率|质量|效果|遗忘|过拟合|收敛|哪个好",
        "memory does not decide it, and nothing else is predicted",
    ),
    (
        r"(?<!gpu )(?<!video )(?:ram|host memory|main memory|system memory)|内存",
        "main memory is not predicted: ask for GPU memory (VRAM, 显存)",
    ),
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
        r"(?:continued? |continual )?pre-?train(?:s|ing)?(?! (?:model|weights|checkpoint))|(?:继续|增量|从头)预训练|预训练(?!(?:好|过|完)?的?(?:大?(?:语言)?模型|权重|底座|基座|参数|llm))",
        "pretraining is not one of the methods: ask for full fine-tuning, which holds the same tensors",
    ),
    (
        r"i?phones?|ipads?|android|smartphones?|mobile(?: phones?)?|raspberry(?: pi)?|microcontrollers?|wearables?|手机|平板|安卓|苹果手机|树莓派|物联网|iot",
        "not modeled as a device: ask with the memory that it leaves free, such as 6GiB",
    ),
    (
        r"tpus?|trainium|inferentia|npus?|gaudi|昇腾|寒武纪",
        "its kernels and allocator are not modeled: GPUs are",
    ),
    (
        r"p[- ]?tuning(?:[- ]v2)?|lo(?:ha|kr)|vera|boft|oft|galore|lisa|bitfit|badam|relora|loftq|pissa",
        "not one of the methods asked about in sentences: memplan plan MODEL --adapter adapter_config.json",
    ),
    (
        r"rlhf|强化学习|知识蒸馏|distill(?:ation|ing)",
        "several kinds of training: name one of them, such as DPO, GRPO or reward model (memplan list tasks)",
    ),
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
