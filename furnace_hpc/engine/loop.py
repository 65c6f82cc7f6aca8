"""The training of one run, from a run folder to its result. It contains nothing about Slurm."""

import math
import time
from dataclasses import asdict
from typing import Any

import torch

from furnace_hpc.config.manifest import SAMPLING_WEIGHT
from furnace_hpc.config.train_config import TrainConfig
from furnace_hpc.data.loading.batches import Batch, BatchReader
from furnace_hpc.data.loading.prefetch import TrainBatches
from furnace_hpc.data.loading.sampler import Weights
from furnace_hpc.engine.checkpoint import loader
from furnace_hpc.engine.checkpoint.progress import Progress, is_better
from furnace_hpc.engine.checkpoint.saver import CheckpointSaver
from furnace_hpc.engine.context import RunContext
from furnace_hpc.engine.deepspeed_engine import Engine
from furnace_hpc.engine.determinism import explained_nondeterminism
from furnace_hpc.engine.evaluation import Evaluation, evaluate
from furnace_hpc.engine.finish import Trained, finish
from furnace_hpc.engine.metering.canary import Canary
from furnace_hpc.engine.metering.usage import MeteredBatches, StepMeters, Usage
from furnace_hpc.engine.micro_batch import noted_half, noted_oom
from furnace_hpc.engine.optimization.group_norms import GroupNorms
from furnace_hpc.engine.optimization.groups import set_learning_rate
from furnace_hpc.engine.optimization.schedule import learning_rate
from furnace_hpc.engine.ranks.distributed import (
    Processes,
    RankInfo,
    destroy_process_group,
    init_process_group,
)
from furnace_hpc.engine.ranks.gather import gather_of
from furnace_hpc.engine.ranks.stop import Stopped, StopRequest
from furnace_hpc.engine.ranks.watchdog import Watchdog
from furnace_hpc.engine.setup import set_up
from furnace_hpc.engine.speed.compilation import explained_compilation
from furnace_hpc.engine.speed.gradient_check import GradientCheck
from furnace_hpc.engine.weights.average import update_average
from furnace_hpc.host.lifecycle import EXIT_STOPPED
from furnace_hpc.model.losses import Gather, local_gather, total_loss
from furnace_hpc.model.square_root import correct_roots
from furnace_hpc.runs.folder import RunFolder
from furnace_hpc.runs.records.metrics import MetricsFile
from furnace_hpc.runs.records.verdict import RankVerdict


def train(folder: RunFolder, attempt: int, rank_info: RankInfo, verdict: RankVerdict) -> int:
    """Collective. Train the run to its end or to a stop. Return the exit code of this rank."""
    stop = StopRequest()
    stop.install()
    with Watchdog.for_run(folder, attempt, verdict) as watchdog:
        processes = init_process_group(rank_info, watchdog.timeout_s, folder.collectives(attempt))
        with noted_oom(verdict, processes.device):
            stop_signal = _set_up_and_train(folder, attempt, processes, watchdog, stop, verdict)
        stop.settle()
        if not stop_signal:
            verdict.done()
        processes.barrier()  # no rank leaves before all have written their verdicts
    destroy_process_group()
    return EXIT_STOPPED if stop_signal else 0


def _set_up_and_train(
    folder: RunFolder,
    attempt: int,
    processes: Processes,
    watchdog: Watchdog,
    stop: StopRequest,
    verdict: RankVerdict,
) -> str | None:
    """Collective. Train a run. Return the name of the signal that stops it."""
    try:
        context = set_up(folder, attempt, processes, watchdog, stop)
    except Stopped as stopped:  # the resumed run computes the other features
        verdict.stopping(str(stopped))
        verdict.stopped(str(stopped))
        return str(stopped)
    return _train(context, verdict)


