"""The receiver of new prompts: signed webhooks in, prompts in the inbox, runs started once enough has landed."""
