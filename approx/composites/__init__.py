"""Composites: small graphs of polynomials, products and sums under one name."""
