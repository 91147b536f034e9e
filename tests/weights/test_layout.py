"""Layouts: what is written is read back, and lies as other code has it."""

import numpy as np
import pytest

from sinkjax.weights.assemble import assemble, disassemble, flat_shapes
from sinkjax.weights.fused_layouts import (
  FusedGroups,
  FusedHeads,
  FusedRows,
  FusedThirds,
)
from sinkjax.weights.layout import Below, Kernel, Layout, Leaf, Linear, Vector
from sinkjax.weights.rotary_layouts import PartlyInterleaved
from sinkjax.weights.validate import WeightsError

D, H, K = 6, 3, 4
QUERY, OUT, BIAS = (D, H, K), (H, K, D), (H, K)
WIDER = (D, H, 6)


class Arrays:
  """A source that holds its tensors in memory."""

  where = "memory"

  def __init__(self, tensors):
    self.tensors = tensors

  def shapes(self):
    return {name: tensor.shape for name, tensor in self.tensors.items()}

  def read(self, name, out=None):
    if out is None:
      return self.tensors[name].copy()
    out[...] = self.tensors[name].reshape(out.shape)
    return out


def numbers(shape, start=0):
  return np.arange(start, start + np.prod(shape), dtype=np.float32).reshape(
    shape
  )


def interleaved(rows):
  """llama.cpp's converter: half-split rotary rows to neighbouring pairs."""
  split = rows.reshape(H, 2, K // 2, *rows.shape[1:])
  return split.swapaxes(1, 2).reshape(rows.shape)


ALONE = [
  (Layout(), QUERY, lambda q: q),
  (Vector(), BIAS, np.ravel),
  (Vector(interleaved_rope=True), BIAS, lambda b: interleaved(b.ravel())),
  (Linear(), QUERY, lambda q: q.reshape(D, H * K).T),
  (Linear(inputs=2), OUT, lambda o: o.reshape(H * K, D).T),
  (Kernel(), QUERY, lambda q: q.reshape(D, H * K)),
  (Kernel(inputs=2), OUT, lambda o: o.reshape(H * K, D)),
  (
    Linear(interleaved_rope=True),
    QUERY,
    lambda q: interleaved(q.reshape(D, H * K).T),
  ),
  (
    Kernel(interleaved_rope=True),
    QUERY,
    lambda q: interleaved(q.reshape(D, H * K).T).T,
  ),
  (PartlyInterleaved(Vector(), K), BIAS, lambda b: interleaved(b.ravel())),
  (
    PartlyInterleaved(Linear(), 4),
    WIDER,
    lambda q: q[..., [0, 2, 1, 3, 4, 5]].reshape(D, H * 6).T,
  ),
]


@pytest.mark.parametrize(
  ("layout", "shape", "want"), ALONE, ids=[str(case[0]) for case in ALONE]
)
def test_a_tensor_of_one_parameter(layout, shape, want):
  slot = numbers(shape)
  tensor = np.empty(layout.stored_shape(shape), np.float32)
  layout.write(slot, tensor)
  np.testing.assert_array_equal(tensor, want(slot))
  again = np.full(shape, np.nan, np.float32)
  layout.read(Arrays({"x": tensor}), "x", again)
  np.testing.assert_array_equal(again, slot)


def thirds(axis):
  return lambda *parts: np.concatenate(parts, axis=axis)


def by_head(*parts):
  """GPT-NeoX: of the first axis, [H, (q, k, v), K]."""
  split = [part.reshape(H, 1, K, *part.shape[1:]) for part in parts]
  return np.concatenate(split, axis=1).reshape(3 * H * K, *parts[0].shape[1:])


@pytest.mark.parametrize(
  ("kind", "each", "shape", "join"),
  [
    (FusedThirds, Vector(), BIAS, thirds(0)),
    (FusedThirds, Linear(), QUERY, thirds(0)),
    (FusedThirds, Kernel(), QUERY, thirds(1)),
    (FusedHeads, Vector(), BIAS, by_head),
    (FusedHeads, Linear(), QUERY, by_head),
  ],
)
def test_a_tensor_of_three_parameters(kind, each, shape, join):
  slots = [numbers(shape, 1000 * part) for part in range(3)]
  layouts = [kind(each, part) for part in range(3)]
  (stored,) = {layout.stored_shape(shape) for layout in layouts}
  tensor, alone = np.empty(stored, np.float32), []
  for layout, slot in zip(layouts, slots, strict=True):
    layout.write(slot, tensor)
    alone.append(np.empty(each.stored_shape(shape), np.float32))
    each.write(slot, alone[-1])
  np.testing.assert_array_equal(tensor, join(*alone))
  for layout, slot in zip(layouts, slots, strict=True):
    again = np.full(shape, np.nan, np.float32)
    layout.read(Arrays({"x": tensor}), "x", again)
    np.testing.assert_array_equal(again, slot)


@pytest.mark.parametrize("each", [Linear(), Vector()], ids=["matrix", "bias"])
def test_groups_of_heads_one_after_the_other(each):
  """Falcon: two queries, a key and a value, and the same of the next group."""
  lead = () if isinstance(each, Vector) else (D,)
  shapes = [(*lead, 2 * H, K), (*lead, H, K), (*lead, H, K)]
  slots = [numbers(shape, 1000 * i) for i, shape in enumerate(shapes)]
  layouts = [FusedGroups(each, i, (2 * K, K, K), H) for i in range(3)]
  pairs = list(zip(layouts, shapes, strict=True))
  (stored,) = {layout.stored_shape(shape) for layout, shape in pairs}
  tensor = np.empty(stored, np.float32)
  for layout, slot in zip(layouts, slots, strict=True):
    layout.write(slot, tensor)
  rows = [np.moveaxis(x, -3, -1) if lead else x for x in slots]
  q, k, v = (x.reshape(H, -1, K, *lead) for x in rows)
  want = np.concatenate([q, k, v], axis=1).reshape(stored)
  np.testing.assert_array_equal(tensor, want)
  for layout, slot in zip(layouts, slots, strict=True):
    again = np.full(slot.shape, np.nan, np.float32)
    layout.read(Arrays({"x": tensor}), "x", again)
    np.testing.assert_array_equal(again, slot)


def test_norm_offset_is_in_the_file_and_not_in_the_parameter():
  leaf = Leaf("final_norm/scale", "norm.weight", norm_offset=1.0)
  tensor = np.empty(D, np.float32)
  leaf.write(numbers((D,)), tensor)
  np.testing.assert_array_equal(tensor, numbers((D,)) + 1)
  slot = np.empty(D, np.float32)
  leaf.read(Arrays({"norm.weight": tensor}), "norm.weight", slot)
  np.testing.assert_array_equal(slot, numbers((D,)))


def leaves(cfg):
  return [
    Leaf(path, f"{{i}}.{path}" if path.startswith("blocks") else path, Layout())
    for path in flat_shapes(cfg)
  ]


def test_leaves_must_be_those_of_the_config(tiny):
  params, cfg = tiny
  tensors = disassemble(cfg, leaves(cfg), params)
  again = assemble(cfg, leaves(cfg), Arrays(tensors))
  np.testing.assert_array_equal(again["embed"], params["embed"])
  with pytest.raises(WeightsError, match="cannot hold blocks/attn/k/kernel"):
    few = [leaf for leaf in leaves(cfg) if "/k/" not in leaf.path]
    assemble(cfg, few, Arrays(tensors))
  with pytest.raises(WeightsError, match="holds positions, which a model"):
    assemble(cfg, [*leaves(cfg), Leaf("positions", "p")], Arrays(tensors))


def test_a_fused_tensor_is_written_whole_or_not_at_all(tiny):
  params, cfg = tiny
  query = Leaf("blocks/attn/q/kernel", "{i}.qkv", FusedThirds(Linear(), 0))
  with pytest.raises(WeightsError, match="'0.qkv': 2048 of its elements"):
    disassemble(cfg, [query], params)
  key = Leaf("blocks/attn/k/kernel", "{i}.qkv", FusedThirds(Linear(), 1))
  with pytest.raises(WeightsError, match="'0.qkv' would need both shape"):
    disassemble(cfg, [query, key], params)  # of fewer key heads


def test_parameters_of_different_sizes_one_after_the_other():
  """[q; k; v] with fewer key heads, whole and by parts."""
  shapes = [(D, 4, K), (D, 2, K), (D, 2, K)]
  slots = [numbers(shape, 1000 * i) for i, shape in enumerate(shapes)]
  sizes = (4 * K, 2 * K, 2 * K)
  layouts = [FusedRows(Linear(), i, sizes) for i in range(3)]
  (stored,) = {
    layout.stored_shape(slot.shape)
    for layout, slot in zip(layouts, slots, strict=True)
  }
  tensor = np.full(stored, np.nan, np.float32)
  for layout, slot in zip(layouts, slots, strict=True):
    layout.write(slot, tensor)
  rows = [slot.reshape(D, -1).T for slot in slots]
  np.testing.assert_array_equal(tensor, np.concatenate(rows))
  for layout, slot in zip(layouts, slots, strict=True):
    again = np.full(slot.shape, np.nan, np.float32)
    layout.read(Arrays({"x": tensor}), "x", again)
    np.testing.assert_array_equal(again, slot)


def test_a_table_behind_rows_that_nothing_reads():
  layout, slot = Below(2), numbers((5, D))
  tensor = np.full(layout.stored_shape(slot.shape), np.nan, np.float32)
  layout.write(slot, tensor)
  np.testing.assert_array_equal(
    tensor, np.concatenate([np.zeros((2, D)), slot])
  )
  assert layout.spare(slot.shape) == 2 * D
  again = np.empty_like(slot)
  layout.read(Arrays({"x": tensor}), "x", again)
  np.testing.assert_array_equal(again, slot)
  box = layout.stored_part(slot.shape, (slice(1, 3), slice(0, D)))
  np.testing.assert_array_equal(tensor[box], slot[1:3])
  assert [layout.stored_row(row) for row in (0, 4)] == [2, 6]
