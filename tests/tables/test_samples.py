"""Differences over samples, against hand-worked numbers and a plain bootstrap."""

import io
import math
import os
import re
import resource
import struct
import zipfile
from collections.abc import Callable
from contextlib import suppress

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tables_study import accuracy_of, finish, study

from furnace_hpc.config.errors import ConfigError
from furnace_hpc.runs.folder import GridFolder
from furnace_hpc.runs.records.predictions import read_arrays
from furnace_hpc.tables.collect import collect
from furnace_hpc.tables.notes import sample_notes
from furnace_hpc.tables.reading.resolution import resolution_of
from furnace_hpc.tables.reading.samples import compare_samples
from furnace_hpc.tables.statistics.bootstrap import bootstrap


def as_bools(text):
    return np.array([letter == "1" for letter in text])


def test_one_pair_of_networks_worked_by_hand():
    # b = 3 samples that the first alone gets right, c = 1 that the second alone does: (3 - 1) / 8
    mean, interval = bootstrap([(as_bools("11110011"), as_bools("10000111"))])
    assert mean == 0.25
    # n times the mean of a draw is B - C, with (B, C) multinomial (8; 3/8, 1/8): its exact 2.5 %
    # and 97.5 % quantiles
    exact = {}
    for b in range(9):
        for c in range(9 - b):
            ways = math.factorial(8) / (
                math.factorial(b) * math.factorial(c) * math.factorial(8 - b - c)
            )
            exact[b - c] = exact.get(b - c, 0) + ways * 3**b * 1**c * 4 ** (8 - b - c) / 8**8
    assert sum(exact.values()) == pytest.approx(1)
    below = np.cumsum([exact[key] for key in sorted(exact)])
    low, high = (sorted(exact)[int(np.searchsorted(below, q))] / 8 for q in (0.025, 0.975))
    assert interval == (low, high) == (-0.25, 0.75)


def test_several_pairs_agree_with_a_plain_bootstrap():
    rng = np.random.default_rng(7)
    pairs = [(rng.random(400) < 0.8, rng.random(400) < 0.7) for _ in range(3)]
    mean, (low, high) = bootstrap(pairs)
    difference_N = np.mean([one.astype(float) - other for one, other in pairs], axis=0)
    plain = [difference_N[rng.integers(0, 400, 400)].mean() for _ in range(10_000)]
    assert mean == pytest.approx(difference_N.mean())
    assert (low, high) == pytest.approx(np.quantile(plain, [0.025, 0.975]), abs=0.003)
    assert bootstrap(pairs) == (mean, (low, high))  # the same each time


def test_equal_networks_differ_by_nothing():
    assert bootstrap([(as_bools("1010"), as_bools("1010"))] * 2) == (0.0, (0.0, 0.0))


def predict(run, right_N, ids_N=None):
    run.predictions("test").parent.mkdir()
    label_N = np.arange(len(right_N)) % 3
    answer_N = np.where(right_N, label_N, (label_N + 1) % 3)
    if ids_N is None:
        ids_N = np.arange(len(right_N))
    arrays = {"logits.digit": np.eye(3)[answer_N], "label.digit": label_N, "sample_id": ids_N}
    np.savez(run.predictions("test"), **arrays)


def test_resolution_is_one_sample(tmp_path):
    """It comes from the result if N is there, else from predictions, else it is unknown."""
    grid, runs = study(seeds=[0, 1])
    folder = GridFolder(tmp_path)
    for spec in runs:
        finish(spec, folder)
    shown = collect(grid, runs, folder).runs
    name = "test/digit/accuracy"
    assert resolution_of(name, shown) == 0
    predict(folder.run(runs[0].run_id), as_bools("1011"))
    predictions = folder.run(runs[0].run_id).predictions("test")
    assert resolution_of(name, shown) == 1 / 4
    assert resolution_of("test/digit/loss", shown) == 0
    assert resolution_of(f"{name}@text", shown) == 0
    predictions.write_bytes(predictions.read_bytes()[:300])
    assert resolution_of(name, shown) == 0
    scores = {name: 0.8, "test/digit/samples@text": 90, "test/digit/samples@text+image": 100}
    finish(runs[1], folder, metrics=scores)
    shown = collect(grid, runs, folder).runs
    assert resolution_of(name, shown) == 1 / 100
    assert resolution_of(f"{name}@text", shown) == 1 / 90


