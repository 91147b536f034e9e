"""Names and layouts that families share, in safetensors and in GGUF.

Both formats name a linear map's arrays NAME.weight and NAME.bias, so that one
family's table is little more than pairs of our path and their name.
"""

import dataclasses
from collections.abc import Mapping
from types import MappingProxyType

from sinkjax.config import ModelConfig
from sinkjax.weights.fused_layouts import (
  FusedGroups,
  FusedHeads,
  FusedRows,
  FusedThirds,
)
from sinkjax.weights.layout import Kernel, Layout, Leaf, Linear, Vector
from sinkjax.weights.rotary_layouts import PartlyInterleaved


def linear(
  path: str,
  name: str,
  bias: bool,
  kind: type[Linear] | type[Kernel] = Linear,
  *,
  interleaved_rope: bool = False,
) -> list[Leaf]:
  """One linear map of a block.

  Args:
    path: ours, under "blocks": "attn/q".
    name: theirs.
    bias: whether it has one.
    kind: how its matrix lies.
    interleaved_rope: see `layout.Vector`.
  """
  inputs = 2 if path == "attn/o" else 1  # it reads [H, K]
  layout = kind(inputs, interleaved_rope)
  found = [Leaf(f"blocks/{path}/kernel", f"{name}.weight", layout)]
  if bias:
    layout = Vector(interleaved_rope)
    found.append(Leaf(f"blocks/{path}/bias", f"{name}.bias", layout))
  return found


def partly_interleaved(
  leaves: list[Leaf], cfg: ModelConfig, *, last: bool = False
) -> list[Leaf]:
  """Leaves of whose queries and keys a part is rotated, as pairs lie there.

  Args:
    leaves: of any parameters.
    cfg: the model.
    last: whether that part is the last of each head in the file.
  """
  return [
    dataclasses.replace(
      leaf, layout=PartlyInterleaved(leaf.layout, cfg.rotary_dim, last)
    )
    if leaf.path.startswith(("blocks/attn/q/", "blocks/attn/k/"))
    else leaf
    for leaf in leaves
  ]


def fused_qkv(
  name: str,
  bias: bool,
  fused: type[FusedThirds] | type[FusedHeads],
  kind: type[Linear] | type[Kernel] = Linear,
) -> list[Leaf]:
  """Queries, keys and values that share one linear map of a block."""
  found = []
  for part, letter in enumerate("qkv"):
    path = f"blocks/attn/{letter}"
    found.append(Leaf(f"{path}/kernel", f"{name}.weight", fused(kind(), part)))
    if bias:
      found.append(Leaf(f"{path}/bias", f"{name}.bias", fused(Vector(), part)))
  return found


def fused_rows(
  parts: Mapping[str, int],
  name: str,
  bias: bool,
  kind: type[Linear] | type[Kernel] = Linear,
) -> list[Leaf]:
  """Several linear maps of a block that share a tensor, one after the other.

  Args:
    parts: ours, under "blocks", in their order, and how many outputs each has.
    name: theirs.
    bias: whether they have one.
    kind: how their matrices lie.
  """
  sizes, found = tuple(parts.values()), []
  for i, path in enumerate(parts):
    layout = FusedRows(kind(), i, sizes)
    found.append(Leaf(f"blocks/{path}/kernel", f"{name}.weight", layout))
    if bias:
      layout = FusedRows(Vector(), i, sizes)
      found.append(Leaf(f"blocks/{path}/bias", f"{name}.bias", layout))
  return found


def fused_gate_up(cfg: ModelConfig, name: str) -> list[Leaf]:
  """The MLP's gate and, behind it, its other half in a tensor of that name."""
  halves = {"mlp/gate": cfg.d_ff, "mlp/up": cfg.d_ff}
  return fused_rows(halves, name, False)


def fused_groups(
  parts: Mapping[str, int], name: str, bias: bool, groups: int
) -> list[Leaf]:
  """Maps of the attention in one tensor, one group of heads by one.

  Args:
    parts: ours, under "blocks/attn", in their order, and how many rows of a
      group each has.
    name: theirs.
    bias: whether they have one.
    groups: KV heads.
  """
  rows, found = tuple(parts.values()), []
  for i, part in enumerate(parts):
    path = f"blocks/attn/{part}"
    layout = FusedGroups(Linear(), i, rows, groups)
    found.append(Leaf(f"{path}/kernel", f"{name}.weight", layout))
    if bias:
      layout = FusedGroups(Vector(), i, rows, groups)
      found.append(Leaf(f"{path}/bias", f"{name}.bias", layout))
  return found


def qkv_sizes(cfg: ModelConfig) -> dict[str, int]:
  """Queries, keys and values of a layer as `fused_rows` takes them."""
  keys = cfg.n_kv_heads * cfg.head_dim
  queries = cfg.n_heads * cfg.head_dim
  return {"attn/q": queries, "attn/k": keys, "attn/v": keys}


