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
    Not so behind a proxy that refuses: that is set up wrong, and would stay so unnoticed.

    Raises:
        HubError: when neither knows.
    """
    from huggingface_hub import constants, resolve_revision
    from huggingface_hub.errors import HFValidationError

    try:
        offline = constants.is_offline_mode()
        return resolve_revision(name, revision=revision, local_files_only=offline).resolved
    except HFValidationError as error:
        raise HubError(
            f"{name!r} is no name of a hub model, as openai/clip-vit-base-patch32: {error}"
        ) from error
    except _failures() as error:
        raise HubError(
            f"the commit of {name!r} at revision {revision!r} is not known: {_reason(error, name)}"
        ) from error


def download(name: str, commit: str, files: Sequence[str] = MODEL_FILES) -> Path:
    """A folder with those ``files`` (patterns) that a commit of a hub model has.

    Raises:
        HubError: when they are not in the cache and cannot be downloaded.
    """
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(name, revision=commit, allow_patterns=list(files)))
    except _failures() as error:
        raise HubError(
            f"the files of {name!r} at {commit} cannot be downloaded: {_reason(error, name)}"
        ) from error


def _failures() -> tuple[type[Exception], ...]:
    """What goes wrong between here and the hub."""
    from httpx2 import HTTPError
    from huggingface_hub.errors import LocalEntryNotFoundError, RevisionResolutionError

    return (HTTPError, LocalEntryNotFoundError, RevisionResolutionError, ConnectionError, TimeoutError)


def _reason(error: Exception, name: str) -> str:
    """What went wrong, and what to do."""
    from huggingface_hub import constants, errors

    told = error if isinstance(error, errors.HfHubHTTPError) else error.__cause__ or error
    if isinstance(told, errors.GatedRepoError):
        page = f"{constants.ENDPOINT}/{name}"
        return f"only those may read it who were given access. Ask for it at {page}, then run `hf auth login`"
    if isinstance(told, errors.RevisionNotFoundError):
        return f"the hub has no such revision: {constants.ENDPOINT}/{name}/commits lists those that it has"
    if isinstance(told, errors.RepositoryNotFoundError):
        return "the hub has no such model, or it is private: check the name, or run `hf auth login`"
    cache, folder = constants.HF_HUB_CACHE, f"`path`, a folder that holds it (hf download {name})"
    if constants.is_offline_mode():
        return (
            f"HF_HUB_OFFLINE is set, and the cache {cache} has no such thing. Unset it; or set revision to a "
            f"commit (40 hex digits) that the cache has; or give {folder}"
        )
    what = "answers with an error" if isinstance(told, errors.HfHubHTTPError) else "cannot be reached"
    shown = " ".join(f"{type(told).__name__}: {told}".split())
    return (
        f"{constants.ENDPOINT} {what} ({shown}). Check the connection and the proxy (HTTPS_PROXY); "
        f"or set HF_HUB_OFFLINE=1 to take what the cache {cache} has; or give {folder}"
    )
