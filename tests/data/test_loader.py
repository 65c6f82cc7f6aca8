"""Batches: their content, each sample exactly once, and reading ahead."""

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import numpy as np
import pytest
import torch
from make import make_model

from furnace_hpc.config.manifest import Labels, Statistics
from furnace_hpc.data.columns import open_columns, write_columns
from furnace_hpc.data.loading.batches import Batch, BatchReader, CopyStream
from furnace_hpc.data.loading.prefetch import BatchPrefetcher, BatchRequest, TrainBatches
from furnace_hpc.data.loading.sampler import drawn_frames
from furnace_hpc.engine.evaluation import rank_shares
from furnace_hpc.engine.ranks.distributed import Processes

N, FRAMES = 23, 5
CPU = torch.device("cpu")


def write_set(folder: Path, *, num_samples: int = N, frames: int | None = None) -> Path:
    """A set in which every value encodes its sample and frame."""
    row = np.arange(num_samples)
    pixels = row.reshape(-1, 1, 1, 1, 1) * 10 + np.arange(frames or 1).reshape(1, -1, 1, 1, 1)
    image = np.broadcast_to(pixels, (num_samples, frames or 1, 3, 2, 4)).astype(np.uint8)
    text = np.zeros((num_samples, 30), np.int32)
    lengths = row % 20 + 1
    for sample in row:
        text[sample, : lengths[sample]] = sample + 1
    columns = {
        "sample_id": np.array([f"-{sample:03}" for sample in row]),
        "image": image if frames else image[:, 0],
        "text": text,
        "text_length": lengths.astype(np.int16),
        "present": np.stack([row % 2, np.ones_like(row)], axis=1).astype(np.uint8),
        "label.one": (row % 3).astype(np.int16),
        "label.many": np.stack([row % 2, row % 3 == 0], axis=1).astype(np.uint8),
    }
    manifest = write_columns(
        folder,
        splits={"train": columns},
        dataset="small",
        modalities=("text", "image"),
        labels={
            "one": Labels(kind="single_label", classes=("a", "b", "c")),
            "many": Labels(kind="multi_label", classes=("x", "y")),
        },
        statistics={"image": Statistics(mean=(0.0, 1.0, 2.0), std=(1.0, 2.0, 4.0))},
        vocab_size=200,
        preprocessing={},
    )
    with_frames = manifest.model_copy(update={"image_frames": frames})
    (folder / "manifest.json").write_text(with_frames.model_dump_json())
    return folder


def reader_of(folder: Path, modalities=("text", "image"), tasks=("one", "many")) -> BatchReader:
    return BatchReader(open_columns(folder), "train", modalities, tasks, CPU)


def train_batches(
    reader: BatchReader, rank: int = 0, world_size: int = 1, **changes
) -> TrainBatches:
    sizes = {"seed": 4, "steps": 40, "global_batch_size": 12, "micro_batch_size": 2} | changes
    return TrainBatches(reader, rank=rank, world_size=world_size, **sizes)


def prefetching() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("prefetch")]


def equal(a: Batch, b: Batch) -> bool:
    tensors = [(a.present_BM, b.present_BM)]
    for one, other in ((a.inputs, b.inputs), (a.lengths, b.lengths), (a.labels, b.labels)):
        assert one.keys() == other.keys()
        tensors += [(one[name], other[name]) for name in one]
    return np.array_equal(a.rows, b.rows) and all(torch.equal(x, y) for x, y in tensors)


# --- what a batch holds ---


def test_a_batch_has_standardised_values_and_labels(tmp_path):
    reader = reader_of(write_set(tmp_path / "set"))
    rows = np.array([4, 21, 4, 0])
    batch = reader.read(rows)
    assert batch.rows.tolist() == [4, 21, 4, 0]
    assert reader.column("sample_id")[batch.rows].tolist() == ["-004", "-021", "-004", "-000"]
    for channel, (mean, std) in enumerate([(0, 1), (1, 2), (2, 4)]):
        expected = torch.tensor([(value - mean) / std for value in (40.0, 210.0, 40.0, 0.0)])
        assert torch.equal(batch.inputs["image"][:, channel, 1, 3], expected)
    assert batch.inputs["image"].shape == (4, 3, 2, 4)
    assert batch.inputs["text"].dtype == batch.lengths["text"].dtype == torch.int64
    assert batch.lengths["text"].tolist() == [5, 2, 5, 1]
    assert batch.present_BM.tolist() == [[False, True], [True, True], [False, True], [False, True]]
    assert (batch.labels["one"].dtype, batch.labels["one"].tolist()) == (torch.int64, [1, 0, 1, 0])
    assert (batch.labels["many"].dtype, batch.labels["many"].tolist()) == (
        torch.float32,
        [[0.0, 0.0], [1.0, 1.0], [0.0, 0.0], [0.0, 1.0]],
    )


