"""Every family: every site read and written, the identities between them, and parity with the plain model."""

from __future__ import annotations

import inspect

import pytest
import torch

from prisma_steps.models.families import FAMILIES, UnknownFamily, find, kind_of
from prisma_steps.models.hooked import HookedViT
from prisma_steps.models.inputs import InputError
from prisma_steps.models.sites import SiteError
from prisma_steps.schema import SITE_DIMS, TRANSFORMER_LENS_SITES
from tests.models.families import MAKERS, make, pixels_for, use_attention

#: Both sides of an identity are float64 sums of a few dozen terms of size 1 to 10, in another order.
EXACT = {"rtol": 0, "atol": 1e-11}

IN_ATTENTION = ("attn_scores", "pattern")


def close(found, expected):
    torch.testing.assert_close(found, expected, **EXACT)


@pytest.fixture(params=MAKERS)
def name(request) -> str:
    return request.param


@pytest.fixture
def model(name) -> HookedViT:
    return make(name, torch.float64)


@pytest.fixture
def pixels(model):
    return pixels_for(model)


@pytest.fixture
def cache(model, pixels):
    return model.run_with_cache(pixels)[1]


# --- parity


def test_hooked_output_is_the_plain_models_to_the_bit_in_float32(name):
    model = make(name)
    pixels = pixels_for(model)
    outside = [site for site in model.sites if site not in IN_ATTENTION]
    for implementation in ["sdpa", "eager"] if "pattern" in model.sites else ["eager"]:
        use_attention(model, implementation)
        plain = model.output_of(model.model(pixels))
        assert torch.equal(model(pixels), plain)
        assert torch.equal(model.run_with_cache(pixels, outside)[0], plain)
    # The last implementation is the eager one, which forms scores and pattern as ours does.
    assert torch.equal(model.run_with_cache(pixels)[0], plain)


@pytest.mark.parametrize(
    "name",
    ["vit", "deit", "beit no scale", "clip", "siglip", "dinov2", "dinov3_vit", "timm any size, no CLS"],
)
def test_images_of_another_size_than_the_default_are_taken(name):
    model = make(name)
    pixels = torch.rand(2, 2, 16, 12, generator=torch.Generator().manual_seed(4))
    asked = "interpolate_pos_encoding" in inspect.signature(model.model.forward).parameters
    flag = {"interpolate_pos_encoding": True} if asked else {}
    plain = model.output_of(model.model(pixels, **flag))
    output, cache = model.run_with_cache(pixels)
    # Scores asked for: the explicit attention takes the fused one's place.
    torch.testing.assert_close(output, plain, rtol=0, atol=1e-5)
    assert torch.equal(model(pixels), plain)
    tokens = cache.data["resid_post"].isel(token=cache.data.token_kind == "patch")
    assert tokens.patch_row.values.tolist() == [row for row in range(4) for _ in range(3)]
    assert tokens.patch_col.values.tolist() == [*range(3)] * 4
    close_enough = model.forward_from(1, cache["resid_pre", 1], shape=pixels.shape[1:])
    torch.testing.assert_close(close_enough, plain, rtol=0, atol=1e-5)


def test_in_bfloat16_every_site_is_near_that_in_float32(name):
    model = make(name)
    raw = torch.randint(0, 256, (2, *model.input_shape), generator=torch.Generator().manual_seed(6))
    runs = []
    for dtype in ("float32", "bfloat16"):
        fast = model.for_inference(dtype)
        with torch.no_grad():
            runs.append(fast.read(fast.preprocess(raw.to(torch.uint8)), list(model.sites)))
    exact, rounded = runs
    assert all(value.dtype == torch.bfloat16 for value in rounded.values())
    for key, value in exact.items():
        error = (rounded[key].float() - value).norm() / value.norm()
        # A rounding is off by 2⁻⁹ = 0.002 at most; some dozens of them one after the other gave up to 0.017.
        assert error < 0.03, key


# --- reading


def test_every_layer_of_every_site_is_read_with_the_dims_of_the_schema(model, cache):
    layered = [site for site, in_layer in model.sites.items() if in_layer]
    once = [site for site, in_layer in model.sites.items() if not in_layer]
    expected = {(site, layer) for site in layered for layer in range(2)} | {(site, None) for site in once}
    assert set(cache) == expected
    n_tokens = len(model.token_coords()["token_kind"])
    sizes = {"image": 2, "query_token": n_tokens, "key_token": n_tokens, "head": 3, "d_head": model.d_head}
    sizes |= {"d_model": model.d_model, "d_mlp": model.d_mlp, "class": 5}
    for (site, _), value in cache.items():
        kept = model.kept_at(site, model.token_coords())
        here = sizes | {"token": 1 if kept is None else len(kept)}
        assert list(value.shape) == [here[dim] for dim in SITE_DIMS[site]], site


