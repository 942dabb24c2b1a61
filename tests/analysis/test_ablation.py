"""Ablations against plain hooks, one run a cell, and identities that must hold."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from prisma_steps.analysis.ablation import Ablations, Effects, ablated_logits, token_means
from prisma_steps.analysis.cells import Tail, budget
from prisma_steps.models.hooked import HookedViT
from tests.models.families import MAKERS, make, pixels_for

KINDS = ("zero", "mean", "mean_per_token", "resample")
SITES = ("resid_pre", "resid_mid", "resid_post", "attn_out", "mlp_out", "z")
LAYERS = (0, 1)

# float32: batches of other sizes and other kernels add in another order, at logits of about 1.
CLOSE: dict[str, Any] = {"rtol": 1e-4, "atol": 2e-5}
MANY = 1000


def all_tokens(model: HookedViT) -> torch.Tensor:
    return torch.arange(len(model.token_coords()["token_kind"]))


def sweep_of(
    model: HookedViT,
    site: str,
    reference: torch.Tensor | None = None,
    kinds: tuple[Any, ...] = KINDS,
    tokens: torch.Tensor | None = None,
) -> Ablations:
    means = None if reference is None else token_means(model, [reference], site, LAYERS)
    return Ablations(site, LAYERS, kinds, all_tokens(model) if tokens is None else tokens, means)


def run(
    model: HookedViT,
    pixels: torch.Tensor,
    sweep: Ablations,
    others: torch.Tensor | None = None,
    rows: int = MANY,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Plain logits, and [layer, ablation, (head,) image, class]."""
    with torch.no_grad():
        plain, *layers = ablated_logits(model, pixels, sweep, rows, others)
    return plain, torch.stack(layers)


def by_hand(
    model: HookedViT,
    pixels: torch.Tensor,
    key: tuple[str, int],
    kind: str,
    reference: torch.Tensor,
    others: torch.Tensor,
    tokens: list[int],
    head: int | None,
) -> torch.Tensor:
    """One cell as anybody would write it: image by image, one hook."""
    site, layer = key
    of_reference = model.read(reference, [site], [layer])[key]
    answers = []
    for image in range(len(pixels)):
        other = model.read(others[image, None], [site], [layer])[key][0]

        def hook(value: torch.Tensor, other: torch.Tensor = other) -> torch.Tensor:
            value = value.clone()
            for token in tokens:
                new = {
                    "zero": torch.zeros_like(other[token]),
                    "mean": of_reference[:, tokens].mean((0, 1)),
                    "mean_per_token": of_reference[:, token].mean(0),
                    "resample": other[token],
                }[kind]
                if head is None:
                    value[0, token] = new
                else:
                    value[0, token, head] = new[head]
            return value

        answers.append(model.run_with_hooks(pixels[image, None], {key: hook})[0])
    return torch.stack(answers)


@pytest.mark.parametrize("site", SITES)
@pytest.mark.parametrize("name", MAKERS)
@torch.no_grad()
def test_every_cell_is_one_hooked_run(name: str, site: str) -> None:
    model = make(name)
    if site not in model.sites:
        return
    pixels, reference, others = (pixels_for(model, 2, seed) for seed in (2, 3, 4))
    plain, found = run(model, pixels, sweep_of(model, site, reference), others)
    torch.testing.assert_close(plain, model(pixels), **CLOSE)
    heads = (0, model.n_heads - 1) if site == "z" else [None]
    tokens = all_tokens(model).tolist()
    for layer in LAYERS:
        for number, kind in enumerate(KINDS):
            for head in heads:
                cell = found[layer, number] if head is None else found[layer, number, head]
                key = (site, layer)
                expected = by_hand(model, pixels, key, kind, reference, others, tokens, head)
                torch.testing.assert_close(cell, expected, **CLOSE)


@pytest.mark.parametrize("site", ["resid_post", "attn_out", "z"])
@pytest.mark.parametrize("name", ["toy", "toy video", "dinov2_with_registers"])
@torch.no_grad()
def test_only_chosen_tokens_are_ablated(name: str, site: str) -> None:
    model = make(name)
    pixels, reference, others = (pixels_for(model, 3, seed) for seed in (2, 3, 4))
    tokens = [0, 2]
    sweep = sweep_of(model, site, reference, tokens=torch.tensor(tokens))
    _, found = run(model, pixels, sweep, others)
    for number, kind in enumerate(KINDS):
        head = 1 if site == "z" else None
        cell = found[0, number] if head is None else found[0, number, head]
        expected = by_hand(model, pixels, (site, 0), kind, reference, others, tokens, head)
        torch.testing.assert_close(cell, expected, **CLOSE)


