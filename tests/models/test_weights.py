"""Weights by name: every site rebuilt from them, on every family; factored matrices against dense ones."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from transformers.activations import ACT2FN

from prisma_steps.models.factored import FactoredMatrix
from prisma_steps.models.families import kind_of
from prisma_steps.models.heads import LinearProbe, ZeroShotHead
from prisma_steps.models.hooked import HookedViT
from prisma_steps.models.weights import WeightError
from prisma_steps.schema import MEANINGS, WEIGHT_DIMS
from tests.models.families import MAKERS, make, pixels_for

#: Sums of a few dozen float64 terms of size 1 to 10, in another order.
EXACT = {"rtol": 0, "atol": 1e-10}


def close(found, expected):
    torch.testing.assert_close(torch.as_tensor(found), torch.as_tensor(expected), **EXACT)


@pytest.fixture(scope="module")
def run(model):
    """Arrays of every site of every layer, and of every weight: no torch, no labels."""
    cache = model.run_with_cache(pixels_for(model))[1]
    sites = {key: value.numpy() for key, value in cache.items()}
    return sites, {name: model.weights[name].values for name in model.weights.names}


# --- the whole model, rebuilt


def test_queries_keys_and_values_are_those_of_the_weights(model, run):
    sites, weights = run
    for layer in range(model.n_layers if "q" in model.sites else 0):
        read = sites["ln1_out" if "ln1_out" in model.sites else "resid_pre", layer]
        for name in "QKV":
            made = np.einsum("itm,hmd->ithd", read, weights[f"W_{name}"][layer])
            close(sites[name.lower(), layer], made + weights[f"b_{name}"][layer])


def test_heads_write_what_the_weights_say(model, run):
    sites, weights = run
    for layer in range(model.n_layers if "z" in model.sites else 0):
        result = np.einsum("ithd,hdm->ithm", sites["z", layer], weights["W_O"][layer])
        close(sites["result", layer], result)
        scale = np.asarray(model.layer_scale(layer, "attn"))
        close(sites["attn_out", layer], (result.sum(2) + weights["b_O"][layer]) * scale)


def test_neurons_read_and_write_what_the_weights_say(model, run):
    sites, weights = run
    for layer in range(model.n_layers if "mlp_pre" in model.sites else 0):
        read = sites["ln2_out" if "ln2_out" in model.sites else "resid_mid", layer]
        up = read @ weights["W_in"][layer] + weights["b_in"][layer]
        gated = "W_gate" in weights
        pre = read @ weights["W_gate"][layer] + weights["b_gate"][layer] if gated else up
        close(sites["mlp_pre", layer], pre)
        if gated:
            act = ACT2FN["silu" if kind_of(model.model) == "dinov2" else model.config.hidden_act]
            close(sites["mlp_post", layer], act(torch.from_numpy(pre)).numpy() * up)
        scale = np.asarray(model.layer_scale(layer, "mlp"))
        written = sites["mlp_post", layer] @ weights["W_out"][layer] + weights["b_out"][layer]
        close(sites["mlp_out", layer], written * scale)


def test_only_gated_mlps_have_a_gate():
    gated = [name for name in MAKERS if "W_gate" in make(name).weights.names]
    assert gated == ["dinov2 bare, SwiGLU", "dinov3_vit gated"]


def test_logits_are_read_from_features_by_the_unembedding(model, run):
    sites, weights = run
    if "W_U" not in weights:
        return
    features = []
    handle = model.unembedding.register_forward_pre_hook(lambda _, args: features.append(args[0].numpy()))
    logits = model(pixels_for(model)).numpy()
    handle.remove()
    close(logits, features[0] @ weights["W_U"] + weights["b_U"])
    if kind_of(model.model) in ("vit", "vit_msn", "deit", "beit", "timesformer", "vivit"):
        close(logits, sites["ln_final", None][:, 0] @ weights["W_U"] + weights["b_U"])


def test_weights_have_the_dims_of_the_schema(model):
    for name, array in model.weights.data.items():
        layered = name not in ("W_U", "b_U")
        dims = ("layer", *WEIGHT_DIMS[name]) if layered else WEIGHT_DIMS[name]
        assert (array.dims, array.dtype) == (dims, np.float64)
        sizes = {"layer": 2, "head": 3, "d_model": model.d_model, "d_head": model.d_head, "class": 5}
        assert array.shape == tuple((sizes | {"d_mlp": model.d_mlp})[dim] for dim in dims)
        assert {"layer", "head"} & set(dims) <= set(array.coords)
        assert array.attrs == MEANINGS[name]._asdict()
        for layer in range(2) if layered else [None]:
            at = array if layer is None else array.sel(layer=layer)
            assert np.array_equal(at, model.weights[name, layer])


# --- particular models


def test_a_bias_that_the_model_does_not_have_is_zeros():
    beit = make("beit").weights
    assert not beit["b_K"].any() and beit["b_Q"].all() and beit["b_V"].all()


def test_gradients_flow_through_a_weight_to_the_model():
    model = make("vit")
    model.weights["W_V", 1][2].sum().backward()
    gradient = model.part(1, "v").weight.grad
    assert gradient[8:].eq(1).all() and not gradient[:8].any()
    assert model.weights["W_V", 1].data_ptr() == model.part(1, "v").weight.data_ptr(), "a view, no copy"


def test_labelled_weights_are_a_copy():
    model = make("vit")
    model.weights["b_O"][:] = 7
    assert not (model.weights["b_O"] == 7).any()


def test_bfloat16_becomes_float32_with_labels():
    model = make("vit", torch.bfloat16)
    assert model.weights["W_Q"].dtype == np.float32
    assert model.weights["W_Q", 0].dtype == torch.bfloat16


def test_classes_have_their_names():
    named = HookedViT(make("vit").model, class_names=list("abcde"))
    assert named.weights["W_U"].class_name.values.tolist() == list("abcde")


@pytest.mark.parametrize(
    ("name", "weight", "reason"),
    [
        ("vit bare", "W_U", "it comes without a head"),
        ("dinov2", "W_U", "its head reads 24 features and not the 12 of the residual stream"),
        ("dinov2", "b_U", "its head reads 24 features"),
        ("toy attention-only", "W_in", "its blocks have no MLP"),
        ("vit", "W_gate", "its MLPs are not gated"),
        ("vit", "W_E", "there is no such name"),
        ("timesformer", "W_O", "TimeSformer attends twice in a block"),
    ],
)
def test_a_weight_that_is_not_there_is_refused_with_the_reason(name, weight, reason):
    with pytest.raises(WeightError, match=f"the model has no {weight}: {reason}.*It has .*b_"):
        make(name).weights[weight]


def test_layers_that_are_not_there_are_refused():
    weights = make("vit").weights
    with pytest.raises(WeightError, match="no layer 2 of W_Q: the model has layers 0 to 1"):
        weights["W_Q", 2]
    with pytest.raises(WeightError, match="no layer None of W_Q"):
        weights["W_Q", None]
    with pytest.raises(WeightError, match="W_U exists once: ask for it without the layer 1"):
        weights["W_U", 1]


def test_heads_beside_the_model_have_weights_where_they_are_linear():
    bare = make("vit bare").model
    probe = LinearProbe(torch.rand(4, 12), torch.rand(4), "cls", 1)
    weights = HookedViT(bare, probe).weights
    assert torch.equal(weights["W_U", None], probe.weight.T) and torch.equal(weights["b_U", None], probe.bias)
    with pytest.raises(WeightError, match="reads 24 features and not the 12"):
        HookedViT(bare, LinearProbe(torch.rand(4, 24), torch.rand(4), "cls_mean_patch", 1)).weights["W_U"]
    with pytest.raises(WeightError, match="ZeroShotHead, is no linear map of features"):
        HookedViT(bare, ZeroShotHead(torch.rand(4, 12), 2.0)).weights["W_U"]


# --- circuits


def test_the_qk_circuit_gives_scores_and_the_ov_circuit_what_a_head_writes():
    model = make("vit", torch.float64)
    cache = model.run_with_cache(pixels_for(model))[1]
    weights, layer, head = model.weights, 1, 2
    x = cache["ln1_out", layer]
    # Without biases, of which the circuits do not speak.
    q, k, v = (x @ weights[f"W_{name}", layer][head] for name in "QKV")
    qk, ov = weights.qk_circuit(layer, head), weights.ov_circuit(layer, head)
    close((x @ qk @ x.mT).product(), q @ k.mT)
    pattern = cache["pattern", layer][:, head]
    written = pattern @ (x @ ov).product() + weights["b_V", layer][head] @ weights["W_O", layer][head]
    close(written, cache["result", layer][:, :, head])
    close(pattern @ v @ weights["W_O", layer][head], pattern @ (x @ ov).product())
    assert qk.shape == ov.shape == (12, 12) and qk.rank == ov.rank == 4


@pytest.fixture(params=[(), (2, 3)])
def factored(request) -> FactoredMatrix:
    generator = torch.Generator().manual_seed(0)
    left = torch.randn(*request.param, 9, 4, generator=generator, dtype=torch.float64)
    return FactoredMatrix(left, torch.randn(*request.param, 4, 9, generator=generator, dtype=torch.float64))


def test_decompositions_are_those_of_the_product(factored):
    dense = factored.left @ factored.right
    close(factored.product(), dense)
    close(factored.mT.product(), dense.mT)
    close(factored.norm(), dense.square().sum((-2, -1)).sqrt())
    u, s, vt = factored.svd()
    close(u * s[..., None, :] @ vt, dense)
    close(s, torch.linalg.svdvals(dense)[..., :4])
    identity = torch.eye(4, dtype=torch.float64).expand(*dense.shape[:-2], 4, 4)
    close(u.mT @ u, identity)
    close(vt @ vt.mT, identity)


def test_eigenvalues_are_those_of_the_product_that_are_not_0(factored):
    if factored.left.ndim > 2:
        close(
            factored.eigenvalues()[1, 2],
            FactoredMatrix(factored.left[1, 2], factored.right[1, 2]).eigenvalues(),
        )
        return
    order = lambda values: sorted(values.tolist(), key=lambda value: (round(value.real, 6), value.imag))  # noqa: E731
    every = torch.linalg.eigvals(factored.product())
    close(order(factored.eigenvalues()), order(every[every.abs().argsort()[-4:]]))


def test_products_with_others_stay_factored(factored):
    dense, other = factored.product(), torch.randn(9, 6, generator=torch.Generator().manual_seed(1)).double()
    for made, expected in (
        (factored @ other, dense @ other),
        (other.mT @ factored, other.mT @ dense),
        (factored @ factored.mT, dense @ dense.mT),
        (factored @ FactoredMatrix(other[:, :2], other[:, :2].mT), dense @ other[:, :2] @ other[:, :2].mT),
    ):
        assert isinstance(made, FactoredMatrix)
        close(made.product(), expected)
    assert (factored @ FactoredMatrix(other[:, :2], other[:, :2].mT)).rank == 2


def test_factors_that_do_not_fit_and_eigenvalues_of_no_square_are_refused():
    left, right = torch.zeros(5, 2), torch.zeros(3, 6)
    with pytest.raises(ValueError, match=r"no product: left is \(5, 2\) and right \(3, 6\)"):
        FactoredMatrix(left, right)
    with pytest.raises(ValueError, match=r"only a square matrix has eigenvalues, and this one is \(5, 6\)"):
        FactoredMatrix(left, right[:2]).eigenvalues()
