"""Flat images: each format gives the pixels that were written, rows down, with the range of its stored type."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from image_files import pixels, write_deep, write_picture
from monai.transforms import Compose, EnsureChannelFirstd
from PIL import Image, ImageOps

from medical_diffusion.data import IntensityScaling, LoadVolumed, load_volume, read_header, read_image
from medical_diffusion.errors import UserError

BYTE, WORD = (0.0, 255.0), (0.0, 65535.0)


def check(path: Path, expected: np.ndarray, stored_range: tuple[float, float], dtype: str) -> None:
    image, header = read_image(path), read_header(path)
    assert image.pixels.dtype == np.float32
    assert np.array_equal(image.pixels, expected.astype(np.float32))
    assert image.stored_range == stored_range
    assert np.array_equal(image.affine, np.eye(4))
    assert header.shape == expected.shape[:2]
    assert header.channels == (3 if expected.ndim == 3 else 1)
    assert header.dtype == dtype


@pytest.mark.parametrize("shape", [(5, 7), (7, 4, 3)])
@pytest.mark.parametrize("suffix", ["png", "tif", "tiff", "PNG"])
def test_bytes(tmp_path: Path, suffix: str, shape: tuple[int, ...]) -> None:
    check(write_picture(tmp_path / f"a.{suffix}", pixels(shape)), pixels(shape), BYTE, "uint8")


@pytest.mark.parametrize("suffix", ["png", "tif"])
def test_sixteen_bits(tmp_path: Path, suffix: str) -> None:
    grey = pixels((5, 7), np.uint16)
    check(write_picture(tmp_path / f"grey.{suffix}", grey), grey, WORD, "uint16")
    colour = pixels((5, 7, 3), np.uint16)
    check(write_deep(tmp_path / f"rgb.{suffix}", colour), colour, WORD, "uint16")


def test_sixteen_bits_with_transparency_lie_on_black(tmp_path: Path) -> None:
    colour = pixels((5, 7, 4), np.uint16)
    colour[..., 3] = np.where(np.arange(7) < 3, 65535, 0)
    expected = colour[..., :3] * (np.arange(7) < 3)[:, None]
    check(write_deep(tmp_path / "rgba.png", colour), expected, WORD, "uint16")


def test_jpeg_is_what_pillow_decodes_and_close_to_what_was_written(tmp_path: Path) -> None:
    smooth = np.add.outer(np.arange(40) * 3, np.arange(56) * 2).astype(np.uint8)
    path = write_picture(tmp_path / "a.jpg", smooth, quality=95)
    image = read_image(path)
    assert np.array_equal(image.pixels, np.asarray(Image.open(path)))
    assert np.abs(image.pixels - smooth).max() < 5
    colour = write_picture(tmp_path / "b.jpeg", np.stack([smooth, smooth // 2, 255 - smooth], -1))
    assert read_image(colour).pixels.shape == (40, 56, 3)
    assert read_header(colour).channels == 3


@pytest.mark.parametrize("suffix", ["jpg", "png"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation(tmp_path: Path, orientation: int, suffix: str) -> None:
    exif = Image.Exif()
    exif[274] = orientation
    path = write_picture(tmp_path / f"a.{suffix}", pixels((8, 16)), exif=exif)
    expected = np.asarray(ImageOps.exif_transpose(Image.open(path)))
    assert np.array_equal(read_image(path).pixels, expected)
    assert read_header(path).shape == expected.shape == ((8, 16) if orientation < 5 else (16, 8))


def test_tiff_orientation_is_applied_or_refused(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[274] = 3
    path = write_picture(tmp_path / "a.tif", pixels(), exif=exif)
    assert np.array_equal(read_image(path).pixels, pixels()[::-1, ::-1])
    exif[274] = 6
    with pytest.raises(UserError, match=r"TIFF file must be stored upright.*orientation 6.*without an orientation tag"):
        read_image(write_picture(tmp_path / "b.tif", pixels(), exif=exif))


def test_tiff_that_stores_white_as_zero(tmp_path: Path) -> None:
    for dtype, top in ((np.uint8, 255), (np.uint16, 65535)):
        path = write_picture(tmp_path / "a.tif", pixels(dtype=dtype), tiffinfo={262: 0})
        assert Image.open(path).tag_v2[262] == 0
        stored = top - pixels(dtype=dtype) if dtype == np.uint16 else np.asarray(Image.open(path))
        assert np.array_equal(read_image(path).pixels, stored)


def test_palettes_are_expanded(tmp_path: Path) -> None:
    index = pixels() % 4
    greys = np.array([10, 200, 30, 90], np.uint8)
    colours = np.array([[255, 0, 0], [0, 255, 0], [1, 2, 3], [9, 9, 9]], np.uint8)
    for name, palette, expected in (
        ("grey", np.repeat(greys, 3), greys[index]),
        ("colour", colours.ravel(), colours[index]),
    ):
        image = Image.fromarray(index)
        image.putpalette(palette.tolist())
        image.save(tmp_path / f"{name}.png")
        assert Image.open(tmp_path / f"{name}.png").mode == "P"
        check(tmp_path / f"{name}.png", expected, BYTE, "uint8")
    image.save(tmp_path / "clear.png", transparency=0)
    check(tmp_path / "clear.png", np.where(index[..., None] == 0, 0, colours[index]), BYTE, "uint8")


def test_alpha_is_laid_on_black_and_opaque_alpha_dropped(tmp_path: Path) -> None:
    rgba = pixels((5, 7, 4))
    rgba[..., 3] = 255
    check(write_picture(tmp_path / "opaque.png", rgba), rgba[..., :3], BYTE, "uint8")
    rgba[..., 3] = 51
    half = read_image(write_picture(tmp_path / "half.png", rgba)).pixels
    assert np.allclose(half, rgba[..., :3] * 0.2, atol=1e-4)
    grey = pixels((5, 7, 2))
    grey[..., 1] = np.where(np.arange(5) < 2, 255, 0)[:, None]
    path = write_picture(tmp_path / "grey.png", grey)
    check(path, np.where(grey[..., 1] == 255, grey[..., 0], 0), BYTE, "uint8")
    keyed = write_picture(tmp_path / "key.png", np.full((3, 4), 7, np.uint8), transparency=7)
    check(keyed, np.zeros((3, 4)), BYTE, "uint8")


def test_one_bit(tmp_path: Path) -> None:
    mask = pixels() > 100
    for suffix in ("png", "tif"):
        check(write_picture(tmp_path / f"a.{suffix}", mask), mask, (0.0, 1.0), "bool")


def test_floats_and_wide_integers_in_tiff(tmp_path: Path) -> None:
    values = np.random.default_rng(0).uniform(-3, 8, (5, 7)).astype(np.float32)
    check(write_picture(tmp_path / "a.tif", values), values, (float(values.min()), float(values.max())), "float32")
    whole = pixels().astype(np.int32)
    check(write_picture(tmp_path / "b.tif", whole), whole, (float(whole.min()), float(whole.max())), "int32")


@pytest.mark.parametrize("suffix", ["npy", "npz"])
@pytest.mark.parametrize(
    ("array", "stored_range"),
    [
        (pixels(), BYTE),
        (pixels((5, 7, 3)), BYTE),
        (pixels((5, 7), np.uint16), WORD),
        (pixels() > 99, (0.0, 1.0)),
        (np.linspace(0.2, 0.7, 35).reshape(5, 7), (0.0, 1.0)),
        (np.linspace(-2, 3, 35, dtype=np.float32).reshape(5, 7), (-2.0, 3.0)),
        (np.arange(35, dtype=np.int64).reshape(5, 7), (0.0, 34.0)),
        (np.asfortranarray(pixels((6, 3))), BYTE),
        (pixels((5, 7), np.uint16).astype(">u2"), WORD),
    ],
    ids=lambda value: f"{value.dtype}{value.ndim}" if isinstance(value, np.ndarray) else "",
)
def test_arrays(tmp_path: Path, suffix: str, array: np.ndarray, stored_range: tuple[float, float]) -> None:
    path = tmp_path / f"a.{suffix}"
    np.save(path, array) if suffix == "npy" else np.savez_compressed(path, image=array)
    check(path, array, stored_range, array.dtype.name)


def test_arrays_with_an_axis_of_one(tmp_path: Path) -> None:
    for shape in ((5, 7, 1), (1, 5, 7)):
        np.save(tmp_path / "a.npy", pixels().reshape(shape))
        check(tmp_path / "a.npy", pixels(), BYTE, "uint8")


@pytest.mark.parametrize("shape", [(9, 28, 28), (9, 28, 28, 3), (3, 28, 28), (28, 28, 4)])
def test_a_stack_says_how_to_split_it(tmp_path: Path, shape: tuple[int, ...]) -> None:
    np.save(tmp_path / "a.npy", np.zeros(shape, np.uint8))
    with pytest.raises(UserError, match=r"hold one image.*a stack of images.*enumerate\(numpy.load\(FILE\)\)"):
        read_image(tmp_path / "a.npy")


def test_several_arrays_are_listed(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", images=np.zeros((9, 4, 4)), labels=np.zeros(9))
    with pytest.raises(UserError, match=r"hold one array.*with 2: images \(9, 4, 4\), labels \(9,\).*\[NAME\]"):
        read_header(tmp_path / "a.npz")


def test_arrays_that_are_no_numbers(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.array([[{}]], dtype=object), allow_pickle=True)
    with pytest.raises(UserError, match=r"hold real numbers.*object"):
        read_image(tmp_path / "a.npy")
    np.save(tmp_path / "b.npy", np.zeros((3, 3), complex))
    with pytest.raises(UserError, match=r"hold real numbers.*complex128"):
        read_image(tmp_path / "b.npy")
    np.save(tmp_path / "c.npy", np.zeros(3))
    with pytest.raises(UserError, match=r"hold one image.*of shape \(3,\)\. Save one image"):
        read_image(tmp_path / "c.npy")


def _multi_page(path: Path) -> None:
    first, second = (Image.fromarray(pixels(seed=seed)) for seed in (0, 1))
    first.save(path, save_all=True, append_images=[second])


@pytest.mark.parametrize("suffix", ["tif", "png"])
def test_several_pages_are_refused(tmp_path: Path, suffix: str) -> None:
    _multi_page(tmp_path / f"a.{suffix}")
    for read in (read_image, read_header):
        with pytest.raises(UserError, match=r"must hold one image.*with 2 pages or frames.*file of its own"):
            read(tmp_path / f"a.{suffix}")


@pytest.mark.parametrize("read", [read_header, read_image])
def test_decompression_bombs_are_refused_before_decoding(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, read: Callable[[Path], object]
) -> None:
    path = write_picture(tmp_path / "a.png", pixels((20, 30)))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 200)
    monkeypatch.setattr(Image.Image, "load", lambda *_: pytest.fail("decoded"))
    with pytest.raises(UserError, match=r"decompression bombs.*a.png.*600 pixels.*400 pixels.*shrink"):
        read(path)


def test_a_huge_array_is_refused_by_its_header(tmp_path: Path) -> None:
    path = tmp_path / "a.npy"
    np.lib.format.open_memmap(path, mode="w+", dtype=np.uint8, shape=(20000, 20000))  # a sparse file
    with pytest.raises(UserError, match=r"decompression bombs.*400000000 pixels exceed the limit of 178956970"):
        read_image(path)


@pytest.mark.parametrize("suffix", ["png", "jpg", "tif", "npy", "npz", "16.png"])
def test_truncated_files(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"a.{suffix}"
    array = pixels((64, 64))
    if suffix.startswith("np"):
        np.save(path, array) if suffix == "npy" else np.savez(path, array)
    elif suffix == "16.png":
        write_deep(path, pixels((64, 64, 3), np.uint16))
    else:
        write_picture(path, array)
    content = path.read_bytes()
    path.write_bytes(content[: len(content) * 6 // 10])
    with pytest.raises(UserError, match=rf"a file must be of|complete.*a\.{suffix} .*Copy or download the file again"):
        read_image(path)


@pytest.mark.parametrize("suffix", ["png", "jpg", "tif", "npy", "npz"])
def test_text_and_missing_files(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"a.{suffix}"
    with pytest.raises(UserError, match=r"must exist.*Check the path"):
        read_image(path)
    path.write_text("not an image " * 20)
    with pytest.raises(UserError, match=r"format that its name says|readable and complete"):
        read_header(path)


def test_other_formats_behind_a_known_name_are_refused(tmp_path: Path) -> None:
    Image.fromarray(pixels()).save(tmp_path / "a.gif")
    (tmp_path / "a.gif").rename(tmp_path / "a.png")
    with pytest.raises(UserError, match=r"format that its name says.*a.png"):
        read_image(tmp_path / "a.png")


def test_images_become_volumes_of_depth_one(tmp_path: Path) -> None:
    chain = Compose([LoadVolumed("image", allow_planar=True), EnsureChannelFirstd("image")])
    grey = chain({"image": write_picture(tmp_path / "a.png")})["image"]
    assert grey.shape == (1, 5, 7, 1)
    assert torch.equal(grey[0, :, :, 0].as_tensor(), torch.from_numpy(pixels().astype(np.float32)))
    colour = chain({"image": write_picture(tmp_path / "b.png", pixels((5, 7, 3)))})["image"]
    assert colour.shape == (3, 5, 7, 1)
    assert np.array_equal(colour[:, :, :, 0].numpy(), pixels((5, 7, 3)).transpose(2, 0, 1))
    for image in (grey, colour):
        assert image.meta["stored_range"] == BYTE
        assert np.array_equal(image.affine, np.eye(4))
    with pytest.raises(UserError, match=r"more than one slice here.*b.png.*depth 1"):
        load_volume(tmp_path / "b.png")


def test_stored_range_scales_images_of_a_kind_alike(tmp_path: Path) -> None:
    scaling = IntensityScaling("stored")
    assert not scaling.is_physical
    for dtype, top in ((np.uint8, 255), (np.uint16, 65535)):
        array = pixels(dtype=dtype) // 2
        image = load_volume(write_picture(tmp_path / "a.png", array), allow_planar=True)
        scaled = scaling.to_model_range(image)
        assert np.allclose(scaled[:, :, 0].numpy(), array * (2 / top) - 1, atol=1e-6)
        assert torch.allclose(scaling.to_physical(scaled).as_tensor() * top, image.as_tensor(), atol=0.01)
    assert IntensityScaling.from_dict(scaling.to_dict()) == scaling
    with pytest.raises(UserError, match=r"needs the range of the stored type.*a volume without stored_range"):
        scaling.to_model_range(torch.zeros(1, 2, 2, 1))


def test_grey_and_colour_are_converted_only_when_asked(tmp_path: Path) -> None:
    colour = pixels((5, 7, 3))
    rgb = write_picture(tmp_path / "rgb.png", colour)
    grey = write_picture(tmp_path / "grey.png")
    same = write_picture(tmp_path / "same.png", np.repeat(pixels()[..., None], 3, -1))
    remedy = "--channels 3 for RGB images, or --convert_channels true"
    with pytest.raises(UserError, match=rf"must be grey here \(1 channel\).*rgb.png: an RGB image.*{remedy}"):
        load_volume(rgb, allow_planar=True, channels=1)
    with pytest.raises(
        UserError, match=r"must be RGB here \(3 channels\).*grey.png: a grey image.*--channels 1.*repeating"
    ):
        LoadVolumed("image", allow_planar=True, channels=3)({"image": grey})
    luma = load_volume(rgb, allow_planar=True, channels=1, convert_channels=True)
    assert luma.shape == (5, 7, 1)
    assert np.allclose(luma[..., 0].numpy(), colour @ [0.299, 0.587, 0.114], atol=1e-3)
    repeated = load_volume(grey, allow_planar=True, channels=3, convert_channels=True)
    assert repeated.shape == (5, 7, 1, 3)
    assert all(np.array_equal(repeated[..., 0, c].numpy(), pixels()) for c in range(3))
    assert EnsureChannelFirstd("image")({"image": repeated})["image"].shape == (3, 5, 7, 1)
    equal = load_volume(same, allow_planar=True, channels=1)
    assert np.array_equal(equal[..., 0].numpy(), pixels())
    assert load_volume(same, allow_planar=True, channels=3).shape == (5, 7, 1, 3)
    assert load_volume(grey, allow_planar=True, channels=1).shape == (5, 7, 1)
    with pytest.raises(UserError, match=r"channels must be 1 \(grey\) or 3 \(RGB\).*2"):
        LoadVolumed("image", channels=2)
