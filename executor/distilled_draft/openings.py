"""How prompts begin: openings of several tasks, which the target itself completes. None comes from a benchmark."""

from __future__ import annotations

import enum
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np


class Task(enum.StrEnum):
    """What is asked for."""

    CHAT = "chat"
    LONG = "long"  # a passage to summarise, rewrite or ask about
    MATHS = "maths"
    CODE = "code"
    TRANSLATION = "translation"
    FACT = "fact"
    TEXT = "text"  # no question at all: text to continue, without the chat template


class Opening(NamedTuple):
    """The beginning of a prompt, often in the middle of a sentence; empty where the target begins itself."""

    task: Task
    text: str


def _listed(text: str) -> tuple[str, ...]:
    return tuple(part.strip() for part in " ".join(text.split()).split("|"))


TOPICS = _listed(
    """
volcanoes | the water cycle | black holes | photosynthesis | the French Revolution | Roman roads | jazz music | chess
openings | bread baking | coffee | tea in Japan | bicycles | electric cars | solar panels | wind turbines | nuclear
energy | climate change | coral reefs | whales | penguins | honey bees | ants | spiders | dinosaurs | the Moon | Mars
| the solar system | gravity | magnetism | light and colour | sound waves | atoms | chemical bonds | acids and bases |
DNA | evolution | vaccines | antibiotics | the heart | the brain | sleep | memory | stress at work | meditation | yoga
| running a marathon | weight training | a healthy breakfast | vegetarian cooking | pasta | soup | chocolate | cheese
| wine | gardening | roses | trees in cities | recycling | plastic waste | water shortage | earthquakes | hurricanes |
deserts | rainforests | the Amazon | the Nile | the Himalayas | Iceland | Hawaii | Paris | London | Tokyo | New York |
Berlin | Rome | Cairo | Mumbai | Beijing | Sydney | Mexico | Brazil | Canada | South Africa | Kenya | India | China |
Japan | Italy | Greece | Vikings | knights | castles | the Silk Road | the Cold War | World War II | the moon landing
| the printing press | the steam engine | railways | airplanes | ships | bridges | skyscrapers | the internet | email
| smartphones | social media | video games | artificial intelligence | machine learning | databases | operating
systems | encryption | passwords | open source software | Python | JavaScript | sorting algorithms | binary search |
recursion | linked lists | hash tables | prime numbers | fractions | probability | statistics | geometry | the
Pythagorean theorem | calculus | interest rates | inflation | budgeting | saving money | the stock market | taxes |
small businesses | marketing | job interviews | a cover letter | public speaking | teamwork | leadership | time
management | remote work | emails to customers | negotiation | friendship | family traditions | parenting | teaching
children to read | school uniforms | homework | university life | learning a language | poetry | novels | Shakespeare
| fairy tales | detective stories | science fiction | film directors | photography | painting | museums | architecture
| fashion | dance | the violin | the piano | guitar chords | football | basketball | tennis | swimming | cricket | the
Olympics | hiking | camping | sailing | travel by train | airports | hotels | a trip to the beach | winter holidays |
birthdays | weddings | cats | dogs | horses | parrots | goldfish | farm animals | wolves | bears | elephants | lions |
rabbits | kindness | courage | honesty | justice | democracy | elections | human rights | free speech | philosophy |
ethics | religion in history | mythology | dreams | time travel | robots | aliens | dragons | a lost key | an old
lighthouse | a haunted house | a talking tree
"""
)
NAMES = _listed(
    """
Anna | Ben | Carla | David | Elena | Farid | Grace | Hassan | Ingrid | Jamal | Kate | Liam | Maria | Nina | Omar |
Paula | Quentin | Rosa | Sam | Tara | Umar | Vera | Will | Xena | Yusuf | Zoe | Tom | Lucy | Mike | Sarah | Peter |
Janet | Mr. Brown | Mrs. Lee | The farmer | A shop | A baker | A school | A train | A car
"""
)
THINGS = _listed(
    """
apples | books | pencils | cookies | dollars | marbles | stickers | eggs | tickets | bottles | chairs | flowers |
cards | shirts | miles | hours | pages | coins | balloons | cupcakes | oranges | toys | boxes | students | points
"""
)
FUNCTIONS = _listed(
    """
is_even | count_words | reverse_list | find_max | sum_digits | is_prime | factorial | fibonacci | merge_lists |
remove_duplicates | filter_strings | parse_numbers | sort_by_length | longest_word | common_elements | flatten |
rotate | count_vowels | to_upper | split_words | max_profit | two_sum | binary_search | gcd | average | median |
is_anagram | caesar_shift | unique_items | group_by | move_zeros | balanced | intersect | largest_prime | encode |
decode | min_cost | has_close | truncate | below_zero
"""
)
# {t}: a topic; {T}: the same with a capital; {n}, {m}: names; {k}, {j}: numbers; {h}: things to count; {f}: a function.
_OPENINGS: Mapping[Task, tuple[str, ...]] = {
    Task.CHAT: (
        "Write a short story about {t}",
        "Write a poem about {t}",
        "Explain {t} to",
        "Explain how",
        "Describe {t}",
        "What is",
        "What are the",
        "Why do",
        "Why is",
        "How do",
        "How does",
        "How can I",
        "Compare",
        "List",
        "Give me",
        "Name",
        "Imagine you are",
        "Pretend to be",
        "Act as",
        "Write an email to",
        "Write a blog post about {t}",
        "Write a letter to",
        "Compose an",
        "Draft a",
        "Summarize the history of {t}",
        "What do you think about {t}",
        "Give three reasons",
        "Tell me about {t}",
        "Who was",
        "Who invented",
        "When did",
        "Where is",
        "Which",
        "In what year",
        "How many",
        "Can you",
        "Could you explain",
        "I need",
        "I want to",
        "My friend",
        "I am",
        "Suppose",
        "If you",
        "Is it",
        "Are",
        "Do you",
        "Design a",
        "Create a",
        "Plan a",
        "Help me",
        "Edit the following",
        "Fix the grammar in this",
        "Analyze",
        "Discuss",
        "Argue for",
        "Identify the",
        "Classify the following",
        "Extract",
        "Answer the following question about {t}:",
        "Consider the following",
        "What is the difference between",
        "Provide",
        "Suggest",
        "Recommend",
        "Rewrite this sentence",
        "",
        "",
        "",
        "",
        "",
        "",
        "",
        "",
    ),
    Task.LONG: (
        "Summarize the following article:\n\n{T}",
        "Summarize this text in two sentences:\n\n",
        "Please summarize: ",
        "Rewrite the following paragraph so that it is easier to read:\n\n{T}",
        "Read the passage and answer the question.\n\nPassage: {T}",
        "Context: {T}",
        "Answer the question based on the following passages.\n\nPassage 1: {T}",
        "Article: (CNN)",
        "Summarize the news: A",
        "Here is a text about {t}:\n\n",
    ),
    Task.MATHS: (
        "{n} has {k} {h}",
        "{n} has {k} {h} and",
        "{n} bought {k} {h}",
        "{n} sells",
        "{n} is {k} years old",
        "If {n} has {k}",
        "There are {k} {h} in",
        "A train travels {k} miles",
        "{n} earns ${k}",
        "{n} needs {k} {h}",
        "What is {k} times {j}",
        "Solve for x: ",
        "Calculate ",
        "Find the area of",
        "{n} reads {k} pages",
        "What is {k} + {j}",
        "The price of",
        "{n} runs {k} miles",
        "{n} and {m} ",
        "Each of the {k} {h}",
    ),
    Task.CODE: (
        "Write a Python function that",
        "Write a Python program to",
        "Write a function to",
        "def {f}(",
        "from typing import List\n\n\ndef {f}(",
        "Complete the following Python function:\n\ndef {f}(",
        "Implement a",
        "Write a class",
        "Write a SQL query",
        "How do I write",
        "Fix this code:\n\n",
        "Explain this code:\n\n",
        "Write C++ code",
        "Write a JavaScript function",
        "Write a regular expression",
        "Write an HTML page",
        "def ",
    ),
    Task.TRANSLATION: (
        "Translate German to English: ",
        "Translate to English: ",
        "Translate from German to English: Die",
        "Translate German to English: Der",
        "Translate German to English: Ich",
        "Translate German to English: Das",
        "Translate German to English: Wir",
        "Translate German to English: Es",
        "Translate the following into French: ",
        "Translate German to English: Er",
    ),
    Task.FACT: (
        "who",
        "when did",
        "what is the",
        "where is",
        "how many",
        "what year",
        "who plays",
        "who wrote",
        "who sings",
        "which country",
        "what does",
        "when was the",
        "who is the",
        "where did",
        "how long",
        "name the",
        "what are",
        "who won",
        "when is",
        "the",
    ),
    Task.TEXT: (
        "def {f}(",
        "import ",
        "class ",
        "The ",
        "In ",
        "# ",
        "{T}",
        "A ",
        "from ",
        "Once upon a time",
        "1. ",
        "Chapter",
        "Q: ",
        '"',
        "If ",
        "How to",
        "We ",
        "This ",
    ),
}
_SHARES = {
    Task.CHAT: 0.43,
    Task.LONG: 0.12,
    Task.MATHS: 0.15,
    Task.CODE: 0.11,
    Task.TRANSLATION: 0.05,
    Task.FACT: 0.07,
    Task.TEXT: 0.07,
}
_FOLLOW_UPS = (
    "",
    "Can you",
    "Rewrite",
    "Now",
    "Thanks.",
    "Why",
    "What about",
    "Explain",
    "Make it",
    "Give",
    "How",
    "Write",
    "Could you",
    "Summarize",
    "In that",
    "What if",
    "Please",
    "Modify",
    "Tell me more about",
    "Translate",
    "Are there",
    "Which",
    "Suppose",
    "Change",
    "Add",
    "Do you",
)


def draw_opening(rng: np.random.Generator, *, has_template: bool = True) -> Opening:
    """A random opening; plain text alone where the target has no chat template."""
    tasks = list(_SHARES)
    task = tasks[int(rng.choice(len(tasks), p=list(_SHARES.values())))] if has_template else Task.TEXT
    topic = _pick(rng, TOPICS)
    text = _pick(rng, _OPENINGS[task]).format(
        t=topic,
        T=topic[0].upper() + topic[1:],
        n=_pick(rng, NAMES),
        m=_pick(rng, NAMES),
        k=int(rng.integers(2, 100)),
        j=int(rng.integers(2, 60)),
        h=_pick(rng, THINGS),
        f=_pick(rng, FUNCTIONS),
    )
    return Opening(task, text)


def draw_follow_up(rng: np.random.Generator) -> str:
    """The beginning of a second question; empty one time in five."""
    return "" if rng.random() < 0.2 else _pick(rng, _FOLLOW_UPS)


def _pick(rng: np.random.Generator, choices: Sequence[str]) -> str:
    return choices[int(rng.integers(len(choices)))]
