"""A generation on a tape of its own: completions sampled from the model, then scored, before the step that
trains on them; what `planner/run/rollout.py` runs.

N rows at once, P prompt tokens, C completion tokens, S = P + C, V vocabulary.
"""

from __future__ import annotations

from memplan.planner.formula.forward import policy
from memplan.planner.formula.forward.cache import kept
from memplan.planner.formula.forward.context import Context, Device
from memplan.planner.formula.forward.decoder import Decoder, Guard, StepInterpreter
from memplan.planner.formula.forward.losses import logits_of
from memplan.planner.formula.forward.preferences import alone
from memplan.planner.formula.parameters import ParameterTable, S, reference_of
from memplan.planner.formula.resident.loading import SERVER, SHARE, sampled_shapes
from memplan.planner.formula.sharding.plan import ShardingPlan, StrategyHooks
from memplan.planner.formula.step import Step
from memplan.planner.formula.symbolic.expr import Sized, as_expr
from memplan.planner.formula.tape.ops import cast
from memplan.planner.formula.tape.tape import Tape, Tensor
from memplan.planner.inputs.tasks import GeneratedRows, generated, growth, server_bytes
from memplan.planner.tables.components import GENERATION
from memplan.planner.tables.tasks import TASKS

Blocks = list[tuple[list[StepInterpreter], int]]


def run_generation(parameter_table: ParameterTable, device: Device, guard: Guard, rank: ShardingPlan) -> Tape:
    """The log of one generation, its one moment GENERATION. Gradients are there where another generation of
    the same step made them.
    """
    return _Generation(parameter_table, device, guard, rank).run()


