"""sinkjax: why and how language models attend to their first token, in JAX.

A model is a pure function, an analysis is a transform of that function:

    params, cfg, tokenizer = sinkjax.load("smollm2-135m")
    f = sinkjax.forward(cfg)             # f(params, tokens) -> Output
    g = sinkjax.intervene(f, {"scores": sinkjax.knockout(0, from_layer=2)})
    h = sinkjax.capture(g, {"sink": ("pattern", sinkjax.sink_score)})
    h(params, tokens).trace["sink"]      # [L, B, H]
    sinkjax.jacobian_norms(g, params, tokens[0])  # [T, S], exact

Axes, everywhere: B batch, T query position, S key or source position, L
layer, H head, G query heads a KV head, N KV head, K head dimension, D model
width, F MLP width, V vocabulary. Positions count from 0.
"""

from sinkjax.analysis.lens_quality import lens_quality
from sinkjax.config import TINY, ModelConfig, RopeScaling
from sinkjax.metrics.norms import (
  massive_activation,
  token_norms,
  value_norm_ratio,
)
from sinkjax.metrics.sinks import (
  attention_entropy,
  first_token_mass,
  sink_rate,
  sink_score,
)
from sinkjax.models.transformer import (
  Output,
  forward,
  init_params,
  param_shapes,
)
from sinkjax.report.explore import explore
from sinkjax.taps import DEPTH_SITES, EXPERT_SITES, MIXING_SITES, SITES, Taps
from sinkjax.transforms.attention_edits import ablate_heads, graded, knockout
from sinkjax.transforms.capture import capture
from sinkjax.transforms.edit_grammar import parse_edits
from sinkjax.transforms.edited_model import edited
from sinkjax.transforms.edits import add, chain, hold, patch, replace, scale
from sinkjax.transforms.estimators import estimate_norms, power_norms
from sinkjax.transforms.find_sinks import find_sinks
from sinkjax.transforms.intervene import intervene
from sinkjax.transforms.jacobian import (
  jacobian_norms,
  singular_values,
  token_jacobian,
)
from sinkjax.transforms.lens import Lens, fit_lens
from sinkjax.transforms.lens_readout import lens_logits
from sinkjax.transforms.neuron_edits import ablate_neurons
from sinkjax.transforms.paths import carriers
from sinkjax.transforms.statistics import Statistic
from sinkjax.transforms.streaming import stream_statistics
from sinkjax.weights import (
  Model,
  load,
  load_lens,
  open_layers,
  save,
  save_lens,
  supported_models,
)

__version__ = "0.1.0"

__all__ = [
  "DEPTH_SITES",
  "EXPERT_SITES",
  "MIXING_SITES",
  "SITES",
  "TINY",
  "Lens",
  "Model",
  "ModelConfig",
  "Output",
  "RopeScaling",
  "Statistic",
  "Taps",
  "ablate_heads",
  "ablate_neurons",
  "add",
  "attention_entropy",
  "capture",
  "carriers",
  "chain",
  "edited",
  "estimate_norms",
  "explore",
  "find_sinks",
  "first_token_mass",
  "fit_lens",
  "forward",
  "graded",
  "hold",
  "init_params",
  "intervene",
  "jacobian_norms",
  "knockout",
  "lens_logits",
  "lens_quality",
  "load",
  "load_lens",
  "massive_activation",
  "open_layers",
  "param_shapes",
  "parse_edits",
  "patch",
  "power_norms",
  "replace",
  "save",
  "save_lens",
  "scale",
  "singular_values",
  "sink_rate",
  "sink_score",
  "stream_statistics",
  "supported_models",
  "token_jacobian",
  "token_norms",
  "value_norm_ratio",
]
