"""From a record as users have them to messages: which chat format it is in, and what it says.

How messages become tokens is `dataset/conversation.py`'s.
"""

import json
from collections.abc import Callable
from typing import Any, Literal, get_args

from dataset.conversation import ROLES, Message

QuestionPosition = Literal["last", "first"]
ChatFormat = Literal["conversations", "messages", "sharegpt", "alpaca", "prompt_completion", "reading"]

SHAREGPT_ROLES = {role: role for role in ROLES} | {
    "human": "user",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "function_call": "assistant",
    "observation": "tool",
}


class RecordError(ValueError):
    """Says why a record cannot be used; the text is a reason that many records may share."""


class FormatError(ValueError):
    """Says that a file holds records in several formats."""


def format_of(record: dict[str, Any]) -> ChatFormat | None:
    """Return the chat format that a record is in, None if it is in none.

    conversations      {"conversations": [{"role": …, "content": …}, …]}
    messages           {"messages": [{"role": …, "content": …}, …]}
    sharegpt           {"conversations": [{"from": …, "value": …}, …]}
    alpaca             {"instruction": …, "input": …, "output": …}
    prompt_completion  {"prompt": …, "completion": …}                  texts, or lists of messages
    reading            {"context": …, "question": …, "answers": [first, …]}      or {"text": [first, …]}
    """
    turns = record.get("conversations")
    if isinstance(turns, list) and turns and isinstance(turns[0], dict):
        return "sharegpt" if "from" in turns[0] and "role" not in turns[0] else "conversations"
    for name, keys in KEYS.items():
        if record.keys() >= keys:
            return name
    return None


KEYS: dict[ChatFormat, set[str]] = {
    "messages": {"messages"},
    "alpaca": {"instruction", "output"},
    "prompt_completion": {"prompt", "completion"},
    "reading": {"question", "answers"},
}


def parse_messages(
    record: dict[str, Any],
    question_position: QuestionPosition = "last",
    chat_format: ChatFormat | None = None,
) -> list[Message]:
    """Return the messages of a chat record, with at least one answer among them.

    Thoughts, tool calls and tools are read where messages have them. Raises `RecordError` with the reason.
    """
    chat_format = chat_format or format_of(record)
    if chat_format is None:
        raise RecordError("no chat format has these keys; expected " + ", ".join(get_args(ChatFormat)))
    if chat_format == "reading":
        return _read_comprehension(record, question_position)
    messages = PARSERS[chat_format](record)
    if not any(message.role == "assistant" for message in messages):
        raise RecordError("no answer")
    return messages


def check_format(record: dict[str, Any], chat_format: ChatFormat | None) -> None:
    """Raise `FormatError` if a record is in another format than the first of its file."""
    if (found := format_of(record)) not in (None, chat_format):
        raise FormatError(
            f"a record in the format {found} in a file of {chat_format}; split the file, or name the format "
            "to keep with --format"
        )


def reading_prompt(context: str, question: str, question_position: QuestionPosition = "last") -> str:
    """Return the user message that asks a question about a text."""
    parts = (context, question) if question_position == "last" else (question, context)
    return "\n\n".join(parts)


def read_text(value: Any, name: str, may_be_empty: bool = False) -> str:
    """Return a value of a record as text that can be encoded; raises `RecordError` if it is none or blank."""
    if value is None and may_be_empty:
        return ""
    if value is None:
        raise RecordError(f"no {name}")
    if not isinstance(value, str):
        raise RecordError(f"{name} is not a string")
    if not may_be_empty and not value.strip():
        raise RecordError(f"{name} is empty")
    try:
        value.encode()
    except UnicodeEncodeError:
        raise RecordError(f"{name} is not valid Unicode") from None
    return value


def read_answers(value: Any) -> list[Any]:
    """Return a record's accepted answers, a list or a column as SQuAD has it, `{"text": […], …}`."""
    answers = value.get("text") if isinstance(value, dict) else value
    if not answers:
        raise RecordError("no answer")
    if not isinstance(answers, list):
        raise RecordError("answers are not a list")
    return answers


def _read_conversations(record: dict[str, Any]) -> list[Message]:
    turns = record.get("conversations") or record.get("messages")
    messages = [_read_message(turn) for turn in _objects(turns, "messages")]
    return _with_tools(messages, record.get("tools"))


def _objects(value: Any, name: str) -> list[dict[str, Any]]:
    if not isinstance(value, list):
        raise RecordError(f"{name} are not a list")
    if not all(isinstance(each, dict) for each in value):
        raise RecordError(f"one of the {name} is not an object")
    return value