class _Generation(Step):
    def run(self) -> Tape:
        t, setup = self.tape, self.setup
        sizes = generated(setup)
        self._residents()
        if sizes.steps < setup.gradient_accumulation and not setup.optimizer_in_backward:
            self._old_gradients()
        rows = self.w.batch * sizes.steps
        t.mark(GENERATION)
        beside = []
        if setup.vllm_sleeps and server_bytes(setup):
            beside.append(t.alloc(SERVER, (server_bytes(setup),), "uint8", SHARE, "activations"))
        prompts = [
            t.alloc(f"prompt_{what}", (rows, S - sizes.completion), "int64") for what in ("ids", "mask")
        ]
        with t.no_grad():
            if setup.vllm_share is None:
                self._sample(rows, sizes)
            beside.clear()
            prompts.clear()
            made = [t.alloc(*each, "sampled and scored") for each in sampled_shapes(setup, self.w.batch)]
            self._score(rows, sizes)
            t.end_forward()
            t.mark("end")
            del made  # the next generation's rows take their place
        return t

    # ---- sampling ------------------------------------------------------------------------------------------

    def _walk(self, rows: Sized, tokens: Sized, single: bool) -> Context:
        """generate's forward of so many tokens of each row: under an adapter it calls the base model, which
        no autocast was put around (planner/run/rollout.py _prepared).
        """
        setup = self.setup.with_(checkpointing="none")
        walk = Context(
            self.tape, setup, self.parameter_table, self.device, as_expr(rows), as_expr(tokens), single, {}
        )
        if self.parameter_table.adapters:
            walk.auto = None
        walk.by_row, walk.cache = True, []
        return walk

    def _sample(self, rows: Sized, sizes: GeneratedRows) -> None:
        """The first token, the cache's growth, and the last token."""
        single = self.guard.single and sizes.steps == 1
        first = self._walk(rows, S - sizes.completion, single)
        self.drawn: list[Tensor] = []
        blocks = self._token(first, S - sizes.completion)
        last = first
        if sizes.completion > 1:
            cache = self._grown(first, blocks, sizes)
            last = self._walk(rows, 1, single)
            last.earlier, last.before = cache, S - 2
            del cache, first
            self._token(last, S - 1)
        with self.tape.dropping():  # the cache of every layer goes
            last.cache = None
        self.drawn.clear()

    def _token(self, w: Context, seen: Sized) -> Blocks:
        """One token of each row: `seen` tokens stand before it (transformers 5.24 generation/utils.py
        _sample: logits of the last token copied in fp32, their softmax, one draw;
        torch 2.13 native/Distributions.cpp multinomial_out). Returns the walked layers.
        """
        t, setup = self.tape, self.setup
        held = [
            t.alloc(name, (w.batch, seen), "int64", "of every token so far")
            for name in ("sampled ids", "attention mask", "position ids")
        ]
        ids = t.alloc("input ids", (w.batch, w.sequence), "int64", "tokens that the cache has not")
        decoder = Decoder(w, self.guard._replace(single=w.single), StrategyHooks(), ids)
        hidden = decoder.run()
        logits = logits_of(w, hidden.view(w.batch, 1, hidden.shape[2]))
        del hidden, ids
        t.forget_casts()
        if setup.outputs_fp32 and w.auto is not None:
            logits = cast(t, logits, "float32", "fp32 copy of the returned logits")
        why = "of the next token of each row, until those of the one after it are there"
        for place, name in enumerate(("logits in fp32", "probabilities")):
            self.drawn[place : place + 1] = [t.alloc(name, logits.shape, "float32", why)]
        noise = t.alloc("exponential noise", logits.shape, "float32", "the draw divides by it")
        del held, logits, noise
        return decoder.blocks()

    def _grown(self, w: Context, blocks: Blocks, sizes: GeneratedRows) -> list[Tensor]:
        """The cache when all but the last token have been sampled: each layer's keys and values joined to
        those of new tokens, so many at a time (planner/run/rollout.py _sample).
        """
        t, cache = self.tape, w.cache or []
        w.cache = None
        of_layer = len(cache) // sum(len(block) for block, _ in blocks)
        length = S - sizes.completion
        for more in growth(sizes.completion - 2):
            length, place = length + more, 0
            for block, times in blocks:
                with t.repeat(times):
                    for step in block:
                        old = cache[place : place + of_layer]
                        whole = kept(length - more, step.layer.attention.window) + more
                        cache[place : place + of_layer] = self._joined_to(old, more, whole)
                        del old
                        place += of_layer
        return cache

    def _joined_to(self, old: list[Tensor], more: int, length: Sized) -> list[Tensor]:
        t = self.tape
        fronts = [(x.shape[:-2], x.shape[-1], x.dtype) for x in old]
        new = [t.alloc("of new tokens", (*front, more, size), dtype) for front, size, dtype in fronts]
        made = [
            t.alloc("KV cache", (*front, length, size), dtype, "keys and values so far", "activations")
            for front, size, dtype in fronts
        ]
        del new
        return made

    # ---- scoring -------------------------------------------------------------------------------------------

    def _score(self, rows: Sized, sizes: GeneratedRows) -> None:
        """Log-probabilities by the model itself, where some are needed, and by the reference: of the last
        micro-batch, those of the ones before beside it.
        """
        t, w = self.tape, self.w
        reference = reference_of(self.parameter_table)
        asked = [(self.parameter_table, False)] if sizes.old_scores else []
        # a second model is in evaluation mode, and nobody froze its weights: autocast keeps their copies
        asked += [(reference, self.setup.reference == "model")] if reference is not None else []
        whole = [t.alloc(f"whole {name}", (rows, S), "int64") for name in ("input_ids", "attention_mask")]
        kept: list[Tensor] = []  # whose tokens' scores the batch has not
        training = t.training
        for table, leaves in asked:
            t.training = training and not leaves
            before = (2, sizes.steps - 1, w.batch, S - 1)
            held = [
                t.alloc("scores of the micro-batches before", before, "float32", "log-probabilities, entropy")
            ]
            labels = t.alloc("labels", (w.batch, S), "int64", "-100 for what is no completion")
            with t.inside("scores: "):
                held.append(alone(w, table, self.guard, whole[0].view(w.batch, S), leaves, policy.scored))
            t.forget_casts()
            del held, labels
            if TASKS[self.setup.task].old_scores == "always":
                kept.append(t.alloc("scores of all rows", (rows, sizes.completion), "float32"))
        t.training = training
