"""One training step on the tape: embedding, layers, loss, backward, and what stays alive until the
optimizer's step.

The step is the second one: optimizer states and cuBLAS workspaces exist. Gradients exist in the forward only
where they are accumulated.
"""

from __future__ import annotations

from memplan.planner.formula.forward import earlier_trl, preferences, whole_logits
from memplan.planner.formula.forward.added_losses import Routed, as_returned, balanced, regularized
from memplan.planner.formula.forward.context import Context, Device
from memplan.planner.formula.forward.decoder import Decoder, Guard
from memplan.planner.formula.forward.losses import logits_of
from memplan.planner.formula.forward.parted_losses import OF_HIDDEN_STATES, OF_LOGITS
from memplan.planner.formula.forward.pooled import POOLED_LOSSES
from memplan.planner.formula.optimizer_step import in_backward, optimizer_step
from memplan.planner.formula.parameters import B, ParameterTable, S
from memplan.planner.formula.resident.loading import batch_shapes, sampled_shapes
from memplan.planner.formula.sharding.plan import ShardingPlan
from memplan.planner.formula.symbolic.expr import const, minimum
from memplan.planner.formula.tape.ops import cast, unary
from memplan.planner.formula.tape.tape import Tape, Tensor
from memplan.planner.inputs.tasks import read_at_once
from memplan.planner.tables.components import Component
from memplan.planner.tables.cublas import HELD, THREADS, workspace_name
from memplan.planner.tables.methods import METHODS
from memplan.planner.tables.tasks import TASKS

__all__ = ["Guard", "Step", "run_step"]


def run_step(
    parameter_table: ParameterTable, device: Device, guard: Guard, rank: ShardingPlan | None = None
) -> Tape:
    """The log of one step: moments forward, backward and optimizer_step. `rank`: what this process shares
    with others (nothing).
    """
    return Step(parameter_table, device, guard, rank or ShardingPlan(parameter_table)).run()


