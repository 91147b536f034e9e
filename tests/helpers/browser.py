"""Chromium without a window, driven through a pipe of its DevTools protocol.

Mouse, touch and keys are events of the browser itself, as a person's are: an
element that is covered or out of sight does not get them.
"""

import base64
import itertools
import json
import os
import pathlib
import select
import shutil
import subprocess
import time
from typing import Any

PROGRAM = shutil.which("chromium") or shutil.which("google-chrome")
OPTIONS = (
  "--headless",
  "--no-sandbox",
  "--disable-gpu",
  "--disable-quic",
  "--no-first-run",
  "--disable-background-networking",
  "--disable-component-update",
  "--disable-sync",
  "--hide-scrollbars",
  "--remote-debugging-pipe",
)
WAIT = 60.0
"""Seconds until what is waited for counts as missing: of a loaded machine."""

CODES = {
  "ArrowLeft": 37,
  "ArrowUp": 38,
  "ArrowRight": 39,
  "ArrowDown": 40,
  "Escape": 27,
  "Enter": 13,
  "Tab": 9,
}


class Browser:
  """A browser with one tab.

  Args:
    folder: for its profile.
  """

  def __init__(self, folder: pathlib.Path):
    to_browser, self._to = os.pipe()
    self._from, from_browser = os.pipe()
    # The protocol's pipes are numbers 3 and 4 of the browser.
    shell = f'exec "$0" "$@" 3<&{to_browser} 4>&{from_browser}'
    self._process = subprocess.Popen(
      ["bash", "-c", shell, PROGRAM, *OPTIONS, f"--user-data-dir={folder}"],
      pass_fds=(to_browser, from_browser),
      stdin=subprocess.DEVNULL,
      stdout=subprocess.DEVNULL,
      stderr=subprocess.DEVNULL,
    )
    os.close(to_browser)
    os.close(from_browser)
    self._number, self._rest, self.errors = itertools.count(1), b"", []
    self._session = None
    made = self._call("Target.createTarget", url="about:blank")
    session = self._call(
      "Target.attachToTarget", targetId=made["targetId"], flatten=True
    )
    self._session = session["sessionId"]
    for domain in ("Page", "Runtime", "Log"):
      self._call(f"{domain}.enable")

  def close(self) -> None:
    """Ends the browser."""
    os.close(self._to)
    self._process.terminate()
    self._process.wait(WAIT)
    os.close(self._from)

  def _call(self, method: str, **params: Any) -> dict[str, Any]:
    number = next(self._number)
    message = {"id": number, "method": method, "params": params}
    if self._session:
      message["sessionId"] = self._session
    data = json.dumps(message).encode() + b"\0"
    while data:
      data = data[os.write(self._to, data) :]
    end = time.monotonic() + WAIT
    while True:
      found = self._next(end)
      if found.get("id") == number:
        if "error" in found:
          raise RuntimeError(f"{method}: {found['error']}")
        return found["result"]
      self._note(found)

  def _next(self, end: float) -> dict[str, Any]:
    while b"\0" not in self._rest:
      left = max(0, end - time.monotonic())
      if not select.select([self._from], [], [], left)[0]:
        raise TimeoutError("the browser does not answer")
      part = os.read(self._from, 1 << 20)
      if not part:
        raise RuntimeError("the browser has ended")
      self._rest += part
    line, _, self._rest = self._rest.partition(b"\0")
    return json.loads(line)

  def _note(self, event: dict[str, Any]) -> None:
    """Keeps errors, which no test of a page may have."""
    params = event.get("params", {})
    if event.get("method") == "Runtime.exceptionThrown":
      self.errors.append(json.dumps(params["exceptionDetails"]))
    entry = params.get("entry", {})
    if event.get("method") == "Log.entryAdded" and entry["level"] == "error":
      self.errors.append(entry["text"])

  def size(self, width: int, height: int, *, phone: bool = False) -> None:
    """The window's size; a phone has fingers for a mouse."""
    self._call(
      "Emulation.setDeviceMetricsOverride",
      width=width,
      height=height,
      deviceScaleFactor=2 if phone else 1,
      mobile=phone,
    )
    self._call("Emulation.setTouchEmulationEnabled", enabled=phone)

  def prefers(self, scheme: str) -> None:
    """The system's colours: "light" or "dark"."""
    feature = {"name": "prefers-color-scheme", "value": scheme}
    self._call("Emulation.setEmulatedMedia", features=[feature])

  def open(self, url: str, ready: str = "true") -> None:
    """Goes to an address and waits until an expression is true there."""
    # Another fragment alone would not load the page again.
    self._call("Page.navigate", url="about:blank")
    self._call("Page.navigate", url=url)
    self.wait(f"document.readyState === 'complete' && ({ready})")

  def run(self, expression: str) -> Any:
    """An expression's value in the page."""
    found = self._call(
      "Runtime.evaluate",
      expression=expression,
      returnByValue=True,
      awaitPromise=True,
    )
    if "exceptionDetails" in found:
      raise RuntimeError(json.dumps(found["exceptionDetails"]))
    return found["result"].get("value")

  def wait(self, expression: str) -> None:
    """Until an expression is true."""
    end = time.monotonic() + WAIT
    while not self.run(f"Boolean({expression})"):
      if time.monotonic() > end:
        raise TimeoutError(f"never true: {expression}")
      time.sleep(0.02)

  def text(self, selector: str) -> str:
    """What an element says."""
    return self.run(f"document.querySelector({json.dumps(selector)}).innerText")

  def place(self, selector: str) -> tuple[float, float]:
    """The middle of an element, scrolled into view."""
    found = self.run(
      f"""(() => {{
        const it = document.querySelector({json.dumps(selector)});
        it.scrollIntoView({{ block: "nearest", behavior: "instant" }});
        const {{ left, right, top, bottom }} = it.getBoundingClientRect();
        return [(left + right) / 2, (top + bottom) / 2];
      }})()"""
    )
    return tuple(found)

  def mouse(self, kind: str, x: float, y: float, **more: Any) -> None:
    """An event of the mouse: "mouseMoved", "mousePressed", ..."""
    self._call("Input.dispatchMouseEvent", type=kind, x=x, y=y, **more)

  def hover(self, x: float, y: float) -> None:
    """The pointer over a place."""
    self.mouse("mouseMoved", x, y)

  def click(self, x: float, y: float) -> None:
    """A click at a place."""
    self.hover(x, y)
    for kind in ("mousePressed", "mouseReleased"):
      self.mouse(kind, x, y, button="left", clickCount=1)

  def tap(self, x: float, y: float) -> None:
    """A finger at a place."""
    points = [{"x": x, "y": y}]
    self._call(
      "Input.dispatchTouchEvent", type="touchStart", touchPoints=points
    )
    self._call("Input.dispatchTouchEvent", type="touchEnd", touchPoints=[])

  def key(self, key: str) -> None:
    """A key pressed and released."""
    code = CODES.get(key, ord(key.upper()) if len(key) == 1 else 0)
    about = {"key": key, "windowsVirtualKeyCode": code}
    typed = {"text": key} if len(key) == 1 else {}
    if key == "Enter":
      typed = {"text": "\r"}
    self._call("Input.dispatchKeyEvent", type="keyDown", **about, **typed)
    self._call("Input.dispatchKeyEvent", type="keyUp", **about)

  def picture(self, path: pathlib.Path, *, whole: bool = False) -> None:
    """A PNG of the window, or of the whole page."""
    found = self._call(
      "Page.captureScreenshot", format="png", captureBeyondViewport=whole
    )
    path.write_bytes(base64.b64decode(found["data"]))
