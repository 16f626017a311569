"""A machine that bootstraps, on OpenFHE, under an interpreter of its own."""
