"""One message of a record, in any of the ways that people write it: role, text, thought, tool calls, loss.

Where messages stand in a record is told by `dataset/formats.py`, their tokens by `dataset/conversation.py`.
"""

import json
import re
from collections.abc import Iterable
from itertools import accumulate
from typing import Any

from dataset.chat_form import Message, Passage
from dataset.printing import printable

ROLE_NAMES = {
    "system": ("system", "developer"),
    "user": ("user", "human", "prompter"),
    "assistant": ("assistant", "gpt", "chatgpt", "model", "bot", "ai", "function_call", "tool_call"),
    "tool": ("tool", "function", "observation", "tool_response", "ipython"),
}
ROLE_OF = {name: role for role, names in ROLE_NAMES.items() for name in names}
CALLERS = ("function_call", "tool_call")  # roles whose text is the JSON of calls

FLAGS = ("weight", "train", "training", "loss", "loss_weight", "trainable", "loss_mask")
THOUGHTS = ("reasoning_content", "reasoning", "thinking")
TURN_KEYS = {"role", "from", "content", "value", "tool_calls", "function_call", "tools", *FLAGS, *THOUGHTS}
PART_KEYS = {"type", "text"}

THINK = re.compile(r"\A\s*<think>(.*?)</think>\s*", re.DOTALL)
CALL = re.compile(r"<tool_call>\s*+(\{(?:(?!</?tool_call>).)*\})\s*+</tool_call>\s*+", re.DOTALL)
CALLS = re.compile(f"(?:{CALL.pattern})+\\Z", re.DOTALL)
RESPONSE = re.compile(r"\A\s*+<tool_response>((?:(?!</?tool_response>).)*+)</tool_response>\s*+\Z", re.DOTALL)
ARGUMENTS = ("arguments", "args", "parameters", "input")
CALL_KEYS, CALL_MARKS = {"name", *ARGUMENTS}, {"type", "id", "index"}
"""of a tool call, those that are read and those that say nothing"""
LIKE_FLAG = re.compile(
    r"(?:\w+_)?(?:train|loss|mask|weight|learn|supervise|reject|ignore|skip)[a-z]*(?:_on|_on_turn|_turn|_flag)?",
    re.IGNORECASE,
)

MEDIA = (
    *("image", "images", "image_url", "image_urls", "image_path", "image_paths", "img", "pixel_values"),
    *("video", "videos", "audio", "audios"),
)
MEDIA_MARK = re.compile(
    r"<\|?image(?:[-_ ]?(?:\d+|here|pad|placeholder))?\|?>|<\|vision_start\|>|<img>[^<>\n]+</img>|data:image/"
    r"|\A\s*<(?:video|audio)>|<(?:video|audio)>\s*\Z",
    re.IGNORECASE,
)
SPEAKER = re.compile(r"(?:\A|(?<!\s)(?=\s*?\n\n))\s*+(Human|Assistant):")  # in a transcript that is one text
LONGEST_NAME = 40  # of a foreign name in a reason


class RecordError(ValueError):
    """Says why a record cannot be used; the text is a reason that many records may share."""


class LeftOutError(RecordError):
    """Says that a record itself tells to leave it out: counted like the others, but no fault of the file."""


def read_text(value: Any, name: str, may_be_empty: bool = False) -> str:
    """Return a value of a record as text that can be encoded; raises `RecordError` if it is none or blank."""
    is_missing = is_absent(value)
    if is_missing and not may_be_empty:
        raise RecordError(f"no {name}")
    if is_missing:
        return ""
    if not isinstance(value, str):
        raise RecordError(f"{name} is not a string")
    if not may_be_empty and not value.strip():
        raise RecordError(f"{name} is empty")
    try:
        value.encode()
    except UnicodeEncodeError:
        raise RecordError(f"{name} is not valid Unicode") from None
    return value


def is_absent(value: Any) -> bool:
    """Say whether a value stands for none: null, or the NaN that tables have in its place."""
    return value is None or (isinstance(value, float) and value != value)


def half_of(record: dict[str, Any]) -> str:
    """Say which of two answers a record has alone; "" where it has both or neither."""
    for name, other in (("chosen", "rejected"), ("rejected", "chosen")):
        if not is_absent(record.get(name)) and is_absent(record.get(other)):
            return f"{name} without {other}; expected two answers to one prompt"
    return ""


def held_keys(record: dict[str, Any]) -> list[str]:
    """Return the keys of a record that hold something."""
    return [key for key, value in record.items() if not is_absent(value) and value not in ("", [], {})]


def shown(names: Iterable[Any], most: int = 8) -> str:
    """Return foreign names for a reason: printable, each shortened, and how many there are beyond `most`."""
    names = [printable(str(name)[:LONGEST_NAME]) for name in names]
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


