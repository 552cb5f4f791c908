"""Extractors and the extraction: what features see, that they are reproducible, and computed once."""

from __future__ import annotations

import pickle
import sys
import types
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from medical_diffusion.errors import UserError
from medical_diffusion.evaluation.features import FeatureExtractor, create_extractor, extract_features
from medical_diffusion.evaluation.features import inception as inception_module
from medical_diffusion.evaluation.features.inception import central_slices
from medical_diffusion.evaluation.features.medicalnet import WEIGHTS_FILE as MEDICALNET_FILE
from medical_diffusion.evaluation.features.medicalnet import standardised
from medical_diffusion.evaluation.features.random_network import RandomNetwork

SIZES = {2: (20, 17, 1), 3: (12, 9, 10)}


def images(count: int, channels: int = 1, spatial_dims: int = 2, seed: int = 0) -> Tensor:
    """Smooth images of different structure in [-1, 1]."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand(count, channels, 5, 5, 1 if spatial_dims == 2 else 5, generator=generator) * 2 - 1
    return nn.functional.interpolate(coarse, SIZES[spatial_dims], mode="trilinear")


class Keyed(list[Tensor]):
    """Images with keys, that count how often each was read."""

    def __init__(self, tensors: Tensor, keys: list[str]) -> None:
        super().__init__(tensors)
        self.keys, self.reads = keys, 0

    def __getitem__(self, index):
        self.reads += 1
        return super().__getitem__(index)


class MeanAndDeviation(FeatureExtractor):
    """A stand-in that counts what it was given."""

    def __init__(self, version: int = 1) -> None:
        super().__init__("stand-in", 2, 1, {"version": version})
        self.batches: list[int] = []

    def features(self, images: Tensor) -> Tensor:
        self.batches.append(len(images))
        return torch.stack([images.mean((1, 2, 3, 4)), images.std((1, 2, 3, 4))], dim=1)


# extraction


def test_features_are_in_order_and_streamed_in_batches() -> None:
    x, extractor = images(7), MeanAndDeviation()
    features = extract_features(list(x), extractor, batch_size=3)
    assert features.dtype == np.float32
    assert extractor.batches == [3, 3, 1]
    np.testing.assert_allclose(features[:, 0], x.mean((1, 2, 3, 4)), rtol=1e-5)


def test_a_second_run_computes_and_reads_nothing(tmp_path: Path) -> None:
    x, keys = images(7), [f"{n:064d}" for n in range(7)]
    first = extract_features(Keyed(x, keys), MeanAndDeviation(), tmp_path, batch_size=3)
    again, extractor = Keyed(x, keys), MeanAndDeviation()
    np.testing.assert_array_equal(extract_features(again, extractor, tmp_path), first)
    assert extractor.batches == []
    assert again.reads == 0


def test_only_what_is_new_is_computed_and_a_copy_once(tmp_path: Path) -> None:
    x, keys = images(6), list("abcdef")
    extract_features(Keyed(x[:2], keys[:2]), MeanAndDeviation(), tmp_path)
    extractor = MeanAndDeviation()
    both = Keyed(torch.cat([x, x[5:]]), [*keys, "f"])
    features = extract_features(both, extractor, tmp_path)
    assert extractor.batches == [4]
    np.testing.assert_array_equal(features[5], features[6])
    np.testing.assert_allclose(features, extract_features(list(torch.cat([x, x[5:]])), MeanAndDeviation()))


def test_another_protocol_is_another_cache(tmp_path: Path) -> None:
    x = Keyed(images(2), ["a", "b"])
    extract_features(x, MeanAndDeviation(), tmp_path)
    other = MeanAndDeviation(version=2)
    extract_features(x, other, tmp_path)
    assert other.batches == [2]
    assert len(list(tmp_path.glob("*/protocol.json"))) == 2


def test_an_interrupted_run_goes_on_and_a_damaged_file_is_computed_again(tmp_path: Path) -> None:
    class Broken(Keyed):
        def __getitem__(self, index):
            if index == 4:
                raise KeyboardInterrupt
            return super().__getitem__(index)

    x, keys = images(6), list("abcdef")
    with pytest.raises(KeyboardInterrupt):
        extract_features(Broken(x, keys), MeanAndDeviation(), tmp_path, batch_size=2)
    next(tmp_path.glob("*/*/a.npy")).write_bytes(b"\x93NUMPY")
    extractor = MeanAndDeviation()
    extract_features(Keyed(x, keys), extractor, tmp_path, batch_size=2)
    assert extractor.batches == [2, 1]  # a, e, f


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda p: extract_features([], MeanAndDeviation()), "at least one image"),
        (lambda p: extract_features(list(images(2)), MeanAndDeviation(), batch_size=0), "batch_size.*Received: 0"),
        (lambda p: extract_features(list(images(2)), MeanAndDeviation(), p), "one key an image.*Leave out cache_dir"),
        (
            lambda p: extract_features([images(1)[0], torch.zeros(1, 5, 5, 1)], MeanAndDeviation(), batch_size=1),
            r"same shape.*\(1, 20, 17, 1\), but \(1, 5, 5, 1\) for image 1.*Resize",
        ),
        (lambda p: extract_features([torch.full((1, 4, 4, 1), torch.nan)], MeanAndDeviation()), "must be finite"),
        (lambda p: extract_features(list(images(1, 3)), MeanAndDeviation()), r"takes images \(B, 1, H, W, D\)"),
        (lambda p: extract_features(list(images(1, 1, 3)), MeanAndDeviation()), "made for flat images"),
        (lambda p: extract_features(list(images(1)), create_extractor("random", 3)), "made for volumes"),
    ],
)
def test_errors_of_the_extraction(call, message: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=message):
        call(tmp_path)


def test_a_cache_that_cannot_be_written_is_an_error_before_any_work(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    extractor = MeanAndDeviation()
    with pytest.raises(UserError, match="output folder must be writable"):
        extract_features(Keyed(images(1), ["a"]), extractor, tmp_path / "file")
    assert extractor.batches == []


# random


@pytest.mark.parametrize(
    ("spatial_dims", "weights"),
    [
        (2, "f1d0bfaf74b2169ccec30729ef4faee7e3b0f507cd2613644b5387ed56c33207"),
        (3, "d470144fa894d61ab358fc8d95d39bc3164e12ab6206dff7c763712e165d1522"),
    ],
)
def test_random_weights_are_the_same_on_every_machine(spatial_dims: int, weights: str) -> None:
    torch.manual_seed(spatial_dims)  # the global generator does not matter
    extractor = create_extractor("random", spatial_dims)
    assert extractor.protocol["weights"] == weights
    assert RandomNetwork(spatial_dims, seed=1).protocol["weights"] != weights


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("spatial_dims", [2, 3])
def test_random_filters_ignore_constants_and_keep_noise(spatial_dims: int, channels: int) -> None:
    extractor = RandomNetwork(spatial_dims, channels)
    for filters in (extractor.first, extractor.second):
        torch.testing.assert_close(filters.flatten(2).sum(2), torch.zeros(filters.shape[:2]), atol=1e-4, rtol=0)
        torch.testing.assert_close(filters.flatten(1).norm(dim=1), torch.ones(len(filters)))


@pytest.mark.parametrize(
    "size", [(20, 17, 1), (1, 1, 1), (3, 40, 1), (256, 8, 1), (5, 6, 7), (2, 2, 2), (33, 16, 3), (1, 9, 4)]
)
def test_random_features_have_one_length_for_any_size_and_do_not_depend_on_the_batch(size: tuple[int, ...]) -> None:
    x = torch.rand(3, 1, *size) * 2 - 1
    extractor = create_extractor("random", 2 if size[2] == 1 else 3)
    together = extractor(x)
    assert together.shape == (3, 208 if size[2] == 1 else 320)
    assert together.isfinite().all()
    torch.testing.assert_close(torch.cat([extractor(one[None]) for one in x]), together, atol=1e-4, rtol=1e-4)


def test_random_features_of_constant_images_are_finite() -> None:
    features = create_extractor("random", 2)(torch.tensor([-1.0, 0, 1]).view(3, 1, 1, 1, 1).expand(3, 1, 9, 9, 1))
    assert features.isfinite().all()
    assert not torch.equal(features[0], features[1])


@pytest.mark.parametrize("spatial_dims", [2, 3])
def test_random_features_move_the_further_the_stronger_a_fault(spatial_dims: int) -> None:
    from scipy.ndimage import gaussian_filter

    extractor, x = create_extractor("random", spatial_dims), images(4, 1, spatial_dims)
    texture = 0.1 * torch.randn(x.shape, generator=torch.Generator().manual_seed(1))
    x = (x + texture).clamp(-1, 1)
    clean = extractor(x)

    def moved(changed: Tensor) -> float:
        return float((extractor(changed) - clean).norm(dim=1).mean())

    def blurred(sigma: float) -> Tensor:
        sigmas = [0, 0, *(0 if n == 1 else sigma for n in x.shape[2:])]
        return torch.from_numpy(gaussian_filter(x.numpy(), sigmas))

    blur = [moved(blurred(s)) for s in (0.5, 0.75, 1.0)]
    noise = [moved(x + s * torch.randn(x.shape, generator=torch.Generator().manual_seed(2))) for s in (0.1, 0.2, 0.4)]
    assert 0.5 < blur[0] < blur[1] < blur[2]
    assert 0.5 < noise[0] < noise[1] < noise[2]
    assert moved(x.flip(2)) > 0.5  # the same texture elsewhere
    assert moved(x.roll(1, 0)) > 0.5


# names and errors


def test_unknown_names_and_missing_files() -> None:
    with pytest.raises(UserError, match=r"known one.*Received: inceptoin.*Did you mean inception"):
        create_extractor("inceptoin", 2)
    with pytest.raises(UserError, match=r"file of the extractor must exist.*nowhere/net\.pt"):
        create_extractor("nowhere/net.pt", 2)
    with pytest.raises(UserError, match="only inception and medicalnet take"):
        create_extractor("random", 2, weights_file="x.pth")
    with pytest.raises(UserError, match="spatial_dims must be 2 for images or 3"):
        create_extractor("random", 4)
    with pytest.raises(UserError, match="at least one channel"):
        create_extractor("random", 2, 0)


# inception, with a network of random weights in place of the published one


class TinyInception(nn.Module):
    """Takes bytes as torch-fidelity's network does; weights come from the file."""

    def __init__(self, name: str, features_list: list[str], feature_extractor_weights_path: str) -> None:
        super().__init__()
        assert features_list == ["2048"]
        self.layer = nn.Linear(3, 4)
        self.load_state_dict(torch.load(feature_extractor_weights_path, weights_only=True))
        self.seen: list[Tensor] = []

    def forward(self, x: Tensor) -> tuple[Tensor]:
        assert x.dtype == torch.uint8 and x.shape[1] == 3
        self.seen.append(x)
        return (self.layer(x.float().mean((2, 3))),)


