"""The end of a run: scores and predictions of the selected step, then the result."""

import time
from typing import Any, NamedTuple

import torch

from furnace_hpc.engine.checkpoint import loader
from furnace_hpc.engine.context import RunContext
from furnace_hpc.engine.deepspeed_engine import engine_sha256
from furnace_hpc.engine.evaluation import Evaluation, evaluate, write_predictions
from furnace_hpc.engine.metering.usage import Usage
from furnace_hpc.engine.meters import device_name, peak_memory_gib, versions
from furnace_hpc.runs.code import code_hash, git_commit
from furnace_hpc.runs.records.attempts import read_attempts
from furnace_hpc.runs.records.result import RunResult, write_result


class Trained(NamedTuple):
    """The training that a run finishes."""

    steps: int
    """Optimizer steps trained."""
    selected_step: int
    """The step that validation has selected."""
    stopped_early: bool
    """Whether early stopping has ended it."""
    usage: Usage
    """Of all training steps that count."""


def finish(
    context: RunContext,
    trained: Trained,
    mfu: float | None,
    last: Evaluation | None,
) -> None:
    """Collective. Evaluate the test split once, at the selected step, and write the result.

    Nothing is written before both evaluations are complete.

    Args:
        context: the run, trained to its end.
        trained: the training, and the step to evaluate.
        mfu: share of the device's peak. None if it is unknown.
        last: the newest evaluation on val. None if this attempt has made none.

    Raises:
        Stopped: a rank has received a stop signal.
    """
    final_sha256 = engine_sha256(context.engine, context.processes)
    if trained.selected_step != trained.steps:
        loader.load(context, trained.selected_step)
        last = None
    val = last or evaluate(context, "val")
    test = evaluate(context, "test", val.thresholds, with_subsets=True)
    allocated_gib, reserved_gib = peak_memory_gib(context.processes)
    if not context.processes.is_rank_zero:
        return
    loader.check_is_newest(context.folder, context.attempt)
    for evaluation in (val, test):
        write_predictions(context.folder, context.readers[evaluation.split], evaluation)
    attempts = read_attempts(context.folder)
    config = context.config
    result = RunResult(
        run_id=context.spec.run_id,
        variant=context.spec.variant,
        seed=config.seed,
        steps=trained.steps,
        stopped_early=trained.stopped_early,
        selected_step=trained.selected_step,
        metrics=val.scores | test.scores,
        parameters_sha256=final_sha256,
        **_of_weights(context),
        num_parameters=context.num_parameters,
        trainable_parameters=context.trainable_parameters,
        attempts=len(attempts),
        wall_s=time.time() - attempts[0].start_unix_s,
        peak_memory_gib=allocated_gib,
        peak_reserved_gib=reserved_gib,
        mfu=mfu,
        **_of_usage(context, trained),
        **_of_engine(context),
        data_fingerprint=context.spec.data_fingerprint,
        data_origin=context.data_origin,
        code_hash=code_hash(),
        commit=git_commit(),
        versions=versions(),
    )
    write_result(context.folder, result)


def _of_weights(context: RunContext) -> dict[str, Any]:
    """The fields of the result on the weights that the run began with."""
    return {
        "initial_weights": context.initial_weights,
        "weights_fingerprints": dict(context.named_weights.fingerprints),
        "weights_revisions": dict(context.named_weights.revisions),
    }


def _of_engine(context: RunContext) -> dict[str, Any]:
    """The fields of the result on processes, device and engine."""
    return {
        "world_size": context.processes.world_size,
        "num_threads": torch.get_num_threads(),
        "micro_batch_size": context.engine.train_micro_batch_size_per_gpu(),
        "device": device_name(context.processes.device),
        "precision": context.config.deepspeed.precision,
        "zero_stage": context.engine.zero_optimization_stage(),
    }


def _of_usage(context: RunContext, trained: Trained) -> dict[str, Any]:
    """The fields of the result that follow from what the training steps have used."""
    usage = trained.usage
    samples = trained.steps * context.config.global_batch_size
    return {
        "train_s": usage.train_s,
        "samples_per_s": samples / max(usage.train_s, 1e-9),
        "model_tflop_s": usage.model_tflop_s(context.processes.world_size),
        "data_wait_s": usage.data_wait_s,
        "energy_j": usage.energy_j,
    }
