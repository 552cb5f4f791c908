"""A diffusers AutoencoderKL as codec: equals the library's own calls, fits evaluation and stage 2, clear errors."""

from __future__ import annotations

import builtins
import json
from pathlib import Path
from typing import Any

import pytest
import torch

from medical_diffusion.bundle.latent_statistics import LatentStatistics
from medical_diffusion.bundle.reconstruction import ReconstructionEvaluation
from medical_diffusion.data import LatentDataset
from medical_diffusion.errors import UserError
from medical_diffusion.networks import ExternalAutoencoder
from medical_diffusion.networks.external import WEIGHTS_FILE

diffusers = pytest.importorskip("diffusers")


def save(folder: Path, channels: int = 3) -> Any:
    network = diffusers.AutoencoderKL(
        in_channels=channels, out_channels=channels, block_out_channels=(8, 16), latent_channels=4, norm_num_groups=4,
        down_block_types=("DownEncoderBlock2D",) * 2, up_block_types=("UpDecoderBlock2D",) * 2, layers_per_block=1,
    )  # fmt: skip
    network.save_pretrained(folder)
    return network.eval()


@pytest.mark.parametrize(("channels", "image_channels"), [(3, 1), (3, 3), (1, 1)])
def test_it_is_the_librarys_network(tmp_path: Path, channels: int, image_channels: int) -> None:
    network = save(tmp_path, channels)
    codec = ExternalAutoencoder.from_folder(tmp_path, (16, 24, 1), image_channels)
    assert (codec.image_size, codec.latent_size, codec.compression) == ((16, 24, 1), (8, 12, 1), (2, 2, 1))
    assert (codec.in_channels, codec.latent_channels) == (image_channels, 4)
    x = torch.rand(2, image_channels, 16, 24, 1) * 2 - 1
    with torch.no_grad():
        images = x[..., 0].expand(-1, channels, -1, -1)
        mean = network.encode(images).latent_dist.mode()
        decoded = network.decode(mean).sample
        if image_channels < channels:
            decoded = decoded.mean(1, keepdim=True)
        torch.testing.assert_close(codec.encode(x), mean[..., None])
        torch.testing.assert_close(codec.decode(codec.encode(x)), decoded[..., None])
        # a fixed codec draws nothing, whatever mode a caller asks for
        (reconstruction,), bottleneck = codec.train().reconstruct(x)
        torch.testing.assert_close(reconstruction, decoded[..., None])
        torch.testing.assert_close(codec(x), reconstruction)
    assert bottleneck.indices is None
    assert not any(p.requires_grad for p in codec.parameters())


class Images(torch.utils.data.Dataset):
    def __len__(self) -> int:
        return 3

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        if index >= len(self):
            raise IndexError
        return {"image": torch.rand(1, 32, 32, 1, generator=torch.Generator().manual_seed(index)) * 2 - 1}


def test_it_serves_the_evaluation_and_stage_2(tmp_path: Path) -> None:
    save(tmp_path / "vae")
    codec = ExternalAutoencoder.from_folder(tmp_path / "vae", 32)
    report = ReconstructionEvaluation(codec, Images(), torch.device("cpu")).run()
    assert set(report) - {"absent"} == {"volumes", "reconstruction", "trilinear_baseline"}
    with pytest.raises(UserError, match="latent statistics must be set"):
        codec.encode_latents(Images()[0]["image"][None])
    LatentStatistics(codec, Images(), torch.device("cpu"))()
    latents = LatentDataset(Images(), codec, tmp_path, "key", flip_axes=(0,))
    z = torch.stack([latents[2 * n]["image"] for n in range(3)])
    assert z.shape == (3, 4, 16, 16, 1)
    torch.testing.assert_close(z.mean((0, 2, 3, 4)), torch.zeros(4), atol=1e-4, rtol=0)
    torch.testing.assert_close(z.std((0, 2, 3, 4), correction=0), torch.ones(4), atol=1e-3, rtol=0)
    x = Images()[1]["image"][None]
    with torch.no_grad():
        torch.testing.assert_close(codec.decode_latents(codec.encode_latents(x)), codec(x), atol=1e-4, rtol=1e-4)


def test_what_does_not_fit_is_refused(tmp_path: Path) -> None:
    save(tmp_path)
    load = ExternalAutoencoder.from_folder
    with pytest.raises(UserError, match=r"takes images, of depth 1.*\(16, 16, 8\)"):
        load(tmp_path, (16, 16, 8))
    with pytest.raises(UserError, match=r"divisible by the compression \(2, 2, 1\) along H"):
        load(tmp_path, (15, 16, 1))
    with pytest.raises(UserError, match=r"3 to 3 channels.*Received: 2 channels"):
        load(tmp_path, 16, in_channels=2)
    with pytest.raises(UserError, match=r"the image must be \(B, 1, 16, 16, 1\)"):
        load(tmp_path, 16)(torch.zeros(1, 1, 16, 8, 1))
    save(tmp_path / "grey", channels=1)
    with pytest.raises(UserError, match=r"1 to 1 channels.*Received: 3 channels"):
        load(tmp_path / "grey", 16, in_channels=3)


def test_a_folder_without_the_network_is_refused(tmp_path: Path) -> None:
    load = ExternalAutoencoder.from_folder
    with pytest.raises(UserError, match=r"folder .* must exist.*stabilityai.*nothing is downloaded"):
        load(tmp_path / "stabilityai" / "sd-vae-ft-mse", 16)
    with pytest.raises(UserError, match=r"must hold its files.*no config.json.*folder vae"):
        load(tmp_path, 16)
    save(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text(encoding="utf-8"))
    weights = (tmp_path / WEIGHTS_FILE).read_bytes()
    (tmp_path / WEIGHTS_FILE).write_bytes(weights[: len(weights) // 2])
    with pytest.raises(UserError, match=rf"{WEIGHTS_FILE} must hold the network.*Fetch the folder again"):
        load(tmp_path, 16)
    (tmp_path / WEIGHTS_FILE).write_bytes(weights)
    (tmp_path / "config.json").write_text(json.dumps({**config, "layers_per_block": 2}))
    with pytest.raises(UserError, match=rf"{WEIGHTS_FILE} must hold the network.*weights missing"):
        load(tmp_path, 16)
    (tmp_path / "config.json").write_text(json.dumps({**config, "block_out_channels": [8, 8]}))
    with pytest.raises(UserError, match=rf"{WEIGHTS_FILE} must hold the network"):
        load(tmp_path, 16)
    (tmp_path / "config.json").write_text(json.dumps({**config, "_class_name": "VQModel"}))
    with pytest.raises(UserError, match=r"must be an AutoencoderKL.*VQModel"):
        load(tmp_path, 16)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(UserError, match=r"config.json must be readable JSON"):
        load(tmp_path, 16)
    (tmp_path / WEIGHTS_FILE).unlink()
    with pytest.raises(UserError, match=rf"no {WEIGHTS_FILE}"):
        load(tmp_path, 16)


def test_a_missing_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save(tmp_path)
    import_module = builtins.__import__

    def without_diffusers(name: str, *arguments: Any, **options: Any) -> Any:
        if name == "diffusers":
            raise ImportError("No module named 'diffusers'")
        return import_module(name, *arguments, **options)

    monkeypatch.setattr(builtins, "__import__", without_diffusers)
    with pytest.raises(UserError, match=r"needs the package diffusers.*medical_diffusion\[diffusers\]"):
        ExternalAutoencoder.from_folder(tmp_path, 16)
