"""How sparse autoencoders are made: one file, one method."""

SUITE = "ortsae-bench"
