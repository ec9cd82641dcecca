import json
import math
import time
from typing import get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qurating_jax.judges.refusals import ErrorClass, classify_error, error_details
from qurating_jax.judges.replies import (
    BadReply,
    Choice,
    GradeVerdict,
    PairVerdict,
    Reply,
    Usage,
    grade_from_logprobs,
    grade_from_samples,
    pair_from_logprobs,
    pair_from_samples,
    parse_grade,
    parse_label,
    read_reply,
)

AB = ("A", "B")


def completion(*choices, **others):
    return json.dumps({"object": "chat.completion", "model": "m-1", "choices": list(choices), **others}).encode()


def choice(content="A", finish_reason="stop", top=None, **message):
    logprobs = None
    if top is not None:
        candidates = [{"token": token, "logprob": logprob, "bytes": None} for token, logprob in top]
        logprobs = {"content": [{"token": "A", "logprob": -0.1, "top_logprobs": candidates}], "refusal": None}
    return {
        "index": 0,
        "message": {"role": "assistant", "content": content, **message},
        "logprobs": logprobs,
        "finish_reason": finish_reason,
    }


def with_top(**probabilities):
    return with_candidates(*((token, math.log(p)) for token, p in probabilities.items()))


def with_candidates(*top, filtered=False):
    return Reply((Choice(None, "length", tuple(top), filtered),), Usage(), "")


# --- reading a reply --------------------------------------------------------------------------------------------------


def test_a_reply_of_openai():
    usage = {
        "prompt_tokens": 1100,
        "completion_tokens": 1,
        "total_tokens": 1101,
        "prompt_tokens_details": {"cached_tokens": 1024, "audio_tokens": 0},
        "completion_tokens_details": {"reasoning_tokens": 7, "audio_tokens": 0},
    }
    content = completion(choice("B", "length", top=[("B", -0.25), (" A", -1.5)], refusal=None), usage=usage)
    assert read_reply(content) == Reply(
        (Choice("B", "length", (("B", -0.25), (" A", -1.5)), False),), Usage(1100, 1024, 1, 7), "m-1"
    )


@pytest.mark.parametrize(
    ("sent", "expected"),
    [
        (choice(None, "stop"), Choice(None, "stop")),
        (choice(None, None), Choice(None, None)),
        (choice("A", 3), Choice("A", None)),
        (choice("A", "content_filter"), Choice(None, "content_filter", None, True)),
        (choice("No.", "refusal"), Choice(None, "refusal", None, True)),
        (choice(None, "stop", refusal="I can't help."), Choice(None, "stop", None, True)),
        (choice("A", "stop", refusal=""), Choice("A", "stop")),
        (choice([{"type": "thinking", "thinking": []}, {"type": "text", "text": "B"}]), Choice("B", "stop")),
        (choice([]), Choice("", "stop")),
        ({"message": {}}, Choice(None, None)),
        ({**choice("A"), "logprobs": 7}, Choice("A", "stop")),
        (choice("A", top=[]), Choice("A", "stop", ())),
        (choice("A", top=[("A", -99.0), ("B", 0.001), ("C", None)]), Choice("A", "stop", (("A", -99.0), ("B", 0.0)))),
        (choice("A", top=[("A", -math.inf), ("B", 0)]), Choice("A", "stop", (("A", -1e9), ("B", 0.0)))),
        ({**choice("A"), "logprobs": {"content": []}}, Choice("A", "stop")),
        ({**choice("A"), "logprobs": {"content": None}}, Choice("A", "stop")),
        ({**choice("A"), "logprobs": {"tokens": ["A"], "token_logprobs": [-0.1]}}, Choice("A", "stop")),
        ({**choice("A"), "logprobs": {"content": [{"token": "A", "logprob": -1}]}}, Choice("A", "stop")),
    ],
)  # fmt: skip
def test_shapes_of_choices(sent, expected):
    assert read_reply(completion(sent)).choices == (expected,)


