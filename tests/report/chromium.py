"""Chromium without a window, driven through its DevTools protocol over a pipe: nothing to install besides it.

https://chromedevtools.github.io/devtools-protocol/
"""

from __future__ import annotations

import base64
import fcntl
import json
import os
import shutil
import signal
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import pytest

#: Set where a missing Chromium is a failure, as on a server that tests every change.
REQUIRED = "PRISMA_STEPS_REQUIRE_CHROMIUM"

#: Seconds for an answer, on a machine that has much else to do.
PATIENCE = 120


def program() -> str:
    """Where Chromium is. Without it the test is skipped, or fails where ``REQUIRED`` is set."""
    found = shutil.which("chromium") or shutil.which("chromium-browser")
    if found is None:
        missing = "needs Chromium (on Debian: apt-get install chromium)"
        pytest.fail(missing) if os.environ.get(REQUIRED) else pytest.skip(missing)
    return found


class Browser:
    """A running Chromium that is to see nothing of the machine's user and to reach no network."""

    def __init__(self) -> None:
        self._profile = tempfile.mkdtemp(prefix="prisma-steps-chromium-")
        commands, answers = os.pipe(), os.pipe()
        self._process = self._spawn(commands[0], answers[1])
        self._in, self._out = commands[1], answers[0]
        self._buffer = b""
        self._count = 0
        self.events: list[dict[str, Any]] = []

    def _spawn(self, commands: int, answers: int) -> int:
        """Start Chromium, which reads commands from descriptor 3 and writes answers to 4."""
        ends = [fcntl.fcntl(end, fcntl.F_DUPFD_CLOEXEC, 10) for end in (commands, answers)]
        actions = [
            *((os.POSIX_SPAWN_DUP2, end, number) for number, end in enumerate(ends, 3)),
            *((os.POSIX_SPAWN_OPEN, number, os.devnull, os.O_WRONLY, 0) for number in (1, 2)),
        ]
        words = [program(), *self._options()]
        process = os.posix_spawn(words[0], words, os.environ, file_actions=actions)
        for end in (commands, answers, *ends):
            os.close(end)
        return process

    def _options(self) -> Sequence[str]:
        return (
            "--headless=new",
            "--remote-debugging-pipe",
            f"--user-data-dir={self._profile}",
            "--no-sandbox",  # which root has not
            "--disable-gpu",
            "--disable-dev-shm-usage",
            "--disable-background-networking",
            "--no-first-run",
            "--hide-scrollbars",
            "--force-device-scale-factor=1",
            "about:blank",
        )

    def __enter__(self) -> Browser:
        return self

    def __exit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        try:
            self.call("Browser.close")
        except OSError:  # it is gone already
            pass
        finally:
            os.kill(self._process, signal.SIGKILL)
            os.waitpid(self._process, 0)
            os.close(self._in)
            os.close(self._out)
            shutil.rmtree(self._profile, ignore_errors=True)

    def call(self, method: str, session: str | None = None, **params: Any) -> dict[str, Any]:
        """Send a command and wait for its result; events that come before it are kept."""
        self._count += 1
        message = {"id": self._count, "method": method, "params": params}
        if session is not None:
            message["sessionId"] = session
        left = json.dumps(message).encode() + b"\0"
        while left:
            left = left[os.write(self._in, left) :]
        until = time.monotonic() + PATIENCE
        while time.monotonic() < until:
            answer = self._receive()
            if answer.get("id") == self._count:
                assert "error" not in answer, f"{method}: {answer['error']}"
                return answer["result"]
            self.events.append(answer)
        raise TimeoutError(method)

    def wait_for(self, event: str) -> None:
        """Wait until an event has come that was not yet there."""
        until = time.monotonic() + PATIENCE
        while time.monotonic() < until:
            received = self._receive()
            self.events.append(received)
            if received.get("method") == event:
                return
        raise TimeoutError(event)

    def _receive(self) -> dict[str, Any]:
        while b"\0" not in self._buffer:
            read = os.read(self._out, 2**20)
            if not read:
                raise BrokenPipeError("Chromium ended")
            self._buffer += read
        message, _, self._buffer = self._buffer.partition(b"\0")
        return json.loads(message)


class Tab:
    """One page in a window of its own size."""

    def __init__(self, browser: Browser, file: Path, width: int, height: int, dark: bool = False) -> None:
        self._browser = browser
        target = browser.call("Target.createTarget", url="about:blank")["targetId"]
        self._session = browser.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")
        size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False}
        self.call("Emulation.setDeviceMetricsOverride", **size)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.call("Emulation.setEmulatedMedia", features=[scheme])
        browser.events.clear()
        self.call("Page.navigate", url=file.as_uri())
        while not any(event.get("method") == "Page.loadEventFired" for event in browser.events):
            browser.wait_for("Page.loadEventFired")

    def call(self, method: str, **params: Any) -> dict[str, Any]:
        """Send a command that is of this page."""
        return self._browser.call(method, self._session, **params)

    def evaluate(self, expression: str) -> Any:
        """The value of an expression in JavaScript, once it is settled."""
        told = self.call("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in told, told["exceptionDetails"]
        return told["result"].get("value")

    def press(self, key: str, modifiers: int = 0) -> None:
        """Press and release a key: Tab or Enter."""
        code = {"Tab": 9, "Enter": 13}[key]
        about = {"key": key, "code": key, "windowsVirtualKeyCode": code, "modifiers": modifiers}
        text = {"text": "\r"} if key == "Enter" else {}
        self.call("Input.dispatchKeyEvent", type="keyDown" if text else "rawKeyDown", **about, **text)
        self.call("Input.dispatchKeyEvent", type="keyUp", **about)

    def seen(self, *methods: str) -> list[dict[str, Any]]:
        """What has been told by these events since the page was asked for."""
        return [event["params"] for event in self._browser.events if event.get("method") in methods]

    def screenshot(self, file: Path) -> None:
        """The whole page as PNG."""
        shown = self.call("Page.captureScreenshot", captureBeyondViewport=True)
        file.write_bytes(base64.b64decode(shown["data"]))
