"""Stock MONAI inferers take the samplers."""

from __future__ import annotations

import pytest
import torch
from monai.inferers import DiffusionInferer, LatentDiffusionInferer
from monai.networks.nets import VQVAE, DiffusionModelUNet

from medical_diffusion.diffusion import SAMPLERS, create_sampler


@pytest.fixture(scope="module")
def unet() -> DiffusionModelUNet:
    torch.manual_seed(0)
    return DiffusionModelUNet(
        spatial_dims=3,
        in_channels=2,
        out_channels=2,
        num_res_blocks=1,
        channels=(8, 8),
        attention_levels=(False, False),
        norm_num_groups=4,
        num_head_channels=4,
    ).eval()


@pytest.mark.parametrize("name", SAMPLERS)
def test_diffusion_inferer(unet: DiffusionModelUNet, name: str) -> None:
    sampler = create_sampler(name, clip_range=1.0)
    inferer = DiffusionInferer(sampler)
    x, noise = torch.randn(2, 2, 4, 4, 4), torch.randn(2, 2, 4, 4, 4)
    timesteps = torch.tensor([3, 200])
    with torch.no_grad():
        prediction = inferer(inputs=x, diffusion_model=unet, noise=noise, timesteps=timesteps)
        expected = unet(x=sampler.add_noise(x, noise, timesteps), timesteps=timesteps)
    torch.testing.assert_close(prediction, expected)
    sampler.set_timesteps(4)
    torch.manual_seed(1)
    sample = inferer.sample(input_noise=noise, diffusion_model=unet, verbose=False)
    torch.manual_seed(1)
    torch.testing.assert_close(sample, sampler.sample(unet, noise), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", SAMPLERS)
def test_latent_diffusion_inferer(unet: DiffusionModelUNet, name: str) -> None:
    torch.manual_seed(0)
    autoencoder = VQVAE(
        spatial_dims=3,
        in_channels=1,
        out_channels=1,
        channels=(4,),
        num_res_layers=1,
        num_res_channels=(4,),
        downsample_parameters=((2, 4, 1, 1),),
        upsample_parameters=((2, 4, 1, 1, 0),),
        num_embeddings=4,
        embedding_dim=2,
    ).eval()
    sampler = create_sampler(name, num_inference_steps=3, clip_range=1.0)
    inferer = LatentDiffusionInferer(sampler)
    noise = torch.randn(1, 2, 4, 4, 4)
    with torch.no_grad():
        prediction = inferer(
            inputs=torch.randn(1, 1, 8, 8, 8),
            autoencoder_model=autoencoder,
            diffusion_model=unet,
            noise=noise,
            timesteps=torch.tensor([5]),
        )
    assert prediction.shape == noise.shape
    sample = inferer.sample(noise, autoencoder_model=autoencoder, diffusion_model=unet, verbose=False)
    assert sample.shape == (1, 1, 8, 8, 8)
    assert sample.isfinite().all()
