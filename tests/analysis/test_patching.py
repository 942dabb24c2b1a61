from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import pytest
import torch

from prisma_steps.analysis.head_patching import HEAD_SITES
from prisma_steps.analysis.metrics import Metrics
from prisma_steps.analysis.patching import TOKEN_SITES, Sweep, cells_per_batch, patch
from prisma_steps.models.hooked import HookedViT
from prisma_steps.models.sites import SiteError
from prisma_steps.models.toy_vit import ToyViT, ToyViTConfig
from prisma_steps.seeding import torch_generator
from tests.models.families import MAKERS, frozen, pixels_for

#: The shapes that sweeps are checked on in both directions and all ways; other families once.
CHOSEN = ("toy", "clip classifier", "dinov2", "vivit")

# Float64: what is left is the order in which numbers are added.
CLOSE = {"rtol": 1e-8, "atol": 1e-10}
# Float32, of logits of about 1, which two blocks' sums of 12 to 20 terms lead to.
CLOSE_IN_FLOAT32 = {"rtol": 1e-4, "atol": 1e-5}


def output(logits: torch.Tensor, _: torch.Tensor) -> dict[str, torch.Tensor]:
    """One number that all of the output enters."""
    weights = torch.linspace(1, 2, logits[0].numel(), dtype=logits.dtype)
    return {"output": logits.flatten(1) @ weights}


def sides(model: HookedViT, n_pairs: int = 2) -> tuple[torch.Tensor, torch.Tensor]:
    return pixels_for(model, n_pairs, seed=2), pixels_for(model, n_pairs, seed=3)


def sweep_of(model: HookedViT, sites: Sequence[str], each_token: bool = False, memory: int = 2**27) -> Sweep:
    tokens = range(len(model.token_coords()["token_kind"]))
    return Sweep(list(sites), list(range(model.n_layers)), list(tokens), each_token, memory)


def swept(model: HookedViT, source: torch.Tensor, target: torch.Tensor, sweep: Sweep):
    """Cells [pair, …] by site and layer."""
    found = patch(model, source, target, output, sweep)
    return {(site, layer): values["output"] for layer, site, values in found}


def cells_of(model: HookedViT, site: str, sweep: Sweep) -> list[tuple[int, ...]]:
    if site in TOKEN_SITES:
        return [(token,) for token in range(len(sweep.groups or sweep.tokens))]
    heads = range(model.n_heads)
    if not sweep.each_token:
        return [(head,) for head in heads]
    return [(head, token) for head in heads for token in range(len(sweep.tokens))]


def places(site: str, cell: tuple[int, ...], sweep: Sweep) -> tuple[int | slice | Sequence[int], ...]:
    """Where in the value of a site [image, …] a cell is."""
    every = slice(None)
    if site in TOKEN_SITES:
        return (every, (sweep.groups or sweep.tokens)[cell[0]])
    head, token = cell[0], sweep.tokens[cell[1]] if len(cell) > 1 else every
    return (every, head, token) if site == "pattern" else (every, token, head)


def naive(model: HookedViT, source: torch.Tensor, target: torch.Tensor, sweep: Sweep):
    """One hooked forward pass for each cell."""
    found = {}
    for site in sweep.sites:
        values = model.run_with_cache(source, [site])[1]
        for layer in sweep.layers:
            for pair in range(len(source)):
                for cell in cells_of(model, site, sweep):
                    where = places(site, cell, sweep)

                    def write(value: torch.Tensor, pair=pair, where=where, new=values[site, layer]):
                        value = value.clone()
                        value[where] = new[pair, None][where]
                        return value

                    logits = model.run_with_hooks(target[pair, None], {(site, layer): write})
                    found[site, layer, (pair, *cell)] = output(logits, torch.zeros(1))["output"][0]
    return found


def check(model: HookedViT, sweep: Sweep, close: dict[str, float], n_pairs: int = 2) -> None:
    source, target = sides(model, n_pairs)
    found, expected = swept(model, source, target, sweep), naive(model, source, target, sweep)
    assert sum(cells.numel() for cells in found.values()) == len(expected)
    for (site, layer, cell), value in expected.items():
        torch.testing.assert_close(
            found[site, layer][cell], value, **close, msg=lambda text, at=(site, layer, cell): f"{at}: {text}"
        )


