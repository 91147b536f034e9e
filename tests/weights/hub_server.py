"""A stand-in for the Hugging Face Hub on loopback: one repository.

It answers what the Hub's own client asks for when it lists a repository and
fetches files of a revision.
"""

import contextlib
import hashlib
import http.server
import json
import threading
import urllib.parse


class Hub:
  """What the server holds and what it was asked.

  Attributes:
    revisions: {revision: (commit, {path: bytes})}.
    token: that a client must show, or `None`.
    fetched: paths whose content was sent.
  """

  def __init__(self, revisions, token=None):
    self.revisions, self.token, self.fetched = revisions, token, []

  def find(self, revision):
    for name, (commit, files) in self.revisions.items():
      if revision in (name, commit):
        return commit, files
    return None


class _Handler(http.server.BaseHTTPRequestHandler):
  hub = None

  def log_message(self, *args):
    """Silence."""

  def _send(self, status, body=b"", headers=None):
    self.send_response(status)
    sizes = {"Content-Length": str(len(body))}
    for name, value in {**sizes, **(headers or {})}.items():
      self.send_header(name, value)
    self.end_headers()
    if self.command != "HEAD":
      self.wfile.write(body)

  def _json(self, value):
    kind = {"Content-Type": "application/json"}
    self._send(200, json.dumps(value).encode(), kind)

  def _answer(self):
    path = urllib.parse.unquote(self.path.split("?")[0])
    given = self.headers.get("Authorization")
    if self.hub.token and given != f"Bearer {self.hub.token}":
      self._send(401, headers={"X-Error-Code": "RepoNotFound"})
    elif path.startswith("/api/models/org/tiny"):
      self._about(path.removeprefix("/api/models/org/tiny").strip("/"))
    elif path.startswith("/org/tiny/resolve/"):
      self._file(*path.removeprefix("/org/tiny/resolve/").split("/", 1))
    else:
      self._send(404, headers={"X-Error-Code": "RepoNotFound"})

  def _about(self, rest):
    parts = rest.split("/")
    asked = parts[1] if parts[0] in ("revision", "tree") else "main"
    found = self.hub.find(asked)
    if found is None:
      self._send(404, headers={"X-Error-Code": "RevisionNotFound"})
      return
    commit, files = found
    if parts[0] == "tree":
      ids = {name: hashlib.sha1(name.encode()).hexdigest() for name in files}
      self._json(
        [
          {"type": "file", "oid": ids[n], "size": len(b), "path": n}
          for n, b in files.items()
        ]
      )
      return
    siblings = [{"rfilename": name} for name in files]
    self._json({"id": "org/tiny", "sha": commit, "siblings": siblings})

  def _file(self, revision, name):
    commit, files = self.hub.find(revision) or ("", {})
    if name not in files:
      self._send(404, headers={"X-Error-Code": "EntryNotFound"})
      return
    if self.command == "GET":
      self.hub.fetched.append(name)
    etag = hashlib.sha1(files[name]).hexdigest()
    headers = {"ETag": f'"{etag}"', "X-Repo-Commit": commit}
    self._send(200, files[name], headers)

  do_GET = do_HEAD = do_POST = _answer


@contextlib.contextmanager
def serving(hub):
  """The URL of a server of `hub`."""
  handler = type("Handler", (_Handler,), {"hub": hub})
  with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
      yield f"http://127.0.0.1:{server.server_port}"
    finally:
      server.shutdown()
      thread.join()
