"""Models from files, and to files: `load`, `save` and their like.

These are the face of this package, with `Model`, which `load` returns, and
`WeightsError`, the one exception. The rest is for them:

    registry          models by name or path: what is where, in which format
    hub               names of the Hugging Face Hub
    families/         one file a family: its config and its tensors, both ways
    huggingface       folders of config.json and safetensors; hf_config
    gguf_model        GGUF files; their vocabularies in tokenizer_gguf, which
                      splits texts by pre_tokenizers
    orbax_io          folders that training and `launch.convert` write
    glassllm          the two small models of that package
    lens_file         Jacobian lenses, both ways
    offload           layers read one by one, for models larger than memory
    tokenizer         text to ids and back; tokenizer_files, chat,
                      and chat_sandbox, which renders templates
    layout, assemble  where a parameter lies in a file; whole trees by it
    formats/          bytes to checked headers to float32 tensors
    packages          files out of Python packages, fetched once
    folders, memory, validate, post_processor: what these share
"""

from sinkjax.weights.lens_file import load_lens, save_lens
from sinkjax.weights.offload import open_layers
from sinkjax.weights.registry import Model, load, save, supported_models
from sinkjax.weights.validate import WeightsError

__all__ = [
  "Model",
  "WeightsError",
  "load",
  "load_lens",
  "open_layers",
  "save",
  "save_lens",
  "supported_models",
]
