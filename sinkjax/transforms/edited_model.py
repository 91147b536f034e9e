"""`edited`: a model of which some edits are a part, as if in its weights."""

import dataclasses
from typing import Any

from sinkjax.config import ModelConfig
from sinkjax.transforms.edit_grammar import combined, parse_edits


@dataclasses.dataclass(frozen=True)
class EditedConfig(ModelConfig):
  """A config with edits; see `edited`.

  Attributes:
    written: the edits, of `parse_edits`.
  """

  written: tuple[Any, ...] = ()

  def __post_init__(self):
    super().__post_init__()
    self.apart()

  def apart(self) -> tuple[ModelConfig, dict[str, Any]]:
    """(the config without edits, the edits by site)."""
    bare = ModelConfig(**_fields(self))
    return bare, combined(self.written, bare)

  def to_dict(self) -> dict[str, Any]:
    """That of the model without edits: they are no part of the format."""
    return self.apart()[0].to_dict()


def _fields(cfg: ModelConfig) -> dict[str, Any]:
  names = (field.name for field in dataclasses.fields(ModelConfig))
  return {name: getattr(cfg, name) for name in names}


def edited(cfg: ModelConfig, edits: str | tuple[Any, ...]) -> ModelConfig:
  """The config of a model in which some edits always act.

  `forward` of it, and whatever takes a config and runs the model by it
  (profiles, caches, Jacobians, experiments), then runs the edited model. Edits
  that an analysis makes at the same sites come after these. What would run its
  layers without knowing the edits raises an error.

  Args:
    cfg: the model.
    edits: as text, see `sinkjax.transforms.edit_grammar`, or what
      `parse_edits` returns.

  Returns:
    A config; the same one without edits.

  Raises:
    ValueError: for a text that is no edit, or what the model does not have.

  >>> import jax, sinkjax
  >>> cfg = edited(sinkjax.TINY, "knockout key=0 from=2")
  >>> params = sinkjax.init_params(cfg, jax.random.key(0))
  >>> watch = {"sink": ("pattern", lambda p: p[0, 0, :, 0])}
  >>> h = sinkjax.capture(sinkjax.forward(cfg), watch)
  >>> h(params, jax.numpy.array([[1, 2, 3]])).trace["sink"][2].tolist()
  [1.0, 0.0, 0.0]
  """
  some = parse_edits(edits) if isinstance(edits, str) else tuple(edits)
  if any(getattr(one, "to", None) == "mean" for one in some):
    raise ValueError(
      "to=mean needs a text: sinkjax.analysis.edit_means.with_means finds the "
      "means of one"
    )
  return EditedConfig(**_fields(cfg), written=some) if some else cfg
