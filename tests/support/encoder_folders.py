"""Folders of encoders with tiny tokenizers, image processors and feature extractors."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import transformers
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from tokenizers.trainers import BpeTrainer, UnigramTrainer, WordPieceTrainer

TEXTS = [
    "The cat sat on the mat, and the dog did not.",
    "Ünïcode, naïve café; numbers 12,345 and 6.7!",
    "A very long sentence about cats dogs mats hats and more words than any limit allows here.",
    "  spaces   around  ",
]


def write_tokenizer(folder: Path, kind: str) -> Path:
    """Train and save a tokenizer: wordpiece, bpe, clip, unigram or siglip. Return its folder."""
    tokenizer, options = _TOKENIZERS[kind]()
    backend = transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, **options)
    backend.save_pretrained(folder)
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


def _around(tokenizer: Tokenizer, first: str, last: str) -> None:
    special = [(name, tokenizer.token_to_id(name)) for name in (first, last)]
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{first} $A {last}", pair=f"{first} $A {last} $B {last}", special_tokens=special
    )


def _wordpiece() -> tuple[Tokenizer, dict[str, Any]]:
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    tokenizer.train_from_iterator(TEXTS, WordPieceTrainer(vocab_size=120, special_tokens=special))
    _around(tokenizer, "[CLS]", "[SEP]")
    return tokenizer, {
        "unk_token": "[UNK]",
        "pad_token": "[PAD]",
        "cls_token": "[CLS]",
        "sep_token": "[SEP]",
        "model_max_length": 24,
    }


def _bpe() -> tuple[Tokenizer, dict[str, Any]]:
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    special = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
    trainer = BpeTrainer(
        vocab_size=320,
        special_tokens=special,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )
    tokenizer.train_from_iterator(TEXTS, trainer)
    _around(tokenizer, "<s>", "</s>")
    return tokenizer, {
        "bos_token": "<s>",
        "eos_token": "</s>",
        "unk_token": "<unk>",
        "pad_token": "<pad>",
    }


def _clip() -> tuple[Tokenizer, dict[str, Any]]:
    tokenizer = Tokenizer(models.BPE(unk_token="<|endoftext|>", end_of_word_suffix="</w>"))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    special = ["<|startoftext|>", "<|endoftext|>"]
    trainer = BpeTrainer(vocab_size=200, special_tokens=special, end_of_word_suffix="</w>")
    tokenizer.train_from_iterator(TEXTS, trainer)
    _around(tokenizer, *special)
    return tokenizer, {
        "bos_token": special[0],
        "eos_token": special[1],
        "unk_token": special[1],
        "pad_token": special[1],
        "model_max_length": 16,
    }


def _unigram(first: str = "<s>", most: int | None = None) -> tuple[Tokenizer, dict[str, Any]]:
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.normalizer = normalizers.NFKC()
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    special = ["<s>", "<pad>", "</s>", "<unk>"]
    trainer = UnigramTrainer(vocab_size=90, special_tokens=special, unk_token="<unk>")
    tokenizer.train_from_iterator(TEXTS, trainer)
    _around(tokenizer, first, "</s>")
    options = {"eos_token": "</s>", "unk_token": "<unk>", "pad_token": "<pad>"}
    return tokenizer, options | ({"model_max_length": most} if most else {"bos_token": first})


def _siglip() -> tuple[Tokenizer, dict[str, Any]]:
    return _unigram(most=20)


_TOKENIZERS: dict[str, Callable[[], tuple[Tokenizer, dict[str, Any]]]] = {
    "wordpiece": _wordpiece,
    "bpe": _bpe,
    "clip": _clip,
    "unigram": _unigram,
    "siglip": _siglip,
}