def linear_weights(features: int) -> dict[str, Tensor]:
    return {f"layer.{name}": value for name, value in nn.Linear(3, features).state_dict().items()}


@pytest.fixture
def tiny_inception(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    module = types.ModuleType("torch_fidelity.feature_extractor_inceptionv3")
    module.FeatureExtractorInceptionV3 = TinyInception  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "torch_fidelity", types.ModuleType("torch_fidelity"))
    monkeypatch.setitem(sys.modules, module.__name__, module)
    path = tmp_path / inception_module.WEIGHTS_FILE
    torch.save(linear_weights(4), path)
    return path


@pytest.mark.parametrize("channels", [1, 3])
def test_inception_sees_bytes_in_three_channels(tiny_inception: Path, channels: int) -> None:
    extractor = create_extractor("inception", 2, channels, tiny_inception)
    x = images(3, channels)
    assert extractor(x).shape == (3, 4)
    seen = extractor.network.seen[0]
    assert seen.shape == (3, 3, 20, 17)
    torch.testing.assert_close(seen.float() / 127.5 - 1, x[..., 0].expand(-1, 3, -1, -1), atol=1 / 255, rtol=0)
    extremes = torch.tensor([-1.0, 1, -1.5, 1.5]).view(4, 1, 1, 1, 1).expand(4, channels, 3, 3, 1)
    extractor(extremes)
    assert extractor.network.seen[1][:, 0, 0, 0].tolist() == [0, 255, 0, 255]


