"""What this machine needs to run Potstill, looked at from outside: one small function a question, a remedy with each answer."""
