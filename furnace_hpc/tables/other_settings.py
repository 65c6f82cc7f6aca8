"""Runs of a grid that were submitted with other settings (`--set`) than those of the table."""

import json

from furnace_hpc.config.errors import ConfigError
from furnace_hpc.config.grids.ablate import Overrides
from furnace_hpc.config.grids.grid import Grid, read_grid
from furnace_hpc.host.regular_file import read_regular_text
from furnace_hpc.runs.folder import GridFolder
from furnace_hpc.runs.submitted import command_on, setting_words

MAX_SHOWN = 5


def other_settings(grid: Grid, folder: GridFolder) -> list[str]:
    """A line for each other settings that have a finished run: how many, and the command that shows them."""
    settings: dict[str, Overrides] = {}
    runs: dict[str, set[str]] = {}
    for submission in folder.all_submissions():
        try:
            asked = _of_numbers(read_grid(submission / "grid.yaml").settings)
            lines = read_regular_text(submission / "rows.jsonl").splitlines()
            run_ids = {json.loads(line)["run_id"] for line in lines}
        except (ConfigError, OSError, ValueError, KeyError, TypeError):
            continue  # a submission that was cut off, or is damaged
        key = json.dumps(asked, sort_keys=True)
        settings[key] = asked
        runs.setdefault(key, set()).update(run_ids)
    own = json.dumps(_of_numbers(grid.settings), sort_keys=True)
    found = []
    for key in settings.keys() - {own}:
        done = sum(folder.run(run_id).result.is_file() for run_id in runs[key])
        if done:
            command = command_on("aggregate", folder, *setting_words(settings[key]))
            found.append((-done, f"{done} of {len(runs[key])} runs are done: {command}"))
    found.sort()
    more = [f"and {len(found) - MAX_SHOWN} more settings"] if len(found) > MAX_SHOWN else []
    return [line for _, line in found[:MAX_SHOWN]] + more


def _of_numbers(settings: Overrides) -> Overrides:
    """Without those that change no number."""
    return {key: value for key, value in settings.items() if not key.startswith("resources.")}
