"""One module for each experiment: a config in, a `Result` out."""

EXPERIMENTS = {
  "perturbation": "perturbation",
  "smoothing": "smoothing",
  "jacobian": "jacobian_maps",
  "bound": "bound",
  "collapse": "collapse",
  "noop_heads": "noop_heads",
  "prompts": "prompts",
  "massive": "massive",
  "model_size": "model_size",
  "first_token": "first_token",
}
"""The module here, and in `sinkjax.report`, of each of the paper's experiments
of `launch.reproduce`."""

USES = {
  "pruning": "pruning",
  "attack": "attack",
  "robustness": "robustness",
  "kv_quantisation": "kv_quantisation",
  "sink_compute": "sink_compute",
  "streaming": "streaming",
}
"""Likewise what sinks are good and bad for, on the same model."""

TRAINING = {
  "bigram_backcopy": "bigram_backcopy",
  "residual_peak": "residual_peak",
  "trigger_mean": "trigger_mean",
  "context_length": "context_length",
  "packing": "packing",
  "attention_variants": "attention_variants",
  "optimisation": "optimisation",
  "model_family": "model_family",
  "progressive_context": "progressive_context",
  "sink_regulariser": "sink_regulariser",
  "noise_training": "noise_training",
  "mixing": "mixing",
}
"""Likewise those that train models of their own, at a scale; a module has
`SCALES`, fields of its `Config` by name of the scale."""

SCALES = ("demo", "cpu", "gpu", "paper")
