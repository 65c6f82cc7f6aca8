"""Files of cached features: what is written, found again, refused, or computed again."""

import errno
import json
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from make import make_config

from furnace_hpc.checks.small_pack import cut_pack
from furnace_hpc.config.errors import ConfigError
from furnace_hpc.data.columns import Columns, open_columns
from furnace_hpc.data.features import store
from furnace_hpc.data.features.reader import FeatureReader, mask_key
from furnace_hpc.data.loading.batches import BatchReader
from furnace_hpc.engine.features import build
from furnace_hpc.engine.features.build import CACHE, Features, frozen_features
from furnace_hpc.engine.features.identity import digest_of, source_of
from furnace_hpc.engine.ranks.distributed import Processes
from furnace_hpc.engine.ranks.stop import Stopped, StopRequest
from furnace_hpc.engine.ranks.watchdog import Watchdog
from furnace_hpc.engine.setup import build_model
from furnace_hpc.runs.folder import RunFolder
from furnace_hpc.runs.records.verdict import RankVerdict

CPU = torch.device("cpu")
MODALITIES = ("text", "image", "audio")
CACHED = {"freeze": "all", "cache_features": True}


@pytest.fixture(scope="module")
def columns(small_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Columns:
    """A pack in which every third sample has no text, and every fifth no sound."""
    folder = tmp_path_factory.mktemp("absent") / "pack"
    cut_pack(small_data, folder)
    for path in folder.glob("*/present.npy"):
        present = np.load(path)
        present[::3, 0], present[::5, 2] = 0, 0
        np.save(path, present)
    return open_columns(folder)


def made(columns: Columns, place: Path, run: str = "run", **changes: Any) -> dict[str, Features]:
    """The features of a run in this process."""
    config = make_config(**{"model__text": CACHED} | changes)
    folder = RunFolder(place / "runs" / "grid" / run)
    folder.path.mkdir(parents=True, exist_ok=True)
    watchdog = Watchdog(60, RankVerdict(folder, 1, 0))
    processes = Processes(0, 0, 1, CPU)
    model = build_model(config, columns.manifest)
    return frozen_features(model, config, columns, folder, processes, watchdog, StopRequest())


def features_folder(place: Path) -> Path:
    (found,) = (place / "runs/grid/features").glob("*/features.json")
    return found.parent


def parts(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def test_batches_have_the_features(columns: Columns, tmp_path: Path, monkeypatch):
    """Stored and computed ones are the same bits. Those of absent samples are zero and masked."""
    three = {f"model__{name}": CACHED for name in MODALITIES}
    stored = made(columns, tmp_path, **three)
    monkeypatch.setenv(CACHE, "compute")
    computed = made(columns, tmp_path, **three)
    rows = np.array([3, 1, 0, 5, 11, 7])
    batches = []
    for features in (stored, computed):
        sources = {name: found.source for name, found in features.items()}
        reader = FeatureReader(sources, columns, "train", MODALITIES, ("digit",), CPU)
        assert reader.stored.keys().isdisjoint(MODALITIES)  # they are not read ahead
        host = reader.gather(rows, from_file=features is stored)
        batches.append(reader.to_device(host))
    one, other = batches
    raw = BatchReader(columns, "train", MODALITIES, ("digit",), CPU).read(rows)
    assert one.complete == other.complete == {"image"}
    for name in MODALITIES:
        assert torch.equal(one.inputs[name], other.inputs[name])
        mask = one.lengths[mask_key(name)]
        assert torch.equal(mask, other.lengths[mask_key(name)])
        absent = ~one.present_BM[:, MODALITIES.index(name)]
        assert not mask[absent].any()
        assert not one.inputs[name][absent].any()
        assert mask[~absent].any(1).all()
    length = raw.lengths["text"] * raw.present_BM[:, 0]
    assert torch.equal(one.lengths[mask_key("text")].sum(1), length)
    assert torch.equal(one.labels["digit"], raw.labels["digit"])
    assert one.lengths.keys() == {mask_key(name) for name in MODALITIES}


def test_one_part_is_shared_by_runs_of_other_seeds(columns: Columns, tmp_path: Path):
    """Trained weights do not depend on the seed. Random ones do, so each seed has its features."""
    made(columns, tmp_path)
    folder = features_folder(tmp_path)
    before = parts(folder)
    made(columns, tmp_path, run="again")
    assert parts(features_folder(tmp_path)) == before
    made(columns, tmp_path, run="other", seed=1)
    assert len(list((tmp_path / "runs/grid/features").glob("*/features.json"))) == 2
    source = json.loads(before["features.json"])["source"]
    assert source["pack"] == columns.manifest.fingerprint
    assert source["modality"] == "text"


@pytest.mark.parametrize("damage", ["features.json", "train.npy", "0.part"])
def test_a_damaged_folder_is_computed_again(columns, tmp_path, damage: str, capfd):
    made(columns, tmp_path)
    folder = features_folder(tmp_path)
    before = parts(folder)
    (folder / damage).write_bytes(before[damage][:-9])
    made(columns, tmp_path, run="again")
    assert f"cached features {folder} are damaged" in capfd.readouterr().out
    assert parts(folder) == before
    assert folder.with_name(f"{folder.name}.damaged-1").is_dir()


def test_a_changed_byte_is_found_when_it_is_read(columns: Columns, tmp_path: Path):
    """The error counts as one that may pass: the next attempt computes the features again."""
    features = made(columns, tmp_path)
    folder = features_folder(tmp_path)
    content = bytearray((folder / "0.part").read_bytes())
    content[100] ^= 1
    (folder / "0.part").write_bytes(content)
    changed = store.StoredFeatures(folder)
    every = range(columns.manifest.splits["train"])
    with pytest.raises(OSError, match="differ from their hash") as error:
        changed.take("train", every)
    assert error.value.errno == errno.EIO
    assert not folder.exists()
    assert features["text"].shape.width == 32


def test_a_stopped_attempt_is_continued(columns: Columns, tmp_path: Path, monkeypatch):
    """What it has computed is kept. The result is that of an attempt that was not stopped."""
    monkeypatch.setattr(build, "ROWS", 4)
    made(columns, tmp_path / "whole")
    calls = []

    def stop_at_third(work: Any, activity: str) -> None:
        calls.append(activity)
        if len(calls) == 3:
            raise Stopped("SIGTERM")

    with monkeypatch.context() as patched:
        patched.setattr(build._Work, "pause", stop_at_third)
        with pytest.raises(Stopped):
            made(columns, tmp_path / "stopped")
    (building,) = (tmp_path / "stopped/runs/grid/features").glob("*.building-run")
    with (building / "0.rows").open("ab") as file:
        file.write(b"cut off")
    of_sample, computed = build.Computed.of_sample, []
    monkeypatch.setattr(
        build.Computed,
        "of_sample",
        lambda self, split, row: computed.append(row) or of_sample(self, split, row),
    )
    made(columns, tmp_path / "stopped")
    whole = store.StoredFeatures(features_folder(tmp_path / "whole"))
    found = store.StoredFeatures(features_folder(tmp_path / "stopped"))
    present = 0
    for split, size in columns.manifest.splits.items():
        pairs = zip(whole.take(split, range(size)), found.take(split, range(size)), strict=True)
        for (tokens, mask), (again, mask_again) in pairs:
            assert np.array_equal(tokens, again)
            assert np.array_equal(mask, mask_again)
            present += len(mask) > 0
    assert present == 24
    assert len(computed) == present - 3 * build.ROWS + 1  # one to find the width


def test_without_room_features_are_computed(columns: Columns, tmp_path: Path, monkeypatch, capfd):
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=1000))
    features = made(columns, tmp_path)
    assert not features["text"].source.is_stored
    assert "computed in each step, not stored" in capfd.readouterr().out


