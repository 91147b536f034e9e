"""What transformers computes inside a model, under the names of our sites."""

import functools
import sys

import numpy as np
import torch
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.masking_utils import eager_mask

_ADDS_RESIDUAL = ("BloomAttention", "BloomMLP", "MptMLP")
_INTERLEAVED = ("cohere", "cohere2", "glm4", "gptj")


def _parts(model):
  """(layers, final norm, name of the attention, name of the MLP), by kind."""
  base = model.base_model
  base = getattr(base, "decoder", base)  # OPT's, inside a wrapper
  layers = next(
    part for part in base.children() if isinstance(part, torch.nn.ModuleList)
  )
  norm = next(
    (
      part
      for name, part in base.named_children()
      if ("norm" in name and "embed" not in name) or name.startswith("ln")
    ),
    None,  # OPT-350M has none
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
      if not getattr(layer, "do_layer_norm_before", True):
        normed = layer.self_attn_layer_norm
        normed.register_forward_hook(self._keep("resid_mid"))
      getattr(layer, attn).register_forward_hook(self._keep("attn_out"))
      getattr(layer, mlp).register_forward_hook(self._keep("mlp_out"))
      for part in layer.modules():
        if type(part).__name__.endswith("Router"):
          part.register_forward_hook(self._router)
    if norm is not None:
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
    seen["embed"] = seen["resid_pre"][0]
    seen["final"] = (
      seen["final"][0] if "final" in seen else seen["resid_post"][-1]
    )
    seen.setdefault("resid_mid", seen["resid_pre"] + seen["attn_out"])
    seen["logits"] = out.logits.numpy()
    return seen
