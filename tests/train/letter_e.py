"""A reward that an untrained model can raise at once: answers rich in the letter e."""


def reward(prompt, answer, sample) -> float:
    assert prompt[-1]["role"] == "user"
    assert sample["messages"]
    return answer.count("e") / max(1, len(answer))