def test_residual_stream_is_the_sum_of_what_is_added(model, cache):
    stream = cache["full_embed", None]
    for layer in range(model.n_layers):
        close(cache["resid_pre", layer], stream)
        if "attn_out" in model.sites:
            close(cache["resid_mid", layer], cache["resid_pre", layer] + cache["attn_out", layer])
        stream = cache["resid_mid", layer]
        if "mlp_out" in model.sites:
            stream = stream + cache["mlp_out", layer]
        close(cache["resid_post", layer], stream)


def test_attention_is_made_of_its_parts(model, cache):
    if "pattern" not in model.sites:
        assert model.family.missing["pattern"]
        return
    rotary = kind_of(model.model) in ("dinov3_vit", "vjepa2")  # turns q and k after their projection
    biased = kind_of(model.model) == "beit" and _has_position_bias(model)
    for layer in range(model.n_layers):
        q, k, v = (cache[site, layer] for site in "qkv")
        scores, pattern = cache["attn_scores", layer], cache["pattern", layer]
        if not rotary and not biased:
            close(scores, torch.einsum("iqhd,ikhd->ihqk", *_normed(model, layer, q, k)) / model.d_head**0.5)
        close(pattern, scores.exp() / scores.exp().sum(-1, keepdim=True))
        close(pattern.sum(-1), torch.ones_like(pattern.sum(-1)))
        close(cache["z", layer], torch.einsum("ihqk,ikhd->iqhd", pattern, v))
        output = model.part(layer, "o")
        bias = 0 if output.bias is None else output.bias
        summed = (cache["result", layer].sum(2) + bias) * model.layer_scale(layer, "attn")
        close(summed, cache["attn_out", layer])
        for head in range(3):
            columns = output.weight[:, head * model.d_head : (head + 1) * model.d_head]
            close(cache["result", layer][:, :, head], cache["z", layer][:, :, head] @ columns.T)


def _normed(model, layer, q, k):
    """Queries and keys as they meet: some models of timm normalise them on the way."""
    norms = [find(model.blocks[layer], f"attn.{name}_norm") for name in "qk"]
    return [value if norm is None else norm(value) for norm, value in zip(norms, (q, k), strict=True)]


def _has_position_bias(model: HookedViT) -> bool:
    return model.config.use_relative_position_bias or model.config.use_shared_relative_position_bias


def test_projections_and_mlp_are_made_of_their_parts(model, cache):
    for layer in range(model.n_layers):
        if "q" in model.sites:
            read = cache["ln1_out" if "ln1_out" in model.sites else "resid_pre", layer]
            fused = model.part(layer, "qkv")
            for place, site in enumerate("qkv"):
                made = model.part(layer, site)(read) if fused is None else fused(read).chunk(3, -1)[place]
                close(cache[site, layer].flatten(2), made)
        if "mlp_pre" in model.sites:
            read = cache["ln2_out" if "ln2_out" in model.sites else "resid_mid", layer]
            first = model.part(layer, "mlp_gate") or model.part(layer, "mlp_in")
            close(cache["mlp_pre", layer], first(read))
            written = model.part(layer, "mlp_out")(cache["mlp_post", layer])
            close(cache["mlp_out", layer], written * model.layer_scale(layer, "mlp"))
        for norm, read, left in (("ln1", "resid_pre", "ln1_out"), ("ln2", "resid_mid", "ln2_out")):
            if left in model.sites:
                close(cache[left, layer], model.part(layer, norm)(cache[read, layer]))


def test_final_norm_is_of_the_last_residual_stream(model, cache):
    if model.final_norm is None:
        assert "ln_final" not in model.sites
        return
    last, found = cache["resid_post", 1], cache["ln_final", None]
    expected = {"clip_vision_model": last[:, :1]}.get(kind_of(model.model), last)
    if found.shape[1] == 1 and last.shape[1] > 1 and expected is last:  # pools before it norms
        prefix = len(model.family.prefix(model.config))
        expected = last[:, prefix:].mean(1, keepdim=True)
    close(found, model.final_norm(expected))


def test_a_run_stops_after_the_last_layer_that_is_needed(model, pixels, cache):
    ran = []
    handles = [block.register_forward_hook(lambda *_: ran.append(1)) for block in model.blocks]
    first = model.read(pixels, ["resid_post", *["mlp_pre"] * bool(model.d_mlp)], [0])
    assert len(ran) == 1
    close(first["resid_post", 0], cache["resid_post", 0])
    close(model.read(pixels, ["full_embed"])["full_embed", None], cache["full_embed", None])
    assert len(ran) == 1
    for handle in handles:
        handle.remove()


