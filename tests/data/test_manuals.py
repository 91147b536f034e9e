"""Tests of sinkjax.data.manuals, on a Debian package made here."""

import gzip
import re
import shutil
import subprocess

import pytest

from sinkjax.data import manuals
from sinkjax.weights.validate import WeightsError

PAGE = (
  "<html><head><title>t</title></head><body><nav>menu</nav>{}</body></html>"
)


def build(folder, name, files):
  root = folder / name
  for path, data in files.items():
    (root / path).parent.mkdir(parents=True, exist_ok=True)
    (root / path).write_bytes(
      data if isinstance(data, bytes) else data.encode()
    )
  (root / "DEBIAN").mkdir()
  (root / "DEBIAN" / "control").write_text(
    f"Package: {name}\nVersion: 1:2.0\nArchitecture: all\n"
    "Maintainer: me <me@example.org>\nDescription: x\n"
  )
  deb = folder / f"{name}_1%3a2.0_all.deb"
  subprocess.run(
    ["dpkg-deb", "--build", str(root), str(deb)],
    check=True,
    capture_output=True,
  )
  return deb


@pytest.mark.skipif(not shutil.which("dpkg-deb"), reason="no dpkg-deb here")
def test_packages_are_read(tmp_path, monkeypatch):
  licence = "A paragraph of terms that every page of it repeats at its foot."
  long = [
    f"Sentence {i} is about something that is not said." for i in range(20)
  ]
  pages = {
    "usr/share/doc/one/html/b.html": PAGE.format(
      f"<p>{' '.join(long)}</p><p>{licence}</p>"
    ),
    "usr/share/doc/one/html/a.html": PAGE.format(
      f"<p>{' '.join(long[::-1])}</p><p>{licence}</p>"
    ),
    "usr/share/doc/one/html/genindex.html": PAGE.format(" ".join(long)),
    "usr/share/doc/one/html/short.html": PAGE.format("too short"),
    "usr/share/doc/one/other.txt": " ".join(long),
    "usr/share/doc/one/copyright": "Files: *\nLicense: GPL-2\n",
  }
  many = "\n\n".join(f"{word} of the dictionary" for word in range(20_000))
  debs = {
    "one": build(tmp_path, "one", pages),
    "two": build(
      tmp_path, "two", {"usr/x.dict.dz": gzip.compress(many.encode())}
    ),
  }
  fetched = []

  def fetch(name, folder):
    fetched.append(name)
    return shutil.copy(debs[name], folder) and folder / debs[name].name

  monkeypatch.setenv("SINKJAX_CACHE", str(tmp_path / "cache"))
  monkeypatch.setattr(manuals, "_fetch", fetch)
  monkeypatch.setattr(
    manuals, "PACKAGES", {"one": r"html/.*\.html", "two": r"\.dz"}
  )
  texts, about = manuals.read()
  first, second = texts[:2]
  assert first == f"{' '.join(long[::-1])}\n\n{licence}"
  assert second == " ".join(long)  # the terms stood before
  pieces = texts[2:]
  assert len(pieces) == 3 and max(map(len, pieces)) <= manuals.LONGEST
  assert "\n\n".join(pieces) == many
  one, two = about["packages"]
  assert (one["version"], one["licences"]) == ("1:2.0", ["GPL-2"])
  assert (one["documents"], two["documents"]) == (2, 3)
  assert len(one["sha256"]) == 64 and "texts" not in one
  assert manuals.read() == (texts, about) and fetched == ["one", "two"]


def test_rules_are_sound():
  for rule in manuals.PACKAGES.values():
    re.compile(rule)
  kept = re.compile(manuals.PACKAGES["linux-doc-6.1"])
  assert kept.search("./html/_sources/x86/boot.rst.txt")
  assert not kept.search("./html/_sources/translations/zh_CN/x.rst.txt")


def test_where_there_is_no_debian(tmp_path, monkeypatch):
  monkeypatch.setenv("SINKJAX_CACHE", str(tmp_path))
  monkeypatch.setenv("PATH", str(tmp_path))
  with pytest.raises(WeightsError, match="no apt-get here"):
    manuals.read()
  fake = tmp_path / "apt-get"
  fake.write_text("#!/bin/sh\necho 'E: Unable to locate it' >&2\nexit 100\n")
  fake.chmod(0o755)
  with pytest.raises(WeightsError, match="Unable to locate it; apt-get update"):
    manuals.read()


def test_a_killed_fetch_is_cleared_by_the_next(tmp_path, monkeypatch):
  """What it left is found by the name of what it would have become."""
  monkeypatch.setenv("SINKJAX_CACHE", str(tmp_path))
  monkeypatch.setattr(manuals, "PACKAGES", {"one": "x"})
  monkeypatch.setattr(manuals, "_unpack", lambda *_: {"texts": []})
  seen = []

  def fetch(name, folder):
    seen.append(sorted(path.name for path in folder.iterdir()))
    (folder / "one_1%3a2.0_all.deb").write_bytes(b"x" * 9)
    if len(seen) == 1:  # a kill takes nothing away
      shutil.copytree(folder, tmp_path / "left")
    return folder / "one_1%3a2.0_all.deb"

  monkeypatch.setattr(manuals, "_fetch", fetch)
  manuals._package("one")
  (done,) = (tmp_path / "manuals").iterdir()
  shutil.copytree(tmp_path / "left", done.with_name(f".fetch-{done.stem}"))
  done.unlink()
  assert manuals._package("one")["version"] == "1:2.0"
  assert seen == [[".lock"], [".lock"]]
  assert [p.name for p in (tmp_path / "manuals").iterdir()] == [done.name]
