"""The identities that hold between sites, every site's readability and writability, and parity."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import transformers

from prisma_steps.models.sites import SiteError
from prisma_steps.models.toy_vit import ToyViT, ToyViTConfig
from prisma_steps.schema import SITE_DIMS

SMALL = {
    "n_layers": 2,
    "d_model": 12,
    "n_heads": 3,
    "d_mlp": 20,
    "patch_size": 4,
    "image_size": 8,
    "n_channels": 2,
    "n_classes": 5,
}
VARIANTS = {
    "full": {},
    "attention_only": {"attention_only": True},
    "no_layer_norm": {"layer_norm": False},
    "bare": {"attention_only": True, "layer_norm": False},
}

#: Both sides of an identity are float64 sums of a few dozen terms of size 1, in another order.
EXACT = {"rtol": 0, "atol": 1e-12}


def make(**changes) -> ToyViT:
    model = ToyViT.initialised(
        ToyViTConfig(**{**SMALL, **changes}), torch.Generator().manual_seed(0)
    ).double()
    with torch.no_grad():  # biases are zero at first, which would hide one that is left out
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)))
    return model.eval()


@pytest.fixture(params=VARIANTS)
def model(request) -> ToyViT:
    return make(**VARIANTS[request.param])


@pytest.fixture
def pixels() -> torch.Tensor:
    return torch.rand(3, 2, 8, 8, generator=torch.Generator().manual_seed(2), dtype=torch.float64)


@pytest.fixture
def cache(model, pixels):
    return model.run_with_cache(pixels, list(model.sites))[1]


def close(found, expected):
    torch.testing.assert_close(found, expected, **EXACT)


def test_residual_stream_is_the_sum_of_what_is_added(model, cache):
    stream = cache["full_embed", None]
    for layer in range(model.n_layers):
        close(cache["resid_pre", layer], stream)
        close(cache["resid_mid", layer], cache["resid_pre", layer] + cache["attn_out", layer])
        stream = stream + cache["attn_out", layer]
        if not model.config.attention_only:
            close(cache["resid_post", layer], cache["resid_mid", layer] + cache["mlp_out", layer])
            stream = stream + cache["mlp_out", layer]
    close(cache["resid_post", model.n_layers - 1], stream)


def test_attention_is_made_of_its_parts(model, cache):
    for layer, block in enumerate(model.blocks):
        q, k, v = (cache[site, layer] for site in "qkv")
        scores = torch.einsum("iqhd,ikhd->ihqk", q, k) / 2  # √d_head
        close(cache["attn_scores", layer], scores)
        close(cache["pattern", layer], scores.exp() / scores.exp().sum(-1, keepdim=True))
        close(cache["pattern", layer].sum(-1), torch.ones(3, 3, 5, dtype=torch.float64))
        close(cache["z", layer], torch.einsum("ihqk,ikhd->iqhd", cache["pattern", layer], v))
        close(cache["result", layer].sum(2) + block.attn.o.bias, cache["attn_out", layer])


def test_result_of_a_head_is_its_z_through_its_part_of_the_output_matrix(model, cache):
    for layer, block in enumerate(model.blocks):
        for head in range(3):
            w_o = block.attn.o.weight[:, 4 * head : 4 * head + 4]
            close(cache["result", layer][:, :, head], cache["z", layer][:, :, head] @ w_o.T)


def test_mlp_and_head_are_made_of_their_parts(model, cache):
    last = cache["resid_post", model.n_layers - 1]
    final = cache["ln_final", None] if model.config.layer_norm else last
    close(cache["logits", None], model.head(final[:, 0]))
    if model.config.attention_only:
        return
    for layer, block in enumerate(model.blocks):
        pre = cache["mlp_pre", layer]
        close(pre, block.mlp_in(cache["ln2_out" if model.config.layer_norm else "resid_mid", layer]))
        close(cache["mlp_post", layer], pre * (1 + torch.erf(pre / 2**0.5)) / 2)
        close(cache["mlp_out", layer], block.mlp_out(cache["mlp_post", layer]))


def test_layer_norm_outputs_include_scale_and_shift(pixels):
    model = make()
    cache = model.run_with_cache(pixels, ["resid_pre", "ln1_out"])[1]
    x, norm = cache["resid_pre", 1], model.blocks[1].ln1
    centred = x - x.mean(-1, keepdim=True)
    normalised = centred / (centred.pow(2).mean(-1, keepdim=True) + norm.eps).sqrt()
    close(cache["ln1_out", 1], normalised * norm.weight + norm.bias)


def test_shapes_are_those_of_the_schema(cache):
    sizes = {"image": 3, "token": 5, "query_token": 5, "key_token": 5, "head": 3, "d_head": 4}
    sizes |= {"d_model": 12, "d_mlp": 20, "class": 5}
    for (site, _), value in cache.items():
        expected = [4 if site == "embed" and dim == "token" else sizes[dim] for dim in SITE_DIMS[site]]
        assert list(value.shape) == expected, site


def test_every_layer_of_every_site_is_read(model, cache):
    layered = [site for site, in_layer in model.sites.items() if in_layer]
    once = [site for site, in_layer in model.sites.items() if not in_layer]
    expected = {(site, layer) for site in layered for layer in range(2)} | {(site, None) for site in once}
    assert set(cache) == expected


def test_every_write_changes_the_output_and_writing_what_was_read_does_not(model, pixels, cache):
    plain = model(pixels)
    noise = torch.Generator().manual_seed(3)
    for key, value in cache.items():
        close(model.run_with_hooks(pixels, {key: lambda _, value=value: value}), plain)
        other = value + torch.rand(value.shape, generator=noise, dtype=value.dtype)
        changed = model.run_with_hooks(pixels, {key: lambda _, other=other: other})
        assert (changed - plain).abs().max() > 1e-4, key


def test_a_write_is_what_the_next_site_reads(pixels):
    model = make()
    zero = {("attn_out", 0): torch.zeros_like, ("mlp_out", 0): torch.zeros_like}
    cache = model.run_with_cache(pixels, ["resid_pre", "resid_post", "mlp_out"], [0], hooks=zero)[1]
    close(cache["resid_post", 0], cache["resid_pre", 0])
    assert not cache["mlp_out", 0].any(), "the cache holds the value after the hook"


def test_fused_attention_gives_what_the_explicit_one_gives(model, pixels):
    plain = model(pixels)
    for site in ("attn_scores", "pattern", "result"):
        close(model.run_with_cache(pixels, [site])[0], plain)


def test_hooks_leave_nothing_behind(model, pixels):
    plain, before = model(pixels), {name: value.clone() for name, value in model.state_dict().items()}
    model.run_with_hooks(pixels, {("resid_pre", 1): torch.zeros_like, ("pattern", 0): torch.zeros_like})
    model.run_with_cache(pixels, list(model.sites))
    assert torch.equal(model(pixels), plain)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    hooks = [m._forward_hooks or m._forward_pre_hooks or m._backward_hooks for m in model.modules()]
    assert not any(hooks)


def test_a_failing_hook_leaves_nothing_behind(model, pixels):
    plain = model(pixels)

    def fail(value):
        raise RuntimeError(value.shape)

    with pytest.raises(RuntimeError):
        model.run_with_hooks(pixels, {("resid_mid", 0): fail})
    assert torch.equal(model(pixels), plain)


def test_forward_from_goes_on_from_any_layer(model, pixels, cache):
    plain = model(pixels)
    for layer in range(model.n_layers):
        close(model.forward_from(layer, cache["resid_pre", layer]), plain)
    close(model.forward_from(model.n_layers, cache["resid_post", model.n_layers - 1]), plain)
    hooked = model.forward_from(1, cache["resid_pre", 1], {("attn_out", 1): torch.zeros_like})
    close(hooked, model.run_with_hooks(pixels, {("attn_out", 1): torch.zeros_like}))
    with pytest.raises(ValueError, match="cannot start at layer 3: the model has layers 0 to 1"):
        model.forward_from(3, cache["resid_pre", 0])


def test_gradients_reach_every_parameter_and_every_site(model, pixels):
    logits, cache = model.run_with_cache(pixels, list(model.sites))
    for value in cache.values():
        value.retain_grad()
    logits.square().sum().backward()
    without = [name for name, parameter in model.named_parameters() if not parameter.grad.any()]
    # A bias of the keys moves every score of a query alike, which softmax does not see.
    assert all(name.endswith("attn.k.bias") for name in without), without
    assert all(value.grad is not None and value.grad.any() for value in cache.values())


@pytest.mark.parametrize(
    ("variant", "missing"),
    [
        ("attention_only", {"ln2_out", "mlp_pre", "mlp_post", "mlp_out"}),
        ("no_layer_norm", {"ln1_out", "ln2_out", "ln_final"}),
        ("full", set()),
    ],
)
def test_sites_of_parts_left_out_do_not_exist(variant, missing, pixels):
    model = make(**VARIANTS[variant])
    assert set(SITE_DIMS) - set(model.sites) == missing
    for site in missing:
        with pytest.raises(SiteError, match=f"no site '{site}'.*Its sites: embed, full_embed, resid_pre"):
            model.run_with_cache(pixels, [site])
        with pytest.raises(SiteError, match=f"no site '{site}'"):
            model.run_with_hooks(pixels, {(site, 0): torch.zeros_like})


@pytest.mark.parametrize("shape", [(3, 1, 8, 8), (3, 2, 8, 7), (3, 2, 16, 16)])
def test_images_of_another_shape_are_refused(shape):
    with pytest.raises(ValueError, match=r"\(channel, row, column\) = \(2, 8, 8\)"):
        make()(torch.zeros(shape, dtype=torch.float64))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"n_heads": 5}, "n_heads 5 does not divide d_model 12"),
        ({"patch_size": 3}, "patch_size 3 does not divide the image size 8"),
    ],
)
def test_sizes_that_do_not_divide_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        ToyViTConfig(**{**SMALL, **changes})


def test_patches_are_numbered_row_by_row_after_cls(pixels):
    model = make()
    coords = model.token_coords()
    assert coords["token_kind"].tolist() == ["cls", "patch", "patch", "patch", "patch"]
    assert coords["patch_row"].tolist() == [-1, 0, 0, 1, 1]
    assert coords["patch_col"].tolist() == [-1, 0, 1, 0, 1]
    assert model.patch_grid == (2, 2)
    for token in range(1, 5):
        row, column = 4 * coords["patch_row"][token], 4 * coords["patch_col"][token]
        changed = pixels.clone()
        changed[:, :, row : row + 4, column : column + 4] += 1
        before, after = (model.run_with_cache(x, ["embed"])[1]["embed", None] for x in (pixels, changed))
        moved = np.flatnonzero((after - before).abs().amax((0, 2)).detach().numpy())
        assert moved.tolist() == [token - 1]


def test_weights_are_drawn_from_the_generator_alone():
    state = torch.get_rng_state()
    first, second = (
        ToyViT.initialised(ToyViTConfig(**SMALL), torch.Generator().manual_seed(seed)) for seed in (0, 0)
    )
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))
    other = ToyViT.initialised(ToyViTConfig(**SMALL), torch.Generator().manual_seed(1))
    assert not torch.equal(first.head.weight, other.head.weight)


def test_output_is_that_of_the_vit_of_transformers(pixels):
    config = transformers.ViTConfig(
        hidden_size=12,
        num_hidden_layers=2,
        num_attention_heads=3,
        intermediate_size=20,
        image_size=8,
        patch_size=4,
        num_channels=2,
        num_labels=5,
        layer_norm_eps=1e-5,
        hidden_act="gelu",
    )
    theirs, ours = transformers.ViTForImageClassification(config).double().eval(), make()
    theirs.load_state_dict(_as_transformers(ours, theirs.state_dict()))
    with torch.no_grad():
        out = theirs(pixels, output_hidden_states=True)
        logits, cache = ours.run_with_cache(pixels, ["full_embed", "resid_post"])
    # float64 throughout: only the order of summation differs.
    close(logits, out.logits)
    close(cache["full_embed", None], out.hidden_states[0])
    close(cache["resid_post", 0], out.hidden_states[1])


def _as_transformers(model: ToyViT, theirs: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Our weights under the names that transformers uses, matched by the words in those names."""
    ours = dict(model.state_dict())
    renamed = {}
    for name, value in theirs.items():
        renamed[name] = ours.pop(_our_name(name)).reshape(value.shape)
    assert not ours, f"left over: {list(ours)}"
    return renamed


def _our_name(name: str) -> str:
    if name.startswith("classifier"):
        return name.replace("classifier", "head")
    for theirs, ours in (("cls_token", "cls"), ("position_embeddings", "positions")):
        if name.endswith(theirs):
            return ours
    *_, kind = name.split(".")
    if "patch_embeddings" in name:
        return f"patch.{kind}"
    number = next((part for part in name.split(".") if part.isdigit()), None)
    if number is None:
        return f"ln_final.{kind}"
    parts = {
        "q": ("query", "q_proj"),
        "k": ("key", "k_proj"),
        "v": ("value", "v_proj"),
        "o": ("attention.output.dense", "o_proj", "out_proj"),
    }
    for short, words in parts.items():
        if any(word in name for word in words):
            return f"blocks.{number}.attn.{short}.{kind}"
    others = {
        "ln1": ("layernorm_before",),
        "ln2": ("layernorm_after",),
        "mlp_in": ("intermediate.dense", "fc1"),
        "mlp_out": ("output.dense", "fc2"),
    }
    short = next(short for short, words in others.items() if any(word in name for word in words))
    return f"blocks.{number}.{short}.{kind}"
