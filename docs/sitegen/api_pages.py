"""Writes a page of the API reference for every package, from its modules.

The pages are not kept in git: a module that comes or goes needs no edit here.
"""

import importlib
import inspect
import pathlib
import pkgutil

import sinkjax
from sinkjax.metrics import registry
from sitegen import docstrings

PACKAGES = {
  "sinkjax.models": "One decoder for every family, driven by its config.",
  "sinkjax.transforms": "Functions of a model's function: edits, observers, "
  "Jacobians, statistics.",
  "sinkjax.metrics": "Numbers from arrays; nothing here knows a model.",
  "sinkjax.weights": "Checkpoints and tokenizers, read, checked and written.",
  "sinkjax.inference": "Caches, generation, quantisation, pruning.",
  "sinkjax.data": "Texts to windows of ids.",
  "sinkjax.train": "A training step, the loop around it, and checkpoints.",
  "sinkjax.analysis": "Analyses of one model that test no claim.",
  "sinkjax.report.explore": "A page with every head on a text.",
  "sinkjax.experiments.harness": "What all experiments share.",
}
"""Each is a page, in the order of the reference, under this sentence."""

ALONE = ("sinkjax.config", "sinkjax.taps", "sinkjax.sharding")
"""Modules outside these packages, on one page."""


def _modules(package: str) -> list[str]:
  """The public modules of a package, in its folders too, by name."""
  found = importlib.import_module(package)
  inside = pkgutil.walk_packages(found.__path__, f"{package}.")
  names = [one.name for one in inside]
  return [name for name in names if "._" not in name]


def _heading(text: str, mark: str) -> str:
  return f"{text}\n{mark * len(text)}\n\n"


def _page(title: str, modules: list[str], summary: str) -> str:
  page = _heading(title, "=") + summary + "\n\n"
  for name in modules:
    page += _heading(name, "-") + f".. automodule:: {name}\n\n"
  return page


def _top() -> str:
  """Every public name of `sinkjax` with its first line and a link."""
  page = _heading("sinkjax", "=")
  page += (
    "What ``import sinkjax`` gives.\n\n.. list-table::\n   :widths: 25 75\n"
  )
  for name in sinkjax.__all__:
    value = getattr(sinkjax, name)
    if not callable(value):
      page += f"\n   * - ``{name}``\n     - see :py:mod:`sinkjax.taps`\n"
      continue
    kind = "class" if inspect.isclass(value) else "func"
    path = f"{value.__module__}.{value.__name__}"
    first = docstrings.inline(inspect.getdoc(value).splitlines()[0])
    page += f"\n   * - :py:{kind}:`{name} <{path}>`\n     - {first}\n"
  return page


def _metric_table() -> str:
  return (
    "# Table of metrics\n\nWhat reports of a model and the probe during "
    "training show, from one table in `sinkjax.metrics.table`.\n\n"
    f"{registry.markdown()}"
  )


def write(folder: pathlib.Path) -> None:
  """Writes one page a package and the page of `sinkjax` itself.

  Args:
    folder: where to; pages of packages that are gone are removed.
  """
  pages = {"sinkjax": _top()}
  pages["core"] = _page(
    "Config, taps, sharding", list(ALONE), "What stands under all packages."
  )
  for package, summary in PACKAGES.items():
    short = package.removeprefix("sinkjax.")
    pages[short] = _page(short, _modules(package), summary)
  toc = "\n".join(f"   {name}" for name in [*pages, "metric-table"])
  index = _heading("API reference", "=") + (
    "The public modules, a page a package. Axes are named alike everywhere: B "
    "batch, T query position, S key or source position, L layer, H head, G "
    "query heads a KV head, N KV head, K head dimension, D model width, F MLP "
    "width, V vocabulary. Positions count from 0.\n\n"
    f".. toctree::\n   :maxdepth: 1\n\n{toc}\n"
  )
  folder.mkdir(exist_ok=True)
  for path in folder.glob("*.*"):
    path.unlink()
  (folder / "metric-table.md").write_text(_metric_table(), "utf-8")
  for name, text in {**pages, "index": index}.items():
    (folder / f"{name}.rst").write_text(text, "utf-8")
