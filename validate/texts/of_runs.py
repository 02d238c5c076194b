"""What a text states of whole runs, of sharding, and of what fits."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from memplan.validate.claimsfile import Over, Part
from memplan.validate.texts.amount_parts import (
    CHECKPOINTING,
    MIXED,
    PURE,
    SPLIT,
    STATES,
    Said,
    Values,
    claiming,
    quantity,
    text_of_amount,
)
from memplan.validate.texts.of_models import states_total, weights_said
from memplan.validate.texts.slots import Stated


def optimizer_saves(v: Values) -> Iterator[Said]:
    """AdamW's predicted states less those of bitsandbytes' 8-bit AdamW, in GB, at the optimizer step."""
    said = v.get("size") or v["vague"]
    model = v.get("model", "llama-7b")
    base = {"method": v["method"], "optimizer": "adamw_torch"}
    states = {"quantity": "rows", "moment": "optimizer_step", "component": "optimizer_states"}
    part = quantity(
        f"states of AdamW less those in 8 bits, {v['method']} on {model}, rank 16 on all linear layers",
        f"{model} 的 {v['method']}（秩 16，全部线性层）：AdamW 状态与 8 位状态之差",
        model,
        base,
        "GB",
        of=[states, {**states, "setup": {"optimizer": "adamw_bnb_8bit"}, "times": -1}],
    )
    yield (
        f"an 8-bit optimizer saves {text_of_amount(said)} on top of {v['method']}",
        f"{v['method']} 上 8 位优化器再省 {text_of_amount(said, 'zh')}",
        [claiming(part, said)],
    )


def _total_said(model: str, method: str, size: Stated, v: Values) -> Said:
    fixed = {
        key: v[slot] for key, slot in (("sequence_length", "sequence"), ("micro_batch", "batch")) if slot in v
    }
    over = None if "sequence_length" in fixed else Over("setup.sequence_length", low=128, high=2048)
    parts = []
    for checkpointing, case in CHECKPOINTING:
        part = quantity(
            "peak on the device",
            "设备峰值",
            model,
            {"method": method, "checkpointing": checkpointing, **fixed},
            "GB",
            quantity="device",
            over=over,
            case=case,
        )
        parts.append(claiming(part, size))
    if method == "full":
        states = quantity(
            "weights, gradients and optimizer states alone",
            "只算权重、梯度与优化器状态",
            model,
            {"method": method},
            "GB",
            moment="optimizer_step",
            of=STATES,
            case=("the states alone", "只算状态"),
        )
        parts.append(claiming(states, size))
    at = "".join(f", {name} {v[name]:,}" for name in ("batch", "sequence") if name in v)
    return (
        f"{method} on {model} needs {text_of_amount(size)}{at}",
        f"{method} 微调 {model} 需要 {text_of_amount(size, 'zh')}{at}",
        parts,
    )


def _fits_said(
    model: str, method: str, gpu: str, claimed: bool, v: Values, base: Values | None = None
) -> Said:
    fixed = {
        key: v[slot] for key, slot in (("sequence_length", "sequence"), ("micro_batch", "batch")) if slot in v
    }
    over = (
        None
        if "sequence_length" in fixed
        else Over("setup.sequence_length", low=128, high=2048, explore=65536)
    )
    parts = [
        Part(
            f"{method} fits the GPU",
            "fits",
            claimed,
            f"{method} 能放进该卡",
            model=model,
            gpu=gpu,
            setup={**(base or {"method": method}), "checkpointing": checkpointing, **fixed},
            over=over,
            case=case[0],
            case_zh=case[1],
        )
        for checkpointing, case in CHECKPOINTING
    ]
    verb, does = ("fits", "放得下") if claimed else ("does not fit", "放不下")
    return f"{method} on {model} {verb} {gpu}", f"{method} 微调 {model}，{gpu} {does}", parts


def total(v: Values) -> Iterator[Said]:
    """The predicted peak on the device, in GB, by checkpointing; of full fine-tuning the states alone too."""
    yield _total_said(v["of"], v["how"], v["size"], v)


def total_and_gpu(v: Values) -> Iterator[Said]:
    """The peak of `total`, and that the run fits the GPU where the text names one."""
    yield from total(v)
    if "gpu" in v:
        yield _fits_said(v["of"], v["how"], v["gpu"], True, v)


def states_total_and_gpu(v: Values) -> Iterator[Said]:
    """Bytes per parameter times parameters; a GPU that they are said not to fit is asked under the precision
    that they stand for, and nothing is said where they stand for none.
    """
    yield from states_total(v)
    if "gpu" in v:
        base = {16.0: MIXED, 8.0: PURE}.get(v["per"])
        english, chinese, parts = _fits_said(v["model"], "full", v["gpu"], False, v, base)
        yield english, chinese, parts if base is not None else []


def gpu_runs(v: Values) -> Iterator[Said]:
    """That a run fits the GPU: the verdict on what is predicted, with and without checkpointing."""
    yield _fits_said(v["of"], v["how"], v["gpu"], True, v)


def no_bf16(v: Values) -> Iterator[Said]:
    """That a GPU lacks bf16: its compute capability is below 8.0; nothing where no GPU is named."""
    if "gpu" not in v:
        return
    part = quantity(
        "compute capability: bf16 from 8.0 on",
        "计算能力：8.0 起支持 bf16",
        unit="",
        quantity="compute_capability",
    )
    yield (
        f"{v['gpu']} does not support bf16",
        f"{v['gpu']} 不支持 bf16",
        [replace(part, gpu=v["gpu"], claimed=8.0, relation="<")],
    )


def weights_lora_qlora(v: Values) -> Iterator[Said]:
    """A model's weights in GB, a method that does not fit the GPU, and another's peak in GB, as predicted."""
    yield weights_said(v["model"], v["dtype"], v["w"])
    yield _fits_said(v["model"], v["a"], v["gpu"], False, v)
    yield _total_said(v["model"], v["b"], v["q"], {})


def zero_three(v: Values) -> Iterator[Said]:
    """Predicted model states and activations of one GPU under ZeRO-3 over those of a single GPU alone."""
    shared = {**SPLIT, "parallel": "zero3", "gpus": v["gpus"], "checkpointing": "non_reentrant"}
    alone = {"setup": {"gpus": 1}}
    for key, en, zh, of in (
        ("states", "model states", "模型状态", STATES),
        ("acts", "activations", "激活", [{"quantity": "rows", "component": "activations"}]),
    ):
        if key in v:
            part = quantity(
                f"{en} of one GPU over those of a single one, 7B",
                f"7B：每卡{zh}与单卡之比",
                "llama-7b",
                shared,
                "x",
                moment="forward",
                of=of,
                per=[{**one, **alone} for one in of],
            )
            yield (
                f"ZeRO-3 on {v['gpus']} GPUs brings {en} per GPU to {text_of_amount(v[key])}",
                f"ZeRO-3 在 {v['gpus']} 卡上使每卡{zh}降到 {text_of_amount(v[key], 'zh')}",
                [claiming(part, v[key])],
            )
