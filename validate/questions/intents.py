"""What kind of question a sentence is: a table of wordings, and negation. Where no wording is found, it is
asked whether something fits, or what it needs where no GPU is named.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from memplan.validate.reading import B, E, Reading

FITS = "fits"


@dataclass(frozen=True)
class Intent:
    """One kind of question: the wording that decides it, and words that belong to it wherever they stand."""

    name: str
    decides: str
    also: str = ""


_NEEDS = r"needs?|needed|requires?|required|takes?|consumes?|occupy|occupies|cost|需要?|占用?|消耗"
INTENTS: tuple[Intent, ...] = (
    Intent(
        "why",
        r"why|how come|for what reason|为什么|为何|为啥|原因(?:是什么|何在)?",
        rf"slow(?:er)?|fast(?:er)?|更?慢|更?快|比|than|much|so|{_NEEDS}|显存",
    ),
    Intent(
        "cost",
        r"(?:how much )?(?:money|dollars?|usd|price|budget in|rent(?:al)?|pay)|how (?:much|expensive) (?:does it|would it|will it|is it to)? ?cost"
        r"|cost(?:s)? (?:to|of)|expensive|cheaper|多少钱|花费|成本|费用|租金|便宜吗|贵",
        r"cost|how much|多少",
    ),
    Intent(
        "sequence_length",
        r"(?:max(?:imum)?|longest|largest) (?:sequence|seq|context)(?: ?len(?:gth)?| window)?"
        r"|how long (?:a |an |the |can the |can my |of a )*(?:sequence|seq|context|prompt|input)\w*"
        r"|(?:what|which) (?:sequence|seq|context)(?: ?len(?:gth)?| window)?|how many tokens"
        r"|(?:最长|最大)(?:的)?(?:序列|上下文)(?:长度)?|多长(?:的)?(?:序列|上下文|文本|输入)|多少(?:个)?token"
        r"|(?:序列|上下文)(?:长度)?(?:最长|最大|能到|可以到|能开|能|可以|开到|是|为)*多(?:长|少|大)|最长",
        r"多长|最长|最大|max(?:imum)?",
    ),
    Intent(
        "time",
        r"how (?:long|fast|slow|quick\w*)|how many (?:hours|minutes|days|seconds)|(?:training |step |wall )?time|speed|throughput"
        r"|slow(?:er|s)?|faster|latency|tokens per second|多久|多长时间|几(?:个)?小时|几天|多少(?:小时|时间|天)"
        r"|训练时间|耗时|速度|时间|(?:更|要|会)?慢(?:多少|很多|吗)?|(?:更|要|会)?快(?:多少|很多)|吞吐量?|延迟",
        rf"much|than|compared to|{_NEEDS}|比|hours?|多少|要",
    ),
    Intent(
        "kv_cache",
        r"kv[- ]?cache|key[- /]*value cache|kv\s*缓存|键值缓存",
        rf"how (?:much|big|large)|large|big|{_NEEDS}|多少|多大|缓存",
    ),
    Intent(
        "file",
        r"(?:(?:adapter|checkpoint|model|safetensors) )?files?(?: sizes?)?|checkpoint sizes?|on disk|disk space|safetensors"
        r"|how (?:big|large) (?:is|are|would be) (?:the |a |my )?(?=(?:\S+ ){0,2}(?:adapters?|checkpoints?))"
        r"|(?:权重|适配器|模型|检查点)?文件(?:有)?(?:多大|大小)?|多少\s*mb|占(?:多少)?(?:磁盘|硬盘)(?:空间)?|保存(?:下来)?(?:的)?(?:文件)?(?:有)?多大",
        rf"adapters?|checkpoints?|files?|size|how (?:big|large|much)|disk|saved?|saving|适配器|保存|{_NEEDS}|多大|多少",
    ),
    Intent(
        "parameters",
        r"(?:how many|number of|what (?:share|percent\w*|fraction) of|count of) (?:the )?(?:trainable |additional |extra |new )?(?:parameters?|params|weights)"
        r"|trainable (?:parameters?|params)|可训练(?:的)?参数(?:量|数)?|多少(?:个)?(?:可训练)?参数|参数(?:量|数)?(?:有|是|为)?多少"
        r"|训练(?:了)?(?:百分之)?多少(?:的)?参数|参数(?:占比|比例)",
        r"trainable|added?|adds?|parameters?|params|占比|比例|增加|多少|量|占",
    ),
    Intent(
        "largest_model",
        r"(?:biggest|largest|max(?:imum)?)(?: \w+)? (?:model|llm)(?: size)?|(?:what|which|how (?:big|large)(?: of)?(?: an?)?) (?:size )?(?:models?|llms?)(?: sizes?)?"
        r"|how many (?:b|billion)|多大(?:的|规模的?|参数(?:量|规模)?的?|尺寸的?)*(?:大?语言)?(?:大?模型)|最大(?:的)?(?:能|可以)?(?:\S{0,6})?(?:多大)?(?:的)?模型"
        r"|(?:什么|哪些)(?:规模的?)?(?:大?模型)|多少\s*b(?:的模型)?|最大(?:能|可以)\S{0,6}?多大|多大(?:的)?模型",
        r"biggest|largest|最大|多大|多少|规模",
    ),
    Intent(
        "cards",
        r"(?:how many|number of) (?:(?:\S+ )?(?:gpus?|cards?)|(?=(?:rtx|gtx|[ablh]\d|\d{4})))|几张|多少张|几块|多少块|几卡|多少卡|几个(?:gpu|卡|显卡)|多少个(?:gpu|卡|显卡)",
        rf"how many|number of|至少|最少|{_NEEDS}|要",
    ),
    Intent(
        "micro_batch",
        r"(?:what|max(?:imum)?|largest|biggest|which|how (?:big|large)(?: of)? an?) (?:micro[- ]?)?batch(?:[- ]?sizes?)?"
        r"|最大(?:的)?(?:批|batch)(?:大小|次|[- ]?size)?"
        r"|(?:batch(?:[- ]?size)?|批(?:次)?(?:大小)?)(?:最大|能到|能开|可以|能|开到|设|设成|设为|最大能)*(?:多(?:少|大))",
        r"max(?:imum)?|最大|多大|多少",
    ),
    Intent(
        "saving",
        r"saves?|saved|saving|savings|difference|differ|compared? (?:to|with)|compare|vs\.?|versus|(?:much |how much |any )?(?:more|less|extra|additional|fewer)(?: \w+){0,3}? than"
        r"|(?:how )?much (?:more|less)|overhead|increase\w*|reduc\w+|twice|halves?|double the|add(?:s|ed)?"
        r"|省(?:下|了|出)?(?:多少|一半)?(?:显存)?|节省(?:多少)?|节约(?:多少)?|减少(?:多少)?|降低(?:多少)?|(?:多占|多用|多花|少占|少用|多出|多要)(?:了)?(?:多少)?"
        r"|(?:涨|增加|增长|上升|下降|差|相差|降)(?:了)?多少|差别|区别|差异|对比|相比|比较",
        rf"than|more|less|much|extra|memory|compared|with|between|use|比|多少|显存|从|到|改成|改为|变成|变为|换成|{_NEEDS}|多|少",
    ),
    Intent(
        "need",
        r"how (?:much|many gb|many gib|large|big)(?: of)?(?: an?)?(?: gpu| video| graphics)?(?: memory| vram| ram is)?|(?:memory|vram) (?:requirements?|footprint|usage|consumption|use)"
        r"|what (?:does|do|would|will) .{1,60}? (?:need|require|take|use)|(?:需要|要|占|占用|用|吃|得)(?:多少|多大)(?:的)?(?:显存|g(?:b)?|内存)?|多少\s*(?:显存|g(?:b)?)|多大(?:的)?显存|显存(?:占用|需求|消耗|开销)(?:是|有|为)?(?:多少|多大)?",
        _NEEDS,
    ),
)
"""In the order in which they are tried: what is asked for by its own name before the amounts of memory."""

_YES_OR_NO = re.compile(
    r"能不能|可不可以|行不行|够不够|是不是|会不会|放不放得下|跑不跑得动|有没有|对不对|好不好|能否|可否|是否|or not"
)
_QUESTION_NEGATED = re.compile(
    r"(?:^|[,.?!;]\s*)(?:ca|can|could|wo|will|would|should|do|does|is|are)(?:n't| not) "
)
_NOT = re.compile(
    rf"{B}(?:(?:do|does|ca|can|could|wo|will|would|is|are|should)(?:n't| not)|cannot|can not|wont|cant|doesnt|never|not|unable to|fails? to|impossible|too (?:small|little))"
    rf"{E}|放不下|装不下|跑不动|跑不了|跑不起来|训不了|训不动|微调不了|不能够?|不行|不够|不可以|不可能|无法|没法|不足以?|做不了|不会|不适合"
)


def intent_of(reading: Reading) -> str:
    """The kind of question; its words are taken from the sentence."""
    for intent in INTENTS:
        if re.search(f"{B}(?:{intent.decides})", reading.text) and not _has_value(reading.text, intent):
            _take_all(reading, intent.decides)
            if intent.also:
                _take_all(reading, intent.also)
            return intent.name
    return FITS


def _has_value(text: str, intent: Intent) -> bool:
    """`max batch size 4` says a batch, it does not ask for one."""
    if intent.name not in ("micro_batch", "sequence_length"):
        return False
    return all(
        re.match(r"\s*(?:of|=|:|为|是)?\s*\d+k?(?![\w.]|\s*g)", text[match.end() :])
        for match in re.finditer(f"{B}(?:{intent.decides})", text)
    )


def _take_all(reading: Reading, pattern: str) -> None:
    for match in list(re.finditer(f"{B}(?:{pattern}){E}", reading.text)):
        reading.take(match)


def negated(reading: Reading) -> bool:
    """Whether the sentence says that something does not fit; 能不能 and "can't I" ask, and deny nothing."""
    for pattern in (_YES_OR_NO, _QUESTION_NEGATED):
        for match in list(pattern.finditer(reading.text)):
            reading.take(match)
    found = list(_NOT.finditer(reading.text))
    for match in found:
        reading.take(match)
    return len(found) % 2 == 1
