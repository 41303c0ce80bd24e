"""What a cluster on AWS costs: prices, quotas, and the quote that is shown before anything starts."""
