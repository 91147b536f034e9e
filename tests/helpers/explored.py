"""A page to explore of made-up numbers, which a test can look for."""

import numpy as np

from sinkjax.analysis.exploration import Condition, Exploration
from sinkjax.transforms.find_sinks import Sink

LAYERS, HEADS, KV_HEADS, LENGTH = 3, 4, 2, 7
TEXTS = ["The", " sea", " was", "\n", " flat", " again", "."]
EDIT = "knockout key=0"
READY = "globalThis.sinkjax"
"""True in a page that is drawn."""


def patterns(seed: int, first: float) -> np.ndarray:
  """[L, H, T, T] rows that sum to one, `first` of it more on the first key."""
  random = np.random.default_rng(seed)
  weights = np.tril(random.uniform(0.1, 1, (LAYERS, HEADS, LENGTH, LENGTH)))
  # Heads differ by how much, so that an order by it is one.
  more = np.linspace(0, 4 * first, LAYERS * HEADS)[::-1]
  weights[..., 0] += more.reshape(LAYERS, HEADS, 1)
  return weights / weights.sum(axis=-1, keepdims=True)


def condition(name: str, seed: int, first: float) -> Condition:
  """One of the page."""
  random = np.random.default_rng(seed + 10)
  sink = Sink(0, 4, 7, "lasting", 0, 2, 5, 0.5, 30.0, 0.9, 0.25)
  return Condition(
    name,
    patterns(seed, first),
    random.uniform(0.5, 2, (LAYERS, KV_HEADS, LENGTH)),
    random.uniform(0, 1, (LAYERS, HEADS, LENGTH)),
    2.0 + seed,
    [sink._replace(position=0), sink] if first else [],
    np.tril(random.uniform(0.01, 1, (LAYERS, LENGTH, LENGTH))),
  )


def exploration() -> Exploration:
  """As it is, and with less attention on the first token."""
  plain, edited = condition("as it is", 0, 1.0), condition(EDIT, 1, 0.0)
  return Exploration(list(range(3, 3 + LENGTH)), [plain, edited])


def carriers() -> dict:
  """Of the pairs with the two last tokens as targets."""
  random = np.random.default_rng(5)
  rows = [LENGTH - 2, LENGTH - 1]
  shape = (LAYERS, len(rows), LENGTH)

  def one() -> dict:
    heads = random.uniform(0.1, 1, (LAYERS, HEADS, *shape[1:]))
    return {"mlp": random.uniform(-1, -0.1, shape), "values": heads}

  return {"rows": rows, "conditions": [one(), one()]}


def cell(tab, t, s, number=0):
  """The middle of a cell of a large map, in view."""
  tab.run(
    f"document.querySelectorAll('.over')[{number}].scrollIntoView("
    "{block: 'center'})"
  )
  return tab.run(
    f"""(() => {{
      const one = sinkjax.large[{number}], {{ left, top, cell }} = one.plan;
      const box = one.over.getBoundingClientRect();
      return [box.left + left + ({s} + 0.5) * cell,
        box.top + top + ({t} + 0.5) * cell];
    }})()"""
  )


def head(tab, layer, number):
  """The middle of a small map, in view."""
  return tab.run(
    f"""(() => {{
      const grid = sinkjax.grid, {{ image, height }} = grid.plan;
      const at = grid.order.indexOf({layer} * grid.heads + {number});
      const [x, y] = grid.corner(at);
      grid.box.scrollIntoView({{ block: "nearest" }});
      grid.box.scrollTop = Math.max(0, y - 60);
      const box = grid.canvas.getBoundingClientRect();
      return [box.left + x + image / 2, box.top + y + image / 2];
    }})()"""
  )
