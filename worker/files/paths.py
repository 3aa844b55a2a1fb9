"""Where the platform keeps its own files inside of a run's workspace."""

OUTPUT_FOLDER = ".output"
"""This folder is in the workspace, and not in the checkout, where the run's code would find it."""
