"""One training step on the tape: embedding, layers, loss, backward, and what stays alive until the optimizer's step.

The step is the second one: optimizer states and cuBLAS workspaces exist. Gradients exist in the forward only where they are accumulated.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from planner.expr import Expr, const
from planner.forward import attend
from planner.forward.fused_losses import WITHOUT_LOGITS
from planner.forward.layers import decoder_layer
from planner.forward.linears import linear, orthogonality
from planner.forward.losses import causal_loss, logits_of
from planner.forward.norms import norm
from planner.forward.walk import Device, Walk
from planner.methods import METHODS
from planner.optimizers import OPTIMIZERS
from planner.parameters import B, Inventory, S
from planner.resident.loading import batch_tensors
from planner.resident.stored import Stored
from planner.shards.rank import Rank
from planner.spec import Layer
from planner.tape.checkpoint import CHECKPOINTS
from planner.tape.repeats import compress
from planner.tape.rules import add, cast, dropout, embedding, unary
from planner.tape.tape import Tape, Tensor

TRAINER_RECIPES = ("hf", "trl", "axolotl", "llamafactory", "paper")  # stacks on transformers' Trainer: it drops outputs before the backward


@dataclass(frozen=True, slots=True)
class Regime:
    """Discrete facts that follow from the sizes: B = 1, and which sliding windows are shorter than the sequence."""

    single: bool
    windows: tuple[int, ...] = ()  # those that cut the sequence

    def window(self, layer: Layer) -> int | None:
        size = layer.attention.window
        return size if size is not None and size in self.windows else None


@dataclass(frozen=True, slots=True)
class Step:
    """One decoder layer of the walk, and what of its place decides its bytes."""

    layer: Layer
    trained: bool
    checkpointed: bool
    sliding: bool


def run_step(inventory: Inventory, device: Device, regime: Regime, rank: Rank | None = None) -> Tape:
    """The log of one step: moments forward, backward and optimizer_step. `rank`: what this process shares with others (nothing)."""
    return _Step(inventory, device, regime, rank or Rank(inventory)).run()


_LIST = "torch.optim's foreach path makes one list as large as the trained parameters"
FOREACH_LISTS: dict[str, tuple[tuple[str, str], ...]] = {
    "adamw_torch": (("square root of exp_avg_sq", _LIST),),  # optim/adam.py _multi_tensor_adam: exp_avg_sq_sqrt
    "rmsprop": (("square root of square_avg", _LIST),),  # optim/rmsprop.py _multi_tensor_rmsprop: avg
    "adagrad": (("square root of sum", _LIST), ("scaled gradient", _LIST)),  # optim/adagrad.py _multi_tensor_adagrad: std, numerator
}

Tables = dict[bool, tuple[Tensor, Tensor]]  # rotary cos and sin; True: those of sliding layers


class _Step:
    def __init__(self, inventory: Inventory, device: Device, regime: Regime, rank: Rank) -> None:
        self.inventory, self.setup, self.spec, self.rank = inventory, inventory.setup, inventory.spec, rank
        self.regime, self.device = regime, device
        self.tape = Tape()
        batch: Expr = const(1) if regime.single else B
        self.w = Walk(self.tape, self.setup, inventory, device, batch, S, regime.single, {})
        self.around = rank.around(self.w)
        self.resident: list[Tensor] = []
        if self.w.auto is not None:
            self.tape.casts = {}

    # ---- the step -----------------------------------------------------------------------------------------------------------------

    def run(self) -> Tape:
        t, setup = self.tape, self.setup
        self._residents()
        if METHODS[setup.method].trains == "nothing":
            with t.no_grad():
                last = self._answer()  # the answer of the step before lives until this one replaces it
                t.mark("forward")
                after = self._answer()
            t.mark("end")
            del last, after
            return t
        if setup.gradient_accumulation > 1 and self.around.accumulates:
            self._old_gradients()
        dropped = setup.recipe in TRAINER_RECIPES
        before: Tensor | None = None
        if not dropped and setup.loss == "full" and (setup.retain_outputs or setup.gradient_accumulation > 1):
            before = t.alloc("logits of the step before", (), "float32", "the loop keeps its outputs", "activations")
        t.mark("forward")
        outputs: Tensor | None
        outputs, loss = self._forward()
        if before is not None:
            t.resize(before, outputs.shape, outputs.dtype)
        before = None
        if dropped:
            outputs = None
        t.mark("backward")
        t.casts = None
        self.around.begin_backward()
        t.backward(loss, t.alloc("gradient of the loss", (), "float32", "the one that backward starts from"))
        self.around.end_backward()
        with t.dropping():
            del loss  # and with it the graph, whose contexts hold what no hook can see
        t.mark("optimizer_step")
        self._optimizer()
        t.mark("end")
        del outputs, before
        return t

    def _residents(self) -> None:
        """What is there all along: the batch and the cuBLAS workspaces."""
        t, shape = self.tape, (self.w.batch, S)
        self.resident = [t.alloc(name, shape, "int64", "the batch", "activations") for name in batch_tensors(self.setup)]
        self.ids = self.resident[0]
        if self.device.kind == "cuda":
            threads = ("forward", "autograd") if METHODS[self.setup.method].trains != "nothing" else ("forward",)
            self.resident += [
                t.alloc(
                    f"cuBLAS workspace of the {thread} thread",
                    (self.device.workspace,),
                    "uint8",
                    "held by each thread's handle from its first matmul on",
                    "temporaries",
                )
                for thread in threads
            ]

    def _old_gradients(self) -> None:
        """Gradients of the micro-batches before, which this one is added to."""
        for stored in self.inventory.trained:
            grad = self.tape.alloc(f"{stored.name} gradient", stored.shape, stored.dtype, "accumulated over micro-batches", "gradients")
            self.tape.log[-1] = (-1, {len(self.tape.infos) - 1: stored.count})
            self.resident.append(grad)
        self.w.accumulated = True

    # ---- forward ------------------------------------------------------------------------------------------------------------------

    def _forward(self) -> tuple[Tensor, Tensor]:
        """What the outputs hold (the logits, or where there are none the loss), and the loss."""
        t, w = self.tape, self.w
        self.around.begin()
        hidden = self._hidden()
        logits: Tensor | None = None
        if self.setup.loss == "full":
            logits = self.around.leave("tail", logits_of(w, hidden))
            loss = causal_loss(w, logits)
        else:
            loss = WITHOUT_LOGITS[self.setup.loss](w, hidden)
        del hidden
        loss = self.around.leave("root", loss if logits is not None else self.around.leave("tail", loss))
        if self.setup.method == "adalora":
            loss = self._regularised(loss)
        t.forget_casts()
        if self.setup.outputs_fp32 and w.auto is not None and logits is not None:
            logits = cast(t, logits, "float32", "fp32 copy of the returned logits")
        if self.setup.gradient_accumulation > 1:
            loss = unary(t, "scale", loss, "loss")
        return loss if logits is None else logits, loss

    def _regularised(self, loss: Tensor) -> Tensor:
        """The loss with AdaLoRA's regularisation of every layer: its gradients come first, so all adapters have one from the start."""
        t, w = self.tape, self.w
        key = 0
        for block, times in compress(self._sequence()):
            with t.repeat(times):
                for step in block:
                    with w.at_layer(key, step.trained):
                        part = orthogonality(w, f"{step.layer.prefix}.*.")
                    key += 1
                    if part is not None:
                        loss = add(t, loss, part, "loss")
        return loss

    def _answer(self) -> tuple[Tensor, list[Tensor]]:
        """The logits and the KV cache of one forward: every layer's keys and values are copied into it (cache_utils.py DynamicLayer)."""
        self.w.cache = []
        logits = logits_of(self.w, self._hidden())
        cache, self.w.cache = self.w.cache, None
        return logits, cache

    def _hidden(self) -> Tensor:
        """The last hidden states, normed: (B, S, H)."""
        t, w, spec = self.tape, self.w, self.spec
        shape = (w.batch, S, spec.embedding_dim)
        self.around.enter("embedding" if not spec.tied else "tail", self.ids)
        embedded = embedding(t, self.ids, w.weight(f"{spec.embedding_name}.weight"), shape, "embeddings")
        checkpointed = self.setup.checkpointing != "none"
        if checkpointed and METHODS[self.setup.method].trains != "all" and t.grad_enabled:
            embedded.requires_grad, embedded.name = True, "embeddings"
        embedded = self.around.leave("embedding", embedded)
        hidden = self._scaled(embedded)
        if spec.embedding_dim != spec.hidden:
            hidden = linear(w, next(p for p in spec.projections if p.in_features == spec.embedding_dim), hidden)
        hidden = self._positions(hidden)
        if spec.embedding_norm is not None:
            hidden = norm(w, spec.embedding_norm, hidden)
        hidden = dropout(t, hidden, spec.dropouts.embedding)
        self._masks(hidden.dtype)
        tables = self._tables(hidden.dtype)
        hidden = self._layers(hidden, tables)
        w.masks = {}
        hidden = self.around.enter("tail", hidden)
        if spec.final_norm is not None:
            hidden = norm(w, spec.final_norm, hidden)
        if spec.embedding_dim != spec.hidden:
            hidden = linear(w, next(p for p in spec.projections if p.in_features == spec.hidden), hidden)
        del embedded
        return hidden

    def _scaled(self, hidden: Tensor) -> Tensor:
        """Granite and Gemma multiply their embeddings by a number."""
        return unary(self.tape, "scale", hidden, "scaled embeddings") if self.spec.scaled_embedding else hidden

    def _positions(self, hidden: Tensor) -> Tensor:
        spec, w = self.spec, self.w
        if spec.learned_positions is None:
            return hidden
        ids = self.tape.alloc("position ids", (1, S), "int64", "0 to S - 1")
        table = embedding(self.tape, ids, w.weight(f"{spec.position_name}.weight"), (1, S, spec.hidden), "position embeddings")
        return add(self.tape, hidden, table, "embeddings with positions", (w.batch, S, spec.hidden))

    def _tables(self, dtype: str) -> Tables:
        """cos and sin, (1, S, D) in the hidden states' dtype (D / 2 where the model rotates halves apart), one pair for each kind of layer.

        Gemma 3 and OLMo 3 keep a table for sliding layers and one for the others: each has its own inverse frequencies.
        """
        rotary = [layer.attention for _, layer in self.spec.layers if layer.attention.rotary_dim]
        if not rotary:
            return {}
        kinds = [e for e in self.spec.extras if e.name.endswith("inv_freq") and "original" not in e.name]
        dim = rotary[0].rotary_dim // (2 if rotary[0].rotary == "split" else 1)
        wide = "float32" if rotary[0].rotary in ("half_float32", "pairs_float32", "complex") else dtype
        tables: Tables = {}
        for sliding in (False, True)[: max(1, min(2, len(kinds)))]:
            made = [self.tape.alloc(f"rotary {name}", (1, S, dim), wide, "computed once for all layers") for name in ("cos", "sin")]
            tables[sliding] = (made[0], made[1])
            del made
        return tables

    def _masks(self, dtype: str) -> None:
        """One mask for each kind of layer: none where is_causal says it all (masking_utils.py)."""
        t, w, setup = self.tape, self.w, self.setup
        w.masks = {}
        eager = attend.eager(w, self.spec.layers[0][1].attention)
        flash2 = setup.attention == "flash_attention_2"
        if self.spec.layers[0][1].attention.alibi and not eager and not flash2:
            heads = self.spec.layers[0][1].attention.heads
            w.masks = {None: t.alloc("ALiBi mask", (w.batch, heads, S, S), dtype, "biases and causal mask of all heads, made once")}
            return
        for window in (None, *self.regime.windows):
            needed = not flash2 and (eager or setup.padded or setup.packed_documents > 1 or window is not None)
            shape = (w.batch, 1, S, S)
            plain = setup.padded or setup.packed_documents > 1
            if not needed:
                w.masks[window] = None
                continue
            boolean = t.alloc("attention mask", shape if plain else (1, 1, S, S), "bool", "which position sees which")
            w.masks[window] = (
                t.alloc("attention mask", shape, dtype, "0 or the lowest number") if eager else Tensor(boolean.buffer, shape, "bool")
            )
            del boolean

    # ---- layers -------------------------------------------------------------------------------------------------------------------

    def _layers(self, hidden: Tensor, tables: Tables) -> Tensor:
        key = place = 0
        for block, times in compress(self._sequence()):
            with self.tape.repeat(times):
                for step in block:
                    hidden = self._one_layer(hidden, step, key, place, tables)
                    key, place = key + 1, place + 1
            place += len(block) * (times - 1)
        return hidden

    def _sequence(self) -> list[Step]:
        """Every layer with whether it is trained and checkpointed, windows that do not cut the sequence taken off."""
        flat: list[Step] = []
        for count, layer in self.spec.layers:
            window = self.regime.window(layer)
            same = layer if window == layer.attention.window else replace(layer, attention=replace(layer.attention, window=window))
            sliding = layer.attention.window is not None
            for index in range(len(flat), len(flat) + count):
                checkpointed = self.setup.checkpointing != "none" and index % self.setup.checkpoint_every == 0
                flat.append(Step(same, index >= self.inventory.first_trained, checkpointed, sliding))
        return flat

    def _one_layer(self, hidden: Tensor, step: Step, key: int, place: int, tables: Tables) -> Tensor:
        """The layer that is walked as `key`; `place` is its index in the model."""
        w, prefix, masks = self.w, f"{step.layer.prefix}.*.", self.w.masks

        def body(given: Tensor) -> Tensor:
            before, w.masks = w.masks, masks  # a checkpointed layer keeps the masks that it was called with
            try:
                with w.at_layer(key, step.trained), self.tape.inside(prefix):
                    given = self.around.enter("layer", given, place, key)
                    out = decoder_layer(w, step.layer, given, prefix, tables.get(step.sliding, tables.get(False)))
                    return self.around.leave("layer", out, place, key)
            finally:
                w.masks = before

        if not step.checkpointed:
            return body(hidden)
        return CHECKPOINTS[self.setup.checkpointing](self.tape, body, hidden, self.setup.checkpoint_offload)

    # ---- optimizer ----------------------------------------------------------------------------------------------------------------

    def _optimizer(self) -> None:
        """Temporaries of the optimizer's step over what is alive after the backward."""
        setup, trained = self.setup, self.rank.stepped()
        made = self.around.begin_optimizer()
        if OPTIMIZERS[setup.optimizer].library == "bitsandbytes" or not trained:
            return  # kernels that work in place
        largest = max(trained, key=lambda stored: stored.elements.evaluate({"R": setup.rank}))
        if setup.optimizer == "adafactor":
            copies = 5 if largest.dtype != "float32" else 3
            name, why = f"{largest.name} Adafactor update", "fp32 copies and squares, one tensor at a time"
            held = [self.tape.alloc(name, largest.shape, "float32", why) for _ in range(copies)]
        elif setup.optimizer_mode == "foreach":
            held = [made for what, why in FOREACH_LISTS.get(setup.optimizer, ()) for made in self._lists(what, why, trained)]
        elif setup.optimizer_mode == "loop" and setup.optimizer in FOREACH_LISTS:
            held = [self.tape.alloc(f"{largest.name} {what}", largest.shape, largest.dtype, "one tensor at a time")
                    for what, _ in FOREACH_LISTS[setup.optimizer]]  # fmt: skip
        else:
            held = []
        del held, made

    def _lists(self, what: str, why: str, trained: Sequence[Stored]) -> list[Tensor]:
        made = []
        for stored in trained:
            made.append(self.tape.alloc(f"{stored.name} {what}", stored.shape, stored.dtype, why, "temporaries"))
            index = len(self.tape.infos) - 1
            self.tape.log.append((-1, {index: stored.count - 1}))
        return made
