"""Checkpoints written by other libraries' own save code, compared with those libraries' own numbers (`tox -e parity`)."""
