"""GGUF quantisation types -> float32, one numpy kernel a format.

Each kernel takes bytes first: `raw` is uint8 [block_bytes, ...] and `out`
float32 [block, ...]. What the other axes mean, and which of them is
contiguous, is the caller's business: numpy orders its loops by the strides.
Every kernel does the same float operations in the same order as
`gguf.quants.dequantize`, so results agree bit for bit (tested), and returns
whether all block scales are finite. Finite float16 scales times the largest
integer of a block stay far below the float32 maximum, so finite scales mean
finite weights.

Types without a kernel here go through `gguf.quants.dequantize`.

Source: the block layouts of ggml (ggml-common.h) as read by gguf 0.19.
"""

import functools

import gguf
import numpy as np
from gguf import GGMLQuantizationType as Type

from sinkjax.weights.formats import tiles


@functools.cache
def codec(type_: Type) -> tiles.Codec | None:
  """The codec of a type, or None where nothing here can dequantise it."""
  if type_ not in gguf.GGML_QUANT_SIZES:
    return None
  block, block_bytes = gguf.GGML_QUANT_SIZES[type_]
  if type_ in PLAIN:
    return tiles.Codec(block, block_bytes, values=PLAIN[type_])
  if type_ in _KERNELS:
    return tiles.Codec(block, block_bytes, kernel=_KERNELS[type_])
  values = functools.partial(_through_gguf, type_, block_bytes)
  try:
    values(np.zeros(block_bytes, np.uint8))
  except NotImplementedError:
    return None
  return tiles.Codec(block, block_bytes, values=values)


def _through_gguf(type_: Type, block_bytes: int, raw: np.ndarray):
  # 64 blocks a row: gguf works on groups of 16 rows.
  whole = len(raw) // (64 * block_bytes) * (64 * block_bytes)
  parts = [
    gguf.quants.dequantize(part.reshape(-1, width), type_).ravel()
    for part, width in (
      (raw[:whole], 64 * block_bytes),
      (raw[whole:], block_bytes),
    )
    if part.size
  ]
  return parts[0] if len(parts) == 1 else np.concatenate(parts)


def float32_values(raw: np.ndarray) -> np.ndarray:
  """Little-endian float32."""
  return raw.view("<f4")


def float16_values(raw: np.ndarray) -> np.ndarray:
  """Little-endian IEEE half."""
  return raw.view("<f2").astype(np.float32)


def bfloat16_values(raw: np.ndarray) -> np.ndarray:
  """The upper half of a float32."""
  bits = raw.view("<u2").astype(np.uint32)
  bits <<= 16
  return bits.view(np.float32)


def _half(raw: np.ndarray) -> np.ndarray:
  """Two byte planes [2, ...] -> the float16 they make up, as float32."""
  bits = raw[1].astype(np.uint16)
  bits <<= 8
  bits |= raw[0]
  return bits.view(np.float16).astype(np.float32)


def _finite(*scales: np.ndarray) -> bool:
  return all(bool(np.isfinite(scale).all()) for scale in scales)


def _nibbles(packed: np.ndarray, out: np.ndarray, axis: int = 0) -> None:
  """Low nibbles into the first half of `out` along `axis`, high after."""
  half = out.shape[axis] // 2
  where = (slice(None),) * axis
  out[(*where, slice(None, half))] = packed & 15
  out[(*where, slice(half, None))] = packed >> 4


def _bits(packed: np.ndarray, width: int) -> np.ndarray:
  """[n, ...] -> [n, 8 / width, ...], lowest bits first."""
  shifts = np.arange(0, 8, width, dtype=np.uint8)
  shifts = shifts.reshape(-1, *[1] * (packed.ndim - 1))
  return (packed[:, None] >> shifts) & np.uint8((1 << width) - 1)


def _q4_0(raw: np.ndarray, out: np.ndarray) -> bool:
  scale, q = _half(raw[:2]), np.empty_like(out)
  _nibbles(raw[2:], q)
  q -= 8
  np.multiply(q, scale, out=out)
  return _finite(scale)


def _q4_1(raw: np.ndarray, out: np.ndarray) -> bool:
  scale, low, q = _half(raw[:2]), _half(raw[2:4]), np.empty_like(out)
  _nibbles(raw[4:], q)
  q *= scale
  np.add(q, low, out=out)
  return _finite(scale, low)


