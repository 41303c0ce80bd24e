"""Training: the server, the workers, what travels between them, and what a run keeps."""
