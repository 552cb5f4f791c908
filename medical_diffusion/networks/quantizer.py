"""Vector quantisation with a codebook that follows the data by exponential moving averages (van den Oord et al. 2017,
appendix A.1, with restarts of unused codes as in Dhariwal et al. 2020).

Each latent vector h is replaced by its nearest code e_k; the gradient passes straight through. With n_k tokens assigned
to code k in a batch and s_k their sum,

    N_k ← γ N_k + (1 - γ) n_k,    S_k ← γ S_k + (1 - γ) s_k,    e_k = S_k / N_k,

and the encoder is drawn to its codes by the commitment loss β·mean‖h - e_k‖².

*Start.* During the first ``init_batches`` training batches the codebook is a ring of the latest tokens: each batch
overwrites the oldest codes. An encoder that has just begun to learn moves far faster than the averages can follow, and
a codebook fixed at the first batch is left behind until a single code remains in use. How many codes and batches there
have been are buffers, so a resumed run never starts over; the search sees filled codes only.

*Restarts.* A code whose N_k falls below a threshold is moved to a token of the current batch. With T tokens a batch and
K codes, even perfectly uniform use gives N_k = T/K: a threshold of 1 would restart most codes at every step when there
are more codes than tokens. The threshold is therefore ``restart_threshold`` or a quarter of uniform use, whichever is
smaller, and a new code starts at four times the threshold: without a single token it lives ln 4 / (1 - γ) steps
(139 at γ = 0.99), so at most that fraction of the codes can be fresh noise. N_k of a fresh code says nothing about its
use, so use has its own average (``usage``), which starts at zero.
"""

from __future__ import annotations

import math

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor

from medical_diffusion.errors import UserError
from medical_diffusion.networks.bottleneck import Bottleneck, BottleneckOutput

#: distances held at once by the search on a CPU: 1 Mi float32 numbers stay in its cache
MAX_DISTANCES = 2**20
#: codes per group in the two-level argmin: a vectorised minimum first, an index search in one group only then
GROUP = 128


