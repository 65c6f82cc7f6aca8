"""The columns of a text pair: `[CLS] first [SEP] second [SEP]` with token types.

Token types are 1 from the second text on. So one number for each sample is enough.
"""

import numpy as np

from furnace_hpc.config.manifest import TEXT_SECOND
from furnace_hpc.data.decode.tokenizer import TokenReader
from furnace_hpc.data.packing.sample import Values


def pair_columns(reader: TokenReader, first: str, second: str) -> Values:
    """Return the columns of the modality text.

    Raises:
        ConfigError: the tokenizer adds more tokens than fit.
        Unusable: the tokenizer fails on a text.
    """
    tokens, length, place = reader.encode_pair(first, second)
    return {
        "text": tokens,
        "text_length": np.array(length, np.int16),
        TEXT_SECOND: np.array(place, np.int16),
    }
