"""Engine adapters: pure functions from a template to the command line of its engine."""
