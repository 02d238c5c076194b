"""What an evaluation generates: transformers' Seq2SeqTrainer with `predict_with_generate`, of an encoder and
a decoder (transformers 5.24 trainer_seq2seq.py prediction_step).

generate runs the encoder once, repeats what it returns for each beam, and has two caches: keys and values of
the decoder's tokens, which grow, and those of the encoder's, which are there from the first token on. Its
first token and its last run as they are, and the first cache grows between them, as planner/run/sampling.py
explains. N rows, K beams, T tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from functools import wraps
from typing import Any
from unittest.mock import patch

import torch
from torch.nn import functional

from memplan.planner.inputs import sounds
from memplan.planner.inputs.tasks import growth
from memplan.planner.run.built import Built
from memplan.planner.run.preferences import unchecked
from memplan.planner.run.rollout import prepared
from memplan.planner.run.sampling import grow
from memplan.planner.tables.errors import UsageError

CACHES = ("cache", "past_key_values")  # its name in transformers from 5.2x on, and before


def run(
    built: Built, announce: Callable[[], AbstractContextManager[None]], batch: dict[str, torch.Tensor]
) -> torch.Tensor:
    """The tokens that the model generates for a batch, padded to their most: (N, T) int64."""
    setup, length = built.setup, built.setup.eval_generate or 0
    if sounds.is_speech(built.base.config.to_dict()):
        raise UsageError(
            f"eval_generate {length} has no rule for the transcription of sounds, whose generate is the "
            "model's own: leave it out"
        )
    ids = batch["input_ids"]
    given = {
        name: batch[name] for name in batch if not name.startswith("decoder_")
    }  # those are of the labels
    asked = {"max_new_tokens": 1, "num_beams": setup.eval_beams, "use_cache": True}
    with unchecked(built.base), torch.no_grad(), prepared(built), _scores_of_one_token():
        with announce(), built.kernels(), _loop(built.base) as left:
            built.model.generate(**given, **asked)  # type: ignore[operator]
            name = next(each for each in CACHES if each in left)
            for more in growth(max(0, length - 3)):
                grow(left[name].self_attention_cache, more)
            left = {each: left[each] for each in ("encoder_outputs", "attention_mask", name)}
        if length > 2:
            with announce(), built.kernels(), _loop(built.base, expands=False):
                rows = setup.eval_beams * len(ids)
                left["decoder_input_ids"] = torch.ones((rows, length - 2), dtype=ids.dtype, device=ids.device)
                built.model.generate(input_ids=ids[:1].expand(rows, -1), **asked, **left)  # type: ignore[operator]
        left.clear()
    with announce():
        return torch.ones((len(ids), length), dtype=ids.dtype, device=ids.device)


@contextmanager
def _loop(model: Any, expands: bool = True) -> Iterator[dict[str, Any]]:
    """Inside, generate's arguments as its loop changes them, and no beam goes on after a token. Where a loop
    is entered in its middle, what the encoder returned has been repeated for each beam, and the decoder reads
    the last token alone.
    """
    left: dict[str, Any] = {}
    update = model._update_model_kwargs_for_generation
    inputs = model.prepare_inputs_for_generation

    def updating(*given: Any, **named: Any) -> dict[str, Any]:
        made: dict[str, Any] = update(*given, **named)
        left.update(made)
        return made

    def as_given(input_ids: Any = None, **named: Any) -> tuple[Any, dict[str, Any]]:
        return input_ids, {
            each: named[each] for each in named if each not in ("expand_size", "is_encoder_decoder")
        }

    @wraps(inputs)  # generate reads its signature
    def of_last(*given: Any, **named: Any) -> Any:
        return inputs(*given, **{**named, "next_sequence_length": 1})

    with ExitStack() as stack:
        stack.enter_context(patch.object(model, "_update_model_kwargs_for_generation", updating))
        stack.enter_context(
            patch.object(model, "_beam_search_has_unfinished_sequences", lambda *_, **__: False)
        )
        if not expands:
            stack.enter_context(patch.object(model, "_expand_inputs_for_generation", as_given))
            stack.enter_context(patch.object(model, "prepare_inputs_for_generation", of_last))
        yield left


@contextmanager
def _scores_of_one_token() -> Iterator[None]:
    """The scores that a beam search's variables hold until those of the next token are there: logits and
    their log-softmax, both fp32 (generation/utils.py _beam_search).
    """
    held: list[torch.Tensor] = []
    softmax = functional.log_softmax

    def scoring(logits: torch.Tensor, *given: Any, **named: Any) -> torch.Tensor:
        held[:1] = []
        made = softmax(logits, *given, **named)
        held[:] = [logits, made]
        return made

    with patch.object(functional, "log_softmax", scoring):
        yield
