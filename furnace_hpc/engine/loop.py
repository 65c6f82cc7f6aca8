"""The training of one run, from a run folder to its result. Knows nothing of Slurm."""

import math
import time
from dataclasses import asdict, dataclass
from typing import Any

import torch

from furnace_hpc.config.manifest import SAMPLING_WEIGHT
from furnace_hpc.config.metrics import metric_direction
from furnace_hpc.config.train_config import TrainConfig
from furnace_hpc.data.loading.batches import Batch, BatchReader
from furnace_hpc.data.loading.prefetch import TrainBatches
from furnace_hpc.data.loading.sampler import Weights
from furnace_hpc.engine.checkpoint import loader
from furnace_hpc.engine.checkpoint.saver import CheckpointSaver
from furnace_hpc.engine.deepspeed_engine import Engine, set_learning_rate
from furnace_hpc.engine.distributed import (
    Processes,
    RankInfo,
    destroy_process_group,
    init_process_group,
)
from furnace_hpc.engine.evaluation import Evaluation
from furnace_hpc.engine.finish import evaluate_split, finish
from furnace_hpc.engine.gather import gather_of
from furnace_hpc.engine.setup import Run, set_up
from furnace_hpc.engine.stop import Stopped, StopRequest
from furnace_hpc.engine.watchdog import Watchdog
from furnace_hpc.host.lifecycle import EXIT_STOPPED
from furnace_hpc.model.losses import Gather, alone, total_loss
from furnace_hpc.runs.folder import RunFolder
from furnace_hpc.runs.records.metrics import MetricsFile
from furnace_hpc.runs.records.verdict import Verdict


@dataclass
class Progress:
    """Where a run stands; saved with every checkpoint."""

    step: int = 0
    best_step: int = 0
    best_value: float | None = None
    train_s: float = 0.0
    evaluated: int = 0
    """The last step that was evaluated: a run that is stopped in an evaluation makes it when it comes back."""

    def is_to_be_evaluated(self, config: TrainConfig) -> bool:
        """Whether an evaluation of this step is due, and not made yet."""
        due = self.step == config.steps or (
            self.step > 0 and self.step % config.evaluation.every == 0
        )
        return due and self.evaluated != self.step


def train(folder: RunFolder, attempt: int, place: RankInfo, verdict: Verdict) -> int:
    """Collective. Train the run to its end, or to a stop; return the exit code of this rank."""
    stop = StopRequest()
    stop.install()
    with Watchdog.of_run(folder, attempt, verdict) as watchdog:
        processes = init_process_group(place, watchdog.timeout_s)
        run = set_up(folder, attempt, processes, watchdog.heartbeat)
        with train_batches(run.engine, run.reader, run.config, processes) as batches:
            reason = _train(run, batches, attempt, processes, stop, verdict, watchdog)
        if not reason:
            verdict.done()
        processes.barrier()  # all have said how it ended before the first one leaves
    destroy_process_group()
    return EXIT_STOPPED if reason else 0


def _train(
    run: Run,
    batches: TrainBatches,
    attempt: int,
    processes: Processes,
    stop: StopRequest,
    verdict: Verdict,
    watchdog: Watchdog,
) -> str | None:
    """The loop. Return the signal's name when it was stopped, else None."""
    config, engine, folder = run.config, run.engine, run.folder
    needs_best = config.evaluation.select == "best"
    state = loader.load_newest(engine, folder, config.seed, processes, needs_best)
    at = Progress(**state) if state else Progress()
    processes.say(f"resumed after step {at.step}" if state else "first start, at step 0")
    metrics = MetricsFile(folder.metrics(attempt)) if processes.is_rank_zero else None
    evaluation: Evaluation | None = None
    parts: dict[str, torch.Tensor] = {}
    with CheckpointSaver(
        engine, folder, attempt, config, processes, watchdog, saved=at.step
    ) as saver:
        while True:
            watchdog.heartbeat(f"step {at.step + 1}")
            reason, busy = stop.agreed(processes, saver.busy)
            if not busy:
                saver.advance(at.step)
            improved = False
            if not reason and at.is_to_be_evaluated(config):
                try:
                    evaluation = evaluate_split(
                        run, "val", processes, stop.checked(processes, watchdog.heartbeat)
                    )
                    improved = _note_evaluation(at, evaluation, config, metrics)
                except Stopped as stopped:  # the evaluation is made when the run comes back
                    reason = str(stopped)
            # what follows may be stopped, and loses nothing
            last = at.step == config.steps and saver.saved < at.step
            if parts and (reason or improved or last or saver.is_due(at.step, busy)):
                # raises when the loss is not finite: such a step is not saved
                mean_parts(parts, processes)
                check_parameters(engine)
            if reason:
                verdict.stopping(reason)
                if saver.save(asdict(at)):
                    verdict.stopped(reason)
                break
            if improved or last or saver.is_due(at.step, busy):
                saver.begin(asdict(at), is_best=improved)
            if at.step == config.steps:
                break
            started_s = time.perf_counter()
            parts = train_step(engine, batches, config, at.step, gather_of(processes))
            step_time_s = time.perf_counter() - started_s
            at.step += 1
            at.train_s += step_time_s
            verdict.at(at.step)
            if at.step == config.steps or at.step % config.log_every == 0:
                record = _record(at.step, mean_parts(parts, processes), engine, config, step_time_s)
                if metrics:
                    metrics.write(record)
        if not reason:
            saver.wait(at.step)
    if metrics:
        metrics.close()
    if reason:
        return reason
    watchdog.heartbeat("the end")
    try:
        heartbeat = stop.checked(processes, watchdog.heartbeat)
        finish(run, attempt, at.best_step, at.train_s, evaluation, processes, heartbeat)
    except Stopped as stopped:  # all is saved, and looked at when the run comes back
        verdict.stopping(str(stopped))
        verdict.stopped(str(stopped))
        return str(stopped)
    return None


