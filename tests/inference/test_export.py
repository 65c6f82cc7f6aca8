"""Export: the exported model equals the live network, and untrusted files are never opened."""

import io
import json
import math
import os
import pickle
import shutil
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from export_study import exported
from fine_tune_work import TUNED
from forked_ranks import run_phases
from use_study import SHARD, STEP, save, write_run
from use_work import ROWS, STEPS, SUBSETS

from furnace_hpc.cli import run_command
from furnace_hpc.config.errors import ConfigError
from furnace_hpc.data.columns import open_columns
from furnace_hpc.engine.checkpoint.shards import whole_weights
from furnace_hpc.export import main
from furnace_hpc.inference import Predictor
from furnace_hpc.inference.export_check import stored_row
from furnace_hpc.inference.model_folder import (
    CONFIG,
    PROGRAM,
    TOKENIZER,
    WEIGHTS,
    read_exported,
)
from furnace_hpc.inference.torch_export import relative_difference
from furnace_hpc.runs.folder import RunFolder, write_json

MODALITIES = ("text", "image", "audio")


@pytest.mark.slow
@pytest.mark.distributed
def test_export_equals_live_network(tmp_path: Path, small_data: Path):
    """Logits are equal bit for bit, for every ZeRO stage and subset of the modalities.

    In bf16 under stage 3 they differ by rounding.
    """
    # Stage 3 is last, because DeepSpeed then replaces nn.Linear's function in the whole process. In
    # bf16 the new function rounds once more.
    kinds = [(0, False), (1, False), (2, False), (1, True), (3, False), (3, True)]
    cases = [
        {
            "do": "make",
            "source": f"stage {stage}{' bf16' * bf16}",
            "stage": stage,
            "bf16": bf16,
            "data": str(small_data),
        }
        for stage, bf16 in kinds
    ]
    sources = run_phases(tmp_path, "use_work", [(2, cases)])
    columns = open_columns(small_data).split("test")
    for source, (stage, bf16) in zip(sources, kinds, strict=True):
        made, reported = exported(tmp_path / source, tmp_path / "out" / source)
        assert (made.provenance.step, made.provenance.zero_stage, made.provenance.world_size) == (
            STEPS,
            stage,
            2,
        )
        assert made.config.deepspeed.precision == ("bf16" if bf16 else "fp32")
        assert any("equal bit for bit" in line for line in reported)
        predictor = Predictor.load(tmp_path / "out" / source, "cpu")
        live = np.load(tmp_path / source / "live.npz")
        for subset in SUBSETS:
            rows = [stored_row(predictor, columns, row) for row in range(ROWS)]
            for row in rows:
                row["present"] = np.isin(range(3), subset).astype(np.uint8)
            logits = predictor.logits(rows)["digit"].numpy()
            wanted = live["+".join(MODALITIES[m] for m in subset)]
            if (stage, bf16) == (3, True):
                assert np.abs(logits - wanted).max() <= 2**-5 * max(1, np.abs(wanted).max()), subset
            else:
                assert logits.tobytes() == wanted.tobytes(), (
                    source,
                    subset,
                    np.abs(logits - wanted).max(),
                )


@pytest.mark.slow
@pytest.mark.distributed
def test_tuned_encoders_are_exported(tmp_path: Path, small_data: Path):
    """Frozen weights and adapters, too, bit for bit. Also as a program of torch.export."""
    common = {"do": "make", "data": str(small_data), "changes": TUNED}
    cases = [common | {"source": f"stage {stage}", "stage": stage} for stage in (2, 3)]
    columns = open_columns(small_data).split("test")
    for source in run_phases(tmp_path, "use_work", [(2, cases)]):
        out = tmp_path / "out" / source
        made, reported = exported(tmp_path / source, out, with_program=source == "stage 2")
        assert any("equal bit for bit" in line for line in reported)
        assert made.config.model.image.lora.rank == 2
        predictor = Predictor.load(out, "cpu")
        logits = predictor.logits([stored_row(predictor, columns, row) for row in range(ROWS)])
        wanted = np.load(tmp_path / source / "live.npz")["text+image+audio"]
        assert logits["digit"].numpy().tobytes() == wanted.tobytes()


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, small_data: Path) -> RunFolder:
    scores = {"val/digit/accuracy": 0.5, "test/digit/accuracy": 0.25}
    return write_run(tmp_path_factory.mktemp("runs"), small_data, scores)


