"""The cost of a cluster on AWS: prices, quotas, and the quote that is shown before anything starts."""
