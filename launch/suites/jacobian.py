"""The exact map of Frobenius norms, embed to resid_post, and its peers.

Ours runs whole, compilation included. A peer runs one column (all directions
of the middle source token) or, in reverse mode, one row (all outputs of the
last token), after compiling, and the time is multiplied by the number of
tokens: every column and row costs it the same. What it found is compared with
that column or row of ours.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from launch.suites import measure as m

if TYPE_CHECKING:
  from jax import Array

  from sinkjax.config import ModelConfig
  from sinkjax.models.transformer import Params

PEERS = {
  "ours": "jacobian_norms",
  "jacfwd": "jax.jacfwd, chunked (one column, times T)",
  "map_jvp": "lax.map of jax.jvp (one column, times T)",
  "torch_jacfwd": "torch.func.jacfwd, chunked (one column, times T)",
  "torch_jacrev": "torch.func.jacrev, chunked (one row, times T)",
}
SLOW = ("torch_jacfwd",)
CHUNK = 144
"""Directions that a chunked peer takes at a time; more gains it nothing."""


def cases(quick: bool, tokens: int | None) -> list[dict[str, Any]]:
  layers, length = (3, tokens or 8) if quick else (30, tokens or 32)
  case = {"tokens": length, "layers": layers, "budget": 5e9}
  return [{"case": f"T={length}, {layers} layers", **case}]


def measure(name: str, case: dict[str, Any]) -> dict[str, Any]:
  if name.startswith("torch"):
    return _torch(name, case)
  import jax.numpy as jnp
  import numpy as np

  import sinkjax
  from sinkjax.transforms.jacobian_plan import Costs, matmul_rate

  params, cfg, tokenizer = m.ours()
  cfg, params = _first_layers(cfg, params, case["layers"])
  ids = jnp.asarray(m.text_ids(tokenizer, case["tokens"]))
  length, middle = case["tokens"], case["tokens"] // 2
  f = sinkjax.forward(cfg)
  if name != "ours":
    column, spent, peak = _column(name, f, params, ids, middle)
    costs = Costs(cfg, length, cfg.n_layers)
    flops = length * cfg.d_model * cfg.n_layers * costs.push_flops(False, 0)
    return _result(spent * length, flops, peak, matmul_rate(), column=column)

  machine, plans = matmul_rate(), {}
  peak = m.Peak()

  def work():
    nonlocal norms
    norms = sinkjax.jacobian_norms(
      f, params, ids, budget_bytes=int(case["budget"]), report=plans.update
    )

  norms = None
  spent = m.seconds(work)
  found = _result(spent, plans["plan"].flops, peak, machine)
  column, row = np.asarray(norms)[:, middle], np.asarray(norms)[-1]
  return found | {"column": column.tolist(), "row": row.tolist()}


def _first_layers(
  cfg: "ModelConfig", params: "Params", layers: int
) -> tuple["ModelConfig", "Params"]:
  """The model's first layers."""
  import jax

  if layers == cfg.n_layers:
    return cfg, params
  blocks = jax.tree.map(lambda x: x[:layers], params["blocks"])
  return cfg.replace(n_layers=layers), {**params, "blocks": blocks}


