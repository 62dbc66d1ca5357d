"""Where it runs: templates, and what puts them on a Prefect server and keeps its processes alive."""
