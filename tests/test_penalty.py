"""The repetition penalty in numbers worked by hand: seen tokens only ever become less likely."""

import torch

from model.generator import Prompt
from model.sampling import Answer, Sampling, penalise


def test_seen_logits_are_divided_where_positive_and_multiplied_where_negative():
    logits = torch.tensor([3.0, -1.0, 0.0, 4.0, -2.0])
    assert penalise(logits, torch.tensor([0, 1, 2]), 2.0).tolist() == [1.5, -2.0, 0.0, 4.0, -2.0]
    assert penalise(logits, torch.tensor([0, 1, 2]), 0.5).tolist() == [6.0, -0.5, 0.0, 4.0, -2.0]


def test_tokens_of_prompt_and_answer_count_once_each_however_often_they_stand_there():
    prompt = Prompt((0, 0, 0), (-1, -1, -1))
    answer = Answer(Sampling(3, repetition_penalty=2.0), prompt, room=9, stop_ids=frozenset())
    logits = torch.tensor([-1.0, -1.9, -1.95])
    for _ in range(3):  # 0 becomes -2.0, then 1 becomes -3.8, then 2 becomes -3.9
        answer.add_token(logits)
    assert answer.ids == [1, 2, 0]
