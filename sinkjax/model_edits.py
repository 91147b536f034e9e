"""`OwnEdit`: an edit that is part of a model, and what an analysis adds to it.

A config made by `sinkjax.edited` has edits of its own, which `forward` puts
into its taps. Whoever analyses that model may edit the same sites: the model's
own edit then comes first, as if it were in the weights.
"""

import dataclasses
import functools
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import jax


def reads_of(*edits: Any) -> tuple[str, ...]:
  """The sites whose values edits are given beside their own, each once.

  A partial function, as which analyses hand plain ones on, reads what its
  function does.
  """
  whole = [e.func if isinstance(e, functools.partial) else e for e in edits]
  read = (site for edit in whole for site in getattr(edit, "reads", ()))
  return tuple(dict.fromkeys(read))


def in_turn(
  edits: Sequence[Any], value: jax.Array, layer: Any, read: Sequence[Any]
) -> jax.Array:
  """Every edit's result handed to the next, to each what it reads.

  Args:
    edits: of one site.
    value: there.
    layer: its index.
    read: values of `reads_of(*edits)`; none in a pass that does not hand them
      over, which edits that read refuse.
  """
  seen = dict(zip(reads_of(*edits), read, strict=False))
  for edit in edits:
    own = [seen[site] for site in reads_of(edit) if site in seen]
    value = edit(value, layer, *own)
  return value


@jax.tree_util.register_pytree_node_class
@dataclasses.dataclass(frozen=True)
class OwnEdit:
  """The model's own edit of a site, and after it that of an analysis.

  Attributes:
    own: the model's, a pytree.
    then: the analysis's, or `None`.
  """

  own: Any
  then: Any = None

  def followed_by(self, edit: Any) -> "OwnEdit | None":
    """This and then `edit`; `None` where another one follows already."""
    return OwnEdit(self.own, edit) if self.then is None else None

  def _parts(self) -> tuple:
    return (self.own,) if self.then is None else (self.own, self.then)

  def placed(self, cfg: Any, length: int, site: str) -> "OwnEdit":
    """Both with their indices checked against the sizes."""
    return OwnEdit(
      *(
        part.placed(cfg, length, site) if hasattr(part, "placed") else part
        for part in self._parts()
      )
    )

  @property
  def reads(self) -> tuple[str, ...]:
    """What both read."""
    return reads_of(*self._parts())

  def __call__(self, value: jax.Array, layer: Any, *read: Any) -> jax.Array:
    """The one's result handed to the other."""
    return in_turn(self._parts(), value, layer, read)

  def rows(self, value: jax.Array, layer: Any, start: Any) -> jax.Array:
    """The same for a block of query rows.

    Raises:
      ValueError: for an edit without `rows`, naming it.
    """
    for part in self._parts():
      value = method_of(part, "rows")(value, layer, start)
    return value

  def tree_flatten(self) -> tuple[list[Any], tuple]:
    """A plain function is static, as it is in `Taps`."""
    then = self.then
    static = then if jax.tree_util.all_leaves([then]) else None
    return [self.own, None if static is not None else then], (static,)

  @classmethod
  def tree_unflatten(cls, static: tuple, children: Iterable[Any]) -> "OwnEdit":
    """The inverse."""
    own, then = children
    return cls(own, then if static[0] is None else static[0])


NEEDS = {
  "rows": "a block of query rows: it has no method rows(value, layer, start)",
  "at": (
    "the keys of a cache: it has no method at(value, layer, queries, keys)"
  ),
}


def method_of(edit: Any, name: str) -> Callable:
  """A method of `NEEDS`.

  Raises:
    ValueError: for an edit that has none, naming it.
  """
  method = getattr(edit, name, None)
  if method is None:
    called = getattr(edit, "__name__", type(edit).__name__)
    raise ValueError(f"the edit {called} cannot act on {NEEDS[name]}")
  return method
