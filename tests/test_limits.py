"""Readers look at the kind and size of a file before they read it."""

import io
import os
import pathlib
import time

import pytest

import sinkjax
from launch import config_flags, prompts
from sinkjax import limits
from sinkjax.data import activations
from sinkjax.data.corpus import gather
from sinkjax.data.tokens import TokenCorpus
from sinkjax.inference.streaming_heads import read_gates
from sinkjax.weights import folders, orbax_io, packages
from sinkjax.weights.formats import gguf, safetensors_io
from sinkjax.weights.tokenizer_files import tokenizer_from_folder

READERS = {
  "text": lambda p: prompts.read_texts(str(p), None),
  "start of a text": lambda p: prompts.read_texts(str(p), None, max_tokens=4),
  "prompts.jsonl": lambda p: prompts.read_texts(None, str(p)),
  "a.jsonl": lambda p: gather([str(p)]),
  "a.txt": lambda p: gather([str(p)]),
  "config.py": lambda p: config_flags.load(str(p)),
  "tokenizer.json": lambda p: tokenizer_from_folder(p.parent),
  "tokenizer_config.json": lambda p: tokenizer_from_folder(p.parent),
  "config.json": lambda p: folders.read_json(p),
  "sinkjax.json": lambda p: orbax_io._read_manifest(p),
  "gates.csv": lambda p: read_gates(p, sinkjax.TINY),
  "part-00000.safetensors": lambda p: activations.has_part(p.parent, 0, ""),
  "corpus.json": lambda p: TokenCorpus.read(p.parent),
  "m.gguf": lambda p: gguf.open_gguf(p),
  "model.safetensors": lambda p: safetensors_io.open_folder(p.parent),
}


@pytest.mark.parametrize("reader", READERS)
def test_pipes_are_refused_at_once(tmp_path, reader):
  """To open one would wait for whoever writes to it, for good."""
  path = tmp_path / reader
  os.mkfifo(path)
  begun = time.monotonic()
  with pytest.raises(ValueError) as error:
    READERS[reader](path)
  assert time.monotonic() - begun < 10 and "\n" not in str(error.value)


@pytest.mark.parametrize("device", ["/dev/zero", "/dev/stdin", "/dev"])
def test_devices_are_refused(device):
  for read in (
    lambda: limits.read_bytes(device, 10),
    lambda: limits.read_text(device, characters=10),
    lambda: limits.read_json(device),
  ):
    with pytest.raises(ValueError, match=f"^{device}: cannot be read: it is a"):
      read()


def test_sizes(tmp_path):
  path = tmp_path / "a"
  path.write_bytes(b"[" + b" " * 98 + b"]")
  assert limits.read_json(path, 100) == []
  with pytest.raises(ValueError, match="a: 100 bytes, at most 99 are read"):
    limits.read_json(path, 99)
  with open(path, "wb") as sparse:
    sparse.truncate(1 << 40)  # of no block on the disk
  for read in (limits.read_json, folders.read_json, orbax_io._read_manifest):
    with pytest.raises(ValueError, match="1099511627776 bytes, at most"):
      read(path)


@pytest.mark.parametrize("cut", range(1, 9))
def test_a_text_is_read_as_far_as_it_is_used(tmp_path, cut):
  path, text = tmp_path / "a.txt", "é€𝄞z" * 3
  path.write_bytes(b"\xef\xbb\xbf" + text.encode())
  assert limits.read_text(path, characters=cut) == text[:cut]
  assert limits.read_text(path, characters=99) == limits.read_text(path) == text
  path.write_bytes(text.encode()[:-2] + b"\xff")
  with pytest.raises(ValueError, match="is not UTF-8"):
    limits.read_text(path)


def test_the_rest_of_a_long_text_is_left_alone(tmp_path):
  path = tmp_path / "a.txt"
  with open(path, "wb") as sparse:
    sparse.write(b"The end. " * 200_000)
    sparse.truncate(1 << 40)
  (text,) = prompts.read_texts(str(path), None, max_tokens=64)
  assert text == ("The end. " * 200_000)[: len(text)]
  assert len(text) == prompts._characters(64)
  assert prompts._characters(100_000) == 100_000 * limits.A_TOKEN


def test_lines_of_prompts_are_counted(tmp_path, monkeypatch):
  monkeypatch.setattr(limits, "PROMPT_LINES", 3)
  path = tmp_path / "p.jsonl"
  path.write_text('{"text": "a"}\n' * 2)
  assert len(prompts.read_texts(None, str(path))) == 2
  path.write_text('{"text": "a"}\n' * 4)
  with pytest.raises(ValueError, match="has more than 3 prompts"):
    prompts.read_texts(None, str(path))


def test_an_archive_unpacks_within_bounds(tmp_path):
  target = io.BytesIO()
  limits.copy(io.BytesIO(b"x" * 100), target, 100, "a")
  assert target.getvalue() == b"x" * 100
  package = packages.Package("p", "1", {"f": ""}, "MIT", 0.001, "")
  with (
    open(tmp_path / "f", "wb") as stream,
    pytest.raises(ValueError, match=r"p: .*f unpacks to more than 20000"),
  ):
    packages._unpack(io.BytesIO(bytes(3 << 20)), stream, package)
  assert (tmp_path / "f").stat().st_size <= 20_000


@pytest.mark.parametrize(
  ("program", "words"),
  [
    ("1 / 0", "ZeroDivisionError: division by zero"),
    ("def get_config(): return {}['a']", "KeyError"),
    ("def get_config(): return 3", "TypeError"),
    ("raise SystemExit('no')", "SystemExit: no"),
    ("def get_config(:", "SyntaxError"),
    ("x = 1", "no function get_config"),
    ("def f(): f()\nf()", "RecursionError"),
  ],
)
def test_a_config_file_that_fails_is_named(tmp_path, program, words):
  path = tmp_path / "c.py"
  path.write_text(program)
  with pytest.raises(ValueError) as error:
    config_flags.load(str(path))
  assert str(error.value).startswith(f"--config={path}: ")
  assert words in str(error.value)


def test_every_bound_has_its_reason():
  """Each is followed by a sentence or two."""
  lines = pathlib.Path(limits.__file__).read_text().splitlines()
  bounds = [i for i, line in enumerate(lines) if line[:1].isupper()]
  named = [i for i in bounds if " = " in lines[i]]
  assert len(named) >= 8
  assert all(lines[i + 1].startswith('"""') for i in named)


@pytest.mark.parametrize("length", [2**64 - 1, 2**62, 10**6, 9])
def test_a_part_whose_length_lies(tmp_path, length):
  """Nothing of that length is asked for; the part is another's."""
  path = tmp_path / "part-00003.safetensors"
  path.write_bytes(length.to_bytes(8, "little") + b'{"a": [1]}')
  with pytest.raises(ValueError, match="by another command"):
    activations.has_part(tmp_path, 3, "mark")


@pytest.mark.parametrize("header", [b"[1]", b"{}", b'{"__metadata__": 3}'])
def test_a_part_without_its_mark(tmp_path, header):
  path = tmp_path / "part-00000.safetensors"
  path.write_bytes(len(header).to_bytes(8, "little") + header)
  with pytest.raises(ValueError, match="by another command"):
    activations.has_part(tmp_path, 0, "mark")