def test_a_full_disk_leaves_nothing(columns: Columns, tmp_path: Path, monkeypatch, capfd):
    def add(self: Any, *entry: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "0.part")

    monkeypatch.setattr(store.PartWriter, "add", add)
    features = made(columns, tmp_path)
    assert not features["text"].source.is_stored
    assert "0.part: No space left on device" in capfd.readouterr().out
    assert not list((tmp_path / "runs/grid/features").glob("*.building-*"))


def test_files_of_other_users_are_refused(columns: Columns, tmp_path: Path):
    made(columns, tmp_path)
    folder = features_folder(tmp_path)
    (folder / "0.part").chmod(0o666)
    with pytest.raises(ConfigError, match="may be written by all users"):
        made(columns, tmp_path, run="again")


def test_bfloat16_is_stored_as_it_is(columns: Columns, tmp_path: Path, monkeypatch):
    bf16 = {"deepspeed__bf16__enabled": True}
    stored = made(columns, tmp_path, **bf16)["text"].source
    monkeypatch.setenv(CACHE, "compute")
    computed = made(columns, tmp_path, **bf16)["text"].source
    rows = np.arange(12)
    tokens, mask = stored.take("val", rows)
    assert tokens.dtype == torch.bfloat16
    again, mask_again = computed.take("val", rows)
    assert torch.equal(tokens, again)
    assert torch.equal(mask, mask_again)


def test_a_trained_part_is_refused(columns: Columns, tmp_path: Path):
    """The config excludes it. An encoder of own code may train a part in spite of it."""
    model = build_model(make_config(), columns.manifest)
    encoder = model.furnace_encoders()["text"]
    with pytest.raises(ConfigError, match="embeddings.word_embeddings.weight of it is trained"):
        build.FrozenEncoder("text", encoder, CPU, torch.float32)


def test_settings_of_own_code_are_in_the_digest(columns: Columns):
    """A parameter of own code need not be a weight."""
    digests = set()
    for scale in (1.0, 2.0):
        section = CACHED | {"encoder": "study.enc:Rows", "encoder_args": {"scale": scale}}
        config = make_config(model__text=section)
        encoder = build.FrozenEncoder("text", torch.nn.Identity(), CPU, torch.float32)
        digests.add(digest_of(source_of(encoder, config, columns.manifest, CPU)))
    assert len(digests) == 2