def test_presence_has_the_order_of_the_modalities(tmp_path):
    batch = reader_of(write_set(tmp_path / "set"), ("image", "text")).read(np.array([4]))
    assert batch.present_BM.tolist() == [[True, False]]
    alone = reader_of(write_set(tmp_path / "set"), ("image",)).read(np.array([4]))
    assert (set(alone.inputs), set(alone.lengths), alone.present_BM.tolist()) == (
        {"image"},
        set(),
        [[True]],
    )


def test_a_batch_is_not_overwritten_by_later_ones(tmp_path):
    reader = reader_of(write_set(tmp_path / "set"))
    first = reader.read(np.array([1, 2, 3]))
    kept = reader.read(np.array([1, 2, 3]))
    for row in range(10):
        reader.read(np.array([row, row + 1, row + 2]))
    assert equal(first, kept)


@pytest.mark.parametrize("rows", [[-1], [N], [0, 99]])
def test_a_missing_sample_is_an_error(tmp_path, rows):
    with pytest.raises(IndexError, match=r"requested, wanted 0 to 22"):
        reader_of(write_set(tmp_path / "set")).read(np.array(rows))


# --- text is cut to what the batch needs ---


@pytest.mark.parametrize(("rows", "tokens"), [([0], 8), ([7], 8), ([8], 16), ([3, 19, 0], 24)])
def test_text_is_cut_to_a_multiple_of_8(tmp_path, rows, tokens):
    text = reader_of(write_set(tmp_path / "set")).read(np.array(rows)).inputs["text"]
    assert text.shape == (len(rows), tokens)
    assert [(row != 0).sum().item() for row in text] == [row % 20 + 1 for row in rows]


@pytest.mark.slow
def test_text_is_not_longer_than_its_column(small_data):
    reader = BatchReader(open_columns(small_data), "train", ("text",), ("digit",), CPU)
    assert reader.read(np.arange(100)).inputs["text"].shape == (100, 15)


def test_cutting_text_changes_logits_by_rounding(small_data):
    reader = BatchReader(open_columns(small_data), "train", ("text",), ("digit",), CPU)
    short = np.flatnonzero(reader.column("text_length") <= 8)
    batch = reader.read(short)
    assert batch.inputs["text"].shape == (len(short), 8)
    whole = {"text": torch.from_numpy(reader.column("text")[short].astype(np.int64))}
    model = make_model(modalities=("text",), text_layers=2)
    model.encoders["text"].bert.resize_token_embeddings(100)
    with torch.no_grad():
        cut = model(batch.inputs, batch.lengths, batch.present_BM)["logits"]["digit"]
        uncut = model(whole, batch.lengths, batch.present_BM)["logits"]["digit"]
    torch.testing.assert_close(cut, uncut, rtol=1e-5, atol=1e-5)


# --- frames ---


def test_a_clip_has_its_middle_or_a_drawn_frame(tmp_path):
    reader = reader_of(write_set(tmp_path / "clips", frames=FRAMES))
    rows = np.array([3, 22])
    assert reader.read(rows).inputs["image"][:, 0, 0, 0].tolist() == [32, 222]
    assert reader.read(rows, np.array([4, 0])).inputs["image"][:, 0, 0, 0].tolist() == [34, 220]