class VectorQuantizer(Bottleneck):
    """Nearest-code bottleneck: (B, code_dim, h, w, d) → :class:`BottleneckOutput`.

    In training mode each call updates the codebook once, after the search; in evaluation mode nothing changes. Under
    ``torch.distributed`` counts and sums are added over the processes and new codes come from rank 0, so all ranks hold
    the same codebook. All statistics are float32 buffers.

    The loss is the commitment loss. ``statistics`` holds ``codes_used``, the different codes in this batch (over all
    processes when training), and ``perplexity``, exp of the entropy of the codes in this batch.

    Args:
        num_codes: K, size of the codebook (paper: 16384).
        code_dim: channels of a latent vector (paper: 8).
        decay: γ of the moving averages, in (0, 1).
        commitment_weight: β, factor of the commitment loss.
        restart_threshold: tokens a batch, as moving average, under which a code is restarted; 0 turns restarts off.
        init_batches: training batches over which the codebook follows the latest tokens; best about a tenth of a
            short run.

    Raises:
        UserError: an option out of range; in the call, a tensor with other channels.
    """

    codebook: Tensor
    ema_counts: Tensor
    ema_sums: Tensor
    usage: Tensor
    codes_initialised: Tensor
    batches_seen: Tensor

    def __init__(
        self,
        num_codes: int = 16384,
        code_dim: int = 8,
        decay: float = 0.99,
        commitment_weight: float = 0.25,
        restart_threshold: float = 1.0,
        init_batches: int = 100,
    ) -> None:
        super().__init__()
        for name, number in (("num_codes", num_codes), ("code_dim", code_dim), ("init_batches", init_batches)):
            if isinstance(number, bool) or int(number) != number or number < 1:
                raise UserError(f"{name} must be a positive whole number", number)
        if not 0 < decay < 1:
            raise UserError("decay must lie between 0 and 1", decay, "The paper uses 0.99")
        for name, value in (("commitment_weight", commitment_weight), ("restart_threshold", restart_threshold)):
            if value < 0:
                raise UserError(f"{name} must not be negative", value)
        self.num_codes, self.code_dim, self.decay = int(num_codes), int(code_dim), decay
        self.commitment_weight, self.restart_threshold = commitment_weight, restart_threshold
        self.init_batches = int(init_batches)
        self.register_buffer("codebook", torch.zeros(self.num_codes, self.code_dim))
        self.register_buffer("ema_counts", torch.zeros(self.num_codes))
        self.register_buffer("ema_sums", torch.zeros(self.num_codes, self.code_dim))
        self.register_buffer("usage", torch.zeros(self.num_codes))
        self.register_buffer("codes_initialised", torch.zeros((), dtype=torch.int64))
        self.register_buffer("batches_seen", torch.zeros((), dtype=torch.int64))

    def forward(self, h: Tensor) -> BottleneckOutput:
        """Quantise (B, code_dim, h, w, d); in training mode also update the codebook."""
        tokens = self._tokens(h)
        with torch.autocast(h.device.type, enabled=False):
            tokens = tokens.float()
            flat = tokens.detach().reshape(-1, self.code_dim)
            if self.training:
                self._initialise(flat)
            indices = self.nearest_codes(flat)
            codes = F.embedding(indices, self.codebook).view(tokens.shape)
            loss = self.commitment_weight * F.mse_loss(tokens, codes)
            latents = tokens + (codes - tokens).detach()
            counts = self._count(indices)
            if self.training:
                self._update(flat, indices, counts)
        return BottleneckOutput(
            latents=latents.to(h.dtype).movedim(-1, 1),
            loss=loss,
            statistics={"codes_used": (counts > 0).sum(), "perplexity": _perplexity(counts)},
            indices=indices.view(tokens.shape[:-1]),
        )

    def encode(self, h: Tensor) -> Tensor:
        """The encoder's output as it is: diffusion learns latents before quantisation."""
        return h

    def to_decoder(self, z: Tensor) -> Tensor:
        """Nearest code of each position: (B, code_dim, h, w, d) → the same shape; no gradient, no update."""
        tokens = self._tokens(z).detach()
        indices = self.nearest_codes(tokens.reshape(-1, self.code_dim).float())
        return F.embedding(indices, self.codebook).view(tokens.shape).to(z.dtype).movedim(-1, 1)

    @torch.no_grad()
    def nearest_codes(self, tokens: Tensor) -> Tensor:
        """Index of the nearest code (Euclidean; the lowest index on a tie): (T, code_dim) float32 → (T,) int64.

        ‖h - e‖² orders the codes as ‖e‖²/2 - h·e does, which is one matrix product of (h, 1) and (-e, ‖e‖²/2). It runs
        in chunks of tokens, so memory never grows with tokens × codes.

        Raises:
            UserError: no code has been initialised.
        """
        filled = int(self.codes_initialised)
        if filled == 0:
            raise UserError(
                "the codebook must be initialised before latents are quantised",
                "an untrained codebook",
                "Train at least one batch, or load a trained checkpoint",
            )
        codes = self.codebook[:filled]
        rows = torch.cat([-codes, codes.square().sum(1, keepdim=True) / 2], 1)
        # the last row is filled up with codes at infinite distance, which never win
        matrix = F.pad(rows, (0, 0, 0, -filled % GROUP))
        matrix[filled:, -1] = math.inf
        matrix = matrix.T.contiguous()
        tokens = F.pad(tokens, (0, 1), value=1.0)
        chunk = max(1, MAX_DISTANCES // matrix.shape[1])
        distances = tokens.new_empty(min(chunk, len(tokens)), matrix.shape[1])
        indices = [_grouped_argmin(torch.mm(t, matrix, out=distances[: len(t)])) for t in tokens.split(chunk)]
        return torch.cat(indices)

    def active_codes(self) -> Tensor:
        """Mask (num_codes,) of the codes in use: those that had a token within the last 1 / (1 - decay) batches."""
        return self.usage > (1 - self.decay) * self.decay ** (1 / (1 - self.decay))

    def perplexity(self) -> Tensor:
        """exp of the entropy of the running use of the codes: a scalar between 1 and num_codes."""
        return _perplexity(self.usage)

    def code_range(self) -> tuple[Tensor, Tensor]:
        """Minimum and maximum over the codes in use (over all initialised codes if none is): two scalars."""
        active = self.active_codes()
        codes = self.codebook[active] if bool(active.any()) else self.codebook[: int(self.codes_initialised)]
        if not len(codes):
            raise UserError("the codebook must be initialised before its range is known", "an untrained codebook")
        return codes.min(), codes.max()

    def _tokens(self, h: Tensor) -> Tensor:
        if h.dim() < 3 or h.shape[1] != self.code_dim:
            raise UserError(f"latents must be (B, {self.code_dim}, h, w, d)", tuple(h.shape))
        return h.movedim(1, -1)

    def _count(self, indices: Tensor) -> Tensor:
        counts = torch.bincount(indices, minlength=self.num_codes).float()
        if self.training and _world_size() > 1:
            dist.all_reduce(counts)
        return counts

    @torch.no_grad()
    def _initialise(self, tokens: Tensor) -> None:
        """Overwrite the oldest codes with tokens of this batch, as long as the start lasts."""
        seen = int(self.batches_seen)
        if seen >= self.init_batches:
            return
        share = min(self.num_codes, len(tokens))
        chosen = tokens[torch.randperm(len(tokens), device=tokens.device)[:share]]
        _broadcast(chosen)
        new = (seen * share + torch.arange(share, device=tokens.device)) % self.num_codes
        self._place(new, chosen, self._start_count(len(tokens) * _world_size()))
        self.codes_initialised.fill_(min(self.num_codes, int(self.codes_initialised) + share))
        self.batches_seen += 1

    @torch.no_grad()
    def _update(self, tokens: Tensor, indices: Tensor, counts: Tensor) -> None:
        """One step of the moving averages, then restarts; ``counts`` are those of all processes."""
        sums = torch.zeros_like(self.ema_sums).index_add_(0, indices, tokens)
        if _world_size() > 1:
            dist.all_reduce(sums)
        for average, value in ((self.ema_counts, counts), (self.ema_sums, sums), (self.usage, counts)):
            average.lerp_(value, 1 - self.decay)
        # an unused code keeps its place; its averages shrink together until the division is no longer safe
        alive = self.ema_counts > torch.finfo(torch.float32).tiny / self.decay
        means = self.ema_sums / self.ema_counts.clamp_min(torch.finfo(torch.float32).tiny).unsqueeze(1)
        self.codebook.copy_(torch.where(alive.unsqueeze(1), means, self.codebook))
        if self.restart_threshold > 0:
            self._restart(tokens, int(counts.sum()))

    def _restart(self, tokens: Tensor, total: int) -> None:
        """Move each unused code to another token of this batch."""
        start = self._start_count(total)
        dead = self.ema_counts < start / 4
        dead[int(self.codes_initialised) :] = False
        if not bool(dead.any()):
            return
        order = torch.randperm(len(tokens), device=tokens.device)
        chosen = tokens[order[torch.arange(int(dead.sum()), device=tokens.device) % len(tokens)]]
        _broadcast(chosen)
        self._place(dead, chosen, start)

    def _place(self, where: Tensor, tokens: Tensor, count: float) -> None:
        """Make ``tokens`` the codes at ``where`` (indices or mask), as if each had ``count`` tokens a batch."""
        self.codebook[where] = tokens
        self.ema_counts[where] = count
        self.ema_sums[where] = tokens * count
        self.usage[where] = 0

    def _start_count(self, total: int) -> float:
        """N_k of a new code, four times the restart threshold at ``total`` tokens a batch."""
        uniform = total / self.num_codes
        return min(4 * self.restart_threshold, uniform) if self.restart_threshold > 0 else uniform


def _grouped_argmin(distances: Tensor) -> Tensor:
    """argmin over the last axis, whose length is a multiple of GROUP, several times faster than torch.argmin on CPU."""
    groups = distances.view(len(distances), -1, GROUP)
    best = groups.amin(-1).argmin(1)
    inner = groups[torch.arange(len(groups), device=groups.device), best].argmin(1)
    return best * GROUP + inner


def _perplexity(counts: Tensor) -> Tensor:
    probabilities = counts / counts.sum().clamp_min(torch.finfo(counts.dtype).tiny)
    return torch.special.entr(probabilities).sum().exp()


def _world_size() -> int:
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def _broadcast(tensor: Tensor) -> None:
    if _world_size() > 1:
        dist.broadcast(tensor, src=0)
