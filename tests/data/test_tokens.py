"""Tests of sinkjax.data.tokens."""

import hashlib
import json

import numpy as np
import pytest

from sinkjax.data.tokens import CorpusError, TokenCorpus

DOCUMENTS = [[5, 6, 7], [], [8, 9], [1], [2, 2, 2, 2]]


@pytest.fixture
def corpus():
  return TokenCorpus.of(DOCUMENTS, vocab_size=10, about={"name": "toy"})


def _documents(corpus):
  return [
    corpus.tokens[start : start + size].tolist()
    for start, size in zip(corpus.starts, corpus.lengths, strict=True)
  ]


@pytest.mark.parametrize("part_bytes", [60_000_000, 134, 130])
def test_saved_and_read(corpus, tmp_path, part_bytes):
  corpus.save(tmp_path / "c", part_bytes=part_bytes)
  again = TokenCorpus.read(tmp_path / "c")
  assert _documents(again) == DOCUMENTS
  assert (again.digest, again.about) == (corpus.digest, {"name": "toy"})
  parts = list((tmp_path / "c").glob("tokens-*.npy"))
  assert len(parts) == -(-len(corpus.tokens) * 2 // (part_bytes - 128))
  assert max(part.stat().st_size for part in parts) <= part_bytes
  assert sorted(p.name for p in tmp_path.iterdir()) == ["c"]


def test_the_digest_sees_ids_and_borders(corpus):
  moved = TokenCorpus.of([[5, 6], [7], *DOCUMENTS[2:]], vocab_size=10)
  other = TokenCorpus.of([[5, 6, 1], *DOCUMENTS[1:]], vocab_size=10)
  wide = TokenCorpus.of(DOCUMENTS, vocab_size=1 << 20)
  assert len({corpus.digest, moved.digest, other.digest}) == 3
  assert wide.digest == corpus.digest  # of the ids, not of how they are stored


@pytest.mark.parametrize("damage", ["flip", "cut", "gone", "json", "path"])
def test_damage_is_named(corpus, tmp_path, damage):
  corpus.save(tmp_path / "c")
  path, name = tmp_path / "c" / "tokens-00000.npy", "tokens-00000.npy"
  data = path.read_bytes()
  if damage == "flip":
    path.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
  elif damage == "cut":
    path.write_bytes(data[:-2])
  elif damage == "gone":
    path.unlink()
  else:
    name = "corpus.json" if damage == "json" else "secret"
    manifest = tmp_path / "c" / "corpus.json"
    text = manifest.read_text()
    cut = (
      text[:-20]
      if damage == "json"
      else text.replace("tokens-00000.npy", "../secret")
    )
    manifest.write_text(cut)
  with pytest.raises(CorpusError, match=name):
    TokenCorpus.read(tmp_path / "c")


@pytest.mark.parametrize(
  ("name", "array", "words"),
  [
    ("documents.npy", [3, 3, 5, 4, 10], "must grow"),
    ("documents.npy", [3, 3, 5, 6, 11], "up to the number of ids, 10"),
    ("documents.npy", [3, 3, 5, 6, 9], "up to the number of ids, 10"),
    ("documents.npy", [-1, 10], "must grow"),
    ("documents.npy", [], "expected integers"),
    ("documents.npy", [[3, 10]], "expected a list of integers"),
    ("documents.npy", [3.0, 10.0], "expected integers, got float64"),
    ("tokens-00000.npy", [1] * 9 + [10], "id of 10 and a vocabulary of 10"),
    ("tokens-00000.npy", [-1] + [1] * 9, "a vocabulary of 10"),
    ("tokens-00000.npy", [1.5] * 10, "expected integers, got float64"),
    ("tokens-00000.npy", 7, "expected a list of integers"),
  ],
)
def test_arrays_that_lie(corpus, tmp_path, name, array, words):
  """Whose SHA-256 is that of the manifest: who writes one writes the other."""
  folder = tmp_path / "c"
  corpus.save(folder)
  np.save(folder / name, np.array(array))
  manifest = json.loads((folder / "corpus.json").read_text())
  found = hashlib.sha256((folder / name).read_bytes()).hexdigest()
  manifest["files"][name] = found
  (folder / "corpus.json").write_text(json.dumps(manifest))
  with pytest.raises(CorpusError, match=words) as error:
    TokenCorpus.read(folder)
  assert str(folder) in str(error.value)


def test_a_split_loses_nothing(corpus):
  train, held = corpus.split(0.2, seed=3)
  parts = _documents(train) + _documents(held)
  assert sorted(parts) == sorted(DOCUMENTS)
  assert len(held.tokens) >= 2
  with pytest.raises(ValueError, match="both sides"):
    corpus.split(1.0)


def test_what_is_wrong_is_said(corpus, tmp_path):
  with pytest.raises(ValueError, match="document 1 has an id outside"):
    TokenCorpus.of([[1], [10]], vocab_size=10)
  with pytest.raises(ValueError, match="at least one document"):
    TokenCorpus.of([], vocab_size=10)
  (tmp_path / "x").write_text("kept")
  with pytest.raises(ValueError, match="not an empty folder"):
    corpus.save(tmp_path)
  assert json.loads(json.dumps(corpus.about)) == {"name": "toy"}
  assert np.array_equal(corpus.part([3]).tokens, [1])
