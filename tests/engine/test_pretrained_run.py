"""A pretrained model is a node like any other: through the command and the real Snakemake."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from transformers import ViTConfig, ViTForImageClassification, ViTImageProcessorPil

import prisma_steps
from tests.engine.fault_session import Study

NODES = """\
nodes:
  digits: {step: load_images, dataset: digits, n_images: 20}
  vit: {step: load_model, path: ../given}
  acts: {step: extract_activations, model: vit, images: digits, sites: [logits]}
"""
CONFIG = ViTConfig(
    hidden_size=12, num_hidden_layers=2, num_attention_heads=3, intermediate_size=20, image_size=16,
    patch_size=4, id2label=dict(enumerate(["cat", "dog", "newt"])),
)  # fmt: skip


def test_what_is_extracted_of_a_saved_model_is_what_transformers_makes_of_the_images(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = ViTForImageClassification(CONFIG).eval()
    processor = ViTImageProcessorPil(size={"height": 16, "width": 16})
    for part in (model, processor):
        part.save_pretrained(tmp_path / "given")
    study = Study(tmp_path, "pretrained").write(NODES)
    assert {job["state"] for job in study.finish()["jobs"]} == {"computed"}
    file, store = tmp_path / "experiments/pretrained.yaml", study.root
    found = prisma_steps.load(file, "acts", store=store)
    grey = prisma_steps.load(file, "digits", store=store)["pixels"].values
    inputs = processor(list(grey.repeat(3, axis=1)), return_tensors="pt")
    with torch.no_grad():
        expected = model(**inputs).logits
    # Another kernel for the matrix products, other threads: float32 of numbers below 1.
    np.testing.assert_allclose(found["logits"], expected, rtol=0, atol=1e-5)
    classes = prisma_steps.load(file, "vit", store=store)["class_name"]
    assert classes.values.tolist() == ["cat", "dog", "newt"]
