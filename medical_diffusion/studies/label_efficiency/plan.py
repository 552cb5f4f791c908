"""What a label-efficiency study runs: arms x fractions x repeats, dealt to shards.

An arm is a start for fine-tuning: ``none`` (weights drawn at random) is always there, the others are files of
pre-trained weights. A repeat is a seed, of the subset of labelled subjects and of training; within a repeat the subsets
of the fractions are nested and all arms use the same ones.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from medical_diffusion.errors import UserError
from medical_diffusion.files import file_hash, load_tensors

NO_PRETRAINING = "none"
NETWORK_OPTIONS = ("feature_size", "window_size")
"""Options of the network that fine-tuning would take from pre-trained weights."""
WHOLE = 100.0
_ARM_NAME = re.compile(r"[A-Za-z0-9][\w.+-]*")


@dataclass(frozen=True)
class Arm:
    """A start for fine-tuning.

    Attributes:
        name: of its folder and in tables.
        weights: file of pre-trained weights, None for none.
        sha256: of that file.
        network: options of its network, as far as the file states them.
    """

    name: str
    weights: str | None = None
    sha256: str | None = None
    network: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, order=True)
class Cell:
    """One run: an arm trained on a share of the labels with one seed.

    Attributes:
        repeat: seed of the subset and of training, from 0.
        fraction: percent of the training subjects.
        arm: its name.
    """

    repeat: int
    fraction: float
    arm: str

    @property
    def folder(self) -> Path:
        """Folder of the run, below the study's."""
        return Path("runs") / self.arm / f"{self.fraction:g}_percent" / f"repeat_{self.repeat}"

    def __str__(self) -> str:
        return f"{self.arm}, {self.fraction:g} % of the labels, repeat {self.repeat}"


@dataclass(frozen=True)
class Plan:
    """All runs of a study.

    Attributes:
        arms: ``none`` first.
        fractions: percent, ascending.
        repeats: how many.
    """

    arms: tuple[Arm, ...]
    fractions: tuple[float, ...]
    repeats: int

    @classmethod
    def of(cls, arms: Sequence[Arm], fractions: Sequence[float], repeats: int) -> Plan:
        """A checked plan.

        Raises:
            UserError: a fraction outside (0, 100] or given twice, or repeats below 1.
        """
        if not fractions or not all(0 < fraction <= WHOLE for fraction in fractions):
            raise UserError("fractions must be percent of the labelled subjects, in (0, 100]", _listed(fractions))
        if len(set(fractions)) < len(fractions):
            raise UserError("a fraction must be given once", _listed(fractions))
        if isinstance(repeats, bool) or not isinstance(repeats, int) or repeats < 1:
            raise UserError("repeats must be a whole number of at least 1", repeats)
        return cls(tuple(arms), tuple(sorted(float(fraction) for fraction in fractions)), repeats)

    @property
    def cells(self) -> list[Cell]:
        """All runs, in the order of running: whole repeats first, few labels before many."""
        names = [arm.name for arm in self.arms]
        return [Cell(r, f, name) for r in range(self.repeats) for f in self.fractions for name in names]

    def shard(self, part: int, parts: int) -> list[Cell]:
        """The runs of one of ``parts`` shares, in the order of running.

        Dealt like cards, one fraction after the other: the numbers of runs of any two shards differ by at most one, in
        all and at each fraction, because runs on more labels may take longer. Each fraction and repeat begins with
        another arm, so that no shard is one arm.

        Args:
            part: from 1 to ``parts``.
            parts: number of shards.
        """
        names = [arm.name for arm in self.arms]
        groups = [(fraction, repeat) for fraction in self.fractions for repeat in range(self.repeats)]
        cards = [
            Cell(repeat, fraction, names[(place + number) % len(names)])
            for number, (fraction, repeat) in enumerate(groups)
            for place in range(len(names))
        ]
        return sorted(cards[part - 1 :: parts], key=self.cells.index)

    def arm(self, name: str) -> Arm:
        """The arm of that name."""
        return next(arm for arm in self.arms if arm.name == name)


