"""Images and sounds of unusual kinds."""

import numpy as np
import pytest
import soundfile
from image_files import bomb
from PIL import Image

from furnace_hpc.data.decode.audio import SoundKnobs, read_sound, read_wave
from furnace_hpc.data.decode.features import mfcc
from furnace_hpc.data.decode.images import ImageKnobs, read_image
from furnace_hpc.data.packing.rejects import Unusable

SMALL = ImageKnobs(size=16)
SOUND = SoundKnobs()


@pytest.fixture
def picture() -> Image.Image:
    """Red above, blue below, 60 wide, 40 high."""
    pixels = np.zeros((40, 60, 3), np.uint8)
    pixels[:20, :, 0] = pixels[20:, :, 2] = 200
    return Image.fromarray(pixels)


def corners(image) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Colour above and below."""
    return tuple(image[:, 1, 8].tolist()), tuple(image[:, -2, 8].tolist())


RED, BLUE = (200, 0, 0), (0, 0, 200)


def test_plain_palette_and_alpha(picture, tmp_path):
    picture.save(tmp_path / "plain.png")
    picture.quantize(4).save(tmp_path / "palette.png")
    seen = picture.convert("RGBA")
    seen.putalpha(
        Image.fromarray(np.repeat([[255], [0]], 20, axis=0).astype(np.uint8).repeat(60, axis=1))
    )
    seen.save(tmp_path / "alpha.png")
    assert corners(read_image(tmp_path / "plain.png", SMALL)) == (RED, BLUE)
    assert corners(read_image(tmp_path / "palette.png", SMALL)) == (RED, BLUE)
    assert corners(read_image(tmp_path / "alpha.png", SMALL)) == (RED, (255, 255, 255))


def test_exif_orientation(picture, tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 3  # upside down
    picture.save(tmp_path / "turned.jpg", exif=exif, quality=95, subsampling=0)
    above, below = corners(read_image(tmp_path / "turned.jpg", SMALL))
    np.testing.assert_allclose((above, below), (BLUE, RED), atol=6)


def test_grey_cmyk_and_sixteen_bits(tmp_path):
    Image.new("L", (30, 30), 90).save(tmp_path / "grey.png")
    Image.new("CMYK", (30, 30), (0, 255, 255, 55)).save(tmp_path / "cmyk.jpg", quality=95)
    Image.fromarray(np.full((30, 30), 90 * 257, np.uint16)).save(tmp_path / "deep.png")
    Image.fromarray(np.full((30, 30), 90 * 257, np.int32)).save(tmp_path / "deeper.tiff")
    assert (read_image(tmp_path / "grey.png", SMALL) == 90).all()
    np.testing.assert_allclose(
        read_image(tmp_path / "cmyk.jpg", SMALL).mean((1, 2)), (200, 0, 0), atol=4
    )
    assert (read_image(tmp_path / "deep.png", SMALL) == 90).all()
    assert (read_image(tmp_path / "deeper.tiff", SMALL) == 90).all()


def test_crop_takes_the_middle_and_stretch_the_whole(tmp_path):
    pixels = np.zeros((20, 60, 3), np.uint8)
    pixels[:, 20:40] = 150
    Image.fromarray(pixels).save(tmp_path / "wide.png")
    assert (read_image(tmp_path / "wide.png", ImageKnobs(size=20)) == 150).all()
    stretched = read_image(tmp_path / "wide.png", ImageKnobs(size=30, fit="stretch"))
    assert (stretched[:, :, 13:17] == 150).all()
    assert not stretched[:, :, :8].any()


def test_a_large_jpeg_is_the_same_picture_as_its_png(tmp_path):
    ramp = np.linspace(0, 255, 640, dtype=np.uint8)
    picture = Image.fromarray(np.stack([np.tile(ramp, (480, 1))] * 3, axis=-1))
    picture.save(tmp_path / "a.png")
    picture.save(tmp_path / "a.jpg", quality=95)  # decoded at a quarter of its size
    a, b = (read_image(tmp_path / name, SMALL).astype(int) for name in ("a.png", "a.jpg"))
    assert np.abs(a - b).max() <= 3


@pytest.mark.parametrize(
    ("content", "reason"),
    [(None, "missing"), (b"", "empty"), (b"GIF or not", "unreadable"), ("cut", "truncated")],
)
def test_unusable_images_have_a_reason(picture, tmp_path, content, reason):
    path = tmp_path / "a.jpg"
    if content == "cut":
        picture.resize((300, 300)).save(path)
        path.write_bytes(path.read_bytes()[:-700])
    elif content is not None:
        path.write_bytes(content)
    with pytest.raises(Unusable) as caught:
        read_image(path, SMALL)
    assert caught.value.reason == reason
    assert str(tmp_path) not in caught.value.detail


def test_a_decompression_bomb_is_refused(tmp_path):
    (tmp_path / "bomb.png").write_bytes(bomb())
    with pytest.raises(Unusable, match="decompression bomb"):
        read_image(tmp_path / "bomb.png", SMALL)


def noise(seconds: float = 1.0) -> np.ndarray:
    return np.random.default_rng(0).normal(0, 0.1, round(16_000 * seconds))


def test_stereo_is_mono_of_the_same_content(tmp_path):
    wave = noise()
    soundfile.write(tmp_path / "mono.wav", wave, 16_000, subtype="FLOAT")
    soundfile.write(tmp_path / "stereo.wav", np.stack([wave, wave], 1), 16_000, subtype="FLOAT")
    soundfile.write(tmp_path / "left.wav", np.stack([wave, 0 * wave], 1), 16_000, subtype="FLOAT")
    mono, stereo = (read_sound(tmp_path / f"{name}.wav", SOUND)[0] for name in ("mono", "stereo"))
    np.testing.assert_array_equal(mono, stereo)
    first = read_sound(tmp_path / "left.wav", SoundKnobs(channels="first"))[0]
    np.testing.assert_array_equal(mono, first)
    np.testing.assert_allclose(read_wave(tmp_path / "left.wav", SOUND), wave / 2, atol=1e-6)


def test_coefficients_and_length_of_a_sound(tmp_path):
    wave = noise(0.7).astype(np.float32)
    soundfile.write(tmp_path / "a.flac", wave, 16_000, subtype="PCM_24")
    stored, length = read_sound(tmp_path / "a.flac", SOUND)
    assert stored.shape == (40, 640)
    assert length == 1 + 11_200 // 160
    wanted = mfcc(wave[None], sample_rate=16_000, hop=160, window=1024)[0]
    np.testing.assert_allclose(stored[:, :length], wanted, atol=0.3)  # float16 at 400
    assert not stored[:, length:].any()
    long = noise(9)
    soundfile.write(tmp_path / "long.wav", long, 16_000, subtype="FLOAT")
    stored, length = read_sound(tmp_path / "long.wav", SOUND)
    assert length == 640
    np.testing.assert_allclose(
        stored[:, :600],
        mfcc(long[None].astype(np.float32), hop=160, window=1024)[0, :, :600],
        atol=3,
    )  # the floor, 80 dB below the loudest bin, depends on the stored part


def test_log_mel_and_other_rates(tmp_path):
    rate = 44_100
    wave = 0.3 * np.sin(2 * np.pi * 1000 * np.arange(rate) / rate)
    soundfile.write(tmp_path / "a.wav", wave, rate)
    stored, length = read_sound(tmp_path / "a.wav", SoundKnobs(feature="log_mel", coefficients=64))
    assert length == 101
    assert stored.shape == (64, 640)
    loudest = stored[:, 20:80].astype(float).mean(1).argmax()
    assert 18 < loudest < 30  # 1 kHz is the 23rd of 64 bands up to 8 kHz
    assert len(read_wave(tmp_path / "a.wav", SOUND)) == 16_000


def test_silence_is_a_sound(tmp_path):
    soundfile.write(tmp_path / "a.wav", np.zeros(16_000), 16_000)
    stored, length = read_sound(tmp_path / "a.wav", SOUND)
    assert length == 101
    assert np.isfinite(stored).all()


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (lambda path: path.unlink(), "missing"),
        (lambda path: path.write_bytes(b""), "empty"),
        (lambda path: path.write_bytes(b"no sound at all, not even a little of it"), "unreadable"),
        (lambda path: path.write_bytes(path.read_bytes()[:20_000]), "truncated"),
        (lambda path: soundfile.write(path, np.zeros(0), 16_000), "empty"),
        (
            lambda path: soundfile.write(path, np.full(100, np.nan), 16_000, subtype="FLOAT"),
            "not finite",
        ),
        (
            lambda path: soundfile.write(path, np.full(4000, 1e25), 16_000, subtype="FLOAT"),
            "not finite",
        ),
    ],
)
def test_unusable_sounds_have_a_reason(tmp_path, damage, reason):
    path = tmp_path / "a.wav"
    soundfile.write(path, noise(), 16_000)
    damage(path)
    with pytest.raises(Unusable) as caught:
        read_sound(path, SOUND)
    assert caught.value.reason == reason
    assert str(tmp_path) not in caught.value.detail


def test_a_truncated_flac_is_not_a_shorter_sound(tmp_path):
    path = tmp_path / "a.flac"
    soundfile.write(path, noise(3), 16_000)
    path.write_bytes(path.read_bytes()[:30_000])
    with pytest.raises(Unusable) as caught:
        read_sound(path, SOUND)
    assert caught.value.reason in ("truncated", "unreadable")


def promise(path, samples: int) -> None:
    """Write this number of samples (36 bits) to the STREAMINFO block of a FLAC."""
    content = bytearray(path.read_bytes())
    fields = int.from_bytes(content[18:26], "big")
    content[18:26] = ((fields >> 36 << 36) | samples).to_bytes(8, "big")
    path.write_bytes(content)


def test_a_flac_with_a_large_total_needs_no_memory(tmp_path):
    path = tmp_path / "a.flac"
    soundfile.write(path, noise(), 16_000)
    promise(path, 2**36 - 1)  # 256 GiB
    with pytest.raises(Unusable) as caught:
        read_wave(path, SOUND)
    assert caught.value.reason in ("truncated", "unreadable")


def test_white_depends_on_the_type_of_the_pixels(tmp_path):
    for value, wanted in ((200, 1), (300, 1), (90 * 257, 90)):
        Image.fromarray(np.full((20, 20), value, np.uint16)).save(tmp_path / "deep.png")
        assert set(read_image(tmp_path / "deep.png", SMALL).flat) == {wanted}
    Image.fromarray(np.full((20, 20), 0.5, np.float32)).save(tmp_path / "float.tiff")
    assert set(read_image(tmp_path / "float.tiff", SMALL).flat) == {128}