def _train(context: RunContext, verdict: RankVerdict) -> str | None:
    """Collective. Train a run that is set up. Return the name of the signal that stops it."""
    batches = train_batches(context.engine, context.reader, context.config, context.processes)
    with batches, explained_nondeterminism(), explained_compilation(context.config.compile):
        return TrainingLoop(context, batches, verdict, load_progress(context)).run()


def load_progress(context: RunContext) -> Progress:
    """Collective. Load the newest checkpoint, if there is one."""
    state = loader.load_newest(context)
    if state is None:
        context.processes.print_once("first start, at step 0")
        return Progress()
    progress = Progress(**state)
    context.processes.print_once(f"resumed after step {progress.step}")
    return progress


class TrainingLoop:
    """The steps of one attempt: train, evaluate, save and finish. All methods are collective.

    Methods return the name of the signal that stops the run, or None.
    """

    def __init__(
        self, context: RunContext, batches: TrainBatches, verdict: RankVerdict, progress: Progress
    ) -> None:
        self._context, self._verdict, self._progress = context, verdict, progress
        self._config, self._engine = context.config, context.engine
        self._processes = context.processes
        self._meters = StepMeters(context, batches)
        self._recorded_step, self._unrecorded = progress.step, Usage()
        """Step of the last record of training, or of the attempt's start, and usage since then."""
        self._is_starting = True
        self._metrics: MetricsFile | None = None
        if self._processes.is_rank_zero:
            self._metrics = MetricsFile(context.folder.metrics(context.attempt))
        self._evaluation: Evaluation | None = None
        self._loss_terms: dict[str, torch.Tensor] = {}
        """Of the step just trained, as means over this rank's samples. Empty before the first."""
        self._gradients = GradientCheck()
        self._group_norms = GroupNorms(self._engine)
        self._canary = Canary.of_attempt(context, progress.step)

    def run(self) -> str | None:
        """Train the run to its last step, then finish it."""
        with CheckpointSaver(self._context, saved=self._progress.step) as saver:
            stop_signal = self._train_steps(saver)
            if not stop_signal:
                saver.wait(self._progress.step)
        if self._metrics:
            self._metrics.close()
        self._canary.measure(stop_signal)
        return stop_signal or self._finish()

    def _train_steps(self, saver: CheckpointSaver) -> str | None:
        """Alternate between step boundaries and steps, up to the last step or a stop signal."""
        while True:
            stop_signal = self._step_boundary(saver)
            if stop_signal or self._progress.is_at_end(self._config):
                self._end_start()
                return stop_signal
            self._train_one_step()

    def _step_boundary(self, saver: CheckpointSaver) -> str | None:
        """Read the flags of all ranks, evaluate and save where that is due, and send new flags."""
        step = self._progress.step
        self._context.watchdog.heartbeat(f"step {step + 1}")
        stop = self._context.stop
        stop_signal, busy = stop.receive(self._processes, saver.busy)
        if not busy:
            saver.advance(step)
        is_last = self._progress.is_at_end(self._config)
        if not (stop_signal or is_last):
            stop_signal = self._canary.signal(step)
        is_evaluation_due = not stop_signal and self._progress.is_evaluation_due(self._config)
        is_save_due = saver.is_due(step, busy)
        if stop_signal or is_evaluation_due or is_save_due or is_last:
            self._add_usage(self._meters.stop())
            self._gradients.check()
        improved = False
        if is_evaluation_due:
            try:
                improved = self._evaluate()
            except Stopped as stopped:  # the resumed run makes this evaluation
                stop_signal = str(stopped)
        is_last = self._progress.is_at_end(self._config)  # the evaluation may end the training
        needs_checkpoint = improved or is_save_due or (is_last and saver.saved < step)
        if stop_signal or needs_checkpoint:
            self._check_finite()
        if stop_signal:
            self._save_and_stop(saver, stop_signal)
        elif needs_checkpoint:
            saver.begin(asdict(self._progress), is_best=improved)
        if not (stop_signal or is_last):
            stop.send(self._processes, saver.busy)
        return stop_signal

    def _evaluate(self) -> bool:
        """Evaluate on val. Return whether this step is the best so far and needs a checkpoint."""
        progress, config = self._progress, self._config
        self._evaluation = evaluate(self._context, "val")
        progress.evaluated = progress.step
        if self._metrics:
            self._metrics.write({"step": progress.step, "kind": "val", **self._evaluation.scores})
        value = self._evaluation.scores[config.selection_metric]
        self._processes.print_once(
            f"step {progress.step} of {config.steps}: {config.selection_metric} {value:.4g}"
        )
        if config.selection_direction == "min":
            value = -value
        progress.note_value(value)
        if config.evaluation.select == "last" or is_better(value, progress.best_value):
            progress.best_step, progress.best_value = progress.step, value
            return config.evaluation.select == "best" or progress.is_at_end(config)
        return False

    def _check_finite(self) -> None:
        """Raise FloatingPointError if the step just trained must not be saved."""
        if self._loss_terms:  # empty at the first boundary of an attempt
            mean_loss_terms(self._loss_terms, self._processes)
            check_parameters(self._engine)

    def _save_and_stop(self, saver: CheckpointSaver, stop_signal: str) -> None:
        self._verdict.stopping(stop_signal)
        if saver.save(asdict(self._progress)):
            self._verdict.stopped(stop_signal)

    def _train_one_step(self) -> None:
        progress, config = self._progress, self._config
        self._meters.start()
        gather = gather_of(self._processes)
        with noted_half(self._verdict, config, self._engine):
            self._loss_terms = train_step(
                self._engine, self._meters.batches, config, progress.step, gather
            )
        progress.step += 1
        if config.deepspeed.bf16.check_grad_overflow is False:
            self._gradients.add(self._engine, progress.step)
        self._verdict.at(progress.step)
        if progress.step == config.steps or progress.step % config.log_every == 0:
            self._record_training()
        self._end_start()

    def _end_start(self) -> None:
        """Let the shorter time limit apply from the first step on, or from the end of training."""
        if self._is_starting:
            self._is_starting = False
            self._context.watchdog.end_start()
            self._processes.end_start(self._context.watchdog.timeout_s)

    def _record_training(self) -> None:
        """Write a line of the metrics file. Its usage is that since the line before."""
        progress = self._progress
        self._gradients.check()
        means = mean_loss_terms(self._loss_terms, self._processes)
        self._add_usage(self._meters.lap())
        steps, usage = progress.step - self._recorded_step, self._unrecorded
        self._recorded_step, self._unrecorded = progress.step, Usage()
        step_time_s = usage.train_s / steps
        record = _train_record(progress.step, means, self._engine, self._config, step_time_s)
        if self._metrics:
            groups = self._group_norms.record()
            self._metrics.write(record | groups | self._meters.record(usage, steps))

    def _add_usage(self, usage: Usage) -> None:
        self._progress.add(usage)
        self._unrecorded.add(usage)

    def _finish(self) -> str | None:
        """Evaluate the selected step and write the result."""
        progress = self._progress
        self._context.watchdog.heartbeat("the end")
        stopped_early = progress.is_stopped_early(self._config)
        if stopped_early:
            self._processes.print_once(
                f"stopped early after step {progress.step}: no better "
                f"{self._config.selection_metric} in the last "
                f"{progress.without_improvement} evaluations"
            )
        trained = Trained(progress.step, progress.best_step, stopped_early, progress)
        try:
            mfu = self._meters.mfu(progress)
            finish(self._context, trained, mfu, self._evaluation)
        except Stopped as stopped:  # all is saved; the resumed run evaluates again
            self._verdict.stopping(str(stopped))
            self._verdict.stopped(str(stopped))
            return str(stopped)
        return None


