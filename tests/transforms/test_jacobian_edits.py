"""Exact Jacobians of edited models: every kind of edit at every site.

All edits stand at every site at all times, as the identity where they are not
asked for, so that one compiled program serves all the cases.
"""

import dataclasses
import functools
import pathlib
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from quick import quick

import sinkjax
from sinkjax.models.layerwise import InMemory
from sinkjax.transforms.jacobian import jacobian_norms, token_jacobian
from sinkjax.transforms.jacobian_engine import SelfCheckError

sys.path.insert(0, str(pathlib.Path(__file__).parent))
from dense_jacobian import (
  BASE,
  Dense,
  error,
  every_pair,
  model,
  norms_of,
  quickly_compiled,
  text,
  widths_pushed_directly,
)

# With what GPT-2 has, but for a head's own keys.
CFG = BASE.replace(
  n_layers=2,
  norm="layer",
  qkv_bias=True,
  out_bias=True,
  gated_mlp=False,
  mlp_bias=True,
  positions="learned",
  activation="gelu",
  tie_embeddings=True,
  scan_layers=False,
  dtype="float64",
)
LENGTH, NOWHERE = 5, -1
FIRST, LAST = ("embed", 0), ("final", 0)
SITES = list(sinkjax.SITES)
TOKENS = dict.fromkeys(SITES, 1) | {"scores": 2, "pattern": 2}
HEADS = {"q": 2, "k": 2, "v": 2, "z": 2, "scores": 1, "pattern": 1}


def edit(cls):
  """A pytree of which every field is a leaf."""
  cls = dataclasses.dataclass(frozen=True)(cls)
  names = [field.name for field in dataclasses.fields(cls)]
  return jax.tree_util.register_dataclass(cls, names, [])


@edit
class Bend:
  """Not linear, on each number alone."""

  amount: jax.Array

  def __call__(self, value, layer):
    return value + self.amount * jnp.sin(3 * value)


@functools.partial(
  jax.tree_util.register_dataclass, data_fields=["matrix"], meta_fields=["axis"]
)
@dataclasses.dataclass(frozen=True)
class Mix:
  """Adds to each slice of an axis some of the others."""

  matrix: jax.Array
  axis: int

  def __call__(self, value, layer):
    other = jnp.tensordot(self.matrix, value, [[1], [self.axis]])
    return value + jnp.moveaxis(other, 0, self.axis)


def per_token(site, values):
  """[T] as an array that broadcasts to the site."""
  shape = [1] * len(sinkjax.SITES[site].axes.split())
  shape[TOKENS[site]] = LENGTH
  return values.reshape(shape)


class Case:
  """A model, what another text gives, and its edits."""

  def __init__(self):
    self.f, self.params = model(CFG)
    self.tokens, other = text(LENGTH), text(LENGTH, seed=2)
    watch = {site: (site, lambda value: value) for site in SITES}
    run = jax.jit(sinkjax.capture(self.f, watch))
    self.other = {
      site: np.stack(value if sinkjax.SITES[site].stacked else [value] * 2)
      for site, value in run(self.params, other[None]).trace.items()
    }
    self.layers = InMemory(CFG, self.params)  # once, not at every call
    self.run_dense = functools.cache(self._dense)

  def edits(self, at="", kinds=(), layer=1):
    """Every edit at every site, those of `kinds` in use at one of them."""
    rng = np.random.default_rng(3)
    noise = 0.5 * rng.normal(size=(2, LENGTH))
    lower = 0.3 * np.tril(np.ones((LENGTH, LENGTH)))

    def of(site):
      mine = kinds if site == at or at == "everywhere" else ()
      axis, heads = TOKENS[site], HEADS.get(site)
      many = heads and self.other[site].shape[1 + heads]

      def number(kind, amount):
        return np.asarray(amount * (kind in mine), np.float64)

      def where(kind):
        last = {"embed": 0, "final": CFG.n_layers - 1}.get(site, layer)
        # A mask: in use or not, its shape is the same.
        return np.arange(CFG.n_layers) == (last if kind in mine else NOWHERE)

      # An attention weight out of nothing would be one to the future, too.
      size = "scale" in mine, "add" in mine and site != "pattern"
      factor, shift = (
        per_token(site, n * on) for n, on in zip(noise, size, strict=True)
      )
      chain = [
        sinkjax.scale(1 + factor),
        sinkjax.add(shift),
        Bend(number("bend", 0.3)),
        Mix(number("before", lower) + number("after", lower.T), axis),
        sinkjax.patch(
          self.other[site], positions=np.array([1, 2]), layers=where("patch")
        ),
      ]
      if site in HEADS:
        chain += [Mix(number("heads", 0.4 * np.ones((many, many))), heads)]
      if site == "scores":
        start = np.int64(layer if "knockout" in mine else CFG.n_layers)
        some = np.array([True, False, True, True])
        chain += [sinkjax.knockout(np.int64(1), from_layer=start, heads=some)]
      if site == "z":
        cut = np.zeros((2, 4), bool)
        cut[layer, 1:3] = "ablate" in mine
        mean = self.other["z"].mean(axis=(1, 2))
        chain += [sinkjax.ablate_heads(cut, mean=mean)]
      chain += [sinkjax.replace(np.float64(0.1), layers=where("replace"))]
      return sinkjax.chain(*chain)

    return {site: of(site) for site in SITES}

  def engine(self, edits, source=FIRST, target=LAST, **kw):
    """[T, T, D, D]."""
    g = sinkjax.intervene(self.f, edits)
    blocks = token_jacobian(
      g,
      self.layers,
      self.tokens,
      every_pair(LENGTH),
      source=source,
      target=target,
      **kw,
    )
    return blocks.reshape(LENGTH, LENGTH, 8, 8)

  def _dense(self, at, kinds):
    return Dense(
      self.f,
      self.params,
      self.tokens,
      self.edits(at, kinds),
      sources=("embed", "resid_pre"),
      targets=("resid_post", "final"),
    )

  def dense(self, at="", kinds=()):
    return self.run_dense(at, kinds)


