"""A headless Chromium, driven through its own debugging pipe: no package is needed for it."""

import base64
import json
import os
import shutil
import subprocess
import time
from pathlib import Path
from typing import Any

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
CHROMIUM = next(filter(None, map(shutil.which, NAMES)), None)
# As root there is no sandbox; nothing here is from elsewhere.
SWITCHES = (
    *("--headless=new", "--no-sandbox", "--disable-gpu", "--hide-scrollbars"),
    *("--disable-dev-shm-usage", "--no-first-run", "--disable-background-networking"),
    *("--disable-component-update", "--remote-debugging-pipe"),
)
SECONDS = 60.0


class Browser:
    """One page at a time; `with Browser(profile) as browser`."""

    def __init__(self, profile: Path) -> None:
        assert CHROMIUM, "no Chromium"
        to_us, from_browser = os.pipe(), os.pipe()

        def place() -> None:  # its pipe is 3 (to it) and 4 (from it)
            os.dup2(to_us[0], 100)
            os.dup2(from_browser[1], 101)
            os.dup2(100, 3)
            os.dup2(101, 4)

        command = [CHROMIUM, *SWITCHES, f"--user-data-dir={profile}", "about:blank"]
        self.process = subprocess.Popen(
            command,
            preexec_fn=place,
            pass_fds=(3, 4),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        os.close(to_us[0])
        os.close(from_browser[1])
        self.write, self.read = to_us[1], from_browser[0]
        self.sent, self.rest = 0, b""
        self.events: list[dict[str, Any]] = []
        self.session: str | None = None

    def __enter__(self) -> "Browser":
        target = self("Target.createTarget", url="about:blank")["targetId"]
        self.session = self("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self(f"{domain}.enable")
        return self

    def __exit__(self, *_: object) -> None:
        self.process.terminate()
        self.process.wait(10)
        os.close(self.write)
        os.close(self.read)

    def __call__(self, method: str, **parameters: Any) -> dict[str, Any]:
        """One command of the DevTools protocol and its result."""
        self.sent += 1
        message: dict[str, Any] = {"id": self.sent, "method": method, "params": parameters}
        if self.session:
            message["sessionId"] = self.session
        os.write(self.write, json.dumps(message).encode() + b"\0")
        while True:
            answer = self._next()
            if answer.get("id") == self.sent:
                assert "error" not in answer, (method, answer["error"])
                return answer["result"]
            self.events.append(answer)

    def _next(self) -> dict[str, Any]:
        while b"\0" not in self.rest:
            read = os.read(self.read, 1 << 20)
            assert read, "Chromium has ended"
            self.rest += read
        text, _, self.rest = self.rest.partition(b"\0")
        return json.loads(text)

    def evaluate(self, code: str) -> Any:
        """The value of JavaScript, as JSON has it; a promise's, once there."""
        done = self("Runtime.evaluate", expression=code, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in done, done["exceptionDetails"]
        return done["result"].get("value")

    def open(self, page: Path, *, width: int, height: int = 900, dark: bool = False) -> None:
        """Show a page whose script says when all is drawn, by `data-drawn` of its root."""
        phone = width < 500
        metrics = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": phone}
        self("Emulation.setDeviceMetricsOverride", **metrics)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self("Emulation.setEmulatedMedia", features=[scheme])
        self.events.clear()
        self("Page.navigate", url=page.resolve().as_uri())
        end = time.monotonic() + SECONDS
        drawn = "document.readyState === 'complete' && !!document.documentElement.dataset.drawn"
        while not self.evaluate(drawn):
            assert time.monotonic() < end, f"{page} is not drawn: {self.complaints()}"
            time.sleep(0.05)
        self.settle()

    def settle(self) -> None:
        """Wait until what was asked for is on the screen: some frames, in which charts redraw."""
        frame = "new Promise((done) => requestAnimationFrame(() => setTimeout(done, 30)))"
        for _ in range(4):
            self.evaluate(frame)

    def complaints(self) -> list[str]:
        """Warnings and errors of the console, exceptions, what was refused or failed to load."""
        found = []
        for event in self.events:
            method, data = event.get("method"), event.get("params", {})
            if method == "Runtime.exceptionThrown":
                details = data["exceptionDetails"]
                found.append(details.get("exception", {}).get("description", details["text"]))
            elif method == "Log.entryAdded" and data["entry"]["level"] in ("error", "warning"):
                found.append(data["entry"]["text"])
            elif method == "Runtime.consoleAPICalled" and data["type"] in ("error", "warning"):
                found.append(" ".join(str(a.get("value", a)) for a in data["args"]))
            elif method == "Network.loadingFailed":
                found.append(data["errorText"])
        return found

    def requests(self) -> list[str]:
        """What the page asked for, besides what it holds itself."""
        sent = [e["params"] for e in self.events if e.get("method") == "Network.requestWillBeSent"]
        addresses = [one["request"]["url"] for one in sent]
        return [address for address in addresses if not address.startswith(("data:", "blob:"))]

    def screenshot(self, file: Path, *, whole: bool = True) -> Path:
        shot = self("Page.captureScreenshot", format="png", captureBeyondViewport=whole)
        file.write_bytes(base64.b64decode(shot["data"]))
        return file