def sites_of(model: HookedViT, sites: Sequence[str]) -> list[str]:
    return [site for site in sites if site in model.sites]


@pytest.mark.parametrize("name", [name for name in MAKERS if name not in CHOSEN])
def test_every_family_has_the_cells_of_hooked_forwards(name: str) -> None:
    model = frozen(name)
    check(model, sweep_of(model, sites_of(model, list(TOKEN_SITES))), CLOSE, n_pairs=1)
    if heads := sites_of(model, list(HEAD_SITES)):
        check(model, sweep_of(model, heads), CLOSE, n_pairs=1)


@pytest.mark.parametrize("each_token", [False, True])
@pytest.mark.parametrize("name", CHOSEN)
def test_heads_are_hooked_forwards(name: str, each_token: bool) -> None:
    model = frozen(name)
    check(model, sweep_of(model, list(HEAD_SITES), each_token), CLOSE)


@pytest.mark.parametrize("name", CHOSEN)
def test_tokens_are_hooked_forwards(name: str) -> None:
    model = frozen(name)
    check(model, sweep_of(model, list(TOKEN_SITES)), CLOSE)


@pytest.mark.parametrize("name", CHOSEN)
def test_sets_of_tokens_are_hooked_forwards(name: str) -> None:
    model = frozen(name)
    sweep = sweep_of(model, list(TOKEN_SITES))
    check(model, replace(sweep, groups=[[2], [0, 3], [4, 1, 2], sweep.tokens]), CLOSE)


@pytest.mark.parametrize("name", CHOSEN)
def test_float32_as_it_is_run(name: str) -> None:
    model = frozen(name, torch.float32).for_inference()
    check(model, sweep_of(model, list(TOKEN_SITES)), CLOSE_IN_FLOAT32, n_pairs=1)
    check(model, sweep_of(model, list(HEAD_SITES)), CLOSE_IN_FLOAT32, n_pairs=1)


def test_bfloat16_is_near() -> None:
    exact = frozen("toy", torch.float32)
    rough = exact.for_inference("bfloat16")
    source, target = sides(exact)
    sweep = sweep_of(exact, ["resid_mid", "mlp_out"])
    expected = swept(exact, source, target, sweep)
    found = swept(rough, source.bfloat16(), target.bfloat16(), sweep)
    for key, values in expected.items():
        # 8 significant bits, of sums of logits of about 10
        torch.testing.assert_close(found[key].float(), values, rtol=0.05, atol=0.3)


@pytest.mark.parametrize("each_token", [False, True])
def test_chosen_tokens_and_layers_are_those_of_the_whole_sweep(each_token: bool) -> None:
    model = frozen("vivit")
    source, target = sides(model)
    for sites in (["resid_pre", "attn_out"], ["k", "z"] if each_token else []):
        whole = sweep_of(model, sites, each_token)
        some = replace(whole, layers=[1], tokens=[3, 0])
        found = swept(model, source, target, some) if sites else {}
        assert {layer for _, layer in found} <= {1}
        for key, cells in found.items():
            torch.testing.assert_close(cells, swept(model, source, target, whole)[key][..., [3, 0]], **CLOSE)


@pytest.mark.parametrize("sites", [list(TOKEN_SITES), list(HEAD_SITES)])
def test_batches_do_not_change_cells(sites: list[str]) -> None:
    model = frozen("clip classifier")
    source, target = sides(model, 3)
    whole = swept(model, source, target, sweep_of(model, sites, each_token=True))
    small = sweep_of(model, sites, each_token=True, memory=20_000)
    assert cells_per_batch(model, 5, "z", small) == 4
    for key, cells in swept(model, source, target, small).items():
        torch.testing.assert_close(cells, whole[key], **CLOSE)


@pytest.mark.parametrize("name", CHOSEN)
def test_a_run_patched_into_itself_is_unchanged(name: str) -> None:
    model = frozen(name)
    source, _ = sides(model)
    unpatched = output(model(source), torch.zeros(2))["output"]
    for sites in (list(TOKEN_SITES), list(HEAD_SITES)):
        for cells in swept(model, source, source, sweep_of(model, sites, each_token=True)).values():
            expected = unpatched.view(-1, *[1] * (cells.ndim - 1)).expand_as(cells)
            torch.testing.assert_close(cells, expected, **CLOSE)


