"""Tiny random models of every family, run by Hugging Face transformers.

A golden model is a folder here, under `families/`. What stands in it by hand is
`config.json`, small and with every option of the family switched on; keys that
it leaves out have transformers' defaults. `make_golden.py` fills the rest in:
the weights, and what transformers computes with them. The live parity test
computes it anew. Needs the extra `parity`; the other tests only read files.
"""

import pathlib

import numpy as np
import torch
import transformers
from recorder import Recorder
from safetensors.torch import load_file

FOLDER = pathlib.Path(__file__).parent / "families"


def names():
  """The golden models."""
  return sorted(path.name for path in FOLDER.iterdir())


def build(name, seed=0):
  """A random model, far from its initialisation so that every part matters."""
  config = transformers.AutoConfig.from_pretrained(FOLDER / name)
  torch.manual_seed(seed)
  model = transformers.AutoModelForCausalLM.from_config(config)
  _add_gates(model)
  model = model.to(torch.float32).eval()
  with torch.no_grad():
    for module in model.modules():
      # Nemotron's start at 1 + w = 2. With squared ReLUs the residual stream
      # then reaches 1e3, where float32 itself rounds by 1e-4.
      if type(module).__name__.endswith("LayerNorm1P"):
        module.weight.zero_()
    for name, p in model.named_parameters():
      if p.ndim > 1:
        p.normal_(0, 1.5 / p.shape[-1] ** 0.5)
      elif "norm" in name or "ln_" in name:
        p.add_(0.3 * torch.randn_like(p))
      else:
        p.normal_(0, 0.3)
    for name, buffer in model.named_buffers():
      if "correction_bias" in name:  # by it experts are chosen
        buffer.normal_(0, 0.3)
  return model


class _GatedQueries(torch.nn.Linear):
  """Queries, and gates for the heads' outputs in the same rows.

  As the code published with arXiv 2505.06708 has them, which is not in
  transformers: for each KV head its queries, then their gates.
  """

  def __init__(self, width, heads, groups, head_dim, each):
    super().__init__(width, heads * (head_dim + each), bias=False)
    self.groups, self.shares = groups, (head_dim, each)

  def forward(self, x):
    rows = super().forward(x).unflatten(-1, (self.groups, -1))
    per_head = rows.shape[-1] // sum(self.shares)
    q, gate = rows.split([per_head * share for share in self.shares], dim=-1)
    self.gate = torch.sigmoid(
      gate.flatten(-2).unflatten(-1, (-1, self.shares[1]))
    )
    return q.flatten(-2)


def _add_gates(model):
  """Gated attention, where a Qwen 3 config asks for it."""
  config = model.config
  head = getattr(config, "headwise_attn_output_gate", False)
  if not (head or getattr(config, "elementwise_attn_output_gate", False)):
    return
  heads, groups = config.num_attention_heads, config.num_key_value_heads
  each = 1 if head else config.head_dim
  for layer in model.model.layers:
    queries = _GatedQueries(
      config.hidden_size, heads, groups, config.head_dim, each
    )
    layer.self_attn.q_proj = queries

    def open_heads(module, args, queries=queries):
      z = args[0].unflatten(-1, (heads, -1))
      return (z * queries.gate).flatten(-2)

    layer.self_attn.o_proj.register_forward_pre_hook(open_heads)


def load(folder):
  """A saved model, with the attention that knows all of its options."""
  config = transformers.AutoConfig.from_pretrained(folder)
  # Falcon's "eager" adds ALiBi twice.
  kernel = "sdpa" if getattr(config, "alibi", False) else "eager"
  how = {"attn_implementation": kernel, "dtype": torch.float32}
  maker = transformers.AutoModelForCausalLM
  if not hasattr(config, "headwise_attn_output_gate"):
    return maker.from_pretrained(folder, **how).eval()
  model = maker.from_config(config, **how)
  _add_gates(model)
  model.load_state_dict(load_file(pathlib.Path(folder) / "model.safetensors"))
  return model.eval()


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

  model = build(name, seed)
  model.save_pretrained(folder)
  params, cfg = huggingface.load(folder)
  sites = [*sinkjax.SITES, *(sinkjax.EXPERT_SITES if cfg.n_experts else ())]
  observe = {site: (site, lambda x: x) for site in sites}
  ours = sinkjax.capture(sinkjax.forward(cfg), observe)
  record, found = Recorder(model), {}
  for case, (tokens, valid, positions) in inputs(seed).items():
    theirs = record(tokens, valid, positions)
    if cfg.sink_logit:
      theirs["sink"] = 1 - theirs["pattern"].sum(axis=-1)
    keep = np.ones(tokens.shape, bool) if valid is None else valid
    out = ours(params, jnp.asarray(tokens), valid=jnp.asarray(keep))
    mine = {**out.trace, "logits": out.logits}
    mine["sink"] = 1 - mine["pattern"].sum(axis=-1)
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
    if site == "sink":
      diff = diff[..., valid]
    elif site == "pattern":
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
