"""Images that look like an image of another split: copies in another encoding or size."""

import numpy as np
import polars as pl
import pytest
from PIL import Image, ImageFilter

from furnace_hpc import pack
from furnace_hpc.data.table.report.near_images import difference_hashes, similar_pairs

PARTS = ["train"] * 12 + ["val"] * 4 + ["test"] * 4


def scene(number: int) -> Image.Image:
    """A picture with structure, as photographs have."""
    rng = np.random.default_rng(number)
    rough = Image.fromarray(rng.integers(0, 255, (6, 8, 3), np.uint8))
    return rough.resize((160, 120), Image.Resampling.BICUBIC).filter(ImageFilter.GaussianBlur(1))


def packed(tmp_path, capsys, *options) -> str:
    rows = {"image": [f"{n}.jpg" for n in range(20)], "kind": ["a", "b"] * 10, "part": PARTS}
    pl.DataFrame(rows).write_csv(tmp_path / "mine.csv")
    pack.main(
        args=[
            *("table", "--source", str(tmp_path / "mine.csv"), "--image", "image"),
            *("--label", "kind", "--split-column", "part", "--image-size", "64"),
            *("--out", str(tmp_path / "packed"), "--workers", "1", *options),
        ],
        standalone_mode=False,
    )
    return capsys.readouterr().out


@pytest.mark.parametrize("store", ["pixels", "jpeg"])
def test_copies_in_another_split_are_counted(tmp_path, capsys, store):
    """A copy in another quality and one in another size. A copy in the same split is none."""
    for number in range(20):
        scene(number).save(tmp_path / f"{number}.jpg", quality=95)
    scene(2).save(tmp_path / "14.jpg", quality=40)
    scene(5).resize((120, 90)).save(tmp_path / "18.jpg", quality=85)
    scene(7).save(tmp_path / "8.jpg", quality=60)
    shown = packed(tmp_path, capsys, "--image-store", store)
    warning = "4 images look like an image of another split, such as 3 (train) and 15 (val)"
    assert f"warning: {warning}\n" in shown
    assert warning in (tmp_path / "packed" / "profile.html").read_text()


def test_other_images_are_not_counted(tmp_path, capsys):
    for number in range(20):
        scene(number).save(tmp_path / f"{number}.jpg", quality=95)
    assert "look like an image" not in packed(tmp_path, capsys)


def test_the_hash_has_a_bit_for_each_step():
    """A picture that becomes brighter to the right has all bits, its mirror image none."""
    rising = np.tile(np.arange(16, dtype=np.uint8) * 16, (1, 16, 1))
    both = difference_hashes(np.concatenate([rising, rising[:, :, ::-1]]))
    assert both.tolist() == [2**64 - 1, 0]


@pytest.mark.parametrize(("bits", "is_found"), [(3, True), (4, False)])
def test_hashes_may_differ_in_three_bits(bits, is_found):
    """Wherever these bits are. The thumbnails differ too little to matter."""
    rng = np.random.default_rng(0)
    for _ in range(20):
        base = rng.integers(0, 2, (8, 8)).astype(bool)
        other = base.copy()
        changed = rng.choice(64, bits, replace=False)
        other.ravel()[changed] ^= True
        pair = np.stack([drawn(base), drawn(other)])
        hashes = difference_hashes(pair)
        assert int(np.bitwise_count(hashes[0] ^ hashes[1])) == bits
        codes = np.array([0, 2], np.uint8)
        assert similar_pairs(pair, codes).tolist() == ([[0, 1]] if is_found else [])


def drawn(bits: np.ndarray) -> np.ndarray:
    """A thumbnail with these bits as its hash. Steps are small, so thumbnails are alike."""
    steps = np.where(bits, 1, -1)
    small = 128 + np.concatenate([np.zeros((8, 1), int), steps.cumsum(axis=1)], axis=1)
    edges = np.linspace(0, 16, 9, endpoint=False).astype(int)
    columns = np.searchsorted(edges, np.arange(16), side="right") - 1
    return np.repeat(small[:, columns], 2, axis=0).astype(np.uint8)