def test_inception_sees_central_slices_of_three_planes(tiny_inception: Path) -> None:
    extractor = create_extractor("inception", 3, 1, tiny_inception)
    features = extractor(images(2, 1, 3))
    assert features.shape == (2, 12)
    assert [tuple(s.shape[2:]) for s in extractor.network.seen] == [(9, 10)] * 3 + [(12, 10)] * 3 + [(12, 9)] * 3
    assert central_slices(10) == [4, 5, 6]
    assert central_slices(1) == [0, 0, 0]
    assert extractor.protocol["planes"] == 3
    assert "planes" not in create_extractor("inception", 2, 1, tiny_inception).protocol


def test_inception_protocol_follows_the_weights(tiny_inception: Path, tmp_path: Path) -> None:
    other = tmp_path / "other-0.pth"
    torch.save(linear_weights(4), other)
    protocols = [create_extractor("inception", 2, 1, path).protocol for path in (tiny_inception, tiny_inception, other)]
    assert protocols[0] == protocols[1] != protocols[2]


def test_inception_errors(tiny_inception: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match=r"grey or colour images, of 1 or 3 channels.*Received: 2"):
        create_extractor("inception", 2, 2, tiny_inception)
    with pytest.raises(UserError, match=r"needs the file weights-inception.*no file .*absent\.pth.*Download https://"):
        create_extractor("inception", 2, 1, tmp_path / "absent.pth")
    torch.save(linear_weights(5), tiny_inception)
    with pytest.raises(UserError, match="must hold the weights of FID's Inception-v3"):
        create_extractor("inception", 2, 1, tiny_inception)
    tiny_inception.write_bytes(pickle.dumps(print, 2))
    with pytest.raises(UserError, match="pickled code"):
        create_extractor("inception", 2, 1, tiny_inception)


