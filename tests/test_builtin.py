import calendar
import json
import os
import re
import subprocess
import sys
from collections import Counter
from itertools import combinations
from pathlib import Path
from random import Random

import pytest

from dataset.builtin.facts import LANGUAGES, REVERSIBLE, all_facts
from dataset.builtin.folder import write_files
from dataset.builtin.splits import EVALUATION_SPLITS, FILES, build_world
from dataset.builtin.stories import Event, answered, draw_story, situation_after, tell, unanswered
from dataset.builtin.wordings import wordings
from dataset.builtin.wordings_stories import PEOPLE, PLACES, REFUSAL, THINGS
from dataset.builtin.world import SCALES, half_world
from model.errors import UserError

ROOT = Path(__file__).parents[1]
RELATIONS = sorted({fact.relation for fact in all_facts("en", 99, 99, 9)})


@pytest.fixture(scope="module")
def world():
    return build_world(0, SCALES["full"])


@pytest.fixture(scope="module")
def training_texts(world):
    texts = [record["text"] for name in FILES[:2] for record in world[name]]
    talks = [record["conversations"] for name in FILES[2:6] for record in world[name]]
    return texts + [message["content"] for talk in talks for message in talk]


@pytest.fixture(scope="module")
def training_sentences(training_texts):
    return {part for text in set(training_texts) for part in re.split(r"[。\n]|(?<=[.?？]) ?", text)} - {""}


def items(world, split):
    return world[f"eval/{split}.jsonl"]


def test_equal_seeds_give_equal_bytes_whatever_the_hash_seed(tmp_path):
    for hash_seed in "12":
        command = [sys.executable, "-m", "scripts.build_world", "--scale", "smoke", "--out", hash_seed]
        environment = os.environ | {"PYTHONHASHSEED": hash_seed, "PYTHONPATH": str(ROOT)}
        subprocess.run(command, cwd=tmp_path, env=environment, check=True, capture_output=True)
    for name in FILES:
        assert (tmp_path / "1" / name).read_bytes() == (tmp_path / "2" / name).read_bytes()
    assert build_world(0, SCALES["smoke"]) != build_world(1, SCALES["smoke"])


def test_writing_replaces_a_world_and_nothing_else(tmp_path):
    out = tmp_path / "world"
    files = build_world(0, SCALES["smoke"])
    sizes = write_files(out, files)
    before = {name: (out / name).read_bytes() for name in FILES}
    assert write_files(out, files) == sizes == {name: len(content) for name, content in before.items()}
    assert before == {name: (out / name).read_bytes() for name in FILES}
    (out / "mine.txt").write_text("precious")
    with pytest.raises(UserError, match=r"mine\.txt"):
        write_files(out, files)
    with pytest.raises(UserError, match="file"):
        write_files(out / "mine.txt", files)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["world"]


def test_the_command_line_needs_no_torch():
    program = "import sys, scripts.build_world; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", program], cwd=ROOT, check=True)


def test_the_smoke_world_is_about_a_twentieth_of_the_full_one(world):
    smoke = build_world(0, SCALES["smoke"])
    full, small = (sum(len(files[name]) for name in FILES[:6]) for files in (world, smoke))
    assert 12 < full / small < 30


@pytest.mark.parametrize("language", LANGUAGES)
@pytest.mark.parametrize("relation", RELATIONS)
def test_each_relation_has_a_dozen_wordings_of_which_three_are_held_out(relation, language):
    asked, held = (wordings(relation, language, kind) for kind in ("ask", "held"))
    assert len(held) == 3
    assert len({*asked, *held}) == len(asked) + len(held) >= 12


