"""Set-up refuses a run if code or data differ from the submission, or data are damaged."""

import shutil
from pathlib import Path

import rank_work
from forked_ranks import run_on_ranks
from make import make_config

from furnace_hpc.config.manifest import read_manifest
from furnace_hpc.config.sections.resources import Resources
from furnace_hpc.config.train_config import RunSpec
from furnace_hpc.host import lifecycle
from furnace_hpc.runs.code import code_hash
from furnace_hpc.runs.folder import write_atomically

EXPECTED = {
    "nothing": "accepted",
    "code": "the code has changed since run base-s0-",
    "fingerprint": "the run was made for 0123456789abcdef",
    "portable": "the run is portable, but ATEN_CPU_CAPABILITY is not set in this process",
    "file": "ack the data set again",
    "manifest": "has no manifest.json",
}


def prepare(folder: Path, small_data: Path, change: str) -> str:
    """A run folder with one attempt, and one thing changed since it began."""
    data = folder / "data"
    shutil.copytree(small_data, data)
    fingerprint = "0123456789abcdef" if change == "fingerprint" else read_manifest(data).fingerprint
    if change == "file":
        (data / "train/audio.npy").write_bytes((data / "train/audio.npy").read_bytes()[:-1])
    if change == "manifest":
        (data / "manifest.json").unlink()
    spec = RunSpec(
        grid="g",
        variant="base",
        config=make_config(portable=change == "portable"),
        resources=Resources(),
        data_fingerprint=fingerprint,
    )
    run_dir = folder / spec.run_id
    write_atomically(run_dir / "spec.json", spec.model_dump_json())
    lifecycle.begin(
        str(run_dir),
        {"code_hash": "other" if change == "code" else code_hash(), "data_dir": str(data)},
    )
    return str(run_dir)


def test_set_up_checks_code_and_data(small_data: Path, tmp_path: Path):
    run_dirs = [prepare(tmp_path / change, small_data, change) for change in EXPECTED]
    *answers, loaded = run_on_ranks(rank_work.refusals, 1, tmp_path / "ranks", run_dirs)[0]
    for (change, message), answer in zip(EXPECTED.items(), answers, strict=True):
        assert message in answer, change
    assert loaded == "nothing", "importing inductor takes seconds"
