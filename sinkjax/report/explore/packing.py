"""Arrays and text as a page holds them, and back again."""

import base64
import json
import zlib
from collections.abc import Mapping
from typing import Any

import numpy as np


def packed(values: Any, dtype: Any) -> dict[str, Any]:
  """An array as the page reads it.

  Bytes of one significance stand together, as they deflate better: a third of
  those of attention's exponents is left. What exceeds float16 becomes its
  largest number.
  """
  values = np.asarray(values, np.float64)
  most = np.finfo(dtype).max
  array = np.clip(values, -most, most).astype(np.dtype(dtype).newbyteorder("<"))
  flat = np.frombuffer(array.tobytes(), np.uint8)
  planes = flat.reshape(-1, array.itemsize).T.tobytes()
  return {
    "shape": array.shape,
    "bytes": array.itemsize,
    "data": base64.b64encode(zlib.compress(planes, 9)).decode("ascii"),
  }


def unpacked(array: Mapping[str, Any]) -> np.ndarray:
  """The array of `packed`, as float16 or float32.

  >>> unpacked(packed([[1.0, 0.5], [0.25, 0.0]], np.float16)).tolist()
  [[1.0, 0.5], [0.25, 0.0]]
  """
  planes = zlib.decompress(base64.b64decode(array["data"]))
  size = array["bytes"]
  flat = np.frombuffer(planes, np.uint8).reshape(size, -1).T.tobytes()
  return np.frombuffer(flat, f"<f{size}").reshape(array["shape"])


def read(page: str) -> dict[str, Any]:
  """The data of a page, for who wants the numbers back.

  Args:
    page: `Page.html`, or the text of a file.
  """
  _, _, rest = page.partition('<script type="application/json" id="data">')
  return json.loads(rest.partition("</script>")[0])


def for_script(text: str) -> str:
  """JSON that ends no script and starts no comment in it."""
  for sign in "<>&":
    text = text.replace(sign, f"\\u{ord(sign):04x}")
  return text
