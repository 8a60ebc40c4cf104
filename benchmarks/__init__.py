"""Measurements of the whole platform, each a ratio against a bare loop in the same run: machines differ, ratios less."""
