"""From logs to a clean, split prompt set."""
