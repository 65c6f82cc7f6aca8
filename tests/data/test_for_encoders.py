"""`pack --for`: stored values equal what the processors of transformers give for the same file."""

import json
import warnings

import numpy as np
import pytest
import soundfile
import torch
import transformers
from PIL import Image
from preprocessing_folders import TEXTS, write_config, write_preprocessor, write_tokenizer

from furnace_hpc.config.errors import ConfigError
from furnace_hpc.config.preprocessing.record import made_for, parse_for
from furnace_hpc.data.decode.audio import read_sound, read_wave
from furnace_hpc.data.decode.for_encoder.images import EncoderImageKnobs
from furnace_hpc.data.decode.for_encoder.sounds import sound_knobs_for
from furnace_hpc.data.decode.images import read_image
from furnace_hpc.data.decode.tokenizer import load_tokenizer
from furnace_hpc.data.loading.batches import standardised
from furnace_hpc.data.loading.waveforms import prepared_waveforms

TOKENIZERS = (
    "BertTokenizer",
    "MPNetTokenizer",
    "RobertaTokenizer",
    "CLIPTokenizer",
    "XLMRobertaTokenizer",
    "DebertaV2Tokenizer",
)
# name -> class, and its settings
IMAGES = {
    "vit": ("ViTImageProcessorPil", {"size": {"height": 24, "width": 32}}),
    "deit": ("DeiTImageProcessorPil", {"size": {"height": 40, "width": 40}, "crop_size": 32}),
    "clip": ("CLIPImageProcessorPil", {"size": {"shortest_edge": 32}, "crop_size": 32}),
    "siglip": ("SiglipImageProcessorPil", {"size": {"height": 32, "width": 32}}),
    "dinov2": ("BitImageProcessorPil", {"size": {"shortest_edge": 40}, "crop_size": 32}),
    "padded": ("BitImageProcessorPil", {"size": {"shortest_edge": 20}, "crop_size": 33}),
    "convnext": ("ConvNextImageProcessorPil", {"size": {"shortest_edge": 32}}),
    "stretched": ("ConvNextImageProcessorPil", {"size": {"shortest_edge": 384}}),
    "swin": ("ViTImageProcessorPil", {"size": 32, "resample": 3, "image_mean": [0.4, 0.5, 0.6]}),
    "resnet": ("ConvNextImageProcessorPil", {"size": {"shortest_edge": 32}, "crop_pct": 0.7}),
    "lanczos": ("ViTImageProcessorPil", {"size": 32, "resample": 1, "do_normalize": False}),
    "bytes": ("ViTImageProcessorPil", {"size": 32, "do_rescale": False}),
}
SOUNDS = {
    "ast": ("ASTFeatureExtractor", {"max_length": 64, "num_mel_bins": 32}),
    "whisper": ("WhisperFeatureExtractor", {"chunk_length": 2}),
    "clap": ("ClapFeatureExtractor", {"max_length_s": 2, "truncation": "rand_trunc"}),
    "fused clap": ("ClapFeatureExtractor", {"max_length_s": 2}),
}


@pytest.mark.parametrize("kind", TOKENIZERS)
def test_token_ids_equal_autotokenizer(tmp_path, kind):
    folder = write_tokenizer(tmp_path, kind)
    made = made_for("text", str(folder))
    reader = load_tokenizer(str(folder), 16, made.needs)
    expected = transformers.AutoTokenizer.from_pretrained(folder)(
        TEXTS, padding="max_length", truncation=True, max_length=16, return_tensors="np"
    )
    ids, lengths = zip(*(reader.encode(text) for text in TEXTS), strict=True)
    assert np.array_equal(np.stack(ids), expected["input_ids"])
    assert list(lengths) == expected["attention_mask"].sum(1).tolist()
    at_once = reader.encode_all(TEXTS)
    assert np.array_equal(at_once[0], expected["input_ids"])
    assert at_once[1].tolist() == list(lengths)
    assert min(lengths) < 16 == max(lengths)
    assert made.needs.pad_id == reader.pad_id
    assert made.needs.vocabulary == reader.fingerprint


