"""Taps: the one way in which analysis reaches into a model.

A model calls `x = tap("resid_mid", x)` at each site of `SITES`. What happens
there is decided by a `Taps` value that the caller passes in:

- an *edit* `edit(value, layer) -> value` replaces the value. Edits are
  pytrees: their arrays are leaves, so a new array does not retrace, `vmap`
  over a leaf sweeps heads or positions in one compile, and gradients with
  respect to a leaf are gradients. `layer` is traced. A plain function serves
  as well; it is static. An edit with `reads`, a tuple of sites that the layer
  meets before its own, gets their values, too: `edit(value, layer, *values)`.
- an *observer* `(site, reducer)` reduces what it sees inside the layer, after
  any edit, so that only the reducer's result is stacked over layers. With a
  tuple of sites the reducer gets one value for each.

With no taps the model's jaxpr is what it would be without this module.

Sharp edges:
  Edits at "embed" see layer 0 and edits at "final" the last layer, once each;
  all other sites see every layer.
  "scores" stand before the causal mask: entries with S > T are numbers that
  the model never uses. The mask comes after the edit, so no edit can make a
  token see its future.
  A row of scores that an edit makes -inf at every key has no softmax. `forward`
  raises ValueError for it; under `jit`, `vmap` and `grad` of your own nothing
  can raise, and what it returns is NaN. To hide keys write -1e30, as `knockout`
  does: such a row becomes uniform.
  An edit at "scores" that does nothing but hide keys may have a method
  `visible(length) -> [B, 1, T, S]`; fused attention takes that for a mask.
"""

import dataclasses
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import jax
from jax.typing import ArrayLike

from sinkjax.model_edits import OwnEdit, reads_of

Layer = jax.Array | int
Trace = dict[str, Any]


class Site(NamedTuple):
  """A place in the model.

  Attributes:
    axes: of the value there.
    meaning: what the value is.
    stacked: whether it is met in every layer, so that what an observer
      returns is stacked to [L, ...]; otherwise once.
  """

  axes: str
  meaning: str
  stacked: bool = True


SITES: dict[str, Site] = {
  "embed": Site("B T D", "token (and learned position) embedding", False),
  "resid_pre": Site("B T D", "residual stream entering the block"),
  "attn_in": Site("B T D", "what the q, k, v projections read: normed"),
  "q": Site("B T H K", "queries as they enter the dot product"),
  "k": Site("B S N K", "keys as they enter the dot product, N KV heads"),
  "v": Site("B S N K", "values, N KV heads"),
  "scores": Site("B H T S", "scaled, soft-capped q k, before the mask"),
  "pattern": Site("B H T S", "attention probabilities"),
  "z": Site("B T H K", "values mixed by the pattern, per head"),
  "attn_out": Site("B T D", "what the attention adds to the residual"),
  "resid_mid": Site("B T D", "residual stream after the attention"),
  "mlp_in": Site("B T D", "what the MLP's first projections read: normed"),
  "mlp_act": Site("B T F", "what the MLP's last projection reads"),
  "mlp_out": Site("B T D", "what the MLP adds to the residual"),
  "resid_post": Site("B T D", "residual stream leaving the block"),
  "final": Site("B T D", "after the final norm, before the logits", False),
}
"""The sites of every model, in the order in which a forward pass meets them."""

EXPERT_SITES: dict[str, Site] = {
  "router_logits": Site("B T E", "logits by which tokens choose experts"),
  "expert_out": Site(
    "B T E D", "what each expert adds, weighted; a shared one comes last"
  ),
}
"""The sites that only models with experts have; they meet them inside the MLP.

There "mlp_act" has the hidden layers of all experts side by side, whether a
token uses them or not, and that of a shared one behind them.
"""

GATE_SITES: dict[str, Site] = {
  "z_gated": Site("B T H K", "z behind the gates, as its projection reads it")
}
"""The sites that only models with gates on the output of heads have. Exact
Jacobians take no edits there."""
MIXING_SITES: dict[str, Site] = {
  "mix_rate": Site("B T H", "share of a head's output that is mixed")
}
"""The sites that only models with a rate of mixing have, behind "pattern"."""

