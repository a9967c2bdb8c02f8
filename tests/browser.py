"""A headless Chromium, by the WebDriver protocol that chromedriver speaks."""

import base64
import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.flow.processes import free_port, until

BOUND_S = 30.0
FLAGS = ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage")


class Browser:
    """One window. Elements are found by CSS selector."""

    def __init__(self, driver: httpx.Client, session: str) -> None:
        self._driver, self._session = driver, session

    def _ask(self, path: str, **body: Any) -> Any:
        answer = self._driver.post(f"/session/{self._session}/{path}", json=body).json()["value"]
        if isinstance(answer, dict) and "error" in answer:
            raise AssertionError(answer["message"])
        return answer

    def open(self, url: str) -> None:
        self._ask("url", url=url)

    def run(self, script: str, *arguments: Any) -> Any:
        """The value of a JavaScript function body."""
        return self._ask("execute/sync", script=script, args=list(arguments))

    def see(self, script: str, *arguments: Any) -> Any:
        """Waits until the script's value is true, and gives it."""
        give_up_at = time.monotonic() + BOUND_S
        while not (value := self.run(f"return {script}", *arguments)):
            if time.monotonic() > give_up_at:
                text = self.run("return document.body.innerText")
                raise AssertionError(f"never true: {script}\nthe page says:\n{text}")
            time.sleep(0.05)
        return value

    def press(self, selector: str) -> None:
        """In one step with finding it: a page that redraws itself leaves elements stale."""
        found = "document.querySelector(arguments[0])"
        self.see(f"(e => {{ e && e.click(); return Boolean(e); }})({found})", selector)

    def space_down(self) -> None:
        self._space("keyDown")

    def space_up(self) -> None:
        self._space("keyUp")

    def _space(self, change: str) -> None:
        steps = [{"type": change, "value": " "}]
        self._ask("actions", actions=[{"type": "key", "id": "keys", "actions": steps}])

    def resize(self, *, height: int) -> None:
        self._ask("window/rect", width=1400, height=height)

    @contextmanager
    def forced_colours(self) -> Iterator[None]:
        """As for who has set high contrast."""
        self._emulate({"name": "forced-colors", "value": "active"})
        try:
            yield
        finally:
            self._emulate()

    def _emulate(self, *features: dict[str, str]) -> None:
        told = {"features": features}
        self._ask("goog/cdp/execute", cmd="Emulation.setEmulatedMedia", params=told)

    def shot(self, path: Path) -> None:
        answer = self._driver.get(f"/session/{self._session}/screenshot").json()["value"]
        path.write_bytes(base64.b64decode(answer))


@contextmanager
def browser(*, log: Path) -> Iterator[Browser]:
    """For as long as the block lasts; skips the test where Debian's packages are missing."""
    binary = shutil.which("chromedriver")
    if binary is None or shutil.which("chromium") is None:
        pytest.skip("chromium and chromium-driver are not installed")
    port = free_port()
    # Chromium leaves a folder behind in it, with a socket, whose path must be short.
    with tempfile.TemporaryDirectory() as leavings:
        process = subprocess.Popen(
            [binary, f"--port={port}", f"--log-path={log}"],
            env=os.environ | {"TMPDIR": leavings},
            stdout=-3,
        )
        try:
            with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=BOUND_S) as driver:
                until(partial(_is_ready, driver), within_s=BOUND_S)
                args = [*FLAGS, "--window-size=1400,1150", f"--user-data-dir={log.parent}/profile"]
                asked = {"alwaysMatch": {"goog:chromeOptions": {"args": args}}}
                made = driver.post("/session", json={"capabilities": asked}).json()["value"]
                assert "sessionId" in made, made
                try:
                    yield Browser(driver, made["sessionId"])
                finally:
                    driver.delete(f"/session/{made['sessionId']}")
        finally:
            process.terminate()
            process.wait(10)


def _is_ready(driver: httpx.Client) -> bool:
    try:
        return bool(driver.get("/status").json()["value"]["ready"])
    except httpx.TransportError:
        return False