def test_siglip_texts_are_always_full(tmp_path):
    """It was trained with padding and without a mask, so the padding counts."""
    folder = write_tokenizer(tmp_path, "XLMRobertaTokenizer", model_max_length=20)
    write_config(folder, model_type="siglip", text_config={"max_position_embeddings": 18})
    needs = made_for("text", str(folder)).needs
    assert (needs.limit, needs.is_fixed, needs.stored_tokens(None)) == (18, True, 18)
    reader = load_tokenizer(str(folder), 18, needs)
    ids, length = reader.encode("the cat")
    expected = transformers.AutoTokenizer.from_pretrained(folder)(
        "the cat", padding="max_length", max_length=18
    )
    assert ids.tolist() == expected["input_ids"]
    assert (length, ids[-1]) == (18, needs.pad_id)
    at_once = reader.encode_all(["the cat", "cat"])
    assert at_once[0][0].tolist() == ids.tolist()
    assert at_once[1].tolist() == [18, 18]
    pair, length, _ = reader.encode_pair("the", "cat")
    assert (len(pair), length) == (18, 18)


def test_roberta_has_fewer_tokens_than_positions(tmp_path):
    folder = write_tokenizer(tmp_path, "RobertaTokenizer")
    write_config(folder, model_type="roberta", max_position_embeddings=514, pad_token_id=1)
    needs = made_for("text", str(folder)).needs
    assert (needs.limit, needs.stored_tokens(None), needs.stored_tokens(64)) == (512, 512, 64)


@pytest.mark.parametrize("name", IMAGES)
@pytest.mark.parametrize("size", [(90, 60), (41, 77)])
def test_pixels_equal_the_image_processor(tmp_path, name, size):
    """Equal up to rounding of fp32: transformers resizes bytes to bytes too."""
    folder = write_preprocessor(tmp_path / "encoder", IMAGES[name][0], **IMAGES[name][1])
    path = tmp_path / "picture.jpg"
    drawn = np.random.default_rng(3).integers(0, 256, (9, 7, 3), np.uint8)
    Image.fromarray(drawn).resize(size, Image.Resampling.BICUBIC).save(path, quality=95)
    needs = made_for("image", str(folder)).needs
    stored = read_image(path, EncoderImageKnobs.of(needs))
    mean, std = (torch.tensor(values) for values in needs.stored_mean_std)
    found = standardised(torch.from_numpy(stored)[None], mean, std)[0]
    processor = transformers.AutoImageProcessor.from_pretrained(folder)
    expected = processor(Image.open(path), return_tensors="pt")["pixel_values"][0]
    assert stored.shape == (3, needs.height, needs.width)
    torch.testing.assert_close(found, expected.float(), rtol=1e-6, atol=1e-5)


def test_old_files_of_settings_have_defaults(tmp_path):
    """Files of earlier versions have sizes of one number, and leave defaults out."""
    settings = {"feature_extractor_type": "CLIPFeatureExtractor", "size": 40, "crop_size": 32}
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(settings))
    needs = made_for("image", str(tmp_path)).needs
    processor = transformers.CLIPImageProcessorPil(size=40, crop_size=32)
    assert (needs.shorter_side, needs.height, needs.width) == (40, 32, 32)
    assert processor.size["shortest_edge"] == 40
    assert list(needs.mean) == list(processor.image_mean)
    assert (needs.filter, processor.resample) == ("bicubic", Image.Resampling.BICUBIC)


def test_dinov3_is_resized_as_bytes(tmp_path):
    """transformers resizes floats, so stored bytes differ by rounding: one of 255 steps."""
    settings = {"image_processor_type": "DINOv3ViTImageProcessorFast", "size": 32}
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(settings))
    needs = made_for("image", str(tmp_path)).needs
    image = Image.fromarray(np.random.default_rng(5).integers(0, 256, (50, 70, 3), np.uint8))
    stored = torch.from_numpy(EncoderImageKnobs.of(needs).fitted(image).astype(np.float32))
    pixels = torch.from_numpy(np.asarray(image)).permute(2, 0, 1)[None] / 255
    size = {"size": (32, 32), "mode": "bilinear", "antialias": True}
    expected = torch.nn.functional.interpolate(pixels, **size)[0]
    assert (stored / 255 - expected).abs().max() <= 1.01 / 255
    assert needs.mean == (0.485, 0.456, 0.406)


@pytest.mark.parametrize("name", SOUNDS)
@pytest.mark.parametrize("seconds", [0.4, 2.5])
def test_features_equal_the_extractor(tmp_path, name, seconds):
    folder = write_preprocessor(tmp_path / "encoder", SOUNDS[name][0], **SOUNDS[name][1])
    path = _sound(tmp_path / "sound.wav", seconds)
    needs = made_for("audio", str(folder)).needs
    knobs = sound_knobs_for(needs, None)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # mel filters without values
        stored, length = read_sound(path, knobs)
        extractor = transformers.AutoFeatureExtractor.from_pretrained(folder)
        wave = read_wave(path, knobs)
        if "clap" in name:  # it cuts longer sounds at random places, and packing at the end
            wave = wave[: 2 * extractor.sampling_rate]
        made = extractor(wave, sampling_rate=extractor.sampling_rate, return_tensors="np")
    [expected] = made.get("input_values", made.get("input_features"))
    if "clap" in name:
        expected = expected[0].T
    elif "ast" in name:
        expected = expected.T
    assert stored.shape == needs.shape == expected.shape
    assert length == stored.shape[1]
    np.testing.assert_allclose(stored, expected, rtol=0, atol=1e-6)
    assert knobs.statistics.std == (1.0,) * len(stored)


