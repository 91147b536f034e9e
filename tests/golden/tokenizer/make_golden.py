r"""Writes the golden ids of the tokenizer tests.

    python make_golden.py SMOLLM2.gguf GLASSLLM_FOLDER

Needs llama-cpp-python (0.3.36 was used), sentencepiece, gguf, tokenizers,
sinkjax and glassllm's package folder (`tokenizer.py` and `weights/`); only
tokenizers and sinkjax are needed to run the tests. Written here:

    strings.json.gz   the texts: `samples.txt` and the recipes in `texts.py`
    vocab.json.gz     those of `vocabularies.py`: `spm`, a SentencePiece BPE
                      vocabulary with byte fallback; `gemma`, one with runs of
                      spaces, newlines and tags as user-defined tokens;
                      `shuffled`, `spm` with other scores; `unspaced`, `gemma`
                      with "▁" for the spaces of those tokens; `bytes`, a
                      byte-level vocabulary whose merges cross every border
                      that a pre-tokenizer could draw, so that none is missed;
                      all as GGUF holds them. `pre`: for each pre-tokenizer
                      the first one that gives the same ids
    ids.npz.xz        what the references make of the texts: all ids one after
                      the other in `NAME`, and how many each text has in
                      `NAME.n`

Names: `smollm2`, `spm.prefix`, `spm.bare`, `gemma`, `shuffled` and `unspaced`,
with `.special` where special tokens are parsed, and `pre.NAME` (every
`PRE_STEP`th text) come from llama.cpp; `sentencepiece.prefix`,
`sentencepiece.bare` and `sentencepiece.gemma` from sentencepiece;
`glassllm.en` and `glassllm.pt` from glassllm.
"""

import contextlib
import ctypes
import gzip
import importlib.util
import io
import json
import lzma
import pathlib
import sys
import tempfile

from texts import strings
from vocabularies import (
  GEMMA,
  GEMMA_SPACES,
  USER,
  byte_level_metadata,
  sentencepiece_metadata,
  sentencepiece_model,
  shuffled,
  unspaced,
)

HERE = pathlib.Path(__file__).parent
PRE_STEP = 2


def sentencepiece_ids(model: bytes, texts: list[str], prefix: bool):
  """SentencePiece's own ids, with or without its dummy prefix."""
  import sentencepiece as spm
  from sentencepiece import sentencepiece_model_pb2

  proto = sentencepiece_model_pb2.ModelProto.FromString(model)
  proto.normalizer_spec.add_dummy_prefix = prefix
  model = proto.SerializeToString()
  processor = spm.SentencePieceProcessor(model_proto=model)
  return [processor.encode(text) for text in texts]


@contextlib.contextmanager
def llama_cpp(metadata: dict):
  """`encode(text, parse_special)` of llama.cpp for a vocabulary."""
  import gguf
  import llama_cpp as lib

  quiet = lib.llama_log_callback(lambda *_: None)
  lib.llama_log_set(quiet, ctypes.c_void_p(0))
  with tempfile.TemporaryDirectory() as folder:
    path = pathlib.Path(folder) / "vocab.gguf"
    writer = gguf.GGUFWriter(str(path), "llama")
    for key, value in metadata.items():
      if isinstance(value, bool):
        writer.add_bool(key, value)
      elif isinstance(value, int):
        writer.add_uint32(key, value)
      elif isinstance(value, str):
        writer.add_string(key, value)
      else:
        writer.add_array(key, value)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    params = lib.llama_model_default_params()
    params.vocab_only = True
    model = lib.llama_model_load_from_file(str(path).encode(), params)
  vocab = lib.llama_model_get_vocab(model)

  def encode(text: str, parse_special: bool = False) -> list[int]:
    raw = text.encode("utf-8")
    room = 2 * len(raw) + 16
    out = (lib.llama_token * room)()
    n = lib.llama_tokenize(
      vocab, raw, len(raw), out, room, False, parse_special
    )
    return list(out[:n])

  yield encode
  lib.llama_model_free(model)


def gguf_metadata(path) -> dict:
  """The `tokenizer.*` keys of a GGUF file."""
  import gguf

  fields = gguf.GGUFReader(path).fields
  return {
    key: field.contents()
    for key, field in fields.items()
    if key.startswith("tokenizer.")
  }


def glassllm_tokenizer(folder: pathlib.Path, language: str):
  """The package's own tokenizer."""
  spec = importlib.util.spec_from_file_location("g", folder / "tokenizer.py")
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  return module.Tokenizer.load(folder / f"weights/{language}.tokenizer.json")


