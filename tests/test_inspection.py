"""Inspection finds all that a bundle would execute, names what deserves a look, and executes nothing itself."""

from __future__ import annotations

import json
import os
import pickle
import re
import zipfile
from collections import Counter, OrderedDict
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import yaml

from medical_diffusion.bundle.concerns import code_concerns, target_concerns
from medical_diffusion.bundle.inspection import ExecutableItem, inspect_bundle, inspect_weights
from medical_diffusion.errors import UserError

MakeBundle = Callable[..., Path]


@pytest.fixture
def make_bundle(tmp_path: Path) -> MakeBundle:
    """Writes configurations (by file name) into a bundle's folder."""

    def make(**configs: object) -> Path:
        folder = tmp_path / "stranger" / "configs"
        folder.mkdir(parents=True, exist_ok=True)
        for name, content in configs.items():
            (folder / f"{name}.json").write_text(json.dumps(content))
        return folder.parent

    return make


def concerns_by_text(items: list[ExecutableItem]) -> dict[str, tuple[str, ...]]:
    return {item.text: item.concerns for item in items}


def test_every_kind_is_listed_with_its_place(make_bundle: MakeBundle) -> None:
    root = make_bundle(
        train={
            "imports": ["$import glob"],
            "lr": 1e-4,
            "network": {"_target_": "UNet", "channels": [8, "$2 * @width"]},
            "shared": "%inference.json#network",
            "text": "costs 5$, 10 %",
            "ref": "@network",
        }
    )
    assert {(item.file, item.id, item.kind, item.text) for item in inspect_bundle(root)} == {
        ("configs/train.json", "imports::0", "import", "$import glob"),
        ("configs/train.json", "network::_target_", "target", "UNet"),
        ("configs/train.json", "network::channels::1", "expression", "$2 * @width"),
        ("configs/train.json", "shared", "macro", "%inference.json#network"),
    }


def test_yaml_and_zip_give_the_same_as_json_in_a_folder(make_bundle: MakeBundle, tmp_path: Path) -> None:
    content = {"a": [{"_target_": "torch.nn.Linear", "in_features": "$1 + 1"}]}
    root = make_bundle(train=content)
    from_json = inspect_bundle(root)
    archive = tmp_path / "stranger.zip"
    with zipfile.ZipFile(archive, "w") as zipped:
        zipped.write(root / "configs" / "train.json", "stranger/configs/train.json")
    (root / "configs" / "train.json").unlink()
    (root / "configs" / "train.yaml").write_text(yaml.safe_dump(content))
    strip = [(item.id, item.kind, item.text) for item in from_json]
    assert strip
    assert [(item.id, item.kind, item.text) for item in inspect_bundle(root)] == strip
    assert [(item.id, item.kind, item.text) for item in inspect_bundle(archive)] == strip


def test_nothing_is_executed_or_imported(make_bundle: MakeBundle, tmp_path: Path) -> None:
    mark = tmp_path / "executed"
    command = f"__import__('pathlib').Path({str(mark)!r}).touch()"
    root = make_bundle(train={"run": [f"${command}"], "x": {"_target_": "evil_module.Evil"}})
    (root / "scripts").mkdir()
    (root / "scripts" / "__init__.py").write_text(command)
    (root / "evil_module.py").write_text(command)
    with (root / "model.pt").open("wb") as stream:
        pickle.dump(Evil(f"touch {mark}"), stream)
    (root / "configs" / "bad.yaml").write_text(f"a: !!python/object/apply:os.system ['touch {mark}']")
    items = inspect_bundle(root)
    assert not mark.exists()
    assert {item.kind for item in items if item.concerns} == {"expression", "target", "script", "weights", "unreadable"}


@pytest.mark.parametrize(
    ("expression", "concern"),
    [
        ("__import__('os').system('ls')", "uses __import__"),
        ("import subprocess", "imports subprocess"),
        ("from os import system", "imports os"),
        ("eval('1')", "uses eval"),
        ("[open(f) for f in @files]", "uses open"),
        ("torch.os.system('ls')", "reaches os"),
        ("torch.load(@path, weights_only=False)", "weights_only=False"),
        ("torch.hub.load('a/b', 'c')", r"fetches or runs other code \(torch.hub"),
        ("monai.utils.optional_import('os')[0]", "reaches optional_import"),
        ("().__class__.__base__.__subclasses__()", "reaches __subclasses__"),
        ("(lambda p: p.unlink())(@path)", "reaches unlink"),
        ("@validate#evaluator.run(", "not readable as Python"),
    ],
)
def test_an_expression_with_power_is_named(make_bundle: MakeBundle, expression: str, concern: str) -> None:
    (item,) = inspect_bundle(make_bundle(train={"x": "$" + expression}))
    assert any(re.search(concern, found) for found in item.concerns)


@pytest.mark.parametrize(
    "expression",
    [
        "@validate#evaluator.run()",
        "@::lr * 2 if @train::epochs > 5 else @###lr",
        "torch.device('cuda:0' if torch.cuda.is_available() else 'cpu')",
        "[i for i in sorted(glob.glob(os.path.join(@dataset_dir, '*.nii.gz')))]",
        "monai.transforms.Resize((4, 4, 4))",
        "import torch.nn as nn",
        "from pathlib import Path",
        "monai.utils.set_determinism(0)",
        "lambda x: x.eval()",
    ],
)
def test_what_bundles_are_made_of_raises_no_concern(expression: str) -> None:
    assert code_concerns(expression) == ()


