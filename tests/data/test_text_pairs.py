"""Text pairs: `--text A --text-pair B`, from the table to the encoder and to predictions."""

import numpy as np
import polars as pl
import pytest
import torch
from make import make_config
from raw_sets import write_vocab
from use_study import exported

from furnace_hpc import pack
from furnace_hpc.config.errors import ConfigError
from furnace_hpc.config.manifest import TEXT_SECOND
from furnace_hpc.data.columns import open_columns
from furnace_hpc.data.decode.tokenizer import load_tokenizer
from furnace_hpc.data.decode.word_tokenizer import word_tokenizer
from furnace_hpc.data.loading.batches import BatchReader
from furnace_hpc.inference.predictor import Predictor
from furnace_hpc.inference.table_rows import open_input
from furnace_hpc.inference.torch_export import make_program
from furnace_hpc.model.encoders.input_shapes import InputShapes
from furnace_hpc.model.encoders.transformers import TextEncoder

ROWS = 30
WORDS = ("a", "man", "sleeps", "runs", "dog", "barks", "at", "home", "cat")
GIVEN = ("--text", "premise", "--text-pair", "hypothesis", "--label", "label")


def write_pairs(path):
    rng = np.random.default_rng(4)
    rows = [
        {
            "premise": " ".join(rng.choice(WORDS, 2 + number % 7)),
            "hypothesis": " ".join(rng.choice(WORDS, 1 + number % 4)),
            "label": ("yes", "no", "maybe")[number % 3],
        }
        for number in range(ROWS)
    ]
    rows[3]["premise"] = rows[4]["hypothesis"] = None
    pl.DataFrame(rows).write_csv(path)
    return rows


def run(source, out, *arguments):
    pack.main(
        args=[
            *("table", "--source", str(source), *GIVEN, "--split", "60/20/20", "--max-tokens"),
            *("12", "--workers", "1", "--out", str(out), *arguments),
        ],
        standalone_mode=False,
    )
    return open_columns(out)


@pytest.fixture(scope="module")
def packed(tmp_path_factory):
    place = tmp_path_factory.mktemp("pairs")
    rows = write_pairs(place / "pairs.csv")
    return place, rows, run(place / "pairs.csv", place / "packed")


def tokens_of(first, second, ids, most):
    """A pair by hand: the longer text loses its last token until the pair fits."""
    first, second = ((text or "").split() for text in (first, second))
    while len(first) + len(second) + 3 > most:
        (first if len(first) > len(second) else second).pop()
    words = ["[CLS]", *first, "[SEP]", *second, "[SEP]"]
    return [ids.get(word, ids["[UNK]"]) for word in words], len(first) + 2


def test_a_pair_is_stored_as_bert_reads_it(packed):
    _, rows, columns = packed
    words = columns.manifest.preprocessing["draw"]["words"]
    ids = {word: number for number, word in enumerate(words)}
    for split in columns.manifest.splits:
        part = columns.split(split)
        for number, name in enumerate(part["source_id"]):
            row = rows[int(name) - 1]
            wanted, place = tokens_of(row["premise"], row["hypothesis"], ids, 12)
            assert part["text"][number][: len(wanted)].tolist() == wanted
            assert part["text_length"][number] == len(wanted)
            assert part[TEXT_SECOND][number] == place
            assert not part["text"][number][len(wanted) :].any()
    assert columns.manifest.preprocessing["columns"]["text-pair"] == ["hypothesis"]


def test_tokens_and_types_are_those_of_transformers(tmp_path):
    """Also where the pair is too long."""
    from transformers import BertTokenizer

    folder = write_vocab(tmp_path / "vocab")
    reader = load_tokenizer(str(folder), 16)
    theirs = BertTokenizer(f"{folder}/vocab.txt")
    texts = ["the night", "", "a man and a woman", "film " * 9, "the " * 30, "Old-time! noir?"]
    for first in texts:
        for second in filter(None, texts):  # transformers reads an empty second text as none
            wanted = theirs(first, second, truncation="longest_first", max_length=16)
            ids, length, place = reader.encode_pair(first, second)
            assert ids[:length].tolist() == wanted["input_ids"]
            types = (np.arange(length) >= place).astype(int).tolist()
            assert types == wanted["token_type_ids"]


