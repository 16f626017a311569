"""The machine on Pyfhel (Microsoft SEAL)."""
