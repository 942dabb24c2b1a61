"""A pretrained model in the store answers as transformers does, and its key knows its commit."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers as hf
import xarray as xr
from PIL import Image

import prisma_steps
from prisma_steps import schema
from prisma_steps.job import Job
from prisma_steps.models import hub
from prisma_steps.models.heads import ZeroShotHead
from prisma_steps.models.hooked import HookedViT
from prisma_steps.models.loading import load_model as load_artifact
from prisma_steps.plan import JobPlan, plan_experiment
from prisma_steps.problems import ExperimentError
from prisma_steps.progress import StatusFile
from prisma_steps.runner import run_jobs
from prisma_steps.step import Artifact, Output, StepError
from prisma_steps.steps.load_model import Params, load_model
from prisma_steps.store import Store
from tests.models.families import MAKERS, make, pixels_for

COMMITS = ("0123456789abcdef0123456789abcdef01234567", "89abcdef0123456789abcdef0123456789abcdef")
IMAGE = {"image_size": 8, "patch_size": 4, "num_channels": 2}
NODE = "nodes:\n  vit: {{step: load_model, name: org/tiny{}}}\n"


def vit(seed: int = 0, **changes: Any) -> Any:
    torch.manual_seed(seed)
    sizes = {"hidden_size": 12, "num_hidden_layers": 2, "num_attention_heads": 3, "intermediate_size": 20}
    config = hf.ViTConfig(**{**sizes, **IMAGE, "num_labels": 3, **changes})
    return hf.ViTForImageClassification(config).eval()


def kept(output: Output, folder: Path) -> Artifact:
    """What a run would keep of a step's output."""
    schema.check(schema.label(output.data), schema.Model)
    folder.mkdir()
    for name, write in output.files.items():
        write(folder / name)
    return Artifact(output.data, folder)


def loaded(tmp_path: Path, model: Any, **parameters: Any) -> tuple[HookedViT, xr.Dataset]:
    model.save_pretrained(tmp_path / "given")
    output = load_model(Params(path=str(tmp_path / "given"), **parameters), Job())
    return load_artifact(kept(output, tmp_path / "kept")), output.data


@pytest.mark.parametrize("name", [name for name in MAKERS if not name.startswith("timm")])
def test_a_model_of_every_family_answers_as_it_did(name, tmp_path):
    model = make(name)
    if name.startswith("toy"):  # not registered with transformers
        model.model.config.architectures = ["ToyViT"]
    pixels = pixels_for(model)
    found, data = loaded(tmp_path, model.model)
    # The same weights; BEiT's attention bias lies otherwise in memory, which changes a last digit.
    torch.testing.assert_close(found(pixels), model(pixels), rtol=0, atol=1e-6)
    assert data.attrs["n_layers"] == 2 and data.attrs["d_model"] == model.d_model
    assert "/" not in str(data.attrs).replace("pixels / 255", "")


def test_attributes_say_what_the_model_is(tmp_path):
    hf.ViTImageProcessorPil(size={"height": 8, "width": 8}).save_pretrained(tmp_path / "given")
    model = vit(num_channels=3)
    found, data = loaded(tmp_path, model)
    assert data.attrs == {
        "model_type": "vit",
        "model_class": "ViTForImageClassification",
        "n_layers": 2,
        "d_model": 12,
        "n_heads": 3,
        "d_mlp": 20,
        "n_channels": 3,
        "image_size": [8, 8],
        "n_parameters": sum(parameter.numel() for parameter in model.parameters()),
        "preprocessing": "ViTImageProcessorPil",
    }
    raw = torch.randint(0, 256, (2, 3, 20, 30), dtype=torch.uint8)
    processor = hf.ViTImageProcessorPil(size={"height": 8, "width": 8})
    expected = model(**processor(list(raw.numpy()), return_tensors="pt")).logits
    torch.testing.assert_close(found(found.preprocess(raw)), expected, rtol=0, atol=1e-6)


def test_a_model_that_does_not_say_how_its_images_are_prepared_is_refused(tmp_path):
    with pytest.raises(StepError) as told:
        loaded(tmp_path, vit(num_channels=3))
    message = str(told.value)
    assert "given does not say how the images of its model are prepared" in message
    assert "preprocessor_config.json" in message and "image_mean" in message