def alone(n_layers: int = 1, patches: int = 1) -> HookedViT:
    """A model whose CLS sees the image by one head alone, and whose stream is otherwise untouched."""
    side = 4 * patches
    config = ToyViTConfig(
        n_layers=n_layers, d_model=8, n_heads=1, patch_size=4, image_size=side, n_channels=1,
        n_classes=3, attention_only=True,
    )  # fmt: skip
    model = ToyViT.initialised(config, torch_generator(0, "weights")).double().eval()
    return HookedViT(model.requires_grad_(False))


def test_all_tokens_of_a_layer_restore_the_source() -> None:
    """With one token in all, a token is the whole stream."""
    config = ToyViTConfig(
        n_layers=3, d_model=8, n_heads=2, patch_size=8, image_size=8, n_channels=1, n_classes=3,
        pooling="mean",
    )  # fmt: skip
    model = HookedViT(ToyViT.initialised(config, torch_generator(0, "weights")).double().eval())
    source, target = sides(model)
    restored = output(model(source), torch.zeros(2))["output"]
    sites = ["resid_pre", "resid_mid", "resid_post"]
    for cells in swept(model, source, target, sweep_of(model, sites)).values():
        assert cells.shape == (2, 1)
        torch.testing.assert_close(cells[:, 0], restored, **CLOSE)


def test_where_one_head_is_the_only_path_both_directions_agree() -> None:
    """What a head of the only block gives CLS is all that the answer has of the image."""
    model = alone()
    clean, corrupted = sides(model)
    ends = [output(model(pixels), torch.zeros(2))["output"] for pixels in (clean, corrupted)]
    for site in ("z", "v"):
        sweep = sweep_of(model, [site])
        denoised = swept(model, clean, corrupted, sweep)[site, 0][:, 0]
        noised = swept(model, corrupted, clean, sweep)[site, 0][:, 0]
        restored = (denoised - ends[1]) / (ends[0] - ends[1])
        lost = (ends[0] - noised) / (ends[0] - ends[1])
        if site == "z":
            torch.testing.assert_close(restored, torch.ones(2, dtype=torch.float64), **CLOSE)
            torch.testing.assert_close(lost, restored, **CLOSE)
        else:  # the pattern is the image's too
            assert ((restored - 1).abs() > 1e-3).all()


def test_cls_of_layer_0_carries_nothing() -> None:
    """Before the first block, CLS is the same for every image."""
    model = frozen("vivit")
    source, target = sides(model)
    cells = swept(model, source, target, sweep_of(model, ["resid_pre"]))["resid_pre", 0]
    torch.testing.assert_close(cells[:, 0], output(model(target), torch.zeros(2))["output"], **CLOSE)


def test_a_site_or_layer_that_is_not_there_is_refused_before_any_forward() -> None:
    model = frozen("toy attention-only")
    source, target = sides(model)
    model.model.register_forward_pre_hook(lambda *_: pytest.fail("a forward pass"))
    with pytest.raises(SiteError, match="no site 'mlp_out'"):
        next(patch(model, source, target, output, sweep_of(model, ["mlp_out"])))
    with pytest.raises(SiteError, match="no layer 2"):
        next(patch(model, source, target, output, replace(sweep_of(model, ["z"]), layers=[2])))


def test_metrics_are_per_cell_of_a_pair() -> None:
    model = frozen("toy", torch.float32)
    source, target = sides(model, 3)
    metrics = Metrics(torch.tensor([[0, 1], [2, 0], [1, 2]]), model(source))
    sweep = sweep_of(model, ["resid_post"])
    for layer, _, values in patch(model, source, target, metrics, sweep):
        if layer == model.n_layers - 1:  # CLS alone is read, so that it restores the source's answer
            assert values["kl"].shape == (3, 5)
            torch.testing.assert_close(values["kl"][:, 0], torch.zeros(3), **CLOSE_IN_FLOAT32)
            expected = metrics(model(target), torch.arange(3))
            for name, value in expected.items():
                torch.testing.assert_close(
                    values[name][:, 1:], value[:, None].expand(3, 4), **CLOSE_IN_FLOAT32
                )
