"""The Jacobian lens against `jax.jacfwd` of the model and closed forms."""

import dataclasses
import itertools
import pathlib
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import sinkjax
from sinkjax.analysis.lens_quality import lens_quality
from sinkjax.models.layerwise import InMemory
from sinkjax.transforms.edits import chain
from sinkjax.transforms.lens import Lens, fit_lenses, mean_lens
from sinkjax.transforms.lens_readout import lens_logits
from sinkjax.transforms.lens_shares import LensProbes, lens_probes, signed_rows
from sinkjax.transforms.residual import context_of

sys.path.insert(0, str(pathlib.Path(__file__).parent))
from dense_jacobian import BASE, model, quickly_compiled, text

CFG = BASE.replace(dtype="float64")
IDS = np.stack([text(5), text(5)[::-1]])
SKIPS = (0, 1, 3)


@pytest.fixture(autouse=True)
def wide():
  with jax.enable_x64(True), quickly_compiled():
    yield


@pytest.fixture(scope="module")
def made():
  """{name: (f, params)}: the model as it is, and with edits."""
  with jax.enable_x64(True), quickly_compiled():
    f, params = model(CFG)
    edits = {
      "scores": sinkjax.knockout(0, from_layer=1),
      "resid_post": sinkjax.scale(1.5, layers=[1]),
    }
    yield {
      "plain": (f, params),
      "edited": (sinkjax.intervene(f, edits), params),
    }


@pytest.fixture(scope="module")
def dense(made):
  """{name: [P, L, T', D, T, D]}, shifts added by edits of `forward`."""
  with jax.enable_x64(True), quickly_compiled():
    found = {}
    for name, (f, params) in made.items():
      edit = f.taps.edits.get("resid_post")

      def last(shift, ids, f=f, params=params, edit=edit):
        def each(x, layer):
          return x + shift[layer][None]

        both = chain(edit, jax.tree_util.Partial(each)) if edit else each
        seen = {"h": ("resid_post", lambda x: x)}
        bare = {k: v for k, v in f.taps.edits.items() if k != "resid_post"}
        g = sinkjax.intervene(sinkjax.forward(CFG), bare | {"resid_post": both})
        return sinkjax.capture(g, seen)(params, ids[None]).trace["h"][-1, 0]

      jac = jax.jit(jax.jacfwd(last))
      zero = jnp.zeros((CFG.n_layers, IDS.shape[1], CFG.d_model))
      found[name] = np.moveaxis(
        np.stack([jac(zero, jnp.asarray(ids)) for ids in IDS]), 3, 1
      )
    yield found


@pytest.mark.thorough
@pytest.mark.parametrize("name", ["plain", "edited"])
def test_the_lens_is_the_mean_of_all_blocks(made, dense, name):
  f, params = made[name]
  lenses = fit_lenses(f, params, IDS, skips=SKIPS)
  for skip, lens in zip(SKIPS, lenses, strict=True):
    # [P, L, T', D, T, D]: summed over t', mean over t >= skip and texts.
    want = dense[name][..., skip:, :].sum(2).mean((0, 3))
    np.testing.assert_allclose(lens.maps, want, atol=1e-12)
    assert (lens.skip, lens.texts, lens.tokens) == (skip, 2, 5)
  eye = np.eye(CFG.d_model)
  np.testing.assert_array_equal(lenses[0].maps[-1], eye)
  seen = jax.jit(sinkjax.capture(f, {"h": ("resid_post", lambda x: x)}))
  h = np.asarray(seen(params, IDS).trace["h"])
  np.testing.assert_allclose(lenses[1].means, h[:, :, 1:].mean((1, 2)))
  np.testing.assert_allclose(lenses[1].final_mean, h[-1, :, 1:].mean((0, 1)))
  some = sinkjax.fit_lens(f, params, IDS, skip=3, layers=[-1, 0])
  np.testing.assert_allclose(some.maps, lenses[2].maps[[0, 2]], rtol=1e-14)
  assert some.layers == (0, 2)


def parts(dense, skip):
  """[L, D, D] of one text: the whole, its own part, what is left out."""
  sources = np.arange(skip, dense.shape[1])
  whole = dense[..., skip:, :].sum(1).mean(2)
  own = np.mean([dense[:, t, :, t] for t in sources], axis=0)
  left = dense[..., :skip, :].sum((1, 3)) / dense.shape[1]
  return whole, own, left