@pytest.mark.parametrize("size", [8, 11])
def test_mean_and_std_say_it_instead(tmp_path, size):
    mean, std = [0.1, 0.2, 0.3], [0.5, 1.0, 2.0]
    model = vit(num_channels=3)
    found, data = loaded(tmp_path, model, image_mean=mean, image_std=std)
    raw = torch.randint(0, 256, (2, 3, size, size), dtype=torch.uint8)
    pillow = [Image.fromarray(image.permute(1, 2, 0).numpy()) for image in raw]
    resized = np.stack([np.asarray(image.resize((8, 8), Image.Resampling.BICUBIC)) for image in pillow])
    expected = torch.from_numpy(((resized / 255 - mean) / std).transpose(0, 3, 1, 2)).float()
    # Float32 of numbers up to 2.
    torch.testing.assert_close(found.preprocess(raw), expected, rtol=0, atol=1e-6)
    torch.testing.assert_close(found(found.preprocess(raw)), model(expected).logits, rtol=0, atol=1e-5)
    assert data.attrs["preprocessing"] == "BitImageProcessorPil"
    by_hand = prisma_steps.load_model(tmp_path / "given", normalisation=(mean, std))
    assert torch.equal(by_hand.preprocess(raw), found.preprocess(raw))


def test_mean_and_std_of_a_model_that_needs_none_are_refused(tmp_path):
    given = {"image_mean": [0.5] * 3, "image_std": [0.5] * 3}
    with pytest.raises(StepError, match="models of 3 channels that come without .*: leave them out"):
        loaded(tmp_path, vit(), **given)
    hf.ViTImageProcessorPil(size={"height": 8, "width": 8}).save_pretrained(tmp_path / "given")
    with pytest.raises(StepError, match="models of 3 channels that come without .*: leave them out"):
        loaded(tmp_path, vit(num_channels=3), **given)


def test_the_same_model_leaves_the_same_bytes(tmp_path):
    vit().save_pretrained(tmp_path / "given")
    hf.ViTImageProcessorPil().save_pretrained(tmp_path / "given")
    shutil.copytree(tmp_path / "given", tmp_path / "elsewhere")
    kept_in = [
        kept(load_model(Params(path=str(tmp_path / name)), Job()), tmp_path / f"kept_{name}").folder
        for name in ("given", "elsewhere")
    ]
    files = [{file.name: file.read_bytes() for file in folder.iterdir()} for folder in kept_in]
    assert files[0] == files[1]
    assert set(files[0]) == {"config.json", "model.safetensors", "preprocessor_config.json"}
    assert str(tmp_path).encode() not in b"".join(files[0].values())


def test_names_of_classes_come_from_the_model_or_from_the_experiment(tmp_path):
    names = {0: "cat", 1: "dog", 2: "newt"}
    found, data = loaded(tmp_path, vit(id2label=names))
    assert data["class_name"].values.tolist() == ["cat", "dog", "newt"]
    assert found.class_names == ("cat", "dog", "newt")
    given = load_model(Params(path=str(tmp_path / "given"), class_names=["a", "b", "c"]), Job())
    assert given.data["class_name"].values.tolist() == ["a", "b", "c"]


def test_numbers_are_no_names_of_classes(tmp_path):
    found, data = loaded(tmp_path, vit())
    assert "class_name" not in data and found.class_names is None


def test_class_names_must_be_as_many_as_the_classes(tmp_path):
    with pytest.raises(StepError, match="2 class_names are given, and the model has 3 classes"):
        loaded(tmp_path, vit(), class_names=["a", "b"])
    with pytest.raises(StepError, match="has 0 classes: a CLIP or SigLIP takes them together with templates"):
        loaded(tmp_path, make("clip").model, class_names=["a", "b"])


def test_a_head_that_lies_there_is_kept(tmp_path):
    (tmp_path / "given").mkdir()
    from prisma_steps.models.heads import head_files

    head = ZeroShotHead(torch.randn(4, 7), 20.0)
    for name, write in head_files(head).items():
        write(tmp_path / "given" / name)
    model = make("clip")
    found, _ = loaded(tmp_path, model.model)
    pixels = pixels_for(model)
    torch.testing.assert_close(found(pixels), head(model.model(pixels)), rtol=0, atol=1e-5)


def test_weights_that_can_run_code_are_refused(tmp_path):
    vit().config.to_json_file(tmp_path / "config.json")
    told = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**told, "architectures": ["ViTModel"]}))
    torch.save(vit().state_dict(), tmp_path / "pytorch_model.bin")
    with pytest.raises(StepError, match=r"no safetensors.*pytorch_model\.bin.*save_pretrained"):
        load_model(Params(path=str(tmp_path)), Job())


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({}, "got neither"),
        ({"path": ".", "name": "org/tiny"}, "got both"),
        ({"path": ".", "revision": "v2"}, "leave it out beside `path`"),
        ({"path": ".", "image_mean": [0.5] * 3}, "given together"),
        ({"path": ".", "image_mean": [0.5], "image_std": [0.5]}, "at least 3"),
        ({"path": ".", "image_mean": [0.5] * 3, "image_std": [0.5, 0.0, 0.5]}, "greater than 0"),
        ({"path": ".", "templates": ["a {}"]}, "need `class_names`"),
        ({"path": ".", "class_names": ["a"], "templates": ["a photo"]}, "'a photo' has not"),
        ({"path": ".", "class_names": ["a"], "templates": ["{} and {}"]}, "has {} once"),
    ],
)
def test_parameters_that_do_not_go_together_are_refused(given, message):
    with pytest.raises(ValueError, match=message):
        Params(**given)


