"""Ports for processes that find each other on one machine."""

import socket


def free_port() -> int:
  """A port that nobody listens on."""
  with socket.socket() as found:
    found.bind(("localhost", 0))
    return found.getsockname()[1]
