"""Rules of the search: how an operation can be done, given where its operands lie."""
