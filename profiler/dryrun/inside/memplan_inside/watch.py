"""Follows the training through torch's hooks: moments, steps, who owns which block, and where to stop."""

import contextlib
import functools
import os
import sys
import time

import torch

from memplan_inside import convolutions, kernels, owners, report
from memplan_inside.counters import Counters
from memplan_inside.lines import user_line, user_line_of

GAP = "gap"
"""Between what hooks announce: before an optimizer's step it belongs to that, else to what was before."""


class Watch:
    """One process's training. `steps` is where to stop, 0: nowhere."""

    def __init__(self, steps):
        self.steps, self.process = steps, os.getpid()
        self.counters = Counters()
        self.step, self.moment, self.begun, self.repeats = -1, "load", None, {}
        self.depth = 0  # of backward passes, which nest in reentrant checkpointing
        self.counts = {}  # optimizer -> its steps
        self.stepping = []  # optimizers inside their step: one may use others
        self.moments, self.marks, self.claims = [], [], []
        self.started = self.done = False
        self.outcome, self.error, self.noticed = "ended", None, 0.0
        self.hook = None
        self.line, self.before = "", "load"

    def mine(self):
        """Whether this process is the one watched and the watch still runs."""
        return self.started and not self.done and os.getpid() == self.process

    def cuda_started(self):
        """torch has initialized CUDA: from here on the allocator's history is kept."""
        torch.cuda.memory._memplan_record(
            enabled="all", context="alloc", stacks="python", max_entries=report.MOST_EVENTS
        )
        self.started = True
        self.begin(self.moment)
        self.wait_for_forward()
        progress("loading")

    def begin(self, moment):
        """Open a moment. A gap takes its name from what follows."""
        self.moment, self.begun = moment, len(self.marks)
        self.mark("begin")
        self.line = user_line()

    def end(self):
        """Close the open moment: its counters are read, and its peaks begin anew."""
        self.mark("end")
        self.moments.append(
            {
                "step": self.step,
                "moment": self.moment,
                "begin": self.begun,
                "end": len(self.marks) - 1,
                "line": self.line,
                "counters": self.counters.take(),
            }
        )

    def enter(self, moment):
        """A moment begins; the one before it ends."""
        if not self.mine():
            return
        if self.moment == moment:
            return
        if self.moment == GAP:
            if moment == "optimizer_step":
                self.moment = moment
                return
            self.moment = self.before
        self.before = self.moment
        self.end()
        self.begin(moment)

    def mark(self, edge):
        """Note a moment's edge in the allocator's history; the mark's index."""
        self.marks.append([self.step, self.moment, edge, self.counters.position()])
        return len(self.marks) - 1

    def claim(self, component, tensors):
        """The storages of (name, tensor) belong to `component` now."""
        place = self.mark("claim")
        for name, tensor in tensors:
            address = owners.address(tensor)
            if address:
                self.claims.append([place, address, component, name])

    def wait_for_forward(self):
        """One call of a module with gradients begins a forward pass; the hook then goes, so that compiled
        code has none.
        """
        if self.hook is None:
            self.hook = torch.nn.modules.module.register_module_forward_pre_hook(self._forward)

    def _forward(self, module, inputs):
        if not torch.is_grad_enabled() or not self.mine() or self.depth:
            return
        self.hook.remove()
        self.hook = None
        if self.step < 0:
            self.end()
            self.step = 0
            self.begin("forward")
            self.claim("weights", owners.weights_of(module))
            named = sys._getframe(1).f_locals.get("kwargs")  # a global hook is not told of them
            self.claim("activations", owners.inside("batch", [inputs, named]))
        else:
            self.enter("forward")
        progress(f"step {self.step + 1}: forward")

    def backward_begins(self):
        """An outermost backward begins: the forward before it is over."""
        self.depth += 1
        if self.depth == 1 and self.mine():
            if self.step < 0:
                self.end()
                self.step = 0
                self.begin("backward")
            else:
                if self.moment == GAP:  # no hook was waiting for the forward pass
                    self.moment = "forward"
                self.enter("backward")
            progress(f"step {self.step + 1}: backward")

    def backward_ends(self):
        """An outermost backward is over."""
        self.depth -= 1
        if self.depth == 0 and self.mine():
            self.enter(GAP)
            if "torch._dynamo.eval_frame" not in sys.modules:
                self.wait_for_forward()

    def optimizer_begins(self, optimizer, args, kwargs):
        """An optimizer's step begins. One that uses others (ZeRO's, DeepSpeed's engine) counts alone."""
        self.stepping.append(id(optimizer))
        if self.mine() and not self.depth and len(self.stepping) == 1:
            self.enter("optimizer_step")
            progress(f"step {self.step + 1}: optimizer")
        if self.mine() and hasattr(optimizer, "param_groups"):
            self.claim("weights", owners.parameters(optimizer))
            self.claim("gradients", owners.gradients(optimizer))

    def optimizer_ends(self, optimizer, args, kwargs):
        """An optimizer's step is over; after enough of them the program is stopped."""
        if id(optimizer) in self.stepping:  # with what was left by an exception inside
            del self.stepping[self.stepping.index(id(optimizer)) :]
        if not self.mine():
            return
        if hasattr(optimizer, "param_groups"):
            self.claim("optimizer_states", owners.states(optimizer))
        if self.stepping:
            return
        self.counts[id(optimizer)] = self.counts.get(id(optimizer), 0) + 1
        if self.steps and min(self.counts.values()) >= self.steps:
            self.outcome = "stopped"
            self.finish()
            _leave()
        if not self.depth:
            self.before = "optimizer_step"
            self.end()
            self.step = max(self.counts.values())
            self.begin(GAP)
            self.wait_for_forward()

    def finish(self):
        """Write the report, once."""
        if not self.mine():
            return
        if self.moment == GAP:
            self.moment = self.before
        self.end()
        self.claim("weights", owners.all_weights())
        self.done = True
        report.write(self)


