"""Engine, checkpoints and steps: resuming reaches the same numbers, failures keep what was good."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from ignite.engine import Events
from torch import Tensor, nn

from medical_diffusion.data import StepLoader
from medical_diffusion.data.loader import StepSampler
from medical_diffusion.diffusion import DDPMSampler
from medical_diffusion.errors import UserError
from medical_diffusion.files import load_tensors, save_tensors
from medical_diffusion.training import DiffusionStep, ExponentialMovingAverage, StageCheckpoint, StepTrainer, Validation


class Latents(torch.utils.data.Dataset):
    def __init__(self, count: int = 5) -> None:
        self.items = torch.randn(count, 2, 4, 4, 2, generator=torch.Generator().manual_seed(0))

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        return {"image": self.items[index]}


class TinyDenoiser(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv3d(2, 2, 3, padding=1)
        self.dropout = nn.Dropout(0.2)

    def forward(self, x: Tensor, timesteps: Tensor) -> Tensor:
        return self.dropout(self.conv(x)) * (1 + timesteps.view(-1, 1, 1, 1, 1) / 10)


def make_trainer(folder: Path, steps: int, fingerprint: str = "a", lr: float = 1e-2, **options: Any) -> StepTrainer:
    torch.manual_seed(0)
    network = TinyDenoiser()
    step = DiffusionStep(network, torch.optim.Adam(network.parameters(), lr=lr), DDPMSampler(10))
    checkpoint = StageCheckpoint(folder, "model", fingerprint, {"image_size": [4, 4, 2]})
    loader = StepLoader(Latents(), batch_size=3, seed=1)
    options.setdefault("checkpoint_interval", 0.0)
    return StepTrainer("cpu", step, loader, epoch_length=steps, checkpoint=checkpoint, seed=3, **options)


def final_weights(folder: Path) -> dict[str, Tensor]:
    return load_tensors(folder / "model.pt")["model"]


def assert_same(a: dict[str, Tensor], b: dict[str, Tensor]) -> None:
    assert set(a) == set(b)
    for name in a:
        torch.testing.assert_close(a[name], b[name], rtol=0, atol=0)


class StopAt:
    """Ends the process's work at a step, as a kill would: no final save."""

    def __init__(self, step: int) -> None:
        self.step = step

    def attach(self, engine: Any) -> None:
        engine.add_event_handler(Events.ITERATION_STARTED, self._stop)

    def _stop(self, engine: Any) -> None:
        if engine.state.iteration == self.step:
            raise KeyboardInterrupt


@pytest.mark.parametrize("stop_at", [1, 4, 7])
def test_killed_and_rerun_reaches_the_weights_of_an_uninterrupted_run(tmp_path: Path, stop_at: int) -> None:
    make_trainer(tmp_path / "whole", 8).run()
    with pytest.raises(KeyboardInterrupt):
        make_trainer(tmp_path / "cut", 8, train_handlers=[StopAt(stop_at)]).run()
    make_trainer(tmp_path / "cut", 8).run()
    assert_same(final_weights(tmp_path / "whole"), final_weights(tmp_path / "cut"))


