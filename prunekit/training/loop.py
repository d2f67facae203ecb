"""One loop that trains: pre-training, optimizing scores and fine-tuning differ only in which parameters train.

Nothing random comes from anywhere but (seed, step) and (seed, epoch), so training that was stopped and went on from a
saved state ends in the same bits as training that was not.
"""

from __future__ import annotations

import copy
import math
import signal
import threading
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from prunekit.attacks import GradientError
from prunekit.errors import InputError
from prunekit.nn.held_still import buffers_restored
from prunekit.progress import Progress, SilentProgress
from prunekit.task import Data, Losses
from prunekit.training.config import TrainConfig
from prunekit.training.data import (
    TrainingData,
    batches_per_epoch,
    derived_seed,
    read_into_memory,
    seeded,
    training_batches,
)
from prunekit.training.freezing import held
from prunekit.training.log import SilentLog, StepLog
from prunekit.training.objectives import Clean, Objective, TrainBatch
from prunekit.training.pool import chance_column, chances
from prunekit.training.preparation import memory_format, parameters_that_train, prepared
from prunekit.training.selection import Judge
from prunekit.training.state import (
    TrainState,
    averaged,
    capture,
    load_averages,
    restore,
    restore_optimizer,
    starting_averages,
    tensors_of,
    update_averages,
)

Model = TypeVar("Model", bound=nn.Module)
# Called with the number of updates made; the numbers it returns go into the step's row of the log.
AfterStep = Callable[[int], Mapping[str, float] | None]

# Makes a block in which parameters are elsewhere.
Perturbed = Callable[[], AbstractContextManager[None]]


class TrainingDivergedError(ArithmeticError):
    """A loss or a gradient was not finite. What was saved before is still good."""