# --- writing


def test_every_write_changes_the_output_and_writing_what_was_read_changes_no_bit(name):
    model = make(name)
    use_attention(model, "eager")
    pixels = pixels_for(model)
    plain, cache = model.run_with_cache(pixels)
    noise = torch.Generator().manual_seed(3)
    for key, value in cache.items():
        back = model.run_with_hooks(pixels, {key: lambda value: value.clone()})
        assert torch.equal(back, plain), key
        other = value + torch.rand(value.shape, generator=noise)
        changed = model.run_with_hooks(pixels, {key: lambda _, other=other: other})
        assert (changed - plain).abs().max() > 1e-4, key


def test_a_write_is_what_later_sites_read(model, pixels):
    wanted = ["resid_pre", "resid_mid", "resid_post"]
    zero = {(site, 0): torch.zeros_like for site in ("attn_out", "mlp_out") if site in model.sites}
    cache = model.run_with_cache(pixels, wanted, hooks=zero)[1]
    if "attn_out" in model.sites:
        close(cache["resid_mid", 0], cache["resid_pre", 0])
    if "mlp_out" in model.sites:
        close(cache["resid_post", 0], cache["resid_mid", 0])
    one = {("resid_mid", 0): torch.ones_like}
    cache = model.run_with_cache(
        pixels, ["resid_mid", "resid_post", *["mlp_out"] * bool(model.d_mlp)], hooks=one
    )[1]
    assert (cache["resid_mid", 0] == 1).all(), "the cache holds the value after the hook"
    added = cache["mlp_out", 0] if model.d_mlp else 0
    close(cache["resid_post", 0], 1 + added + torch.zeros_like(cache["resid_mid", 0]))


def test_patching_every_site_of_a_layer_from_the_clean_run_gives_the_clean_output(model, pixels):
    clean, cache = model.run_with_cache(pixels)
    other = pixels_for(model, seed=9)
    assert (model(other) - clean).abs().max() > 1e-4
    for layer in range(model.n_layers):
        patch = {key: lambda _, value=value: value for key, value in cache.items() if key[1] == layer}
        close(model.run_with_hooks(other, patch), clean)


def test_forward_from_goes_on_from_any_layer(model, pixels, cache):
    plain = model(pixels)
    for layer in range(model.n_layers):
        close(model.forward_from(layer, cache["resid_pre", layer]), plain)
    close(model.forward_from(model.n_layers, cache["resid_post", model.n_layers - 1]), plain)
    hooks = {("resid_mid", 1): torch.zeros_like}
    close(model.forward_from(1, cache["resid_pre", 1], hooks), model.run_with_hooks(pixels, hooks))
    assert len(model.blocks) == 2 and torch.equal(model(pixels), plain)
    with pytest.raises(ValueError, match="cannot start at layer 3: the model has layers 0 to 1"):
        model.forward_from(3, cache["resid_pre", 0])
    with pytest.raises(SiteError, match="comes before layer 1, where the run starts"):
        model.forward_from(1, cache["resid_pre", 1], {("resid_post", 0): torch.zeros_like})


# --- gradients


def test_gradients_through_a_hook_are_those_of_finite_differences(model, pixels):
    for site in [site for site in ("resid_pre", "result", "pattern", "mlp_post") if site in model.sites]:
        key = (site, 0)
        value = model.run_with_cache(pixels, [site])[1][key].detach()
        direction = torch.randn(value.shape, generator=torch.Generator().manual_seed(5), dtype=value.dtype)

        def along(step, key=key, value=value, direction=direction):
            return model.run_with_hooks(pixels, {key: lambda _: value + step * direction}).square().sum()

        step = torch.zeros((), dtype=torch.float64, requires_grad=True)
        (found,) = torch.autograd.grad(along(step), step)
        h = 1e-4  # central differences: error h² ~ 1e-8 relative, rounding 1e-16 / h
        expected = (along(h) - along(-h)) / (2 * h)
        torch.testing.assert_close(found, expected.detach(), rtol=1e-5, atol=1e-8)


def test_gradients_reach_every_site(model, pixels):
    output, cache = model.run_with_cache(pixels)
    for value in cache.values():
        value.retain_grad()
    output.square().sum().backward()
    without = [key for key, value in cache.items() if value.grad is None or not value.grad.any()]
    assert all(key[0] == "k" for key in without), without


# --- what is left, and what is refused


