"""Every family of Hugging Face encoders: the values of AutoModel, gradients, export, no waits."""

import json
from dataclasses import replace

import pytest
import torch
from encoder_folders import CONFIGS, MODALITIES, save_network
from encoder_samples import SHAPES, WAVES, Sample, config_of, modality_of, sample_of, shapes_of
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import checkpoint

from furnace_hpc.config.encoder_families import FAMILIES, families_of
from furnace_hpc.config.pretrained_files import check_pretrained
from furnace_hpc.model.encoders.choice import make_encoder
from furnace_hpc.model.encoders.weights import architectures
from furnace_hpc.model.network import FusionModel


def reference(family: str, network: nn.Module, sample: Sample) -> list[Tensor]:
    """The hidden states that AutoModel gives for each sample, up to its length."""
    values, lengths = sample
    with torch.no_grad():
        if family in WAVES:
            assert lengths is not None
            alone = [wave[:n].unsqueeze(0) for wave, n in zip(values, lengths, strict=True)]
            return [network(wave).last_hidden_state[0] for wave in alone]
        if family == "siglip-text":
            padded = nn.functional.pad(values, (0, 32 - values.shape[1]), value=SHAPES.pad_id)
            return list(network(input_ids=padded).last_hidden_state)
        if modality_of(family) == "text":
            assert lengths is not None
            mask = (torch.arange(values.shape[1]) < lengths.unsqueeze(1)).long()
            found = network(input_ids=values, attention_mask=mask).last_hidden_state
            return [states[:n] for states, n in zip(found, lengths, strict=True)]
        match family:
            case "ast":
                return list(network(values.transpose(1, 2)).last_hidden_state)
            case "whisper":
                return list(network.encoder(values).last_hidden_state)
            case "clap":
                features = values.transpose(1, 2).unsqueeze(1)
                found = network(input_features=features).last_hidden_state
            case _:
                found = network(pixel_values=values).last_hidden_state
        return list(found if found.dim() == 3 else found.flatten(2).transpose(1, 2))


@pytest.mark.parametrize("family", CONFIGS)
def test_values_are_those_of_automodel(family, tmp_path):
    """Padding changes no token, and weights keep their bits."""
    modality, sample = modality_of(family), sample_of(family)
    network = save_network(family, tmp_path)
    config = config_of(modality, tmp_path)
    check_pretrained([config])
    encoder = make_encoder(modality, config, shapes_of(family)).eval()
    with torch.no_grad():
        tokens_BTD, mask_BT = encoder(*sample)
    for row, wanted in enumerate(reference(family, network, sample)):
        found = tokens_BTD[row][mask_BT[row]]
        torch.testing.assert_close(found, wanted, atol=1e-5, rtol=1e-5)
    own = network.state_dict()
    prefix = "encoder." if family == "whisper" else ""
    for name, value in encoder.network.state_dict().items():
        assert torch.equal(value, own[prefix + name]), name


def check_step(encoder: nn.Module, sample: Sample) -> dict[str, Tensor]:
    """A forward and a backward pass. Every parameter gets a gradient and keeps its value.

    A checkpoint is copied while the next pass runs, so no pass may change a parameter.
    """
    before = {name: p.detach().clone() for name, p in encoder.named_parameters()}
    encoder.train()
    tokens_BTD, mask_BT = encoder(*sample)
    (tokens_BTD * mask_BT.unsqueeze(2)).square().sum().backward()
    changed = [name for name, p in encoder.named_parameters() if not p.equal(before[name])]
    assert changed == []
    gradients = {name: p.grad for name, p in encoder.named_parameters()}
    without = [name for name, gradient in gradients.items() if gradient is None]
    assert without == []
    assert all(torch.isfinite(gradient).all() for gradient in gradients.values())
    return gradients


@pytest.mark.parametrize("family", CONFIGS)
def test_recomputed_gradients_and_export(family, tmp_path):
    """Recomputing changes no gradient. An exported description builds the same network."""
    modality, sample, shapes = modality_of(family), sample_of(family), shapes_of(family)
    save_network(family, tmp_path)
    config = config_of(modality, tmp_path)
    model = FusionModel(config, shapes, {"digit": 3})
    encoder = model.encoders[modality]
    plain = check_step(encoder, sample)
    encoder.zero_grad()
    model.checkpoint_activations(lambda f, *args: checkpoint(f, *args, use_reentrant=False))
    again = check_step(encoder, sample)
    torch.testing.assert_close(again, plain, atol=1e-6, rtol=1e-4)
    described = json.loads(json.dumps(architectures(model.encoders, config)))
    for file in tmp_path.iterdir():
        file.unlink()
    built = make_encoder(modality, config, replace(shapes, architectures=described))
    built.load_state_dict(encoder.state_dict())
    with torch.no_grad():
        for one, other in zip(built.eval()(*sample), encoder.eval()(*sample), strict=True):
            assert torch.equal(one, other)


class Waits(TorchDispatchMode):
    """Record all operations that make the host wait for the device, also those of libraries."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def __torch_dispatch__(self, function, types, arguments=(), keywords=None):
        if str(function).startswith(
            ("aten._local_scalar_dense", "aten.nonzero", "aten.is_nonzero")
        ):
            self.found.append(str(function))
        return function(*arguments, **(keywords or {}))


@pytest.mark.parametrize("family", FAMILIES)
def test_random_weights(family):
    """Every family trains without files, also in bf16, and no step makes the host wait."""
    modality = FAMILIES[family].modality
    sample, shapes = sample_of(family), shapes_of(family)
    if family in ("wav2vec2", "hubert", "wavlm"):
        shapes = replace(shapes, audio_frames=1000)
        sample = torch.randn(3, 1000), torch.tensor([1000, 1, 700])
    config = config_of(modality, f"random:{family}")
    check_pretrained([config])
    encoder = make_encoder(modality, config, shapes)
    check_step(encoder, sample)
    with Waits() as waits:
        encoder(*sample)[0].sum().backward()
    assert waits.found == []
    assert architectures(nn.ModuleDict({modality: encoder}), config) == {}
    encoder.to(torch.bfloat16)
    tokens_BTD, _ = encoder(*sample)
    assert tokens_BTD.dtype == torch.bfloat16
    assert torch.isfinite(tokens_BTD).all()
    kept = [b.dtype for n, b in encoder.named_buffers() if n.endswith(("inv_freq", "running_var"))]
    assert set(kept) <= {torch.float32}


def test_all_families_have_a_folder():
    """The folders of the tests cover the table of families."""
    covered = {name.removesuffix("-large") for name in CONFIGS}
    assert covered == set(FAMILIES)
    for modality, families in MODALITIES.items():
        assert {name.removesuffix("-large") for name in families} == set(families_of(modality))
