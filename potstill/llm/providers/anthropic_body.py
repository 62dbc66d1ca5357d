"""Writes a request in the words of Anthropic's Messages API.

What has another shape there is translated; what has no counterpart (`seed`, names of speakers) is left out.
"""

from collections.abc import Iterator
from typing import Any

import orjson

from potstill.llm.messages import SYSTEM_ROLES, ChatRequest
from potstill.records import Message

Block = dict[str, Any]

ROLES = {"tool": "user"}
"""A tool's result is the user's word there."""
OPENING: Block = {"type": "text", "text": "(The assistant speaks first.)"}
"""The API's conversations begin with the user."""
ANY_JSON = "Answer with one JSON object and nothing else."
"""The API has schemas, but no mode for JSON of any form."""
EFFORTS = {"minimal": "low"}
"""OpenAI's names of efforts that are other ones there."""
CACHED: Block = {"cache_control": {"type": "ephemeral"}}
"""Marks the end of a prefix that is kept for five minutes after its last use."""


def write_body(request: ChatRequest, *, cache_prefix: bool) -> dict[str, Any]:
    """The JSON of a request; with `cache_prefix` tools and system prompt end in a mark."""
    tools = [_tool(tool) for tool in request.tools or ()]
    system = _system(request)
    if cache_prefix and (end := system or tools):  # tools come before the system prompt in what is cached
        end[-1] = {**end[-1], **CACHED}
    forced = _tool_choice(request.tool_choice) if tools else None
    optional = {
        "system": system,
        "tools": tools,
        "tool_choice": forced,
        "temperature": request.temperature,
        "top_p": request.top_p,
        "stop_sequences": request.stop,
        "thinking": _thinking(request.reasoning_effort, forced),
        "output_config": _output_config(request),
    }
    return {
        "model": request.model,
        "max_tokens": request.max_tokens,
        **{name: value for name, value in optional.items() if value is not None and value != []},
        "messages": _conversation(request.messages),
    }


def _system(request: ChatRequest) -> list[Block]:
    """Every system message, wherever it stands."""
    spoken = [message for message in request.messages if message.get("role") in SYSTEM_ROLES]
    blocks = [block for message in spoken for block in _content(message)]
    if (request.response_format or {}).get("type") == "json_object":
        blocks.append({"type": "text", "text": ANY_JSON})
    return blocks


def _conversation(messages: list[Message]) -> list[Message]:
    """The other messages, those of one speaker in a row merged into one turn."""
    turns: list[Message] = []
    for message in messages:
        role = message.get("role")
        if role in SYSTEM_ROLES:
            continue
        blocks = list(_blocks(message))
        role = ROLES.get(str(role), role)
        if turns and turns[-1]["role"] == role:
            turns[-1]["content"].extend(blocks)
        elif blocks:
            turns.append({"role": role, "content": blocks})
    opening = [{"role": "user", "content": [OPENING]}] if turns and turns[0]["role"] == "assistant" else []
    return opening + turns


def _blocks(message: Message) -> Iterator[Block]:
    content = _content(message)
    if message.get("role") == "tool":
        yield {"type": "tool_result", "tool_use_id": message.get("tool_call_id"), "content": content}
        return
    yield from content
    for call in message.get("tool_calls") or ():
        function = call.get("function") or {}
        arguments = _arguments(function.get("arguments"))
        yield {"type": "tool_use", "id": call.get("id"), "name": function.get("name"), "input": arguments}


def _content(message: Message) -> list[Block]:
    """The parts of a message; empty text, which the API refuses, is left out, and a part that is no text goes as it is."""
    content = message.get("content")
    parts = [{"type": "text", "text": content}] if isinstance(content, str) else content or []
    return [part for part in parts if not (isinstance(part, dict) and part.get("text") == "")]


def _arguments(arguments: Any) -> Any:
    """The object that a call's arguments are; text that is no JSON object, which a model may write, stays readable."""
    try:
        parsed = orjson.loads(arguments or "{}")
    except (orjson.JSONDecodeError, TypeError):
        parsed = arguments
    return parsed if isinstance(parsed, dict) else {"arguments": arguments}


def _tool(tool: Block) -> Block:
    function = tool.get("function")
    if not isinstance(function, dict):
        return tool
    written = {
        "name": function.get("name"),
        "description": function.get("description"),
        "input_schema": function.get("parameters") or {"type": "object", "properties": {}},
        "strict": function.get("strict"),
    }
    return {name: value for name, value in written.items() if value is not None}


def _tool_choice(choice: str | Block | None) -> Block | None:
    if isinstance(choice, str):
        return {"type": {"required": "any"}.get(choice, choice)}
    if choice and isinstance(choice.get("function"), dict):
        return {"type": "tool", "name": choice["function"].get("name")}
    return choice


def _thinking(effort: str | None, forced: Block | None) -> Block | None:
    """Effort goes with thinking that adapts to it; a tool that has to be called rules thinking out."""
    if effort is None or (forced and forced.get("type") in {"any", "tool"}):
        return None
    return {"type": "disabled"} if effort == "none" else {"type": "adaptive"}


def _output_config(request: ChatRequest) -> Block | None:
    config: Block = {}
    if request.reasoning_effort not in {None, "none"}:
        config["effort"] = EFFORTS.get(str(request.reasoning_effort), request.reasoning_effort)
    wanted = request.response_format or {}
    if wanted.get("type") == "json_schema":
        config["format"] = {"type": "json_schema", "schema": wanted.get("json_schema", {}).get("schema")}
    return config or None