def test_inception_offline_names_the_file_and_its_place(
    tiny_inception: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_network(*args: object, **kwargs: object) -> None:
        raise OSError("no network")

    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "hub"))
    monkeypatch.setattr(torch.hub, "download_url_to_file", no_network)
    message = r"hub/checkpoints/weights-inception-2015-12-05-6726825d\.pth.*no network.*put it there.*random"
    with pytest.raises(UserError, match=message):
        create_extractor("inception", 2)
    (tmp_path / "hub" / "checkpoints").mkdir(parents=True, exist_ok=True)
    tiny_inception.rename(tmp_path / "hub" / "checkpoints" / tiny_inception.name)
    assert create_extractor("inception", 2)(images(1)).shape == (1, 4)


def test_inception_without_its_package_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch_fidelity", None)
    with pytest.raises(UserError, match=r"torch-fidelity.*medical_diffusion\[evaluation\]"):
        create_extractor("inception", 2)


def test_inception_of_torch_fidelity_with_random_weights(tmp_path: Path) -> None:
    module = pytest.importorskip("torch_fidelity.feature_extractor_inceptionv3", exc_type=(ImportError, RuntimeError))

    class Unloaded(module.FeatureExtractorInceptionV3):  # type: ignore[name-defined, misc]
        def load_state_dict(self, *args: object, **kwargs: object) -> None:
            """Keep the random weights."""

    path = tmp_path / "weights-0.pth"
    torch.save({}, path)
    torch.manual_seed(0)
    torch.save(Unloaded("x", ["2048"], feature_extractor_weights_path=str(path)).state_dict(), path)
    extractor = create_extractor("inception", 3, 1, path)
    assert extractor(images(1, 1, 3)).shape == (1, 6144)


# medicalnet


@pytest.fixture(scope="module")
def medicalnet_weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from monai.networks.nets import resnet50

    torch.manual_seed(0)
    network = resnet50(spatial_dims=3, n_input_channels=1, feed_forward=False, bias_downsample=False)
    path = tmp_path_factory.mktemp("weights") / MEDICALNET_FILE
    # as published: names of a DataParallel wrapper
    torch.save({"state_dict": {f"module.{name}": value for name, value in network.state_dict().items()}}, path)
    return path


def test_medicalnet_of_a_local_file(medicalnet_weights: Path) -> None:
    extractor = create_extractor("medicalnet", 3, 1, medicalnet_weights)
    x = images(2, 1, 3)
    features = extractor(x)
    assert features.shape == (2, 2048)
    assert features.isfinite().all()
    torch.testing.assert_close(extractor(0.3 * x + 0.1), features, rtol=1e-3, atol=1e-4)  # brightness is taken out
    assert extractor(torch.full_like(x, 0.5)).isfinite().all()
    assert len(extractor.protocol["weights"]) == 64
    assert not extractor.network.training


def test_medicalnet_standardises_what_is_not_background() -> None:
    x = torch.full((1, 1, 4, 4, 4), -1.0)
    x[..., 2:] = torch.rand(1, 1, 4, 4, 2)
    result = standardised(x)
    assert (result[..., :2] == 0).all()
    assert result[..., 2:].mean().item() == pytest.approx(0, abs=1e-6)
    assert result[..., 2:].std(correction=0).item() == pytest.approx(1, abs=1e-5)


