"""Step ``train_sae``: a sparse autoencoder on stored activations."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from prisma_steps.schema import SITE_DIMS, Activations, Dictionary, label
from prisma_steps.step import Field, Job, SiteName, StepError, StepParams, step

if TYPE_CHECKING:
    import xarray as xr
    from torch import Tensor

    from prisma_steps.sae.autoencoder import Autoencoder
    from prisma_steps.sae.training import Recipe, Trainer


class Params(StepParams):
    """Settings of one training run of a sparse autoencoder."""

    site: SiteName | None = Field(
        None, description="site whose activations to train on; needed only where several are stored"
    )
    layer: int | Literal["last"] = Field("last", description="block of the site, or the last one stored")
    tokens: Literal["all", "cls", "patch"] = Field("all", description="tokens to train on")
    architecture: Literal["relu", "topk"] = Field("topk", description="how latents are made sparse")
    expansion: int = Field(8, gt=0, description="latents per dimension of the activations")
    k: int = Field(
        32,
        gt=0,
        description="latents kept a token",
        json_schema_extra={"only_for": {"architecture": ["topk"]}},
    )
    aux_k_coefficient: float = Field(
        1 / 32,
        ge=0,
        description="weight of the loss that revives dead latents",
        json_schema_extra={"only_for": {"architecture": ["topk"]}},
    )
    l1_coefficient: float = Field(
        1.0,
        ge=0,
        description="weight of the L1 penalty on the latents",
        json_schema_extra={"only_for": {"architecture": ["relu"]}},
    )
    sparsity_warmup: float = Field(
        0.1,
        ge=0,
        le=1,
        description="first share of the training over which the L1 penalty rises linearly",
        json_schema_extra={"only_for": {"architecture": ["relu"]}},
    )
    batch_size: int = Field(1024, gt=0, description="tokens of one optimiser step")
    epochs: int = Field(
        1,
        gt=0,
        description="passes over the stored tokens",
        json_schema_extra={"only_for": {"n_tokens": [None]}},
    )
    n_tokens: int | None = Field(None, gt=0, description="tokens to train on, in place of whole epochs")
    learning_rate: float = Field(1e-3, gt=0, description="learning rate of Adam, at its highest")
    learning_rate_warmup: float = Field(
        0.05,
        ge=0,
        le=1,
        description="first share of the training over which the learning rate rises linearly",
    )
    learning_rate_decay: float = Field(
        0.2,
        ge=0,
        le=1,
        description="last share of the training over which the learning rate falls linearly",
    )
    normalise: Literal["none", "expected_norm"] = Field(
        "expected_norm", description="scale the activations so that E‖x‖ = √d_model, or leave them"
    )
    b_dec_init: Literal["geometric_median", "mean", "zeros"] = Field(
        "geometric_median", description="centre of the normalised activations that b_dec starts from"
    )
    dead_after: int = Field(
        1_000_000, gt=0, description="tokens without firing after which a latent counts as dead"
    )
    seed: int = Field(0, ge=0, description="seed of the first weights and of the order of the tokens")


@step(inputs={"activations": Activations}, output=Dictionary)
def train_sae(activations: xr.Dataset, params: Params, job: Job) -> xr.Dataset:
    """Train a sparse autoencoder on stored activations.

    Minimises mean_token ‖x − x̂‖² + sparsity on the normalised activations: "relu" with an L1 penalty
    (Bricken et al. 2023), "topk" with the AuxK loss (Gao et al. 2024, arXiv 2406.04093). Adam, gradients
    clipped at norm 1. Every token is served once an epoch, in an order shuffled by ``seed``.

    Returns:
        The weights, and the history of the training along ``step``: loss, sparsity term, FVU and L0 of the
        batch, latents that have not fired for ``dead_after`` tokens, learning rate.

    Raises:
        StepError: when the activations do not hold the site, layer or tokens asked for, when k exceeds the
            number of latents, or when training diverges (naming the optimiser step).
    """
    from prisma_steps.sae.formats import dictionary_dataset
    from prisma_steps.sae.tokens import only_kind, token_table
    from prisma_steps.sae.training import Trainer

    values, place = _select(activations, params)
    tokens = token_table(values, params.tokens)
    trainer = Trainer(_start(tokens, params).to(job.device), tokens, _recipe(len(tokens), params))
    _run(trainer, job)
    trained_on = {**place, "tokens": only_kind(values, params.tokens)}
    return label(dictionary_dataset(trainer.autoencoder, trainer.history, trained_on))


def _select(activations: xr.Dataset, params: Params) -> tuple[xr.DataArray, dict[str, str | int]]:
    """Activations of one site in one layer, and the name of that place.

    Raises:
        StepError: listing what is stored.
    """
    stored = [str(name) for name in activations.data_vars if name in SITE_DIMS]
    site = params.site if params.site is not None or len(stored) != 1 else stored[0]
    if site not in stored:
        problem = "several sites are stored" if site is None else f"site {site!r} is not stored"
        raise StepError(f"{problem}: set site to one of {', '.join(stored)}")
    values = activations[site]
    if SITE_DIMS[site][:2] != ("image", "token") or len(SITE_DIMS[site]) != 3:
        raise StepError(f"site {site!r} has dims {SITE_DIMS[site]}: a dictionary needs one vector a token")
    if "layer" not in values.dims:
        if params.layer != "last":
            raise StepError(f"{site!r} exists once, not once a layer: leave layer out")
        return values, {"site": site}
    layers = values["layer"].values.tolist()
    layer = layers[-1] if params.layer == "last" else params.layer
    if layer not in layers:
        raise StepError(f"layer {layer} of {site!r} is not stored: set layer to one of {layers} or 'last'")
    return values.sel(layer=layer), {"site": site, "layer": layer}


def _start(tokens: Tensor, params: Params) -> Autoencoder:
    """The autoencoder before its first step."""
    from prisma_steps.sae.architectures import architecture
    from prisma_steps.sae.initialisation import centre, expected_norm_factor
    from prisma_steps.seeding import torch_generator

    kind = architecture(params.architecture)
    d_model = tokens.shape[1]
    settings = {name: getattr(params, name) for name in kind.settings}
    autoencoder = kind(d_model, params.expansion * d_model, **settings)
    # A centre of scaled activations is the scaled centre: no second table has to be made.
    norm_factor = expected_norm_factor(tokens) if params.normalise == "expected_norm" else 1.0
    b_dec = centre(tokens, params.b_dec_init) * norm_factor
    autoencoder.initialise(b_dec, norm_factor, torch_generator(params.seed, "sae/directions"))
    return autoencoder


def _recipe(n_stored: int, params: Params) -> Recipe:
    """How to train, with the budget in tokens."""
    from prisma_steps.sae.training import Recipe

    return Recipe(
        n_tokens=params.n_tokens or params.epochs * n_stored,
        batch_size=params.batch_size,
        learning_rate=params.learning_rate,
        learning_rate_warmup=params.learning_rate_warmup,
        learning_rate_decay=params.learning_rate_decay,
        sparsity_warmup=params.sparsity_warmup,
        dead_after=params.dead_after,
        seed=params.seed,
    )


def _run(trainer: Trainer, job: Job) -> None:
    """Train to the end, from the last checkpoint if there is one."""
    state = job.checkpoint.load()
    if state is not None:
        trainer.restore(state)
    while trainer.steps_done < trainer.n_steps:
        trainer.advance()
        if job.checkpoint.due():
            job.checkpoint.save(trainer.state())
        fvu, l0 = trainer.history["fvu"][-1], trainer.history["l0"][-1]
        job.progress(trainer.steps_done, trainer.n_steps, f"FVU {fvu:.3f}, L0 {l0:.1f}")
