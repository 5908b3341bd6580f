"""First-order local optimisation: a client's steps of an optimizer of torch's."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.nn.utils import clip_grad_norm_
from torch.optim import Optimizer
from transformers import PreTrainedModel

from fullfed.config import LocalTable, MemoryTable
from fullfed.data.batches import Batch
from fullfed.training.devices import over_all, shares
from fullfed.training.layers import layer_names, training_only
from fullfed.training.loss import Loss, answer_loss
from fullfed.training.memory import checkpointed, input_cache
from fullfed.training.optimizers import make_optimizers
from fullfed.training.precision import autocast, matrix_units
from fullfed.training.watch import OnStep, unwatched


class TrainingError(Exception):
    """Local training failed; one sentence that quotes no data."""


@dataclass(frozen=True)
class Improvement:
    """What a visit's training came to, besides the parameters it changed.

    Attributes:
        losses: of every step, nats per answer token; or their mean alone; none where they are not
            to leave the client.
        first_known: whether the first of them is that of the visit's first batch before any step.
        steps: of zeroth-order training, in their order: the direction's number and the derivative
            along it, float32.
        exact: the trained values in float32, by name, where parameters themselves are coarser.
        state: what the client's next visit of the same kind may go on from.
        measure: what computes the loss that was trained, on some samples of the visit, at the
            parameters as they then are; None for that of answers on the first batch.
        metrics: what else there is to say; for the client alone.
    """

    losses: list[float]
    steps: tuple[tuple[int, float], ...] = ()
    exact: Mapping[str, Tensor] = field(default_factory=dict)
    state: Mapping[str, Tensor] = field(default_factory=dict)
    measure: Callable[[], float] | None = None
    metrics: Mapping[str, float] = field(default_factory=dict)
    first_known: bool = True


def train(
    model: PreTrainedModel,
    parameters: Mapping[str, Tensor],
    batches: Iterable[Batch],
    local: LocalTable,
    memory: MemoryTable,
    loss: Loss = answer_loss,
    state: Mapping[str, Tensor] | None = None,
    exact: Mapping[str, Tensor] | None = None,
    on_step: OnStep = unwatched,
) -> Improvement:
    """Take one step a batch on ``parameters``, in place.

    The model is in evaluation mode: dropout would draw from a global generator, and replicas
    could not be told from one another by their seeds.

    Args:
        parameters: by name; nothing else gets a gradient, and nothing before them a graph.
        local, memory: the recipe's tables.
        loss: of a batch, a float32 scalar.
        state: an earlier visit's, to go on from; None begins anew.
        exact: what 16-bit parameters are rounded from, as for ``Steps``.
        on_step: is told each step's loss, for progress.

    Raises:
        TrainingError: a loss is not finite.
    """
    losses, trained = [], list(parameters.values())
    with passes(model, parameters, local, memory, loss, state, exact) as (steps, backward):
        for batch in batches:
            parts = shares(batch, local.micro_batch_size, trained)
            total = sum(
                (backward(part, share) for part, share in parts),
                start=torch.zeros((), device=trained[0].device),
            )
            steps.take()
            total = over_all(total, trained)
            losses.append(total)
            on_step(total)
    values: list[float] = torch.stack(losses).tolist()
    if not all(math.isfinite(value) for value in values):
        raise TrainingError(
            "the training loss is not finite; lower local.learning_rate or set local.clip"
        )
    return Improvement(values, exact=steps.masters, state=steps.state())


Backward = Callable[[Batch, float], Tensor]


@contextmanager
def passes(
    model: PreTrainedModel,
    parameters: Mapping[str, Tensor],
    local: LocalTable,
    memory: MemoryTable,
    loss: Loss,
    state: Mapping[str, Tensor] | None,
    exact: Mapping[str, Tensor] | None,
) -> Iterator[tuple[Steps, Backward]]:
    """What a visit's steps are made of, inside; the arguments are as for ``train``.

    Yields:
        the optimizer's steps; and what adds the gradient of a batch's loss times a factor to those
        of the parameters, and returns that product, detached.
    """
    model.eval()  # type: ignore[no-untyped-call]
    trained = list(parameters.values())
    device = trained[0].device
    hidden = {name for layer in layer_names(model) for name in layer}
    cache = input_cache(model, trained, memory.cache_inputs)
    steps = Steps(parameters, local, hidden, memory.optimizer_in_backward, state or {}, exact or {})

    def backward(batch: Batch, factor: float) -> Tensor:
        with cache.serving(batch) if cache else nullcontext():
            with autocast(local.precision, device):
                value = loss(model, batch.to(device)) * factor
            value.backward()  # type: ignore[no-untyped-call]
        return value.detach()

    checkpointing = checkpointed(model) if memory.checkpoint_activations else nullcontext()
    with training_only(model, trained), checkpointing, steps, matrix_units(local.precision):
        yield steps, backward


class Steps:
    """One visit's optimizer steps: on all tensors after a backward pass, or on each during it.

    16-bit parameters are trained as float32 copies, and follow them, rounded: steps smaller than a
    parameter's own precision add up. The forward pass sees such steps on average if the copies
    begin at numbers spread over what rounds to the parameters (``sketch.dither_``).

    Args:
        parameters: to train, by name.
        local: the recipe's table.
        hidden: the names of parameters in the model's layers.
        one_by_one: whether each tensor steps, and its gradient goes, as soon as the backward pass
            has come to it. ``local.clip`` is then of each gradient by itself.
        state: an earlier visit's ``state()``, to go on from.
        exact: what 16-bit parameters are rounded from, float32, by name; where it is not said,
            they are trained from what they are.

    Attributes:
        masters: what the optimizers train: the parameters, or their float32 copies.
    """

    def __init__(
        self,
        parameters: Mapping[str, Tensor],
        local: LocalTable,
        hidden: set[str],
        one_by_one: bool,
        state: Mapping[str, Tensor],
        exact: Mapping[str, Tensor],
    ) -> None:
        self._parameters = parameters
        self._clip, self._clip_each = local.clip, local.clip_by == "tensor" or one_by_one
        self._one_by_one, self._local, self._taken = one_by_one, local, 0
        self.masters = {
            name: exact.get(name, p).detach().to(torch.float32, copy=True)
            if p.dtype.itemsize == 2
            else p
            for name, p in parameters.items()
        }
        self._optimizers: dict[str, Optimizer] = {}
        for names in [[name] for name in parameters] if one_by_one else [list(parameters)]:
            own = {name: self.masters[name] for name in names}
            self._optimizers |= make_optimizers(local, own, hidden, fused=one_by_one)
        self._restore(state)
        self._hooks = ExitStack()

    def __enter__(self) -> Steps:
        self._warm_up()
        if self._one_by_one:
            for name, p in self._parameters.items():
                hook = p.register_post_accumulate_grad_hook(  # type: ignore[no-untyped-call]
                    lambda _, n=name: self._step([n])
                )
                self._hooks.callback(hook.remove)
        return self

    def __exit__(self, *_: object) -> None:
        self._hooks.close()
        for name, p in self._parameters.items():
            p.grad = self.masters[name].grad = None

    def take(self) -> None:
        """Do what is left to be done when a backward pass has ended."""
        if not self._one_by_one:
            self._step(list(self._parameters))
        self._taken += 1
        self._warm_up()

    def _warm_up(self) -> None:
        """Set the rate of the next step."""
        for optimizer in dict.fromkeys(self._optimizers.values()):
            for group in optimizer.param_groups:
                group["lr"] = self._local.learning_rate * self._local.warmup(self._taken)

    def _step(self, names: list[str]) -> None:
        tensors = [self.masters[name] for name in names]
        for name, master in zip(names, tensors, strict=True):
            p = self._parameters[name]
            if p is not master and p.grad is not None:
                master.grad, p.grad = p.grad.float(), None
        if self._clip is not None:
            for group in [[t] for t in tensors] if self._clip_each else [tensors]:
                clip_grad_norm_(group, self._clip)
        for optimizer in dict.fromkeys(self._optimizers[name] for name in names):
            optimizer.step()
        with torch.no_grad():
            for name, master in zip(names, tensors, strict=True):
                if (p := self._parameters[name]) is not master:
                    p.copy_(master)
                master.grad = None

    def state(self) -> dict[str, Tensor]:
        """The optimizers' own state: a parameter's name, a slash, and torch's name of it."""
        return {
            f"{name}/{key}": value
            for name, master in self.masters.items()
            for key, value in self._optimizers[name].state[master].items()
            if isinstance(value, Tensor)
        }

    def _restore(self, state: Mapping[str, Tensor]) -> None:
        for place, value in state.items():
            name, _, key = place.rpartition("/")
            master = self.masters[name]
            optimizer = self._optimizers[name]
            # torch keeps the step count of an optimizer that is not fused on the CPU.
            counted = key == "step" and not optimizer.param_groups[0].get("fused")
            # A copy: the visit may be repeated, from the same state.
            device = value.device if counted else master.device
            optimizer.state[master][key] = value.to(device, copy=True)
