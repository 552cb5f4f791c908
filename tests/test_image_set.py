from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from data_files import voxels, write_nifti
from image_files import pixels, write_picture

from medical_diffusion.data.image_set import ImageSet, check_alike
from medical_diffusion.data.preprocessing import IntensityScaling
from medical_diffusion.data.reading.reader import load_volume
from medical_diffusion.errors import UserError
from medical_diffusion.evaluation.input_checks import spacing_warnings
from medical_diffusion.synthesis import SampleWriter


def pictures(folder: Path, count: int = 3, shape: tuple[int, ...] = (5, 7), seed: int = 0) -> Path:
    for n in range(count):
        write_picture(folder / f"{n}.png", pixels(shape, seed=seed + n))
    return folder


def test_flat_images_keep_the_scale_of_their_type(tmp_path: Path) -> None:
    images = ImageSet(pictures(tmp_path / "sub").parent)
    assert (len(images), images.size, images.channels, images.is_planar) == (3, (5, 7, 1), 1, True)
    expected = torch.from_numpy(pixels((5, 7), seed=1).astype(np.float32)) / 255 * 2 - 1
    torch.testing.assert_close(images[1][0, :, :, 0], expected)
    assert images.names == ["sub/0.png", "sub/1.png", "sub/2.png"]
    assert images.protocol["intensity"]["mode"] == "stored"
    assert len(list(images)) == 3
    assert len(images[:2]) == 2


def test_a_window_is_the_same_for_every_volume_and_axes_run_right_front_up(tmp_path: Path) -> None:
    array = voxels((6, 7, 5)).astype(np.int16)
    write_nifti(tmp_path / "a.nii.gz", array)
    turned = np.zeros((4, 4))
    turned[0, 2], turned[1, 0], turned[2, 1], turned[3, 3] = -1, 1, 1, 1  # array axes run front, up, left
    write_nifti(tmp_path / "b.nii.gz", np.moveaxis(array[::-1], 0, 2), turned)
    images = ImageSet(tmp_path, window=(-1000, 1000))
    torch.testing.assert_close(images[0][0], torch.from_numpy(array / 1000.0).float())
    torch.testing.assert_close(images[1], images[0])


def test_volumes_take_their_own_percentiles_by_default(tmp_path: Path) -> None:
    array = voxels((8, 9, 5)).astype(np.float32)
    write_nifti(tmp_path / "a.nii", array)
    write_nifti(tmp_path / "b.nii", 70 * array + 3000)
    images = ImageSet(tmp_path)
    torch.testing.assert_close(images[0], images[1], atol=1e-3, rtol=0)
    assert images.protocol["intensity"] == {"mode": "percentile", "lower": 0.5, "upper": 99.5}


def test_pictures_beside_samples_are_no_samples(tmp_path: Path) -> None:
    for n in range(2):
        write_picture(tmp_path / f"sample_{n}.png")
        (tmp_path / f"sample_{n}.json").write_text(json.dumps({"class_name": f"kind {n}"}))
    write_picture(tmp_path / "preview.png", pixels((50, 60)))
    images = ImageSet(tmp_path, labels="sidecars")
    assert images.names == ["sample_0.png", "sample_1.png"]
    assert (images.class_names, images.labels) == (("kind 0", "kind 1"), [0, 1])
    assert images.ignored == []


def left_out(images: ImageSet) -> list[tuple[str, str]]:
    return [(left.path.relative_to(images.folder).as_posix(), left.why) for left in images.ignored]


def test_volumes_beside_pictures_are_meant_alone(tmp_path: Path) -> None:
    write_nifti(tmp_path / "a.nii.gz")
    write_picture(tmp_path / "preview.png")
    images = ImageSet(tmp_path)
    assert images.names == ["a.nii.gz"]
    assert left_out(images) == [("preview.png", "flat images do not count beside volumes")]


def test_what_could_be_an_image_is_left_out_by_name(tmp_path: Path) -> None:
    pictures(tmp_path / "flat", 2)
    write_picture(tmp_path / "flat" / "sample_0.png", pixels((5, 7)))
    (tmp_path / "flat" / "sample_0.json").write_text("{}", encoding="utf-8")
    pictures(tmp_path / "flat" / "masks", 1)
    assert left_out(ImageSet(tmp_path / "flat")) == [
        ("0.png", "it lies beside samples"),
        ("1.png", "it lies beside samples"),
        ("masks/0.png", "its folder is named as one of labels"),
    ]
    pictures(tmp_path / "stack", 2)
    np.save(tmp_path / "stack" / "stack.npy", voxels((8, 9, 6)))
    images = ImageSet(tmp_path / "stack", intensity="minmax")
    assert images.names == ["stack.npy"]
    assert [name for name, _ in left_out(images)] == ["0.png", "1.png"]


