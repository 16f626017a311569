"""The batch axis: the one that every encrypted value carries and nothing mixes."""
