"""Every program that an analysis jits, by the compiler of described devices.

    python analyses.py PLACE AXES ANALYSIS

prints JSON, a list of programs with their collectives or their refusal; PLACE
is "v5e:2x2", AXES "data:4", or "" for one device.

The analysis runs on fake CPU devices, where its arrays lie as a user's would;
then each of its programs is compiled for the described devices.
"""

import functools
import json
import os
import sys
from typing import Any

import call_recorder  # first, before what it shall record
import described
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, SingleDeviceSharding

import sinkjax
from sinkjax import mesh_context, sharding
from sinkjax.inference import generate, kv_policy
from sinkjax.metrics import registry, rows
from sinkjax.metrics.table import METRICS

os.environ["XLA_FLAGS"] = (
  os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=4"
)
jax.config.update("jax_platforms", "cpu")

CFG = sinkjax.ModelConfig(
  vocab_size=256,
  d_model=64,
  n_layers=2,
  n_heads=4,
  n_kv_heads=4,
  head_dim=16,
  d_ff=128,
  max_len=256,
  tie_embeddings=True,
)
ROWS, LENGTH = 4, 32
F = sinkjax.forward(CFG)
TEXT = np.arange(1, 13)


def forward(params, tokens):
  jax.jit(lambda p, t: F(p, t).logits)(params, tokens)


def capture(params, tokens):
  """Every metric, alone and of a model with edits of every kind."""
  head = np.zeros((CFG.n_layers, CFG.n_heads), bool)
  head[1, 2] = True
  shape = (CFG.n_layers, ROWS, LENGTH, CFG.d_model)
  edited = sinkjax.intervene(
    F,
    {
      "resid_pre": sinkjax.add(jnp.ones(CFG.d_model), layers=0),
      "scores": sinkjax.knockout(0, from_layer=1),
      "pattern": sinkjax.hold(),
      "z": sinkjax.ablate_heads(head),
      "mlp_in": sinkjax.replace(0.0, layers=1),
      "mlp_out": sinkjax.chain(sinkjax.scale(0.5), sinkjax.add(1.0)),
      "resid_post": sinkjax.patch(jnp.zeros(shape), positions=[3]),
    },
  )
  observers = {
    name: (site, mesh_context.by_rows(reducer))
    for name, (site, reducer) in registry.observers(METRICS).items()
  }
  for f in F, edited:
    observed = sinkjax.capture(f, observers)
    jax.jit(lambda p, t, g=observed: g(p, t).trace)(params, tokens)


def streaming(params, tokens):
  statistics = {"sink": rows.sink_score(), "entropy": rows.attention_entropy()}
  run = sinkjax.stream_statistics(F, statistics)
  run(params, jnp.tile(tokens, (1, 4)))


def jacobian(params, tokens):
  """The exact one by its three norms, and of an edited model."""
  mesh = getattr(tokens.sharding, "mesh", None)
  devices = None if mesh is None else list(mesh.devices.flat)
  hidden = sinkjax.intervene(F, {"scores": sinkjax.knockout(0, from_layer=1)})
  norms = functools.partial(sinkjax.jacobian_norms, devices=devices)
  for norm in "fro", "spectral", "max":
    norms(F, params, TEXT, norm=norm)
  norms(hidden, params, TEXT)


def estimates(params, tokens):
  del tokens  # of one text, as the Jacobian
  sinkjax.estimate_norms(F, params, TEXT, samples=4)


def generation(params, tokens):
  """A prompt and two tokens, by each kind of cache."""
  del tokens
  for policy in (
    kv_policy.full(64, chunk=8),
    kv_policy.sinks(2, 14, chunk=8),
    kv_policy.heavy_hitters(16, chunk=8),
  ):
    text = generate.generate(
      CFG, params, TEXT.tolist(), policy=policy, max_tokens=2
    )
    list(text)


ANALYSES = {
  f.__name__: f
  for f in (forward, capture, streaming, jacobian, estimates, generation)
}


def run(axes: str, analysis: str) -> None:
  """Runs it on fake devices; its programs are in `call_recorder.CALLS`."""
  params = sinkjax.init_params(CFG, jax.random.key(0))
  tokens = np.arange(ROWS * LENGTH).reshape(ROWS, LENGTH) % CFG.vocab_size
  if not axes:
    call_recorder.CALLS.clear()
    ANALYSES[analysis](params, jnp.asarray(tokens))
    return
  mesh = sharding.make_mesh(sharding.MeshConfig.parse(axes))
  params = sharding.place(sharding.state_shardings(mesh, params), params)
  tokens = sharding.place(sharding.batch_sharding(mesh, ROWS), tokens)
  call_recorder.CALLS.clear()
  with jax.set_mesh(mesh):
    ANALYSES[analysis](params, tokens)


def compiled(call: call_recorder.Call, mesh: Mesh) -> dict[str, Any]:
  """What the compiler of a mesh's devices makes of a call."""
  devices = mesh.devices.ravel()

  def there(x):
    """The same place on the described devices."""
    if not isinstance(x, jax.ShapeDtypeStruct):
      return x
    if x.sharding is None:
      place = SingleDeviceSharding(devices[0]) if alone else None
    else:
      old = x.sharding.mesh
      new = devices.reshape(old.devices.shape)
      new = Mesh(new, old.axis_names, axis_types=old.axis_types)
      place = NamedSharding(new, x.sharding.spec)
    return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place)

  leaves = jax.tree.leaves((call.args, call.kwargs))
  alone = not any(getattr(x, "sharding", None) for x in leaves)
  args, kwargs = jax.tree.map(there, (call.args, call.kwargs))
  program = described.program(mesh, call.jitted, *args, **kwargs)
  return {
    "peak": program.peak,
    "collectives": [
      [*key, count, program.largest[key]]
      for key, count in program.collectives.items()
    ],
    "kernels": program.kernels,
  }


def main():
  place, axes, analysis = sys.argv[1:]
  run(axes, analysis)
  calls = list(call_recorder.CALLS.values())
  found = []
  mesh = described.mesh(place, axes)
  with described.backend(place), jax.set_mesh(mesh):
    for call in calls:
      program = {"name": call.jitted.__name__}
      try:
        program |= compiled(call, mesh)
      except Exception as error:  # noqa: BLE001  whatever the compiler says
        program["refused"] = f"{type(error).__name__}: {error}"[:500]
      found.append(program)
  print(json.dumps(found))


if __name__ == "__main__":
  main()
