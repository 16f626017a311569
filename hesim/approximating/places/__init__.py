"""Where a function needs polynomials: its values as a graph, and functions of one value in it."""
