"""Words that messages share."""

from msn.runtime.wording import aligned, counted


def test_one_is_singular_and_all_else_plural() -> None:
    assert counted(1, "epoch") == "1 epoch"
    assert counted(0, "image") == "0 images"
    assert counted(2000, "epoch") == "2,000 epochs"
    assert [counted(3, noun) for noun in ("process", "class", "micro-batch", "patch")] == [
        *("3 processes", "3 classes", "3 micro-batches", "3 patches")
    ]


def test_facts_stand_below_each_other() -> None:
    assert aligned([("a", "1"), ("long", "2")]) == "a     1\nlong  2"
