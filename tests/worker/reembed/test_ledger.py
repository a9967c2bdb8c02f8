"""The books of a job against a real Valkey, with the clock in hand."""

from dataclasses import replace

import pytest
import redis
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule, run_state_machine_as_test

from api_client.reembed.talks import submission
from api_client.wire.errors import StoreDown
from api_client.wire.jobs import JobSpec, JobState, JobStatus, Place
from api_client.wire.jobscripts import CANCEL, RESUME, RETRY_FAILED, VERIFY, job_keys
from api_client.wire.settings import Settings
from worker.reembed.ledger import CHECK, PLAN, Claim, Claimed, JobLedger, jobs_at_work
from worker.reembed.manifest import Manifest
from worker.reembed.papers import REOPENED, Loss, Marker
from worker.reembed.sources.refs import FolderEmpty

LEASE_S, SENT_S = 60.0, 60.0
AWAY = StoreDown("it is away")
SETTINGS = Settings.read(redis_url="redis://nowhere")
RUNNING = JobState.RUNNING


def spec(**given):
    return JobSpec(
        id="job",
        source=Place(kind="list", where="/list"),
        sink=Place(kind="parquet", where="/sink"),
        model="fake/vision",
        **{"chunk_size": 10, "window": 3, **given},
    )


class Book:
    """One job with ten chunks, and what a client and the workers do to it."""

    def __init__(self, store, keys, *, chunks=10, items=95, **given):
        self.store, self.keys, self.now = store, keys, 1000.0
        self.spec = spec(**given)
        self.plan = Manifest(items=items, chunks=chunks, chunk_size=10, index="f00")
        self.ledger = JobLedger(store, keys, "job", sent_s=SENT_S, clock=lambda: self.now)
        store.delete(*job_keys(keys, "job"))
        submitted(store, keys, self.spec)

    def planned(self):
        self.claim(PLAN, state=JobState.PLANNING)
        return self.ledger.planned(self.plan, fingerprint="fp", dimension=8, papers="/p")

    def claim(self, what, *, state=RUNNING, token="me", sent_at=None):
        sent_at = self.now if sent_at is None else sent_at
        return self.ledger.claim(claim_of(what, token), state=state, sent_at=sent_at)

    def finish(self, chunk, *, lost=0):
        return self.ledger.finished(marker(int(chunk), lost=lost))

    def status(self):
        return JobStatus.of("job", self.store.hgetall(self.keys.job("job")))

    def do(self, script, *arguments):
        keys = job_keys(self.keys, "job")
        return self.store.eval(script, len(keys), *keys, *arguments)


def submitted(store, keys, wanted):
    """As a client does it."""
    submission(keys, wanted, SETTINGS)(store)


def items_of(chunk):
    return 10 if int(chunk) < 9 else 5


def marker(chunk, *, lost=0):
    losses = tuple(Loss(row=i, id=f"{chunk}/{i}", code="x", message="") for i in range(lost))
    return Marker(
        chunk, items_of(chunk), losses, round=0, worker="w@h", at=0.0, stages={"read_s": 0.5}
    )


def claim_of(what, token="me"):
    return Claim(what, token, LEASE_S)


@pytest.fixture
def book(store, keys):
    return Book(store, keys)


def test_a_submitted_job_is_planned_by_whoever_tends_first(book):
    assert book.ledger.fallen() == [PLAN]
    assert book.ledger.fallen() == []
    assert book.planned() == ["0", "1", "2"]
    assert book.status().state is RUNNING


def test_a_submission_whose_answer_was_lost_is_no_other_job(book):
    again = submission(book.keys, book.spec, SETTINGS)
    other = submission(book.keys, spec(submitted_at=2.0), SETTINGS)
    book.claim(PLAN, state=JobState.PLANNING)
    assert again(book.store) == 1
    assert other(book.store) == 0
    assert book.status().spec == book.spec


def test_while_a_job_is_planned_it_is_told_how_many_items_were_found(book):
    book.ledger.walked(65536)
    assert book.status().items == 65536
    book.planned()
    book.ledger.walked(65536)  # by a planner that was overtaken
    assert book.status().items == 95


