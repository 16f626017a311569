"""Sites: the places of a model that are exact or polynomial, their ranges and fits."""
