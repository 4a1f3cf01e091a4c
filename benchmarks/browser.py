"""A headless Chromium, driven by its own DevTools protocol: what stands on a page, and how it looks."""

from __future__ import annotations

import base64
import itertools
import json
import shutil
import subprocess
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from websockets.sync.client import ClientConnection, connect

CHROMIUM = shutil.which("chromium")
SECONDS_TO_SHOW = 120  # on a machine that others use as well


class BrowserError(Exception):
    """The browser is not there, or a page is not what is awaited."""


class Browser:
    """One tab."""

    def __init__(self, connection: ClientConnection) -> None:
        self._connection = connection
        self._numbers = itertools.count()

    def ask(self, method: str, **parameters: Any) -> dict[str, Any]:
        """The result of a command of the DevTools protocol."""
        number = next(self._numbers)
        self._connection.send(json.dumps({"id": number, "method": method, "params": parameters}))
        while True:
            answer = json.loads(self._connection.recv(timeout=SECONDS_TO_SHOW))
            if answer.get("id") == number:
                if "error" in answer:
                    raise BrowserError(f"{method}: {answer['error']}")
                return answer["result"]

    def evaluate(self, script: str) -> Any:
        """Value of a JavaScript expression on the page."""
        found = self.ask("Runtime.evaluate", expression=script, returnByValue=True)
        if "exceptionDetails" in found:
            raise BrowserError(f"{script}: {found['exceptionDetails']}")
        return found["result"].get("value")

    def open(self, link: str, *awaited: str, seconds: float = SECONDS_TO_SHOW) -> str:
        """Open a page, wait until it shows all that is awaited, and return all text that it shows.

        Raises:
            BrowserError: the time is over; with what the page did show.
        """
        self.ask("Page.navigate", url="about:blank")  # a link into the same page would not be loaded anew
        self.ask("Page.navigate", url=link)
        self.wait(f"{json.dumps(awaited)}.every(text => document.body.innerText.includes(text))", seconds)
        return self.text()

    def text(self) -> str:
        """All text that the page shows now, on one line."""
        return " ".join(str(self.evaluate("document.body ? document.body.innerText : ''")).split())

    def wait(self, condition: str, seconds: float = SECONDS_TO_SHOW) -> None:
        """Until a JavaScript expression is true.

        Raises:
            BrowserError: the time is over; with what the page shows.
        """
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            if self.evaluate(f"document.body !== null && ({condition})"):
                return
            time.sleep(0.1)
        raise BrowserError(f"not so after {seconds:.0f} seconds: {condition}\nThe page shows: {self.text()[:3000]}")

    def screenshot(self, file: Path) -> None:
        """What the window shows, as PNG."""
        file.write_bytes(base64.b64decode(self.ask("Page.captureScreenshot", format="png")["data"]))


@contextmanager
def browser(folder: Path, size: tuple[int, int] = (1700, 900)) -> Iterator[Browser]:
    """A Chromium with a profile of its own below a folder."""
    if CHROMIUM is None:
        raise BrowserError("there is no chromium here: apt-get install chromium")
    profile = folder / "chromium"
    command = [CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", f"--window-size={size[0]},{size[1]}"]
    command += ["--remote-debugging-port=0", f"--user-data-dir={profile}", "about:blank"]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        with connect(_tab(profile / "DevToolsActivePort"), max_size=None) as connection:
            yield Browser(connection)
    finally:
        process.terminate()
        process.wait(30)


def _tab(file: Path) -> str:
    """Where the first tab takes commands."""
    deadline = time.monotonic() + SECONDS_TO_SHOW
    while time.monotonic() < deadline:
        if file.exists() and (lines := file.read_text().split()):
            with urllib.request.urlopen(f"http://127.0.0.1:{lines[0]}/json", timeout=10) as answer:
                for tab in json.load(answer):
                    if tab["type"] == "page":
                        return str(tab["webSocketDebuggerUrl"])
        time.sleep(0.1)
    raise BrowserError("Chromium does not start")
