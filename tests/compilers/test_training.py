"""The training programs, by the compilers of TPUs and GPUs."""

import described
import jax
import jax.numpy as jnp
import pytest

import sinkjax
from configs.train import barbero_120m
from sinkjax import sharding
from sinkjax.train import optimizer, run_config, step
from sinkjax.train.probe import make_probe

pytestmark = pytest.mark.compilers

LENGTH, ROWS = 128, 8
TINY = sinkjax.ModelConfig(
  vocab_size=512, d_model=128, n_layers=2, n_heads=4, n_kv_heads=4,
  head_dim=64, d_ff=256, max_len=LENGTH, dtype="bfloat16",
  precision="default",
)  # fmt: skip

KERNELS = {"tpu": "tpu_custom_call", "gpu": "__cudnn$fmha"}

VARIANTS = {
  "einsum": {},
  "float32": {"dtype": "float32", "precision": "highest"},
  "fused": {"attention": "fused", "remat": "dots"},
  "fused window": {
    "attention": "fused", "window": 64, "local_layers": (True, True),
  },
  "fused sink logit": {"attention": "fused", "sink_logit": True},
  "mixed windows": {
    "attention": "fused", "window": 64, "local_layers": (True, False),
  },
  "fused float32": {
    "attention": "fused", "dtype": "float32", "precision": "highest",
  },
  "documents": {"separated": True},
  "fused documents": {"attention": "fused", "separated": True},
  "sink logit": {"sink_logit": True},
  "softpick": {"normalizer": "softpick"},
  "key bias": {"attn_bias": "k"},
  "key and value bias": {"attn_bias": "kv"},
  "head gate": {"gate": "head"},
  "value gate": {"gate": "value", "n_kv_heads": 2, "n_heads": 4},
  "rate of mixing": {"mixing": "gate"},
  "halting": {"depth": "halting"},
  "routed": {"depth": "routed"},
  "grouped heads": {"attention": "fused", "n_kv_heads": 2},
  "unrolled": {"scan_layers": False, "tie_embeddings": True},
}  # fmt: skip
"""Changes of the tiny model; "separated" is the step's."""

WITH_KERNEL = {
  "tpu": {"fused", "fused window", "fused sink logit", "fused float32",
          "grouped heads"},
  "gpu": {"fused", "fused window", "fused sink logit", "mixed windows",
          "fused documents", "grouped heads"},
}  # fmt: skip
"""Variants that run a device kernel; the others are plain JAX there: splash
takes no mask, cuDNN 16 bits only."""

QUICK = {
  ("fused", "data:4"), ("fused", "fsdp:4"), ("fused", "fsdp:2,tensor:2"),
  ("fused sink logit", "data:2,tensor:2"), ("fused window", "data:2,fsdp:2"),
  ("fused documents", "tensor:4"), ("softpick", "fsdp:2,tensor:2"),
  ("float32", "fsdp:4"),
}  # fmt: skip
"""What the gate compiles for TPUs: every mesh, and each kind of path."""


def cases():
  for kind, place in described.PLACES.items():
    for variant in VARIANTS:
      for axes in described.MESHES:
        if "n_kv_heads" in VARIANTS[variant] and axes == "tensor:4":
          continue  # 2 heads do not divide by 4, which is refused
        quick = kind == "tpu" and (variant, axes) in QUICK
        marks = () if quick else pytest.mark.slow
        yield pytest.param(place, axes, variant, marks=marks)


def arguments(mesh, cfg, optim, rows, length):
  """(state, batch) as shapes that say where their arrays lie."""
  key = jax.eval_shape(lambda: jax.random.key(0))
  state = jax.eval_shape(lambda k: step.init_state(cfg, optim, k), key)
  shardings = sharding.state_shardings(mesh, state)
  kinds = {"tokens": "int32", "positions": "int32", "segments": "int32",
           "weights": "bool"}  # fmt: skip
  batch = {
    name: jax.ShapeDtypeStruct(
      (rows, length), jnp.dtype(dtype),
      sharding=sharding.batch_sharding(mesh, rows),
    )
    for name, dtype in kinds.items()
  }  # fmt: skip
  return sharding.placed(state, shardings), batch, shardings