def test_all_choices_in_order():
    assert [c.text for c in read_reply(completion(*map(choice, "ABBA"))).choices] == list("ABBA")


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "not_json"),
        (b"<!DOCTYPE html><html>502</html>", "not_json"),
        (completion(choice())[:-9], "not_json"),
        (b"\x00" * 40, "not_json"),
        (b"\xff\xfe\xfd", "not_json"),
        (b"[" * 200_000, "not_json"),
        (b'{"a":' * 200_000, "not_json"),
        (b'{"choices": ' + b"9" * 5000 + b"}", "not_json"),
        (b"data: {}", "not_json"),
        (b"null", "not_object"),
        (b'"text"', "not_object"),
        (b"[1, 2]", "not_object"),
        (b"NaN", "not_object"),
        (b"{}", "choices"),
        (completion(), "choices"),
        (b'{"choices": null}', "choices"),
        (b'{"choices": {"0": 1}}', "choices"),
        (b'{"choices": 1e999}', "choices"),
        (b'{"error": {"message": "Provider returned error", "code": 502}}', "error"),
        (completion(choice("A", "error")), "error"),
        (b'{"choices": [null]}', "choice"),
        (b'{"choices": [{}]}', "choice"),
        (b'{"choices": [{"message": "A"}]}', "choice"),
        (completion(choice("A"), choice(7)), "choice"),
        (completion(choice({"text": "A"})), "choice"),
        (completion(choice(top=[("A", math.nan)])), "logprobs"),
        (completion(choice(top=[("A", 1.0)])), "logprobs"),
        (completion(choice(top=[("A", math.inf)])), "logprobs"),
        (completion(choice(top=[("A", 10**400)])), "logprobs"),
        (completion(choice(top=[("A", True)])), "logprobs"),
        (completion(choice(top=[("A", "-0.1")])), "logprobs"),
        (completion(choice(top=[(None, -0.1)])), "logprobs"),
        (completion({**choice(), "logprobs": {"content": [{"top_logprobs": [[]]}]}}), "logprobs"),
        (completion({**choice(), "logprobs": {"content": [{"top_logprobs": ["A"]}]}}), "logprobs"),
        (completion({**choice(), "logprobs": {"content": [{"top_logprobs": [{}]}]}}), "logprobs"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_no_chat_completion(content, reason):
    with pytest.raises(BadReply) as caught:
        read_reply(content)
    assert caught.value.reason == reason


@pytest.mark.parametrize(
    ("usage", "expected"),
    [
        (None, Usage()),
        ([], Usage()),
        ({"prompt_tokens": 5, "completion_tokens": None}, Usage(prompt_tokens=5)),
        ({"prompt_tokens": -5, "completion_tokens": True}, Usage()),
        ({"prompt_tokens": "5", "completion_tokens": 2.0}, Usage()),
        ({"prompt_tokens": 10**30, "completion_tokens": 3}, Usage(completion_tokens=3)),
        ({"prompt_tokens": 5, "prompt_tokens_details": {"cached_tokens": 9}}, Usage(5, 5)),
        ({"prompt_tokens": 5, "prompt_tokens_details": None, "completion_tokens_details": 3}, Usage(5)),
    ],
)
def test_usage_that_says_nothing_counts_nothing(usage, expected):
    assert read_reply(completion(choice(), usage=usage)).usage == expected


def test_usage_adds_up():
    assert Usage(1, 2, 3, 4) + Usage(10, 20, 30, 40) == Usage(11, 22, 33, 44)
    assert sum([Usage(1), Usage(0, 0, 1)], Usage()) == Usage(1, 0, 1)


def test_a_models_name_is_fit_for_a_table():
    assert read_reply(completion(choice(), model="a\ud800\n b" + "x" * 5000)).model == "a? b" + "x" * 995
    assert read_reply(completion(choice(), model=None)).model == ""


NAMES = [
    "choices", "message", "content", "logprobs", "top_logprobs", "token", "logprob", "usage", "prompt_tokens", "error",
    "prompt_tokens_details", "finish_reason", "refusal", "model", "text", "type", "detail", "code", "param", "loc",
    "msg", "innererror", "metadata", "raw",
]  # fmt: skip
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5) | st.just("content_filter"),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(NAMES), inner, max_size=5),
    max_leaves=30,
)
BODIES = (
    st.binary(max_size=200)
    | JSON.map(lambda value: json.dumps(value).encode())
    | st.tuples(JSON, JSON).map(
        lambda parts: completion({**choice(), "logprobs": {"content": [{"top_logprobs": parts[0]}]}}, usage=parts[1])
    )
    | JSON.map(lambda value: completion({"message": value, "logprobs": value, "finish_reason": value}))
)


