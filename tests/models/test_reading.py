from __future__ import annotations

from functools import partial

import pytest
import torch

from prisma_steps.models.hooked import HookedViT
from prisma_steps.models.reading import UnfitValueError, kept_tokens, read
from prisma_steps.models.sites import SiteError
from prisma_steps.models.toy_vit import ToyViT, ToyViTConfig

CONFIG = ToyViTConfig(
    n_layers=3, d_model=8, n_heads=2, d_mlp=16, patch_size=4, image_size=8, n_channels=1, n_classes=3
)


@pytest.fixture
def model() -> HookedViT:
    return HookedViT(ToyViT.initialised(CONFIG, torch.Generator().manual_seed(0)).eval())


@pytest.fixture
def pixels() -> torch.Tensor:
    return torch.rand(4, 1, 8, 8, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize(("tokens", "where"), [("all", slice(None)), ("cls", [0]), ("patch", [1, 2, 3, 4])])
def test_layers_are_stacked_and_tokens_chosen(model, pixels, tokens, where):
    found = read(model, pixels, ["resid_post", "pattern", "logits"], [2, 0], tokens, torch.float32)
    _, cache = model.run_with_cache(pixels, ["resid_post", "pattern", "logits"])
    resid, pattern = (
        torch.stack([cache[site, layer] for layer in (2, 0)], dim=1) for site in ("resid_post", "pattern")
    )
    # float32 values of size 1: layers whose pattern is not read take the fused attention kernel.
    close = partial(torch.testing.assert_close, rtol=0, atol=1e-5)
    close(found["resid_post"], resid[:, :, where])
    close(found["pattern"], pattern)
    close(found["logits"], cache["logits", None])


def test_embed_has_patches_only(model, pixels):
    embed = model.run_with_cache(pixels, ["embed"])[1]["embed", None]
    for tokens in ("all", "patch"):
        assert kept_tokens(model, "embed", tokens).tolist() == [1, 2, 3, 4]
        assert torch.equal(read(model, pixels, ["embed"], [], tokens, torch.float32)["embed"], embed)
    assert kept_tokens(model, "embed", "cls").tolist() == []


def test_float16_is_rounded_float32(model, pixels):
    wide, narrow = (
        read(model, pixels, ["q"], [1], "all", dtype)["q"] for dtype in (torch.float32, torch.float16)
    )
    assert narrow.dtype == torch.float16 and torch.equal(narrow, wide.half())


@pytest.mark.parametrize(
    ("value", "dtype", "message"),
    [
        (7e4, torch.float16, "resid_post of layer 1 holds -70000, which torch.float16 storage refuses"),
        (torch.nan, torch.float32, "resid_post of layer 1 holds nan"),
        (torch.inf, torch.float16, "resid_post of layer 1 holds -inf"),
    ],
)
def test_values_that_cannot_be_held_name_image_and_site(model, pixels, monkeypatch, value, dtype, message):
    _, cache = model.run_with_cache(pixels, ["resid_post"])
    cache["resid_post", 1].data[2, 3, 5] = -value
    monkeypatch.setattr(model, "read", lambda *_: cache)
    with pytest.raises(UnfitValueError, match=message) as caught:
        read(model, pixels, ["resid_post"], [0, 1, 2], "all", dtype)
    assert caught.value.image == 2


def test_sites_that_are_not_there_are_refused(model, pixels):
    with pytest.raises(SiteError, match="no layer 3"):
        read(model, pixels, ["q"], [3], "all", torch.float32)
