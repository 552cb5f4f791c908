"""The command line: fast help, one message for a user's mistake, and names that find their bundle."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from test_data_sets import write_airogs

from medical_diffusion.__main__ import main
from medical_diffusion.cli import GROUPS
from medical_diffusion.cli.bundle import find_bundle
from medical_diffusion.cli.data import _phantom_kind
from medical_diffusion.data.listing.manifest import load_manifest, packaged_manifests
from medical_diffusion.data.phantoms import PHANTOM_KINDS
from medical_diffusion.errors import UserError

METADATA = {"version": "0.1.0", "monai_version": "1.6.1", "pytorch_version": "2.8.0", "numpy_version": "1.26.0"}


@pytest.fixture
def bundle(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An untrained bundle ``bundles/tiny`` below the current folder."""
    root = tmp_path / "bundles" / "tiny"
    (root / "configs").mkdir(parents=True)
    (root / "LICENSE").write_text("Apache")
    (root / "configs" / "metadata.json").write_text(json.dumps(METADATA))
    for name in ("train", "inference"):
        (root / "configs" / f"{name}.json").write_text('{"network": {"_target_": "UNet"}, "lr": "$1 / 2"}')
    monkeypatch.chdir(tmp_path)
    return root


def test_help_answers_without_importing_torch() -> None:
    program = (
        "import sys; from medical_diffusion.__main__ import main\n"
        "try: main(['bundle', '--help'])\n"
        "except SystemExit: print('torch' in sys.modules, 'monai' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "False False"


@pytest.mark.parametrize("group", GROUPS)
def test_every_group_has_help(group: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main([group, "--help"])
    assert stop.value.code == 0
    assert f"medical_diffusion {group}" in capsys.readouterr().out


def test_the_groups_are_listed(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["--help"])
    said = " ".join(capsys.readouterr().out.split())
    assert all(f"{group} {summary}" in said for group, summary in GROUPS.items())


@pytest.mark.parametrize("arguments", [[], ["bundle"], ["bundle", "pack"], ["bundel"]])
def test_an_incomplete_command_states_its_usage(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main(arguments)
    assert stop.value.code == 2
    assert "usage: python -m medical_diffusion" in capsys.readouterr().err


def test_a_users_mistake_is_one_message_and_status_1(bundle: Path) -> None:
    command = [sys.executable, "-m", "medical_diffusion", "bundle", "pack", "tinny", "--output", "out"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (1, "")
    (message,) = done.stderr.splitlines()
    assert message.startswith("error: a bundle must be a folder with configs/, here or in ./bundles. Received: tinny.")
    assert "Did you mean tiny?" in message


def test_a_reader_that_leaves_early_is_no_error(bundle: Path) -> None:
    command = f"{sys.executable} -m medical_diffusion bundle inspect tiny | head -n 1"
    done = subprocess.run(["bash", "-o", "pipefail", "-c", command], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


def test_an_interruption_is_no_traceback(monkeypatch: pytest.MonkeyPatch, bundle: Path) -> None:
    def interrupt(name: str) -> Path:
        raise KeyboardInterrupt

    monkeypatch.setattr("medical_diffusion.cli.bundle.find_bundle", interrupt)
    assert main(["bundle", "pack", "tiny", "--output", "out"]) == 130


def test_a_name_is_found_from_everywhere(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert find_bundle("tiny") == find_bundle("bundles/tiny") == find_bundle(str(bundle)) == bundle
    monkeypatch.chdir(bundle.parent)
    assert find_bundle("tiny") == bundle
    monkeypatch.chdir(bundle)
    assert find_bundle("tiny") == find_bundle(".") == bundle
    with pytest.raises(UserError, match=r"Received: other\. Run from the folder that holds bundles"):
        find_bundle("other")


def test_pack_states_size_and_the_command_to_fetch(bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bundle", "pack", "tiny", "--output", "out"]) == 1
    assert "models/model.pt is missing" in capsys.readouterr().err
    assert main(["bundle", "pack", "tiny", "--output", "out", "--without-weights"]) == 0
    said = capsys.readouterr().out
    assert "MiB" in said
    assert "python -m monai.bundle download --name tiny --url URL/tiny.zip --bundle_dir DIR" in said
    assert "Delete an existing DIR/tiny" in said


def test_inspect_groups_by_target_and_warns(bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bundle", "inspect", "tiny"]) == 0
    said = capsys.readouterr().out
    assert "Targets: imported and called (1)\n  UNet\n      configs/inference.json network::_target_\n" in said
    assert "Nothing reaches beyond" in said
    (bundle / "configs" / "train.json").write_text('{"a": {"_target_": "os.system", "x": "$eval(\'\\u001b[2J\')"}}')
    assert main(["bundle", "inspect", "bundles/tiny"]) == 0
    said = capsys.readouterr().out
    assert "WARNING: 2 of 4 deserve a look" in said
    assert "os is outside monai, torch and medical_diffusion" in said
    assert "\x1b" not in said


def test_data_sets_are_listed(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["data", "list"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == list(packaged_manifests())
    (lidc,) = [line for line in lines if line.startswith("lidc_idri")]
    assert "1,018 volumes" in lidc and "download" in lidc


@pytest.mark.parametrize("name", packaged_manifests())
def test_describe_tells_what_a_manifest_states(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["data", "describe", name]) == 0
    said = capsys.readouterr().out
    flat = " ".join(said.split())
    manifest = load_manifest(name)
    fields = manifest.fields
    texts = [fields["title"], fields["licence"], fields["source"]["url"], fields["source"]["citation"]]
    texts += [*fields["access"], *fields["preprocessing"], f"by {manifest.split.by}", str(manifest.example)]
    texts += [f"{count:,} {name}" for name, count in manifest.counts.get("classes", {}).items()]
    texts += [f"{fields['reference_batch']['size']:,} images"] if "reference_batch" in fields else []
    for text in texts:
        assert " ".join(text.split()) in flat
    assert f"data verify --manifest {name} --dataset_dir DIR" in said
    assert f"bundles/{fields['bundle']}/configs/train.json --manifest {name}" in said


def test_describe_takes_a_path_and_sees_misspelt_names(repository: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["data", "describe", str(repository / "data_manifests" / "adni.json")]) == 0
    assert "research group CN" in capsys.readouterr().out
    assert main(["data", "describe", "chexprt"]) == 1
    assert "Did you mean chexpert" in capsys.readouterr().err


@pytest.mark.parametrize("name", packaged_manifests())
def test_every_data_set_has_phantoms(name: str) -> None:
    assert _phantom_kind(name) == load_manifest(name).fields["phantoms"]


def test_phantoms_by_data_set_or_kind(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    written = []
    for name in ("chexpert", "radiograph"):
        options = ["--output", str(tmp_path), "--count", "2", "--size", "32", "32", "1", "--seed", "3"]
        assert main(["data", "phantoms", name, *options]) == 0
        written.append(capsys.readouterr().out.splitlines())
    assert written[0] == written[1]
    folder = Path(written[0][0])
    assert len(list((folder / "images").iterdir())) == 2
    assert written[0][1] == f"classes {', '.join(PHANTOM_KINDS['radiograph'].classes)}: {folder / 'labels.csv'}"
    assert main(["data", "phantoms", "radiographs", "--output", str(tmp_path)]) == 1
    assert "named by a data set or a kind. Received: radiographs. Did you mean radiograph" in capsys.readouterr().err


def test_a_manifest_of_images_needs_no_further_word(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_airogs(tmp_path)
    assert main(["data", "verify", "--manifest", "airogs", "--dataset_dir", str(tmp_path)]) == 0
    assert "classes       no glaucoma 5, glaucoma 1" in capsys.readouterr().out