def write_gzip(name: str, value) -> None:
  text = json.dumps(value, ensure_ascii=False, separators=(",", ":"))
  raw = gzip.compress(text.encode("utf-8"), 9, mtime=0)
  (HERE / name).write_bytes(raw)


def write_ids(rows: dict[str, list[list[int]]]) -> None:
  """Lists of ids as few arrays."""
  import numpy as np

  arrays = {}
  for name, found in rows.items():
    arrays[name] = np.array([i for row in found for i in row], np.uint16)
    arrays[f"{name}.n"] = np.array([len(row) for row in found], np.uint16)
  raw = io.BytesIO()
  np.savez(raw, **arrays)
  filters = [
    {
      "id": lzma.FILTER_LZMA2,
      "preset": 9 | lzma.PRESET_EXTREME,
      "pb": 1,
      "lp": 1,
      "lc": 3,
    }
  ]
  packed = lzma.compress(raw.getvalue(), filters=filters)
  (HERE / "ids.npz.xz").write_bytes(packed)


def main(smollm2: str, glassllm: str) -> None:
  from sinkjax.weights.pre_tokenizers import PRE_TOKENIZERS

  texts = strings()
  write_gzip("strings.json.gz", texts)
  models = {
    "spm": sentencepiece_model(
      texts, user_defined_symbols=USER, control_symbols=["<|im_start|>"]
    ),
    "gemma": sentencepiece_model(
      texts,
      user_defined_symbols=GEMMA + GEMMA_SPACES,
      add_dummy_prefix=False,
      pad_id=0,
      eos_id=1,
      bos_id=2,
      unk_id=3,
      control_symbols=["<start_of_turn>", "<end_of_turn>"],
      pad_piece="<pad>",
      eos_piece="<eos>",
      bos_piece="<bos>",
    ),
  }
  vocab = {name: sentencepiece_metadata(raw) for name, raw in models.items()}
  vocab["shuffled"] = shuffled(vocab["spm"])
  vocab["unspaced"] = unspaced(vocab["gemma"])
  vocab["bytes"] = byte_level_metadata(texts)
  prefix = "tokenizer.ggml.add_space_prefix"
  ids = {}
  for name, metadata in {
    "smollm2": gguf_metadata(smollm2),
    "spm.prefix": vocab["spm"],
    "spm.bare": vocab["spm"] | {prefix: False},
    "gemma": vocab["gemma"],
    "shuffled": vocab["shuffled"],
    "unspaced": vocab["unspaced"],
  }.items():
    with llama_cpp(metadata) as encode:
      ids[name] = [encode(text) for text in texts]
      ids[f"{name}.special"] = [encode(text, True) for text in texts]
  for name, theirs, add in (
    ("spm.prefix", "spm", True),
    ("spm.bare", "spm", False),
    ("gemma", "gemma", False),
  ):
    rows = sentencepiece_ids(models[theirs], texts, add)
    differ = [
      t for t, a, b in zip(texts, rows, ids[name], strict=True) if a != b
    ]
    print(f"sentencepiece and llama.cpp, {name}: {len(differ)} differ")
    ids[f"sentencepiece.{name.split('.')[-1]}"] = rows
  found, vocab["pre"] = {}, {}
  for pre in PRE_TOKENIZERS:
    with llama_cpp(vocab["bytes"] | {"tokenizer.ggml.pre": pre}) as encode:
      rows = [encode(text) for text in texts[::PRE_STEP]]
    vocab["pre"][pre] = found.setdefault(json.dumps(rows), pre)
  for rows, pre in found.items():
    ids[f"pre.{pre}"] = json.loads(rows)
  print("pre-tokenizers that differ:", *found.values())
  write_gzip("vocab.json.gz", vocab)
  for language in ("en", "pt"):
    tokenizer = glassllm_tokenizer(pathlib.Path(glassllm), language)
    ids[f"glassllm.{language}"] = [tokenizer.encode(t) for t in texts]
  write_ids(ids)
  for file in sorted(path for path in HERE.iterdir() if path.is_file()):
    print(f"{file.name:16} {file.stat().st_size / 1024:7.1f} KiB")
  print(len(texts), "texts,", len(texts[::PRE_STEP]), "for each pre-tokenizer")


if __name__ == "__main__":
  main(*sys.argv[1:])
