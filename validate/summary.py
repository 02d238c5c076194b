"""The answer in one sentence, in both languages: yes or no, the largest that fits, or how many GPUs."""

from __future__ import annotations

from collections.abc import Mapping

from memplan.planner.answers.fit.command import options
from memplan.planner.tables.units import gib
from memplan.validate.answer import AT_LEAST, Answer
from memplan.validate.chinese import in_language
from memplan.validate.questions.question import doing


def summary_line(found: Answer) -> Mapping[str, str]:
    """The verdict in one sentence, in both languages."""
    setup = found.prediction.setup
    does = doing({"method": setup.method, "task": setup.task})
    model = found.question.model + (" (int8)" if setup.quant_type == "int8" else "")
    need = gib(found.device)
    each_en, each_zh = (
        (f" on each of {setup.gpus} GPUs ({setup.parallel})", f"（{setup.gpus} 张卡每张，{setup.parallel}）")
        if setup.gpus > 1
        else ("", "")
    )
    if found.usable is None:
        card_en = (
            f"; smallest common GPU: {found.smallest_card}"
            if found.smallest_card
            else (
                "; not all is counted, so no GPU is said to hold it"
                if found.not_modelled
                else "; no common GPU holds it"
            )
        )
        card_zh = (
            f"；能放下的最小常见卡是 {found.smallest_card}"
            if found.smallest_card
            else ("；并非全部计入，不能断言哪张卡放得下" if found.not_modelled else "；没有常见的单卡能放下")
        )
        return {
            "en": f"{does['en']} on {model} needs {need}{each_en}{card_en}",
            "zh": f"{model} 做 {does['zh']} 需要 {need}{each_zh}{card_zh}",
        }
    largest = _largest(found)
    if largest is not None:
        return largest
    have = f"{gib(found.usable)} ({found.question.gpu})"
    if found.verdict == AT_LEAST:
        missing = "; ".join(found.not_modelled)
        return {
            "en": f"At least {need}: {does['en']} on {model}, of {have}{each_en}; not counted: {missing}",
            "zh": f"至少 {need}：{model} 做 {does['zh']}{each_zh}，卡上可用 {have}；未计入：{missing}",
        }
    words = {"fits": ("Yes", "可以"), "tight": ("Barely", "勉强"), "no": ("No", "不行")}[found.verdict]
    if found.verdict == "tight" and not found.survives:
        words = ("Probably not", "多半不行")
    but = _but(found)
    if found.question.wanted == "cards":
        count = f"{setup.gpus}" if found.verdict != "no" else f"more than {setup.gpus}"
        zh_count = f"{setup.gpus} 张" if found.verdict != "no" else f"{setup.gpus} 张以上"
        each_en, each_zh = (
            (f" each ({setup.parallel})", f"（{setup.parallel}）") if setup.gpus > 1 else ("", "")
        )
        return {
            "en": (
                f"{count} x {found.question.gpu}: {does['en']} on {model} needs {need} of {gib(found.usable)}"
                f"{each_en}"
            ),
            "zh": (
                f"{zh_count} {found.question.gpu}：{model} 做 {does['zh']} 每张需要 {need}，可用 "
                f"{gib(found.usable)}{each_zh}"
            ),
        }
    return {
        "en": f"{words[0]}: {does['en']} on {model} needs {need} of {have}{each_en}{but['en']}",
        "zh": f"{words[1]}：{model} 做 {does['zh']} 需要 {need}{each_zh}，卡上可用 {have}{but['zh']}",
    }


def _largest(found: Answer) -> Mapping[str, str] | None:
    """Where the largest sequence or batch is asked for: what it is, with checkpointing as said and on."""
    wanted = found.question.wanted
    if wanted not in ("sequence_length", "micro_batch"):
        return None
    name, zh = {"sequence_length": ("sequence length", "序列"), "micro_batch": ("micro-batch", "批大小")}[
        wanted
    ]
    told_en, told_zh = [], []
    for label, on_en, on_zh in (
        (wanted, "", ""),
        (f"{wanted}, checkpointing on", " with gradient checkpointing", "（开梯度检查点）"),
    ):
        result = dict(found.boundaries).get(label)
        if result is None:
            continue
        if result.verdict == "refuted":
            told_en.append(f"none fits{on_en}")
            told_zh.append(f"都放不下{on_zh}")
        elif result.boundaries:
            told_en.append(f"{result.boundaries[-1].low:,}{on_en}")
            told_zh.append(f"最大 {result.boundaries[-1].low:,}{on_zh}")
        else:
            told_en.append(
                f"any length that the model takes{on_en}"
                if wanted == "sequence_length"
                else f"beyond 4,096{on_en}"
            )
            told_zh.append(
                f"模型支持的都可以{on_zh}" if wanted == "sequence_length" else f"超过 4,096{on_zh}"
            )
    setup, model, gpu = found.prediction.setup, found.question.model, found.question.gpu
    does = doing({"method": setup.method, "task": setup.task})
    return {
        "en": f"Largest {name}: {', '.join(told_en)} ({does['en']} on {model}, {gpu})",
        "zh": f"{model} 做 {does['zh']}，{gpu}：{zh}{'，'.join(told_zh)}",
    }


def _but(found: Answer) -> Mapping[str, str]:
    """Beside a no: the mildest change that fits."""
    if found.verdict != "no":
        return {"en": "", "zh": ""}
    method = found.prediction.setup.method
    kinds = (
        [f"{method}, checkpointing", "lora, checkpointing", "qlora, checkpointing"]
        if method in ("lora", "full")
        else []
    )
    if method == "full":
        kinds[0] = "full, bf16 weights, checkpointing"
    for kind in kinds:
        other = next((b for b in found.beside if b.what == kind and b.verdict == "fits"), None)
        if other is not None:
            return {
                "en": f"; {kind} needs {gib(other.device)}, which fits",
                "zh": f"；{in_language('zh')(kind)}需要 {gib(other.device)}，放得下",
            }
    if found.remedy is not None:
        typed, need = options(found.remedy.fields), gib(found.remedy.device_bytes)
        return {
            "en": f"; with {typed} it needs {need}, which fits",
            "zh": f"；加上 {typed} 需要 {need}，放得下",
        }
    return {"en": "", "zh": ""}
