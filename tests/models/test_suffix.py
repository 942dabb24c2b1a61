from __future__ import annotations

import pytest
import torch

from prisma_steps.models.hooked import HookedViT
from prisma_steps.models.sites import SiteError
from prisma_steps.models.suffix import Suffix
from tests.models.families import MAKERS, make, pixels_for

#: Float64: what is left is the order in which numbers are added.
CLOSE = {"rtol": 1e-9, "atol": 1e-10}


@pytest.fixture(params=MAKERS)
def model(request: pytest.FixtureRequest) -> HookedViT:
    made = make(request.param, torch.float64)
    made.model.requires_grad_(False)
    return made


def test_the_rest_is_that_of_the_whole_model(model: HookedViT) -> None:
    output, cache = model.run_with_cache(pixels_for(model), ["resid_pre", "resid_mid"])
    suffix = Suffix(model)
    for layer in range(model.n_layers):
        torch.testing.assert_close(suffix.from_pre(layer, cache["resid_pre", layer]), output, **CLOSE)
        torch.testing.assert_close(suffix.from_mid(layer, cache["resid_mid", layer]), output, **CLOSE)


def test_the_model_is_left_as_it_was(model: HookedViT) -> None:
    pixels = pixels_for(model)
    before = model(pixels)
    names = [name for name, _ in model.model.named_modules()]
    stream = model.read(pixels, ["resid_mid"])["resid_mid", 0]
    Suffix(model).from_mid(0, stream)
    assert torch.equal(model(pixels), before)
    assert [name for name, _ in model.model.named_modules()] == names
    assert not any(module._forward_hooks for module in model.model.modules())


@pytest.mark.parametrize(
    ("name", "first"),
    {
        "toy": True,
        "toy video": True,
        "toy mean, registers": False,
        "vit": True,
        "clip": True,
        "clip classifier": False,
        "dinov2": False,
        "vivit": True,
        "siglip": False,
        "timm": False,
        "beit": False,
    }.items(),
)
def test_the_last_block_is_cut_where_the_output_reads_cls_alone(name: str, first: bool) -> None:
    assert Suffix(make(name)).only_first_token == first


def test_reading_one_block_runs_no_other(model: HookedViT) -> None:
    pixels = pixels_for(model)
    expected = model.read(pixels, ["resid_pre", "mlp_out" if "mlp_out" in model.sites else "attn_out"])
    ran = []
    handles = [
        block.register_forward_hook(lambda *_, at=at: ran.append(at)) for at, block in enumerate(model.blocks)
    ]
    found = model.read_from(0, expected["resid_pre", 0], ["resid_post"])
    for handle in handles:
        handle.remove()
    assert ran == [0]
    torch.testing.assert_close(found["resid_post"], expected["resid_pre", 1], **CLOSE)


def test_a_hook_before_the_start_is_refused() -> None:
    model = make("toy")
    stream = torch.zeros(1, 5, 12)
    with pytest.raises(SiteError, match="comes before layer 1, where the run starts"):
        model.read_from(1, stream, ["z"], {("z", 0): lambda value: value})
