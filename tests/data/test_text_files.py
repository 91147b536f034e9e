"""A user's files: which are one text, which hold many, which are refused."""

import bz2
import gzip
import json
import lzma
import pathlib

import pytest

from launch import prompts
from sinkjax.data import text_files
from sinkjax.data.corpus import gather

TEXTS = ["one", "twó\nlines", "three\u2028ends"]
LINES = "\n".join(json.dumps({"text": text}) for text in TEXTS) + "\n"
RECORDS = json.dumps([{"text": text} for text in TEXTS], indent=2)
CHAT = [{"role": "user", "content": "hi"}]

MANY = [
  ("a.jsonl", LINES),
  ("a.JSONL", LINES),
  ("a.ndjson", LINES),
  ("a.json", LINES),
  ("a.json", RECORDS),
  ("a.json", json.dumps(TEXTS)),
]
PACKED = {
  "": bytes,
  ".gz": gzip.compress,
  ".bz2": bz2.compress,
  ".xz": lzma.compress,
}


def write(path, text, pack=bytes):
  path.write_bytes(pack(text.encode()))
  return path


@pytest.mark.parametrize("packed", PACKED)
@pytest.mark.parametrize(("name", "text"), MANY)
def test_many_texts(tmp_path, name, text, packed):
  path = write(tmp_path / (name + packed), text, PACKED[packed])
  assert gather([str(path)]).texts == TEXTS
  assert prompts.read_texts(None, str(path)) == TEXTS


@pytest.mark.parametrize("packed", PACKED)
@pytest.mark.parametrize("name", ["a.txt", "a.md", "a.log", "a"])
def test_one_text(tmp_path, name, packed):
  path = write(tmp_path / (name + packed), "{a}\n[1] b", PACKED[packed])
  assert gather([str(path)]).texts == ["{a}\n[1] b"]
  assert prompts.read_texts(str(path), None) == ["{a}\n[1] b"]
  assert prompts.read_texts(str(path), None, max_tokens=1) == ["{a}\n[1] b"]


def test_a_folder_of_packed_texts(tmp_path):
  write(tmp_path / "a.txt.gz", "one", gzip.compress)
  write(tmp_path / "b.TXT", "two")
  write(tmp_path / "c.jsonl", LINES)
  assert gather([str(tmp_path)]).texts == ["one", "two"]


def test_chats_in_a_list(tmp_path):
  path = write(tmp_path / "a.json", json.dumps([{"messages": CHAT}]))
  assert gather([str(path)], chats=True).texts == [CHAT]
  assert prompts.read_texts(None, str(path)) == [CHAT]


@pytest.mark.parametrize(
  ("name", "advice"),
  [
    ("a.jsonl.zst", r"\.zst files are not read: decompress it with `zstd -d`"),
    ("a.csv", r"\.csv files are not read: write a .* of a \.jsonl file"),
    ("a.csv.gz", r"\.csv files are not read"),
    ("a.tar.gz", r"\.tar files are not read: unpack it"),
    ("a.ZIP", r"\.zip files are not read: unpack it"),
    ("a.arrow", r"\.arrow files are not read"),
    ("a.parquet.gz", "Parquet compresses for itself"),
  ],
)
def test_other_forms_are_refused_by_name(tmp_path, name, advice):
  path = str(write(tmp_path / name, "a,b\n1,2\n"))
  for read in (
    lambda: gather([path]),
    lambda: prompts.read_texts(path, None),
    lambda: prompts.read_texts(None, path),
  ):
    with pytest.raises(ValueError, match=advice) as error:
      read()
    assert "\n" not in str(error.value) and path in str(error.value)


@pytest.mark.parametrize("name", ["a", "a.data", "a.data.gz"])
@pytest.mark.parametrize("text", [LINES, RECORDS, "\n" + LINES])
def test_data_of_another_name_is_not_one_text(tmp_path, name, text):
  path = tmp_path / name
  write(path, text, gzip.compress if path.suffix == ".gz" else bytes)
  for read in (
    lambda: gather([str(path)]),
    lambda: prompts.read_texts(str(path), None),
  ):
    with pytest.raises(ValueError, match=r"looks like JSON: name it \.jsonl"):
      read()


@pytest.mark.parametrize("name", ["a.jsonl", "a.json", "a.ndjson.gz"])
def test_many_texts_are_not_one(tmp_path, name):
  path = write(tmp_path / name, LINES)
  with pytest.raises(ValueError, match="holds many texts, and one is read"):
    prompts.read_texts(str(path), None)


@pytest.mark.parametrize(
  ("text", "words"),
  [
    ('{"data": ["a"]}', "record 1: no JSON object with 'text'"),
    ('{"text": ["a"]}', "record 1: 'text' is list"),
    ('[{"text": "a"}, 3]', "record 2: no JSON object with 'text': 3"),
    ('[{"text": "a"}, {"t": "b"}]', 'record 2: no JSON .*{"t": "b"}'),
    ('[{"text": "a"},', "line 1: no JSON object with 'text': Expecting"),
    ('{"text": "a"}\n{"text"', "line 2: no JSON object"),
    ('{"text": "a"}\n{"text": "\\ud83d x"}', "line 2: .*ud83d is half of a"),
    ('{"text": "a", "b": ["\\uDC00"]}', "record 1|line 1: .*half of a"),
    ("[]", "no text in"),
    ("3", "record 1: no JSON object"),
  ],
)
def test_json_that_holds_no_texts(tmp_path, text, words):
  path = write(tmp_path / "a.json", text)
  with pytest.raises(ValueError, match=words):
    gather([str(path)])
  with pytest.raises(ValueError, match=r"a\.json(, |:| holds no prompts)"):
    prompts.read_texts(None, str(path))


def test_what_cannot_be_decompressed_is_said(tmp_path):
  whole = gzip.compress(LINES.encode())
  for raw in (LINES.encode(), whole[:-9], whole[:20] + b"\xff" * 20):
    path = tmp_path / "a.jsonl.gz"
    path.write_bytes(raw)
    with pytest.raises(ValueError, match="cannot be decompressed"):
      gather([str(path)])
  write(tmp_path / "a.txt.xz", "no", bytes)
  with pytest.raises(ValueError, match="cannot be decompressed"):
    gather([str(tmp_path / "a.txt.xz")])


def test_a_file_unpacks_within_bounds(tmp_path, monkeypatch):
  monkeypatch.setattr(text_files, "ROOM", 1000)
  path = write(tmp_path / "a.txt.gz", "a" * 100_000, gzip.compress)
  with pytest.raises(ValueError, match="unpacks to more than .* decompress"):
    gather([str(path)])
  # The beginning of a text is read, whatever follows.
  text = text_files.one_text(path, characters=5000)
  assert text == "a" * 5000
  text = text_files.read(write(path, "é" * 500, gzip.compress))
  assert text == "é" * 500
  with pytest.raises(ValueError, match="more than 999 bytes"):
    text_files.read(path, 999)
  assert text_files.read(path, characters=3) == "ééé"


def test_every_refused_form_is_lower_case():
  assert all(suffix == suffix.lower() for suffix in text_files.REFUSED)
  assert not set(text_files.REFUSED) & set(text_files.PACKED)
  assert text_files.holds(pathlib.Path("x/.gz")) == ""