@pytest.mark.parametrize(
    ("target", "concern"),
    [
        ("os.system", "os is outside monai"),
        ("builtins.eval", "reaches builtins"),
        ("eval", "a built-in function"),
        ("torch.os.system", r"reaches os \(torch.os.system\)"),
        ("torch.hub.load", "fetches or runs other code"),
        ("subprocess.Popen", "reaches Popen"),
        ("scripts.net.Net", "scripts is outside"),
        ("$@choice", "decided while the configuration runs"),
        (None, "decided while the configuration runs"),
    ],
)
def test_a_target_with_power_is_named(target: object, concern: str) -> None:
    assert any(re.search(concern, found) for found in target_concerns(target))


@pytest.mark.parametrize("target", ["UNet", "monai.networks.nets.UNet", "torch.optim.Adam", "medical_diffusion.x.Y"])
def test_a_familiar_target_raises_no_concern(target: str) -> None:
    assert target_concerns(target) == ()


@pytest.mark.parametrize(
    ("macro", "outside"), [("%train#lr", False), ("%/etc/x.json#a", True), ("%../../x.yaml::a", True)]
)
def test_a_macro_that_leaves_the_bundle_is_named(make_bundle: MakeBundle, macro: str, outside: bool) -> None:
    (item,) = inspect_bundle(make_bundle(train={"x": macro}))
    assert (item.kind, bool(item.concerns)) == ("macro", outside)


def test_a_logging_configuration_is_code_too(make_bundle: MakeBundle) -> None:
    root = make_bundle(train={})
    conf = "[handler_a]\nclass=StreamHandler\nargs=(sys.stdout,)\n[handler_b]\nclass=X\nargs=(__import__('os'),)\n"
    (root / "configs" / "logging.conf").write_text(conf)
    items = {item.id: item for item in inspect_bundle(root)}
    assert items["handler_a::args"].concerns == items["handler_a::class"].concerns == ()
    assert items["handler_b::args"].concerns == ("uses __import__",)


class Evil:
    """Unpickling an instance runs a command."""

    def __init__(self, command: str) -> None:
        self.command = command

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.system, (self.command,)


def harmless_states() -> list[object]:
    dtypes = [torch.float32, torch.float16, torch.bfloat16, torch.int64, torch.int32, torch.uint8, torch.bool]
    dtypes += [torch.float64, torch.complex64]
    network = torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.BatchNorm1d(3))
    optimizer = torch.optim.Adam(network.parameters())
    network(torch.rand(4, 2)).sum().backward()
    optimizer.step()
    return [
        [torch.zeros(2, dtype=dtype) for dtype in dtypes],
        {"dtypes": dtypes, "parameter": torch.nn.Parameter(torch.zeros(1)), "size": torch.Size([1, 2])},
        {"network": network.state_dict(), "optimizer": optimizer.state_dict()},
        OrderedDict(a=torch.zeros(1).to_sparse(), device=torch.device("cpu"), names={"x"}, counts=Counter("aa")),
    ]


@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize("index", range(4))
def test_weights_that_torch_loads_safely_hold_nothing_unsafe(tmp_path: Path, index: int, legacy: bool) -> None:
    state = harmless_states()[index]
    path = tmp_path / "model.pt"
    torch.save(state, path, _use_new_zipfile_serialization=not legacy)
    torch.load(path, weights_only=True)
    assert inspect_weights(path) == []


@pytest.mark.parametrize("protocol", [2, 4])
@pytest.mark.parametrize("legacy", [False, True])
def test_pickled_code_is_named(tmp_path: Path, protocol: int, legacy: bool) -> None:
    path = tmp_path / "model.pt"
    state = {"weight": torch.zeros(1), "x": Evil(f"touch {tmp_path / 'executed'}")}
    torch.save(state, path, pickle_protocol=protocol, _use_new_zipfile_serialization=not legacy)
    assert any("posix.system" in name or "nt.system" in name for name in inspect_weights(path))
    assert not (tmp_path / "executed").exists()


def test_a_whole_network_is_named(tmp_path: Path) -> None:
    torch.save(torch.nn.Linear(1, 1), tmp_path / "model.pt")
    assert "torch.nn.modules.linear.Linear" in inspect_weights(tmp_path / "model.pt")


@pytest.mark.parametrize("content", [b"", b"not a pickle", b"PK\x03\x04 not a zip"])
def test_weights_that_are_none_are_named_unreadable(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "model.pt"
    path.write_bytes(content)
    assert "unreadable" in " ".join(inspect_weights(path))


def test_truncated_weights_are_named_unreadable(tmp_path: Path) -> None:
    path = tmp_path / "model.pt"
    torch.save({"weight": torch.zeros(1000)}, path)
    path.write_bytes(path.read_bytes()[:2000])
    assert "unreadable" in " ".join(inspect_weights(path))


def test_a_path_that_leaves_the_archive_is_named(tmp_path: Path) -> None:
    path = tmp_path / "x.zip"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("x/configs/train.json", "{}")
        archive.writestr("x/../../.bashrc", "evil")
    (item,) = inspect_bundle(path)
    assert item.concerns == ("would be written elsewhere",)


def test_what_is_no_bundle_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="must be a folder or a zip"):
        inspect_bundle(tmp_path / "absent")
    with pytest.raises(UserError, match="must hold JSON or YAML configurations"):
        inspect_bundle(tmp_path)
    broken = tmp_path / "broken.zip"
    broken.write_bytes(b"PK\x03\x04 broken")
    with pytest.raises(UserError, match="a complete zip"):
        inspect_bundle(broken)
    with pytest.raises(UserError, match="weights must be readable"):
        inspect_weights(tmp_path / "absent.pt")


def test_the_bundles_of_this_repository_target_familiar_packages_only(repository: Path) -> None:
    configs = sorted(path.parent for path in (repository / "bundles").glob("*/configs/train.*"))
    items = [item for folder in configs for item in inspect_bundle(folder)]
    assert [item for item in items if item.kind in ("target", "unreadable") and item.concerns] == []