@pytest.mark.thorough
@pytest.mark.parametrize("name", ["plain", "edited"])
def test_signs_give_the_own_part(made, dense, name):
  """All signs and all unit directions together are exact."""
  f, params = made[name]
  length, width = IDS.shape[1], CFG.d_model
  every = np.array(list(itertools.product([1.0, -1.0], repeat=length - 1)))
  signs = np.concatenate([np.ones((len(every), 1)), every], axis=1)
  # Directions of +-1 that are orthogonal: sums over them are traces.
  units = np.kron(np.kron([[1, 1], [1, -1]], [[1, 1], [1, -1]]), np.eye(2))
  units = units @ np.kron(np.eye(4), [[1, 1], [1, -1]])
  assert (units.T @ units == width * np.eye(width)).all()
  weights = np.array([np.arange(length) >= skip for skip in SKIPS], float)
  weights /= weights.sum(axis=1, keepdims=True)
  probes = (
    jnp.asarray(weights),
    jnp.asarray(np.repeat(units, len(signs), axis=0)),
    jnp.asarray(np.tile(signs, (width, 1))),
  )
  ids = jnp.asarray(IDS[:1])
  ctx, edits = context_of(CFG, ids)[0], dict(f.taps.edits)
  rows = signed_rows(CFG, params, ids, ctx, edits, probes, layers=(0, 1, 2))
  found = LensProbes(*map(np.asarray, rows))
  own = found.own.reshape(*found.own.shape[:2], width, len(signs), width)
  for i, skip in enumerate(SKIPS):
    whole, mine, left = parts(dense[name][0], skip)
    want = np.einsum("rj,nji->nri", units, mine)
    np.testing.assert_allclose(own[i].mean(2), want, atol=1e-12)
    across = (whole * (whole - mine)).sum((1, 2)) / (whole**2).sum((1, 2))
    np.testing.assert_allclose(found.across().value[i], across, atol=1e-12)
    full = parts(dense[name][0], 0)[0]
    out = (full * left).sum((1, 2)) / (full**2).sum((1, 2))
    np.testing.assert_allclose(found.left_out().value[i], out, atol=1e-12)


@pytest.mark.thorough
def test_random_probes_lie_within_their_errors(made, dense):
  f, params = made["plain"]
  probes = lens_probes(f, params, IDS[0], skips=(1,), samples=400)
  share = probes.across()
  whole, mine, _ = parts(dense["plain"][0], 1)
  want = (whole * (whole - mine)).sum((1, 2)) / (whole**2).sum((1, 2))
  assert (abs(share.value[0] - want)[:-1] < 4 * share.stderr[0, :-1]).all()
  assert (share.stderr[0, :-1] < 0.1).all()
  assert want[-1] == 0


@pytest.mark.thorough
def test_without_blocks_the_lens_is_the_identity():
  f, params = model(CFG)
  blocks = jax.tree.map(lambda x: x, params["blocks"])
  for path in (("attn", "o"), ("mlp", "down")):
    inner = blocks
    for name in path[:-1]:
      inner = inner[name]
    inner[path[-1]] = jax.tree.map(jnp.zeros_like, inner[path[-1]])
  lens = sinkjax.fit_lens(f, params | {"blocks": blocks}, IDS[:1], skip=2)
  eye = np.broadcast_to(np.eye(CFG.d_model), lens.maps.shape)
  np.testing.assert_array_equal(lens.maps, eye)


