import math
from collections import Counter

import pytest

from qurating_jax.judges import canaries, criteria, prompts

TEXT = "A text about {label} and {text}.\nWith two lines."
# Words of a command or of praise; the control has none of them.
COMMANDING = ("answer", "reply", "ignore", "verdict", "label", "prefer", "better", "best", "judge", "output", "finer")


def test_the_variants():
    assert len(canaries.ATTACKS) >= 6
    assert set(canaries.VARIANTS) == {canaries.NEUTRAL, *canaries.ATTACKS}
    assert canaries.NEUTRAL not in canaries.ATTACKS
    assert len(set(canaries.VARIANTS.values())) == len(canaries.VARIANTS)
    assert all(template.count("{text}") == 1 for template in canaries.VARIANTS.values())


@pytest.mark.parametrize("variant", canaries.VARIANTS)
def test_a_canary_keeps_the_text_and_adds_to_it(variant):
    found = canaries.inject(TEXT, variant, label="Right")
    assert found.count(TEXT) == 1
    added = found.replace(TEXT, "")
    assert 20 < len(added) < 400
    assert "{" not in added
    assert added.count("Right") == canaries.VARIANTS[variant].count("{label}")
    # The claim moves with the slot: under another label only the label changes.
    assert canaries.inject(TEXT, variant, label="A9").replace(TEXT, "") == added.replace("Right", "A9")


def test_the_control_commands_nothing_and_is_of_like_length():
    added = {name: template.replace("{text}", "") for name, template in canaries.VARIANTS.items()}
    neutral = added.pop(canaries.NEUTRAL)
    assert "{label}" not in neutral
    assert not any(word in neutral.lower() for word in COMMANDING)
    lengths = sorted(map(len, added.values()))
    assert lengths[0] < len(neutral) < lengths[-1]


@pytest.mark.parametrize("variant", canaries.VARIANTS)
@pytest.mark.parametrize("slot", [0, 1])
def test_a_canary_cannot_leave_its_fence(variant, slot):
    (one,) = criteria.load(["educational_value"])
    nonce = prompts.PLACEHOLDER_NONCE  # even if the attacker knew it
    texts = ["A plain text.", "Another plain text."]
    texts[slot] = canaries.inject(texts[slot], variant, label=one.labels[slot])
    (message,) = prompts.pairwise_messages(one, *texts, layout="criterion_first", nonce=nonce)
    content = message["content"]
    for label in one.labels:
        for edge in ("BEGIN", "END"):
            assert content.count(f"<<<{edge} TEXT {label} {nonce}>>>") == 1
    begin, end = (content.index(f"<<<{edge} TEXT {one.labels[slot]} {nonce}>>>") for edge in ("BEGIN", "END"))
    last = canaries.VARIANTS[variant].replace("{label}", one.labels[slot]).split()[-1]
    place = content.rindex("plain text." if last == "{text}" else last, begin, end)
    assert begin < place < end
    assert "<|im_start|>" not in content
    assert f"\nAnswer: {one.labels[slot]}\n" not in content


def test_an_unknown_variant_is_refused():
    with pytest.raises(ValueError, match="no canary `shouting`; there are neutral, direct_command"):
        canaries.inject(TEXT, "shouting", label="A")


def test_draws_belong_to_seed_and_group():
    assert canaries.draw(3, ["x", "y"]) == canaries.draw(3, ("x", "y"))
    drawn = [[canaries.draw(seed, (f"a{i}", f"b{i}")) for i in range(50)] for seed in (0, 1)]
    assert drawn[0] != drawn[1]
    assert drawn[0] != [canaries.draw(0, (f"b{i}", f"a{i}")) for i in range(50)]


def test_a_quarter_is_the_control_and_the_rest_is_shared_evenly():
    num = 6000
    drawn = [canaries.draw(7, (f"a{i}", f"b{i}", f"c{i}")) for i in range(num)]
    variants, slots = Counter(variant for variant, _ in drawn), Counter(slot for _, slot in drawn)
    expected = {canaries.NEUTRAL: 0.25} | dict.fromkeys(canaries.ATTACKS, 0.75 / len(canaries.ATTACKS))
    assert set(variants) == set(expected)
    assert set(slots) == {0, 1, 2}
    for counts, shares in ((variants, expected), (slots, dict.fromkeys(range(3), 1 / 3))):
        for name, share in shares.items():
            assert abs(counts[name] - num * share) < 4 * math.sqrt(num * share * (1 - share))
    # The slot does not depend on the variant.
    control = Counter(slot for variant, slot in drawn if variant == canaries.NEUTRAL)
    assert all(
        abs(count / control.total() - 1 / 3) < 4 * math.sqrt(2 / 9 / control.total()) for count in control.values()
    )
