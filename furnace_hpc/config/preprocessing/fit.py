"""Refuse a pack that does not fit an encoder: what it has, what is needed, and how to pack it."""

import shlex
from functools import lru_cache
from typing import Any

from furnace_hpc.config.encoder_families import is_trained
from furnace_hpc.config.errors import ConfigError
from furnace_hpc.config.manifest import Manifest, waveform_of
from furnace_hpc.config.preprocessing.audio import AudioNeeds
from furnace_hpc.config.preprocessing.files import Needs
from furnace_hpc.config.preprocessing.record import needs_of, recorded, recorded_encoder
from furnace_hpc.config.preprocessing.text import TextNeeds, vocabulary_hash
from furnace_hpc.config.sections.model import ModelConfig

_OPTIONS = (
    *("text", "text-pair", "image", "audio", "audio-start", "audio-end", "numbers"),
    *("label", "id", "group", "weight"),
)


def encoders_of(config: ModelConfig) -> dict[str, tuple[str, str]]:
    """Return modality -> (key, encoder) of the trained encoders of a network."""
    found: dict[str, tuple[str, str]] = {}
    for modality in config.modalities:
        section = getattr(config, modality, None)
        if name := getattr(section, "encoder", None):
            if is_trained(name):
                found[modality] = (f"model.{modality}.encoder", name)
        elif name := getattr(config, f"{modality}_weights", None):
            found[modality] = (f"model.{modality}_weights", name)
    return found


def check_fit(config: ModelConfig, manifest: Manifest, pack: str, where: str = "") -> None:
    """Raise ConfigError if a trained encoder needs other preprocessing than the pack has.

    Args:
        config: the network.
        manifest: of the pack.
        pack: folder of the pack, for messages.
        where: what a message begins with.
    """
    problems = []
    if problem := _wrong_waveforms(config, manifest, pack):
        problems.append(where + problem)
    for modality, (key, name) in encoders_of(config).items():
        if modality not in manifest.columns:
            continue
        needs, error = _needs(modality, name)
        if error and recorded(manifest, modality):
            problems.append(where + error)
        if needs is not None and not _fits(manifest, modality, needs):
            problems.append(
                f"{where}{key} {name!r} does not fit the pack {pack}: the pack has "
                f"{_has(manifest, modality)}; the encoder needs {needs.describe()}. Pack it with "
                f"`{packing_command(manifest, modality, name, pack)}`"
            )
    if problems:
        raise ConfigError("\n".join(problems))


@lru_cache(maxsize=64)
def _needs(modality: str, name: str) -> tuple[Needs | None, str]:
    """Return what an encoder needs, or why its files do not say it. A grid has many rows.

    Older packs may be used with encoders whose preprocessing cannot be read.
    """
    try:
        return needs_of(modality, name), ""
    except ConfigError as error:
        return None, str(error)


def _wrong_waveforms(config: ModelConfig, manifest: Manifest, pack: str) -> str:
    """Return why an encoder of features cannot read a pack's waveforms. Empty if it does not."""
    section = getattr(config, "audio", None)
    if "audio" not in config.modalities or waveform_of(manifest) is None:
        return ""
    if getattr(section, "encoder", None) or config.audio_weights:
        return ""
    return (
        f"model.audio_encoder {config.audio_encoder} does not fit the pack {pack}: the pack has "
        "waveforms; the encoder needs features. Choose another encoder with model.audio.encoder, "
        "or pack without --audio-store waveform"
    )


def _fits(manifest: Manifest, modality: str, needs: Needs) -> bool:
    has = recorded(manifest, modality)
    match needs:
        case TextNeeds():
            return _fits_text(manifest, has, needs)
        case AudioNeeds():
            return _fits_audio(manifest, has, needs)
    # The loader standardises an older pack by its own mean, and a ViT takes any size.
    return has is None or has == needs


