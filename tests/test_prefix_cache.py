"""Answers that join a running batch, and prompts that reuse what others left, are what each is alone."""

from collections import deque

import pytest
import torch
from conftest import STRATEGIES, tiny_model, turns, windowed

from model.generator import Generator, Prompt, Request, RunningBatch
from model.layouts import blocks_before_answer
from model.prefix_cache import PrefixCache, SharingBatch
from model.sampling import Sampling

SHAPES = [windowed(None, None), windowed(4, 4), windowed(4, None), {"architecture": "encoder_decoder"}]
DRAWINGS = ("Ss Uuu", "Uuuuuu", "Ss Uu Aaa Uuu", "U", "Uuu Aa U", "Uu Aaaaaaa Uuuuu Aa U")


def drawn(strategy: str, drawing: str) -> Prompt:
    blocks = blocks_before_answer(strategy, *turns(drawing)).tolist()
    return Prompt(tuple(torch.randint(97, (len(blocks),)).tolist()), tuple(blocks))


def requests_of(strategy: str) -> list[Request]:
    lengths = (9, 2, 5, 1, 7, 3)
    return [
        Request(drawn(strategy, drawing), Sampling(max_new_tokens=length))
        for drawing, length in zip(DRAWINGS, lengths, strict=True)
    ]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_an_answer_that_joins_at_any_step_is_what_it_is_alone(strategy, shape):
    generator = Generator(tiny_model(**shape), [])
    requests = requests_of(strategy)
    alone = [generator.generate([request])[0] for request in requests]
    answers = [generator.begin(request) for request in requests]
    batch, joining = RunningBatch(generator), deque([[0], [], [1, 2], [], [], [3], [], [4], [5]])
    rows = set()
    while joining or batch.num_going:
        batch.step([answers[n] for n in joining.popleft()] if joining else [])
        rows.add(batch.num_going)
    assert [answer.completion() for answer in answers] == alone
    assert max(rows) == 4 and batch.step() == [] and batch.cache is None


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_a_prompt_goes_on_from_states_of_others_as_if_it_were_computed_anew(strategy, shape):
    generator = Generator(tiny_model(**shape), [])
    batch, reused = SharingBatch(generator, PrefixCache(2**20)), []
    begun, drawing = Prompt((), ()), ""
    for turn in ("Ss Uuu", " Uu", " Uuuu"):
        drawing += turn
        blocks = blocks_before_answer(strategy, *turns(drawing)).tolist()
        ids = (*begun.ids, *torch.randint(97, (len(blocks) - len(begun.ids),)).tolist())
        whole = Prompt(ids, tuple(blocks))
        others = [Prompt((*ids[:-1], last), whole.block_ids) for last in (5, 6)]
        lengths = {whole: 9, others[0]: 7, others[1]: 4}  # the last row is finished first
        requests = [Request(each, Sampling(max_new_tokens=length)) for each, length in lengths.items()]
        answers = [generator.begin(request) for request in requests]
        for answer in answers:  # one after the other joins
            batch.step([answer])
            batch.step()
        while batch.num_going:
            batch.step()
        assert [answer.completion() for answer in answers] == generator.generate(requests)
        reused.append(answers[0].reused_tokens)
        begun = others[-1].append(answers[-1].ids)  # in the last row
        drawing += " A" + "a" * 3
    can_reuse = strategy != "history"
    assert reused[0] == 0 and (reused[1] > 0) == (reused[2] > 0) == can_reuse


def test_several_answers_to_one_prompt_differ_by_their_seeds_alone():
    generator = Generator(tiny_model(), [])
    prompts = [drawn("prefix", "Ss Uuu"), drawn("prefix", "Uu")]
    requests = [
        Request(prompts[n], Sampling(max_new_tokens=6, temperature=2.0, seed=seed))
        for n, seed in ((0, 1), (1, 1), (0, 2), (0, 1))
    ]
    answers = [generator.begin(request) for request in requests]
    batch = SharingBatch(generator, PrefixCache(2**20))
    begun, _ = batch.prefill(answers)
    assert begun.lengths.tolist() == [len(answer.prompt.ids) for answer in answers]
    batch.step(answers)
    while batch.num_going:
        batch.step()
    assert [answer.completion() for answer in answers] == generator.generate(requests)
    assert answers[0].ids == answers[3].ids != answers[2].ids


def test_states_that_were_not_used_for_longest_go_first_when_there_is_no_more_room():
    generator = Generator(tiny_model(), [])
    prefixes, prompts = PrefixCache(2**20), [drawn("causal", "Uuuuu") for _ in range(3)]

    def answered(prompt: Prompt) -> int:
        batch = SharingBatch(generator, prefixes)
        answer = generator.begin(Request(prompt, Sampling(max_new_tokens=2)))
        while not answer.finish_reason:
            batch.step([answer] if not answer.ids else [])
        return answer.reused_tokens

    assert [answered(prompt) for prompt in (prompts[0], prompts[1], prompts[0])] == [0, 0, 4]
    each = prefixes.kept[-1].num_bytes
    prefixes.max_bytes = 2 * each
    assert answered(prompts[2]) == 0 and prefixes.num_bytes == 2 * each
    assert [prefixes.longest(prompt)[0] for prompt in prompts] == [4, 0, 4]