@pytest.mark.parametrize(("place", "axes", "variant"), list(cases()))
def test_step(place, axes, variant):
  mesh, kind = described.mesh(place, axes), described.kind(place)
  changes = dict(VARIANTS[variant])
  separated = changes.pop("separated", False)
  cfg = TINY.replace(**changes)
  optim = optimizer.make_optimizer(optimizer.OptimizerConfig(warmup=1), 10)
  state, batch, shardings = arguments(mesh, cfg, optim, ROWS, LENGTH)
  with described.backend(place):
    run = step.make_step(
      cfg, optim, separated=separated, accumulate=2, shardings=shardings
    )
    program = described.program(mesh, run, state, batch)
  wanted = KERNELS[kind] if variant in WITH_KERNEL[kind] else None
  described.check(program, kernel=wanted)
  assert program.collectives, "the devices work on one gradient"


def loop_cases():
  for kind, place in described.PLACES.items():
    for axes in described.MESHES:
      quick = kind == "tpu" and axes == "fsdp:2,tensor:2"
      yield pytest.param(place, axes, marks=() if quick else pytest.mark.slow)


@pytest.mark.parametrize(("place", "axes"), list(loop_cases()))
def test_what_the_loop_runs_between_steps(place, axes):
  """Fresh parameters, the evaluation and the probe, with fused attention."""
  mesh, kind = described.mesh(place, axes), described.kind(place)
  cfg = TINY.replace(attention="fused")
  optim = optimizer.make_optimizer(optimizer.OptimizerConfig(warmup=1), 10)
  state, batch, shardings = arguments(mesh, cfg, optim, ROWS, LENGTH)
  here = sharding.everywhere(mesh)
  texts = jax.ShapeDtypeStruct((4, 64), jnp.int32, sharding=here)
  with described.backend(place), jax.set_mesh(mesh):
    fresh = jax.jit(
      lambda: step.init_state(cfg, optim, jax.random.key(0)),
      out_shardings=shardings,
    )
    described.program(mesh, fresh)
    evaluate = step.make_evaluate(cfg, separated=False)
    program = described.program(mesh, evaluate, state.params, batch)
    described.check(program, kernel=KERNELS[kind])
    probe = make_probe(cfg)
    program = described.program(mesh, probe, state.params, texts)
    described.check(program, gathered=64)  # L B H numbers, for a median


GIGABYTES = {"v5e": 16, "v6e": 32, "v5p": 95, "h100": 80}
"""Memory of a device."""


@pytest.mark.slow
@pytest.mark.parametrize(
  ("place", "axes"),
  [
    ("v5e:4x4", "data:16"),
    ("v5e:4x4", "data:4,fsdp:4"),
    ("v5e:4x4", "fsdp:8,tensor:2"),
    ("v6e:4x4", "fsdp:16"),
    ("v6e:4x4", "data:4,tensor:4"),
    ("v5p:2x2x2", "data:2,fsdp:2,tensor:2"),
    ("h100:8", "data:4,fsdp:2"),
    ("h100:2x8", "data:2,fsdp:8"),
    ("h100:2x8", "data:4,fsdp:2,tensor:2"),
  ],
)
def test_step_of_the_120m_configuration(place, axes):
  """It fits, and only parameters and sums are exchanged."""
  values = barbero_120m.get_config().to_dict()
  config = run_config.TrainConfig.from_dict(values)
  mesh, kind = described.mesh(place, axes), described.kind(place)
  optim = optimizer.make_optimizer(config.optimizer, config.steps)
  size = config.batch, config.packing.length
  state, batch, shardings = arguments(mesh, config.model, optim, *size)
  with described.backend(place):
    run = step.make_step(
      config.model,
      optim,
      separated=False,
      accumulate=config.accumulate,
      shardings=shardings,
    )
    program = described.program(mesh, run, state, batch)
  described.check(program, kernel=KERNELS[kind])
  assert program.peak < GIGABYTES[place.partition(":")[0]] * 1e9