@given(BODIES)
def test_any_bytes_are_a_reply_or_a_bad_reply(content):
    try:
        reply = read_reply(content)
    except BadReply:
        return
    verdict = pair_from_logprobs(reply, AB, 0.5)
    assert verdict.outcome in ("ok", "low_mass", "unparsed", "content_filter")
    assert verdict.p_second is None or 0.0 <= verdict.p_second <= 1.0
    grade = grade_from_logprobs(reply, 1, 10, 0.5)
    assert grade.grade is None or 1.0 <= grade.grade <= 10.0
    texts = [one.text for one in reply.choices]
    assert pair_from_samples(texts, AB).outcome in ("ok", "unparsed")
    assert grade_from_samples(texts, 1, 10).outcome in ("ok", "unparsed")


@given(st.data())
def test_a_cut_or_bent_reply_raises_nothing_else(data):
    content = completion(choice("A", top=[("A", -0.1), ("B", -2.0)]), usage={"prompt_tokens": 5})
    place = data.draw(st.integers(0, len(content) - 1))
    bent = content[:place] + data.draw(st.binary(max_size=3)) + content[place + data.draw(st.integers(0, 3)) :]
    try:
        read_reply(bent)
    except BadReply:
        return


# --- verdicts by logprobs ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("probabilities", "p_second", "mass", "outcome"),
    [
        ({"A": 0.6, "B": 0.2, "The": 0.2}, 0.25, 0.8, "ok"),
        ({"B": 0.9}, 1.0, 0.9, "ok"),
        ({"A": 0.1, " A": 0.2, "\u2581B": 0.3, "ĠB": 0.2, "B\n": 0.1, "ĊB": 0.05}, 0.65 / 0.95, 0.95, "ok"),
        ({"A": 0.1, "B": 0.3}, 0.75, 0.4, "low_mass"),
        ({"A": 0.25, "B": 0.25}, 0.5, 0.5, "ok"),
        ({"a": 0.6, "b": 0.2, "A.": 0.1, "AB": 0.05, '"A': 0.01}, None, 0.0, "unparsed"),
        ({" ": 0.5, "": 0.2, "\u2581": 0.3}, None, 0.0, "unparsed"),
        ({"A": 0.9, " A": 0.3}, 0.0, 1.0, "ok"),
    ],
)
def test_probabilities_of_the_labels(probabilities, p_second, mass, outcome):
    verdict = pair_from_logprobs(with_top(**probabilities), AB, 0.5)
    assert (verdict.outcome, verdict.votes_first, verdict.votes_second, verdict.votes_invalid) == (outcome, 0, 0, 0)
    assert verdict.mass == pytest.approx(mass)
    assert verdict.p_second == (None if p_second is None else pytest.approx(p_second))


@pytest.mark.parametrize(
    ("labels", "probabilities", "p_second", "mass"),
    [
        (("First", "Second"), {"Fir": 0.2, "First": 0.1, "Sec": 0.6}, 2 / 3, 0.9),
        (("Text 1", "Text 2"), {"Text": 0.8, "Text 1": 0.05, "Text 2": 0.15}, 0.75, 0.2),
        (("A", "AB"), {"A": 0.5, "AB": 0.4}, 1.0, 0.4),
        (("B", "A"), {"A": 0.6, "B": 0.2}, 0.75, 0.8),
    ],
)
def test_beginnings_count_where_they_begin_one_label_only(labels, probabilities, p_second, mass):
    verdict = pair_from_logprobs(with_top(**probabilities), labels, 0.1)
    assert (verdict.p_second, verdict.mass) == (pytest.approx(p_second), pytest.approx(mass))


