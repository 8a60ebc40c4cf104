"""SSH as this platform speaks it: one key, host keys always verified, values that no shell reads as code."""
