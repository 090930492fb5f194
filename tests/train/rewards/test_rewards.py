"""What answers are worth, by each reward; the user's own code is named when it fails."""

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from dialoop.chat.message import message
from dialoop.core.errors import UpstreamError, UserError
from dialoop.data.sample import Sample
from dialoop.train.endpoint import Endpoint
from dialoop.train.rewards import Answered, names_of
from dialoop.train.rewards.accuracy import Accuracy
from dialoop.train.rewards.format import Format
from dialoop.train.rewards.json import Json
from dialoop.train.rewards.judge import Judge
from dialoop.train.rewards.length import Length
from dialoop.train.rewards.python import Python
from dialoop.train.rewards.regex import Regex


def answered(text: str, solution: Any = None, num_tokens: int = 5) -> Answered:
    prompt = (message("user", "how much"),)
    extra = () if solution is None else (("solution", solution),)
    return Answered(prompt, text, num_tokens, True, Sample(messages=prompt, extra=extra))


@pytest.mark.parametrize(
    ("text", "solution", "worth"),
    [
        ("It costs 1,250 euros.", "1250", 1), ("12 and then 7", 12, 0), ("none", 12, 0),
        ("-3.50", "-3.5", 1), (" Paris\n", "paris", 1), ("in Paris", "paris", 0),
    ],
)  # fmt: skip
def test_accuracy_compares_numbers_and_texts(text: str, solution: Any, worth: float) -> None:
    assert Accuracy().score(answered(text, solution)) == worth


def test_accuracy_looks_where_it_is_told() -> None:
    reward = Accuracy(pattern="<answer>(.*?)</answer>")
    assert reward.score(answered("<answer>7</answer> of 12", 7)) == 1
    assert reward.score(answered("7", 7)) == 0


def test_accuracy_takes_the_record_s_own_answer() -> None:
    messages = (message("user", "how much"), message("assistant", "7"))
    sample = Sample(messages=messages)
    assert Accuracy().score(Answered(messages[:1], "it is 7", 3, True, sample)) == 1


def test_accuracy_without_a_solution_is_an_error() -> None:
    with pytest.raises(UserError, match="the record has no column `solution`"):
        Accuracy().score(answered("7"))


def test_format_matches_the_whole_answer() -> None:
    whole = "<think>a\nb</think>\n<answer>7</answer>"
    assert Format().score(answered(whole)) == 1
    assert Format().score(answered(whole + " so")) == 0
    with pytest.raises(ValidationError, match="no regular expression"):
        Format(pattern="(")


def test_regex_is_the_share_found_less_the_forbidden() -> None:
    reward = Regex(patterns=["a", "b"], forbidden=["sorry"])
    assert [reward.score(answered(t)) for t in ("ab", "a", "a sorry")] == [1, 0.5, -0.5]


@pytest.mark.parametrize(
    ("text", "worth"),
    [
        ('{"answer": 12, "unit": "km"}', 1), ('{"answer": 13, "unit": "km"}', 2.5 / 3),
        ('so {"answer": 12, "unit": "km"}', 2.5 / 3), ('{"answer": "12"}', 1.25 / 3),
        ('{"answer": true}', 1.25 / 3), ("{}", 1 / 3), ("so {} is", 0.5 / 3), ("12 km", 0),
        ("{", 0.25 / 3), ("so {", 0.125 / 3), ('{"answer": 12, "unit": "k', 0.5 / 3),
        ('the "answer" is 12', 0.125 / 3), ("the answer is 12", 0),
    ],
)  # fmt: skip
def test_json_is_graded(text: str, worth: float) -> None:
    reward = Json(keys={"answer": "number", "unit": "string"}, solution="solution")
    answer = answered(text, '{"answer": 12, "unit": "km"}')
    assert reward.score(answer) == pytest.approx(worth)
    strict = reward.model_copy(update={"strict": True})
    assert strict.score(answer) == (worth == 1)


def test_json_without_an_object_to_compare_with_is_an_error() -> None:
    with pytest.raises(UserError, match="column `solution` of the record holds no JSON object"):
        Json(solution="solution").score(answered("{}", "12"))