def test_replies_without_a_verdict():
    none = (None, None, 0, 0, 0)
    filtered = with_candidates(("A", -0.1), filtered=True)
    assert pair_from_logprobs(filtered, AB, 0.5) == PairVerdict(*none, "content_filter")
    assert pair_from_logprobs(read_reply(completion(choice("A"))), AB, 0.5) == PairVerdict(*none, "unparsed")
    assert pair_from_logprobs(read_reply(completion(choice(None))), AB, 0.5) == PairVerdict(*none, "unparsed")
    impossible = with_candidates(("A", -9999.0), ("B", -1e9))
    assert pair_from_logprobs(impossible, AB, 0.5) == PairVerdict(None, 0.0, 0, 0, 0, "unparsed")


@given(st.floats(0.001, 0.999), st.floats(0.01, 1.0), st.integers(0, 18))
def test_the_verdict_is_the_share_of_the_second_label(p_second, mass, others):
    rest = [(f"w{i}", math.log((1.0 - mass) / others)) for i in range(others) if mass < 1.0]
    first, second = math.log(mass * (1 - p_second)), math.log(mass * p_second)
    verdict = pair_from_logprobs(with_candidates(*rest, ("A", first), ("B", second)), AB, 0.0)
    assert verdict.p_second == pytest.approx(p_second)
    assert verdict.mass == pytest.approx(mass)
    swapped = pair_from_logprobs(with_candidates(("A", second), ("B", first), *rest), AB, 0.0)
    assert swapped.p_second == pytest.approx(1 - p_second)


# --- verdicts by samples ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "label"),
    [
        ("A", "A"),
        (" B\n", "B"),
        ("**B**", "B"),
        ('"A".', "A"),
        ("[B]", "B"),
        ("(A)", "A"),
        ("`B`", "B"),
        ("_A_", "A"),
        ("B.", "B"),
        ("Answer: B", "B"),
        ("A better text is B", "B"),
        ("I compared A with B.\n\n**Answer:** A", "A"),
        ("<think>A? No: B. Hmm, A.</think>\n\nB", "B"),
        ("Option_B", "B"),
        ("B is better than A", "A"),  # the known error of the rule
        ("", None),
        ("a", None),
        ("AB", None),
        ("Both are good", None),
        ("A1", None),
        ("ÄA", None),
        ("C", None),
    ],
)
def test_labels_in_texts(text, label):
    assert parse_label(text, AB) == label


@pytest.mark.parametrize(
    ("text", "labels", "label"),
    [
        ("A B", ("A", "A B"), "A B"),
        ("A B", ("A B", "A"), "A B"),
        ("Text 1 loses to Text 12", ("Text 1", "Text 12"), "Text 12"),
        ("[B]", ("[A]", "[B]"), "[B]"),
        ("so I say a.c", ("a.c", "abc"), "a.c"),
        ("so I say axc", ("a.c", "abc"), None),
        ("Text 2.", ("Text 1", "Text 2"), "Text 2"),
        ("The second is best: Second", ("First", "Second"), "Second"),
    ],
)
def test_labels_of_several_signs(text, labels, label):
    assert parse_label(text, labels) == label


@given(st.text(max_size=40), st.sampled_from(AB))
def test_a_conclusion_on_its_own_line_wins(before, label):
    assert parse_label(f"{before}\n{label}", AB) == label


@pytest.mark.parametrize(
    ("texts", "num_filtered", "p_second", "votes", "outcome"),
    [
        (["A", "B", "B", "B"], 0, 0.75, (1, 3, 0), "ok"),
        (["A"], 0, 0.0, (1, 0, 0), "ok"),
        (["A", "B", None], 0, 0.5, (1, 1, 1), "ok"),
        (["A", None], 0, None, (1, 0, 1), "unparsed"),  # half is not more than half
        (["A", "what", None], 1, None, (1, 0, 2), "content_filter"),
        (["A", "B", None], 1, 0.5, (1, 1, 1), "ok"),
        ([], 0, None, (0, 0, 0), "unparsed"),
    ],
)
def test_votes(texts, num_filtered, p_second, votes, outcome):
    assert pair_from_samples(texts, AB, num_filtered=num_filtered) == PairVerdict(p_second, None, *votes, outcome)


