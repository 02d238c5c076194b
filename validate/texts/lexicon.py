"""Words of running text that say nothing of the claim they stand beside, and those that turn it round."""

from __future__ import annotations

import re

_ZH = """
    将 把 达到 且 会 需 需要 显著 大幅 大大 极大 明显 进一步 直接 同时 并且 而且 因此 所以 从而 于是 此外 另外 其中 例如 比如 具体来说 简单来说 总之
    也就是说 换句话说 事实上 众所周知 值得注意的是 需要注意的是 注意 特别是 尤其 甚至 这种设计 这种 这些 这样 这一 该
    使得 使 让 能够 可以 即可 便可 就能 也能 还能 成为可能 变为可能 成为现实 允许你 允许 支持 实现 做到 完成 得以 只要 即使
    用户 开发者 研究者 我们 你 大家 普通人 个人 团队 可能 相比之下 相比 对比 相对 而言 来说 来讲 对于 关于 由于 因为
    技术 方法 方式 方案 策略 模式 场景 环境 条件 任务 阶段 过程 原理 特点 资源需求 优势 优点 效果 大规模 超大规模 超大 巨型 大型
    完整 整个 单个 一个 一张 一块 这张 那么 但是 但 然而 不过 虽然 尽管 而 则 仍然 仍 却 已经 已 现在 如今 目前 通常 一般
    往往 常常 经常 基本 几乎 大约 大概 左右 大致 差不多 主要 核心 关键 典型 常见 标准 正常 论文 作者 实验 结果 表明 显示
    指出 提到 报告 称 说 而在 而是 就是 也是 便是 都是 是 的话 之后 之前 以后 后 前 时 中 上 里 下 为 与 和 及 或 等 的 了 着
    模型 大模型 语言模型 参数 显存 显卡 单卡 单张 微调 训练 权重 底座
"""
HARMLESS_ZH = tuple(sorted(_ZH.split(), key=len, reverse=True))

_EN = """
    significantly dramatically greatly further directly also therefore thus hence moreover furthermore additionally
    essentially basically typically usually generally often commonly normally practically effectively roughly
    approximately for example instance in particular notably however although though but while since because as
    possible makes make it enables enabling allows allowing lets you us people users developers researchers authors
    paper reports report shows showed found note that which so this these those the a an of to and or on with by at
    from into only just even still already now today thanks compared relative technique method approach strategy
    recipe setup whole entire single one big huge massive very large-scale language llm llms model models parameter
    parameters gpu gpus card cards memory vram weight weights base pretrained pre-trained frozen fine-tuning
    finetuning fine-tune finetune tuning training train called named well known can could will would
"""
HARMLESS_EN = frozenset(_EN.split())

_HARMLESS = re.compile("|".join(map(re.escape, HARMLESS_ZH)))

TURNS = re.compile(
    r"[?]|吗(?![a-z])|是否|能否|会不会|有没有|多少|并非|并不是|而不是|不是|误解|误区|误以为|谣言|传言|有人说|有人认为|据说|听说|号称|宣称|声称"
    r"|不对|不准确|不正确|不成立|错误|夸大|假的|纯属|别信|\bmyths?\b|\bmisconception|\bwrong(?:ly)?\b|\bincorrect|\bfalse(?:ly)?\b"
    r"|\buntrue\b|not true|\brumou?rs?\b|(?:some|many|people|they|he|she) (?:people )?(?:say|says|claim|claims|think|believe)s?\b"
    r"|\ballegedly\b|\bsupposedly\b|\bwhether\b|\bfar from\b|\bcontrary to\b|\brather than\b|\binstead of\b|\bno longer\b|\bexcept\b|除了|除非|不再|尚未|还没"
)
"""A question, a denial, hearsay: what stands beside it is no statement of the text's own."""

CONDITIONS = re.compile(
    r"如果|假如|若(?!干)|倘若|前提|只有在|当且仅当|除非|\bif\b|\bunless\b|\bprovided\b|\bassuming\b|\bwhen\b|\bonly (?:on|with|for|in)\b"
)
"""A condition in a clause that nothing read: the claim holds under it, and it is not known what it is."""

FIELD = re.compile(
    r"显存|内存|gpu|显卡|lora|微调|量化|参数|训练|模型|权重|优化器|梯度|精度|bf16|fp16|fp32|nf4|bit|memory|vram|fine-?tun|quantiz|parameter"
    r"|optimi[sz]er|gradient|adapter|适配器|checkpoint|检查点|\b\d+b\b|token|weights|a100|h100|3090|4090"
    r"|词表|vocabulary|logits|激活|activation|kv[- ]?(?:cache|缓存)"
)
"""Words of the field: a sentence without any says nothing about training memory."""


OTHER_SUBJECTS = re.compile(
    r"检查点|重计算|重新计算|前向计算|卸载|累积|checkpointing|recomput|forward pass|flash-?attention|\bzero-?[123]\b|\bfsdp\b|offload|accumulat"
)
"""What else a text speaks of: an "it" behind these need not be the method that was named before."""


def without_harmless(text: str) -> str:
    """The text with Chinese words that say nothing blanked; Latin words are the reader's."""
    return _HARMLESS.sub(" ", text)
