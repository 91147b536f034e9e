r"""Writes the golden ids of the tokenizer tests.

    python make_golden.py SMOLLM2.gguf GLASSLLM_FOLDER

Needs llama-cpp-python (0.3.36 was used), sentencepiece, gguf, tokenizers,
sinkjax and glassllm's package folder (`tokenizer.py` and `weights/`); only
tokenizers and sinkjax are needed to run the tests. Written here:

    strings.json.gz   the texts, from `samples.txt` and seeded recipes
    vocab.json.gz     `spm`, a SentencePiece BPE vocabulary with byte fallback;
                      `gemma`, one with runs of spaces, newlines and tags as
                      user-defined tokens; `shuffled`, `spm` with other
                      scores; `unspaced`, `gemma` with "▁" for the spaces of
                      those tokens; `bytes`, a byte-level vocabulary whose
                      merges cross every border that a pre-tokenizer could
                      draw, so that none is missed; all as GGUF holds them.
                      `pre`: for each pre-tokenizer the first one that gives
                      the same ids
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
import random
import sys
import tempfile

HERE = pathlib.Path(__file__).parent
PRE_STEP = 2
CONTROL = [
  "<|endoftext|>",
  "<|im_start|>",
  "<|im_end|>",
  "<repo_name>",
  "<s>",
  "</s>",
  "<unk>",
  "<pad>",
  "<bos>",
  "<eos>",
  "[INST]",
]
USER = ["<|tool|>", "\n\n"]
GEMMA = ["\n" * n for n in range(1, 6)] + ["<b>", "</b>", "<td>", "[@BOS@]"]
GEMMA_SPACES = ["▁" * n for n in range(2, 9)]
NORMAL, UNKNOWN, CONTROL_TYPE, USER_DEFINED, _, BYTE = range(1, 7)


def strings() -> list[str]:
  """The texts: the recipe is seeded, and deduplicated in order."""
  rng = random.Random(20240229)
  samples = (HERE / "samples.txt").read_text("utf-8").splitlines()
  found = ["", " ", "\n", "a", "é", "日", "🙂", "\0", "\t", "\r\n", "▁", "'s"]
  found += samples
  for recipe in (
    _whitespace,
    _digits,
    _prose,
    _code,
    _mixtures,
    _special,
    _emoji,
    _random_unicode,
    _repeats,
    _contractions,
    _control,
    _long_words,
  ):
    found += recipe(rng, samples)
  return list(dict.fromkeys(found))


def _whitespace(rng, samples):
  spaces = [
    " ",
    "  ",
    "    ",
    "\n",
    "\n\n",
    "\t",
    "\r\n",
    "\r",
    "\v",
    "\f",
    "\u00a0",
    "\u2003",
    "\u3000",
    "\u0085",
    "\u2028",
  ]
  words = " ".join(samples).split()
  found = [" " * n for n in range(2, 40, 3)]
  found += ["\n" * n + "x" for n in range(1, 9)]
  for _ in range(200):
    parts = rng.choices(words, k=rng.randint(1, 5))
    parts = [
      p + "".join(rng.choices(spaces, k=rng.randint(1, 3))) for p in parts
    ]
    found.append("".join(parts))
  return found


def _digits(rng, samples):
  patterns = ["{}", " {}", "x{}", "{}px", "{}.{}", "${},{}", "-{}", "{}:{} "]
  found = []
  for _ in range(120):
    number = str(rng.randrange(10 ** rng.randint(1, 12)))
    pattern = rng.choice(patterns)
    found.append(pattern.format(number, rng.randrange(1000)))
  return found


def _prose(rng, samples):
  english = [
    "the {} of a {} was {}er than we'd hoped, and nobody {}ed",
    "She {}s every {}; he doesn't.",
    "Why would {} {} matter to the {}?",
    '"It isn\'t {}," they said, "but {} is."',
    "Layer {} attends to {}, however {}.",
  ]
  french = [
    "l'{} du {} n'était pas {}, et personne ne l'{}ait su",
    "Elle {}e chaque {} ; lui, jamais.",
    "Pourquoi {} {} serait-il {} ?",
    "« Ce n'est pas {} », dit-on, « c'est {}. »",
    "La couche {} regarde {}, même {}.",
  ]
  words = [word for line in samples[:8] for word in line.split()]
  found = []
  for _ in range(140):
    for templates in (english, french):
      template = rng.choice(templates)
      found.append(template.format(*rng.choices(words, k=4)))
  return found


def _code(rng, samples):
  names = ["x", "user_id", "getValue", "HTTPServer", "tmp2", "αβ", "été", "_"]
  values = [
    "0x7fff",
    "1e-7",
    "'don\\'t'",
    '"a\\n\\tb"',
    "None",
    "[1, 2,3]",
    "f'{x:>8.3f}'",
    "null",
    "3.14f",
    "-1",
    "{...}",
  ]
  templates = [
    "def {n}(self, {m}: int = {v}) -> {n}:\n    return {m}[{v}:]\n",
    "    if {n} != {v} and not {m}:\n\t\traise ValueError({v})  # {m}",
    "for (int {n} = {v}; {n} < {m}; ++{n}) {{\r\n  {m}[{n}] <<= 2;\r\n}}",
    '"""{n}: {m}.\n\n  >>> {n}({v})\n  {v}\n  """',
    "const {n} = async ({m}) => `${{{m}}}` ?? {v}; // {n}",
    "SELECT {n}, COUNT({m}) FROM t WHERE {n} >= {v} AND {m} LIKE '%a_';",
    '{{"{n}": {v}, "{m}": [true, {v}]}}',
    "<a href='/{n}?{m}={v}&b=2#top'>&nbsp;{n}</a>\n\n</div>",
    "$ {n} --{m}={v} | grep -v '^#' >> ~/{n}.log 2>&1",
    "{n}();\n// {m}!\n\n/* {v} */\r\n//{n}.\n/",
    "        \n\n\n    {n}\t= {v}\t;\t/* {m} */   \n",
    "template<class {n}> auto {m}::operator->() -> decltype({v})&&;",
    "\\frac{{{n}_{{t+1}}}}{{{m}^2}} \\leq \\sqrt{{{v}}}",
  ]
  found = []
  for _ in range(330):
    text = rng.choice(templates).format(
      n=rng.choice(names), m=rng.choice(names), v=rng.choice(values)
    )
    start = rng.choice([0, 0, rng.randrange(12)])
    found.append(text[start : rng.choice([len(text), rng.randint(15, 50)])])
  return found


def _mixtures(rng, samples):
  found = []
  for _ in range(650):
    parts = []
    for _ in range(rng.randint(1, 3)):
      line = rng.choice(samples)
      start = rng.randrange(len(line))
      parts.append(line[start : start + rng.randint(1, 24)])
    found.append(rng.choice(["", " ", "\n", "'s "]).join(parts))
  return found


def _special(rng, samples):
  found = list(CONTROL) + USER + GEMMA
  found += [
    " <|im_start|> ",
    "<|im_start|><|im_end|>",
    "<|im_start",
    "<|<s>|>",
    "<|im_start|>user\nHi<|im_end|>\n",
    "x<|tool|>y",
    "<s> hello</s>",
    "<s>  a",
    "\n\n\n\n<s>",
    "<|IM_START|>",
    "< s>",
    "<td><b>x</b>",
    "<|tool|><|tool|>",
    "<|tool|> <|tool|>",
    "<s><s>a<s> b",
  ]
  words = " ".join(samples).split()
  tokens = [*CONTROL, *USER, "<|tool|>", "   ", "<b>", "[@BOS@]"]
  for _ in range(300):
    parts = rng.choices(words, k=rng.randint(1, 4))
    parts += rng.choices(tokens, k=rng.randint(1, 3))
    rng.shuffle(parts)
    found.append(rng.choice(["", " "]).join(parts))
  return found


def _emoji(rng, samples):
  people = ["👩", "👨", "🧑", "👍", "🤷", "🏃"]
  tones = ["", *map(chr, range(0x1F3FB, 0x1F400))]
  ends = ["", "\u200d💻", "\u200d♀\ufe0f", "\u200d🚀", "\ufe0f", "\u200d"]
  found = []
  for _ in range(90):
    parts = [
      rng.choice(people) + rng.choice(tones) + rng.choice(ends)
      for _ in range(rng.randint(1, 3))
    ]
    parts += ["".join(chr(0x1F1E6 + rng.randrange(26)) for _ in "ab")]
    parts += [rng.choice(["1\ufe0f\u20e3", "❤\ufe0f\u200d🔥", "ok", "☃\ufe0e"])]
    rng.shuffle(parts)
    found.append(rng.choice(["", " "]).join(parts))
  return found


def _random_unicode(rng, samples):
  blocks = [
    (0x20, 0x7F),
    (0xA0, 0x17F),
    (0x300, 0x36F),
    (0x370, 0x4FF),
    (0x590, 0x6FF),
    (0x900, 0x97F),
    (0x1E00, 0x1FFF),
    (0x2000, 0x2BFF),
    (0x3040, 0x30FF),
    (0x4E00, 0x9FA5),
    (0xAC00, 0xD7A3),
    (0x1F300, 0x1F6FF),
    (0x1, 0x1F),
    (0x980, 0x1000),
    (0xE000, 0xE010),
    (0x1D400, 0x1D7FF),
    (0x10000, 0x10FFF),
    (0xFE00, 0xFFFF),
  ]
  found = []
  for _ in range(300):
    low, high = rng.choice(blocks)
    chars = [chr(rng.randint(low, high)) for _ in range(rng.randint(1, 9))]
    chars += rng.choices("a1 .'\n", k=rng.randint(0, 4))
    rng.shuffle(chars)
    found.append("".join(chars))
  return found


def _repeats(rng, samples):
  """Few letters, many ties."""
  found = []
  for _ in range(300):
    letters = rng.choice(
      ["ab", "aab ", "01", " ▁", "the ", "is ", "' s", "\n "]
    )
    found.append("".join(rng.choices(letters, k=rng.randint(2, 22))))
  return found


def _contractions(rng, samples):
  words = [
    "we",
    "I",
    "DON",
    "ça",
    "l",
    "qu",
    "é",
    "9",
    "",
    " ",
    "_",
    "\n",
    "日",
  ]
  ends = ["s", "t", "re", "ve", "m", "ll", "d", "S", "LL", "Ve", "rE", "ſ", "x"]
  found = []
  for _ in range(120):
    mark = rng.choice("''''’`")
    parts = [rng.choice(words), mark, rng.choice(ends), rng.choice(words)]
    found.append("".join(parts) + rng.choice(["", " ", "'", "s", "'t"]))
  return found


def _control(rng, samples):
  chars = [
    *map(chr, range(32)),
    "\x7f",
    "\x80",
    "\x9f",
    "\ufeff",
    "\u202e",
    "\u200b",
    "\u2060",
    "\ufffd",
    "\U0010ffff",
    "\ue000",
  ]
  found = []
  for _ in range(80):
    parts = rng.choices(chars, k=rng.randint(1, 4)) + ["a", " b"]
    rng.shuffle(parts)
    found.append("".join(parts))
  return found


def _long_words(rng, samples):
  found = []
  for letters in (
    "a",
    "ab",
    "abcdefghij",
    "日本語",
    "é",
    "0123456789",
    "-=",
    " ",
    "\n",
    "👩🏽",
    "aA",
    "x1",
    "ั",
  ):
    for length in (50, 300):
      found.append("".join(rng.choices(letters, k=length)))
  return found


def sentencepiece_model(texts, **more) -> bytes:
  """A small BPE model with byte fallback and no normalization."""
  import sentencepiece as spm

  lines = [line for text in texts for line in text.split("\n")]
  model = io.BytesIO()
  spm.SentencePieceTrainer.train(
    sentence_iterator=iter(
      line for line in lines if max(line, default=" ") < "\u0180"
    ),
    model_writer=model,
    model_type="bpe",
    vocab_size=800,
    byte_fallback=True,
    normalization_rule_name="identity",
    remove_extra_whitespaces=False,
    split_digits=True,
    allow_whitespace_only_pieces=True,
    max_sentence_length=9999,
    num_threads=1,
    character_coverage=1.0,
    minloglevel=2,
    **more,
  )
  return model.getvalue()


def sentencepiece_metadata(model: bytes) -> dict:
  """A vocabulary as a GGUF file holds it."""
  import sentencepiece as spm
  from sentencepiece import sentencepiece_model_pb2

  proto = sentencepiece_model_pb2.ModelProto.FromString(model)
  kinds = [piece.type for piece in proto.pieces]
  user = [
    piece.piece if piece.type == USER_DEFINED else "" for piece in proto.pieces
  ]
  processor = spm.SentencePieceProcessor(model_proto=model)
  return {
    "tokenizer.ggml.model": "llama",
    # As in converted files, spaces of user-defined tokens are spaces.
    "tokenizer.ggml.tokens": [
      user[i].replace("▁", " ") or piece.piece
      for i, piece in enumerate(proto.pieces)
    ],
    "tokenizer.ggml.scores": [piece.score for piece in proto.pieces],
    "tokenizer.ggml.token_type": kinds,
    "tokenizer.ggml.bos_token_id": processor.bos_id(),
    "tokenizer.ggml.eos_token_id": processor.eos_id(),
    "tokenizer.ggml.unknown_token_id": processor.unk_id(),
    "tokenizer.ggml.add_space_prefix": proto.normalizer_spec.add_dummy_prefix,
  }


def shuffled(metadata: dict) -> dict:
  """The same pieces, merged in another order than that of their ids."""
  scores = metadata["tokenizer.ggml.scores"]
  order = random.Random(0).sample(range(len(scores)), len(scores))
  return metadata | {"tokenizer.ggml.scores": [-float(i) for i in order]}


def unspaced(metadata: dict) -> dict:
  """As in some converted files: spaces of user-defined tokens are "▁"."""
  tokens = metadata["tokenizer.ggml.tokens"]
  tokens = [token.replace(" ", "▁") for token in tokens]
  return metadata | {"tokenizer.ggml.tokens": tokens}


def sentencepiece_ids(model: bytes, texts: list[str], prefix: bool):
  """SentencePiece's own ids, with or without its dummy prefix."""
  import sentencepiece as spm
  from sentencepiece import sentencepiece_model_pb2

  proto = sentencepiece_model_pb2.ModelProto.FromString(model)
  proto.normalizer_spec.add_dummy_prefix = prefix
  model = proto.SerializeToString()
  processor = spm.SentencePieceProcessor(model_proto=model)
  return [processor.encode(text) for text in texts]