# --- grades -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("probabilities", "span", "grade", "mass", "outcome"),
    [
        ({"7": 0.5, " 8": 0.25, "Grade": 0.25}, (1, 10), (7 * 0.5 + 8 * 0.25) / 0.75, 0.75, "ok"),
        ({"1": 0.6, "7": 0.3}, (1, 10), 7.0, 0.3, "low_mass"),  # "1" may be the start of "10"
        ({"1": 0.6, "10": 0.3}, (1, 10), (0.6 + 3.0) / 0.9, 0.9, "ok"),
        ({"1": 0.6, "2": 0.3}, (1, 5), 1.2 / 0.9, 0.9, "ok"),
        ({"1": 0.9}, (1, 10), None, 0.0, "unparsed"),
        ({"0": 0.5, "11": 0.3, "07": 0.1, "7.": 0.1}, (1, 10), None, 0.0, "unparsed"),
        ({"2": 0.4, "20": 0.4, "1": 0.2}, (0, 20), (0.8 + 8.0) / 0.8, 0.8, "low_mass"),  # "1": 1, or 10 to 19
        ({"1": 0.04, "7": 0.9}, (1, 10), 7.0, 0.9, "ok"),
        ({"7": 0.8, " 7": 0.4}, (1, 10), 7.0, 1.0, "ok"),
    ],
)
def test_expected_grades(probabilities, span, grade, mass, outcome):
    verdict = grade_from_logprobs(with_top(**probabilities), *span, 0.5)
    assert (verdict.outcome, verdict.num_votes, verdict.num_invalid) == (outcome, 0, 0)
    assert verdict.mass == pytest.approx(mass)
    assert verdict.grade == (None if grade is None else pytest.approx(grade))


def test_replies_without_a_grade():
    assert grade_from_logprobs(with_candidates(("7", -0.1), filtered=True), 1, 10, 0.5).outcome == "content_filter"
    assert grade_from_logprobs(read_reply(completion(choice("7"))), 1, 10, 0.5).outcome == "unparsed"


@pytest.mark.parametrize(
    ("text", "grade"),
    [
        ("8", 8),
        (" **10**.", 10),
        ("_9_", 9),
        ("[7]", 7),
        ("Grade: 8", 8),
        ("8/10", 8),
        ("8 / 10", 8),
        ("I give it 8 out of 10.", 8),
        ("On a scale from 1 to 10 this is a 6", 6),
        ("6 (scale: 1-10)", 6),
        ("First 3, then 5, so 4", 4),
        ("grade-9", 9),
        ("A 9 for a text of 2019", 9),
        ("7.5", None),
        ("7.5/10", None),
        ("7,5", None),
        ("Point 3: 7.5", None),
        ("0", None),
        ("11", None),
        ("-5", None),
        ("8th", None),
        ("v1.8", None),
        ("from 1 to 10", None),
        ("", None),
        ("good", None),
        ("9" * 10_000, None),
    ],
)
def test_grades_in_texts(text, grade):
    assert parse_grade(text, 1, 10) == grade


def test_mean_of_the_grades_that_parse():
    assert grade_from_samples(["8", "9/10", "no", "10"], 1, 10) == GradeVerdict(9.0, None, 3, 1, "ok")
    assert grade_from_samples(["8", None], 1, 10) == GradeVerdict(None, None, 1, 1, "unparsed")
    assert grade_from_samples(["8", None], 1, 10, num_filtered=1) == GradeVerdict(None, None, 1, 1, "content_filter")
    assert grade_from_samples([], 1, 10) == GradeVerdict(None, None, 0, 0, "unparsed")


HOSTILE = ["A" * 10**6, "A " * 10**6, "1," * 10**6 + "x", "/ " * 10**6, "out " * 10**6, "1" * 10**6 + "x", "-" * 10**6]


@pytest.mark.parametrize("text", HOSTILE, ids=lambda text: text[:4])
def test_hostile_texts_take_no_long_time(text):
    begin = time.process_time()
    parse_label(text, AB)
    parse_grade(text, 1, 10)
    assert time.process_time() - begin < 2.0