WATCH = Watch(int(os.environ.get("MEMPLAN_DRYRUN_STEPS", "2")))


def install():
    """Hooks and wraps that neither change what is allocated nor what a compiler sees of the model."""
    from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook

    memory = torch.cuda.memory
    memory._memplan_record, memory._record_memory_history = (
        memory._record_memory_history,
        lambda *a, **k: None,
    )
    WATCH.counters.take_over()
    torch.cuda._lazy_call(WATCH.cuda_started)
    register_optimizer_step_pre_hook(WATCH.optimizer_begins)
    register_optimizer_step_post_hook(WATCH.optimizer_ends)
    for name in ("backward", "grad"):
        setattr(torch.autograd, name, _around_backward(getattr(torch.autograd, name)))
    torch.nn.Module.train = _around_train(torch.nn.Module.train)
    wrap_saving(torch, "save")
    kernels.without_cudnn_attention()
    convolutions.install()


def _around_backward(call):
    @functools.wraps(call)
    def backward(*args, **kwargs):
        WATCH.backward_begins()
        try:
            return call(*args, **kwargs)
        finally:
            WATCH.backward_ends()

    return backward


def _around_train(call):
    """`model.eval()` during training begins an evaluation, `model.train()` ends it."""
    nested = [False]

    @functools.wraps(call)
    def train(self, mode=True):
        outer, nested[0] = not nested[0], True
        try:
            result = call(self, mode)
        finally:
            if outer:
                nested[0] = False
        if outer and WATCH.step > 0 and WATCH.mine() and not WATCH.depth:
            if not mode:
                WATCH.enter("evaluate")
            elif WATCH.moment == "evaluate":
                WATCH.enter(GAP)
        return result

    return train


def wrap_engine(engine):
    """Make an engine's `step` (DeepSpeed's, which steps an optimizer once for each group of parameters) one
    step. It counts where it updates anything: at the end of an accumulation.
    """
    call = engine.step

    @functools.wraps(call)
    def step(self, *args, **kwargs):
        if not self.is_gradient_accumulation_boundary():
            return call(self, *args, **kwargs)
        WATCH.optimizer_begins(self, args, kwargs)
        result = call(self, *args, **kwargs)
        WATCH.optimizer_ends(self, args, kwargs)
        return result

    engine.step = step


def wrap_fused_backward(optimizer):
    """Make a backward of LOMO's, which updates every parameter itself, one step."""
    call = optimizer.fused_backward

    @functools.wraps(call)
    def fused_backward(self, *args, **kwargs):
        result = call(self, *args, **kwargs)
        WATCH.optimizer_begins(self, args, kwargs)
        WATCH.optimizer_ends(self, args, kwargs)
        return result

    optimizer.fused_backward = fused_backward


def wrap_saving(module, name):
    """Replace a function of a module by one whose allocations count as the moment 'save' within a step."""
    call = getattr(module, name)

    @functools.wraps(call)
    def save(*args, **kwargs):
        before = WATCH.moment
        if WATCH.step >= 0:
            WATCH.enter("save")
        try:
            return call(*args, **kwargs)
        finally:
            if WATCH.step >= 0:
                WATCH.enter(before)

    setattr(module, name, save)


def failed(error):
    """The program dies of an error: torch's out of memory is a result, the rest is its own."""
    if os.getpid() == WATCH.process and not WATCH.done:
        WATCH.outcome = "oom" if isinstance(error, torch.OutOfMemoryError) else "error"
        WATCH.error = f"{type(error).__name__}: {error}"
        WATCH.error_line = user_line_of(error.__traceback__)
        WATCH.finish()


def ended():
    """Finish the observation at the exit of the process that was watched."""
    if os.getpid() == WATCH.process and not WATCH.done:
        WATCH.finish()


def _leave():
    """End the process here and now: nothing of the program runs any more."""
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(Exception):
            stream.flush()
    os._exit(0)


def progress(text):
    """One line in a file that the launcher looks at, at most ten times a second."""
    now = time.monotonic()
    if now - WATCH.noticed > 0.1:
        WATCH.noticed = now
        try:
            with open(
                os.path.join(os.environ["MEMPLAN_DRYRUN_REPORTS"], f"progress-{WATCH.process}"), "w"
            ) as file:
                file.write(text)
        except OSError:
            pass