def test_medicalnet_errors(medicalnet_weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match=r"volumes of one channel.*2D, 1 channels"):
        create_extractor("medicalnet", 2)
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "hub"))
    with pytest.raises(UserError, match=r"resnet_50_23dataset\.pth.*hub/checkpoints.*https://huggingface\.co.*random"):
        create_extractor("medicalnet", 3)
    wrong = tmp_path / "wrong.pth"
    torch.save(nn.Linear(3, 5).state_dict(), wrong)
    with pytest.raises(UserError, match="must hold the weights of MedicalNet's ResNet-50"):
        create_extractor("medicalnet", 3, 1, wrong)


# exported networks


def exportable(axes: int) -> nn.Module:
    torch.manual_seed(0)
    if axes == 2:
        return nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.AdaptiveAvgPool2d(1), nn.Flatten()).eval()
    return nn.Sequential(nn.Conv3d(1, 4, 3), nn.BatchNorm3d(4), nn.AdaptiveAvgPool3d(1), nn.Flatten()).eval()


def save_program(network: nn.Module, example: Tensor, path: Path) -> Path:
    program = torch.export.export(network, (example,), dynamic_shapes=({0: torch.export.Dim("batch")},))
    torch.export.save(program, path)
    return path


@pytest.mark.parametrize("axes", [2, 3])
@pytest.mark.parametrize("kind", ["torchscript", "export"])
def test_an_exported_network_gives_its_features(
    axes: int, kind: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    network, x = exportable(axes), images(5, 1, axes)
    flat = x[..., 0] if axes == 2 else x
    if kind == "torchscript":
        path = tmp_path / "mine.pt"
        torch.jit.trace(network, flat).save(str(path))
    else:
        path = save_program(network, flat[:2], tmp_path / "mine.pt2")
    extractor = create_extractor(path, axes)
    assert "run only what you trust" in caplog.text
    features = extract_features(list(x), extractor, batch_size=3)
    np.testing.assert_allclose(features, network(flat).detach(), rtol=1e-4, atol=1e-5)
    assert extractor.name == path.name
    assert len(extractor.protocol["weights"]) == 64


def test_errors_of_exported_networks(tmp_path: Path) -> None:
    class Maps(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x

    torch.jit.script(Maps()).save(str(tmp_path / "maps.pt"))
    with pytest.raises(UserError, match=r"maps\.pt must return features \(2, F\).*\(2, 1, 20, 17\)"):
        create_extractor(tmp_path / "maps.pt", 2)(images(2))
    torch.jit.trace(exportable(3), images(1, 1, 3)).save(str(tmp_path / "volumes.pt"))
    with pytest.raises(UserError, match=r"volumes\.pt must take images of the shape \(2, 1, 20, 17\)"):
        create_extractor(tmp_path / "volumes.pt", 2)(images(2))
    torch.save(exportable(2).state_dict(), tmp_path / "weights.pt")
    with pytest.raises(UserError, match=r"must be an exported network.*weights\.pt"):
        create_extractor(tmp_path / "weights.pt", 2)
    (tmp_path / "broken.pt2").write_bytes(b"PK\x03\x04")
    with pytest.raises(UserError, match=r"whole archive without pickled code.*broken\.pt2"):
        create_extractor(tmp_path / "broken.pt2", 2)


@pytest.mark.parametrize("attack", ["inputs", "weights", "library"])
def test_an_archive_that_would_run_pickled_code_is_refused(attack: str, tmp_path: Path) -> None:
    witness = tmp_path / "ran"

    class Attack:
        def __reduce__(self):
            return (Path.touch, (witness,))

    sound = save_program(exportable(2), images(2)[..., 0], tmp_path / "sound.pt2")
    evil = tmp_path / "evil.pt2"
    with zipfile.ZipFile(sound) as source, zipfile.ZipFile(evil, "w") as target:
        for name in source.namelist():
            content = source.read(name)
            if attack == "inputs" and name.endswith("sample_inputs/model.pt"):
                content = pickle.dumps(Attack(), 2)
            if attack == "weights" and name.endswith("weights_config.json"):
                content = content.replace(b'"use_pickle": false', b'"use_pickle": true', 1)
            if attack == "weights" and name.endswith("weight_0"):
                content = pickle.dumps(Attack(), 2)
            target.writestr(name, content)
        if attack == "library":
            target.writestr("model/data/aotinductor/model/model.so", b"")
    message = {"inputs": "without pickled code", "weights": "pickled weights", "library": "compiled library"}[attack]
    with pytest.raises(UserError, match=message):
        create_extractor(evil, 2)
    assert not witness.exists()
