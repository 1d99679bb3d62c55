"""Qualification of metrics: how well a metric's number follows a planted defect, and how small a difference it can tell."""