def norms(
  names: Mapping[str, str], *, bias: bool, offset: float = 0.0
) -> list[Leaf]:
  """Norms, from our paths to their names; `offset`: `Leaf.norm_offset`."""
  found = [
    Leaf(f"{path}/scale", f"{name}.weight", norm_offset=offset)
    for path, name in names.items()
  ]
  if bias:
    found += [
      Leaf(f"{path}/bias", f"{name}.bias") for path, name in names.items()
    ]
  return found


def tables(
  cfg: ModelConfig, embed: str, unembed: str, positions: str | None = None
) -> list[Leaf]:
  """The embedding and, where `cfg` has them, positions and unembedding."""
  found = [Leaf("embed", f"{embed}.weight", Layout())]
  if cfg.positions == "learned":
    found.append(Leaf("positions", f"{positions}.weight", Layout()))
  if not cfg.tie_embeddings:
    found.append(Leaf("unembed", f"{unembed}.weight", Linear()))
  if cfg.unembed_bias:
    found.append(Leaf("unembed_bias", f"{unembed}.bias"))
  return found


def decoder_tensors(
  cfg: ModelConfig,
  *,
  mlp: Mapping[str, str] = MappingProxyType({}),
  experts: list[Leaf] | None = None,
  interleaved_rope: bool = False,
) -> list[Leaf]:
  """The names of transformers' `LlamaModel`, which most families share.

  Args:
    cfg: the model.
    mlp: names of the MLP's maps that are other than "up_proj" and so on.
    experts: where a layer's experts are, by default as `expert_tensors` says.
    interleaved_rope: of queries and keys, see `layout.Vector`.
  """
  at = "model.layers.{i}."
  names = {
    "blocks/attn_norm": at + "input_layernorm",
    "blocks/mlp_norm": at + "post_attention_layernorm",
    "final_norm": "model.norm",
  }
  # With norms behind the branches, transformers gives the name of the norm
  # before the MLP to the one behind attention.
  if cfg.post_norms:
    names |= {
      "blocks/attn_post_norm": at + "post_attention_layernorm",
      "blocks/mlp_norm": at + "pre_feedforward_layernorm",
      "blocks/mlp_post_norm": at + "post_feedforward_layernorm",
    }
  if not cfg.pre_norms:
    del names["blocks/attn_norm"], names["blocks/mlp_norm"]
  if cfg.shared_norm:
    del names["blocks/mlp_norm"]
  if cfg.qk_norm:
    names["blocks/attn/q_norm"] = at + "self_attn.q_norm"
    names["blocks/attn/k_norm"] = at + "self_attn.k_norm"
  if not cfg.norm_scale:
    names = {}
  found = norms(names, bias=cfg.norm == "layer" and cfg.norm_bias)
  if cfg.sink_logit:
    found.append(Leaf("blocks/attn/sinks", f"{at}self_attn.sinks"))
  for part in "qkvo":
    found += linear(
      f"attn/{part}",
      f"{at}self_attn.{part}_proj",
      cfg.out_bias if part == "o" else cfg.qkv_bias,
      interleaved_rope=interleaved_rope and part in "qk",
    )
  if cfg.n_experts:
    found += expert_tensors(cfg) if experts is None else experts
  for part in () if cfg.n_experts else mlp_parts(cfg):
    name = mlp.get(part, f"{part}_proj")
    found += linear(f"mlp/{part}", f"{at}mlp.{name}", cfg.mlp_bias)
  return found + tables(cfg, "model.embed_tokens", "lm_head")


def renamed(leaves: list[Leaf], names: Mapping[str, str]) -> list[Leaf]:
  """Leaves with parts of their names replaced."""
  for theirs, name in names.items():
    leaves = [
      dataclasses.replace(leaf, name=leaf.name.replace(theirs, name))
      for leaf in leaves
    ]
  return leaves


def mlp_parts(cfg: ModelConfig) -> tuple[str, ...]:
  """The maps of an MLP."""
  return ("gate", "up", "down") if cfg.gated_mlp else ("up", "down")


def expert_tensors(
  cfg: ModelConfig,
  at: str = "model.layers.{i}.mlp",
  names: Mapping[str, str] = MappingProxyType({}),
  shared: str = "shared_expert",
) -> list[Leaf]:
  """A layer's experts, each with tensors of its own, as most families have.

  Args:
    cfg: the model.
    at: what their names begin with.
    names: of an expert's maps that are other than "up_proj" and so on.
    shared: of the one that every token uses.
  """
  found = linear("mlp/router", f"{at}.gate", False)
  for part in mlp_parts(cfg):
    name = names.get(part, f"{part}_proj")
    found += linear(
      f"mlp/expert_{part}", f"{at}.experts.{{e}}.{name}", cfg.mlp_bias
    )
    if cfg.shared_d_ff:
      found += linear(
        f"mlp/shared_{part}", f"{at}.{shared}.{part}_proj", cfg.mlp_bias
      )
  if cfg.shared_d_ff and cfg.shared_open:
    found += linear("mlp/shared_open", f"{at}.{shared}_gate", False)
  return found