@pytest.mark.thorough
def test_a_lens_of_the_last_layer_reads_the_logits(made):
  f, params = made["edited"]
  n, many = CFG.n_layers, CFG.d_model
  lens = Lens(
    maps=np.eye(many)[None],
    means=np.full((1, many), 0.25),
    final_mean=np.full(many, 0.25),
    layers=(n - 1,),
    skip=0,
    texts=1,
    tokens=5,
  )
  seen = sinkjax.capture(f, {"h": ("resid_post", lambda x: x)})
  out = jax.jit(seen)(params, IDS)
  last = out.trace["h"][-1:]
  for centred in (False, True):
    got = lens_logits(f, params, lens, last, centred=centred)[0]
    np.testing.assert_allclose(got, out.logits, atol=1e-12)
    exact = lens_quality(f, params, lens, IDS, centred=centred)
    assert exact.agree.all() and exact.overlap.min() == 1
    np.testing.assert_allclose(exact.kl, 0, atol=1e-12)
  # Another matrix, in NumPy; its norm and unembedding are the model's.
  maps = np.random.default_rng(0).normal(size=(1, many, many))
  lens = dataclasses.replace(lens, maps=maps)
  moved = 0.25 + (np.asarray(last) - 0.25) @ maps[0].T
  got = lens_logits(f, params, lens, last, centred=True)
  want = lens_logits(f, params, None, moved)
  np.testing.assert_allclose(got, want, atol=1e-12)
  p, q = (np.asarray(jax.nn.log_softmax(x)) for x in (out.logits, got[0]))
  quality = lens_quality(f, params, lens, IDS, centred=True)
  kl = (np.exp(p) * (p - q)).sum(-1)
  np.testing.assert_allclose(quality.kl[0], kl, atol=1e-12)
  np.testing.assert_array_equal(quality.agree[0], p.argmax(-1) == q.argmax(-1))
  tops = [np.argsort(-x, axis=-1)[..., :10] for x in (p, q)]
  both = [
    [len(set(a) & set(b)) / 10 for a, b in zip(*rows, strict=True)]
    for rows in zip(*tops, strict=True)
  ]
  np.testing.assert_allclose(quality.overlap[0], both)


def some_lens(texts=1, skip=0, width=8):
  rng = np.random.default_rng(texts)
  maps = rng.normal(size=(2, width, width))
  means = rng.normal(size=(2, width))
  return Lens(maps, means, means[0], (0, 2), skip, texts, 5)


def test_the_mean_of_lenses_counts_texts():
  one, three = some_lens(1), some_lens(3)
  got = mean_lens([one, three])
  np.testing.assert_allclose(got.maps, (one.maps + 3 * three.maps) / 4)
  np.testing.assert_allclose(
    got.final_mean, (one.final_mean + 3 * three.final_mean) / 4
  )
  assert got.texts == 4 and got.layers == (0, 2)
  with pytest.raises(ValueError, match="of the same layers, skip and tokens"):
    mean_lens([one, some_lens(skip=1)])


@pytest.mark.parametrize(
  ("given", "message"),
  [
    ({"skip": 5}, "skip must be 0 to 4 for texts of 5 tokens, got 5"),
    ({"skip": -1}, "skip must be 0 to 4"),
    ({"layers": [3]}, r"layers must be some of -3..2, got \[3\]"),
    ({"layers": []}, "layers must be some of"),
  ],
)
def test_fits_that_are_refused(made, given, message):
  f, params = made["plain"]
  with pytest.raises(ValueError, match=message):
    sinkjax.fit_lens(f, params, IDS, **given)


def test_other_refusals(made):
  f, params = made["plain"]
  with pytest.raises(ValueError, match="float32 or float64 model"):
    half = sinkjax.forward(CFG.replace(dtype="bfloat16"))
    sinkjax.fit_lens(half, params, IDS)
  for needs in (fit_lenses, lens_probes):
    with pytest.raises(ValueError, match="needs parameters in memory"):
      needs(f, InMemory(CFG, params), IDS[0], skips=(0,))
  with pytest.raises(ValueError, match="skips must have one number"):
    fit_lenses(f, params, IDS, skips=())
  with pytest.raises(ValueError, match="samples must be at least 1, got 0"):
    lens_probes(f, params, IDS[0], skips=(0,), samples=0)
  with pytest.raises(ValueError, match="must be one text"):
    lens_probes(f, params, IDS, skips=(0,))
  lens, hidden = some_lens(), np.zeros((2, 1, 5, 8))
  with pytest.raises(ValueError, match=r"must be \[N, B, T, 8\], got \[1, 5"):
    lens_logits(f, params, lens, hidden[0])
  with pytest.raises(ValueError, match="of 2 layers and width 8 does not read"):
    lens_logits(f, params, lens, hidden[:1])
  with pytest.raises(ValueError, match="width 9 does not read a model of"):
    lens_quality(f, params, some_lens(width=9), IDS)
  with pytest.raises(ValueError, match="layers are the lens's own"):
    lens_quality(f, params, lens, IDS, layers=(0,))