def test_equal_differences_have_a_wide_interval(tmp_path):
    """Both seeds gain one of 1,000 samples: p = .39, and no star."""
    grid, runs = study(seeds=[0, 1])
    folder = GridFolder(tmp_path)
    for spec in runs:
        accuracy = 0.801 if spec.variant == "full" else 0.8
        scores = {"test/digit/accuracy": accuracy, "test/digit/samples@text": 1000}
        finish(spec, folder, metrics=scores)
    full = collect(grid, runs, folder).rows[3]
    assert full.difference.t_p == pytest.approx(0.3918, abs=1e-4)
    half = 12.7062 * 0.001 / math.sqrt(2)
    assert full.difference.interval == pytest.approx((0.001 - half, 0.001 + half), abs=1e-7)


def test_notes_on_samples(tmp_path):
    """One note has the differences, the other what could not be compared."""
    grid, runs = study(seeds=[0, 1])
    folder = GridFolder(tmp_path)
    for spec in runs:
        run = finish(spec, folder)
        right_N = np.arange(10_000) < round(10_000 * accuracy_of(spec))
        match spec.variant, spec.config.seed:
            case "consistency_only", 1:
                continue
            case "specific_only", 0:
                predict(run, right_N[::-1][:5000])  # not those of its result
            case "specific_only", 1:
                predict(run, right_N, np.arange(10_000)[::-1])
            case "full", 0:
                predict(run, right_N)
                run.predictions("test").write_bytes(run.predictions("test").read_bytes()[:3000])
            case _:
                predict(run, right_N)
    ablation = collect(grid, runs, folder)
    first, second = sample_notes(ablation, compare_samples(ablation))
    # only nested right answers: base 80.0 %, consistency_only 82.0 %, so 200 of 10,000 samples
    # differ
    assert first.text.startswith(
        "difference to base (points) over samples: consistency_only +2.00 [1.73, 2.28] (1 pair of"
    )
    assert "full +" in first.text
    assert "specific_only" not in first.text
    assert "percentile interval, not corrected for the number of rows" in first.text
    assert "It holds for these trained networks, not for other seeds" in first.text
    for words in (
        "consistency_only-s1-.{8} has no predictions of test",
        "the predictions of specific_only-s0-.{8} do not give its result",
        "the predictions of full-s0-.{8} cannot be read",
        "specific_only was tested on other samples than base",
    ):
        assert re.search(words, second.text), words


def test_samples_need_a_mean_over_samples(tmp_path):
    grid, runs = study(metric="test/digit/loss")
    finish(runs[0], GridFolder(tmp_path))
    with pytest.raises(
        ConfigError,
        match="--samples: test/digit/loss is not a mean over samples. Use --metric test/d",
    ):
        compare_samples(collect(grid, runs, GridFolder(tmp_path)))


# Damaged and hostile files


def npy(shape, descr="<f8", data=b"") -> bytes:
    text = f"{{'descr': {descr!r}, 'fortran_order': False, 'shape': {shape!r}}}\n".encode()
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text + data


def npz(members: dict[str, bytes], compression=zipfile.ZIP_STORED) -> bytes:
    with zipfile.ZipFile(buffer := io.BytesIO(), "w", compression) as file:
        for name, content in members.items():
            file.writestr(name, content)
    return buffer.getvalue()


def with_size(content: bytes, size: int) -> bytes:
    """The file with both sizes of its one member replaced in the central directory."""
    at = content.rindex(b"PK\x01\x02")
    return content[: at + 20] + struct.pack("<II", size, size) + content[at + 28 :]


