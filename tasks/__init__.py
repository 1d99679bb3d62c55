"""What is asked: one file, one task."""

SUITE = "ortsae-bench"
