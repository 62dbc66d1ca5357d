"""Arms generated, scored and summarised."""
