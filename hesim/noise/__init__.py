"""CKKS noise: formulas, laws by library, where a Program and a Circuit get theirs."""
