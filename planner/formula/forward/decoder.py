"""From token ids to the last hidden states: embedding, positions, masks, rotary tables, the decoder layers,
the final norm.

What the model's forward keeps in local variables lives as long as it runs.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import NamedTuple

from memplan.planner.formula.forward.context import Context
from memplan.planner.formula.forward.eager import eager
from memplan.planner.formula.forward.layers import decoder_layer
from memplan.planner.formula.forward.linears import linear
from memplan.planner.formula.forward.norms import norm
from memplan.planner.formula.forward.prefix import Prefix
from memplan.planner.formula.forward.rotary import made_tables
from memplan.planner.formula.parameters import S
from memplan.planner.formula.resident.loading import batch_tensors
from memplan.planner.formula.sharding.plan import StrategyHooks
from memplan.planner.formula.tape.checkpoint import CHECKPOINTS
from memplan.planner.formula.tape.layers import embedding
from memplan.planner.formula.tape.ops import add, cast, concatenate, dropout, unary
from memplan.planner.formula.tape.repeats import compress
from memplan.planner.formula.tape.tape import Tensor
from memplan.planner.inputs.spec import Layer, prefix_sizes
from memplan.planner.tables.methods import METHODS


class Guard(NamedTuple):
    """Discrete facts that follow from the sizes: B = 1, and which sliding windows are shorter than the
    sequence.
    """

    single: bool
    windows: tuple[int, ...] = ()  # those that cut the sequence

    def window(self, layer: Layer) -> int | None:
        """The layer's sliding window in tokens where the sequence is longer than it; else None."""
        size = layer.attention.window
        return size if size is not None and size in self.windows else None


@dataclass(frozen=True, slots=True)
class StepInterpreter:
    """One decoder layer of the walk, and what of its place decides its bytes."""

    layer: Layer
    trained: bool
    checkpointed: bool
    sliding: bool
    # whether its attention has a gradient: the first layer's has none where nothing before or inside it is
    # trained
    requires_grad: bool = True


Tables = dict[bool, tuple[Tensor, Tensor]]  # rotary cos and sin; True: those of sliding layers


