"""Tiny random models of every family, run by Hugging Face transformers.

`make_golden.py` writes what comes out into this folder; the live parity test
computes it anew. Needs the extra `parity`; the other tests only read files.
"""

import sys

import numpy as np
import torch
import transformers
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.masking_utils import eager_mask

_SIZE = {
  "vocab_size": 96,
  "hidden_size": 32,
  "intermediate_size": 40,
  "num_hidden_layers": 3,
  "num_attention_heads": 4,
  "num_key_value_heads": 2,
  "max_position_embeddings": 64,
  "bos_token_id": 1,
  "eos_token_id": 2,
  "pad_token_id": 0,
}
_LLAMA3_ROPE = {
  "rope_type": "llama3",
  "rope_theta": 500.0,
  "factor": 8.0,
  "low_freq_factor": 1.0,
  "high_freq_factor": 4.0,
  "original_max_position_embeddings": 16,
}
_SLIDING = ["sliding_attention", "full_attention", "sliding_attention"]


def _rope(theta, **more):
  return {"rope_type": "default", "rope_theta": theta, **more}


def configs():
  """{family: transformers config}, every option of the family switched on."""
  t = transformers
  gemma = {"head_dim": 16, "tie_word_embeddings": True}
  neox = {
    "rope_parameters": _rope(100.0, partial_rotary_factor=0.25),
    "hidden_size": 64,
    "intermediate_size": 72,
  }
  neox_size = {k: v for k, v in _SIZE.items() if k != "num_key_value_heads"}
  return {
    "gpt2": t.GPT2Config(
      vocab_size=96,
      n_embd=32,
      n_layer=3,
      n_head=4,
      n_positions=64,
      bos_token_id=1,
      eos_token_id=2,
    ),
    "llama2": t.LlamaConfig(
      **_SIZE, rope_parameters=_rope(10000.0), tie_word_embeddings=False
    ),
    "llama3": t.LlamaConfig(
      **_SIZE,
      rope_parameters=_LLAMA3_ROPE,
      attention_bias=True,
      mlp_bias=True,
      rms_norm_eps=1e-5,
    ),
    "smollm2": t.LlamaConfig(
      **_SIZE, rope_parameters=_rope(100000.0), tie_word_embeddings=True
    ),
    "mistral": t.MistralConfig(
      **_SIZE, head_dim=16, sliding_window=5, rope_parameters=_rope(1000.0)
    ),
    "qwen2": t.Qwen2Config(
      **_SIZE,
      rope_parameters=_rope(1e6),
      use_sliding_window=True,
      sliding_window=4,
      max_window_layers=1,
    ),
    "qwen3": t.Qwen3Config(
      **_SIZE, head_dim=16, rope_parameters=_rope(1e6), attention_bias=True
    ),
    "gemma": t.GemmaConfig(**_SIZE, **gemma, rope_parameters=_rope(10000.0)),
    "gemma2": t.Gemma2Config(
      **_SIZE,
      **gemma,
      rope_parameters=_rope(10000.0),
      sliding_window=5,
      layer_types=_SLIDING,
      query_pre_attn_scalar=24,
      attn_logit_softcapping=2.0,
      final_logit_softcapping=3.0,
    ),
    "gemma3": t.Gemma3TextConfig(
      **_SIZE,
      **gemma,
      sliding_window=5,
      layer_types=_SLIDING,
      query_pre_attn_scalar=24,
      rope_parameters={
        "sliding_attention": _rope(50.0),
        "full_attention": {
          "rope_type": "linear",
          "factor": 8.0,
          "rope_theta": 1e4,
        },
      },
    ),
    "pythia": t.GPTNeoXConfig(**{**neox_size, **neox}),
    "gpt_neox_sequential": t.GPTNeoXConfig(
      **{**neox_size, **neox}, use_parallel_residual=False
    ),
  }


def build(config, seed=0):
  """A random model, far from its initialisation so that every part matters."""
  torch.manual_seed(seed)
  model = transformers.AutoModelForCausalLM.from_config(config)
  model = model.to(torch.float32).eval()
  with torch.no_grad():
    for name, p in model.named_parameters():
      if p.ndim > 1:
        p.normal_(0, 1.5 / p.shape[-1] ** 0.5)
      elif "norm" in name or "ln_" in name:
        p.add_(0.3 * torch.randn_like(p))
      else:
        p.normal_(0, 0.3)
  return model


def _parts(model):
  """(layers, final norm, the attention's name, the MLP's name)."""
  if hasattr(model, "gpt_neox"):
    base = model.gpt_neox
    return base.layers, base.final_layer_norm, "attention", "mlp"
  if hasattr(model, "transformer"):
    return model.transformer.h, model.transformer.ln_f, "attn", "mlp"
  return model.model.layers, model.model.norm, "self_attn", "mlp"