@pytest.mark.parametrize("language", LANGUAGES)
def test_held_out_wordings_recombine_words_of_training(language):
    def words(texts):
        pattern = r"[a-z]+" if language == "en" else r"[\u4e00-\u9fff]"
        return {word for text in texts for word in re.findall(pattern, re.sub(r"\{.\}", "", text).lower())}

    for relation in RELATIONS:
        known = words(wordings(relation, language, "ask") + wordings(relation, language, "say"))
        elsewhere = words(text for other in RELATIONS for text in wordings(other, language, "ask"))
        held = words(wordings(relation, language, "held"))
        assert held <= known | elsewhere
        assert len(held - known) <= 1, (relation, held - known)


def test_elements_and_calendars_agree_with_independent_lists():
    table = (
        "H He Li Be B C N O F Ne Na Mg Al Si P S Cl Ar K Ca Sc Ti V Cr Mn Fe Co Ni Cu Zn Ga Ge As Se Br Kr"
    )
    table = table.split()
    facts = all_facts("en", 99, 99, 9)
    answer = {(fact.relation, *fact.subjects[:1], fact.second): fact.answers[0] for fact in facts}
    for fact in facts:
        number = answer.get(("atomic_number", fact.subjects[0], ""), "99")
        if fact.relation == "symbol" and int(number) <= len(table):
            assert fact.answers[0] == table[int(number) - 1]
        if fact.relation == "month_days":
            month = list(calendar.month_name).index(fact.subjects[0])
            assert int(fact.answers[0]) == calendar.monthrange(2023, month)[1]
        if fact.relation == "next_weekday":
            days = list(calendar.day_name)
            assert fact.answers[0] == days[(days.index(fact.subjects[0]) + 1) % 7]
    assert answer["addition", "7", "8"] == "15" and answer["multiplication", "7", "8"] == "56"


@pytest.mark.parametrize("language", LANGUAGES)
def test_a_question_has_one_answer(language):
    facts = all_facts(language, 99, 99, 9)
    assert len({(fact.relation, fact.subjects, fact.second) for fact in facts}) == len(facts)
    reversible = [(fact.relation, fact.answers[0]) for fact in facts if fact.relation in REVERSIBLE]
    assert len(set(reversible)) == len(reversible) > 100


def test_both_languages_hold_the_same_facts_back_from_turning_round():
    chinese, english = (half_world(language, 0, SCALES["full"]) for language in LANGUAGES)
    assert len(chinese.held_backwards) > 40
    for one, other in zip(chinese.held_backwards, english.held_backwards, strict=True):
        assert (one.relation, one.row) == (other.relation, other.row)


def test_the_plainest_questions_are_in_training(world):
    turns = [record["conversations"] for record in world["sft.jsonl"]]
    asked = {talk[0]["content"]: talk[1]["content"] for talk in turns if len(talk) == 2}
    assert asked["法国的首都是哪里?"] == "巴黎"
    assert asked["What is the capital of France?"] == "Paris"
    assert {text[-1] for text in asked} >= {"?", "？"}
    follow_up = "它的货币是什么"
    assert any(talk[2]["content"].startswith(follow_up) for talk in turns if len(talk) > 2)


def test_every_answer_is_right_in_training(world):
    answers = {}
    for language in LANGUAGES:
        for fact in half_world(language, 0, SCALES["full"]).facts:
            for template in wordings(fact.relation, language, "ask"):
                answers[fact.fill(template)] = fact.answers[0]
    talks = [record["conversations"] for record in world["sft.jsonl"]]
    known = [talk for talk in talks if talk[0]["content"].replace("？", "?") in answers]
    assert len(known) > 5000
    for talk in known:
        assert answers[talk[0]["content"].replace("？", "?")] == talk[1]["content"]


