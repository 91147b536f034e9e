"""What is trained: softmax attention and its variants."""

import dataclasses
from collections.abc import Mapping
from typing import Any, NamedTuple

from sinkjax.experiments.harness.sweep_config import (
  GPU_SCALE,
  PAPER_SCALE,
  TOKENS_5B,
  TextConfig,
  chosen,
  text_run,
)
from sinkjax.train.run_config import TrainConfig

REGISTERS = 4
"""Learned tokens in front of a text, as many as Darcet et al. (2024, arXiv
2309.16588) use."""


class Variant(NamedTuple):
  """One way to change attention.

  Attributes:
    subject: it in words, as a sentence starts with it.
    model: fields of `ModelConfig` in which it differs from softmax.
    packing: likewise, of `Packing`.
  """

  subject: str
  model: Mapping[str, Any] = {}
  packing: Mapping[str, Any] = {}


VARIANTS = {
  "softmax": Variant("Softmax attention"),
  "no_bos": Variant("Softmax attention without BOS", packing={"bos": "none"}),
  "registers": Variant(
    "Softmax attention with registers",
    packing={"bos": "none", "registers": REGISTERS},
  ),
  "k_bias": Variant("Attention with a learned key", {"attn_bias": "k"}),
  "kv_bias": Variant(
    "Attention with a learned key and value", {"attn_bias": "kv"}
  ),
  "v_bias": Variant("Attention with a learned value", {"attn_bias": "v"}),
  "sink_logit": Variant(
    "Attention with a learned sink logit", {"sink_logit": True}
  ),
  "softmax1": Variant("Softmax1 attention", {"normalizer": "softmax1"}),
  "clipped_softmax": Variant(
    "Clipped softmax attention", {"normalizer": "clipped_softmax"}
  ),
  "softpick": Variant("Softpick attention", {"normalizer": "softpick"}),
  "sigmoid": Variant("Sigmoid attention", {"normalizer": "sigmoid"}),
  "normalized_sigmoid": Variant(
    "Normalised sigmoid attention", {"normalizer": "normalized_sigmoid"}
  ),
  "elu1": Variant("ELU+1 attention", {"normalizer": "elu1"}),
  "relu": Variant("ReLU attention", {"normalizer": "relu"}),
  "head_gate": Variant("Attention with a gate for each head", {"gate": "head"}),
  "element_gate": Variant(
    "Attention with an element-wise gate", {"gate": "element"}
  ),
  "value_gate": Variant("Attention with gated values", {"gate": "value"}),
  "qk_norm": Variant(
    "Attention with normalised queries and keys", {"qk_norm": True}
  ),
}
"""A new variant is one entry here, and one in `papers` if a paper has measured
it."""


@dataclasses.dataclass(frozen=True)
class Config(TextConfig):
  """What is trained: every variant with every seed.

  Attributes:
    variants: names of `VARIANTS`; the others are compared with softmax.
  """

  variants: tuple[str, ...] = tuple(VARIANTS)


SCALES: dict[str, dict[str, Any]] = {
  "demo": {"variants": ("softmax", "k_bias", "sigmoid"), "seeds": (0,)},
  "cpu": {},
  "gpu": GPU_SCALE | {"length": 256, "batch": 64, "steps": 1000},
  "paper": PAPER_SCALE | {"steps": TOKENS_5B},
}
"""Fields of `Config` by --scale."""


def variants(config: Config) -> dict[str, TrainConfig]:
  """The run of each variant.

  Raises:
    ValueError: for a name that is no variant.
  """
  runs = {}
  for name, variant in VARIANTS.items():
    model = dict(variant.model)
    if "registers" in variant.packing:
      # Registers have ids above the text's, so the text is the same for all.
      model["vocab_size"] = config.vocab_size + REGISTERS
    runs[name] = text_run(config, model=model, packing=variant.packing)
  return chosen(runs, config.variants, "attention_variants")
