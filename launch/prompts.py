"""Texts for the launchers: the built-in paragraph, files, and prefixes."""

import json
import pathlib
from typing import Any

PARAGRAPH = """\
The harbour was quiet before dawn. Two fishermen loaded their nets into a \
small blue boat while the lighthouse keeper walked down the stone steps with \
a lantern in one hand and a letter in the other. He had written it the night \
before, after the storm, and he wanted it to leave with the first boat. "Give \
this to my sister," he said, "and tell her that the roof held." The older man \
put the letter inside his coat. By noon the wind had turned, the sea was flat \
again, and nobody on the pier could remember how loud the night had been.
"""
"""What is analysed when no text is given: written for this project."""


def read_texts(text_file: str | None, prompts_file: str | None) -> list[str]:
  """The texts that the flags name.

  Args:
    text_file: one text, UTF-8.
    prompts_file: JSON lines, each an object with a string "text".

  Raises:
    ValueError: for both, a file that cannot be read, or a bad line, naming it.
  """
  if text_file and prompts_file:
    raise ValueError("give --text_file or --prompts_file, not both")
  if text_file:
    return [_read(text_file)]
  if not prompts_file:
    return [PARAGRAPH]
  texts = []
  # Not `splitlines`: a JSON string may hold U+2028 and other characters at
  # which that would cut a line.
  for number, line in enumerate(_read(prompts_file).split("\n"), 1):
    if not line.strip():
      continue
    try:
      text = json.loads(line)["text"]
    # No JSON, no "text" and no object are one mistake to the person who made
    # it.
    except (ValueError, KeyError, TypeError):
      text = None
    if not isinstance(text, str) or not text:
      raise ValueError(
        f'{prompts_file}:{number}: expected {{"text": "..."}}, got '
        f"{line[:60]!r}"
      )
    texts.append(text)
  if not texts:
    raise ValueError(f"{prompts_file} holds no prompts")
  return texts


def require_finite(
  params: Any, cfg: Any, tokenizer: Any, prefix: list[int]
) -> None:
  """One forward pass on the built-in paragraph, before anything is measured.

  Accuracies and ranks are finite whatever the activations are.

  Raises:
    NotFiniteError: naming the first layer that overflows.
  """
  from sinkjax.analysis.sink_profile import sink_profile

  (ids,) = encode_all([PARAGRAPH], tokenizer, prefix, min(64, cfg.max_len))
  sink_profile(params, cfg, [ids])


def _read(path: str) -> str:
  try:
    text = pathlib.Path(path).expanduser().read_text("utf-8-sig")
  except OSError as error:
    raise ValueError(f"cannot read {path}: {error.strerror}") from None
  except UnicodeDecodeError as error:
    raise ValueError(f"{path} is not UTF-8: {error.reason}") from None
  if not text.strip():
    raise ValueError(f"{path} is empty")
  return text


def resolve_prefix(prefix: str, tokenizer: Any) -> tuple[list[int], str]:
  """The token put before every text, and why.

  Args:
    prefix: "auto" for BOS where the file says that texts begin with it,
      "none", "id:N" for the token of id N, or else a token's text.
    tokenizer: the model's.

  Returns:
    ([] or [id], "bos", "none" or "given").

  Raises:
    ValueError: for a token that the vocabulary does not have, and for what
      could be read in two ways: a bare number that is also a token's text,
      or a token whose text is one of our two words.
  """
  token = tokenizer.token_to_id(prefix)
  if token is not None and (prefix in ("auto", "none") or _number(prefix)):
    other = f"id:{int(prefix)}" if _number(prefix) else "the word of this flag"
    raise ValueError(
      f"--prefix={prefix} can be read in two ways: as {other}, and as the "
      f"token with that text, which is --prefix=id:{token}"
    )
  if prefix == "none" or (prefix == "auto" and not tokenizer.add_bos):
    return [], "none"
  if prefix == "auto":
    return [tokenizer.bos_id], "bos"
  if prefix.startswith("id:") and _number(prefix[3:]):
    token = int(prefix[3:])
  if token is None or token >= tokenizer.vocab_size:
    raise ValueError(
      f"--prefix={prefix}: no such token among {tokenizer.vocab_size}; use "
      "auto, none, a token's text, or id:N for the token of id N"
    )
  return [token], "bos" if token == tokenizer.bos_id else "given"


def _number(text: str) -> bool:
  # Not `isdecimal` alone, which takes the digits of every script.
  return text.isascii() and text.isdecimal()


def encode_all(
  texts: list[str], tokenizer: Any, prefix: list[int], max_tokens: int
) -> list[list[int]]:
  """The first `max_tokens` ids of each text, the prefix counted.

  Raises:
    ValueError: for a text that gives fewer than two tokens.
  """
  prompts = []
  for i, text in enumerate(texts):
    ids = (prefix + tokenizer.encode(text))[:max_tokens]
    # A single token has no other to attend to and predicts nothing here.
    if len(ids) < 2:
      raise ValueError(f"text {i + 1} gives {len(ids)} tokens; 2 are needed")
    prompts.append(ids)
  return prompts


def need_tokenizer(tokenizer: Any, model: str) -> None:
  """Raises ValueError for a model that came without one."""
  if tokenizer is None:
    raise ValueError(f"{model} has no tokenizer.json: texts cannot be encoded")


def name(tokenizer: Any, token: int) -> str:
  """A token for people: its text, its id, and whether it is BOS."""
  kind = ", BOS" if token == tokenizer.bos_id else ""
  return f"{tokenizer.token(token)!r} (id {token}{kind})"


def first_token(tokenizer: Any, token: int, prefix: str) -> dict[str, Any]:
  """What `summary.json` says of the token at position 0.

  Args:
    tokenizer: the model's.
    token: its id.
    prefix: why it is there, from `resolve_prefix`.
  """
  return {
    "id": token,
    "text": tokenizer.token(token),
    "is_bos": token == tokenizer.bos_id,
    "prefix": prefix,
  }


def describe_first(token: dict[str, Any]) -> str:
  """The same in words: 'Token at position 0: ...'."""
  bos = ", BOS" if token["is_bos"] else ""
  return (
    f"Token at position 0: {token['text']!r} (id {token['id']}{bos}), prefix: "
    f"{token['prefix']}."
  )
