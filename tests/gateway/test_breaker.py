"""The circuit breaker, by a clock that the tests hold."""

from dialoop.gateway.breaker import Breaker


def opened() -> Breaker:
    """One that has opened at 0."""
    breaker = Breaker(3, 5.0)
    for _ in range(3):
        breaker.fail(0.0)
    return breaker


def test_failures_in_a_row_open_it():
    breaker = Breaker(3, 5.0)
    breaker.fail(0.0)
    breaker.fail(0.0)
    breaker.succeed()
    breaker.fail(0.0)
    breaker.fail(0.0)
    assert breaker.allows(0.0)
    breaker.fail(0.0)
    assert not breaker.allows(4.9)
    assert breaker.num_opened == 1


def test_a_half_open_one_lets_one_request_try():
    breaker = opened()
    assert breaker.state(5.0) == "half_open"
    breaker.begin(5.0)
    assert not breaker.allows(5.0)
    breaker.succeed()
    assert breaker.state(5.0) == "closed"
    assert breaker.allows(5.0)


def test_a_try_that_fails_opens_it_anew():
    breaker = opened()
    breaker.begin(5.0)
    breaker.fail(6.0)
    assert not breaker.allows(10.9)
    assert breaker.allows(11.0)
    assert breaker.num_opened == 2


def test_a_try_that_the_client_gave_up_lets_another_try():
    breaker = opened()
    breaker.begin(5.0)
    breaker.forget()
    assert breaker.state(5.0) == "half_open"
    assert breaker.allows(5.0)


def test_late_failures_of_older_requests_do_not_keep_it_open():
    breaker = opened()
    breaker.fail(4.0)
    assert breaker.allows(5.0)
    assert breaker.num_opened == 1


def test_an_answer_that_has_begun_lets_others_in_but_its_failure_opens_it():
    breaker = opened()
    breaker.begin(5.0)
    breaker.answer()
    assert breaker.allows(5.0)
    breaker.fail(6.0)
    assert not breaker.allows(6.0)


def test_answers_that_begin_and_break_are_failures_in_a_row():
    breaker = Breaker(3, 5.0)
    for _ in range(3):
        breaker.begin(0.0)
        breaker.answer()
        breaker.fail(0.0)
    assert not breaker.allows(0.0)
