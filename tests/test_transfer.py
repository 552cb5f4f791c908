"""Pre-trained weights: every known format arrives whole, and nothing is left out in silence."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from monai.networks.nets import SwinUNETR as MonaiSwinUNETR
from monai.networks.nets import UNet
from torch import Tensor

from medical_diffusion.errors import UserError
from medical_diffusion.files import save_tensors
from medical_diffusion.networks import SwinUNETR
from medical_diffusion.networks.transfer import FIRST_CONVOLUTIONS, canonical_name, transfer_weights

SIZE = (32, 32, 32)


def network(in_channels: int = 1, out_channels: int = 1, feature_size: int = 12, **options: Any) -> SwinUNETR:
    return SwinUNETR(SIZE, in_channels, out_channels, feature_size, **options)


@pytest.fixture(scope="module")
def source() -> dict[str, Tensor]:
    """Weights of a plain MONAI network."""
    torch.manual_seed(1)
    return MonaiSwinUNETR(1, 1, feature_size=12).state_dict()


def as_published(state: dict[str, Tensor], kind: str) -> dict[str, Any]:
    """The encoder's weights under the names of the published self-supervised files."""
    encoder = {k.removeprefix("swinViT."): v for k, v in state.items() if k.startswith("swinViT.")}
    old = {k.replace("linear1", "fc1").replace("linear2", "fc2"): v for k, v in encoder.items()}
    if kind == "module":
        return {"state_dict": {f"module.{k}": v for k, v in old.items()}, "epoch": 3}
    if kind == "swinViT":
        return {"state_dict": {f"module.swinViT.{k}": v for k, v in old.items()}}
    layered = {k.replace(".0.", ".0.0.", 1) if k.startswith("layers") else k: v for k, v in encoder.items()}
    return {"model": {f"encoder.{k}": v for k, v in layered.items()} | {"encoder.mask_token": torch.zeros(1)}}


def test_a_whole_network_arrives_whole(source: dict[str, Tensor], tmp_path: Path) -> None:
    target = network()
    path = save_tensors(tmp_path / "model.pt", {"model": source, "settings": {"seed": 1}})
    for given in (source, path, str(path), {"state_dict": {f"module.{k}": v for k, v in source.items()}}):
        report = transfer_weights(target, given)
        assert report.share == 1.0 and report.part == "network"
        assert report.transferred == set(source)
        assert not (report.missing or report.unexpected or report.mismatched or report.new_head)
    MonaiSwinUNETR(1, 1, feature_size=12).load_state_dict(target.state_dict(), strict=True)
    for name, value in target.state_dict().items():
        torch.testing.assert_close(value, source[name], rtol=0, atol=0)


@pytest.mark.parametrize("kind", ["module", "swinViT", "encoder"])
def test_published_encoders_arrive_whole_and_the_report_says_that_the_decoder_is_new(
    source: dict[str, Tensor], kind: str
) -> None:
    target = network()
    before = {k: v.clone() for k, v in target.state_dict().items()}
    report = transfer_weights(target, as_published(source, kind))
    assert report.share == 1.0 and report.part == "encoder"
    assert any("decoder starts afresh" in line for line in report.summary())
    assert {k.split(".")[0] for k in report.missing} >= {"encoder1", "decoder1"}
    for name, value in target.state_dict().items():
        expected = source[name] if name.startswith("swinViT.") else before[name]
        torch.testing.assert_close(value, expected, rtol=0, atol=0)


def test_monais_own_reader_agrees_about_its_format(source: dict[str, Tensor]) -> None:
    published = as_published(source, "module")
    theirs, ours = MonaiSwinUNETR(1, 1, feature_size=12), network()
    theirs.load_from(published)
    transfer_weights(ours, published)
    for name, value in theirs.swinViT.state_dict().items():
        torch.testing.assert_close(ours.swinViT.state_dict()[name], value, rtol=0, atol=0)


@pytest.mark.parametrize(("before", "after"), [(1, 3), (3, 1)])
def test_channels_are_reshaped_and_grey_images_give_the_same_features(before: int, after: int) -> None:
    torch.manual_seed(0)
    first, second = (SwinUNETR((64, 32, 1), channels, 1, 12).eval() for channels in (before, after))
    report = transfer_weights(second, first.state_dict())
    assert set(report.reshaped) == set(FIRST_CONVOLUTIONS) and report.share == 1.0
    grey = torch.randn(1, 1, 64, 32, 1)
    with torch.no_grad():
        features = [net(grey.expand(-1, channels, -1, -1, -1)) for net, channels in ((first, before), (second, after))]
    torch.testing.assert_close(*features, rtol=1e-4, atol=1e-4)