def train_batches(
    engine: Engine, reader: BatchReader, config: TrainConfig, processes: Processes
) -> TrainBatches:
    """This rank's batches, in the sizes that the engine has."""
    return TrainBatches(
        reader,
        seed=config.seed,
        steps=config.steps,
        global_batch_size=config.global_batch_size,
        micro_batch_size=engine.train_micro_batch_size_per_gpu(),
        rank=processes.rank,
        world_size=processes.world_size,
        weights=Weights(reader.column(SAMPLING_WEIGHT))
        if config.data.sampling == "weighted"
        else None,
    )


def train_step(
    engine: Engine, batches: TrainBatches, config: TrainConfig, step: int, gather: Gather = alone
) -> dict[str, torch.Tensor]:
    """Collective. One optimizer step; return the parts of the loss, as means over this rank's samples.

    Raises:
        FloatingPointError: on all ranks, the gradient is not finite.
    """
    skipped = engine.skipped_steps
    set_learning_rate(engine, learning_rate(config, step))
    micro_steps = engine.gradient_accumulation_steps()
    means: dict[str, torch.Tensor] = {}
    for batch in batches.of_step(step):
        parts = forward(engine, batch, config, gather)
        engine.backward(parts["loss"])
        engine.step()
        for name, value in parts.items():
            means[name] = means.get(name, 0) + value.detach() / micro_steps
    check_gradient(engine, skipped)
    return means


def check_gradient(engine: Engine, skipped: int) -> None:
    """Raise FloatingPointError when DeepSpeed left out the step just made; `skipped` is the count before it.

    At stages 1 to 3 it does so, without a word, where the gradient is not finite. At stage 0 it applies it.
    """
    if engine.skipped_steps > skipped:
        raise FloatingPointError(
            "the gradient is not finite: lower optimizer.lr, or look at the data"
        )


def check_parameters(engine: Engine) -> None:
    """Raise FloatingPointError when a parameter is not finite, which the next loss would show: at stage 0 alone."""
    whole = engine.zero_optimization_stage() == 0
    if whole and not all(
        bool(parameter.isfinite().all()) for parameter in engine.module.parameters()
    ):
        raise FloatingPointError(
            "a parameter is not finite: lower optimizer.lr, or look at the data"
        )


def mean_parts(parts: dict[str, torch.Tensor], processes: Processes) -> dict[str, float]:
    """Collective. The parts of the loss as means over the global batch.

    Raises:
        FloatingPointError: the loss is not finite.
    """
    names = sorted(parts)
    total = processes.all_reduce_sum(torch.stack([parts[name].float() for name in names]))
    values = dict(zip(names, (total / processes.world_size).tolist(), strict=True))
    if not math.isfinite(values["loss"]):
        raise FloatingPointError(
            f"the loss is {values['loss']}: lower optimizer.lr, or look at the data"
        )
    return values


def forward(
    engine: Engine, batch: Batch, config: TrainConfig, gather: Gather = alone
) -> dict[str, torch.Tensor]:
    """The parts of the loss of one micro-batch."""
    output = engine(batch.inputs, batch.lengths, batch.present_BM)
    return total_loss(output, batch.labels, output["present"], config.loss, config.tasks, gather)


def learning_rate(config: TrainConfig, step: int) -> float:
    """Rate of step `step` (from 0): linear warm-up, then cosine to 0 or constant."""
    warmup = round(config.schedule.warmup_fraction * config.steps)
    if step < warmup:
        return config.optimizer.lr * (step + 1) / warmup
    if config.schedule.decay == "constant":
        return config.optimizer.lr
    return (
        config.optimizer.lr
        * 0.5
        * (1 + math.cos(math.pi * (step - warmup) / max(1, config.steps - warmup)))
    )


def _note_evaluation(
    at: Progress, evaluation: Evaluation, config: TrainConfig, metrics: MetricsFile | None
) -> bool:
    """Whether this step has to be saved: it is the one to take so far; ties keep the earlier step."""
    at.evaluated = at.step
    if metrics:
        metrics.write({"step": at.step, "kind": "val", **evaluation.scores})
    name = config.selection_metric
    value = evaluation.scores[name] * (-1 if metric_direction(name) == "min" else 1)
    if (
        config.evaluation.select == "last"
        or at.best_value is None
        or value > at.best_value
        or math.isnan(at.best_value)
    ):
        at.best_step, at.best_value = at.step, value
        return config.evaluation.select == "best" or at.step == config.steps
    return False


def _record(
    step: int, parts: dict[str, float], engine: Engine, config: TrainConfig, step_time_s: float
) -> dict[str, Any]:
    norm = engine.get_global_grad_norm()
    return {
        "step": step,
        "kind": "train",
        **{f"train/{name}": value for name, value in parts.items()},
        "lr": learning_rate(config, step - 1),
        "grad_norm": None if norm is None else float(norm),
        "step_time_s": step_time_s,
        "samples_per_s": config.global_batch_size / step_time_s,
        "time_unix_s": time.time(),
    }
