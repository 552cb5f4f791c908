"""The label-efficiency study: plan, shards, resuming, figures of the tables, pictures, refusals."""

from __future__ import annotations

import csv
import json
import math
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from label_study import GAINS, SUBJECTS, FakeRunner, weights_files

from medical_diffusion.__main__ import build_parser, main
from medical_diffusion.cli.study import run_label_efficiency
from medical_diffusion.errors import UserError
from medical_diffusion.evaluation.bootstrap import bootstrap_interval
from medical_diffusion.files import file_hash
from medical_diffusion.networks import SwinUNETR
from medical_diffusion.pictures import read_png
from medical_diffusion.studies.label_efficiency import (
    Arm,
    BundleRunner,
    Cell,
    Plan,
    parse_arms,
    parse_shard,
    run_label_efficiency_study,
)
from medical_diffusion.studies.label_efficiency.record import DEFAULTS
from medical_diffusion.studies.label_efficiency.results import (
    check_comparable,
    compare_pretrained,
    subject_dice,
    summarise,
)

FRACTIONS = (100.0, 5.0, 20.0)
BUNDLE = "bundles/swin_unetr_finetune"


def study(folder: Path, runner: FakeRunner, pretrained: list[str], **options: Any) -> Path:
    arguments = {"fractions": FRACTIONS, "repeats": 2, **options}
    return run_label_efficiency_study(BUNDLE, folder, pretrained, runner=runner, **arguments)


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    return weights_files(tmp_path_factory.mktemp("weights"))


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, weights: list[str]) -> tuple[Path, FakeRunner]:
    """A whole study: 3 arms x 3 fractions x 2 repeats."""
    folder, runner = tmp_path_factory.mktemp("study") / "out", FakeRunner()
    study(folder, runner, weights, options={"steps": "7"})
    return folder, runner