def test_images_of_formats_that_are_not_read_are_left_out_by_name(tmp_path: Path) -> None:
    pictures(tmp_path / "flat", 1)
    names = ("a.bmp", "b.WebP", "c.gif", "d.mnc", "e.nii.bz2", "f.mgz", "masks/g.jp2")
    for name in (*names, "h.json", "i.csv", "j.txt", "k.pdf", "l.csv.gz", "README", "README.md", ".hidden.bmp"):
        (tmp_path / "flat" / name).parent.mkdir(exist_ok=True)
        (tmp_path / "flat" / name).write_text("any", encoding="utf-8")
    images = ImageSet(tmp_path / "flat")
    assert images.names == ["0.png"]
    assert [name for name, _ in left_out(images)] == list(names)
    assert str(images.ignored[1]).endswith("b.WebP: .webp files are not read")


def test_voxels_that_a_header_names_are_no_image_of_their_own(tmp_path: Path) -> None:
    sitk = pytest.importorskip("SimpleITK")
    sitk.WriteImage(sitk.GetImageFromArray(voxels((8, 9, 6))), tmp_path / "a.mhd")
    (tmp_path / "a.raw").rename(tmp_path / "a.img")
    header = (tmp_path / "a.mhd").read_text(encoding="utf-8")
    (tmp_path / "a.mhd").write_text(header.replace("a.raw", "a.img"), encoding="utf-8")
    images = ImageSet(tmp_path, intensity="minmax")
    assert images.names == ["a.mhd"] and images.ignored == []
    (tmp_path / "b.img").write_bytes(b"0")
    assert left_out(ImageSet(tmp_path, intensity="minmax")) == [("b.img", ".img files are not read")]


def test_images_of_equal_headers_and_other_voxels_are_not_one(tmp_path: Path) -> None:
    sitk = pytest.importorskip("SimpleITK")
    for seed, name in enumerate(("first", "second", "third")):
        (tmp_path / name).mkdir()
        sitk.WriteImage(sitk.GetImageFromArray(voxels((8, 9, 6), seed)), tmp_path / name / "a.mhd")
    sets = [ImageSet(tmp_path / name, intensity="minmax", cache_dir=tmp_path / "cache") for name in ("first", "second")]
    assert sets[0].keys != sets[1].keys
    shutil.copy(tmp_path / "third" / "a.raw", tmp_path / "first" / "a.raw")
    again = ImageSet(tmp_path / "first", intensity="minmax", cache_dir=tmp_path / "cache")
    assert again.keys != sets[0].keys, "drawn again into the same name"


def test_linked_folders_count_and_hidden_ones_do_not_where_2d_or_3d_is_found_out(tmp_path: Path) -> None:
    write_nifti(tmp_path / "set" / ".hidden" / "a.nii.gz")
    (tmp_path / "set" / "linked").symlink_to(pictures(tmp_path / "elsewhere", 2), target_is_directory=True)
    assert ImageSet(tmp_path / "set").names == ["linked/0.png", "linked/1.png"]


def test_broken_files_are_listed_and_left_out(tmp_path: Path) -> None:
    pictures(tmp_path, 3)
    (tmp_path / "1.png").write_bytes((tmp_path / "0.png").read_bytes()[:40])
    (tmp_path / "x.png").write_text("no picture")
    images = ImageSet(tmp_path)
    assert images.names == ["0.png", "2.png"]
    assert sorted(fault.path.name for fault in images.unreadable) == ["1.png", "x.png"]
    assert len(images.keys) == 2
    for path in tmp_path.glob("[02].png"):
        path.write_text("no picture")
    with pytest.raises(UserError, match=r"must hold a readable image.*4 faults"):
        ImageSet(tmp_path)


def test_nan_is_a_fault_and_a_constant_image_stays(tmp_path: Path) -> None:
    write_nifti(tmp_path / "a.nii", np.full((4, 5, 6), np.nan, np.float32))
    write_nifti(tmp_path / "b.nii", np.full((4, 5, 6), 7.0, np.float32))
    write_nifti(tmp_path / "c.nii", voxels((4, 5, 6)))
    images = ImageSet(tmp_path)
    assert [str(fault.rule) for fault in images.unreadable] == ["voxels must be finite"]
    assert images.constant == ["b.nii"]
    assert images[0].unique().tolist() == [-1]


