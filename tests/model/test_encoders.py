"""Encoders: inputs of any size and precision, and pooling and norms against torch's own."""

import pytest
import torch
from make import DESIGNS, make_inputs, make_model
from torch.nn import functional

from furnace_hpc.model.encoders.convolutions import MaskedGroupNorm, pool_matrix


@pytest.mark.parametrize(
    ("size", "frames"), [((16, 16), 8), ((32, 32), 40), ((47, 33), 33), ((224, 160), 640)]
)
@pytest.mark.parametrize("name", ["cross_attention", "transformers"])
def test_any_image_size_and_audio_length(size, frames, name):
    model, (inputs, lengths, present) = make_model(**DESIGNS[name]), make_inputs(B=2, frames=frames)
    inputs["image"] = torch.randn(2, 1, *size, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        before = model(inputs, lengths, present)["logits"]["digit"]
        inputs["image"][:, :, -8:, -8:] += 2.0  # the far corner has an effect
        inputs["audio"][:, :, -2:] += 2.0 if name == "cross_attention" else 0.0
        after = model(inputs, lengths, present)["logits"]["digit"]
    assert before.shape == (2, 10)
    assert torch.isfinite(before).all()
    assert (before - after).abs().max() > 1e-3


@pytest.mark.parametrize(("size", "bins"), [(7, 3), (8, 2), (3, 4), (1, 2), (21, 4)])
def test_pooling_equals_adaptive_pooling(size, bins):
    """The pooling of the valid positions equals torch's adaptive pooling."""
    x_BCT = torch.randn(size, 5, size, generator=torch.Generator().manual_seed(0))
    weights = pool_matrix(torch.arange(1, size + 1), size, bins, x_BCT)
    pooled = (weights @ x_BCT.transpose(1, 2)).transpose(1, 2)
    for row, length in enumerate(range(1, size + 1)):
        wanted = functional.adaptive_avg_pool1d(x_BCT[row, :, :length], bins)
        torch.testing.assert_close(pooled[row], wanted)
    whole = pool_matrix(None, size, bins, x_BCT)
    torch.testing.assert_close((whole @ x_BCT.transpose(1, 2)).transpose(1, 2)[-1], pooled[-1])


def test_masked_norm_equals_group_norm():
    """The norm of the valid frames equals torch's group norm of them."""
    norm = MaskedGroupNorm(4, 8)
    generator = torch.Generator().manual_seed(0)
    x_BCT, length_B = torch.randn(3, 8, 9, generator=generator), torch.tensor([9, 5, 1])
    with torch.no_grad():
        norm.weight.normal_(generator=generator)
        norm.bias.normal_(generator=generator)
        normed = norm(x_BCT, torch.arange(9) < length_B.unsqueeze(1))
        for row, length in enumerate(length_B):
            wanted = functional.group_norm(
                x_BCT[row : row + 1, :, :length], 4, norm.weight, norm.bias
            )
            torch.testing.assert_close(normed[row : row + 1, :, :length], wanted)


@pytest.mark.parametrize("name", DESIGNS)
def test_bf16_network_casts_its_inputs(name):
    """The logits differ from those in fp32 only by rounding."""
    model, (inputs, lengths, present) = make_model(**DESIGNS[name]), make_inputs()
    assert inputs["image"].dtype == inputs["audio"].dtype == torch.float32
    with torch.no_grad():
        exact = model(inputs, lengths, present)["logits"]["digit"]
    output = model.bfloat16().train()(inputs, lengths, present)
    assert output["logits"]["digit"].dtype == output["features"].dtype == torch.bfloat16
    assert output["projections"].dtype == output["scale"].dtype == torch.float32
    torch.testing.assert_close(
        output["logits"]["digit"].float(), exact, atol=0.02 * exact.abs().max().item(), rtol=0
    )
    output["logits"]["digit"].float().square().mean().backward()
    assert all(p.grad.isfinite().all() for p in model.encoders.parameters())
