"""Compare the losses of ZeRO 0, 1, 2, 3 in fp32 with plain PyTorch DDP and AdamW.

    python benchmarks/zero_against_ddp.py     goal: equal within 1e-6 over 10 steps, 2 processes

Both train on the same data in real processes over gloo.
"""

import sys
import tempfile
from pathlib import Path

import record

sys.path.insert(0, str(Path(__file__).parent.parent / "tests" / "support"))
import forked_ranks
import rank_work
from rank_work import BF16, IN_FP32, SHIPPED

from furnace_hpc.data.sets.tridigits.pack import pack
from furnace_hpc.data.sets.tridigits.plan import TriDigitsKnobs

GOAL = 1e-6


def main() -> None:
    """Run all in one process group per world size and write the largest differences."""
    record.begin()
    forked_ranks.START_S = 1800  # a busy machine needs more time than a test may take
    rows: list[dict[str, object]] = []
    with tempfile.TemporaryDirectory() as folder:
        data = Path(folder) / "tridigits"
        pack(TriDigitsKnobs(train=240, val=60, test=90), data, lambda what, done, total: None)
        for world_size, engines in ((1, IN_FP32), (2, IN_FP32), (2, SHIPPED), (4, IN_FP32)):
            place = Path(folder) / f"{world_size}-{engines[0]}"
            losses = forked_ranks.run_on_ranks(
                rank_work.zero_against_ddp, world_size, place, data, engines, 10
            )[0]
            plain = losses.pop("ddp")
            for name, values in losses.items():
                difference = max(abs(a - b) for a, b in zip(values, plain, strict=True))
                row = {
                    "processes": world_size,
                    "engine": name,
                    "largest difference to DDP": f"{difference:.1e}",
                }
                if name not in BF16:
                    row |= {"goal": f"<= {GOAL:.0e}", "reached": difference <= GOAL}
                rows.append(row)
    record.write(
        "zero_against_ddp", rows, "a name without fp32 after it is a shipped file as it is"
    )


if __name__ == "__main__":
    main()