def test_a_planner_that_was_overtaken_starts_nothing_anew(book):
    book.planned()
    book.finish("0")
    assert book.planned() == []
    book.do(CANCEL, "by hand", 5)
    assert book.planned() == []
    assert (book.status().state, book.status().done) == (JobState.CANCELLED, 10)


def test_each_finished_chunk_starts_the_next_one_and_the_last_the_check(book):
    todo = book.planned()
    done = []
    while todo and todo != [CHECK]:
        assert len(todo) + len(done) <= 10
        done.append(chunk := todo.pop(0))
        book.claim(chunk)
        todo += book.finish(chunk)
    assert sorted(map(int, done)) == list(range(10))
    assert todo == [CHECK]
    status = book.status()
    assert (status.state, status.done, status.read_s) == (JobState.CHECKING, 95, 5.0)
    assert status.workers == {"w@h": 95}


def test_a_chunk_that_runs_twice_counts_once(book):
    book.planned()
    book.finish("0", lost=2)
    book.finish("0", lost=2)
    assert (book.status().done, book.status().failed) == (8, 2)
    assert book.status().workers == {"w@h": 10}


def test_a_chunk_is_worked_on_by_one_worker_at_a_time(book):
    book.planned()
    assert book.claim("0", token="a") is Claimed.MINE
    assert book.claim("0", token="b") is Claimed.ELSEWHERE
    assert book.claim("0", token="a") is Claimed.MINE  # it did not hear of it, and asked again
    book.finish("0")
    assert not book.store.exists(book.keys.job_held("job"))
    assert book.claim("0", token="b") is Claimed.DONE


def test_a_slice_out_of_reach_is_an_outage_until_one_that_began_later_came_through(book):
    book.planned()
    for chunk in ("0", "1"):
        book.claim(chunk)
    assert book.ledger.is_outage(0, AWAY)
    book.finish("1")  # it may have been through before
    book.claim("2")
    book.finish("2", lost=10)  # nothing of it could be reached, either
    assert book.ledger.is_outage(0, AWAY)
    book.claim("3")
    book.finish("3")
    assert not book.ledger.is_outage(0, AWAY)


def test_an_outage_of_a_job_that_redis_has_lost_leaves_its_id_free(book):
    book.store.delete(*job_keys(book.keys, "job"))
    assert book.ledger.is_outage(0, AWAY)
    submitted(book.store, book.keys, book.spec)
    assert book.status().state is JobState.PLANNING


def test_after_a_resume_what_is_still_out_of_reach_is_no_outage(book):
    book.planned()
    book.claim("0")
    assert book.ledger.is_outage(0, AWAY)
    book.ledger.pause("nothing can be reached")
    book.do(RESUME)
    assert not book.ledger.is_outage(0, AWAY)
    assert book.ledger.is_outage(1, AWAY)


def test_after_a_resume_an_empty_folder_is_no_outage_until_something_came_through(book):
    book.planned()
    book.ledger.pause("nothing can be reached")
    book.do(RESUME)
    assert not book.ledger.is_outage(0, FolderEmpty("it is empty"))
    book.finish("1")
    assert book.ledger.is_outage(0, FolderEmpty("it is empty"))


def test_a_chunk_that_is_retried_may_meet_with_an_outage_anew(book):
    book.planned()
    book.claim("4")
    assert book.ledger.is_outage(4, AWAY)
    for chunk in range(10):
        book.finish(chunk, lost=chunk == 4)
    book.claim(CHECK, state=JobState.CHECKING)
    book.ledger.end(JobState.COMPLETE, "", at=JobState.CHECKING)
    book.do(RETRY_FAILED)
    book.claim("4")
    assert book.ledger.is_outage(4, AWAY)


def test_what_a_dead_worker_had_is_started_again_when_its_claim_has_run_out(book):
    book.planned()
    book.claim("0", token="dead")
    book.now += LEASE_S - 1
    assert book.ledger.renew(claim_of("0", "dead"))
    book.now += 2
    assert set(book.ledger.fallen()) == {"1", "2"}  # nobody ever took those
    book.now += LEASE_S
    assert "0" in book.ledger.fallen()
    assert book.claim("0", token="living") is Claimed.MINE
    assert not book.ledger.renew(claim_of("0", "dead"))