def test_keys_follow_the_values_as_read(tmp_path: Path) -> None:
    pictures(tmp_path / "a", 2)
    write_picture(tmp_path / "b" / "other name.png", pixels((5, 7), seed=1))
    a, b = ImageSet(tmp_path / "a"), ImageSet(tmp_path / "b")
    assert a.keys[1] == b.keys[0] != a.keys[0]
    assert ImageSet(tmp_path / "b", image_size=4).keys != b.keys
    write_picture(tmp_path / "a" / "again.png", pixels((5, 7), seed=1))
    assert ImageSet(tmp_path / "a").duplicates == 1


def test_what_an_older_reader_cached_no_longer_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pictures(tmp_path / "a")
    first = ImageSet(tmp_path / "a", cache_dir=tmp_path / "cache")
    monkeypatch.setattr("medical_diffusion.data.image_set.READER", first.protocol["reader"] + 1)
    later = ImageSet(tmp_path / "a", cache_dir=tmp_path / "cache")
    assert later.keys == first.keys
    assert len(json.loads((tmp_path / "cache" / "read_files.json").read_text(encoding="utf-8"))) == 2 * len(first)


@pytest.mark.parametrize("damage", ["", "[]", '{"half', '{"a": 3}'])
def test_a_damaged_record_of_what_was_read_counts_as_none(tmp_path: Path, damage: str) -> None:
    first = ImageSet(pictures(tmp_path / "a"), cache_dir=tmp_path / "cache")
    record = tmp_path / "cache" / "read_files.json"
    whole = record.read_text(encoding="utf-8")
    damaged = {key: {} for key in json.loads(whole)} if damage == "" else None
    record.write_text(json.dumps(damaged) if damaged else damage, encoding="utf-8")
    assert ImageSet(tmp_path / "a", cache_dir=tmp_path / "cache").keys == first.keys
    assert json.loads(record.read_text(encoding="utf-8")) == json.loads(whole)


def test_what_was_read_without_fault_is_not_read_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pictures(tmp_path / "a")
    first = ImageSet(tmp_path / "a", cache_dir=tmp_path / "cache")

    def refuse(*_: object) -> None:
        raise AssertionError("read again")

    with monkeypatch.context() as patched:
        patched.setattr(ImageSet, "_loaded", refuse)
        second = ImageSet(tmp_path / "a", cache_dir=tmp_path / "cache")
    assert second.keys == first.keys


@pytest.mark.parametrize(("labels", "found"), [("folders", ("cat", "dog")), ("labels.csv", ("0", "1"))])
def test_labels_come_from_folders_or_a_list(tmp_path: Path, labels: str, found: tuple[str, ...]) -> None:
    pictures(tmp_path / "cat", 1)
    pictures(tmp_path / "dog", 2, seed=5)
    (tmp_path / "labels.csv").write_text("image,label\ncat/0.png,0\ndog/1.png,1\ndog/0.png,1\n")
    images = ImageSet(tmp_path, labels=labels)
    assert (images.class_names, images.labels) == (found, [0, 1, 1])


def test_a_limit_draws_the_same_images_again(tmp_path: Path) -> None:
    pictures(tmp_path, 20)
    names = [ImageSet(tmp_path, limit=5, seed=seed).names for seed in (0, 0, 1)]
    assert names[0] == names[1] != names[2]
    assert len(names[0]) == 5


@pytest.mark.parametrize(
    ("options", "shape"), [({"image_size": 6}, (1, 6, 6, 1)), ({"crop_size": (4, 6)}, (1, 4, 6, 1))]
)
def test_mixed_sizes_are_refused_or_made_alike(tmp_path: Path, options: dict, shape: tuple[int, ...]) -> None:
    pictures(tmp_path / "a", 2)
    pictures(tmp_path / "b", 1, (6, 6))
    with pytest.raises(UserError, match=r"one size.*2 of \(5, 7, 1\), 1 of \(6, 6, 1\).*image_size"):
        ImageSet(tmp_path)
    assert {tuple(image.shape) for image in ImageSet(tmp_path, **options)} == {shape}
    with pytest.raises(UserError, match=r"sets must have images of one size.*\(5, 7, 1\) and \(6, 6, 1\)"):
        check_alike([ImageSet(tmp_path / "a"), ImageSet(tmp_path / "b")])


