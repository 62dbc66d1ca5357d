"""One file a provider: how a request is written and a reply read."""