def byte_level_metadata(texts: list[str]) -> dict:
  """Byte-level BPE of whole texts; some words that no merge makes."""
  import tokenizers
  from tokenizers import models, pre_tokenizers, trainers

  backend = tokenizers.Tokenizer(models.BPE())
  backend.pre_tokenizer = pre_tokenizers.ByteLevel(False, use_regex=False)
  trainer = trainers.BpeTrainer(
    vocab_size=880,
    initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
    show_progress=False,
  )
  backend.train_from_iterator((t for t in texts if "<|" not in t), trainer)
  model = json.loads(backend.to_str())["model"]
  tokens = sorted(model["vocab"], key=model["vocab"].get)
  whole = ["Ġneighbour", "jumps", "doesn", "Ġradiator", "123", "æĹ¥", "Ġé"]
  whole = [token for token in whole if token not in tokens]
  special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
  tokens += [*whole, "<|tool|>", *special]
  kinds = [NORMAL] * len(tokens)
  kinds[-4:] = [USER_DEFINED, *[CONTROL_TYPE] * 3]
  return {
    "tokenizer.ggml.model": "gpt2",
    "tokenizer.ggml.tokens": tokens,
    "tokenizer.ggml.token_type": kinds,
    "tokenizer.ggml.merges": [" ".join(merge) for merge in model["merges"]],
    "tokenizer.ggml.bos_token_id": tokens.index("<|im_start|>"),
    "tokenizer.ggml.eos_token_id": tokens.index("<|im_end|>"),
  }


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