@pytest.mark.parametrize("site", SITES)
def test_resampling_from_the_image_itself_changes_nothing(site: str) -> None:
    model = make("vit")
    pixels = pixels_for(model, 3)
    plain, found = run(model, pixels, sweep_of(model, site, kinds=("resample",)), pixels)
    torch.testing.assert_close(found, plain.expand_as(found), **CLOSE)


def test_a_head_that_writes_nothing_can_be_ablated_in_any_way() -> None:
    """Its W_O is zero; the other heads' are not."""
    model = make("toy")
    d_head = model.d_model // model.n_heads
    with torch.no_grad():
        model.part(1, "o").weight[:, d_head : 2 * d_head] = 0
    pixels, others = pixels_for(model, 3), pixels_for(model, 3, seed=5)
    plain, found = run(model, pixels, sweep_of(model, "z", others), others)
    torch.testing.assert_close(found[1, :, 1], plain.expand_as(found[1, :, 1]), **CLOSE)
    assert (found[1, :, [0, 2]] - plain).abs().amax((-1, -2)).min() > 1e-3
    assert (found[0] - plain).abs().amax((-1, -2)).min() > 1e-3


@pytest.mark.parametrize("kind", ["mean", "mean_per_token"])
def test_the_mean_of_a_constant_site_changes_nothing(kind: str) -> None:
    """The MLP's last weight is zero: it writes its bias, whatever it reads."""
    model = make("toy")
    with torch.no_grad():
        model.part(0, "mlp_out").weight.zero_()
    pixels, reference = pixels_for(model, 3), pixels_for(model, 4, seed=9)
    plain, found = run(model, pixels, sweep_of(model, "mlp_out", reference, kinds=(kind,)))
    torch.testing.assert_close(found[0, 0], plain, **CLOSE)
    assert (found[1, 0] - plain).abs().max() > 1e-3


def test_all_of_the_stream_from_others_is_their_answer() -> None:
    model = make("toy")
    pixels, others = pixels_for(model, 3), pixels_for(model, 3, seed=5)
    _, found = run(model, pixels, sweep_of(model, "resid_mid", kinds=("resample",)), others)
    torch.testing.assert_close(found, model(others).expand_as(found), **CLOSE)


def test_no_token_ablated_is_the_plain_run() -> None:
    model = make("toy")
    pixels = pixels_for(model, 3)
    nothing = torch.tensor([], dtype=torch.long)
    plain, found = run(model, pixels, sweep_of(model, "attn_out", kinds=("zero",), tokens=nothing))
    torch.testing.assert_close(found, plain.expand_as(found), **CLOSE)


