"""What was answered: records, tables, suites."""

SUITE = "ortsae-bench"