def test_a_claim_counts_from_when_it_was_made_however_late_that_was(book):
    book.planned()
    book.now += SENT_S - 1
    book.claim("0", token="late")
    book.now += 2
    assert "0" not in book.ledger.fallen()
    assert book.claim("0", token="other") is Claimed.ELSEWHERE


def test_a_claim_is_renewed_whatever_state_a_newer_version_leads_its_job_to(book):
    book.planned()
    book.claim("0")
    book.store.hset(book.keys.job("job"), "state", "dreaming")
    assert book.ledger.renew(claim_of("0"))


def test_messages_that_wait_long_in_their_queue_do_not_count_as_lost(book):
    book.planned()
    book.now += 50
    book.claim("0", sent_at=book.now - 50)
    assert book.finish("0") == ["3"]
    book.now += 2 * SENT_S
    assert "3" not in book.ledger.fallen()
    book.now += SENT_S
    assert "3" in book.ledger.fallen()


def test_after_a_weekend_without_workers_what_is_lost_is_not_waited_for_as_long_again(book):
    book.planned()
    book.now += 60 * 3600
    book.claim("0", sent_at=book.now - 60 * 3600)
    assert book.finish("0") == ["3"]
    book.now += 3 * 3600
    assert "3" in book.ledger.fallen()


def test_what_a_stopping_worker_gives_back_is_started_at_once(book):
    book.planned()
    book.claim("1")
    book.ledger.give_back(claim_of("1"))
    assert book.ledger.fallen() == ["1"]


def test_who_has_given_a_chunk_back_or_lost_it_has_nothing_to_give_back_or_renew(book):
    book.planned()
    book.claim("0", token="before")
    book.ledger.give_back(claim_of("0", "before"))
    assert not book.ledger.renew(claim_of("0", "before"))
    book.claim("0", token="after")
    book.ledger.give_back(claim_of("0", "before"))
    assert book.claim("0", token="third") is Claimed.ELSEWHERE


def test_a_paused_job_starts_nothing_and_counts_what_was_at_work(book):
    book.planned()
    book.claim("0")
    assert book.ledger.pause("by hand")
    assert book.claim("1") is Claimed.STOPPED
    assert book.finish("0") == []
    book.now += 2 * SENT_S
    assert book.ledger.fallen() == []
    assert (book.status().state, book.status().reason) == (JobState.PAUSED, "by hand")
    assert book.status().done == 10
    assert book.do(RESUME)
    assert book.ledger.fallen() == ["1", "2", "3"]


def test_a_resumed_job_leaves_those_at_work_alone(book):
    book.planned()
    book.claim("0")
    book.ledger.pause("")
    book.do(RESUME)
    assert "0" not in book.ledger.fallen()


def test_a_cancelled_job_stays_so(book):
    book.planned()
    book.claim("0")
    assert book.do(CANCEL, "by hand", 5)
    assert book.finish("0") == []
    assert not book.ledger.renew(claim_of("0"))
    assert not book.ledger.end(JobState.COMPLETE, "", at=RUNNING)
    assert book.status().state is JobState.CANCELLED
    assert not book.do(RESUME)


def test_the_books_of_a_cancelled_job_expire_and_whoever_is_late_opens_no_new_ones(book):
    book.planned()
    book.claim("0")
    book.do(CANCEL, "by hand", 5)
    book.finish("0", lost=1)
    left = [key for key in job_keys(book.keys, "job") if book.store.exists(key)]
    assert left == [book.keys.job("job")]
    assert book.store.ttl(*left) > 0


def test_trouble_is_tried_again_after_a_pause_that_grows(book):
    book.planned()
    pauses = []
    for _ in range(8):
        book.claim("0")
        begun = book.now
        book.ledger.trouble(claim_of("0"), "the sink is down")
        while "0" not in book.ledger.fallen():
            book.now += 0.5
        pauses.append(book.now - begun)
    assert pauses == sorted(pauses)
    assert (pauses[0], pauses[-1]) == (2.0, 60.0)
    assert book.status().trouble == "the sink is down"


def test_when_nothing_succeeds_for_its_patience_a_job_pauses_with_the_reason(store, keys):
    book = Book(store, keys, patience_s=100)
    book.planned()
    book.claim("0")
    book.ledger.trouble(claim_of("0"), "the disk is full")
    assert book.status().state is RUNNING
    book.now += 101
    book.claim("1")
    book.ledger.trouble(claim_of("1"), "the disk is full")
    assert (book.status().state, book.status().reason) == (JobState.PAUSED, "the disk is full")


