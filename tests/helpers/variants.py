"""What families differ in, each on the tiny model."""

import jax
import jax.numpy as jnp
import numpy as np

import sinkjax

VARIANTS = {
  "llama": {},
  "gpt2": {
    "norm": "layer",
    "qkv_bias": True,
    "out_bias": True,
    "gated_mlp": False,
    "mlp_bias": True,
    "positions": "learned",
    "tie_embeddings": True,
  },
  "gemma2": {
    "norm_offset": 1.0,
    "post_norms": True,
    "attn_softcap": 5.0,
    "logit_softcap": 3.0,
    "window": 3,
    "embed_scale": 5.0,
    "local_layers": (True, False, True),
  },
  "gemma3": {
    "qk_norm": True,
    "window": 3,
    "local_layers": (True, True, False),
    "rope_local_base": 100.0,
  },
  "neox": {"parallel_residual": True, "rope_dim": 2, "norm": "layer"},
  "nope": {
    "positions": "none",
    "activation": "relu",
    "n_experts": 4,
    "experts_per_token": 2,
    "shared_d_ff": 12,
    "norm_topk": True,
    "d_ff": 20,
  },
  "olmo2": {
    "pre_norms": False,
    "post_norms": True,
    "qk_norm": True,
    "qk_norm_over": "all",
  },
  "cohere": {
    "norm": "layer",
    "norm_bias": False,
    "parallel_residual": True,
    "shared_norm": True,
  },
  "bloom": {
    "norm": "layer",
    "embed_norm": True,
    "positions": "alibi",
    "window": 3,
    "local_layers": (False, True, False),
    "unembed_bias": True,
    # Of OPT-350M, so as not to need a variant more.
    "pre_norms": False,
    "stream_norms": True,
  },
  "deepseek": {
    "rope_dim": 4,
    "v_dim": 6,
    "q_rank": 10,
    "kv_rank": 12,
    "n_experts": 6,
    "experts_per_token": 2,
    "router_score": "sigmoid",
    "choice_bias": True,
    "router_groups": 3,
    "groups_per_token": 2,
    "norm_topk": True,
    "routed_scale": 1.5,
    "shared_d_ff": 10,
    "shared_open": False,
    "d_ff": 8,
    "dense_layers": 1,
    "dense_d_ff": 44,
  },
  "granite": {
    "embed_scale": 5.0,
    "residual_scale": 0.4,
    "logit_scale": 0.3,
    "rope_layers": (True, False, True),
    "rope_bases": (100.0, 1e4, 1e3),
    "sink_logit": True,
    "activation": "relu2",
    "gated_mlp": False,
  },
}


def build(name):
  """(params, cfg) of a random model that attends unevenly."""
  cfg = sinkjax.TINY.replace(**VARIANTS[name])
  return scaled(sinkjax.init_params(cfg, jax.random.key(0)), 1.5), cfg


def scaled(params, factor):
  """All parameters times a number."""
  # Arrays of JAX would need a program for each of their shapes.
  return jax.tree.map(lambda x: jnp.asarray(np.float32(factor) * x), params)
