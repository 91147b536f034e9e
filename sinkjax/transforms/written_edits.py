"""Each edit as it is written in a text: its keys, and the Python edit.

See `edit_grammar`, which reads the text.
"""

import dataclasses
from typing import Any

import numpy as np

from sinkjax.config import ModelConfig
from sinkjax.taps import sites_of
from sinkjax.transforms import edit_values as values
from sinkjax.transforms.attention_edits import ablate_heads, graded, knockout
from sinkjax.transforms.edits import chain, hold, scale
from sinkjax.transforms.neuron_edits import ablate_neurons

MEAN = "mean"

Edits = dict[str, Any]


def _key(
  read: values.Value, *, name: str | None = None, needed: bool = False
) -> Any:
  """A field that the text gives.

  Args:
    read: how the text after `=` is read and written.
    name: of the key, where it is a word of Python; else the field's.
    needed: whether it must be given.
  """
  about = {"read": read, "name": name, "needed": needed}
  default = {} if needed else {"default": read.default}
  return dataclasses.field(metadata=about, **default)


class Written:
  """An edit as it is written; its fields are what the text gives."""

  word: str
  usage: str
  example: str

  @classmethod
  def keys(cls) -> dict[str, dataclasses.Field]:
    """The fields by the keys of the text."""
    fields = dataclasses.fields(cls)
    return {f.metadata["name"] or f.name: f for f in fields}

  def __str__(self) -> str:
    given = [
      f"{key}={field.metadata['read'].write(value)}"
      for key, field in self.keys().items()
      if (value := getattr(self, field.name)) != field.default
    ]
    return " ".join([self.word, *given])

  def fail(self, what: str) -> ValueError:
    """An error that names the edit."""
    return ValueError(f"edit {str(self)[:70]!r}: {what}")

  def tokens_needed(self) -> int:
    """Tokens that a text must have."""
    return 0

  def sites(self) -> tuple[str, ...]:
    """The sites that it edits."""
    raise NotImplementedError

  def edits(self, cfg: ModelConfig) -> Edits:
    """What `sinkjax.intervene` takes, for a model.

    Raises:
      ValueError: for what the model does not have, naming the edit.
    """
    raise NotImplementedError

  def _layers(self, cfg: ModelConfig, some: values.Ranges) -> Any:
    """The layers of some ranges, `None` for all."""
    try:
      return values.within(some, cfg.n_layers)
    except ValueError as error:
      raise self.fail(str(error)) from None

  def _heads(
    self, cfg: ModelConfig, heads: values.Heads, layers: Any = None
  ) -> None:
    """Raises for heads that are not there, or not in the layers named, too."""
    for layer, head in heads:
      for what, index, size in (
        ("layer", layer, cfg.n_layers),
        ("head", head, cfg.n_heads),
      ):
        if index is not None and index >= size:
          raise self.fail(f"{what} {index} is not among 0 to {size - 1}")
      if layers is not None and layer is not None and layer not in layers:
        raise self.fail(f"head {layer}.{head} is not in the layers named")

  def _mask(
    self, cfg: ModelConfig, heads: values.Heads, layers: Any = None
  ) -> np.ndarray | None:
    """[L, H] bool of the heads, `None` for all."""
    self._heads(cfg, heads, layers)
    if not heads:
      return None
    mask = np.zeros((cfg.n_layers, cfg.n_heads), bool)
    for layer, head in heads:
      mask[slice(None) if layer is None else layer, head] = True
    return mask


@dataclasses.dataclass(frozen=True, kw_only=True)
class WrittenKnockout(Written):
  """`sinkjax.knockout`."""

  word = "knockout"
  usage = "key= [from=] [head=]"
  example = "knockout key=0 from=8"

  key: tuple[int, ...] = _key(values.INTEGERS, needed=True)
  first: int = _key(values.INTEGER, name="from")
  head: values.Heads = _key(values.HEADS)

  def tokens_needed(self) -> int:
    """Tokens that a text must have."""
    return max(self.key) + 1

  def sites(self) -> tuple[str, ...]:
    """As `Written.sites`."""
    return ("scores",)

  def edits(self, cfg: ModelConfig) -> Edits:
    """As `Written.edits`."""
    layers = self._layers(cfg, ((self.first, None),))
    heads = self._mask(cfg, self.head, layers)
    key = np.array(self.key)
    return {"scores": knockout(key, from_layer=self.first, heads=heads)}


@dataclasses.dataclass(frozen=True, kw_only=True)
class WrittenGraded(Written):
  """`sinkjax.graded`."""

  word = "graded"
  usage = "key= by= [layers=] [head=]"
  example = "graded key=0 by=2 layers=3:6"

  key: tuple[int, ...] = _key(values.INTEGERS, needed=True)
  by: float = _key(values.NUMBER, needed=True)
  layers: values.Ranges = _key(values.RANGES)
  head: values.Heads = _key(values.HEADS)

  def tokens_needed(self) -> int:
    """Tokens that a text must have."""
    return max(self.key) + 1

  def sites(self) -> tuple[str, ...]:
    """As `Written.sites`."""
    return ("scores",)

  def edits(self, cfg: ModelConfig) -> Edits:
    """As `Written.edits`."""
    layers = self._layers(cfg, self.layers)
    heads = self._mask(cfg, self.head, layers)
    try:
      edit = graded(np.array(self.key), self.by, layers=layers, heads=heads)
      edit.placed(cfg, self.tokens_needed(), "scores")
    except ValueError as error:
      raise self.fail(str(error)) from None
    return {"scores": edit}