class Recorder:
  """Runs a model and keeps what our sites see."""

  def __init__(self, model):
    self.model, self.seen = model, {}
    AttentionInterface.register("record", self._attention)
    AttentionMaskInterface.register("record", eager_mask)
    model.config._attn_implementation = "record"
    layers, norm, attn, mlp = _parts(model)
    post = hasattr(layers[0], "post_feedforward_layernorm")
    for layer in layers:
      layer.register_forward_hook(self._layer, with_kwargs=True)
      out = layer.post_attention_layernorm if post else getattr(layer, attn)
      out.register_forward_hook(self._keep("attn_out"))
      out = layer.post_feedforward_layernorm if post else getattr(layer, mlp)
      out.register_forward_hook(self._keep("mlp_out"))
    norm.register_forward_hook(self._keep("final"))

  def _attention(self, module, q, k, v, mask, scaling=None, **kwargs):
    theirs = sys.modules[type(module).__module__].eager_attention_forward
    z, pattern = theirs(module, q, k, v, mask, scaling=scaling, **kwargs)
    for name, value in (("q", q), ("k", k), ("v", v)):
      self._add(name, value.transpose(1, 2))
    self._add("pattern", pattern)
    self._add("z", z)
    return z, pattern

  def _add(self, name, value):
    self.seen.setdefault(name, []).append(value.detach().numpy().copy())

  def _keep(self, name):
    def hook(module, args, output):
      self._add(name, output[0] if isinstance(output, tuple) else output)

    return hook

  def _layer(self, module, args, kwargs, output):
    self._add("resid_pre", args[0] if args else kwargs["hidden_states"])
    self._add("resid_post", output[0] if isinstance(output, tuple) else output)

  def __call__(self, tokens, valid=None, positions=None):
    """{site: [L, ...]}, with "embed", "final" and "logits" unstacked."""
    self.seen = {}
    kwargs = {}
    if valid is not None:
      kwargs["attention_mask"] = torch.tensor(valid.astype(np.int64))
    if positions is not None:
      kwargs["position_ids"] = torch.tensor(positions)
    with torch.no_grad():
      out = self.model(torch.tensor(tokens), use_cache=False, **kwargs)
    seen = {name: np.stack(values) for name, values in self.seen.items()}
    seen["embed"], seen["final"] = seen["resid_pre"][0], seen["final"][0]
    seen["resid_mid"] = seen["resid_pre"] + seen["attn_out"]
    seen["logits"] = out.logits.numpy()
    return seen


def inputs(seed=0, length=14):
  """{case: (tokens, valid, positions)}: single, batch, both paddings."""
  rng = np.random.default_rng(seed)
  tokens = rng.integers(3, 96, (2, length))
  right, left = np.ones((2, length), bool), np.ones((2, length), bool)
  right[1, 9:] = False
  left[1, :5] = False
  shifted = np.maximum(np.cumsum(left, axis=1) - 1, 0)
  return {
    "single": (tokens[:1], None, None),
    "batch": (tokens, None, None),
    "right_padded": (np.where(right, tokens, 0), right, None),
    "left_padded": (np.where(left, tokens, 0), left, shifted),
  }


def errors(name, folder, seed):
  """{case: {site: largest absolute error}} of sinkjax against transformers.

  A fresh random model of the family is saved to `folder` and read by both.
  """
  import jax.numpy as jnp

  import sinkjax
  from sinkjax.weights import huggingface

  model = build(configs()[name], seed)
  model.save_pretrained(folder)
  params, cfg = huggingface.load(folder)
  observe = {site: (site, lambda x: x) for site in sinkjax.SITES}
  ours = sinkjax.capture(sinkjax.forward(cfg), observe)
  record, found = Recorder(model), {}
  for case, (tokens, valid, positions) in inputs(seed).items():
    theirs = record(tokens, valid, positions)
    keep = np.ones(tokens.shape, bool) if valid is None else valid
    out = ours(params, jnp.asarray(tokens), valid=jnp.asarray(keep))
    mine = {**out.trace, "logits": out.logits}
    found[case] = {
      site: _largest(np.asarray(mine[site]), value, keep, site)
      for site, value in theirs.items()
    }
  return found


def _largest(a, b, keep, site):
  """Largest difference where query and, in patterns, key are no padding."""
  rows = 0 if site in ("logits", "final", "embed") else 1
  worst = 0.0
  for row, valid in enumerate(keep):
    diff = np.abs(np.take(a, row, rows) - np.take(b, row, rows))
    if site == "pattern":
      diff = diff[..., valid, :][..., valid]
    else:
      diff = np.compress(valid, diff, axis=rows)
    worst = max(worst, float(diff.max()))
  return worst


SMOLLM2_TEXT = (
  "Rain had fallen on the valley for nine days. The mill stood in water to "
  "its second window, and Anna counted sacks by candle light: 17 of wheat, "
  "3 of rye, none dry. "
) * 8


def smollm2_reference(path, ids):
  """(logits [T, V], pattern [L, H, T, T]) of transformers, from a GGUF."""
  model = transformers.AutoModelForCausalLM.from_pretrained(
    str(path.parent),
    gguf_file=path.name,
    dtype=torch.float32,
    attn_implementation="eager",
  ).eval()
  with torch.no_grad():
    theirs = model(torch.tensor([ids]), output_attentions=True)
  pattern = np.stack([a[0].numpy() for a in theirs.attentions])
  return theirs.logits[0].numpy(), pattern


def smollm2_errors(smollm2, path, length=192):
  """Largest errors on SmolLM2, both reading the same GGUF file."""
  import jax
  import jax.numpy as jnp

  import sinkjax

  ids = smollm2.tokenizer.encode(SMOLLM2_TEXT)[:length]
  logits, pattern = smollm2_reference(path, ids)
  observe = {"pattern": ("pattern", lambda x: x)}
  ours = jax.jit(sinkjax.capture(sinkjax.forward(smollm2.cfg), observe))
  out = ours(smollm2.params, jnp.array([ids]))
  mine, attention = np.asarray(out.logits[0]), out.trace["pattern"][:, 0]
  return {
    "tokens": len(ids),
    "logits": float(np.abs(mine - logits).max()),
    "pattern": float(np.abs(np.asarray(attention) - pattern).max()),
    "argmax agrees": float((mine.argmax(-1) == logits.argmax(-1)).mean()),
  }