def train_batches(
    engine: Engine, reader: BatchReader, config: TrainConfig, processes: Processes
) -> TrainBatches:
    """This rank's batches, in the engine's micro-batch size."""
    weights: Weights | None = None
    if config.data.sampling == "weighted":
        weights = Weights(reader.column(SAMPLING_WEIGHT))
    return TrainBatches(
        reader,
        seed=config.training_seed,
        steps=config.steps,
        global_batch_size=config.global_batch_size,
        micro_batch_size=engine.train_micro_batch_size_per_gpu(),
        rank=processes.rank,
        world_size=processes.world_size,
        weights=weights,
    )


def train_step(
    engine: Engine,
    batches: TrainBatches | MeteredBatches,
    config: TrainConfig,
    step: int,
    gather: Gather = local_gather,
) -> dict[str, torch.Tensor]:
    """Collective. Make one optimizer step. Return loss terms, as means over this rank's samples.

    Raises:
        FloatingPointError: on all ranks, if the gradient is not finite.
    """
    skipped_before = engine.skipped_steps
    set_learning_rate(engine, learning_rate(config, step))
    micro_steps = engine.gradient_accumulation_steps()
    means: dict[str, torch.Tensor] = {}
    for batch in batches.of_step(step):
        terms = forward(engine, batch, config, gather)
        engine.backward(terms["loss"])
        with correct_roots():
            engine.step()
        for name, value in terms.items():
            means[name] = means.get(name, 0) + value.detach() / micro_steps
    check_gradient(engine, skipped_before)
    update_average(engine, config, step + 1)
    return means


