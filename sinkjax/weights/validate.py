"""What every loader checks before it hands anything out.

`WeightsError` is the one exception of this package: its message is one line
that says what was found, where, and what was expected.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:  # the tokenizer raises what is defined here
  from sinkjax.config import ModelConfig
  from sinkjax.weights.tokenizer import Tokenizer


class WeightsError(ValueError):
  """A weight file, folder or tokenizer that is damaged, hostile or unknown."""


def first_line(error: BaseException) -> str:
  """The first line of an error, or its type's name."""
  return (str(error).splitlines() or [type(error).__name__])[0]


def check_tokenizer(
  cfg: ModelConfig, tokenizer: Tokenizer | None, where: str
) -> None:
  """A tokenizer must name exactly the embedding's rows, and the same BOS.

  Embeddings may have more rows than the tokenizer has tokens only where they
  are padded to a multiple of 64 or 128, as checkpoints for tensor cores are.

  Args:
    cfg: the model's config.
    tokenizer: its tokenizer, or `None`.
    where: the file, for messages.

  Raises:
    WeightsError: naming both sizes, or both BOS ids.
  """
  if tokenizer is None:
    return
  rows, tokens = cfg.vocab_size, tokenizer.vocab_size
  padded = tokens < rows and rows % 64 == 0
  if tokens != rows and not padded:
    raise WeightsError(
      f"{where}: the tokenizer has {tokens} tokens, the embedding {rows} rows"
    )
  ids = {cfg.bos_id, tokenizer.bos_id} - {None}
  if len(ids) > 1:
    raise WeightsError(
      f"{where}: two BOS tokens: {tokenizer.bos_id} in the tokenizer, "
      f"{cfg.bos_id} in the config"
    )
