"""Vector quantiser: search, moving averages, start, restarts, resume, several processes."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.multiprocessing as mp

from medical_diffusion.errors import UserError
from medical_diffusion.networks import VectorQuantizer, quantizer


def filled(num_codes: int = 300, code_dim: int = 8, **options: float) -> VectorQuantizer:
    """A quantiser whose codebook is random and complete, every code in even use."""
    q = VectorQuantizer(num_codes, code_dim, **options)
    q.codebook.normal_()
    q.ema_counts.fill_(1.0)
    q.ema_sums.copy_(q.codebook)
    q.usage.fill_(1.0)
    q.codes_initialised.fill_(num_codes)
    q.batches_seen.fill_(q.init_batches)
    return q


@pytest.mark.parametrize("num_codes", [1, 5, 128, 300])
def test_nearest_codes_match_brute_force(num_codes: int) -> None:
    q, tokens = filled(num_codes), torch.randn(1000, 8)
    assert torch.equal(q.nearest_codes(tokens), torch.cdist(tokens, q.codebook).argmin(1))


def test_the_lowest_index_wins_a_tie() -> None:
    q = filled(300)
    q.codebook[200] = q.codebook[140] = q.codebook[130]
    assert q.nearest_codes(q.codebook[[200]]).item() == 130


def test_chunked_search_equals_unchunked(monkeypatch: pytest.MonkeyPatch) -> None:
    q, tokens = filled(), torch.randn(777, 8)
    whole = q.nearest_codes(tokens)
    monkeypatch.setattr(quantizer, "MAX_DISTANCES", 1000)
    assert torch.equal(q.nearest_codes(tokens), whole)


@pytest.mark.parametrize("shape", [(2, 8, 4, 3, 5), (2, 8, 6, 5, 1)])
def test_output_has_the_shape_of_the_input(shape: tuple[int, ...]) -> None:
    q = filled().eval()
    h = torch.randn(shape)
    out = q(h)
    assert out.latents.shape == shape
    assert out.indices.shape == (2, *shape[2:])
    torch.testing.assert_close(out.latents, q.codebook[out.indices].movedim(-1, 1))
    torch.testing.assert_close(out.latents, q.to_decoder(h))
    assert out.statistics["codes_used"] == len(out.indices.unique())
    assert 1 <= out.statistics["perplexity"] <= out.statistics["codes_used"] + 1e-3


def test_gradient_passes_straight_through_and_the_loss_draws_to_the_code() -> None:
    q = filled(commitment_weight=0.5).eval()
    h = torch.randn(1, 8, 3, 3, 3, requires_grad=True)
    out = q(h)
    cotangent = torch.randn_like(h)
    (through,) = torch.autograd.grad(out.latents, h, cotangent, retain_graph=True)
    torch.testing.assert_close(through, cotangent)
    (pull,) = torch.autograd.grad(out.loss, h)
    torch.testing.assert_close(pull, 0.5 * 2 * (h - q.to_decoder(h)).detach() / h.numel())


def test_moving_averages_follow_their_equations() -> None:
    q = filled(num_codes=4, code_dim=2, decay=0.9, restart_threshold=0)
    start, counts, sums = q.codebook.clone(), torch.ones(4), q.codebook.clone()
    for _ in range(3):
        h = torch.randn(2, 2, 3, 3, 2)
        tokens = h.movedim(1, -1).reshape(-1, 2)
        one_hot = torch.nn.functional.one_hot(torch.cdist(tokens, q.codebook).argmin(1), 4).float()
        counts = 0.9 * counts + 0.1 * one_hot.sum(0)
        sums = 0.9 * sums + 0.1 * one_hot.T @ tokens
        q(h)
        torch.testing.assert_close(q.ema_counts, counts)
        torch.testing.assert_close(q.codebook, sums / counts[:, None])
    assert not torch.allclose(q.codebook, start)


def test_an_unused_code_keeps_its_place() -> None:
    q = filled(num_codes=2, code_dim=1, decay=0.5, restart_threshold=0)
    q.codebook.copy_(torch.tensor([[0.0], [1e6]]))
    q.ema_sums.copy_(q.codebook)
    for _ in range(300):  # 0.5^300 is far below the smallest float32
        q(torch.randn(1, 1, 2, 2, 2))
    assert q.codebook[1].item() == pytest.approx(1e6, rel=1e-3)


def test_evaluation_changes_nothing() -> None:
    q = filled().eval()
    before = {name: value.clone() for name, value in q.state_dict().items()}
    first, second = q(torch.ones(1, 8, 2, 2, 2)), q(torch.ones(1, 8, 2, 2, 2))
    assert torch.equal(first.indices, second.indices)
    assert all(torch.equal(value, before[name]) for name, value in q.state_dict().items())


def test_the_codebook_starts_as_a_ring_of_the_latest_tokens() -> None:
    q = VectorQuantizer(64, 8, init_batches=6, decay=0.999999, restart_threshold=0)
    seen = []
    for batch in range(9):
        h = torch.randn(1, 8, 4, 2, 2)
        seen.append(h.movedim(1, -1).reshape(-1, 8))
        latents = q(h).latents
        assert q.codes_initialised == min(64, 16 * (batch + 1))
        assert torch.allclose(latents, h) is (batch < 6)
    distance = torch.cdist(q.codebook, torch.cat(seen[2:6])).min(1).values
    assert distance.max() < 1e-2  # the averages have moved a little since
    assert len(q.codebook.unique(dim=0)) == 64


def test_a_moving_encoder_does_not_leave_the_codebook_behind() -> None:
    used = {}
    for init_batches in (1, 20):
        q = VectorQuantizer(64, 8, init_batches=init_batches)
        for batch in range(40):
            used[init_batches] = q(torch.randn(1, 8, 4, 4, 4) + min(batch, 20)).statistics["codes_used"]
    assert used[1] == 1
    assert used[20] > 10


def test_resuming_never_starts_over_and_continues_exactly(tmp_path: Path) -> None:
    batches = [torch.randn(1, 8, 4, 4, 4) for _ in range(12)]
    q = VectorQuantizer(64, 8, init_batches=4)
    for step, h in enumerate(batches):
        if step == 6:
            torch.save(q.state_dict(), tmp_path / "q.pt")
        torch.manual_seed(step)
        q(h)
    resumed = VectorQuantizer(64, 8, init_batches=4)
    resumed.load_state_dict(torch.load(tmp_path / "q.pt", weights_only=True))
    assert resumed.codes_initialised == 64
    for step in range(6, 12):
        torch.manual_seed(step)
        resumed(batches[step])
    assert all(torch.equal(value, resumed.state_dict()[name]) for name, value in q.state_dict().items())


def test_dead_codes_restart_from_the_batch() -> None:
    q = filled(num_codes=8, code_dim=2, decay=0.9)
    q.codebook[4:] = 1e3  # out of reach of every token
    q.ema_sums.copy_(q.codebook)
    for _ in range(60):
        q(torch.randn(1, 2, 4, 4, 4))
    assert q.codebook.abs().max() < 10
    assert q.active_codes().all()
    assert q.perplexity() > 4


def test_more_codes_than_tokens_does_not_turn_the_codebook_into_noise() -> None:
    """4096 codes, 64 tokens a batch: a fixed threshold of 1 would restart nearly all of them at every step."""
    q = VectorQuantizer(4096, 8, init_batches=64)
    moved = []
    for _ in range(300):
        before = q.usage.clone()
        q(torch.randn(1, 8, 4, 4, 4))
        moved.append(int(((before > 0) & (q.usage == 0)).sum()))
    assert q.codes_initialised == 4096
    assert sum(moved[150:]) / 150 / 4096 < 0.01
    in_use = q.active_codes().sum()
    assert 100 < in_use <= 100 * 64


def test_fresh_codes_do_not_set_the_range() -> None:
    q = filled(num_codes=4, code_dim=2)
    q.codebook.copy_(torch.tensor([[-1.0, 0.5], [0.0, 2.0], [50.0, 50.0], [-9.0, 9.0]]))
    q.usage.copy_(torch.tensor([1.0, 1.0, 0.0, 0.0]))
    assert q.code_range() == (-1.0, 2.0)


def test_statistics_stay_float32_under_autocast() -> None:
    q = VectorQuantizer(32, 8)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = q(torch.randn(1, 8, 4, 4, 4).bfloat16())
    assert out.latents.dtype == torch.bfloat16
    assert out.loss.dtype == torch.float32
    assert all(buffer.dtype in (torch.float32, torch.int64) for buffer in q.buffers())


def test_errors() -> None:
    with pytest.raises(UserError, match="num_codes must be a positive whole number"):
        VectorQuantizer(0)
    with pytest.raises(UserError, match="decay must lie between 0 and 1"):
        VectorQuantizer(decay=1.0)
    with pytest.raises(UserError, match="restart_threshold must not be negative"):
        VectorQuantizer(restart_threshold=-1)
    with pytest.raises(UserError, match=r"latents must be \(B, 8, h, w, d\)"):
        filled()(torch.randn(1, 4, 2, 2, 2))
    with pytest.raises(UserError, match="codebook must be initialised before latents are quantised"):
        VectorQuantizer(8).eval()(torch.randn(1, 8, 2, 2, 2))
    with pytest.raises(UserError, match="codebook must be initialised before its range"):
        VectorQuantizer(8).code_range()


def _train_on_rank(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", f"file://{folder}/rendezvous", rank=rank, world_size=2)
    q = VectorQuantizer(64, 4, decay=0.8, init_batches=3)
    for step in range(20):
        torch.manual_seed(100 * rank + step)
        out = q(torch.randn(1, 4, 3, 3, 3) * (rank + 1))
    torch.save((q.state_dict(), out.statistics["codes_used"]), f"{folder}/rank{rank}.pt")
    torch.distributed.destroy_process_group()


def test_two_processes_hold_the_same_codebook(tmp_path: Path) -> None:
    mp.spawn(_train_on_rank, (str(tmp_path),), nprocs=2)
    (first, used_first), (second, used_second) = (torch.load(tmp_path / f"rank{rank}.pt") for rank in range(2))
    assert all(torch.equal(value, second[name]) for name, value in first.items())
    assert used_first == used_second
    assert first["codes_initialised"] == 64
    assert first["usage"].max() > 0