def check_gradient(engine: Engine, skipped_before: int) -> None:
    """Raise FloatingPointError if DeepSpeed has skipped the step just made.

    At stages 1 to 3 DeepSpeed silently skips a step whose gradient is not finite, unless
    bf16.check_grad_overflow is false. At stage 0 it applies it.
    """
    if engine.skipped_steps > skipped_before:
        raise FloatingPointError(
            "the gradient is not finite. Lower optimizer.lr or check the data."
        )


def check_parameters(engine: Engine) -> None:
    """At stage 0, raise FloatingPointError if a parameter is not finite.

    Otherwise only the loss of the next step would show it. The other stages have checked the
    gradient.
    """
    if engine.zero_optimization_stage() > 0:
        return
    if not all(bool(parameter.isfinite().all()) for parameter in engine.module.parameters()):
        raise FloatingPointError("a parameter is not finite. Lower optimizer.lr or check the data.")


def mean_loss_terms(terms: dict[str, torch.Tensor], processes: Processes) -> dict[str, float]:
    """Collective. The loss terms as means over the global batch.

    Raises:
        FloatingPointError: the loss is not finite.
    """
    names = sorted(terms)
    total = processes.all_reduce_sum(torch.stack([terms[name].float() for name in names]))
    values = dict(zip(names, (total / processes.world_size).tolist(), strict=True))
    if not math.isfinite(values["loss"]):
        raise FloatingPointError(
            f"the loss is {values['loss']}. Lower optimizer.lr or check the data."
        )
    return values


def forward(
    engine: Engine, batch: Batch, config: TrainConfig, gather: Gather = local_gather
) -> dict[str, torch.Tensor]:
    """The loss terms of one micro-batch."""
    inputs = (batch.inputs, batch.lengths, batch.present_BM)
    output = engine(*inputs, complete=batch.complete, mix=batch.mix)
    given = (batch.labels, output["present"], config.loss, config.tasks, gather)
    return total_loss(output, *given, batch.class_weights, batch.mix)


def _train_record(
    step: int, means: dict[str, float], engine: Engine, config: TrainConfig, step_time_s: float
) -> dict[str, Any]:
    """A line of the metrics file."""
    norm = engine.get_global_grad_norm()
    if norm is not None:
        norm = float(norm)
    return {
        "step": step,
        "kind": "train",
        **{f"train/{name}": value for name, value in means.items()},
        "lr": learning_rate(config, step - 1),
        "grad_norm": norm,
        "step_time_s": step_time_s,
        "samples_per_s": config.global_batch_size / step_time_s,
        "time_unix_s": time.time(),
    }