@given(st.text())
def test_any_text_has_a_grade_in_range_or_none(text):
    assert parse_grade(text, 1, 10) in {None, *range(1, 11)}
    assert parse_label(text, AB) in {None, *AB}


# --- errors -----------------------------------------------------------------------------------------------------------


def error(message, **others):
    return {"error": {"message": message, "type": None, "param": None, "code": None} | others}


FILTERED = (
    "The response was filtered due to the prompt triggering Azure OpenAI's content management policy. Please modify"
)
CONTEXT = (
    "This model's maximum context length is 4097 tokens. However, you requested 4120 tokens (3120 in the messages, 1"
)
PER_MINUTE = (
    "on tokens per min (TPM): Limit 30000, Requested 30601. The input or output tokens must be reduced in order"
)
QUOTA = "You exceeded your current quota, please check your plan and billing details."
REACHED = (
    "Rate limit reached for gpt-4o in organization org-1 on tokens per min (TPM): Limit 30000. Please try again in 1.2s"
)
GEMINI = (
    f"{QUOTA} For more information, head to: https://ai.google.dev/gemini-api/docs/rate-limits. Please retry in 11.66s."
)
AZURE_429 = (
    "Requests have exceeded token rate limit. Please retry after 2 seconds. Go here: https://aka.ms/oai/quotaincrease"
)
VLLM = {"object": "error", "param": None, "code": 400, "type": "BadRequestError"}


