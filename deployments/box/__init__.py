"""Everything on one machine: a supervisor of our own, what it keeps alive, and the commands up, down and status."""
