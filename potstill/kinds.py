"""Small closed sets of names. Alone in a module, since a command's help must start without the models of rows."""

from typing import Literal

TaskKind = Literal["classification", "extraction"]
"""What a student can be taught to do."""
Split = Literal["train", "validation", "test"]
TermsKind = Literal["restricted", "allowed", "unknown"]
"""What a teacher's terms say of training with its output."""