@pytest.mark.parametrize(
    ("status", "body", "expected"),
    [
        # OpenAI and Azure
        (429, error(REACHED, type="tokens", code="rate_limit_exceeded"), "rate_limit"),
        (429, error("Slow down", type="requests"), "rate_limit"),
        (429, error(AZURE_429, code="429"), "rate_limit"),
        (429, error(QUOTA, type="insufficient_quota", code="insufficient_quota"), "quota"),
        (429, error(QUOTA, type="insufficient_quota"), "quota"),
        (429, error(QUOTA), "quota"),
        (429, error(f"Request too large for gpt-4o {PER_MINUTE}", code="rate_limit_exceeded"), "context_length"),
        (400, error("Billing hard limit has been reached", code="billing_hard_limit_reached"), "quota"),
        (401, error("Incorrect API key provided: sk-1234.", code="invalid_api_key"), "unauthorized"),
        (403, error("Country, region, or territory not supported", code="unsupported_country"), "forbidden"),
        (403, error("You are not allowed to request logprobs from this model"), "unsupported_parameter"),
        (403, error("This project has no access to logprobs"), "forbidden"),
        (404, error("The model `gpt-9` does not exist or you do not have access to it."), "model_not_found"),
        (404, error("Gone", code="model_not_found"), "model_not_found"),
        (404, {"error": {"code": "DeploymentNotFound", "message": "The API deployment does not"}}, "model_not_found"),
        (404, error("This is not a chat model and thus not supported", param="model"), "model_not_found"),
        (404, error("Not for this endpoint", param="model"), "model_not_found"),
        (404, error("Invalid URL (POST /v1/v1/chat/completions)", type="invalid_request_error"), "not_found"),
        (404, {"error": {"code": "404", "message": "Resource not found"}}, "not_found"),
        (400, error("invalid model ID", type="invalid_request_error"), "model_not_found"),
        (400, error(CONTEXT, param="messages", code="context_length_exceeded"), "context_length"),
        (400, error("Input tokens exceed the configured limit of 272000 tokens."), "context_length"),
        (400, error(FILTERED, param="prompt", code="content_filter", innererror={"code": "x"}), "content_filter"),
        (400, error("x", innererror={"code": "ResponsibleAIPolicyViolation"}), "content_filter"),
        (400, error("Invalid prompt: your prompt was flagged as potentially", code="invalid_prompt"), "content_filter"),
        (400, error("Unsupported parameter: 'max_tokens'", param="max_tokens"), "unsupported_parameter"),
        (400, error("Unsupported value: 'temperature'", code="unsupported_value"), "unsupported_parameter"),
        (400, error("Unrecognized request argument supplied: logprobs"), "unsupported_parameter"),
        (400, error("Invalid key", param="logit_bias.a"), "unsupported_parameter"),
        (400, error("'[]' is too short - 'messages'", type="invalid_request_error"), "bad_request"),
        (408, error("timeout"), "transient"),
        (409, error("conflict"), "transient"),
        (425, b"", "transient"),
        (500, error("The server had an error", type="server_error"), "server"),
        (500, error("The filter is down", code="content_filter"), "server"),
        (529, error("Overloaded"), "server"),
        # vLLM and SGLang
        (400, VLLM | {"message": CONTEXT}, "context_length"),
        (400, VLLM | {"message": "max_tokens must be at least 1, got -186."}, "context_length"),
        (400, error("You passed 9 input tokens. However, the model's context length is only 8"), "context_length"),
        (400, VLLM | {"message": "The input (61 tokens) is longer than the model's context length"}, "context_length"),
        (400, VLLM | {"message": "Requested token count exceeds the model's maximum context"}, "context_length"),
        (404, VLLM | {"message": "The model `m` does not exist.", "type": "NotFoundError"}, "model_not_found"),
        (400, VLLM | {"message": "Cannot request more than 5 logprobs."}, "unsupported_parameter"),
        (400, VLLM | {"message": "[{'type': 'extra_forbidden', 'loc': ('body', 'structured_outputs'), 'msg': 'Extra'"},
         "unsupported_parameter"),
        # llama.cpp, Ollama
        (400, {"error": {"code": 400, "message": "request (4390 tokens) exceeds the available context size (4096)",
                         "type": "exceed_context_size_error", "n_ctx": 4096}}, "context_length"),
        (500, {"error": {"code": 500, "message": "the request exceeds", "type": "exceed_context_size_error"}},
         "context_length"),
        (500, {"error": {"code": 500, "message": "Context size has been exceeded.", "type": "server_error"}}, "server"),
        (400, {"error": "Requested tokens (2285) exceed context window of 2048"}, "context_length"),
        (404, {"error": {"code": 404, "message": "File Not Found", "type": "not_found_error"}}, "not_found"),
        (404, {"error": 'model "llama" not found, try pulling it first'}, "model_not_found"),
        # LiteLLM, OpenRouter, Gemini, Groq, DeepSeek, FastAPI
        (400, error("litellm.ContextWindowExceededError: AnthropicError - too long"), "context_length"),
        (400, error("AnthropicError: prompt is too long: 209303 tokens"), "context_length"),
        (400, error(f"litellm.ContentPolicyViolationError: AzureException - {FILTERED}", code="400"), "content_filter"),
        (400, error("400: {'error': 'Invalid model name passed in model=Lite'}"), "model_not_found"),
        (400, error("Budget has been exceeded! Current cost: 9", type="budget_exceeded"), "quota"),
        (429, error("litellm.RateLimitError: RateLimitError: OpenAIException - " + QUOTA), "quota"),
        (400, error("google/gemini-2.0:free is not a valid model ID", code=400), "model_not_found"),
        (402, error("This request requires more credits, or fewer max_tokens.", code=402), "quota"),
        (403, error("Declined", code="content_policy_violation"), "content_filter"),
        (403, error("This model requires moderation and your input was flagged", code=403), "content_filter"),
        (404, error("No endpoints found for m.", code=404), "model_not_found"),
        (400, error("Provider returned error", metadata={"raw": json.dumps(error(CONTEXT))}), "context_length"),
        (429, [{"error": {"code": 429, "message": QUOTA, "status": "RESOURCE_EXHAUSTED"}}], "rate_limit"),
        (429, error(GEMINI), "rate_limit"),
        (400, [{"error": {"code": 400, "message": "The input token count (2) exceeds the"}}], "context_length"),
        (413, error(f"Request too large for model `m` {PER_MINUTE}", code="rate_limit_exceeded"), "context_length"),
        (402, error("Insufficient Balance"), "quota"),
        (429, error("Insufficient balance, please top up"), "quota"),
        (400, error("Model Not Exist"), "model_not_found"),
        (404, {"detail": "Not Found"}, "not_found"),
        (422, {"detail": [{"type": "extra_forbidden", "loc": ["body", "logit_bias", "5"], "msg": "Extra inputs"}]},
         "unsupported_parameter"),
        (422, {"detail": [{"loc": ["body", "messages"], "msg": "Field required"}]}, "bad_request"),
        (400, {"detail": "Invalid top_logprobs and logprobs value"}, "unsupported_parameter"),
        # neither a code nor a wording
        (400, b"", "bad_request"),
        (405, b"", "not_found"),
        (418, b"null", "bad_request"),
        (429, b"<html>", "rate_limit"),
        (502, b"<html>", "server"),
    ],
    ids=lambda value: str(value)[:60],
)  # fmt: skip
def test_errors_of_real_servers(status, body, expected):
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    assert classify_error(status, content, "application/json") == expected