def test_config_has_scores_and_provenance(run: RunFolder, tmp_path: Path):
    exported(run.path, tmp_path / "out")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out"], "nothing is left beside it"
    made = read_exported(tmp_path / "out")
    spec = json.loads(run.spec.read_text())
    assert made.config.model_dump(mode="json") == spec["config"]
    assert made.data.labels["digit"].classes == tuple("0123456789")
    assert made.data.statistics.keys() == {"image", "audio"}
    assert (made.data.fingerprint, made.data.files) == (spec["data_fingerprint"], {})
    assert made.scores == {"val/digit/accuracy": 0.5, "test/digit/accuracy": 0.25}
    origin = made.provenance
    assert (origin.run_id, origin.step, origin.is_selected) == (run.run_id, STEP, True)
    assert (origin.commit, origin.code_hash) == ("1234567", "c0de")
    assert origin.parameters_sha256 == json.loads(run.result.read_text())["parameters_sha256"]
    assert made.files.keys() == {WEIGHTS, TOKENIZER}


def test_run_behind_a_link_is_exported(run: RunFolder, tmp_path: Path):
    """The link has another name than the run."""
    other = run.path.parent.parent / "other" / run.run_id.replace("base", "renamed")
    other.parent.mkdir()
    other.symlink_to(Path("..", run.path.parent.name, run.run_id))
    try:
        made, _ = exported(other, tmp_path / "out")
    finally:
        shutil.rmtree(other.parent)
    result = json.loads(run.result.read_text())
    assert made.provenance.parameters_sha256 == result["parameters_sha256"]
    assert run.result.is_file()


@pytest.mark.slow
def test_program_equals_network_without_pickles(run: RunFolder, tmp_path: Path):
    """The program agrees with the network, and no file contains a pickle."""
    made, _ = exported(run.path, tmp_path / "out", with_program=True)
    assert made.program
    assert made.program.difference <= made.program.tolerance == 1e-5
    assert made.files.keys() == {WEIGHTS, TOKENIZER, PROGRAM}
    with zipfile.ZipFile(tmp_path / "out" / PROGRAM) as archive:
        members = {name.partition("/")[2]: archive.read(name) for name in archive.namelist()}
    weights = json.loads(members["data/weights/model_weights_config.json"])["config"]
    constants = json.loads(members["data/constants/model_constants_config.json"])["config"]
    payloads = [*weights.values(), *constants.values()]
    assert len(weights) > 20
    assert not any(payload["use_pickle"] for payload in payloads)
    assert members["data/sample_inputs/model.pt"] == b""
    raw = {f"data/{kind}/{p['path_name']}" for kind in ("weights", "constants") for p in payloads}
    files = {name: (tmp_path / "out" / name).read_bytes() for name in (CONFIG, TOKENIZER)}
    files |= {name: content for name, content in members.items() if name not in raw and content}
    for name, content in files.items():
        if name.endswith(".json"):
            json.loads(content)
        with pytest.raises(
            (pickle.UnpicklingError, EOFError, ValueError, IndexError, KeyError, AttributeError)
        ):
            pickle.load(io.BytesIO(content))
    content = (tmp_path / "out" / WEIGHTS).read_bytes()
    header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
    ends = [entry["data_offsets"][1] for name, entry in header.items() if name != "__metadata__"]
    # The file contains the weights and nothing else.
    assert 8 + int.from_bytes(content[:8], "little") + max(ends) == len(content)


