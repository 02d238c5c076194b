"""What a text states of activations, logits, the KV cache, and the time of recomputation."""

from __future__ import annotations

from collections.abc import Iterator

from memplan.validate.claimsfile import Part
from memplan.validate.questions.claimed import ABOUT
from memplan.validate.texts.amount_parts import (
    ATTENTION,
    DTYPE_BYTES,
    SHORT,
    Said,
    Values,
    claiming,
    quantity,
    text_of_amount,
)
from memplan.validate.texts.amounts import Amount
from memplan.validate.texts.of_models import vocabulary
from memplan.validate.texts.slots import Stated


def checkpointed_inputs(v: Values) -> Iterator[Said]:
    """The inputs of a model's layers for one sequence, in GB: arithmetic on the text's own numbers."""
    part = Part(
        "layers x hidden size x tokens x bytes of one number",
        "arithmetic",
        0,
        "层数 × 隐藏维度 × token 数 × 每数字节数",
        unit="GB",
        args={
            "expression": f"{v['layers']} * {v['hidden']} * {v['seq']} * {DTYPE_BYTES[v['dtype']]}",
            "expression_unit": "B",
        },
    )
    yield (
        f"checkpointed inputs of {v['layers']} layers, hidden size {v['hidden']}, {v['seq']} tokens take {text_of_amount(v['size'])}",
        f"{v['layers']} 层、隐藏维度 {v['hidden']}、{v['seq']} token 的层输入为 {text_of_amount(v['size'], 'zh')}",
        [claiming(part, v["size"])],
    )


def checkpointing_time(v: Values) -> Iterator[Said]:
    """What recomputation adds to a step, full and LoRA, in % of a 7B's matrix-product FLOPs."""
    parts = []
    for method, case in (
        ("full", ("full fine-tuning, in FLOPs", "全参数微调，按 FLOPs")),
        ("lora", ("LoRA, in FLOPs", "LoRA，按 FLOPs")),
    ):
        base = {"method": method, "checkpointing": "none"}
        flops = {"quantity": "matmul_flops"}
        part = quantity(
            "what recomputation adds to a step's matrix products",
            "重算使一步矩阵乘的 FLOPs 增加的比例",
            "llama-7b",
            base,
            "%",
            of=[{**flops, "setup": {"checkpointing": "non_reentrant"}}, {**flops, "times": -1}],
            per=[flops],
            case=case,
        )
        parts.append(claiming(part, v["share"]))
    yield (
        f"gradient checkpointing makes a step {text_of_amount(v['share'])} longer",
        f"梯度检查点使一步多用 {text_of_amount(v['share'], 'zh')} 时间",
        parts,
    )


_FACTORS = {"doubles": 2.0, "triples": 3.0, "quadruples": 4.0}


def sequence_times(v: Values) -> Iterator[Said]:
    """LoRA's predicted activations on a 7B at one sequence length over those at another, by attention."""
    said = v["times"] if "times" in v else Stated(Amount(_FACTORS[v["factor"]], "x", "="), 0.0)
    parts = []
    for attention, case in ATTENTION:
        base = {"method": "lora", "checkpointing": "none", "attention": attention}
        saved = {"quantity": "rows", "moment": "forward", "component": "activations"}
        part = quantity(
            f"activations at {v['to']} tokens over those at {v['from']}, 7B",
            f"7B：{v['to']} 与 {v['from']} token 的激活之比",
            "llama-7b",
            {**base, "sequence_length": v["to"]},
            "x",
            of=[saved],
            per=[{**saved, "setup": {"sequence_length": v["from"]}}],
            case=case,
        )
        parts.append(claiming(part, said, ABOUT))
    yield (
        f"from {v['from']} to {v['to']} tokens activations become {text_of_amount(said)}",
        f"序列从 {v['from']} 到 {v['to']}，激活变为 {text_of_amount(said, 'zh')}",
        parts,
    )