def _column(
  name: str, f: Callable, params: "Params", ids: "Array", source: int
) -> tuple[list[float], float, m.Peak]:
  """One column's norms, the seconds that it took, and the memory."""
  import jax
  import jax.numpy as jnp

  from sinkjax.transforms.jacobian_reference import reference_block
  from sinkjax.transforms.residual import parse_pair, residual_map

  width = f.cfg.d_model
  a, b = parse_pair(f.cfg, "embed", "resid_post")
  if name == "jacfwd":
    block = jax.jit(reference_block(f, ids, a, b, CHUNK))
    starts = range(0, width, CHUNK)
  else:
    starts = [0]

    @jax.jit
    def block(params, source, start):
      y = residual_map(f, params, ids[None], source=a, target=b)
      zeros = jnp.zeros((1, *ids.shape, width))

      def one(unit):
        tangent = zeros.at[0, source].set(unit)
        return jax.jvp(y, (zeros,), (tangent,))[1][0]

      return jnp.moveaxis(jax.lax.map(one, jnp.eye(width)), 0, -1)

  def work():
    nonlocal squares
    squares = sum(
      jnp.sum(block(params, source, start) ** 2, axis=(1, 2))
      for start in starts
    )
    jax.block_until_ready(squares)

  squares, peak = None, m.Peak()
  block.lower(params, source, 0).compile()  # into the cache
  if name == "jacfwd":
    jax.block_until_ready(block(params, source, 0))
  spent = m.seconds(work)
  return jnp.sqrt(squares).tolist(), spent, peak


def _torch(name: str, case: dict[str, Any]) -> dict[str, Any]:
  import torch

  import sinkjax
  from sinkjax.transforms.jacobian_plan import Costs

  m.limit_memory()
  model = m.torch_model().model
  model.layers = model.layers[: case["layers"]]
  # Our map ends at resid_post, which is before the final norm.
  model.norm = torch.nn.Identity()
  opened = sinkjax.open_layers("smollm2-135m")
  length, middle = case["tokens"], case["tokens"] // 2
  ids = torch.tensor([m.text_ids(opened.tokenizer, length)])
  embedded = model.embed_tokens(ids)
  future = torch.full((length, length), float("-inf")).triu(1)
  fixed = {
    "attention_mask": future[None, None],
    "use_cache": False,
    "position_ids": torch.arange(length)[None],
  }

  def of_middle(x):
    whole = embedded.index_put((torch.tensor(0), torch.tensor(middle)), x)
    return model(inputs_embeds=whole, **fixed).last_hidden_state[0]

  def last(x):
    return model(inputs_embeds=x, **fixed).last_hidden_state[0, -1]

  def column():  # jacfwd itself has no chunk_size
    squares = 0
    for units in torch.eye(embedded.shape[-1]).split(CHUNK):

      def moved(a, units=units):
        return of_middle(embedded[0, middle] + a @ units)

      jacobian = torch.func.jacfwd(moved)(torch.zeros(CHUNK))
      squares = squares + jacobian.square().sum((1, 2))
    return squares.sqrt()

  def row():
    jacobian = torch.func.jacrev(last, chunk_size=CHUNK)
    return jacobian(embedded)[:, 0].square().sum((0, 2)).sqrt()

  forward = name == "torch_jacfwd"
  peak = m.Peak()
  norms = None

  def work():
    nonlocal norms
    norms = column() if forward else row()

  spent = m.seconds(work) * length
  cfg = opened.cfg.replace(n_layers=case["layers"])
  costs = Costs(cfg, length, cfg.n_layers)
  flops = length * cfg.d_model * cfg.n_layers * costs.push_flops(False, 0)
  which = "column" if forward else "row"
  return _result(spent, flops, peak, m.torch_rate(), **{which: norms.tolist()})


def _result(
  spent: float, flops: float, peak: m.Peak, machine: float, **norms: list[float]
) -> dict[str, Any]:
  return {
    "seconds": spent,
    "peak_bytes": peak.bytes(),
    "rate": flops / spent,
    "share": flops / spent / machine,
    **norms,
  }


def compare(results: dict[str, dict[str, Any]]) -> None:
  """Adds each peer's largest relative difference from ours, in place."""
  ours = results["ours"]
  for found in results.values():
    for which in ("column", "row"):
      if found is not ours and which in found and which in ours:
        pairs = zip(found[which], ours[which], strict=True)
        # Over the largest norm: an entry in the causal future is 0 and has no
        # relative difference of its own.
        largest = max(ours[which])
        gap = max(abs(a - b) for a, b in pairs)
        found["difference"] = gap / largest
