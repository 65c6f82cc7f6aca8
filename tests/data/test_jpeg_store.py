"""Images stored as JPEG: bytes, values, resuming, staging, damage, prediction."""

import io
import json

import numpy as np
import polars as pl
import pytest
import torch
from photo_plan import BLANK, SPLITS, photo, plan
from PIL import Image
from raw_sets import VOCAB, write_mmimdb, write_vocab
from table_files import sentence

from furnace_hpc import pack
from furnace_hpc.config.errors import ConfigError
from furnace_hpc.config.manifest import Column, JpegStore, check_files
from furnace_hpc.data.columns import open_columns
from furnace_hpc.data.decode.images import ImageKnobs, read_image
from furnace_hpc.data.jpeg_images import JpegColumn, decode, encode
from furnace_hpc.data.loading.batches import BatchReader
from furnace_hpc.data.loading.staging import stage
from furnace_hpc.data.packing.pack import pack_files
from furnace_hpc.data.packing.rendering import Chunk, Renderer, _render_chunk
from furnace_hpc.data.packing.sample import Draft
from furnace_hpc.inference.preprocess import Preprocessor

CPU = torch.device("cpu")


def ignore(what: str, done: int, total: int) -> None:
    pass


def packed(out, report=ignore, workers=1):
    pack_files(plan(), out, report, workers=workers, max_refused=0.05, force=False)
    return open_columns(out, verify=True)


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    out = tmp_path_factory.mktemp("jpeg") / "photos"
    packed(out)
    return out


def contents(folder):
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def test_pixels_are_those_of_pillow(photos):
    """The middle of each JPEG file, and black where there is no image."""
    columns = open_columns(photos)
    described = columns.manifest.columns["image"]
    assert described.shape == (3, 28, 28)
    assert described.jpeg == JpegStore(size=28, stored_size=32, quality=85, subsampling="4:2:0")
    found = columns.split("val")
    for row, number in enumerate(SPLITS["val"]):
        if number % 7 == 0:
            assert not found["image"][row].any()
            continue
        file = io.BytesIO()
        image = Image.fromarray(np.ascontiguousarray(photo(number).transpose(1, 2, 0)))
        image.save(file, "JPEG", quality=85, subsampling="4:2:0")
        expected = np.asarray(Image.open(file)).transpose(2, 0, 1)[:, 2:30, 2:30]
        np.testing.assert_array_equal(found["image"][row], expected)
    with pytest.raises(IndexError, match="sample 12"):
        found["image"][12]


def test_statistics_are_those_of_the_loader(photos):
    """Mean and deviation are of decoded pixels of present images."""
    columns = open_columns(photos)
    train = columns.split("train")
    present = np.flatnonzero(train["present"][:, 1])
    pixels = np.stack([train["image"][row] for row in present]).astype(np.float64)
    statistics = columns.manifest.statistics["image"]
    np.testing.assert_allclose(statistics.mean, pixels.mean((0, 2, 3)))
    np.testing.assert_allclose(statistics.std, pixels.std((0, 2, 3)))


def test_workers_and_stops_change_no_byte(photos, tmp_path):
    """The pack stops after each recorded chunk. Bytes are appended, as a kill may leave them."""
    out, stops = tmp_path / "photos", 0

    class Killed(BaseException):
        pass

    def stop_at_next(what, done, total):
        if what == "samples" and done > seen:
            raise Killed

    while True:
        folder = tmp_path / "photos.packing"
        seen = 0
        if folder.exists():
            seen = sum(json.loads((folder / "progress.json").read_text())["rows"].values())
        try:
            packed(out, stop_at_next, workers=2)
            break
        except Killed:
            stops += 1
            for path in (folder / "columns").glob("*/image*"):
                with path.open("ab") as file:
                    file.write(b"torn")
    assert stops == 5 + 2 + 1
    assert contents(out) == contents(photos)