def test_output_layer_of_other_classes_is_new_and_counted(source: dict[str, Tensor]) -> None:
    target = network(out_channels=4)
    head = target.out.conv.conv.weight.detach().clone()
    report = transfer_weights(target, source)
    assert set(report.new_head) == {"out.conv.conv.weight", "out.conv.conv.bias"} and report.share == 1.0
    torch.testing.assert_close(target.out.conv.conv.weight.detach(), head)
    same = network()
    head = same.out.conv.conv.weight.detach().clone()
    assert transfer_weights(same, source, new_head=True).new_head == report.new_head
    torch.testing.assert_close(same.out.conv.conv.weight.detach(), head)


def refuse(target: SwinUNETR, given: Any, message: str, **options: Any) -> None:
    """The error, and that the network is as it was."""
    before = {k: v.clone() for k, v in target.state_dict().items()}
    with pytest.raises(UserError, match=message):
        transfer_weights(target, given, **options)
    for name, value in target.state_dict().items():
        torch.testing.assert_close(value, before[name], rtol=0, atol=0)


def test_other_weights_are_refused_with_what_matched_and_what_did_not(source: dict[str, Tensor]) -> None:
    refuse(network(), {f"backbone.{k}": v for k, v in source.items()}, r"at least 90 %.*0\.0 %.*missing.*prefix")
    refuse(
        network(feature_size=24), source, r"of another shape: .*feature_size 12, this network 24: use --feature_size 12"
    )
    refuse(SwinUNETR((32, 32, 1), 1, 1, 12), source, "network for 3D, this one is for 2D")
    refuse(
        network(in_channels=2), network(in_channels=3).state_dict(), "3 channels in the given weights, 2 in the network"
    )
    other = UNet(3, 1, 1, channels=(4, 8), strides=(2,)).state_dict()
    refuse(network(), other, "names in this file are those of another network")
    deeper = network(depths=(2, 4, 2, 2), feature_size=12)
    refuse(deeper, source, "missing in the file: swinViT.layers2", minimum_share=1.0)
    refuse(network(), deeper.state_dict(), "unexpected in the file: swinViT.layers2", minimum_share=1.0)
    half = {k: v for n, (k, v) in enumerate(source.items()) if n % 2}
    refuse(network(), half, "at least 90 %.*missing in the file")


def test_what_is_no_weights_is_refused(tmp_path: Path) -> None:
    refuse(network(), {"model": {"step": 3}}, "must be a dictionary of tensors")
    refuse(network(), tmp_path / "absent.pt", "a checkpoint must exist")
    broken = {k: v.float() * float("nan") if v.is_floating_point() else v for k, v in network().state_dict().items()}
    refuse(network(), broken, "must be finite")
    refuse(network(), network().state_dict(), r"minimum_share must lie in \[0, 1\]", minimum_share=90)
    (tmp_path / "cut.pt").write_bytes(b"PK\x03\x04 cut")
    refuse(network(), tmp_path / "cut.pt", "truncated or damaged|pickled code")


def test_a_lower_share_takes_a_part_and_names_the_rest(source: dict[str, Tensor]) -> None:
    half = {k: v for n, (k, v) in enumerate(source.items()) if n % 2}
    report = transfer_weights(network(), half, minimum_share=0.1)
    assert 0.1 <= report.share < 0.9 and set(report.missing) == {k for k in source if k not in half and "out." not in k}
    assert any("missing in the file" in line and "more" in line for line in report.summary())


@pytest.mark.parametrize(
    ("key", "expected"),
    [
        ("module.layers1.0.blocks.0.mlp.fc1.weight", "swinViT.layers1.0.blocks.0.mlp.linear1.weight"),
        ("encoder.layers2.0.0.downsample.norm.bias", "swinViT.layers2.0.downsample.norm.bias"),
        ("encoder10.layer.conv1.conv.weight", "encoder10.layer.conv1.conv.weight"),
        ("_orig_mod.module.out.conv.conv.bias", "out.conv.conv.bias"),
    ],
)
def test_names(key: str, expected: str) -> None:
    assert canonical_name(key) == expected
