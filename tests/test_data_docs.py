"""Pages of the data sets: one for each manifest, and every command in them parses, with options that exist."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path

import pytest

from medical_diffusion.__main__ import build_parser
from medical_diffusion.data.listing.manifest import load_manifest, packaged_manifests

NAMES = list(packaged_manifests())


def commands(page: str) -> list[list[str]]:
    """The lines of code blocks without a language, and commands in the text, as words."""
    page = re.sub(r"^```\w+\n.*?^```", "", page, flags=re.MULTILINE | re.DOTALL)
    blocks = re.findall(r"^```\n(.*?)^```", page, re.MULTILINE | re.DOTALL)
    inline = [" ".join(span.split()) for span in re.findall(r"`(python -m [^`]+)`", page)]  # spans may wrap
    return [shlex.split(line) for block in [*blocks, *inline] for line in block.splitlines() if line.strip()]


@pytest.mark.parametrize("name", NAMES)
def test_every_command_of_a_page_parses(name: str, repository: Path) -> None:
    found = commands((repository / "docs" / f"{name}.md").read_text(encoding="utf-8"))
    tools = {words[2] for words in found}
    assert {"medical_diffusion", "monai.bundle"} <= tools <= {"medical_diffusion", "monai.bundle", "pip"}
    for words in found:
        assert words[:2] == ["python", "-m"]
        if words[2] == "medical_diffusion":
            assert build_parser(words[3]).parse_args(words[3:]).run is not None
        elif words[2] == "monai.bundle":
            config = repository / words[words.index("--config_file") + 1]
            options = {word.removeprefix("--") for word in words if word.startswith("--")} - {"config_file"}
            assert options <= set(json.loads(config.read_text(encoding="utf-8")))


@pytest.mark.parametrize("name", NAMES)
def test_a_page_leads_from_access_to_samples(name: str, repository: Path) -> None:
    page = (repository / "docs" / f"{name}.md").read_text(encoding="utf-8")
    bundle = load_manifest(name).fields["bundle"]
    places = [
        page.index(part)
        for part in (
            "## Access",
            f"data verify --manifest {name}",
            f"bundles/{bundle}/configs/train.json --manifest {name}",
            f"bundles/{bundle}/configs/inference.json",
            f"bundles/{bundle}/configs/evaluate.json --manifest {name}",
            f"data phantoms {name}",
        )
    ]
    assert places == sorted(places)
    assert len(page.splitlines()) <= 80


def test_an_option_that_does_not_exist_is_seen(repository: Path) -> None:
    (words,) = commands("```\npython -m medical_diffusion data verify --dataset_dir DIR --colour blue\n```\n")
    with pytest.raises(SystemExit):
        build_parser(words[3]).parse_args(words[3:])
