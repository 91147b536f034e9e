"""The golden models, and the same weights in other files.

What is golden is found by its folder, and what llama.cpp has of it by the table
of families: a new family needs no line here.

GGUF files are written as llama.cpp's converter writes them: with the names of
the `gguf` package, permuted rotary rows, 1 + w in norms that multiply by it,
turned kernels. None of this is taken from the code under test.
"""

import json
import math
import pathlib
import re
import sys
import threading
import time
from types import MappingProxyType

import gguf
import numpy as np
from safetensors.numpy import load_file, save_file

from sinkjax.weights import families, huggingface

sys.path.insert(0, str(pathlib.Path(__file__).parent))
from golden_metadata import (
  add_value,
  without_xielu,
  write_experts,
  write_metadata,
  write_more,
  write_vocabulary,
)

FAMILIES = pathlib.Path(__file__).parents[1] / "golden" / "families"
NAMES = sorted(path.name for path in FAMILIES.iterdir())
# What the converter does to an architecture's tensors beside renaming them.
_PERMUTED = ("llama", "smollm3", "arcee", "granite", "olmo")
# Whose queries, keys and values lie head by head in the folder.
_BY_HEADS = ("bloom", "gptneox", "falcon")
_TRANSPOSED = {"gpt2": ("attn_qkv", "attn_output", "ffn_up", "ffn_down")}


def family_of(name):
  """The family of a golden model."""
  values = json.loads((FAMILIES / name / "config.json").read_text())
  return families.find(values["model_type"])


# llama.cpp has Qwen 3 without gates, Falcon without biases and ALiBi, and
# DeepSeek V3 without biases (see `test_gguf_deepseek`).
_NOT_THERE = (
  *("gated_headwise", "gated_elementwise", "falcon", "falcon_alibi"),
  *("deepseek_v3", "deepseek_v3_plain"),
)
GGUF = {
  name: family_of(name).gguf.architecture
  for name in NAMES
  if family_of(name).gguf and name not in _NOT_THERE
}
"""Golden models that llama.cpp has, and its name of their architecture."""


