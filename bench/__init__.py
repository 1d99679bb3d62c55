"""How sparse autoencoders are measured."""

SUITE = "ortsae-bench"
