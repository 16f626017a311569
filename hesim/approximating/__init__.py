"""How `hesim.approximate` makes a JAX function polynomial: what to replace, where, and by what."""