def test_types_reach_the_encoder(packed):
    """The encoder gives BERT the token types of transformers, 0 in the padding."""
    *_, columns = packed
    reader = BatchReader(columns, "train", ("text",), ("label",), torch.device("cpu"))
    batch = reader.read(np.arange(18))
    torch.manual_seed(0)
    model = make_config("zero0", model__modalities=["text"]).model
    encoder = TextEncoder(model, InputShapes.of(columns.manifest)).eval()
    text, length, second = batch.inputs["text"], batch.lengths["text"], batch.lengths[TEXT_SECOND]
    types = torch.zeros_like(text)
    for row, (start, end) in enumerate(zip(second.tolist(), length.tolist(), strict=True)):
        types[row, start:end] = 1
    mask = torch.arange(text.shape[1]) < length.unsqueeze(1)
    with torch.no_grad():
        found, _ = encoder(text, length, second)
        wanted = encoder.bert(text, attention_mask=mask.long(), token_type_ids=types)[0]
        single, _ = encoder(text, length)
    torch.testing.assert_close(found[mask], wanted[mask], atol=1e-5, rtol=0)
    assert (found - single)[mask].abs().max() > 1e-3


def test_swapped_texts_have_other_answers(packed):
    """A table and Python give the columns of the pack. The network sees which text is first."""
    place, rows, columns = packed
    changes = {"tasks": [{"name": "label"}], "model__modalities": ("text",)}
    predictor = Predictor.load(exported(place, place / "packed", **changes), "cpu")
    (place / "scratch").mkdir()
    path = place / "pairs.csv"
    with open_input(path, predictor.exported, {}, None, place / "scratch") as table:
        found = [sample for _, _, sample in table.samples()]
    assert [row["text"] for row in found] == [
        [row["premise"] or "", row["hypothesis"] or ""] for row in rows
    ]
    test = columns.split("test")
    for number, name in enumerate(test["source_id"]):
        values = predictor.read(found[int(name) - 1])
        for column in ("text", "text_length", TEXT_SECOND):
            np.testing.assert_array_equal(values[column], test[column][number])
    one = predictor.predict(text=("a man sleeps", "no cat sleeps")).tasks["label"].probabilities
    other = predictor.predict(text=("no cat sleeps", "a man sleeps")).tasks["label"].probabilities
    assert max(abs(one[name] - other[name]) for name in one) > 1e-4
    for text, problem in (
        ("a man", "text is 'a man', wanted a pair of strings: this model reads two texts"),
        (("a", 3), "the second text is 3, wanted a string"),
        ((" ", None), "text is empty. Leave it out or give a text"),
    ):
        with pytest.raises(ConfigError) as raised:
            predictor.predict(text=text)
        assert str(raised.value) == problem


@pytest.mark.slow
def test_a_program_has_pairs(packed):
    """`furnace export --format torch_export` compares the program with the network."""
    place, _, _ = packed
    changes = {"tasks": [{"name": "label"}], "model__modalities": ("text",), "seed": 1}
    predictor = Predictor.load(exported(place / "more", place / "packed", **changes), "cpu")
    program = make_program(predictor.model, predictor.exported, place / "model.pt2")
    assert program.difference <= program.tolerance


def test_a_pair_needs_room_and_a_first_text(tmp_path):
    write_pairs(tmp_path / "pairs.csv")
    reader = load_tokenizer(str(write_vocab(tmp_path / "vocab")), 2)
    with pytest.raises(ConfigError, match="adds 3 tokens to each text pair, more than max_tokens"):
        reader.encode_pair("a", "b")
    with pytest.raises(ConfigError, match="--text-pair needs --text"):
        pack.main(
            args=["table", "--source", str(tmp_path / "pairs.csv"), *GIVEN[2:]],
            standalone_mode=False,
        )


def test_words_have_a_pair_template():
    tokenizer = word_tokenizer(("[PAD]", "[UNK]", "[CLS]", "[SEP]", "red", "dog"))
    made = tokenizer.encode("red", "dog dog")
    assert made.ids == [2, 4, 3, 5, 5, 3]
    assert made.type_ids == [0, 0, 0, 1, 1, 1]
    assert tokenizer.encode("red dog").ids == [2, 4, 5, 3]
