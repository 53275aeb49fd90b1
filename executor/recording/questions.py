"""Questions that ship with specbranch, for models that were trained to chat: 96 of eight tasks, none of a published set.

They are made of a dozen subjects in eight tasks, in an order in which the tasks take turns. No draft of ours is trained on
them.
"""

from __future__ import annotations

_SUBJECTS = (
    ("a lighthouse", "ships", 14),
    ("a bakery", "loaves", 23),
    ("a railway station", "passengers", 37),
    ("a beehive", "bees", 45),
    ("a windmill", "sacks of flour", 12),
    ("a public library", "books", 58),
    ("a glacier", "hikers", 9),
    ("a clockmaker's workshop", "watches", 31),
    ("a tea plantation", "baskets", 26),
    ("a harbour crane", "containers", 42),
    ("a mountain village", "goats", 17),
    ("a swimming pool", "swimmers", 64),
)
_TASKS = {
    "explain": "What is the purpose of {place}, and how did people manage before there was one?",
    "sums": "There are {number} {things} at {place} on Monday. On each of the next 4 days 7 more arrive and 3 leave. How "
    "many {things} are there on Friday? Show your steps.",
    "code": "Write a Python function that takes a list of (day, number of {things}) counted at {place}, and returns the day "
    "with the highest number. Add a docstring and one example.",
    "story": "Write the opening of a short story that takes place at {place}, in which somebody counts {number} {things}.",
    "list": "List six things that a visitor should look at when visiting {place}, with one sentence about each.",
    "rewrite": "Rewrite this note as a polite letter: We counted {number} {things} at {place}. That is too many. Somebody "
    "must do something before Friday.",
    "compare": "Compare {place} of a hundred years ago with one of today. Name two advantages of each.",
    "extract": "Read the text and answer in one line who counted what, where and when. Text: On 3 May, Miss Okafor walked to "
    "{place} and wrote down in her notebook that {number} {things} had been there since the morning.",
}
NUM_QUESTIONS = len(_SUBJECTS) * len(_TASKS)


def questions() -> list[tuple[str, str]]:
    """(name, text) of each, always in the same order; a name says the task, such as question:sums:1.

    >>> questions()[0][0], len(questions())
    ('question:explain:0', 96)
    """
    return [
        (f"question:{task}:{index}", form.format(place=place, things=things, number=number))
        for index, (place, things, number) in enumerate(_SUBJECTS)
        for task, form in _TASKS.items()
    ]
