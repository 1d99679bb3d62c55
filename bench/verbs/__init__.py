"""The verbs of the command line: arguments in, calls to the rooms, text out."""