@pytest.mark.parametrize("normalises", [True, False])
def test_waveforms_equal_wav2vec2s_extractor(tmp_path, normalises):
    folder = write_preprocessor(
        tmp_path / "encoder", "Wav2Vec2FeatureExtractor", do_normalize=normalises
    )
    knobs = sound_knobs_for(made_for("audio", str(folder)).needs, 1.0)
    paths = [_sound(tmp_path / f"{number}.wav", 0.5 * number) for number in (1, 2, 3)]
    stored, lengths = zip(*(read_sound(path, knobs) for path in paths), strict=True)
    assert lengths == (8000, 16_000, 16_000)
    assert stored[0].dtype == np.int16
    found = prepared_waveforms(
        torch.from_numpy(np.stack(stored)), torch.tensor(lengths), knobs.normalises
    )
    extractor = transformers.AutoFeatureExtractor.from_pretrained(folder)
    for row, path, length in zip(found, paths, lengths, strict=True):
        wave = read_wave(path, knobs)[:length]
        [expected] = extractor(wave, sampling_rate=16_000, return_tensors="np")["input_values"]
        np.testing.assert_allclose(row[:length].numpy(), expected, rtol=0, atol=1e-5)
        assert not row[length:].any()


def test_a_waveform_does_not_depend_on_its_batch():
    generator = torch.Generator().manual_seed(0)
    short = torch.randint(-9000, 9000, (1, 5000), generator=generator, dtype=torch.int16)
    alone = prepared_waveforms(short, torch.tensor([5000]), True)
    wide = torch.cat([short, torch.zeros(1, 3000, dtype=torch.int16)], 1)
    padded = prepared_waveforms(wide, torch.tensor([5000]), True)
    assert torch.equal(alone[0], padded[0, :5000])


@pytest.mark.parametrize(
    ("option", "files", "message"),
    [
        ("text=gone", {}, "neither a folder nor in the hub's cache"),
        ("video=x", {}, "--for 'video=x'"),
        ("text", {}, "is not MODALITY=ENCODER"),
        ("text={}", {"spiece.model": "x"}, "save_pretrained('converted')"),
        ("text={}", {"config.json": "{}"}, "has no tokenizer.json for text"),
        ("image={}", {"preprocessor_config.json": "[1]"}, "is no JSON object"),
        (
            "image={}",
            {"preprocessor_config.json": '{"image_processor_type": "Odd", "size": 3}'},
            "image processor Odd is not supported",
        ),
        (
            "image={}",
            {"preprocessor_config.json": '{"image_processor_type": "ViT", "size": {"x": 3}}'},
            "has the size {'x': 3}",
        ),
        (
            "image={}",
            {
                "preprocessor_config.json": '{"image_processor_type": "CLIP", "size": 9, '
                '"do_center_crop": false}'
            },
            "keeps the aspect ratio",
        ),
        (
            "audio={}",
            {"preprocessor_config.json": '{"sampling_rate": 16000, "dither": 0.1, '
             '"feature_extractor_type": "WhisperFeatureExtractor"}'},
            "adds random noise",
        ),
        (
            "audio={}",
            {"preprocessor_config.json": '{"sampling_rate": 1, "feature_extractor_type": "Odd"}'},
            "feature extractor Odd is not supported",
        ),
    ],
)  # fmt: skip
def test_an_unusable_encoder_is_an_error(tmp_path, option, files, message):
    for name, content in files.items():
        (tmp_path / name).write_text(content)
    with pytest.raises(ConfigError) as caught:
        parse_for([option.format(tmp_path)])
    assert message in str(caught.value)


def _sound(path, seconds):
    """Write 16-bit mono at 16 kHz: two tones and noise."""
    times = np.arange(round(seconds * 16_000)) / 16_000
    noise = np.random.default_rng(7).normal(0, 0.01, len(times))
    wave = 0.3 * np.sin(2 * np.pi * 440 * times) + 0.1 * np.sin(2 * np.pi * 3000 * times) + noise
    soundfile.write(path, wave, 16_000, subtype="PCM_16")
    return path
