"""How good answers are: one module a kind of answer. Every score has its number of examples and an interval."""