def parse_arms(pretrained: Sequence[str]) -> list[Arm]:
    """The arms: ``none`` and one for each ``[NAME=]PATH``.

    Without a name, ``RUN/models/model.pt`` is called after its folder RUN, any other file after itself.

    Raises:
        UserError: two arms of one name or of the same weights, an arm called none, a name that is no name of a folder,
            a file that is missing or does not open as tensors.
    """
    arms = [Arm(NO_PRETRAINING)]
    for text in pretrained:
        name, path = _split(text)
        if name.lower() == NO_PRETRAINING:
            raise UserError(
                "the arm 'none' is training without pre-training and is always there",
                text,
                "Give this arm another name: --pretrained NAME=PATH",
            )
        if not _ARM_NAME.fullmatch(name):
            raise UserError(
                "the name of an arm must begin with a letter or number, then letters, numbers and . _ + -",
                name,
                "Name it: --pretrained NAME=PATH",
            )
        # names become folders, and some file systems do not tell cases apart
        if name.lower() in {arm.name.lower() for arm in arms}:
            raise UserError(
                "two arms must have different names",
                f"{name} twice",
                "Name them: --pretrained FIRST=PATH --pretrained SECOND=PATH",
            )
        settings = load_tensors(path).get("settings")
        stated = settings if isinstance(settings, dict) else {}
        network = {option: stated[option] for option in NETWORK_OPTIONS if option in stated}
        arm = Arm(name, str(path), file_hash(path), network)
        twin = next((other for other in arms if other.sha256 == arm.sha256), None)
        if twin is not None:
            raise UserError("two arms must have different weights", f"{twin.name} and {name} are the same file")
        arms.append(arm)
    return arms


def network_of(arms: Sequence[Arm]) -> dict[str, Any]:
    """Options of the network that all arms share, also the one that is not pre-trained.

    Fine-tuning takes the size of its network from pre-trained weights; left alone, the arm ``none`` would be trained
    with another network, and its difference to the others would say nothing about pre-training.

    Raises:
        UserError: arms pre-trained with different networks.
    """
    network: dict[str, Any] = {}
    for arm in arms:
        for option, value in arm.network.items():
            if network.setdefault(option, value) != value:
                raise UserError(
                    "all arms must fine-tune the same network",
                    f"{option} of the weights of {arm.name} is {value}, of others {network[option]}",
                    f"Pre-train them with the same --{option}",
                )
    return network


def default_network(bundle: str | Path, phantoms: bool) -> dict[str, Any]:
    """Defaults of a bundle for the options of its network, on phantoms or on real data."""
    path = Path(bundle) / "configs" / "options.json"
    table = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    profile = "phantom" if phantoms else "paper"
    options = {name: table[name] for name in NETWORK_OPTIONS if name in table}
    return {name: option[profile] if profile in option else option.get("default") for name, option in options.items()}


def _split(text: str) -> tuple[str, Path]:
    """Name and file of ``[NAME=]PATH``."""
    name, sign, rest = text.partition("=")
    whole = Path(text).expanduser()
    if sign and not whole.exists() and "/" not in name:
        return name, Path(rest).expanduser().resolve()
    path = whole.resolve()
    return (path.parent.parent.name if path.parent.name == "models" else path.stem), path


def parse_shard(text: str | None) -> tuple[int, int]:
    """``i/n`` as numbers; all of it, (1, 1), where there is none.

    Raises:
        UserError: it is not of that form, or i is not in 1 to n.
    """
    if text is None:
        return 1, 1
    match = re.fullmatch(r"(\d+)/(\d+)", text.strip())
    part, parts = (int(match[1]), int(match[2])) if match else (0, 0)
    if not 1 <= part <= parts:
        raise UserError("a shard must be i/n with i from 1 to n", text, "The second of four is --shard 2/4")
    return part, parts


def _listed(fractions: Sequence[float]) -> str:
    return ", ".join(f"{fraction:g}" for fraction in fractions) or "none"
