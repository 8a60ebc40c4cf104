"""An emulator of the Kubernetes API server, for tests."""
