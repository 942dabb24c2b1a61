"""Timm can be used in tests although torchvision, which it imports, is not installed."""

from __future__ import annotations

import sys

import pytest
import torch
from transformers.utils import is_torchvision_available

from prisma_steps.job import Job
from prisma_steps.models.hooked import HookedViT
from prisma_steps.step import StepError
from prisma_steps.steps.load_model import Params, load_model
from tests.models.families import make, pixels_for


def test_its_vision_transformers_run(timm):
    model = timm.create_model("vit_tiny_patch16_224", pretrained=False, num_classes=3).eval()
    with torch.no_grad():
        assert model(torch.zeros(2, 3, 224, 224)).shape == (2, 3)


def test_nobody_takes_the_mocks_for_torchvision(timm):
    assert timm.__name__ in sys.modules
    assert not [name for name in sys.modules if name.partition(".")[0] == "torchvision"]
    assert not is_torchvision_available()


def test_attention_is_fused_again_after_its_scores_were_read_or_failed_to_be():
    model = make("timm")
    pixels, blocks = pixels_for(model), model.model.blocks
    assert all(block.attn.fused_attn for block in blocks)

    def fail(value):
        raise RuntimeError(value.shape)

    model.run_with_cache(pixels, ["pattern"])
    with pytest.raises(RuntimeError):
        model.run_with_hooks(pixels, {("attn_scores", 1): fail})
    assert all(block.attn.fused_attn for block in blocks)
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.model.modules())


def test_a_folder_of_timm_says_what_can_be_done_with_it(timm, tmp_path):
    from timm.models import save_for_hf

    model = timm.create_model("vit_tiny_patch16_224", pretrained=False, num_classes=3)
    save_for_hf(model, tmp_path, safe_serialization=True)
    told = r"a model of timm \(vit_tiny_patch16_224\).*transformers.*HookedViT\(timm.create_model"
    with pytest.raises(StepError, match=told):
        load_model(Params(path=str(tmp_path)), Job())
    assert HookedViT(model).n_classes == 3