def read_turns(value: Any, flags: Any = None) -> list[Message]:
    """Return the messages of a list, or of the JSON text of one; empty system messages are left out.

    `flags` is a record's list of 0 and 1, one for each of the messages, of those that carry loss.
    """
    turns = read_objects(value, "messages")
    if isinstance(flags, list):
        if len(flags) != len(turns):
            raise RecordError("loss_mask is not as long as the messages")
        if any(map(is_absent, flags)):
            raise RecordError("loss_mask holds a null; expected 0 or 1 for each message")
        turns = [turn | {"loss_mask": flag} for turn, flag in zip(turns, flags, strict=True)]
    messages = map(read_message, turns)
    return [m for m in messages if m.role != "system" or m.content.strip() or m.tools]


def is_transcript(value: Any) -> bool:
    """Say whether a value is a text in which `Human:` and `Assistant:` speak."""
    return isinstance(value, str) and SPEAKER.match(value) is not None


def turns_of(text: str) -> list[dict[str, str]]:
    """Return the messages of such a text, as records have them."""
    _, *parts = SPEAKER.split(text)
    turns = zip(parts[::2], parts[1::2], strict=True)
    return [{"role": name, "content": said.strip()} for name, said in turns]


def read_objects(value: Any, name: str) -> list[dict[str, Any]]:
    """Return a list of objects that a record holds as such or as the text of it, as minimind's files do."""
    if isinstance(value, str):
        value = parse_json(value, name) if value.strip() else []
    if not isinstance(value, list):
        raise RecordError(f"{name} are not a list")
    if not all(isinstance(each, dict) for each in value):
        raise RecordError(f"one of the {name} is not an object")
    return value


def read_message(turn: dict[str, Any]) -> Message:
    """Return a message with what it thinks, calls and offers; raises `RecordError` with the reason."""
    speaker = speaker_of(turn)
    role = _role(speaker)
    content, passages = _content(turn.get("value") if is_absent(turn.get("content")) else turn["content"])
    refuse_media(turn)
    calls = _calls(turn)
    if role == "assistant" and speaker.lower() in CALLERS:
        content, calls = "", calls + _calls({"tool_calls": _as_list(parse_json(content, "tool_calls"))})
    thought = _thought(turn)
    if role != "assistant" and (thought or calls):
        raise RecordError("a thought or tool call outside an answer")
    if role == "assistant" and passages:
        raise RecordError("a passage in an answer; expected in what is asked")
    if role == "assistant":
        thought, content = _split_thought(thought, content)
        content, calls = split_calls(content, calls)
    if role == "tool" and not passages:
        content = RESPONSE.sub(lambda found: found[1].strip(), content)
    content = read_text(content, "content", may_be_empty=bool(calls) or role in ("system", "tool"))
    tools = read_tools(turn.get("tools"))
    return Message(role, content, thought, calls, tools, is_trained(turn), passages=passages)


def speaker_of(turn: dict[str, Any]) -> Any:
    """Return what a message calls its role."""
    return turn.get("from") if is_absent(turn.get("role")) else turn["role"]


def is_trained(holder: dict[str, Any]) -> bool:
    """Say whether the flags of a message or record let it carry loss, as those do that have none.

    Raises `RecordError` also for what seems a flag of loss and is none that is known.
    """
    flags = {name: holder[name] for name in FLAGS if not is_absent(holder.get(name))}
    for name, value in flags.items():
        if not isinstance(value, int | float) or value not in (0, 1):
            raise RecordError(f"{name} is neither 0 nor 1, false nor true; losses are not weighted")
    others = [name for name in holder if name not in FLAGS and LIKE_FLAG.fullmatch(name)]
    for name in others:
        value = holder[name]
        values = value if isinstance(value, list) and value else [value]
        if all(isinstance(each, int | float) and each in (0, 1) for each in values):
            raise RecordError(f"{shown([name])} may be a flag of loss; known are {', '.join(FLAGS)}")
    return all(flags.values())


def refuse_media(holder: dict[str, Any], prompt: str = "") -> None:
    """Raise `RecordError` if a record or message has pictures or the like, or a prompt their mark."""
    needs = [name for name in MEDIA if holder.get(name)] + MEDIA_MARK.findall(prompt)
    if needs:
        raise RecordError(f"needs its {needs[0].strip()}; only text is read")


def read_tools(value: Any) -> tuple[str, ...]:
    """Return a list of tools, each as JSON."""
    return tuple(_json_text(tool, "tools") for tool in read_objects(value or [], "tools"))


def _role(speaker: Any) -> str:
    if speaker is None:
        raise RecordError("no role")
    role = ROLE_OF.get(speaker.lower()) if isinstance(speaker, str) else None
    if role is None:
        known = ", ".join(ROLE_OF)
        raise RecordError(f"unknown role {shown([speaker])}; known are {known}")
    return role


