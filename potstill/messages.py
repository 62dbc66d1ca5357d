"""Chat messages as a student reads them, in training, evaluation and service alike: text."""

from potstill.records import Message

READ = ("role", "content", "name", "tool_calls", "tool_call_id")
"""What a chat template may look at."""


def as_text(message: Message) -> Message:
    """The message with its text parts joined, and with "" where it has no content.

    Errors: `ValueError` where the content is neither text nor a list of text parts.
    """
    content = message.get("content")
    if isinstance(content, list):
        texts = [part.get("text") for part in content if isinstance(part, dict) and part.get("type") == "text"]
        if len(texts) != len(content) or not all(isinstance(text, str) for text in texts):
            kinds = sorted(
                {str(part.get("type")) if isinstance(part, dict) else str(part) for part in content} - {"text"}
            )
            raise ValueError(f"only text parts can be read, not {', '.join(kinds) or 'a part without its text'}")
        content = "".join(map(str, texts))
    elif content is not None and not isinstance(content, str):
        raise ValueError(f"{type(content).__name__}, neither text nor a list of text parts")
    kept = {name: message[name] for name in READ if message.get(name) is not None}
    return {**kept, "content": content or ""}