def test_training_draws_one_frame_per_epoch(tmp_path):
    reader = reader_of(write_set(tmp_path / "clips", frames=FRAMES))
    shown: dict[tuple[int, int], int] = {}
    for world_size in (1, 3):
        for rank in range(world_size):
            with train_batches(reader, rank, world_size) as batches:
                for step in range(8):
                    for number, batch in enumerate(batches.of_step(step)):
                        pixels = batch.inputs["image"][:, 0, 0, 0]
                        for place, (row, pixel) in enumerate(zip(batch.rows, pixels, strict=True)):
                            position = step * 12 + (number * world_size + rank) * 2 + place
                            frame = int(pixel) - 10 * int(row)
                            assert shown.setdefault((position // N, int(row)), frame) == frame
    assert set(shown.values()) == set(range(FRAMES))
    changed = [shown[0, row] != shown[1, row] for row in range(N)]
    assert sum(changed) > N // 2


def test_frames_are_drawn_evenly_and_reproducibly():
    samples = np.arange(100_000)
    counts = np.bincount(drawn_frames(10, 7, samples // 1000, samples), minlength=10)
    assert counts.min() > 9_600
    assert drawn_frames(10, 7, np.zeros(8, np.int64), np.arange(8)).tolist() == PINNED
    assert drawn_frames(10, 8, np.zeros(8, np.int64), np.arange(8)).tolist() != PINNED


PINNED = [1, 7, 7, 2, 3, 1, 3, 2]


# --- exactly once ---


@pytest.mark.parametrize("world_size", [1, 2, 3, 4])
@pytest.mark.parametrize("micro_batch_size", [1, 2])
def test_an_epoch_has_every_sample_once_after_resume(small_data, world_size, micro_batch_size):
    """An epoch is 10 steps of 24 samples. New readers continue after each step."""
    reader = BatchReader(open_columns(small_data), "train", ("text",), ("digit",), CPU)
    sizes = {"global_batch_size": 24, "micro_batch_size": micro_batch_size, "steps": 20}

    def taken(first: int, last: int) -> list[list[int]]:
        """Rows of each step, all ranks together."""
        steps: list[list[int]] = [[] for _ in range(first, last)]
        for rank in range(world_size):
            with train_batches(reader, rank, world_size, **sizes) as batches:
                for step in range(first, last):
                    steps[step - first] += [
                        row for batch in batches.of_step(step) for row in batch.rows.tolist()
                    ]
        return steps

    whole = taken(0, 20)
    for epoch in (0, 10):
        assert sorted(row for step in whole[epoch : epoch + 10] for row in step) == list(range(240))
    for cut in range(1, 20):
        again = taken(cut, min(cut + 2, 20))
        assert again == whole[cut : cut + 2]


@pytest.mark.parametrize("world_size", [1, 2, 3, 4])
@pytest.mark.parametrize(
    ("num_samples", "batch_size"), [(23, 4), (24, 4), (3, 8), (1, 1), (97, 256)]
)
def test_evaluation_takes_every_sample_once(num_samples, batch_size, world_size):
    own: list[int] = []
    numbers = set()
    for rank in range(world_size):
        shares = rank_shares(num_samples, batch_size, Processes(rank, rank, world_size, CPU))
        numbers.add(tuple(len(indices) for indices, _ in shares))
        own += [row for indices, count in shares for row in indices[:count].tolist()]
    assert sorted(own) == list(range(num_samples))
    assert len(numbers) == 1, "every rank makes the same forward passes"


# --- reading ahead ---


def test_prefetched_batches_equal_plain_ones(small_data):
    reader = BatchReader(
        open_columns(small_data), "train", ("text", "image", "audio"), ("digit",), CPU
    )
    rows = [np.random.default_rng(k).permutation(240)[: 5 + k] for k in range(12)]
    plain = [reader.read(r) for r in rows]
    with BatchPrefetcher(reader, [BatchRequest(r) for r in rows]) as batches:
        ahead = list(batches)
    assert len(ahead) == 12
    assert all(equal(a, b) for a, b in zip(ahead, plain, strict=True))
    assert prefetching() == []


def test_steps_in_any_order(small_data):
    reader = BatchReader(open_columns(small_data), "train", ("text",), ("digit",), CPU)
    with train_batches(reader) as batches:
        first = {
            step: [b.rows.tolist() for b in batches.of_step(step)] for step in (3, 4, 17, 0, 39)
        }
    with train_batches(reader) as batches:
        next(batches.of_step(4))  # the step is not finished
        assert [b.rows.tolist() for b in batches.of_step(4)] == first[4]
        assert len(prefetching()) == 1
    assert prefetching() == []


def test_an_error_in_the_thread_is_raised_in_the_loop(small_data):
    """No batch is skipped."""
    reader = BatchReader(open_columns(small_data), "train", ("text",), ("digit",), CPU)
    requests = [BatchRequest(np.array([row])) for row in (0, 1, 999, 3)]
    with BatchPrefetcher(reader, requests) as batches:
        assert [next(batches).rows.tolist() for _ in range(2)] == [[0], [1]]
        for _ in range(2):
            with pytest.raises(IndexError, match="999"):
                next(batches)
    assert prefetching() == []


def test_the_thread_ends_with_the_loop(small_data):
    reader = BatchReader(open_columns(small_data), "train", ("text",), ("digit",), CPU)
    with suppress(ZeroDivisionError), train_batches(reader) as batches:
        next(batches.of_step(0))
        assert len(prefetching()) == 1
        raise ZeroDivisionError
    assert prefetching() == []


def test_only_a_few_batches_are_read_ahead(small_data):
    asked = []

    def requests():
        for row in range(100):
            asked.append(row)
            yield BatchRequest(np.array([row]))

    reader = BatchReader(open_columns(small_data), "train", ("text",), ("digit",), CPU)
    with BatchPrefetcher(reader, requests(), depth=3) as batches:
        next(batches)
        deadline_s = time.monotonic() + 5
        while len(asked) < 4 and time.monotonic() < deadline_s:
            time.sleep(0.01)
        time.sleep(0.05)
        assert asked == [0, 1, 2, 3]


def test_complete_modalities(tmp_path: Path):
    """Samples of odd rows have text. That of row 7 has 8 tokens, which is the cut length."""
    reader = BatchReader(open_columns(write_set(tmp_path)), "train", ("text", "image"), (), CPU)
    both, image = frozenset(("text", "image")), frozenset(("image",))
    assert reader.read(np.array([7, 7])).complete == both
    assert reader.read(np.array([7, 5])).complete == image, "text of 6 tokens is padded"
    assert reader.read(np.array([7, 6])).complete == image, "row 6 has no text"
    assert reader.read(np.array([], np.int64)).complete == frozenset()


class FakeStream:
    """A stream of a GPU that writes down what is done in it."""

    def __init__(self, name: str, log: list[str]) -> None:
        self.name, self._log = name, log

    def wait_stream(self, other: "FakeStream") -> None:
        self._log.append(f"{self.name} waits for {other.name}")


def test_copies_have_a_stream_of_their_own(monkeypatch: pytest.MonkeyPatch):
    """Without a GPU: the order of the calls. Only contiguous memory is copied without a wait."""
    log: list[str] = []
    copying, current = FakeStream("copies", log), FakeStream("compute", log)

    @contextmanager
    def stream(entered: FakeStream) -> Iterator[None]:
        log.append(f"enter {entered.name}")
        yield
        log.append("leave")

    class Column:
        def to(self, device: torch.device, non_blocking: bool) -> "Column":
            log.append(f"copy to {device}, non_blocking={non_blocking}")
            return self

        def record_stream(self, used_by: FakeStream) -> None:
            log.append(f"used by {used_by.name}")

    monkeypatch.setattr(torch.cuda, "Stream", lambda device: copying)
    monkeypatch.setattr(torch.cuda, "stream", stream)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: current)
    CopyStream(torch.device("cuda", 1)).to_device({"text": Column()})
    assert log == [
        "enter copies",
        "copy to cuda:1, non_blocking=True",
        "leave",
        "compute waits for copies",
        "used by compute",
    ]


def test_cut_text_for_a_gpu_is_in_one_piece(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """A copy from other memory would go through memory that is not page-locked."""
    reader = BatchReader(open_columns(write_set(tmp_path)), "train", ("text", "image"), (), CPU)
    rows = np.array([3, 1, 6])
    on_cpu = reader.gather(rows).columns
    assert not on_cpu["text"].is_contiguous()
    empty = torch.empty
    monkeypatch.setattr(reader, "device", torch.device("cuda"))
    monkeypatch.setattr(torch, "empty", lambda *a, pin_memory=False, **k: empty(*a, **k))
    for_gpu = reader.gather(rows).columns
    assert all(column.is_contiguous() for column in for_gpu.values())
    assert all(torch.equal(on_cpu[name], column) for name, column in for_gpu.items())