def asked_to_be_checked(book):
    complete(book, lost={})
    book.do(VERIFY)


@pytest.mark.parametrize(
    ("what", "state", "begin"),
    [
        (PLAN, JobState.PLANNING, lambda book: None),
        (CHECK, JobState.CHECKING, asked_to_be_checked),
    ],
)
def test_a_job_that_cannot_be_planned_or_checked_pauses_and_goes_on_from_there(
    store, keys, what, state, begin
):
    book = Book(store, keys, patience_s=100)
    begin(book)
    for _ in range(2):
        assert book.claim(what, state=state) is Claimed.MINE
        book.ledger.trouble(claim_of(what), "the list cannot be read")
        book.now += 101
    assert book.status().state is JobState.PAUSED
    book.do(RESUME)
    assert book.status().state is state
    assert book.ledger.fallen() == [what]


def test_the_trouble_of_who_has_lost_its_claim_takes_it_from_nobody(book):
    book.planned()
    book.claim("0", token="before")
    book.ledger.trouble(claim_of("0", "before"), "away")
    assert not book.ledger.renew(claim_of("0", "before"))
    book.now += 100
    book.claim("0", token="after")
    book.ledger.trouble(claim_of("0", "before"), "away")
    assert book.ledger.renew(claim_of("0", "after"))


def test_a_plan_that_succeeds_ends_the_trouble_there_was_with_it(book):
    book.claim(PLAN, state=JobState.PLANNING)
    book.ledger.trouble(claim_of(PLAN), "the list cannot be read")
    book.planned()
    assert book.status().trouble == ""


def test_one_success_ends_the_trouble(store, keys):
    book = Book(store, keys, patience_s=100)
    book.planned()
    book.claim("0")
    book.ledger.trouble(claim_of("0"), "away")
    book.now += 101
    book.finish("1")
    book.claim("2")
    book.ledger.trouble(claim_of("2"), "away")
    assert book.status().state is RUNNING


def complete(book, *, lost, state=JobState.COMPLETE, **counts):
    todo = book.planned()
    while todo != [CHECK]:
        book.claim(chunk := todo.pop(0))
        todo += book.finish(chunk, lost=lost.get(int(chunk), 0))
    book.claim(CHECK, state=JobState.CHECKING)
    book.ledger.end(state, "", at=JobState.CHECKING, **counts)


@pytest.mark.parametrize(
    ("of", "lost", "stands"), [(0, 0, True), (0, 1, False), (1, 1, True), (REOPENED, 0, False)]
)
def test_what_is_whole_or_was_tried_in_this_round_is_not_done_again(of, lost, stands):
    assert replace(marker(0, lost=lost), round=of).stands(1) is stands


def test_only_chunks_with_failures_are_retried(book):
    complete(book, lost={4: 1, 9: 5})
    assert (book.status().done, book.status().failed) == (89, 6)
    assert book.do(RETRY_FAILED)
    assert (book.status().done, book.status().failed) == (80, 0)
    assert book.ledger.fallen() == ["4", "9"]
    assert book.ledger.pinned().round == 1
    book.finish("4")
    assert book.finish("9") == [CHECK]
    assert book.status().done == 95


def test_a_check_that_was_overtaken_ends_no_job_that_is_at_work_again(book):
    complete(book, lost={4: 1})
    book.do(RETRY_FAILED)
    assert not book.ledger.end(JobState.COMPLETE, "", at=JobState.CHECKING)
    assert book.status().state is RUNNING
    assert book.ledger.fallen() == ["4"]
    book.ledger.pause("by hand")
    assert not book.ledger.end(JobState.COMPLETE, "", at=JobState.CHECKING)


def test_a_check_that_is_at_work_when_its_job_pauses_ends_it(book):
    complete(book, lost={})
    book.do(VERIFY)
    book.claim(CHECK, state=JobState.CHECKING)
    book.ledger.pause("by hand")
    assert book.ledger.end(JobState.COMPLETE, "", at=JobState.CHECKING)
    assert book.status().state is JobState.COMPLETE


