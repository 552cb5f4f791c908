"""Phantoms written by several processes: the bytes of one, errors as before, nothing half; images with classes."""

from __future__ import annotations

import csv
import json
import multiprocessing
import os
import pickle
import signal
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from medical_diffusion.data.phantoms import PHANTOM_KINDS, PHANTOM_LABELS, radiograph_phantom, workers, write_phantoms
from medical_diffusion.data.phantoms.workers import ordered_map, worker_count
from medical_diffusion.data.reading.images import read_image
from medical_diffusion.errors import UserError


def contents(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def slow_for_the_first(number: int) -> tuple[int, int]:
    time.sleep(0.2 if number == 0 else 0)
    return number, os.getpid()


def refuse_three(number: int) -> int:
    if number == 3:
        raise UserError("numbers must not be three", number, "Take another")
    return number


def die_at_two(number: int) -> int:
    if number == 2:
        os._exit(1)
    return number


def test_images_are_png_with_a_table_of_classes(tmp_path):
    folder = write_phantoms("radiograph", tmp_path, 3, (24, 16, 1), seed=5, progress=False)
    assert folder.name == "radiograph_24x16x1_n3_s5"
    names = [f"radiograph_{seed:05d}" for seed in (5, 6, 7)]
    assert sorted(contents(folder)) == [*(f"images/{n}.png" for n in names), "labels.csv", "phantoms.json"]
    with (folder / PHANTOM_LABELS).open(newline="") as file:
        rows = list(csv.DictReader(file))
    listing = json.loads((folder / "phantoms.json").read_text(encoding="utf-8"))
    assert listing["classes"] == ["normal", "cardiomegaly"]
    for row, subject, seed in zip(rows, listing["subjects"], (5, 6, 7), strict=True):
        phantom = radiograph_phantom(seed, (24, 16, 1))
        assert row == {
            "image": f"images/radiograph_{seed:05d}.png",
            "label": phantom.facts["class_name"],
            "subject": f"radiograph_{seed:05d}",
        }
        assert subject["facts"] == phantom.facts
        with Image.open(folder / row["image"]) as picture:
            assert picture.mode == "L"
            assert np.array_equal(np.asarray(picture), phantom.image[..., 0])


@pytest.mark.parametrize("kind", ["fundus", "histology"])
def test_rgb_images_are_png_as_drawn_and_read_back_in_colour(tmp_path, kind):
    folder = write_phantoms(kind, tmp_path, 2, (24, 16, 1), seed=5, progress=False)
    listing = json.loads((folder / "phantoms.json").read_text(encoding="utf-8"))
    assert listing["intensity_unit"] == "RGB, 0 to 255"
    assert listing["classes"] == list(PHANTOM_KINDS[kind].classes)
    for subject in listing["subjects"]:
        phantom, path = PHANTOM_KINDS[kind].generate(subject["seed"], (24, 16, 1)), folder / subject["image"]["file"]
        with Image.open(path) as picture:
            assert picture.mode == "RGB"
        read = read_image(path)
        assert read.stored_range == (0, 255)
        assert np.array_equal(read.pixels, phantom.image[:, :, 0])
        assert np.ptp(phantom.image, axis=-1).max() > 30, "in colour"
        assert subject["facts"] == phantom.facts


def test_every_kind_has_the_channels_that_it_says():
    for name, kind in PHANTOM_KINDS.items():
        size = (16, 12, 1) if kind.planar else (16, 16, 16)
        phantom = kind.generate(1, size)
        assert phantom.image.shape == (size if kind.channels == 1 else (*size, kind.channels)), name
        assert phantom.mask.shape == size, name
        assert kind.planar or kind.channels == 1, name
        assert not kind.classes or phantom.facts["class_name"] in kind.classes, name


@pytest.mark.parametrize("file", ["labels.csv", "images/radiograph_00001.png"])
def test_a_damaged_folder_of_images_is_rebuilt_equal(tmp_path, file):
    folder = write_phantoms("radiograph", tmp_path, 2, (16, 16, 1), progress=False)
    before = contents(folder)
    (folder / file).write_bytes(b"image,label\n")
    assert contents(write_phantoms("radiograph", tmp_path, 2, (16, 16, 1), progress=False)) == before


@pytest.mark.parametrize(
    ("kind", "size"), [("radiograph", (16, 16, 1)), ("histology", (16, 16, 1)), ("chest_ct", (8, 8, 8))]
)
def test_two_processes_write_what_one_does(tmp_path, kind, size):
    one, two = (
        contents(write_phantoms(kind, tmp_path / str(n), 7, size, progress=False, max_workers=n)) for n in (1, 2)
    )
    assert one == two
    assert len(one) > 7


def test_a_kind_with_the_wrong_depth_says_so_from_a_worker_as_from_here(tmp_path):
    messages = []
    for n in (1, 2):
        with pytest.raises(UserError, match="image_size must end in 1") as caught:
            write_phantoms("radiograph", tmp_path, 2, (16, 16, 2), progress=False, max_workers=n)
        messages.append((str(caught.value), caught.value.rule, caught.value.remedy))
    assert messages[0] == messages[1]
    assert list(tmp_path.iterdir()) == []


def test_the_number_of_processes_must_be_positive(tmp_path):
    with pytest.raises(UserError, match=r"max_workers of phantoms must be a whole number of at least 1.*Received: 0"):
        write_phantoms("chest_ct", tmp_path, 2, 8, progress=False, max_workers=0)


def test_results_come_in_order_from_several_processes():
    results = list(ordered_map(slow_for_the_first, range(20), 2))
    assert [number for number, _ in results] == list(range(20))
    assert os.getpid() not in {process for _, process in results}
    assert len({process for _, process in results}) == 2


def test_one_worker_is_this_process():
    assert {process for _, process in ordered_map(slow_for_the_first, range(1, 4), 1)} == {os.getpid()}


def test_items_are_taken_only_a_little_ahead_of_the_results():
    taken = []

    def items():
        for number in range(200):
            taken.append(number)
            yield number

    results = ordered_map(refuse_three, items(), 2)
    assert next(results) == 0
    assert len(taken) <= 2 * workers.AHEAD + 1
    results.close()


def test_an_error_arrives_at_its_turn():
    results = ordered_map(refuse_three, range(10), 2)
    assert [next(results) for _ in range(3)] == [0, 1, 2]
    with pytest.raises(UserError, match=r"numbers must not be three.*Received: 3.*Take another") as caught:
        next(results)
    assert caught.value.received == 3


def test_a_worker_that_is_gone_is_told_as_such():
    with pytest.raises(UserError, match="processes that make phantoms must not be ended from outside"):
        list(ordered_map(die_at_two, range(10), 2))


@pytest.mark.slow
def test_spawned_workers_do_the_same():
    assert [n for n, _ in ordered_map(slow_for_the_first, range(4), 2, start_method="spawn")] == list(range(4))


def test_the_work_of_every_kind_can_be_sent_to_a_spawned_process():
    for kind in PHANTOM_KINDS.values():
        assert pickle.loads(pickle.dumps(kind.generate)) is kind.generate
        assert pickle.loads(pickle.dumps(replace(kind))) == kind


def test_workers_are_as_many_as_cpus_up_to_eight_and_one_for_little_work(monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(64)), raising=False)
    assert worker_count(1000) == 8
    assert worker_count(2) == 1
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {3}, raising=False)
    assert worker_count(1000) == 1


