"""What libraries did otherwise in the runs that others published: one row each, with the reason.

A run is marked by what it says of its own versions (`library`, `since`, `before`), or names a difference
itself where it says so in words. Nothing is tuned to a marked run. Where the trace can do what the library
did (`put_back`), its difference between the two releases is added to what each engine predicts, so that the
run still says something of memplan; where it cannot, the run is shown and stays out of every statistic, but
for a difference that is chance alone (`counted`). The formula has rules for some earlier releases itself
(`release`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from memplan.planner.tables.recipes import RECIPES
from memplan.planner.tables.tested_versions import is_newer


@dataclass(frozen=True, slots=True)
class LibraryDifference:
    """One thing that a library did otherwise: why it moves memory, where that was read, and whom it
    concerns.
    """

    name: str
    why: str
    source: str
    library: str | None = None
    since: str = "0"
    before: str = ""  # the first release that does as the installed one
    concerns: Callable[[str, Mapping[str, Any]], bool] = lambda model, setup: True
    put_back: bool = False
    release: str = ""  # the Setup's `transformers` that has it, for the formula
    counted: bool = False

    def holds(self, model: str, setup: Mapping[str, Any], versions: Mapping[str, str]) -> bool:
        """Whether a run's own versions say so; False where it names no version."""
        version = versions.get(self.library or "")
        if version is None or not self.concerns(model, setup):
            return False
        return is_newer(self.before, version) and not is_newer(self.since, version)


def _whole_logits(model: str, setup: Mapping[str, Any]) -> bool:
    collates = RECIPES[setup.get("recipe", "hf")].loop.collates  # the model gets labels and has the loss
    return collates and setup.get("loss", "full") == "full"


DIFFERENCES: dict[str, LibraryDifference] = {
    row.name: row
    for row in (
        LibraryDifference(
            "shifted_logits",
            "transformers before 4.49 copies the shifted logits in fp32",
            "transformers 4.48.1 loss/loss_utils.py ForCausalLMLoss: logits[..., :-1, :].contiguous(); "
            "4.49.0 shifts the labels alone",
            "transformers",
            "4.48",
            "4.49",
            _whole_logits,
            put_back=True,
            release="4.48",
        ),
        LibraryDifference(
            "cast_logits",
            "transformers before 4.48 returns the logits in fp32 and copies them shifted",
            "transformers 4.43.3 and 4.45.2 models/mistral/modeling_mistral.py: logits.float(), then "
            "logits[..., :-1, :].contiguous()",
            "transformers",
            "0",
            "4.48",
            _whole_logits,
            release="4.43",
        ),
        LibraryDifference(
            "whole_preference_logits",
            "TRL before 1.15 takes log-probabilities of whole logits in DPO, KTO and GRPO",
            "huggingface/trl release v1.15.0: a fused LM head by default, without a logits tensor; "
            "1.14.2 trainer/dpo_trainer.py, grpo_trainer.py: selective_log_softmax(logits, ...)",
            "trl",
            "0",
            "1.15",
            lambda model, setup: setup.get("task") in ("dpo", "kto", "grpo"),
        ),
        LibraryDifference(
            "checkpointed_chunks",
            "TRL before 1.15 makes the logits of chunked_nll 256 tokens at a time, in fp32 and whole",
            "huggingface/trl pull request 5575 (1.4.0) and release v1.15.0",
            "trl",
            "0",
            "1.15",
            lambda model, setup: setup.get("task", "sft") == "sft" and setup.get("loss") == "chunked",
        ),
        LibraryDifference(
            "linear_experts",
            "Mixtral's experts were nn.Linear modules before transformers 5.0: 4-bit loading quantized them",
            "transformers 4.48.1 models/mixtral/modeling_mixtral.py MixtralBlockSparseTop2MLP; 5.0: "
            "MixtralExperts",
            "transformers",
            "0",
            "5.0",
            lambda model, setup: model.startswith("mixtral"),
        ),
        LibraryDifference(
            "kept_inputs",
            "bitsandbytes before 0.43.2 keeps the input of every 4-bit layer for the backward pass",
            "bitsandbytes pull request 1270, in 0.43.2",
            "bitsandbytes",
            "0",
            "0.43.2",
            lambda model, setup: setup.get("quant_type") in ("nf4", "fp4") or setup.get("method") == "qlora",
        ),
        LibraryDifference(
            "expanded_keys",
            "keys and values were expanded to every query head before the attention call",
            "stated by the run; transformers 5.24 integrations/sdpa_attention.py use_gqa_in_sdpa hands over "
            "grouped heads",
            put_back=True,
        ),
        LibraryDifference(
            "threaded_load",
            "the weights of a quantized base were read on several threads: the order of loading is chance",
            "transformers 5.0 to 5.3 core_model_loading.py; docs/mismatches.md: all 14 lie in the load-order "
            "range",
            counted=True,
        ),
        LibraryDifference(
            "shorter_rows",
            "rows are padded to the longest of their batch: the sequence length is the most that they can be",
            "stated by the run",
        ),
        LibraryDifference(
            "own_model_code",
            "the stack has its own implementation of the model and the adapters",
            "stated by the run",
        ),
        LibraryDifference(
            "unpinned",
            "the versions of the libraries are not known",
            "stated by the run",
        ),
    )
}
