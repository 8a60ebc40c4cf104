"""All SQL of this role. A module per noun, a function per statement, each with one sentence that says what it does.

Functions take a transaction (`Tx`); the services compose them and decide.
"""