def test_length_falls_outside_its_bounds() -> None:
    reward = Length(min_tokens=4, max_tokens=8)
    found = [reward.score(answered("", num_tokens=n)) for n in (2, 4, 8, 12, 16, 20)]
    assert found == [0.5, 1, 1, 0.5, 0, 0]


def test_python_calls_the_user_s_function(tmp_path: Path) -> None:
    file = tmp_path / "mine.py"
    file.write_text(
        "def reward(prompt, answer, sample):\n"
        "    assert prompt[0]['content'] == 'how much'\n"
        "    return float(answer == str(sample['solution']))\n"
    )
    reward = Python(file=file)
    assert [reward.score(answered(t, 7)) for t in ("7", "8")] == [1, 0]
    assert reward.name == "mine"


@pytest.mark.parametrize(
    ("source", "error"),
    [
        ("def reward(prompt, answer, sample):\n    x = 1\n    return x / 0\n",
         r"mine.py`, line 3: ZeroDivisionError"),
        ("\ndef reward(prompt, answer, sample)\n", r"mine.py`, line 2: SyntaxError"),
        ("import nothing_of_that_name\n", r"mine.py`, line 1: ModuleNotFoundError"),
        ("x = 1\n", "defines no function `reward`"),
        ("def reward(p, a, s):\n    return 'good'\n", "returned 'good', which is no finite number"),
    ],
)  # fmt: skip
def test_errors_of_the_user_s_code_are_named(source: str, error: str, tmp_path: Path) -> None:
    file = tmp_path / "mine.py"
    file.write_text(source)
    with pytest.raises(UserError, match=error):
        Python(file=file).score(answered("7"))


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"none\.py`: No such file"):
        Python(file=tmp_path / "none.py").score(answered("7"))


def test_rewards_of_one_kind_have_names_of_their_own() -> None:
    assert names_of([Regex(), Length(), Regex()]) == ["regex", "length", "regex_2"]


class Judging(BaseHTTPRequestHandler):
    """Replies with what the test wants; keeps what it was asked."""

    verdict = "8"
    asked: list[Any] = []  # noqa: RUF012 - of the one test server

    def do_POST(self) -> None:
        wanted = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.asked.append(wanted)
        body = json.dumps({"choices": [{"message": {"content": self.verdict}}]}).encode()
        self.send_response(200 if wanted["model"] == "judge" else 404)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - the base's name
        pass


@pytest.fixture
def judge() -> Iterator[tuple[str, type[Judging]]]:
    kind = type("Own", (Judging,), {"asked": []})
    server = ThreadingHTTPServer(("127.0.0.1", 0), kind)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}/v1", kind
    server.shutdown()
    thread.join()
    server.server_close()


def test_a_judge_marks_answers(judge: tuple[str, type[Judging]]) -> None:
    url, kind = judge
    reward = Judge(endpoint=Endpoint(url=url, model="judge"))
    assert reward.scores([answered("a {prompt} b"), answered("c")]) == [0.8, 0.8]
    texts = sorted(asked["messages"][0]["content"] for asked in kind.asked)
    assert texts[0].endswith("Question:\nuser: how much\n\nAnswer:\na {prompt} b")
    assert "to 10 (perfect)" in texts[0]
    kind.verdict = "very good"
    with pytest.raises(UpstreamError, match="the judge gave no number but 'very good'"):
        reward.score(answered("a"))


def test_a_judge_that_refuses_is_an_error(judge: tuple[str, type[Judging]]) -> None:
    reward = Judge(endpoint=Endpoint(url=judge[0], model="other"))
    with pytest.raises(UserError, match=r"refuses \(404\)"):
        reward.score(answered("a"))
    keyed = Endpoint(url=judge[0], model="judge", key_variable="NO_KEY_OF_THAT_NAME")
    with pytest.raises(UserError, match="`NO_KEY_OF_THAT_NAME` is not set"):
        Judge(endpoint=keyed).score(answered("a"))
