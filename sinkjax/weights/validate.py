"""What every loader checks before it hands anything out.

`WeightsError` is the one exception of this package: its message is one line
that says what was found, where, and what was expected.
"""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # the tokenizer raises what is defined here
  from sinkjax.config import ModelConfig
  from sinkjax.weights.tokenizer import Tokenizer


class WeightsError(ValueError):
  """A weight file, folder or tokenizer that is damaged, hostile or unknown."""


class WeightsWarning(UserWarning):
  """One line about a file that is read otherwise than it says."""


def first_line(error: BaseException) -> str:
  """The first line of an error, or its type's name."""
  return (str(error).splitlines() or [type(error).__name__])[0]


def fit_tokenizer(
  cfg: ModelConfig, tokenizer: Tokenizer | None, where: str
) -> ModelConfig:
  """A config and its tokenizer made to agree, as published files often do not.

  The embedding may have more rows than the tokenizer has tokens (rows padded
  for tensor cores) or fewer (special tokens that no text contains): then
  `Tokenizer.encode` refuses a text that would need a row that is not there.

  Args:
    cfg: the model's config.
    tokenizer: its tokenizer, or `None`; its `rows` are set.
    where: the file, for messages.

  Returns:
    The config, with the tokenizer's BOS.

  Warns:
    WeightsWarning: where BOS ids differ, or tokens have no row.
  """
  if tokenizer is None:
    return cfg
  rows, tokens, bos = cfg.vocab_size, tokenizer.vocab_size, tokenizer.bos_id
  tokenizer.rows = rows
  if tokens > rows:
    warn(
      f"{where}: the tokenizer has {tokens} tokens, the embedding {rows} rows; "
      f"a text with a token from {rows} on will be refused"
    )
  # Such a BOS is refused by `encode` too, if it is ever asked for.
  if bos is None or bos >= rows:
    return cfg
  if cfg.bos_id not in (None, bos):
    warn(
      f"{where}: BOS is {bos} in the tokenizer, {cfg.bos_id} in the config; "
      "the tokenizer's is used"
    )
  return cfg.replace(bos_id=bos)


def warn(message: str) -> None:
  """Warns the caller of the caller; see `WeightsWarning`."""
  warnings.warn(message, WeightsWarning, stacklevel=3)
