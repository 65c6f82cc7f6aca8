"""The end of a run: the selected step's scores and predictions, and the result, written last."""

import time
from collections.abc import Callable, Mapping

import torch

from furnace_hpc.engine.checkpoint import loader
from furnace_hpc.engine.deepspeed_engine import full_fp32_parameters, parameters_sha256
from furnace_hpc.engine.distributed import Processes
from furnace_hpc.engine.evaluation import Evaluation, evaluate, write_predictions
from furnace_hpc.engine.meters import device_name, peak_memory_gib, versions
from furnace_hpc.engine.setup import Run
from furnace_hpc.runs.code import code_hash, git_commit
from furnace_hpc.runs.records.attempts import read_attempts
from furnace_hpc.runs.records.result import RunResult, write_result


def finish(
    run: Run,
    attempt: int,
    selected_step: int,
    train_s: float,
    last: Evaluation | None,
    processes: Processes,
    heartbeat: Callable[[str], None],
) -> None:
    """Collective. Look at the test split once, with the parameters that validation selected, and write the result.

    `heartbeat` is called by all ranks alike, and may raise to end it: nothing is written before all is known.
    """
    config, engine, folder = run.config, run.engine, run.folder
    final_sha256 = parameters_sha256(full_fp32_parameters(engine))
    if selected_step != config.steps:
        loader.load(engine, folder, selected_step, config.seed, processes)
        last = None
    val = last or evaluate_split(run, "val", processes, heartbeat)
    evaluations = [
        val,
        evaluate_split(run, "test", processes, heartbeat, val.thresholds, with_subsets=True),
    ]
    memory_gib = peak_memory_gib(processes)
    if not processes.is_rank_zero:
        return
    loader.check_is_newest(folder, attempt)
    for evaluation in evaluations:
        write_predictions(folder, run.readers[evaluation.split], evaluation)
    attempts = read_attempts(folder)
    write_result(
        folder,
        RunResult(
            run_id=run.spec.run_id,
            variant=run.spec.variant,
            seed=config.seed,
            steps=config.steps,
            selected_step=selected_step,
            metrics={
                name: value
                for evaluation in evaluations
                for name, value in evaluation.scores.items()
            },
            parameters_sha256=final_sha256,
            num_parameters=run.num_parameters,
            world_size=processes.world_size,
            num_threads=torch.get_num_threads(),
            attempts=len(attempts),
            train_s=train_s,
            wall_s=time.time() - attempts[0].start_unix_s,
            samples_per_s=config.steps * config.global_batch_size / max(train_s, 1e-9),
            peak_memory_gib=memory_gib,
            device=device_name(processes.device),
            precision=config.deepspeed.precision,
            zero_stage=engine.zero_optimization_stage(),
            data_fingerprint=run.spec.data_fingerprint,
            code_hash=code_hash(),
            commit=git_commit(),
            versions=versions(),
        ),
    )


def evaluate_split(
    run: Run,
    split: str,
    processes: Processes,
    heartbeat: Callable[[str], None],
    thresholds: Mapping[str, float] | None = None,
    with_subsets: bool = False,
) -> Evaluation:
    """Collective. Score one split of a run."""
    heartbeat(f"evaluation on {split}")
    config, reader = run.config, run.readers[split]
    return evaluate(
        run.engine,
        reader,
        split,
        config.tasks,
        config.evaluation.batch_size,
        processes,
        heartbeat,
        thresholds,
        with_subsets,
        all_frames=config.evaluation.frames == "mean",
    )