class Step:
    """One training step under way: its tape, and what every part of it shares."""

    def __init__(
        self, parameter_table: ParameterTable, device: Device, guard: Guard, rank: ShardingPlan
    ) -> None:
        self.parameter_table, self.setup, self.rank = parameter_table, parameter_table.setup, rank
        self.guard, self.device = guard, device
        self.tape = Tape()
        self.tape.fused_dropout = device.kind == "cuda"
        self.tape.training = METHODS[self.setup.method].trains != "nothing"
        batch = self.batch = const(1) if guard.single else read_at_once(self.setup) * B
        if self.setup.mini_batch is not None:
            batch = minimum(batch, self.setup.mini_batch)
        longer = (self.setup.virtual_tokens or 0) if self.setup.method == "prompt-tuning" else 0
        if self.setup.activation_offload != "none":
            from memplan.planner.formula.tape.offload import Offload

            self.tape.offload = Offload(self.tape, self.setup.activation_offload)
        self.w = Context(self.tape, self.setup, parameter_table, device, batch, S + longer, guard.single, {})
        self.w.past = (self.setup.virtual_tokens or 0) if "prefix" in parameter_table.adapters else 0
        if not TASKS[self.setup.task].prepared:
            self.w.auto = None
        self.hooks = rank.hooks(self.w)
        if self.setup.optimizer_in_backward:
            self.tape.taken = in_backward(self.tape, self.setup, parameter_table.trained)
        self.resident: list[Tensor] = []
        self.routed: Routed = []  # logits of the routers that the outputs hold
        self.tape.autocast = self.w.auto is not None
        self.tape.casts = self.tape.new_casts()

    # ---- the step ------------------------------------------------------------------------------------------

    def run(self) -> Tape:
        """The log of the whole step."""
        t, setup = self.tape, self.setup
        self._residents()
        if METHODS[setup.method].trains == "nothing":
            with t.no_grad():
                t.mark("forward")
                answer = self._answer()
            t.end_forward()
            t.mark("end")
            del answer
            return t
        if setup.gradient_accumulation > 1:
            if self.hooks.accumulates:
                self._old_gradients()
            self.hooks.accumulated()
        dropped = not setup.loop.holds_outputs
        before: list[Tensor] = []
        if not dropped and (setup.retain_outputs or setup.gradient_accumulation > 1):
            before = self._kept()
        t.mark("forward")
        outputs: Tensor | None
        outputs, loss = self._forward()
        self._resize(before, outputs)
        before.clear()
        if dropped:
            outputs = None
            with t.dropping():
                self.routed.clear()
        t.end_forward()
        t.mark("backward")
        t.casts = None
        self.hooks.begin_backward()
        if self.w.again is None:
            t.backward(
                loss, t.alloc("gradient of the loss", (), "float32", "the one that backward starts from")
            )
        else:
            self.w.again()
        if t.offload is not None:
            t.offload.end()
        self.hooks.end_backward()
        with t.dropping():
            del loss  # and with it the graph, whose contexts hold what no hook can see
        t.mark("optimizer_step")
        made = self.hooks.begin_optimizer()
        optimizer_step(t, setup, [] if setup.optimizer_in_backward else self.rank.stepped())
        del made
        t.mark("end")
        del outputs
        self.decoder.prefix.drop()
        return t

    def _residents(self) -> None:
        """What is there all along: the batch and the cuBLAS workspaces."""
        t = self.tape
        batch = batch_shapes(self.setup, self.batch)
        self.resident = [t.alloc(name, shape, "int64", "the batch", "activations") for name, shape in batch]
        self.resident += [
            t.alloc(*each, "the rows that were sampled last", "activations")
            for each in sampled_shapes(self.setup, self.w.batch)
        ]
        self.decoder = Decoder(self.w, self.guard, self.hooks, self.resident[0])
        if self.device.kind == "cuda":
            threads = THREADS if METHODS[self.setup.method].trains != "nothing" else THREADS[:1]
            self.resident += [
                t.alloc(
                    workspace_name(thread),
                    (self.device.workspace,),
                    "uint8",
                    HELD,
                    "temporaries",
                )
                for thread in threads
            ]

    def _kept(self) -> list[Tensor]:
        """What the outputs of the step before hold: logits, and through the graph an embedding that was made
        to want a gradient.
        """
        names: dict[str, Component] = {"logits of the step before": "activations"}
        if self.setup.loss not in OF_LOGITS:
            names = {}
        if self.setup.checkpointing != "none" and METHODS[self.setup.method].trains != "all":
            names["embeddings of the step before"] = "activations"
            names["gradient of the embeddings of the step before"] = "temporaries"
        if self.w.past and self.setup.loss in OF_LOGITS:
            names["keys and values of the step before"] = "activations"
        return [
            self.tape.alloc(name, (), "float32", "the loop keeps its outputs", component)
            for name, component in names.items()
        ]

    def _resize(self, before: list[Tensor], outputs: Tensor) -> None:
        """This step's tensors say how large the last one's were."""
        for kept in before:
            like = outputs if kept.name.startswith("logits") else self.decoder.leaf
            if kept.name.startswith("keys"):
                *_, like = self.decoder.prefix.joined
                self.tape.resize(kept, (2 * self.parameter_table.spec.depth, *like.shape), like.dtype)
            else:
                self.tape.resize(kept, like.shape, like.dtype)

    def _old_gradients(self) -> None:
        """Gradients of the micro-batches before, which this one is added to."""
        for stored in self.parameter_table.trained:
            grad = self.tape.alloc(
                f"{stored.name} gradient",
                stored.shape,
                stored.dtype,
                "accumulated over micro-batches",
                "gradients",
            )
            self.tape.log[-1] = (-1, {len(self.tape.infos) - 1: stored.count})
            self.resident.append(grad)
        self.w.accumulated = True

    def _left_by_training(self) -> None:
        """The gradients that are there when a step has ended: none where the loop or the optimizer frees
        them.
        """
        setup, hooks = self.setup, self.hooks
        freed = setup.loop.frees_gradients or setup.optimizer_in_backward or hooks.frees
        if not freed and setup.zero_grad != "after_step":
            self._old_gradients() if hooks.accumulates else hooks.accumulated()

    # ---- forward -------------------------------------------------------------------------------------------

    def _forward(self) -> tuple[Tensor, Tensor]:
        """What the outputs hold (the logits, or where there are none the loss), and the loss."""
        t, w = self.tape, self.w
        self.hooks.begin()
        if TASKS[self.setup.task].generates:
            return self._sampled()
        if TASKS[self.setup.task].reference:
            return self._compared()
        if TASKS[self.setup.task].joined:
            return self._joined()
        if TASKS[self.setup.task].head == "none":
            return self._embedded()
        w.routed = [] if w.parameter_table.spec.balances else None
        hidden = self.decoder.run()
        routed, w.routed = w.routed, None
        logits: Tensor | None = None
        if self.setup.task in POOLED_LOSSES:
            logits, loss = POOLED_LOSSES[self.setup.task](w, hidden)
            logits = self.hooks.leave("tail", logits)
        elif self.setup.loss in OF_LOGITS:
            logits = self.hooks.leave("tail", logits_of(w, hidden))
            loss = OF_LOGITS[self.setup.loss](w, logits)
            if routed:
                loss = balanced(w, loss, routed)
        else:
            loss = OF_HIDDEN_STATES[self.setup.loss](w, hidden)
        del hidden
        loss = self.hooks.leave("root", loss if logits is not None else self.hooks.leave("tail", loss))
        if (
            self.setup.method == "adalora" and self.setup.loss != "chunked"
        ):  # TRL takes the mean of its log-probabilities itself
            loss = regularized(w, self.decoder.blocks(), loss)
        t.forget_casts()
        self.decoder.outside.clear()
        if logits is None or not self.setup.loop.holds_outputs:
            self.decoder.prefix.drop()
        whole = logits
        if self.setup.outputs_fp32 and w.auto is not None and logits is not None:
            logits = cast(t, logits, "float32", "fp32 copy of the returned logits")
        self.routed = as_returned(w, routed or [])
        del whole
        if self.setup.gradient_accumulation > 1:
            loss = unary(t, "scale", loss, "loss")
        return loss if logits is None else logits, loss

    def _compared(self) -> tuple[Tensor, Tensor]:
        """DPO's or KTO's loss, of this model's forward and the reference's."""
        t, w = self.tape, self.w
        beside = preferences.divergence(w, self.guard, self.resident[0])
        labels = preferences.begin(w)
        rows, kept = preferences.scored(w, self.hooks.leave("tail", self.decoder.run()))
        t.forget_casts()
        self.decoder.outside.clear()
        held: list[Tensor] | None = [] if earlier_trl.holds(self.setup) else None
        reference = preferences.against_reference(w, self.guard, self.resident[0], held)
        loss = self.hooks.leave("root", preferences.preference_loss(w, rows, reference))
        if held is not None:
            earlier_trl.metrics(w, kept[0], held)
        if self.setup.method == "adalora":
            loss = regularized(w, self.decoder.blocks(), loss)
        del labels, kept, reference, beside
        return self._alone(loss)

    def _joined(self) -> tuple[Tensor, Tensor]:
        """ORPO's or CPO's loss, of whole logits, after the model's forward has returned."""
        t, w = self.tape, self.w
        rows = whole_logits.joined(w)
        logits = self.hooks.leave("tail", logits_of(w, self.decoder.run()))
        t.forget_casts()
        self.decoder.outside.clear()
        if self.setup.outputs_fp32 and w.auto is not None:
            logits = cast(t, logits, "float32", "fp32 logits")
        loss = self.hooks.leave("root", whole_logits.pairs_loss(w, logits))
        del rows, logits
        return self._alone(loss)

    def _sampled(self) -> tuple[Tensor, Tensor]:
        """The loss of rows that were sampled before."""
        from memplan.planner.formula.forward import policy

        t, w = self.tape, self.w
        rows = policy.joined(w)
        self.decoder.ids = rows[0]
        if self.parameter_table.teacher is not None:
            return self._taught(self.parameter_table.teacher)
        labels = preferences.begin(w)
        scores, kept = policy.scored(w, self.hooks.leave("tail", self.decoder.run()))
        t.forget_casts()
        self.decoder.outside.clear()
        del labels
        loss = self.hooks.leave("root", policy.LOSSES[self.setup.task](w, scores))
        if self.setup.method == "adalora":
            loss = regularized(w, self.decoder.blocks(), loss)
        del rows, kept
        return self._alone(loss)

    def _embedded(self) -> tuple[Tensor, Tensor]:
        """The contrastive loss of every text's embedding."""
        from memplan.planner.formula.forward import embeddings

        texts = self.resident[: 2 * (self.setup.texts or 0)]
        loss = embeddings.contrastive_loss(self.w, self.guard, texts, self.batch)
        return self._alone(loss)

    def _taught(self, teacher: ParameterTable) -> tuple[Tensor, Tensor]:
        """The divergence from a teacher, which reads the same rows after the model."""
        from memplan.planner.formula.forward import distillation

        hidden = self.decoder.run()
        others = distillation.taught(self.w, teacher, self.guard, self.decoder.ids)
        loss = distillation.divergence_loss(self.w, hidden, others)
        self.decoder.outside.clear()
        return self._alone(loss)

    def _alone(self, loss: Tensor) -> tuple[Tensor, Tensor]:
        """The loss of one micro-batch, which is all that the outputs hold."""
        if self.setup.gradient_accumulation > 1:
            loss = unary(self.tape, "scale", loss, "loss")
        return loss, loss

    def _answer(self) -> tuple[Tensor, list[Tensor]]:
        """The last token's logits and the KV cache of one forward, into which every layer's keys and values
        are copied.

        transformers 5.23 cache_utils.py DynamicLayer; generation/utils.py asks for the last logits alone
        (logits_to_keep).
        """
        self.w.cache = []
        hidden = self.decoder.run()
        logits = logits_of(self.w, hidden.view(hidden.shape[0], 1, hidden.shape[2]))
        cache, self.w.cache = self.w.cache, None
        return logits, cache