def write_many(folder: Path, errors: Path) -> None:
    """In a group of processes of its own, so that it can be ended as a terminal does."""
    os.setsid()
    signal.signal(signal.SIGINT, signal.default_int_handler)
    sys.stderr = errors.open("w")
    write_phantoms("chest_ct", folder, 5000, 8, max_workers=2, progress=False)


@pytest.mark.skipif(sys.platform != "linux", reason="processes are forked")
@pytest.mark.parametrize("ending", [signal.SIGINT, signal.SIGKILL])
def test_ending_the_program_ends_its_workers_and_ctrl_c_leaves_nothing(tmp_path, ending):
    folder, errors = tmp_path / "phantoms", tmp_path / "errors"
    process = multiprocessing.get_context("fork").Process(target=write_many, args=(folder, errors))
    process.start()
    deadline = time.monotonic() + 60
    while not list(folder.rglob("*.nii.gz")) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert process.pid is not None
    assert list(folder.rglob("*.nii.gz")), "it had begun"
    os.killpg(process.pid, ending) if ending == signal.SIGINT else process.kill()
    process.join(60)
    assert process.exitcode not in (0, None)
    while group_lives(process.pid) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert not group_lives(process.pid), "workers stay"
    if ending == signal.SIGINT:
        assert list(folder.iterdir()) == []
        assert "KeyboardInterrupt" in errors.read_text(encoding="utf-8")
        assert errors.read_text(encoding="utf-8").count("Traceback") == 1, "that of the parent"


def group_lives(group: int) -> bool:
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    return True
