"""What ``benchmarks.sae`` times: every row in a process of its own, with settings and memory of its own.

``python -m benchmarks.sae_rows ROW LATENTS`` says "ready"; for each number of batches on its input it trains
on as many and says the most memory in MiB that training added; for "score" FVU and L0 on other tokens.
"""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, ExitStack, nullcontext
from functools import cache, partial
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from prisma_steps.precision import ComputeDtype

D_MODEL, BATCH, K = 768, 4096, 32
#: λ of mean‖x − x̂‖² + λ Σ f of every ReLU row, for tokens of E‖x‖ = √d_model.
L1_COEFFICIENT = 3.0
#: Adam's learning rate of our rows; the others have their own.
LEARNING_RATE = 1e-3
#: Members of a grid.
MEMBERS = 8

_POOL, _DIRECTIONS, _ACTIVE = 12, 6144, 24


class Row(NamedTuple):
    """A training run: a step on a batch, and latents and reconstruction of tokens."""

    train: Callable[[Tensor], object]
    look: Callable[[Tensor], tuple[Tensor, Tensor]]


def planted_tokens(n: int, seed: int) -> Tensor:
    """Sums of 24 of 6,144 directions with exponential strengths, E‖x‖ = √d_model."""
    directions = torch.randn(_DIRECTIONS, D_MODEL, generator=torch.Generator().manual_seed(0))
    directions /= directions.norm(dim=1, keepdim=True)
    generator = torch.Generator().manual_seed(seed)
    which = torch.randint(_DIRECTIONS, (n, _ACTIVE), generator=generator)
    strengths = torch.empty(n, _ACTIVE).exponential_(generator=generator)
    tokens = F.embedding_bag(which, directions, mode="sum", per_sample_weights=strengths)
    return tokens * (D_MODEL / (2 * _ACTIVE)) ** 0.5


# --- ours


def ours(architecture: str, dtype: ComputeDtype, n_latents: int, all_latents: bool = False) -> Row:
    """A step as training makes it."""
    return _members(architecture, dtype, n_latents, 1, all_latents)


def ours_grid(architecture: str, dtype: ComputeDtype, n_latents: int) -> Row:
    """Dictionaries that take turns on each batch."""
    return _members(architecture, dtype, n_latents, MEMBERS, False)


def _members(architecture: str, dtype: ComputeDtype, n_latents: int, count: int, all_latents: bool) -> Row:
    from prisma_steps.job import Job
    from prisma_steps.memory import reused_memory
    from prisma_steps.sae import fused
    from prisma_steps.sae.architectures import architecture as named
    from prisma_steps.sae.autoencoder import Shape
    from prisma_steps.sae.buffers import Buffers
    from prisma_steps.sae.training import Recipe, Trainer

    if all_latents:
        fused._SPARSE = dict.fromkeys(fused._SPARSE, -1.0)
    settings = {"relu": {"l1_coefficient": L1_COEFFICIENT}, "topk": {"k": K}}[architecture]
    _KEPT.enter_context(reused_memory())
    buffers, members = Buffers(), []
    device = Job(threads=torch.get_num_threads()).device  # as in a job: deterministic
    recipe = Recipe(
        n_steps=10_000,
        learning_rate=LEARNING_RATE,
        learning_rate_warmup=0,
        learning_rate_decay=0,
        sparsity_warmup=0,
        dead_after=10_000_000,
        compute_dtype=dtype,
    )
    for seed in range(count):
        made = named(architecture)(Shape(D_MODEL, n_latents), **settings).to(device)
        made.initialise(torch.zeros(D_MODEL), torch.Generator().manual_seed(seed))
        members.append(Trainer(made, recipe, torch.zeros(D_MODEL), buffers))

    def train(x: Tensor) -> None:
        for member in members:
            member.advance(x, x)

    return Row(train, members[0].autoencoder)


#: What lasts as long as the process.
_KEPT = ExitStack()


