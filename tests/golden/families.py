"""Tiny random models of every family, run by Hugging Face transformers.

A golden model is a folder here, under `families/`. What stands in it by hand is
`config.json`, small and with every option of the family switched on; keys that
it leaves out have transformers' defaults. `make_golden.py` fills the rest in:
the weights, and what transformers computes with them. The live parity test
computes it anew. Needs the extra `parity`; the other tests only read files.
"""

import functools
import pathlib
import sys

import numpy as np
import torch
import transformers
from safetensors.torch import load_file
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.masking_utils import eager_mask

FOLDER = pathlib.Path(__file__).parent / "families"
_ADDS_RESIDUAL = ("BloomAttention", "BloomMLP", "MptMLP")
_INTERLEAVED = ("cohere", "cohere2", "glm4", "gptj")


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


def _parts(model):
  """(layers, final norm, name of the attention, name of the MLP), by kind."""
  base = model.base_model
  base = getattr(base, "decoder", base)  # OPT's, inside a wrapper
  layers = next(
    part for part in base.children() if isinstance(part, torch.nn.ModuleList)
  )
  norm = next(
    part
    for name, part in base.named_children()
    if ("norm" in name and "embed" not in name) or name.startswith("ln")
  )
  kinds = {
    type(part).__name__: name for name, part in layers[0].named_children()
  }
  attention = next(n for kind, n in kinds.items() if kind.endswith("Attention"))
  # OPT's layers have the MLP's two maps themselves.
  mlp = next(
    (
      n
      for kind, n in kinds.items()
      if kind.endswith(("MLP", "MoeBlock", "MoE"))
    ),
    "fc2",
  )
  return layers, norm, attention, mlp


def _branches(layer, attn, mlp):
  """Names of the parts whose outputs are added to the residual stream."""
  if hasattr(layer, "post_feedforward_layernorm"):
    return "post_attention_layernorm", "post_feedforward_layernorm"
  if hasattr(layer, "post_mlp_layernorm"):
    return "post_self_attn_layernorm", "post_mlp_layernorm"
  return attn, mlp


def _rotated(config):
  """How many dimensions of each head are rotated."""
  if hasattr(config, "rotary_dim"):  # GPT-J's
    return config.rotary_dim
  width = getattr(config, "head_dim", None)
  width = width or config.hidden_size // config.num_attention_heads
  rope = getattr(config, "rope_parameters", None) or {}
  share = rope.get("partial_rotary_factor", 1.0)
  return int(width * share)


def _half_apart(x, rotated):
  """Rotary pairs from side by side to half the rotated part apart."""
  pairs, rest = x[..., :rotated], x[..., rotated:]
  return torch.cat([pairs[..., ::2], pairs[..., 1::2], rest], -1)