def test_values_do_not_depend_on_threads(photos):
    column = open_columns(photos).split("train")["image"]
    rows = np.array([5, 39, 0, 5, 17, 1])
    boxes = [(0.1, 0.2, 0.5, 0.7)] * len(rows)
    for chosen in (None, boxes):
        results = []
        for threads in (1, 2, 7, None):
            out = np.empty((len(rows), 3, 28, 28), np.uint8)
            column.take(rows, out, chosen, threads)
            results.append(out)
        for other in results[1:]:
            np.testing.assert_array_equal(other, results[0])
        assert (results[0][0] == results[0][3]).all()
        assert (results[0][0] != results[0][1]).any()


def test_batches_have_decoded_images(photos):
    """The loader gives standardised pixels of the requested samples, in their order."""
    columns = open_columns(photos)
    reader = BatchReader(columns, "train", ("text", "image"), ("odd",), CPU)
    rows = np.array([3, 8, 3])
    batch = reader.read(rows)
    statistics = columns.manifest.statistics["image"]
    for place, row in enumerate(rows):
        pixels = torch.from_numpy(columns.split("train")["image"][int(row)]).float()
        mean, std = (torch.tensor(v).view(3, 1, 1) for v in (statistics.mean, statistics.std))
        torch.testing.assert_close(batch.inputs["image"][place], (pixels - mean) / std)


def test_a_clip_has_all_its_frames(tmp_path):
    """Frames are stored one after the other, and a sample has F of them."""
    frames = np.stack([[photo(10 * n + f) for f in range(3)] for n in range(4)])
    blank = BLANK | {"image": np.zeros((3, 3, 32, 32), np.uint8)}

    def render_clip(split, number):
        draft = Draft.begin(split, f"s{number}", ("text", "image"), blank)
        draft.add("image", "", lambda: {"image": frames[number]})
        draft.label("odd", np.array(number % 2))
        return draft.finish()

    class Watch:
        def begin(self, number, crashed):
            pass

    store = JpegStore(size=28, stored_size=32)
    renderer = Renderer(render_clip, blank, ("text", "image"), jpeg=store)
    made = _render_chunk(Chunk("train", 0, range(4)), renderer, Watch())
    ends = made.columns["image_end"]
    assert ends.shape == (4, 3)
    assert ends[-1, -1] == len(made.jpeg)
    start = int(ends[1, 0])
    file = made.jpeg[start : int(ends[1, 1])]
    assert file == encode(frames[1, 1], store)
    assert made.moments["image"].count == 12 * 28 * 28
    path = tmp_path / "image.jpeg"
    path.write_bytes(made.jpeg)
    described = Column(dtype="uint8", shape=(3, 3, 28, 28), jpeg=store)
    column = JpegColumn(path, ends, described)
    assert column[2].shape == (3, 3, 28, 28)
    out = np.empty((1, 3, 28, 28), np.uint8)
    column.take(np.array([2 * 3 + 1]), out)
    np.testing.assert_array_equal(out[0], column[2][1])
    np.testing.assert_array_equal(out[0], decode(encode(frames[2, 1], store), store))


def test_a_copy_on_the_node_is_the_same(photos, tmp_path):
    columns = open_columns(photos)
    copied, message = stage(columns, str(tmp_path))
    assert "this node's copy" in message
    assert contents(copied.folder) == {
        name: content for name, content in contents(photos).items() if name != "refused.jsonl"
    }


def test_damage_is_found(photos, tmp_path):
    """Changed bytes fail --verify, a damaged image fails in training, a cut file at once."""
    damaged = tmp_path / "photos"
    for name, content in contents(photos).items():
        path = damaged / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    blob = damaged / "train" / "image.jpeg"
    content = blob.read_bytes()
    first = int(open_columns(photos).split("train")["image_end"][1])
    blob.write_bytes(content[: first + 20] + bytes(300) + content[first + 320 :])
    with pytest.raises(ConfigError, match=r"image\.jpeg holds content hash .* pack the data set"):
        open_columns(damaged, verify=True)
    reader = BatchReader(open_columns(damaged), "train", ("image",), ("odd",), CPU)
    with pytest.raises(ConfigError, match=rf"image\.jpeg has a damaged image at byte {first:,}"):
        reader.gather(np.array([1, 2, 3]))
    blob.write_bytes(content[:-1])
    with pytest.raises(ConfigError, match=r"image\.jpeg holds [\d]+ bytes"):
        open_columns(damaged)
    with pytest.raises(ConfigError, match=r"image\.jpeg has [\d,]+ bytes, the manifest says"):
        check_files(damaged, open_columns(photos).manifest)


