"""Timm can be used in tests although torchvision, which it imports, is not installed."""

from __future__ import annotations

import sys

import torch
from transformers.utils import is_torchvision_available


def test_its_vision_transformers_run(timm):
    model = timm.create_model("vit_tiny_patch16_224", pretrained=False, num_classes=3).eval()
    with torch.no_grad():
        assert model(torch.zeros(2, 3, 224, 224)).shape == (2, 3)


def test_nobody_takes_the_mocks_for_torchvision(timm):
    assert timm.__name__ in sys.modules
    assert not [name for name in sys.modules if name.partition(".")[0] == "torchvision"]
    assert not is_torchvision_available()
