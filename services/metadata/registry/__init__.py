"""Templates and profiles that an operator wrote down: where they are read from, and which of them hold."""
