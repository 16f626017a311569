"""Which approximation to take: candidates on a front of cost and error, reports, plots."""