DEPTH_SITES: dict[str, Site] = {
  "depth_router": Site("B T", "logits of the weights in a routed layer"),
  "depth_predictor": Site("B T", "logits: does a token take a routed layer"),
  "depth_open": Site("B T", "1 where a token takes the layer, else 0"),
  "halt_share": Site("B T", "probability to stop here of what goes on"),
}
"""The sites of models whose tokens do not all take every layer.

The first two are those of `depth="routed"` and the last one that of "halting",
see `sinkjax.models.depth`.
"""

MLP_SITES = ("mlp_in", "mlp_act", *EXPERT_SITES)
"""The sites from what the MLP reads to its output."""

ALL_SITES = {
  **SITES,
  **EXPERT_SITES,
  **GATE_SITES,
  **MIXING_SITES,
  **DEPTH_SITES,
}
"""The sites that some model has."""


_BY_DEPTH = {
  "none": (),
  "halting": ("depth_open", "halt_share"),
  "routed": ("depth_router", "depth_predictor", "depth_open"),
}


def sites_of(cfg: Any) -> dict[str, Site]:
  """The sites of a model of this config."""
  return {
    **SITES,
    **(EXPERT_SITES if cfg.n_experts else {}),
    **(GATE_SITES if cfg.gates_heads else {}),
    **(MIXING_SITES if cfg.mixing != "none" else {}),
    **{site: DEPTH_SITES[site] for site in _BY_DEPTH[cfg.depth]},
  }


def markdown() -> str:
  """The table of sites as markdown, for the docs."""
  rows = [("Site", "Axes", "What stands there", "In every layer")]
  rows.append(("---",) * len(rows[0]))
  for name, site in ALL_SITES.items():
    layered = "yes" if site.stacked else "once"
    rows.append((f"`{name}`", site.axes, site.meaning, layered))
  return "".join(f"| {' | '.join(row)} |\n" for row in rows)


def _check_site(site: str) -> None:
  if site not in ALL_SITES:
    raise ValueError(f"unknown site {site!r}; valid sites: {list(ALL_SITES)}")


def _observer_sites(name: str, sites: str | tuple[str, ...]) -> tuple[str, ...]:
  sites = (sites,) if isinstance(sites, str) else tuple(sites)
  if not sites:
    raise ValueError(f"observer {name!r} names no site")
  for site in sites:
    _check_site(site)
  # Sites outside the layers have a `Tapper` each, so that no reducer could be
  # given values of two of them.
  if len({s if not ALL_SITES[s].stacked else "layer" for s in sites}) > 1:
    raise ValueError(
      f"observer {name!r} mixes sites inside and outside the layers: {sites}"
    )
  return sites