def test_wording_in_a_page_of_html_means_nothing():
    page = b"<html>the maximum context length is; insufficient_quota; The model `x` does not exist</html>"
    assert classify_error(400, page) == "bad_request"
    assert classify_error(404, b"The model `x` does not exist", "text/html; charset=utf-8") == "not_found"
    assert classify_error(404, b"The model `x` does not exist", "text/plain") == "model_not_found"


@pytest.mark.parametrize(
    "echoed",
    ["The model `x` does not exist", f"{QUOTA} insufficient_quota", "gpt is not a valid model ID", "Invalid API key"],
)
def test_a_document_that_is_echoed_cannot_stop_the_run(echoed):
    message = (
        f"[{{'type': 'string_type', 'loc': ('body', 'user'), 'msg': 'Input should be valid', 'input': '{echoed}'}}]"
    )
    assert classify_error(400, json.dumps(error(message)).encode()) == "bad_request"
    assert classify_error(429, json.dumps(error(message)).encode()) == "rate_limit"


EITHER = "Use 'max_completion_tokens', not 'max_tokens'"


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        (error("No.", param="n", code="unsupported_parameter"), ("No.", "n", "unsupported_parameter")),
        (error("a\n b\ud800", param="logit_bias[3]"), ("a b?", "logit_bias", None)),
        (error(EITHER), (EITHER, "max_completion_tokens", None)),
        (error("`n` must be 1", code=400, type="BadRequestError"), ("`n` must be 1", "n", "BadRequestError")),
        (error("n generations of logprobs_x"), ("n generations of logprobs_x", None, None)),
        (error("x", code="400", type="T"), ("x", None, "T")),
        ({"error": "text"}, ("text", None, None)),
        ({"error": {"message": 5}}, ("", None, None)),
        ({"detail": "Not Found"}, ("Not Found", None, None)),
        ({"detail": [{"loc": ["body", "temperature"], "msg": "hot", "type": "le"}]}, ("hot", "temperature", "le")),
        ({"detail": [{"loc": ["body", 17], "msg": "JSON decode error"}]}, ("JSON decode error", None, None)),
        ({"message": "m", "object": "error"}, ("m", None, None)),
        ({"error": {}}, ("", None, None)),
        ([], ("", None, None)),
        (7, ("", None, None)),
    ],
    ids=ascii,
)  # fmt: skip
def test_details_of_errors(body, expected):
    assert error_details(json.dumps(body).encode()) == expected


def test_details_of_what_is_no_json():
    assert error_details(b"connect error\n or disconnect") == ("connect error or disconnect", None, None)
    assert error_details(b"  <!DOCTYPE html><title>x</title>") == ("a page of HTML", None, None)
    assert error_details(b"[" * 200_000)[1:] == (None, None)
    assert error_details(b"") == ("", None, None)
    assert len(error_details(b"x" * 10**6)[0]) == 1000


@given(st.sampled_from([400, 401, 403, 404, 413, 422, 429, 500]), BODIES)
def test_any_error_has_a_class_and_details(status, content):
    assert classify_error(status, content) in get_args(ErrorClass)
    message, param, code = error_details(content)
    for text in (message, param or "", code or ""):
        text.encode("utf-8")
        assert len(text) <= 1000