def test_a_job_that_is_over_has_no_trouble(book):
    asked_to_be_checked(book)
    book.claim(CHECK, state=JobState.CHECKING)
    book.ledger.trouble(claim_of(CHECK), "the sink is down")
    book.ledger.end(JobState.COMPLETE, "", at=JobState.CHECKING)
    assert book.status().trouble == ""


def test_no_less_than_nothing_is_done_when_an_incomplete_job_is_retried(book):
    complete(book, lost={4: 1}, state=JobState.INCOMPLETE, done=2, failed=1)
    assert book.do(RETRY_FAILED)
    assert (book.status().done, book.status().failed) == (0, 0)


def test_a_job_of_many_chunks_holds_redis_up_no_longer_than_a_small_one(store, keys):
    chunks = 100_000
    book = Book(store, keys, chunks=chunks, items=10 * chunks - 3)
    book.planned()
    done, failed = keys.job_done("job"), keys.job_failed("job")
    store.set(done, b"\xff" * (chunks // 8))
    for chunk in (50_001, chunks - 1):
        store.setbit(failed, chunk, 1)
    store.delete(keys.job_flight("job"))
    counts = {"state": "complete", "done": 10 * chunks - 5, "failed": 2}
    store.hset(keys.job("job"), mapping=counts)
    store.config_resetstat()
    assert book.do(RETRY_FAILED)
    assert book.status().done == 10 * chunks - 20
    assert book.ledger.fallen() == ["50001", str(chunks - 1)]
    called = store.info("commandstats")
    assert sum(told["calls"] for told in called.values()) < 200


def test_there_is_nothing_to_retry_without_failures(book):
    complete(book, lost={})
    assert not book.do(RETRY_FAILED)
    assert book.status().state is JobState.COMPLETE


def test_a_check_can_be_asked_for_again(book):
    complete(book, lost={})
    assert book.do(VERIFY)
    assert book.ledger.fallen() == [CHECK]


def test_a_check_whose_message_was_lost_is_sent_again(book):
    todo = book.planned()
    while todo != [CHECK]:
        todo += book.finish(todo.pop(0))
    book.now += SENT_S
    assert book.ledger.fallen() == [CHECK]


def test_chunks_that_a_check_found_unfinished_are_done_again(book):
    todo = book.planned()
    while todo != [CHECK]:
        todo += book.finish(todo.pop(0))
    assert book.ledger.reopen([2, 5], done=75, failed=0) == ["2", "5"]
    book.finish("2")
    assert book.finish("5") == [CHECK]
    assert book.status().done == 95


def test_what_is_done_again_after_a_check_is_checked_again_and_counts_as_it_ends_now(book):
    todo = book.planned()
    while todo != [CHECK]:
        todo += book.finish(chunk := todo.pop(0), lost=chunk == "2")
    book.claim(CHECK, state=JobState.CHECKING, token="first")
    assert book.ledger.reopen([2], done=85, failed=0) == ["2"]
    assert book.ledger.pinned().repairs == 1
    assert book.finish("2") == [CHECK]
    assert book.claim(CHECK, state=JobState.CHECKING, token="second") is Claimed.MINE
    book.ledger.end(JobState.COMPLETE, "", at=JobState.CHECKING)
    assert (book.status().done, book.status().failed) == (95, 0)
    assert not book.do(RETRY_FAILED)


def test_a_check_that_was_overtaken_reopens_nothing(book):
    book.planned()
    book.finish("2")
    assert book.ledger.reopen([2], done=0, failed=0) == []
    assert (book.status().state, book.status().done) == (RUNNING, 10)


def test_books_of_ended_jobs_expire_and_leave_the_list(book, store, keys):
    complete(book, lost={})
    assert all(store.ttl(key) > 0 for key in (keys.job("job"), keys.job_done("job")))
    store.delete(keys.job("job"))
    assert jobs_at_work(store, keys) == []
    assert store.zcard(keys.jobs) == 0


def test_a_job_that_is_submitted_again_while_its_books_expire_stays_on_the_list(book, store, keys):
    store.delete(*job_keys(keys, "job"))

    class Overtaken(redis.client.Pipeline):
        def execute(self, *arguments, **given):
            found = super().execute(*arguments, **given)
            submitted(store, keys, book.spec)
            return found

    class Store(redis.Redis):
        def pipeline(self, **given):
            return Overtaken(self.connection_pool, self.response_callbacks, False, None)

    jobs_at_work(Store.from_pool(store.connection_pool), keys)
    assert jobs_at_work(store, keys) == ["job"]


def test_only_jobs_that_are_at_work_are_tended(book, store, keys):
    assert jobs_at_work(store, keys) == ["job"]
    book.ledger.pause("by hand")
    assert jobs_at_work(store, keys) == []
    book.do(RESUME)
    assert jobs_at_work(store, keys) == ["job"]
    complete(book, lost={})
    assert jobs_at_work(store, keys) == []
    assert store.zcard(keys.jobs) == 1


def test_who_does_not_fit_a_job_that_is_over_leaves_nothing_that_stays_for_ever(book, store, keys):
    book.do(CANCEL, "", 1.0)
    book.ledger.unfit("w@h")
    assert not store.exists(keys.job_unfit("job"))


def test_all_jobs_at_work_are_tended_the_oldest_first(book, store, keys):
    for at, job in enumerate(("second", "third"), start=1):
        store.zadd(keys.jobs, {job: at})
        store.hset(keys.job(job), "state", "running")
    assert jobs_at_work(store, keys) == ["job", "second", "third"]


def test_workers_of_another_space_are_remembered(book):
    book.ledger.unfit("gpu0@a")
    assert book.ledger.unfit_workers() == {"gpu0@a"}


def test_a_state_that_this_version_does_not_know_keeps_no_other_job_from_being_tended(
    book, store, keys
):
    store.zadd(keys.jobs, {"newer": 0})
    store.hset(keys.job("newer"), "state", "dreaming")
    assert jobs_at_work(store, keys) == ["job"]


def test_whatever_happens_in_which_order_the_count_is_right_and_the_window_holds(store, keys):
    """Workers take, finish, fail, lose and are killed; people pause; the clock runs."""

    class Walk(RuleBasedStateMachine):
        def __init__(self):
            super().__init__()
            self.book = Book(store, keys)
            self.sent = self.book.planned()
            self.held, self.done = [], {}  # by chunk, how many of its items are lost

        @rule()
        def deliver(self):
            what = self.sent.pop(0) if self.sent else CHECK
            if what != CHECK and self.book.claim(what) is Claimed.MINE:
                self.held.append(what)

        @rule()
        def lose_a_message(self):
            if self.sent:
                self.sent.pop()

        @rule()
        def deliver_twice(self):
            self.sent += self.sent[:1]

        @rule(lost=st.integers(0, 3))
        def finish(self, lost):
            if self.held:
                self.done.setdefault(what := self.held.pop(0), lost)
                self.sent += self.book.finish(what, lost=lost)

        @rule()
        def meet_trouble(self):
            if self.held:
                self.book.ledger.trouble(claim_of(self.held.pop(0)), "it is away")
                if self.book.status().state is JobState.PAUSED:
                    self.book.do(RESUME)

        @rule()
        def give_back(self):
            if self.held:
                self.book.ledger.give_back(claim_of(self.held.pop()))

        @rule()
        def be_killed(self):
            if self.held:
                self.held.pop()

        @rule()
        def tend(self):
            self.sent += self.book.ledger.fallen()

        @rule(seconds=st.sampled_from([1, 30, 200]))
        def wait(self, seconds):
            self.book.now += seconds

        @rule()
        def pause_and_resume(self):
            if self.book.ledger.pause(""):
                self.book.do(RESUME)

        @invariant()
        def counts(self):
            size, lost = sum(map(items_of, self.done)), sum(self.done.values())
            status = self.book.status()
            assert (status.done, status.failed) == (size - lost, lost)
            assert store.zcard(keys.job_flight("job")) <= 3

        def teardown(self):
            for _ in range(20):
                while self.sent or self.held:
                    self.deliver()
                    self.finish(0)
                self.book.now += 300
                self.tend()
                if self.sent == [CHECK]:
                    break
            assert self.book.status().state is JobState.CHECKING
            assert len(self.done) == 10

    run_state_machine_as_test(
        Walk, settings=settings(max_examples=25, stateful_step_count=40, deadline=None)
    )
