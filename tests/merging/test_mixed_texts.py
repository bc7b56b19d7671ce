"""Mixed texts: what they are made of, how many, and that the same ones come again."""

from hypothesis import given
from hypothesis import strategies as st

from osrm_cli.merging.mixed_texts import mix_texts
from osrm_cli.tasks.task import Example

WORDS = st.text("abü漢.", min_size=1, max_size=4)
TEXTS = st.lists(WORDS, max_size=6).map(" ".join)
SINGLE = st.lists(st.tuples(TEXTS), min_size=1, max_size=6)
PAIRS = st.lists(st.tuples(TEXTS, TEXTS), min_size=1, max_size=6)
COPIES = st.integers(0, 4)
SEEDS = st.integers(0, 2**64 - 1)


def mixed(texts, copies=7, seed=0, task="mood"):
    """The texts of mixed examples, which have no label."""
    made = mix_texts([Example(each, 1) for each in texts], copies, seed, task)
    assert all(example.label is None for example in made)
    return [example.texts for example in made]


def begins_and_ends(text, first, last):
    """Whether a text is the beginning of one text and the end of another, cut between words."""
    words, a, b = text.split(), first.split(), last.split()
    return any(words == a[:i] + b[j:] for i in range(len(a) + 1) for j in range(len(b) + 1))


def has_parts_of_another(made, index, texts):
    """Whether mixed texts are parts of one example and of another one."""
    others = [other for place, other in enumerate(texts) if place != index] or [texts[index]]
    return any(all(map(begins_and_ends, made, texts[index], other)) for other in others)


@given(SINGLE | PAIRS, COPIES, SEEDS)
def test_each_has_parts_of_two_of_the_task_s_own(texts, copies, seed):
    made = mixed(texts, copies, seed)
    assert len(made) == copies * len(texts)
    for place, each in enumerate(made):
        assert len(each) == len(texts[0])
        assert has_parts_of_another(each, place % len(texts), texts)


@given(SINGLE | PAIRS, COPIES, SEEDS)
def test_the_same_come_again(texts, copies, seed):
    made = mixed(texts, copies, seed)
    assert mixed(texts, copies, seed) == made
    assert mixed(texts, copies + 1, seed)[: len(made)] == made


def numbered(count, columns=1, length=8):
    """Texts no two of which share a word."""
    return [
        tuple(" ".join(f"{place}{column}-{word}" for word in range(length)) for column in "ab"[:columns])
        for place in range(count)
    ]


def sources(text):
    """The examples and columns that the words of a text come from, in order."""
    return list(dict.fromkeys(word.split("-")[0] for word in text.split()))


def test_seed_and_task_decide():
    texts = numbered(6)
    assert mixed(texts) != mixed(texts, seed=1)
    assert mixed(texts) != mixed(texts, task="pair")


def test_single_texts_are_cut_at_any_place():
    made = mixed(numbered(10), 20)
    lengths = set()
    for place, (text,) in enumerate(made):
        own = f"{place % 10}a"
        assert len(text.split()) == 8  # of texts of one length, whatever the share
        assert sources(text)[-1] != own
        lengths.add(sum(word.startswith(own) for word in text.split()))
    assert lengths == set(range(8))


def test_pairs_are_cut_and_swapped_by_turns():
    texts = numbered(6, columns=2)
    for place, (first, second) in enumerate(mixed(texts, 4)):
        copy, index = divmod(place, len(texts))
        if (index + copy) % 2:
            assert first == texts[index][0]
            assert second in {other[1] for other in texts} - {texts[index][1]}
        else:
            assert [len(first.split()), len(second.split())] == [8, 8]
            ends = {sources(first)[-1][:-1], sources(second)[-1][:-1]}
            assert len(ends) == 1  # both end as the same other example
            assert ends != {str(index)}


def test_texts_of_one_word_are_not_cut():
    texts = [("yes",), ("no",)]
    assert mixed(texts, 2) == [("no",), ("yes",)] * 2


def test_one_text_and_empty_ones():
    assert mixed([("the only  one",)], 2) == [("the only one",)] * 2
    assert mixed([("",), ("",)], 1) == [("",), ("",)]
    assert mixed(numbered(3), 0) == []