def test_images_are_scaled_whole_and_then_cropped_or_padded_with_black_as_in_training(tmp_path: Path) -> None:
    write_picture(tmp_path / "flat" / "a.png", pixels((5, 7)) // 2 + 100)  # nothing in it is black
    padded = ImageSet(tmp_path / "flat", crop_size=(9, 7))[0][0, ..., 0]
    assert (padded[:2] == -1).all()
    assert (padded[-2:] == -1).all()
    torch.testing.assert_close(padded[2:-2], ImageSet(tmp_path / "flat")[0][0, ..., 0])
    array = voxels((8, 9, 6)).astype(np.float32)
    array[0] = 5000  # outside of the crop, and beyond the percentiles of what is inside
    write_nifti(tmp_path / "volumes" / "a.nii", array)
    whole, cropped = (ImageSet(tmp_path / "volumes", crop_size=size)[0] for size in (None, (4, 5, 6)))
    torch.testing.assert_close(cropped, whole[:, 2:6, 2:7])


def test_relative_samples_are_not_mapped_a_second_time(tmp_path: Path) -> None:
    array = voxels((8, 9, 6)).astype(np.float32)
    array = (array - array.min()) / (array.max() - array.min())
    array[:2] = 0
    for name in ("samples", "others"):
        writer = SampleWriter(tmp_path / name, IntensityScaling("percentile", 0.5, 99.5), (1, 1, 1), {})
        for seed in range(2):
            writer.write(seed, torch.from_numpy(2 * array - 1)[None])
    writer.sidecar_path(1).unlink()
    samples, others = (ImageSet(tmp_path / name, crop_size=(10, 9, 6)) for name in ("samples", "others"))
    assert (samples.is_relative, others.is_relative) == (True, False)
    torch.testing.assert_close(samples[0][0, 1:-1], torch.from_numpy(2 * array - 1), atol=1e-6, rtol=0)
    assert samples.protocol["intensity"] == {"mode": "window", "lower": 0.0, "upper": 1.0}
    assert others.protocol["intensity"]["mode"] == "percentile"
    check_alike([others, samples, ImageSet(tmp_path / "samples", crop_size=(10, 9, 6))])
    check_alike([samples, others])
    for window in ((0, 1), (0, 2)):
        given = ImageSet(tmp_path / "samples", window=window, crop_size=(10, 9, 6))
        assert not given.is_relative
        with pytest.raises(UserError, match="one intensity map"):
            check_alike([samples, others, given])


def test_voxels_of_another_size_are_told_after_crop_and_resize(tmp_path: Path) -> None:
    array = voxels((8, 10, 6))
    write_nifti(tmp_path / "real" / "a.nii", array, np.diag([1.0, 2.0, 3.0, 1.0]))
    turned = np.zeros((4, 4))
    turned[0, 2], turned[1, 0], turned[2, 1], turned[3, 3] = -1, 2, 3, 1  # array axes run front, up, left
    write_nifti(tmp_path / "turned" / "a.nii", np.moveaxis(array, 0, 2), turned)
    write_nifti(tmp_path / "coarse" / "a.nii", array[:, ::2], np.diag([1.0, 4.0, 3.0, 1.0]))
    write_nifti(tmp_path / "other" / "a.nii", array, np.diag([1.0, 2.0, 3.4, 1.0]))
    real, *others = (ImageSet(tmp_path / name, image_size=8) for name in ("real", "turned", "coarse", "other"))
    assert real.spacing == pytest.approx((1, 2.5, 2.25))
    assert others[0].stored_spacing == pytest.approx((1, 2, 3))
    (told,) = spacing_warnings(real, dict(zip(("turned", "coarse", "other"), others, strict=True)))
    assert "Voxels of other are 1 x 2.5 x 2.55 mm, those of the real images 1 x 2.5 x 2.25 mm" in told
    assert ImageSet(tmp_path / "real", crop_size=(0, 4, 12), image_size=8).spacing == pytest.approx((1, 1, 4.5))
    flat = ImageSet(pictures(tmp_path / "flat"))
    assert spacing_warnings(flat, {"flat": flat}) == []


def test_mixed_channels_are_refused_or_converted(tmp_path: Path) -> None:
    pictures(tmp_path / "a", 1)
    pictures(tmp_path / "b", 1, (5, 7, 3))
    with pytest.raises(UserError, match=r"one number of channels.*Pass --channels 1 or 3"):
        ImageSet(tmp_path)
    assert ImageSet(tmp_path, channels=3)[0].shape == (3, 5, 7, 1)
    with pytest.raises(UserError, match=r"as many channels.*1 and 3"):
        check_alike([ImageSet(tmp_path / "a"), ImageSet(tmp_path / "b")])


def test_sets_that_differ_are_told_apart_before_a_voxel_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pictures(tmp_path / "flat" / "ill", 2)
    write_nifti(tmp_path / "volumes" / "a.nii", voxels((8, 9, 6)).astype(np.float32))

    def refuse(*_: object) -> None:
        raise AssertionError("voxels were read")

    with monkeypatch.context() as patched:
        patched.setattr("medical_diffusion.data.image_set.load_volume", refuse)
        flat = ImageSet(tmp_path / "flat", labels="folders", check_voxels=False)
        volumes = ImageSet(tmp_path / "volumes", check_voxels=False)
        with pytest.raises(UserError, match=r"2D images can not be compared with 3D volumes.*2D and 3D"):
            check_alike([flat, volumes])
    flat.check_voxels()
    assert (flat.class_names, flat.labels, len(flat)) == (("ill",), [0, 0], 2)


def test_flat_images_and_volumes_do_not_mix(tmp_path: Path) -> None:
    write_nifti(tmp_path / "a" / "a.nii", voxels((5, 7, 1)))
    write_nifti(tmp_path / "b" / "b.nii", voxels((5, 7, 4)))
    with pytest.raises(UserError, match=r"all 2D or all 3D.*1 are 2D, 1 are 3D"):
        ImageSet(tmp_path)
    with pytest.raises(UserError, match="2D images can not be compared with 3D volumes"):
        check_alike([ImageSet(tmp_path / "a"), ImageSet(tmp_path / "b")])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"intensity": "window"}, "needs two limits"),
        ({"intensity": "stored", "window": (0, 1)}, "a window belongs to intensity window"),
        ({"intensity": "percentil"}, "known mode.*Did you mean percentile"),
        ({"image_size": (4, 4, 4)}, "image_size must be one or two whole numbers"),
        ({"limit": 0}, "number of images must be positive"),
    ],
)
def test_bad_options_are_named(tmp_path: Path, options: dict, message: str) -> None:
    pictures(tmp_path)
    with pytest.raises(UserError, match=message):
        ImageSet(tmp_path, **options)