# --- from the hub


@pytest.fixture
def cache(tmp_path, monkeypatch) -> Path:
    """A hub cache with two commits of a model, of which ``main`` is the first; the hub is out of reach."""
    from huggingface_hub import constants

    repository = tmp_path / "cache" / "models--org--tiny"
    for seed, commit in enumerate(COMMITS):
        vit(seed).save_pretrained(repository / "snapshots" / commit)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(COMMITS[0])
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    return repository


def planned(folder: Path, more: str = "") -> JobPlan:
    file = folder / "experiment.yaml"
    file.write_text(NODE.format(more))
    (job,) = plan_experiment(file, Store(folder / "store")).jobs.values()
    return job


def test_the_commit_is_in_the_key_and_not_the_word_for_it(cache, tmp_path):
    main = planned(tmp_path)
    assert main.identity["outside"] == {"revision": COMMITS[0]} == {"revision": main.parameters["revision"]}
    assert "revision" not in main.identity["parameters"]
    assert planned(tmp_path, f", revision: {COMMITS[0]}").key == main.key
    (cache / "refs" / "main").write_text(COMMITS[1])
    assert planned(tmp_path).key == planned(tmp_path, f", revision: {COMMITS[1]}").key != main.key


def test_the_job_loads_the_commit_that_was_planned(cache, tmp_path):
    job, store = planned(tmp_path), Store(tmp_path / "store")
    (cache / "refs" / "main").write_text(COMMITS[1])
    told = run_jobs([job.spec("experiment")], store, {job.key: StatusFile(tmp_path / "status", "log")})
    assert list(told) == [(job.key, "computed")]
    made = store.artifact("load_model", job.key)
    model = load_artifact(Artifact(xr.Dataset(), made.folder))
    pixels = torch.rand(2, 2, 8, 8)
    torch.testing.assert_close(model(pixels), vit(0)(pixels).logits, rtol=0, atol=0)
    assert made.manifest["identity"]["outside"] == {"revision": COMMITS[0]}
    assert made.manifest["parameters"]["name"] == "org/tiny"
    assert made.manifest["parameters"]["revision"] == COMMITS[0]
    assert str(tmp_path) not in json.dumps(made.manifest)


@pytest.mark.usefixtures("cache")
def test_a_revision_that_nobody_knows_is_a_problem_of_the_experiment(tmp_path):
    with pytest.raises(ExperimentError) as told:
        planned(tmp_path, ", revision: v2")
    text = str(told.value)
    assert "vit.name: the commit of 'org/tiny' at revision 'v2' is not known: HF_HUB_OFFLINE is set" in text
    assert str(tmp_path / "cache") in text and "hf download org/tiny" in text and "`path`" in text


@pytest.mark.usefixtures("cache")
def test_files_of_a_commit_that_cannot_be_had_are_named():
    told = f"the files of 'org/tiny' at {'f' * 40} cannot be downloaded: HF_HUB_OFFLINE is set, and the cache"
    with pytest.raises(hub.HubError, match=told):
        load_model(Params(name="org/tiny", revision="f" * 40), Job())


@pytest.mark.usefixtures("cache")
def test_a_name_that_cannot_be_one_is_refused():
    with pytest.raises(hub.HubError, match="'a/b/c' is no name of a hub model"):
        hub.resolve("a/b/c", "main")


def test_planning_a_hub_model_imports_neither_torch_nor_transformers(cache, tmp_path):
    import os
    import subprocess

    planned(tmp_path)
    script = (
        "import sys; from pathlib import Path; from prisma_steps.plan import plan_experiment; "
        "plan_experiment('experiment.yaml'); print({'torch', 'transformers', 'xarray'} & set(sys.modules))"
    )
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_HUB_CACHE": str(cache.parent)}
    environment["PYTHONPATH"] = str(Path(__file__).parents[2])
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=tmp_path, env=environment, capture_output=True, text=True
    )
    assert done.stdout == "set()\n", done.stderr