KINDS: dict[str, tuple[Callable[[], bytes], str]] = {
    "4e9 values": (
        lambda: npz({"x.npy": npy((4_000_000_000,))}),
        "x claims 32,000,000,000 bytes",
    ),
    "4e9 in the zip too": (
        lambda: with_size(npz({"x.npy": npy((200_000_000,))}), 1_600_000_000),
        "can be read|Overlap|EOF|Bad",
    ),
    "no npy": (lambda: npz({"x.npy": b"hello"}), "magic|EOF|not"),
    "another name": (lambda: npz({"y.npy": npy((0,))}), "no array 'x'"),
    "a bomb": (
        lambda: npz({"x.npy": npy((10_000_000,), data=bytes(80_000_000))}, zipfile.ZIP_DEFLATED),
        "compressed",
    ),
    "objects": (
        lambda: npz({"x.npy": npy((1,), "|O", b"cos\nsystem\n(S'true'\ntR.")}),
        "not an array of numbers",
    ),
    "text": (lambda: npz({"x.npy": npy((1,), "<U1", b"abcd")}), "not an array of numbers"),
    "negative": (lambda: npz({"x.npy": npy((-1,))}), "not an array of numbers"),
    "too short": (lambda: npz({"x.npy": npy((2,), data=bytes(8))}), "claims 16 bytes, and 8 can"),
    "nested": (lambda: npz({"x.npy": npy(()).replace(b"()", b"(" * 5000)}), "."),
    "a list without end": (
        lambda: npz({f"{number}.npy": b"" for number in range(40_000)}),
        "too many members",
    ),
    "cut": (lambda: npz({"x.npy": npy((1,), data=bytes(8))})[:-5], "not an .npz file"),
    "empty": (lambda: b"", "not an .npz file"),
    "a plain npy": (lambda: npy((100,), data=bytes(800)), "not an .npz file"),
    "a wrong sum": (
        lambda: npz({"x.npy": npy((1,), data=bytes(8))}).replace(bytes(8), b"11111111", 1),
        "CRC",
    ),
}


@pytest.mark.parametrize("kind", KINDS)
def test_a_wrong_size_is_refused(tmp_path, kind):
    """The file is refused before memory is allocated."""
    make, words = KINDS[kind]
    (tmp_path / "a.npz").write_bytes(make())
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(ConfigError, match=words):
        read_arrays(tmp_path / "a.npz", ["x"])
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100_000, "KiB"


def test_predictions_must_be_a_regular_file(tmp_path):
    os.mkfifo(tmp_path / "fifo")
    with pytest.raises(ConfigError, match="not a regular file"):
        read_arrays(tmp_path / "fifo", ["x"])
    with pytest.raises(ConfigError):
        read_arrays(tmp_path, ["x"])
    with pytest.raises(FileNotFoundError):
        read_arrays(tmp_path / "none", ["x"])


def test_arrays_of_numpy_are_read_exactly(tmp_path):
    rng = np.random.default_rng(0)
    arrays = {
        "a": rng.normal(size=(5, 3)).astype(np.float32),
        "b": np.asfortranarray(rng.normal(size=(4, 2))),
        "c": np.arange(7, dtype=">i8"),
        "d": np.zeros((0,), np.int64),
    }
    np.savez(tmp_path / "a.npz", **arrays)
    for made, array in zip(
        read_arrays(tmp_path / "a.npz", list(arrays)), arrays.values(), strict=True
    ):
        assert made.shape == array.shape
        assert made.dtype.isnative
        np.testing.assert_array_equal(made, array)


@pytest.mark.fuzz
@given(st.data())
def test_damaged_predictions_raise_one_error(tmp_path_factory, data):
    whole = npz({"x.npy": npy((3,), data=bytes(range(24))), "y.npy": npy((2, 2), "<i4", bytes(16))})
    content = bytearray(whole)
    for _ in range(data.draw(st.integers(0, 6))):
        at = data.draw(st.integers(0, len(content) - 1))
        content[at] = data.draw(st.integers(0, 255))
    cut = data.draw(st.integers(0, len(content)) | st.just(len(content)))
    path = tmp_path_factory.mktemp("npz") / "a.npz"
    path.write_bytes(bytes(content[:cut]) + data.draw(st.binary(max_size=30) | st.just(b"")))
    with suppress(ConfigError):
        assert sum(array.nbytes for array in read_arrays(path, ["x", "y"])) <= len(whole)


def test_unreadable_predictions_exclude_one_run(tmp_path):
    grid, runs = study(seeds=[0, 1])
    folder = GridFolder(tmp_path)
    for spec in runs:
        predict(finish(spec, folder), np.arange(10_000) < round(10_000 * accuracy_of(spec)))
    names = [folder.run(spec.run_id).predictions("test") for spec in runs if spec.variant == "full"]
    for path, kind in zip(names, ("4e9 values", "no npy"), strict=True):
        path.write_bytes(KINDS[kind][0]())
    ablation = collect(grid, runs, folder)
    first, second = sample_notes(ablation, compare_samples(ablation))
    assert "full" not in first.text
    assert len(re.findall("the predictions of full-s[01]-.{8} cannot be read", second.text)) == 2