def _site(cfg: ModelConfig, edit: Written, site: str) -> None:
  """Raises for a site that a model does not have."""
  valid = sites_of(cfg)
  if site not in valid:
    raise edit.fail(f"this model has no site {site!r}, but {', '.join(valid)}")


@dataclasses.dataclass(frozen=True, kw_only=True)
class WrittenScale(Written):
  """`sinkjax.scale` of a site, or of what some heads mix (site "z")."""

  word = "scale"
  usage = "by= head= or site= [layers=]"
  example = "scale head=3.2 by=0"

  head: values.Heads = _key(values.HEADS)
  site: str = _key(values.SITE)
  layers: values.Ranges = _key(values.RANGES)
  by: float = _key(values.NUMBER, needed=True)

  def sites(self) -> tuple[str, ...]:
    """As `Written.sites`."""
    return (self.site or "z",)

  def edits(self, cfg: ModelConfig) -> Edits:
    """As `Written.edits`."""
    if bool(self.head) == bool(self.site):
      raise self.fail("it needs either head= or site=")
    layers = self._layers(cfg, self.layers)
    if self.site:
      _site(cfg, self, self.site)
      return {self.site: scale(np.float64(self.by), layers=layers)}
    self._heads(cfg, self.head, layers)
    parts = []
    # One for each layer that heads name, and one of those of all layers.
    for layer in dict.fromkeys(layer for layer, _ in self.head):
      factor = np.ones((1, 1, cfg.n_heads, 1))
      factor[:, :, [h for one, h in self.head if one == layer]] = self.by
      parts.append(scale(factor, layers=layers if layer is None else [layer]))
    return {"z": parts[0] if len(parts) == 1 else chain(*parts)}


@dataclasses.dataclass(frozen=True, kw_only=True)
class WrittenHold(Written):
  """`sinkjax.hold`."""

  word = "hold"
  usage = "site= [layers=]"
  example = "hold site=pattern"

  site: str = _key(values.SITE, needed=True)
  layers: values.Ranges = _key(values.RANGES)

  def sites(self) -> tuple[str, ...]:
    """As `Written.sites`."""
    return (self.site,)

  def edits(self, cfg: ModelConfig) -> Edits:
    """As `Written.edits`."""
    _site(cfg, self, self.site)
    return {self.site: hold(layers=self._layers(cfg, self.layers))}


@dataclasses.dataclass(frozen=True, kw_only=True)
class WrittenAblate(Written):
  """`sinkjax.ablate_neurons` or `sinkjax.ablate_heads`.

  Attributes:
    neurons: (layer, index) of each.
    head: of each.
    to: a number, one for each neuron, "mean", or the mean outputs of each head
      that `analysis.edit_means` found.
  """

  word = "ablate"
  usage = "neurons= or head= [to=zero, mean or NUMBER]"
  example = "ablate neurons=11:507 to=mean"

  neurons: tuple[tuple[int, int], ...] = _key(values.NEURONS)
  head: values.Heads = _key(values.HEADS)
  to: Any = _key(values.TARGET)

  def sites(self) -> tuple[str, ...]:
    """As `Written.sites`."""
    return ("z" if self.head else "mlp_act",)

  def edits(self, cfg: ModelConfig) -> Edits:
    """As `Written.edits`; with `to=mean` only a check is possible."""
    if bool(self.head) == bool(self.neurons):
      raise self.fail("it needs either neurons= or head=")
    # The size of a mean, whose value needs a text.
    to = 0.0 if self.to == MEAN else self.to
    if self.head:
      return {"z": self._ablate_heads(cfg, to)}
    try:
      to = to if isinstance(to, float) else np.array(to)
      edit = ablate_neurons(self.neurons, to=to)
      edit.placed(cfg, 0, "mlp_act")
    except ValueError as error:
      raise self.fail(str(error)) from None
    return {"mlp_act": edit}

  def becoming(self, to: Any) -> "WrittenAblate":
    """The same with what `to=mean` is."""
    return dataclasses.replace(self, to=to)

  def _ablate_heads(self, cfg: ModelConfig, to: Any) -> Any:
    mask = self._mask(cfg, self.head)
    if to == 0.0:
      return ablate_heads(mask)
    if not isinstance(to, values.Means):
      raise self.fail("heads become zero or mean")
    return ablate_heads(mask, mean=to.array())


WORDS: dict[str, type[Written]] = {
  cls.word: cls
  for cls in (
    WrittenKnockout,
    WrittenScale,
    WrittenGraded,
    WrittenAblate,
    WrittenHold,
  )
}
"""Every edit that a text may name."""
