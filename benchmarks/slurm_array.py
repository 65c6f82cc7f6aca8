"""Run twelve runs of 2 nodes x 2 ranks with ZeRO-2 as one array on slurm/devcluster.

    python benchmarks/slurm_array.py     some minutes; needs what slurm/devcluster needs

Goals: all runs done, never more than %2 at once, and one table.
"""

import sys
import tempfile
import time
from pathlib import Path

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent / "tests" / "support"))

import record  # noqa: E402
import yaml  # noqa: E402
from real_study import GRID, RealStudy  # noqa: E402
from slurm_cluster import start_cluster  # noqa: E402

from furnace_hpc.data.sets.tridigits.pack import pack  # noqa: E402
from furnace_hpc.data.sets.tridigits.plan import TriDigitsKnobs  # noqa: E402

RUNS, PARALLEL = 12, 2


def main() -> None:
    """Submit, count the running elements over time, and read the table."""
    record.begin()
    with tempfile.TemporaryDirectory(prefix="fb") as folder:
        cluster = start_cluster(Path(folder) / "c")
        try:
            shape = {"nodes": 2, "processes_per_node": 2, "array_parallelism": PARALLEL}
            study = RealStudy(cluster, Path(folder), profile=shape)
            knobs = TriDigitsKnobs(train=240, val=60, test=90)
            pack(knobs, study.place / "data/tridigits", lambda what, done, total: None)
            grid = GRID | {"seeds": list(range(RUNS // 2)), "base": GRID["base"] | {"steps": 30}}
            (study.place / "study.yaml").write_text(yaml.safe_dump(grid))
            started_s = time.perf_counter()
            study.submitted()
            most, table = 0, study.place / "results/study/table.md"
            while not table.exists() and time.perf_counter() - started_s < 560:
                names = cluster.run(
                    "squeue", "--noheader", "--array", "--states=R", "--format=%K"
                ).stdout.split()
                most = max(most, sum(name != "N/A" for name in names))
                time.sleep(0.5)
            took_s = time.perf_counter() - started_s
            states, runs = study.states(), study.folder.glob("*-s*-*/attempts")
            attempts = [len(list(path.glob("*.json"))) for path in runs]
            row = {
                "what": f"{RUNS} runs of 2 nodes x 2 ranks, ZeRO-2, %{PARALLEL}",
                "done": states["done"],
                "attempts": sum(attempts),
                "most_at_a_time": most,
                "table_by_follow_up_job": table.exists(),
                "submit_to_table_s": round(took_s),
                "reached": states["done"] == RUNS == sum(attempts)
                and most <= PARALLEL
                and table.exists(),
            }
        finally:
            cluster.down()
    record.write("slurm_array", [row])


if __name__ == "__main__":
    main()
