"""Proofreading that asks the AR self, on a network whose answers are known: what is proposed, checked and made."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from redraft.api import Model
from redraft.editing import noisy_channel
from redraft.editing.lexicon import Lexicon
from redraft.editing.noisy_channel import (
    FEATURES,
    HOPELESS,
    LEFT,
    SHOWN,
    Channel,
    Reader,
    chosen,
    probability,
)
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


@pytest.fixture(scope="module", autouse=True)
def several() -> Iterator[None]:
    """More proposals of a window are read than by default, to see how they go together."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(noisy_channel, "READ", 3)
        yield


def test_only_the_most_hopeful_proposals_are_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(noisy_channel, "READ", 1)
    model, backend = proofreader(corrector({Q: K}, 0.6), likes(K), left=1.0)
    assert (model.edit("gqg").text, len(backend.checked)) == ("gkg", 2)


def test_the_ar_self_decides_what_the_canvas_proposes() -> None:
    table = corrector({Q: K}, 0.6)
    agreeing, backend = proofreader(table, likes(K), left=1.0)
    done = agreeing.edit("gqg")
    # the canvas; the text as it stands, then from the change on with k, and without the letter
    assert (done.text, done.nfe) == ("gkg", 4)
    # 12 more of logit for k than for q is cut to 12
    assert done.hunks[0].confidence == pytest.approx(probability(12.0), abs=1e-4)
    user = IDS["user"]
    assert backend.checked == [
        ([], [user, *tokens("gqg")]),
        ([user], tokens("gkg")),
        ([user], tokens("gg")),
    ]
    against, _ = proofreader(table, likes(Q), left=1.0)
    done = against.edit("gqg")
    assert (done.text, done.hunks, done.nfe) == ("gqg", (), 4)


def test_without_a_proposal_nothing_is_checked() -> None:
    model, backend = proofreader(corrector({}), likes(K), left=1.0)
    done = model.edit("gqg" * 20)
    assert done.text == "gqg" * 20
    assert backend.checked == []
    assert done.nfe == len(backend.seen) == 1 + math.ceil((60 - 28) / 24)


def test_what_is_hopeless_by_the_canvas_alone_is_not_read() -> None:
    for screen, readings in ((HOPELESS - 0.1, 0), (HOPELESS + 0.1, 3)):
        model, backend = proofreader(corrector({Q: K}), likes(K), left=1.0, screen=screen)
        assert model.edit("gqg").text == ("gkg" if readings else "gqg")
        assert len(backend.checked) == readings


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
    read = [[*context, *encoded] for context, encoded in backend.checked]
    assert read == [
        *(plain[:29], mended[:29], [t for t in plain[:29] if t != Q]),
        *([*mended[:49], *plain[49:77]], mended[:77], [t for t in [*mended[:49], *plain[49:77]] if t != Q]),
    ]
    # and from the change on alone
    assert [len(encoded) for _, encoded in backend.checked] == [29, 19, 18, 29, 6, 5]


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
    assert (before.step, after.step, after.nfe) == (1, 2, 4)


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
    weights = {name: [0.01, 0.02, -0.03] for name in FEATURES}
    screen = dict.fromkeys(SHOWN, 0.01)
    channel = {"threshold": 0.4, "screen": screen, "units": [0.5, 0.4], "weights": weights}
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
    counts, screen = {name: [0.0, 0.0] for name in FEATURES}, dict.fromkeys(SHOWN, 0.0)
    Channel(counts, [1.0], 0.5, screen)
    for units, weights, shown in (
        ([], {"bias": [1.0]}, screen),
        ([], counts, screen),
        ([1.0], counts | {"odds": [1.0]}, screen),
        ([1.0], counts, {"bias": 1.0}),
    ):
        with pytest.raises(RequestError, match="weights for proofreading that this version doesn't know"):
            Channel.of({"threshold": 0.5, "screen": shown, "units": units, "weights": weights})


def test_hidden_units_count_beside_the_direct_path() -> None:
    weights = {name: [0.0, 0.0, 0.0] for name in FEATURES} | {
        "bias": [0.5, 1.0, -1.0],
        "odds": [2.0, 0.0, 3.0],
    }
    channel = Channel(weights, [4.0, -2.0], 0.5, dict.fromkeys(SHOWN, 0.0))
    features = np.zeros((2, len(FEATURES)))
    features[:, 0] = 1.0
    features[1, FEATURES.index("odds")] = 0.1
    wanted = [
        0.5 + 4 * math.tanh(1.0) - 2 * math.tanh(-1.0),
        0.7 + 4 * math.tanh(1.0) - 2 * math.tanh(-1.0 + 0.3),
    ]
    assert channel.scores(features) == pytest.approx(wanted)


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
        Words([b" want", b" wants", b"want", b" Want", b" went", b" won", b" ant", b"", b" 42"]),  # type: ignore[arg-type]
        9,
        Lexicon(),
    )
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
    spelling = Spelling(pieces, VOCAB, Lexicon())
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


