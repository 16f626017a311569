"""The Circuit: ciphertext instructions with level and exact scale known before anything runs."""
