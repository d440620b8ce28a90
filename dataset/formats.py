"""From a record as users have them to messages: which chat format it is in, and where its messages stand.

What one message says is read by `dataset/messages.py`; how records lie in files, by `dataset/records.py`.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from itertools import chain
from typing import Any, Literal

from dataset.chat_form import Message
from dataset.messages import (
    FLAGS,
    MEDIA,
    THOUGHTS,
    LeftOutError,
    RecordError,
    half_of,
    is_absent,
    is_trained,
    is_transcript,
    read_message,
    read_text,
    read_tools,
    read_turns,
    refuse_media,
    shown,
    turns_of,
)
from dataset.written_turns import are_turns, open_turns, read_said, with_prompt
from model.errors import UserError

QuestionPosition = Literal["last", "first"]
Preference = Literal["chosen"]
ChatFormat = Literal[
    "conversations", "messages", "sharegpt", "alpaca", "prompt_completion", "reading", "preference"
]

PAIRS: dict[ChatFormat, tuple[tuple[str, str], ...]] = {
    "alpaca": (("instruction", "output"), ("instruction", "response")),
    "prompt_completion": (
        *(("prompt", answer) for answer in ("completion", "response", "answer")),
        *(("query", "response"), ("input", "output"), ("input", "ideal")),
    ),
    "reading": (("question", "answers"), ("question", "answer"), ("question", "response")),
}
"""keys of a prompt and its answer; where several would do, the first pair of a format goes before others"""
PAIR_KEYS = {*chain(*chain(*PAIRS.values()))}
OF_SEVERAL = ("answers", "answer", "ideal")  # keys of an answer under which several may stand
DETAILS: dict[ChatFormat, tuple[str, ...]] = {"alpaca": ("input", "context"), "reading": ("context",)}
"""keys of what else belongs to the prompt"""
LISTS: tuple[ChatFormat, ...] = ("conversations", "messages")
LABELS = ("label", "kto_tag")
TRUTHS = {"true": True, "false": False}
COMMON = {"system", "system_prompt", "tools", "history", "is_impossible", *FLAGS, *MEDIA}
BESIDE_MESSAGES = ("rejected_response", "rejected_messages")  # bad answers; messages end with the good one
PREFERENCE = {"chosen", "rejected", *BESIDE_MESSAGES, *LABELS}  # score_rejected is no flag of loss either
HOLDERS = {*LISTS, *PAIR_KEYS, "history", "chosen", "rejected", *BESIDE_MESSAGES}  # of messages
NAMEABLE = {*LISTS, *PAIR_KEYS, "context", "system", "tools", "history", "chosen", "rejected", "label"}
NO_INPUT = "<noinput>"  # Alpaca's mark of an instruction without input


class FormatError(ValueError):
    """Says that a file holds records in several formats."""


def format_of(record: dict[str, Any]) -> ChatFormat | None:
    """Return the chat format that a record is in, None if it is in none or could be in several.

    conversations      {"conversations": [{"role": …, "content": …}, …]}        also the JSON text of the list
    messages           {"messages": [{"role": …, "content": …}, …]}
    sharegpt           {"conversations": [{"from": …, "value": …}, …]}
    alpaca             {"instruction": …, "input": …, "output": …}              or context and response
    prompt_completion  {"prompt": …, "completion": …}                           texts, or lists of messages
    reading            {"context": …, "question": …, "answers": [first, …]}     or {"text": [first, …]}
    preference         {"prompt": …, "chosen": …, "rejected": …}                or "label": true or false
    """
    has_both = record.get("chosen") is not None and record.get("rejected") is not None
    has_bad = any(record.get(name) is not None for name in BESIDE_MESSAGES)
    if has_both or has_bad or label_of(record) is not None:
        return "preference"
    turns = record.get("conversations")
    if isinstance(turns, str) and turns.strip():
        return "conversations"
    if isinstance(turns, list) and turns and isinstance(turns[0], dict):
        return "sharegpt" if "from" in turns[0] and "role" not in turns[0] else "conversations"
    if "messages" in record:
        return "messages"
    found = _pairs(record)
    usual = [name for name, pair in found if pair == PAIRS[name][0]]
    if usual or len(found) == 1:
        return (usual or [name for name, _ in found])[0]
    return None


def opened(record: dict[str, Any], more: Collection[str] = ()) -> dict[str, Any]:
    """Return a record with lists of messages where it holds their JSON text, under `more` keys, too."""
    names = {*HOLDERS, *more} - ({"input"} if "instruction" in record else set())  # there it is a detail
    return {key: open_turns(value) if key in names else value for key, value in record.items()}


def read_columns(columns: Sequence[str], more: Collection[str] = ()) -> dict[str, str]:
    """Return the keys that users name, `question=prompt`, by our names; raises `UserError` for others.

    Ours are those of chats, and `more`.
    """
    named, ours = dict(column.partition("=")[::2] for column in columns), NAMEABLE | {*more}
    if len(named) < len(columns) or not all(named.values()) or named.keys() - ours:
        wanted = f"columns: expected OURS=THEIRS, each of ours once out of {', '.join(sorted(ours))}"
        raise UserError(f"{wanted}, got {' '.join(columns)}")
    return named


def rename(record: dict[str, Any], columns: Mapping[str, str]) -> dict[str, Any]:
    """Return a record under our names for its keys; of other ways to read it none is left."""
    if not columns:
        return record
    ways = [{"messages"}, {"conversations"}, *map(set, chain(*PAIRS.values()))]
    best = max(len(way & columns.keys()) for way in ways)
    chosen = set().union(*(way for way in ways if best and len(way & columns.keys()) == best))
    others = set().union(*ways) - chosen - {"input"} if chosen else set()
    theirs = set(columns.values())
    kept = {key: value for key, value in record.items() if key not in theirs and key not in others}
    return kept | {ours: record[name] for ours, name in columns.items() if name in record}


def label_of(record: dict[str, Any]) -> bool | None:
    """Return whether an answer is called good; 0 and 1 say so beside a prompt or messages, as in tables."""
    for name in LABELS:
        value = record.get(name)
        value = TRUTHS.get(value.lower()) if isinstance(value, str) else value
        is_number = isinstance(value, int | float) and value in (0, 1)
        if isinstance(value, bool) or (is_number and record.keys() & {"prompt", *LISTS}):
            return bool(value)
    return None


def _pairs(record: dict[str, Any]) -> list[tuple[ChatFormat, tuple[str, str]]]:
    return [(name, pair) for name, pairs in PAIRS.items() for pair in pairs if record.keys() >= set(pair)]


def parse_messages(
    record: dict[str, Any],
    question_position: QuestionPosition = "last",
    chat_format: ChatFormat | None = None,
    preference: Preference | None = None,
) -> list[Message]:
    """Return the messages of a chat record, with at least one answer among them.

    Thoughts, tool calls, tools and flags of loss are read where messages have them. Raises `RecordError` with
    the reason, `LeftOutError` where the record itself says that it has no answer, or a bad one.
    """
    record = opened(record)
    chat_format = chat_format or format_of(record)
    if chat_format is None:
        raise RecordError(half_of(record) or _no_format(record))
    if chat_format == "preference":
        return _good_answer(record, question_position, preference)
    if chat_format in PAIRS:
        messages = _read_pair(record, chat_format, question_position)
    else:
        messages = read_turns(record.get("conversations") or record.get("messages"), record.get("loss_mask"))
    is_of_each = chat_format not in PAIRS and isinstance(record.get("loss_mask"), list)
    if not is_trained(record | {"loss_mask": None} if is_of_each else record):
        messages = [replace(message, is_trained=False) for message in messages]
    return _completed(record, messages)


def _completed(record: dict[str, Any], messages: list[Message]) -> list[Message]:
    """Return messages with the system message that they lack and the tools that a record has beside them."""
    texts = [read_text(record.get(name), name, may_be_empty=True) for name in ("system", "system_prompt")]
    said = {message.content for message in messages if message.role == "system"}
    own = [Message("system", text) for text in texts if text.strip() and text not in said]
    messages = with_tools(own + messages, record.get("tools"))
    if not any(message.role == "assistant" for message in messages):
        raise RecordError("no answer")
    refuse_media(record)
    for message in messages:
        refuse_media({}, message.content if message.role == "user" else "")
    return messages


def check_format(record: dict[str, Any], chat_format: ChatFormat | None) -> None:
    """Raise `FormatError` if a record is in another format than the first of its file."""
    if (found := format_of(record)) not in (None, chat_format):
        fault = f"a record in the format {found} in a file of {chat_format}"
        raise FormatError(f"{fault}; split the file, or name the format to keep with --format")


def reading_prompt(context: str, question: str, question_position: QuestionPosition = "last") -> str:
    """Return the user message that asks a question, about a text where there is one."""
    parts = (context, question) if question_position == "last" else (question, context)
    return "\n\n".join(part for part in parts if part.strip())


def read_answers(value: Any) -> list[Any]:
    """Return a record's accepted answers: one, several, or SQuAD's `{"text": […]}` and `[{"text": …}]`.

    Raises `LeftOutError` where the list is empty: the record says that its question has no answer.
    """
    answers = value.get("text") if isinstance(value, dict) else value
    if is_absent(answers):
        raise RecordError("no answer")
    answers = [answers] if isinstance(answers, str) else answers
    if not isinstance(answers, list):
        raise RecordError("answers are neither a text nor a list")
    if not answers:
        raise LeftOutError("no answer")
    return [answer.get("text") if isinstance(answer, dict) else answer for answer in answers]


def _no_format(record: dict[str, Any]) -> str:
    """Say which keys a record has and which it should have."""
    if isinstance(record.get("completions"), list):
        fault = "several completions, as UltraFeedback rates them; take its binarized form"
        return f"{fault} with --preference chosen, or write the best one as output"
    if len(found := _pairs(record)) > 1:
        ways = ", ".join(" + ".join(pair) for _, pair in found)
        return f"could be read as {ways}; say which with --columns or --format"
    hint = "; --kind pretrain trains on text" if "text" in record or len(record) == 1 else ""
    fault = f"no chat format has the keys {shown(sorted(record)) or '(none)'}; expected messages"
    others = "instruction + output, prompt + completion, question + answers, or chosen + rejected"
    return f"{fault}, conversations, {others}; --columns question=KEY answer=KEY names others{hint}"


def _read_pair(
    record: dict[str, Any], chat_format: ChatFormat, question_position: QuestionPosition
) -> list[Message]:
    prompt_key, answer_key = pair_of(record, chat_format)
    if str(record.get("is_impossible")).lower() in ("true", "yes", "1", "1.0"):
        raise LeftOutError("no answer")
    answer = record.get(answer_key)
    if answer_key in OF_SEVERAL and not are_turns(answer):
        answer = read_text(read_answers(answer)[0], "answer")
    prompt = _read_prompt(record, chat_format, prompt_key, question_position)
    thoughts = {name: record[name] for name in THOUGHTS if name in record}
    return prompt + _read_side(answer, answer_key, "assistant", thoughts)


def pair_of(record: dict[str, Any], chat_format: ChatFormat) -> tuple[str, str]:
    """Return the keys of the prompt and the answer of a record in a format of such pairs."""
    found = [pair for name, pair in _pairs(record) if name == chat_format]
    return (found or PAIRS[chat_format])[0]


def _read_prompt(
    record: dict[str, Any], chat_format: ChatFormat, key: str, question_position: QuestionPosition
) -> list[Message]:
    """Return what precedes an answer: the history, and the prompt with all that belongs to it."""
    prompt, history = record.get(key), record.get("history")
    details = [read_text(record.get(name), name, True) for name in DETAILS.get(chat_format, ())]
    details = "\n\n".join(text for text in details if text.strip() and text.strip().lower() != NO_INPUT)
    if details:
        prompt = read_said(prompt, key, may_be_empty=chat_format == "alpaca")
        position = question_position if chat_format == "reading" else "first"
        prompt = reading_prompt(details, prompt, position)
    return _history([] if is_absent(history) else history) + _read_side(prompt, key, "user")


def _read_side(value: Any, name: str, role: str, beside: dict[str, Any] | None = None) -> list[Message]:
    """Return a prompt or an answer: a list of messages, or a text and what stands beside it."""
    if isinstance(value, list):
        return read_turns(value)
    return [read_message({"role": role, "content": read_said(value, name)} | (beside or {}))]


def _history(history: Any) -> list[Message]:
    is_pairs = isinstance(history, list) and all(isinstance(t, list) and len(t) == 2 for t in history)
    if not is_pairs:
        raise RecordError("history is not a list of pairs")
    sides = [side for turn in history for side in zip(turn, ("user", "assistant"), strict=True)]
    return [message for text, role in sides for message in _read_side(text, "history", role)]


def _good_answer(
    record: dict[str, Any], question_position: QuestionPosition, preference: Preference | None
) -> list[Message]:
    """Return the conversation whose last answer is the good one, which alone carries loss."""
    if preference is None:
        raise RecordError("preference data; --preference chosen trains good answers, --kind preference both")
    if label_of(record) is False:
        raise LeftOutError("a bad answer of preference data")
    messages = ending_with(with_prompt(record, "rejected"), "chosen", question_position)
    *earlier, _ = (number for number, message in enumerate(messages) if message.role == "assistant")
    return [replace(m, is_trained=False) if n in earlier else m for n, m in enumerate(messages)]


def ending_with(record: dict[str, Any], name: str, question_position: QuestionPosition) -> list[Message]:
    """Return the conversation of preference data that ends with the answer under `name`, if there is one."""
    rest = {k: v for k, v in record.items() if k not in PREFERENCE and not k.endswith("_rejected")}
    if record.get(name) is None:
        return parse_messages(rest, question_position)
    answer = read_side_of(record, name)
    messages = answer if is_in_full(answer) else _prompt(rest, question_position) + answer
    if not is_trained(rest):
        messages = [replace(message, is_trained=False) for message in messages]
    return _completed(rest, messages)


def read_side_of(record: dict[str, Any], name: str) -> list[Message]:
    """Return an answer of preference data, or the conversation that ends with it."""
    side = record[name]
    if is_transcript(side):
        return read_turns(turns_of(side))
    if isinstance(side, str) and is_transcript(record.get("prompt")):
        side = side.strip()  # as what is said in the prompt
    return _read_side([side] if isinstance(side, dict) else side, name, "assistant")


def is_in_full(answer: list[Message]) -> bool:
    """Say whether an answer holds its prompt, too."""
    return bool(answer) and answer[0].role != "assistant"


def prompt_of(record: dict[str, Any]) -> tuple[ChatFormat, str]:
    """Return the format and the key of the prompt of preference data; raises `RecordError` without one."""
    ways = [(name, name) for name in LISTS if record.get(name)]
    ways += [(name, key) for name, pairs in PAIRS.items() for key, _ in pairs if record.get(key) is not None]
    if not ways:
        raise RecordError("no prompt")
    return ways[0]


def _prompt(record: dict[str, Any], question_position: QuestionPosition) -> list[Message]:
    name, key = prompt_of(record)
    if is_transcript(asked := record[key]):  # whose last words may be the name of who speaks next
        record = record | {key: turns_of(asked.rstrip().removesuffix("Assistant:"))}
    return read_turns(record[key]) if name in LISTS else _read_prompt(record, name, key, question_position)


def with_tools(messages: list[Message], tools: Any) -> list[Message]:
    """Return the messages with a record's own list of tools in their system message."""
    if not (texts := read_tools(tools)):
        return messages
    if messages and messages[0].role == "system":
        return [replace(messages[0], tools=(*messages[0].tools, *texts)), *messages[1:]]
    return [Message("system", "", tools=texts), *messages]