@pytest.fixture(scope="module")
def case():
  with jax.enable_x64(True), quickly_compiled():
    yield Case()


def check(case, at, kinds, source=FIRST, target=LAST):
  want = case.dense(at, kinds)(source, target)
  got = case.engine(case.edits(at, kinds), source, target)
  assert error(got, want) < 1e-9
  assert np.all(got[np.triu_indices(LENGTH, 1)] == 0)
  return want


def plain(case, source=FIRST, target=LAST):
  return case.dense()(source, target)


@pytest.mark.slow
@pytest.mark.parametrize("site", quick(SITES, "resid_pre", "v"))
def test_edits_of_each_token(case, site, monkeypatch):
  kinds = ["scale", "add", "bend", "patch"]
  if site in ("q", "k", "v"):
    kinds.append("heads")
  widths = widths_pushed_directly(monkeypatch)
  assert error(check(case, site, tuple(kinds)), plain(case)) > 1e-3
  assert site == "z" or set(widths) <= {1}, "layers could not be folded"


@pytest.mark.thorough
@pytest.mark.parametrize(
  "site", ["resid_pre", "q", "v", "scores", "attn_out", "resid_mid"]
)
def test_a_fixed_value_lets_nothing_through(case, site):
  assert error(check(case, site, ("replace",)), plain(case)) > 1e-3


@pytest.mark.thorough
@pytest.mark.parametrize(
  ("site", "kind"), [("z", "ablate"), ("scores", "knockout")]
)
def test_edits_of_one_site_only(case, site, kind):
  assert error(check(case, site, (kind,)), plain(case)) > 1e-3


@pytest.mark.thorough
def test_a_hidden_key_reaches_nobody(case):
  """In the layers and heads where it is hidden; the others still see it."""
  heads = np.ones(4, bool)
  edits = case.edits()
  knockout = sinkjax.knockout(np.int64(1), from_layer=np.int64(0), heads=heads)
  chain = edits["scores"].edits
  chain = [knockout if type(e) is type(knockout) else e for e in chain]
  edits["scores"] = sinkjax.chain(*chain)
  got = case.engine(edits)
  assert np.all(got[2:, 1] == 0)
  assert np.all(norms_of(got, "max")[2:, 0] > 1e-3)
  assert np.abs(got[1, 1]).max() > 1e-3


@pytest.mark.thorough
@pytest.mark.parametrize("site", [s for s in SITES if s != "embed"])
def test_edits_that_mix_tokens_forward(case, site):
  """Folding assumes what these break: it must be seen, and done without."""
  assert error(check(case, site, ("before",)), plain(case)) > 1e-2


@pytest.mark.thorough
@pytest.mark.parametrize(
  "site",
  [
    "scores",
    pytest.param("pattern", marks=pytest.mark.thorough),
    pytest.param("z", marks=pytest.mark.thorough),
  ],
)
def test_edits_that_mix_heads(case, site):
  assert error(check(case, site, ("heads",)), plain(case)) > 1e-3


