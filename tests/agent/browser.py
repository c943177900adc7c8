"""A real browser for tests: Chromium without a window, spoken to over the Chrome DevTools protocol."""

from __future__ import annotations

import base64
import json
import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from websockets.sync.client import ClientConnection, connect

START_WAIT_S_MAX = 60.0
ANSWER_WAIT_S_MAX = 60.0
NAMES = ("chromium", "chromium-browser", "google-chrome", "chrome")


def find_browser() -> str | None:
    """Return the browser's path: TANDEM_CHROMIUM, else one on the path; None where there is none."""
    named = os.environ.get("TANDEM_CHROMIUM")
    if named:
        return named
    return next((path for path in map(shutil.which, NAMES) if path is not None), None)


class Page:
    """One tab. Every message, request and error of it is kept."""

    def __init__(self, connection: ClientConnection) -> None:
        self.connection = connection
        self.events: list[dict[str, Any]] = []
        self._last = 0
        for domain in ("Page", "Runtime", "Network", "Log"):
            self.ask(f"{domain}.enable")

    def ask(self, method: str, **parameters: Any) -> dict[str, Any]:
        """Send a command and return its result."""
        self._last += 1
        self.connection.send(json.dumps({"id": self._last, "method": method, "params": parameters}))
        while True:
            message = self._next(ANSWER_WAIT_S_MAX)
            if message.get("id") == self._last:
                if "error" in message:
                    raise AssertionError(f"{method}: {message['error']}")
                result: dict[str, Any] = message["result"]
                return result

    def _next(self, wait_s: float) -> dict[str, Any]:
        message: dict[str, Any] = json.loads(self.connection.recv(timeout=wait_s))
        if "method" in message:
            self.events.append(message)
        return message

    def open(self, url: str, *, width: int, height: int, dark: bool = False, features: Mapping[str, str] = {}) -> None:
        """Show a page in a window of a size, and wait until it is loaded and drawn."""
        mobile = width < 600
        self.ask("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=mobile)
        wanted = {"prefers-color-scheme": "dark" if dark else "light", **features}
        self.ask("Emulation.setEmulatedMedia", features=[{"name": n, "value": v} for n, v in wanted.items()])
        self.events.clear()
        self.ask("Page.navigate", url=url)
        end = time.monotonic() + ANSWER_WAIT_S_MAX
        while not any(event["method"] == "Page.loadEventFired" for event in self.events):
            self._next(end - time.monotonic())
        self.value("new Promise(done => requestAnimationFrame(() => requestAnimationFrame(() => done(1))))")

    def value(self, expression: str) -> Any:
        """Evaluate JavaScript and return what it gives, as JSON values."""
        answer = self.ask("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        if "exceptionDetails" in answer:
            raise AssertionError(f"{expression[:200]}: {answer['exceptionDetails']}")
        return answer["result"].get("value")

    def press(self, key: str, *, shift: bool = False) -> None:
        """Press and release a key."""
        codes = {"Tab": 9, "Enter": 13, "Escape": 27, "ArrowLeft": 37, "ArrowRight": 39, "Home": 36, "End": 35}
        common = {"key": key, "code": key, "windowsVirtualKeyCode": codes.get(key, 0), "modifiers": 8 if shift else 0}
        text = {"text": "\r"} if key == "Enter" else {"text": key} if len(key) == 1 else {}
        self.ask("Input.dispatchKeyEvent", type="keyDown", **common, **text)
        self.ask("Input.dispatchKeyEvent", type="keyUp", **common)

    def screenshot(self, path: Path, *, whole: bool = True) -> None:
        """Write what the page looks like, all of it or its window."""
        picture = self.ask("Page.captureScreenshot", format="png", captureBeyondViewport=whole)
        path.write_bytes(base64.b64decode(picture["data"]))

    def requests(self) -> list[str]:
        """Return every address that was asked for since the page was opened."""
        return [e["params"]["request"]["url"] for e in self.events if e["method"] == "Network.requestWillBeSent"]

    def complaints(self) -> list[str]:
        """Return everything that went to the console or its log, and every uncaught error."""
        found = []
        for event in self.events:
            parameters = event["params"]
            if event["method"] == "Runtime.exceptionThrown":
                found.append(str(parameters["exceptionDetails"]))
            elif event["method"] == "Runtime.consoleAPICalled":
                found.append(f"{parameters['type']}: {[argument.get('value') for argument in parameters['args']]}")
            elif event["method"] == "Log.entryAdded":
                found.append(f"{parameters['entry']['level']}: {parameters['entry']['text']}")
        return found


@contextmanager
def browser(program: str) -> Iterator[Page]:
    """Start a browser with a profile of its own, give a tab, and end all of its processes."""
    with tempfile.TemporaryDirectory(prefix="tandem-browser-", ignore_cleanup_errors=True) as profile:
        command = [
            program,
            "--headless=new",
            "--no-sandbox",  # a page of our own making, and the sandbox does not work for root
            "--disable-gpu",
            "--disable-dev-shm-usage",
            "--disable-background-networking",
            "--no-first-run",
            "--hide-scrollbars",
            "--remote-debugging-port=0",
            f"--user-data-dir={profile}",
            "about:blank",
        ]
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        try:
            with connect(_tab(process, Path(profile)), max_size=None) as connection:
                yield Page(connection)
        finally:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait(10)


def _tab(process: subprocess.Popen[bytes], profile: Path) -> str:
    """Wait until the browser listens, and return the address of its tab."""
    import urllib.request  # noqa: PLC0415 - used here alone

    file = profile / "DevToolsActivePort"
    end = time.monotonic() + START_WAIT_S_MAX
    while time.monotonic() < end:
        if process.poll() is not None:
            raise AssertionError(f"the browser ended with code {process.returncode}")
        if file.is_file() and file.read_text(encoding="utf-8").count("\n"):
            port = int(file.read_text(encoding="utf-8").splitlines()[0])
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/json/list", timeout=10) as answer:
                tabs = json.load(answer)
            pages = [tab["webSocketDebuggerUrl"] for tab in tabs if tab["type"] == "page"]
            if pages:
                return str(pages[0])
        time.sleep(0.05)
    raise AssertionError(f"the browser did not listen within {START_WAIT_S_MAX:g} s")
