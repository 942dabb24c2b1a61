"""Experiments that need what is not here: planned, and run on stand-ins."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers as hf
from PIL import Image

import prisma_steps
from prisma_steps.plan import plan_experiment
from prisma_steps.store import Store
from prisma_steps.yaml_source import read_yaml
from tests.engine.fault_session import Study
from tests.models.test_zero_shot import clip_tokenizer

PRETRAINED = Path(__file__).parents[2] / "experiments" / "pretrained"
FINDINGS = ["vision_saes_are_dense", "reconstruction_lowers_loss", "cls_fills_up"]
CLASSES = ["cat", "dog", "newt"]
N_LAYERS = 12

#: Of those of CLIP, the ones that claims are about, and the one with a penalty of its own.
LAYERS = [0, 2, 9, 10, 11]


# --- three experiments, one set of nodes


def findings_beside_their_data(folder: Path) -> Path:
    """The experiments in a folder with the two folders that they need."""
    shutil.copytree(PRETRAINED, folder / "experiments/pretrained")
    for needed in (
        "data/cifar10/train/cat/1.jpg",
        "data/cifar10/test/cat/1.jpg",
        "build/focus_vit_s/config.json",
    ):
        (folder / needed).parent.mkdir(parents=True)
        (folder / needed).touch()
    return folder / "experiments/pretrained"


def test_the_findings_share_all_that_they_compute(tmp_path: Path) -> None:
    folder = findings_beside_their_data(tmp_path)
    plans = [plan_experiment(folder / f"{name}.yaml", Store(tmp_path / "store")) for name in FINDINGS]
    computed = [
        {key for key, job in plan.jobs.items() if job.node in ("activations", "sae", "probe", "quality")}
        for plan in plans
    ]
    assert len(computed[0]) == 2 + 72 + 72
    assert computed[0] == computed[1] == computed[2]


def test_the_six_dictionaries_of_a_layer_are_trained_together(tmp_path: Path) -> None:
    folder = findings_beside_their_data(tmp_path)
    plan = plan_experiment(folder / "cls_fills_up.yaml", Store(tmp_path / "store"))
    points = [job.point for job in plan.jobs.values() if job.node == "sae"]
    by_layer = {layer: [point for point in points if point["layer"] == layer] for layer in range(N_LAYERS)}
    assert {layer: len(of_layer) for layer, of_layer in by_layer.items()} == dict.fromkeys(range(N_LAYERS), 6)


# --- CLIP on ImageNet, with a CLIP of 12 small layers and photographs that are noise


@pytest.fixture(scope="module")
def clip_experiment() -> dict[str, Any]:
    return read_yaml(PRETRAINED / "findings_on_clip.yaml", "findings_on_clip.yaml").data


def test_imagenet_has_its_thousand_classes_each_with_a_name_of_its_own(clip_experiment) -> None:
    names = clip_experiment["nodes"]["clip"]["class_names"]
    assert len(names) == len(set(names)) == 1000
    # Places that are known: the first, the last, and one on each side of every name that WordNet has twice.
    places = {0: "tench", 134: "crane (bird)", 517: "crane (machine)", 638: "maillot", 639: "tank suit"}
    assert {place: names[place] for place in places} == places
    assert names[999] == "toilet tissue"


def small_clip(folder: Path) -> hf.CLIPModel:
    torch.manual_seed(0)
    sizes = {"hidden_size": 12, "num_attention_heads": 3, "intermediate_size": 20, "projection_dim": 7}
    vision = {**sizes, "num_hidden_layers": N_LAYERS, "image_size": 8, "patch_size": 4}
    words = {"vocab_size": 190, "eos_token_id": 189, "bos_token_id": 188, "max_position_embeddings": 40}
    text = {**sizes, "num_hidden_layers": 1, **words}
    model = hf.CLIPModel(hf.CLIPConfig(text_config=text, vision_config=vision, projection_dim=7)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape))
        model.logit_scale.fill_(2.3)
    model.save_pretrained(folder)
    clip_tokenizer().save_pretrained(folder)
    hf.ViTImageProcessorPil(size={"height": 8, "width": 8}).save_pretrained(folder)
    return model


def noise(folder: Path, per_class: int) -> None:
    generator = np.random.default_rng(len(str(folder)))
    for name in ("n01", "n02", "n03"):
        (folder / name).mkdir(parents=True)
        for number in range(per_class):
            pixels = generator.integers(0, 256, (8, 8, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / name / f"{number}.png")


def stand_in(experiment: dict[str, Any]) -> str:
    """The experiment with less of everything, and otherwise as it is. JSON is YAML."""
    nodes = {name: dict(node) for name, node in experiment["nodes"].items()}
    nodes["train"] |= {"path": "../train"}
    nodes["unseen"] |= {"path": "../val", "n_images": 9}
    layers, penalties = (nodes["sae"][name]["grid"] for name in ("layer", "l1_coefficient"))
    nodes["sae"] |= {
        "batch_size": 32,
        "epochs": 1,
        "layer": {"grid": LAYERS, "axis": "depth"},
        "l1_coefficient": {"grid": [penalties[layers.index(layer)] for layer in LAYERS], "axis": "depth"},
    }
    nodes["clip"] |= {"path": "../clip", "class_names": CLASSES}
    del nodes["clip"]["name"]
    return json.dumps(experiment | {"nodes": nodes})


def test_the_findings_on_clip_run_from_images_to_claims(clip_experiment, tmp_path: Path) -> None:
    model = small_clip(tmp_path / "clip")
    noise(tmp_path / "train", 20)
    noise(tmp_path / "val", 3)
    study = Study(tmp_path, "findings_on_clip").write(stand_in(clip_experiment))
    assert {job["state"] for job in study.finish()["jobs"]} == {"computed"}
    file, store = tmp_path / "experiments/findings_on_clip.yaml", study.root
    quality = prisma_steps.load(file, "quality", store=store)
    assert quality["layer"].values.tolist() == LAYERS
    assert quality.sizes["latent"] == 64 * 12
    penalties = quality["sparsity_setting"].values.tolist()
    assert [at for at, text in enumerate(penalties) if text.endswith(" = 1")] == [LAYERS.index(2)]
    assert quality["ce"].values == pytest.approx(cross_entropy(model, file, store), abs=1e-5)
    assert (tmp_path / "results/findings_on_clip/figures/l0_by_layer.pdf").is_file()
    assert set(verdicts(study).values()) <= {"holds", "fails"}
    assert len(verdicts(study)) == 6


def cross_entropy(model: hf.CLIPModel, file: Path, store: Path) -> float:
    """What transformers itself makes of the images and the sentences."""
    images = prisma_steps.load(file, "unseen", store=store)
    words = clip_tokenizer()([f"a photo of a {name}." for name in CLASSES], return_tensors="pt", padding=True)
    processor = hf.ViTImageProcessorPil(size={"height": 8, "width": 8})
    pixels = processor(list(images["pixels"].values), return_tensors="pt")
    with torch.no_grad():
        logits = model(**words, **pixels).logits_per_image
    return torch.nn.functional.cross_entropy(logits, torch.from_numpy(images["label"].values).long()).item()


def verdicts(study: Study) -> dict[str, str]:
    """What the command says of each claim."""
    words = study.words("claims", study.name, "--json")
    found = subprocess.run(words, cwd=study.folder, env=study.environment, capture_output=True, check=True)
    return {claim["says"]: claim["verdict"] for claim in json.loads(found.stdout)["claims"]}
