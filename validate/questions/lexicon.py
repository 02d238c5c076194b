"""Words that `memplan ask` may leave unread: those that say nothing, and those that change no number. Every
other word that is left over may change what is asked, so that an answer says neither yes nor no.
"""

from __future__ import annotations

_FILLER = """
    a able about actually allow allows already also am an and answer approach approx approximately
    are around as ask asking at base batch be been being but by can card cards config configuration
    context correct could cuda d default defaults device did do doable does done during e.g each eg
    enough even exactly example feasible fine fine-tunable fine-tune fine-tuned fine-tunes
    fine-tuning finetune finetuned finetunes finetuning fit fits fitting for from gb geforce get
    gets gib gig gigabyte gigabytes gigs give given gives go going got gpu gpus graphics gtx guess
    had handle handles has have having he heard hello help her here hey hf hi his hold holds how
    huggingface i i.e if in into is it its just know language length let lets like limit ll llm llms
    load loaded loading loads m made make makes many max may me memory method might model models
    much must my network no-one nvidia of off ok okay on one only onto or our parameter-efficient
    parameters-model peft per perform performing please possible possibly pre-trained precision
    pretrained pull pytorch question ram-free re read realistic really right roughly rtx run running
    runs s said say saying says sequence setting settings setup shall she should single size sized
    sizes so squeeze still support supports sure t tell tesla than thank thanks that the their then
    there these they think thinks this those to token tokens told torch train trainable trained
    trainer training trains transformers true try trying tune tuned tunes tuning under up us use
    used uses using ve via viable vram want wanted wants was we weights were what when which while
    who will with within wonder wondering work working works would yes yet you your
"""
FILLER = frozenset(_FILLER.split())
"""English words that carry grammar, courtesy, or what every question here is about."""

_NEUTRAL = """
    alpaca anyone article beginner big blog book boss box chapter chat cheap chinese code colleague
    comfortably company computer corpus currently data dataset desktop docker easily english
    everyone friend good home huge instruct instruction instructions interviewer lab large linux
    local locally machine new nice node now old own paper-says pc people personal platform post
    product python quickly rig safely server service simple simply small someone startup student
    system teacher team tiny today tomorrow tool tutorial ubuntu used windows workstation yesterday
"""
NEUTRAL = frozenset(_NEUTRAL.split())
"""Words that change no number: printed as not used, and the verdict stands."""

_FILLER_ZH = """
    预训练模型 跑得起来 微调训练 语言模型 预训练好 参数量的 需要多少 跑起来 跑得动 情况下
    条件下 训得动 训得了 部署好 放得下 装得下 塞得下 大模型 预训练 参数的 有人说 没问题
    英伟达 消费级 请问 你好 您好 谢谢 麻烦 帮忙 帮我 我想 我要 想问 想要 我们 大家
    的话 使用 采用 利用 通过 基于 进行 能够 可以 是否 就是 对于 以及 或者 还是 大概
    大约 左右 一般 通常 基本 实际 真的 到底 究竟 其实 目前 现在 如果 假如 要是 时候
    情况 下面 微调 训练 精调 训得 运行 加载 放下 放进 装下 塞进 够用 足够 起来 得动
    得起 出来 模型 基座 底座 参数 显存 显卡 单卡 单张 一张 一块 一个 这个 那个 什么
    怎么 如何 怎样 哪个 哪种 方法 方式 方案 配置 设置 默认 精度 大小 长度 序列 规模
    级别 版本 听说 据说 觉得 认为 知道 问题 正确 可行 多大 多少 至少 最少 最低 最多
    总共 一共 全部 整个 每张 每卡 仅需 因为 所以 这种 这样 一下 吧吗 想 我 你 您 他
    它 咱 的 地 得 了 吗 呢 吧 啊 呀 嘛 哦 么 着 过 在 上 下 里 中 内 用 来
    去 做 跑 能 可 会 是 对 给 把 被 让 使 和 与 及 或 也 都 就 才 只 仅 还
    再 又 很 约 时 训 调 够 行 好 卡 张 块 个 片 这 那 该 哪 批 级 类 型 版
    样 请 说 问 答 每 单 至 到 从 以 为 有 之 其 即 则 而 且 所 参 数 量
"""
FILLER_ZH = tuple(_FILLER_ZH.split())
"""Chinese words of the same kinds."""

_CONTENT_ZH = """
    不 没 没有 无法 未 非 省 手机 时间 多久 成本 费用 钱 文件 内存 需 占 比 快 慢
    倍 磁盘 硬盘 速度 质量 精确 效果 准确 平板 笔记本 安卓 苹果 租 电 天气 全部参数
    存储 参数量 对比 区别 为什么 原因 损失 收敛 数据并行
"""
CONTENT_ZH = tuple(_CONTENT_ZH.split())
"""Chinese words that change a question, kept whole although a shorter word inside them says nothing."""

_NEUTRAL_ZH = """
    自己 家里 公司 老师 面试官 面试 朋友 同学 书上 书里 书 文章 博客 数据集 中文 英文
    服务器 电脑 便宜 新手 今天 我们平台 平台 老板
"""
NEUTRAL_ZH = tuple(_NEUTRAL_ZH.split())
"""Chinese words that change no number: printed as not used, and the verdict stands."""
