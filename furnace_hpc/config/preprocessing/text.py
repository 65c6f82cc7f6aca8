"""What a text encoder needs: a tokenizer, padding, and a maximal length."""

import hashlib
import json
from typing import Any, Literal

import xxhash
from pydantic import Field

from furnace_hpc.config.preprocessing.files import Needs, bad_file, file_hashes, read_json
from furnace_hpc.config.pretrained_files import CONFIG, find_file
from furnace_hpc.host.regular_file import read_regular

TOKENIZER, VOCABULARY = "tokenizer.json", "vocab.txt"
SETTINGS, SPECIAL = "tokenizer_config.json", "special_tokens_map.json"
FILES = (TOKENIZER, VOCABULARY, SETTINGS, SPECIAL)
# Files of tokenizers that only Python code of transformers reads.
SLOW = ("spiece.model", "sentencepiece.bpe.model", "spm.model", "tokenizer.model", "vocab.json")
MOST_TOKENS = 512  # without --max-tokens. Some encoders take thousands.
# Encoders that were trained with padding up to the limit, and without a mask.
_FIXED = ("siglip", "siglip2", "siglip_text_model", "siglip2_text_model")
# Their positions begin after the padding id.
_SHIFTED = (
    *("roberta", "xlm-roberta", "xlm-roberta-xl", "mpnet", "camembert"),
    *("roberta-prelayernorm", "data2vec-text"),
)
_PARTS = ("model", "added_tokens", "normalizer", "pre_tokenizer", "post_processor")


class TextNeeds(Needs):
    """The tokenizer of a text encoder."""

    tokenizer: str = Field(description="hash of everything that decides the ids of a text")
    vocabulary: str = Field(description="hash of all words and their ids")
    pad_id: int = Field(description="id that pads")
    limit: int | None = Field(description="most tokens of a text. None if there is no limit")
    is_fixed: bool = Field(
        default=False, description="every text is padded to the limit, and nothing is masked"
    )
    cut: Literal["right", "left"] = Field(
        default="right", description="side at which texts are cut"
    )

    def describe(self) -> str:
        """Return the settings in a few words."""
        length = "any length" if self.limit is None else f"at most {self.limit} tokens"
        if self.is_fixed:
            length = f"padded to {self.limit} tokens"
        return (
            f"token ids of tokenizer {self.tokenizer} (vocabulary {self.vocabulary}, padding "
            f"{self.pad_id}), {length}"
        )

    def stored_tokens(self, given: int | None) -> int:
        """Return the tokens that a pack stores per text: `given` is --max-tokens."""
        if self.is_fixed and self.limit:
            return self.limit
        if given is None:
            return min(MOST_TOKENS, self.limit or MOST_TOKENS)
        return given


def text_needs(name: str) -> TextNeeds | None:
    """Return what a text encoder needs. None if the folder has no tokenizer.

    Raises:
        ConfigError: a file cannot be read, or the tokenizer needs Python code or has no padding.
    """
    content = read_json(name, TOKENIZER)
    settings = read_json(name, SETTINGS) or {}
    config = _text_config(read_json(name, CONFIG) or {})
    if content is not None:
        words = _words(name, content)
        decides: Any = {part: content.get(part) for part in _PARTS}
    elif path := find_file(name, VOCABULARY):
        lines = read_regular(path).decode("utf-8", "replace").splitlines()
        words = {word: number for number, word in enumerate(lines)}
        decides = [lines, settings.get("do_lower_case", True)]
    elif slow := [file for file in SLOW if find_file(name, file)]:
        raise bad_file(name, f"it has only a slow tokenizer ({slow[0]})", _conversion(name))
    else:
        return None
    digest = hashlib.sha256(json.dumps(decides, sort_keys=True).encode()).hexdigest()
    kind = str(config.get("model_type", ""))
    return TextNeeds(
        tokenizer=digest[:16],
        vocabulary=vocabulary_hash(words),
        pad_id=_pad_id(name, words, settings, config),
        limit=_limit(settings, config),
        is_fixed=kind in _FIXED,
        cut="left" if settings.get("truncation_side") == "left" else "right",
    )


def text_files(name: str) -> dict[str, str]:
    """Return file -> SHA-256 of the tokenizer's files."""
    return file_hashes(name, FILES)


def vocabulary_hash(words: dict[str, int]) -> str:
    """Hash words and ids as the manifest of a pack does."""
    return xxhash.xxh3_64_hexdigest(json.dumps(words, sort_keys=True).encode())


def _conversion(name: str) -> str:
    code = (
        f"from transformers import AutoTokenizer as T; "
        f"T.from_pretrained({name!r}).save_pretrained('converted')"
    )
    return (
        f'Convert it with `python -c "{code}"` where sentencepiece is installed, and copy '
        f"converted/{TOKENIZER} into its folder"
    )


def _text_config(config: dict[str, Any]) -> dict[str, Any]:
    """Return the part of config.json that describes the text encoder. CLIP has one of its own."""
    part = config.get("text_config")
    if not isinstance(part, dict):
        return config
    return {"model_type": config.get("model_type", "")} | part


def _words(name: str, content: dict[str, Any]) -> dict[str, int]:
    try:
        words = content["model"]["vocab"]
        if isinstance(words, list):  # Unigram: pairs of a word and its score
            words = {word: number for number, (word, _) in enumerate(words)}
        added = {token["content"]: token["id"] for token in content.get("added_tokens") or ()}
        return {str(word): int(number) for word, number in (words | added).items()}
    except (KeyError, TypeError, ValueError, AttributeError):
        raise bad_file(name, f"{TOKENIZER} has no vocabulary", "Fetch it again") from None


def _pad_id(
    name: str, words: dict[str, int], settings: dict[str, Any], config: dict[str, Any]
) -> int:
    for source in (settings, read_json(name, SPECIAL) or {}):
        token = source.get("pad_token")
        if isinstance(token, dict):
            token = token.get("content")
        if isinstance(token, str) and token in words:
            return words[token]
    if "[PAD]" in words:
        return words["[PAD]"]
    if isinstance(found := config.get("pad_token_id"), int) and found >= 0:
        return found
    raise bad_file(
        name,
        "the tokenizer has no padding token",
        f'Name one in {SETTINGS}, such as "pad_token": "</s>"',
    )


def _limit(settings: dict[str, Any], config: dict[str, Any]) -> int | None:
    """Return the smaller of the tokenizer's limit and the encoder's number of positions."""
    limits = []
    most = settings.get("model_max_length")
    if isinstance(most, int | float) and 0 < most < 1_000_000:  # 1e30 means none
        limits.append(int(most))
    positions = config.get("max_position_embeddings")
    if isinstance(positions, int) and positions > 0:
        shift = 0
        if config.get("model_type") in _SHIFTED:
            shift = int(config.get("pad_token_id") or 1) + 1
        limits.append(positions - shift)
    return min(limits, default=None)
