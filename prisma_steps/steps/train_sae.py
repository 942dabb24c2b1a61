"""Step ``train_sae``: sparse autoencoders, transcoders and crosscoders on stored activations."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

from prisma_steps.job import Job, Member
from prisma_steps.schema import Activations, Dictionary, label
from prisma_steps.step import Field, SiteName, StepError, StepParams, step

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    import xarray as xr

    from prisma_steps.sae.autoencoder import Autoencoder
    from prisma_steps.sae.buffers import Buffers
    from prisma_steps.sae.initialisation import Sample
    from prisma_steps.sae.stream import TokenStream
    from prisma_steps.sae.training import Trainer

_TOPK = ["topk", "batch_topk", "matryoshka"]


def _own(default: Any, description: str, only_for: dict[str, list[Any]] | None = None, **limits: Any) -> Any:
    """A parameter in which dictionaries may differ that are trained together."""
    extra: dict[str, Any] = {"may_differ": True}
    if only_for:
        extra["only_for"] = only_for
    return Field(default, description=description, json_schema_extra=extra, **limits)


class Params(StepParams):
    """Settings of one training run of a sparse dictionary.

    Points of a grid that differ in parameters other than the first ones, up to ``shuffle_seed``, are trained
    together: the activations are read once for all of them.
    """

    site: SiteName | None = Field(
        None, description="site whose activations to train on; needed only where several are stored"
    )
    target_site: SiteName | None = Field(
        None, description="site to predict from them, which makes a transcoder; null reconstructs them"
    )
    layer: int | Literal["last"] | list[int] = Field(
        "last", description="block of the sites, or the last one stored; a list of blocks makes a crosscoder"
    )
    tokens: Literal["all", "cls", "patch"] = Field("all", description="tokens to train on")
    batch_size: int = Field(1024, gt=0, description="tokens of one optimiser step")
    epochs: int = Field(
        1,
        gt=0,
        description="passes over the stored tokens",
        json_schema_extra={"only_for": {"n_tokens": [None]}},
    )
    n_tokens: int | None = Field(None, gt=0, description="tokens to train on, in place of whole epochs")
    buffer_tokens: int = Field(
        2**18,
        gt=0,
        description="about how many tokens are in memory, twice, and shuffled together; all where they are "
        "fewer",
    )
    shuffle_seed: int = Field(0, ge=0, description="seed of the order of the tokens")

    architecture: Literal["relu", "gated", "topk", "batch_topk", "jumprelu", "matryoshka"] = _own(
        "topk", "how latents are made sparse"
    )
    expansion: int = _own(8, "latents per dimension of one layer's activations", gt=0)
    k: int = _own(32, "latents kept a token", {"architecture": _TOPK}, gt=0)
    prefixes: list[float] = _own(
        [1 / 32, 3 / 32, 7 / 32, 15 / 32, 1.0],
        "shares of the latents that must reconstruct alone, rising to 1",
        {"architecture": ["matryoshka"]},
    )
    l1_coefficient: float = _own(
        1.0, "weight of the L1 penalty on the latents", {"architecture": ["relu", "gated"]}, ge=0
    )
    l0_coefficient: float = _own(
        1.0, "weight of the number of active latents", {"architecture": ["jumprelu"]}, ge=0
    )
    bandwidth: float = _own(
        0.05,
        "width of the ramp that stands for the step at a threshold in gradients",
        {"architecture": ["jumprelu"]},
        gt=0,
    )
    sparsity_warmup: float = _own(
        0.1,
        "first share of the training over which the penalty rises linearly",
        {"architecture": ["relu", "gated", "jumprelu"]},
        ge=0,
        le=1,
    )
    skip: bool = _own(False, "add a linear map of the input to a transcoder's output")
    decoder_constraint: Literal["unit_norm", "none"] = _own(
        "unit_norm", "hold decoder rows at unit norm, or leave them to a penalty weighted by their norms"
    )
    normalise: Literal["none", "expected_norm", "layer_norm"] = _own(
        "expected_norm",
        "scale the activations so that E‖x‖ = √d_model, standardise each token, or leave them",
    )
    b_dec_init: Literal["geometric_median", "mean", "zeros"] = _own(
        "geometric_median", "centre of the normalised activations that b_dec starts from"
    )
    dead_latents: Literal["aux_k", "resample", "none"] | None = _own(
        None,
        "what is done about latents that no longer fire: null is aux_k for topk, batch_topk and matryoshka, "
        "and none for the others",
    )
    dead_after: int = _own(1_000_000, "tokens without firing after which a latent counts as dead", gt=0)
    aux_k_coefficient: float = _own(
        1 / 32,
        "weight of the loss that revives dead latents",
        {"dead_latents": [None, "aux_k"]},
        ge=0,
    )
    learning_rate: float = _own(1e-3, "learning rate of Adam, at its highest", gt=0)
    learning_rate_warmup: float = _own(
        0.05, "first share of the training over which the learning rate rises linearly", ge=0, le=1
    )
    learning_rate_decay: float = _own(
        0.2, "last share of the training over which the learning rate falls linearly", ge=0, le=1
    )
    compute_dtype: Literal["float32", "bfloat16"] = _own(
        "float32", "of the matrix products; weights, sums and optimiser stay float32"
    )
    seed: int = _own(0, "seed of the first weights", ge=0)


def train_together(activations: xr.Dataset, members: Sequence[Member[Params]]) -> Iterator[Any]:
    """Train several dictionaries in one pass over the activations; see ``train_sae``.

    Members are trained one after the other on each batch, so that each is what it is when trained alone.
    """
    from prisma_steps.memory import reused_memory
    from prisma_steps.sae.buffers import Buffers
    from prisma_steps.sae.initialisation import SAMPLE_TOKENS
    from prisma_steps.sae.stored import StoredTokens
    from prisma_steps.sae.stream import TokenStream
    from prisma_steps.sae.tokens import only_kind

    shared, job = members[0].params, members[0].job
    variables, place = _select(activations, shared)
    stored = StoredTokens(variables, shared.tokens)
    n_tokens = shared.n_tokens or shared.epochs * len(stored)
    device = job.device
    with TokenStream(
        stored,
        n_served=n_tokens,
        batch_size=shared.batch_size,
        buffer_tokens=shared.buffer_tokens,
        seed=shared.shuffle_seed,
    ) as stream:
        sample = _sample(stream, SAMPLE_TOKENS)
        buffers = Buffers()
        runs = [_start(sample, member, variables, stream.n_batches, device, buffers) for member in members]
        del sample
        with reused_memory():
            failed = _run(runs, members, stream, device)
    trained_on = {**place, "tokens": only_kind(variables[0], shared.tokens)}
    for run, problem in zip(runs, failed, strict=True):
        yield _result(run, trained_on) if problem is None else problem


@step(inputs={"activations": Activations}, output=Dictionary, together=train_together)
def train_sae(activations: xr.Dataset, params: Params, job: Job) -> xr.Dataset:
    """Train a sparse dictionary on stored activations.

    Minimises mean_token ‖y − ŷ‖² + sparsity on the normalised activations, with the latents and the penalty
    of the architecture: "relu" (Bricken et al. 2023), "gated" (arXiv 2404.16014), "topk" (arXiv 2406.04093),
    "batch_topk" (arXiv 2412.06410), "jumprelu" (arXiv 2407.14435), "matryoshka" (arXiv 2503.17547). y is x
    itself, the ``target_site`` of a transcoder, or all layers of a crosscoder. Adam, gradients clipped at
    norm 1. Every token is served once an epoch, in an order shuffled by ``shuffle_seed``.

    Returns:
        The weights, and the history of the training along ``step``: loss, sparsity term, FVU and L0 of the
        batch, latents that have not fired for ``dead_after`` tokens, learning rate.

    Raises:
        StepError: when the activations do not hold the sites, layers or tokens asked for, when k exceeds the
            number of latents, or when training diverges (naming the optimiser step).
    """
    (result,) = train_together(activations, [Member(params, job)])
    if isinstance(result, StepError):
        raise result
    return result


def _select(activations: xr.Dataset, params: Params) -> tuple[list[xr.DataArray], dict[str, Any]]:
    """Activations of the site and of the target, and where in the model they are.

    Raises:
        StepError: listing what is stored.
    """
    from prisma_steps.sae.selection import stored_layers, stored_site

    site = stored_site(activations, params.site, "site")
    sites = {"site": site}
    if params.target_site is not None:
        sites["target_site"] = stored_site(activations, params.target_site, "target_site")
    if params.target_site is not None and isinstance(params.layer, list):
        raise StepError("a crosscoder of several layers has no target_site: set one layer, or leave it out")
    chosen = [stored_layers(activations[name], params.layer) for name in sites.values()]
    layer = chosen[0].coords.get("layer")
    if layer is None:
        return chosen, sites
    values = layer.values.tolist()
    return chosen, {**sites, **({"layers": values} if layer.ndim else {"layer": values})}


def _sample(stream: TokenStream, n_tokens: int) -> Sample:
    """Tokens to start from, as the dictionary sees them."""
    from prisma_steps.sae.initialisation import Sample

    x, *y = (table.flatten(1) for table in stream.sample(n_tokens))
    return Sample(x, *y)


def _start(
    sample: Sample,
    member: Member[Params],
    variables: Sequence[xr.DataArray],
    n_steps: int,
    device: str,
    buffers: Buffers,
) -> Trainer | StepError:
    """A member before its first step, or as its last checkpoint left it; or why it cannot be trained."""
    from prisma_steps.sae.training import Recipe, Trainer

    params = member.params
    try:
        autoencoder = _dictionary(variables, params)
        mean = sample.start(autoencoder, params.b_dec_init, params.seed)
    except StepError as error:
        return error
    recipe = Recipe(
        n_steps=n_steps,
        learning_rate=params.learning_rate,
        learning_rate_warmup=params.learning_rate_warmup,
        learning_rate_decay=params.learning_rate_decay,
        sparsity_warmup=params.sparsity_warmup,
        dead_after=params.dead_after,
        resamples=params.dead_latents == "resample",
        compute_dtype=params.compute_dtype,
        seed=params.seed,
    )
    trainer = Trainer(autoencoder.to(device), recipe, mean, buffers)
    state = member.job.checkpoint.load()
    if state is not None:
        trainer.restore(state)
    return trainer


def _dictionary(variables: Sequence[xr.DataArray], params: Params) -> Autoencoder:
    """The dictionary that the parameters describe, without weights."""
    from prisma_steps.sae.architectures import architecture
    from prisma_steps.sae.autoencoder import Shape

    x, target = variables[0], variables[1] if len(variables) > 1 else None
    if params.skip and target is None:
        raise StepError("skip adds a linear map to a transcoder: set target_site, or leave skip out")
    kind = architecture(params.architecture)
    d_model = x.sizes[str(x.dims[-1])]
    shape = Shape(
        d_model,
        params.expansion * d_model,
        n_layers=x.sizes.get("layer", 1),
        d_target=None if target is None else target.sizes[str(target.dims[-1])],
        skip=params.skip,
        normalise=params.normalise,
        unit_norm=params.decoder_constraint == "unit_norm",
    )
    wants_aux_k = params.dead_latents or ("aux_k" if params.architecture in _TOPK else "none")
    settings = {name: getattr(params, name) for name in kind.settings}
    settings["aux_k_coefficient"] = params.aux_k_coefficient if wants_aux_k == "aux_k" else 0.0
    return kind(shape, **settings)


def _run(
    runs: list[Trainer | StepError], members: Sequence[Member[Params]], stream: TokenStream, device: str
) -> list[StepError | None]:
    """Train all to the end, each from where it is; what goes wrong with one is kept in its place."""
    import torch

    trainers = {i: run for i, run in enumerate(runs) if not isinstance(run, StepError)}
    failed = [run if isinstance(run, StepError) else None for run in runs]
    first = min((trainer.steps_done for trainer in trainers.values()), default=stream.n_batches)
    for index in range(first, stream.n_batches):
        # Members that have gone further before an interruption wait for the others.
        due = [i for i, trainer in trainers.items() if trainer.steps_done == index and failed[i] is None]
        if not due:
            continue
        x, *rest = (table.to(device, torch.float32).flatten(1) for table in stream.batch(index))
        for i in due:
            try:
                trainers[i].advance(x, rest[0] if rest else x)
            except StepError as error:
                failed[i] = error
                continue
            _tell(trainers[i], members[i].job, len(due))
    return failed


def _tell(trainer: Trainer, job: Job, members: int) -> None:
    """Keep a checkpoint now and then, and say how far the training is."""
    if job.checkpoint.due(members):
        job.checkpoint.save(trainer.state())
    fvu, l0 = trainer.history["fvu"][-1], trainer.history["l0"][-1]
    job.progress(trainer.steps_done, trainer.recipe.n_steps, f"FVU {fvu:.3f}, L0 {l0:.1f}")


def _result(run: Trainer | StepError, trained_on: dict[str, Any]) -> xr.Dataset:
    from prisma_steps.sae.labelled import dictionary_dataset

    assert not isinstance(run, StepError)
    return label(dictionary_dataset(run.autoencoder, run.history, trained_on))