def test_hooks_leave_nothing_behind_also_when_one_fails(model, pixels):
    plain, before = model(pixels), {name: value.clone() for name, value in model.model.state_dict().items()}
    model.run_with_hooks(pixels, {"resid_pre": torch.zeros_like})

    def fail(value):
        raise RuntimeError(value.shape)

    for site in [site for site in ("pattern", "resid_mid") if site in model.sites]:
        with pytest.raises(RuntimeError):
            model.run_with_hooks(pixels, {(site, 1): fail})
    assert torch.equal(model(pixels), plain)
    assert all(torch.equal(value, before[name]) for name, value in model.model.state_dict().items())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.model.modules())


def test_hooks_stay_while_their_context_lasts(model, pixels):
    plain = model(pixels)
    with model.hooks({("resid_post", 0): torch.zeros_like}):
        inside = model(pixels)
    assert (inside - plain).abs().max() > 1e-4
    close(inside, model.run_with_hooks(pixels, {("resid_post", 0): torch.zeros_like}))
    assert torch.equal(model(pixels), plain)


def test_a_hook_must_keep_the_shape(model, pixels):
    with pytest.raises(ValueError, match=r"hook at resid_pre of layer 1 returned .*, expected "):
        model.run_with_hooks(pixels, {("resid_pre", 1): lambda value: value[:, :1]})


def test_sites_that_are_not_there_are_refused_with_the_reason(model, pixels):
    for site in set(SITE_DIMS) - set(model.sites):
        reason = model.family.missing.get(site, "")
        with pytest.raises(SiteError, match=f"no site '{site}'.*{reason[:20]}"):
            model.run_with_cache(pixels, [site])
    with pytest.raises(SiteError, match="no layer 2 at site 'resid_pre': the model has layers 0 to 1"):
        model.run_with_hooks(pixels, {("resid_pre", 2): torch.zeros_like})
    with pytest.raises(SiteError, match=r"'full_embed' exists once: its key is \('full_embed', None\)"):
        model.run_with_hooks(pixels, {("full_embed", 0): torch.zeros_like})


def test_inputs_of_another_kind_are_refused(model, pixels):
    kind = "clips" if model.is_video else "images"
    wrong = pixels[:, 0] if model.is_video else pixels.unsqueeze(1)
    channels = torch.zeros(2, *model.input_shape[:-3], 3, 8, 8)
    for other in (wrong, channels):
        with pytest.raises(InputError, match=f"the model takes {kind}.*{model.input_shape[-1]}"):
            model(other)


def test_names_of_transformer_lens_are_the_same_sites(model, pixels, cache):
    for inner, site in TRANSFORMER_LENS_SITES.items():
        if site not in model.sites or inner in ("hook_full_embed",):
            continue
        layered = model.sites[site]
        named = f"blocks.1.{inner}" if layered else inner
        found = model.run_with_cache(pixels, [named])[1]
        key = (site, 1 if layered else None)
        close(found[key], cache[key])
        assert found[named].dims == SITE_DIMS[site]


def test_there_is_a_table_for_every_family_and_each_is_tested():
    tested = {kind_of(make(name).model) for name in MAKERS}
    assert tested == set(FAMILIES)


def test_a_model_that_is_not_built_as_its_table_says_is_refused_with_the_entries():
    model = MAKERS["vit"]()
    del model.vit.layers[0].attention.k_proj
    model.vit.embeddings.patch_embeddings = None
    with pytest.raises(UnknownFamily, match="ViTForImageClassification .* nothing lies at embed, block.k. "):
        HookedViT(model)


def test_a_model_without_a_table_is_refused_with_what_to_add():
    with pytest.raises(
        UnknownFamily, match=r"no table for Linear .*Known: toy_vit, vit.*FAMILIES\['Linear'\]"
    ):
        HookedViT(torch.nn.Linear(2, 2))


def test_a_variant_that_is_not_built_as_its_table_says_is_refused(timm):
    tiny = {"img_size": 8, "patch_size": 4, "embed_dim": 12, "depth": 1, "num_heads": 3}
    kinds, layers = timm.models.vision_transformer, timm.layers
    for changes, reason in (
        ({"block_fn": kinds.ResPostBlock}, "its block is ResPostBlock"),
        ({"attn_layer": layers.AttentionRope}, "timm's Block with timm's Attention"),
        ({"scale_attn_norm": True}, "its attention scales"),
        ({"mlp_layer": layers.GluMlp}, "gate and input in one matrix"),
        ({"embed_norm_layer": torch.nn.LayerNorm}, "normalises its patches"),
        ({"global_pool": "max"}, "pooled as 'max'"),
    ):
        model = kinds.VisionTransformer(**tiny, **changes)
        with pytest.raises(UnknownFamily, match=f"VisionTransformer is not built as the table.*{reason}"):
            HookedViT(model)
