"""A classifier made of texts: the text tower of CLIP or SigLIP, applied once to the names of the classes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F
from transformers import AutoTokenizer

from prisma_steps.job import Job
from prisma_steps.models.heads import ZeroShotHead
from prisma_steps.models.loading import open_whole
from prisma_steps.step import StepError

#: How texts are padded: SigLIP was trained on full-length texts, its padding is read like words.
_PADDING = {"CLIPModel": True, "SiglipModel": "max_length"}

#: Files of which a tokenizer has at least one.
_VOCABULARIES = ("tokenizer.json", "vocab.json", "spiece.model")

#: Texts embedded at once.
_BATCH = 256


def zero_shot_head(
    folder: Path, class_names: Sequence[str], templates: Sequence[str], job: Job
) -> ZeroShotHead:
    """The head that compares an image with texts on each class, such as ``a photo of a {}.``.

    Of several texts on a class, the mean of their normalised embeddings counts (prompt ensembling: Radford et
    al. 2021, arXiv 2103.00020, section 3.1.4).

    Raises:
        StepError: when the folder has no text tower or no tokenizer.
    """
    model = open_whole(folder, job.device)
    name = type(model).__name__
    if name not in _PADDING:
        raise StepError(
            f"templates need a model with a text tower ({', '.join(_PADDING)}); {folder.name} holds a {name}"
        )
    tokenizer = _tokenizer(folder)
    means = []
    for done, class_name in enumerate(class_names):
        texts = [template.replace("{}", class_name) for template in templates]
        means.append(_embeddings(model, tokenizer, texts).mean(0))
        job.progress(done + 1, len(class_names), "classes")
    bias = model.logit_bias.item() if hasattr(model, "logit_bias") else 0.0
    return ZeroShotHead(torch.stack(means), model.logit_scale.exp().item(), bias)


def _tokenizer(folder: Path) -> Any:
    # Where these are missing, transformers makes a tokenizer that knows no word, and says nothing.
    if not any((folder / name).exists() for name in _VOCABULARIES):
        raise StepError(
            f"{folder.name} has no tokenizer, which templates need: expected {' or '.join(_VOCABULARIES)}"
        )
    try:
        return AutoTokenizer.from_pretrained(folder, local_files_only=True)
    except (ImportError, OSError, ValueError) as error:
        raise StepError(f"{folder.name}: the tokenizer cannot be opened: {error}") from error


def _embeddings(model: Any, tokenizer: Any, texts: Sequence[str]) -> Float[Tensor, "text embedding"]:
    """Unit embeddings of texts."""
    parts = []
    for first in range(0, len(texts), _BATCH):
        tokens = tokenizer(
            list(texts[first : first + _BATCH]),
            padding=_PADDING[type(model).__name__],
            max_length=model.config.text_config.max_position_embeddings,
            truncation=True,
            return_tensors="pt",
        )
        parts.append(model.get_text_features(**tokens.to(model.device)).pooler_output)
    return F.normalize(torch.cat(parts), dim=-1)
