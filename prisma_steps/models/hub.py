"""Models of the Hugging Face hub: which commit a revision is, and the files of a commit.

Importing this module imports neither torch nor transformers: planning asks it for commits.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from prisma_steps.step import StepError

#: The files that make a model: its configuration, safetensors, how images are prepared.
MODEL_FILES = (
    "config.json",
    "model*.safetensors",
    "model.safetensors.index.json",
    "preprocessor_config.json",
    "processor_config.json",
    "video_preprocessor_config.json",
)

#: The files that make a tokenizer.
TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "vocab.json",
    "merges.txt",
    "spiece.model",
)


class HubError(StepError):
    """A model that cannot be had from the hub; the message says what was tried and what to do."""


def resolve(name: str, revision: str) -> str:
    """The commit, 40 hex digits, that a revision of a hub model is now.

    A commit is itself. Else the hub is asked; offline (``HF_HUB_OFFLINE``), or when it cannot be reached, the
    local cache is taken at its word: its ``refs`` say what the revision was when it was last downloaded.

    Raises:
        HubError: when neither knows.
    """
    from huggingface_hub import constants, resolve_revision
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, RevisionResolutionError

    offline = constants.is_offline_mode()
    try:
        return resolve_revision(name, revision=revision, local_files_only=offline).resolved
    except HFValidationError as error:
        raise HubError(
            f"{name!r} is no name of a hub model, as openai/clip-vit-base-patch32: {error}"
        ) from error
    except HfHubHTTPError as error:
        raise HubError(
            f"the hub knows no revision {revision!r} of {name!r}, or does not let you read it "
            f"({type(error).__name__}): check name and revision; log in with `hf auth login` where it is "
            "private"
        ) from error
    except RevisionResolutionError as error:
        asked = "HF_HUB_OFFLINE is set" if offline else "the hub cannot be reached"
        raise HubError(
            f"the commit of {name!r} at revision {revision!r} is not known: {asked}, and the cache "
            f"{constants.HF_HUB_CACHE} has no such revision. Set revision to a commit (40 hex digits), "
            f"download the model once (hf download {name}), or give `path`, a folder that holds it"
        ) from error


def download(name: str, commit: str, files: Sequence[str] = MODEL_FILES) -> Path:
    """A folder with those ``files`` (patterns) that a commit of a hub model has.

    Raises:
        HubError: when they are not in the cache and cannot be downloaded.
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(name, revision=commit, allow_patterns=list(files)))
    except (HfHubHTTPError, LocalEntryNotFoundError) as error:
        raise HubError(
            f"the files of {name!r} at {commit} are not in the cache and cannot be downloaded "
            f"({type(error).__name__}). Download them once (hf download {name} --revision {commit}), or give "
            "`path`, a folder that holds them"
        ) from error