def _left_by_sink(module, q, k, mask, scaling):
  """[B, H, T, 1] of its weight that a query gives to tokens."""
  k = k.repeat_interleave(q.shape[1] // k.shape[1], dim=1)
  scores = q @ k.transpose(2, 3) * scaling + mask
  total = torch.logsumexp(scores, dim=-1, keepdim=True)
  return torch.sigmoid(total - module.sinks.reshape(1, -1, 1, 1))


class Recorder:
  """Runs a model and keeps what our sites see."""

  def __init__(self, model):
    self.model, self.seen = model, {}
    AttentionInterface.register("record", self._attention)
    AttentionMaskInterface.register("record", eager_mask)
    model.config._attn_implementation = "record"
    self.residual_scale = getattr(model.config, "residual_multiplier", 1.0)
    # Its rows sum to one, and the sink takes its share of what they mix.
    self.scales_output = model.config.model_type == "granite_swa"
    # Rotary pairs lie side by side there, and half the rotated part apart here.
    self.interleaved = model.config.model_type in _INTERLEAVED
    # Rotated dimensions are the last of each head there, and the first here.
    self.rotated_last = getattr(model.config, "qk_rope_head_dim", 0)
    layers, norm, attn, mlp = _parts(model)
    attn, mlp = _branches(layers[0], attn, mlp)
    for part in model.modules():
      # GPT-Neo has attention of its own, not by the common interface.
      if hasattr(part, "_attn"):
        part._attn = functools.partial(self._own_attention, part._attn)
      kind = type(part).__name__
      if kind in ("BloomAttention", "MptAttention"):
        part.register_forward_hook(self._own_pattern)
      if kind == "BloomAttention":
        part._reshape = functools.partial(self._split, part._reshape)
        part.dense.register_forward_pre_hook(self._own_z)
      if kind == "MptAttention":
        part.Wqkv.register_forward_hook(self._clipped_thirds)
        part.out_proj.register_forward_pre_hook(self._own_z)
    self.sdpa = model.config.model_type == "falcon"
    if self.sdpa:
      # Its own code of attention adds ALiBi twice, but not before this kernel.
      model.config._attn_implementation = "sdpa"
    for layer in layers:
      layer.register_forward_hook(self._layer, with_kwargs=True)
      getattr(layer, attn).register_forward_hook(self._keep("attn_out"))
      getattr(layer, mlp).register_forward_hook(self._keep("mlp_out"))
      for part in layer.modules():
        if type(part).__name__.endswith("Router"):
          part.register_forward_hook(self._router)
    norm.register_forward_hook(self._keep("final"))

  def _attention(self, module, q, k, v, mask, scaling=None, **kwargs):
    theirs = sys.modules[type(module).__module__].eager_attention_forward
    z, pattern = theirs(module, q, k, v, mask, scaling=scaling, **kwargs)
    if scaling == 1.0 and getattr(module, "scaling", 1.0) != 1.0:
      q = q / module.scaling  # OPT scales queries, not their products
    if self.interleaved:
      q, k = (_half_apart(x, _rotated(module.config)) for x in (q, k))
    q, k = (x.roll(self.rotated_last, dims=-1) for x in (q, k))
    if self.scales_output:
      pattern = pattern * _left_by_sink(module, q, k, mask, scaling)
    for name, value in (("q", q), ("k", k), ("v", v)):
      self._add(name, value.transpose(1, 2))
    self._add("pattern", pattern)
    self._add("z", z)
    return z, pattern

  def _own_attention(self, attend, q, k, v, mask=None):
    z, pattern = attend(q, k, v, mask)
    for name, value in (("q", q), ("k", k), ("v", v), ("z", z)):
      self._add(name, value.transpose(1, 2))
    self._add("pattern", pattern)
    return z, pattern

  def _own_pattern(self, module, args, output):
    self._add("pattern", output[1])

  def _own_z(self, module, args):
    heads = self.model.config.num_attention_heads
    self._add("z", args[0].reshape(*self.shape, heads, -1))

  def _split(self, split, fused):
    qkv = split(fused)
    for name, value in zip("qkv", qkv, strict=True):
      self._add(name, value.transpose(1, 2))
    return qkv

  def _clipped_thirds(self, module, args, output):
    limit = self.model.config.attn_config.clip_qkv
    for name, value in zip("qkv", output.chunk(3, dim=2), strict=True):
      heads = self.model.config.num_attention_heads
      value = value.clamp(-limit, limit) if limit else value
      self._add(name, value.reshape(*self.shape, heads, -1))

  def _kernel(self, q, k, v, attn_mask=None, **kwargs):
    mask = attn_mask
    if mask.dtype == torch.bool:
      mask = torch.where(mask, 0.0, torch.finfo(q.dtype).min)
    pattern = torch.softmax(q @ k.mT / q.shape[-1] ** 0.5 + mask, dim=-1)
    z = pattern @ v
    # Keys and values come once for each query of a group, or once.
    config = self.model.config
    every = 1
    if config.new_decoder_architecture:
      every = config.num_attention_heads // config.num_kv_heads
    k, v = k[:, ::every], v[:, ::every]
    for name, value in (("q", q), ("k", k), ("v", v), ("z", z)):
      self._add(name, value.transpose(1, 2))
    self._add("pattern", pattern)
    return z

  def _add(self, name, value):
    self.seen.setdefault(name, []).append(value.detach().numpy().copy())

  def _keep(self, name):
    def hook(module, args, output):
      value = output[0] if isinstance(output, tuple) else output
      if type(module).__name__ in _ADDS_RESIDUAL:
        value = value - args[1]
      if value.ndim == 2:  # OPT's MLP sees all tokens of all rows
        value = value.reshape(*self.shape, -1)
      # What is added to the residual stream: Granite scales it behind the hook.
      scaled = name in ("attn_out", "mlp_out")
      self._add(name, value * self.residual_scale if scaled else value)

    return hook

  def _router(self, module, args, output):
    # Of all tokens of all rows.
    self._add("router_logits", output[0].reshape(*self.shape, -1))

  def _layer(self, module, args, kwargs, output):
    self._add("resid_pre", args[0] if args else kwargs["hidden_states"])
    self._add("resid_post", output[0] if isinstance(output, tuple) else output)

  def __call__(self, tokens, valid=None, positions=None):
    """{site: [L, ...]}, with "embed", "final" and "logits" unstacked."""
    self.seen, self.shape = {}, tokens.shape
    kwargs = {}
    if valid is not None:
      kwargs["attention_mask"] = torch.tensor(valid.astype(np.int64))
    if positions is not None:
      kwargs["position_ids"] = torch.tensor(positions)
    kernel = torch.nn.functional.scaled_dot_product_attention
    if self.sdpa:
      torch.nn.functional.scaled_dot_product_attention = self._kernel
    try:
      with torch.no_grad():
        out = self.model(torch.tensor(tokens), use_cache=False, **kwargs)
    finally:
      torch.nn.functional.scaled_dot_product_attention = kernel
    routed = self.seen.get("router_logits", [])
    for _ in range(len(self.seen["resid_pre"]) - len(routed) if routed else 0):
      # The first layers have one MLP: here, experts with a router of zeros.
      routed.insert(0, np.zeros_like(routed[0]))
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