def test_folder_is_self_contained(tmp_path: Path, small_data: Path):
    """It needs neither the run, nor the data, nor the trained weights."""
    from tiny_networks import SIZES
    from transformers import BertConfig, BertModel

    data = shutil.copytree(small_data, tmp_path / "data")
    torch.manual_seed(1)
    BertModel(BertConfig(vocab_size=40, **SIZES)).save_pretrained(tmp_path / "bert")
    source = write_run(
        tmp_path / "runs", data, model__text_weights=str(tmp_path / "bert"), model__text_layers=1
    )
    made, _ = exported(source.path, tmp_path / "out")
    wanted = Predictor.load(tmp_path / "out", "cpu").predict(text="it is even")
    for gone in ("data", "bert", "runs"):
        shutil.rmtree(tmp_path / gone)
    assert made.architectures["text"]["hidden_size"] == 24
    moved = (tmp_path / "out").rename(tmp_path / "moved")
    assert Predictor.load(moved, "cpu").predict(text="it is even") == wanted


class Canary:
    """A pickle that makes a folder when it is opened."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.path),)


def test_unlisted_pickle_is_never_opened(tmp_path: Path, small_data: Path):
    """The same holds for a pickle of another size or hash, or one that other users may write."""
    canary = tmp_path / "opened"
    run = write_run(tmp_path / "runs", small_data)
    shard = run.checkpoint(STEP) / SHARD
    good = shard.read_bytes()

    torch.save({"module": Canary(canary)}, shard)  # another size
    with pytest.raises(
        ConfigError, match="is damaged: a file differs from its size and hash in manifest"
    ):
        exported(run.path, tmp_path / "out")
    shard.write_bytes(good[:-1] + bytes([good[-1] ^ 1]))  # one bit
    with pytest.raises(ConfigError, match="is damaged"):
        exported(run.path, tmp_path / "out")
    shard.write_bytes(good)
    for name in (
        "zero_pp_rank_0_mp_rank_00_model_states.pt",
        "zero_pp_rank_0_mp_rank_00_optim_states.pt",
    ):
        torch.save({"module": Canary(canary)}, shard.with_name(name))
        with pytest.raises(
            ConfigError, match=f"contains 'zero/{name}', which its manifest.json does not name"
        ):
            exported(run.path, tmp_path / "out")
        shard.with_name(name).unlink()
    shutil.rmtree(run.checkpoint(STEP))
    save(run, STEP, {"module": Canary(canary)})  # with the right hash in the manifest
    for path in (shard, shard.parent, run.checkpoint(STEP), run.path, run.path.parent):
        mode = path.stat().st_mode
        path.chmod(mode | 0o022)
        with pytest.raises(ConfigError, match=r"may be written by all users .* chmod go-w "):
            exported(run.path, tmp_path / "out")
        path.chmod(mode)
    if os.getuid() == 0:  # only root can give a file away
        os.chown(shard, 12345, 12345)
        with pytest.raises(
            ConfigError, match=r"belongs to user 12345, not to .*: its content could run anything"
        ):
            exported(run.path, tmp_path / "out")
    assert not canary.exists()
    assert not (tmp_path / "out").exists()

    save(run, 5, {"module": {}, "canary": Canary(canary)})  # the canary works
    whole_weights(run.checkpoint(5) / "zero")
    assert canary.exists()


def test_foreign_weights_are_refused(tmp_path: Path, small_data: Path):
    """Nothing is left at the output."""
    run = write_run(tmp_path / "runs", small_data)
    weights = torch.load(run.checkpoint(STEP) / SHARD)
    name = next(iter(weights["module"]))
    shutil.rmtree(run.checkpoint(STEP))
    save(
        run,
        STEP,
        {"module": {key: value + (key == name) for key, value in weights["module"].items()}},
    )
    with pytest.raises(ConfigError, match=r"differ from parameters_sha256 in .*result\.json"):
        exported(run.path, tmp_path / "out")
    save(
        run, 6, {"module": {key: value for key, value in weights["module"].items() if key != name}}
    )
    with pytest.raises(
        ConfigError, match=rf"does not fit this code's network \(1 weights differ, such as {name}\)"
    ):
        exported(run.path, tmp_path / "out", step="6")
    save(run, 7, {"something": "else"})
    with pytest.raises(ConfigError, match=r"cannot be read \('module'\)"):
        exported(run.path, tmp_path / "out", step="7")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["runs"]


def test_only_exported_models_are_replaced(run: RunFolder, tmp_path: Path):
    """An exported model is replaced with --force, and anything else never."""
    out = tmp_path / "out"
    out.mkdir()
    exported(run.path, out)  # an empty folder is fine
    first = (out / CONFIG).stat().st_ino
    with pytest.raises(
        ConfigError,
        match="contains an exported model. Choose another folder, or replace the model with --f",
    ):
        exported(run.path, out)
    exported(run.path, out, replace=True)
    assert (out / CONFIG).stat().st_ino != first
    (out / "thesis.tex").write_text("years")
    with pytest.raises(
        ConfigError, match=r"contains 'thesis\.tex', which is not a file of an exported model"
    ):
        exported(run.path, out, replace=True)
    with pytest.raises(ConfigError, match="is a file"):
        exported(run.path, out / CONFIG, replace=True)
    assert (out / "thesis.tex").read_text() == "years"


def test_choice_of_checkpoint(tmp_path: Path, small_data: Path):
    run = write_run(tmp_path / "grid", small_data, done=False)
    made, _ = exported(run.path, tmp_path / "best")
    assert (made.provenance.step, made.provenance.is_selected, made.provenance.commit) == (
        STEP,
        False,
        None,
    )
    made, _ = exported(run.checkpoint(STEP), tmp_path / "that")
    assert made.provenance.step == STEP
    (tmp_path / "grid" / "submissions").mkdir()
    for source, step, words in (
        (
            run.path,
            "3",
            rf"has no checkpoint of step 3. Choose one with --step \(checkpoints: {STEP}\)",
        ),
        (run.path, "9" * 400, "--step is '9{60}', wanted a number of steps, or best"),
        (run.path, "-1", "wanted a number of steps, or best"),
        (run.checkpoint(STEP), "4", "is already a checkpoint"),
        (
            tmp_path / "grid",
            None,
            f"is the folder of a grid. Give the folder of one of its runs, such as .*{run.run_id}",
        ),
        (tmp_path / "nowhere", None, "is not a run's folder: it has no spec.json"),
        (run.spec, None, "is not a run's folder: it has no spec.json"),
    ):
        with pytest.raises(ConfigError, match=words):
            exported(source, tmp_path / "out", step=step)
    write_json(run.attempt(1), {"attempt": 1, "data_dir": str(tmp_path)})
    with pytest.raises(
        ConfigError,
        match="data is not in .* Give the folder that contains 'tridigits' with --data-root",
    ):
        exported(run.path, tmp_path / "out")
    manifest = json.loads((small_data / "manifest.json").read_text())
    write_json(tmp_path / "manifest.json", manifest | {"fingerprint": "0" * 16})
    with pytest.raises(
        ConfigError, match="has fingerprint 0000000000000000, but the run was trained on"
    ):
        exported(run.path, tmp_path / "out")
    run.spec.write_text('{"format": 1}')
    with pytest.raises(
        ConfigError, match=r"spec\.json cannot be read .* Export it with the version of the code"
    ):
        exported(run.path, tmp_path / "out", data_dir=small_data)


def test_command_prints_result_and_next_command(
    run: RunFolder, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    with pytest.raises(SystemExit) as ended:
        run_command(main, [str(run.path), "--out", str(tmp_path / "out")])
    assert ended.value.code == 0
    printed = capsys.readouterr().out
    assert f"exported {run.run_id}, step {STEP} of {STEP}, to {tmp_path / 'out'}" in printed
    assert "test/digit/accuracy 0.25" in printed
    assert f"try: furnace predict --model {tmp_path / 'out'} --text TEXT" in printed
    with pytest.raises(SystemExit) as ended:
        run_command(main, [str(run.path), "--out", str(tmp_path / "out")])
    assert ended.value.code == 2
    assert capsys.readouterr().err.startswith("error: --out ")


@pytest.mark.parametrize("found", [0.5, math.nan])
def test_logits_that_are_no_numbers_differ(found):
    expected = torch.tensor([[1.0, math.nan]])
    assert relative_difference(torch.tensor([[1.0, found]]), expected) == math.inf