def optimize(
    module: nn.Module,
    parameters: Mapping[str, nn.Parameter],
    data: TrainingData,
    objective: Objective,
    config: TrainConfig,
    state: TrainState | None = None,
    save: Callable[[TrainState], None] = lambda state: None,
    log: StepLog | None = None,
    progress: Progress | None = None,
    after_step: Sequence[AfterStep] = (),
    description: str = "training",
    frozen: Collection[str] = (),
    perturbed: Perturbed | None = None,
    judge: Judge | None = None,
) -> TrainState:
    """Minimize `objective` over `parameters`, in place and on the config's device.

    Args:
        module: What maps images to outputs.
        parameters: The ones of the module that train, by their names in it; all others stay as they are.
        data: What to train on.
        objective: What to minimize.
        config: The knobs.
        state: Where an earlier call stopped; everything else must be as it was then.
        save: Called with the state every `checkpoint_every` steps and at the end, also that by Ctrl-C. The state refers
            to the live tensors: write or clone it.
        log: Told about every step.
        progress: Shows steps, loss and time left.
        after_step: Called in turn after each update: to keep pruned weights at zero, say.
        description: The bar's label.
        frozen: Names of parameters that stay as they are in the first `freeze_epochs`.
        perturbed: With it, each step goes along the gradient that the same batch has inside of such a block, which
            moves parameters by the gradient at where they are. Buffers follow the pass outside alone.
        judge: Called with the averaged module in eval mode after each epoch; the state keeps what it found best, and
            the log gets its loss as "holdout_loss".

    Returns:
        The last state; its tensors are the module's own.

    Raises:
        InputError: For data without images, a device that is not there, or a state of another model.
        TrainingDivergedError: When a loss or a gradient is not finite.
        KeyboardInterrupt: After Ctrl-C, once the step in flight is done and saved.
    """
    num_steps, log = count_steps(data, config), log or SilentLog()
    with prepared(module, parameters, config) as network, deferred_interrupts() as interrupted:
        training = _Training(module, network, parameters, objective, config, num_steps, state, perturbed)
        batches = _replayed_batches(data, config, objective.replays, first_step=training.step)
        epoch_steps = batches_per_epoch(data, config) * objective.replays
        frozen_steps = config.freeze_epochs * epoch_steps if frozen else 0
        steps = range(training.step, num_steps)
        follow = (progress or SilentProgress()).track
        for step in follow(steps, lambda: _with_loss(description, training.loss), len(steps)):
            with held(module, frozen) if step < frozen_steps else nullcontext():
                row = {"epoch": step // epoch_steps} | training.update(*next(batches))
            for hook in after_step:
                row |= hook(training.step) or {}
            training.average()
            is_last = training.step == num_steps
            if judge is not None and (is_last or training.step % epoch_steps == 0):
                row |= {"holdout_loss": training.judged(judge)}
            log.step(training.step, row)
            is_stopping = interrupted()  # asked once: what ends the loop must have been saved
            if is_last or is_stopping or training.step % config.checkpoint_every == 0:
                save(training.state())
            if is_stopping:
                break
    return training.state()


def train(
    model: Model,
    dataset: Data,
    config: TrainConfig,
    progress: Progress,
    task: Losses,
) -> Model:
    """Train a model in place, all of it, on the clean loss; return a copy in eval mode with its weights' average.

    Args:
        model: The model to train.
        dataset: Training images; they are kept in memory as bytes, S · S · 3 each.
        config: The knobs.
        progress: Shown step by step, with the loss.
        task: The loss to minimize.
    """
    data = read_into_memory(dataset, progress)
    objective = Clean(task)
    state = optimize(model, dict(model.named_parameters()), data, objective, config, progress=progress)
    average = copy.deepcopy(model).eval()
    load_averages(state, average)
    return average


def count_steps(data: TrainingData, config: TrainConfig) -> int:
    """Return the number of updates, the same for every objective.

    Raises:
        InputError: When there is no image.
    """
    per_epoch = batches_per_epoch(data, config)
    return config.epochs * per_epoch if config.max_steps is None else config.max_steps


class _Training:
    """The moving parts of one call of `optimize`.

    Attributes:
        step: Updates made so far.
        loss: The last step's.
    """

    def __init__(
        self,
        module: nn.Module,
        network: nn.Module,
        parameters: Mapping[str, nn.Parameter],
        objective: Objective,
        config: TrainConfig,
        num_steps: int,
        state: TrainState | None,
        perturbed: Perturbed | None,
    ) -> None:
        self.step, self.loss = 0, math.nan
        self._module, self._network, self._objective = module, network, objective
        self._config, self._num_steps, self._memory_format = config, num_steps, memory_format(module)
        self._parameters = parameters_that_train(module, parameters, config)
        self._optimizer = _make_optimizer(self._parameters, config)
        self._delta: Tensor | None = None
        names = objective.config.pool
        self._pool = torch.full((len(names),), math.nan, dtype=torch.float64) if names else None
        self._perturbed = perturbed
        self._best: Mapping[str, Tensor] = {}
        self._best_loss: Tensor | None = None
        if state is not None:
            restore(state, module)
            restore_optimizer(state, self._parameters, self._optimizer)
            self.step, self._delta = state.step, state.delta
            self._best, self._best_loss = state.best, state.best_loss
            self._pool = self._pool if state.pool is None else state.pool.clone()
        is_averaged = config.ema_decay is not None
        self._averages = starting_averages(state, module, self._parameters) if is_averaged else {}

    def update(self, x: Tensor, targets: Any) -> dict[str, float]:
        """Take one step; return what there is to log."""
        rate = self._config.learning_rate_at(self.step, self._num_steps)
        for group in self._optimizer.param_groups:
            group["lr"] = rate
        if x.ndim == 4:
            x = x.contiguous(memory_format=self._memory_format)
        batch = TrainBatch(x, targets, self._perturbation(x), self.step / self._num_steps, self._pool)
        loss_value = self._differentiate(batch)
        if self._perturbed is not None:
            with self._perturbed(), buffers_restored(self._module):
                self._differentiate(batch)
        norm = self._clip()
        self._require_finite("length of the gradient", norm)
        self._optimizer.step()
        self._delta = None if batch.delta is None else self._objective.next_delta(batch.delta)
        self.step, self.loss = self.step + 1, loss_value
        return {"learning_rate": rate, "loss": self.loss, "grad_norm": norm, **self._chances()}

    def _chances(self) -> dict[str, float]:
        """Return how likely each attack of the pool is in the next step."""
        if self._pool is None:
            return {}
        names = self._objective.config.pool
        return {chance_column(name): p for name, p in zip(names, chances(self._pool).tolist(), strict=True)}

    def _differentiate(self, batch: TrainBatch) -> float:
        """Return the batch's loss, and leave its gradients."""
        # What the module itself draws, such as dropout, comes from torch's global generators.
        torch.manual_seed(derived_seed(self._config.seed, "module", self.step))
        loss = self._attacked_loss(batch)
        loss_value = float(loss.detach())
        self._require_finite("loss", loss_value)
        self._optimizer.zero_grad(set_to_none=True)
        if batch.delta is not None:
            batch.delta.grad = None
        if not loss.requires_grad:
            raise InputError("Expected a loss that parameters change, got one without a gradient: is it detached?")
        torch.autograd.backward(loss)
        return loss_value

    def average(self) -> None:
        """Let the averaged weights follow."""
        if self._config.ema_decay is not None:
            update_averages(self._averages, self._module, self._config.ema_decay_at(self.step))

    def state(self) -> TrainState:
        """Return where training stands."""
        best = self._best, self._best_loss, self._pool
        return capture(self.step, self._module, self._parameters, self._optimizer, self._averages, self._delta, *best)

    def judged(self, judge: Judge) -> float:
        """Return the loss of the averaged module, and remember the module if none did better before."""
        with averaged(self.state(), self._module):
            loss = judge(self._module)
            if self._best_loss is None or loss < float(self._best_loss):
                self._best = {name: value.clone() for name, value in tensors_of(self._module).items()}
                self._best_loss = torch.tensor(loss, dtype=torch.float64)
        return loss

    def _attacked_loss(self, batch: TrainBatch) -> Tensor:
        generator = seeded(self._config.seed, "objective", self.step, batch.x.device)
        try:
            return self._objective(self._network, batch, generator)
        except GradientError as error:
            raise self._diverged(f"an attack failed ({error})") from error

    def _perturbation(self, x: Tensor) -> Tensor | None:
        """Return δ [N, ...] for images x: the one carried over as far as it fits, 0 elsewhere."""
        if not self._objective.carries_delta:
            return None
        delta = torch.zeros_like(x)
        if self._delta is not None and self._delta.shape[1:] == x.shape[1:]:
            count = min(len(x), len(self._delta))
            delta[:count] = self._delta[:count]
        return delta.requires_grad_()

    def _clip(self) -> float:
        """Return the length of the gradient, and shorten it if it is too long."""
        longest = math.inf if self._config.max_grad_norm is None else self._config.max_grad_norm
        return float(nn.utils.clip_grad_norm_(self._parameters.values(), longest))

    def _require_finite(self, what: str, value: float) -> None:
        if not math.isfinite(value):
            raise self._diverged(f"the {what} is {value}")

    def _diverged(self, reason: str) -> TrainingDivergedError:
        before = "no loss was finite before" if math.isnan(self.loss) else f"the last finite loss was {self.loss:g}"
        return TrainingDivergedError(
            f"training diverged at step {self.step + 1}: {reason}; {before}; try a lower learning rate"
        )


def _with_loss(description: str, loss: float) -> str:
    return description if math.isnan(loss) else f"{description}, loss {loss:.3f}"


def _replayed_batches(
    data: TrainingData, config: TrainConfig, replays: int, first_step: int
) -> Iterator[tuple[Tensor, Any]]:
    """Yield a batch a step from `first_step` on, each batch `replays` times in a row."""
    first_batch, done = divmod(first_step, replays)
    for batch in training_batches(data, config, first_batch):
        for _ in range(done, replays):
            yield batch
        done = 0


def _make_optimizer(parameters: Mapping[str, nn.Parameter], config: TrainConfig) -> torch.optim.Optimizer:
    is_decayed = [parameter.ndim > 1 for parameter in parameters.values()]
    groups = [
        {
            "params": [p for p, decayed in zip(parameters.values(), is_decayed, strict=True) if decayed is wanted],
            "weight_decay": config.weight_decay if wanted else 0.0,
        }
        for wanted in (True, False)
    ]
    if config.optimizer == "sgd":
        return torch.optim.SGD(groups, lr=config.learning_rate, momentum=config.momentum)
    return torch.optim.AdamW(groups, lr=config.learning_rate, betas=(config.momentum, 0.999))


@contextmanager
def deferred_interrupts() -> Iterator[Callable[[], bool]]:
    """Hold back the first Ctrl-C inside the block; yield what says whether there was one.

    The loop asks between two steps, when everything belongs together, saves, and ends; KeyboardInterrupt is raised
    when the block does. A second Ctrl-C interrupts at once. Nothing is held back in a thread, where signals do not
    arrive, or under a caller's own handler.
    """
    is_main_thread = threading.current_thread() is threading.main_thread()
    if not is_main_thread or signal.getsignal(signal.SIGINT) is not signal.default_int_handler:
        yield lambda: False
        return
    was_asked = False

    def note(number: int, frame: object) -> None:
        nonlocal was_asked
        if was_asked:
            raise KeyboardInterrupt
        was_asked = True

    signal.signal(signal.SIGINT, note)
    try:
        yield lambda: was_asked
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    if was_asked:
        raise KeyboardInterrupt
