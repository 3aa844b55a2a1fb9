"""Where the platform keeps its own files inside of a run's workspace."""

OUTPUT_FOLDER = ".output"
"""In the workspace. Not in the checkout, where the run's code would find it."""
