"""`pack table --for` and `--audio-store waveform` from the command to a batch and to `predict`."""

import json
import shutil

import numpy as np
import polars as pl
import pytest
import soundfile
import torch
import transformers
from login_study import GRID, refused, write_grid
from login_study import pack as write_login_pack
from PIL import Image
from preprocessing_folders import TEXTS, write_config, write_preprocessor, write_tokenizer
from use_study import exported

from furnace_hpc import pack
from furnace_hpc.config.errors import ConfigError
from furnace_hpc.config.manifest import Column
from furnace_hpc.config.preprocessing.fit import check_fit, packing_command
from furnace_hpc.config.sections.model import ModelConfig
from furnace_hpc.data.columns import Columns, open_columns
from furnace_hpc.data.loading.ahead import FileRows
from furnace_hpc.data.loading.batches import BatchReader
from furnace_hpc.data.loading.staging import stage
from furnace_hpc.data.packing.resumable_writer import ResumableWriter
from furnace_hpc.inference.predictor import Predictor
from furnace_hpc.inference.preprocess import Preprocessor, make_tokenizer

ROWS = 12
RATE = 16_000


@pytest.fixture(scope="module")
def raw(tmp_path_factory):
    """A table of texts, pictures and sounds with their files, and folders of encoders."""
    place = tmp_path_factory.mktemp("raw")
    generator = np.random.default_rng(0)
    for number in range(ROWS):
        drawn = generator.integers(0, 256, (8, 6 + number % 3, 3), np.uint8)
        image = Image.fromarray(drawn).resize((60 + number, 50), Image.Resampling.BICUBIC)
        image.save(place / f"{number}.jpg", quality=90)
        wave = generator.normal(0, 0.1, RATE // 10 * (3 + number % 4))
        soundfile.write(place / f"{number}.wav", wave, RATE, subtype="PCM_16")
    pl.DataFrame(
        {
            "name": list(range(ROWS)),
            "text": [f"{TEXTS[number % 4]} {number}" for number in range(ROWS)],
            "image": [f"{number}.jpg" for number in range(ROWS)],
            "sound": [f"{number}.wav" for number in range(ROWS)],
            "kind": [("even", "odd")[number % 2] for number in range(ROWS)],
            "part": ["train"] * 8 + ["val"] * 2 + ["test"] * 2,
        }
    ).write_csv(place / "mine.csv")
    write_config(write_tokenizer(place / "bert", "BertTokenizer"), model_type="bert")
    write_config(write_tokenizer(place / "roberta", "RobertaTokenizer"), model_type="roberta")
    size = {"size": {"shortest_edge": 32}, "crop_size": 32}
    write_preprocessor(place / "clip", "CLIPImageProcessorPil", **size)
    write_preprocessor(place / "vit", "ViTImageProcessorPil", size=32)
    write_preprocessor(place / "wav2vec2", "Wav2Vec2FeatureExtractor")
    write_preprocessor(place / "whisper", "WhisperFeatureExtractor", chunk_length=1)
    return place


def run(raw, out, *arguments):
    """Run the command in this process, and open its pack."""
    options = (
        "--source",
        raw / "mine.csv",
        "--label",
        "kind",
        "--id",
        "name",
        "--split-column",
        "part",
    )
    words = [*options, "--out", out, "--verify", *arguments]
    pack.main(args=["table", *map(str, words)], standalone_mode=False)
    return open_columns(out)


ALL = ("--text", "text", "--image", "image", "--audio", "sound")


@pytest.fixture(scope="module")
def waves(raw, tmp_path_factory):
    """A pack for RoBERTa, CLIP and wav2vec2."""
    made_for = [f"{key}={raw / name}" for key, name in
                (("text", "roberta"), ("image", "clip"), ("audio", "wav2vec2"))]  # fmt: skip
    options = [part for text in made_for for part in ("--for", text)]
    options += ["--max-tokens", "20", "--audio-seconds", "0.5", "--workers", "1"]
    return run(raw, tmp_path_factory.mktemp("waves") / "pack", *ALL, *options)


def batch_of(columns, *rows):
    modalities = columns.manifest.modalities
    reader = BatchReader(columns, "train", modalities, ("kind",), torch.device("cpu"))
    return reader.read(np.array(rows))


def test_a_batch_equals_the_processors(raw, waves):
    """One file per modality through the loader, against transformers on the same file."""
    ids = [name.decode() for name in waves.split("train")["source_id"]]
    table = pl.read_csv(raw / "mine.csv")
    for row in (0, 3):
        batch, file = batch_of(waves, row), int(ids[row])
        text = transformers.AutoTokenizer.from_pretrained(raw / "roberta")(
            table["text"][file], max_length=20, truncation=True
        )
        length = batch.lengths["text"].item()
        assert batch.inputs["text"][0, :length].tolist() == text["input_ids"]
        assert (batch.inputs["text"][0, length:] == 1).all()  # RoBERTa's padding
        processor = transformers.AutoImageProcessor.from_pretrained(raw / "clip")
        pixels = processor(Image.open(raw / f"{file}.jpg"), return_tensors="pt")["pixel_values"]
        torch.testing.assert_close(batch.inputs["image"], pixels, rtol=0, atol=1e-5)
        wave, _ = soundfile.read(raw / f"{file}.wav", dtype="float32")
        extractor = transformers.AutoFeatureExtractor.from_pretrained(raw / "wav2vec2")
        sound = extractor(wave[: RATE // 2], sampling_rate=RATE, return_tensors="pt")
        assert batch.lengths["audio"].item() == sound["input_values"].shape[1]
        torch.testing.assert_close(batch.inputs["audio"], sound["input_values"], rtol=0, atol=1e-5)


def test_a_batch_of_waveforms_ends_with_the_longest(waves):
    lengths = waves.split("train")["audio_length"]
    assert sorted(set(lengths.tolist())) == [4800, 6400, 8000]
    rows = np.argsort(lengths, kind="stable")[:3]
    batch = batch_of(waves, *rows)
    assert batch.inputs["audio"].shape == (3, lengths[rows].max())
    assert "audio" not in batch_of(waves, rows[0], int(np.argmax(lengths))).complete
    alone = batch_of(waves, rows[0])
    assert "audio" in alone.complete
    width = alone.inputs["audio"].shape[1]
    assert torch.equal(batch_of(waves, *rows).inputs["audio"][0, :width], alone.inputs["audio"][0])


def test_waveforms_from_the_file_are_the_same(waves):
    """While the disk is read, samples do not come from the memory map."""
    modalities = waves.manifest.modalities
    reader = BatchReader(waves, "train", modalities, ("kind",), torch.device("cpu"))
    assert isinstance(reader.stored["audio"], FileRows)
    rows = np.array([3, 0, 2])
    of_map, of_file = reader.gather(rows), reader.gather(rows, from_file=True)
    assert of_map.columns["audio"].any()
    for name, column in of_map.columns.items():
        assert torch.equal(column, of_file.columns[name]), name


def test_the_manifest_says_what_a_pack_is_for(raw, waves):
    record = waves.manifest.preprocessing["for"]
    assert {key: entry["encoder"] for key, entry in record.items()} == {
        "text": "roberta",
        "image": "clip",
        "audio": "wav2vec2",
    }
    assert set(record["text"]["files"]) == {"tokenizer.json", "tokenizer_config.json"}
    assert len(record["image"]["files"]["preprocessor_config.json"]) == 64
    assert str(raw) not in json.dumps(record)
    assert waves.manifest.columns["audio"].dtype == "int16"
    assert waves.manifest.statistics["image"].mean[0] == pytest.approx(255 * 0.48145466)
    assert "audio" not in waves.manifest.statistics


def test_workers_and_interruptions_change_no_byte(raw, waves, tmp_path, monkeypatch):
    """The same files with two workers, and resumed from the middle."""
    again = tmp_path / "pack"
    options = [part for key, name in (("text", "roberta"), ("image", "clip"), ("audio", "wav2vec2"))
               for part in ("--for", f"{key}={raw / name}")]  # fmt: skip
    sizes = ("--max-tokens", "20", "--audio-seconds", "0.5")
    with monkeypatch.context() as patched:
        patched.setattr(ResumableWriter, "append", _interrupted_at(3, ResumableWriter.append))
        patched.setattr("furnace_hpc.data.table.plan.CHUNK_ROWS", {True: 2, False: 2})
        with pytest.raises(ConfigError, match="no manifest.json"):  # it was interrupted
            run(raw, again, *ALL, *options, *sizes, "--workers", "2")
    begun = json.loads((tmp_path / "pack.packing" / "progress.json").read_text())
    assert begun["kept"]["train"] == 4
    found = run(raw, again, *ALL, *options, *sizes, "--workers", "2")
    assert found.manifest.files == waves.manifest.files
    staged, message = stage(found, str(tmp_path))
    assert "this node's copy" in message
    assert torch.equal(
        batch_of(staged, 1, 2).inputs["audio"], batch_of(waves, 1, 2).inputs["audio"]
    )


def _interrupted_at(number, append):
    """`append`, which is interrupted at this call."""
    calls = []

    def counted(writer, chunk):
        calls.append(chunk)
        if len(calls) == number:
            raise KeyboardInterrupt
        append(writer, chunk)

    return counted


@pytest.mark.slow
def test_features_of_whisper_in_a_batch(raw, tmp_path):
    columns = run(raw, tmp_path / "pack", "--audio", "sound", "--for", f"audio={raw / 'whisper'}",
                  "--workers", "1")  # fmt: skip
    ids = [name.decode() for name in columns.split("train")["source_id"]]
    wave, _ = soundfile.read(raw / f"{ids[2]}.wav", dtype="float32")
    extractor = transformers.AutoFeatureExtractor.from_pretrained(raw / "whisper")
    expected = extractor(wave, sampling_rate=RATE, return_tensors="pt")["input_features"]
    batch = batch_of(columns, 2)
    assert batch.inputs["audio"].shape == (1, 80, 100)
    assert batch.lengths["audio"].item() == 100
    torch.testing.assert_close(batch.inputs["audio"], expected, rtol=0, atol=1e-5)


def test_a_waveform_without_an_encoder(raw, tmp_path):
    columns = run(raw, tmp_path / "pack", "--audio", "sound", "--audio-store", "waveform",
                  "--audio-rate", "8000", "--audio-seconds", "1", "--workers", "1")  # fmt: skip
    assert columns.manifest.columns["audio"].shape == (8000,)
    lengths = columns.split("train")["audio_length"]
    assert sorted(set(lengths.tolist())) == [2400, 3200, 4000, 4800]
    batch = batch_of(columns, 0)
    stored = columns.split("train")["audio"][0, : lengths[0]]
    assert np.array_equal(batch.inputs["audio"][0].numpy(), stored.astype(np.float32) / 32_768)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--tokenizer", "x"), "--tokenizer and --for text="),
        (("--max-tokens", "600"), "--max-tokens is 600"),
        (("--image-size", "64"), "--image-size and --for image="),
        (("--image-store", "jpeg"), "--image-store jpeg and --for image="),
        (("--image-stored-size", "64"), "--image-stored-size and --for image="),
        (("--coefficients", "20"), "--coefficients and --for audio="),
    ],
)
def test_the_encoder_decides(raw, tmp_path, options, message):
    write_config(raw / "bert", model_type="bert", max_position_embeddings=512)
    chosen = [f"text={raw / 'bert'}", f"image={raw / 'vit'}", f"audio={raw / 'whisper'}"]
    words = [part for text in chosen for part in ("--for", text)]
    with pytest.raises(ConfigError) as caught:
        run(raw, tmp_path / "pack", *ALL, *words, *options)
    assert message in str(caught.value)
    assert not (tmp_path / "pack").exists()


def test_an_encoder_without_a_column_is_an_error(raw, tmp_path):
    with pytest.raises(ConfigError, match="is given without a column. Add --image COLUMN"):
        run(raw, tmp_path / "pack", "--text", "text", "--for", f"image={raw / 'vit'}")


def fit(columns, **sections):
    """The problems of encoders with a pack, a line each."""
    encoders = {key: {"encoder": str(value)} for key, value in sections.items()}
    config = ModelConfig.model_validate({"modalities": list(sections), **encoders})
    try:
        check_fit(config, columns.manifest, "data/mine", "row 'a': ")
    except ConfigError as error:
        return str(error).splitlines()
    return []


def test_a_pack_that_fits_is_accepted(raw, waves):
    names = {"text": "roberta", "image": "clip", "audio": "wav2vec2"}
    assert fit(waves, **{key: raw / name for key, name in names.items()}) == []


def test_a_pack_that_does_not_fit_is_refused(raw, waves):
    names = {"text": "bert", "image": "vit", "audio": "whisper"}
    text, image, audio = fit(waves, **{key: raw / name for key, name in names.items()})
    assert text.startswith(f"row 'a': model.text.encoder '{raw / 'bert'}' does not fit the pack")
    assert "the pack has 20 tokens per text: token ids of tokenizer" in text
    assert "made for roberta; the encoder needs token ids of tokenizer" in text
    assert "the shorter side resized to 32, bicubic)" in image
    assert "the encoder needs images of 32 x 32 pixels (resized to 32 x 32, bilinear)" in image
    assert "waveforms at 16,000 Hz with mean 0 and variance 1" in audio
    assert "needs 80 bands and 100 frames of WhisperFeatureExtractor" in audio
    assert f"--for audio={raw / 'whisper'} --out data/mine --force`" in audio
    assert "furnace pack table --source mine.csv --text text --image image --audio sound" in audio
    assert "--for text=roberta --for image=clip" in audio


def test_an_encoder_whose_needs_are_unknown(raw, waves):
    """It is refused only if the pack was made for an encoder."""
    folder = write_config(raw / "slow", model_type="roberta")
    (folder / "spm.model").write_text("")
    [problem] = fit(waves, text=folder)
    assert "it has only a slow tokenizer (spm.model)" in problem
    older = waves.manifest.model_copy(update={"preprocessing": {}})
    assert fit(Columns(older, waves.folder), text=folder) == []


def test_the_command_of_a_refusal_packs_it_right(raw, waves, tmp_path, monkeypatch):
    for name in ("roberta", "clip", "wav2vec2", "vit"):
        shutil.copytree(raw / name, tmp_path / name)
    words = packing_command(waves.manifest, "image", "vit", str(tmp_path / "pack")).split()
    monkeypatch.chdir(tmp_path)
    more = ["--media-root", str(raw), "--workers", "1", "--max-tokens", "20"]
    words[words.index("mine.csv")] = str(raw / "mine.csv")
    pack.main(args=[*words[2:], *more], standalone_mode=False)
    names = {"text": "roberta", "image": "vit", "audio": "wav2vec2"}
    again = open_columns(tmp_path / "pack")
    assert fit(again, **{key: raw / name for key, name in names.items()}) == []


def test_features_and_waveforms_are_not_exchanged(raw, waves):
    """Packs without a record are judged by the type and size of their columns."""
    config = ModelConfig(modalities=("audio",))
    with pytest.raises(ConfigError, match="the pack has waveforms; the encoder needs features"):
        check_fit(config, waves.manifest, "data/mine")
    columns = waves.manifest.columns | {"audio": Column(dtype="float16", shape=(40, 640))}
    made = {"text": {"vocabulary": "0123456789abcdef"}, "audio": {"feature": "mfcc"}}
    manifest = waves.manifest.model_copy(update={"columns": columns, "preprocessing": made})
    older = Columns(manifest, waves.folder)
    [problem] = fit(older, audio=raw / "wav2vec2")
    assert "the pack has mfcc of 40 bands and 640 frames" in problem
    [problem] = fit(older, audio=raw / "whisper")
    assert "the encoder needs 80 bands and 100 frames" in problem
    [problem] = fit(older, text=raw / "bert")
    assert "the pack has token ids of vocabulary 0123456789abcdef, 20 tokens per text" in problem
    assert fit(older, image=raw / "vit") == []  # older packs are judged by their sizes


def test_predict_prepares_as_packing_did(raw, waves):
    """The stored values of a row equal those of the same text and files at prediction."""
    tokenizer = make_tokenizer(waves.manifest, str(raw / "roberta"))
    preprocessor = Preprocessor(waves.manifest, tokenizer)
    split, table = waves.split("test"), pl.read_csv(raw / "mine.csv")
    for row, name in enumerate(split["source_id"]):
        file = int(name.decode())
        values = preprocessor.read("text", table["text"][file])
        values |= preprocessor.read("image", raw / f"{file}.jpg")
        values |= preprocessor.read("audio", raw / f"{file}.wav")
        for column, value in values.items():
            assert np.array_equal(value, split[column][row]), column
            assert value.dtype == split[column].dtype
    with pytest.raises(ConfigError, match="has another tokenizer than the one of roberta"):
        make_tokenizer(waves.manifest, str(raw / "bert"))


def test_an_exported_model_carries_its_preprocessing(raw, waves, tmp_path):
    """The exported folder needs no encoder's folder to prepare text and images."""
    changes = {"tasks": [{"name": "kind"}], "model__modalities": ("text", "image")}
    folder = exported(tmp_path, waves.folder, str(raw / "roberta"), **changes)
    predictor = Predictor.load(folder, "cpu")
    values = predictor.read({"text": "the cat 3", "image": raw / "3.jpg"})
    expected = transformers.AutoTokenizer.from_pretrained(raw / "roberta")("the cat 3")["input_ids"]
    assert values["text"][: values["text_length"]].tolist() == expected
    assert values["text"][-1] == 1
    assert predictor.predict(text="the cat 3", image=raw / "3.jpg").tasks["kind"].labels


def test_submit_refuses_a_pack_that_does_not_fit(raw, tmp_path):
    """Before anything starts, and without torch: the check reads JSON files."""
    write_grid(tmp_path, base=GRID["base"] | {"model": {"modalities": ["text"]}})
    write_login_pack(
        tmp_path / "data" / "tridigits",
        columns={
            "label.digit": {"dtype": "uint8", "shape": []},
            "text": {"dtype": "int16", "shape": [20]},
        },
        modalities=["text"],
        preprocessing={"text": {"vocabulary": "0123456789abcdef"}},
    )
    shutil.copytree(raw / "bert", tmp_path / "bert")
    header = b'{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}'
    weights = len(header).to_bytes(8, "little") + header + bytes(4)
    (tmp_path / "bert" / "model.safetensors").write_bytes(weights)
    [line] = refused(
        tmp_path, "study.yaml", "--set", "model.text_weights=bert", "--cluster", "local"
    )
    assert line.startswith("row 'base': model.text_weights 'bert' does not fit the pack ")
    assert "vocabulary 0123456789abcdef" in line
    assert "furnace pack table --source TABLE --for text=bert --out " in line
