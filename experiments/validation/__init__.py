"""One model exact, through polynomials, simulated and encrypted, and the report that compares."""
