"""Who hears of what: a small YAML becomes notification blocks and automations on a Prefect server."""
