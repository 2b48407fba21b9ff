"""Proofreading that asks the AR self, on a network whose answers are known: what is proposed, checked and made."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from redraft.api import Model
from redraft.editing.noisy_channel import FEATURES, Channel, Reader, chosen, probability
from redraft.editing.pieces import Pieces
from redraft.editing.proposals import Proposal, Spelling, proposals
from redraft.engine import Commit, GivenCanvas, Step
from redraft.engine.events import SlotState
from redraft.engine.review import Change, log_softmax
from redraft.errors import RequestError
from tests.editing.models import FAST, IDS, NULL, SIZES, corrector, proofreader, tokens

VOCAB = SIZES["vocab_size"]


def one(letter: str) -> int:
    (token,) = tokens(letter)
    return token


Q, K, X = one("q"), one("k"), one("x")


def likes(token: int):  # type: ignore[no-untyped-def]
    """An AR self that expects one token everywhere."""
    return lambda before: token


def test_the_ar_self_decides_what_the_canvas_proposes() -> None:
    table = corrector({Q: K}, 0.6)
    agreeing, backend = proofreader(table, likes(K), left=1.0)
    done = agreeing.edit("gqg")
    assert (done.text, done.nfe) == ("gkg", 2)
    # 12 more of logit for k than for q is cut to 12
    assert done.hunks[0].confidence == pytest.approx(probability(12.0), abs=1e-4)
    assert backend.checked == [([], [IDS["user"], *tokens("gqg")])]
    against, _ = proofreader(table, likes(Q), left=1.0)
    done = against.edit("gqg")
    assert (done.text, done.hunks, done.nfe) == ("gqg", (), 2)


def test_without_a_proposal_nothing_is_checked() -> None:
    model, backend = proofreader(corrector({}), likes(K), left=1.0)
    done = model.edit("gqg" * 20)
    assert done.text == "gqg" * 20
    assert backend.checked == []
    assert done.nfe == len(backend.seen) == 1 + math.ceil((60 - 28) / 24)


def test_what_can_not_come_to_the_threshold_is_not_checked() -> None:
    # the encode role adds 12 at most: the model's reach
    for bias, checks in ((-12.1, 0), (-11.9, 1)):
        model, backend = proofreader(corrector({Q: K}), likes(K), left=1.0, bias=bias)
        assert model.edit("gqg").text == ("gkg" if checks else "gqg")
        assert len(backend.checked) == checks


def test_a_threshold_of_a_request_goes_before_the_models_and_steps_leave_the_check_out() -> None:
    model, backend = proofreader(corrector({Q: K}, 0.95), likes(K), left=0.1)  # probability(1.2) = 0.77
    assert model.edit("gqg").text == "gkg"
    assert model.edit("gqg", threshold=0.8).text == "gqg"
    backend.checked.clear()
    assert model.edit("gqg", threshold=0.9, steps=2).text == "gkg"
    assert model.edit("gqg", "mend it").text == "gkg"
    assert backend.checked == []


def test_later_windows_read_the_edited_text_and_no_token_twice() -> None:
    text = "g" * 10 + "q" + "g" * 60 + "q" + "g" * 9
    model, backend = proofreader(corrector({Q: K}), likes(K), left=1.0)
    done = model.edit(text)
    assert done.text == text.replace("q", "k")
    mended = [IDS["user"], *tokens(done.text)]
    # each canvas stands behind the edited text before it
    for context, _ in backend.seen:
        assert context == mended[: len(context)]
    assert [len(context) for context, _ in backend.seen] == [1, 25, 49, 73]
    # two windows are checked from their first token on, with the tokens behind that they only look at
    plain = [IDS["user"], *tokens(text)]
    assert [encoded for _, encoded in backend.checked] == [plain[:29], [mended[48], *plain[49:77]]]


def test_steps_show_the_check() -> None:
    model, _ = proofreader(corrector({Q: K}), likes(K), left=1.0)
    events = list(model.edit_stream("gqg"))
    assert [type(event) for event in events] == [Step, Step, Commit]
    before, after = events[0], events[1]
    assert isinstance(before, Step)
    assert isinstance(after, Step)
    assert before.tokens.tolist()[:3] == tokens("gqg")
    assert after.tokens.tolist()[:3] == tokens("gkg")
    assert after.state.tolist()[1] == SlotState.REVISED
    assert (before.step, after.step, after.nfe) == (1, 2, 2)


TEXT = st.lists(st.sampled_from(["gg", "q", "qq", " gq", "é", "\n", "x", "🙂"]), min_size=1, max_size=60)


@settings(max_examples=25, deadline=None)
@given(TEXT, st.data())
def test_whatever_is_proposed_and_liked_the_hunks_say_all(words: list[str], data: st.DataObject) -> None:
    text = "".join(words)
    other = data.draw(st.sampled_from([K, NULL, X]))
    model, backend = proofreader(corrector({Q: other, one("g"): X}), lambda b: len(b) % 300, bias=1.0)
    done = model.edit(text)
    rebuilt, at = "", 0
    for hunk in done.hunks:
        assert text[hunk.start : hunk.end] == hunk.before
        rebuilt += text[at : hunk.start] + hunk.after
        at = hunk.end
    assert rebuilt + text[at:] == done.text
    last, _ = backend.seen[-1]
    read = model._pieces.join([token for token in last if token != IDS["user"]])
    assert read in done.text.encode()


def test_random_weights_come_out_byte_for_byte(random_model: Model) -> None:
    channel = {"threshold": 0.4, "reach": 1.0, "weights": dict.fromkeys(FEATURES, 0.01)}
    object.__setattr__(random_model, "defaults", type(random_model.defaults)(proofread=channel))
    try:
        done = [
            random_model.edit("Some text, to be réad 🙂 twice over and over again.", seed=0) for _ in range(2)
        ]
    finally:
        del random_model.__dict__["reader"]
        object.__setattr__(random_model, "defaults", type(random_model.defaults)(canvas_length=8))
    assert done[0].text == done[1].text


# Parts


def test_weights_of_other_features_are_refused() -> None:
    assert Channel.of({}) is None
    with pytest.raises(RequestError, match="weights for proofreading that this version doesn't know"):
        Channel.of({"threshold": 0.5, "reach": 1.0, "weights": {"bias": 1.0}})


def test_the_surest_of_those_that_meet() -> None:
    a, b, c, d = Change(0, (1,)), Change(1, (2, 3)), Change(4, (5,)), Change(5, (6,))
    assert chosen({a: 0.6, b: 0.7, c: 0.9, d: 0.95}, 0.5) == [(d, 0.95), (b, 0.7)]
    assert chosen({a: 0.6, b: 0.4}, 0.5) == [(a, 0.6)]
    assert chosen({}, 0.5) == []


@pytest.fixture(scope="module")
def pieces() -> Pieces:
    from redraft.hub.tokenizer import Tokenizer

    return Pieces(Tokenizer(FAST), VOCAB)


def test_words_a_slip_away(pieces: Pieces) -> None:
    class Words:
        def __init__(self, words: list[bytes]) -> None:
            self.words = words

        def __getitem__(self, token: int) -> bytes:
            return self.words[token]

    found = Spelling(
        Words([b" want", b" wants", b"want", b" Want", b" went", b" won", b" ant", b"", b" 42"]), 9
    )  # type: ignore[arg-type]
    assert found.near(" wnat") == [0]
    assert found.near(" wan") == [0, 5]
    assert found.near("wantt") == [2]
    assert found.near(" Wont") == [3]
    assert found.near(" want") == [1, 4, 6]
    assert found.knows("WANT")
    assert found.knows("x")
    assert not found.knows("wnat")


def test_proposals_by_hand(pieces: Pieces) -> None:
    slots = (*tokens("gqg"), NULL, X)
    log_p = np.full((5, VOCAB), -20.0, np.float32)
    log_p[np.arange(5), slots] = -0.1
    canvas = GivenCanvas(slots, (False, False, False, False, True), 5)
    spelling = Spelling(pieces, VOCAB)
    assert proposals(canvas, log_p, NULL, pieces, spelling) == []
    log_p[1, [Q, K]] = -3.0, -0.2
    log_p[3, [NULL, X]] = -0.5, -1.5
    log_p[4, [X, K]] = -9.0, -0.1  # locked
    found = proposals(canvas, log_p, NULL, pieces, spelling)
    assert [(p.start, p.slots) for p in found] == [(1, (K,)), (3, (X,))]
    assert [round(p.odds, 4) for p in found] == [2.8, -1.0]
    assert (round(found[0].fit, 4), round(found[0].doubt, 4)) == (-0.2, -3.0)
    # slots that are only looked at are left alone
    assert proposals(GivenCanvas(slots, canvas.locked, 1), log_p, NULL, pieces, spelling) == []


def test_features_of_the_encode_role_by_hand(pieces: Pieces) -> None:
    reader = Reader(pieces, VOCAB, NULL)
    canvas = GivenCanvas((*tokens("gqgx"), NULL), (False,) * 5, 5)
    rng = np.random.default_rng(0)
    log_p = log_softmax(rng.normal(size=(5, VOCAB)).astype(np.float32) * 2, (NULL,))
    g = one("g")
    own = [float(log_p[j, t]) for j, t in enumerate(tokens("gqgx"))]
    spelt = [float(name == "letter") for name in FEATURES]
    got = reader.left(canvas, Proposal(1, (K,), 0.0, 0.0, 0.0), spelt, log_p)
    odds = float(log_p[1, K]) - own[1]
    around = max((max(own[0], -12) + max(own[2], -12) + max(own[3], -12)) / 3, -6.0)
    want = [odds, min(odds, 2.0), own[1], own[0], own[2], around, own[1]]
    assert got == pytest.approx(want, abs=1e-5)
    other = [0.0] * len(FEATURES)
    assert reader.left(canvas, Proposal(1, (K,), 0.0, 0.0, 0.0), other, log_p)[-1] == 0.0
    # a token goes: the one behind it comes first
    got = reader.left(canvas, Proposal(1, (NULL,), 0.0, 0.0, 0.0), other, log_p)
    assert got[0] == pytest.approx(float(log_p[1, g]) - own[1], abs=1e-5)
    # one comes at the end: nothing is known of what stands there
    got = reader.left(canvas, Proposal(4, (K,), 0.0, 0.0, 0.0), other, log_p)
    assert (got[0], got[2], got[4]) == (0.0, 0.0, 0.0)


def test_log_softmax_leaves_out_what_may_not_be() -> None:
    got = log_softmax(np.array([[1.0, 2.0, 3.0]], np.float32), (2,))
    assert got[0, 2] == -np.inf
    assert np.exp(got[0, :2]).sum() == pytest.approx(1.0)
