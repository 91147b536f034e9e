"""launch.explore --serve: the page on this machine, for any text and weight.

The server listens on the loopback address alone, and answers only those who
call it by that name: a page of another site cannot read from it.
"""

import http.server
import json
import threading
from typing import Any

import numpy as np

import sinkjax
from launch import app, prompts
from sinkjax.analysis import exploration
from sinkjax.analysis.exploration import Condition, Exploration
from sinkjax.report import explore
from sinkjax.report.explore.page import as_json, numbers
from sinkjax.weights.registry import Model

HOST = "127.0.0.1"
LONGEST = 1 << 20
"""Bytes of a request: a text of which at most `--max_tokens` are used."""


class Live:
  """A model that measures what the page asks for, one request at a time.

  Args:
    model: its parameters, config and tokenizer.
    name: of the model, for the title.
    prefix: of --prefix.
    max_tokens: of a text.
  """

  def __init__(self, model: Model, name: str, prefix: str, max_tokens: int):
    self.model, self.name = model, name
    self.prefix, self.max_tokens = prefix, max_tokens
    self._f = sinkjax.forward(model.cfg)
    self._lock = threading.Lock()
    self._plain: tuple[list[int], Condition] | None = None

  def page(self, text: str) -> str:
    """The page of a text, as it is in both conditions."""
    seen = self._measure({"text": text, "by": 1.0})
    return explore.render(
      seen,
      self._texts(seen.ids),
      title=f"Attention of {self.name}",
      subtitle=self._subtitle(seen.ids),
      live=text,
    ).html

  def answer(self, request: Any) -> str:
    """Numbers for a page, as JSON.

    Args:
      request: {"text", "by": the sink's weight, and for one layer or head
        alone "layer" and "head"}.

    Raises:
      ValueError: for anything else, or a text of fewer than two tokens.
    """
    seen = self._measure(request)
    data = numbers(seen, self._texts(seen.ids))
    return as_json({**data, "subtitle": self._subtitle(seen.ids)})

  def _measure(self, request: Any) -> Exploration:
    text, by, heads, name = self._read(request)
    (ids,) = prompts.encode(
      [text], self.model.tokenizer, self.prefix, self.max_tokens
    ).ids
    with self._lock:
      if self._plain is None or self._plain[0] != ids:
        # As an edit that changes nothing, so that it is compiled but once.
        nothing = self._edited(ids, 1.0, np.ones_like(heads), "as it is", True)
        self._plain = ids, nothing
      edited = self._edited(ids, by, heads, name, False)
      return Exploration(ids, [self._plain[1], edited])

  def _edited(
    self, ids: list[int], by: float, heads: np.ndarray, name: str, sinks: bool
  ) -> Condition:
    edit = sinkjax.graded(0, np.float32(by), heads=heads)
    fn = sinkjax.intervene(self._f, {"scores": edit})
    (one,) = exploration.measure(
      {name: fn}, self.model.params, ids, sinks=sinks
    ).conditions
    return one

  def _read(self, request: Any) -> tuple[str, float, np.ndarray, str]:
    """(text, weight, mask of heads [L, H], the edit's name)."""
    cfg = self.model.cfg
    asked = request if isinstance(request, dict) else {}
    text, by = asked.get("text"), asked.get("by")
    if not isinstance(text, str) or not text.strip():
      raise ValueError("a text is missing")
    if not isinstance(by, int | float) or not 0 <= by <= 4:
      raise ValueError(f"the sink's weight must be from 0 to 4, got {by}")
    heads = np.zeros((cfg.n_layers, cfg.n_heads), bool)
    at, where = [slice(None), slice(None)], ""
    for i, what in enumerate(("layer", "head")):
      size = heads.shape[i]
      index = asked.get(what)
      if index is None:
        continue
      if type(index) is not int or not 0 <= index < size:
        raise ValueError(f"{what} must be from 0 to {size - 1}, got {index}")
      at[i], where = index, f"{where} {what}={index}"
    heads[tuple(at)] = True
    return text, float(by), heads, f"graded key=0 by={by:g}{where}"

  def _texts(self, ids: list[int]) -> list[str]:
    return [self.model.tokenizer.token(token) for token in ids]

  def _subtitle(self, ids: list[int]) -> str:
    first = prompts.name(self.model.tokenizer, ids[0])
    return f"{len(ids)} tokens. Token at position 0: {first}."


def server(live: Live, text: str, port: int) -> http.server.ThreadingHTTPServer:
  """A server of a page, which `serve_forever` starts.

  Args:
    live: what it measures with.
    text: of the page as it opens.
    port: 0 for any that is free.

  Raises:
    ValueError: for a port that is taken.
  """
  first: list[bytes] = []

  class Handler(http.server.BaseHTTPRequestHandler):
    """Two addresses: the page, and its numbers."""

    def do_GET(self) -> None:
      """The page."""
      if not self._ours():
        return
      if self.path.partition("?")[0] != "/":
        self._send(404, "there is one page here, at /")
        return
      if not first:
        first.append(live.page(text).encode())
      self._send(200, first[0], "text/html")

    def do_POST(self) -> None:
      """Numbers."""
      if not self._ours():
        return
      size = self.headers.get("Content-Length", "")
      if self.path != "/measure":
        self._send(404, "numbers are at /measure")
      elif self.headers.get_content_type() != "application/json":
        self._send(415, "a request is JSON")
      elif not size.isdecimal() or int(size) > LONGEST:
        self._send(413, f"a request has at most {LONGEST} bytes")
      else:
        self._answer(self.rfile.read(int(size)))

    def _answer(self, body: bytes) -> None:
      try:
        self._send(200, live.answer(json.loads(body)), "application/json")
      except (ValueError, RecursionError) as error:
        self._send(400, app.one_line(str(error)))

    def _ours(self) -> bool:
      """Whether the caller means this server: a page elsewhere does not.

      A name that leads here could be anybody's, and a page may send requests
      to other sites, though not read their answers.
      """
      port = self.server.server_address[1]
      names = {f"{host}:{port}" for host in (HOST, "localhost")}
      origin = self.headers.get("Origin")
      from_here = origin is None or origin in {f"http://{x}" for x in names}
      if self.headers.get("Host") in names and from_here:
        return True
      self._send(403, f"this server is http://{HOST}:{port}")
      return False

    def _send(
      self, status: int, body: str | bytes, kind: str = "text/plain"
    ) -> None:
      data = body if isinstance(body, bytes) else body.encode()
      self.send_response(status)
      self.send_header("Content-Type", f"{kind}; charset=utf-8")
      self.send_header("Content-Length", str(len(data)))
      self.send_header("Cache-Control", "no-store")
      self.send_header("X-Content-Type-Options", "nosniff")
      # What was not read of a request would be taken for the next one.
      self.send_header("Connection", "close")
      self.end_headers()
      self.wfile.write(data)

    def log_message(self, *_: Any) -> None:
      """Nothing: the terminal is for what the launcher says."""

  try:
    return http.server.ThreadingHTTPServer((HOST, port), Handler)
  except (OSError, OverflowError) as error:
    reason = getattr(error, "strerror", None) or error
    raise ValueError(f"--port={port}: {reason}; choose another") from None


def serve(live: Live, text: str, port: int) -> None:
  """Serves until it is stopped."""
  with server(live, text, port) as here:
    print(
      f"http://{HOST}:{here.server_address[1]}/  (Ctrl-C to stop; the first "
      "page takes some seconds to compile)",
      flush=True,
    )
    here.serve_forever()
