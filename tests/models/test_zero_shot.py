"""Zero-shot heads answer as the models that they are made of."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as hf
import xarray as xr
from tokenizers import Tokenizer, models, pre_tokenizers
from torch.nn.functional import normalize

from prisma_steps.job import Job
from prisma_steps.models.loading import load_model as load_artifact
from prisma_steps.models.zero_shot import zero_shot_head
from prisma_steps.step import Artifact, StepError
from prisma_steps.steps.load_model import Params, load_model

CLASSES = ["cat", "dog", "a newt"]
TEMPLATES = ["a photo of a {}.", "{} at dawn", "no {}!"]
_SIZES: dict[str, Any] = {
    "hidden_size": 12,
    "num_hidden_layers": 2,
    "num_attention_heads": 3,
    "intermediate_size": 20,
}
_VISION: dict[str, Any] = {**_SIZES, "image_size": 8, "patch_size": 4, "projection_dim": 7}


def clip_tokenizer() -> Any:
    letters = [chr(code) for code in range(33, 127)]
    words = [*letters, *(f"{letter}</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    return hf.CLIPTokenizer(vocab={word: number for number, word in enumerate(words)}, merges=[])


def siglip_tokenizer() -> Any:
    words = ["<pad>", "<unk>", *sorted({*" ".join(TEMPLATES + CLASSES).replace("{}", " ").split()})]
    made = Tokenizer(models.WordLevel({word: number for number, word in enumerate(words)}, "<unk>"))
    made.pre_tokenizer = pre_tokenizers.WhitespaceSplit()  # pyright: ignore[reportAttributeAccessIssue]
    return hf.PreTrainedTokenizerFast(
        tokenizer_object=made, pad_token="<pad>", unk_token="<unk>", model_input_names=["input_ids"]
    )


def clip() -> Any:
    words = {"vocab_size": 190, "eos_token_id": 189, "bos_token_id": 188, "max_position_embeddings": 40}
    text = {**_SIZES, **words, "projection_dim": 7}
    return hf.CLIPModel(hf.CLIPConfig(text_config=text, vision_config=_VISION, projection_dim=7))


def siglip() -> Any:
    text = {**_SIZES, "vocab_size": 30, "max_position_embeddings": 9, "projection_size": 12}
    return hf.SiglipModel(hf.SiglipConfig(text_config=text, vision_config=_VISION))


def saved(name: str, folder: Path) -> tuple[Any, Any]:
    torch.manual_seed(0)
    make, tokenizer = {"clip": (clip, clip_tokenizer()), "siglip": (siglip, siglip_tokenizer())}[name]
    model = make().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape))
        model.logit_scale.fill_(2.3)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    hf.ViTImageProcessorPil(size={"height": 8, "width": 8}).save_pretrained(folder)
    return model, tokenizer


def answer(model: Any, tokenizer: Any, texts: list[str], pixels: torch.Tensor) -> Any:
    padding: dict[str, Any] = {"padding": True}
    if isinstance(model, hf.SiglipModel):
        padding = {"padding": "max_length", "max_length": 9}
    with torch.no_grad():
        return model(**tokenizer(texts, return_tensors="pt", **padding), pixel_values=pixels)


@pytest.mark.parametrize("name", ["clip", "siglip"])
def test_one_template_gives_the_logits_of_the_model(name, tmp_path):
    model, tokenizer = saved(name, tmp_path)
    given = Params(path=str(tmp_path), class_names=CLASSES, templates=TEMPLATES[:1])
    output = load_model(given, Job())
    (tmp_path / "kept").mkdir()
    for file, write in output.files.items():
        write(tmp_path / "kept" / file)
    vit = load_artifact(Artifact(output.data, tmp_path / "kept"))
    pixels = torch.rand(5, 3, 8, 8)
    texts = [f"a photo of a {class_name}." for class_name in CLASSES]
    expected = answer(model, tokenizer, texts, pixels).logits_per_image
    assert expected.std() > 0.01
    torch.testing.assert_close(vit(pixels), expected, rtol=0, atol=1e-5)
    assert vit.class_names == tuple(CLASSES) and vit.n_classes == 3


@pytest.mark.parametrize("name", ["clip", "siglip"])
def test_several_templates_are_averaged_as_unit_vectors(name, tmp_path):
    model, tokenizer = saved(name, tmp_path)
    head = zero_shot_head(tmp_path, CLASSES, TEMPLATES, Job())
    for number, class_name in enumerate(CLASSES):
        texts = [template.format(class_name) for template in TEMPLATES]
        of_class = answer(model, tokenizer, texts, torch.rand(1, 3, 8, 8)).text_embeds
        mean = sum(embedding / embedding.norm() for embedding in of_class) / len(texts)
        torch.testing.assert_close(head.text[number], normalize(mean, dim=0), rtol=0, atol=1e-6)


def test_a_model_without_a_text_tower_or_a_tokenizer_is_refused(tmp_path):
    clip().save_pretrained(tmp_path / "clip")
    with pytest.raises(StepError, match="clip has no tokenizer, .* tokenizer.json or vocab.json"):
        zero_shot_head(tmp_path / "clip", CLASSES, TEMPLATES, Job())
    hf.CLIPVisionModel(hf.CLIPVisionConfig(**_VISION)).save_pretrained(tmp_path / "vision")
    with pytest.raises(StepError, match="need a model with a text tower .* vision holds a CLIPVisionModel"):
        zero_shot_head(tmp_path / "vision", CLASSES, TEMPLATES, Job())


def test_a_model_of_images_and_texts_is_kept_without_its_text_tower(tmp_path):
    model, _ = saved("clip", tmp_path)
    vit = load_artifact(Artifact(xr.Dataset(), tmp_path))
    pixels = torch.rand(2, 3, 8, 8)
    expected = model.get_image_features(pixels).pooler_output
    torch.testing.assert_close(vit(pixels), expected, rtol=0, atol=1e-6)
    assert not any("text" in name for name in load_model(Params(path=str(tmp_path)), Job()).data.attrs)
