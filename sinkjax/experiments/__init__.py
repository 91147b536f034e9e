"""One module for each measurement: a config in, a `Result` out."""

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
"""The module here, and in `sinkjax.report`, of each experiment of
`launch.reproduce`."""
