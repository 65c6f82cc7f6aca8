"""Folders of encoders with tiny tokenizers, image processors and feature extractors."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import transformers
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers
from tokenizers.trainers import BpeTrainer, UnigramTrainer, WordPieceTrainer

TEXTS = [
    "The cat sat on the mat, and the dog did not.",
    "Ünïcode, naïve café; numbers 12,345 and 6.7!",
    "A very long sentence about cats dogs mats hats and more words than any limit allows here.",
    "  spaces   around  ",
]


def write_tokenizer(folder: Path, kind: str, **options: Any) -> Path:
    """Train a small tokenizer of a class of transformers, and save it. Return its folder."""
    tokenizer = _TOKENIZERS[kind]()
    model = json.loads(tokenizer.to_str())["model"]
    words, merges = model["vocab"], model.get("merges")
    if isinstance(words, list):
        words = [tuple(word) for word in words]
    if merges:
        options["merges"] = [tuple(merge) for merge in merges]
    getattr(transformers, kind)(vocab=words, **options).save_pretrained(folder)
    return folder


def write_config(folder: Path, **content: Any) -> Path:
    """Write config.json."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(content))
    return folder


def write_preprocessor(folder: Path, kind: str, **settings: Any) -> Path:
    """Save an image processor or feature extractor of transformers. Return its folder."""
    getattr(transformers, kind)(**settings).save_pretrained(folder)
    return folder


def _wordpiece() -> Tokenizer:
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "<s>", "<pad>", "</s>"]
    tokenizer.train_from_iterator(TEXTS, WordPieceTrainer(vocab_size=120, special_tokens=special))
    return tokenizer


def _bpe(*special: str, end: str = "") -> Tokenizer:
    suffix = {"end_of_word_suffix": end} if end else {}
    tokenizer = Tokenizer(models.BPE(unk_token=special[-1], **suffix))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = BpeTrainer(
        vocab_size=600 if end else 320,
        special_tokens=list(special),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        **suffix,
    )
    tokenizer.train_from_iterator(TEXTS, trainer)
    return tokenizer


def _unigram() -> Tokenizer:
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.normalizer = normalizers.NFKC()
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    special = ["<s>", "<pad>", "</s>", "<unk>"]
    trainer = UnigramTrainer(vocab_size=90, special_tokens=special, unk_token="<unk>")
    tokenizer.train_from_iterator(TEXTS, trainer)
    return tokenizer


_TOKENIZERS: dict[str, Callable[[], Tokenizer]] = {
    "BertTokenizer": _wordpiece,
    "MPNetTokenizer": _wordpiece,
    "RobertaTokenizer": lambda: _bpe("<s>", "<pad>", "</s>", "<mask>", "<unk>"),
    "CLIPTokenizer": lambda: _bpe("<|startoftext|>", "<|endoftext|>", end="</w>"),
    "XLMRobertaTokenizer": _unigram,
    "DebertaV2Tokenizer": _unigram,
}