def test_more_steps_extend_and_finished_work_is_skipped(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    make_trainer(tmp_path / "long", 9).run()
    make_trainer(tmp_path / "extended", 4).run()
    make_trainer(tmp_path / "extended", 9).run()
    assert_same(final_weights(tmp_path / "long"), final_weights(tmp_path / "extended"))
    before = (tmp_path / "long" / "model.pt").stat().st_mtime_ns
    with caplog.at_level("INFO", logger="medical_diffusion"):
        make_trainer(tmp_path / "long", 9).run()
    assert (tmp_path / "long" / "model.pt").stat().st_mtime_ns == before


def test_run_that_was_stopped_beyond_a_shorter_length_still_gets_its_weights(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        make_trainer(tmp_path, 8, train_handlers=[StopAt(5)]).run()
    make_trainer(tmp_path, 3).run()
    assert load_tensors(tmp_path / "model.pt")["step"] == 4


def test_another_configuration_moves_the_old_models_aside(tmp_path: Path) -> None:
    make_trainer(tmp_path, 2).run()
    make_trainer(tmp_path, 2, fingerprint="b").run()
    aside = list(tmp_path.glob("model_before_*"))
    assert len(aside) == 1 and (aside[0] / "model.pt").is_file()
    assert load_tensors(tmp_path / "model.pt")["fingerprint"] == "b"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signal_saves_the_state_and_exits_with_its_status(tmp_path: Path, number: int) -> None:
    class Send:
        def attach(self, engine: Any) -> None:
            engine.add_event_handler(Events.ITERATION_STARTED(once=3), lambda _: os.kill(os.getpid(), number))

    trainer = make_trainer(tmp_path, 6, checkpoint_interval=1e9, train_handlers=[Send()])
    with pytest.raises(SystemExit) as stop:
        trainer.run()
    assert stop.value.code == 128 + number
    assert load_tensors(tmp_path / "model_last.pt")["step"] == 2
    make_trainer(tmp_path, 6).run()
    make_trainer(tmp_path / "whole", 6).run()
    assert_same(final_weights(tmp_path), final_weights(tmp_path / "whole"))


def test_loss_that_is_not_finite_stops_and_keeps_the_last_good_state(tmp_path: Path) -> None:
    class Poison:
        def attach(self, engine: Any) -> None:
            engine.add_event_handler(Events.ITERATION_STARTED(once=4), self._poison)

        def _poison(self, engine: Any) -> None:
            with torch.no_grad():
                engine.step.network.conv.weight.fill_(float("nan"))

    with pytest.raises(UserError, match=r"must stay finite.*nan at step 4.*lower learning rate"):
        make_trainer(tmp_path, 8, train_handlers=[Poison()]).run()
    state = load_tensors(tmp_path / "model_last.pt")
    assert state["step"] == 3
    assert all(torch.isfinite(t).all() for t in state["state"]["network"].values())


def test_best_weights_are_those_of_the_lowest_validation_figure(tmp_path: Path) -> None:
    figures = iter([3.0, 1.0, 2.0])
    handler = Validation(2, lambda: {"loss": next(figures)}, key="loss")
    make_trainer(tmp_path, 6, train_handlers=[handler]).run()
    best = load_tensors(tmp_path / "model_best.pt")
    assert (best["step"], best["best"]) == (4, 1.0)


def test_truncated_checkpoint_is_refused_with_a_remedy(tmp_path: Path) -> None:
    make_trainer(tmp_path, 2).run()
    path = tmp_path / "model_last.pt"
    path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(UserError, match=r"truncated or damaged.*model_last\.pt.*[Dd]elete it"):
        make_trainer(tmp_path, 4).run()


def test_pickled_code_is_refused(tmp_path: Path) -> None:
    class Code:
        def __reduce__(self) -> tuple[Any, ...]:
            return (os.system, ("echo never",))

    torch.save({"model": Code()}, tmp_path / "evil.pt")
    with pytest.raises(UserError, match="pickled code"):
        load_tensors(tmp_path / "evil.pt")


def test_checkpoint_folder_that_can_not_be_written(tmp_path: Path) -> None:
    (tmp_path / "models").write_text("a file")
    with pytest.raises(UserError, match="could not be written"):
        save_tensors(tmp_path / "models" / "x.pt", {"a": 1})


def test_failed_write_keeps_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = save_tensors(tmp_path / "x.pt", {"a": 1})

    def full(*_: Any, **__: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(UserError, match=r"disk is full.*run the same command again"):
        save_tensors(path, {"a": 2})
    assert load_tensors(path) == {"a": 1}
    assert [p.name for p in tmp_path.iterdir()] == ["x.pt"]


def test_loader_covers_every_item_and_can_start_anywhere() -> None:
    sampler = StepSampler(5, 2, seed=4)
    batches = [sampler.batch(s) for s in range(5)]
    assert sorted(index for batch in batches for index in batch) == sorted(list(range(5)) * 2)
    sampler.first_step = 3
    assert next(iter(sampler)) == batches[3]
    ranks = [StepSampler(6, 1, seed=0, rank=r, world_size=2).batch(s)[0] for s in range(3) for r in range(2)]
    assert sorted(ranks) == list(range(6))
    with pytest.raises(UserError, match="at least one item"):
        StepSampler(0, 1)


def test_moving_average_follows_its_closed_form() -> None:
    network = nn.Linear(1, 1, bias=False)
    ema = ExponentialMovingAverage(network, decay=0.5)
    expected = network.weight.item()
    for n, value in enumerate([1.0, 2.0, 3.0], start=1):
        nn.init.constant_(network.weight, value)
        decay = ema.update(network)
        assert decay == pytest.approx(min(0.5, (1 + n) / (10 + n)))
        expected = decay * expected + (1 - decay) * value
    assert ema.network.weight.item() == pytest.approx(expected)
    with pytest.raises(UserError, match=r"ema_decay must lie in \[0, 1\)"):
        ExponentialMovingAverage(network, decay=1.0)


def test_accumulation_gives_the_gradient_of_the_whole_batch() -> None:
    weights = []
    for parts in (1, 2, 4):
        torch.manual_seed(0)
        network = TinyDenoiser()
        network.dropout.p = 0.0
        step = DiffusionStep(
            network, torch.optim.SGD(network.parameters(), lr=1.0), DDPMSampler(10), accumulation=parts
        )
        torch.manual_seed(5)
        step(Latents(4).items, 0)
        weights.append(network.conv.weight.detach().clone())
    torch.testing.assert_close(weights[0], weights[1])
    torch.testing.assert_close(weights[0], weights[2])


def test_learning_rate_falls_over_the_end_of_the_run_and_resumes_there(tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path / "whole", 8, learning_rate_decay=0.5)
    assert [trainer.learning_rate_factor(i) for i in (0, 4, 6, 7)] == [1.0, 1.0, 0.5, 0.25]
    trainer.run()
    with pytest.raises(KeyboardInterrupt):
        make_trainer(tmp_path / "cut", 8, learning_rate_decay=0.5, train_handlers=[StopAt(7)]).run()
    make_trainer(tmp_path / "cut", 8, learning_rate_decay=0.5).run()
    assert_same(final_weights(tmp_path / "whole"), final_weights(tmp_path / "cut"))


def test_learning_rate_rises_and_falls_along_a_cosine(tmp_path: Path) -> None:
    options = {"learning_rate_decay": 1.0, "learning_rate_shape": "cosine", "learning_rate_warmup": 0.25}
    trainer = make_trainer(tmp_path / "whole", 8, **options)
    factors = [trainer.learning_rate_factor(i) for i in range(8)]
    assert factors.index(max(factors)) == 2 and 0 < factors[0] < factors[1] < factors[2]
    assert factors[2:] == sorted(factors[2:], reverse=True) and factors[4] == pytest.approx(0.5)
    assert 0 < factors[7] < 0.05
    trainer.run()
    with pytest.raises(KeyboardInterrupt):
        make_trainer(tmp_path / "cut", 8, train_handlers=[StopAt(2)], **options).run()
    make_trainer(tmp_path / "cut", 8, **options).run()
    assert_same(final_weights(tmp_path / "whole"), final_weights(tmp_path / "cut"))
    with pytest.raises(UserError, match="learning_rate_shape must be one of linear, cosine"):
        make_trainer(tmp_path, 8, learning_rate_shape="step")
    with pytest.raises(UserError, match=r"learning_rate_warmup must lie in \[0, 1\]"):
        make_trainer(tmp_path, 8, learning_rate_warmup=2.0)


def test_drawn_timesteps_cover_the_schedule() -> None:
    step = DiffusionStep(network := TinyDenoiser(), torch.optim.Adam(network.parameters()), DDPMSampler(100))
    _, timesteps = step.draw(torch.zeros(10, 2, 4, 4, 2))
    assert sorted(int(t) // 10 for t in timesteps) == list(range(10))


def test_bfloat16_step_is_close_to_float32_on_the_cpu() -> None:
    losses = []
    for amp in ("none", "bfloat16"):
        torch.manual_seed(0)
        network = TinyDenoiser()
        step = DiffusionStep(network, torch.optim.Adam(network.parameters()), DDPMSampler(10), amp=amp)
        torch.manual_seed(1)
        losses.append(float(step(Latents(4).items, 0)["loss"]))
    assert losses[1] == pytest.approx(losses[0], rel=0.02)
    with pytest.raises(UserError, match="amp must be one of"):
        DiffusionStep(network, torch.optim.Adam(network.parameters()), DDPMSampler(10), amp="half")  # type: ignore