# --- the command ---


@pytest.fixture(scope="module")
def table(tmp_path_factory):
    folder = tmp_path_factory.mktemp("table")
    for number in range(30):
        image = Image.fromarray(np.ascontiguousarray(photo(number, 80).transpose(1, 2, 0)))
        image.save(folder / f"{number}.png")
    rows = {
        "text": [sentence(number, "x") for number in range(30)],
        "file": [f"{number}.png" for number in range(30)],
        "kind": ["even", "odd"] * 15,
    }
    pl.DataFrame(rows).write_csv(folder / "rows.csv")
    return folder


def run(table, out, *options):
    arguments = ["table", "--source", table / "rows.csv", "--text", "text", "--image", "file"]
    arguments += ["--label", "kind", "--id", "file", "--split", "60/20/20", "--out", out]
    arguments += ["--workers", 1, "--verify", *options]
    pack.main(args=list(map(str, arguments)), standalone_mode=False)
    return open_columns(out)


def test_the_command_stores_jpeg(table, tmp_path):
    """Prediction from a file has the pixels of the pack, bit for bit."""
    options = ("--image-size", 48, "--image-store", "jpeg", "--image-stored-size", 56)
    columns = run(table, tmp_path / "photos", *options)
    manifest = columns.manifest
    store = manifest.columns["image"].jpeg
    assert (store.size, store.stored_size) == (48, 56)
    assert manifest.preprocessing["image_store"] == store.model_dump()
    found = columns.split("test")
    reader = Preprocessor(manifest, None)
    assert reader.blank("image")["image"].shape == (3, 48, 48)
    for row, name in enumerate(found["source_id"]):
        path = table / name.decode()
        pixels = decode(encode(read_image(path, ImageKnobs(size=56)), store), store)
        np.testing.assert_array_equal(found["image"][row], pixels)
        np.testing.assert_array_equal(reader.read("image", path)["image"], pixels)


def test_mmimdb_stores_jpeg(tmp_path):
    """The same posters as in the store of pixels, after JPEG."""
    raw, vocab = write_mmimdb(tmp_path / "raw"), write_vocab(tmp_path / "vocab")
    packs = []
    for name, options in (("a", ()), ("b", ("--image-store", "jpeg"))):
        arguments = ["mmimdb", "--source", raw, "--out", tmp_path / name, "--tokenizer", vocab]
        arguments += ["--image-size", 32, "--max-refused", 1, "--workers", 1, "--verify"]
        pack.main(args=list(map(str, (*arguments, *options))), standalone_mode=False)
        packs.append(open_columns(tmp_path / name))
    pixels, jpeg = (columns.split("train")["image"] for columns in packs)
    present = packs[0].split("train")["present"][:, 1]
    assert present.any()
    store = packs[1].manifest.columns["image"].jpeg
    for row in np.flatnonzero(present):
        expected = decode(encode(pixels[row], store), store)
        np.testing.assert_array_equal(jpeg[row], expected)
    special = packs[0].manifest.special_tokens
    assert special["[MASK]"] == VOCAB.index("[MASK]")


def test_a_pack_of_pixels_has_no_new_keys(table, tmp_path):
    columns = run(table, tmp_path / "photos", "--image-size", 16)
    content = json.loads((tmp_path / "photos" / "manifest.json").read_text())
    assert content["columns"]["image"] == {"dtype": "uint8", "shape": [3, 16, 16]}
    assert "special_tokens" not in content
    assert "image_store" not in columns.manifest.preprocessing


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--image-store", "jpg"), "--image-store is 'jpg'"),
        (("--image-stored-size", 64), "Add --image-store jpeg"),
        (
            ("--image-store", "jpeg", "--image-size", 64, "--image-stored-size", 32),
            "--image-stored-size is 32, less than --image-size 64",
        ),
    ],
)
def test_options_that_contradict(table, tmp_path, options, message):
    with pytest.raises(ConfigError, match=message):
        run(table, tmp_path / "photos", *options)
