"""Peaks of GPU models: dense FLOP/s by type of number, and memory bandwidth.

The numbers are those of NVIDIA's data sheets, without sparsity and at boost clock. GeForce cards:
appendix of NVIDIA's architecture white papers, with accumulation in fp32. Where a data sheet has
only the number with sparsity, half of it is taken.

| model | source |
|---|---|
| V100, V100S, T4 | V100 data sheet (2020), T4 data sheet (2019) |
| A100, A30, A40, A10 | A100 data sheet (2021), A30, A40 and A10 data sheets (2022) |
| RTX A6000 | RTX A6000 data sheet (2020) |
| H100, H200, GH200 | H100 data sheet (2024; PCIe: 2022), H200 (2024), GH200 (2023) |
| L4, L40, L40S, RTX 6000 Ada | L4 and L40 (2023), L40S (2023), RTX 6000 Ada (2022) |
| RTX 3090, RTX 4090 | white papers of Ampere GA102 (2020) and Ada (2022) |
| B200 | HGX B200 data sheet (2024), one of eight GPUs |
"""

from typing import NamedTuple


class GpuModel(NamedTuple):
    """Peaks of one model. None: it has no unit for this type of number."""

    words: tuple[str, ...]  # all of them are in the name that CUDA gives
    bf16: float | None  # TFLOP/s, with accumulation in fp32
    fp16: float
    tf32: float | None
    fp32: float
    gb_s: int  # memory bandwidth


# The first match counts, so a special model stands before the general one.
MODELS = (
    GpuModel(("B200",), 2250, 2250, 1125, 75, 8000),
    GpuModel(("GH200",), 989, 989, 494.5, 67, 4000),
    GpuModel(("H200", "NVL"), 835.5, 835.5, 417.5, 60, 4800),
    GpuModel(("H200",), 989, 989, 494.5, 67, 4800),
    GpuModel(("H100", "PCIe"), 756, 756, 378, 51, 2000),
    GpuModel(("H100", "NVL"), 835.5, 835.5, 417.5, 60, 3900),
    GpuModel(("H100",), 989, 989, 494.5, 67, 3350),
    GpuModel(("H800",), 989, 989, 494.5, 67, 3350),
    GpuModel(("A100-SXM4-80GB",), 312, 312, 156, 19.5, 2039),
    GpuModel(("A100", "80GB"), 312, 312, 156, 19.5, 1935),
    GpuModel(("A100",), 312, 312, 156, 19.5, 1555),
    GpuModel(("A30",), 165, 165, 82, 10.3, 933),
    GpuModel(("A40",), 149.7, 149.7, 74.8, 37.4, 696),
    GpuModel(("A10",), 125, 125, 62.5, 31.2, 600),
    GpuModel(("RTX A6000",), 154.8, 154.8, 77.4, 38.7, 768),
    GpuModel(("RTX 6000 Ada",), 364.2, 364.2, 182.1, 91.1, 960),
    GpuModel(("L40S",), 362.05, 362.05, 183, 91.6, 864),
    GpuModel(("L40",), 181.05, 181.05, 90.5, 90.5, 864),
    GpuModel(("L4",), 121, 121, 60, 30.3, 300),
    GpuModel(("RTX 4090",), 165.2, 165.2, 82.6, 82.6, 1008),
    GpuModel(("RTX 3090",), 71, 71, 35.6, 35.6, 936),
    GpuModel(("V100S",), None, 130, None, 16.4, 1134),
    GpuModel(("V100", "SXM"), None, 125, None, 15.7, 900),
    GpuModel(("V100",), None, 112, None, 14, 900),
    GpuModel(("T4",), None, 65, None, 8.1, 320),
)


def gpu_model(name: str) -> GpuModel | None:
    """The model with this name of CUDA, such as `NVIDIA H100 80GB HBM3`. None if unknown.

    A part of a GPU (MIG) has no peak of its own in a data sheet, so it is unknown.
    """
    if "MIG" in name.split():
        return None
    padded = f" {name.replace('-', ' ')} {name} "
    for model in MODELS:
        has_all = all(f" {word}" in padded for word in model.words)
        if has_all and _is_whole(model.words[0], padded):
            return model
    return None


def _is_whole(word: str, padded: str) -> bool:
    """Whether the name has the word, and not only as the beginning of another: L4 and L40."""
    return f" {word} " in padded or f" {word}-" in padded


def peak_flops(name: str, precision: str) -> float | None:
    """Peak in FLOP/s. None if the model is unknown, or has no unit for this precision.

    Args:
        name: of CUDA.
        precision: bf16, fp16, tf32 or fp32.
    """
    model = gpu_model(name)
    if model is None:
        return None
    tera = {
        "bf16": model.bf16,
        "fp16": model.fp16,
        "tf32": model.tf32,
        "fp32": model.fp32,
    }[precision]
    if tera is None:
        return None
    return tera * 1e12