class Decoder:
    """One model under a guard of sizes; `run` walks it once. `leaf`: the shape and dtype of the layers'
    first input.
    """

    def __init__(self, walk: Context, guard: Guard, around: StrategyHooks, ids: Tensor) -> None:
        self.w, self.t, self.guard, self.hooks, self.ids = walk, walk.t, guard, around, ids
        self.setup, self.spec, self.parameter_table = (
            walk.setup,
            walk.parameter_table.spec,
            walk.parameter_table,
        )
        self.leaf = ids
        self.requires_grad = True
        self.prefix = Prefix(walk)
        self.outside: list[
            Tensor
        ] = []  # what PEFT's forward around the model's keeps until the loss is there
        self.beside: Tensor | None = (
            None  # what the last layer returned beside its hidden states, alive until the next one returns
        )

    def run(self) -> Tensor:
        """The last hidden states, normed: (B, S, H)."""
        t, w, spec = self.t, self.w, self.spec
        shape = (*self.ids.shape, spec.embedding_dim)
        if w.past:
            self._prefix()
            w.join = self.prefix.join
        self.hooks.enter("embedding" if not spec.tied else "tail", self.ids)
        embedded = embedding(
            t, self.ids, w.weight(f"{spec.embedding_name}.weight"), shape, "embeddings", w.device.kind
        )
        own = any(
            e.name.endswith("embed_scale") for e in spec.extras
        )  # the embedding module multiplies by itself (Gemma)
        embedded = self._scaled(embedded) if own else embedded
        checkpointed = self.setup.checkpointing != "none"
        if checkpointed and METHODS[self.setup.method].trains != "all" and t.grad_enabled:
            embedded.requires_grad, embedded.name = True, "embeddings"
        embedded = self.hooks.leave("embedding", embedded)
        if "prompt" in self.parameter_table.adapters:
            embedded = self._prompted(embedded)
        self.leaf = Tensor(None, embedded.shape, embedded.dtype)
        if not own:
            embedded = self._scaled(embedded)
        hidden = embedded
        if spec.embedding_dim != spec.hidden:
            hidden = linear(
                w, next(p for p in spec.projections if p.in_features == spec.embedding_dim), hidden
            )
        hidden, places = self._positions(hidden)
        if spec.embedding_norm is not None:
            hidden = norm(w, spec.embedding_norm, hidden)
        hidden = dropout(t, hidden, spec.dropouts.embedding)
        self._masks(embedded.dtype)
        self.requires_grad = hidden.requires_grad or self._attention_trained()
        tables = self._tables(hidden.dtype)
        first = [hidden]
        del hidden
        hidden = self.hooks.enter("tail", self._layers(first, tables))
        if spec.final_norm is not None:
            hidden = norm(w, spec.final_norm, hidden)
        self.beside = None
        if spec.embedding_dim != spec.hidden:
            hidden = linear(w, next(p for p in spec.projections if p.in_features == spec.hidden), hidden)
        w.masks = {}
        del embedded, places
        return hidden

    def _prompted(self, embedded: Tensor) -> Tensor:
        """Virtual tokens joined before the embeddings (peft 0.21 peft_model.py forward)."""
        t, w = self.t, self.w
        table = w.weight(self.parameter_table.adapters["prompt"].tensors[0].name)
        ids = t.alloc("virtual token ids", (w.batch, table.shape[0]), "int64", "0 to V - 1 for each row")
        prompts = embedding(t, ids, table, (w.batch, *table.shape), "prompts", w.device.kind)
        del ids
        prompts = cast(t, prompts, embedded.dtype)
        size = (w.batch, w.sequence)
        self.outside += [
            prompts,
            t.alloc("labels with virtual tokens", size, "int64", "-100 for virtual tokens"),
        ]
        if "attention_mask" in batch_tensors(self.setup):
            self.outside.append(
                t.alloc("mask with virtual tokens", size, "float32", "torch.ones joined to the batch's mask")
            )
        self.outside.append(
            concatenate(t, (prompts, embedded), (*size, embedded.shape[-1]), "embeddings with virtual tokens")
        )
        return self.outside[-1]

    def _prefix(self) -> None:
        """Keys and values of the virtual tokens, in the dtype of the model's first parameter (peft_model.py
        base_model_torch_dtype).
        """
        stored, (_, heads, width) = (
            self.parameter_table.adapters["prefix"].tensors[0],
            prefix_sizes(self.spec),
        )
        dtype = self.w.weight(f"{self.spec.embedding_name}.weight").dtype
        counts = [(len(block), times) for block, times in self.blocks()]
        if "attention_mask" in batch_tensors(self.setup):
            shape = (self.w.batch, S + self.w.past)
            self.outside.append(
                self.t.alloc(
                    "mask with virtual tokens", shape, "float32", "torch.ones joined to the batch's mask"
                )
            )
        self.prefix.make(stored.name, counts, heads, width // heads, dtype)

    def _scaled(self, hidden: Tensor) -> Tensor:
        """Granite and Gemma multiply their embeddings by a number."""
        return unary(self.t, "scale", hidden, "scaled embeddings") if self.spec.scaled_embedding else hidden

    def _positions(self, hidden: Tensor) -> tuple[Tensor, Tensor | None]:
        """The embeddings with learned positions added, and those, which keep their name until the model
        returns.
        """
        spec, w = self.spec, self.w
        if spec.learned_positions is None:
            return hidden, None
        rows = w.batch if spec.positions_by_row else 1
        ids = self.t.alloc("position ids", (rows, w.sequence), "int64", "one for each place")
        shape, weight = (rows, w.sequence, spec.hidden), w.weight(f"{spec.position_name}.weight")
        table = embedding(self.t, ids, weight, shape, "position embeddings", w.device.kind)
        return add(
            self.t, hidden, table, "embeddings with positions", (w.batch, w.sequence, spec.hidden)
        ), table

    def _tables(self, dtype: str) -> Tables:
        """cos and sin, one pair for each kind of layer.

        Gemma 3 and OLMo 3 keep a table for sliding layers and one for the others: each has its own inverse
        frequencies.
        """
        rotary = [layer.attention for _, layer in self.spec.layers if layer.attention.rotary_dim]
        if not rotary:
            return {}
        kinds = [e for e in self.spec.extras if e.name.endswith("inv_freq") and "original" not in e.name]
        # position ids of each row where documents are packed, and in generate
        rows = self.w.batch if self.setup.packed_documents > 1 or self.w.by_row else 1
        several = (False, True)[: max(1, min(2, len(kinds)))]
        return {sliding: made_tables(self.w, rotary[0], rows, dtype) for sliding in several}

    def _masks(self, dtype: str) -> None:
        """One mask for each kind of layer: none where is_causal says it all (masking_utils.py)."""
        t, w, setup = self.t, self.w, self.setup
        w.masks, keys = {}, self.w.sequence + self.w.past + self.w.before
        by_hand = eager(w, self.spec.layers[0][1].attention)
        flash2 = setup.attention == "flash_attention_2"
        if self.spec.layers[0][1].attention.alibi and not by_hand and not flash2:
            whole = (w.batch, self.spec.layers[0][1].attention.heads, w.sequence, keys)
            w.masks = {
                None: t.alloc("ALiBi mask", whole, dtype, "biases and causal mask of all heads, made once")
            }
            return
        trains = METHODS[setup.method].trains != "nothing"
        plain = trains and (setup.padded or setup.packed_documents > 1)
        by_row = plain or (
            trains and "attention_mask" in batch_tensors(setup)
        )  # the batch's own mask is part of each one that is made
        always = w.past > 0 or any(layer.attention.masked for _, layer in self.spec.layers)
        kinds = {layer.attention.window for _, layer in self.spec.layers}
        used = {self.guard.window(layer) for _, layer in self.spec.layers}
        apart = [
            -kind for kind in kinds if kind is not None and None in kinds and kind not in used
        ]  # cut nothing, yet have their own mask
        unread = [0] if self.spec.empty_window_mask else []
        for window in (None, *self.guard.windows, *apart, *unread):
            if window in (None, *self.guard.windows) and window not in used:
                w.masks[window] = None
                continue
            needed = not flash2 and (by_hand or plain or always or (window is not None and window >= 0))
            shape = (w.batch, 1, w.sequence, keys)
            if not needed:
                w.masks[window] = None
                continue
            boolean = t.alloc(
                "attention mask", shape if by_row else (1, *shape[1:]), "bool", "which position sees which"
            )
            w.masks[window] = (
                t.alloc("attention mask", shape, dtype, "0 or the lowest number")
                if by_hand
                else Tensor(boolean.buffer, shape, "bool")
            )
            del boolean

    # ---- layers --------------------------------------------------------------------------------------------

    def _layers(self, first: list[Tensor], tables: Tables) -> Tensor:
        hidden = first.pop()  # its name is the layers' output's from the first one on
        key = place = 0
        for block, times in self.blocks():
            with self.t.repeat(times):
                for step in block:
                    hidden = self._one_layer(hidden, step, key, place, tables)
                    key, place = key + 1, place + 1
            place += len(block) * (times - 1)
        return hidden

    def _mask(self, step: StepInterpreter) -> Tensor | None:
        """The mask that a layer is called with; one whose window cuts nothing may have its own (`_masks`)."""
        apart = [mask for window, mask in self.w.masks.items() if window is not None and window < 0]
        uncut = step.sliding and step.layer.attention.window is None
        return apart[0] if uncut and apart else self.w.masks[step.layer.attention.window]

    def _attention_trained(self) -> bool:
        """Whether something inside the first layer's attention is trained, before its output projection."""
        projections = self.spec.layers[0][1].attention.linears[:-1]
        return (
            self.parameter_table.first_trained == 0
            or self.w.past > 0
            or any(linear.name in self.parameter_table.adapters for linear in projections)
        )

    def blocks(self) -> list[tuple[list[StepInterpreter], int]]:
        """The layers as blocks, each with how often it is repeated in a row."""
        return compress(self._sequence(), 1 if self.t.offload is None else self.t.offload.period)

    def _sequence(self) -> list[StepInterpreter]:
        """Every layer with whether it is trained and checkpointed, windows that do not cut the sequence taken
        off.
        """
        flat: list[StepInterpreter] = []
        for count, layer in self.spec.layers:
            window = self.guard.window(layer)
            same = (
                layer
                if window == layer.attention.window
                else replace(layer, attention=replace(layer.attention, window=window))
            )
            sliding = layer.attention.window is not None
            for index in range(len(flat), len(flat) + count):
                checkpointed = self.setup.checkpointing != "none" and index % self.setup.checkpoint_every == 0
                flat.append(
                    StepInterpreter(
                        same,
                        index >= self.parameter_table.first_trained,
                        checkpointed,
                        sliding,
                        index > 0 or self.requires_grad,
                    )
                )
        return flat

    def _one_layer(
        self, hidden: Tensor, step: StepInterpreter, key: int, place: int, tables: Tables
    ) -> Tensor:
        """The layer that is walked as `key`; `place` is its index in the model."""
        w, prefix, window = self.w, f"{step.layer.prefix}.*.", step.layer.attention.window
        masks = {window: self._mask(step)}
        inside, around = StrategyHooks(), self.hooks
        if not around.outside:
            inside, around = around, inside

        def body(given: Tensor) -> list[Tensor]:
            before, w.masks = w.masks, masks  # a checkpointed layer keeps the mask that it was called with
            try:
                with w.at_layer(key, step.trained), self.t.inside(prefix):
                    given = inside.enter("layer", given, place, key)
                    out, *beside = decoder_layer(
                        w, step.layer, given, prefix, tables.get(step.sliding, tables.get(False))
                    )
                    return [inside.leave("layer", out, place, key), *beside]
            finally:
                w.masks = before

        hidden = around.enter("layer", hidden, place, key)
        if step.checkpointed:
            made = CHECKPOINTS[self.setup.checkpointing](self.t, body, hidden, self.setup.checkpoint_offload)
        else:
            made = body(hidden)
        self.beside = made[1] if len(made) > 1 else None
        return around.leave("layer", made[0], place, key)