def rows_of(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8") as stream:
        return list(csv.DictReader(stream))


def contents(folder: Path) -> dict[str, bytes]:
    """Tables and figures, which do not depend on the time that runs took, and all runs."""
    names = ("summary.csv", "table.md", "figure.png", "overlay.png", "study.json")
    reports = {str(p.relative_to(folder)): p for p in folder.rglob("cell.json")}
    files = {name: (folder / name).read_bytes() for name in names}
    return files | {
        name: json.dumps(json.loads(p.read_text(encoding="utf-8"))["report"]).encode() for name, p in reports.items()
    }


# plan


def test_cells_are_all_combinations_whole_repeats_first() -> None:
    plan = Plan.of([Arm("none"), Arm("a")], (20, 5), 2)
    assert plan.fractions == (5.0, 20.0)
    assert [(c.repeat, c.fraction, c.arm) for c in plan.cells[:5]] == [
        (0, 5.0, "none"),
        (0, 5.0, "a"),
        (0, 20.0, "none"),
        (0, 20.0, "a"),
        (1, 5.0, "none"),
    ]
    assert len(set(plan.cells)) == 8
    assert len({cell.folder for cell in plan.cells}) == 8
    assert Cell(1, 2.5, "a").folder == Path("runs/a/2.5_percent/repeat_1")


@pytest.mark.parametrize("parts", [1, 2, 3, 4, 5, 7, 80])
def test_shards_are_the_whole_and_alike_at_every_fraction(parts: int) -> None:
    plan = Plan.of([Arm("none"), Arm("a"), Arm("b"), Arm("c")], (5, 10, 20, 40, 80, 100), 3)
    shards = [plan.shard(part, parts) for part in range(1, parts + 1)]
    dealt = [cell for shard in shards for cell in shard]
    assert len(dealt) == len(plan.cells) and set(dealt) == set(plan.cells)
    assert max(map(len, shards)) - min(map(len, shards)) <= 1
    for fraction in plan.fractions:
        counts = [sum(cell.fraction == fraction for cell in shard) for shard in shards]
        assert max(counts) - min(counts) <= 1
    if parts <= 4:
        assert all({cell.arm for cell in shard} == {"none", "a", "b", "c"} for shard in shards), "no shard is one arm"
    assert all(shard == sorted(shard, key=plan.cells.index) for shard in shards)
    assert shards == [plan.shard(part, parts) for part in range(1, parts + 1)]


def test_arms_take_their_names_from_their_runs(tmp_path: Path) -> None:
    first, second = weights_files(tmp_path)
    loose = tmp_path / "contrast=high.pt"
    torch.save({"model": {"weight": torch.full((2,), 9.0)}}, loose)
    arms = parse_arms([first, f"primitives={second}"])
    assert [arm.name for arm in arms] == ["none", "synthetic", "primitives"]
    assert arms[0].weights is None and arms[0].sha256 is None
    assert arms[2].weights == second and len(arms[1].sha256 or "") == 64
    assert parse_arms([f"loose={loose}"])[1] == Arm("loose", str(loose), file_hash(loose)), "the first = ends a name"
    with pytest.raises(UserError, match=r"name of an arm must begin.*contrast=high.*--pretrained NAME=PATH"):
        parse_arms([str(loose)])


def test_shards_are_read() -> None:
    assert parse_shard(None) == (1, 1)
    assert parse_shard("2/4") == (2, 4)


# running


def test_every_run_gets_its_own_options_and_a_repeat_is_a_seed(
    finished: tuple[Path, FakeRunner], weights: list[str]
) -> None:
    folder, runner = finished
    assert len(runner.done) == 18
    assert len({options["run_dir"] for options in runner.done}) == 18
    for options in runner.done:
        assert options["steps"] == "7" and options["dataset_dir"] is None
        assert options["seed"] == options["subset_seed"]
        assert options["cache_dir"] == str(folder.resolve() / "cache"), "what is preprocessed once serves all runs"
        assert options["pretrained"] in (None, *weights)
        assert Path(options["run_dir"]).is_relative_to(folder.resolve())
    assert {(o["pretrained"], o["label_fraction"], o["seed"]) for o in runner.done} == {
        (w, f, r) for w in (None, *weights) for f in FRACTIONS for r in (0, 1)
    }


def test_each_arm_is_checked_at_the_fewest_labels_before_the_first_run(
    finished: tuple[Path, FakeRunner], weights: list[str], tmp_path: Path
) -> None:
    assert [(o["pretrained"], o["label_fraction"], o["subset_seed"]) for o in finished[1].checked] == [
        (None, 5.0, 0),
        *((w, 5.0, 0) for w in weights),
        (None, 5.0, 1),
    ], "and every repeat, whose subset may hold no foreground"

    class Refusing(FakeRunner):
        def check(self, options: Any) -> None:
            if options["pretrained"]:
                raise UserError("the weights must fit the network", "feature_size 24", "Pass --feature_size 24")

    runner = Refusing()
    with pytest.raises(UserError, match=r"weights must fit.*run: synthetic, 5 %.*--feature_size 24. No run was begun"):
        study(tmp_path / "out", runner, weights)
    assert runner.done == []
    for part in (1, 2, 3):
        with pytest.raises(UserError, match=r"run: synthetic, 5 %.*No run was begun"):
            study(tmp_path / "out", runner, weights, fractions=(5,), repeats=1, shard=(part, 3))
    assert runner.done == [], "a shard checks the arms of the others too"


def test_weights_that_change_under_a_running_study_stop_it(tmp_path: Path) -> None:
    (path,) = weights_files(tmp_path, ["synthetic"])

    class Changing(FakeRunner):
        def run(self, options: Any) -> dict[str, Any]:
            torch.save({"model": {"weight": torch.ones(5)}}, path)
            return super().run(options)

    runner = Changing()
    with pytest.raises(UserError, match=r"must stay as they are.*model.pt has changed.*Finished runs are kept"):
        study(tmp_path / "out", runner, [path], fractions=(50,), repeats=1)
    assert [options["pretrained"] for options in runner.done] == [None]


def test_tables_and_the_bar_follow_every_run_of_all_shards(
    weights: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    seen: list[tuple[int, int]] = []

    class Looking(FakeRunner):
        def run(self, options: Any) -> dict[str, Any]:
            content = json.loads((tmp_path / "study.json").read_text(encoding="utf-8"))
            seen.append((content.get("finished", 0), len(content.get("test_subjects", []))))
            return super().run(options)

    study(tmp_path, Looking(), weights, fractions=(50,), repeats=2, shard=(1, 2))
    assert seen == [(0, 0), (1, len(SUBJECTS)), (2, len(SUBJECTS))]
    capsys.readouterr()
    study(tmp_path, Looking(), weights, fractions=(50,), repeats=2, shard=(2, 2))
    bar = capsys.readouterr().err
    assert "3/6" in bar and "6/6" in bar


def test_arms_are_compared_at_one_learning_rate_and_on_new_subjects(
    finished: tuple[Path, FakeRunner], tmp_path: Path
) -> None:
    assert {(o["transferred_rate"], o["test_check"]) for o in finished[1].done} == {("1", "refuse")}
    assert "--transferred_rate 1" in (finished[0] / "table.md").read_text(encoding="utf-8")
    other = FakeRunner()
    study(tmp_path / "out", other, [], fractions=(50,), repeats=1, options={"transferred_rate": 0.5})
    assert {o["transferred_rate"] for o in other.done} == {0.5}
    assert "--transferred_rate 0.5" in (tmp_path / "out" / "table.md").read_text(encoding="utf-8")


def test_runs_without_a_test_part_are_refused(tmp_path: Path) -> None:
    class Small(FakeRunner):
        def run(self, options: Any) -> dict[str, Any]:
            return super().run(options) | {"split": "validation"}

    with pytest.raises(UserError, match=r"evaluated on a test part.*12 validation subjects.*ten subjects"):
        study(tmp_path / "out", Small(), [], fractions=(50,), repeats=1)
    assert not list(tmp_path.rglob("cell.json"))


@pytest.mark.parametrize("stop", [0, 7])
def test_an_interrupted_study_continues_and_ends_alike(
    stop: int, finished: tuple[Path, FakeRunner], weights: list[str], tmp_path: Path
) -> None:
    broken = FakeRunner(stop, KeyboardInterrupt())
    with pytest.raises(KeyboardInterrupt):
        study(tmp_path, broken, weights, options={"steps": "7"})
    assert f"{stop} of 18 runs are finished" in (tmp_path / "table.md").read_text(encoding="utf-8")
    assert (tmp_path / "cache").is_dir() == (stop > 0)
    second = FakeRunner()
    study(tmp_path, second, weights, options={"steps": "7"})
    first_run = {o["run_dir"] for o in broken.done}
    assert len(second.done) == 18 - stop and not first_run & {o["run_dir"] for o in second.done}
    assert contents(tmp_path) == contents(finished[0])
    third = FakeRunner()
    study(tmp_path, third, weights, options={"steps": "7"})
    assert third.done == [] and third.checked == []


def test_a_failing_run_stops_the_study_and_loses_nothing(
    weights: list[str], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with pytest.raises(
        UserError, match=r"loss must stay finite \(run: none, 20 %.*repeat 0\).*lower rate. Finished runs are kept"
    ):
        study(tmp_path, FakeRunner(3, UserError("the loss must stay finite", "nan", "Try a lower rate")), weights)
    assert "3 of 18 runs are finished; the others are missing" in (tmp_path / "table.md").read_text(encoding="utf-8")
    with pytest.raises(MemoryError):
        study(tmp_path, FakeRunner(0, MemoryError()), weights)
    assert "Failed: none, 20 % of the labels, repeat 0. Finished runs are kept" in caplog.text
    runner = FakeRunner()
    study(tmp_path, runner, weights)
    assert len(runner.done) == 15


def test_shards_make_one_study(finished: tuple[Path, FakeRunner], weights: list[str], tmp_path: Path) -> None:
    runners = [FakeRunner(), FakeRunner()]
    for part in (2, 1):
        study(tmp_path, runners[part - 1], weights, shard=(part, 2), options={"steps": "7"})
        if part == 2:
            assert "9 of 18 runs are finished" in (tmp_path / "table.md").read_text(encoding="utf-8")
    assert [len(runner.done) for runner in runners] == [9, 9]
    assert contents(tmp_path) == contents(finished[0])


def test_a_study_grows_by_arms_fractions_and_repeats(weights: list[str], tmp_path: Path) -> None:
    study(tmp_path, FakeRunner(), weights[:1], fractions=(20,), repeats=1)
    runner = FakeRunner()
    study(tmp_path, runner, weights, fractions=(20, 50), repeats=2)
    assert len(runner.done) == 3 * 2 * 2 - 2
    again = FakeRunner()
    study(tmp_path, again, [], fractions=(50,), repeats=1)
    assert again.done == []
    table = (tmp_path / "table.md").read_text(encoding="utf-8")
    assert "12 of 12 runs" in table and "shapes" in table, "a smaller command does not forget what is there"


def test_finished_runs_keep_reports_and_only_where_asked_for_weights(weights: list[str], tmp_path: Path) -> None:
    for keep in (False, True):
        folder = tmp_path / str(keep)
        study(folder, FakeRunner(), weights, fractions=(50,), repeats=1, keep_weights=keep)
        assert len(list(folder.rglob("model.pt"))) == (3 if keep else 0)
        assert len(list(folder.rglob("cell.json"))) == 3 and len(list(folder.rglob("overlays"))) == 3
        assert not list(folder.rglob("cache")) and not list(folder.rglob("data"))


def sized_weights(folder: Path, **sizes: int) -> list[str]:
    """Weights whose files state the size of their network."""
    for name, size in sizes.items():
        state = {"model": {"weight": torch.full((2,), float(size))}, "settings": {"feature_size": size, "steps": 3}}
        folder.mkdir(exist_ok=True)
        torch.save(state | {"stage": name}, folder / f"{name}.pt")
    return [str(folder / f"{name}.pt") for name in sizes]


def test_all_arms_get_the_network_of_the_pretrained_ones(weights: list[str], tmp_path: Path) -> None:
    """Else the arm without pre-training would be a network of another size."""
    runner, out = FakeRunner(), tmp_path / "out"
    small, alike, large = sized_weights(tmp_path / "w", small=12, alike=12, large=24)
    study(out, runner, [small, weights[0]], fractions=(50,), repeats=1)
    assert [options["feature_size"] for options in runner.done] == [12, 12, 12]
    study(out, runner, [small, alike], fractions=(50,), repeats=1)
    study(out, runner, [], fractions=(60,), repeats=1)
    assert [options["feature_size"] for options in runner.done[3:]] == [12, 12], "alike, and none at 60 %"
    with pytest.raises(UserError, match=r"with other networks.*feature_size was 12, is 24"):
        study(out, runner, [large], fractions=(50,), repeats=1)
    with pytest.raises(UserError, match=r"must fine-tune the same network.*of large is 24, of others 12.*same --feat"):
        study(tmp_path / "new", runner, [small, large])
    study(tmp_path / "plain", runner, [], fractions=(50,), repeats=1)
    with pytest.raises(UserError, match=r"with other networks.*feature_size was 12, is 24"):
        study(tmp_path / "plain", runner, [large], fractions=(50,), repeats=1)
    study(tmp_path / "plain", runner, [small], fractions=(50,), repeats=1)
    given: dict[str, Any] = {"fractions": (50,), "repeats": 1, "options": {"feature_size": "24"}}
    study(tmp_path / "given", runner, [], **given)
    study(tmp_path / "given", runner, [large], **given)


def test_options_that_shape_nothing_may_change(weights: list[str], tmp_path: Path) -> None:
    for part, device in ((1, "cpu"), (2, "cuda:1")):
        runner, options = FakeRunner(), {"steps": "5", "device": device, "num_workers": part, "cache_gb": part}
        study(tmp_path, runner, weights, fractions=(50,), repeats=1, shard=(part, 2), options=options)
        assert runner.done and all(o["device"] == device for o in runner.done)


# tables and figures


def test_the_table_of_runs_holds_each_and_its_classes(finished: tuple[Path, FakeRunner]) -> None:
    rows = rows_of(finished[0] / "table.csv")
    assert len(rows) == 18
    assert {"liver_dice", "lesion_hausdorff95_mm", "mean_dice", "low", "high", "seconds"} <= set(rows[0])
    assert [r["arm"] for r in rows[:3]] == ["none", "synthetic", "shapes"]
    for row in rows:
        assert float(row["low"]) < float(row["mean_dice"]) < float(row["high"])
        assert int(row["training_subjects"]) == math.ceil(float(row["fraction"]) / 5)


def test_the_summary_averages_repeats_per_subject_and_pairs_with_none(finished: tuple[Path, FakeRunner]) -> None:
    folder = finished[0]
    rows = {(r["arm"], float(r["fraction"])): r for r in rows_of(folder / "summary.csv")}
    assert len(rows) == 9

    def dice(arm: str, fraction: float) -> np.ndarray:
        cells = [folder / Cell(r, fraction, arm).folder / "cell.json" for r in (0, 1)]
        reports = [json.loads(path.read_text(encoding="utf-8"))["report"] for path in cells]
        return np.array([[case["dice"]["liver"] for case in report["cases"]] for report in reports])

    for (arm, fraction), row in rows.items():
        table = dice(arm, fraction)
        expected = bootstrap_interval(table.mean(0))
        found = [float(row[name]) for name in ("dice", "low", "high")]
        assert found == pytest.approx([expected.value, expected.low, expected.high], rel=1e-5)
        assert float(row["bootstrap_sd"]) == pytest.approx(table.mean(0).std() / math.sqrt(len(SUBJECTS)), rel=0.1)
        assert float(row["sd_over_repeats"]) == pytest.approx(table.mean(1).std(ddof=1), rel=1e-4)
        if arm == "none":
            assert row["difference"] == ""
        else:
            gain = GAINS[arm] * (1 - fraction / 100)
            assert float(row["difference"]) == pytest.approx(gain, abs=0.01)
            width = float(row["difference_high"]) - float(row["difference_low"])
            assert width < 0.5 * (found[2] - found[1]), "pairing cancels how hard a subject is"


def test_the_table_to_read_marks_what_shows_no_difference_and_compares_arms(finished: tuple[Path, FakeRunner]) -> None:
    lines = (finished[0] / "table.md").read_text(encoding="utf-8").splitlines()
    few = next(line for line in lines if line.startswith("| 5 % | 1 | synthetic"))
    many = next(line for line in lines if line.startswith("| 100 % | 20 | synthetic"))
    assert "·" not in few and many.endswith("· |")
    between = next(line for line in lines if line.startswith("| 5 % | synthetic less shapes"))
    assert "+0.0" in between and "·" not in between


def test_study_json_says_what_was_studied(finished: tuple[Path, FakeRunner], weights: list[str]) -> None:
    record = json.loads((finished[0] / "study.json").read_text(encoding="utf-8"))
    assert record["options"] == {**DEFAULTS, "steps": "7"} and record["bundle"] == "swin_unetr_finetune"
    assert [arm["name"] for arm in record["arms"]] == ["none", "synthetic", "shapes"]
    assert record["arms"][1]["weights"] == weights[0] and len(record["arms"][1]["sha256"]) == 64
    assert {"medical_diffusion", "torch", "monai"} <= set(record["versions"])
    assert record["test_subjects"] == SUBJECTS and (record["finished"], record["runs"]) == (18, 18)
    for repeat in ("0", "1"):
        small, large = (set(record["training_subjects"][f][repeat]) for f in ("5", "20"))
        assert small < large < set(record["training_subjects"]["100"][repeat])


def test_the_figure_shows_every_arm_in_its_colour(finished: tuple[Path, FakeRunner]) -> None:
    picture = read_png(finished[0] / "figure.png").reshape(-1, 3)
    assert (picture == 255).all(1).mean() > 0.7
    for colour in ((60, 60, 60), (0, 114, 178), (213, 94, 0)):
        assert (np.abs(picture.astype(int) - colour).max(1) < 8).sum() > 200
    assert (np.abs(picture.astype(int) - (0, 158, 115)).max(1) < 8).sum() == 0, "there is no fourth arm"


def test_the_overlay_has_a_row_per_arm_at_the_fewest_labels(finished: tuple[Path, FakeRunner]) -> None:
    picture = read_png(finished[0] / "overlay.png").astype(int)
    green = (picture[..., 1] > 150) & (picture[..., 0] < 60)
    rows = np.flatnonzero(np.diff(np.concatenate([[0], green.any(1).astype(int)])) == 1)
    assert len(rows) == 3
    shares = [green[start : start + 30].sum() for start in rows]
    assert shares[1] > shares[2] > shares[0], "none, synthetic, shapes"


def test_subjects_with_several_images_or_without_a_dice() -> None:
    cases = [
        {"subject": "b", "dice": {"x": 0.5, "y": 1.0}},
        {"subject": "a", "dice": {"x": None, "y": 0.25}},
        {"subject": "b", "dice": {"x": 0.25, "y": None}},
        {"subject": "c", "dice": {"x": None, "y": None}},
    ]
    found = subject_dice({"cases": cases})
    assert list(found) == ["a", "b", "c"]
    assert (found["a"], found["b"]) == (0.25, 0.5) and math.isnan(found["c"])


def cell_content(values: dict[str, float | None], count: int = 3) -> dict[str, Any]:
    cases = [{"subject": subject, "dice": {"x": value}} for subject, value in values.items()]
    return {"report": {"cases": cases, "training_subjects": count}}


def test_unfinished_repeats_are_left_out_of_pairs() -> None:
    plan = Plan.of([Arm("none"), Arm("a"), Arm("b")], (50,), 2)
    reports = {
        Cell(0, 50.0, "none"): cell_content({"p": 0.5, "q": 0.7, "r": None}),
        Cell(0, 50.0, "a"): cell_content({"p": 0.6, "q": 0.8, "r": 0.3}),
        Cell(1, 50.0, "a"): cell_content({"p": 1.0, "q": 1.0, "r": 0.5}),
        Cell(1, 50.0, "b"): cell_content({"p": 0.9, "q": 0.8, "r": 0.5}),
    }
    none, a, b = summarise(plan, reports)
    assert (none.dice.n, none.dice.value) == (2, pytest.approx(0.6)) and none.difference is None
    assert (a.dice.n, a.repeats) == (3, 2) and a.dice.value == pytest.approx((0.8 + 0.9 + 0.4) / 3)
    assert a.difference is not None and a.difference.value == pytest.approx(0.1) and a.difference.n == 2
    assert b.difference is None
    (pair,) = compare_pretrained(plan, reports)
    assert (pair.first, pair.second, pair.difference.n) == ("a", "b", 3)
    assert pair.difference.value == pytest.approx((0.1 + 0.2 + 0.0) / 3)


def test_runs_on_other_test_subjects_are_not_compared() -> None:
    reports = {Cell(0, 50.0, "none"): cell_content({"p": 0.5}), Cell(0, 50.0, "a"): cell_content({"q": 0.6})}
    with pytest.raises(UserError, match=r"evaluated on the same test subjects.*differ in p, q.*begin a new one"):
        check_comparable(reports)


def test_runs_on_edited_labels_are_not_compared(weights: list[str], tmp_path: Path) -> None:
    """The bundle hashes the contents; names and sizes alone do not show an edited voxel."""

    class Edited(FakeRunner):
        def run(self, options: Any) -> dict[str, Any]:
            return {**super().run(options), "data": "before" if len(self.done) < 4 else "after"}

    with pytest.raises(UserError, match=r"all runs of a study must see the same labels.*data have changed"):
        study(tmp_path, Edited(), weights, fractions=(50,), repeats=2)
    assert len(list(tmp_path.rglob("cell.json"))) == 3, "the run on edited labels does not count"


def test_arms_trained_on_other_subjects_are_not_compared(weights: list[str], tmp_path: Path) -> None:
    class Drifting(FakeRunner):
        def run(self, options: Any) -> dict[str, Any]:
            report = super().run(options)
            return {**report, "training_ids": [*report["training_ids"], *(["new"] if options["pretrained"] else [])]}

    with pytest.raises(UserError, match=r"arms of a repeat must be trained on the same subjects.*data have changed"):
        study(tmp_path, Drifting(), weights)


# refusals


@pytest.mark.parametrize(
    ("fractions", "repeats", "message"),
    [
        ((0, 50), 1, r"fractions must be percent.*in \(0, 100\].*0, 50"),
        ((50, 101), 1, r"fractions must be percent.*50, 101"),
        ((math.nan,), 1, r"fractions must be percent.*nan"),
        ((), 1, "fractions must be percent.*none"),
        ((5, 50, 5.0), 1, "a fraction must be given once.*5, 50, 5"),
        ((50,), 0, "repeats must be a whole number of at least 1.*0"),
        ((50,), 1.5, "repeats must be a whole number of at least 1.*1.5"),
    ],
)
def test_bad_plans_are_refused(fractions: Any, repeats: Any, message: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=message):
        study(tmp_path / "out", FakeRunner(), [], fractions=fractions, repeats=repeats)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("text", ["0/3", "4/3", "1/0", "1", "a/b", "-1/3", "1/3/5", ""])
def test_bad_shards_are_refused(text: str) -> None:
    with pytest.raises(UserError, match=r"a shard must be i/n with i from 1 to n.*--shard 2/4"):
        parse_shard(text)


def test_bad_arms_are_refused(tmp_path: Path) -> None:
    first, second = weights_files(tmp_path)
    (tmp_path / "damaged.pt").write_bytes(b"PK\x03\x04 cut")
    torch.save({"model": Path("code")}, tmp_path / "pickled.pt")
    for given, message in (
        ([first, f"synthetic={second}"], "two arms must have different names.*synthetic twice"),
        ([first, f"Synthetic={second}"], "two arms must have different names.*Synthetic twice"),
        ([f"none={first}"], "the arm 'none' is training without pre-training.*NAME=PATH"),
        ([f"None={first}"], "the arm 'none' is training without pre-training"),
        ([first, f"copy={first}"], "different weights.*synthetic and copy are the same file"),
        ([f".hidden={first}"], "name of an arm must begin with a letter or number.*.hidden"),
        ([f"a b={first}"], "name of an arm must begin.*a b"),
        ([str(tmp_path / "no.pt")], "a checkpoint must exist.*no.pt"),
        ([f"folder={tmp_path}"], "a checkpoint must exist"),
        ([str(tmp_path / "damaged.pt")], "a checkpoint must"),
        ([str(tmp_path / "pickled.pt")], "tensors and plain values only.*pickled.pt"),
    ):
        with pytest.raises(UserError, match=message):
            study(tmp_path / "out", FakeRunner(), given)
        assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", ["seed", "run_dir", "pretrained", "label_fraction", "subset_seed", "dataset_dir"])
def test_options_of_the_study_itself_are_refused(name: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=f"the study itself sets {name}.*Use --"):
        study(tmp_path / "out", FakeRunner(), [], options={name: "1"})


def labelled_folder(folder: Path) -> Path:
    for part in ("imagesTr", "labelsTr"):
        (folder / part).mkdir(parents=True)
        (folder / part / "a.nii.gz").write_bytes(b"volume")
    return folder


def test_another_study_in_the_folder_is_refused_and_left_alone(weights: list[str], tmp_path: Path) -> None:
    data, out = labelled_folder(tmp_path / "data"), tmp_path / "out"
    arguments: dict[str, Any] = {"fractions": (50,), "repeats": 1, "dataset_dir": data, "options": {"steps": "5"}}
    study(out, FakeRunner(), weights, **arguments)
    before = contents(out)

    def refused(message: str, pretrained: list[str] = weights, **other: Any) -> None:
        with pytest.raises(UserError, match=message):
            study(out, FakeRunner(), pretrained, **{**arguments, **other})
        assert contents(out) == before

    refused("other options of the bundle.*steps was 5, is 6.*another --output", options={"steps": "6"})
    refused("other options.*steps was 5, is not given", options={})
    refused("other labelled data", dataset_dir=None)
    (other,) = weights_files(tmp_path / "w", ["synthetic"])
    torch.save({"model": {"weight": torch.ones(3)}}, other)
    refused("other weights of the arm synthetic.*model.pt is another file", [other])
    (data / "labelsTr" / "a.nii.gz").write_bytes(b"volume, corrected")
    refused("other labelled data.*added, removed or changed")
    (data / "labelsTr" / "a.nii.gz").write_bytes(b"volume")
    runner = FakeRunner()
    study(out, runner, weights, **arguments)
    assert runner.done == []


def test_a_copied_data_folder_and_moved_weights_go_on(weights: list[str], tmp_path: Path) -> None:
    study(tmp_path / "out", FakeRunner(), weights, repeats=1, dataset_dir=labelled_folder(tmp_path / "data"))
    moved = [f"{Path(w).parents[1].name}={Path(w).rename(tmp_path / Path(w).parents[1].name)}" for w in weights]
    runner = FakeRunner()
    study(tmp_path / "out", runner, moved, repeats=2, dataset_dir=labelled_folder(tmp_path / "copy"))
    assert len(runner.done) == 9
    for new, old in zip(moved, weights, strict=True):
        Path(new.split("=")[1]).rename(old)


def test_a_study_inside_the_data_folder_does_not_change_the_data(weights: list[str], tmp_path: Path) -> None:
    data = labelled_folder(tmp_path / "data")
    for _ in range(2):
        study(data / "study", FakeRunner(), weights, fractions=(50,), repeats=1, dataset_dir=data)


def test_bad_folders_are_refused(tmp_path: Path) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.txt").write_text("mine")
    with pytest.raises(UserError, match=r"folder of a new study must be empty.*full"):
        study(tmp_path / "full", FakeRunner(), [])
    assert [p.name for p in (tmp_path / "full").iterdir()] == ["thesis.txt"]
    with pytest.raises(UserError, match="dataset_dir must be an existing folder"):
        study(tmp_path / "out", FakeRunner(), [], dataset_dir=tmp_path / "missing")
    study(tmp_path / "out", FakeRunner(), [], fractions=(50,), repeats=1)
    report = next((tmp_path / "out").rglob("cell.json"))
    report.write_text("{cut")
    with pytest.raises(UserError, match=r"cell.json of a study must be readable.*Delete this file to run"):
        study(tmp_path / "out", FakeRunner(), [], fractions=(50,), repeats=1)


def test_bundles_that_can_not_be_studied_are_refused(tmp_path: Path, repository: Path) -> None:
    with pytest.raises(UserError, match=r"bundle that trains and evaluates.*train.json is missing"):
        BundleRunner(tmp_path)
    with pytest.raises(UserError, match=r"with the option label_fraction.*lidc_ldm.*swin_unetr_finetune"):
        BundleRunner(repository / "bundles" / "lidc_ldm")


# the real bundle

TINY: dict[str, Any] = {
    "steps": 2,
    "num_phantoms": 10,
    "phantom_size": "[16,16,16]",
    "image_size": "[32,32,32]",
    "feature_size": 12,
    "window_size": 4,
    "augmentation": "false",
    "device": "cpu",
}


def test_options_go_to_the_configurations_that_know_them(repository: Path) -> None:
    runner = BundleRunner(repository / BUNDLE)
    options = {
        **TINY,
        "cache_dir": "c",
        "pretrained": "a.pt",
        "label_fraction": 5.0,
        "run_dir": "r",
        "dataset_dir": None,
        "stepps": 1,
    }
    assert runner._options_of("train", options) == {k: v for k, v in options.items() if k != "dataset_dir"}
    names = set(runner._options_of("evaluate", options))
    assert names == {
        "num_phantoms",
        "phantom_size",
        "image_size",
        "feature_size",
        "window_size",
        "device",
        "run_dir",
        "cache_dir",
    }


def test_a_misspelt_option_and_weights_that_do_not_fit_are_told_before_any_run(
    weights: list[str], repository: Path, tmp_path: Path
) -> None:
    plan: dict[str, Any] = {"fractions": (5,), "repeats": 1}
    options = TINY
    with pytest.raises(UserError, match=r"override must name an option.*--stepps.*Did you mean.*No run was begun"):
        run_label_efficiency_study(repository / BUNDLE, tmp_path / "a", options={**options, "stepps": 3}, **plan)
    with pytest.raises(UserError, match=r"run: synthetic, 5 %.*No run was begun"):
        run_label_efficiency_study(repository / BUNDLE, tmp_path / "b", weights[:1], options=options, **plan)
    assert not list(tmp_path.rglob("model*.pt")) and not list(tmp_path.rglob("cell.json"))


@pytest.mark.slow
def test_a_study_with_the_bundle(repository: Path, tmp_path: Path) -> None:
    """Two arms at two shares; the same command a second time runs nothing."""
    network = SwinUNETR(image_size=(32, 32, 32), in_channels=1, out_channels=1, feature_size=12, window_size=4)
    content = {"model": network.state_dict(), "settings": {"feature_size": 12, "window_size": 4}}
    torch.save(content, tmp_path / "start.pt")
    options = {name: value for name, value in TINY.items() if name not in content["settings"]}
    arguments: dict[str, Any] = {"fractions": (20, 100), "repeats": 1, "options": options}
    out = tmp_path / "out"
    for _ in range(2):
        run_label_efficiency_study(repository / BUNDLE, out, [str(tmp_path / "start.pt")], **arguments)
    rows = rows_of(out / "summary.csv")
    assert [(r["arm"], r["fraction"], r["training_subjects"]) for r in rows] == [
        ("none", "20", "2"),
        ("start", "20", "2"),
        ("none", "100", "7"),
        ("start", "100", "7"),
    ]
    record = json.loads((out / "study.json").read_text(encoding="utf-8"))
    small, large = (set(record["training_subjects"][share]["0"]) for share in ("20", "100"))
    assert small < large and not large & set(record["test_subjects"]) and len(record["test_subjects"]) == 2
    assert (out / "figure.png").is_file() and min(read_png(out / "overlay.png").shape[:2]) > 200


# command line


def test_the_command_line_passes_everything_on(
    weights: list[str], tmp_path: Path, repository: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    runner = FakeRunner()
    monkeypatch.setattr("medical_diffusion.studies.label_efficiency.study.BundleRunner", lambda _: runner)
    words = ["--bundle", str(repository / "bundles" / "lidc_ldm"), "--output", str(tmp_path / "out")]
    words += ["--pretrained", weights[0], "--pretrained", f"primitives={weights[1]}"]
    words += ["--fractions", "5", "2.5", "--repeats", "2", "--shard", "2/3", "--steps", "9", "--image_size", "[8,8,1]"]
    parsed, rest = build_parser("study").parse_known_args(["study", "label-efficiency", *words])
    parsed.options = rest
    run_label_efficiency(parsed)
    assert len(runner.done) == 4
    assert {o["label_fraction"] for o in runner.done} == {2.5, 5.0}
    assert all((o["steps"], o["image_size"]) == ("9", "[8,8,1]") for o in runner.done)
    assert "4 of 12 runs are finished" in capsys.readouterr().out


def test_the_command_line_shows_errors_as_one_message(tmp_path: Path, repository: Path, capsys: Any) -> None:
    words = ["study", "label-efficiency", "--bundle", str(repository / "bundles" / "lidc_ldm"), "--shard", "3/2"]
    assert main(words) == 1
    assert capsys.readouterr().err.startswith("error: a shard must be i/n")


def test_the_page_names_options_and_files_that_exist(
    repository: Path, finished: tuple[Path, FakeRunner], capsys: Any
) -> None:
    page = (repository / "docs" / "label_efficiency.md").read_text(encoding="utf-8")
    known: set[str] = set()
    for name in ("lidc_ldm", "swin_unetr_pretrain", "swin_unetr_finetune"):
        known |= set(
            json.loads((repository / "bundles" / name / "configs" / "options.json").read_text(encoding="utf-8"))
        )
        known |= set(
            json.loads((repository / "bundles" / name / "configs" / "inference.json").read_text(encoding="utf-8"))
        )
        assert f"bundles/{name}" in page
    for command in (["study", "label-efficiency"], ["data", "phantoms"]):
        with pytest.raises(SystemExit):
            main([*command, "--help"])
        known |= set(re.findall(r"--([\w-]+)", capsys.readouterr().out))
    assert set(re.findall(r"--(\w[\w-]*)", page)) - {"config_file"} <= known
    for file in re.findall(r"`(\w+\.(?:md|csv|png|json))`", page):
        assert file in ("cell.json", "dataset.json") or (finished[0] / file).is_file(), file
