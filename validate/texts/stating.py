"""What each kind of statement claims: statements.toml's kinds, and the functions that make parts for the program's own
engines of the values that a sentence has.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

from memplan.validate.claimsfile import Claim, Source
from memplan.validate.texts import of_activations, of_lora, of_models, of_quantization, of_runs
from memplan.validate.texts.amount_parts import Said, Values


def claims_of(kind: str, values: Values, name: str, quote: str) -> list[Claim]:
    """The claims of one statement; none where its values do not make all of them."""
    said = list(KINDS[kind](values))
    if not all(parts for _, _, parts in said):
        return []
    return [Claim(name, en, (Source("text", quote),), tuple(parts), zh) for en, zh, parts in said]


KINDS: Mapping[str, Callable[[Values], Iterator[Said]]] = {
    "parameter-count": of_models.parameter_count,
    "vocabulary": of_models.vocabulary,
    "weights": of_models.weights,
    "weights-of-three": of_models.weights_of_three,
    "bytes-per-parameter": of_models.bytes_per_parameter,
    "bytes-per-component": of_models.bytes_per_component,
    "component-bytes": of_models.component_bytes,
    "lora-count": of_lora.lora_count,
    "lora-share": of_lora.lora_share,
    "lora-count-and-share": of_lora.lora_count_and_share,
    "rank-adds": of_lora.rank_adds,
    "rank-times": of_lora.rank_times,
    "adapter-file": of_lora.adapter_file,
    "qlora-faster": of_lora.qlora_faster,
    "qlora-slower": of_lora.qlora_slower,
    "gradients-of-n": of_lora.gradients_of_n,
    "no-states-without-momentum": of_lora.no_states_without_momentum,
    "gradients-and-states": of_lora.gradients_and_states,
    "constants": of_quantization.constants,
    "double-overhead": of_quantization.double_overhead,
    "double-saves-bits": of_quantization.double_saves_bits,
    "double-saves": of_quantization.double_saves,
    "block-of-64": of_quantization.block_of_64,
    "scales-in": of_quantization.scales_in,
    "checkpointed-inputs": of_activations.checkpointed_inputs,
    "checkpointing-time": of_activations.checkpointing_time,
    "sequence-times": of_activations.sequence_times,
    "activations": of_activations.activations,
    "logits": of_activations.logits,
    "optimizer-saves": of_runs.optimizer_saves,
    "total": of_runs.total,
    "total-and-gpu": of_runs.total_and_gpu,
    "states-total": of_runs.states_total_and_gpu,
    "gpu-runs": of_runs.gpu_runs,
    "no-bf16": of_runs.no_bf16,
    "weights-lora-qlora": of_runs.weights_lora_qlora,
    "zero-three": of_runs.zero_three,
    "kv-cache": of_activations.kv_cache,
}
"""Kind of statements.toml -> the claims that it makes."""