def _fits_text(manifest: Manifest, has: Needs | None, needs: TextNeeds) -> bool:
    stored = manifest.columns["text"].shape[0]
    if isinstance(has, TextNeeds):
        is_same = has.model_copy(update={"limit": needs.limit}) == needs
    else:
        vocabulary = _vocabulary(manifest)
        is_same = vocabulary in (None, needs.vocabulary) and not needs.is_fixed
    if needs.is_fixed:
        return is_same and stored == needs.limit
    return is_same and (needs.limit is None or stored <= needs.limit)


def _fits_audio(manifest: Manifest, has: Needs | None, needs: AudioNeeds) -> bool:
    wave = waveform_of(manifest)
    if needs.is_waveform:
        wanted = (needs.sample_rate_hz, needs.normalises)
        return wave is not None and (wave.sample_rate_hz, wave.normalises) == wanted
    if wave is not None:
        return False
    if has is not None:
        return has == needs
    bands, frames = manifest.columns["audio"].shape
    return bands == needs.shape[0] and frames <= needs.shape[1]


def _has(manifest: Manifest, modality: str) -> str:
    """Describe what a modality of a pack is."""
    if has := recorded(manifest, modality):
        made = f"{has.describe()}, made for {recorded_encoder(manifest, modality)}"
        if modality == "text":
            return f"{manifest.columns['text'].shape[0]} tokens per text: {made}"
        return made
    shape = manifest.columns[modality].shape
    match modality:
        case "text":
            return f"token ids of vocabulary {_vocabulary(manifest)}, {shape[0]} tokens per text"
        case "image":
            return f"images of {shape[-2]} x {shape[-1]} pixels"
    if wave := waveform_of(manifest):
        return wave.describe()
    feature = manifest.preprocessing.get("audio", {}).get("feature", "coefficients")
    return f"{feature} of {shape[0]} bands and {shape[1]} frames"


def _vocabulary(manifest: Manifest) -> str | None:
    """Return the hash of the pack's vocabulary. None if its manifest does not say it."""
    made = manifest.preprocessing
    draw, text = made.get("draw"), made.get("text")
    words = made.get("vocab") or (draw.get("words") if isinstance(draw, dict) else None)
    if words:
        return vocabulary_hash({str(word): number for number, word in enumerate(words)})
    return text.get("vocabulary") if isinstance(text, dict) else None


def packing_command(manifest: Manifest, modality: str, name: str, pack: str) -> str:
    """Return the command that packs the data for an encoder, as far as the manifest knows it."""
    words = ["furnace", "pack", "table"]
    made = manifest.preprocessing
    columns = made.get("columns")
    if manifest.dataset != "table" or not isinstance(columns, dict):
        words += ["--source", "TABLE"]
        return _joined([*words, "--for", f"{modality}={name}", "--out", pack, "--force"])
    for source in made.get("source", {}):
        words += ["--source", str(source)]
    for option in _OPTIONS:
        for column in columns.get(option, ()):
            words += [f"--{option}", str(column)]
    words += _split_options(made.get("splits", {}))
    record = made.get("for", {})
    kept = {key: str(entry["encoder"]) for key, entry in record.items() if key != modality}
    for key, encoder in (kept | {modality: name}).items():
        words += ["--for", f"{key}={encoder}"]
    return _joined([*words, "--out", pack, "--force"])


def _split_options(splits: dict[str, Any]) -> list[str]:
    words = []
    if parts := splits.get("parts"):
        words += ["--split", "/".join(str(part) for part in parts)]
    for key, option in (("column", "--split-column"), ("stratify", "--stratify")):
        if splits.get(key):
            words += [option, str(splits[key])]
    for key in ("val_values", "test_values"):
        option = f"--{key.removesuffix('s').replace('_', '-')}"
        for value in splits.get(key) or ():
            words += [option, str(value)]
    if splits.get("folds"):
        words += ["--folds", str(splits["folds"])]
    if splits.get("seed"):
        words += ["--seed", str(splits["seed"])]
    return words


def _joined(words: list[str]) -> str:
    return shlex.join(words)
