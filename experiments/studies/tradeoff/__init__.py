"""The trade-off study: knobs of a model and of its encryption, their accuracy and their cost."""
