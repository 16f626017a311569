"""What `trace` does on the way from a jaxpr to a Program: constants, calls, loops, rewritings."""
