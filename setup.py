"""Installs sinkjax: `pip install .`, `pip install '.[test]'`."""

import pathlib
import re

import setuptools

HERE = pathlib.Path(__file__).parent
VERSION = re.search(
  r'__version__ = "(.+?)"', (HERE / "sinkjax" / "__init__.py").read_text()
).group(1)

NOTEBOOKS = ["anywidget", "ipykernel", "nbclient"]
TEST = [
  "beartype",
  "hypothesis",
  "lxml",
  "pyarrow",
  "pytest",
  "pytest-xdist",
  *NOTEBOOKS,
]

setuptools.setup(
  name="sinkjax",
  version=VERSION,
  description="Why language models attend to their first token, in JAX.",
  long_description=(HERE / "README.md").read_text("utf-8"),
  long_description_content_type="text/markdown",
  license="Apache-2.0",
  python_requires=">=3.11",
  packages=setuptools.find_packages(include=["sinkjax*", "launch*"]),
  package_data={
    "sinkjax.experiments.harness": ["*.json"],
    "sinkjax.report": ["*.j2"],
    "sinkjax.report.explore": ["assets/*"],
  },
  install_requires=[
    "absl-py",
    "chex",
    "flax",
    "gguf",
    "grain",
    "huggingface_hub",
    "jax",
    "jaxtyping",
    "jinja2",
    "matplotlib",
    "ml_collections",
    "ml_dtypes",
    "numpy",
    "optax",
    "orbax-checkpoint",
    "pillow",
    "pypi-simple",
    "pyyaml",
    "safetensors",
    "scipy",
    "sentencepiece",
    "tensorboardX",
    "tokenizers",
    "tqdm",
  ],
  extras_require={
    "test": TEST,
    "docs": ["furo", "myst-nb", "sphinx"],
    "notebooks": NOTEBOOKS,
    "tpu": ["jax[tpu]"],
    "cuda": ["jax[cuda12]"],
    "manuals": ["lxml"],
    "parquet": ["pyarrow"],
    "parity": ["accelerate", "torch==2.13.0", "transformers"],
    "dev": [*TEST, "ruff", "pre-commit"],
  },
)
