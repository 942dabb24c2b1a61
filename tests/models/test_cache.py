"""Labelled activations, and what the residual stream decomposes into, on every family."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import xarray as xr

from prisma_steps.models.cache import ActivationCache
from prisma_steps.models.hooked import HookedViT
from prisma_steps.models.sites import SiteError
from prisma_steps.schema import MEANINGS, SITE_DIMS
from tests.models.families import make, pixels_for

#: Sums of a few dozen float64 terms of size 1 to 10, in another order.
EXACT = {"rtol": 0, "atol": 1e-10}

RESIDUAL = ("image", "token", "d_model")


def close(found, expected):
    np.testing.assert_allclose(np.asarray(found), np.asarray(expected), **EXACT)


@pytest.fixture(scope="module")
def cache(model) -> ActivationCache:
    return model.run_with_cache(pixels_for(model))[1]


def scale_of(model, layer, which):
    return np.asarray(model.layer_scale(layer, which))


# --- decompositions


def test_components_sum_to_the_last_residual_stream(model, cache):
    components = cache.decompose_residual()
    close(components.sum("component"), cache["resid_post", 1])
    written = ["attn", *["mlp"] * bool(model.d_mlp)]
    names = ["embed", *(f"{which}_{layer}" for layer in range(2) for which in written)]
    assert components.component.values.tolist() == names
    close(components.sel(component="embed"), cache["full_embed"])
    if "attn_out" in model.sites:
        close(components.sel(component="attn_1"), cache["attn_out", 1])
    assert components.dims == ("component", *RESIDUAL)
    assert components.token_kind.equals(cache["resid_post"].token_kind)
    assert components.attrs == MEANINGS["residual_component"]._asdict()


def test_the_accumulated_residual_is_the_stream_before_every_block_and_at_the_end(cache):
    stream = cache.accumulated_residual()
    assert stream.dims == ("layer", *RESIDUAL) and stream.layer.values.tolist() == [0, 1, 2]
    close(stream.sel(layer=0), cache["full_embed"])
    close(stream.sel(layer=1), cache["resid_post", 0])
    close(stream.sel(layer=2), cache["resid_post", 1])


def test_heads_and_bias_sum_to_what_attention_adds(model, cache):
    if "z" not in model.sites:
        with pytest.raises(SiteError, match="this needs z of layer 0"):
            cache.head_results()
        return
    results = cache.head_results()
    assert results.dims == ("layer", "head", *RESIDUAL) and results.shape[:2] == (2, 3)
    for layer in range(2):
        bias = model.weights["b_O", layer].numpy() * scale_of(model, layer, "attn")
        close(results.sel(layer=layer).sum("head") + bias, cache["attn_out", layer])
        for head in range(3):
            one = cache["result", layer][:, :, head].numpy() * scale_of(model, layer, "attn")
            close(results.sel(layer=layer, head=head), one)


def test_neurons_and_bias_sum_to_what_an_mlp_adds(model, cache):
    if not model.d_mlp:
        with pytest.raises(SiteError, match="this needs mlp_post of layer 0"):
            cache.neuron_results(0)
        return
    for layer in range(2):
        results = cache.neuron_results(layer)
        assert results.dims == ("d_mlp", *RESIDUAL) and results.sizes["d_mlp"] == model.d_mlp
        bias = model.weights["b_out", layer].numpy() * scale_of(model, layer, "mlp")
        close(results.sum("d_mlp") + bias, cache["mlp_out", layer])
        some = cache.neuron_results(layer, tokens=[1, 3])
        assert some.token.values.tolist() == [1, 3]
        xr.testing.assert_equal(some, results.sel(token=[1, 3]))
        alone = cache["mlp_post", layer][0, 2, 5].item() * model.weights["W_out", layer][5].numpy()
        close(results[5, 0, 2], alone * scale_of(model, layer, "mlp"))


def test_normed_components_and_shift_sum_to_the_final_norm(model, cache):
    normed = cache.apply_final_norm(cache.decompose_residual())
    if model.final_norm is None:
        xr.testing.assert_equal(
            normed, cache.decompose_residual().rename(normed.name).assign_attrs(normed.attrs)
        )
        return
    expected = cache["ln_final"]
    close(normed.sum("component") + model.final_norm.bias.numpy(), expected)
    assert normed.token.identical(expected.token) and normed.token_kind.identical(expected.token_kind)
    assert normed.component.values.tolist() == cache.tensors.component_names


def test_the_norm_of_the_whole_stream_is_the_final_norm(model, cache):
    stream = cache.accumulated_residual()
    normed = cache.apply_final_norm(stream, frozen_scale=False)
    assert normed.layer.equals(stream.layer)
    expected = cache["resid_post"].sel(layer=1) if model.final_norm is None else cache["ln_final"]
    close(normed.sel(layer=2), expected)


def test_a_part_at_some_tokens_is_normed_by_their_scale():
    cache = make("vit", torch.float64).run_with_cache(pixels_for(make("vit", torch.float64)))[1]
    some = cache.apply_final_norm(cache.neuron_results(1, tokens=[3, 0]))
    xr.testing.assert_allclose(
        some, cache.apply_final_norm(cache.neuron_results(1)).sel(token=[3, 0]), 0, 1e-14
    )
    turned = cache.neuron_results(1).transpose("d_model", "token", ...)
    xr.testing.assert_equal(cache.apply_final_norm(turned), cache.apply_final_norm(cache.neuron_results(1)))


@pytest.mark.parametrize(
    ("name", "what"), [("clip bare", "the CLS token"), ("beit", "the mean of all patches")]
)
def test_parts_without_a_token_that_is_normed_are_refused(name, what):
    model = make(name)
    cache = model.run_with_cache(pixels_for(model))[1]
    with pytest.raises(SiteError, match=rf"the final norm is of {what}, which parts at tokens \[1, 2\] lack"):
        cache.apply_final_norm(cache.neuron_results(0, tokens=[1, 2]))


def test_parts_of_other_images_are_refused():
    model = make("vit")
    cache = model.run_with_cache(pixels_for(model))[1]
    with pytest.raises(ValueError, match="parts are of other images than the run"):
        cache.apply_final_norm(cache.decompose_residual().isel(image=[1, 0]))


def test_the_scale_of_another_norm_cannot_be_frozen():
    model = make("vit")
    model.model.vit.layernorm = torch.nn.RMSNorm(12)
    cache = model.run_with_cache(pixels_for(model))[1]
    with pytest.raises(
        SiteError, match="the final norm is RMSNorm, and only a LayerNorm's scale can be frozen"
    ):
        cache.apply_final_norm(cache.decompose_residual())


def test_what_the_run_did_not_keep_is_named():
    model = make("vit")
    cache = model.run_with_cache(pixels_for(model), ["attn_out", "full_embed"])[1]
    with pytest.raises(
        SiteError, match="this needs mlp_out of layer 0: name the site when you run the model"
    ):
        cache.decompose_residual()
    with pytest.raises(KeyError, match="mlp_out"):
        cache["mlp_out"]


def test_gradients_flow_through_the_tensors_of_a_decomposition():
    model = make("clip bare", torch.float64)
    cache = model.run_with_cache(pixels_for(model))[1]
    tensors = cache.tensors
    close(tensors.decompose_residual().detach(), cache.decompose_residual())
    close(tensors.head_results().detach(), cache.head_results())
    attributed = tensors.apply_final_norm(tensors.neuron_results(1))
    attributed.square().sum().backward()
    assert model.part(1, "mlp_out").weight.grad.any() and model.part(0, "q").weight.grad.any()


# --- labels


def test_one_dataset_holds_every_site_on_the_sequence_of_tokens(model, cache):
    data = cache.data
    kinds = model.token_coords()["token_kind"]
    assert data.token.values.tolist() == list(range(len(kinds)))
    assert data.token_kind.values.tolist() == kinds.tolist()
    assert not data.attrs and data.resid_post.attrs == cache["resid_post"].attrs
    assert data.patch_row.dtype == data.layer.dtype == np.int64
    for site in model.sites:
        array = data[site]
        assert array.dtype == np.float64, site
        dims = [dim for dim in array.dims if dim != "layer"]
        where = model.kept_at(site, model.token_coords())
        if where is None:
            assert dims == ["image", "d_model"]
            close(array, cache[site].isel(token=0))
        elif "token" in dims and len(where) < len(kinds):
            close(array.isel(token=where), cache[site])
            assert array.drop_isel(token=where).isnull().all()
        else:
            assert tuple(dims) == SITE_DIMS[site] and not array.isnull().any()
            xr.testing.assert_identical(array.reset_coords(drop=True), cache[site].reset_coords(drop=True))


@pytest.mark.parametrize("name", ["vit", "clip bare", "beit"])
@pytest.mark.parametrize(
    ("dtype", "stored"),
    [(torch.float16, np.float16), (torch.bfloat16, np.float32), (torch.float32, np.float32)],
)
def test_labelled_data_are_of_the_dtype_of_the_run(name, dtype, stored):
    model = make(name, dtype)
    data = model.run_with_cache(pixels_for(model))[1].data
    assert {array.dtype for array in data.values()} == {np.dtype(stored)}


def test_layers_of_one_site_that_others_lack_are_nan():
    model = make("vit")
    values = model.run_with_cache(pixels_for(model))[1]
    kept = {
        ("q", 0): values["q", 0],
        ("k", 1): values["k", 1],
        ("v", 0): values["v", 0],
        ("v", 1): values["v", 1],
    }
    data = ActivationCache(model, kept, model.input_shape, xr.Coordinates({"image": ["a", "b"]})).data
    assert data.layer.values.tolist() == [0, 1] and data.image.values.tolist() == ["a", "b"]
    assert data.q.sel(layer=1).isnull().all() and data.k.sel(layer=0).isnull().all()
    assert np.array_equal(data.q.sel(layer=0), values["q", 0].detach())
    assert np.array_equal(data.v.sel(layer=1), values["v", 1].detach())


def test_classes_have_their_names():
    named = HookedViT(make("vit").model, class_names=list("abcde"))
    cache = named.run_with_cache(pixels_for(named), ["logits"])[1]
    assert (
        cache.data.class_name.values.tolist() == cache["logits"].class_name.values.tolist() == list("abcde")
    )