def test_means_are_streamed_in_float64() -> None:
    model = make("vivit")
    pixels = pixels_for(model, 5)
    whole = token_means(model, [pixels], "z", LAYERS)
    parts = token_means(model, pixels.split(2), "z", LAYERS)
    assert whole.dtype == torch.float64
    torch.testing.assert_close(parts, whole, rtol=1e-5, atol=1e-6)  # float32 runs of other batches
    stacked = model.read(pixels, ["z"])["z", 1].double().mean(0)
    torch.testing.assert_close(whole[1], stacked, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("rows", [1, 2, 5, MANY])
def test_batches_of_cells_do_not_change_them(rows: int) -> None:
    model = make("toy")
    pixels, others = pixels_for(model, 2), pixels_for(model, 2, seed=5)
    sweep = sweep_of(model, "z", others)
    torch.testing.assert_close(
        run(model, pixels, sweep, others, rows)[1], run(model, pixels, sweep, others)[1], **CLOSE
    )


@pytest.mark.parametrize("site", ["attn_out", "z"])
def test_effects_are_means_over_all_images_whatever_the_batches(site: str) -> None:
    model = make("toy")
    pixels, others = pixels_for(model, 7), pixels_for(model, 7, seed=5)
    labels = torch.tensor([0, 1, 2, 3, 4, 0, 1])
    sweep = sweep_of(model, site, others)
    found = []
    for size in (7, 3):
        effects = Effects(model, sweep, rows=MANY)
        for batch in zip(*(given.split(size) for given in (pixels, labels, others)), strict=True):
            effects.add(*batch)
        found.append(effects.results())
    for name, value in found[0].items():
        np.testing.assert_allclose(found[1][name], value, rtol=1e-5, atol=1e-6)  # float32 runs

    plain, cells = run(model, pixels, sweep, others)
    cells = cells.transpose(0, 1).double()  # ablation, layer, …

    def ce(logits: torch.Tensor) -> torch.Tensor:
        return -logits.double().log_softmax(-1)[..., range(7), labels]

    def right(logits: torch.Tensor) -> torch.Tensor:
        return (logits.argmax(-1) == labels).double().mean(-1)

    increase = ce(cells) - ce(plain)
    expected = {
        "ce": ce(plain).mean(),
        "top1": right(plain),
        "ce_ablated": ce(cells).mean(-1),
        "top1_ablated": right(cells),
        "ce_increase": increase.mean(-1),
        "ce_increase_standard_error": increase.std(-1) / 7**0.5,
    }
    assert found[0].keys() == expected.keys()
    for name, value in expected.items():
        np.testing.assert_allclose(found[0][name], value, rtol=1e-6, atol=1e-9)


def test_one_image_has_no_standard_error() -> None:
    model = make("toy")
    effects = Effects(model, sweep_of(model, "attn_out", kinds=("zero",)), rows=MANY)
    effects.add(pixels_for(model, 1), torch.tensor([0]))
    assert np.isnan(effects.results()["ce_increase_standard_error"]).all()


@pytest.mark.parametrize(
    ("site", "first"), [("resid_pre", [0, 1]), ("resid_post", [1, 2]), ("mlp_out", [0, 1])]
)
def test_only_layers_from_the_ablated_one_on_run(
    site: str, first: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    model, started = make("toy"), []
    forward_from = HookedViT.forward_from

    def watched(self: HookedViT, layer: int, *args: Any, **kwargs: Any) -> torch.Tensor:
        started.append(layer)
        return forward_from(self, layer, *args, **kwargs)

    monkeypatch.setattr(HookedViT, "forward_from", watched)
    run(model, pixels_for(model), sweep_of(model, site, kinds=("zero",)))
    assert started == first


@pytest.mark.parametrize("name", ["vit", "clip bare", "toy without LayerNorm"])
def test_a_tail_starts_at_sites_that_exist_once_too(name: str) -> None:
    model = make(name)
    pixels = pixels_for(model)
    for site in ("embed", "full_embed", "ln_final"):
        if site not in model.sites:
            continue
        tail = Tail(model, site, None)
        with torch.no_grad():
            begin = pixels if tail.reads is None else model.read(pixels, [tail.reads[0]])[tail.reads]
            found = tail.logits(begin, [torch.sin, torch.cos], rows=2)
            for cell, change in zip(found, (torch.sin, torch.cos), strict=True):
                expected = model.run_with_hooks(pixels, {(site, None): change})
                torch.testing.assert_close(cell, expected, **CLOSE)


def test_images_of_another_size_have_more_tokens() -> None:
    model = make("dinov2")
    pixels = torch.rand(2, 2, 16, 12, generator=torch.Generator().manual_seed(0))
    sweep = Ablations("resid_mid", [1], ["zero"], torch.arange(13))
    _, found = run(model, pixels, sweep)
    expected = model.run_with_hooks(pixels, {("resid_mid", 1): torch.zeros_like})
    torch.testing.assert_close(found[0, 0], expected, **CLOSE)


def test_a_budget_is_shared_and_never_empty() -> None:
    model = make("toy")
    assert budget(model, 1).images <= budget(model, 1).rows < budget(model, 2).rows
    n_tokens, d_model = 5, 12
    floats = 2**20 // 2 // 4
    assert budget(model, 1, floats_per_image=floats // 3).images == 2  # the stream takes the rest
    assert budget(model, 1).rows == floats // (n_tokens * (10 * d_model + 2 * 20) + 3 * n_tokens**2)
    assert budget(model, 1, floats_per_image=10**9).images == 1