def test_an_empty_or_missing_folder_is_named(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="must not be empty"):
        ImageSet(tmp_path / "empty")
    with pytest.raises(UserError, match="must be an existing folder"):
        ImageSet(tmp_path / "missing")


def test_one_image_in_two_files_has_one_key(tmp_path: Path) -> None:
    array = pixels((5, 7), seed=3)
    write_picture(tmp_path / "a" / "a.png", array)
    write_picture(tmp_path / "b" / "b.tif", array)
    assert ImageSet(tmp_path / "a").keys == ImageSet(tmp_path / "b").keys


def test_flat_volume_files_are_read_as_looked_at(tmp_path: Path) -> None:
    write_nifti(tmp_path / "a.nii", voxels((8, 5, 1)))
    images = ImageSet(tmp_path, intensity="minmax")
    expected = load_volume(tmp_path / "a.nii", allow_planar=True)
    assert images.size == tuple(expected.shape)
    low, high = float(expected.min()), float(expected.max())
    torch.testing.assert_close(images[0][0], (expected.as_tensor() - low) / (high - low) * 2 - 1)


def test_ranges_of_each_image_are_no_common_map(tmp_path: Path) -> None:
    for n in range(3):
        np.save(tmp_path / f"{n}.npy", np.linspace(0, 100.0 * (n + 1), 35).reshape(5, 7))
    with pytest.raises(UserError, match=r"one range of values.*0 to 100 and 2 others.*--intensity window"):
        ImageSet(tmp_path, planar=True, intensity="stored")
    assert len(ImageSet(tmp_path, planar=True, window=(0, 300))) == 3


def test_twelve_bits_in_sixteen_are_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    write_picture(tmp_path / "a.png", pixels((5, 7), np.uint16) // 16)
    with caplog.at_level("WARNING"):
        ImageSet(tmp_path)
    assert "of 65535 that its files could hold" in caplog.text


def test_a_list_beside_an_image_hides_no_others(tmp_path: Path) -> None:
    pictures(tmp_path, 3)
    (tmp_path / "0.json").write_text("{}")
    assert len(ImageSet(tmp_path)) == 3
