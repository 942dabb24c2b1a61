"""What a user is told when the hub cannot be reached, or answers no."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest
from huggingface_hub import close_session, constants, set_client_factory
from huggingface_hub.utils._http import default_client_factory

from prisma_steps.models import hub
from prisma_steps.plan import plan_experiment
from prisma_steps.problems import ExperimentError
from prisma_steps.store import Store

COMMIT = "0123456789abcdef0123456789abcdef01234567"
Hub = Callable[[Callable[[httpx2.Request], httpx2.Response]], None]


@pytest.fixture
def hub_that(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """Puts something in place of the connection to the hub; the cache is empty."""
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    # Between attempts, of which a refused connection gets several.
    monkeypatch.setattr("huggingface_hub.utils._http.time.sleep", lambda _: None)

    def answer(handler: Callable[[httpx2.Request], httpx2.Response]) -> None:
        set_client_factory(lambda: httpx2.Client(transport=httpx2.MockTransport(handler)))

    yield answer
    set_client_factory(default_client_factory)
    close_session()


def failing(error: Exception) -> Callable[[httpx2.Request], httpx2.Response]:
    def fail(_request: httpx2.Request) -> httpx2.Response:
        raise error

    return fail


def answering(status: int, code: str = "") -> Callable[[httpx2.Request], httpx2.Response]:
    headers = {"X-Error-Code": code} if code else {}
    return lambda request: httpx2.Response(status, headers=headers, request=request)


UNREACHABLE: dict[str, Any] = {
    "a proxy that refuses": httpx2.ProxyError("403 Forbidden"),
    "no network": httpx2.ConnectError("[Errno -2] Name or service not known"),
    "a time-out": httpx2.ReadTimeout("The read operation timed out"),
    "a lost connection": httpx2.RemoteProtocolError("Server disconnected"),
    "a reset connection": ConnectionResetError(104, "Connection reset by peer"),
}


@pytest.mark.parametrize("error", UNREACHABLE.values(), ids=UNREACHABLE)
@pytest.mark.parametrize("ask", [hub.resolve, hub.download])
def test_a_hub_out_of_reach_is_one_message_with_the_ways_out(hub_that, error, ask, tmp_path):
    hub_that(failing(error))
    with pytest.raises(hub.HubError) as told:
        ask("org/tiny", "v2" if ask is hub.resolve else COMMIT)
    message = str(told.value)
    what = (
        "commit of 'org/tiny' at revision 'v2' is not known" if ask is hub.resolve else "cannot be downloaded"
    )
    assert what in message
    assert f"https://huggingface.co cannot be reached ({type(error).__name__}: {error})" in message
    for way in ("HTTPS_PROXY", "HF_HUB_OFFLINE=1", str(tmp_path / "cache"), "`path`", "hf download org/tiny"):
        assert way in message
    assert "\n" not in message


ANSWERS = {
    "no such revision": (
        (404, "RevisionNotFound"),
        "no such revision: https://huggingface.co/org/tiny/commits",
    ),
    "no such model": ((404, "RepoNotFound"), "no such model, or it is private: check the name"),
    "not logged in": ((401, ""), "no such model, or it is private: .*hf auth login"),
    "gated": (
        (401, "GatedRepo"),
        "were given access. Ask for it at https://huggingface.co/org/tiny, .* login",
    ),
    "gated, logged in": (
        (403, "GatedRepo"),
        "were given access. Ask for it at https://huggingface.co/org/tiny",
    ),
    "down": ((503, ""), "https://huggingface.co answers with an error .*503"),
}


@pytest.mark.parametrize(("answer", "message"), ANSWERS.values(), ids=ANSWERS)
@pytest.mark.parametrize("ask", [hub.resolve, hub.download])
def test_a_hub_that_answers_no_says_what_it_is_about(hub_that, answer, message, ask):
    hub_that(answering(*answer))
    with pytest.raises(hub.HubError, match=message):
        ask("org/tiny", "v2" if ask is hub.resolve else COMMIT)


def test_in_an_experiment_it_is_a_problem_of_the_node(hub_that, tmp_path):
    hub_that(failing(UNREACHABLE["a proxy that refuses"]))
    file = tmp_path / "x.yaml"
    file.write_text("nodes:\n  vit: {step: load_model, name: org/tiny}\n")
    with pytest.raises(
        ExperimentError, match=r"vit.name: .* cannot be reached \(ProxyError: 403 Forbidden\)"
    ):
        plan_experiment(file, Store(tmp_path / "store"))


def test_what_was_downloaded_before_is_taken_when_the_network_is_gone(hub_that, tmp_path):
    refs = tmp_path / "cache" / "models--org--tiny" / "refs"
    refs.mkdir(parents=True)
    (refs / "main").write_text(COMMIT)
    hub_that(failing(UNREACHABLE["no network"]))
    assert hub.resolve("org/tiny", "main") == COMMIT
