"""Where a request ends: stop strings of every kind of character and token, against the text decoded whole."""

from __future__ import annotations

import random
from collections.abc import Callable

import pytest
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers

from executor.recording.settings import DecodingSettings
from executor.request import EndFinder, Request
from traces.schema import FinishReason, Sampling

SPECIALS = ["<|end|>", "<|user|>"]
TEXTS = [
    "\U0001f469\u200d\U0001f4bb\U0001f680\U0001f9ea",  # emoji of several code points
    "\u9f98\u9750\u9f49\u7c6c\u7228",  # rare characters of three bytes each
    "\U00020000\U0002a6d6 x",  # characters beyond the basic plane
    "e\u0301u\u0308\u00df",  # combining marks
    "\u05e9\u05dc\u05d5\u05dd \u0645\u0631\u062d\u0628\u0627",  # right to left
    "\r\n\r\n",
    "\t\tpass\n",
    "\u00a0\u2009\u3000",  # spaces of other kinds
    "\u0e2a\u0e27\u0e31\u0e2a",
    "def \u2192 x",
    "\x00\x1b",
    "a",
]


def _byte_level() -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=290, special_tokens=SPECIALS, initial_alphabet=alphabet)
    tokenizer.train_from_iterator(["def f(x):\n    return x\n" * 4], trainer)
    return tokenizer


def _byte_fallback() -> Tokenizer:
    """As in Llama 2: characters that the vocabulary lacks are written in byte tokens."""
    characters = ["\u2581", *"abcdefghijklmnopqrstuvwxyz():\n"]
    pieces = [("<unk>", 0.0), *((f"<0x{byte:02X}>", 0.0) for byte in range(256)), *((c, -2.0) for c in characters)]
    tokenizer = Tokenizer(models.Unigram(pieces, unk_id=0, byte_fallback=True))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
    parts = [decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    tokenizer.decoder = decoders.Sequence(parts)
    tokenizer.add_special_tokens([AddedToken(special, special=True) for special in SPECIALS])
    return tokenizer


TOKENIZERS = pytest.mark.parametrize("build", [_byte_level, _byte_fallback])


def _finder(tokenizer: Tokenizer, *stops: str, **settings: object) -> EndFinder:
    request = Request(
        prompt_id="p", tokens=(1,), max_new_tokens=500, sampling=Sampling(), stop_strings=stops, **settings
    )
    return EndFinder(request, frozenset({tokenizer.token_to_id("<|end|>")}), *_decoders(tokenizer))


def _decoders(tokenizer: Tokenizer) -> list[Callable[[list[int]], str]]:
    def written(hides: bool) -> Callable[[list[int]], str]:
        return lambda tokens: str(tokenizer.decode(tokens, skip_special_tokens=hides))

    return [written(True), written(False)]


def _end(finder: EndFinder, tokens: list[int], per_round: int) -> tuple[int, FinishReason | None]:
    done = 0
    while done < len(tokens):
        num, reason = finder.find(done, tokens[done : done + per_round])
        done += num
        if reason is not None:
            return done, reason
    return done, None


@TOKENIZERS
@pytest.mark.parametrize("text", TEXTS)
@pytest.mark.parametrize("per_round", [1, 3, 50])
def test_a_stop_ends_at_the_first_token_that_completes_it(
    build: Callable[[], Tokenizer], text: str, per_round: int
) -> None:
    tokenizer = build()
    tokens = tokenizer.encode(f"def f(x):\n{text}return {text} x").ids
    visible = _decoders(tokenizer)[0]
    wanted = next(num for num in range(len(tokens) + 1) if text in visible(tokens[:num]))
    assert _end(_finder(tokenizer, "no such text", text), tokens, per_round) == (wanted, FinishReason.STOP_STRING)


@TOKENIZERS
def test_random_tokens_stop_where_the_whole_text_first_holds_the_stop(build: Callable[[], Tokenizer]) -> None:
    """Any tokens, broken characters among them: one stop taken from the text, another from anywhere."""
    tokenizer, rng = build(), random.Random(0)
    visible = _decoders(tokenizer)[0]
    usual = tokenizer.encode("".join(TEXTS) + "def f(x)").ids
    num_stopped = 0
    for _ in range(150):
        tokens = [rng.choice(usual) if rng.random() < 0.9 else rng.randrange(280) for _ in range(60)]
        text = visible(tokens).replace("\ufffd", "")
        start = rng.randrange(max(1, len(text) - 4))
        stops = [stop for stop in (text[start : start + 3], "ef", "\u9f98") if stop]
        ends = (num for num in range(len(tokens) + 1) if any(stop in visible(tokens[:num]) for stop in stops))
        wanted = next(ends, len(tokens))
        without_specials = [t for t in tokens[:wanted] if tokenizer.id_to_token(t) in SPECIALS]
        if without_specials:
            continue
        num_stopped += wanted < len(tokens)
        assert _end(_finder(tokenizer, *stops), tokens, 4)[0] == wanted, (tokens, stops)
    assert num_stopped > 20


@TOKENIZERS
def test_special_tokens_in_between_hide_no_stop(build: Callable[[], Tokenizer]) -> None:
    tokenizer = build()
    user = tokenizer.token_to_id("<|user|>")
    spread = [token for piece in tokenizer.encode("def xyz").ids for token in (piece, *[user] * 20)]
    num, reason = _end(_finder(tokenizer, "def xyz"), [*spread, *tokenizer.encode(" more").ids], 5)
    assert (num, reason) == (len(spread) - 20, FinishReason.STOP_STRING)


@TOKENIZERS
@pytest.mark.parametrize("stop", ["<|user|>", "<|user|>x", "y<|user|>"])
def test_a_special_token_can_be_a_stop(build: Callable[[], Tokenizer], stop: str) -> None:
    tokenizer = build()
    tokens = [*tokenizer.encode("xy").ids, tokenizer.token_to_id("<|user|>"), *tokenizer.encode("xz").ids[-2:]]
    whole = _decoders(tokenizer)[1]
    wanted = next(num for num in range(len(tokens) + 1) if stop in whole(tokens[:num]))
    assert _end(_finder(tokenizer, stop), tokens, 2) == (wanted, FinishReason.STOP_STRING)


@TOKENIZERS
def test_the_end_token_as_a_stop_counts_even_where_the_end_is_ignored(build: Callable[[], Tokenizer]) -> None:
    tokenizer = build()
    tokens = [*tokenizer.encode("xy").ids, tokenizer.token_to_id("<|end|>"), *tokenizer.encode("z").ids]
    at = tokens.index(tokenizer.token_to_id("<|end|>")) + 1
    assert _end(_finder(tokenizer, "<|end|>", ignore_eos=True), tokens, 9) == (at, FinishReason.STOP_STRING)
    assert _end(_finder(tokenizer, "<|end|>"), tokens, 9) == (at, FinishReason.EOS)


@pytest.mark.parametrize("stop", ["", "a\ufffd", "\ud83d"])
def test_a_stop_that_ends_at_once_or_never_is_refused_before_anything_is_loaded(stop: str) -> None:
    with pytest.raises(ValueError, match="stop string"):
        DecodingSettings(stop_strings=("fine", stop))
