"""--mesh, as every launcher has it that works on several devices."""

from absl import flags

MESH = flags.DEFINE_string(
  "mesh",
  "auto",
  "How many devices along each axis, as in data:2,fsdp:2,tensor:4. data splits "
  "texts and copies the weights; fsdp splits texts and weights, and gathers a "
  "layer's weights when they are used; tensor splits the heads, the MLP and "
  "the vocabulary of one text's work; expert, in analyses, splits the experts "
  "of a layer, and what is no expert's is done by all along it. Their product "
  "is the number of devices; -1 for one axis takes all that are left. auto: "
  "all devices of this machine, along data in training and for a model that "
  "fits each of them four times; else along tensor as far as the heads allow, "
  "and the rest along fsdp.",
)