def activations(v: Values) -> Iterator[Said]:
    """LoRA's predicted activations after the forward, in GB, by attention; layers' inputs by arithmetic."""
    parts = []
    for attention, case in ATTENTION:
        setup = {
            "method": "lora",
            "checkpointing": "none",
            "attention": attention,
            "sequence_length": v["seq"],
            "micro_batch": v["b"],
        }
        part = quantity(
            "activations of LoRA at the end of the forward pass",
            "LoRA 前向结束时的激活",
            v["of"],
            setup,
            "GB",
            quantity="rows",
            moment="forward",
            component="activations",
            case=case,
        )
        parts.append(claiming(part, v["size"]))
    yield (
        f"activations of {v['of']} without checkpointing, {v['seq']:,} tokens, batch {v['b']}, take {text_of_amount(v['size'])}",
        f"{v['of']} 不开检查点、{v['seq']:,} token、批 {v['b']} 的激活为 {text_of_amount(v['size'], 'zh')}",
        parts,
    )
    if "inputs" in v:
        saved = [{"quantity": "hidden", "times": v["layers"] * v["seq"] * v["b"] * 2}]
        part = quantity(
            f"inputs of {v['layers']} layers in 16 bits",
            f"{v['layers']} 层的输入，16 位",
            v["of"],
            {"method": "lora"},
            "GB",
            of=saved,
        )
        yield (
            f"with checkpointing the inputs of {v['layers']} layers take {text_of_amount(v['inputs'])}",
            f"开检查点后 {v['layers']} 层的输入为 {text_of_amount(v['inputs'], 'zh')}",
            [claiming(part, v["inputs"])],
        )


def logits(v: Values) -> Iterator[Said]:
    """Logits, in GB: vocabulary (the text's, else the model's) x tokens x bytes; two vocabularies' ratio."""
    if "vocab" in v:
        yield from vocabulary(v)
    width, seq = DTYPE_BYTES[v["dtype"]], v["s"]
    of = [{"quantity": "vocabulary", "times": seq * width}]
    if "v" in v or "v2" in v:
        vocab = v.get("v", v.get("v2"))
        part = Part(
            "vocabulary x tokens x bytes",
            "arithmetic",
            0,
            "词表 × token × 字节",
            unit="GB",
            args={"expression": f"{vocab} * {seq} * {width}", "expression_unit": "B"},
        )
    else:
        part = quantity(
            "vocabulary x tokens x bytes of one number",
            "词表 × token 数 × 每数字节数",
            v["model"],
            {"method": "inference"},
            "GB",
            of=of,
        )
    short = SHORT[v["dtype"]]
    yield (
        f"{short} logits of {seq} tokens of {v['model']} take {text_of_amount(v['size'])}",
        f"{v['model']} 的 {seq} token {short} logits 为 {text_of_amount(v['size'], 'zh')}",
        [claiming(part, v["size"])],
    )
    if "other" in v:
        ratio = quantity(
            "the one vocabulary over the other",
            "两词表之比",
            v["model"],
            {"method": "inference"},
            "x",
            quantity="vocabulary",
            per=[{"quantity": "vocabulary", "model": v["other"]}],
        )
        yield (
            f"that is {text_of_amount(v['times'])} those of {v['other']}",
            f"为 {v['other']} 的 {text_of_amount(v['times'], 'zh')}",
            [claiming(ratio, v["times"])],
        )


def kv_cache(v: Values) -> Iterator[Said]:
    """The KV cache, in GB: keys and values of every layer by the model's shapes x tokens x batch x bytes."""
    dtype, batch = v.get("dtype", "bfloat16"), v.get("batch", 1)
    part = quantity(
        "keys and values of every layer for every token, in 16 bits"
        if DTYPE_BYTES[dtype] == 2
        else "keys and values of every layer for every token",
        "各层各 token 的 K、V",
        v["of"],
        {"method": "inference"},
        "GB",
        of=[{"quantity": "kv_elements", "times": v["sequence"] * batch * DTYPE_BYTES[dtype]}],
    )
    yield (
        f"the KV cache of {v['of']} at {v['sequence']:,} tokens, batch {batch}, takes {text_of_amount(v['size'])}",
        f"{v['of']} 在 {v['sequence']:,} token、批 {batch} 时的 KV 缓存为 {text_of_amount(v['size'], 'zh')}",
        [claiming(part, v["size"])],
    )