def products(dtype: str, n_latents: int) -> Row:
    """The five products of a ReLU step alone, each the way that is fastest on this processor."""
    from prisma_steps.memory import reused_memory

    _KEPT.enter_context(reused_memory())
    torch.set_grad_enabled(False)
    kind = getattr(torch, dtype)
    encoder, decoder = (torch.randn(n_latents, D_MODEL).to(kind) / D_MODEL**0.5 for _ in range(2))
    bias, reconstruction = torch.zeros(n_latents), torch.empty(BATCH, D_MODEL, dtype=kind)
    slopes, gradient = torch.empty(BATCH, n_latents, dtype=kind), torch.empty(n_latents, D_MODEL, dtype=kind)
    linear = torch.ops.mkldnn._linear_pointwise

    def by_latent(latents: Tensor, tokens: Tensor) -> None:
        if kind is torch.float32:
            torch.mm(latents.T, tokens, out=gradient)
        else:
            linear(tokens, latents.T, None, "none", [], "")

    def train(x: Tensor) -> None:
        tokens = x.to(kind)
        # Laid out for the product, which is all that is timed; its values are beside the point.
        for_gradient = tokens if kind is torch.float32 else tokens.view(D_MODEL, len(x))
        latents = linear(tokens, encoder, bias, "relu", [], "")
        torch.mm(latents, decoder, out=reconstruction[: len(x)])
        of_tokens = torch.mm(tokens, decoder.T, out=slopes[: len(x)])
        by_latent(latents, for_gradient)
        by_latent(of_tokens, for_gradient)

    return Row(train, lambda x: (x, x))


# --- others


def sae_lens(architecture: str, bf16: bool, n_latents: int) -> Row:
    """Its trainer, with its own autocast for bfloat16."""
    from sae_lens import StandardTrainingSAEConfig, TopKTrainingSAEConfig, TrainingSAE
    from sae_lens.config import SAETrainerConfig
    from sae_lens.training.sae_trainer import SAETrainer

    if architecture == "relu":
        config: Any = StandardTrainingSAEConfig(d_in=D_MODEL, d_sae=n_latents, l1_coefficient=L1_COEFFICIENT)
    else:
        config = TopKTrainingSAEConfig(d_in=D_MODEL, d_sae=n_latents, k=K)
    sae = TrainingSAE.from_dict(config.to_dict())
    settings = SAETrainerConfig(
        total_training_samples=10**9, train_batch_size_samples=BATCH, autocast=bf16, lr_end=3e-5
    )
    trainer = SAETrainer(settings, sae, iter(()))

    def look(x: Tensor) -> tuple[Tensor, Tensor]:
        latents = sae.encode(x)
        return latents, sae.decode(latents)

    return Row(trainer.step, look)


def dictionary_learning(architecture: str, bf16: bool, n_latents: int) -> Row:
    """Its trainer's ``update``; it turns autocast off on a CPU: for bfloat16 ours is put around it."""
    from dictionary_learning.trainers.standard import StandardTrainer
    from dictionary_learning.trainers.top_k import TopKTrainer

    common = {
        "steps": 10**6,
        "activation_dim": D_MODEL,
        "dict_size": n_latents,
        "layer": 0,
        "lm_name": "",
        "warmup_steps": 0,
        "device": "cpu",
    }
    if architecture == "relu":
        trainer: Any = StandardTrainer(l1_penalty=L1_COEFFICIENT, sparsity_warmup_steps=None, **common)
    else:
        trainer = TopKTrainer(k=K, **common)
    steps = iter(range(10**6))

    def train(x: Tensor) -> None:
        with _autocast(bf16):
            trainer.update(next(steps), x)

    def look(x: Tensor) -> tuple[Tensor, Tensor]:
        x_hat, latents = trainer.ae(x, output_features=True)
        return latents, x_hat

    return Row(train, look)