@jax.tree_util.register_pytree_node_class
@dataclasses.dataclass(frozen=True)
class Taps:
  """Edits by site and observers by name.

  Attributes:
    edits: `{site: edit}`.
    observers: `{name: (site or tuple of sites, reducer)}`.

  Raises:
    ValueError: for an unknown site, listing the sites.
    TypeError: for an edit or a reducer that cannot be called.
  """

  edits: Mapping[str, Any] = dataclasses.field(default_factory=dict)
  observers: Mapping[str, Any] = dataclasses.field(default_factory=dict)

  def __post_init__(self):
    for site, edit in self.edits.items():
      _check_site(site)
      if not callable(edit):
        raise TypeError(
          f"the edit at {site!r} must be callable as edit(value, layer), got "
          f"{type(edit).__name__}"
        )
    checked = {}
    for name, observer in self.observers.items():
      if not isinstance(observer, (tuple, list)) or len(observer) != 2:
        raise TypeError(f"observer {name!r} must be (site, reducer)")
      sites, reducer = observer
      if not callable(reducer):
        raise TypeError(
          f"the reducer of observer {name!r} must be callable, got "
          f"{type(reducer).__name__}"
        )
      checked[name] = (_observer_sites(name, sites), reducer)
    object.__setattr__(self, "observers", checked)

  def merge(self, other: "Taps | None") -> "Taps":
    """Both sets of taps at once.

    Raises:
      ValueError: where both edit one site, of which neither edit is the model's
        own, or use one observer name.
    """
    if other is None:
      return self
    mine, theirs = dict(self.edits), dict(other.edits)
    # The model's own edits are no guess at an order: they come first.
    for site in [s for s in mine if isinstance(mine[s], OwnEdit)]:
      both = site in theirs and mine[site].followed_by(theirs[site])
      if both:
        mine[site] = both
        del theirs[site]
    for kind, one, two in (
      ("edit", mine, theirs),
      ("observer", self.observers, other.observers),
    ):
      twice = sorted(set(one) & set(two))
      if twice:
        raise ValueError(
          f"duplicate {kind} {twice[0]!r}: combine edits of one site with "
          "sinkjax.chain, give observers different names"
        )
    return Taps({**mine, **theirs}, {**self.observers, **other.observers})

  def placed(self, cfg: Any, length: int) -> "Taps":
    """The same taps, the indices in their edits checked against the model.

    Args:
      cfg: the model.
      length: tokens in a row.

    Raises:
      ValueError: for an index out of range, or a site that the model does not
        have, naming it.
    """
    self.check_sites(cfg)
    edits = {
      site: placed(edit, cfg, length, site) for site, edit in self.edits.items()
    }
    return Taps(edits, self.observers)

  def require_numbers(self, values: ArrayLike, what: str) -> None:
    """Refuses NaN behind an edit of scores or pattern, where it can be seen.

    A row of scores that an edit makes -inf at every key has no softmax. Inside
    the layers, which are traced, that cannot be seen.

    Args:
      values: what the edited model comes to. Traced ones, as those under a
        transformation of JAX, are not checked.
      what: their name, for the message.

    Raises:
      ValueError: where one is NaN.
    """
    site = next((s for s in ("scores", "pattern") if s in self.edits), None)
    if site is None or isinstance(values, jax.core.Tracer):
      return
    if jax.numpy.isnan(values).any():
      raise ValueError(
        f"{what} are NaN, and there is an edit at {site!r}: a row of attention "
        "that is -inf at every key that it may see has no softmax; keep one "
        "key, or hide keys by -1e30 in place of -inf"
      )

  def check_sites(self, cfg: Any) -> None:
    """Raises ValueError for a site that a model does not have.

    Args:
      cfg: the model.
    """
    observed = [site for sites, _ in self.observers.values() for site in sites]
    for site in (*self.edits, *observed):
      if site in EXPERT_SITES and not cfg.n_experts:
        raise ValueError(
          f"site {site!r} is one of models with experts, and this model has "
          "none (n_experts=0)"
        )
      if site in GATE_SITES and not cfg.gates_heads:
        raise ValueError(
          f"site {site!r} is one of models with gates on the output of heads, "
          f"and this model has none (gate={cfg.gate!r}); use site 'z'"
        )
      if site in MIXING_SITES and cfg.mixing == "none":
        raise ValueError(
          f"site {site!r} is one of models with a rate of mixing, and this "
          "model has none (mixing='none')"
        )
      if site in DEPTH_SITES and site not in _BY_DEPTH[cfg.depth]:
        raise ValueError(
          f"site {site!r} is not one of a model with depth={cfg.depth!r}; "
          f"'halting' and 'routed' have {[*_BY_DEPTH['halting']]} and "
          f"{[*_BY_DEPTH['routed']]}"
        )

  def tree_flatten(self) -> tuple[list[Any], tuple]:
    """Edits and reducers that are pytrees are children, the rest static."""
    items = [("edit", site, edit) for site, edit in self.edits.items()]
    items += [(sites, name, f) for name, (sites, f) in self.observers.items()]
    children, static = [], []
    for kind, name, fn in items:
      # A plain function is one leaf, and static: arrays in it are constants.
      dynamic = not jax.tree_util.all_leaves([fn])
      children += [fn] if dynamic else []
      static.append((kind, name, None if dynamic else fn))
    return children, tuple(static)

  @classmethod
  def tree_unflatten(cls, static: tuple, children: Iterable[Any]) -> "Taps":
    """Rebuilds without validation: leaves may be any JAX placeholder."""
    children, edits, observers = iter(children), {}, {}
    for kind, name, fn in static:
      fn = next(children) if fn is None else fn
      if kind == "edit":
        edits[name] = fn
      else:
        observers[name] = (kind, fn)
    taps = object.__new__(cls)
    object.__setattr__(taps, "edits", edits)
    object.__setattr__(taps, "observers", observers)
    return taps


