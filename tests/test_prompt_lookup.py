import numpy as np
import pytest
import torch

from eval.answers import answer_questions
from eval.questions import parse_question
from eval.serving_settings import EvaluationSettings, TextSampling
from model.errors import UserError
from model.generator import Generator, Prompt, Request
from model.layouts import blocks_before_answer
from model.prompt_lookup import answers_by_lookup, following
from model.sampling import Sampling
from tests.conftest import STRATEGIES, tiny_model, turns, windowed
from tests.serving import chat_question, served_model

CONVERSATION = "Sss Uuuu Aaa Uuu Aaa Uu"
LONG = Sampling(max_new_tokens=14)


def requests_of(strategy, known, sampling):
    torch.manual_seed(1)
    blocks = tuple(blocks_before_answer(strategy, *turns(CONVERSATION)).tolist())
    prompts = [Prompt(tuple(torch.randint(known, (len(blocks),)).tolist()), blocks) for _ in range(2)]
    return [Request(prompt, sampling) for prompt in prompts]


@pytest.mark.parametrize("windows", [(None, None), (4, None)])
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_answers_with_guesses_are_those_without(strategy, windows):
    """Of five tokens many guesses are right and many wrong."""
    generator = Generator(tiny_model(vocab_size=5, prompt_mask=strategy, **windowed(*windows)), [])
    requests = requests_of(strategy, 5, LONG)
    expected, calls, step = generator.generate(requests), [], generator.model.model.forward
    generator.model.model.forward = lambda ids, *rest: calls.append(ids.shape[1]) or step(ids, *rest)
    assert [completion for _, completion in answers_by_lookup(generator, requests, 6)] == expected
    assert max(calls[1:]) > 2 and len(calls) < sum(len(completion.ids) for completion in expected)


def test_sampled_answers_are_the_same_too_and_end_within_guesses():
    generator, ends = Generator(tiny_model(vocab_size=5), [3]), set()
    changes = {"temperature": 2.0, "seed": 3}, {"repetition_penalty": 1.3}, {"log_probabilities": True}
    for each in changes:
        requests = requests_of("causal", 5, Sampling(max_new_tokens=14, **each))
        requests += [Request(requests[0].prompt, requests[0].sampling, lambda token: token == 2)]
        expected = generator.generate(requests)
        found = [completion for _, completion in answers_by_lookup(generator, requests, 4)]
        for one, other in zip(found, expected, strict=True):
            assert (one.ids, one.finish_reason) == (other.ids, other.finish_reason)
            assert one.log_probabilities == pytest.approx(other.log_probabilities)
            ends.add(one.finish_reason)
    assert ends >= {"length", "stop_string"}


def test_questions_are_answered_alike_with_and_without_guesses():
    served = served_model("prefix", stops=True)
    asked = [parse_question(chat_question("Lima " * n, "A"), str(n), "s") for n in (3, 9)]
    sampling = TextSampling(max_new_tokens=6)
    plain = answer_questions(served, asked, sampling, batch_size=2)
    assert answer_questions(served, asked, sampling, batch_size=2, prompt_lookup=4) == plain


@pytest.mark.parametrize(
    "changes, message",
    [({"prompt_lookup": 33}, "expected 0 to 32, got 33"), ({"answers": "none"}, "changes nothing where")],
)
def test_guesses_that_are_too_many_or_of_no_answer_are_refused(changes, message):
    with pytest.raises(UserError, match=f"--prompt_lookup.*{message}"):
        EvaluationSettings(model="", data=("a.jsonl",), **{"prompt_lookup": 4} | changes)


def test_the_context_limit_ends_an_answer_whatever_is_guessed():
    generator = Generator(tiny_model(vocab_size=5, max_position_embeddings=24), [])
    requests = requests_of("causal", 5, LONG)
    found = [completion for _, completion in answers_by_lookup(generator, requests, 6)]
    assert found == generator.generate(requests)
    assert {len(completion.ids) for completion in found} == {24 - len(requests[0].prompt.ids) + 1}


def test_a_guess_follows_the_longest_end_of_the_answer_where_it_first_stands():
    prompt = np.array([1, 2, 3, 9, 2, 3, 4, 3, 5])
    assert following(prompt, [8, 1, 2, 3], 2) == [9, 2]
    assert following(prompt, [9, 2, 3], 4) == [4, 3, 5]
    assert following(prompt, [7, 2, 3], 1) == [9]
    assert following(prompt, [7, 3], 1) == [9]
    assert following(prompt, [7], 3) == following(prompt, [5], 3) == following(prompt, [3], 0) == []