def _five_bits(packed: np.ndarray, high: np.ndarray, out: np.ndarray):
  """Sixteen bytes of nibbles and four of fifth bits -> float32 0..31."""
  codes = np.empty_like(out, dtype=np.uint8)
  _nibbles(packed, codes)
  codes |= _bits(high, 1).reshape(out.shape) << 4
  return codes.astype(np.float32)


def _q5_0(raw: np.ndarray, out: np.ndarray) -> bool:
  scale = _half(raw[:2])
  q = _five_bits(raw[6:], raw[2:6], out)
  q -= 16
  np.multiply(q, scale, out=out)
  return _finite(scale)


def _q5_1(raw: np.ndarray, out: np.ndarray) -> bool:
  scale, low = _half(raw[:2]), _half(raw[2:4])
  q = _five_bits(raw[8:], raw[4:8], out)
  q *= scale
  np.add(q, low, out=out)
  return _finite(scale, low)


def _q8_0(raw: np.ndarray, out: np.ndarray) -> bool:
  scale, q = _half(raw[:2]), np.empty_like(out)
  q[...] = raw[2:].view(np.int8)
  np.multiply(q, scale, out=out)
  return _finite(scale)


def _scale_and_min(packed: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
  """Twelve bytes -> eight 6-bit scales and eight 6-bit minima, float32."""
  d, m, both = packed[:4], packed[4:8], packed[8:]
  scale = np.concatenate([d & 63, (both & 15) | ((d >> 2) & 48)])
  low = np.concatenate([m & 63, (both >> 4) | ((m >> 2) & 48)])
  return scale.astype(np.float32), low.astype(np.float32)


def _k_affine(raw: np.ndarray, codes: np.ndarray, out: np.ndarray) -> bool:
  """Q4_K and Q5_K: codes [4, 2, 32, ...] -> scale * code - min."""
  scale, low = _half(raw[:2]), _half(raw[2:4])
  finite = _finite(scale, low)
  scales, lows = _scale_and_min(raw[4:16])
  scales, lows = scales * scale, lows * low
  groups = (4, 2, 1, *out.shape[1:])
  codes *= scales.reshape(groups)
  np.subtract(
    codes, lows.reshape(groups), out=out.reshape(4, 2, 32, *out.shape[1:])
  )
  return finite


def _q4_k(raw: np.ndarray, out: np.ndarray) -> bool:
  codes = np.empty_like(out).reshape(4, 2, 32, *out.shape[1:])
  packed = raw[16:].reshape(4, 1, 32, *out.shape[1:])
  _nibbles(packed, codes, axis=1)
  return _k_affine(raw, codes, out)


def _q5_k(raw: np.ndarray, out: np.ndarray) -> bool:
  rest = out.shape[1:]
  codes = np.empty_like(out, dtype=np.uint8).reshape(4, 2, 32, *rest)
  _nibbles(raw[48:].reshape(4, 1, 32, *rest), codes, axis=1)
  high = _bits(raw[16:48], 1).swapaxes(0, 1).reshape(4, 2, 32, *rest)
  codes |= high << 4
  return _k_affine(raw, codes.astype(np.float32), out)


def _q6_k(raw: np.ndarray, out: np.ndarray) -> bool:
  rest = out.shape[1:]
  codes = np.empty_like(out, dtype=np.uint8)
  # Two halves; in each, 64 low nibbles and then 64 high ones.
  _nibbles(
    raw[:128].reshape(2, 1, 64, *rest), codes.reshape(2, 2, 64, *rest), axis=1
  )
  high = _bits(raw[128:192], 2).reshape(2, 32, 4, *rest).swapaxes(1, 2)
  fours = codes.reshape(2, 4, 32, *rest)
  fours |= high << 4
  q = codes.astype(np.float32).reshape(16, 16, *rest)
  q -= 32
  scale = _half(raw[208:])
  scales = raw[192:208].view(np.int8).astype(np.float32)
  scales *= scale
  np.multiply(q, scales[:, None], out=out.reshape(16, 16, *rest))
  return _finite(scale)


PLAIN = {
  Type.F32: float32_values,
  Type.F16: float16_values,
  Type.BF16: bfloat16_values,
}
_KERNELS = {
  Type.Q4_0: _q4_0,
  Type.Q4_1: _q4_1,
  Type.Q5_0: _q5_0,
  Type.Q5_1: _q5_1,
  Type.Q8_0: _q8_0,
  Type.Q4_K: _q4_k,
  Type.Q5_K: _q5_k,
  Type.Q6_K: _q6_k,
}
