"""Read stored waveforms, and turn them into the input of an encoder. B batch, S samples."""

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from furnace_hpc.data.loading.ahead import FileRows

FULL_SCALE = 32_768.0  # of 16-bit samples
EPSILON = 1e-7  # added to the variance, as transformers' extractors do


def read_waveforms(
    source: NDArray[Any],
    file_rows: FileRows | None,
    rows: NDArray[np.int64],
    length_B: NDArray[Any],
    out_BS: NDArray[np.int16],
) -> None:
    """Fill `out_BS` with sounds, and zeros after the end of each. Stored padding is not read.

    Args:
        source: the column.
        file_rows: its file, if the sounds are read from there.
        rows: the samples.
        length_B: the length of each sound, at most S.
        out_BS: memory for them.
    """
    sounds = [out_S[:length] for out_S, length in zip(out_BS, length_B, strict=True)]
    if file_rows:
        file_rows.read(rows, sounds)
    else:
        for sound, row in zip(sounds, rows, strict=True):
            sound[:] = source[row, : len(sound)]
    for out_S, length in zip(out_BS, length_B, strict=True):
        out_S[length:] = 0


def prepared_waveforms(stored_BS: Tensor, length_B: Tensor, normalises: bool) -> Tensor:
    """Return waveforms [B, S] in fp32 with full scale 1, and zeros after the end.

    With `normalises` each sound has mean 0 and variance 1 up to its length. Sums of 16-bit samples
    are exact in fp64, so a sound does not depend on its batch.
    """
    prepared_BS = stored_BS.float()
    if not normalises:
        return prepared_BS.div_(FULL_SCALE)
    length_B1 = length_B.to(stored_BS.device).double().clamp(min=1).unsqueeze(1)
    wide_BS = stored_BS.double()  # packing has stored zeros after the end
    mean_B1 = wide_BS.sum(1, keepdim=True) / length_B1
    squares_B1 = torch.linalg.vecdot(wide_BS, wide_BS).unsqueeze(1) / length_B1
    variance_B1 = (squares_B1 - mean_B1.square()).clamp(min=0) / FULL_SCALE**2
    scale_B1 = 1 / (FULL_SCALE * (variance_B1 + EPSILON).sqrt())
    prepared_BS.sub_(mean_B1.float()).mul_(scale_B1.float())
    is_after_BS = torch.arange(stored_BS.shape[1], device=stored_BS.device) >= length_B1
    return prepared_BS.masked_fill_(is_after_BS, 0.0)


def cut_waveforms(columns: dict[str, Tensor]) -> dict[str, Tensor]:
    """Cut samples after the end of the longest sound of a batch. Other columns stay as they are."""
    audio, lengths = columns.get("audio"), columns.get("audio_length")
    if audio is None or lengths is None or audio.dim() != 2:
        return columns
    return columns | {"audio": audio[:, : max(1, int(lengths.max()))]}