def test_neighbours_change_places(pieces: Pieces) -> None:
    words = {10: b" is", 11: b" what", 12: b"what", 13: b" 42"}

    class Words:
        def __getitem__(self, token: int) -> bytes:
            return b"" if token == NULL else words.get(token, b"?")

        def join(self, ids: list[int]) -> bytes:
            return b"".join(self[i] for i in ids)

    def swapped(slots: list[int], likely: float = -2.0) -> list[tuple[int, tuple[int, ...]]]:
        log_p = np.full((len(slots), VOCAB), -20.0, np.float32)
        log_p[:, list(words)] = likely
        log_p[np.arange(len(slots)), slots] = -0.01
        canvas = GivenCanvas(tuple(slots), (False,) * len(slots), len(slots))
        found = proposals(canvas, log_p, NULL, Words(), Spelling(pieces, VOCAB, Lexicon()))  # type: ignore[arg-type]
        return [(p.start, p.slots) for p in found]

    assert swapped([11, 10]) == [(0, (10, 11))]
    assert swapped([11, NULL, 10]) == [(0, (10, NULL, 11))]  # over a place where a word could come
    assert swapped([11, 10], -5.5) == []  # too unlikely
    assert swapped([11, 11]) == []
    assert swapped([12, 10]) == []  # a word without a space begins the text
    assert swapped([11, 12, 10]) == []  # a word of two tokens
    assert swapped([11, 13]) == []


def test_words_that_the_lexicon_knows_nearly(pieces: Pieces) -> None:
    lexicon = Lexicon(counts={"want": 90, "to": 90, "wont": 3})
    slots = [*tokens(" wannt"), NULL, *tokens(" wantto")]
    log_p = np.full((len(slots), VOCAB), -9.0, np.float32)
    log_p[np.arange(len(slots)), slots] = -0.01
    free = (False,) * len(slots)

    def found(canvas: GivenCanvas) -> list[tuple[str, float, float]]:
        made = proposals(canvas, log_p, NULL, pieces, Spelling(pieces, VOCAB, lexicon))
        texts = [pieces.join([t for t in p.slots if t != NULL]).decode() for p in made]
        return sorted((text, round(p.odds, 2), round(p.fit, 2)) for text, p in zip(texts, made, strict=True))

    assert found(GivenCanvas(tuple(slots), free, len(slots))) == [
        (" want", -8.99, -9.0),
        (" want to", 0.0, -0.01),  # its first token stands there
    ]
    locked = GivenCanvas(tuple(slots), (True, *free[1:]), len(slots))
    assert [text for text, *_ in found(locked)] == [" want to"]
    # a part of a word in the lexicon's sense
    slots = tokens(" wannt's")
    log_p = np.full((len(slots), VOCAB), -9.0, np.float32)
    log_p[np.arange(len(slots)), slots] = -0.01
    assert found(GivenCanvas(tuple(slots), (False,) * len(slots), len(slots))) == []


def test_how_common_words_are_counts_for_slips_of_spelling(pieces: Pieces) -> None:
    lexicon = Lexicon(counts={"go": 9, "to": 3})
    reader = Reader(pieces, VOCAB, NULL, lexicon)
    slots = tuple(tokens("go ty it"))
    log_p = np.full((len(slots), VOCAB), -9.0, np.float32)
    log_p[np.arange(len(slots)), slots] = -0.01
    ((proposal, features),) = reader.slips(GivenCanvas(slots, (False,) * len(slots), len(slots)), log_p)
    assert reader.text(proposal.slots) == " to"
    row = dict(zip(SHOWN, features, strict=True))
    assert (row["letter"], row["seen"], row["made_seen"]) == (1.0, 0.0, pytest.approx(math.log(4)))


def test_features_of_the_encode_role_by_hand(pieces: Pieces) -> None:
    reader = Reader(pieces, VOCAB, NULL)
    canvas = GivenCanvas((*tokens("gqgx"), NULL), (False,) * 5, 5)
    rng = np.random.default_rng(0)
    log_p = log_softmax(rng.normal(size=(5, VOCAB)).astype(np.float32) * 2, (NULL,))
    g = one("g")
    then = log_softmax(rng.normal(size=(5, VOCAB)).astype(np.float32), (NULL,))
    own = [float(log_p[j, t]) for j, t in enumerate(tokens("gqgx"))]
    around = sum(own) / 4

    def left(start: int, *slots: int) -> list[float]:
        return reader.left(canvas, Proposal(start, slots, 0.0, 0.0, 0.0), then, log_p)

    behind = [float(then[2, g]), float(then[3, X])]
    after = sum(behind) - sum(own[2:])
    gain = after + float(then[1, K]) - own[1]
    want = [float(log_p[1, K]) - own[1], own[1], own[0], own[2], around, gain, after, behind[0]]
    cut = [min(max(value, low), high) for value, (low, high) in zip(want, LEFT.values(), strict=True)]
    assert left(1, K) == pytest.approx(cut, abs=1e-4)
    # what begins and ends alike isn't part of the change
    assert left(0, g, K, g) == pytest.approx(cut, abs=1e-4)
    # a token goes: the one behind it comes first
    got = left(1, NULL)
    assert got[:2] == pytest.approx([float(log_p[1, g]) - own[1], own[1]], abs=1e-4)
    assert got[5] == pytest.approx(float(then[1, g] + then[2, X]) - sum(own[1:]), abs=1e-4)
    # one comes at the end: nothing is known of what stands there
    got = left(4, K)
    assert (got[0], got[1], got[3], got[6], got[7]) == (0.0, 0.0, 0.0, 0.0, 0.0)


def test_log_softmax_leaves_out_what_may_not_be() -> None:
    got = log_softmax(np.array([[1.0, 2.0, 3.0]], np.float32), (2,))
    assert got[0, 2] == -np.inf
    assert np.exp(got[0, :2]).sum() == pytest.approx(1.0)
