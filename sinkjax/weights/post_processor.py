"""BOS in the post-processor of a `tokenizer.json`: found, or put there."""

from typing import Any

from sinkjax.weights.validate import WeightsError


def template_bos(processor: Any, where: str) -> int | None:
  """The id that a post-processor puts first, if it does."""
  leading: list[int] = []
  try:
    for part in _processors(processor):
      for piece in part.get("single", ()):
        if "SpecialToken" not in piece:
          break
        name = piece["SpecialToken"]["id"]
        leading += part["special_tokens"][name]["ids"]
      if part.get("type") in ("BertProcessing", "RobertaProcessing"):
        leading.append(part["cls"][1])
  except (AttributeError, IndexError, KeyError, TypeError) as error:
    raise WeightsError(
      f"{where}: the post-processor cannot be read: {error!r}"
    ) from None
  if len(leading) > 1:
    raise WeightsError(
      f"{where}: the post-processor adds more than one BOS token: {leading}"
    )
  return leading[0] if leading else None


def _processors(processor: Any) -> list[dict[str, Any]]:
  """A post-processor's parts, those of nested sequences too."""
  if not isinstance(processor, dict):
    return []
  if "processors" not in processor:
    return [processor]
  return [p for part in processor["processors"] for p in _processors(part)]


def with_bos(processor: Any, bos: str, bos_id: int) -> dict[str, Any]:
  """A post-processor, and then one that puts BOS first.

  Args:
    processor: the file's, or `None`.
    bos: BOS as the vocabulary spells it.
    bos_id: its id.
  """
  special = {"SpecialToken": {"id": bos, "type_id": 0}}
  first, second = (
    {"Sequence": {"id": letter, "type_id": 0}} for letter in "AB"
  )
  template = {
    "type": "TemplateProcessing",
    "single": [special, first],
    "pair": [special, first, second],
    "special_tokens": {bos: {"id": bos, "ids": [bos_id], "tokens": [bos]}},
  }
  if processor is None:
    return template
  return {"type": "Sequence", "processors": [processor, template]}