NO_TAPS = Taps()


def placed(edit: Any, cfg: Any, length: int, site: str) -> Any:
  """An edit for this model, length and site: `edit.placed`, if it has one.

  Inside the layers an index may be traced and the number of layers is not
  known, so that indices are checked once, before the model runs.
  """
  place = getattr(edit, "placed", None)
  return edit if place is None else place(cfg, length, site)


class Tapper:
  """`tap(site, value)` for one layer; lives only while that layer is traced.

  Args:
    taps: what to do.
    layer: the layer's index, traced or not; it is read by steps that differ
      from layer to layer.
  """

  def __init__(self, taps: Taps, layer: Layer):
    self._taps = taps
    self.layer = layer
    self._seen: dict[str, jax.Array] = {}
    self._wanted = {
      site for sites, _ in taps.observers.values() for site in sites
    } | set(reads_of(*taps.edits.values()))

  def __call__(self, site: str, value: jax.Array) -> jax.Array:
    """Edits `value`, keeps it if an observer asked, and returns it.

    Raises:
      ValueError: if an edit changes the shape, naming both shapes, or reads a
        site that the layer meets later.
    """
    edit = self._taps.edits.get(site)
    if edit is not None:
      reads = reads_of(edit)
      if later := [other for other in reads if other not in self._seen]:
        raise ValueError(
          f"the edit at {site!r} reads {later[0]!r}, which does not come before"
        )
      edited = edit(value, self.layer, *(self._seen[x] for x in reads))
      # A wrong shape would often broadcast further on without an error.
      if jax.numpy.shape(edited) != value.shape:
        raise ValueError(
          f"the edit at {site!r} returned shape {jax.numpy.shape(edited)}, "
          f"expected {value.shape} ({ALL_SITES[site].axes})"
        )
      # An edit in float32 must not change what the rest of the model is in.
      value = jax.numpy.asarray(edited, value.dtype)
    if site in self._wanted:
      self._seen[site] = value
    return value

  def needs_no_scores(self) -> bool:
    """Whether scores and pattern need not exist.

    They need not where no tap stands there, or only one that hides keys.
    """
    edits = self._taps.edits
    edit = edits.get("scores")
    return (
      not self._wanted & {"scores", "pattern"}
      and "pattern" not in edits
      and (edit is None or hasattr(edit, "visible"))
    )

  def meets(self, *sites: str) -> bool:
    """Whether any of these sites is edited or observed."""
    return bool(set(sites) & (self._wanted | set(self._taps.edits)))

  def visible(self, length: int) -> jax.Array | None:
    """[B, 1, T, S] mask of an edit that only hides keys, or `None`."""
    edit = self._taps.edits.get("scores")
    return None if edit is None else edit.visible(length)

  def trace(self) -> Trace:
    """The reduced values of the observers whose sites were met here."""
    # Each `Tapper` of a pass meets some of the sites and answers for those
    # alone.
    return {
      name: reducer(*(self._seen[site] for site in sites))
      for name, (sites, reducer) in self._taps.observers.items()
      if all(site in self._seen for site in sites)
    }
