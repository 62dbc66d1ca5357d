"""Small closed sets of names. Alone in a module, since a command's help must start without the models of rows."""

from typing import Literal

TaskKind = Literal["classification", "extraction"]
"""What a student can be taught to do."""
Turns = Literal["last", "each"]
"""Which prompts a conversation of several turns is: its last one, or one before each answer."""
Split = Literal["train", "validation", "test"]
Choice = Literal["first", "majority", "scorer"]
"""Which of several usable answers to one prompt is trained on."""
TermsKind = Literal["restricted", "allowed", "unknown"]
"""What a teacher's terms say of training with its output."""