def overcomplete(architecture: str, bf16: bool, n_latents: int) -> Row:
    """Its ``train_sae``, with Adam at the rate of its examples; for bfloat16 autocast is put around it."""
    _bare_overcomplete()
    from overcomplete.sae import SAE, TopKSAE
    from overcomplete.sae.train import train_sae

    relu = architecture == "relu"
    model: Any = SAE(D_MODEL, n_latents) if relu else TopKSAE(D_MODEL, n_latents, top_k=K)
    optimiser = torch.optim.Adam(model.parameters(), lr=5e-4)

    def criterion(x: Tensor, x_hat: Tensor, _: Tensor, latents: Tensor, __: Tensor) -> Tensor:
        error = (x - x_hat).square().sum(1).mean()
        return error + L1_COEFFICIENT * latents.sum(1).mean() if relu else error

    def train(x: Tensor) -> None:
        with _autocast(bf16):
            train_sae(model, [x], criterion, optimiser, nb_epochs=1, monitoring=0, device="cpu")

    def look(x: Tensor) -> tuple[Tensor, Tensor]:
        _, latents, x_hat = model.eval()(x)
        model.train()
        return latents, x_hat

    return Row(train, look)


@cache
def _bare_overcomplete() -> None:
    """Import it without its __init__, which imports image models and figures: torchvision, old matplotlib."""
    spec = importlib.util.find_spec("overcomplete")
    assert spec is not None and spec.submodule_search_locations is not None
    sys.modules["overcomplete"] = package = ModuleType("overcomplete")
    package.__path__ = list(spec.submodule_search_locations)


def _autocast(bf16: bool) -> AbstractContextManager[Any]:
    return torch.autocast("cpu", torch.bfloat16) if bf16 else nullcontext()


def in_turn(row: Callable[..., Row], architecture: str, bf16: bool, n_latents: int) -> Row:
    """Members of a grid one after the other."""
    members = [row(architecture, bf16, n_latents) for _ in range(MEMBERS)]
    return Row(lambda x: [member.train(x) for member in members], members[0].look)


PEERS = {"sae-lens": sae_lens, "dictionary-learning": dictionary_learning, "overcomplete": overcomplete}


def rows() -> dict[str, Callable[[int], Row]]:
    """Every row by its name: architecture, who, precision."""
    made: dict[str, Callable[[int], Row]] = {}
    for dtype in ("float32", "bfloat16"):
        made[f"products, {dtype}"] = partial(products, dtype)
        made[f"relu, ours, {dtype}, all latents"] = partial(ours, "relu", dtype, all_latents=True)
        for architecture in ("relu", "topk"):
            made[f"{architecture}, ours, {dtype}"] = partial(ours, architecture, dtype)
            made[f"{architecture} × 8, ours, {dtype}"] = partial(ours_grid, architecture, dtype)
            for name, row in PEERS.items():
                bf16 = dtype == "bfloat16"
                made[f"{architecture}, {name}, {dtype}"] = partial(row, architecture, bf16)
                made[f"{architecture} × 8, {name}, {dtype}"] = partial(in_turn, row, architecture, bf16)
    return made


def main(name: str, n_latents: int, batches: Sequence[Tensor]) -> None:
    """Serve one row."""
    # A small dictionary loads libraries and compiles loops; from there on the peak is what training adds.
    rows()[name](2 * K).train(batches[0][: 2 * K])
    torch.manual_seed(0)
    Path("/proc/self/clear_refs").write_text("5")
    before = _memory("VmRSS")
    row, done = rows()[name](n_latents), 0
    print("ready", flush=True)
    for line in sys.stdin:
        if line.strip() == "score":
            print(*_score(row), flush=True)
            continue
        for _ in range(int(line)):
            row.train(batches[done % len(batches)])
            done += 1
        print(_memory("VmHWM") - before, flush=True)


def _score(row: Row) -> tuple[float, float]:
    x = planted_tokens(BATCH, seed=10**6)
    with torch.no_grad():
        latents, x_hat = row.look(x)
    fvu = (x - x_hat.float()).square().sum() / (x - x.mean(0)).square().sum()
    return fvu.item(), torch.count_nonzero(latents).item() / len(x)


def _memory(what: str) -> float:
    told = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(told[what].split()[0]) / 1024


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), [planted_tokens(BATCH, seed) for seed in range(1, 1 + _POOL)])