def permute(weight, heads):
  """llama.cpp's converter: half-split rotary rows to neighbouring pairs."""
  split = weight.reshape(heads, 2, weight.shape[0] // heads // 2, -1)
  return split.swapaxes(1, 2).reshape(weight.shape)


def rope_factors(cfg):
  """llama.cpp's converter: what Llama 3.1 divides each frequency by."""
  scaling, factors = cfg.rope_scaling, []
  long = scaling.original_max_len / scaling.low_freq
  short = scaling.original_max_len / scaling.high_freq
  for i in range(cfg.head_dim // 2):
    wavelength = 2 * math.pi * cfg.rope_base ** (2 * i / cfg.head_dim)
    if wavelength < short:
      factors.append(1.0)
    elif wavelength > long:
      factors.append(scaling.factor)
    else:
      smooth = (scaling.original_max_len / wavelength - scaling.low_freq) / (
        scaling.high_freq - scaling.low_freq
      )
      factors.append(1 / ((1 - smooth) / scaling.factor + smooth))
  return np.array(factors, np.float32)


def named(name, arch):
  """A name as the converter looks it up: BLOOM's has none of its wrapper."""
  return name.removeprefix("transformer.") if arch == "bloom" else name


def pieces(tensors):
  """Tensors as the converter names them before it renames: (name, tensor).

  The maps of a layer's experts are stacked, and gates that lie in turn with
  what they open are told apart.
  """
  experts = {}
  for name, tensor in tensors.items():
    alone = re.fullmatch(r"(.*\.experts)\.(\d+)(\..*)", name)
    if alone:
      experts.setdefault(alone[1] + alone[3], {})[int(alone[2])] = tensor
    elif ".experts.gate_up_proj" in name:
      for part, half in (("gate", 0), ("up", 1)):
        new = name.replace("gate_up_proj", f"{part}_proj")
        yield from _of_experts(new, tensor[..., half::2])
    elif ".experts." in name:
      yield from _of_experts(name, tensor)
    elif name.endswith(".sinks"):
      yield f"{name}.weight", tensor
    else:
      yield name, tensor
  for name, found in experts.items():
    # The names of Mistral AI.
    name = name.replace("block_sparse_moe.experts", "feed_forward.experts")
    if ".feed_forward." in name:
      name = name.removeprefix("model.")
    yield name, np.stack([found[i] for i in range(len(found))])


def _of_experts(name, tensor):
  """gpt-oss: matrices are [in, out] there and have no suffix."""
  if name.endswith("_bias"):
    yield name.removesuffix("_bias") + ".bias", tensor
  else:
    yield f"{name}.weight", tensor.swapaxes(1, 2)


def in_thirds(tensor, cfg):
  """llama.cpp's converter: all queries, then all keys, then all values."""
  rest = tensor.shape[1:]
  groups = tensor.reshape(cfg.n_kv_heads, -1, cfg.head_dim, *rest)
  thirds = groups[:, :-2], groups[:, -2:-1], groups[:, -1:]
  return np.concatenate([part.reshape(-1, *rest) for part in thirds])


def converted(name, tensor, cfg, arch):
  """One tensor as the converter stores it, by its name there."""
  part = name.split(".")[-2]
  if arch in _PERMUTED and part in ("attn_q", "attn_k"):
    tensor = permute(
      tensor, cfg.n_heads if part == "attn_q" else cfg.n_kv_heads
    )
  if arch in _BY_HEADS and part == "attn_qkv":
    tensor = in_thirds(tensor, cfg)
  if "norm" in part and name.endswith(".weight") and cfg.norm_offset:
    tensor = tensor + np.float32(cfg.norm_offset)
  if part in _TRANSPOSED.get(arch, ()):
    tensor = tensor.T  # of a bias that is itself
  return np.ascontiguousarray(tensor)


def write_gguf(
  path,
  model,
  drop=(),
  extra=(),
  values=(),
  quantised=MappingProxyType({}),
  **more,
):
  """A golden model as a GGUF file.

  Args:
    path: the file.
    model: its name.
    drop: names of tensors, of safetensors, to leave out.
    extra: (name, tensor) to add.
    values: (key below the architecture's, string or number) to add.
    quantised: types of a layer's matrices, by their names.
    **more: of the writer, as how many tensors a part has.
  """
  arch, cfg = GGUF[model], huggingface.load_config(FAMILIES / model)
  writer = gguf.GGUFWriter(path, arch, **more)
  for key, value in values:
    add_value(writer, f"{arch}.{key}", value)
  write_metadata(writer, cfg)
  write_more(writer, cfg, arch)
  if cfg.n_experts:
    write_experts(writer, cfg, arch)
  write_vocabulary(writer, cfg)
  number = {n: i for i, n in gguf.MODEL_ARCH_NAMES.items()}[arch]
  names = gguf.get_tensor_name_map(number, cfg.n_layers)
  tensors = load_file(FAMILIES / model / "model.safetensors")
  kept = {name: x for name, x in tensors.items() if name not in drop}
  kept = without_xielu(writer, kept, cfg.n_layers)
  for old, tensor in pieces(kept):
    name = names.get_name(named(old, arch), try_suffixes=(".weight", ".bias"))
    tensor = converted(name, tensor, cfg, arch)
    kind = quantised.get(name.removesuffix(".weight").split(".")[-1])
    if kind is not None:
      tensor = gguf.quants.quantize(tensor, kind)
    writer.add_tensor(name, tensor, raw_dtype=kind)
  if cfg.rope_scaling is not None and cfg.rope_scaling.kind == "llama3":
    extra = [*extra, ("rope_freqs.weight", rope_factors(cfg))]
  if cfg.rope_scaling is not None and cfg.rope_scaling.kind == "longrope":
    long, short = cfg.rope_scaling.factors, cfg.rope_scaling.short_factors
    for name, values in (("long", long), ("short", short)):
      factors = np.array(values, np.float32)
      extra = [*extra, (f"rope_factors_{name}.weight", factors)]
  for name, tensor in extra:
    writer.add_tensor(name, tensor)
  writer.write_header_to_file()
  writer.write_kv_data_to_file()
  writer.write_tensors_to_file()
  writer.close()


def write_sharded(folder, dtype=None):
  """The tiny Llama 3 in two shards, as transformers splits large models."""
  source = FAMILIES / "llama3"
  tensors = load_file(source / "model.safetensors")
  if dtype is not None:
    tensors = {name: tensor.astype(dtype) for name, tensor in tensors.items()}
  names, weight_map = sorted(tensors), {}
  for i, part in enumerate((names[::2], names[1::2])):
    file = f"model-0000{i + 1}-of-00002.safetensors"
    save_file({name: tensors[name] for name in part}, folder / file)
    weight_map |= dict.fromkeys(part, file)
  index = {"metadata": {}, "weight_map": weight_map}
  text = json.dumps(index)
  (folder / "model.safetensors.index.json").write_text(text)
  (folder / "config.json").write_bytes((source / "config.json").read_bytes())
  return tensors


def reading_ahead():
  """Threads that read ahead; those told to end get a moment."""
  for _ in range(100):
    found = [t for t in threading.enumerate() if "sinkjax" in t.name]
    if not found:
      break
    time.sleep(0.01)
  return found
