"""The one client of chat-completion endpoints: providers, limiter, retrying, pricing, keys."""