def _content(value: Any) -> tuple[str, tuple[tuple[int, int], ...]]:
    """Return the text of a message, the parts of one that comes in parts joined, and where passages stand."""
    passages = []
    if isinstance(value, list):
        texts = [_part(part) for part in value]
        ends = zip(texts, accumulate(map(len, texts)), strict=True)
        passages = [(end - len(text), end) for text, end in ends if isinstance(text, Passage)]
        value = "".join(texts)
    return read_text(value, "content", may_be_empty=True), tuple(passages)


def _part(part: Any) -> str:
    if isinstance(part, str):
        return part
    if not isinstance(part, dict):
        raise RecordError("a part of the content is neither a string nor an object")
    kind = part.get("type")
    if kind not in (None, "text", "input_text", "output_text", "passage"):
        raise RecordError(f"content part {shown([kind])}; only text is read")
    refuse_media(part)
    if is_absent(part.get("text")):
        raise RecordError(f"a content part without text, but {shown(part)}")
    if kind == "passage":
        return Passage(read_text(part["text"], "text of a passage"))
    return read_text(part["text"], "text of a content part", may_be_empty=True)


def _thought(turn: dict[str, Any]) -> str:
    thoughts = {read_text(turn.get(name), name, may_be_empty=True) for name in THOUGHTS} - {""}
    if len(thoughts) > 1:
        raise RecordError("two different thoughts in an answer")
    return thoughts.pop() if thoughts else ""


def _split_thought(thought: str, content: str) -> tuple[str, str]:
    """Return the thought of an answer and what it says, where the thought may stand in the content too."""
    if not (found := THINK.match(content)):
        return thought, content
    written = found[1].strip()
    if thought and written and written != thought.strip():
        raise RecordError("two different thoughts in an answer")
    return thought or written, content[found.end() :]


def split_calls(content: str, calls: tuple[str, ...]) -> tuple[str, tuple[str, ...]]:
    """Return what an answer says and its calls, where those may be written at the end of the content too."""
    begin = content.find("<tool_call>")
    if begin < 0 or not (found := CALLS.match(content, begin)):
        return content, calls
    written = tuple(_call_text(parse_json(text, "tool_calls")) for text in CALL.findall(found[0]))
    if calls and calls != written:
        raise RecordError("two different lists of tool calls in an answer")
    return content[:begin].rstrip(), written


def _calls(turn: dict[str, Any]) -> tuple[str, ...]:
    old = turn.get("function_call")  # of the first OpenAI models: one call
    calls = read_objects(turn.get("tool_calls") or [], "tool_calls") + ([] if old is None else _as_list(old))
    return tuple(map(_call_text, calls))


def _as_list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


def _call_text(call: Any) -> str:
    """Return a tool call as one line of JSON; `arguments` may be an object or the text of one."""
    call = call.get("function", call) if isinstance(call, dict) else None
    if not isinstance(call, dict) or not isinstance(call.get("name"), str):
        raise RecordError("a tool call has no name")
    name, arguments = call["name"], _arguments(call)
    if isinstance(arguments, str):
        parse_json(arguments, "tool_calls")
    else:
        arguments = _json_text(arguments, "tool_calls")
    return read_text(f'{{"name": {_json_text(name, "tool_calls")}, "arguments": {arguments}}}', "tool_calls")


def _arguments(call: dict[str, Any]) -> Any:
    """Return the arguments of a call; raises `RecordError` where they stand under a key that is not known."""
    given = [call[key] for key in ARGUMENTS if call.get(key)]
    if any(each != given[0] for each in given):
        raise RecordError("two different arguments of a tool call")
    others = [key for key in held_keys(call) if isinstance(call[key], dict | list) and key not in ARGUMENTS]
    if others and not given:
        raise RecordError(f"a tool call without arguments, but {shown(others)}")
    return given[0] if given else {}


def _json_text(value: Any, name: str) -> str:
    try:
        return read_text(json.dumps(value, ensure_ascii=False, allow_nan=False), name)
    except ValueError as error:
        raise error if isinstance(error, RecordError) else RecordError(f"{name} are not JSON") from None


def parse_json(text: str | bytes, name: str) -> Any:
    """Return what JSON says; raises `RecordError` with the reason."""
    try:
        return read_json(text)
    except RecursionError:
        raise RecordError("nested too deeply") from None
    except ValueError as error:
        raise error if isinstance(error, RecordError) else RecordError(f"{name} are not JSON") from None


def read_json(text: str | bytes) -> Any:
    """Return what JSON says; raises `RecordError` for a key that stands twice, of which one would be lost."""
    return json.loads(text, object_pairs_hook=_unique)


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    if len(values := dict(pairs)) < len(pairs):
        raise RecordError("a key stands twice")
    return values