def test_conversations_alternate_and_are_short(world):
    for record in world["sft.jsonl"] + world["sft_val.jsonl"] + drills(world):
        roles = [message["role"] for message in record["conversations"]]
        assert roles == ["user", "assistant"] * (len(roles) // 2)
        text = " ".join(message["content"] for message in record["conversations"])
        assert len(re.findall(r"[\u4e00-\u9fff]|[A-Za-z]+|\d|[^\w\s]", text)) + 5 * len(roles) < 125


def test_validation_texts_are_not_trained_on(world):
    for training, validation in (FILES[:2], FILES[2:4]):
        trained = {json.dumps(record) for record in world[training]}
        assert len(world[validation]) == 200
        assert not trained & {json.dumps(record) for record in world[validation]}
        assert len(trained) == len(world[training])


def held_out_pattern(relation, language):
    """Match the held-out wordings of a relation, about any of its subjects and anywhere in a text."""
    facts = [fact for fact in all_facts(language, 99, 99, 9) if fact.relation == relation]
    x = "|".join({re.escape(fact.subjects[0]) for fact in facts})
    u = "|".join({re.escape(fact.second) for fact in facts})
    templates = [re.escape(text.rstrip("?。.")) for text in wordings(relation, language, "held")]
    filled = [text.replace(r"\{x\}", f"(?:{x})").replace(r"\{u\}", f"(?:{u})") for text in templates]
    return re.compile("|".join(filled), re.IGNORECASE)


@pytest.mark.parametrize("language", LANGUAGES)
def test_no_held_out_wording_stands_in_a_training_text(language, training_sentences):
    text = "\n".join(training_sentences)
    for relation in RELATIONS:
        assert not held_out_pattern(relation, language).findall(text)


def test_the_search_for_held_out_wordings_finds_each_question_of_its_split(world):
    patterns = {(name, lang): held_out_pattern(name, lang) for name in RELATIONS for lang in LANGUAGES}
    for item in items(world, "facts_unseen_wording"):
        pattern = patterns[item["relation"], item["language"]]
        assert pattern.match(item["conversations"][0]["content"])


@pytest.mark.parametrize("language", LANGUAGES)
def test_no_training_sentence_puts_a_reverse_items_answer_before_its_subject(language, training_sentences):
    for fact in half_world(language, 0, SCALES["full"]).held_backwards:
        subject, answer = fact.subjects[0], fact.answers[0]
        answer_first = re.compile(
            rf"(?<![A-Za-z0-9]){re.escape(answer)}(?![A-Za-z0-9]).*{re.escape(subject)}(?![a-z])"
        )
        told = [sentence for sentence in training_sentences if answer in sentence and subject in sentence]
        assert told
        assert not [sentence for sentence in told if answer_first.search(sentence)]


def test_reverse_questions_are_new_in_wordings_that_training_knows(world, training_sentences):
    trained = {sentence.rstrip("?？") for sentence in training_sentences}
    for item in items(world, "reverse"):
        assert item["conversations"][0]["content"].rstrip("?？") not in trained
    for language in LANGUAGES:
        backwards = half_world(language, 0, SCALES["full"]).backwards
        for template in (text for name in REVERSIBLE for text in wordings(name, language, "reverse")):
            assert any(fact.fill(template).rstrip("?") in trained for fact in backwards)


def test_no_follow_up_of_evaluation_is_trained_on(world):
    def opening(messages):
        return tuple(message["content"].replace("？", "?") for message in messages[:3])

    trained = {opening(record["conversations"]) for name in FILES[2:4] for record in world[name]}
    assert not trained & {opening(item["conversations"]) for item in items(world, "followup")}


# An independent reader of stories: it knows the sentences, and nothing of the simulator.
VERBS = {
    "zh": r"(?P<x>小.)(?:(?P<go>去了|来到|走到|跑到)|(?P<take>拿起了|拿走了|捡起了)|(?P<drop>放下了|丢下了)"
    r"|把(?P<gift>[^。？?小]+?)(?:交|送)?给了)(?P<y>[^。？?]+)。",
    "en": r"(?P<x>[A-Z]\w+) (?:(?P<go>(?:went|came|walked|ran) to)|(?P<take>took|picked up|grabbed)"
    r"|(?P<drop>put down|dropped)|(?:gave|handed|passed) (?P<gift>the \w+) to) (?P<y>[\w ]+)\.",
}


def read_events(text, language):
    """Return (action, person, place or receiver, thing) of each sentence that tells an event."""
    events = []
    for match in re.finditer(VERBS[language], text):
        action = next(name for name in ("go", "take", "drop", "gift") if match[name])
        thing = match["gift"] or match["y"]
        events.append((action, match["x"], match["y"], thing))
    return tuple(events)


def answer_by_reading(relation, question, events, language):
    """Return what the events say, None if they do not."""
    tables = (words.split() for table in (PEOPLE, PLACES, THINGS) for words in (table[language],))
    person, place, thing = ([w for w in words if re.search(bounded(w), question)] for words in tables)
    article = "the " if language == "en" else ""
    place, thing = ([article + name for name in names] for names in (place, thing))
    visits, held_by, left_in = {}, {}, {}
    for action, actor, target, carried in events:
        if action == "go":
            visits[actor] = visits.get(actor, []) + [target]
        else:
            held_by[carried] = {"take": actor, "drop": None, "gift": target}[action]
        if action == "drop":
            left_in[carried] = visits.get(actor, [None])[-1]
    here = {name: places[-1] for name, places in visits.items()}
    if relation == "where_person":
        return here.get(person[0])
    if relation == "where_thing":
        holder = held_by.get(thing[0])
        return here.get(holder) if holder else left_in.get(thing[0])
    if relation == "who_has":
        return held_by.get(thing[0])
    if relation == "what_has":
        return single([name for name, holder in held_by.items() if holder == person[0]])
    if relation == "person_in":
        return single([name for name, where in here.items() if where == place[0]])
    if relation == "given_to":
        return single([e[2] for e in events if (e[0], e[1], e[3]) == ("gift", person[0], thing[0])])
    if relation == "first_place":
        return visits[person[0]][0]
    assert relation == "place_before"
    return visits[person[0]][visits[person[0]].index(place[0]) - 1]


def bounded(word):
    return word if word > "z" else rf"\b{word}\b"


def single(names):
    assert len(names) < 2
    return names[0] if names else None


def question_of(text):
    return re.search(r"[^。.\n?？]+[?？]", text)[0].strip()


def test_questions_about_one_story_or_fact_are_one_cluster(world):
    names = [
        {item["cluster"]: item["conversations"][0]["content"] for item in items(world, split)}
        for split in ("stories_context_first", "stories_question_first")
    ]
    assert names[0].keys() == names[1].keys() and len(names[0]) == len(items(world, "stories_context_first"))
    for cluster, text in names[0].items():
        language = "en" if cluster.startswith("en") else "zh"
        assert read_events(text, language) == read_events(names[1][cluster], language)
    answers = {}
    for item in items(world, "facts_unseen_wording"):
        answers.setdefault(item["cluster"], set()).add(tuple(item["answers"]))
    assert all(len(each) == 1 for each in answers.values())
    assert len(answers) < len(items(world, "facts_unseen_wording"))
    follow_ups = [item["cluster"] for item in items(world, "followup") if item["kind"] == "same_story"]
    assert len({*follow_ups, *names[0]}) == len(follow_ups) + len(names[0])


@pytest.mark.parametrize("split", ["stories_context_first", "stories_question_first"])
def test_an_independent_reader_finds_every_answer(world, split):
    kinds = Counter()
    for item in items(world, split):
        text, language = item["conversations"][0]["content"], item["language"]
        found = answer_by_reading(item["relation"], question_of(text), read_events(text, language), language)
        assert (found or REFUSAL[language]) == item["answers"][0], text
        assert (found is None) == (item["kind"] == "refusal")
        kinds[language, item["kind"]] += 1
    for language in LANGUAGES:
        assert kinds[language, "single_fact"] >= 90
        assert kinds[language, "multi_step"] >= 15
        assert kinds[language, "refusal"] >= 10


def test_a_list_of_who_is_where_names_everyone_as_asked_with_the_place_that_the_story_tells(world):
    drill = [record["conversations"] for record in drills(world)]
    talks = [record["conversations"] for record in world["sft.jsonl"]]
    lists, drilled = ([talk for talk in some if is_list(talk[0]["content"])] for some in (talks, drill))
    assert len(drilled) == 9000 + 2250 and 1900 < len(lists) <= 2000
    for question, answer in drilled + lists:
        text = question["content"]
        language = "en" if "Who" in text else "zh"
        asked, comma, space = {
            "zh": (r"谁在哪里\?([^。]+)。", "、", ""),
            "en": (r"Who is where\? ([^.]+)\.", ", ", " "),
        }[language]
        places = {person: place for _, person, place, _ in read_events(text, language)}
        order = re.search(asked, text)[1].split(comma)
        assert sorted(order) == sorted(places) and 2 <= len(order) <= 5
        assert len(set(places.values())) == len(places)
        told = [person + space + places[person].removeprefix("the ") for person in order]
        assert answer["content"] == comma.join(told)


def test_the_drills_ask_before_the_story_about_two_or_three_people(world):
    kinds = Counter()
    for record in drills(world):
        question, answer = record["conversations"]
        text = question["content"]
        language = "en" if re.search("[a-z]", text) else "zh"
        events = read_events(text, language)
        assert text.startswith(question_of(text)) and 2 <= len(events) <= 3
        kinds[is_list(text)] += 1
        if not is_list(text):
            found = answer_by_reading("where_person", question_of(text), events, language)
            assert answer["content"] == found
    assert kinds == {True: 9000 + 2250, False: 6750}


def test_the_reader_reads_every_event():
    for language in LANGUAGES:
        rng = Random(3)
        for _ in range(200):
            story = draw_story(language, rng)
            events = [(e.person, e.receiver or e.target, e.target) for e in story]
            assert [event[1:] for event in read_events(tell(story, language, rng), language)] == events


def test_story_items_ask_the_same_in_both_orders(world):
    pairs = zip(items(world, "stories_context_first"), items(world, "stories_question_first"), strict=True)
    for after, before in pairs:
        assert after["answers"] == before["answers"]
        after, before = (item["conversations"][0]["content"] for item in (after, before))
        assert question_of(after) == question_of(before)
        assert after.endswith(question_of(after)) and before.startswith(question_of(before))


def test_no_story_of_evaluation_stands_in_training_in_any_words(world, training_texts):
    told = {read_events(text, language) for text in training_texts for language in LANGUAGES} - {()}
    assert len(told) > 25_000
    parts = {frozenset(part) for events in told for n in range(2, 6) for part in combinations(events, n)}
    for split in ("stories_context_first", "stories_question_first", "followup"):
        for item in items(world, split):
            events = read_events(item["conversations"][0]["content"], item["language"])
            assert len(events) != 1 and frozenset(events) not in parts


def test_stories_and_lists_come_in_the_forms_that_are_announced(world):
    texts = [record["text"] for record in world["pretrain.jsonl"]]
    assert 2900 < sum(map(is_list, texts)) <= 3000
    asked = [record["conversations"][0]["content"] for record in world["sft.jsonl"]]
    lists = [text for text in asked if is_list(text)]
    stories = [text for text in asked if not is_list(text) and is_story(text)]
    assert 0.45 < sum(text.startswith(("谁", "Who")) for text in lists) / len(lists) < 0.55
    assert 0.64 < sum(text.startswith(question_of(text)) for text in stories) / len(stories) < 0.69
    walks = [text for text in stories if walkers(text) >= 4]
    assert 0.13 < len(walks) / len(stories) < 0.20
    for name in ("lists", "questions"):
        first = [record["conversations"][0]["content"] for record in world[f"drill_{name}.jsonl"][:50]]
        assert 10 < sum(bool(re.search("[a-z]", text)) for text in first) < 40


def drills(world):
    return world["drill_lists.jsonl"] + world["drill_questions.jsonl"]


def is_list(text):
    return bool(re.search("谁在哪里|Who is where", text))


def is_story(text):
    return any(read_events(text, language) for language in LANGUAGES)


def walkers(text):
    events = [event for language in LANGUAGES for event in read_events(text, language)]
    return len({person for action, person, _, _ in events}) * all(event[0] == "go" for event in events)


def facts_of(story):
    return {(f.relation, f.subjects[0], f.second): (f.answers[0], f.kind) for f in answered(story, "en")}


def test_a_thing_goes_where_its_holder_goes():
    story = (
        Event("take", "Tom", "the cup"),
        Event("go", "Tom", "the garden"),
        Event("go", "Anna", "the garden"),
        Event("give", "Tom", "the cup", "Anna"),
        Event("go", "Anna", "the kitchen"),
    )
    assert facts_of(story) == {
        ("where_person", "Tom", ""): ("the garden", "single_fact"),
        ("where_person", "Anna", ""): ("the kitchen", "single_fact"),
        ("person_in", "the garden", ""): ("Tom", "single_fact"),
        ("person_in", "the kitchen", ""): ("Anna", "single_fact"),
        ("first_place", "Anna", ""): ("the garden", "single_fact"),
        ("place_before", "Anna", "the kitchen"): ("the garden", "multi_step"),
        ("who_has", "the cup", ""): ("Anna", "single_fact"),
        ("what_has", "Anna", ""): ("the cup", "single_fact"),
        ("where_thing", "the cup", ""): ("the kitchen", "multi_step"),
        ("given_to", "Tom", "the cup"): ("Anna", "single_fact"),
    }


def test_a_thing_stays_where_it_was_put_down():
    story = (
        Event("go", "Tom", "the garden"),
        Event("take", "Tom", "the cup"),
        Event("drop", "Tom", "the cup"),
        Event("go", "Tom", "the barn"),
    )
    facts = facts_of(story)
    assert facts["where_thing", "the cup", ""] == ("the garden", "multi_step")
    assert ("who_has", "the cup", "") not in facts
    assert not situation_after(story).allows(Event("take", "Tom", "the cup"))
    assert situation_after(story[:3]).allows(Event("take", "Tom", "the cup"))


def test_what_a_story_leaves_open_is_refused():
    story = (Event("take", "小明", "苹果"), Event("go", "小红", "厨房"))
    refused = unanswered(story, "zh", Random(0))
    assert {fact.answers for fact in refused} == {("文中没有说",)}
    asked = {(fact.relation, fact.subjects[0]) for fact in refused}
    assert {("where_person", "小明"), ("where_thing", "苹果")} <= asked
    assert not asked & {("where_person", "小红"), ("person_in", "厨房"), ("who_has", "苹果")}


@pytest.mark.parametrize("split", EVALUATION_SPLITS)
def test_evaluation_items_are_whole(world, split):
    records = items(world, split)
    assert len({record["id"] for record in records}) == len(records)
    assert all(count >= 100 for count in Counter(record["language"] for record in records).values())
    for record in records:
        assert record["split"] == split and record["language"] in LANGUAGES and record["kind"]
        roles = [message["role"] for message in record["conversations"]]
        assert roles == (["user", "assistant", "user"] if split == "followup" else ["user"])
        assert all(message["content"].strip() for message in record["conversations"])
        assert record["answers"] and all(record["answers"])


def test_single_fact_answers_stand_in_their_story(world):
    for split in ("stories_context_first", "stories_question_first"):
        for item in items(world, split):
            if item["kind"] != "refusal":
                assert item["answers"][0] in item["conversations"][0]["content"]