def _read_message(turn: dict[str, Any]) -> Message:
    role = turn.get("role")
    if role not in ROLES:
        raise RecordError("unknown role")
    thought = read_text(turn.get("reasoning_content"), "reasoning_content", may_be_empty=True)
    calls = tuple(_call_text(call) for call in _json_objects(turn.get("tool_calls"), "tool_calls"))
    tools = _tools(turn.get("tools"))
    if role != "assistant" and (thought or calls):
        raise RecordError("a thought or tool call outside an answer")
    may_be_empty = bool(calls) or role in ("system", "tool")
    content = read_text(turn.get("content"), "content", may_be_empty)
    return Message(role, content, thought, calls, tools)


def _json_objects(value: Any, name: str) -> list[dict[str, Any]]:
    """Return a list of objects that a record holds as such or as the text of it, as minimind's files do."""
    if isinstance(value, str) and value.strip():
        try:
            value = json.loads(value)
        except ValueError:
            raise RecordError(f"{name} are not JSON") from None
    return _objects(value or [], name)


def _tools(value: Any) -> tuple[str, ...]:
    return tuple(_json_text(tool, "tools") for tool in _json_objects(value, "tools"))


def _json_text(value: Any, name: str) -> str:
    return read_text(json.dumps(value, ensure_ascii=False), name)


def _call_text(call: dict[str, Any]) -> str:
    """Return a tool call as one line of JSON; `arguments` may be an object or the text of one."""
    call = call.get("function", call)
    if not isinstance(call, dict) or not isinstance(call.get("name"), str):
        raise RecordError("a tool call has no name")
    name, arguments = call["name"], call.get("arguments") or {}
    if not isinstance(arguments, str):
        arguments = json.dumps(arguments, ensure_ascii=False)
    text = f'{{"name": {json.dumps(name, ensure_ascii=False)}, "arguments": {arguments}}}'
    return read_text(text, "tool_calls")


def _with_tools(messages: list[Message], tools: Any) -> list[Message]:
    """Return the messages with a record's own list of tools in their system message."""
    if not (texts := _tools(tools)):
        return messages
    if messages and messages[0].role == "system":
        first = messages[0]
        return [Message("system", first.content, tools=(*first.tools, *texts)), *messages[1:]]
    return [Message("system", "", tools=texts), *messages]


def _system(value: Any) -> list[Message]:
    text = read_text(value, "system", may_be_empty=True)
    return [Message("system", text)] if text else []


def _read_sharegpt(record: dict[str, Any]) -> list[Message]:
    turns = _objects(record.get("conversations"), "messages")
    messages = _system(record.get("system")) + [_read_sharegpt_message(turn) for turn in turns]
    return _with_tools(messages, record.get("tools"))


def _read_sharegpt_message(turn: dict[str, Any]) -> Message:
    speaker = turn.get("from")
    if not isinstance(speaker, str) or speaker not in SHAREGPT_ROLES:
        raise RecordError("unknown role")
    content = read_text(
        turn.get("value"), "value", may_be_empty=SHAREGPT_ROLES[speaker] in ("system", "tool")
    )
    if speaker == "function_call":
        return Message("assistant", "", tool_calls=(content,))
    return Message(SHAREGPT_ROLES[speaker], content)


def _read_alpaca(record: dict[str, Any]) -> list[Message]:
    history = record.get("history") or []
    if not isinstance(history, list) or not all(
        isinstance(turn, list) and len(turn) == 2 for turn in history
    ):
        raise RecordError("history is not a list of pairs")
    messages = _system(record.get("system"))
    for question, answer in history:
        messages.append(Message("user", read_text(question, "history")))
        messages.append(Message("assistant", read_text(answer, "history")))
    instruction = read_text(record.get("instruction"), "instruction")
    details = read_text(record.get("input"), "input", may_be_empty=True)
    prompt = f"{instruction}\n\n{details}" if details.strip() else instruction
    return [
        *messages,
        Message("user", prompt),
        Message("assistant", read_text(record.get("output"), "output")),
    ]


def _read_prompt_completion(record: dict[str, Any]) -> list[Message]:
    messages = []
    for key, role in (("prompt", "user"), ("completion", "assistant")):
        if isinstance(record.get(key), list):
            messages += [_read_message(turn) for turn in _objects(record[key], "messages")]
        else:
            messages.append(Message(role, read_text(record.get(key), key)))
    return _with_tools(messages, record.get("tools"))


def _read_comprehension(record: dict[str, Any], question_position: QuestionPosition) -> list[Message]:
    answers = read_answers(record.get("answers"))
    context, question = (read_text(record.get(key), key) for key in ("context", "question"))
    prompt = reading_prompt(context, question, question_position)
    return [Message("user", prompt), Message("assistant", read_text(answers[0], "answer"))]


PARSERS: dict[ChatFormat, Callable[[dict[str, Any]], list[Message]]] = {
    "conversations": _read_conversations,
    "messages": _read_conversations,
    "sharegpt": _read_sharegpt,
    "alpaca": _read_alpaca,
    "prompt_completion": _read_prompt_completion,
}
