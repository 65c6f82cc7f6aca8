"""Read what trackers show of a run beside its curves: config, tags, final metrics and costs."""

from typing import Any

from pydantic import ValidationError
from pydantic_core import from_json

from furnace_hpc.config.flatten import flatten
from furnace_hpc.host.regular_file import read_regular
from furnace_hpc.runs.records.attempts import Attempt
from furnace_hpc.runs.records.result import RunResult
from furnace_hpc.runs.state import END_REASONS, RunState
from furnace_hpc.tables.reading.costs import costs_of_attempts
from furnace_hpc.tables.reading.run_files import ListedRun, Record, parse_lines, read_listed
from furnace_hpc.trackers.tracker import RunInfo

COSTS = (
    "train_s",
    "wall_s",
    "samples_per_s",
    "peak_memory_gib",
    "num_parameters",
    "data_wait_s",
    "energy_j",
    "model_tflop_s",
    "mfu",
)


def read_info(run: ListedRun, grid: str, report: str = "") -> RunInfo:
    """Read a run's files.

    Args:
        run: the run's files.
        grid: name of its grid.
        report: path or address of the report of its table. Empty if there is none.
    """
    record, _ = read_listed(run)
    attempts, result, spec = record.ledger(), _result(record), _spec(run)
    config = spec.get("config")
    config = flatten(config) if isinstance(config, dict) else {}
    variant, seed = _variant_and_seed(run.run, spec)
    tags = {
        "run": run.run,
        "grid": grid,
        "variant": variant,
        "seed": "" if seed is None else str(seed),
        "data": record.data or "",
        "state": _state(attempts, result),
        "attempts": str(len(attempts)),
        "report": report,
        "same_run_as": run.link,
    }
    spent = costs_of_attempts(record, result)
    if spent.hours:
        tags["gpu_hours" if spent.gpus else "process_hours"] = f"{spent.hours:.4g}"
    if record.lost_steps:
        tags["steps_trained_again"] = str(record.lost_steps)
    summary = {}
    if result:
        has_ended = all(attempt.end_unix_s for attempt in attempts)
        summary = _summary(result, spent.hours if has_ended else 0.0, spent.gpus)
        tags |= {"device": result.device, "commit": result.commit or ""}
    return RunInfo(
        run_id=run.run,
        grid=grid,
        variant=variant,
        seed=seed,
        start_s=attempts[0].start_unix_s if attempts else 0.0,
        state=tags["state"],
        config=config,
        tags={name: text for name, text in tags.items() if text},
        summary=summary,
    )


def settled_step(run: ListedRun) -> int | None:
    """The step below which no record can change: that of the newest checkpoint. None: no limit."""
    if "result.json " in run.files:
        return None
    try:
        content = read_regular(f"{run.path}/checkpoints.jsonl", None)
    except (OSError, ValueError):
        return 0
    lines, _ = parse_lines(content, "attempt", int)
    return max((line["step"] for line in lines), default=0)


def _summary(result: RunResult, hours: float, gpus: bool) -> dict[str, tuple[int, float]]:
    """Final metrics at the selected step, and costs at the last one."""
    found = {
        f"final/{name}": (result.selected_step, float(value))
        for name, value in result.metrics.items()
    }
    costs: dict[str, float | None] = {name: getattr(result, name) for name in COSTS}
    costs["gpu_hours" if gpus else "process_hours"] = hours or None
    for name, value in costs.items():
        if value is not None:
            found[f"cost/{name}"] = (result.steps, float(value))
    return found


def _state(attempts: list[Attempt], result: RunResult | None) -> str:
    """The state according to the run's files. Slurm is not queried."""
    if result:
        return RunState.DONE.value
    if not attempts:
        return RunState.NEW.value
    if attempts[-1].end_unix_s is None:
        return RunState.RUNNING.value
    rule = END_REASONS.get(attempts[-1].reason or "")
    return (rule.state if rule else RunState.INTERRUPTED).value


def _result(record: Record) -> RunResult | None:
    """The result. None if it is missing or damaged."""
    try:
        return RunResult.from_json(record.result or b"")
    except ValidationError:
        return None


def _spec(run: ListedRun) -> dict[str, Any]:
    """Content of spec.json. Empty if it is missing or damaged."""
    try:
        spec = from_json(read_regular(f"{run.path}/spec.json"))
    except (OSError, ValueError):
        return {}
    return spec if isinstance(spec, dict) else {}


def _variant_and_seed(run_id: str, spec: dict[str, Any]) -> tuple[str, int | None]:
    """Read both from the run's id, because a link leads to a run of another row."""
    parts = run_id.rsplit("-", 2)
    if len(parts) == 3 and parts[1][:1] == "s" and parts[1][1:].isdigit():
        return parts[0], int(parts[1][1:])
    return str(spec.get("variant", run_id)), None
