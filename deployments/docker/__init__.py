"""Images, and what the containers of deployments/compose.yaml need beside the commands of the repository."""