@pytest.mark.thorough
@pytest.mark.parametrize("site", [s for s in SITES if s != "embed"])
def test_edits_that_mix_tokens_backward(case, site):
  """What the future sends is not in the column of one source token."""
  g = sinkjax.intervene(case.f, case.edits(site, ("after",)))
  with pytest.raises(SelfCheckError, match="sends information backwards"):
    jacobian_norms(
      g,
      case.layers,
      case.tokens,
      cols=[3],
      target="final",
      finished=lambda columns, values: pytest.fail("handed over unchecked"),
    )


@pytest.mark.thorough
def test_an_edit_at_embed_stands_before_the_source(case):
  """It changes the values, whichever way it sends them; no derivative."""
  for kind in ("before", "after"):
    assert error(check(case, "embed", (kind,)), plain(case)) > 1e-3


@pytest.mark.thorough
@pytest.mark.parametrize("kinds", [("scale", "bend"), ("replace",)])
def test_the_source_is_after_the_edit_of_its_site(case, kinds):
  ends = ("resid_pre", 1), ("resid_post", 1)
  edits = {"resid_pre": case.edits("resid_pre", kinds)["resid_pre"]}
  want = case.dense("resid_pre", kinds)(*ends)
  assert error(case.engine(edits, *ends), want) < 1e-9
  assert norms_of(want, "max")[np.tril_indices(LENGTH)].min() > 1e-3
  assert error(want, plain(case, *ends)) > 1e-3


def test_the_target_is_after_the_edit_of_its_site(case):
  target = ("resid_post", 1)
  assert np.all(check(case, "resid_post", ("replace",), target=target) == 0)
  want = check(case, "resid_post", ("scale", "bend"), target=target)
  assert error(want, plain(case, target=target)) > 1e-3


def test_edits_at_every_site_at_once(case):
  kinds = ("scale", "add", "bend", "heads", "knockout", "ablate")
  assert error(check(case, "everywhere", kinds), plain(case)) > 1e-2


@pytest.mark.slow
def test_plain_functions_are_edits_too(case):
  """Alone and in a chain, as `forward` takes them."""
  plain = {
    "mlp_out": lambda value, layer: 1.5 * value,
    "resid_mid": sinkjax.chain(
      sinkjax.scale(0.5), lambda value, layer: value + jnp.sin(value)
    ),
  }
  g = sinkjax.intervene(case.f, plain)
  want = jacobian_norms(g, case.params, case.tokens, method="reference")
  got = jacobian_norms(g, case.layers, case.tokens)
  np.testing.assert_allclose(got, want, rtol=1e-9)
  assert (
    np.abs(got - jacobian_norms(case.f, case.layers, case.tokens)).max() > 1
  )


def test_norms_of_an_edited_model(case):
  kinds = ("scale", "bend", "knockout")
  g = sinkjax.intervene(case.f, case.edits("everywhere", kinds))
  want = case.dense("everywhere", kinds)(FIRST, LAST)
  for norm in ("fro", "spectral", "max"):
    got = jacobian_norms(g, case.layers, case.tokens, target="final", norm=norm)
    np.testing.assert_allclose(got, norms_of(want, norm), rtol=1e-9)


@pytest.mark.slow
@pytest.mark.parametrize(
  "change",
  [
    {"gate": "head", "post_norms": True},
    pytest.param(
      {"gate": "value", "parallel_residual": True}, marks=pytest.mark.slow
    ),
  ],
  ids=["head", "value"],
)
def test_edits_of_what_projections_read(change, monkeypatch):
  """With the gates that read the same, and a gated MLP; folded."""
  cfg = BASE.replace(n_layers=2, dtype="float64", **change)
  token = 1 + 0.3 * jnp.arange(LENGTH)[None, :, None]
  with jax.enable_x64(True), quickly_compiled():
    f, params = model(cfg)
    sites = ("attn_in", "mlp_in", "mlp_act")
    edits = {
      site: sinkjax.chain(sinkjax.scale(token), Bend(0.3)) for site in sites
    }
    g = sinkjax.intervene(f, edits)
    want = jacobian_norms(g, params, text(LENGTH), method="reference")
    widths = widths_pushed_directly(monkeypatch)
    got = jacobian_norms(g, params, text(LENGTH))
    np.testing.assert_allclose(got, want, rtol=1e-9)
    assert np.abs(got - jacobian_norms(f, params, text(LENGTH))).max() > 0.1
  assert set(widths) <= {1}, "layers could not be folded"
