"""What the stored features of an encoder depend on. A digest of it names their folder."""

import hashlib
import json
from typing import Any

import torch
from torch import nn

from furnace_hpc.config.manifest import Manifest
from furnace_hpc.config.train_config import TrainConfig
from furnace_hpc.engine.meters import device_name, versions
from furnace_hpc.model.frozen_features import FrozenEncoder
from furnace_hpc.runs.code import code_hash

_PACKAGES = ("torch", "transformers", "numpy")


def source_of(
    encoder: FrozenEncoder, config: TrainConfig, manifest: Manifest, device: torch.device
) -> dict[str, Any]:
    """The pack, the encoder with its weights, the code, and what decides how kernels round."""
    content = manifest.model_dump_json().encode()
    packages = versions()
    return {
        "pack": manifest.fingerprint,
        "manifest": hashlib.sha256(content).hexdigest(),
        "modality": encoder.modality,
        "settings": config.model.encoder(encoder.modality).model_dump(mode="json"),
        "network": _network_of(encoder.module),
        "weights": _weights_of(encoder.module),
        "own_code": config.own_code,
        "code": code_hash(),
        "device": device_name(device),
        "threads": torch.get_num_threads(),
        "deterministic": config.deterministic,
        "tf32": config.tf32,
        "portable": config.portable,
        **{name: packages[name] for name in _PACKAGES},
    }


def digest_of(source: dict[str, Any]) -> str:
    """16 hexadecimal digits of a hash."""
    content = json.dumps(source, sort_keys=True).encode()
    return hashlib.sha256(content).hexdigest()[:16]


def _network_of(module: nn.Module) -> str:
    """A hash of the structure of a network, and of the settings of its models of transformers."""
    digest = hashlib.sha256(repr(module).encode())
    for part in module.modules():
        settings: Any = getattr(part, "config", None)
        if hasattr(settings, "to_json_string"):
            digest.update(settings.to_json_string(use_diff=False).encode())
    return digest.hexdigest()


def _weights_of(module: nn.Module) -> str:
    """SHA-256 over all parameters and buffers, as they compute: names, types and values."""
    digest = hashlib.sha256()
    values = [*module.named_parameters(), *module.named_buffers()]
    for name, value in sorted(values, key=lambda pair: pair[0]):
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}\0".encode())
        whole = value.detach().cpu().contiguous().reshape(-1)
        digest.update(whole.view(torch.uint8).numpy().data)
    return digest.hexdigest()
